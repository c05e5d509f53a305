"""The score table of KcELECTRA's README, beside what the result files of its own runs hold."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any, NamedTuple

from kcelectra.errors import InputError
from kcelectra.manifest import write_atomically

#: The runs of the models that were fine-tuned for the table; what it says of the other models is copied.
_RUN_OF = {
    "KcELECTRA-base-v2022": "kcelectra-v2022-dev",
    "KcELECTRA-base": "KcELECTRA-base-50135-848k",
    "KcBERT-Base": "kcbert-base",
    "KcBERT-Large": "kcbert-large",
}
_OTHER_RUNS = """
    KcELECTRA-base-50135-100k KcELECTRA-base-50135-200k KcELECTRA-base-50135-400k KcELECTRA-base-50135-500k
    KcELECTRA-base-dev-700k KcELECTRA-base-dev-900k KcELECTRA-base-dev-1025k kcelectra-base-v1 kcelectra-base-v1__RETRY
    KcELECTRA-v2022-0404-800k-discriminator KcELECTRA-v2022-0404-800k-discriminator-v2
    KcELECTRA-v2022-namu-50k-discriminator KcELECTRA-v2022-namu-75k-discriminator
    KcELECTRA-v2022-namu-100k-discriminator KcELECTRA-v2022-namu-400k-discriminator
    kcelectra-v2022-v2-300k-discriminator kcbert-base-v2022 exkcbert exkcbert-kowiki exkcbert-paws-extonly test
"""
_RUNS = {*_RUN_OF.values(), *_OTHER_RUNS.split()}
_COLUMNS = ("model", "task", "metric", "finetune_step", "dev_score", "test_score")
_PATTERNS = {"finetune_step": r"\d+"} | dict.fromkeys(_COLUMNS[4:], r"(-?\d+(\.\d+)?(e-?\d+)?)?")
_SCORES = {"acc": "accuracy", "spearmanr": "spearman", "official_exact_match": "exact_match", "official_f1": "f1"}
_FLOATS, _INTS = ("published", "best_on_test", "dev_selected", "last"), ("best_step", "dev_step")


@dataclass(frozen=True)
class Cell:
    """One score of the table, in percent, and what the files hold of it: None where they hold nothing.

    Args:
        model: as the table names it.
        task: a key of `TASKS`.
        score: a value of the task's metric.
        published: in the table.
        protocol: whose code and hyperparameters made the score.
        best_on_test: the highest of all saved steps; of KorQuAD, which has no other split, on dev.
        best_step: of fine-tuning, the first of equals.
        dev_selected: on test, of the step that is best on dev; None where the task has no dev split beside test.
        dev_step: of fine-tuning, the first of equals.
        last: on test, of the last step.
        verdict: `ok`, `stale`, `not the best`, `wrong metric`, `wrong model`, `not in the files` or `no files`.
        note: where the published score stands, if it is not simply the best.
    """

    model: str
    task: str
    score: str
    published: float
    protocol: str
    best_on_test: float | None
    best_step: int | None
    dev_selected: float | None
    dev_step: int | None
    last: float | None
    verdict: str
    note: str


class _Saved(NamedTuple):
    """One score of a saved step, in percent."""

    run: str
    task: str
    score: str
    step: int
    test: Decimal
    dev: Decimal | None

    def __str__(self) -> str:
        return f"{self.show(ROUND_HALF_UP)} at step {self.step}"

    def show(self, rounding: str) -> Decimal:
        """Return it with two decimals, as the table has it."""
        return self.test.quantize(Decimal("0.01"), rounding)


_Bests = Mapping[tuple[str, str, str], _Saved]  # by run, task and score


def read_published() -> list[Cell]:
    """Return the table as it was checked against the original's result files, model by model."""
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {name: float(row[name]) if row[name] else None for name in _FLOATS}
        row |= {name: int(row[name]) if row[name] else None for name in _INTS}
    return [Cell(**row) for row in rows]


def write_published(cells: Iterable[Cell], path: str | Path) -> None:
    """Write cells as a CSV like the package's own, the same bytes for the same cells."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, cells))
    write_atomically(Path(path), text.getvalue())


def check_published(sweep_file: str | Path) -> list[Cell]:
    """Return the table, checked against a file of every score at every saved step.

    The verdict is the first that holds. `ok`: the score, rounded or cut, is the best on test; or it stands with its
    peer (KorQuAD has two scores) at one step, the last or the peer's best. `stale`: it is a step before the best;
    `not the best`: one after it. `wrong metric`: it is another score of the best step. `wrong model`: it is the best
    of another run. Any other step of another run is no evidence, and goes to the note alone: of the 60 accuracies
    that PAWS can give from 74 up to 77 %, 41 occur in a run other than KcELECTRA-base's (measured on the source).

    Args:
        sweep_file: CSV with the columns model, task, metric, finetune_step, dev_score and test_score: shares, of
            KorQuAD percent; empty where there is none.

    Raises:
        InputError: the file cannot be read or lacks a column, or a row is not what it should be.

    Source: README of Beomi/KcELECTRA; result files of Beomi/KcBERT-Finetune, ckpt/.
    """
    table, saved = read_published(), _read_sweep(Path(sweep_file))
    bests = {one[:3]: one for one in sorted(saved, key=lambda one: (one.test, -one.step))}  # the last of a key stays
    return [_check(cell, table, saved, bests) for cell in table]


def _check(cell: Cell, table: Sequence[Cell], saved: Sequence[_Saved], bests: _Bests) -> Cell:
    run = _RUN_OF.get(cell.model)
    own = [one for one in saved if one[:3] == (run, cell.task, cell.score)]
    found: dict[str, Any] = dict.fromkeys((*_FLOATS[1:], *_INTS))
    if not own:
        note = f"the file has no {cell.score} of {run}" if run else "copied from another table"
        return replace(cell, **found, verdict="no files", note=note)
    best, with_dev = bests[own[0][:3]], [one for one in own if one.dev is not None]
    found |= {"best_on_test": best.test, "best_step": best.step, "last": own[-1].test}
    if with_dev:
        chosen = max(with_dev, key=lambda one: one.dev or 0)
        found |= {"dev_selected": chosen.test, "dev_step": chosen.step}
    found |= {name: float(round(found[name], 4)) for name in _FLOATS[1:] if found[name] is not None}
    peers = [peer for peer in table if (peer.model, peer.task) == (cell.model, cell.task) and peer != cell]
    beside = [one for peer in peers for one in _find(peer, saved) if (one.run, one.score) == (run, peer.score)]
    verdict, note = _judge(cell, own, _find(cell, saved), beside, bests)
    return replace(cell, **found, verdict=verdict, note=note)


def _find(cell: Cell, saved: Iterable[_Saved]) -> list[_Saved]:
    """Return what of a cell's task is its number, rounded or cut, in any run and as any score."""
    published = Decimal(str(cell.published))
    return [
        one for one in saved if one.task == cell.task and published in (one.show(ROUND_HALF_UP), one.show(ROUND_DOWN))
    ]


def _judge(
    cell: Cell, own: Sequence[_Saved], hits: Sequence[_Saved], beside: Sequence[_Saved], bests: _Bests
) -> tuple[str, str]:
    """Return verdict and note, from the run's steps, what is the cell's number, and the steps that are its peer's."""
    best, last = bests[own[0][:3]], own[-1]
    here = [one for one in own if one in hits]
    if best in here:
        is_rounded = best.show(ROUND_HALF_UP) == Decimal(str(cell.published))
        return "ok", "" if is_rounded else f"cut, not rounded: {best.test:.4f}"
    for one in here:
        peer = next((peer for peer in beside if peer.step == one.step), None)
        if peer and (one == last or peer == bests[peer[:3]]):
            return "ok", f"{one}, {'the last' if one == last else f'best by {peer.score}'}; the best is {best}"
    if here:
        when, verdict = ("before", "stale") if here[0].step < best.step else ("after", "not the best")
        return verdict, f"{here[0]}, {when} the best, {best}"
    for one in hits:
        if (one.run, one.step) == (best.run, best.step):
            return "wrong metric", f"the {one.score} of step {one.step}; the best {best.score} is {best}"
    elsewhere = [one for one in hits if one.score == best.score]
    firsts = [one for one in elsewhere if one == bests[one[:3]]]
    ranked = sorted(elsewhere, key=lambda one: one not in firsts)
    places = "; ".join(f"{one.run} at step {one.step}{', its best' if one in firsts else ''}" for one in ranked)
    if firsts:
        return "wrong model", places
    nearest = min(own, key=lambda one: abs(one.test - Decimal(str(cell.published))))
    with_peer = [str(one) for one in own if one.step in {peer.step for peer in beside}]
    notes = {"nearest": str(nearest), "beside its published peer": ", ".join(with_peer), "elsewhere": places}
    return "not in the files", "; ".join(f"{name}: {note}" for name, note in notes.items() if note)


def _read_sweep(path: Path) -> list[_Saved]:
    """Return the scores, step by step; a loss is none, and could be a published number by chance."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {missing[0]!r}; give a CSV with {', '.join(_COLUMNS)}")
            saved = [_parse(row, f"{path}, line {reader.line_num}") for row in reader if row["metric"] != "loss"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}; give the CSV of all saved steps") from error
    return sorted((one for one in saved if one is not None), key=lambda one: one.step)


def _parse(row: Mapping[str, str], where: str) -> _Saved | None:
    """Return one score, or None where there is none on test."""
    if row["model"] not in _RUNS:
        raise InputError(f"{where}: unknown model {row['model']!r}; use one of {', '.join(sorted(_RUNS))}")
    for name, pattern in _PATTERNS.items():
        if not re.fullmatch(pattern, str(row[name])):
            raise InputError(f"{where}: {name} is {row[name]!r}, no number; mend the file")
    factor = 1 if row["metric"].startswith("official_") else 100
    dev, test = (factor * Decimal(row[name]) if row[name] else None for name in ("dev_score", "test_score"))
    if row["task"] == "korquad":
        dev, test = None, dev
    if test is not None and abs(test) > 100:
        raise InputError(f"{where}: {test} %; give shares from 0 to 1, percent for KorQuAD alone")
    score = _SCORES.get(row["metric"], row["metric"])
    return None if test is None else _Saved(row["model"], row["task"], score, int(row["finetune_step"]), test, dev)
