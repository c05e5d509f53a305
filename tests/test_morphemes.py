"""Cutting words at morphemes: where, never more than that, and nothing of it in the tokenizer that comes out."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from itertools import product
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_cleaning import any_text
from transformers import AutoTokenizer

from kcelectra import clean_batch
from kcelectra.corpus.cleaning import EMOJI
from kcelectra.corpus.sample import generate_sample
from kcelectra.errors import InputError
from kcelectra.tokenization import morphemes as morphemes_module
from kcelectra.tokenization import train_tokenizer
from kcelectra.tokenization.morphemes import CUT, MORPHEMES, _find_cuts, cut_in_process, cut_words

needs_analyser = pytest.mark.skipif(
    importlib.util.find_spec("kiwipiepy") is None,
    reason="cuts words with kiwipiepy: pip install 'kcelectra[morphemes]'",
)
TEXTS = clean_batch(row["text"] for row in generate_sample())
NOUNS = ("영화", "학교", "노래", "친구", "가수")
PARTICLES = ("가", "를", "는", "의", "에서", "까지")
NEOLOGISMS = ("존맛탱ㅋㅋㅋ", "ㅋㅋㅋ", "ㅇㅈ", "킹받네ㅠㅠ", "LG가", "뷁")
MIXED = [
    "ㅋㅋㅋ",
    "ㅠㅠ",
    "존잼ㅋㅋ",
    "킹받네",
    "넘나조아요",
    "재밋엇다",
    "LG가",
    "cgv에서",
    "2탄이",
    "😀👍🏻영화가❤️",
    "ㅇㅈ합니다",
    "뷁",
    "아ㅏㅏ",
]


def cut(words: list[str], morphemes: str) -> list[list[str]]:
    return [parts.split(CUT) for parts in cut_in_process(words, morphemes)]


@needs_analyser
@pytest.mark.parametrize(
    "word, particles, every",
    [
        ("영화를", "영화 를", "영화 를"),
        ("영화에서는", "영화 에서 는", "영화 에서 는"),
        ("감독입니다", "감독 입니다", None),  # the copula
        ("재밌었다", "재밌었다", "재밌 었 다"),
        ("했다", "했다", "했 다"),  # 하 and 었 share a syllable
        ("재밌었다ㅋㅋㅋ", "재밌었다 ㅋㅋㅋ", "재밌 었 다 ㅋㅋㅋ"),
        ("ㅠㅠ영화가", "ㅠㅠ 영화 가", "ㅠㅠ 영화 가"),
        ("😀영화가❤️", "😀 영화 가 ❤️", "😀 영화 가 ❤️"),
        ("LG가", "LG 가", "LG 가"),
        ("ㅋㅋㅋ", "ㅋㅋㅋ", "ㅋㅋㅋ"),
        ("abc", "abc", "abc"),
        ("漢", "漢", "漢"),
    ],
)
def test_words_are_cut_where_morphemes_begin(word, particles, every):
    assert cut([word], "particles") == [particles.split()]
    if every:
        assert cut([word], "all") == [every.split()]


def fake_tokens(*tokens: str) -> list[SimpleNamespace]:
    """Make tokens of "start-end TAG"."""
    split = [token.replace("-", " ").split() for token in tokens]
    return [SimpleNamespace(start=int(start), end=int(end), tag=tag) for start, end, tag in split]


@pytest.mark.parametrize(
    "tokens, particles, every",
    [
        (["0-2 NNG", "2-4 JKB", "4-5 JX"], {2, 4}, {0, 2, 4}),
        (["0-2 NNG", "2-2 VCP", "2-5 EF"], {2}, {0, 2}),  # a copula without a syllable
        (["0-1 XR", "1-2 XSA", "1-2 EP", "2-5 EF"], set(), {0, 1, 2}),  # two in one syllable
        (["0-3 VV", "2-4 EP", "4-5 EF"], set(), {0, 4}),  # they overlap: no cut within
        (["0-2 NNG", "2-4 JKB"], set(), set()),  # ends early
        (["0-2 NNG", "2-6 JKB"], set(), set()),  # ends late
        (["0-2 NNG", "3-5 JKB"], set(), set()),  # a gap
        (["1-2 NNG", "2-5 JKB"], set(), set()),  # begins late
        ([], set(), set()),
    ],
)
def test_only_an_analysis_that_tiles_the_word_cuts_it(tokens, particles, every):
    assert _find_cuts("가나다라마", fake_tokens(*tokens), "particles") == particles
    assert _find_cuts("가나다라마", fake_tokens(*tokens), "all") == every


_PIECES = st.one_of(
    st.sampled_from([*NOUNS, *PARTICLES, *MIXED, "ㅋㅋ", "ㅏ", "😂", "👨👩", "✔️", "x", "Q1", "~"]),
    st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), max_size=4),
    st.text(st.characters(min_codepoint=0x3131, max_codepoint=0x3163), max_size=4),
)
_WORDS = st.lists(st.lists(_PIECES, min_size=1, max_size=5).map("".join).filter(bool), max_size=20)


RUN = re.compile(f"[ㄱ-ㅣ]+|(?:{EMOJI})+")


@needs_analyser
@any_text
@given(_WORDS, st.sampled_from(MORPHEMES))
@example(MIXED, "particles")
@example(MIXED, "all")
def test_the_parts_of_any_word_make_it_again_and_runs_of_jamo_and_emoji_are_parts(words, morphemes):
    parts = cut(words, morphemes)
    assert ["".join(pieces) for pieces in parts] == words
    for word, pieces in zip(words, parts, strict=True):
        assert [piece for piece in pieces if RUN.match(piece)] == RUN.findall(word)


@needs_analyser
def test_two_processes_cut_words_as_they_are_cut_one_by_one(monkeypatch):
    monkeypatch.setattr(morphemes_module, "WORDS_AT_A_TIME", 100)
    words = [*MIXED, *sorted({word for text in TEXTS for word in text.split()})[:400]]
    expected = [next(cut_in_process([word], "particles")) for word in words]
    assert sum(CUT in word for word in expected) > 50
    assert cut_words(pa.array(words), "particles", num_workers=2).to_pylist() == expected


@needs_analyser
@pytest.mark.parametrize("morphemes", MORPHEMES)
def test_no_token_joins_a_noun_and_its_particle(morphemes):
    joined = list(map("".join, product(NOUNS, PARTICLES)))
    texts = [" ".join([*joined, *NEOLOGISMS])] * 30
    whole = train_tokenizer(texts, vocab_size=500).get_vocab()
    tokenizer = train_tokenizer(texts, vocab_size=500, morphemes=morphemes, num_workers=1)
    assert {"영화가", "영화를", "영화는"} <= whole.keys()
    assert {*NOUNS, *(f"##{particle}" for particle in PARTICLES)} <= tokenizer.get_vocab().keys()
    long = {token.removeprefix("##") for token in tokenizer.get_vocab() if len(token.removeprefix("##")) > 2}
    assert not [token for token in long if any(token in word for word in joined)]
    for noun, particle in product(NOUNS, PARTICLES):
        assert tokenizer.tokenize(noun + particle) == [noun, f"##{particle}"]
    # what the analyser does not know is there as well
    assert {"ㅋㅋㅋ", "##ㅋㅋㅋ", "##ㅠㅠ", "ㅇㅈ", "LG", "뷁"} <= tokenizer.get_vocab().keys()
    assert "".join(tokenizer.tokenize(texts[0])).replace("##", "") == texts[0].replace(" ", "")


TRAIN = """
import sys
from kcelectra.tokenization import morphemes, train_tokenizer
morphemes.WORDS_AT_A_TIME = 500
with open(sys.argv[1], encoding="utf-8") as file:
    train_tokenizer(file, sys.argv[2], vocab_size=1300, morphemes="all", num_workers=3)
"""
LOAD_WITHOUT = """
import json, sys
sys.modules["kcelectra"] = sys.modules["kiwipiepy"] = None  # any import of them now fails
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
with open(sys.argv[2], encoding="utf-8") as file:
    print(json.dumps([tokenizer(line.rstrip("\\n"))["input_ids"] for line in file]))
"""


def run(program: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    ).stdout


@pytest.fixture(scope="module")
def cut_tokenizer(tmp_path_factory):
    """A tokenizer trained here by one process, and the comments that it was trained on."""
    directory = tmp_path_factory.mktemp("cut")
    text = "".join(f"{text}\n" for text in TEXTS)
    (directory / "comments.txt").write_text(text, encoding="utf-8")
    train_tokenizer(TEXTS, directory / "tokenizer", vocab_size=1300, morphemes="all", num_workers=1)
    return directory


@needs_analyser
def test_three_workers_of_another_process_lead_to_the_same_bytes(cut_tokenizer, tmp_path):
    environment = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"}
    run(TRAIN, cut_tokenizer / "comments.txt", tmp_path / "there", **environment)
    names = sorted(path.name for path in (tmp_path / "there").iterdir())
    assert {"manifest.json", "tokenizer.json", "vocab.txt"} < set(names)
    for name in names:
        assert (tmp_path / "there" / name).read_bytes() == (cut_tokenizer / "tokenizer" / name).read_bytes()
    assert json.loads((tmp_path / "there" / "manifest.json").read_text())["analyser"]["kiwipiepy"]


@needs_analyser
def test_what_was_trained_on_morphemes_needs_no_analyser_and_no_package(cut_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(cut_tokenizer / "tokenizer")
    there = json.loads(run(LOAD_WITHOUT, cut_tokenizer / "tokenizer", cut_tokenizer / "comments.txt"))
    assert there == tokenizer(TEXTS)["input_ids"]
    assert tokenizer.unk_token_id not in {id for ids in there for id in ids}


def test_a_missing_analyser_says_what_to_install_and_writes_nothing(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "kiwipiepy" else find_spec(name, *rest)
    )
    expected = r"pip install 'kcelectra\[morphemes\]', or leave out --morphemes"
    with pytest.raises(InputError, match=expected):
        train_tokenizer(iter(TEXTS), tmp_path / "tokenizer", vocab_size=1300, morphemes="all")
    with pytest.raises(InputError, match=expected):
        cut_words(pa.array(["영화가"]), "all")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "function", [lambda x: cut_words(pa.array(["가"]), x), lambda x: train_tokenizer([], morphemes=x)]
)
def test_an_unknown_way_of_cutting_names_the_known_ones(function):
    with pytest.raises(InputError, match="--morphemes is 'nouns'; use one of particles, all"):
        function("nouns")


@needs_analyser
@pytest.mark.parametrize("num_workers", [0, -1])
def test_no_workers_are_an_error(num_workers):
    with pytest.raises(InputError, match=f"--num_workers is {num_workers}; give 1 or more"):
        cut_words(pa.array(["영화"]), "particles", num_workers=num_workers)
