"""Pictures of scores as PNG: over pretraining, over fine-tuning, by class."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ticker import MaxNLocator

from kcelectra.release.predictions import SINGLE_LABEL, score_classes
from kcelectra.release.scores import Group

MAX_NAME_CHARS = 48


class Picture(NamedTuple):
    """A picture, and what must be said below it."""

    path: Path
    caption: str


class Names(NamedTuple):
    """Names as they can be drawn; the key is of the numbers that stand for them where no font has their characters."""

    texts: list[str]
    font: FontProperties
    key: str


def draw_steps(groups: Sequence[Group], path: Path) -> Picture | None:
    """Draw the reported scores over the steps of pretraining, a line a task; None where there are no two steps."""
    lines: dict[tuple[str, str], list[Group]] = {}
    for group in sorted(groups, key=lambda group: group.first["step"] or 0):
        if group.first["step"] is not None:
            lines.setdefault((group.column, group.family), []).append(group)
    lines = {name: members for name, members in lines.items() if len(members) > 1}
    if not lines:
        return None
    is_one_run = len({family for _, family in lines}) == 1
    names = name_for_drawing([column if is_one_run else f"{column}, {family}" for column, family in lines])
    figure, axes = _make_axes(8, 4.4)
    for number, (members, name) in enumerate(zip(lines.values(), names.texts, strict=True)):
        means = [100 * group.summary.mean for group in members]
        deviations = [math.nan if group.summary.sd is None else 100 * group.summary.sd for group in members]
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 3, "color": f"C{number % 10}"}
        axes.errorbar([group.first["step"] for group in members], means, deviations, label=name, **style)
    axes.set(xlabel="step of pretraining", ylabel="%")
    figure.legend(prop=names.font, loc="outside lower center", ncols=2)
    is_one = all(group.summary.sd is None for members in lines.values() for group in members)
    return _save(figure, path, "One seed." if is_one else "Mean and standard deviation over the seeds.", names)


def draw_curves(groups: Sequence[Group], path: Path) -> Picture | None:
    """Draw the scores of one column at each evaluation of fine-tuning, a line a seed; None where there are no two."""
    if all(len(row["curve"]) < 2 for group in groups for row in group.rows):
        return None
    figure, axes = _make_axes(8, 3.8)
    names = name_for_drawing([group.model for group in groups])
    first = groups[0].first
    for number, (group, name) in enumerate(zip(groups, names.texts, strict=True)):
        for row in group.rows:
            points = {point["step"]: 100 * point["metrics"][row["selected_by"]] for point in row["curve"]}
            axes.plot(list(points), list(points.values()), linewidth=0.8, color=f"C{number % 10}")
            chosen = points.get(row["best_step"], np.nan)
            axes.plot(row["best_step"], chosen, marker="o", markersize=4, color=f"C{number % 10}")
        axes.plot([], [], color=f"C{number % 10}", label=name)
    axes.set(xlabel="step of fine-tuning", ylabel=f"{first['selected_by']} on {first['selected_on']}, %")
    figure.legend(prop=names.font, loc="outside lower center", ncols=2)
    return _save(figure, path, "A line for each seed, a dot at the step that was chosen.", names)


def draw_confusions(group: Group, path: Path) -> Picture | None:
    """Draw which class was taken for which, all seeds together; None where a text has not one class."""
    runs = [row["lines"] for row in group.rows if row["lines"]]
    if group.first["metric"] not in SINGLE_LABEL or not runs:
        return None
    names = name_for_drawing(group.first["labels"])
    counts = np.zeros((len(names.texts),) * 2, dtype=int)
    for line in (line for lines in runs for line in lines):
        counts[int(line["gold"]), int(line["prediction"])] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _make_axes(3 + 0.8 * len(counts), 2.4 + 0.8 * len(counts))
    axes.grid(visible=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (gold, predicted), share in np.ndenumerate(shares):
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": "w" if share > 0.6 else "k"}
        axes.text(predicted, gold, f"{100 * share:.1f} %\n{counts[gold, predicted]:,}", **style)
    axes.set_xticks(range(len(counts)), names.texts, fontproperties=names.font)
    axes.set_yticks(range(len(counts)), names.texts, fontproperties=names.font)
    axes.set(xlabel="predicted", ylabel="gold")
    seeds = "of one seed" if len(runs) == 1 else f"{len(runs)} seeds together"
    return _save(figure, path, f"Shares of a gold class, and counts, {seeds}.", names)


def draw_classes(group: Group, path: Path) -> Picture | None:
    """Draw the F1 of each label or type of entity; None where there are none."""
    scored = [score_classes(row, row["lines"]) for row in group.rows if row["lines"]]
    classes = list(dict.fromkeys(name for one in scored for name in one))
    if not classes:
        return None
    names = name_for_drawing(classes)
    f1 = 100 * np.array([[one.get(name, (0.0, 0))[0] for name in classes] for one in scored])
    num_gold = [max(one[name][1] for one in scored if name in one) for name in classes]
    figure, axes = _make_axes(6.4, 1.2 + 0.3 * len(classes))
    is_one = len(scored) == 1
    means, deviations = f1.mean(axis=0), None if is_one else f1.std(axis=0, ddof=1)
    axes.barh(range(len(classes)), means, xerr=deviations, ecolor="0.4")
    for place, mean in enumerate(means):
        axes.text(1.02, place, f"{mean:.1f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    texts = [f"{name} ({count:,})" for name, count in zip(names.texts, num_gold, strict=True)]
    axes.set_yticks(range(len(classes)), texts, fontproperties=names.font)
    axes.invert_yaxis()
    axes.set(xlabel="F1, %", xlim=(0, 100))
    seeds = "one seed" if is_one else f"mean and deviation of {len(scored)} seeds"
    caption = f"F1 of each class, and in brackets how many are gold; {seeds}."
    return _save(figure, path, caption, names)


def name_for_drawing(names: Sequence[str]) -> Names:
    """Return names as matplotlib takes them: no formulas between dollars, none hidden by an underscore, not too long.

    The font is the default one if it has their characters, else the first installed one that has.
    """
    short = [name if len(name) <= MAX_NAME_CHARS else f"…{name[1 - MAX_NAME_CHARS :]}" for name in names]
    needed = set(map(ord, "".join([*short, "0123456789,() "])))  # names, and the counts behind them
    ranked = sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.fname))
    installed = (font.fname for font in ranked if not font.name.startswith("Last Resort"))  # which has but boxes
    for file in dict.fromkeys([findfont(FontProperties()), *installed]):
        if needed <= get_font(file).get_charmap().keys():
            texts = [re.sub("^_", " _", name).replace("$", r"\$") for name in short]
            return Names(texts, FontProperties(fname=file, size=8), "")
    numbers = [str(number) for number in range(1, len(names) + 1)]
    key = "; ".join(f"{number}: {name}" for number, name in zip(numbers, names, strict=True))
    return Names(numbers, FontProperties(size=8), f" {key}.")


def _make_axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _save(figure: Figure, path: Path, caption: str, names: Names) -> Picture:
    figure.savefig(path)
    return Picture(path, caption + names.key)
