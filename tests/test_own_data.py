"""A task of one's own: what is in a table comes back exactly, and what cannot be used is named with file and row."""

import csv
import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hub import HubServer, run_client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcelectra.errors import InputError
from kcelectra.finetuning.metrics import compute
from kcelectra.finetuning.own_data import MAX_CLASSES, TaskData, read_own_data
from kcelectra.finetuning.sources import LabelledTexts, read_splits
from kcelectra.finetuning.tables import MAX_TEXT_CHARS
from kcelectra.finetuning.tasks import TASKS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet")
ROWS = [{"text": f"댓글 {i}", "label": "좋다" if i % 3 else "싫다"} for i in range(90)]


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, compressed as its name says; the line ends stay as they are."""
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format of the path's suffix."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind == ".jsonl":
        return write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    if kind == ".tsv":
        return write(path, "".join("\t".join(map(str, line)) + "\n" for line in [rows[0], *map(dict.values, rows)]))
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows([rows[0], *map(dict.values, rows)])
    return write(path, lines.getvalue())


def read(source: Path | str, **options) -> TaskData:
    return read_own_data(source, **{"text": ["text"], "label": ["label"], **options})


def read_all(source: Path, **options) -> list[tuple]:
    """Return the texts of all splits with the name of their class, in no order."""
    task, splits = read(source, **options)
    return sorted((*texts, task.labels[label]) for part in splits[:3] for texts, label in part)


def read_train(path: Path, **options) -> list[tuple]:
    """Return the training split, all that is in the file, with the name of each class."""
    others = {split: write_rows(path.with_name(f"{split}.csv"), ROWS[start:]) for split, start in OTHERS}
    labels = options.pop("labels", ["좋다", "싫다"])
    task, splits = read(path, labels=labels, **others, **options)
    return [(*texts, task.labels[label]) for texts, label in splits.train]


OTHERS = (("dev", 10), ("test", 20))


# what is in the table comes back


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_task(tmp_path, suffix):
    task, splits = read(write_rows(tmp_path / f"mine{suffix}", ROWS))
    expected = read(write_rows(tmp_path / "other.csv", ROWS))
    assert splits[:3] == expected.splits[:3]
    assert task.name == "mine" and task.labels == ("싫다", "좋다")
    assert read_all(tmp_path / f"mine{suffix}") == sorted((row["text"], row["label"]) for row in ROWS)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(str.strip)


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["좋다", "싫다", '그저 "그"', "a,b", "줄\n둘"]))), st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_csv_writer_writes_comes_back_exactly(tmp_path, pairs, quotes_all):
    pairs = [("첫 줄", "좋다"), ("둘째 줄", "싫다"), *pairs]
    lines = io.StringIO(newline="")
    csv.writer(lines, quoting=csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL).writerows(
        [("text", "label"), *pairs]
    )
    path = write(tmp_path / "mine.csv", lines.getvalue())
    assert read_train(path, labels=["좋다", "싫다", '그저 "그"', "a,b", "줄\n둘"]) == pairs


@given(st.lists(TEXTS), st.booleans())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_json_and_parquet_hold_comes_back_exactly(tmp_path, texts, escapes):
    rows = [*ROWS[:6], *({"text": text, "label": "좋다"} for text in texts)]
    lines = "".join(f"{json.dumps(row, ensure_ascii=escapes)}\n" for row in rows)
    expected = [(row["text"], row["label"]) for row in rows]
    assert read_train(write(tmp_path / "mine.jsonl", lines)) == expected
    assert read_train(write_rows(tmp_path / "mine.parquet", rows)) == expected


CSV = '\ufefftext,"번\t호",label\r\n"그는 ""아"", 하고\r\n\n말했다",1,좋다\r\n 앞뒤 ,2,싫다\r\n가 "나" 다,3, 좋다 \r\n'


@pytest.mark.parametrize("end", ["", "\r\n", "\n\n\r\n"])
def test_quotes_line_ends_commas_and_a_byte_order_mark_are_read_as_a_spreadsheet_means_them(tmp_path, end):
    expected = [('그는 "아", 하고\r\n\n말했다', "좋다"), (" 앞뒤 ", "싫다"), ('가 "나" 다', "좋다")]
    assert read_train(write(tmp_path / "mine.csv", CSV + end)) == expected


def test_a_csv_with_tabs_and_a_tsv_differ_in_what_quotation_marks_mean(tmp_path):
    content = 'text\tlabel\n"그는 ""아"" 했다"\t좋다\n"열고" 닫다\t싫다\n'
    with pytest.raises(InputError, match=r"mine.csv, line 3 \(row 2\): '\t' expected after '\"'"):
        read_train(write(tmp_path / "mine.csv", content))
    assert read_train(write(tmp_path / "mine.csv", content.replace('"열고"', "열고"))) == [
        ('그는 "아" 했다', "좋다"),
        ("열고 닫다", "싫다"),
    ]
    assert read_train(write(tmp_path / "mine.tsv", content.replace("\n", "\r\n"))) == [
        ('"그는 ""아"" 했다"', "좋다"),
        ('"열고" 닫다', "싫다"),
    ]


def test_the_extension_may_be_in_capitals(tmp_path):
    assert len(read_all(write_rows(tmp_path / "MINE.csv", ROWS).rename(tmp_path / "MINE.CSV"))) == len(ROWS)


@pytest.mark.parametrize("column", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_parquet_type_of_text_is_read(tmp_path, column):
    table = pa.Table.from_pylist(ROWS)
    table = table.set_column(1, "label", table["label"].cast(column)).rename_columns(["본문.글", "label"])
    pq.write_table(table, tmp_path / "mine.parquet", row_group_size=7)
    assert len(read_all(tmp_path / "mine.parquet", text=["본문.글"])) == len(ROWS)


def test_two_text_columns_are_a_pair(tmp_path):
    rows = [{"label": "ab"[i % 2], "second": f"나 {i}", "first": f"가 {i}"} for i in range(60)]
    task, splits = read(write_rows(tmp_path / "pairs.csv", rows), text=["first", "second"])
    assert task.text_columns == ("first", "second")
    texts = {example.texts for part in splits[:3] for example in part}
    assert texts == {(row["first"], row["second"]) for row in rows}


# the task


def test_a_task_is_one_of_a_sequence_with_hyperparameters_and_a_name_a_directory_can_have(tmp_path):
    path = write_rows(tmp_path / "내 글 (2024).v2.csv.gz", ROWS)
    task = read(path).task
    assert task.head == "sequence" and task.name == "내-글-2024-.v2"
    assert (task.max_length, task.batch_size, task.num_epochs, task.learning_rate) == (128, 32, 5, 5e-5)
    assert (task.licence, task.source) == ("unknown", str(path))
    assert read(path, name="../a b").task.name == "a-b"


@pytest.mark.parametrize("name", ["nsmc", "...", ""])
def test_the_name_of_a_task_that_exists_or_no_name_is_refused(tmp_path, name):
    with pytest.raises(
        InputError, match=r"the name of the task would be '(nsmc)?'; give a --name that is none of 'nsmc'"
    ):
        read(write_rows(tmp_path / "mine.csv", ROWS), name=name)
    with pytest.raises(InputError, match="would be 'nsmc'"):
        read(write_rows(tmp_path / "nsmc.csv", ROWS))


def with_labels(values: list) -> list[dict]:
    return [{"text": f"댓글 {i}", "label": values[i % len(values)]} for i in range(90)]


@pytest.mark.parametrize(
    ("suffix", "values", "labels"),
    [
        (".csv", ["10", "9", "-1"], ("-1", "9", "10")),
        (".csv", ["1.0", "0.0", "1", " 0 "], ("0", "1")),
        (".csv", ["b", "a", "10", "9"], ("10", "9", "a", "b")),
        (".csv", ["01", "1_0", "１"], ("01", "1_0", "１")),
        (".csv", ["True", "False"], ("False", "True")),
        (".jsonl", [True, False], ("False", "True")),
        (".jsonl", [2, 10, 1.0], ("1", "2", "10")),
        (".parquet", [1.0, 0.0], ("0", "1")),
        (".parquet", [True, False], ("False", "True")),
    ],
)
def test_classes_are_sorted_names(tmp_path, suffix, values, labels):
    task, splits = read(write_rows(tmp_path / f"mine{suffix}", with_labels(values)))
    assert task.labels == labels and not task.is_multi_label
    assert (task.metric, task.selected_by) == ("macro_f1", "macro_f1")
    label_of = {example.texts[0]: labels[example.label] for part in splits[:3] for example in part}
    assert label_of["댓글 0"] == str(values[0]).removesuffix(".0")


@pytest.mark.parametrize(
    ("suffix", "values"), [(".csv", ["1", "2.5", "-3e-1", ".5"]), (".jsonl", [1, 2.5, "-0.3", 0.5])]
)
def test_numbers_with_a_fraction_are_a_number_to_predict(tmp_path, suffix, values):
    task, splits = read(write_rows(tmp_path / f"mine{suffix}", with_labels(values)))
    assert task.labels is None and (task.metric, task.selected_by) == ("correlation", "spearman")
    numbers = {example.texts[0]: example.label for part in splits[:3] for example in part}
    assert [numbers[f"댓글 {i}"] for i in range(4)] == [1.0, 2.5, -0.3, 0.5]
    assert task.selected_by in compute(task.metric, [0.1, 0.2], [0.1, 0.2])


def test_columns_of_0_and_1_are_labels_of_which_a_text_may_have_several(tmp_path):
    rows = [{"text": f"댓글 {i}", "욕설": i % 2, "광고": str(i % 3 == 0), "끝": f"{i % 5 // 4}.0"} for i in range(90)]
    task, splits = read(write_rows(tmp_path / "mine.csv", rows), label=["광고", "욕설", "끝"])
    assert task.labels == task.label_columns == ("광고", "욕설", "끝") and task.is_multi_label
    assert (task.metric, task.selected_by) == ("multi_label", "micro_f1")
    flags = {example.texts[0]: example.label for part in splits[:3] for example in part}
    assert flags == {f"댓글 {i}": (int(i % 3 == 0), i % 2, i % 5 // 4) for i in range(90)}
    assert task.selected_by in compute(task.metric, [flags["댓글 0"]], [flags["댓글 0"]])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_are_labels_of_which_a_text_may_have_several_or_none(tmp_path, suffix):
    values = [["욕설", "광고"], ["광고"], [], ["끝"]]
    task, splits = read(write_rows(tmp_path / f"mine{suffix}", with_labels(values)))
    assert task.labels == ("광고", "끝", "욕설") and task.metric == "multi_label" and task.is_multi_label
    flags = {example.texts[0]: example.label for part in splits[:3] for example in part}
    assert [flags[f"댓글 {i}"] for i in range(4)] == [(1, 0, 1), (1, 0, 0), (0, 0, 0), (0, 1, 0)]


def test_labels_that_are_given_are_the_classes_in_their_order(tmp_path):
    path = write_rows(tmp_path / "mine.csv", ROWS)
    given, found = read(path, labels=["좋다", "보통", "싫다"]), read(path)
    assert given.task.labels == ("좋다", "보통", "싫다")
    assert [(1, 0)[example.label // 2] for example in given.splits.train] == [
        example.label for example in found.splits.train
    ]
    named = write_rows(tmp_path / "named.csv", with_labels(["nan", "roti"]))
    assert read(named, labels=["nan", "roti"]).task.labels == ("nan", "roti")
    numbers = write_rows(tmp_path / "numbers.csv", with_labels(["1", "2.5"]))
    assert read(numbers, labels=["2.5", "1.0"]).task.labels == ("2.5", "1")


# the splits


def texts_of(examples: list[LabelledTexts]) -> set[tuple[str, ...]]:
    return {example.texts for example in examples}


def test_one_text_in_ten_is_test_and_one_in_ten_of_the_rest_dev(tmp_path):
    rows = [{"text": f"댓글 {i // 3}", "label": i % 2} for i in range(6000)]
    splits = read(write_rows(tmp_path / "mine.csv", rows)).splits
    train, dev, test = map(texts_of, splits[:3])
    assert not train & dev and not train & test and not dev & test
    assert sum(map(len, splits[:3])) == 6000 and len(splits.train) == 3 * len(train)
    assert 170 < len(test) < 230 and 150 < len(dev) < 210
    assert splits.notes == [
        "test: 1 in 10 of train, by a hash of the text",
        "dev: 1 in 10 of the rest, by a hash of the text",
    ]
    longer = read(write_rows(tmp_path / "longer.csv", [*rows[::-1], {"text": "새 글", "label": 1}])).splits
    assert train <= texts_of(longer.train) and dev <= texts_of(longer.dev) and test <= texts_of(longer.test)


def test_texts_that_differ_in_white_space_alone_stay_together(tmp_path):
    spaced = ["{}", " {}", "{}\u3000 ", "\n{}"]
    rows = [{"text": spaced[i % 4].format(f"댓글{'  '[: 1 + i % 2]}{i // 4}"), "label": i % 3} for i in range(1200)]
    plain = [row | {"text": f"댓글 {i // 4}"} for i, row in enumerate(rows)]
    splits = read(write_rows(tmp_path / "mine.jsonl", rows)).splits
    assert [len(part) for part in splits[:3]] == [
        len(part) for part in read(write_rows(tmp_path / "plain.jsonl", plain)).splits[:3]
    ]
    parts = [{" ".join(example.texts[0].split()) for example in part} for part in splits[:3]]
    assert sum(map(len, parts)) == 300
    train, dev = (
        write_rows(tmp_path / f"{name}.jsonl", part) for name, part in (("train", rows), ("dev", plain[:40]))
    )
    assert read(train, dev=dev).splits.notes[0] == "40 of 1200 train texts are also in dev, and left out"


def test_what_is_carved_is_the_same_everywhere(tmp_path):
    splits = read(write_rows(tmp_path / "mine.csv", ROWS)).splits
    assert [int(example.texts[0].split()[1]) for example in splits.test] == [1, 3, 12, 34, 42, 55, 67, 69, 78, 79, 88]
    assert [int(example.texts[0].split()[1]) for example in splits.dev] == [31, 33, 47, 50, 53]


def test_files_that_are_given_are_dev_and_test_and_nothing_is_carved(tmp_path):
    train, dev, test = (
        write_rows(tmp_path / f"{name}.jsonl", ROWS[part])
        for name, part in (("train", slice(60)), ("dev", slice(60, 70)), ("test", slice(50, 90)))
    )
    splits = read(train, dev=dev, test=str(test)).splits
    assert list(map(len, splits[:3])) == [60, 10, 40]
    assert splits.notes == [f"10 of 40 test texts are also in {other}" for other in ("train", "dev")]
    assert set(splits.files) == {"train", "dev", "test"} and len(set(splits.files.values())) == 3
    carved = read(train, test=test).splits
    assert carved.notes == [splits.notes[0], "dev: 1 in 10 of train, by a hash of the text"]
    assert set(carved.files) == {"train", "test"} and carved.files["test"] == splits.files["test"]


def test_what_chooses_the_step_is_left_out_of_what_test_is_carved_from(tmp_path):
    train, dev = (write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in (("train", ROWS), ("dev", ROWS[:30])))
    splits = read(train, dev=dev).splits
    assert [len(splits.train) + len(splits.test), len(splits.dev)] == [60, 30]
    assert not {example.texts for example in splits.dev} & {example.texts for example in (*splits.train, *splits.test)}
    assert splits.notes[0] == "30 of 90 train texts are also in dev, and left out"


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    path = write_rows(tmp_path / "mine.csv", ROWS)
    first = read(path).splits.files
    assert read(shutil.copyfile(path, tmp_path / "copy.csv")).splits.files == first
    assert read(write(path, path.read_bytes() + b"\n")).splits.files != first


@pytest.mark.parametrize("split, other", [("dev", "train"), ("test", "train"), ("test", "dev")])
def test_the_same_file_twice_is_refused(tmp_path, split, other):
    path = write_rows(tmp_path / "mine.csv", ROWS)
    copy = shutil.copyfile(path, tmp_path / "copy.csv")
    train = path if other == "train" else write_rows(tmp_path / "train.csv", ROWS[1:])
    given = {split: copy} if other == "train" else {"dev": path, "test": copy}
    with pytest.raises(InputError, match=f"{other} and {split} are the same data; .*: give another {split}"):
        read(train, **given)


def test_too_few_rows_to_split_are_refused(tmp_path):
    path = write_rows(tmp_path / "mine.csv", ROWS[4:8])
    with pytest.raises(
        InputError, match=r"mine.csv: 4 rows are too few, test has none; give more, or a file for test"
    ):
        read(path)
    with pytest.raises(InputError, match=r"4 rows are too few, dev has none; give more, or a file for dev"):
        read(path, test=write_rows(tmp_path / "test.csv", ROWS[8:]))


# what cannot be used is named


HEADER = "text,label\n댓글 하나,좋다\n댓글 둘,싫다\n"
BAD_FILES: list[tuple[str, str | bytes, str]] = [
    # nothing there
    ("a.csv", "", "a.csv is empty; give a file with a header and rows"),
    ("a.jsonl", "\n \n", "a.jsonl is empty"),
    ("a.tsv.gz", "", "a.tsv.gz is empty"),
    ("a.parquet", "", "a.parquet is empty"),
    ("a.csv", "text,label\n", "a.csv has a header and no rows; give a file with rows"),
    ("a.tsv", "text\tlabel", "a.tsv has a header and no rows"),
    # columns
    ("a.csv", "text,lable\n가,1\n", "a.csv: no column 'label' (did you mean 'lable'?); it has 'text', 'lable'"),
    ("a.tsv", "본문\tlabel\n가\t1\n", "a.tsv: no column 'text'; it has '본문', 'label'"),
    ("a.jsonl", '{"x": 1}\n{"text": "가"}\n', "a.jsonl: no column 'label'; it has 'x', 'text'"),
    ("a.csv", "text,label,text\n가,1,나\n", "a.csv: 2 columns are called 'text'; rename all but one"),
    # labels
    ("a.csv", f"{HEADER}가,\n", "a.csv, line 4 (row 3): 'label' is empty; fill it in or take the row out"),
    ("a.tsv", "text\tlabel\n가\t \n", "a.tsv, line 2: 'label' is empty"),
    ("a.jsonl", '{"text": "가", "label": 1}\n{"text": "나", "label": null}', "a.jsonl, line 2: 'label' is empty"),
    ("a.jsonl", '{"text": "가", "label": 1}\n{"text": "나"}\n', "a.jsonl, line 2: 'label' is empty"),
    ("a.jsonl", '{"text": "가", "label": ["a", null]}\n', "a.jsonl, line 1: 'label' is empty"),
    ("a.jsonl", '{"text": "가", "label": {"a": 1}}\n', "line 1: 'label' is {'a': 1}, not text or a number; convert"),
    ("a.jsonl", '{"text": "가", "label": NaN}\n', "line 1: 'label' is nan, no finite number; mend it or take the row"),
    ("a.jsonl", '{"text": "가", "label": -1e999}\n', "line 1: 'label' is -inf, no finite number"),
    ("a.tsv", 'text\tlabel\n"가\t좋다"\n', "a.tsv, line 2: a quotation mark in the label; in a .tsv ... call it .csv"),
    # texts
    ("a.csv", f"{HEADER} \u3000\t,좋다\n", "a.csv, line 4 (row 3): 'text' is empty; fill it in or take the row out"),
    ("a.jsonl", '{"text": 5, "label": 1}\n', "a.jsonl, line 1: 'text' is 5, not text; convert the column or give"),
    ("a.jsonl", '{"text": ["가"], "label": 1}\n', "a.jsonl, line 1: 'text' is ['가'], not text"),
    (
        "a.jsonl",
        '{"text": "a\\u0000", "label": 1}\n',
        "line 1: 'text' holds '\\x00', which is no character; take it out",
    ),
    ("a.jsonl", '{"text": "a\\ud83d", "label": 1}\n', "line 1: 'text' holds '\\ud83d', which is no character"),
    (
        "a.csv",
        f"{HEADER}{'가' * (MAX_TEXT_CHARS + 1)},좋다\n",
        "line 4 (row 3): 'text' has 1,000,001 characters, more than 1,000,000; cut it, or look for a quotation mark",
    ),
    (
        "a.csv",
        f'{HEADER}"{"가,좋다" * 2_500_000}\n',
        "line 4 (row 3): field larger than field limit (1048576); look for a quotation mark that nothing closes",
    ),
    ("a.tsv", f"text\tlabel\n{'가' * 10_000_000}\t좋다\n", "a.tsv, line 2: 'text' has 10,000,000 characters"),
    # fields
    ("a.csv", f"{HEADER}가, 나,좋다\n", "line 4 (row 3): 3 fields where the header has 2; put a text with commas"),
    ("a.csv", f"{HEADER}가\n나,좋다\n", "line 4 (row 3): 1 field where the header has 2"),
    ("a.csv", f"{HEADER}\n나,좋다\n", "line 4 (row 3): an empty line; take it out, or put its text"),
    ("a.csv", 'text,label\n"가\n나\n\n다",좋다\n가,나,다\n', "line 6 (row 2): 3 fields where the header has 2"),
    (
        "a.tsv",
        "text\tlabel\n가\t좋다\n나\t나\t싫다\n",
        "a.tsv, line 3: 3 fields where the header has 2; in a .tsv a line",
    ),
    # quotation marks
    (
        "a.csv",
        f'{HEADER}"가,좋다\n나,싫다\n',
        "line 4 (row 3): unexpected end of data; look for a quotation mark that",
    ),
    (
        "a.csv",
        f'{HEADER}"가,좋다\n"나",싫다\n',
        "line 4 (row 3): ',' expected after '\"'; ... in a text that is not dou",
    ),
    ("a.csv", '"text,label\n가,1\n', "a.csv, line 1: unexpected end of data"),
    ("a.csv", "text,label\r가,1\r나,0\r", "a.csv, line 1: new-line character seen in unquoted field"),
    # bytes
    ("a.csv", f"{HEADER}가\0,좋다\n", "a.csv, line 4: a NUL byte; the file is damaged, or UTF-16: write it again"),
    ("a.tsv", "text\tlabel\n가\t좋다\0\n", "a.tsv, line 2: a NUL byte"),
    (
        "a.csv",
        b"text,label\nx,1\n" + "가,1".encode("cp949"),
        "line 3: byte 15 (0xb0) is not UTF-8; if the file is CP949",
    ),
    ("a.csv", "text,label\n가".encode("cp949"), "convert it with `iconv -f CP949 -t UTF-8`"),
    ("a.tsv", b"\xef\xbb\xbftext\tlabel\n\xff\n", "a.tsv, line 2: byte 14 (0xff) is not UTF-8"),
    ("a.csv", "text,label\n가,좋다\n".encode("utf-16"), "a.csv is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"),
    ("a.parquet", b"PAR1 no such thing PAR1", "cannot read ...a.parquet: ...; it is damaged: copy or write it again"),
    # objects
    (
        "a.jsonl",
        '{"text": "가", "label": 1}\n["나", 0]\n',
        'a.jsonl, line 2: ["나", 0] is no object; write one, {...}',
    ),
    (
        "a.jsonl",
        '{"text": "가", "label": 1}\n\n{"text": "나"}\n',
        "a.jsonl, line 2: no JSON (Expecting value); write one",
    ),
    ("a.jsonl", '{"text": "가"\n', "a.jsonl, line 1: no JSON (Expecting ',' delimiter); write one object a line"),
    ("a.jsonl", '{"text": "가", "label": 1, "text": "나"}\n', "a.jsonl, line 1: no JSON (a key stands twice)"),
    ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: no JSON ("),
]


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def says(message: str, expected: str) -> bool:
    """Tell whether the parts of what is expected, with ... between, stand in the message in this order."""
    position = 0
    for part in expected.split("..."):
        position = message.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


@pytest.mark.parametrize(("name", "content", "expected"), BAD_FILES)
def test_what_cannot_be_used_is_named_with_its_file_and_row(tmp_path, name, content, expected):
    path = write(tmp_path / name, content)
    message = message_of(lambda: read(path))
    assert says(message, expected), message
    assert str(path) in message and len(message) < 1000


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_bad_row_of_dev_or_test_is_named_with_its_own_file(tmp_path, split):
    path = write_rows(tmp_path / "mine.csv", ROWS)
    other = write_rows(tmp_path / "other.jsonl", [*ROWS[:3], {"text": "글", "label": "좋아"}])
    message = message_of(lambda: read(path, **{split: other}))
    assert message == (
        f"{other}, line 4: unknown label '좋아', not one of '싫다', '좋다'; mend it, take the row out, or name all "
        "labels with --labels"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"text": "가", "label": None}], "row 1: 'label' is empty"),
        (
            [{"text": "가", "label": 0.5}, {"text": "나", "label": float("nan")}],
            "row 2: 'label' is nan, no finite number",
        ),
        ([{"text": "가", "label": b"1"}], "row 1: 'label' is b'1', not text or a number; convert the column"),
        ([{"text": 1, "label": 1}], "row 1: 'text' is 1, not text; convert the column or give another"),
        ([{"text": "가", "other": 1}], "no column 'label'; it has 'text', 'other'"),
    ],
)
def test_what_cannot_be_used_in_parquet_is_named(tmp_path, content, expected):
    path = write_rows(tmp_path / "mine.parquet", content)
    assert says(message_of(lambda: read(path)), f"{path}...{expected}")


def test_text_in_parquet_that_is_no_utf8_is_named_with_its_row(tmp_path):
    binary = pa.array(["가".encode(), b"\xff\xfe", b"b"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"text": column, "label": ["a", "b", "a"]}), tmp_path / "mine.parquet")
    assert "mine.parquet, row 2: 'utf-8' codec can't decode" in message_of(lambda: read(tmp_path / "mine.parquet"))


@pytest.mark.parametrize("suffix", [".parquet", ".csv.gz"])
@pytest.mark.parametrize("part", [slice(0, -9), slice(9, None), slice(0, 60)])
def test_a_damaged_file_is_named(tmp_path, suffix, part):
    path = write_rows(tmp_path / f"mine{suffix}", ROWS)
    path.write_bytes(path.read_bytes()[part])
    message = message_of(lambda: read(path))
    assert says(message, f"cannot read {path}: ...; it is damaged: copy or write it again")


def test_a_parquet_file_with_a_damaged_column_name_is_named(tmp_path):
    path = write_rows(tmp_path / "mine.parquet", [row | {"other": 1} for row in ROWS])
    path.write_bytes(path.read_bytes().replace(b"other", b"oth\xffr"))
    assert says(message_of(lambda: read(path)), f"cannot read {path}: 'utf-8' codec ...; it is damaged")


def test_a_parquet_file_without_rows_is_named(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": []}), tmp_path / "mine.parquet")
    assert "mine.parquet has a header and no rows" in message_of(lambda: read(tmp_path / "mine.parquet"))


@pytest.mark.parametrize("name", ["nothing.csv", "a/b.csv", "./a/b", "nothing", "a/b/c", "../x", "."])
def test_a_file_that_is_not_there_is_named_and_what_could_be_given(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = message_of(lambda: read(name))
    known = ".csv, .tsv, .jsonl, .parquet, as .gz too"
    assert message == f"there is no file {name}; give one ({known}), or the id of a data set on the Hub, OWNER/NAME"


@pytest.mark.parametrize("name", ["a.xlsx", "a.txt", "a", "a.gz", "csv"])
def test_an_unknown_extension_is_named_and_those_that_are_known(tmp_path, name):
    path = write(tmp_path / name, "text,label\n가,1\n")
    assert says(message_of(lambda: read(path)), f"{path}: unknown extension; use one of .csv, ...a spreadsheet can be")


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        (["a", "b", "c"], ["d"], "3 text columns, 'a', 'b', 'c'; give one, or the two of a pair"),
        ([], ["d"], "0 text columns, none at all; give one"),
        (["a"], [], "no label column; give one, or several of 0 and 1"),
        (["a"], ["a"], "the column 'a' is given 2 times; give each once, as --text or --label"),
        (["a", "a"], ["b"], "the column 'a' is given 2 times"),
        (["a"], ["b", "c", "b"], "the column 'b' is given 2 times"),
    ],
)
def test_columns_that_make_no_task_are_named(tmp_path, text, label, expected):
    assert expected in message_of(lambda: read_own_data(tmp_path / "mine.csv", text=text, label=label))


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (
            with_labels(["a"]),
            {},
            "the label column 'label' holds one class, 'a'; give another --label, or rows of two",
        ),
        (with_labels([[], []]), {}, "'label' holds one class, none at all"),
        (
            [{"text": f"{i}", "label": f"글 {i // 2}"} for i in range(2 * MAX_CLASSES + 2)],
            {},
            "has 1001 classes in 2002 values and seems to hold no labels, which are at most 1000 and stand in two",
        ),
        ([{"text": f"{i}", "label": f"{i // 2}"} for i in range(81)], {}, "has 41 classes in 81 values"),
        (
            [{"text": f"{i}", "label": f"{i}.5" if i != 7 else "3,5"} for i in range(80)],
            {},
            "has 80 classes in 80 values ... give another --label, or mend '3,5', which is no number",
        ),
        (
            with_labels(["a", "b", "nan"]),
            {},
            "'label' holds 'nan' 30 times, which stands for no label; take these rows",
        ),
        (with_labels(["0.5", "1", "NaN"]), {}, "the label 'NaN' is no finite number; mend it or take the row out"),
        (with_labels(["0.5", "1", "-inf"]), {}, "the label '-inf' is no finite number"),
        (ROWS, {"labels": ["좋다"]}, "labels are '좋다'; give two or more, each once"),
        (ROWS, {"labels": ["좋다", "좋다", "싫다"]}, "labels are '좋다', '좋다', '싫다'; give two or more, each once"),
        (ROWS, {"labels": []}, "labels are none at all"),
        (
            with_labels(["good", "bad"]),
            {"labels": ["god", "bad"]},
            "line 1: unknown label 'good' (did you mean 'god'?)",
        ),
        (
            with_labels([["a"], ["b", "b"]]),
            {},
            "line 2: ['b', 'b'] has a label twice; write those that apply, each once",
        ),
        (
            with_labels([[1, 0, 0], [0, 1, 0]]),
            {},
            "line 1: [1, 0, 0] has a label twice; ... or a column of 0 and 1 for",
        ),
        (
            with_labels([["a"], "b", ["b"]]),
            {},
            "line 2: the label 'b' is no list, as it is elsewhere; write it as one",
        ),
        (
            [{"text": "가", "a": 1, "b": 0}, {"text": "나", "a": 1, "b": 2}],
            {"label": ["a", "b"]},
            "line 2: 'b' is 2, not 0 or 1; for a column of classes give no other label",
        ),
        (
            [{"text": "가", "a": 1, "b": 0}],
            {"label": ["a", "b"], "labels": ["x", "y"]},
            "labels are given, and the label columns 'a', 'b', which are labels; leave one out",
        ),
        (ROWS, {"revision": "main"}, "revision is 'main', and ... is no data set of the Hub; leave it out"),
    ],
)
def test_labels_that_make_no_task_are_named(tmp_path, rows, options, expected):
    path = write_rows(tmp_path / "mine.jsonl", rows)
    message = message_of(lambda: read(path, **options))
    assert says(message, expected), message
    assert "mine.jsonl" in message or expected.startswith("labels are")


def test_a_message_lists_the_first_hundred_classes(tmp_path):
    path = write_rows(tmp_path / "mine.csv", with_labels(["a", "b"]))
    message = message_of(lambda: read(path, labels=[f"class {i}" for i in range(300)]))
    assert "'class 99' and 200 more; mend it" in message and "'class 100'" not in message


# the Hub

READ_HUB = """
from kcelectra.finetuning.own_data import read_own_data

def read(name, **options):
    task, splits = read_own_data(name, **{"text": ["text"], "label": ["label"], **options})
    return [task.name, task.labels, task.source, task.is_multi_label, *splits]

name = "someone/my.reviews"
attempt("main", lambda: read(name))
attempt("again", lambda: read(name, revision="main"))
attempt("old", lambda: read(name, revision="old"))
attempt("given", lambda: read(name, dev=sys.argv[1], test=sys.argv[2]))
attempt("lists", lambda: read("someone/lists"))
attempt("flags", lambda: read("someone/flags", label=["a", "b"]))
attempt("plain", lambda: read("someone/plain"))
attempt("secret", lambda: read("someone/secret"))
attempt("secret but given", lambda: read("someone/secret", test=sys.argv[2]))
attempt("bad row", lambda: read("someone/bad"))
attempt("same twice", lambda: read("someone/twice"))
attempt("no train", lambda: read("someone/test-only"))
attempt("column", lambda: read(name, text=["texts"]))
attempt("revision", lambda: read(name, revision="v9"))
attempt("repository", lambda: read("someone/nothing"))
attempt("damaged", lambda: read("someone/damaged"))
"""
CLASSES = Features({"text": Value("string"), "label": ClassLabel(names=["싫다", "보통", "좋다"])})
HUB_ROWS = [{"text": f"댓글 {i}", "label": i % 3} for i in range(90)]


def publish(root: Path, repository: str, features: Features | None = None, **splits: list[dict]) -> Path:
    """Write a data set of the Hub: a Parquet file for each split."""
    directory = root / "datasets" / "someone" / repository / "data"
    directory.mkdir(parents=True)
    for split, rows in splits.items():
        Dataset.from_list(rows, features=features).to_parquet(directory / f"{split}-00000-of-00001.parquet")
    return directory


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Data sets with three splits, one, labels that are kept secret, and some that make no task."""
    directory = tmp_path_factory.mktemp("own_data")
    root = directory / "hub"
    parts = {"train": HUB_ROWS[:60], "validation": HUB_ROWS[60:70], "test": HUB_ROWS[55:]}
    publish(root, "my.reviews/main", CLASSES, **parts)
    publish(root, "my.reviews/old", CLASSES, train=HUB_ROWS)
    labels = List(ClassLabel(names=["욕설", "광고"]))
    lists = [{"text": row["text"], "label": [[], [1], [0, 1]][row["label"]]} for row in HUB_ROWS]
    publish(root, "lists/main", Features({"text": Value("string"), "label": labels}), train=lists)
    flags = [{"text": row["text"], "a": row["label"] // 2, "b": row["label"] % 2} for row in HUB_ROWS]
    flag = ClassLabel(names=["no", "yes"])
    publish(root, "flags/main", Features({"text": Value("string"), "a": flag, "b": flag}), train=flags)
    plain = root / "datasets" / "someone" / "plain" / "main"
    plain.mkdir(parents=True)
    write_rows(plain / "train.csv", ROWS[:60])
    write_rows(plain / "dev.csv", ROWS[60:])
    files = [{"split": split, "path": f"{split}.csv"} for split in ("train", "dev")]
    (plain / "README.md").write_text(
        f"---\nconfigs: {json.dumps([{'config_name': 'default', 'data_files': files}])}\n---\n"
    )
    secret = [row | {"label": -1} for row in HUB_ROWS[60:]]
    publish(root, "secret/main", CLASSES, train=HUB_ROWS[:60], test=secret)
    publish(root, "bad/main", CLASSES, train=[*HUB_ROWS, {"text": " ", "label": 0}])
    publish(root, "twice/main", CLASSES, train=HUB_ROWS, test=HUB_ROWS)
    publish(root, "test-only/main", CLASSES, test=HUB_ROWS)
    (publish(root, "damaged/main") / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no such thing PAR1")
    files = [str(write_rows(directory / f"{name}.csv", ROWS[start:])) for name, start in OTHERS]
    with HubServer(root) as hub:
        client = run_client(READ_HUB, *files, hub=hub, directory=directory)
        client.commits = {name: hub.find("datasets", "someone/my.reviews", name)[1] for name in ("main", "old")}
    return client


def test_splits_and_class_names_of_a_data_set_of_the_hub_are_used(client):
    name, labels, source, is_multi_label, train, dev, test, files, notes = client.results["main"]
    assert (name, source, is_multi_label) == ("someone-my.reviews", "someone/my.reviews", False)
    assert labels == ["싫다", "보통", "좋다"]
    assert train == [[[row["text"]], row["label"]] for row in HUB_ROWS[:60]]
    assert dev == [[[row["text"]], row["label"]] for row in HUB_ROWS[60:70]]
    assert test == [[[row["text"]], row["label"]] for row in HUB_ROWS[55:]]
    lines = "".join(f"{json.dumps([[row['text']], [labels[row['label']]]])}\n" for row in HUB_ROWS[:60])
    assert files["train"] == hashlib.sha256(lines.encode()).hexdigest()
    assert set(files) == {"train", "dev", "test"} and len(set(files.values())) == 3
    assert notes == [
        f"someone/my.reviews at {client.commits['main']}",
        "5 of 35 test texts are also in train",
        "10 of 35 test texts are also in dev",
    ]
    assert client.results["again"] == client.results["main"]


def test_a_revision_is_pinned_and_what_is_missing_is_carved(client):
    *_, train, dev, test, files, notes = client.results["old"]
    assert len(train) + len(dev) + len(test) == 90 and set(files) == {"train"}
    assert notes == [
        f"someone/my.reviews at {client.commits['old']}",
        "test: 1 in 10 of train, by a hash of the text",
        "dev: 1 in 10 of the rest, by a hash of the text",
    ]


def test_files_that_are_given_take_the_place_of_splits_of_the_hub(client):
    *_, train, dev, test, files, _ = client.results["given"]
    main = client.results["main"]
    assert train == main[4] and files["train"] == main[7]["train"] and files["test"] != main[7]["test"]
    assert (len(dev), len(test)) == (len(ROWS) - 10, len(ROWS) - 20)
    assert {label for _, label in test} == {0, 2}


def test_lists_and_flags_of_a_data_set_of_the_hub_are_several_labels(client):
    _, labels, _, is_multi_label, *parts, _, _ = client.results["lists"]
    assert labels == ["욕설", "광고"] and is_multi_label
    by_text = {text: label for part in parts for (text,), label in part}
    assert by_text == {f"댓글 {i}": [[0, 0], [0, 1], [1, 1]][i % 3] for i in range(90)}
    _, labels, _, is_multi_label, *parts, _, _ = client.results["flags"]
    assert labels == ["a", "b"] and is_multi_label
    by_text = {text: label for part in parts for (text,), label in part}
    assert by_text == {f"댓글 {i}": [i % 3 // 2, i % 3 % 2] for i in range(90)}


def test_a_data_set_of_the_hub_without_class_names_has_those_found_and_dev_by_that_name(client):
    _, labels, _, _, train, dev, test, _, notes = client.results["plain"]
    assert labels == ["싫다", "좋다"] and len(dev) == 30 and len(train) + len(test) == 60
    assert notes[1:] == ["test: 1 in 10 of train, by a hash of the text"]


def test_a_split_whose_labels_are_kept_secret_can_be_replaced(client):
    message = client.results["secret"]
    assert message.endswith("someone/secret, test: no row has a 'label'; give a file with labels for this split")
    assert len(client.results["secret but given"][6]) == len(ROWS) - 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bad row", "someone/bad, train, row 91: 'text' is empty; fill it in or take the row out"),
        ("same twice", "train and test are the same data"),
        ("no train", "someone/test-only has no split 'train', but 'test'; download the files and give their paths"),
        ("column", "someone/my.reviews, train: no column 'texts' (did you mean 'text'?); it has 'text', 'label'"),
        ("revision", "cannot open 'someone/my.reviews': ...; give a local path or a Hub id owner/name"),
        ("repository", "cannot open 'someone/nothing': ...; give a local path or a Hub id owner/name"),
        ("damaged", "cannot load someone/damaged: ...; download a file of it and give its path"),
    ],
)
def test_a_data_set_of_the_hub_that_makes_no_task_says_what_to_type(client, name, expected):
    assert says(client.results[name], f"kcelectra.errors.InputError: {expected}")


def test_no_request_leaves_for_another_host(client):
    assert client.calls and client.unknown == []
    assert set(client.elsewhere) <= {"datasets-server.127.0.0.1"}  # as in test_hub.py


# real data


def test_a_published_csv_is_read_as_it_is(shared_data):
    path = shared_data / "hate_speech/hatescore/HateScore.csv"
    task, splits = read(path, text=["comment"], label=["macrolabel"])
    assert task.labels == ("Clean", "단순 악플", "혐오발언")
    assert sum(map(len, splits[:3])) == 11_108
    with open(path, encoding="utf-8-sig", newline="") as file:
        expected = sorted((row["comment"], row["macrolabel"]) for row in csv.DictReader(file))
    assert sorted((*texts, task.labels[label]) for part in splits[:3] for texts, label in part) == expected


def test_rows_that_a_publisher_has_quoted_whole_are_no_classes_of_their_own(shared_data, tmp_path):
    path = shared_data / "hate_speech/malicious_comments/Dataset.csv"
    columns = {"text": ["content"], "label": ["lable"]}
    assert says(message_of(lambda: read(path, **columns)), "Dataset.csv, line 1604 (row 1603): 1 field where the")
    renamed = shutil.copyfile(path, tmp_path / "Dataset.tsv")
    assert "Dataset.tsv, line 1604: a quotation mark in the label" in message_of(lambda: read(renamed, **columns))
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines())
    mended = "".join(f"{text.removeprefix(chr(34))}\t{label.removesuffix(chr(34))}\n" for text, label in lines)
    task, splits = read(write(tmp_path / "mended.tsv", mended), **columns)
    assert task.labels == ("0", "1") and sum(map(len, splits[:3])) == 10_000


def test_a_task_of_the_table_is_the_same_as_a_table_of_ones_own(shared_data):
    directory = shared_data / "korsts"
    train, dev, test = (directory / f"sts-{split}.tsv" for split in ("train", "dev", "test"))
    task, splits = read(train, text=["sentence1", "sentence2"], label=["score"], dev=dev, test=test)
    assert task.labels is None and splits[:3] == read_splits(TASKS["korsts"], shared_data)[:3]
