"""Clean comments: rules are pure functions, a rule set is a tuple of them."""

import re
from collections.abc import Callable, Iterable

from kcelectra.corpus.emoji_2_16_0 import EMOJI_RANGES
from kcelectra.errors import InputError

Rule = Callable[[str], str]

KEPT_CHARACTERS = r" .,?!/@$%~％·∼()\x00-\x7Fㄱ-ㅣ가-힣"
_EMOJI = "".join(f"\\U{first:08X}-\\U{last:08X}" for first, last in EMOJI_RANGES)

_NOT_KEPT = re.compile(f"[^{KEPT_CHARACTERS}]+")
_NOT_KEPT_NOR_EMOJI = re.compile(f"[^{KEPT_CHARACTERS}{_EMOJI}]+")
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
    return _NOT_KEPT.sub(" ", text)


def keep_korean_and_emoji(text: str) -> str:
    """Replace each run of characters other than Hangul, ASCII, emoji and a few marks by one space.

    >>> keep_korean_and_emoji("좋아요😀최고漢字")
    '좋아요😀최고 '

    Source: KcELECTRA README, first `clean`, with the emoji of `emoji_2_16_0`.
    """
    return _NOT_KEPT_NOR_EMOJI.sub(" ", text)


def remove_urls(text: str) -> str:
    """Delete URLs with a scheme, and the space around the whole.

    >>> remove_urls("여기 https://example.com/a?b=1 보세요")
    '여기  보세요'

    Source: KcELECTRA README.
    """
    return _URL.sub("", text).strip() if "://" in text else text.strip()


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


#: Released rule sets are frozen: a change is a new name.
RULE_SETS: dict[str, tuple[Rule, ...]] = {
    "v2022": (keep_korean, remove_urls, shorten_repeats, squeeze_spaces),
    "v2021": (keep_korean_and_emoji, remove_urls, shorten_repeats, squeeze_spaces),
}


def clean(text: str, rules: str = "v2022") -> str:
    """Clean one comment as KcELECTRA's README does, byte for byte.

    Args:
        text: a raw comment, any characters.
        rules: `"v2022"` or `"v2021"` (which keeps emoji).

    Returns:
        The cleaned comment, one line, possibly empty.

    Raises:
        InputError: the rule set is unknown.

    >>> clean("이영화   진짜 ㅋㅋㅋㅋㅋㅋ 최고👍 https://example.com")
    '이영화 진짜 ㅋㅋ 최고'
    >>> clean("최고👍", rules="v2021")
    '최고👍'
    """
    for rule in get_rules(rules):
        text = rule(text)
    return text


def clean_batch(texts: Iterable[str], rules: str = "v2022") -> list[str]:
    """Clean many comments; the same as `clean` for each.

    Args:
        texts: raw comments.
        rules: a key of `RULE_SETS`.

    Returns:
        Cleaned comments in the same order, empty ones too.

    Raises:
        InputError: the rule set is unknown.
    """
    cleaned = list(texts)
    for rule in get_rules(rules):
        cleaned = [rule(text) for text in cleaned]
    return cleaned


def get_rules(name: str) -> tuple[Rule, ...]:
    """Return the rules of a rule set, in order.

    Raises:
        InputError: the rule set is unknown.
    """
    if name not in RULE_SETS:
        raise InputError(f"unknown rule set {name!r}; use one of {', '.join(RULE_SETS)}")
    return RULE_SETS[name]
