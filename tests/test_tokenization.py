"""WordPiece vocabularies: trained here, and the published ones."""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer, BertTokenizer

from kcelectra import clean_batch
from kcelectra.corpus.sample import generate_sample
from kcelectra.errors import InputError
from kcelectra.tokenization import SPECIAL_TOKENS, load_tokenizer, save_tokenizer, train_tokenizer

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


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return train_tokenizer(TEXTS, vocab_size=2000)


def characters_of(tokenizer: BertTokenizer) -> set[str]:
    tokens = {token for token in tokenizer.get_vocab() if token not in SPECIAL_TOKENS}
    return {character for token in tokens for character in token.removeprefix("##")}


# training


def test_special_tokens_are_at_zero_to_four(tokenizer):
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == list(SPECIAL_TOKENS)
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (*ids, tokenizer.mask_token_id) == (0, 1, 2, 3, 4)
    assert tokenizer("가")["input_ids"][0] == 2
    assert tokenizer("가")["input_ids"][-1] == 3


def test_letters_keep_their_case():
    tokenizer = train_tokenizer(["ABC abc"] * 3, vocab_size=30)
    assert tokenizer.tokenize("ABC abc") == ["ABC", "abc"]


def test_hangul_and_accents_are_not_decomposed():
    tokenizer = train_tokenizer(["뷁 한글 café"] * 3, vocab_size=40)
    assert tokenizer.tokenize("뷁 한글 café") == ["뷁", "한글", "café"]
    assert characters_of(tokenizer) == set("뷁한글café")


def test_hangul_of_a_trained_vocabulary_is_composed(tokenizer):
    assert all(token == unicodedata.normalize("NFC", token) for token in tokenizer.get_vocab())


def test_every_text_it_was_trained_on_is_spelt_without_unk(tokenizer):
    unk = tokenizer.unk_token_id
    assert not [text for text in TEXTS if unk in tokenizer(text)["input_ids"]]


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


def test_a_vocabulary_is_filled_where_the_texts_allow(tokenizer):
    assert len(tokenizer) == 2000
    assert len(train_tokenizer(["가나 가나"], vocab_size=30_000)) < 20


@pytest.mark.parametrize("limit_alphabet", [1, 50, 200])
def test_limit_alphabet_is_respected(limit_alphabet):
    tokenizer = train_tokenizer(TEXTS, vocab_size=1500, limit_alphabet=limit_alphabet)
    assert len(characters_of(tokenizer)) == limit_alphabet < NUM_CHARACTERS


def test_the_alphabet_is_the_most_frequent_characters():
    tokenizer = train_tokenizer(["다다다 나나 나나 가"], vocab_size=30, limit_alphabet=2, min_frequency=10)
    assert characters_of(tokenizer) == {"나", "다"}
    assert tokenizer.tokenize("가") == ["[UNK]"]


def test_min_frequency_is_respected():
    texts = ["가나"] * 3 + ["다라"] * 2
    assert "다라" in train_tokenizer(texts, vocab_size=30, min_frequency=2).get_vocab()
    assert "다라" not in train_tokenizer(texts, vocab_size=30, min_frequency=3).get_vocab()


def test_the_order_of_the_texts_does_not_change_the_vocabulary(tokenizer):
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert train_tokenizer(iter(shuffled), vocab_size=2000).get_vocab() == tokenizer.get_vocab()


TRAIN_AND_PRINT = """
import hashlib, json
from kcelectra import clean_batch
from kcelectra.corpus.sample import generate_sample
from kcelectra.tokenization import train_tokenizer
texts = clean_batch(row["text"] for row in generate_sample())
vocabulary = train_tokenizer(texts, vocab_size=1500, limit_alphabet=100).get_vocab()
print(hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest())
"""


def test_the_same_texts_give_the_same_vocabulary_in_every_process():
    environment = {**os.environ, "PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "3"}
    command = [sys.executable, "-c", TRAIN_AND_PRINT]
    there = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout
    for _ in range(5):
        vocabulary = train_tokenizer(TEXTS, vocab_size=1500, limit_alphabet=100).get_vocab()
        assert hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest() == there.strip()


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


# the published vocabularies


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
    assert (tmp_path / "vocab.txt").read_bytes().split() == (
        VOCAB_DIR / "kcelectra_v2022_vocab.txt"
    ).read_bytes().split()
    assert ids_of(AutoTokenizer.from_pretrained(tmp_path), TEXTS[:500]) == ids_of(tokenizer, TEXTS[:500])


# errors


@pytest.mark.parametrize("texts", [[], [""], [" ", "\n\t"]])
def test_no_text_is_an_error_with_the_cure(texts):
    with pytest.raises(InputError, match="no text to train a tokenizer on; check --dataset"):
        train_tokenizer(texts, vocab_size=100)


@pytest.mark.parametrize("vocab_size", [0, 4, 5])
def test_a_vocab_size_without_room_is_an_error(vocab_size):
    with pytest.raises(InputError, match=f"vocab_size is {vocab_size}; give at least 6"):
        train_tokenizer(TEXTS, vocab_size=vocab_size)


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
