"""Reading comments: the same from every format, and nothing good is lost beside something bad."""

import csv
import gzip
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcelectra.corpus.comments import MAX_NAMED_ROWS, Comment, CommentReader, choose_cleaning, find_files
from kcelectra.corpus.formats import split_file
from kcelectra.corpus.rows import READ_BATCH_SIZE
from kcelectra.corpus.sample import generate_sample
from kcelectra.corpus.work_dir import WORK_DIR
from kcelectra.errors import InputError
from kcelectra.manifest import write_manifest

TEXTS = ["첫 댓글입니다", "둘째 👨\u200d👩\u200d👧 ㅋㅋㅋ", "셋째\u2028한 줄 \x85 여전히\x1c", "漢字 넷째", ""]
ROWS = [
    {"text": text, "thread": f"글-{i // 2}", "comment_id": f"{i}", "parent_id": f"{i - 1}" if i % 2 else None}
    for i, text in enumerate(TEXTS)
]
TEXT_FORMATS = (".txt", ".txt.gz", ".txt.zst")
JSON_FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson")
TABLE_FORMATS = (".csv", ".csv.gz", ".tsv", ".tsv.zst")
FORMATS = (*TEXT_FORMATS, *JSON_FORMATS, *TABLE_FORMATS, ".parquet")


def read(source: object, **options: str) -> tuple[list[Comment], CommentReader]:
    reader = CommentReader(str(source), **options)
    return [comment for batch in reader for comment in batch], reader


def read_all_texts(source: object, **options: str) -> list[str]:
    return [comment.text for comment in read(source, **options)[0]]


def utf8_column(values: list[bytes]) -> pa.Array:
    """Make a string column of bytes that need not be UTF-8."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file, compressed as its name says."""
    if path.suffix == ".zst":
        data = pa.compress(data, "zstd", asbytes=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def kind_of(path: Path) -> str:
    """Return the extension without that of the compression."""
    return Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix


def write_texts(path: Path, texts: list[bytes]) -> Path:
    """Write one comment a row in the format of the path's suffix; the texts must need no escape."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": utf8_column(texts)}), path)
        return path
    lines = {".jsonl": b'{"text": "%s"}\n', ".ndjson": b'{"text": "%s"}\n', ".csv": b'"%s"\n'}
    line = lines.get(kind_of(path), b"%s\n")
    header = b"text\n" if kind_of(path) in (".csv", ".tsv") else b""
    return write_bytes(path, header + b"".join(line % text for text in texts))


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write comments in the format of the path's suffix; without line ends for text, without tabs for TSV."""
    kind = kind_of(path)
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind in (".jsonl", ".ndjson"):
        write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    elif kind == ".txt":
        write_bytes(path, "".join(row["text"] + "\n" for row in rows).encode())
    else:
        fields = [rows[0].keys(), *(("" if value is None else value for value in row.values()) for row in rows)]
        lines = io.StringIO(newline="")
        if kind == ".csv":
            csv.writer(lines, quoting=csv.QUOTE_ALL).writerows(fields)
        else:
            lines.writelines("\t".join(map(str, values)) + "\n" for values in fields)
        write_bytes(path, lines.getvalue().encode())
    return path


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "kcelectra.corpus.comments"]


# the same comments from every format


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_comments(tmp_path, suffix):
    comments, reader = read(write_rows(tmp_path / f"comments{suffix}", ROWS))
    if suffix in TEXT_FORMATS:
        assert comments == [Comment(text) for text in TEXTS]
    else:
        assert comments == [Comment(**row) for row in ROWS]
    assert reader.counts == {"comments": len(ROWS)}
    assert reader.has_parents == (suffix not in TEXT_FORMATS)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_sample_survives_a_round_trip_through_every_format(tmp_path, suffix):
    # one line each, no tab, and no U+FEFF in front: at the start of a line it is taken for a byte order mark
    rows = [
        {**row, "text": " ".join(row["text"].replace("\t", " ").splitlines()).lstrip("\ufeff")}
        for row in generate_sample(1200)
    ]
    source = write_rows(tmp_path / f"comments{suffix}", rows)
    assert read_all_texts(source) == [row["text"] for row in rows]


def test_a_glob_and_a_directory_read_files_in_order(tmp_path):
    for name, text in (("b.txt", "둘"), ("a.jsonl", "하나"), ("d.parquet", "넷"), ("c.txt.gz", "셋")):
        write_texts(tmp_path / name, [text.encode()])
    (tmp_path / "README.md").write_text("no comments")
    assert read_all_texts(tmp_path) == ["하나", "둘", "셋", "넷"]
    assert read_all_texts(tmp_path / "[a-c].*") == ["하나", "둘", "셋"]


def test_a_glob_reaches_into_directories(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_texts(tmp_path / name / "comments.txt", [name.encode()])
    assert read_all_texts(tmp_path / "**" / "*.txt") == ["x", "y"]


@pytest.mark.parametrize(
    "name", ["comments [1].txt", "comments [1].parquet", "a,b.txt", "댓글 모음.jsonl", "x{1}.txt"]
)
@pytest.mark.parametrize("by", ["file", "directory"])
def test_a_path_is_taken_as_it_is_spelt(tmp_path, name, by):
    source = write_texts(tmp_path / name, ["댓글".encode()])
    assert read_all_texts(source if by == "file" else tmp_path) == ["댓글"]


def test_a_directory_with_brackets_in_its_name_is_read(tmp_path):
    directory = tmp_path / "[2021] 댓글"
    directory.mkdir()
    write_texts(directory / "comments.txt", ["댓글".encode()])
    assert read_all_texts(directory) == ["댓글"]


@pytest.mark.parametrize("suffix", [*TEXT_FORMATS, *JSON_FORMATS])
def test_a_byte_order_mark_is_no_part_of_the_comment(tmp_path, suffix):
    lines = '{"text": "하나"}\n{"text": "둘"}\n' if suffix in JSON_FORMATS else "하나\n둘\n"
    source = write_bytes(tmp_path / f"comments{suffix}", b"\xef\xbb\xbf" + lines.encode())
    assert read_all_texts(source) == ["하나", "둘"]


@pytest.mark.parametrize("suffix", [*TEXT_FORMATS, *JSON_FORMATS])
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["CRLF at the end", "no line end at the end"])
def test_crlf_ends_a_comment(tmp_path, suffix, end):
    lines = ['{"text": "하나"}', '{"text": "둘"}'] if suffix in JSON_FORMATS else ["하나", "둘"]
    source = write_bytes(tmp_path / f"comments{suffix}", "\r\n".join(lines).encode() + end)
    assert read_all_texts(source) == ["하나", "둘"]


def test_an_empty_line_is_an_empty_comment(tmp_path):
    assert read_all_texts(write_bytes(tmp_path / "a.txt", "하나\n\n둘\n\n".encode())) == ["하나", "", "둘", ""]


def test_a_parquet_file_of_row_groups_gives_its_rows_in_order(tmp_path):
    texts = [f"댓글 {i}" for i in range(2 * READ_BATCH_SIZE + 1)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=7)
    batches = list(CommentReader(str(tmp_path / "a.parquet")))
    assert [comment.text for batch in batches for comment in batch] == texts
    assert max(map(len, batches)) <= READ_BATCH_SIZE


@pytest.mark.parametrize("column", [pa.array(TEXTS, pa.large_string()), pa.array(TEXTS).dictionary_encode()])
def test_every_parquet_string_type_gives_the_same_comments(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read_all_texts(tmp_path / "a.parquet") == TEXTS


def test_another_text_column_is_read(tmp_path):
    for suffix in (".jsonl", ".csv", ".tsv", ".parquet"):
        source = write_rows(tmp_path / f"comments{suffix}", [{"본문": text, "text": "x"} for text in TEXTS])
        assert read_all_texts(source, text_column="본문") == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_ids_that_are_numbers_become_text(tmp_path, suffix):
    rows = [{"text": "가", "thread": 7, "comment_id": 1, "parent_id": None}]
    rows += [{"text": "나", "thread": 7, "comment_id": 2, "parent_id": 1}]
    comments, reader = read(write_rows(tmp_path / f"comments{suffix}", rows))
    assert comments == [Comment("가", "7", "1", None), Comment("나", "7", "2", "1")]
    assert reader.has_parents


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_ids_that_pandas_made_floats_are_those_of_whole_numbers(tmp_path, suffix):
    rows = [
        {"text": "가", "comment_id": 1, "parent_id": float("nan")},
        {"text": "나", "comment_id": 2, "parent_id": 1.0},
    ]
    comments, _ = read(write_rows(tmp_path / f"comments{suffix}", rows))
    assert comments == [Comment("가", None, "1", None), Comment("나", None, "2", "1")]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_threads_without_parents_are_known_as_such(tmp_path, suffix):
    comments, reader = read(write_rows(tmp_path / f"comments{suffix}", [{"text": "가", "thread": "글"}]))
    assert comments == [Comment("가", "글")]
    assert not reader.has_parents


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_second_pass_equals_the_first(tmp_path, suffix):
    source = write_texts(tmp_path / f"comments{suffix}", [b"good %d" % i for i in range(1500)] + [b"\xff"])
    reader = CommentReader(str(source))
    first, counts = list(reader), dict(reader.counts)
    next(iter(reader))  # a pass that is given up
    assert list(reader) == first
    assert reader.counts == counts == {"comments": 1500, "invalid UTF-8": 1}


# from the middle on


@pytest.fixture
def small_pieces(monkeypatch):
    """Read everything in pieces so small that a short file has many."""
    monkeypatch.setattr("kcelectra.corpus.comments.PART_BYTES", 600)
    monkeypatch.setattr("kcelectra.corpus.lines.READ_BYTES", 250)
    monkeypatch.setattr("kcelectra.corpus.rows.READ_BATCH_SIZE", 7)


def write_some_bad(path: Path, num_rows: int) -> Path:
    """Write comments of which each ninth is no UTF-8."""
    write_texts(path, [b"\xff" if i % 9 == 8 else f"{i} 번째 댓글".encode() for i in range(num_rows)])
    if path.suffix == ".parquet":
        pq.write_table(pq.read_table(path), path, row_group_size=13)
    return path


def read_behind(reader: CommentReader, position: dict | None = None) -> list[tuple[dict, list[Comment]]]:
    return list(reader.read(position))


@pytest.mark.parametrize("suffix", FORMATS)
def test_reading_in_parts_changes_no_comment_no_count_and_no_row_number(tmp_path, caplog, suffix, small_pieces):
    source = write_some_bad(tmp_path / f"a{suffix}", 150)
    comments, reader = read(source)
    assert [comment.text for comment in comments] == [f"{i} 번째 댓글" for i in range(150) if i % 9 != 8]
    assert reader.counts == {"comments": len(comments), "invalid UTF-8": 150 // 9}
    named = [f"{source}, row {9 * i + 9}: invalid UTF-8; the row is left out" for i in range(MAX_NAMED_ROWS)]
    assert warnings_of(caplog) == named
    if suffix in (".txt", ".jsonl", ".ndjson", ".parquet"):
        assert len(split_file(str(source), 600)) > 3


@pytest.mark.parametrize("suffix", FORMATS)
def test_reading_can_begin_at_each_position_and_goes_on_as_if_it_had_not_ended(tmp_path, caplog, suffix, small_pieces):
    for name in "ab":
        write_some_bad(tmp_path / f"{name}{suffix}", 60)
    reader = CommentReader(str(tmp_path))
    whole, counts, warnings = read_behind(reader), reader.counts, warnings_of(caplog)
    for number, (position, _) in enumerate(whole):
        caplog.clear()
        again = CommentReader(str(tmp_path))
        assert read_behind(again, json.loads(json.dumps(position))) == whole[number:]
        assert again.counts == counts
        num_bad = sum(position["counts"].values()) - position["counts"].get("comments", 0)
        assert warnings_of(caplog) == warnings[num_bad:]
    assert len(whole) > 4


def test_a_position_knows_whether_parents_were_seen(tmp_path, small_pieces):
    write_rows(tmp_path / "a.jsonl", ROWS)
    write_texts(tmp_path / "b.txt", [b"x"] * 30)
    (position, _) = list(CommentReader(str(tmp_path)).read())[-1]
    reader = CommentReader(str(tmp_path))
    assert [len(batch) for _, batch in reader.read(position)] != []
    assert reader.has_parents


def test_a_pass_knows_nothing_of_the_parents_that_another_saw(tmp_path):
    write_texts(tmp_path / "a.txt", [b"x"])
    write_rows(tmp_path / "b.jsonl", ROWS)
    reader = CommentReader(str(tmp_path))
    for _ in range(2):
        seen = [reader.has_parents for _ in reader]
        assert seen == [False, True]


@pytest.mark.parametrize("change", ["file gone", "cut", "rewritten", "of the Hub"])
def test_a_position_that_the_source_has_no_more_is_an_input_error_that_names_the_cure(tmp_path, change, small_pieces):
    for name in "ab":
        write_texts(tmp_path / f"{name}.txt", [b"%d" % i for i in range(500)])
    (position, _) = list(CommentReader(str(tmp_path)).read())[-1]
    if change == "file gone":
        os.remove(tmp_path / "b.txt")
    elif change == "cut":
        os.truncate(tmp_path / "b.txt", 500)
    elif change == "rewritten":
        write_texts(tmp_path / "b.txt", [b"longer %d" % i for i in range(500)])
    else:
        position["place"] = {"row": 7, "state": {"epoch": 0}}
    with pytest.raises(InputError, match=r"has no place .* it has changed; put it back as it was, or begin a new run"):
        read_behind(CommentReader(str(tmp_path)), position)


def test_a_fingerprint_tells_sources_apart_and_not_where_they_lie(tmp_path):
    def write(directory: str, texts: list[bytes], name: str = "b.txt") -> dict:
        (tmp_path / directory).mkdir()
        write_texts(tmp_path / directory / "a.txt", [b"same"])
        write_texts(tmp_path / directory / name, texts)
        return CommentReader(str(tmp_path / directory)).fingerprint()

    first = write("first", [b"x", b"y"])
    assert json.loads(json.dumps(first)) == first == write("moved", [b"x", b"y"])
    others = [
        write("changed", [b"x", b"z"]),
        write("longer", [b"x", b"y", b"z"]),
        write("renamed", [b"x", b"y"], "c.txt"),
    ]
    assert first not in others
    os.remove(tmp_path / "moved" / "b.txt")
    assert CommentReader(str(tmp_path / "moved")).fingerprint() != first
    (tmp_path / "same.jsonl").write_text('{"text": "x", "other": "y"}\n')
    prints = [CommentReader(str(tmp_path / "same.jsonl"), text_column=c).fingerprint() for c in ("text", "other")]
    assert prints[0] != prints[1]


@pytest.mark.parametrize("where", [0, 1 << 20, -1])
def test_a_fingerprint_of_a_large_file_reads_its_ends(tmp_path, where):
    source = tmp_path / "a.txt"
    lines = b"comment\n" * (3 << 17)
    source.write_bytes(lines)
    before = CommentReader(str(source)).fingerprint()
    with open(source, "r+b") as file:
        file.seek(where % len(lines))
        file.write(b"X")
    is_told = where != 1 << 20  # what lies between is told by the size alone
    assert (CommentReader(str(source)).fingerprint() != before) == is_told
    source.write_bytes(lines + b"comment\n")
    assert CommentReader(str(source)).fingerprint() != before


# bad rows


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("num_before", [0, 1, READ_BATCH_SIZE + 3])
def test_invalid_utf8_costs_its_row_and_is_named(tmp_path, caplog, suffix, num_before):
    good = [f"댓글 {i}" for i in range(num_before + 2)]
    rows = [text.encode() for text in good]
    rows.insert(num_before, "나쁜 ".encode() + b"\xff\xfe \xed\xa0\x80")
    source = write_texts(tmp_path / f"comments{suffix}", rows)
    comments, reader = read(source)
    assert [comment.text for comment in comments] == good
    assert reader.counts == {"comments": len(good), "invalid UTF-8": 1}
    assert warnings_of(caplog) == [f"{source}, row {num_before + 1}: invalid UTF-8; the row is left out"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_bad_row_of_the_second_file_is_named_with_its_file(tmp_path, caplog, suffix):
    write_texts(tmp_path / f"a{suffix}", [b"good"] * 3)
    second = write_texts(tmp_path / f"b{suffix}", [b"good", b"\xc3\x28", b"good"])
    comments, reader = read(tmp_path)
    assert len(comments) == reader.counts["comments"] == 5
    assert warnings_of(caplog) == [f"{second}, row 2: invalid UTF-8; the row is left out"]


def test_a_bad_row_is_named_with_its_file_across_formats(tmp_path, caplog):
    names = ("a.txt", "b.parquet", "c.jsonl.gz", "d.txt.gz", "e.parquet")
    files = [write_texts(tmp_path / name, [b"good", b"good", b"\xff"]) for name in names]
    _, reader = read(tmp_path)
    assert reader.counts == {"comments": 2 * len(names), "invalid UTF-8": len(names)}
    assert warnings_of(caplog) == [f"{file}, row 3: invalid UTF-8; the row is left out" for file in files]


def test_only_so_many_rows_are_named_and_all_are_counted(tmp_path, caplog):
    source = write_texts(tmp_path / "a.txt", [b"\xff", b"good"] * 25)
    _, reader = read(source)
    assert reader.counts == {"comments": 25, "invalid UTF-8": 25}
    named = warnings_of(caplog)
    assert len(named) == MAX_NAMED_ROWS
    assert named[-1].startswith(f"{source}, row {2 * MAX_NAMED_ROWS - 1}: ")


NO_COMMENTS = [
    ('{"text": "cut', "invalid JSON"),
    ("", "blank line"),
    ('["text"]', "invalid JSON"),
    ('"text"', "invalid JSON"),
    ("null", "invalid JSON"),
    ('{"text": null}', "no text"),
    ('{"text": 7}', "no text"),
    ('{"other": "가"}', "no text"),
    ('{"text": "가", "n": ' + "1" * 5000 + "}", "invalid JSON"),
    ('{"text": "가", "n": ' + "[" * 100_000 + "}", "invalid JSON"),
]


@pytest.mark.parametrize(("line", "reason"), NO_COMMENTS, ids=[line[:24] for line, _ in NO_COMMENTS])
def test_a_line_that_is_no_comment_costs_itself_and_is_named(tmp_path, caplog, line, reason):
    source = tmp_path / "a.jsonl"
    source.write_text(f'{{"text": "하나"}}\n{line}\n{{"text": "둘"}}\n', encoding="utf-8")
    comments, reader = read(source)
    assert [comment.text for comment in comments] == ["하나", "둘"]
    assert reader.counts == {"comments": 2, reason: 1}
    assert warnings_of(caplog) == [f"{source}, row 2: {reason}; the row is left out"]


def test_a_null_in_parquet_costs_its_row_and_is_named(tmp_path, caplog):
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["하나", None, "둘"]}), source)
    comments, reader = read(source)
    assert [comment.text for comment in comments] == ["하나", "둘"]
    assert reader.counts == {"comments": 2, "no text": 1}
    assert warnings_of(caplog) == [f"{source}, row 2: no text; the row is left out"]


def test_files_with_other_columns_lose_no_row(tmp_path):
    pq.write_table(pa.table({"text": ["하나"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"thread": ["글"], "text": ["둘"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"thread": [3], "text": ["셋"], "likes": [1]}), tmp_path / "c.parquet")
    assert read(tmp_path)[0] == [Comment("하나"), Comment("둘", "글"), Comment("셋", "3")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.zst", ".tsv", ".parquet"])
def test_a_missing_column_lists_those_that_exist(tmp_path, suffix):
    source = write_rows(tmp_path / f"a{suffix}", [{"본문": "가", "likes": 3}])
    with pytest.raises(InputError, match=r"no column 'text'; it has '본문', 'likes': give one as --text_column"):
        read(source)


def test_a_missing_column_is_told_when_the_first_line_is_broken(tmp_path):
    (tmp_path / "a.jsonl").write_text('{cut\n{"body": "가", "likes": 3}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"no column 'text'; it has 'body', 'likes'"):
        read(tmp_path / "a.jsonl")


def test_a_missing_column_of_the_second_file_is_told(tmp_path):
    pq.write_table(pa.table({"text": ["가"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"body": ["가"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'text'; it has 'body'"):
        CommentReader(str(tmp_path))


@pytest.mark.parametrize("source", ["nothing.txt", "*.parquet", "no/such/dir", "nothing.jsonl.gz"])
def test_a_path_where_nothing_is_is_named_with_the_cure(tmp_path, source):
    with pytest.raises(InputError, match=r"no file matches .*; give a file, a quoted glob, a directory, or a Hub id"):
        CommentReader(str(tmp_path / source))


@pytest.mark.parametrize("source", ["comments", "./comments"])
def test_a_directory_without_comments_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    os.makedirs("comments/2021.txt")
    with pytest.raises(InputError, match=rf"^{source} holds no file that can be read .*'comments/\*\*/\*\.jsonl'$"):
        find_files(source)


def test_what_is_left_out_of_a_directory_is_said(tmp_path, caplog):
    (tmp_path / "2021").mkdir()
    for name in ("a.txt", "b.jsonl.bz2", ".hidden"):
        (tmp_path / name).write_text("x")
    assert find_files(str(tmp_path)) == [str(tmp_path / "a.txt")]
    assert caplog.messages == [f"{tmp_path}: 2021/, b.jsonl.bz2: left out"]
    (tmp_path / "manifest.json").write_text("{}")  # of a stage, which knows what it wrote beside its shards
    assert find_files(str(tmp_path)) == [str(tmp_path / "a.txt")] and len(caplog.messages) == 1


@pytest.mark.parametrize("dataset", ["nsmc", "owner/name"])
def test_a_hub_id_matches_no_file(tmp_path, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    assert find_files(dataset) == []


def test_a_directory_that_its_stage_has_not_finished_is_refused(tmp_path):
    write_texts(tmp_path / "a.parquet", TEXTS)
    (tmp_path / WORK_DIR).mkdir()
    with pytest.raises(InputError, match=f"{tmp_path} is not finished; run the command that writes it again"):
        CommentReader(str(tmp_path))
    write_manifest(tmp_path, stage="corpus")
    assert read_all_texts(tmp_path) == TEXTS


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": "crawl"}', '{"name": "corpus"}'])
def test_a_manifest_of_somebody_else_beside_comments_is_none_of_ours(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    write_texts(tmp_path / "a.txt", [b"x"])
    assert choose_cleaning(str(tmp_path)) == {"rules": "v2022", "min_chars": 10}


def test_shards_of_a_corpus_are_clean_already(tmp_path):
    write_texts(tmp_path / "a.parquet", [b"x"])
    write_manifest(tmp_path, stage="corpus")
    sources = [tmp_path, tmp_path / "*.parquet", tmp_path / "a.parquet", tmp_path / "*.txt"]
    assert [choose_cleaning(str(source))["rules"] for source in sources] == ["none", "none", "none", "v2022"]
    write_texts(tmp_path / "b.parquet", [b"y"])  # of somebody else
    assert choose_cleaning(str(tmp_path / "*.parquet")) == {"rules": "v2022", "min_chars": 10}


def test_an_unknown_extension_names_the_known_ones(tmp_path):
    (tmp_path / "a.xlsx").write_text("text\n")
    known = r"\.txt, \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet, text also as \.gz, \.zst"
    with pytest.raises(InputError, match=rf"a\.xlsx: unknown extension; use one of {known}$"):
        CommentReader(str(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.gz", "a.txt.zip", "a.txt.bz2", "a", "txt", ".txt"])
def test_a_name_that_only_looks_like_a_known_one_is_unknown(tmp_path, name):
    (tmp_path / name).write_text("text\n")
    with pytest.raises(InputError, match="unknown extension"):
        CommentReader(str(tmp_path / name))


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def scramble(data: bytes) -> bytes:
    """Damage what lies between the head and the tail."""
    middle = slice(len(data) // 3, 2 * len(data) // 3)
    return data[: middle.start] + bytes(byte ^ 0x5A for byte in data[middle]) + data[middle.stop :]


DAMAGES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("not the format", lambda data: b"no such format"),
    ("cut", cut),
    ("scrambled", scramble),
    ("tail cut off", lambda data: data[:-6]),
    ("scrambled from the start", lambda data: data[:10] + b"\xff" * 8 + data[18:]),
]


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.gz", ".csv.gz", ".txt.zst", ".tsv.zst", ".parquet"])
@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[name for name, _ in DAMAGES])
def test_a_damaged_file_is_named(tmp_path, suffix, name, damage):
    source = write_texts(tmp_path / f"a{suffix}", [b"comment %d %d" % (i, i * i * i) for i in range(20_000)])
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(InputError, match=r"cannot read .*a\."):
        read(source)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_holds_no_comment(tmp_path, caplog, suffix):
    caplog.set_level(logging.ERROR)
    comments, reader = read(write_texts(tmp_path / f"a{suffix}", []))
    assert comments == []
    assert reader.counts["comments"] == 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_empty_file_costs_its_neighbours_nothing(tmp_path, suffix):
    for name, texts in (("a", []), ("b", [b"x"]), ("c", []), ("d", [b"y"])):
        write_texts(tmp_path / f"{name}{suffix}", texts)
    assert read_all_texts(tmp_path) == ["x", "y"]


REAL_COMMENTS = Path(__file__).parents[2] / "shared" / "data" / "comments" / "sample.jsonl"


@pytest.mark.skipif(not REAL_COMMENTS.is_file(), reason=f"needs the real comments in {REAL_COMMENTS}")
def test_real_comments_are_read_as_json_reads_them():
    rows = [json.loads(line) for line in REAL_COMMENTS.read_bytes().decode().split("\n") if line]
    comments, reader = read(REAL_COMMENTS)
    assert comments == [Comment(row["text"], row["thread"], row["comment_id"]) for row in rows]
    assert not reader.has_parents
