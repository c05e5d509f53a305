"""The files of the tasks, as their publishers have them."""

import json
from pathlib import Path

import pytest

from kcelectra.errors import InputError
from kcelectra.finetuning.sources import Span, read_rows, read_spans
from kcelectra.finetuning.tasks import TASKS, Task

NUM_ROWS = {
    "nsmc": 50_000,
    "naver-ner": 9_000,
    "paws": 2_000,
    "kornli": 5_010,
    "korsts": 1_379,
    "question-pair": 758,
    "korquad": 5_774,
    "beep": 471,
    "unsmile": 3_737,
    "kmhas": 21_939,
}


def write_task(directory: Path, data: bytes, name: str = "task.tsv", columns: tuple = ("text",)) -> Task:
    (directory / name).write_bytes(data)
    return Task("mine", name, columns, 50)


@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_a_published_file_is_read(shared_data, name):
    rows = read_rows(TASKS[name], shared_data)
    assert len(rows) == NUM_ROWS[name]
    assert {len(row) for row in rows} == {2 if len(TASKS[name].text_columns) == 2 else 1}
    assert sum(not text for row in rows for text in row) <= 3  # NSMC has three empty reviews


def test_quotation_marks_are_text(tmp_path):
    task = write_task(tmp_path, 'id\ttext\n1\t"""아""" 좋다\n2\t"열고\n'.encode())
    assert read_rows(task, tmp_path) == [('"""아""" 좋다',), ('"열고',)]


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(tmp_path):
    task = write_task(tmp_path, "\ufefftext\tlabel\r\n좋다\t1\r\n싫다\t0".encode())
    assert read_rows(task, tmp_path) == [("좋다",), ("싫다",)]


def test_a_file_without_a_header_is_read_by_number(tmp_path):
    task = write_task(tmp_path, "가 나\tO O\n다\tO\n".encode(), columns=(0,))
    assert read_rows(task, tmp_path) == [("가 나",), ("다",)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("id\tdocument\n1\t가\n".encode(), "has no column 'text'; it has 'id', 'document'"),
        (
            "text\tother\n가\t나\n".encode() + b"\xff\t1\n",
            "cannot read .*task.tsv.*give the directory of all tasks as --data_dir",
        ),
        ("other\ttext\n나\t가\n다\n".encode(), "task.tsv, line 3: 1 columns; download the file again"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        read_rows(write_task(tmp_path, data), tmp_path)


def squad(context: str, start: int, answer: str) -> bytes:
    question = {
        "question": "누구?",
        "answers": [{"answer_start": start, "text": answer}, {"answer_start": 0, "text": "x"}],
    }
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]}).encode()


def test_a_question_has_its_first_answer(tmp_path):
    task = write_task(tmp_path, squad("그는 세종대왕이다", 3, "세종대왕"), "squad.json")
    assert read_spans(task, tmp_path) == [Span("누구?", "그는 세종대왕이다", 3, "세종대왕")]
    assert read_rows(task, tmp_path) == [("누구?", "그는 세종대왕이다")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (squad("그는 세종대왕이다", 4, "세종대왕"), "question 1: '세종대왕' is not at 4 of its text"),
        (b"{", "not in the format of SQuAD 1.1"),
        (b"[]", "not in the format of SQuAD 1.1"),
        (b'{"data": [{"paragraphs": [{"qas": []}, {"qas": [{}]}]}]}', "not in the format of SQuAD 1.1"),
    ],
)
def test_questions_that_are_wrong_are_named(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        read_spans(write_task(tmp_path, data, "squad.json"), tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read .*ratings_test.txt.*--data_dir"):
        read_rows(TASKS["nsmc"], tmp_path)
