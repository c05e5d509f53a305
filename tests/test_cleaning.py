"""`clean` against the two functions in KcELECTRA's README, character by character and on real comments."""

import json
import random
import re
import unicodedata
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType

import hypothesis
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kcelectra import clean, clean_batch
from kcelectra.corpus.cleaning import (
    RULE_SETS,
    fold_width,
    keep_korean,
    keep_korean_and_emoji,
    remove_invisible,
    remove_links,
    shorten_repeats,
    shorten_units,
)
from kcelectra.corpus.emoji_2_16_0 import EMOJI_RANGES
from kcelectra.corpus.sample import generate_sample

# README of KcELECTRA, 2022-10-08, with emoji.EMOJI_DATA for the UNICODE_EMOJI that emoji 2 no longer has
WITHOUT_EMOJI = re.compile("[^ .,?!/@$%~％·∼()\x00-\x7fㄱ-ㅣ가-힣]+")
URL = re.compile(
    r"https?:\/\/(www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_\+.~#?&//=]*)"
)


PUBLISHED = ("v2022", "v2021")


def import_reference(name: str) -> ModuleType:
    return pytest.importorskip(name, reason="the published functions need emoji and soynlp: the extra `reference`")


def published_functions() -> dict[str, Callable[[str], str]]:
    """Return the two functions of the README by rule set; skip without what they import."""
    emoji = import_reference("emoji")
    repeat_normalize = import_reference("soynlp.normalizer").repeat_normalize
    with_emoji = compile_with_emoji(emoji)

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


def compile_with_emoji(emoji: ModuleType) -> re.Pattern[str]:
    """Return the class of the first published function; it joins the sequences, which is the same set and slower."""
    return re.compile(f"[^ .,?!/@$%~％·∼()\x00-\x7fㄱ-ㅣ가-힣{''.join(sorted(set(''.join(emoji.EMOJI_DATA))))}]+")


@pytest.fixture(scope="module")
def emoji() -> ModuleType:
    return import_reference("emoji")


@pytest.fixture(scope="module")
def with_emoji(emoji) -> re.Pattern[str]:
    return compile_with_emoji(emoji)


@pytest.fixture(scope="module")
def published() -> dict[str, Callable[[str], str]]:
    return published_functions()


FRAGMENTS = (
    "ㅋ|ㅎ|ㅠ|가|힣|각|ㄱ|ㅣ|ㆍ|하|ㅋㅎ|너무 |ab|a|Z|_|0|1|9|٣|२|０|９|ß|é|e\u0301|\u0301|か|\u3099|000|0000|"
    "\u0316\u0334|\u09c7\u09be|ㅋㅋㅋ|ㅋㅋㅋㅋ| |\t|\n|\r\n|\v|\f|\x1c|\x1f|\x85|\xa0|\u1680|\u2028|\u3000|"
    "\u200b|\x00|\x07|\x1b[|31m|\x7f|\x80|\ufeff|\u202e|\xad|\ufffd|\uffff|\U0010ffff|\ud83d|\ude00|\ud800|"
    "\udfff|\udc80|\ue000|\u0378|\u3164|\uffa0|\u3164ㅂㅘㅅ|😀|👍🏽|👨\u200d👩\u200d👧\u200d👦|❤\ufe0f|❤|🇰🇷|🇰|"
    "1\ufe0f\u20e3|#|*|\u200d|\ufe0f|\u20e3|🏻|©|®|™|♥|♡|★|"
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f|🏴|\U000e0067|\U000e007f|\U0001fae9|AAAA|"
    "____|!!!!|....|~~~~|😀😀😀😀|٣٣٣٣|\u110c\u1169\u11c2|\u110f\u110f|\u1100|\u1161|\u11a8|ᆢ|ᆞ|\ua960|\ud7b0|"
    "漢字|カナ|ｶﾞ|ﾡ|Ж|Ａ|ｆｕｌｌ|！|％|·|∼|～|〜|…|“|’|。|₩|※|°|O|○|◯|OOO|○○○|ㅇㅇㅇ|가나다라마바사아자차|"
    "http://|https://|HTTPS://|://|http:/|www.|www..|example|.|.com|.co.kr|.museum|.technology|naver.com|b@c.com|"
    "https://www.example.com/a?b=1&c=%20#d|http://a.b/가|https://한글.kr|https://x.y(z)|www.x.com|youtu.be/x|@|:|"
    "-|/|?|&|;|=|%|+|(|)|[|]|^|\\|$|&lt;|&amp;|lt;|&#39;|&#x200d;|<br>"
).split("|")


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


_CHARACTERS = st.one_of(st.sampled_from(sorted(set("".join(FRAGMENTS)))), st.characters(exclude_categories=()))
_PIECES = st.one_of(st.sampled_from(FRAGMENTS), _CHARACTERS, st.text(_CHARACTERS, max_size=4))
_REPEATED = st.builds(lambda piece, number: piece * number, _PIECES, st.sampled_from((1, 1, 2, 3, 4, 5, 9)))
TEXT = st.lists(_REPEATED, max_size=8).map("".join)
hypothesis.configuration.set_hypothesis_home_dir(Path(gettempdir()) / "hypothesis")  # not where pytest runs
any_text = settings(max_examples=200, database=None, derandomize=True, deadline=None)


def assert_published(texts: list[str], rules: str, published: dict[str, Callable[[str], str]]) -> None:
    different = [
        (text, ours, theirs)
        for text, ours in zip(texts, clean_batch(texts, rules), strict=True)
        if ours != (theirs := published[rules](text))
    ]
    assert not different, f"{len(different)} of {len(texts)} differ, the first: {different[0]!r}"


@pytest.mark.parametrize("rules", PUBLISHED)
def test_clean_equals_the_published_function_on_hostile_strings(rules, published):
    assert_published(hostile_strings(20_000), rules, published)


@pytest.mark.parametrize("rules", PUBLISHED)
def test_clean_equals_the_published_function_on_the_sample(rules, published):
    assert_published([row["text"] for row in generate_sample()], rules, published)


@pytest.mark.parametrize("rules", PUBLISHED)
def test_clean_equals_the_published_function_on_whole_threads(rules, published, shared_data):
    lines = (shared_data / "comments" / "sample.jsonl").read_text(encoding="utf-8").split("\n")
    assert_published([json.loads(line)["text"] for line in lines if line], rules, published)


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


@pytest.mark.parametrize("rules", [name for name in RULE_SETS if name != "none"])
def test_a_cleaned_comment_is_one_line(rules):
    for text in clean_batch(hostile_strings(1000), rules):
        assert text == " ".join(text.split())


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


ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
CORPUS_GOLDEN = [
    # entities
    ("&lt;속보&gt; A&amp;B &quot;와&quot; &#39;그&#39;", "<속보> A&B \"와\" '그'"),
    ("&#44032;&#x3131;&nbsp;&hearts;", "가ㄱ ♥"),
    ("가&#8203;나&shy;다&#0;라&#xD800;", "가나다 라"),
    ("http://a.kr/?a=1&amp;b=2 끝", "끝"),
    # width, Unicode form, jamo
    ("ＡＢＣ１２３！？ （괄호） ％ ～ ￦100", "ABC123!? (괄호) % ~ ₩100"),
    ("ﾡﾢ ｱｲｳ ｶﾞ", "ㄱㄲ アイウ ガ"),
    ("앞" + NFD + "뒤", "앞좋아요뒤"),
    ("\u110f\u110f \u1161 \u11ab \u11aa", "ㅋㅋ ㅏ ㄴ ㄳ"),
    ("음ᆢ 가ᆞ ᆢ ᆞ ㆍ", "음ᆢ 가ᆞ ᆢ ᆞ ㆍ"),
    ("ᆢᆢᆢᆢ ㆍㆍㆍ", "ᆢᆢ ㆍㆍ"),
    ("\u3164ㅂㅘㅅ다 \u3164ㄷㅏ\u3164", "봣다 다"),
    ("가\u3164나\u115f다\uffa0라\u3164", "가 나 다 라"),
    ("cafe\u0301 か\u3099 \uf914 ａ\u0301", "café が 樂 á"),
    # what is not seen
    ("\x1b[31m빨강\x1b[0m \x1b[1;4m굵게", "빨강 굵게"),
    ("종\x07소\x00리\x7f", "종소리"),
    ("\ufeff가\u200b나\u00ad다\u200c라\u2060마\u180e", "가나다라마"),
    ("\u202e뒤집힘\u202c \u2066가\u2069 \u200f나", "뒤집힘 가 나"),
    ("Z\u0337\u0322a\u0336l\u0338g\u0334o ㅇ\u0308", "Zalgo ㅇ"),
    ("줄1\n\n줄2\r\n줄3\u2028줄4\x85줄5\x1c끝", "줄1 줄2 줄3 줄4 줄5 끝"),
    (" 앞\t \u3000뒤\xa0", "앞 뒤"),
    # links
    ("여기 https://example.com/a?b=1#c 보세요", "여기 보세요"),
    ("HTTPS://EXAMPLE.COM:8080/x?y=1&z=%20#w 봐 ftp://a.b/c", "봐"),
    ("https://a.kr에서 봄 https://youtu.be/abc보세요", "에서 봄 보세요"),
    ("https://a.kr/위키_문서?q=한글 보고", "보고"),
    ("http://192.168.0.1/a 접속", "접속"),
    ("http://naver.com<br>다음", "<br>다음"),
    ("www.x.com에서 WWW.b.co.kr/p?a=1 naver.com에 m.blog.naver.com/a", "에서 에"),
    ("youtu.be/x naver.me/xYz 봐 t.co/a bit.ly/b", "봐"),
    ("(www.x.com) [https://a.kr/b] “https://a.kr/b”", "( ) [ ] “ ”"),
    ("naver.com! a.kr, b.kr? https://a.kr/b). www.x.com.", "! , ? ). ."),
    ("네이버(naver.com)랑 다음(https://daum.net/)", "네이버( )랑 다음( )"),
    ("example.com\n둘째 줄", "둘째 줄"),
    # what is not kept
    ("ก็ไทย العربية हिन्दी עברית 끝", "끝"),
    ("가\ue000나\U000f0000다\uffff라\U0010ffff마\ud800바\ufffd사", "가 나 다 라 마 바 사"),
    # emoji that are not whole
    ("가\u200d나\ufe0f다\u20e3라\U000e0067마\U000e007f바", "가나다라마바"),
    ("👨\u200d 👩\ufe0f\ufe0f \u200d👧 ❤\ufe0e", "👨 👩\ufe0f 👧 ❤"),
    ("🏴\U000e0067\U000e0062끝", "🏴끝"),
    # the portal's mask
    ("이 OOO아 ○○○○ 의원", "이 아 의원"),
    ("OOO당 ＯＯＯ당 ◯◯◯씨", "당 당 씨"),
    ("○○시 OO당 GOOAL", "○○시 OO당 GOOAL"),
    # runs
    ("ㅋㅋㅋ ㅋㅋㅋㅋㅋㅋ ㅠㅠㅠㅠ ㅋㅋ ㅎ", "ㅋㅋ ㅋㅋ ㅠㅠ ㅋㅋ ㅎ"),
    ("와하하하하하핫 goooood", "와하하핫 good"),
    ("!!!!! ......... ???~~~~ ;;;; ^^^^ ……… ───", "!! .. ??~~ ;; ^^ …… ──"),
    ("😀😀😀😀 ♥♥♥ ★★★★", "😀😀 ♥♥ ★★"),
    ("10000원 ００００ 1111 010-1111-2222", "10000원 0000 1111 010-1111-2222"),
    ("ｗｗｗｗ ㅋ\u200bㅋ\u200bㅋ", "ww ㅋㅋ"),
    # units
    ("ㅋㅎㅋㅎㅋㅎㅋㅎ 개웃겨개웃겨개웃겨", "ㅋㅎㅋㅎ 개웃겨개웃겨"),
    ("너무 너무 너무 너무 좋다", "너무 너무 좋다"),
    ("👍🏻👍🏻👍🏻 🇰🇷🇰🇷🇰🇷🇰🇷 ❤\ufe0f❤\ufe0f❤\ufe0f", "👍🏻👍🏻 🇰🇷🇰🇷 ❤\ufe0f❤\ufe0f"),
    ("가나다라마바사아자차" * 3, "가나다라마바사아자차" * 2),
    ("가나다라마바사아자차카" * 3, "가나다라마바사아자차카" * 3),
    (
        "12121212 1등1등1등 1\ufe0f\u20e31\ufe0f\u20e31\ufe0f\u20e3",
        "12121212 1등1등1등 1\ufe0f\u20e31\ufe0f\u20e31\ufe0f\u20e3",
    ),
    # one rule makes work for the next
    ("ｈｔｔｐｓ：／／ａ．ｋｒ 끝", "끝"),
    ("htt\u200bps://a.kr nav\u00ader.com 끝", "끝"),
    ("&#8206;&#65;\u1112\u1161\u11ab&hearts;&hearts;&hearts;", "A한♥♥"),
    ("ㅋ&nbsp;&nbsp;ㅋ\ue000\ue001ㅋ", "ㅋ ㅋ ㅋ"),
    ("", ""),
    (" \u200b\ue000\n\u3164 ", ""),
]
CORPUS_KEEPS = (
    "3.5점|ㅋ.ㅋ|ok.|U.S.A. 최고|끝.시작|end.Start|Node.js|1.5배|file.zip|192.168.0.1|a..b|http://|://|:/|a://|&|"
    "R&D; A&B;|a@b.com|kim.lee@naver.com으로|kim.tv@naver.com|info.kr@x.com|a.b.c@d.co.kr|kim@naver.com/x|"
    "kim+a@naver.com|@naver.com|info.kr.lee@x.com|"
    "漢字 カナ ひらがな|Ж é Ω ß ñ ü|「가」 『나』 【다】 《라》 〈마〉|"
    "‘가’ “나” … · ‥ — – ㆍ|₩ € £ ¥ ℃ ㎡ ㈜ № ½ ² ① Ⅲ ※ ° ± × ÷ ≤ ∞|★☆ ♥♡ ♪ → ⇒ ■□ ^^; (^_^) ㅇㅅㅇ|①②③|"
    "100% #태그 @이름 a_b <b> [c] {d} \\ ` ~|뷁 쀍 ㄳ ㅄ ㆆ|000|2000년 10000000원|ㅋㅋ ㅎㅎ|banana|하하 호호|"
    "👨\u200d👩\u200d👧\u200d👦|👍🏽|👩🏽\u200d❤\ufe0f\u200d💋\u200d👨🏿|🏳\ufe0f\u200d🌈|🏴\u200d☠\ufe0f|🇰🇷🇺🇸|"
    f"1\ufe0f\u20e3|#\ufe0f\u20e3|❤\ufe0f|©\ufe0f|가{ENGLAND}나|\U0001fae9\U0001fadc|가🏻|🇰"
).split("|")


@pytest.mark.parametrize(("raw", "expected"), CORPUS_GOLDEN)
def test_clean_corpus_gives(raw, expected):
    assert clean(raw, "corpus") == expected


@pytest.mark.parametrize("text", CORPUS_KEEPS)
def test_clean_corpus_keeps(text):
    assert clean(text, "corpus") == text


@pytest.mark.parametrize("address", ["lee@info.kr", "lee.info@a.co.kr/x", "info.kr.lee@x.com", "www.lee@x.com"])
def test_remove_links_takes_no_part_of_an_address(address):
    assert remove_links(address) == address


def test_clean_corpus_keeps_every_emoji_whole(emoji):
    assert [text for text in emoji.EMOJI_DATA if clean(f"가{text}나", "corpus") != f"가{text}나"] == []


def test_clean_corpus_makes_three_of_any_emoji_two(emoji):
    """But for keycaps of digits, which stay as digits do."""
    others = [text for text in emoji.EMOJI_DATA if text[0] not in "0123456789"]
    assert [text for text in others if clean(text * 3, "corpus") != text * 2] == []


@any_text
@given(TEXT)
def test_clean_corpus_gives_one_line_that_can_be_written(text):
    cleaned = clean(text, "corpus")
    assert cleaned == " ".join(cleaned.split())
    assert not {unicodedata.category(character) for character in cleaned} & {"Cc", "Cs", "Co"}
    assert cleaned.encode().decode() == cleaned


@any_text
@given(TEXT)
@example("か\u200b\u3099")
def test_clean_corpus_gives_nfc(text):
    assert unicodedata.is_normalized("NFC", clean(text, "corpus"))


@any_text
@given(TEXT)
@example("○○○\ufe0f")
@example("http://1\u20e3")
@example("🇰🇰🇰\ufe0f")
def test_clean_corpus_leaves_joiners_within_emoji_alone(text):
    cleaned = clean(text, "corpus")
    assert remove_invisible(cleaned) == cleaned


# An entity in an entity, or a link or unit that was not one before another was cut, is found the second time.
PLAIN_TEXT = TEXT.map(lambda text: re.sub("[&＆.．:：\x1b]", "", text))


@any_text
@given(PLAIN_TEXT)
def test_clean_corpus_finds_nothing_new_the_second_time(text):
    rules = [rule for rule in RULE_SETS["corpus"] if rule is not shorten_units]
    once = reduce(lambda text, rule: rule(text), rules, text)
    assert reduce(lambda text, rule: rule(text), rules, once) == once


@any_text
@given(PLAIN_TEXT)
def test_clean_corpus_keeps_the_digits(text):
    assert re.findall("[0-9]", clean(text, "corpus")) == re.findall("[0-9]", fold_width(text))
