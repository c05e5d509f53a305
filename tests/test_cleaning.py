"""`clean` against the two functions in KcELECTRA's README, character by character and on real comments."""

import json
import random
import re
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from kcelectra import clean, clean_batch
from kcelectra.corpus.cleaning import RULE_SETS, keep_korean, keep_korean_and_emoji, shorten_repeats
from kcelectra.corpus.emoji_2_16_0 import EMOJI_RANGES
from kcelectra.corpus.sample import generate_sample

COMMENTS_DIR = Path(__file__).parents[2] / "shared" / "data" / "comments"
NUM_COMMENTS = 683_580
needs_comments = pytest.mark.skipif(not COMMENTS_DIR.is_dir(), reason=f"needs the real comments in {COMMENTS_DIR}")

# README of KcELECTRA, 2022-10-08, with emoji.EMOJI_DATA for the UNICODE_EMOJI that emoji 2 no longer has
WITHOUT_EMOJI = re.compile("[^ .,?!/@$%~％·∼()\x00-\x7fㄱ-ㅣ가-힣]+")
URL = re.compile(
    r"https?:\/\/(www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_\+.~#?&//=]*)"
)


@pytest.fixture(scope="module")
def emoji():
    return pytest.importorskip("emoji", reason="the reference of v2021 is emoji: pip install 'kcelectra[reference]'")


@pytest.fixture(scope="module")
def repeat_normalize():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # soynlp is of 2019
        normalizer = pytest.importorskip(
            "soynlp.normalizer", reason="the reference of repeats is soynlp: pip install 'kcelectra[reference]'"
        )
    return normalizer.repeat_normalize


@pytest.fixture(scope="module")
def with_emoji(emoji) -> re.Pattern[str]:
    """The class of the first published function; it joins the sequences, which is the same set and slower."""
    return re.compile(f"[^ .,?!/@$%~％·∼()\x00-\x7fㄱ-ㅣ가-힣{''.join(sorted(set(''.join(emoji.EMOJI_DATA))))}]+")


@pytest.fixture(scope="module")
def published(emoji, repeat_normalize, with_emoji) -> dict[str, Callable[[str], str]]:
    def published_v2022(x: str) -> str:
        x = WITHOUT_EMOJI.sub(" ", x)
        x = emoji.replace_emoji(x, replace="")
        x = URL.sub("", x)
        x = x.strip()
        return repeat_normalize(x, num_repeats=2)

    def published_v2021(x: str) -> str:
        x = with_emoji.sub(" ", x)
        x = URL.sub("", x)
        x = x.strip()
        return repeat_normalize(x, num_repeats=2)

    return {"v2022": published_v2022, "v2021": published_v2021}


FRAGMENTS = (
    *(
        "ㅋ",
        "ㅎ",
        "ㅠ",
        "가",
        "힣",
        "각",
        "ㄱ",
        "ㅣ",
        "ㆍ",
        "하",
        "a",
        "Z",
        "_",
        "0",
        "1",
        "9",
        "٣",
        "२",
        "０",
        "９",
        "ß",
        "é",
    ),
    *(" ", "\t", "\n", "\r\n", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2028", "\u3000", "\u200b"),
    *("\x00", "\x07", "\x1b[31m", "\x7f", "\x80", "\ufeff", "\u202e", "\u00ad", "\ufffd", "\uffff", "\U0010ffff"),
    *("\ud83d", "\ude00", "\ud800", "\udfff", "\udc80"),
    *(
        "😀",
        "👍🏽",
        "👨\u200d👩\u200d👧\u200d👦",
        "❤\ufe0f",
        "❤",
        "🇰🇷",
        "🇰",
        "1\ufe0f\u20e3",
        "#",
        "*",
        "\u200d",
        "\ufe0f",
    ),
    *(
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\U000e0067",
        "🏻",
        "©",
        "®",
        "™",
        "♥",
        "♡",
        "★",
    ),
    *("ㅋ" * 3, "ㅋ" * 4, "ㅎ" * 30, "0000", "000", "AAAA", "____", "!!!!", "....", "~~~~", "😀😀😀😀", "٣٣٣٣"),
    *(unicodedata.normalize("NFD", "좋아요"), "\u1100", "\u1161", "\u11a8", "ᆢ", "ᆞ", "\ua960", "\ud7b0"),
    *(
        "漢字",
        "カナ",
        "Ж",
        "Ａ",
        "ｆｕｌｌ",
        "！",
        "％",
        "·",
        "∼",
        "～",
        "〜",
        "…",
        "“",
        "’",
        "。",
        "₩",
        "※",
        "°",
        "○○○",
    ),
    *(
        "http://",
        "https://",
        "HTTPS://",
        "://",
        "http:/",
        "www.",
        "example",
        ".",
        ".com",
        ".co.kr",
        ".museum",
        ".technology",
    ),
    *(
        "https://www.example.com/a?b=1&c=%20#d",
        "http://a.b/가",
        "https://한글.kr",
        "https://x.y(z)",
        "www.x.com",
        "@",
        ":",
    ),
    *("-", "/", "?", "&", "=", "%", "+", "(", ")", "[", "]", "^", "\\", "$", "&lt;", "&#39;", "<br>", "OOO"),
)


def hostile_strings(number: int) -> list[str]:
    rng = random.Random(2022)
    return [
        "".join(
            rng.choice(FRAGMENTS) * rng.choice((1, 1, 1, 1, 2, 4, 7))
            if rng.random() < 0.95
            else chr(rng.randrange(0x110000))
            for _ in range(rng.randrange(24))
        )
        for _ in range(number)
    ]


def real_comments() -> list[str]:
    import pyarrow.parquet as pq

    files = sorted(COMMENTS_DIR.glob("*.parquet"))
    texts = [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    assert len(texts) == NUM_COMMENTS
    return texts


def assert_published(texts: list[str], rules: str, published: dict[str, Callable[[str], str]]) -> None:
    different = [
        (text, ours, theirs)
        for text, ours in zip(texts, clean_batch(texts, rules), strict=True)
        if ours != (theirs := published[rules](text))
    ]
    assert not different, f"{len(different)} of {len(texts)} differ, the first: {different[0]!r}"


@pytest.mark.parametrize("rules", RULE_SETS)
def test_clean_equals_the_published_function_on_hostile_strings(rules, published):
    assert_published(hostile_strings(20_000), rules, published)


@pytest.mark.parametrize("rules", RULE_SETS)
def test_clean_equals_the_published_function_on_the_sample(rules, published):
    assert_published([row["text"] for row in generate_sample()], rules, published)


@needs_comments
@pytest.mark.parametrize("rules", RULE_SETS)
def test_clean_equals_the_published_function_on_whole_threads(rules, published):
    lines = (COMMENTS_DIR / "sample.jsonl").read_text(encoding="utf-8").split("\n")
    assert_published([json.loads(line)["text"] for line in lines if line], rules, published)


@needs_comments
@pytest.mark.slow
def test_clean_v2021_equals_the_published_function_on_every_real_comment(published):
    assert_published(real_comments(), "v2021", published)


@needs_comments
@pytest.mark.slow
def test_clean_v2022_equals_the_published_function_on_real_comments(published):
    assert_published(random.Random(0).sample(real_comments(), 60_000), "v2022", published)


EVERY_CODE_POINT = "".join(map(chr, range(0x110000)))


def test_every_code_point_is_kept_or_blanked_as_in_the_published_v2022():
    assert keep_korean(EVERY_CODE_POINT) == WITHOUT_EMOJI.sub(" ", EVERY_CODE_POINT)


def test_every_code_point_is_kept_or_blanked_as_in_the_published_v2021(with_emoji):
    assert keep_korean_and_emoji(EVERY_CODE_POINT) == with_emoji.sub(" ", EVERY_CODE_POINT)


def test_the_set_of_emoji_characters_is_the_class_of_the_joined_sequences(emoji, with_emoji):
    """Joined is as published, but slow: hence only the blocks that hold emoji, the tags aside."""
    joined = re.compile(f"[^ .,?!/@$%~％·∼()\x00-\x7fㄱ-ㅣ가-힣{''.join(emoji.EMOJI_DATA)}]+")
    characters = EVERY_CODE_POINT[:0x3400] + EVERY_CODE_POINT[0x1F000:0x1FC00]
    assert joined.sub(" ", characters) == with_emoji.sub(" ", characters)


def test_the_frozen_emoji_are_those_of_the_library(emoji):
    frozen = [chr(point) for first, last in EMOJI_RANGES for point in range(first, last + 1)]
    assert frozen == sorted(set("".join(emoji.EMOJI_DATA)))


def test_the_frozen_emoji_are_of_the_version_in_their_name(emoji):
    assert emoji.__version__ == "2.16.0"


@pytest.mark.parametrize("rules", RULE_SETS)
def test_clean_batch_equals_clean(rules):
    texts = hostile_strings(1000)
    assert clean_batch(iter(texts), rules) == [clean(text, rules) for text in texts]


@pytest.mark.parametrize("rules", RULE_SETS)
def test_a_cleaned_comment_is_one_line(rules):
    for text in clean_batch(hostile_strings(1000), rules):
        assert text == " ".join(text.split())


def test_clean_batch_keeps_empty_comments_in_their_place():
    assert clean_batch(["", "漢字", "가"]) == ["", "", "가"]
    assert clean_batch([]) == []


@pytest.mark.parametrize(
    "cleaner", [clean, lambda text, rules: clean_batch([text], rules)], ids=["clean", "clean_batch"]
)
def test_an_unknown_rule_set_names_the_known_ones(cleaner):
    with pytest.raises(ValueError, match=r"'v2023'.*v2022, v2021"):
        cleaner("가", "v2023")


NFD = unicodedata.normalize("NFD", "좋아요")
# raw, v2022, v2021 where it differs
GOLDEN = [
    ("좋아요😀최고", "좋아요 최고", "좋아요😀최고"),
    ("가족 👨\u200d👩\u200d👧 끝", "가족 끝", "가족 👨\u200d👩\u200d👧 끝"),
    ("❤\ufe0f하트", "하트", "❤\ufe0f하트"),
    ("상표™ ©", "상표", "상표™ ©"),
    ("😀😀😀😀", "", "😀😀😀😀"),
    ("ㅋㅋㅋ", "ㅋㅋㅋ", None),
    ("ㅋㅋㅋㅋ", "ㅋㅋ", None),
    ("ㅋ" * 100, "ㅋㅋ", None),
    ("와하하하하하핫", "와하하핫", None),
    ("2000년", "2000년", None),
    ("10000원, 1000000원", "100원, 100원", None),
    ("010-1111-2222", "010-11-22", None),
    ("!!!!!! ......", "!!!!!! ......", None),
    ("ㅋㅎㅋㅎㅋㅎ 개웃겨개웃겨개웃겨", "ㅋㅎㅋㅎㅋㅎ 개웃겨개웃겨개웃겨", None),
    ("줄1\n\n줄2\t탭", "줄1 줄2 탭", None),
    ("종\x07소리 \x1b[31m빨강", "종\x07소리 \x1b[31m빨강", None),
    ("100% 100％ 가·나 1∼2", "100% 100％ 가·나 1∼2", None),
    *((f"가{lost}나", "가 나", None) for lost in "…“”‘’♡★ㆍᆢ～。₩※°"),
    ("大韓民國 만세, カナ", "만세,", None),
    (NFD, "", None),
    ("앞" + NFD + "뒤", "앞 뒤", None),
    ("여기 https://example.com/a?b=1 보세요", "여기 보세요", None),
    ("https://example.com/한글/길", "한글/길", None),
    ("www.x.com x.co.kr/p?a=1", "www.x.com x.co.kr/p?a=1", None),
    ("https://example.museum https://example.technology", "https://example.technology", None),
    ("HTTPS://EXAMPLE.COM", "HTTPS://EXAMPLE.COM", None),
    ("OOO 의원 ○○○ OOOO", "OOO 의원 OO", None),
    ("&lt;한줄평&gt;", "&lt;한줄평&gt;", None),
    ("", "", None),
    (" \n\t ", "", None),
]


@pytest.mark.parametrize(("raw", "v2022", "v2021"), GOLDEN)
def test_clean_gives_the_documented_result(raw, v2022, v2021):
    assert clean(raw) == clean(raw, "v2022") == v2022
    assert clean(raw, "v2021") == (v2022 if v2021 is None else v2021)


@pytest.mark.parametrize("text", ["〜〜〜〜", "😀😀😀😀", "!!!!", "ㅋㅎ" * 4])
def test_a_run_of_other_than_one_word_character_is_not_shortened(text):
    assert shorten_repeats(text) == text
