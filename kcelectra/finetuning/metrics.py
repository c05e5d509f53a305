"""Metrics of the tasks: every score a share from 0 to 1, never percent; correlations from -1 to 1."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Features, List, Value

try:
    import evaluate
    from scipy.stats import rankdata
    from seqeval.metrics.sequence_labeling import get_entities
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f'{error}; fine-tuning needs it: pip install "kcelectra[finetuning]"') from error

from kcelectra.errors import InputError
from kcelectra.finetuning.answers import character_f1, normalize_answer


class TaskMetric(evaluate.Metric):
    """What the metrics share: they live in the package, where `evaluate.load` would ask the Hub.

    A metric measures each row, then scores sums over rows: a bootstrap measures once and sums thousands of times. One
    of a single process keeps its rows in memory and touches no file, so that a read-only home will do and processes
    cannot collide. With `num_process` above 1, `evaluate` gathers over files below its `cache_dir`.
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

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        once = np.ones((1, len(references)), dtype=np.int64)
        scores = self.score(self.measure(predictions, references), once)
        return {name: score.item() for name, score in scores.items()}

    @staticmethod
    def measure(predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        """Return (rows, numbers), all that the scores depend on."""
        raise NotImplementedError

    @classmethod
    def score(cls, measured: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return (resamples,) of each score.

        Args:
            measured: (rows, numbers), of `measure`.
            weights: (resamples, rows), how often each row counts, 0 or more.
        """
        return cls._score_sums(weights @ measured)

    @staticmethod
    def _score_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        raise NotImplementedError

    @staticmethod
    def is_constant(predictions: Sequence[Any]) -> bool:
        """Tell whether all predictions are one class."""
        return len(set(map(_as_label, predictions))) == 1


class Accuracy(TaskMetric):
    """`accuracy` of class ids."""

    prediction = reference = Value("float64")  # as an int64, 1.7 would be a 1 without a word

    @staticmethod
    def measure(predictions: Sequence[float], references: Sequence[float]) -> np.ndarray:
        """Return (rows, 2): right or not, and 1."""
        _require_ids([*predictions, *references])
        return np.column_stack([np.equal(predictions, references), np.ones(len(references), dtype=np.int64)])

    @staticmethod
    def _score_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        num_right, num_rows = sums.T
        return {"accuracy": num_right / num_rows}


class MacroF1(TaskMetric):
    """`macro_f1` and `accuracy` of class ids; the mean is over the classes that were predicted or are gold."""

    prediction = reference = Value("float64")

    @staticmethod
    def measure(predictions: Sequence[float], references: Sequence[float]) -> np.ndarray:
        """Return (rows, 3 * classes): both predicted and gold, predicted, gold."""
        _require_ids([*predictions, *references])
        classes = np.union1d(predictions, references)
        predicted, gold = (np.asarray(ids)[:, None] == classes for ids in (predictions, references))
        return np.hstack([predicted & gold, predicted, gold])

    @staticmethod
    def _score_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        both, predicted, gold = np.split(sums, 3, axis=1)  # (resamples, classes)
        num_classes = (predicted + gold > 0).sum(axis=1)
        return {
            "macro_f1": _f1(both, predicted, gold).sum(axis=1) / num_classes,
            "accuracy": both.sum(axis=1) / gold.sum(axis=1),  # a row has one gold class
        }


class Correlation(TaskMetric):
    """`spearman` and `pearson` of floats, from -1 to 1; both 0.0 where either side is constant within 1e-6."""

    prediction = reference = Value("float64")

    @staticmethod
    def measure(predictions: Sequence[float], references: Sequence[float]) -> np.ndarray:
        """Return (rows, 2): the pair itself."""
        _require_finite(predictions)
        if not np.isfinite(references).all():
            raise InputError("references of correlation hold other values than finite numbers; give a number per row")
        return np.column_stack([predictions, references]).astype(np.float64)

    @classmethod
    def score(cls, measured: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return (resamples,) of each score, from no sums: a rank is one within its resample."""
        pair = measured.T
        varies = ~np.any([_are_constant(values, weights) for values in pair], axis=0)
        ranks = [_rank(values, weights) for values in pair]
        scores = {"spearman": _pearson(ranks, weights), "pearson": _pearson(pair, weights)}
        return {name: np.where(varies, values, 0.0) for name, values in scores.items()}

    @staticmethod
    def is_constant(predictions: Sequence[float]) -> bool:
        """Tell whether all numbers are within 1e-6 of the first, or none is a number."""
        values = np.asarray(predictions, dtype=np.float64)
        return bool(_are_constant(values, np.ones((1, len(values))))[0])


class EntityF1(TaskMetric):
    """`f1`, `precision` and `recall` over entities of all types together, and `num_gold`, the count of gold ones.

    Rows are lists of tags `PER-B`, `PER-I` and `O`. An I tag that follows no B tag begins an entity.

    Source: seqeval, lenient, `suffix=True`; KcBERT-Finetune scores Naver NER by it.
    """

    prediction = reference = List(Value("string"))

    @staticmethod
    def measure(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return (rows, 3): entities both predicted and gold, predicted, gold."""
        _require_equal_rows(predictions, references, "tags")
        for tag in {tag for rows in (predictions, references) for row in rows for tag in row}:
            if tag != "O" and not tag.endswith(("-B", "-I")):
                raise InputError(f"{tag!r} is no tag; give O or a type with -B or -I behind it, like PER-B")
        rows = []
        for pair in zip(predictions, references, strict=True):
            predicted, gold = (set(get_entities(list(tags), suffix=True)) for tags in pair)
            rows.append((len(predicted & gold), len(predicted), len(gold)))
        return np.array(rows)

    @staticmethod
    def _score_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        both, predicted, gold = sums.T
        return {
            "f1": _f1(both, predicted, gold),
            "precision": both / np.maximum(predicted, 1),
            "recall": both / np.maximum(gold, 1),
            "num_gold": gold,
        }

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

    @staticmethod
    def measure(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Return (rows, 3): exact or not, F1, and 1."""
        if not all(references):
            raise InputError(f"row {references.index([])} has no gold answer; give one or more for each question")
        rows = []
        for prediction, answers in zip(map(normalize_answer, predictions), references, strict=True):
            gold = [normalize_answer(answer) for answer in answers]
            rows.append((prediction in gold, max(character_f1(prediction, answer) for answer in gold), 1))
        return np.array(rows, dtype=np.float64)

    @staticmethod
    def _score_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        num_exact, sum_f1, num_rows = sums.T
        return {"exact_match": num_exact / num_rows, "f1": sum_f1 / num_rows}

    @staticmethod
    def is_constant(predictions: Sequence[str]) -> bool:
        """Tell whether all answers are the same, or all empty, once normalised."""
        return len(set(map(normalize_answer, predictions))) == 1


class MultiLabel(TaskMetric):
    """`micro_f1`, `macro_f1`, `lrap` and `exact_match` of rows of labels.

    Predictions are scores such as logits, one per label: a label is predicted where its score is above 0, and a row
    may have none. References are rows of 0 and 1. A label neither predicted nor gold has an F1 of 0 in `macro_f1`.
    `lrap`, the label ranking average precision, takes the scores as they are; a row without gold labels counts as 1.

    Source: those of scikit-learn, `f1_score(zero_division=0)` and `label_ranking_average_precision_score`.
    """

    prediction = reference = List(Value("float64"))

    @staticmethod
    def measure(predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]) -> np.ndarray:
        """Return (rows, 3 * labels + 3): labels both predicted and gold, predicted, gold; `lrap`, exact or not, 1."""
        _require_equal_rows(predictions, references, "labels")
        _require_equal_rows(references, [references[0]] * len(references), "labels")
        _require_finite(predictions)
        scores, gold = np.asarray(predictions), np.asarray(references)
        if not np.isin(gold, (0, 1)).all():
            raise InputError("references of multi_label hold other numbers than 0 and 1; give one 0 or 1 per label")
        predicted, is_gold = scores > 0, gold == 1
        is_exact = (predicted == is_gold).all(axis=1)
        others = (_ranking_precision(scores, is_gold), is_exact, np.ones(len(gold)))
        return np.column_stack([predicted & is_gold, predicted, is_gold, *others])

    @staticmethod
    def _score_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
        labels = np.split(sums[:, :-3], 3, axis=1)  # three of (resamples, labels)
        sum_lrap, num_exact, num_rows = sums[:, -3:].T
        return {
            "micro_f1": _f1(*(label.sum(axis=1) for label in labels)),
            "macro_f1": _f1(*labels).mean(axis=1),
            "lrap": sum_lrap / num_rows,
            "exact_match": num_exact / num_rows,
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
    metric = find_metric(name)
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
    metric = find_metric(name)
    _require_rows(predictions)
    return metric.is_constant(predictions)


def find_metric(name: str) -> type[TaskMetric]:
    """Return one of `METRICS`, or raise `InputError`."""
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}; use one of {', '.join(METRICS)}")
    return METRICS[name]


def _require_rows(rows: Sequence[Any]) -> None:
    if len(rows) == 0:
        raise InputError("no rows to score; give one or more")


def _require_equal_rows(predictions: Sequence[Any], references: Sequence[Any], what: str) -> None:
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if len(prediction) != len(reference):
            raise InputError(f"row {row} has {len(prediction)} {what}, expected {len(reference)}; give as many")


def _require_ids(values: list[float]) -> None:
    for value in set(values):
        if value is None or not float(value).is_integer():
            raise InputError(f"{value} is no class id; give whole numbers, the argmax of the logits")


def _require_finite(predictions: Sequence[Any]) -> None:
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


def _f1(num_both: np.ndarray, num_predicted: np.ndarray, num_gold: np.ndarray) -> np.ndarray:
    """Return F1 of counts; 0 of what is neither predicted nor gold."""
    return 2 * num_both / np.maximum(num_predicted + num_gold, 1)


def _ranking_precision(scores: np.ndarray, is_gold: np.ndarray) -> np.ndarray:
    """Return (rows,): of the labels that score no less than a gold one the share of gold ones, mean over gold ones."""
    above, gold_above = (rankdata(part, "max", axis=1) for part in (-scores, np.where(is_gold, -scores, np.inf)))
    precision = gold_above / above  # ranks, and not each label beside each other, which takes rows x labels x labels
    num_gold = is_gold.sum(axis=1)
    return np.where(num_gold > 0, (precision * is_gold).sum(axis=1) / np.maximum(num_gold, 1), 1.0)


def _are_constant(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tell of each resample, (resamples, rows), whether the (rows,) values that count there are one."""
    first = values[(weights > 0).argmax(axis=1)][:, None]
    # The relative part is wider than the rounding of a mean, which would be all that correlates
    is_near = np.isclose(values, first, rtol=1e-12, atol=1e-6, equal_nan=True)
    return (is_near | (weights == 0)).all(axis=1)


def _rank(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ranks, (resamples, rows), of (rows,) values that count as often as their weight; equals share one."""
    _, owner, num_equal = np.unique(values, return_inverse=True, return_counts=True)
    upto = np.cumsum(weights[:, np.argsort(owner)], axis=1)[:, np.cumsum(num_equal) - 1]  # (resamples, values)
    return (upto - (np.diff(upto, prepend=0) - 1) / 2)[:, owner]


def _pearson(pair: Iterable[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return (resamples,) correlations of a pair of (rows,) or (resamples, rows); 0 of a constant."""
    num_rows = weights.sum(axis=1, keepdims=True)
    # Centred in each resample: where an outlier is left out, the rest may be far from the mean of all
    one, other = (side - (weights * side).sum(axis=1, keepdims=True) / num_rows for side in pair)
    covariance, *squares = ((weights * a * b).sum(axis=1) for a, b in ((one, other), (one, one), (other, other)))
    norm = np.sqrt(squares[0]) * np.sqrt(squares[1])
    return np.divide(covariance, norm, out=np.zeros(len(norm)), where=norm > 0).clip(-1, 1)
