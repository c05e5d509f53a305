"""Readers of local files: one result from every format, in any parts, and a bad row costs itself."""

import gzip
import json
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_comments import TEXTS, kind_of, read, utf8_column, warnings_of, write_bytes, write_rows, write_texts

from kcelectra.corpus.comments import Comment
from kcelectra.corpus.formats import FORMATS, check_file, format_of, read_part, split_file
from kcelectra.corpus.lines import COMPRESSIONS, MAX_LINE_BYTES, MAX_QUOTED_LINES
from kcelectra.corpus.parquet import MAX_BATCH_BYTES
from kcelectra.corpus.rows import READ_BATCH_SIZE, READ_BYTES, Part, UnreadableFile
from kcelectra.errors import InputError

SUFFIXES = [f"{kind}{more}" for kind in FORMATS for more in ("", *COMPRESSIONS) if not (more and kind == ".parquet")]
SPLITTABLE = (".txt", ".jsonl", ".ndjson")
TOO_LONG = "a line of more than 1 MiB"
Outcome = tuple[list[tuple], list[tuple[int, str]]]


def read_parts(parts: list[Part], text_column: str = "text") -> Outcome:
    """Return the good rows of parts, and the bad ones by number through all of them, from 1."""
    good: list[tuple] = []
    bad: list[tuple[int, str]] = []
    num_rows = 0
    for part in parts:
        for rows in read_part(part, text_column):
            names = (text_column, "thread", "comment_id", "parent_id")
            columns = [rows.columns.get(name) or [None] * (len(rows) - len(rows.bad)) for name in names]
            good += zip(*columns, strict=True)
            bad += [(num_rows + number + 1, reason) for number, reason in rows.bad]
            num_rows += len(rows)
    return good, bad


def read_file(file: Path) -> Outcome:
    return read_parts([Part(str(file))])


def texts_of(file: Path) -> list[str]:
    good, bad = read_file(file)
    assert bad == []
    return [row[0] for row in good]


def write(path: Path, text: str | bytes) -> Path:
    return write_bytes(path, text.encode() if isinstance(text, str) else text)


# every format and compression


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_and_compression_gives_the_same_comments(tmp_path, suffix):
    rows: list[dict[str, Any]] = [
        {"text": f"{text}{i}", "thread": f"글-{i // 9}", "comment_id": f"{i}", "parent_id": f"{i - 1}"}
        for i, text in enumerate(TEXTS * 1800)
    ]
    comments, reader = read(write_rows(tmp_path / f"comments{suffix}", rows))
    assert len(comments) > 2 * READ_BATCH_SIZE
    if suffix.startswith(".txt"):
        assert comments == [Comment(row["text"]) for row in rows]
    else:
        assert comments == [Comment(**row) for row in rows]
    assert reader.counts == {"comments": len(rows)}


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if not suffix.startswith(".txt")])
def test_an_id_that_is_not_there_is_none_in_every_format(tmp_path, suffix):
    rows = [
        {"text": "가", "thread": "글", "comment_id": "1", "parent_id": None},
        {"text": "나", "thread": None, "comment_id": None, "parent_id": None},
        {"text": "다", "thread": "글", "comment_id": "2", "parent_id": "1"},
    ]
    assert read(write_rows(tmp_path / f"comments{suffix}", rows))[0] == [Comment(**row) for row in rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["댓글", "a.b", "comments.parquet", "x.gz", "..", "한 글"])
def test_the_format_is_told_from_the_end_of_the_name(name, suffix):
    assert format_of(f"dir.txt/{name}{suffix}") == f".{suffix.split('.')[1]}"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_good_rows_passes_its_check(tmp_path, suffix):
    check_file(str(write_texts(tmp_path / f"a{suffix}", [b"good"])), "text")


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".parquet"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_utf16_file_is_an_error_that_says_how_to_convert_it(tmp_path, suffix, encoding):
    source = write(tmp_path / f"a{suffix}", "\ufefftext\n댓글\n".encode(encoding))
    with pytest.raises(InputError, match=r"a\..* is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"):
        check_file(str(source), "text")


@pytest.mark.parametrize("compress", [gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_a_stream_of_several_members_is_read_to_its_end(tmp_path, compress):
    members = [b"\xef", b"", b"\xbb\xbf", "첫 댓글\n둘".encode(), b"", "째 댓글\n셋째".encode()]
    source = tmp_path / ("a.txt.gz" if compress is gzip.compress else "a.txt.zst")
    source.write_bytes(b"".join(map(compress, members)))
    assert texts_of(source) == ["첫 댓글", "둘째 댓글", "셋째"]


# lines


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".parquet"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["end", "no end"])
def test_byte_order_marks_and_line_ends_are_no_part_of_a_comment(tmp_path, suffix, mark, line_end, last):
    lines = write_texts(
        tmp_path / f"plain{kind_of(Path(f'a{suffix}'))}", ["하나".encode(), "둘".encode()]
    ).read_bytes()
    lines = lines.removesuffix(b"\n") + b"\n" * last
    source = write(tmp_path / f"a{suffix}", mark + lines.replace(b"\n", line_end))
    assert texts_of(source) == ["하나", "둘"]


def test_only_the_first_byte_order_mark_of_a_file_is_one(tmp_path):
    source = write(tmp_path / "a.txt", "\ufeff\ufeff하나\n\ufeff둘\n")
    assert texts_of(source) == ["\ufeff하나", "\ufeff둘"]
    assert [row[0] for row in read_parts(split_file(str(source), 1))[0]] == ["\ufeff하나", "\ufeff둘"]


@pytest.mark.parametrize("break_", ["\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029", "\r", "\0"])
@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl"])
def test_nothing_but_a_line_feed_ends_a_line(tmp_path, break_, suffix):
    text = f"앞{break_}뒤"
    source = write_rows(tmp_path / f"a{suffix}", [{"text": text}, {"text": "둘"}])
    assert texts_of(source) == [text, "둘"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\r\n", [""]),
        (b"\n\n\n", ["", "", ""]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n", [""]),
        (b" ", [" "]),
        (b"a", ["a"]),
        (b"\0\n", ["\0"]),
    ],
)
def test_the_smallest_text_files(tmp_path, data, expected):
    assert texts_of(write(tmp_path / "a.txt", data)) == expected


@pytest.mark.parametrize("before", [0, 1, 700_000, READ_BYTES - 2, READ_BYTES - 1, READ_BYTES, 3 * READ_BYTES // 2])
@pytest.mark.parametrize("excess", [0, 1, READ_BYTES // 2, READ_BYTES, 5 * READ_BYTES])
def test_a_line_is_too_long_by_its_length_wherever_it_stands(tmp_path, before, excess):
    lines = [b"a" * min(before, 900_000), b"b" * (MAX_LINE_BYTES + excess), "끝".encode()]
    if before > len(lines[0]):
        lines.insert(0, b"c" * (before - len(lines[0]) - 1))
    good, bad = read_file(write(tmp_path / "a.txt", b"\n".join(lines)))
    assert bad == ([(len(lines) - 1, TOO_LONG)] if excess else [])
    kept = lines if excess == 0 else [*lines[:-2], lines[-1]]
    assert [len(row[0].encode()) for row in good] == list(map(len, kept))


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b""], ids=["CRLF", "LF", "no end"])
def test_the_longest_line_is_kept_with_any_line_end(tmp_path, end):
    good, bad = read_file(write(tmp_path / "a.txt", b"a\n" + b"b" * (MAX_LINE_BYTES - 2) + end))
    assert ([len(row[0]) for row in good], bad) == ([1, MAX_LINE_BYTES - 2], [])


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst", ".jsonl", ".csv", ".tsv"])
def test_a_line_of_50_mb_costs_itself_only_and_no_memory(tmp_path, suffix):
    line = b"x" * 50_000_000
    source = write_texts(tmp_path / f"a{suffix}", ["하나".encode(), line, "둘".encode(), "셋".encode()])
    del line
    tracemalloc.start()
    try:
        good, bad = read_file(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ([row[0] for row in good], bad) == (["하나", "둘", "셋"], [(2, TOO_LONG)])
    assert peak < 12 << 20


@pytest.mark.parametrize("last", [True, False], ids=["last line", "with an end"])
def test_a_too_long_line_that_is_all_of_the_file_is_one_bad_row(tmp_path, last):
    data = b"x" * (3 * READ_BYTES) + b"\n" * (not last)
    assert read_file(write(tmp_path / "a.txt", data)) == ([], [(1, TOO_LONG)])


def test_neighbouring_too_long_lines_are_counted_one_by_one(tmp_path):
    lines = [b"x" * (MAX_LINE_BYTES + 10), b"y" * (3 * READ_BYTES), b"ok", b"z" * (2 * READ_BYTES + 1)]
    good, bad = read_file(write(tmp_path / "a.txt", b"\n".join(lines)))
    assert ([row[0] for row in good], bad) == (["ok"], [(1, TOO_LONG), (2, TOO_LONG), (4, TOO_LONG)])


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".parquet"])
def test_bad_rows_are_numbered_through_the_blocks_of_a_file(tmp_path, suffix):
    texts = [f"댓글 {i} {'가' * 90}".encode() for i in range(12_000)]
    bad = [0, 1, 3_999, 4_000, 4_001, 7_777, 11_999]
    for number in bad:
        texts[number] = b"\xff" + texts[number][1:]
    assert sum(map(len, texts)) > 3 * READ_BYTES
    source = write_texts(tmp_path / f"a{suffix}", texts)
    good, named = read_file(source)
    assert [row[0] for row in good] == [text.decode() for i, text in enumerate(texts) if i not in bad]
    assert named == [(number + 1, "invalid UTF-8") for number in bad]


# parts


LINES = [
    "",
    "a",
    "댓글",
    "ㅋㅋㅋ 👨\u200d👩\u200d👧",
    "\ufeff",
    "길고 긴 댓글 " * 30,
]
JSON_LINES = [json.dumps({"text": line, "comment_id": i}, ensure_ascii=False) for i, line in enumerate(LINES)]


def require_parts_to_be_the_file(file: Path, part_bytes: int) -> None:
    parts = split_file(str(file), part_bytes)
    assert parts[0].start == 0 and all(part.file == str(file) for part in parts)
    if len(parts) > 1:
        edges = [(part.start, part.stop) for part in parts]
        assert edges[-1][1] == file.stat().st_size
        assert [stop for _, stop in edges[:-1]] == [start for start, _ in edges[1:]]
        data = file.read_bytes()
        assert all(data[start - 1 : start] == b"\n" for start, _ in edges[1:])
    assert sum(part.num_bytes for part in parts) == file.stat().st_size
    assert read_parts(parts) == read_file(file)


@pytest.mark.parametrize("suffix", SPLITTABLE)
@given(data=st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_parts_of_a_file_are_the_file(tmp_path, suffix, data):
    line = st.sampled_from(LINES if suffix == ".txt" else JSON_LINES).map(str.encode)
    if suffix == ".txt":
        line |= st.binary(max_size=12).map(lambda drawn: drawn.replace(b"\n", b""))
    lines = data.draw(st.lists(line, max_size=25))
    line_end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    source = tmp_path / f"a{suffix}"
    source.write_bytes(line_end.join(lines) + data.draw(st.sampled_from([b"", line_end])))
    require_parts_to_be_the_file(source, data.draw(st.integers(1, max(1, source.stat().st_size + 2))))


@pytest.mark.parametrize("suffix", SPLITTABLE)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["end", "no end"])
def test_parts_of_any_size_are_the_file(tmp_path, suffix, line_end, last):
    lines = LINES if suffix == ".txt" else JSON_LINES
    source = write(tmp_path / f"a{suffix}", "\ufeff" + line_end.join(lines) + line_end * last)
    for part_bytes in range(1, source.stat().st_size + 2):  # so some parts end at, before and behind each line end
        require_parts_to_be_the_file(source, part_bytes)


@pytest.mark.parametrize("part_bytes", [1_000_003, READ_BYTES - 1, READ_BYTES, READ_BYTES + 1, 4 * READ_BYTES])
def test_long_lines_that_span_parts_and_blocks_are_read_once(tmp_path, part_bytes):
    lines = [b"a" * 900_000, b"b" * (3 * READ_BYTES), "짧은 댓글".encode(), b"c" * (READ_BYTES // 2), b"\xff"]
    lines += [b"d" * 900_000, b"e" * (MAX_LINE_BYTES + READ_BYTES // 2), b"f", b"g" * (MAX_LINE_BYTES - 1)]
    lines += [b"h" * (9 * READ_BYTES), b"i"]
    source = write(tmp_path / "a.txt", b"\n".join(lines))
    require_parts_to_be_the_file(source, part_bytes)


@pytest.mark.parametrize("num_groups", [1, 2, 7])
def test_the_parts_of_a_parquet_file_are_the_file(tmp_path, num_groups):
    texts = [f"댓글 {i}".encode() if i % 50 else b"\xff" for i in range(700)]
    table = pa.table({"text": utf8_column(texts), "comment_id": [str(i) for i in range(700)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700 // num_groups)
    whole = read_file(tmp_path / "a.parquet")
    assert len(whole[0]) == 686 and whole[1] == [(i + 1, "invalid UTF-8") for i in range(0, 700, 50)]
    for part_bytes in (1, 100, 1000, 2500, 10_000, 1 << 30):
        parts = split_file(str(tmp_path / "a.parquet"), part_bytes)
        assert len(parts) <= num_groups and (part_bytes > 1 or len(parts) == num_groups)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert read_parts(parts) == whole


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in (*SPLITTABLE, ".parquet")])
def test_what_cannot_be_split_stays_whole(tmp_path, suffix):
    source = write_texts(tmp_path / f"a{suffix}", [b"comment"] * 100)
    assert split_file(str(source), 1) == [Part(str(source), num_bytes=source.stat().st_size)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_has_no_row_in_any_part(tmp_path, suffix):
    source = write_texts(tmp_path / f"a{suffix}", [])
    assert read_parts(split_file(str(source), 1)) == ([], [])


@pytest.mark.parametrize("num_bytes", [100, 600_000, 6_000_000])
def test_rows_of_a_dictionary_are_read_a_few_at_a_time_if_their_texts_are_long(tmp_path, num_bytes):
    texts = [f"{letter}" * (num_bytes // 3) for letter in "가나"]
    column = pa.DictionaryArray.from_arrays(pa.array([0, *[1] * 150, 0], pa.int32()), texts)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    batches = [rows.columns["text"] for rows in read_part(Part(str(tmp_path / "a.parquet")), "text")]
    assert sum(batches, []) == [texts[0], *[texts[1]] * 150, texts[0]]
    assert max(len(batch) for batch in batches) * num_bytes <= MAX_BATCH_BYTES + max(MAX_BATCH_BYTES, num_bytes)


def test_a_parquet_file_without_a_row_group_has_no_row(tmp_path):
    pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])).close()
    assert read_parts(split_file(str(tmp_path / "a.parquet"), 1)) == ([], [])


def test_the_time_to_split_a_file_does_not_grow_with_the_square_of_a_line(tmp_path):
    seconds = []
    for size in (4 << 20, 16 << 20):
        source = write(tmp_path / "a.jsonl", b"[" + b" " * size)  # such as an array of all comments in one line
        start = time.process_time()
        assert split_file(str(source), 1 << 14) == [Part(str(source), 0, size + 1, size + 1)]
        seconds.append(time.process_time() - start)
    assert seconds[1] <= 10 * max(seconds[0], 0.01)  # a square: 16 times


# CSV and TSV


def test_a_quoted_field_may_hold_line_ends_commas_and_doubled_quotes(tmp_path):
    source = write(tmp_path / "a.csv", 'n,text\n1,"첫 줄\n둘째, ""줄""\n\n끝"\n2,"""인용"""\n3,""\n4,"a\r\nb"\n')
    assert texts_of(source) == ['첫 줄\n둘째, "줄"\n\n끝', '"인용"', "", "a\nb"]


def test_quotation_marks_mean_nothing_in_tsv(tmp_path):
    source = write(tmp_path / "a.tsv", 'n\ttext\n1\t"열고 안 닫음\n2\t""\n3\t"a"\n4\ta"b"c\n')
    assert texts_of(source) == ['"열고 안 닫음', '""', '"a"', 'a"b"c']


def test_a_comma_means_nothing_in_tsv_and_a_tab_nothing_in_csv(tmp_path):
    assert texts_of(write(tmp_path / "a.tsv", "text\ta\n가,나\t1\n")) == ["가,나"]
    assert texts_of(write(tmp_path / "a.csv", "text,a\n가\t나,1\n")) == ["가\t나"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_row_with_too_many_or_too_few_fields_costs_itself_and_is_named(tmp_path, caplog, suffix):
    mark = "," if suffix == ".csv" else "\t"
    lines = ["text,n", "하나,1", "너무,많은,칸", "둘,2", "하나뿐", "", "셋,3"]
    source = write(tmp_path / f"a{suffix}", "\n".join(lines).replace(",", mark))
    comments, reader = read(source)
    assert [comment.text for comment in comments] == ["하나", "둘", "셋"]
    reasons = {2: "not as many fields as the header", 4: "not as many fields as the header", 5: "blank line"}
    assert reader.counts == {"comments": 3, **Counter(reasons.values())}
    assert warnings_of(caplog) == [f"{source}, row {row}: {why}; the row is left out" for row, why in reasons.items()]


GOOD_LINES = [f"{i},댓글 {i}" for i in range(3 * MAX_QUOTED_LINES)]
GOOD_TEXTS = [f"댓글 {i}" for i in range(3 * MAX_QUOTED_LINES)]


@pytest.mark.parametrize("at", [0, 1, 1000, 3 * MAX_QUOTED_LINES - 1])
@pytest.mark.parametrize("line", ['x,"열고 안 닫음', '"x,y', 'x,"a""', '"'])
def test_a_quotation_mark_that_nothing_closes_costs_its_own_line(tmp_path, at, line):
    lines = ["n,text", *GOOD_LINES[:at], line, *GOOD_LINES[at:]]
    good, bad = read_file(write(tmp_path / "a.csv", "\n".join(lines)))
    assert [row[0] for row in good] == GOOD_TEXTS
    assert bad == [(at + 1, "a quotation mark that nothing closes")]


@pytest.mark.parametrize("distance", [1, 2, 10, MAX_QUOTED_LINES - 1, MAX_QUOTED_LINES, MAX_QUOTED_LINES + 5])
@pytest.mark.parametrize("lines", [('x,"열고 안 닫음', 'y,"또 안 닫음'), ('"x,가', '"y,나')])
def test_two_quotation_marks_that_nothing_closes_cost_two_lines(tmp_path, distance, lines):
    rows = ["n,text", *GOOD_LINES[:5], lines[0], *GOOD_LINES[5 : 4 + distance], lines[1], *GOOD_LINES[4 + distance :]]
    good, bad = read_file(write(tmp_path / "a.csv", "\n".join(rows)))
    assert [row[0] for row in good] == GOOD_TEXTS
    assert [number for number, _ in bad] == [6, 6 + distance]


@pytest.mark.parametrize("text", ['27" 모니터', '말했다 "좋다" 고', 'a"'])
@pytest.mark.parametrize("distance", [1, 10])
def test_a_quotation_mark_inside_a_field_is_text(tmp_path, text, distance):
    lines = ["n,text", f"a,{text}", *GOOD_LINES[: distance - 1], f"b,{text}", *GOOD_LINES[distance - 1 : 50]]
    expected = [text, *GOOD_TEXTS[: distance - 1], text, *GOOD_TEXTS[distance - 1 : 50]]
    assert texts_of(write(tmp_path / "a.csv", "\n".join(lines))) == expected


def test_a_bad_line_within_a_quoted_field_costs_neither_neighbour(tmp_path):
    data = b'n,text\n1,one\n2,"two\n\xff bad\nstill two"\n3,three\n4,"four\nstill four"\n'
    good, bad = read_file(write(tmp_path / "a.csv", data))
    assert [row[0] for row in good] == ["one", "three", "four\nstill four"]
    assert "invalid UTF-8" in [reason for _, reason in bad]


@pytest.mark.parametrize("num_lines", [MAX_QUOTED_LINES, MAX_QUOTED_LINES + 1, MAX_QUOTED_LINES + 2])
def test_a_quoted_field_has_so_many_lines(tmp_path, num_lines):
    field = "\n".join(f"줄 {i}" for i in range(num_lines))
    good, bad = read_file(write(tmp_path / "a.csv", f'text\n하나\n"{field}"\n둘\n'))
    if num_lines <= MAX_QUOTED_LINES + 1:  # the first and those behind it
        assert ([row[0] for row in good], bad) == (["하나", field, "둘"], [])
    else:
        assert {"하나", "둘"} <= {row[0] for row in good} and bad[0] == (2, "a quotation mark that nothing closes")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_comment_of_600_kb_is_kept_in_every_format(tmp_path, suffix):
    text = "길다" * 100_000
    assert texts_of(write_rows(tmp_path / f"a{suffix}", [{"text": text}, {"text": "짧다"}])) == [text, "짧다"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("num_rows", [READ_BATCH_SIZE - 1, READ_BATCH_SIZE, READ_BATCH_SIZE + 1])
def test_a_bad_row_at_the_edge_of_a_batch_is_numbered_right(tmp_path, suffix, num_rows):
    source = write(tmp_path / f"a{suffix}", b"text\n" + b"x\n" * (num_rows - 1) + b"\xff\n" + b"y\n")
    good, bad = read_file(source)
    assert len(good) == num_rows and bad == [(num_rows, "invalid UTF-8")]


@pytest.mark.parametrize(
    ("header", "names"),
    [("본문,글", "'본문', '글'"), ('"Text"', "'Text'"), (" text,n", "' text', 'n'"), ("text\tn", "'text\\\\tn'")],
)
def test_a_csv_without_the_column_lists_those_of_its_header(tmp_path, header, names):
    source = write(tmp_path / "a.csv", f"{header}\n가,나\n")
    with pytest.raises(InputError, match=rf"a\.csv has no column 'text'; it has {names}: give one as --text_column"):
        check_file(str(source), "text")


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"])
def test_a_column_that_is_not_there_is_told_by_the_check(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"a{suffix} has no column 'text'; it has '본문'"):
        check_file(str(write_rows(tmp_path / f"a{suffix}", [{"본문": "가"}])), "text")


def test_a_record_that_csv_refuses_costs_itself(tmp_path):
    field = "a" * (MAX_LINE_BYTES * 3 // 5)
    good, bad = read_file(write(tmp_path / "a.csv", f'n,text\n1,"{field}\n{field}"\n2,좋은 댓글\n'))
    assert [row[0] for row in good] == ["좋은 댓글"]
    assert [number for number, _ in bad] == [1, 2]


def test_a_csv_whose_lines_end_with_carriage_returns_is_said_to_be_so(tmp_path):
    source = write(tmp_path / "a.csv", "n,text\r1,가\r2,나\r")
    with pytest.raises(InputError, match=r"a\.csv: cannot read its header: .*; lines end with \\n or \\r\\n"):
        check_file(str(source), "text")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("header", ["글,본문".encode("cp949"), b"\xff", b"x" * (MAX_LINE_BYTES + 1)])
def test_a_header_that_cannot_be_read_is_said_to_be_so(tmp_path, suffix, header):
    source = write(tmp_path / f"a{suffix}", header + b"\na,b\n")
    with pytest.raises(InputError, match=rf"a{suffix}.*header.*(invalid UTF-8|a line of more than 1 MiB)"):
        check_file(str(source), "text")


def test_formula_and_quotation_bombs_are_text(tmp_path):
    texts = ["=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", '"' * 1000, "'" * 1000, ",", "-1", "\t"]
    assert texts_of(write_rows(tmp_path / "a.csv", [{"text": text, "n": i} for i, text in enumerate(texts)])) == texts


@given(
    rows=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=8),
    line_end=st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(rows=[('a"b', ""), ('"', '\n"'), ("\r", "")], line_end="\r\n")
def test_what_python_writes_as_csv_is_read_back(tmp_path, rows, line_end):
    rows = [(text, "".join(other.split())) for text, other in rows]
    fields = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row] for row in [("text", "n"), *rows]]
    source = tmp_path / "a.csv"
    source.write_bytes((line_end.join(map(",".join, fields)) + line_end).encode("utf-8", "replace"))
    expected = [text.encode("utf-8", "replace").decode().replace("\r\n", "\n") for text, _ in rows]
    assert [text.replace("\r\n", "\n") for text in texts_of(source)] == expected


# anything at all


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
@given(data=st.binary(max_size=200) | st.text(alphabet='a가"\n\r\t,:{}[]\0\\', max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_rows_or_bad_rows(tmp_path, suffix, data):
    header = b"text\n" if suffix in (".csv", ".tsv") else b'{"text": ""}\n' if suffix == ".jsonl" else b"\n"
    source = tmp_path / f"a{suffix}"
    source.write_bytes(header + data)
    good, bad = read_file(source)
    num_lines = data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
    if suffix == ".csv":
        assert len(good) + len(bad) <= num_lines
    else:
        assert len(good) + len(bad) == num_lines + (suffix != ".tsv")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".tsv", ".csv"])
@given(junk=st.lists(st.binary(max_size=20), max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_good_row_is_lost_between_junk(tmp_path, suffix, junk):
    if suffix == ".csv":
        junk = [line.replace(b'"', b"") for line in junk]  # where a field ends is another claim
    source = write_texts(tmp_path / f"a{suffix}", [b"the good row %d" % i for i in range(len(junk) + 1)])
    lines = source.read_bytes().splitlines(keepends=True)
    head, lines = lines[: len(lines) - len(junk) - 1], lines[len(lines) - len(junk) - 1 :]
    mixed = [piece for line, more in zip(lines, [*junk, b""], strict=True) for piece in (line, more + b"\n")]
    source.write_bytes(b"".join([*head, *mixed]))
    kept = [row[0] for row in read_file(source)[0] if row[0].startswith("the good row")]
    assert kept == [f"the good row {i}" for i in range(len(junk) + 1)]


# damage


def decodable_lines(data: bytes) -> list[str]:
    """Return the whole lines of a damaged gzip file, by another way."""
    text = zlib.decompressobj(wbits=31).decompress(data)
    return text[: text.rfind(b"\n") + 1].decode().split("\n")[:-1]


def read_until_damage(file: Path) -> tuple[list[str], str]:
    texts: list[str] = []
    with pytest.raises(UnreadableFile) as caught:
        for rows in read_part(Part(str(file)), "text"):
            texts += rows.columns["text"]
    return texts, str(caught.value)


DAMAGES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("cut", lambda data: data[: len(data) // 2]),
    ("tail cut off", lambda data: data[:-6]),
    ("garbage behind", lambda data: data + b"garbage"),
    ("wrong checksum", lambda data: data[:-8] + b"\0" * 8),
]


@pytest.mark.parametrize("num_rows", [100, 100_000])
@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[name for name, _ in DAMAGES])
def test_what_can_be_decompressed_of_a_damaged_file_is_read(tmp_path, name, damage, num_rows):
    data = damage(gzip.compress("".join(f"댓글 {i} {i * i}\n" for i in range(num_rows)).encode()))
    source = tmp_path / "a.txt.gz"
    source.write_bytes(data)
    texts, message = read_until_damage(source)
    if name == "wrong checksum":
        expected = [f"댓글 {i} {i * i}" for i in range(num_rows)]
    else:
        expected = decodable_lines(data)
    assert texts == expected[: len(texts)]
    assert message.startswith(f"cannot read {source} after row {len(texts)}: ")
    assert sum(len(text.encode()) for text in expected[len(texts) :]) < 1 << 16


@pytest.mark.parametrize("suffix", [".csv.gz", ".tsv.gz", ".jsonl.gz"])
def test_rows_of_a_table_before_the_damage_are_read(tmp_path, suffix):
    source = write_texts(tmp_path / f"a{suffix}", [f"댓글 {i} {i * i}".encode() for i in range(60_000)])
    source.write_bytes(source.read_bytes()[:-6])
    texts, _ = read_until_damage(source)
    assert len(texts) > 58_000  # of 60,000, of 23 bytes each


def test_rows_behind_an_open_quotation_mark_and_before_the_damage_are_read(tmp_path):
    texts = [f"댓글 {i} {i * i}".encode() for i in range(500)]
    source = tmp_path / "a.csv.gz"
    source.write_bytes(gzip.compress(b"text\n" + b"\n".join([*texts[:490], b'"open', *texts[490:], b""]))[:-6])
    assert read_until_damage(source)[0] == [text.decode() for text in texts]


def test_a_damaged_row_group_costs_no_other(tmp_path):
    source = tmp_path / "a.parquet"
    texts = [f"댓글 {i} {i * i * i}" for i in range(10_000)]
    pq.write_table(pa.table({"text": texts}), source, row_group_size=1000, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(source).row_group(6).column(0)
    data = bytearray(source.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 200] = bytes(200)
    source.write_bytes(data)
    kept, message = read_until_damage(source)
    assert kept == texts[:6000] + texts[7000:]
    assert message.startswith(f"cannot read {source} after row 6000: ")


# Parquet


@pytest.mark.parametrize(
    "values", [[1, 2, 3], [1.5, 2.0, 3.0], [True, False, True], [b"a", b"b", b"c"], [{"a": 1}, {"a": 2}, {"a": 3}]]
)
def test_bad_utf8_costs_its_row_beside_a_column_of_another_type(tmp_path, values):
    table = pa.table({"text": utf8_column([b"one", b"\xff", b"three"]), "thread": values})
    pq.write_table(table, tmp_path / "a.parquet")
    good, bad = read_file(tmp_path / "a.parquet")
    assert [row[0] for row in good] == ["one", "three"] and bad == [(2, "invalid UTF-8")]


def test_bad_utf8_in_an_id_costs_its_row(tmp_path):
    table = pa.table({"text": ["하나", "둘", "셋"], "thread": utf8_column([b"a", b"\xff", b"c"])})
    pq.write_table(table, tmp_path / "a.parquet")
    good, bad = read_file(tmp_path / "a.parquet")
    assert [row[:2] for row in good] == [("하나", "a"), ("셋", "c")] and bad == [(2, "invalid UTF-8")]


def test_a_date_that_python_cannot_hold_costs_no_row(tmp_path):
    thread = pa.array([2**60, 0], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["하나", "둘"], "thread": thread}), tmp_path / "a.parquet")
    good, bad = read_file(tmp_path / "a.parquet")
    assert "둘" in [row[0] for row in good] and len(good) + len(bad) == 2


def test_ids_that_became_floats_for_their_gaps_are_still_the_ids(tmp_path):
    # pandas makes floats of integers where one is missing: comment_id 1 and parent_id 1.0 are the same comment
    table = pa.table({"text": ["하나", "둘"], "comment_id": [1, 2], "parent_id": [None, 1.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet")[0] == [("하나", None, "1", None), ("둘", None, "2", "1")]


@pytest.mark.parametrize("num_rows", [3, READ_BATCH_SIZE + 1])
def test_text_of_another_type_is_no_text(tmp_path, num_rows):
    pq.write_table(pa.table({"text": list(range(num_rows))}), tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet") == ([], [(i + 1, "no text") for i in range(num_rows)])
