"""Read the files of the tasks, as their publishers have them."""

import json
from pathlib import Path
from typing import NamedTuple

from kcelectra.errors import InputError
from kcelectra.finetuning.tasks import Task


class Span(NamedTuple):
    """A question about a text, and where in it the answer stands, in code points."""

    question: str
    context: str
    start: int
    answer: str


def read_rows(task: Task, data_dir: str | Path) -> list[tuple[str, ...]]:
    """Return the texts of a task's test file, one or two a row.

    Args:
        task: one of `TASKS`.
        data_dir: the directory of all tasks.

    Raises:
        InputError: the file cannot be read, or a row is not what it should be; the row is named.
    """
    path = Path(data_dir, task.test_file)
    if path.suffix == ".json":
        return [(span.question, span.context) for span in read_spans(task, data_dir)]
    lines = _read(path).removesuffix("\n").split("\n")
    columns = list(task.text_columns)
    has_header = isinstance(columns[0], str)
    if has_header:
        header = lines.pop(0).removesuffix("\r").split("\t")
        missing = [name for name in columns if name not in header]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(repr, header))}")
        columns = [header.index(str(name)) for name in columns]
    rows = []
    for number, line in enumerate(lines, start=1 + has_header):
        fields = line.removesuffix("\r").split("\t")  # quotation marks are text in all of these files
        if len(fields) <= max(map(int, columns)):
            raise InputError(f"{path}, line {number}: {len(fields)} columns; download the file again")
        rows.append(tuple(fields[int(column)] for column in columns))
    return rows


def read_spans(task: Task, data_dir: str | Path) -> list[Span]:
    """Return the questions of a file in the format of SQuAD 1.1, each with its first answer.

    Raises:
        InputError: the file cannot be read or has another format, or an answer is not where the file says.
    """
    path = Path(data_dir, task.test_file)
    try:
        articles = json.loads(_read(path))["data"]
        spans = [
            Span(question["question"], paragraph["context"], answer["answer_start"], answer["text"])
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
            for answer in question["answers"][:1]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not in the format of SQuAD 1.1 ({error!r}); download the file again") from error
    for number, span in enumerate(spans, start=1):
        if not span.context.startswith(span.answer, span.start):
            raise InputError(f"{path}, question {number}: {span.answer!r} is not at {span.start} of its text")
    return spans


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give the directory of all tasks as --data_dir") from error
