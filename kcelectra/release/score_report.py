"""The report of fine-tuning: one HTML page that opens offline, its tables as Markdown and CSV, its pictures as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kcelectra.errors import InputError
from kcelectra.manifest import write_atomically
from kcelectra.release.page import embed, render_page
from kcelectra.release.predictions import pick_errors
from kcelectra.release.published import Cell, check_published, read_published, write_published
from kcelectra.release.score_plots import draw_classes, draw_confusions, draw_curves, draw_steps
from kcelectra.release.scores import (
    TEXT_COLUMNS,
    Group,
    Table,
    columns_of,
    compare_models,
    list_footnotes,
    mark,
    read_groups,
    tabulate_column,
    tabulate_scores,
    to_csv,
    to_markdown,
)

PAGE, SCORES, SCORES_CSV = "index.html", "scores.md", "scores.csv"
PUBLISHED, PUBLISHED_CSV = "published.md", "published.csv"
#: 1.7 points: KorSTS, the most of the 12 runs whose files have dev scores too (kcelectra.md, 2.3).
NOT_COMPARABLE = (
    "Only scores of one protocol can be compared. Rows of another had other code, hyperparameters or splits, or were "
    "chosen on the test split that they report, which made them up to 1.7 points higher."
)


class ScoreReport(NamedTuple):
    """What was written: the page, and the tables that a terminal is shown."""

    page: Path
    tables: list[Table]
    published: list[Cell]


def write_score_report(
    output_dir: str | Path,
    results_file: str | Path | None = None,
    *,
    baseline: str | None = None,
    sweep_file: str | Path | None = None,
) -> ScoreReport:
    """Write `index.html` and `published.{md,csv}`, and of results `scores.{md,csv}` and the pictures.

    Args:
        output_dir: made if it does not exist.
        results_file: what fine-tuning appended to; the predictions lie where its rows say. None for the published
            scores alone.
        baseline: the label of the model that the others are compared with; the first one if None.
        sweep_file: what the published scores are checked against, see `check_published`; as they were checked if None.

    Raises:
        InputError: a file cannot be read, the results are not what they should be, or there is no such baseline.
    """
    if baseline is not None and results_file is None:
        raise InputError("--baseline is a model of the results; give --results out/finetune/results.jsonl too")
    cells = check_published(sweep_file) if sweep_file is not None else read_published()
    groups = read_groups(results_file) if results_file is not None else []
    tables = [tabulate_scores(groups), *compare_models(groups, baseline)] if groups else []
    published = tabulate_published(cells, groups)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    sections = [
        _describe_column(members, output_dir, number)
        for number, members in enumerate(columns_of(groups).values(), start=1)
    ]
    page = render_page(
        Path(__file__).with_name("score_report.html.jinja").read_text(encoding="utf-8"),
        title="Scores of fine-tuning" if groups else "Published scores",
        tables=tables,
        steps=draw_steps(groups, output_dir / "steps.png"),
        sections=sections,
        published=published,
        not_comparable=NOT_COMPARABLE,
        kind=lambda name: "text" if name in TEXT_COLUMNS else "number",
        embed=embed,
    )
    write_atomically(output_dir / PUBLISHED, "\n".join([f"{NOT_COMPARABLE}\n", *map(to_markdown, published)]))
    write_published(cells, output_dir / PUBLISHED_CSV)
    if groups:
        scores = [*tables, *(section["table"] for section in sections)]
        write_atomically(output_dir / SCORES, "\n".join(map(to_markdown, scores)))
        write_atomically(output_dir / SCORES_CSV, to_csv(groups))
    write_atomically(output_dir / PAGE, page)
    return ScoreReport(output_dir / PAGE, tables, cells)


def tabulate_published(cells: Sequence[Cell], groups: Sequence[Group] = ()) -> list[Table]:
    """Return a table a task: the published scores, what the original's files hold of them, and below them our own."""
    header = ["model", "metric", "protocol", "verdict", "published", "best on test", "chosen on dev", "last", "note"]
    rows: dict[str, list[list[str]]] = {}
    for cell in cells:
        checked = [(cell.best_on_test, cell.best_step), (cell.dev_selected, cell.dev_step), (cell.last, None)]
        names = [cell.model, cell.score, cell.protocol, cell.verdict, f"{cell.published:.2f}"]
        rows.setdefault(cell.task, []).append([*names, *(_show_score(*pair) for pair in checked), cell.note])
    known = {(cell.task, cell.score) for cell in cells}
    for group in groups:
        first = group.first
        for score in (name for name in first["metrics"] if (first["task"], name) in known):
            (mean, _), (last, _) = group.measure(score), group.measure(score, "last_metrics")
            chosen = [None, mean] if first["selected_on"] == "dev" else [mean, None]
            scores = ["" if value is None else f"{100 * value:.2f}" for value in (*chosen, last)]
            note = "; ".join([f"ours, {len(group.rows)} seeds", *group.caveats])
            rows[first["task"]].append([group.model, score, first["protocol"], "", "", *scores, note])
    notes = ["In percent; in brackets the step of fine-tuning."]
    return [Table(task, header, of_task, notes) for task, of_task in rows.items()]


def describe_published(cells: Sequence[Cell]) -> str:
    """Return the published scores for a terminal: a line a model, with a mark at what is not `ok`."""
    rows, verdicts = dict[str, str](), list[str]()
    for cell in cells:
        marks = mark(verdicts, [] if cell.verdict == "ok" else [cell.verdict])
        rows[cell.model] = rows.get(cell.model, f"{cell.model:<22}") + f"{cell.published:>12.2f}{marks:<2}"
    scores = list(dict.fromkeys((cell.task, cell.score) for cell in cells))
    header = [" " * 22 + "".join(f"{name:>14}" for name in names) for names in zip(*scores, strict=True)]
    return "\n".join([*header, *rows.values(), *list_footnotes(verdicts)])


def _describe_column(groups: Sequence[Group], output_dir: Path, number: int) -> dict[str, Any]:
    """Return what the page shows of a column; of the checkpoints of one run the last alone is looked into."""
    last = {group.family: group for group in sorted(groups, key=lambda group: group.first["step"] or 0)}
    details = [
        {
            "model": group.model,
            "problems": list(dict.fromkeys(row["problem"] for row in group.rows if row["problem"])),
            "pictures": [
                draw_confusions(group, output_dir / f"confusions-{number}-{place}.png"),
                draw_classes(group, output_dir / f"classes-{number}-{place}.png"),
            ],
            "errors": _tabulate_errors(group.first),
        }
        for place, group in enumerate(last.values(), start=1)
    ]
    return {
        "table": tabulate_column(groups),
        "curves": draw_curves(groups, output_dir / f"curves-{number}.png"),
        "details": details,
        "left_out": [group.model for group in groups if last[group.family] is not group],
    }


def _tabulate_errors(row: dict[str, Any]) -> Table | None:
    if not row["lines"]:
        return None
    rows, num_errors = pick_errors(row, row["lines"])
    title = f"{len(rows)} of {num_errors:,} errors, seed {row['seed']}"
    if row["metric"] == "correlation":
        title = f"The {len(rows)} farthest of {num_errors:,} examples, seed {row['seed']}"
    return Table(title, ["text", "gold", "predicted"], rows)


def _show_score(score: float | None, step: int | None) -> str:
    return "" if score is None else f"{score:.2f}" if step is None else f"{score:.2f} ({step})"
