"""Hostile input costs itself: counted or named, no good row beside it lost, in bounded time and memory."""

import gc
import gzip
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_comments import utf8_column, write_bytes, write_rows, write_texts

from kcelectra.corpus import build_corpus
from kcelectra.corpus.build import CorpusArguments, describe_corpus, plan_corpus
from kcelectra.corpus.cleaning import RULE_SETS, clean
from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.formats import FORMATS, check_file, read_part, split_file
from kcelectra.corpus.shards import STEPS, clean_part, count_tasks, drop_duplicates
from kcelectra.errors import InputError
from kcelectra.manifest import verify_manifest

FIRST, LAST = "오늘 날씨가 정말 좋네요", "내일은 비가 온다고 합니다"  # the good rows about the bad one
CHOSEN = {"empty", "too short", "duplicate", "personal data"}  # the other reasons are of rows that cannot be read
MEMORY_MB = 640  # of one process and its tests; 512 is the bound for comments, not for lines of a megabyte


def work_through(work_dir: str) -> None:
    for step in STEPS:
        for task in range(count_tasks(step, work_dir)):
            step(work_dir, task)


def build(sources: Any, output_dir: Path, **options: Any) -> dict[str, Any]:
    """Do as `build_corpus` does, without processes."""
    names = [str(source) for source in (sources if isinstance(sources, list) else [sources])]
    options = {"num_workers": 1} | options
    work_dir = plan_corpus(CorpusArguments(sources=names, output_dir=str(output_dir), **options))
    if work_dir is not None:
        work_through(work_dir)
    return verify_manifest(output_dir)


def rows_of(output_dir: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(output_dir.glob("train-*.parquet")) for row in pq.read_table(path).to_pylist()]


def texts_of(output_dir: Path) -> list[str]:
    return [row["text"] for row in rows_of(output_dir)]


def require_sums(manifest: dict[str, Any]) -> None:
    """Every row was kept or dropped for a reason, and the first bad ones are named."""
    assert manifest["num_read"] == manifest["num_kept"] + sum(manifest["dropped"].values())
    num_bad = sum(count for reason, count in manifest["dropped"].items() if reason not in CHOSEN)
    assert len(manifest["bad_rows"]) == min(num_bad, 20)


def build_both(tmp_path: Path, source: Any, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Build a corpus and check that its counts add up; return its manifest and texts."""
    manifest = build(source, tmp_path / "corpus", **options)
    require_sums(manifest)
    texts = texts_of(tmp_path / "corpus")
    assert len(texts) == manifest["num_kept"]
    return manifest, texts


def json_lines(*rows: dict[str, Any] | str | bytes) -> bytes:
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
    return b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)


# hostile text: what is left of it, or the reason it was dropped for

EMPTY, SHORT, TWICE = "empty", "too short", "duplicate"
TEXTS: dict[str, tuple[str, str]] = {
    "NUL": ("널\0문자가 든 댓글입\0니다", "널문자가 든 댓글입니다"),
    "nothing but NUL": ("\0" * 50, EMPTY),
    "ANSI escapes": ("\x1b[31;1m빨간 글자로 쓴 댓글\x1b[0m", "빨간 글자로 쓴 댓글"),
    "cut ANSI escape": ("끊긴 이스케이프 댓글입니다\x1b[", "끊긴 이스케이프 댓글입니다["),
    "bell and backspace": ("소리가\a 나는\b 댓글입니다", "소리가 나는 댓글입니다"),
    "lone surrogate": ("짝이 없는 \ud800 서로게이트", "짝이 없는 서로게이트"),
    "surrogates the wrong way round": ("뒤집힌 서로게이트 \ude00\ud83d 댓글", "뒤집힌 서로게이트 댓글"),
    "surrogate pair": ("제대로 된 짝 \ud83d\ude00 댓글", "제대로 된 짝 😀 댓글"),
    "NFD": ("한글이 풀어져 있는 댓글", "한글이 풀어져 있는 댓글"),
    "NFD that becomes a duplicate": ("오늘 날씨가 정말 좋네요", TWICE),
    "lone conjoining jamo": ("초성만 \u110f\u110f 있는 댓글입니다", "초성만 ㅋㅋ 있는 댓글입니다"),
    "full width": ("Ｆｕｌｌ　ｗｉｄｔｈ　１００％", "Full width 100%"),
    "half-width jamo": ("ﾡﾢ 반각 자모가 있는 댓글", "ㄱㄲ 반각 자모가 있는 댓글"),
    "zero width": ("보이지\u200b않는\u200c글자\u2060가\ufeff있는 댓글", "보이지않는글자가있는 댓글"),
    "nothing but zero width": ("\u200b" * 100, EMPTY),
    "bidi": ("\u202e뒤집혀 보이는\u202c 댓글\u2066입니다\u2069", "뒤집혀 보이는 댓글입니다"),
    "soft hyphens": ("눈에\u00ad안\u00ad띄는 하이픈 댓글", "눈에안띄는 하이픈 댓글"),
    "zalgo": ("z" + "\u0300\u0301\u0315\u0327" * 200 + "algo 댓글입니다", "zalgo 댓글입니다"),
    "emoji of newer Unicode": (
        "새 이모지 \U0001faea\U0001fadf\U0001f6d8 댓글",
        "새 이모지 \U0001faea\U0001fadf\U0001f6d8 댓글",
    ),
    "code points without a character": (
        "없는 글자 \U0001faff\U000e1000\uffff\U0010ffff 댓글",
        "없는 글자 \U0001faff 댓글",
    ),
    "private use": ("사용자 영역 \ue000\uf8ff\U000f0000 글자입니다", "사용자 영역 글자입니다"),
    "joined emoji": ("가족이 있는 👨\u200d👩\u200d👧 댓글", "가족이 있는 👨\u200d👩\u200d👧 댓글"),
    "joiners without emoji": ("붙일 것이 없는\u200d\u200d\ufe0f 댓글", "붙일 것이 없는 댓글"),
    "flag tags without an end": ("깃발 🏴\U000e0067\U000e0062 댓글입니다", "깃발 🏴 댓글입니다"),
    "odd spaces": ("온갖\u3000공백\u00a0이\u2009들어\u1680간\u2028댓글\x85입니다", "온갖 공백 이 들어 간 댓글 입니다"),
    "line ends": ("첫째 줄\n둘째 줄\r\n셋째 줄\r\r", "첫째 줄 둘째 줄 셋째 줄"),
    "the good comment with other spaces": ("\t오늘  날씨가\u3000\u3000정말\n좋네요 ", TWICE),
    "nothing but spaces": (" \t\n\u3000" * 30, EMPTY),
    "special tokens": ("[CLS] 특수 토큰 [SEP] [MASK] [PAD]", "[CLS] 특수 토큰 [SEP] [MASK] [PAD]"),
    "nothing but [SEP]": ("[SEP]", SHORT),
    "CSV formula": ("=cmd|' /C calc'!A0 공식 댓글", "=cmd|' /C calc'!A0 공식 댓글"),
    "quotation bomb": ('"' * 999 + " 따옴표가 많은 댓글", '"" 따옴표가 많은 댓글'),
    "markup": ("<script>alert(1)</script> 댓글", "<script>alert(1)</script> 댓글"),
    "entities of entities": ("&amp;lt;b&amp;gt; 두 번 감춘 댓글", "&lt;b&gt; 두 번 감춘 댓글"),
    "entities of control characters": ("&#0;&#27;[31m&#x202e;&#xD800;&#x110000; 댓글입니다", "[31m 댓글입니다"),
    "backslashes": (r"\n\0\x00\ud800 역슬래시 댓글 \\", r"\n\0\x00\ud800 역슬래시 댓글 \\"),
    "format strings": ("%s%n{0}{__class__}${x} 댓글입니다", "%s%n{0}{__class__}${x} 댓글입니다"),
    "SQL": ("'; DROP TABLE dropped; -- 댓글", "'; DROP TABLE dropped; -- 댓글"),
    "a path": ("/etc/passwd/../../x 댓글", "/etc/passwd/../../x 댓글"),
    "100,000 letters": ("가나다라마바사아자차카타파" * 8_000, "가나다라마바사아자차카타파" * 8_000),
    "one letter 100,000 times": ("가" * 100_000, SHORT),
    "100,000 digits": ("1234567890" * 10_000, "1234567890" * 10_000),
    "one address of 2,000 letters": (f"http://a.kr/{'x' * 2000} 긴 주소 댓글입니다", "긴 주소 댓글입니다"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_hostile_text_is_cleaned_or_counted_and_its_neighbours_are_kept(tmp_path, kind):
    text, result = TEXTS[kind]
    source = write_bytes(tmp_path / "a.jsonl", json_lines({"text": FIRST}, {"text": text}, {"text": LAST}))
    manifest, texts = build_both(tmp_path, source)
    if result in (EMPTY, SHORT, TWICE):
        assert texts == [FIRST, LAST] and manifest["dropped"][result] == 1
    else:
        assert texts == [FIRST, result, LAST] and not any(manifest["dropped"].values())
    assert manifest["num_read"] == 3


def test_hostile_texts_in_parquet_are_those_in_json(tmp_path):
    texts = [json.loads(json.dumps(text)) for text, _ in TEXTS.values()]
    texts = [text for text in texts if not re.search("[\ud800-\udfff]", text)]  # Arrow cannot hold them
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    write_bytes(tmp_path / "a.jsonl", json_lines(*({"text": text} for text in texts)))
    manifests = [build(tmp_path / f"a{suffix}", tmp_path / suffix) for suffix in (".parquet", ".jsonl")]
    assert texts_of(tmp_path / ".parquet") == texts_of(tmp_path / ".jsonl")
    assert manifests[0]["dropped"] == manifests[1]["dropped"]


@pytest.mark.parametrize("rules", RULE_SETS)
def test_hostile_texts_together_are_cleaned_as_each_alone(tmp_path, rules):
    texts = [text for text, _ in TEXTS.values()]
    source = write_bytes(tmp_path / "a.jsonl", json_lines(*({"text": text} for text in texts)))
    _, kept = build_both(tmp_path, source, rules=rules, dedup="none", min_chars=1)
    read = [json.loads(json.dumps(text)) for text in texts]  # makes one character of a pair of surrogates
    cleaned = [clean(text, rules).encode("utf-8", "replace").decode() for text in read]
    assert kept == [text for text in cleaned if text]


# hostile rows

LONG_ID = "길" * 100_000
ROWS: dict[str, tuple[str | bytes, str | None]] = {
    "cut JSON": ('{"text": "끊긴 댓글', "invalid JSON"),
    "empty line": ("", "blank line"),
    "array": ('["text", "배열인 댓글"]', "invalid JSON"),
    "text alone": ('"문자열뿐인 댓글"', "invalid JSON"),
    "number alone": ("12345678901", "invalid JSON"),
    "null": ("null", "invalid JSON"),
    "NaN": ("NaN", "invalid JSON"),
    "two objects": ('{"text": "하나"}{"text": "둘"}', "invalid JSON"),
    "trailing comma": ('{"text": "쉼표 댓글",}', "invalid JSON"),
    "Python's notation": ("{'text': '파이썬 댓글', 'n': None}", "invalid JSON"),
    "raw control characters": (b'{"text": "\x01\x02 raw"}', "invalid JSON"),
    "unknown escape": (r'{"text": "\x41 이스케이프"}', "invalid JSON"),
    "half an escape": (r'{"text": "\u00"}', "invalid JSON"),
    "byte order mark in the middle": ("\ufeff" + '{"text": "표식 뒤의 댓글"}', "invalid JSON"),
    "invalid UTF-8": (b'{"text": "' + b"\xed\xa0\x80\xff" + b'"}', "invalid UTF-8"),
    "overlong UTF-8": (b'{"text": "\xc0\xaf\xe0\x80\xaf overlong"}', "invalid UTF-8"),
    "CP949": ('{"text": "완성형으로 쓴 댓글"}'.encode("cp949"), "invalid UTF-8"),
    "a number of 5,000 digits": ('{"text": "큰 수 댓글", "n": ' + "9" * 5000 + "}", "invalid JSON"),
    "nesting without an end": ('{"text": "깊은 댓글", "n": ' + "[" * 200_000, "invalid JSON"),
    "nesting": ('{"text": ' + '{"a":' * 50_000 + "1" + "}" * 50_001, "invalid JSON"),
    "a line of 2 MiB": ('{"text": "' + "길" * 700_000 + '"}', "a line of more than 1 MiB"),
    "null text": ('{"text": null}', "no text"),
    "number as text": ('{"text": 12345678901}', "no text"),
    "NaN as text": ('{"text": NaN}', "no text"),
    "Infinity as text": ('{"text": -Infinity}', "no text"),
    "nested text": ('{"text": {"text": "안에 있는 댓글입니다"}}', "no text"),
    "list as text": ('{"text": ["목록 안의 댓글입니다"]}', "no text"),
    "no text": ('{"body": "다른 이름의 댓글입니다"}', "no text"),
    "empty object": ("{}", "no text"),
    "null everywhere": ('{"text": null, "thread": null, "comment_id": null, "parent_id": null}', "no text"),
    "duplicate keys, the last counts": (r'{"text": null, "text": "마지막 것이 남는 댓글"}', None),
    "duplicate keys, the last is null": (r'{"text": "앞의 것은 버려진다네", "text": null}', "no text"),
    "NaN beside the text": ('{"text": "옆이 이상한 댓글입니다", "score": NaN, "max": Infinity}', None),
    "numbers as ids": ('{"text": "번호가 수인 댓글입니다", "thread": 1, "comment_id": 2, "parent_id": 1.5e300}', None),
    "nested ids": (
        '{"text": "번호가 겹친 댓글입니다", "thread": {"a": [1]}, "comment_id": [], "parent_id": false}',
        None,
    ),
    "hostile ids": (
        r'{"text": "번호가 나쁜 댓글입니다", "thread": "\u0000\t\n", "comment_id": "\ud800", "parent_id": ""}',
        None,
    ),
    "long ids": (f'{{"text": "번호가 긴 댓글입니다", "thread": "{LONG_ID}", "comment_id": "{LONG_ID}"}}', None),
    "10,000 keys": ("{" + "".join(f'"{i}": 0, ' for i in range(10_000)) + '"text": "열이 많은 댓글입니다"}', None),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_hostile_row_costs_itself_and_is_named(tmp_path, kind):
    row, reason = ROWS[kind]
    source = write_bytes(tmp_path / "a.jsonl", json_lines({"text": FIRST}, row, {"text": LAST}))
    manifest, texts = build_both(tmp_path, source)
    if reason is None:
        assert len(texts) == 3 and (texts[0], texts[2]) == (FIRST, LAST)
        assert not any(manifest["dropped"].values())
    else:
        assert texts == [FIRST, LAST]
        assert manifest["dropped"][reason] == 1
        assert manifest["bad_rows"] == [f"{source}, row 2: {reason}"]


def test_all_hostile_rows_together_cost_themselves_only(tmp_path):
    rows = [piece for i, (row, _) in enumerate(ROWS.values()) for piece in (row, {"text": f"{i}번째 좋은 댓글입니다"})]
    source = write_bytes(tmp_path / "a.jsonl", json_lines({"text": FIRST}, *rows))
    manifest, texts = build_both(tmp_path, source)
    assert [text for text in texts if "좋은" in text] == [f"{i}번째 좋은 댓글입니다" for i in range(len(ROWS))]
    expected = Counter(reason for _, reason in ROWS.values() if reason)
    assert {reason: manifest["dropped"][reason] for reason in expected} == expected
    assert manifest["num_kept"] == 1 + len(ROWS) + sum(reason is None for _, reason in ROWS.values())
    numbers = [2 * i + 2 for i, (_, reason) in enumerate(ROWS.values()) if reason]
    named = [int(re.search(r", row (\d+): ", line)[1]) for line in manifest["bad_rows"]]
    assert named == numbers[:20]


def test_bad_rows_are_named_by_their_number_in_the_file_whatever_the_parts(tmp_path):
    lines = [f"{i}번째로 쓴 좋은 댓글입니다 {'가' * 60}".encode() for i in range(30_000)]
    for number in (5, 17_000, 29_999):
        lines[number] = b"\xff"
    source = write_bytes(tmp_path / "a.txt", b"\n".join(lines))
    assert source.stat().st_size > 3 << 20
    manifest, texts = build_both(tmp_path, source, part_mb=1)
    assert manifest["bad_rows"] == [f"{source}, row {number + 1}: invalid UTF-8" for number in (5, 17_000, 29_999)]
    assert len(texts) == 29_997


def test_a_file_that_is_given_twice_names_its_bad_rows_by_their_number(tmp_path):
    source = write_bytes(tmp_path / "a.txt", f"{FIRST}\n".encode() + b"\xff\n" + f"{LAST}\n".encode())
    manifest, texts = build_both(tmp_path, [source, tmp_path / "." / "a.txt", tmp_path / "*.txt"])
    assert texts == [FIRST, LAST]
    assert set(manifest["bad_rows"]) == {f"{source}, row 2: invalid UTF-8"}


# whole files


def test_a_file_of_invalid_utf8_in_its_middle_keeps_both_ends(tmp_path):
    lines = [f"{i}번째로 쓴 좋은 댓글입니다".encode() for i in range(2000)]
    data = b"\n".join([*lines[:1000], random.Random(0).randbytes(5000).replace(b"\n", b"") + b"\xff", *lines[1000:]])
    manifest, texts = build_both(tmp_path, write_bytes(tmp_path / "a.txt", data))
    assert texts == [line.decode() for line in lines]
    assert manifest["dropped"]["invalid UTF-8"] == 1


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".txt.gz", ".csv.zst"])
def test_a_cp949_file_beside_a_good_one_is_counted_row_by_row(tmp_path, suffix):
    rows = [{"text": f"완성형으로 쓴 댓글 {i}"} for i in range(5)]
    source = write_rows(tmp_path / f"b{suffix}", rows)
    kind = tmp_path / f"plain{suffix.removesuffix('.gz').removesuffix('.zst')}"
    write_bytes(source, write_rows(kind, rows).read_bytes().decode().encode("cp949"))
    kind.unlink()
    write_texts(tmp_path / "a.txt", [FIRST.encode()])
    manifest, texts = build_both(tmp_path, [tmp_path / "a.txt", source])
    assert texts == [FIRST]
    assert manifest["dropped"]["invalid UTF-8"] == 5
    assert manifest["bad_rows"] == [f"{source}, row {i + 1}: invalid UTF-8" for i in range(5)]


def test_a_cp949_file_alone_is_an_error_that_says_how_to_convert_it(tmp_path):
    source = write_bytes(tmp_path / "a.txt", ("완성형으로 쓴 댓글\n" * 5).encode("cp949"))
    with pytest.raises(InputError, match=r"no comment is left \(invalid UTF-8: 5.*iconv -f CP949 -t UTF-8"):
        build(source, tmp_path / "corpus")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl.gz"])
def test_a_utf16_file_is_an_error_that_says_how_to_convert_it(tmp_path, encoding, suffix):
    mark = "" if encoding == "utf-16" else "\ufeff"
    source = write_bytes(tmp_path / f"a{suffix}", f"{mark}text\n{FIRST}\n".encode(encoding))
    with pytest.raises(InputError, match=rf"{re.escape(str(source))} is UTF-16; convert it with `iconv -f UTF-16"):
        build([write_texts(tmp_path / "b.txt", [FIRST.encode()]), source], tmp_path / "corpus")


def test_a_csv_of_bombs_and_nuls_keeps_its_good_rows(tmp_path):
    rows = [
        "=cmd|' /C calc'!A0 댓글,1",
        "+1+1 더하기로 시작하는 댓글,2",
        "@SUM(A1:A9) 골뱅이 댓글,3",
        "널\0이 든 CSV의 댓글입니다,4",
    ]
    bad = ['"열고 안 닫은 댓글입니다,5', "칸이,너무,많은,댓글입니다", "칸이 모자란 댓글입니다", '"' * 1001]
    lines = ["text,n", *(line for pair in zip(rows, bad, strict=True) for line in pair), f"{FIRST},6"]
    manifest, texts = build_both(tmp_path, write_bytes(tmp_path / "a.csv", "\n".join(lines).encode()))
    expected = [
        "=cmd|' /C calc'!A0 댓글",
        "+1+1 더하기로 시작하는 댓글",
        "@SUM(A1:A9) 골뱅이 댓글",
        "널이 든 CSV의 댓글입니다",
    ]
    assert texts == [*expected, FIRST]
    assert [line.split(": ")[0] for line in manifest["bad_rows"]] == [
        f"{tmp_path}/a.csv, row {i}" for i in (2, 4, 6, 8)
    ]


@pytest.mark.parametrize("suffix", [*FORMATS, ".txt.gz", ".jsonl.zst", ".csv.gz", ".tsv.zst"])
@pytest.mark.parametrize("content", ["no row", "no byte"])
def test_empty_files_cost_their_neighbours_nothing(tmp_path, suffix, content):
    if content == "no byte" and suffix == ".parquet":
        pytest.skip("that is no Parquet file")
    for name in ("a", "c"):
        source = write_texts(tmp_path / f"{name}{suffix}", [])
        if content == "no byte":
            source.write_bytes(b"")
    write_texts(tmp_path / f"b{suffix}", [FIRST.encode()])
    manifest, texts = build_both(tmp_path, tmp_path)
    assert texts == [FIRST] and manifest["num_read"] == 1


@pytest.mark.parametrize("suffix", [*FORMATS, ".txt.gz", ".txt.zst"])
@pytest.mark.parametrize("num_groups", [0, 1], ids=["", "with a row group"])
def test_nothing_but_empty_files_is_an_error_that_says_so(tmp_path, suffix, num_groups):
    source = write_texts(tmp_path / f"a{suffix}", [])
    if suffix == ".parquet" and num_groups == 0:
        pq.ParquetWriter(source, pa.schema([("text", pa.string())])).close()
    with pytest.raises(InputError, match="no comment is left .*look at the sources"):
        build(source, tmp_path / "corpus")


def test_a_file_of_line_ends_is_counted(tmp_path):
    write_bytes(tmp_path / "a.txt", b"\n" * 1000 + b"\r\n" * 1000)
    write_bytes(tmp_path / "b.txt", FIRST.encode())
    manifest, texts = build_both(tmp_path, tmp_path)
    assert texts == [FIRST] and +Counter(manifest["dropped"]) == {"empty": 2000}


def test_what_was_dropped_is_said_when_no_comment_is_left(tmp_path):
    write_bytes(tmp_path / "a.txt", "\n\n짧다\n짧아\n짧네\n".encode() + b"\xff\n")
    with pytest.raises(
        InputError, match=r"no comment is left \((?=.*empty: 2)(?=.*too short: 3)(?=.*invalid UTF-8: 1)"
    ):
        build(tmp_path / "a.txt", tmp_path / "corpus")
    with pytest.raises(InputError) as caught:
        build(tmp_path / "a.txt", tmp_path / "again")
    assert "comments: 5" not in str(caught.value)  # they are not one more reason


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def garbage(data: bytes) -> bytes:
    return random.Random(1).randbytes(len(data))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "garbage": garbage,
    "tail cut off": lambda data: data[:-6],
    "cut to four bytes": lambda data: data[:4],
    "a page of HTML": lambda data: b"<html>404 not found</html>",
}
DAMAGED_SUFFIXES = [".txt.gz", ".csv.gz", ".jsonl.zst", ".tsv.zst", ".parquet"]


@dataclass
class Damaged:
    """A damaged file between two good ones."""

    directory: Path
    suffix: str
    damage: str
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        write_texts(self.directory / "a.txt", [FIRST.encode()])
        texts = [f"{i}번째로 쓴 댓글입니다 {i * i * i}".encode() for i in range(3000)]
        self.file = write_texts(self.directory / f"b{self.suffix}", texts)
        self.file.write_bytes(DAMAGES[self.damage](self.file.read_bytes()))
        write_texts(self.directory / "c.txt", [LAST.encode()])


@pytest.mark.parametrize("suffix", DAMAGED_SUFFIXES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_that_names_it_and_the_cure(tmp_path, suffix, damage):
    damaged = Damaged(tmp_path, suffix, damage)
    with pytest.raises(InputError) as caught:
        build(tmp_path, tmp_path / "corpus")
    message = str(caught.value)
    assert message.startswith(f"cannot read {damaged.file}")
    assert "--skip_damaged true" in message or "leave it out" in message


@pytest.mark.parametrize("suffix", DAMAGED_SUFFIXES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_that_is_skipped_costs_its_neighbours_nothing(tmp_path, suffix, damage):
    damaged = Damaged(tmp_path, suffix, damage)
    manifest, texts = build_both(tmp_path, tmp_path, skip_damaged=True)
    assert (texts[0], texts[-1]) == (FIRST, LAST)
    assert texts[1:-1] == [f"{i}번째로 쓴 댓글입니다 {i * i * i}" for i in range(len(texts) - 2)]
    assert len(texts) > 1500 or damage != "tail cut off" or suffix == ".parquet"
    assert [name for name in manifest["damaged_files"] if str(damaged.file) in name]
    assert str(damaged.file) in describe_corpus(manifest)


@pytest.mark.parametrize("part_mb", [1, 1024])
def test_what_is_kept_of_a_damaged_parquet_file_does_not_depend_on_the_parts(tmp_path, part_mb):
    texts = [" ".join(f"낱말{i * 100 + j}" for j in range(60)) for i in range(9000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=1500, use_dictionary=False)
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(2).column(0)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[column.data_page_offset + 30 : column.data_page_offset + 2000] = bytes(1970)
    (tmp_path / "a.parquet").write_bytes(data)
    _, kept = build_both(tmp_path, tmp_path / "a.parquet", skip_damaged=True, part_mb=part_mb)
    good = [text for i, text in enumerate(texts) if not 3000 <= i < 4500]
    assert set(good) <= set(kept)


def test_a_parquet_file_with_any_byte_changed_gives_rows_or_an_input_error(tmp_path):
    rng, source = random.Random(3), tmp_path / "a.parquet"
    ids = list(range(300))
    table = pa.table({"text": [f"댓글 {i}" for i in ids], "thread": [str(i // 7) for i in ids], "parent_id": ids})
    pq.write_table(table, source, row_group_size=100)
    data = source.read_bytes()
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 3])):
            behind = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(len(data) - 1200, len(data))
            changed[behind] = rng.randrange(256)
        source.write_bytes(changed)
        try:
            check_file(str(source), "text")
            for part in split_file(str(source), 1000):
                list(read_part(part, "text"))
        except InputError as error:
            assert "a.parquet" in str(error)


# paths


@pytest.mark.parametrize(
    "name",
    ["[2021] 댓글 (1)", "a b  c", "줄\n바꿈", "'; --", '"', "a,b", "{x}", "%s", "~", "*?", "-rf", "댓글", "a" * 200],
    ids=repr,
)
def test_a_file_name_is_taken_as_it_is_spelt(tmp_path, name):
    source = tmp_path / f"{name}.txt"
    source.write_bytes(f"{FIRST}\n".encode() + b"\xff\n" + LAST.encode())
    manifest, texts = build_both(tmp_path, source)
    assert texts == [FIRST, LAST]
    assert manifest["bad_rows"] == [f"{source}, row 2: invalid UTF-8"]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_file_name_in_cp949_is_taken_as_it_is_spelt(tmp_path, suffix):
    """As unpacked from an archive that was made on Windows."""
    source = write_texts(tmp_path / f"plain{suffix}", [FIRST.encode(), b"\xff"])
    name = os.fsencode(tmp_path) + b"/" + "댓글".encode("cp949") + suffix.encode()
    try:
        os.rename(source, name)
    except OSError:
        pytest.skip("the file system takes no such name")
    manifest, texts = build_both(tmp_path, os.fsdecode(name))
    assert texts == [FIRST] and len(manifest["bad_rows"]) == 1


def test_a_directory_without_files_of_comments_is_an_error(tmp_path):
    (tmp_path / "x.txt").mkdir()
    (tmp_path / "x.txt" / "README").write_text("nothing")
    with pytest.raises(InputError, match=r"x\.txt holds no file that can be read"):
        build(tmp_path / "x.txt", tmp_path / "corpus")


@pytest.mark.parametrize("name", ["x.txt", "x.parquet", "x.jsonl.gz"])
def test_a_directory_with_a_name_of_a_file_is_read_as_a_directory(tmp_path, name):
    (tmp_path / name).mkdir()
    write_texts(tmp_path / name / "comments.txt", [FIRST.encode()])
    assert build_both(tmp_path, tmp_path / name)[1] == [FIRST]


@pytest.mark.parametrize("name", ["x.txt", "x.parquet", "x.jsonl.gz"])
def test_a_directory_within_a_directory_is_no_file(tmp_path, name):
    (tmp_path / "in" / name).mkdir(parents=True)
    write_texts(tmp_path / "in" / "a.txt", [FIRST.encode()])
    assert build_both(tmp_path, tmp_path / "in")[1] == [FIRST]


def test_a_symbolic_link_is_the_file_it_points_to(tmp_path):
    source = write_texts(tmp_path / "a.jsonl", [FIRST.encode()])
    os.symlink(source, tmp_path / "link.jsonl")
    assert build_both(tmp_path, tmp_path / "link.jsonl")[1] == [FIRST]


@pytest.mark.parametrize("target", ["loop.txt", "nothing.txt"], ids=["to itself", "to nothing"])
@pytest.mark.parametrize("by", ["file", "directory"])
def test_a_broken_symbolic_link_is_an_error_that_names_it(tmp_path, target, by):
    (tmp_path / "in").mkdir()
    write_texts(tmp_path / "in" / "a.txt", [FIRST.encode()])
    os.symlink(target, tmp_path / "in" / "loop.txt")
    with pytest.raises(InputError, match=r"(no file matches|cannot read) .*loop\.txt"):
        build(tmp_path / "in" / ("loop.txt" if by == "file" else ""), tmp_path / "corpus")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst", ".csv", ".parquet"])
def test_an_unreadable_file_is_an_error_that_names_it(tmp_path, suffix):
    source = write_texts(tmp_path / f"a{suffix}", [FIRST.encode()])
    source.chmod(0)
    with pytest.raises(InputError, match=rf"cannot read .*a{suffix}.*Permission denied"):
        build(source, tmp_path / "corpus")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("by", ["file", "directory", "glob"])
def test_a_named_pipe_does_not_hang(tmp_path, suffix, by):
    (tmp_path / "in").mkdir()
    write_texts(tmp_path / "in" / "a.txt", [FIRST.encode()])
    pipe = tmp_path / "in" / f"pipe{suffix}"
    os.mkfifo(pipe)
    source = {"file": pipe, "directory": tmp_path / "in", "glob": tmp_path / "in" / "*"}[by]
    outcome: list[Any] = []

    def attempt() -> None:
        try:
            outcome.append(build_both(tmp_path, source)[1])
        except InputError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    is_hanging = thread.is_alive()
    while thread.is_alive():  # let it go: a reader that waits for a writer gets one that says nothing
        try:
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # no reader yet
            time.sleep(0.01)
        thread.join(0.05)
    assert not is_hanging
    assert outcome[0] == [FIRST] or str(pipe) in outcome[0]


@pytest.mark.parametrize("source", ["nothing.txt", "*.txt", "nothing/", "nothing/*.parquet", "~/nothing.txt"])
def test_a_source_that_is_not_there_is_an_error_that_names_it(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(repr(source))):
        build(source, tmp_path / "corpus")


@pytest.mark.parametrize("name", ["comments", "a.xlsx", "a.zip", "a.txt.bz2", "a.parquet.gz", "a.gz"])
def test_a_file_of_another_format_is_an_error_that_names_the_known_ones(tmp_path, name):
    (tmp_path / name).write_bytes(FIRST.encode())
    with pytest.raises(InputError, match=rf"{re.escape(name)}: unknown extension; use one of \.txt, .*\.parquet"):
        build(tmp_path / name, tmp_path / "corpus")


# files that change


def plan(sources: Path, output_dir: Path, **options: Any) -> str:
    work_dir = plan_corpus(
        CorpusArguments(sources=[str(sources)], output_dir=str(output_dir), num_workers=1, **options)
    )
    assert work_dir is not None
    return work_dir


@pytest.mark.parametrize("suffix", [".txt", ".jsonl.gz", ".csv", ".parquet"])
def test_a_file_that_is_deleted_before_it_is_read_is_an_error_that_names_it(tmp_path, suffix):
    source = write_texts(tmp_path / f"a{suffix}", [FIRST.encode()])
    work_dir = plan(source, tmp_path / "corpus")
    source.unlink()
    with pytest.raises(InputError, match=rf"a{suffix}.*(No such file|deleted|gone|changed)"):
        work_through(work_dir)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "shorter": lambda data: data[: data.rfind(b"\n", 0, -1) + 1],
    "longer": lambda data: data + data,
    "another": lambda data: data.replace(b"1", b"2"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part_mb", [1, 64])
def test_a_file_that_changes_before_it_is_read_is_an_error_that_names_it(tmp_path, change, part_mb):
    lines = [f"{i}번째로 쓴 댓글입니다 {'가' * 60}" for i in range(8000)]
    source = write_bytes(tmp_path / "a.txt", ("\n".join(lines) + "\n").encode())
    work_dir = plan(source, tmp_path / "corpus", part_mb=part_mb)
    os.utime(source, ns=(0, 0))
    source.write_bytes(CHANGES[change](source.read_bytes()))
    with pytest.raises(InputError, match=r"a\.txt.* changed"):
        work_through(work_dir)


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_the_last_run_is_refused(tmp_path, is_finished, change):
    source = write_bytes(tmp_path / "a.txt", f"{FIRST}\n{LAST}\n1번 댓글은 여기에 있습니다\n".encode())
    work_dir = plan(source, tmp_path / "corpus")
    if is_finished:
        work_through(work_dir)
    source.write_bytes(CHANGES[change](source.read_bytes()))
    os.utime(source, ns=(1, 1))
    with pytest.raises(InputError, match=r"holds an? .*corpus of something else: .*a\.txt has changed; give another"):
        build(source, tmp_path / "corpus")


# schemas


def test_rows_with_other_columns_cost_nothing(tmp_path):
    rows: list[dict[str, Any]] = [
        {"text": "열이 하나뿐인 댓글입니다"},
        {"thread": 1, "text": "글 번호가 수인 댓글입니다"},
        {"thread": "1", "text": "글 번호가 글인 댓글입니다", "likes": {"n": [1]}},
        {"thread": None, "text": "글 번호가 없는 댓글입니다", "comment_id": 7, "parent_id": "x"},
    ]
    manifest, texts = build_both(tmp_path, write_bytes(tmp_path / "a.jsonl", json_lines(*rows)))
    assert texts == [row["text"] for row in rows]
    assert [row["thread"] for row in rows_of(tmp_path / "corpus")] == [None, "1", "1", None]
    assert manifest["columns"] == ["text", "thread", "comment_id", "parent_id"]


def test_files_with_other_columns_and_types_cost_nothing(tmp_path):
    tables = [
        pa.table({"text": ["열이 하나뿐인 댓글입니다"]}),
        pa.table({"thread": [1], "text": ["글 번호가 수인 댓글입니다"]}),
        pa.table({"text": ["글 번호가 글인 댓글입니다"], "thread": ["1"], "n": [[1]]}),
        pa.table({"text": pa.array(["큰 문자열인 댓글입니다"], pa.large_string()), "thread": [1.5]}),
        pa.table({"text": pa.array(["사전으로 쓴 댓글입니다"]).dictionary_encode(), "thread": [b"1"]}),
        pa.table({"text": ["글 번호가 없는 댓글입니다"], "thread": pa.nulls(1)}),
        pa.table({"text": ["글 번호가 날짜인 댓글입니다"], "thread": pa.array([0], pa.timestamp("us"))}),
    ]
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet")
    _, texts = build_both(tmp_path, tmp_path)
    assert texts == [table["text"][0].as_py() for table in tables]
    assert [row["thread"] for row in rows_of(tmp_path / "corpus")[:3]] == [None, "1", "1"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2]),
        pa.array([1.5, None]),
        pa.nulls(2),
        pa.array([{"text": FIRST}, None]),
        pa.array([[FIRST], []]),
        pa.array([True, False]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_file_whose_text_is_something_else_is_counted(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": [FIRST]}), tmp_path / "a.parquet")
    manifest, texts = build_both(tmp_path, tmp_path)
    assert texts == [FIRST] and manifest["dropped"]["no text"] == 2
    assert manifest["bad_rows"] == [f"{tmp_path}/b.parquet, row {i}: no text" for i in (1, 2)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_file_without_the_column_is_an_error_that_names_it(tmp_path, suffix):
    write_rows(tmp_path / "a.jsonl", [{"text": FIRST}])
    source = write_rows(tmp_path / f"b{suffix}", [{"본문": LAST, "likes": 3}])
    message = rf"{re.escape(str(source))} has no column 'text'; it has '본문', 'likes': give one as --text_column"
    with pytest.raises(InputError, match=message):
        build(tmp_path, tmp_path / "corpus")


@pytest.mark.parametrize("row", ["{}", '{"meta": "쓴 날 2021-03-09"}'])
def test_a_first_row_without_the_column_costs_itself_where_others_have_it(tmp_path, row):
    source = write_bytes(tmp_path / "a.jsonl", json_lines(row, {"text": FIRST}, {"text": LAST}))
    manifest, texts = build_both(tmp_path, source)
    assert texts == [FIRST, LAST] and manifest["bad_rows"] == [f"{source}, row 1: no text"]


# threads


def ids(text: str, comment_id: Any = None, parent_id: Any = None, thread: Any = "글") -> dict[str, Any]:
    return {"text": text, "thread": thread, "comment_id": comment_id, "parent_id": parent_id}


def kept_ids(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> list[str | None]:
    manifest, _ = build_both(tmp_path, write_bytes(tmp_path / "a.jsonl", json_lines(*rows)), **options)
    assert len(rows) == manifest["num_read"]
    return [row["comment_id"] for row in rows_of(tmp_path / "corpus")]


LONG = "{}번째로 쓴 긴 댓글입니다"


def test_comments_that_are_each_others_parent_are_kept_once(tmp_path):
    rows = [ids(LONG.format(1), "a", "b"), ids(LONG.format(2), "b", "a"), ids("짧", "c", "d"), ids("짧", "d", "c")]
    assert kept_ids(tmp_path, rows) == ["a", "b"]


def test_a_ring_of_short_comments_is_kept_for_a_reply_to_it(tmp_path):
    rows = [ids("짧", "a", "c"), ids("짧", "b", "a"), ids("짧", "c", "b"), ids(LONG.format(1), "d", "c")]
    assert kept_ids(tmp_path, rows) == ["a", "b", "c", "d"]


def test_a_reply_to_itself_is_no_reply(tmp_path):
    rows = [ids("짧", "a", "a"), ids(LONG.format(1), "b", "b"), ids(LONG.format(1), "c", "c")]
    assert kept_ids(tmp_path, rows) == ["b"]


def test_a_reply_to_nothing_is_kept(tmp_path):
    rows = [ids(LONG.format(1), "a", "없음"), ids(LONG.format(2), None, "없음"), ids(LONG.format(3), "b", "")]
    assert kept_ids(tmp_path, rows) == ["a", None, "b"]


def test_a_parent_of_another_thread_is_none(tmp_path):
    rows = [ids("짧", "a", thread="다른 글"), ids("짧", "a"), ids(LONG.format(1), "b", "a")]
    assert kept_ids(tmp_path, rows) == ["a", "b"]
    assert {row["thread"] for row in rows_of(tmp_path / "corpus")} == {"글"}


def test_of_comments_with_one_id_the_first_is_kept_for_a_reply(tmp_path):
    rows = [ids("짧1", "a"), ids("짧2", "a"), ids("짧3", "a"), ids(LONG.format(1), "b", "a")]
    assert kept_ids(tmp_path, rows) == ["a", "b"]
    assert texts_of(tmp_path / "corpus")[0] == "짧1"


def test_no_id_of_none_or_nothing_is_a_parent(tmp_path):
    rows = [ids("짧1", ""), ids("짧2", None), ids(LONG.format(1), "b", ""), ids(LONG.format(2), "c", None)]
    assert kept_ids(tmp_path, rows) == ["b", "c"]


@pytest.mark.parametrize("comment_id", ["a\0b", "\t\n", "'; DROP TABLE ids; --", "\ud800", LONG_ID, 7, -1.5, True])
def test_any_id_finds_its_reply(tmp_path, comment_id):
    rows = [ids("짧", comment_id), ids(LONG.format(1), "b", comment_id), ids("짧", "c")]
    kept = kept_ids(tmp_path, rows)
    assert len(kept) == 2 and kept[1] == "b"
    assert rows_of(tmp_path / "corpus")[1]["parent_id"] == kept[0]


def test_ids_that_begin_alike_are_not_alike(tmp_path):
    rows = [ids("짧", "a\0b"), ids("짧", "a"), ids("짧", LONG_ID), ids(LONG.format(1), "z", LONG_ID + "x")]
    assert kept_ids(tmp_path, rows) == ["z"]


def test_text_and_thread_are_not_confused_by_nul(tmp_path):
    rows = [ids(f"{FIRST}\0x", "a", thread="y"), ids(FIRST, "b", thread="x\0y")]
    assert kept_ids(tmp_path, rows, rules="v2022", dedup="thread") == ["a", "b"]


def test_empty_ids_of_a_csv_are_no_ids(tmp_path):
    source = write_bytes(tmp_path / "a.csv", f"text,comment_id,parent_id\n짧,,\n{FIRST},,\n{LAST},,\n".encode())
    manifest, texts = build_both(tmp_path, source)
    assert texts == [FIRST, LAST] and manifest["num_kept_for_replies"] == 0
    assert all(row == {"text": row["text"]} for row in rows_of(tmp_path / "corpus"))


# through processes


def test_a_directory_of_hostile_files_is_built_by_processes(tmp_path):
    """Good rows beside all kinds of bad ones, in every format at once."""
    directory = tmp_path / "댓글 [1]"
    directory.mkdir()
    expected = []
    for i, suffix in enumerate([*FORMATS, ".txt.gz", ".jsonl.zst", ".csv.gz", ".tsv.zst"]):
        texts = [f"{i}번 파일의 {j}번째 댓글" for j in range(50)]
        rows = [text.encode() for text in texts]
        write_texts(directory / f"{i:02d}{suffix}", [*rows[:25], b"\xff\xfe", *rows[25:], FIRST.encode()])
        expected += texts if i else [*texts, FIRST]
    write_bytes(directory / "98.jsonl", json_lines(*(row for row, _ in ROWS.values())))
    write_bytes(directory / "99.txt", b"x" * (5 << 20) + b"\n" + LAST.encode())
    manifest = build_corpus(str(directory), tmp_path / "corpus", num_workers=2, part_mb=1)
    require_sums(manifest)
    texts = texts_of(tmp_path / "corpus")
    assert texts[: len(expected)] == expected and texts[-1] == LAST
    assert manifest["dropped"]["invalid UTF-8"] == 10 + 3
    assert manifest == build_corpus(str(directory), tmp_path / "corpus", num_workers=1)


def test_an_error_of_a_process_names_the_file_and_the_cure(tmp_path):
    source = write_texts(tmp_path / "a.txt.gz", [f"{i}번째로 쓴 댓글입니다".encode() for i in range(200_000)])
    source.write_bytes(source.read_bytes()[:-6])
    with pytest.raises(InputError, match=r"cannot read .*a\.txt\.gz after row \d+: .*--skip_damaged true"):
        build_corpus(str(source), tmp_path / "corpus", num_workers=1)
    manifest = build_corpus(str(source), tmp_path / "corpus", num_workers=1, skip_damaged=True)
    assert manifest["num_kept"] > 190_000 and len(manifest["damaged_files"]) == 1


# time


def lines_of(line: str | bytes, num_bytes: int) -> bytes:
    data = line if isinstance(line, bytes) else line.encode()
    return (data + b"\n") * max(1, num_bytes // (len(data) + 1))


def one_line(unit: str, num_bytes: int) -> bytes:
    return (unit * (num_bytes // len(unit.encode()))).encode()


def unclosed_quotes(num_bytes: int) -> bytes:
    block = b'"' + b"x\n" * 1100
    return b"text\n" + block * max(1, num_bytes // len(block))


#: Bytes by their number; the number of each is about 20 ms of work.
GROWING: dict[str, tuple[str, int, Callable[[int], bytes]]] = {
    "one long line": (".txt", 8 << 20, partial(one_line, "댓글 ")),
    "one long line of JSON": (".jsonl", 8 << 20, partial(one_line, "[")),
    "empty lines": (".txt", 10_000, partial(lines_of, "")),
    "equal lines": (".txt", 400_000, partial(lines_of, FIRST)),
    "invalid UTF-8": (".txt", 60_000, partial(lines_of, b"\xff")),
    "invalid JSON": (".jsonl", 100_000, partial(lines_of, '{"text"')),
    "nested JSON": (".jsonl", 200_000, partial(lines_of, "[" * 900)),
    "objects without text": (".jsonl", 60_000, lambda size: b'{"text": ""}\n' + lines_of("{}", size)),
    "quotation marks, each unclosed": (".csv", 40_000, lambda size: b"text\n" + lines_of('"', size)),
    "quotation marks, each alone": (".csv", 60_000, unclosed_quotes),
    "fields that are not closed": (".csv", 16_000, lambda size: b"text,n\n" + lines_of('a"b,"x', size)),
    "a quoted field of many lines": (".csv", 60_000, lambda size: b'text\n"' + lines_of("x", size)),
    "too many fields": (".csv", 1_000_000, lambda size: b"text\n" + lines_of("," * 5000, size)),
    "one letter": (".txt", 50_000, partial(one_line, "a")),
    "one syllable": (".txt", 150_000, partial(one_line, "가")),
    "units of two": (".txt", 240_000, partial(one_line, "ㅋㅎ")),
    "units of ten": (".txt", 240_000, partial(one_line, "가나다라마바사아자차")),
    "units of fourteen": (".txt", 240_000, partial(one_line, "가나다라마바사아자차카타파하")),
    "spaces": (".txt", 30_000, partial(one_line, " ")),
    "odd spaces": (".txt", 120_000, partial(one_line, "\u3000\x85")),
    "combining marks of one class": (".txt", 60_000, partial(one_line, "\u0300")),
    "combining marks of two classes": (".txt", 8_000, partial(one_line, "\u0315\u0300")),
    "conjoining jamo": (".txt", 60_000, partial(one_line, "\u1161")),
    "full-width letters": (".txt", 40_000, partial(one_line, "Ａ")),
    "zero-width characters": (".txt", 120_000, partial(one_line, "\u200b")),
    "joined emoji": (".txt", 200_000, partial(one_line, "😀\u200d")),
    "flag tags": (".txt", 100_000, partial(one_line, "🏴\U000e0067")),
    "ANSI escapes": (".txt", 60_000, partial(one_line, "\x1b[0;")),
    "ampersands": (".txt", 60_000, partial(one_line, "&")),
    "entities without an end": (".txt", 60_000, partial(one_line, "&#1")),
    "schemes": (".txt", 240_000, partial(one_line, "http://")),
    "dots": (".txt", 60_000, partial(one_line, "a.")),
    "domains": (".txt", 60_000, partial(one_line, "www.a.com.")),
    "Hangul paths": (".txt", 150_000, partial(one_line, "/가")),
    "masks": (".txt", 120_000, partial(one_line, "○O")),
    "digits": (".txt", 40_000, partial(one_line, "1")),
    "digits and hyphens": (".txt", 40_000, partial(one_line, "010-")),
    "digits and spaces": (".txt", 40_000, partial(one_line, "4111 ")),
    "at signs": (".txt", 40_000, partial(one_line, "a@a.")),
    "banks": (".txt", 100_000, partial(one_line, "국민은행 1")),
    "lone surrogates": (".jsonl", 160_000, lambda size: json_lines({"text": "\ud800" * (size // 6)})),
    "long ids": (".jsonl", 250_000, lambda size: json_lines(ids(FIRST, "i" * (size // 2), "p" * (size // 2)))),
}


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Give the seconds of processor time since the start; without garbage collection, which costs 60 ms at a time."""
    gc.disable()
    start = time.process_time()
    try:
        yield lambda: time.process_time() - start
    finally:
        gc.enable()


def seconds_to_clean(source: Path, output_dir: Path) -> float:
    with stopwatch() as seconds:
        work_dir = plan(source, output_dir)
        for task in range(count_tasks(clean_part, work_dir)):
            clean_part(work_dir, task)
        return seconds()


@pytest.mark.parametrize("kind", GROWING)
def test_four_times_the_hostile_input_takes_at_most_five_times_as_long(tmp_path, kind):
    suffix, num_bytes, write = GROWING[kind]
    small = write_bytes(tmp_path / f"small{suffix}", write(num_bytes))
    large = write_bytes(tmp_path / f"large{suffix}", write(4 * num_bytes))
    seconds_to_clean(small, tmp_path / "warm")
    ratios = []
    for attempt in range(5):  # others run on this machine too
        before, after = (seconds_to_clean(path, tmp_path / f"{path.stem}{attempt}") for path in (small, large))
        ratios.append(after / before)
        if min(ratios) <= 5:
            return
    raise AssertionError(f"time(4n) / time(n) is {min(ratios):.1f}")


def seconds_to_drop(rows: list[dict[str, Any]], directory: Path) -> float:
    directory.mkdir()
    work_dir = plan(write_bytes(directory / "a.jsonl", json_lines(*rows)), directory / "corpus")
    clean_part(work_dir, 0)
    with stopwatch() as seconds:
        drop_duplicates(work_dir)
        return seconds()


THREADS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "a chain of short replies": lambda n: (
        [ids("짧", str(i), str(i - 1)) for i in range(n)] + [ids(LAST, "z", str(n - 1))]
    ),
    "a ring": lambda n: [ids(LONG.format(i), str(i), str((i + 1) % n)) for i in range(n)],
    "one parent": lambda n: [ids("짧", "a"), *(ids(LONG.format(i), str(i), "a") for i in range(n))],
    "one id": lambda n: [*(ids("짧", "a") for i in range(n)), ids(LAST, "z", "a")],
}


@pytest.mark.parametrize("kind", THREADS)
def test_four_times_the_hostile_threads_take_at_most_five_times_as_long(tmp_path, kind):
    n = 20_000
    seconds_to_drop(THREADS[kind](10), tmp_path / "warm")
    ratios = []
    for attempt in range(3):
        before, after = (seconds_to_drop(THREADS[kind](size), tmp_path / f"{attempt}-{size}") for size in (n, 4 * n))
        ratios.append(after / before)
        if min(ratios) <= 5:
            return
    raise AssertionError(f"time(4n) / time(n) is {min(ratios):.1f}")


@pytest.mark.slow
def test_a_chain_of_ten_thousand_short_replies_takes_less_than_a_minute(tmp_path):
    assert seconds_to_drop(THREADS["a chain of short replies"](10_000), tmp_path / "chain") < 60


# memory

MEASURE = """
import json, re, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # a failure is no danger to others
sys.path.insert(0, sys.argv[1])
from test_hostile import build
for source in sys.argv[2:]:
    manifest = build(source, Path(f"{source}.corpus"))
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10
    print(json.dumps({"peak_mb": peak, "manifest": manifest}))
"""


def measure(*sources: Path) -> list[tuple[int, dict[str, Any]]]:
    """Build a corpus of each source, in one process; return its peak memory in MiB so far, and the manifest."""
    if sys.platform != "linux":
        pytest.skip("the peak of a process is read from /proc")
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), *map(str, sources)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-2000:]
    reports = map(json.loads, finished.stdout.splitlines())
    return [(report["peak_mb"], report["manifest"]) for report in reports]


def write_line(path: Path, *, num_mb: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else open(path, "wb") as file:
        file.write(f"{FIRST}\n".encode())
        for _ in range(num_mb):
            file.write(b"a" * (1 << 20))
        file.write(f"\n{LAST}\n".encode())


def write_long_texts(path: Path, *, num_texts: int, num_chars: int, alphabet: int = 11_172) -> None:
    """Write good rows about texts without spaces, of three bytes a character, no two alike."""
    letters = "".join(chr(0xAC00 + i * 37 % alphabet) for i in range(num_chars))
    texts = (f"{i}{letters}" for i in range(num_texts))
    if path.suffix == ".parquet":
        table = pa.table({"text": [FIRST, *texts, LAST]})
        # a page is what a reader must hold: else one of a thousand texts
        pq.write_table(table, path, row_group_size=num_texts + 2, use_dictionary=False, write_batch_size=1)
    else:
        header = "text\n" if path.suffix in (".csv", ".tsv") else ""
        with open(path, "w", encoding="utf-8") as file:
            file.writelines([f"{header}{FIRST}\n", *(f"{text}\n" for text in texts), f"{LAST}\n"])


def write_repeated_text(path: Path, *, num_rows: int) -> None:
    """Write a dictionary of one long text and many rows of it: a small file of gigabytes."""
    text = "".join(chr(0xAC00 + i * 37 % 11_172) for i in range(300_000))
    column = pa.DictionaryArray.from_arrays(pa.array([0, *[1] * num_rows, 2], pa.int32()), [FIRST, text, LAST])
    pq.write_table(pa.table({"text": column}), path)


def write_unclosed(path: Path, *, num_lines: int) -> None:
    with open(path, "wb") as file:
        file.write(f'text\n{FIRST}\n"unclosed\n'.encode())
        file.writelines([b"x" * 900_000 + b"\n"] * num_lines)
        file.write(f"{LAST}\n".encode())


def write_equal(path: Path, *, num_rows: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else open(path, "wb") as file:
        block = f"{FIRST}\n".encode() * 1000
        file.writelines([block] * (num_rows // 1000))
        file.write(f"{LAST}\n".encode())


def write_short(path: Path, *, num_rows: int, row: bytes) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(f"{FIRST}\n".encode())
        file.writelines([(row + b"\n") * 1000] * (num_rows // 1000))
        file.write(f"{LAST}\n".encode())


#: Files that would fill the memory of a reader that trusts them, with two good comments in each.
HEAVY: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a line of 50 MB": (".txt", partial(write_line, num_mb=48)),
    "a bomb of one line": (".txt.gz", partial(write_line, num_mb=64)),
    "a bomb of short lines": (".txt.gz", partial(write_short, num_rows=1_000_000, row=b"a")),
    "a bomb of empty lines": (".txt.gz", partial(write_short, num_rows=300_000, row=b"")),
    "a million equal rows": (".txt", partial(write_equal, num_rows=1_000_000)),
    "long texts": (".tsv", partial(write_long_texts, num_texts=60, num_chars=300_000)),
    "a quotation mark before long lines": (".csv", partial(write_unclosed, num_lines=150)),
    "texts of a million characters": (".parquet", partial(write_long_texts, num_texts=4, num_chars=1_000_000)),
    "texts of one letter": (".txt", partial(write_long_texts, num_texts=6, num_chars=300_000, alphabet=1)),
    "a million times one letter": (
        ".parquet",
        partial(write_long_texts, num_texts=4, num_chars=1_000_000, alphabet=1),
    ),
}
HEAVIER: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a bomb of a dictionary": (".parquet", partial(write_repeated_text, num_rows=1000)),
    "a bomb of 1 GiB in one line": (".txt.gz", partial(write_line, num_mb=1024)),
    "a bomb of 64 million short lines": (".txt.gz", partial(write_short, num_rows=64_000_000, row=b"a")),
    "20 million equal rows": (".txt.gz", partial(write_equal, num_rows=20_000_000)),
    "100 texts of a million characters": (".parquet", partial(write_long_texts, num_texts=100, num_chars=1_000_000)),
    "1000 long texts": (".tsv", partial(write_long_texts, num_texts=1000, num_chars=300_000)),
    "100 times one letter": (".parquet", partial(write_long_texts, num_texts=100, num_chars=1_000_000, alphabet=1)),
}


def test_memory_does_not_grow_with_hostile_input(tmp_path):
    sources = [tmp_path / f"{kind}{suffix}" for kind, (suffix, _) in HEAVY.items()]
    for source, (_, write) in zip(sources, HEAVY.values(), strict=True):
        write(source)
    peaks = {}
    for source, (kind, (peak_mb, manifest)) in zip(sources, zip(HEAVY, measure(*sources), strict=True), strict=True):
        require_sums(manifest)
        texts = texts_of(Path(f"{source}.corpus"))
        assert (texts[0], texts[-1]) == (FIRST, LAST), kind
        peaks[kind] = peak_mb
    assert max(peaks.values()) <= MEMORY_MB, ", ".join(f"{kind}: {peak}" for kind, peak in peaks.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEAVIER)
def test_memory_does_not_grow_with_more_hostile_input(tmp_path, kind):
    suffix, write = HEAVIER[kind]
    write(tmp_path / f"a{suffix}")
    ((peak_mb, manifest),) = measure(tmp_path / f"a{suffix}")
    require_sums(manifest)
    texts = texts_of(tmp_path / f"a{suffix}.corpus")
    assert (texts[0], texts[-1]) == (FIRST, LAST)
    assert peak_mb <= MEMORY_MB


# the reader of the trainer


@pytest.mark.parametrize("suffix", [*FORMATS, ".txt.gz", ".jsonl.zst"])
def test_the_reader_gives_the_same_rows_as_a_corpus(tmp_path, suffix):
    texts = [f"{i}번째로 쓴 댓글입니다" for i in range(5000)]
    rows = [text.encode() for text in texts]
    rows[10] = rows[4001] = rows[4999] = b"\xff"
    source = write_texts(tmp_path / f"a{suffix}", rows)
    reader = CommentReader(str(source))
    read = [comment.text for batch in reader for comment in batch]
    manifest, kept = build_both(tmp_path, source)
    assert read == kept == [text for i, text in enumerate(texts) if i not in (10, 4001, 4999)]
    assert reader.counts["invalid UTF-8"] == manifest["dropped"]["invalid UTF-8"] == 3


def test_a_bad_column_of_utf8_is_read_by_both(tmp_path):
    pq.write_table(pa.table({"text": utf8_column([FIRST.encode(), b"\xff"])}), tmp_path / "a.parquet")
    assert [row.text for batch in CommentReader(str(tmp_path)) for row in batch] == [FIRST]
