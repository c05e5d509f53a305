"""Find and mask personal data: resident registration, card, phone and account numbers, and e-mail addresses.

A number is made of whole runs of ASCII digits; what a pattern has read in vain it steps over, or reads at most once
more, so that hostile text costs linear time.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from kcelectra.corpus.cleaning import unescape_html

_HYPHEN = " ?[-–—ㅡ] ?"  # the vowel ㅡ is the dash that a Korean keyboard has at hand
_GAP = r"[-–—ㅡ.) \t]{0,3}"
_ABROAD = rf"(?:\+ ?|00)82{_GAP}(?:\(0\)|0)?"
_PREFIX = "(?:1[016789]|2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|50[2-8])"  # mobile and area codes without their 0
_CARDS = (  # the longest first: one that fails may be a card and its security code
    r"[0-9]{4}([- ])[0-9]{4}\2[0-9]{4}\2[0-9]{4}\2[0-9]{1,3}",
    r"[0-9]{4}([- ])[0-9]{4}\2[0-9]{4}\2[0-9]{1,4}",
    r"[0-9]{4}([- ])[0-9]{6}\2[0-9]{4,5}",
    r"(?<!(?<![0-9])[0-9]\.)[0-9]{13,19}",  # not 4.57142857142857
)
_BANK = (
    "(?:(?:KB|NH|IBK|KDB|SC제일|국민|신한|우리|하나|농협|기업|산업|제일|씨티|수협|신협|우체국|새마을금고|카카오|토스|케이"
    "|대구|부산|광주|전북|경남|제주)(?:은행|뱅크)?|(?:K|iM)뱅크)"
)
_ENDS = rf"(?![0-9]|{_HYPHEN}[0-9]|\.[0-9]{{9}}|[원점만억개년%])"  # and is no fraction, price, score or count


@dataclass(frozen=True)
class Kind:
    """One written form of one kind of personal data.

    Attributes:
        name: what the mask says; several forms share it.
        pattern: group 1 is what is masked. A match without it steps over what must not be looked into.
        is_valid: whether the text of group 1 can be one.
    """

    name: str
    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool]


def _is_resident_number(text: str) -> bool:
    digits = "".join(_groups(text))  # their checksum says nothing: those given out since October 2020 have none
    century = {"9": "18", "0": "18", "1": "19", "2": "19", "5": "19", "6": "19"}.get(digits[6], "20")
    return _is_day(century + digits[:6]) and _is_arbitrary(text)


def _is_card(text: str) -> bool:
    digits = "".join(_groups(text))
    doubled = digits[-2::-2].translate(str.maketrans("0123456789", "0246813579"))
    is_isbn = len(text) == 13 and text.startswith(("978", "979"))
    is_other = is_isbn or _is_timestamp(text) or _are_years(_groups(text))
    return not is_other and sum(map(int, digits[::-2] + doubled)) % 10 == 0


def _is_account_chain(text: str) -> bool:
    groups = _groups(text)
    is_written_so = 3 <= len(groups) <= 5 and 3 <= len(groups[0]) <= 6 and max(map(len, groups)) <= 7
    is_other = groups[0] in ("978", "979", "060", "080")  # ISBN, and lines that the caller or the called company pays
    return is_written_so and not is_other and _is_account(text)


def _is_account(text: str) -> bool:
    groups = _groups(text)
    return 10 <= sum(map(len, groups)) <= 16 and not _are_years(groups) and _is_arbitrary("".join(groups))


def _is_arbitrary(text: str) -> bool:
    """Refuse a bare run that begins with a day or, as `01010101010` does, fills a field with two digits."""
    return not text.isdigit() or (len(set(text)) > 2 and not _is_timestamp(text))


def _is_timestamp(text: str) -> bool:
    return text.startswith(("19", "20")) and _is_day(text[:8])


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _are_years(groups: list[str]) -> bool:
    return all(re.fullmatch("(?:19|20)[0-9]{2}", group) for group in groups)


def _groups(text: str) -> list[str]:
    return re.findall("[0-9]+", text)


#: The most specific first: what one has found is closed to those after it.
KINDS = (
    Kind("EMAIL", re.compile(r"(?ai)[.%+-]*+(\w[\w.%+-]*+@[a-z0-9][a-z0-9.-]*\.[a-z]{2,})|[\w.%+-]++"), bool),
    Kind("RRN", re.compile(r"(?<![0-9])([0-9]{6}\s?[-~–—.ㅡ]?\s?[0-9]{7})(?![0-9])"), _is_resident_number),
    *(  # a lookahead: a card may start at any group of four; behind a letter and a / or = it names a page
        Kind("CARD", re.compile(rf"(?<![0-9])(?<![A-Za-z][/=])(?=[2-69])(?=({card})(?![0-9]))"), _is_card)
        for card in _CARDS
    ),
    Kind(
        "PHONE",
        re.compile(
            rf"((?:(?:{_ABROAD}|0){_PREFIX}|\(0{_PREFIX}\)){_GAP}[0-9]{{3,4}}{_GAP}[0-9]{{4}}(?![0-9]))"
            rf"|[0-9]{{2,}}+{_HYPHEN}0[2-7][0-9]*+|[0-9]++(?:\.[0-9]{{9,}}+)?"  # within an account, a fraction
        ),
        _is_arbitrary,
    ),
    Kind(
        "ACCOUNT",
        re.compile(rf"([0-9]++(?:{_HYPHEN}[0-9]++)++){_ENDS}|[0-9]++(?:{_HYPHEN}[0-9]++)*+"),
        _is_account_chain,
    ),
    Kind(
        "ACCOUNT",
        re.compile(
            rf"{_BANK}\s{{0,3}}(?:계좌(?:번호)?)?[\s:()=,.-]{{0,3}}"
            rf"((?:[0-9]{{10,14}}|(?=[0-9]{{3}})[0-9](?:[- ]{{0,2}}[0-9]){{9,13}}){_ENDS})"
        ),
        _is_account,
    ),
)

_FOLDED = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-"),
    **dict.fromkeys((0xA0, 0x2007, 0x202F, 0x3000), " "),
    **dict.fromkeys((0xAD, 0x34F, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F)), None),
    **dict.fromkeys((*range(0x2060, 0x206A), 0xFEFF), None),
}
# 02-123-4567, the shortest, has nine digits, and the entity of a digit has a digit itself
_MAY_HOLD = re.compile("[@＠]|&(?:#|commat;)|[0-9０-９](?:[^0-9０-９]*+[0-9０-９]){8}")


def may_hold_personal_data(text: str) -> bool:
    """Say whether `find_personal_data` can find anything in a text, or in what `reveal` makes of it.

    Args:
        text: a comment, any characters.

    Returns:
        False only where nothing is to be found.

    >>> may_hold_personal_data("2021년 3월 9일"), may_hold_personal_data("전화 02-123-4567")
    (False, True)
    """
    return _MAY_HOLD.search(text) is not None


def reveal(text: str) -> str:
    """Undo what hides a number from `find_personal_data`.

    Args:
        text: a comment, any characters.

    Returns:
        The text with entities that end in a semicolon unescaped, full-width ASCII, exotic hyphens and no-break spaces
        folded, zero-width, bidirectional and soft hyphen characters removed; the same object where there is none.

    >>> reveal("０１０&#45;１２３４\u200b－5678")
    '010-1234-5678'
    """
    revealed = unescape_html(text).translate(_FOLDED)
    return text if revealed == text else revealed


def find_personal_data(text: str) -> list[tuple[str, int, int]]:
    """Find personal data as it stands; what hides it is for `reveal`.

    Args:
        text: a comment, any characters.

    Returns:
        (kind, start, end) in order, without overlap.

    >>> find_personal_data("abc@naver.com으로, 급하면 010-1234-5678")
    [('EMAIL', 0, 13), ('PHONE', 21, 34)]
    """
    found: list[tuple[str, int, int]] = []
    rest = text
    for kind in KINDS:
        spans = list(_find_kind(kind, rest))
        rest = _replace(rest, [(start, end, "\0" * (end - start)) for start, end in spans])
        found += [(kind.name, start, end) for start, end in spans]
    return sorted(found, key=lambda item: item[1])


def mask_personal_data(text: str) -> str:
    """Replace personal data by its kind.

    Args:
        text: a comment, any characters.

    Returns:
        The text with `[EMAIL]`, `[RRN]`, `[CARD]`, `[PHONE]` or `[ACCOUNT]` for each; all else untouched.

    >>> mask_personal_data("국민은행 123456789012 홍길동")
    '국민은행 [ACCOUNT] 홍길동'
    """
    return _replace(text, [(start, end, f"[{kind}]") for kind, start, end in find_personal_data(text)])


def _find_kind(kind: Kind, text: str) -> Iterator[tuple[int, int]]:
    last = 0
    for match in kind.pattern.finditer(text):
        if match[1] and match.start(1) >= last and kind.is_valid(match[1]):
            last = match.end(1)
            yield match.span(1)


def _replace(text: str, spans: list[tuple[int, int, str]]) -> str:
    pieces, last = [], 0
    for start, end, replacement in spans:
        pieces += [text[last:start], replacement]
        last = end
    return "".join((*pieces, text[last:]))
