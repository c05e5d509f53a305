"""WordPiece vocabularies: trained here on any source, written whole or not at all, and loaded again."""

import contextlib
import json
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cleaning import any_text
from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer, BertTokenizer

from kcelectra import clean, clean_batch
from kcelectra.corpus.build import build_corpus
from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.sample import generate_sample
from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest, verify_manifest
from kcelectra.tokenization import (
    SPECIAL_TOKENS,
    identify_vocabulary,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from kcelectra.tokenization import training as training_module
from kcelectra.tokenization.loading import tokens_by_id
from kcelectra.tokenization.training import extend_tokenizer
from kcelectra.tokenization.words import WORD_BREAKS

VOCAB_DIR = Path(__file__).parents[2] / "shared" / "data" / "vocab"
PUBLISHED = {
    "kcbert_vocab.txt": 30_000,
    "kcelectra_v2021_vocab.txt": 50_135,
    "kcelectra_v2022_vocab.txt": 54_343,
    "kcelectra_dev25000_vocab.txt": 25_000,
    "koelectra_v1_vocab.txt": 32_200,
}
needs_vocab = pytest.mark.skipif(not VOCAB_DIR.is_dir(), reason=f"needs the published vocabularies in {VOCAB_DIR}")
TEXTS = clean_batch(row["text"] for row in generate_sample())
NUM_CHARACTERS = len({character for text in TEXTS for character in text if not character.isspace()})
TRICKY = ["좋아요ㅋㅋㅋ 최고!!", "The BEST of Best, best", "각 힣 뷁", "ㄱㅏ", "안녕\u200b하세요"]
TRICKY += ["漢字", "😀", "[SEP] [MASK]", ""]
FILES = {"manifest.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return train_tokenizer(TEXTS, vocab_size=2000)


def characters_of(tokenizer: BertTokenizer) -> set[str]:
    tokens = {token for token in tokenizer.get_vocab() if token not in SPECIAL_TOKENS}
    return {character for token in tokens for character in token.removeprefix("##")}


def contents(directory: Path) -> dict[str, bytes | None]:
    """Return all that is below a directory, hidden files too."""
    paths = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in paths}


def write_comments(path: Path, texts: list[str] = TEXTS) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


# the merges


def train_slowly(
    words: dict[str, int], *, vocab_size: int, min_frequency: int = 2
) -> tuple[list[str], list[str], list[bool]]:
    """Train byte-pair merges by recounting all pairs each time, ties by id.

    Returns:
        The characters, those that go on with a word after the others; the merged tokens; and of each of these whether
        another pair was as frequent.
    """
    alphabet = sorted({character for word in words for character in word})
    characters = [*alphabet, *(f"##{x}" for x in alphabet if WORD_BREAKS[ord(x)] == ord(x))]
    ids = {token: index for index, token in enumerate(characters)}
    pieces = {word: [word[0], *(f"##{x}" for x in word[1:])] for word in words}
    is_tie = []
    while len(SPECIAL_TOKENS) + len(ids) < vocab_size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(pieces[word]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]), default=None)
        if best is None or pairs[best] < min_frequency:
            break
        merged = best[0] + best[1].removeprefix("##")
        if merged not in ids:
            is_tie.append(list(pairs.values()).count(pairs[best]) > 1)
        ids.setdefault(merged, len(ids))
        for word, old in pieces.items():
            pieces[word] = []
            for piece in old:
                if pieces[word] and (pieces[word][-1], piece) == best:
                    pieces[word][-1] = merged
                else:
                    pieces[word].append(piece)
    return characters, list(ids)[len(characters) :], is_tie


def repeat(words: dict[str, int]) -> list[str]:
    return [" ".join([word] * count) for word, count in words.items()]


def draw_words(seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    words = ("".join(rng.choices("가나다라마바", k=rng.randint(2, 6))) for _ in range(300))
    return {word: rng.randint(2, 1000) for word in words}


@settings(any_text, max_examples=60)  # each counts words on the disk
@given(
    st.dictionaries(st.text("가나ㅋa", min_size=1, max_size=7), st.integers(1, 9), min_size=1, max_size=9),
    st.integers(15, 40),
    st.integers(1, 4),
)
@example({"ㅋㅋㅋㅋㅋㅋㅋ": 3, "ㅋㅋ": 1}, 30, 1)
@example({"가" * 100: 5000}, 30, 1)  # longer than what is given to the trainer at a time
def test_the_tokens_are_those_of_merges_that_are_counted_by_hand(words, vocab_size, min_frequency):
    characters, merged, _ = train_slowly(words, vocab_size=vocab_size, min_frequency=min_frequency)
    trained = train_tokenizer(repeat(words), vocab_size=vocab_size, min_frequency=min_frequency)
    assert tokens_by_id(trained) == [*SPECIAL_TOKENS, *characters, *merged]


def test_the_tokens_of_ordinary_comments_are_those_of_merges_that_are_counted_by_hand():
    words = Counter(word for text in TEXTS for word in text.translate(WORD_BREAKS).split())
    characters, merged, _ = train_slowly(words, vocab_size=1150)
    assert len(merged) > 100
    assert tokens_by_id(train_tokenizer(TEXTS, vocab_size=1150)) == [*SPECIAL_TOKENS, *characters, *merged]


@pytest.mark.parametrize("seed", range(5))
def test_where_no_two_pairs_tie_the_tokens_are_those_of_the_library(seed):
    """The library numbers characters as a hash table has them, and breaks ties by these numbers."""
    words = draw_words(seed)
    characters, merged, is_tie = train_slowly(words, vocab_size=150)
    num_merges = [*is_tie, True].index(True)
    assert num_merges >= 30
    seen = {f"##{character}" for word in words for character in word[1:]}
    alphabet = {character for word in words for character in word}
    library = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    library.train_from_iterator(
        repeat(words), vocab_size=5 + len(alphabet) + len(seen) + num_merges, min_frequency=2, show_progress=False
    )
    ours = train_tokenizer(repeat(words), vocab_size=5 + len(characters) + num_merges)
    added = {f"##{character}" for character in alphabet} - seen
    assert set(ours.get_vocab()) - added == set(library.get_vocab())
    assert set(merged[:num_merges]) < set(library.get_vocab())


# what is in a vocabulary


def test_special_tokens_are_at_zero_to_four(tokenizer):
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (*ids, tokenizer.mask_token_id) == (0, 1, 2, 3, 4)
    assert tokenizer("가")["input_ids"][0] == 2
    assert tokenizer("가")["input_ids"][-1] == 3


def test_letters_keep_their_case():
    tokenizer = train_tokenizer(["ABC abc"] * 3, vocab_size=30)
    assert tokenizer.tokenize("ABC abc") == ["ABC", "abc"]


def test_hangul_and_accents_are_not_decomposed(tokenizer):
    accented = train_tokenizer(["뷁 한글 café"] * 3, vocab_size=40)
    assert accented.tokenize("뷁 한글 café") == ["뷁", "한글", "café"]
    assert characters_of(accented) == set("뷁한글café")
    assert all(token == unicodedata.normalize("NFC", token) for token in tokenizer.get_vocab())


def test_every_text_it_was_trained_on_is_spelt_without_unk(tokenizer):
    unk = tokenizer.unk_token_id
    assert not [text for text in TEXTS if unk in tokenizer(text)["input_ids"]]


@any_text
@given(st.data())
def test_a_word_of_known_characters_is_never_unk_wherever_they_stand(tokenizer, data):
    alphabet = sorted(characters_of(tokenizer))
    word = data.draw(st.text(alphabet, min_size=1, max_size=100))  # longer ones are [UNK] to every BertTokenizer
    assert tokenizer.unk_token_id not in tokenizer(word, split_special_tokens=True)["input_ids"]


def test_a_character_that_only_began_words_can_go_on_with_one():
    tokenizer = train_tokenizer(["가 나", "漢 ! 👍"] * 3, vocab_size=30)
    assert tokenizer.tokenize("나가나 👍가👍 漢가漢!") == [
        "나",
        "##가",
        "##나",
        "👍",
        "##가",
        "##👍",
        "漢",
        "가",
        "漢",
        "!",
    ]
    assert not {"##漢", "##!"} & tokenizer.get_vocab().keys()  # words of their own: an id would be lost on them


def test_a_trained_tokenizer_gives_the_text_back(tokenizer):
    """All but spaces and control characters, which BERT's normaliser deletes."""
    for text in TEXTS[:300]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        visible = "".join(character for character in text if character.isprintable())
        assert decoded.replace(" ", "") == visible.replace(" ", "")


@pytest.mark.parametrize("vocab_size", [6, 100, NUM_CHARACTERS, 1000, 2000])
def test_vocab_size_is_never_exceeded(vocab_size):
    with contextlib.suppress(InputError):  # the alphabet need not fit
        assert len(train_tokenizer(TEXTS, vocab_size=vocab_size)) <= vocab_size


def test_a_vocabulary_is_filled_where_the_texts_allow(tokenizer, caplog):
    assert len(tokenizer) == 2000
    assert len(train_tokenizer(["가나 가나"], vocab_size=30_000)) == 10
    assert "10 of 30000 tokens: there are no more merges" in caplog.text


@pytest.mark.parametrize("limit_alphabet", [1, 50, 200])
def test_limit_alphabet_is_respected(limit_alphabet):
    tokenizer = train_tokenizer(TEXTS, vocab_size=1500, limit_alphabet=limit_alphabet)
    assert len(characters_of(tokenizer)) == limit_alphabet < NUM_CHARACTERS


def test_the_alphabet_is_the_most_frequent_characters_and_ties_go_by_code_point():
    texts = ["다다다 하하 나나 나나", "가 라 마 바"]
    tokenizer = train_tokenizer(texts, vocab_size=30, limit_alphabet=5, min_frequency=10)
    assert tokens_by_id(tokenizer)[5:] == [*"가나다라하", *(f"##{character}" for character in "가나다라하")]
    assert tokenizer.tokenize("가 마 가마") == ["가", "[UNK]", "[UNK]"]


@pytest.mark.parametrize("stranger", ["\ue000", "\U000f0000", "\U0010ffff", "\U00080000", "\U000e0100", "\ud800"])
def test_private_and_unassigned_characters_never_enter_the_alphabet(stranger):
    tokenizer = train_tokenizer([f"가{stranger}나 {stranger} {stranger * 9} 다"] * 3, vocab_size=40)
    assert characters_of(tokenizer) == set("가나다") or characters_of(tokenizer) == set("다")


@pytest.mark.parametrize("stranger", ["마", "漢", "😀", "\U00020000", "\U00080000", "\U000e0100"])
def test_characters_outside_the_alphabet_are_counted(tmp_path, stranger):
    texts = ["가나 가나 다라 다라", f"{stranger}"]
    tokenizer = train_tokenizer(texts, tmp_path / "out", vocab_size=40, limit_alphabet=4)
    assert tokenizer.tokenize(stranger) == ["[UNK]"]
    expected = {"num_characters": 1, "num_occurrences": 1, "most_frequent": {stranger: 1}}
    assert read_manifest(tmp_path / "out")["outside_alphabet"] == expected


def test_min_frequency_is_respected():
    texts = ["가나"] * 3 + ["다라"] * 2
    assert "다라" in train_tokenizer(texts, vocab_size=30, min_frequency=2).get_vocab()
    assert "다라" not in train_tokenizer(texts, vocab_size=30, min_frequency=3).get_vocab()


def test_words_beyond_max_words_are_not_merged_and_still_have_their_characters():
    tokenizer = train_tokenizer(["가나"] * 3 + ["다라"] * 2, vocab_size=30, max_words=1)
    assert tokenizer.tokenize("가나 다라") == ["가나", "다", "##라"]


def test_unused_tokens_and_a_donor_come_last_and_beyond_vocab_size(tmp_path):
    donor = tmp_path / "donor.txt"
    donor.write_text("".join(f"{token}\n" for token in [*SPECIAL_TOKENS, "[unused7]", "하늘", TEXTS[0][0], "##ed"]))
    plain = tokens_by_id(train_tokenizer(TEXTS, vocab_size=1100))
    tokenizer = train_tokenizer(TEXTS, tmp_path / "out", vocab_size=1100, donor_vocab=str(donor), num_unused=3)
    assert tokens_by_id(tokenizer) == [*plain, "하늘", "##ed", "[unused0]", "[unused1]", "[unused2]"]
    facts = verify_manifest(tmp_path / "out")
    assert facts["donor"] == {"num_tokens": 9, "num_unused": 1, "num_overlap": 6, "num_appended": 2}
    assert (facts["num_own"], facts["num_tokens"]) == (1100, 1105)


# where the texts come from


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    write_comments(directory / "comments.txt", [row["text"].replace("\n", " ") for row in generate_sample()])
    build_corpus(str(directory / "comments.txt"), directory / "corpus", num_workers=1)
    return directory / "corpus"


def test_a_corpus_a_reader_a_list_and_a_generator_give_the_same(corpus_dir):
    texts = [comment.text for batch in CommentReader(str(corpus_dir)) for comment in batch]
    expected = tokens_by_id(train_tokenizer(texts, vocab_size=1300))
    assert len(texts) > 1000 and len(expected) == 1300
    shuffled = random.Random(0).sample(texts, len(texts))
    for corpus in (corpus_dir, str(corpus_dir), CommentReader(str(corpus_dir)), (x for x in texts), iter(shuffled)):
        assert tokens_by_id(train_tokenizer(corpus, vocab_size=1300)) == expected


def test_a_raw_source_is_cleaned_as_in_pretraining(tmp_path):
    source = write_comments(tmp_path / "raw.txt", [row["text"].replace("\n", " ") for row in generate_sample()])
    raw = [comment.text for batch in CommentReader(str(source)) for comment in batch]

    def expect(rules: str, min_chars: int) -> list[str]:
        cleaned = [text for text in (clean(text, rules) for text in raw) if len(text) >= min_chars]
        return tokens_by_id(train_tokenizer(cleaned, vocab_size=1300))

    assert tokens_by_id(train_tokenizer(source, vocab_size=1300)) == expect("v2022", 10)
    options = {"rules": "v2021", "min_chars": 30}
    assert tokens_by_id(train_tokenizer(source, vocab_size=1300, **options)) == expect(**options)


def test_an_iterator_is_read_once_and_to_its_end():
    reads = []

    def generate():
        for text in TEXTS:
            reads.append(text)
            yield text

    train_tokenizer(generate(), vocab_size=1300)
    assert reads == TEXTS


def test_a_row_that_is_no_utf8_costs_itself_alone(tmp_path, caplog):
    write_comments(tmp_path / "good.txt")
    lines = (tmp_path / "good.txt").read_bytes().split(b"\n")
    (tmp_path / "bad.txt").write_bytes(b"\n".join([*lines[:100], b"\xea\xb0 \xff\xfe", *lines[100:]]))
    good, bad = (train_tokenizer(tmp_path / f"{name}.txt", vocab_size=1300) for name in ("good", "bad"))
    assert tokens_by_id(good) == tokens_by_id(bad)
    assert "bad.txt, row 101: invalid UTF-8; the row is left out" in caplog.text


def test_the_sample_has_its_share_and_its_seed(tmp_path):
    def train(name: str, **options) -> bytes:
        train_tokenizer((f"댓글 {number} 번" for number in range(25_000)), tmp_path / name, vocab_size=200, **options)
        return (tmp_path / name / "vocab.txt").read_bytes() + (tmp_path / name / "tokenizer.json").read_bytes()

    drawn = [train(f"drawn{seed}", sample=0.1, seed=seed) for seed in (0, 1)]
    assert train("again", sample=0.1, seed=1) == drawn[1] != drawn[0]
    assert train("whole") == train("whole with a seed", seed=1)
    counts = [read_manifest(tmp_path / name)["num_texts"] for name in ("drawn0", "drawn1", "again", "whole")]
    assert counts[1] == counts[2] and counts[3] == 25_000
    assert all(abs(count - 2500) < 5 * 48 for count in counts[:2])  # 48 is the standard deviation


# the same bytes

TRAIN = """
import sys
from kcelectra.tokenization import train_tokenizer
train_tokenizer(sys.argv[1], sys.argv[2], vocab_size=1500, limit_alphabet=500, sample=0.9, seed=3, num_unused=5)
"""


def test_every_process_writes_the_same_bytes(corpus_dir, tmp_path):
    options = {"vocab_size": 1500, "limit_alphabet": 500, "sample": 0.9, "seed": 3, "num_unused": 5}
    train_tokenizer(corpus_dir, tmp_path / "here", **options)
    for number, environment in enumerate(
        [
            {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"},
            {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "1", "LC_ALL": "C"},
        ]
    ):
        command = [sys.executable, "-c", TRAIN, corpus_dir, tmp_path / f"{number}"]
        subprocess.run(command, env=os.environ | environment, check=True, timeout=120)
        assert contents(tmp_path / f"{number}") == contents(tmp_path / "here")
    assert set(contents(tmp_path / "here")) == FILES


def test_the_manifest_has_every_count(tmp_path):
    texts = ["가나 가나 다!", "가나 마", ""]
    tokenizer = train_tokenizer(texts, tmp_path / "out", vocab_size=40, limit_alphabet=4, max_words=3)
    facts = verify_manifest(tmp_path / "out")
    assert facts["sha256"] == facts["files"]["vocab.txt"]["sha256"]
    assert tokens_by_id(tokenizer)[5:] == [*"!가나다", *(f"##{character}" for character in "가나다"), "가나"]
    assert (facts["num_texts"], facts["num_tokens"], facts["num_own"], facts["num_alphabet"]) == (3, 13, 13, 4)
    assert facts["num_words"] == {"distinct": 4, "trained_on": 3}
    assert facts["outside_alphabet"]["most_frequent"] == {"마": 1}
    assert "analyser" not in facts and "donor" not in facts


# running again


def stamps(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (directory, *directory.iterdir())}


def test_the_same_settings_again_leave_the_directory_as_it_is(corpus_dir, tmp_path, monkeypatch):
    output_dir = tmp_path / "out"
    first = train_tokenizer(corpus_dir, output_dir, vocab_size=1300)
    before = stamps(output_dir)
    monkeypatch.setattr(training_module, "count_words", None)  # nothing is read again
    again = train_tokenizer(CommentReader(str(corpus_dir)), output_dir, vocab_size=1300, num_workers=1)
    assert stamps(output_dir) == before
    assert again(TEXTS)["input_ids"] == first(TEXTS)["input_ids"]


def test_half_a_surrogate_pair_in_text_that_is_not_cleaned_costs_no_tokenizer(tmp_path):
    source = tmp_path / "comments.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in [*TEXTS, "반쪽 \ud83d 이모지"]))
    tokenizer = train_tokenizer(source, vocab_size=1300, rules="none", min_chars=0)
    assert tokenizer.unk_token_id not in tokenizer("반쪽 ? 이모지")["input_ids"]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"vocab_size": 1301}, r"\(vocab_size: 1300 there, 1301 now\)"),
        ({"seed": 1}, r"\(seed: 0 there, 1 now\)"),
        (
            {"limit_alphabet": 900, "num_unused": 2},
            r"\(limit_alphabet: 4000 there, 900 now; num_unused: 0 there, 2 now\)",
        ),
        ({"morphemes": "all"}, r"\(morphemes: None there, all now\)"),
        ({"rules": "v2021"}, r"\(rules: none there, v2021 now\)"),
        ({"min_chars": 5}, r"\(min_chars: 0 there, 5 now\)"),
    ],
)
def test_other_settings_are_refused_and_named(corpus_dir, tmp_path, options, expected):
    train_tokenizer(corpus_dir, tmp_path / "out", vocab_size=1300)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"holds another tokenizer {expected}; give another --output_dir, or delete"):
        train_tokenizer(corpus_dir, tmp_path / "out", **{"vocab_size": 1300} | options)
    assert contents(tmp_path) == before


def test_another_corpus_of_the_same_name_is_refused(corpus_dir, tmp_path):
    source = write_comments(tmp_path / "comments.txt", TEXTS[:300])
    build_corpus(str(source), tmp_path / "corpus", num_workers=1)
    for name in ("comments.txt", "corpus"):
        train_tokenizer(tmp_path / name, tmp_path / f"{name}-out", vocab_size=1300)
    write_comments(source, TEXTS[:301])
    (tmp_path / "corpus").rename(tmp_path / "old")
    (tmp_path / "corpus").symlink_to(corpus_dir)
    for name, what in (("comments.txt", "files"), ("corpus", "corpus_sha256")):
        before = contents(tmp_path / f"{name}-out")
        with pytest.raises(InputError, match=f"holds another tokenizer \\({what}: .* there, .* now\\)"):
            train_tokenizer(tmp_path / name, tmp_path / f"{name}-out", vocab_size=1300)
        assert contents(tmp_path / f"{name}-out") == before


def test_another_column_of_a_hub_dataset_is_another_tokenizer(monkeypatch):
    monkeypatch.setattr(training_module, "find_revision", lambda *_: "0" * 40)
    described = [
        training_module._describe_reader(CommentReader("a/b", text_column=name)) for name in ("text", "title")
    ]
    assert described == [{"split": "train", "revision": "0" * 40} | more for more in ({}, {"text_column": "title"})]


def test_raw_comments_beside_a_manifest_of_somebody_else_are_told_apart(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "manifest.json").write_text("{}")
    source = write_comments(tmp_path / "in" / "a.txt", TEXTS[:300])
    train_tokenizer(source.parent, tmp_path / "out", vocab_size=1300)
    write_comments(source, TEXTS[:301])
    with pytest.raises(InputError, match=r"holds another tokenizer \(files: .* there, .* now\)"):
        train_tokenizer(source.parent, tmp_path / "out", vocab_size=1300)


@pytest.mark.parametrize("size", [None, 100])
def test_a_tokenizer_that_was_cut_is_not_returned(tmp_path, size):
    base, file = write_vocabulary(tmp_path / "base.txt", [*SPECIAL_TOKENS, "가"]), tmp_path / "out" / "tokenizer.json"
    extend_tokenizer(base, tmp_path / "out", num_unused=3)
    file.write_text(file.read_text()[:size]) if size else file.unlink()
    with pytest.raises(InputError, match=f"{file} is missing or not what .*; delete {tmp_path / 'out'}, and the same"):
        extend_tokenizer(base, tmp_path / "out", num_unused=3)


def test_a_donor_that_has_changed_since_is_refused(corpus_dir, tmp_path):
    donor = tmp_path / "donor.txt"
    donor.write_text("핵존잼\n", encoding="utf-8")
    train_tokenizer(corpus_dir, tmp_path / "out", vocab_size=1300, donor_vocab=str(donor))
    donor.write_text("바다\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds another tokenizer"):
        train_tokenizer(corpus_dir, tmp_path / "out", vocab_size=1300, donor_vocab=str(donor))


def test_texts_that_cannot_be_told_apart_are_refused(tmp_path):
    train_tokenizer(TEXTS, tmp_path / "out", vocab_size=1300)
    with pytest.raises(InputError, match="holds another tokenizer .of texts that are not known.; give another"):
        train_tokenizer(TEXTS, tmp_path / "out", vocab_size=1300)


def test_a_run_that_dies_leaves_no_tokenizer_and_the_next_one_needs_no_help(tmp_path, monkeypatch):
    output_dir, staging = tmp_path / "out", tmp_path / ".out.tmp"

    def die(*arguments, **facts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_module, "write_manifest", die)
        train_tokenizer(TEXTS, output_dir, vocab_size=1300)
    assert not output_dir.exists() and staging.is_dir()
    (staging / "garbage").write_text("of an earlier run")
    train_tokenizer(TEXTS, output_dir, vocab_size=1300)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert set(contents(output_dir)) == FILES


@pytest.mark.parametrize("kind", ["absent", "nested", "empty", "link to an empty one"])
def test_an_empty_directory_is_as_good_as_none(tmp_path, kind):
    output_dir = tmp_path / "out"
    if kind == "nested":
        output_dir = tmp_path / "a" / "b" / "out"
    elif kind != "absent":
        output_dir.mkdir()
    if kind == "link to an empty one":
        output_dir = tmp_path / "link"
        output_dir.symlink_to("out")
    train_tokenizer(TEXTS, output_dir, vocab_size=1300)
    assert set(contents(output_dir.resolve())) == FILES
    assert not list(tmp_path.rglob(".*.tmp"))


# round trips


def ids_of(tokenizer, texts: list[str] = TEXTS) -> list[list[int]]:
    return tokenizer(texts + TRICKY, split_special_tokens=True)["input_ids"]


def test_a_saved_tokenizer_gives_equal_ids_from_its_directory_and_its_vocab_txt(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    expected = ids_of(tokenizer)
    for loaded in (
        AutoTokenizer.from_pretrained(tmp_path),
        load_tokenizer(tmp_path),
        load_tokenizer(tmp_path / "vocab.txt"),
        load_tokenizer(str(tmp_path / "vocab.txt")),
    ):
        assert ids_of(loaded) == expected
        assert len(loaded) == len(tokenizer)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.model_max_length == tokenizer.model_max_length == 512


def test_a_vocab_txt_of_windows_loads_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    data = (tmp_path / "vocab.txt").read_bytes()
    (tmp_path / "windows.txt").write_bytes(data.replace(b"\n", b"\r\n"))
    (tmp_path / "unfinished.txt").write_bytes(data.removesuffix(b"\n"))
    for name in ("windows.txt", "unfinished.txt"):
        assert load_tokenizer(tmp_path / name).get_vocab() == tokenizer.get_vocab()


@needs_vocab
@pytest.mark.parametrize(("name", "size"), PUBLISHED.items())
def test_a_published_vocabulary_loads_whole(name, size):
    tokenizer = load_tokenizer(VOCAB_DIR / name)
    tokens = (VOCAB_DIR / name).read_bytes().decode().removesuffix("\n").split("\n")
    assert len(tokenizer) == len(tokenizer.get_vocab()) == len(tokens) == size
    assert tokenizer.convert_ids_to_tokens(range(size)) == tokens
    assert tokens[:5] == list(SPECIAL_TOKENS)


@needs_vocab
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_vocabulary_gives_the_ids_of_the_tokenizers_library(name):
    reference = BertWordPieceTokenizer(str(VOCAB_DIR / name), lowercase=False, strip_accents=False)
    texts = TEXTS[:500] + [text for text in TRICKY if "[" not in text]
    ours = load_tokenizer(VOCAB_DIR / name)(texts)["input_ids"]
    assert ours == [encoding.ids for encoding in reference.encode_batch(texts)]


@needs_vocab
def test_a_published_vocabulary_survives_a_round_trip(tmp_path):
    tokenizer = load_tokenizer(VOCAB_DIR / "kcelectra_v2022_vocab.txt")
    save_tokenizer(tokenizer, tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (VOCAB_DIR / "kcelectra_v2022_vocab.txt").read_bytes()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert ids_of(loaded, TEXTS[:500]) == ids_of(tokenizer, TEXTS[:500])
    assert identify_vocabulary(tokens_by_id(loaded)).name == "KcELECTRA v2022"


# errors: what to type, and nothing is written


@pytest.mark.parametrize("texts", [[], [""], [" ", "\n\t"], ["\ue000\u200b\ud800"], b"", b"\n \n\n", b"\xff\xff\n"])
def test_no_text_is_an_error_with_the_cure(tmp_path, texts):
    corpus = iter(texts)
    if isinstance(texts, bytes):
        corpus = tmp_path / "comments.txt"
        corpus.write_bytes(texts)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="no text to train a tokenizer on; check --dataset"):
        train_tokenizer(corpus, tmp_path / "out", vocab_size=100)
    assert contents(tmp_path) == before


NUM_FIXED = 5 + 7 + 6  # special tokens, characters, and those that go on with a word: all but the full stop


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"vocab_size": 0}, "vocab_size is 0; give at least 6"),
        ({"vocab_size": 5}, "vocab_size is 5; give at least 6"),
        (
            {"vocab_size": NUM_FIXED - 1},
            "vocab_size is 17; the special tokens and 7 characters, 6 of them with and without ##, take 18: give a "
            "--vocab_size above that, or a lower --limit_alphabet",
        ),
        ({"limit_alphabet": 0}, "limit_alphabet is 0; give at least 1"),
        ({"min_frequency": 0}, "min_frequency is 0; give at least 1"),
        ({"max_words": 0}, "max_words is 0; give at least 1"),
        ({"num_unused": -1}, "give a --num_unused and a --seed of 0 or more"),
        ({"sample": 0.0}, "a --sample above 0 and up to 1"),
        ({"sample": 1.01}, "a --sample above 0 and up to 1"),
        ({"sample": float("nan")}, "a --sample above 0 and up to 1"),
        ({"seed": -1}, "a --seed of 0 or more"),
        ({"donor_vocab": "no/donor.txt"}, "cannot read the vocabulary no/donor.txt: .*No such file"),
    ],
)
def test_a_bad_option_says_what_to_type(tmp_path, options, expected):
    with pytest.raises(InputError, match=expected):
        train_tokenizer(["가나 다라 마a."], tmp_path / "out", **{"vocab_size": 50} | options)
    assert contents(tmp_path) == {}


def test_the_smallest_vocabulary_that_an_alphabet_fits_into():
    assert len(train_tokenizer(["가나 다라 마a."], vocab_size=18)) == 18


def test_a_damaged_donor_is_refused_before_any_text_is_read(tmp_path):
    (tmp_path / "donor.txt").write_text("하늘\n\n", encoding="utf-8")
    texts = iter(TEXTS)
    with pytest.raises(InputError, match="donor.txt: line 2 is blank"):
        train_tokenizer(texts, tmp_path / "out", vocab_size=1300, donor_vocab=str(tmp_path / "donor.txt"))
    assert next(texts) == TEXTS[0]
    assert list(contents(tmp_path)) == ["donor.txt"]


def test_the_working_directory_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="gets a directory of its own; give an --output_dir below this one"):
        train_tokenizer(TEXTS, ".", vocab_size=1300)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"output_dir": "file/out"}, "cannot write .*file/out: .*; give another --output_dir"),
        ({"output_dir": "out", "num_workers": 0}, "--num_workers is 0; give 1 or more"),
    ],
)
def test_what_cannot_be_done_is_told_before_training(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(training_module, "count_words", None)
    with pytest.raises(InputError, match=expected):
        train_tokenizer(TEXTS, **options)


def test_a_donor_can_be_given_as_a_path(tmp_path):
    (tmp_path / "donor.txt").write_text("핵존잼\n", encoding="utf-8")
    tokenizer = train_tokenizer(TEXTS, tmp_path / "out", vocab_size=1300, donor_vocab=tmp_path / "donor.txt")
    assert tokens_by_id(tokenizer)[-1] == "핵존잼"


OCCUPIED = {
    "a file": {"out": "a file"},
    "below a file": {"out/..": "a file"},
    "other files": {"out/notes.txt": "of somebody"},
    "a hidden file": {"out/.keep": ""},
    "another stage": {"out/manifest.json": json.dumps({"stage": "corpus", "settings": {}})},
    "a manifest without a stage": {"out/manifest.json": "{}"},
    "a damaged manifest": {"out/manifest.json": "{"},
    "a manifest of something else": {"out/manifest.json": "[]"},
}


@pytest.mark.parametrize("kind", OCCUPIED)
@pytest.mark.parametrize("recipe", ["train", "extend"])
def test_a_directory_that_holds_something_else_is_left_alone(tmp_path, kind, recipe):
    for name, text in OCCUPIED[kind].items():
        path = tmp_path / name.removesuffix("/..")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    output_dir = tmp_path / "out" / "below" if kind == "below a file" else tmp_path / "out"
    base = tmp_path / "base.txt"
    base.write_text("".join(f"{token}\n" for token in [*SPECIAL_TOKENS, "가"]), encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"{output_dir}.*give another --output_dir"):
        if recipe == "train":
            train_tokenizer(iter(TEXTS), output_dir, vocab_size=1300)
        else:
            extend_tokenizer(base, output_dir, num_unused=3)
    assert contents(tmp_path) == before


def test_a_tokenizer_whose_manifest_was_changed_is_told_as_that(tmp_path):
    base = write_vocabulary(tmp_path / "base.txt", [*SPECIAL_TOKENS, "가"])
    extend_tokenizer(base, tmp_path / "out", num_unused=3)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"num_unused": 3', '"num_unused": 4'), "utf-8")
    with pytest.raises(InputError, match=f"{path} was changed since it was written; delete"):
        extend_tokenizer(base, tmp_path / "out", num_unused=3)


# loading


def write_vocabulary(path: Path, tokens: list[str]) -> Path:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["vocab.txt", "directory"])
def test_a_tokenizer_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"cannot (read the vocabulary|load a tokenizer from) {tmp_path / name}"):
        load_tokenizer(tmp_path / name)


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=f"cannot load a tokenizer from {tmp_path}"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(InputError, match="cannot read the vocabulary .*vocab.txt"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_tokens_that_occur_twice_are_counted(tmp_path):
    path = write_vocabulary(tmp_path / "vocab.txt", [*SPECIAL_TOKENS, "가", "나", "가", "가"])
    with pytest.raises(InputError, match="2 of 9 tokens occur twice"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "tokens",
    [
        ["가", *SPECIAL_TOKENS],
        ["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]", "가"],
        ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        ["가", "나", "다", "라", "마", "바"],
        [],
    ],
)
def test_special_tokens_elsewhere_are_an_error(tmp_path, tokens):
    with pytest.raises(InputError, match=r"\[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\] have the ids .*, not 0 to 4"):
        load_tokenizer(write_vocabulary(tmp_path / "vocab.txt", tokens))


def test_special_tokens_elsewhere_are_an_error_in_a_directory_too(tmp_path):
    tokens = ["가", "나", *SPECIAL_TOKENS]
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not 0 to 4"):
        load_tokenizer(tmp_path)
