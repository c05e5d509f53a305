"""Made-up rows of results and their predictions, as fine-tuning writes them."""

from dataclasses import asdict
from pathlib import Path

from kcelectra.finetuning.metrics import compute, is_collapsed
from kcelectra.finetuning.protocols import PROTOCOLS
from kcelectra.finetuning.tasks import TASKS
from kcelectra.manifest import to_json


def make_lines(predictions, golds, texts=None) -> list[dict]:
    """Return lines of predictions.jsonl."""
    texts = texts or [[f"text {number}"] for number in range(len(golds))]
    return [
        {"text": text, "prediction": prediction, "gold": gold}
        for text, prediction, gold in zip(texts, predictions, golds, strict=True)
    ]


def make_row(task: str, seed: int, lines: list[dict], **changes) -> dict:
    """Return a row of a run with the settings of its protocol; its scores are those of the lines."""
    entry = TASKS[task]
    predictions, golds = ([line[side] for line in lines] for side in ("prediction", "gold"))
    metrics = compute(entry.metric, predictions, golds)
    row = {
        "model": "out/base",
        "revision": None,
        "step": None,
        "task": task,
        "seed": seed,
        "protocol": "strict",
        "selected_on": "dev",
        "metric": entry.metric,
        "selected_by": entry.selected_by,
        "labels": list(entry.labels) if entry.labels else None,
        "columns": ["text", "label"],
        "settings": asdict(PROTOCOLS["strict"].settle(entry)),
        "num_examples": {"train": 80, "dev": 10, "test": len(lines)},
        "weights_sha256": "a" * 64,
        "tokenizer_sha256": "b" * 64,
        "data_sha256": {"train": "1" * 64, "dev": "2" * 64, "test": "3" * 64},
        "notes": [],
        "metrics": metrics,
        "last_metrics": metrics,
        "dev_metrics": metrics,
        "best_step": 20,
        "num_steps": 30,
        "curve": [{"step": step, "metrics": metrics} for step in (10, 20, 30)],
        "collapsed": is_collapsed(entry.metric, predictions),
        "seconds": 1.5,
        "predictions": f"{task}-{seed}/predictions.jsonl",
    }
    return {**row, **changes}


def write_results(directory: Path, runs: list[tuple[dict, list[dict] | None]]) -> Path:
    """Write rows, and the predictions of those that have some, and return the results file."""
    path = directory / "results.jsonl"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{to_json(row)}\n" for row, _ in runs), encoding="utf-8")
    for row, lines in runs:
        if lines is not None:
            target = directory / row["predictions"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(f"{to_json(line)}\n" for line in lines))
    return path


def make_reviews(num_right: int, *, num: int = 20) -> list[dict]:
    """Return predictions of two classes, the first `num_right` of `num` right."""
    golds = [number % 2 for number in range(num)]
    return make_lines([gold if number < num_right else 1 - gold for number, gold in enumerate(golds)], golds)


def make_runs(nums_right: list[int], **changes) -> list[tuple[dict, list[dict]]]:
    """Return runs of NSMC, a seed each, with so many of 20 reviews right; a directory for each model."""
    runs = []
    for seed, num_right in enumerate(nums_right):
        lines = make_reviews(num_right)
        row = make_row("nsmc", seed, lines, **changes)
        where = f"{row['weights_sha256'][:4]}-{row['protocol']}/nsmc-{seed}/predictions.jsonl"
        runs.append(({**row, "predictions": changes.get("predictions", where)}, lines))
    return runs
