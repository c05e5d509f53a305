"""Scores of fine-tuned models: rows of results, grouped by what went into them, as tables in Markdown and CSV."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kcelectra.errors import InputError
from kcelectra.finetuning.protocols import PROTOCOLS
from kcelectra.finetuning.results import read_results
from kcelectra.finetuning.tasks import TASKS
from kcelectra.release.predictions import read_predictions, show
from kcelectra.release.statistics import Comparison, Run, Summary, compare, summarize

MIN_SEEDS = 5
BOTH = "seeds and examples"  # that an interval is over, where nothing is missing
TEXT_COLUMNS = set("model task over metric protocol verdict note text gold predicted".split())
#: What two rows must share to be scores of one thing.
CONDITION = (
    *("task", "metric", "selected_by", "protocol", "selected_on"),
    *("columns", "labels", "settings", "num_examples", "data_sha256"),
)
KEYS = {*CONDITION, "model", "revision", "step", "seed", "weights_sha256", "tokenizer_sha256", "notes", "metrics"}
KEYS |= {"last_metrics", "dev_metrics", "best_step", "num_steps", "curve", "collapsed", "seconds"}


@dataclass(frozen=True)
class Table:
    """A table of text, and what is said below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


@dataclass
class Group:
    """The runs of one model under one condition.

    Args:
        model: its label.
        column: that of the condition: task, score and protocol.
        rows: of the results, by seed, each with `lines`, its predictions, and `problem`, why there are none.
        caveats: what a reader of the scores must know.
    """

    model: str
    column: str
    rows: list[dict[str, Any]]
    caveats: list[str]

    @property
    def first(self) -> dict[str, Any]:
        """The row of the first seed."""
        return self.rows[0]

    @cached_property
    def runs(self) -> list[Run]:
        """The scores that are reported, with their predictions."""
        return [
            Run(
                row["seed"],
                row["metrics"][row["selected_by"]],
                [line["prediction"] for line in row["lines"]] or None,
                [line["gold"] for line in row["lines"]] or None,
            )
            for row in self.rows
        ]

    @cached_property
    def summary(self) -> Summary:
        """Mean, deviation and interval of the scores that are reported."""
        return summarize(self.runs, metric=self.first["metric"], score=self.first["selected_by"])

    @property
    def limits(self) -> list[str]:
        """What its interval does not cover."""
        covers = self.summary.covers
        limits = {BOTH: [], "nothing": ["no interval: one seed, and no predictions"]}
        return limits.get(covers, [f"the interval is over {covers} alone"])

    @property
    def family(self) -> str:
        """The name without the step: what the checkpoints of one pretraining run have in common.

        Not that of the label: the last checkpoint has the weights, and so the label, of the export.
        """
        step = self.first["step"]
        if step is None:
            return self.model
        return re.sub(rf"(?<!\d)({step}|{step // 1000}k)(?!\d)", "N", _label(self.first))

    def measure(self, name: str, source: str = "metrics") -> tuple[float | None, float | None]:
        """Return mean and deviation of a score in `metrics`, `last_metrics` or `dev_metrics`, where there are any."""
        values = [row[source][name] for row in self.rows if row[source] is not None]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return float(np.mean(values)) if values else None, deviation


def read_groups(results_file: str | Path) -> list[Group]:
    """Return the runs of a results file by model and condition: by contents, never by paths, in the file's order.

    Raises:
        InputError: there is no such file or no row in it, a line is no row or lacks a key, or predictions are damaged.
    """
    path = Path(results_file)
    rows = _read_rows(path)
    models, columns = _name_models(rows), _name_columns(rows)
    grouped: dict[tuple[str, str], dict[Any, dict[str, Any]]] = {}
    for row in rows:
        key = models[_identify(row)], columns[_condition(row)]
        grouped.setdefault(key, {}).setdefault(row["seed"], row | {"num_repeats": -1})["num_repeats"] += 1
    groups = []
    for (model, column), by_seed in grouped.items():
        own = [by_seed[seed] for seed in sorted(by_seed)]
        if len({frozenset(row["metrics"]) for row in own}) > 1:
            scores = "; ".join(f"seed {row['seed']}: {', '.join(map(show, row['metrics']))}" for row in own)
            raise InputError(f"{path}: rows of {model}, {column} have other scores each ({scores}); fine-tune again")
        for row in own:
            row["lines"], row["problem"] = read_predictions(row, path)
        groups.append(Group(model, column, own, list(_find_caveats(own))))
    return groups


def columns_of(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """Return the groups by column, the columns in the order of `TASKS`, own tasks behind."""
    order = {name: number for number, name in enumerate(TASKS)}
    columns: dict[str, list[Group]] = {}
    for group in sorted(groups, key=lambda group: order.get(group.first["task"], len(order))):
        columns.setdefault(group.column, []).append(group)
    return columns


def tabulate_scores(groups: Sequence[Group]) -> Table:
    """Return models x tasks, in percent, with a footnote for all that makes a score less than it seems."""
    columns, footnotes = columns_of(groups), list[str]()
    rows = []
    for model in dict.fromkeys(group.model for group in groups):
        own = {group.column: group for group in groups if group.model == model}
        rows.append([model, *(_describe_cell(own[name], footnotes) if name in own else "" for name in columns)])
    legend = f"In percent: mean ± standard deviation [95 % interval, over {BOTH}] (number of seeds)."
    return Table("Scores", ["model", *columns], rows, [legend, *list_footnotes(footnotes)])


def tabulate_column(groups: Sequence[Group]) -> Table:
    """Return every score of the models of one column, and what the column stands for."""
    rows = []
    for group in groups:
        seeds = " ".join(f"{row['seed']}{'†' if row['collapsed'] else ''}" for row in group.rows)
        steps = " ".join(f"{row['best_step']}/{row['num_steps']}" for row in group.rows)
        seconds = f"{np.mean([row['seconds'] for row in group.rows]):,.0f}"
        for name in group.first["metrics"]:
            scores = (describe_score(name, *group.measure(name, f"{part}metrics")) for part in ("", "last_", "dev_"))
            rows.append([group.model, name, *scores, seeds, steps, seconds])
    first = groups[0].first
    facts = {"selected on": first["selected_on"], **first["settings"]}
    facts |= {f"{split} examples": f"{count:,}" for split, count in first["num_examples"].items()}
    facts |= {f"{split} sha256": digest[:12] for split, digest in first["data_sha256"].items()}
    if "majority_share" in first:
        facts["the most frequent label alone"] = f"{100 * first['majority_share']:.2f}"
    condition = "; ".join(f"{key}: {show(value)}" for key, value in facts.items() if value is not None)
    header = ["model", "metric", "test", "test, last step", "dev", "seeds", "chosen step", "seconds"]
    return Table(groups[0].column, header, rows, ["In percent. † collapsed.", condition])


def compare_models(groups: Sequence[Group], baseline: str | None = None) -> list[Table]:
    """Return a table of each model beside the baseline, the first one if None; none if no two share a column.

    Raises:
        InputError: the baseline is no label of a model.
    """
    models = list(dict.fromkeys(group.model for group in groups))
    if baseline is not None and baseline not in models:
        raise InputError(f"no model {baseline!r} in the results; give --baseline one of {', '.join(models)}")
    name = baseline or models[0]
    rows = []
    for column, members in columns_of(groups).items():
        by_model = {group.model: group for group in members}
        theirs = by_model.pop(name, None)
        rows += [[column, model, *_compare(ours, theirs)] for model, ours in by_model.items() if theirs]
    header = ["task", "model", "difference", "95 % interval", "over", "p", "seeds"]
    notes = ["In percent, over the seeds that both have; p is two-sided, of a paired t-test over them."]
    return [Table(f"Difference from {name}", header, rows, notes)] if rows else []


def mark(footnotes: list[str], texts: Sequence[str]) -> str:
    """Return the marks of some footnotes, each behind a space; those that are new are added."""
    footnotes += [text for text in dict.fromkeys(texts) if text not in footnotes]
    marks = "".join(f" {number}" for number, text in enumerate(footnotes, start=1) if text in texts)
    return marks.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def list_footnotes(footnotes: list[str]) -> list[str]:
    """Return the footnotes behind their marks."""
    return [f"{mark(footnotes, [text]).strip()} {text}" for text in footnotes]


def to_markdown(table: Table) -> str:
    """Return a table with its title and notes; a text is shown as it is, whatever it holds."""
    rule = ["---" if name in TEXT_COLUMNS else "--:" for name in table.header]
    lines = [f"| {' | '.join(map(_escape, line))} |" for line in (table.header, rule, *table.rows)]
    return "\n\n".join([f"## {_escape(table.title)}", "\n".join(lines), *map(_escape, table.notes)]) + "\n"


def to_csv(groups: Iterable[Group]) -> str:
    """Return a line for each group and score, as shares from 0 to 1; lists are JSON."""
    records = [_as_record(group, name) for group in groups for name in group.first["metrics"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(
            f"no results file {path}; give another --results, or make it: python recipes/finetune.py --model "
            f"out/smoke/export/discriminator --task nsmc --data_dir data --output_dir {path.parent}"
        )
    rows = [_complete(row, f"{path}, line {number}") for number, row in enumerate(read_results(path), start=1)]
    if not rows:
        raise InputError(f"{path} holds no row; run recipes/finetune.py --output_dir {path.parent}")
    return rows


def _complete(row: Any, where: str) -> dict[str, Any]:
    """Return a row with what those of earlier versions lack."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is no row: {show(row, max_chars=40)}; take the line out")
    task = TASKS.get(row.get("task", ""))
    known = {"metric": task.metric, "selected_by": task.selected_by, "labels": task.labels} if task else {}
    row = {"columns": None, "predictions": None, **known, **row}
    missing = sorted(KEYS - row.keys())
    if not missing and row["selected_by"] not in row["metrics"]:
        missing = [f"{row['selected_by']} in metrics"]
    if not missing and not isinstance(row["seconds"], (int, float)):
        missing = ["number of seconds"]
    if missing:
        raise InputError(f"{where}: the row has no {', '.join(missing)}; take the line out and fine-tune again")
    return row | {"labels": row["labels"] and [show(label) for label in row["labels"]]}


def _identify(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{row['weights_sha256']} {row['tokenizer_sha256']}".encode()).hexdigest()


def _condition(row: Mapping[str, Any]) -> str:
    settings = row["settings"].items()
    same = {key: float(value) if key == "num_epochs" else value for key, value in settings}  # 5 and 5.0 are one number
    return json.dumps([same if key == "settings" else row[key] for key in CONDITION], sort_keys=True)


def _label(row: Mapping[str, Any]) -> str:
    revision = f"@{row['revision']}" if row["revision"] else ""
    step = "" if row["step"] is None else f", step {row['step']}"
    return show(f"{row['model']}{revision}{step}")


def _name_models(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return a label for each model: how it was first called."""
    labels: dict[str, str] = {}
    for row in rows:
        labels.setdefault(_identify(row), _label(row))
    return _tell_apart(labels)


def _name_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return _tell_apart(
        {_condition(row): show(f"{row['task']} {row['selected_by']}, {row['protocol']}") for row in rows}
    )


def _tell_apart(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels by contents, with a hash of these behind those that are the same."""
    num_called = Counter(labels.values())
    hashes = {key: hashlib.sha256(key.encode()).hexdigest()[:6] for key in labels}
    return {key: f"{label} #{hashes[key]}" if num_called[label] > 1 else label for key, label in labels.items()}


def _find_caveats(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    first = rows[0]
    scores = [row["metrics"][row["selected_by"]] for row in rows if not row["collapsed"]]
    if len(scores) < len(rows):
        others = f"without them {100 * np.mean(scores):.2f}" if scores else "there are no others"
        num_collapsed = len(rows) - len(scores)
        yield f"collapsed, every prediction the same: {num_collapsed} of {len(rows)} runs, which count; {others}"
    if first["selected_on"] == "test":
        yield "selected on test: the step was chosen by the very score that is reported"
    if len(rows) < MIN_SEEDS:
        yield f"fewer than {MIN_SEEDS} seeds"
    yield from map(show, first["notes"])
    if first["task"] in TASKS and first["protocol"] in PROTOCOLS:
        usual = asdict(PROTOCOLS[first["protocol"]].settle(TASKS[first["task"]]))
        settings = [(key, value, usual.get(key)) for key, value in first["settings"].items()]
        if other := [f"{key} {value} ({default})" for key, value, default in settings if value != default]:
            yield f"settings, and in brackets those of the protocol: {show(', '.join(other))}"
    if num_repeats := sum(row["num_repeats"] for row in rows):
        yield f"{num_repeats} more rows of the same seeds are left out"


def _describe_cell(group: Group, footnotes: list[str]) -> str:
    one, name = group.summary, group.first["selected_by"]
    score = f"{describe_score(name, one.mean, one.sd)} {describe_interval(one)} ({one.num_seeds})"
    return score.replace("  ", " ") + mark(footnotes, [*group.caveats, *group.limits])


def describe_interval(one: Summary | Comparison) -> str:
    """Return an interval in percent, nothing where there is none."""
    return "" if one.low is None or one.high is None else f"[{100 * one.low:.2f}, {100 * one.high:.2f}]"


def describe_score(name: str, mean: float | None, deviation: float | None) -> str:
    """Return a mean in percent, or a count, with its deviation where there is one."""
    if mean is None:
        return ""
    if name.startswith("num_"):  # a count
        return f"{mean:,.0f}"
    return f"{100 * mean:.2f}" if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f}"


def _compare(ours: Group, theirs: Group) -> list[str]:
    if not {run.seed for run in ours.runs} & {run.seed for run in theirs.runs}:
        return ["no seed in common", *[""] * 4]
    one = compare(ours.runs, theirs.runs, metric=ours.first["metric"], score=ours.first["selected_by"])
    p_value = "" if one.p_value is None else f"{one.p_value:.2g}"
    seeds = " ".join(map(str, one.seeds))
    return [f"{100 * one.difference:+.2f}", describe_interval(one), one.covers, p_value, seeds]


def _as_record(group: Group, name: str) -> dict[str, Any]:
    """Return a line of the CSV."""
    first = group.first
    reported = group.summary if name == first["selected_by"] else None
    record: dict[str, Any] = {"label": group.model, "column": group.column, "score": name}
    for part in ("", "last_", "dev_"):
        record[f"{part}mean"], record[f"{part}sd"] = group.measure(name, f"{part}metrics")
    record |= {key: vars(reported)[key] if reported else None for key in ("low", "high", "covers")}
    record["seeds"] = [row["seed"] for row in group.rows]
    record["collapsed"] = [row["seed"] for row in group.rows if row["collapsed"]]
    keys = ("model", "revision", "step", *CONDITION, "weights_sha256", "tokenizer_sha256")
    record |= {key: first[key] for key in keys} | {"caveats": group.caveats}
    lists = {key: json.dumps(value) for key, value in record.items() if isinstance(value, (dict, list))}
    return record | {key: show(value) for key, value in record.items() if isinstance(value, str)} | lists


def _escape(text: str) -> str:
    """Return a text that Markdown shows as it is, in a cell of a table too."""
    return re.sub(r"([\\`*<>|&~])", r"\\\1", text).replace("](", "]\\(")
