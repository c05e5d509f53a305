"""Personal data: every written form is found to the character, ordinary numbers are not, hostile text costs little."""

import re
from collections import Counter
from datetime import date, timedelta
from random import Random

import pyarrow.parquet as pq
import pytest
from growth import is_linear

from kcelectra.corpus.personal_data import (
    KINDS,
    find_personal_data,
    mask_personal_data,
    may_hold_personal_data,
    reveal,
)
from kcelectra.corpus.sample import generate_sample

NUM_COMMENTS = 683_580
NUM_POSITIVES = 1500  # of each kind
NAMES = ("EMAIL", "RRN", "CARD", "PHONE", "ACCOUNT")
ORDINARY = re.split(
    "[|\\n]",
    """2021-03-09|2021-03-09-12|2014-01-26-00-15|2021.03.09 12:30:45|2019-2020|2018-2019-2020|20190501|20210309123045
2013041200123|2012-2013-2014-2015|2010 2011 2012 2013|11:05~13:05 22:41 27:19|0:31 5821 1/50000000|1/88888888888888888
1,000,000원|10000000000원|1000000000000000원|100000000000000점|5,000~10,000원|국민 10000000000원|50-100-150-200-300
9.87654321|3.141592653589793238462643383279|4.57142857142857|0.01012345678|0.0212345678|v1.2.3-4.5.6|192.168.100.200
978-89-1234-567-8|978-8912345678|979-11-123-4567-8|9788912345673|89-7914-874-0|1010101010|10101010101|1010101010101
01010101010|0606060606060|777777777777777777777777|10 10 10 10 10|10 9 8 7 6 5 4 3 2 1|1-2-3-4-5-6-7-8-9-10-11-12
1234567890|12345678901234|901350-1234567|991332-1234567|010229-3123456|000229-1123456|901231-123456|901231-12345678
4111 1111 1111 1112|4111111111111112|1234567812345670|41111111111111111111111|110101234567890123456789|1.10.123.4567
https://facebook.com/4111111111111111|news?id=4111111111111111|http://blog.me/220000000012|010-12345678901|20-1012345678
1588-1234|080-123-4567|060-700-1004|한글@naver.com|@my.account|abc@naver|a@b|a @ b.com|@naver.com|abc@|a@.com
a@b.c|하나 2019-12-25 18:30|부산 2019 12 25 18시|우리 2018 2019 2020|광주 10 20 30 40 50|대구 1234567|OK 1234567890
１２３４|٠١٠-١٢٣٤-٥٦٧٨|010 - 국번 없이 1234-5678|대구 053|국번 02, 1234""",
)
AREAS = "02 031 032 033 041 042 043 044 051 052 053 054 055 061 062 063 064 070 0502 0505 0507".split()
MOBILES = "010 010 010 011 016 017 018 019".split()
CARD_SHAPES = ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 1), (4, 4, 4, 4, 3), *((size,) for size in range(13, 20)))
ACCOUNT_SHAPES = (
    *((6, 2, 6), (3, 3, 6), (4, 3, 6), (3, 6, 5), (3, 4, 4, 2), (3, 6, 2, 3), (4, 2, 7), (4, 4, 4), (4, 4, 4, 1)),
    *((3, 2, 6), (3, 6, 3), (3, 2, 6, 1), (3, 2, 7), (3, 2, 5, 2), (3, 3, 4)),
)
BANKS = (
    *("국민", "신한", "우리", "하나", "농협", "기업", "대구", "부산", "광주", "전북", "경남", "제주", "씨티", "수협"),
    *("국민은행", "신한은행", "우리은행", "하나은행", "농협은행", "기업은행", "SC제일은행", "씨티은행", "제주은행"),
    *("카카오뱅크", "토스뱅크", "케이뱅크", "K뱅크", "카카오", "새마을금고", "우체국", "신협", "KB국민은행", "NH농협"),
)
BEFORE = "|연락처 |여기로|ㅠㅠ|보내주세요.|(|«|: |:|[|~|1. |\n|감사합니다!!|-|3개, ".split("|")
AFTER = "| 입니다|으로 보내주세요|ㅋㅋ|.|)|»|!|, 감사|]|~|\n|로|?| 10만원|.. 제발".split("|")


def digits(random: Random, size: int) -> str:
    return "".join(random.choices("0123456789", k=size))


def passes_luhn(number: str) -> bool:
    doubled = [sum(divmod(int(digit) * (1 + i % 2), 10)) for i, digit in enumerate(reversed(number))]
    return sum(doubled) % 10 == 0


def cut(number: str, shape: tuple[int, ...], separator: str) -> str:
    starts = [sum(shape[:i]) for i in range(len(shape))]
    return separator.join(number[start : start + size] for start, size in zip(starts, shape, strict=True))


def make_rrn(random: Random) -> tuple[str, str]:
    born = date(1900, 1, 1) + timedelta(days=random.randrange(45_000))
    gender = random.choice("1256" if born.year < 2000 else "3478")
    return "", f"{born:%y%m%d}{random.choice(['-', ' ', '~', '–', '—', '.', '', ' - '])}{gender}{digits(random, 6)}"


def make_phone(random: Random) -> tuple[str, str]:
    gap = random.choice(["-", ".", " ", "", " - ", "  ", "ㅡ"])
    area = random.choice(MOBILES if random.random() < 0.6 else AREAS)
    number = f"{random.choice('123456789')}{digits(random, random.choice([2, 3, 3]))}{gap}{digits(random, 4)}"
    abroad = random.choice(["+82", "+82 ", "+82-", "0082", "0082-", "+ 82 ", "+82)"])
    prefix = random.choice(
        [f"{area}{gap}", f"{area}{gap}", f"{area})", f"({area})", f"({area}) ", f"{abroad}{area[1:]}-"]
    )
    return "", f"{prefix}{number}"


def make_email(random: Random) -> tuple[str, str]:
    names = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789"
    local = random.choice(names) + "".join(random.choices(names + "._-+", k=random.randrange(1, 15)))
    hosts = "naver.com hanmail.net daum.net gmail.com nate.com kakao.com snu.ac.kr korea.kr mail.example.co.kr".split()
    return "", f"{local}@{random.choice([*hosts, random.choice(hosts).upper()])}"


def looks_like_rrn(number: str) -> bool:
    return len(number) == 13 and 1 <= int(number[2:4]) <= 12 and 1 <= int(number[4:6]) <= 31


def make_card(random: Random) -> tuple[str, str]:
    """Draw no bare number that may be a resident registration number: that is more specific."""
    shape = random.choice(CARD_SHAPES)
    while True:
        number = random.choice("234569") + digits(random, sum(shape) - 1)
        if passes_luhn(number) and not (len(shape) == 1 and looks_like_rrn(number)):
            return "", cut(number, shape, random.choice("- "))


def make_account(random: Random) -> tuple[str, str]:
    """Draw no number that may be a card's, a resident's or a phone's: those are more specific."""
    shape = random.choice(ACCOUNT_SHAPES)
    while True:
        number = digits(random, sum(shape))
        if not passes_luhn(number) and not looks_like_rrn(number) and not number.startswith("0"):
            break
    if random.random() < 0.5:
        return "", cut(number, shape, random.choice(["-", "-", " - ", "ㅡ"]))
    between = random.choice(["", " ", ":", ": ", " 계좌 ", " 계좌번호 ", "계좌번호: ", " 계좌번호:", " : ", "\n"])
    written = number if random.random() < 0.7 else cut(number, shape, " ")
    return random.choice(BANKS) + between, written


MAKERS = dict(zip(NAMES, (make_email, make_rrn, make_card, make_phone, make_account), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_written_form_is_found_to_the_character(name):
    random = Random(0)
    missed = []
    for _ in range(NUM_POSITIVES):
        before, after = random.choice(BEFORE), random.choice(AFTER)
        lead, number = MAKERS[name](random)
        before = before.replace("(", "") if ")" in number else before  # "(" and "02)123-4567" are "(02)123-4567"
        text, start = f"{before}{lead}{number}{after}", len(before + lead)
        if find_personal_data(text) != [(name, start, start + len(number))]:
            missed.append((text, find_personal_data(text)))
    assert len(missed) <= 0.01 * NUM_POSITIVES, missed[:10]


@pytest.mark.parametrize("name", NAMES)
def test_several_in_one_comment_are_all_masked(name):
    random = Random(1)
    for _ in range(300):
        parts = [MAKERS[name](random) for _ in range(3)]
        text = "가, ".join(lead + number for lead, number in parts)
        assert mask_personal_data(text) == "가, ".join(f"{lead}[{name}]" for lead, _ in parts), text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("010-1234-5678", "[PHONE]"),
        ("01012345678", "[PHONE]"),
        ("공일공 말고 011 234 5678", "공일공 말고 [PHONE]"),
        ("(02)123-4567/02)123-4567", "[PHONE]/[PHONE]"),
        ("+82 10-1234-5678, +82-2-123-4567, 00821012345678", "[PHONE], [PHONE], [PHONE]"),
        ("+82 (0)10 1234 5678", "[PHONE]"),
        ("(문의 031-123-4567)", "(문의 [PHONE])"),
        ("1.010-1234-5678 2.010-8765-4321", "1.[PHONE] 2.[PHONE]"),
        ("010-1234-5678-010-8765-4321", "[PHONE]-[PHONE]"),
        ("01012345678.01087654321", "[PHONE].[PHONE]"),
        ("abc@naver.com으로", "[EMAIL]으로"),
        ("메일a.b+c_d@mail.snu.ac.kr.", "메일[EMAIL]."),
        ("부탁..abc@naver.com010-1234-5678", "부탁..[EMAIL][PHONE]"),
        ("a@b.com2x@c.com", "[EMAIL][EMAIL]"),
        ("000229-3123456 900101-1234567 9001011234567", "[RRN] [RRN] [RRN]"),
        ("4111-1111-1111-1111 4242424242424242", "[CARD] [CARD]"),
        ("3782 822463 10005, 30569309025904", "[CARD], [CARD]"),
        ("4111 1111 1111 1111 123", "[CARD] 123"),
        ("2024 4111 1111 1111 1111", "2024 [CARD]"),
        ("3333-02-1234567 110-123-456789", "[ACCOUNT] [ACCOUNT]"),
        ("카카오뱅크 3333021234568 5만원", "카카오뱅크 [ACCOUNT] 5만원"),
        ("국민은행 계좌번호: 123456 01 234567 홍길동", "국민은행 계좌번호: [ACCOUNT] 홍길동"),
        ("국민 1234567890123 5만원", "국민 [ACCOUNT] 5만원"),
        ("농협 301-0123-4567-81", "농협 [ACCOUNT]"),
    ],
)
def test_a_number_is_masked_and_its_surroundings_stay(text, masked):
    assert mask_personal_data(text) == masked


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_numbers_stay(text):
    for comment in (text, f"평점 {text} ㅋㅋ", f"정말{text}", f"({text})", f"{text}\n"):
        assert find_personal_data(comment) == []
        assert mask_personal_data(comment) == comment


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0114868595@naver.com", "EMAIL"),
        ("900101-1234567@naver.com", "EMAIL"),
        ("4111-1111-1111-1111", "CARD"),  # also a chain of 16 digits
        ("하나은행 010-1234-5678", "PHONE"),
        ("농협 010 1234 5678", "PHONE"),
        ("국민 9001011234567", "RRN"),
        ("국민 4000000000006", "CARD"),
    ],
)
def test_the_most_specific_kind_wins(text, name):
    assert [kind for kind, _, _ in find_personal_data(text)] == [name]


def test_kinds_are_in_order_of_priority():
    assert tuple(dict.fromkeys(kind.name for kind in KINDS)) == NAMES


# reveal


@pytest.mark.parametrize(
    ("text", "revealed"),
    [
        ("０１０－１２３４－５６７８", "010-1234-5678"),
        ("abc＠naver．com", "abc@naver.com"),
        ("&#48;&#x31;0&#45;1234&hyphen;5678", "010-1234-5678"),
        ("abc&commat;naver&period;com", "abc@naver.com"),
        ("0\u200b1\u200c0\u2060-12\xad34-\ufeff56\u202e78", "010-1234-5678"),
        ("010\u20101234\u22125678", "010-1234-5678"),
        ("010\xa01234\u202f5678", "010 1234 5678"),
        ("&lt;b&gt; &amp;#48;", "<b> &#48;"),
    ],
)
def test_reveal_undoes_what_hides_a_number(text, revealed):
    assert reveal(text) == revealed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "좋아요 010-1234-5678",
        "a & b",
        "&notit; &nosuch; &copy &#48",
        "AT&T;",
        "&#" + "1" * 5000 + ";",
        "😀👍🏽",
        "ㅋ～"[:1],
    ],
)
def test_reveal_returns_the_same_object_where_nothing_is_hidden(text):
    assert reveal(text) is text


# what must always hold

FRAGMENTS = (
    *("010", "02", "031", "82", "+82", "0082", "1", "9", "12", "90", "1234", "5678", "901231", "1234567", "123456"),
    *("4111", "1111", "4111111111111111", "9012311234567", "01012345678", "1234567890", "2021", "03", "978", "0"),
    *("-", "-", "-", " ", " ", ".", ",", ":", "/", "=", "~", "(", ")", "–", "ㅡ", "+", "_", "%", "\n", "\t"),
    *(
        "@",
        "a",
        "b.com",
        "a@b.com",
        "naver.com",
        "국민은행",
        "하나",
        "K뱅크",
        "계좌",
        "가",
        "원",
        "점",
        "만",
        "입니다",
    ),
    *("[EMAIL]", "[PHONE]", "\0", "１", "&#48;", "&commat;", "\u200b", "-0", "02-345-6789", "110-123-456789"),
)


def check(text: str) -> None:
    found = find_personal_data(text)
    ends = [0]
    for kind, start, end in found:
        assert kind in NAMES and ends[-1] <= start < end <= len(text), (text, found)
        ends.append(end)
    masked = mask_personal_data(text)
    assert find_personal_data(masked) == [], (text, masked)
    assert mask_personal_data(masked) == masked
    kept = [text[end:start] for end, (_, start, _) in zip(ends, [*found, ("", len(text), 0)], strict=True)]
    rebuilt = "".join(part + (f"[{kind}]") for part, (kind, _, _) in zip(kept, found, strict=False))
    assert masked == rebuilt + kept[-1]
    assert not found or may_hold_personal_data(text), text
    assert not find_personal_data(reveal(text)) or may_hold_personal_data(text), text


def test_what_must_hold_holds_for_mixed_fragments():
    random = Random(0)
    for _ in range(15_000):
        check("".join(random.choices(FRAGMENTS, k=random.randrange(1, 14))))


def test_what_must_hold_holds_for_any_text(tmp_path):
    hypothesis = pytest.importorskip("hypothesis", reason="looks for counterexamples: pip install hypothesis")
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path)  # it leaves files in the working directory otherwise
    st = hypothesis.strategies
    fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=16).map("".join)
    texts = st.one_of(fragments, st.text(alphabet="0123456789-. @a국민+()", max_size=40), st.text(max_size=60))

    @hypothesis.settings(max_examples=1000, database=None, derandomize=True, deadline=None)
    @hypothesis.given(texts)
    def check_any(text):
        check(text)

    check_any()


def test_may_hold_takes_nothing_less_than_nine_digits_or_an_address():
    assert not may_hold_personal_data("2021-03-09 ㅋㅋ")
    for text in ("02-123-4567", "a@b.kr", "０２－１２３－４５６７", "a&commat;b.kr", "a&#64;b.kr", "a＠b.kr"):
        assert may_hold_personal_data(text)
        assert find_personal_data(reveal(text))


# hostile text

HOSTILE = (
    *"1|1-|-1|0|0-|-|01|12|1.|0.|1 |.|%|@|a@|a.|a@a|a@a.|a@b.cc|&|&a|&#48|１|\u200b|계좌|국민|국민 |국민1".split("|"),
    *"010-|010 |02-|12-02|+82|(02)|4111-|4111 |901231-|1234567890-|110-123-456789 |4111-1111-1111-1111-".split("|"),
    *"010-1234-5678-|02-345-6789-|901231-1234567,|a@b.com|국민 1234567890".split("|"),
)


def look(text: str) -> None:
    may_hold_personal_data(text)
    mask_personal_data(reveal(text))


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("end", ["", "원"])
def test_hostile_text_costs_linear_time(unit, end):
    count = 200_000 // len(unit)
    assert is_linear(look, unit * (count // 16) + end, unit * count + end)


# real comments


def test_few_rows_of_real_comments_are_touched(shared_data):
    num_rows, found = 0, Counter()
    for path in sorted((shared_data / "comments").glob("*.parquet")):
        texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
        num_rows += len(texts)
        for text in filter(may_hold_personal_data, texts):
            kinds = {kind for kind, _, _ in find_personal_data(reveal(text))}
            found.update([*kinds, *(["rows"] if kinds else [])])
    assert num_rows == NUM_COMMENTS
    assert found["EMAIL"] >= 35 and found["PHONE"] >= 9  # all that a reader found there
    assert found["rows"] <= 0.001 * num_rows, found


def test_the_sample_holds_none():
    texts = [comment["text"] for comment in generate_sample()]
    assert [text for text in texts if find_personal_data(reveal(re.sub(r"\s+", " ", text)))] == []
