"""Clean comments: rules are pure functions, a rule set is a tuple of them."""

import html
import html.entities
import re
import unicodedata
from collections.abc import Callable

from kcelectra.corpus.emoji_2_16_0 import EMOJI_RANGES
from kcelectra.errors import InputError

Rule = Callable[[str], str]

KEPT_CHARACTERS = r" .,?!/@$%~％·∼()\x00-\x7Fㄱ-ㅣ가-힣"
_EMOJI_CHARACTERS = "".join(f"\\U{first:08X}-\\U{last:08X}" for first, last in EMOJI_RANGES)

NOT_KEPT = re.compile(f"[^{KEPT_CHARACTERS}]+")
NOT_KEPT_NOR_EMOJI = re.compile(f"[^{KEPT_CHARACTERS}{_EMOJI_CHARACTERS}]+")
_URL = re.compile(
    r"https?:\/\/(www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_\+.~#?&//=]*)"
)
_REPEATED = re.compile(r"(\w)\1{3,}")
_SPACES = re.compile(r"\s+")


def keep_korean(text: str) -> str:
    """Replace each run of characters other than Hangul, ASCII and a few marks by one space.

    >>> keep_korean("좋아요😀최고♥♥")
    '좋아요 최고 '

    Source: KcELECTRA README, second `clean` (its `emoji.replace_emoji` has nothing left to replace after this).
    """
    return NOT_KEPT.sub(" ", text)


def keep_korean_and_emoji(text: str) -> str:
    """Replace each run of characters other than Hangul, ASCII, emoji and a few marks by one space.

    >>> keep_korean_and_emoji("좋아요😀최고漢字")
    '좋아요😀최고 '

    Source: KcELECTRA README, first `clean`, with the emoji of `emoji_2_16_0`.
    """
    return NOT_KEPT_NOR_EMOJI.sub(" ", text)


def remove_urls(text: str) -> str:
    """Delete URLs with a scheme.

    >>> remove_urls("여기 https://example.com/a?b=1 보세요")
    '여기  보세요'

    Source: KcELECTRA README, whose `strip` is left to `squeeze_spaces`.
    """
    return _URL.sub("", text) if "://" in text else text


def shorten_repeats(text: str) -> str:
    """Cut runs of four or more of one word character to two. Digits too, as published: a run of three stays.

    >>> shorten_repeats("ㅋㅋㅋ ㅋㅋㅋㅋㅋ 10000원 !!!!!")
    'ㅋㅋㅋ ㅋㅋ 100원 !!!!!'

    Source: soynlp 0.0.493 on PyPI, `repeat_normalize(num_repeats=2)`, which KcELECTRA's README calls.
    """
    return _REPEATED.sub(r"\1\1", text)


def squeeze_spaces(text: str) -> str:
    r"""Make one space of each run of white space, line breaks too, and strip.

    >>> squeeze_spaces(" 첫 줄\n\n둘째\t줄 ")
    '첫 줄 둘째 줄'

    Source: soynlp 0.0.493 on PyPI, `repeat_normalize`.
    """
    return _SPACES.sub(" ", text).strip()


# What `corpus` keeps, written out so that it does not depend on the Unicode version of Python: coming emoji too.
_JOINERS = "\u200d\ufe0f\u20e3\U000e0020-\U000e007f"  # within an emoji; elsewhere `remove_invisible` takes them
_WRITTEN = (
    "\\s!-~¡-˿Ͱ-ӿᆞᆢḀ-ỿ‐-‧‰-⁞⁰-ₜ₠-\u20c0℀-↋←-⏿①-⟿⤀-⯿、-〿ぁ-ヿㄱ-ㅣㅥ-ㆎ㈀-㏿㐀-䶿一-鿿가-힣"
    f"\U0001f000-\U0001faff{_JOINERS}"
)
_PICTURE = "[©®‼⁉™ℹ←-⏿Ⓜ■-➿⤀-⥿⬀-⯿〰〽㊗㊙\U0001f000-\U0001faff](?:\ufe0f|[\U0001f3fb-\U0001f3ff])?"
EMOJI = (
    "[\U0001f1e6-\U0001f1ff]{2}|[0-9#*]\ufe0f?\u20e3|"
    f"🏴[\U000e0020-\U000e007e]+\U000e007f|{_PICTURE}(?:\u200d{_PICTURE})*"
)
_TOP_LEVEL = "com|net|org|info|biz|kr|jp|cn|tv|io|xyz|shop|site|store|online|club|app|dev"
_TOP_LEVEL_BEFORE_PATH = "me|be|ly|gg|us|co|cc|to|in|ai|uk|de|fr|ru|gl|la|so|do|im|ee|id|gd|gle|link|live|wiki"

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_WIDTH = re.compile("[\uff01-\uffdc\uffe0-\uffee]")
MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20e2\u20e4-\u20f0\ufe20-\ufe2f]+")
_STACK = re.compile(r"[^\w\s!-~]{32,}")  # marks among them take `unicodedata.normalize` the square of their number
FILLED = re.compile("\u3164([ㄱ-ㅎ])([ㅏ-ㅣ])([ㄱ-ㅎ\u3164])")
LONE_JAMO = re.compile("[\u1100-\u1112\u1161-\u1175\u11a8-\u11c2]")
_TERMINAL = "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b]{0,99}\x07"
INVISIBLE = re.compile(
    f"({EMOJI})|(?:{_TERMINAL}|[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20e3\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff])+"
)
_PATH = "(?:[!-;=?-~\ufe0f\u20e3]+|(?<=[/=_])[가-힣]+)"
_LINK = re.compile(
    rf"(?ai:(?:https?|ftp)://{_PATH}+|(?<![a-z0-9@._-])"
    rf"(?:www\.[a-z0-9._-]{{1,253}}+|(?:[a-z0-9-]{{1,63}}\.){{1,4}}(?:(?:{_TOP_LEVEL})(?:\.[a-z]{{2}})?"
    rf"(?![a-z0-9_-]|\.[a-z0-9])|(?:{_TOP_LEVEL_BEFORE_PATH})(?=/)))(?![\w.%+-]{{0,64}}@)(?:[:/?#]{_PATH}*)?)"
)
NOT_WRITTEN = re.compile(f"[^{_WRITTEN}]+")
_PORTAL_MASK = re.compile("(?<![A-Za-z])O{3,}(?![A-Za-z])|(?:[○◯]\ufe0f?){3,}")
_RUN = re.compile(r"([^0-9\s🇦-🇿])\1{2,}")  # two of the letters that flags are made of may be one flag
_UNIT = re.compile(r"([^0-9]{2,10}?)\1{2,}")


def unescape_html(text: str) -> str:
    """Replace HTML entities by what they stand for; only with their semicolon, as `&copy=1` may be of a URL.

    >>> unescape_html("&lt;속보&gt; A&amp;B &#x1F600;")
    '<속보> A&B 😀'
    """
    return _ENTITY.sub(_unescape, text) if "&" in text else text


def fold_width(text: str) -> str:
    """Replace full-width letters and half-width jamo by the ordinary ones.

    >>> fold_width("ＡＢＣ１２３！ ﾡﾢ")
    'ABC123! ㄱㄲ'
    """
    return _WIDTH.sub(lambda match: _fold(match[0]), text)


def remove_invisible(text: str) -> str:
    r"""Delete control, bidirectional and zero-width characters; emoji keep what joins them.

    >>> remove_invisible("\x1b[31m빨강\x1b[0m \u202e뒤집힘\u200b 👨\u200d👩\u200d👧 ❤\ufe0f")
    '빨강 뒤집힘 👨\u200d👩\u200d👧 ❤️'
    """
    return INVISIBLE.sub(r"\1", text)


def compose(text: str) -> str:
    """Bring to NFC, and compose what old input methods leave apart; ᆞ and ᆢ are dots here, and stay.

    A conjoining jamo that stands alone becomes a letter, a Hangul filler with three letters (KS X 1001) a syllable; a
    mark that composes with nothing goes.

    >>> compose(unicodedata.normalize("NFD", "한글") + " \u110f\u110f \u3164ㅂㅘㅅ다 \u3164ㄷㅏ\u3164 ᆢ ㅋ\u0308")
    '한글 ㅋㅋ 봣다 다 ᆢ ㅋ'
    """
    text = _STACK.sub(lambda match: "".join(c for c in match[0] if not unicodedata.combining(c)), text)
    text = unicodedata.normalize("NFC", FILLED.sub(_join_filled, text))
    text = LONE_JAMO.sub(lambda match: _COMPATIBILITY_JAMO[match[0]], text)
    return unicodedata.normalize("NFC", MARKS.sub("", text))


def remove_links(text: str) -> str:
    """Replace URLs by a space, with a scheme or without.

    >>> remove_links("https://a.kr/위키_문서?q=1 보고 www.b.co.kr에서 youtu.be/xY1 (naver.com) 3.5점 ㅋ.ㅋ")
    '  보고  에서   ( ) 3.5점 ㅋ.ㅋ'
    """
    return _LINK.sub(_blank_link, text) if "." in text or "://" in text else text


def keep_written(text: str) -> str:
    r"""Replace each run of characters that no one writes in Korean comments by one space.

    Kept are Hangul, Latin, Greek, Cyrillic, kana and Hanja, punctuation, symbols and emoji.

    >>> keep_written("좋아요😀 “최고”♥ 漢字 ก็\ue000 ᆢ")
    '좋아요😀 “최고”♥ 漢字   ᆢ'
    """
    return NOT_WRITTEN.sub(" ", text)


def blank_mask(text: str) -> str:
    """Replace the portal's mask of a swearword by a space.

    >>> blank_mask("이 OOO아 ○○○○ GOOOAL")
    '이  아   GOOOAL'
    """
    return _PORTAL_MASK.sub(" ", text)


def shorten_runs(text: str) -> str:
    """Cut runs of three or more of one character to two; digits stay.

    >>> shorten_runs("ㅋㅋㅋㅋ 와아아아 !!!! 😀😀😀 10000원")
    'ㅋㅋ 와아아 !! 😀😀 10000원'
    """
    return _RUN.sub(r"\1\1", text)


def shorten_units(text: str) -> str:
    """Cut a unit of two to ten characters that is repeated three times or more to two; digits stay.

    >>> shorten_units("ㅋㅎㅋㅎㅋㅎ 개웃겨개웃겨개웃겨 👍🏻👍🏻👍🏻 121212")
    'ㅋㅎㅋㅎ 개웃겨개웃겨 👍🏻👍🏻 121212'
    """
    return _UNIT.sub(r"\1\1", text)


def replace_surrogates(text: str) -> str:
    r"""Replace each half of a surrogate pair, which no file can hold and no tokenizer reads, by a question mark.

    >>> replace_surrogates("반쪽 \ud83d 이모지")
    '반쪽 ? 이모지'
    """
    return text.encode(errors="replace").decode()


def _unescape(match: re.Match[str]) -> str:
    """Return the character of an entity; `html.unescape` alone would take `&not` out of `&notice;`."""
    is_known = match[0][1] == "#" or match[0][1:] in html.entities.html5
    return html.unescape(match[0]) if is_known else match[0]


def _fold(character: str) -> str:
    """Return what a full-width or half-width character is a variant of; unassigned ones stay."""
    kind, _, code = unicodedata.decomposition(character).partition(" ")
    return chr(int(code, 16)) if kind in ("<wide>", "<narrow>") else character


def _join_filled(match: re.Match[str]) -> str:
    """Return the syllable of a filler's three letters, or what was there if no syllable has them."""
    jamo = [table.get(letter) for table, letter in zip(_CONJOINING_JAMO, match.groups(), strict=True)]
    return match[0] if None in jamo else unicodedata.normalize("NFC", "".join(map(str, jamo)))


def _blank_link(match: re.Match[str]) -> str:
    """Return a space and the punctuation that follows the link rather than ends it."""
    link = match[0]
    return " " + link[len(link.rstrip(".,!?)]}'\"~;:")) :]


_COMPATIBILITY_JAMO = {
    chr(code): unicodedata.lookup("HANGUL LETTER " + unicodedata.name(chr(code)).split(maxsplit=2)[2])
    for code in (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
}

_CONJOINING_JAMO = [
    {_COMPATIBILITY_JAMO[chr(code)]: chr(code) for code in codes}
    for codes in (range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3))
]
_CONJOINING_JAMO[2]["\u3164"] = ""

#: Released rule sets are frozen: a change is a new name.
RULE_SETS: dict[str, tuple[Rule, ...]] = {
    "v2022": (keep_korean, remove_urls, shorten_repeats, squeeze_spaces),
    "v2021": (keep_korean_and_emoji, remove_urls, shorten_repeats, squeeze_spaces),
    "corpus": (
        unescape_html,
        fold_width,
        remove_invisible,
        compose,
        remove_links,
        keep_written,
        blank_mask,
        squeeze_spaces,
        shorten_runs,
        shorten_units,
    ),
    "none": (replace_surrogates,),
}


def clean(text: str, rules: str = "v2022") -> str:
    """Clean one comment.

    Args:
        text: a raw comment, any characters.
        rules: `"v2022"` or `"v2021"` (which keeps emoji), byte for byte as KcELECTRA's README does; `"corpus"`, our
            own for new corpora; `"none"` for comments that are clean.

    Returns:
        The cleaned comment, one line unless the rules are `"none"`, possibly empty.

    Raises:
        InputError: the rule set is unknown.

    >>> clean("이영화   진짜 ㅋㅋㅋㅋㅋㅋ 최고👍 10000원 https://example.com")
    '이영화 진짜 ㅋㅋ 최고 100원'
    >>> clean("최고👍", rules="v2021")
    '최고👍'
    >>> clean("이영화   진짜 ㅋㅋㅋㅋㅋㅋ 최고👍👍👍 10000원 example.com", rules="corpus")
    '이영화 진짜 ㅋㅋ 최고👍👍 10000원'
    """
    for rule in get_rules(rules):
        text = rule(text)
    return text


def get_rules(name: str) -> tuple[Rule, ...]:
    """Return the rules of a rule set, in order.

    Raises:
        InputError: the rule set is unknown.
    """
    if name not in RULE_SETS:
        raise InputError(f"unknown rule set {name!r}; use one of {', '.join(RULE_SETS)}")
    return RULE_SETS[name]
