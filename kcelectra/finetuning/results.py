"""Rows of `results.jsonl`: one a run, told apart by what went into it."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kcelectra.errors import InputError
from kcelectra.manifest import to_json

RESULTS_FILE = "results.jsonl"
LOCKS_DIR = ".jobs"


def hash_row(row: Mapping[str, Any]) -> str:
    """Return what tells two runs apart: contents, never names or paths."""
    names = ["task", "columns", "labels", "seed", "protocol", "settings", "num_examples"]
    names += ["weights_sha256", "tokenizer_sha256", "data_sha256"]
    return hashlib.sha256(json.dumps({name: row[name] for name in names}, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for who else holds a lock, and hold it; that of a process that was killed is free at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append_result(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Append a row, whole or not at all, and return it; several processes may write to one file.

    A row whose `key` is there already is not appended: the one that is there is returned.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for earlier in read_runs(path):
            if earlier["key"] == row["key"]:
                return earlier
        file.seek(0)
        lines = file.read()
        start = lines.rfind(b"\n") + 1
        ends = b"\n" if _is_row(lines[start:]) else b""
        file.truncate(len(lines) if ends else start)  # else what a process that was killed here has left behind
        file.write(ends + f"{to_json(row)}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    return row


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a results file, none if it does not exist; a last line that was cut is none.

    One that only lacks its line end is a row: an editor has left it out.

    Raises:
        InputError: a line is no row; it is named.
    """
    if not Path(path).exists():
        return []
    rows = []
    *lines, last = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last] if _is_row(last) else lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number} is no row ({error}); take the line out") from error
    return rows


def read_runs(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a results file, each with its key.

    Raises:
        InputError: a line is no row, or a row has no key; it is named.
    """
    rows = read_results(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or "key" not in row:
            raise InputError(f"{path}, line {number} is no row of a run (it has no key); take the line out")
    return rows


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def describe_row(row: Mapping[str, Any]) -> str:
    """Return a line: the scores, where they were chosen, and what is wrong with them."""
    scores = ", ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row["metrics"].items()
    )
    warning = "  COLLAPSED: every prediction is the same" if row["collapsed"] else ""
    notes = [*(["selected on test"] if row["selected_on"] == "test" else []), *row["notes"]]
    step = "" if row["step"] is None else f" at {row['step']}"
    return (
        f"{row['model']}{step}, {row['task']}, seed {row['seed']}: {scores} at step {row['best_step']} of "
        f"{row['num_steps']}{warning}{'  (' + '; '.join(notes) + ')' if notes else ''}"
    )
