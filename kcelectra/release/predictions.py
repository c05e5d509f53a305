"""What the predictions of a run show beside its scores: which classes it knows, which it mixes up, where it errs."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

from kcelectra.errors import InputError
from kcelectra.finetuning.answers import normalize_answer
from kcelectra.finetuning.metrics import compute

MAX_CHARS = 200  # of a text that is shown
SINGLE_LABEL = ("accuracy", "macro_f1")
# Control characters, line ends, and what turns or hides the text behind it; the joiner of emoji is text
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

Lines = Sequence[Mapping[str, Any]]


def read_predictions(row: Mapping[str, Any], results_file: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the lines of a run's predictions; none, and why, where they are missing.

    They are scored again: a later run may have written over the file, and its predictions are not this one's.

    Raises:
        InputError: a line is no prediction; it is named.
    """
    if row["predictions"] is None:
        return [], f"the row names none; take it out of {results_file} and fine-tune again"
    path, lines = results_file.parent / row["predictions"], []
    if not path.is_file():
        return [], f"there is no {show(path)}; copy it from where the model was fine-tuned"
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            lines.append(json.loads(line))
            lines[-1]["prediction"], lines[-1]["gold"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {number} is no prediction ({error!r}); take the file away, or fine-tune again"
            ) from error
    try:
        scores = compute(row["metric"], _side(lines, "prediction"), _side(lines, "gold"))
        if all(math.isclose(scores[name], value, abs_tol=1e-6) for name, value in row["metrics"].items()):
            return lines, ""
    except (ValueError, TypeError, KeyError):  # predictions of another kind of task
        pass
    return [], f"{show(path)} gives other scores than the row, a later run wrote over it; fine-tune again"


def score_classes(row: Mapping[str, Any], lines: Lines) -> dict[str, tuple[float, int]]:
    """Return the F1 of each label, or type of entity, and how many are gold; nothing where there are no classes."""
    gold, predicted = _side(lines, "gold"), _side(lines, "prediction")
    if row["metric"] == "entity_f1":
        types = sorted({tag[:-2] for tags in (*gold, *predicted) for tag in tags if tag != "O"})
        scores = precision_recall_fscore_support(gold, predicted, average=None, suffix=True, zero_division=0)
        return {name: (float(scores[2][i]), int(scores[3][i])) for i, name in enumerate(types)}
    if row["metric"] not in ("multi_label", *SINGLE_LABEL):
        return {}
    if row["metric"] in SINGLE_LABEL:
        flags = np.eye(len(row["labels"]))
        gold, predicted = list(flags[gold]), list(flags[predicted])
    is_gold, is_predicted = np.array(gold) > 0, np.array(predicted) > 0
    num_gold, num_both = is_gold.sum(axis=0), (is_gold & is_predicted).sum(axis=0)
    f1 = 2 * num_both / np.maximum(num_gold + is_predicted.sum(axis=0), 1)
    return {label: (float(f1[i]), int(num_gold[i])) for i, label in enumerate(row["labels"])}


def pick_errors(row: Mapping[str, Any], lines: Lines, *, num_errors: int = 10) -> tuple[list[list[str]], int]:
    """Return some errors, as text, gold and prediction, spread evenly over all of them, and how many there are.

    An answer is an error if it shares no character with a gold one. Numbers are never equal: theirs are the farthest.
    """
    told = [_tell(row, line) for line in lines]
    if row["metric"] == "correlation":
        chosen = sorted(range(len(lines)), key=lambda i: -abs(lines[i]["prediction"] - lines[i]["gold"]))
        wrong, chosen = chosen, chosen[:num_errors]
    else:
        is_error = _is_elsewhere if row["metric"] == "answer_match" else None
        wrong = [i for i, line in enumerate(lines) if (is_error(line) if is_error else told[i][1] != told[i][2])]
        places = np.linspace(0, len(wrong) - 1, min(num_errors, len(wrong))).round().astype(int)
        chosen = [wrong[place] for place in places]
    return [[show(part or "(none)", max_chars=MAX_CHARS) for part in told[i]] for i in chosen], len(wrong)


def show(text: object, *, max_chars: int | None = None) -> str:
    """Return a text in one line, what cannot be seen spelt out, and cut where it is longer."""
    whole = str(text)
    cut = whole if max_chars is None or len(whole) <= max_chars else f"{whole[: max_chars - 1]}…"
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), cut)


def _side(lines: Lines, side: str) -> list[Any]:
    return [line[side] for line in lines]


def _is_elsewhere(line: Mapping[str, Any]) -> bool:
    characters = set(normalize_answer(line["prediction"])) - {" "}
    return not any(characters & set(normalize_answer(answer)) for answer in line["gold"])


def _tell(row: Mapping[str, Any], line: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the text of an example, what is gold and what was predicted."""
    metric, labels, sides = row["metric"], row["labels"], (line["gold"], line["prediction"])
    texts = list(map(str, line.get("text", ["(not in the file)"])))
    if metric == "entity_f1":
        words = line.get("text") or [f"word {number}" for number in range(1, len(sides[0]) + 1)]
        gold, predicted = (
            # A published protocol leaves out what does not fit a row
            " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=False) if tag != "O")
            for tags in sides
        )
        return " ".join(texts), gold, predicted
    if metric == "answer_match":
        gold, predicted = " / ".join(sides[0]), sides[1]
    elif metric == "correlation":
        gold, predicted = (f"{value:.2f}" for value in sides)
    elif metric == "multi_label":
        gold, predicted = (", ".join(labels[i] for i, score in enumerate(side) if score > 0) for side in sides)
    else:
        gold, predicted = (labels[int(side)] for side in sides)
    return " / ".join(texts), gold, predicted
