"""Curves of a pretraining run as PNG."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

EVAL_LOSS = "eval_generator_loss"  # in each entry of a log that is of rows that are not trained on


@dataclass(frozen=True)
class Plot:
    """One picture: the logged keys it shows, and those that are baselines."""

    name: str
    title: str
    unit: str
    curves: tuple[str, ...]
    baselines: tuple[str, ...] = ()


PLOTS = (
    Plot(
        "generator_loss",
        "Generator loss",
        "nats per masked token",
        ("generator_loss", EVAL_LOSS),
        ("unigram_entropy",),
    ),
    Plot(
        "discriminator_loss",
        "Discriminator loss",
        "nats per token",
        ("discriminator_loss", "eval_discriminator_loss"),
        ("fake_rate_entropy",),
    ),
    Plot(
        "discriminator",
        "Discriminator",
        "share",
        ("discriminator_auc", "discriminator_precision", "discriminator_recall"),
    ),
    Plot("generator", "Generator", "share", ("generator_accuracy", "sampled_accuracy", "fake_rate")),
    Plot("learning_rate", "Learning rate", "", ("learning_rate",)),
    Plot("throughput", "Throughput", "tokens per second", ("tokens_per_second",)),
)


def draw_plots(history: list[dict[str, Any]], output_dir: Path, *, marked_steps: Collection[int] = ()) -> list[Path]:
    """Draw each plot of `PLOTS` that a Trainer's log history has a curve of, and return the files, in order."""
    logged = {key for entry in history for key in entry}
    return [_draw(plot, history, output_dir, marked_steps) for plot in PLOTS if logged.intersection(plot.curves)]


def _draw(plot: Plot, history: list[dict[str, Any]], output_dir: Path, marked_steps: Collection[int]) -> Path:
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    shown = [key for key in plot.curves + plot.baselines if any(key in entry for entry in history)]
    for key in shown:
        steps = [entry["step"] for entry in history if key in entry]
        values = [entry[key] for entry in history if key in entry]
        is_baseline = key in plot.baselines
        style: dict[str, Any] = (
            {"linestyle": "--", "color": "0.45"} if is_baseline else {"marker": "." if len(steps) < 40 else ""}
        )
        axes.plot(steps, values, label=f"{key} (baseline)" if is_baseline else key, **style)
    for step in set(marked_steps):
        axes.axvline(step, linestyle=":", color="tab:red")
    axes.set(title=plot.title, xlabel="step", ylabel=plot.unit)
    axes.grid(alpha=0.3)
    if len(shown) > 1:
        axes.legend(fontsize=8)
    path = output_dir / f"{plot.name}.png"
    figure.savefig(path)
    return path
