"""Metrics of the tasks: every score a share from 0 to 1, never percent; correlations from -1 to 1."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from sklearn.metrics import label_ranking_average_precision_score

from kcelectra.errors import InputError
from kcelectra.finetuning.answers import normalize_answer


class TaskMetric(evaluate.Metric):
    """What the metrics share: they live in the package, where `evaluate.load` would ask the Hub.

    A metric of one process keeps its rows in memory and touches no file, so that a read-only home will do and
    processes cannot collide. With `num_process` above 1, `evaluate` gathers over files below its `cache_dir`.
    """

    prediction: Any
    reference: Any

    def __init__(self, config_name: str | None = None, *, num_process: int = 1, **options: Any) -> None:
        options = {"keep_in_memory": num_process == 1, **options}
        super().__init__(config_name, num_process=num_process, **options)

    def _build_data_dir(self) -> str:
        # evaluate makes the directory even where nothing will be written to it
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _info(self) -> evaluate.MetricInfo:
        features = Features(predictions=self.prediction, references=self.reference)
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features)

    @staticmethod
    def is_constant(predictions: Sequence[Any]) -> bool:
        """Tell whether all predictions are one class."""
        return len(set(map(_as_label, predictions))) == 1


class Accuracy(TaskMetric):
    """`accuracy` of class ids."""

    prediction = reference = Value("float64")  # as an int64, 1.7 would be a 1 without a word

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        _require_ids([*predictions, *references])
        return {"accuracy": float(np.equal(predictions, references).mean())}


class MacroF1(TaskMetric):
    """`macro_f1` and `accuracy` of class ids; the mean is over the classes that were predicted or are gold."""

    prediction = reference = Value("float64")

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        _require_ids([*predictions, *references])
        classes = np.union1d(predictions, references)
        predicted, gold = (np.asarray(ids)[:, None] == classes for ids in (predictions, references))
        return {
            "macro_f1": float(_f1_per_label(predicted, gold).mean()),
            "accuracy": float(np.equal(predictions, references).mean()),
        }


class Correlation(TaskMetric):
    """`spearman` and `pearson` of floats, from -1 to 1; both 0.0 where either side is constant within 1e-6."""

    prediction = reference = Value("float64")

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        _require_finite(predictions)
        if self.is_constant(predictions) or self.is_constant(references):
            return {"spearman": 0.0, "pearson": 0.0}
        return {
            "spearman": float(spearmanr(predictions, references).statistic),
            "pearson": float(pearsonr(predictions, references).statistic),
        }

    @staticmethod
    def is_constant(predictions: Sequence[float]) -> bool:
        """Tell whether all numbers are within 1e-6 of the first, or none is a number."""
        values = np.asarray(predictions, dtype=np.float64)
        # The relative part is wider than what scipy calls nearly constant, and warns of: 1e-13 of the mean
        return np.allclose(values, values[0], rtol=1e-12, atol=1e-6, equal_nan=True)


class EntityF1(TaskMetric):
    """`f1`, `precision` and `recall` over entities of all types together, and `num_gold`, the count of gold ones.

    Rows are lists of tags `PER-B`, `PER-I` and `O`. An I tag that follows no B tag begins an entity.

    Source: seqeval, lenient, `suffix=True`; KcBERT-Finetune scores Naver NER by it.
    """

    prediction = reference = List(Value("string"))

    def _compute(self, predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
        _require_equal_rows(predictions, references, "tags")
        for tag in {tag for rows in (predictions, references) for row in rows for tag in row}:
            if tag != "O" and not tag.endswith(("-B", "-I")):
                raise InputError(f"{tag!r} is no tag; give O or a type with -B or -I behind it, like PER-B")
        precision, recall, f1, num_gold = precision_recall_fscore_support(
            references, predictions, average="micro", suffix=True, zero_division=0
        )
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall), "num_gold": int(num_gold)}

    @staticmethod
    def is_constant(predictions: Sequence[Sequence[str]]) -> bool:
        """Tell whether there is no entity anywhere, or one tag everywhere."""
        return len({tag for row in predictions for tag in row}) < 2


class AnswerMatch(TaskMetric):
    """`exact_match` and `f1` of answers, each the better of a question's gold answers, after `normalize_answer`.

    F1 is over the multiset of characters, white space aside. Two answers that are empty once normalised match
    exactly and have an F1 of 0, as in the source.

    Source: the official script of KorQuAD 1.0. Differs from the reference: shares, not percent.
    """

    prediction, reference = Value("string"), List(Value("string"))

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        if not all(references):
            raise InputError(f"row {references.index([])} has no gold answer; give one or more for each question")
        num_exact, sum_f1 = 0, 0.0
        for prediction, answers in zip(map(normalize_answer, predictions), references, strict=True):
            gold = [normalize_answer(answer) for answer in answers]
            num_exact += prediction in gold
            sum_f1 += max(_character_f1(prediction, answer) for answer in gold)
        return {"exact_match": num_exact / len(references), "f1": sum_f1 / len(references)}

    @staticmethod
    def is_constant(predictions: Sequence[str]) -> bool:
        """Tell whether all answers are the same, or all empty, once normalised."""
        return len(set(map(normalize_answer, predictions))) == 1


class MultiLabel(TaskMetric):
    """`micro_f1`, `macro_f1`, `lrap` and `exact_match` of rows of labels.

    Predictions are scores such as logits, one per label: a label is predicted where its score is above 0, and a row
    may have none. References are rows of 0 and 1. A label neither predicted nor gold has an F1 of 0 in `macro_f1`.
    `lrap`, the label ranking average precision, takes the scores as they are; a row without gold labels counts as 1.

    Source: scikit-learn, `f1_score(zero_division=0)`, `label_ranking_average_precision_score`.
    """

    prediction = reference = List(Value("float64"))

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        _require_equal_rows(predictions, references, "labels")
        _require_equal_rows(references, references[:1] * len(references), "labels")
        _require_finite(predictions)
        scores, gold = np.asarray(predictions), np.asarray(references)
        if not np.isin(gold, (0, 1)).all():
            raise InputError("references of multi_label hold other numbers than 0 and 1; give one 0 or 1 per label")
        predicted, is_gold = scores > 0, gold == 1
        return {
            "micro_f1": float(_f1_per_label(predicted.reshape(-1, 1), is_gold.reshape(-1, 1))[0]),
            "macro_f1": float(_f1_per_label(predicted, is_gold).mean()),
            "lrap": float(label_ranking_average_precision_score(gold, scores)),
            "exact_match": float((predicted == is_gold).all(axis=1).mean()),
        }

    @staticmethod
    def is_constant(predictions: Sequence[Sequence[float]]) -> bool:
        """Tell whether the same labels are predicted for every row."""
        return len({tuple(score > 0 for score in row) for row in predictions}) == 1


METRICS: dict[str, type[TaskMetric]] = {
    "accuracy": Accuracy,
    "macro_f1": MacroF1,
    "correlation": Correlation,
    "entity_f1": EntityF1,
    "answer_match": AnswerMatch,
    "multi_label": MultiLabel,
}


def compute(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Score predictions, without the network and without a file.

    >>> compute("answer_match", ["BTS(방탄"], [["방탄소년단", "bts 방탄"]])
    {'exact_match': 1.0, 'f1': 1.0}

    Args:
        name: one of `METRICS`, whose classes tell what they take and give back.
        predictions: one per row.
        references: one per row.

    Raises:
        InputError: there is no such metric, there are no rows, lengths differ, or a value is none the metric takes.
        ValueError: predictions or references are of another type than the metric takes.
    """
    metric = _find(name)
    if len(predictions) != len(references):
        raise InputError(
            f"{len(predictions)} predictions and {len(references)} references for {name}; give one of each per row"
        )
    _require_rows(predictions)
    return metric().compute(predictions=predictions, references=references)


def majority_share(references: Sequence[Any]) -> float:
    """Return the share, 0 to 1, of the most frequent label: the accuracy of always answering it.

    >>> majority_share([0, 1, 1, 2])
    0.5

    Args:
        references: class ids, or rows of 0 and 1, which count as one label each.

    Raises:
        InputError: there are no rows.
    """
    _require_rows(references)
    return max(Counter(map(_as_label, references)).values()) / len(references)


def is_collapsed(name: str, predictions: Sequence[Any]) -> bool:
    """Tell whether every prediction is the same, as of a model that learned nothing but the majority.

    >>> is_collapsed("multi_label", [[0.3, -2.0], [1.7, -0.1]])
    True

    Args:
        name: one of `METRICS`; its `is_constant` tells what counts as the same.
        predictions: what `compute` takes. A single one is always the same as itself.

    Raises:
        InputError: there is no such metric, or there are no rows.
    """
    metric = _find(name)
    _require_rows(predictions)
    return metric.is_constant(predictions)


def _find(name: str) -> type[TaskMetric]:
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}; use one of {', '.join(METRICS)}")
    return METRICS[name]


def _require_rows(rows: Sequence[Any]) -> None:
    if len(rows) == 0:
        raise InputError("no rows to score; give one or more")


def _require_equal_rows(predictions: list[list[Any]], references: list[list[Any]], what: str) -> None:
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if len(prediction) != len(reference):
            raise InputError(f"row {row} has {len(prediction)} {what}, expected {len(reference)}; give as many")


def _require_ids(values: list[float]) -> None:
    for value in set(values):
        if value is None or not float(value).is_integer():
            raise InputError(f"{value} is no class id; give whole numbers, the argmax of the logits")


def _require_finite(predictions: list[Any]) -> None:
    is_finite = np.isfinite(predictions).reshape(len(predictions), -1).all(axis=1)
    if not is_finite.all():
        raise InputError(
            f"{(~is_finite).sum()} of {len(predictions)} predictions are not finite numbers, the first is row "
            f"{is_finite.argmin()}; the model diverged: train it again with a lower learning rate"
        )


def _as_label(value: Any) -> Any:
    """Return what is equal where labels are; a tensor is equal to itself alone."""
    label = np.asarray(value).tolist()
    return tuple(label) if isinstance(label, list) else label


def _f1_per_label(predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return (labels,) F1 of two (rows, labels) bool arrays; 0 for a label neither predicted nor gold."""
    num_both = (predicted & gold).sum(axis=0)
    return 2 * num_both / np.maximum(predicted.sum(axis=0) + gold.sum(axis=0), 1)


def _character_f1(prediction: str, answer: str) -> float:
    predicted, gold = (Counter(text.replace(" ", "")) for text in (prediction, answer))
    return 2 * (predicted & gold).total() / max(predicted.total() + gold.total(), 1)
