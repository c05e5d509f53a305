"""A task of one's own, from a file or a data set of the Hub, by the names of its columns."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kcelectra.errors import InputError
from kcelectra.finetuning.sources import DEV_SHARE, Example, LabelledTexts, Splits, carve
from kcelectra.finetuning.tables import (
    Columns,
    Row,
    Table,
    as_list,
    is_on_hub,
    list_names,
    read_file,
    read_hub,
    suggest,
)
from kcelectra.finetuning.tasks import TASKS, Task

MAX_CLASSES = 1000  # assumption: a column with more, or with fewer than two rows a class, is no label
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)", re.IGNORECASE)
INTEGER = re.compile(r"([+-]?\d+)(\.0*)?")  # with a point where a table has gaps
FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}


class TaskData(NamedTuple):
    """A task, and its examples."""

    task: Task
    splits: Splits


@dataclass(frozen=True)
class _Labels:
    """What label columns hold; `names` by id, None for a number."""

    columns: list[str]
    names: tuple[str, ...] | None
    is_multi_label: bool

    def parse(self, row: Row) -> int | float | tuple[int, ...]:
        value = row.labels[0]
        if len(self.columns) > 1:
            return tuple(_parse_flag(*pair, row.where) for pair in zip(self.columns, row.labels, strict=True))
        if self.names is None:
            number = _to_number(value)
            if number is None or not math.isfinite(number):
                raise InputError(
                    f"{row.where}: the label {value!r:.100} is no finite number; mend it or take the row out"
                )
            return number
        if not self.is_multi_label:
            return self._find_id(value, row.where)
        if not isinstance(value, list):
            raise InputError(f"{row.where}: the label {value!r:.100} is no list, as it is elsewhere; write it as one")
        ids = [self._find_id(part, row.where) for part in value]
        if len(set(ids)) < len(ids):
            raise InputError(
                f"{row.where}: {value!r:.100} has a label twice; write those that apply, each once, or a column of 0 "
                "and 1 for each"
            )
        return tuple(int(index in ids) for index in range(len(self.names)))

    def _find_id(self, value: Any, where: str) -> int:
        names, name = self.names or (), _to_class(value)
        if name not in names:
            raise InputError(
                f"{where}: unknown label {name[:100]!r}{suggest(name, names)}, not one of {list_names(names)}; mend "
                "it, take the row out, or name all labels with --labels"
            )
        return names.index(name)


def read_own_data(
    data: str | Path,
    *,
    text: Sequence[str],
    label: Sequence[str],
    labels: Sequence[str] | None = None,
    dev: str | Path | None = None,
    test: str | Path | None = None,
    revision: str | None = None,
    name: str | None = None,
) -> TaskData:
    """Return the task that a table stands for, and its examples.

    A label column of numbers, one of them with a fraction, is a number to predict. Any other holds classes, or, where
    its values are lists, the labels of a text: those found in train, in numeric or alphabetic order, or those that a
    data set of the Hub names. White space around a label is no part of it.

    Where no test split is given one text in ten becomes it; where no dev split is, one in ten of the rest. That looks
    at a hash of the text alone, so that it is the same everywhere, and texts that differ in white space alone stay
    together.

    Args:
        data: a file, `.csv`, `.tsv`, `.jsonl` (these also as `.gz`) or `.parquet`, or the id of a data set on the Hub.
            A `.csv` may have tabs for commas; in a `.tsv` quotation marks are text, as in NSMC.
        text: one column, or the two of a pair.
        label: one column, or several of 0 and 1, where each is a label that a text may have.
        labels: the classes, by id; those that are found if None.
        dev: a file that chooses the best step.
        test: a file that is reported.
        revision: of a data set on the Hub.
        name: of the task; that of the data if None.

    Raises:
        InputError: the data cannot be read or split, or a row is not what it should be; file and row are named.
    """
    source, columns = str(data), Columns([*text], [*label])
    given = {split: str(path) for split, path in (("dev", dev), ("test", test)) if path is not None}
    if is_on_hub(source):
        tables, commit = read_hub(source, columns, revision=revision, given=given)
        notes = [f"{source} at {commit}"]
    elif revision is None:
        tables, notes = {"train": read_file(source, columns)}, []
    else:
        raise InputError(f"revision is {revision!r}, and {source} is no data set of the Hub; leave it out")
    tables |= {split: read_file(path, columns) for split, path in given.items()}
    schema = _find_labels(tables["train"], columns.labels, source, labels)
    task = _make_task(_make_name(name, source), source, columns, schema)
    return TaskData(task, _split(tables, schema, source, notes))


def _make_task(name: str, source: str, columns: Columns, labels: _Labels) -> Task:
    metric, selected_by = ("correlation", "spearman") if labels.names is None else ("macro_f1", "macro_f1")
    if labels.is_multi_label:
        metric, selected_by = "multi_label", "micro_f1"
    return Task(
        name=name,
        head="sequence",
        directory="",
        files={},
        text_columns=tuple(columns.texts),
        label_columns=tuple(columns.labels),
        labels=labels.names,
        is_multi_label=labels.is_multi_label,
        is_standardized=labels.names is None,
        metric=metric,
        selected_by=selected_by,
        max_length=128,  # this and the next three: those of BEEP!, in half the epochs (assumption)
        batch_size=32,
        num_epochs=5,
        learning_rate=5e-5,
        licence="unknown",
        source=source,
    )


def _make_name(name: str | None, source: str) -> str:
    """Return what a directory can be called."""
    stem = source if is_on_hub(source) else Path(source.removesuffix(".gz")).stem
    safe = re.sub(r"[^\w.-]+", "-", stem if name is None else name).strip("-.")
    if not safe or safe in TASKS:
        raise InputError(f"the name of the task would be {safe!r}; give a --name that is none of {list_names(TASKS)}")
    return safe


# splits


def _split(tables: dict[str, Table], labels: _Labels, source: str, notes: list[str]) -> Splits:
    hashes = {split: table.sha256 for split, table in tables.items()}
    for split, other in (("test", "train"), ("dev", "train"), ("test", "dev")):
        if split in hashes and hashes[split] == hashes.get(other):
            raise InputError(
                f"{other} and {split} are the same data; a score on it says nothing: give another {split}"
            )
    rows = {split: list(table.rows) for split, table in tables.items()}
    notes += _part(rows)
    parts: dict[str, list[Example]] = {
        split: [LabelledTexts(row.texts, labels.parse(row)) for row in given] for split, given in rows.items()
    }
    carved_from = "train"
    for split, salt in (("test", b"test"), ("dev", b"")):  # with one salt dev would be empty
        if split not in parts:
            parts["train"], parts[split] = carve(parts["train"], salt=salt, ignores_spaces=True)
            notes.append(f"{split}: 1 in {DEV_SHARE} of {carved_from}, by a hash of the text")
            carved_from = "the rest"
    for split, examples in parts.items():
        if not examples:
            num_rows = len(tables["train"].rows)
            raise InputError(
                f"{source}: {num_rows} rows are too few, {split} has none; give more, or a file for {split}"
            )
    return Splits(parts["train"], parts["dev"], parts["test"], hashes, notes)


def _part(rows: dict[str, list[Row]]) -> Iterator[str]:
    """Leave out of train what is in dev, where test is to be carved from it; note the texts that splits share."""
    if "dev" in rows and "test" not in rows:  # else what chose the step would be reported
        num_rows, in_dev = len(rows["train"]), set(map(_compared, rows["dev"]))
        rows["train"] = [row for row in rows["train"] if _compared(row) not in in_dev]
        if num_known := num_rows - len(rows["train"]):
            yield f"{num_known} of {num_rows} train texts are also in dev, and left out"
    for split, other in (("test", "train"), ("test", "dev"), ("dev", "train")):
        texts = set(map(_compared, rows.get(other, ())))
        if num_known := sum(_compared(row) in texts for row in rows.get(split, ())):
            yield f"{num_known} of {len(rows[split])} {split} texts are also in {other}"


def _compared(row: Row) -> tuple[str, ...]:
    """Return the texts by which rows are equal: as `carve` has them."""
    return tuple(" ".join(text.split()) for text in row.texts)


# labels


def _parse_flag(column: str, value: Any, where: str) -> int:
    flag = FLAGS.get(_to_class(value).lower())
    if flag is None:
        raise InputError(
            f"{where}: {column!r} is {value!r:.100}, not 0 or 1; for a column of classes give no other label"
        )
    return flag


def _find_labels(train: Table, columns: list[str], source: str, given: Sequence[str] | None) -> _Labels:
    if len(columns) > 1:
        if given is not None:
            raise InputError(
                f"labels are given, and the label columns {list_names(columns)}, which are labels; leave one out"
            )
        return _Labels(columns, tuple(columns), is_multi_label=True)
    values = [row.labels[0] for row in train.rows]
    is_multi_label = any(isinstance(value, list) for value in values)
    names = train.names if given is None else list(map(_to_class, given))
    if names is None:
        numbers = [_to_number(value) for value in values]
        if None not in numbers and not all(number.is_integer() for number in numbers if number is not None):
            return _Labels(columns, None, is_multi_label=False)
        names = _find_classes(values, f"{source}: the label column {columns[0]!r}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"labels are {list_names(names)}; give two or more, each once")
    return _Labels(columns, tuple(names), is_multi_label)


def _find_classes(values: list[Any], what: str) -> list[str]:
    counts = Counter(_to_class(part) for value in values for part in as_list(value))
    if missing := [name for name in counts if name.lower() == "nan"]:  # what pandas writes where nothing is
        raise InputError(
            f"{what} holds {missing[0]!r} {counts[missing[0]]} times, which stands for no label; take these rows out, "
            "or, if it is one, name all labels with --labels"
        )
    if len(counts) < 2:
        raise InputError(f"{what} holds one class, {list_names(counts)}; give another --label, or rows of two classes")
    if len(counts) > MAX_CLASSES or 2 * len(counts) > counts.total():
        words = [name for name in counts if not NUMBER.fullmatch(name)]
        hint = f", or mend {words[0]!r:.100}, which is no number" if 0 < len(words) < len(counts) else ""
        raise InputError(
            f"{what} has {len(counts)} classes in {counts.total()} values and seems to hold no labels, which are at "
            f"most {MAX_CLASSES} and stand in two rows each; give another --label{hint}"
        )
    is_numeric = all(INTEGER.fullmatch(name) for name in counts)
    return sorted(counts, key=lambda name: (float(name) if is_numeric else 0.0, name))


def _to_class(value: Any) -> str:
    name = str(value).strip()
    integer = INTEGER.fullmatch(name)
    return integer[1] if integer else name


def _to_number(value: Any) -> float | None:
    name = str(value).strip()
    return float(name) if NUMBER.fullmatch(name) else None
