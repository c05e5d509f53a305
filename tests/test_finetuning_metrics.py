"""Metrics of the tasks equal those of others, on what models may give."""

import json
import os
import random
import string
import subprocess
import sys
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1_score
from seqeval.metrics import precision_score as entity_precision_score
from seqeval.metrics import recall_score as entity_recall_score
from sklearn.metrics import accuracy_score, f1_score, label_ranking_average_precision_score

from kcelectra.errors import InputError
from kcelectra.finetuning.answers import normalize_answer
from kcelectra.finetuning.metrics import METRICS, Accuracy, compute, is_collapsed, majority_share

NUM_NAVER_ENTITIES = 29_413  # kcelectra.md, 2.3: counted apart from this code


def random_ids(num_rows, num_classes, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(num_classes, size=num_rows), generator.integers(num_classes, size=num_rows)


IDS = [random_ids(rows, classes, rows + classes) for rows in (1, 2, 30, 1000) for classes in (1, 2, 3, 44)]
IDS += [
    ([0] * 9, [1] * 9),
    ([0, 0, 0, 0], [0, 0, 0, 1]),  # a class never predicted
    ([0, 1, 2, 3], [0, 0, 0, 0]),  # classes that are not gold
    ([-1, 5, 100], [-1, 100, 5]),
    (list(range(50)), list(range(50))),
]


@pytest.mark.parametrize(("predictions", "references"), IDS)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(predictions, references):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")
        accuracy = accuracy_score(references, predictions)
        macro_f1 = f1_score(references, predictions, average="macro", zero_division=0)
    assert compute("accuracy", predictions, references) == {"accuracy": accuracy}
    assert compute("macro_f1", predictions, references) == pytest.approx({"macro_f1": macro_f1, "accuracy": accuracy})


def test_macro_f1_is_the_one_worked_out_by_hand():
    # class 0: 2 right of 3 predicted, 2 gold; class 1: 1 right of 1, 2 gold; class 2: none right
    scores = compute("macro_f1", [0, 0, 0, 1, 3], [0, 0, 1, 1, 2])
    assert scores == pytest.approx({"macro_f1": (4 / 5 + 2 / 3 + 0 + 0) / 4, "accuracy": 3 / 5})


GENERATOR = np.random.default_rng(0)
NUMBERS = [
    (GENERATOR.random(1000), GENERATOR.random(1000)),
    (GENERATOR.integers(3, size=200), GENERATOR.integers(6, size=200)),  # ties
    ([0.1, 0.2], [5.0, 0.0]),
    (np.exp(np.arange(30.0)), np.arange(30)),
    ([*[0.0] * 50, 1e9], np.arange(51)),
    ([*[2.5] * 50, 2.5001], np.arange(51)),
    (GENERATOR.standard_normal(99) * 1e-4 + 1000, np.arange(99)),
    (GENERATOR.standard_normal(99).astype(np.float32), GENERATOR.standard_normal(99)),
    ([-3.0, -1.0, -2.0, -2.0], [5, 0, 0, 2]),
]


@pytest.mark.parametrize(("predictions", "references"), NUMBERS)
def test_correlations_are_those_of_scipy(predictions, references):
    expected = {
        "spearman": spearmanr(predictions, references).statistic,
        "pearson": pearsonr(np.asarray(predictions, dtype=np.float64), references).statistic,
    }
    assert compute("correlation", predictions, references) == pytest.approx(expected, abs=1e-12)


def test_a_correlation_does_not_mind_scale_and_offset():
    predictions, references = NUMBERS[0]
    scores = compute("correlation", 7 * predictions - 3, references)
    assert scores == pytest.approx(compute("correlation", predictions, references))


NOISE = np.random.default_rng(1).standard_normal(20)


@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([2.5] * 20, range(20)),
        (np.float32(2.5) + np.float32(1e-7) * NOISE.astype(np.float32), range(20)),
        (1e9 + 1e-5 * NOISE, range(20)),
        (-1e12 + 1e-2 * NOISE, range(20)),
        (range(20), [3] * 20),
        ([1.0], [2.0]),
    ],
)
def test_a_constant_correlates_with_nothing(predictions, references):
    assert compute("correlation", list(predictions), list(references)) == {"spearman": 0.0, "pearson": 0.0}


def random_tags(num_rows, seed, types=("PER", "ORG", "A-B")):
    generator = random.Random(seed)
    tags = ["O", "O", *(f"{name}-{place}" for name in types for place in "BI")]
    lengths = [generator.randrange(9) for _ in range(num_rows)]
    return [[[generator.choice(tags) for _ in range(length)] for length in lengths] for _ in range(2)]


def entities_of(rows):
    """The entities as a reader would mark them: a B begins one, and so does an I that nothing of its type precedes."""
    entities = []
    for row, tags in enumerate(rows):
        previous = "O"
        for place, tag in enumerate(tags):
            name = tag[:-2]
            if tag != "O" and (tag.endswith("-B") or previous == "O" or previous[:-2] != name):
                entities.append([row, name, place, place])
            elif tag != "O":
                entities[-1][3] = place
            previous = tag
    return set(map(tuple, entities))


TAGS = [random_tags(rows, seed) for rows in (1, 3, 50, 400) for seed in range(5)]
TAGS += [
    ([["PER-I", "PER-I", "ORG-I"]], [["PER-B", "PER-I", "ORG-B"]]),  # orphans
    ([["PER-B", "PER-B"]], [["PER-B", "PER-I"]]),
    ([["PER-B"], ["PER-I"]], [["PER-B"], ["PER-B"]]),  # an entity ends with its row
    ([["O", "O"], []], [["PER-B", "PER-I"], []]),
    ([["PER-B", "O"]], [["O", "O"]]),
    ([["O"]], [["O"]]),
    ([[]], [[]]),
]


@pytest.mark.parametrize(("predictions", "references"), TAGS)
def test_entities_are_scored_as_by_seqeval_and_by_hand(predictions, references):
    scores = compute("entity_f1", predictions, references)
    options = {"suffix": True, "zero_division": 0}
    assert scores["f1"] == pytest.approx(entity_f1_score(references, predictions, **options))
    assert scores["precision"] == pytest.approx(entity_precision_score(references, predictions, **options))
    assert scores["recall"] == pytest.approx(entity_recall_score(references, predictions, **options))
    predicted, gold = entities_of(predictions), entities_of(references)
    assert scores["num_gold"] == len(gold)
    assert scores["f1"] == pytest.approx(2 * len(predicted & gold) / max(len(predicted) + len(gold), 1))


def test_the_gold_entities_of_naver_ner_are_all_counted(shared_data):
    lines = (shared_data / "naver_ner" / "test.tsv").read_text(encoding="utf-8").splitlines()
    references = [line.split("\t")[1].split(" ") for line in lines]
    scores = compute("entity_f1", references, references)
    assert scores == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "num_gold": NUM_NAVER_ENTITIES}
    nothing = [["O"] * len(row) for row in references]
    assert compute("entity_f1", nothing, references) == {
        "f1": 0.0,
        "precision": 0.0,
        "recall": 0.0,
        "num_gold": NUM_NAVER_ENTITIES,
    }


# From the description of the official script, apart from the package


def official_normalize(answer):
    for mark in "'\"《》<>〈〉()‘’":
        answer = answer.replace(mark, " ")
    answer = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(answer.split())


def official_exact_match(prediction, answer):
    return float(official_normalize(prediction) == official_normalize(answer))


def official_f1(prediction, answer):
    predicted = [character for word in official_normalize(prediction).split() for character in word]
    gold = [character for word in official_normalize(answer).split() for character in word]
    num_same = sum(min(predicted.count(character), gold.count(character)) for character in set(predicted))
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(predicted), num_same / len(gold)
    return 2 * precision * recall / (precision + recall)


HARD_ANSWERS = [
    *("", " ", "!?", "...", "()", "《》", "‘’", "'\"", "<>", "〈〉", "\t\n", "\u3000", "\xa0", "-", "_"),
    *(
        "1989년 2월 15일",
        "1989년2월15일",
        "1989년  2월\t15일",
        "15일 2월 1989년",
        "1,000명",
        "1000명",
        "1.5",
        "15",
        "-15",
    ),
    *(
        "《임을 위한 행진곡》",
        "임을 위한 행진곡",
        "<임을> 위한(행진곡)",
        "〈임을 위한〉 행진곡",
        "‘임을 위한 행진곡’",
        "“임을”",
    ),
    *("BTS", "bts", "ＢＴＳ", "ｂｔｓ", "Bts!", "B.T.S.", "B T S", "b(t)s", "İstanbul", "ß", "SS", "ﬁ"),
    *(
        "（주）한글",
        "(주)한글",
        "주한글",
        "［한글］",
        "[한글]",
        "{한글}",
        "「한글」",
        "『한글』",
        "한글·한글",
        "한글・한글",
    ),
    *(
        "ㅋㅋㅋㅋ",
        "ㅋㅋ",
        "가가가가",
        "가",
        "가나가나",
        "나가나가",
        "aaab",
        "abbb",
        "👍👍",
        "👍",
        "👨‍👩‍👧",
        "각",
        "각",
    ),
    *(
        "((((",
        "(가",
        "가)",
        ")가(",
        "가()나",
        "가 ( ) 나",
        "'가'나'",
        '"가" "나"',
        "《가>〉)’나",
        "~가~",
        "`가`",
        "가|나\\다",
    ),
]


def random_answers(num_answers, seed):
    generator = random.Random(seed)
    alphabet = "가나다라가가aAbBＡａ１1２2 \u3000\t'\"《》<>〈〉()‘’“”（）[]{}.,!?-_·ㅋㅋ👍"
    return ["".join(generator.choices(alphabet, k=generator.randrange(12))) for _ in range(num_answers)]


ANSWERS = [*HARD_ANSWERS, *random_answers(200, seed=0)]


def test_every_answer_is_normalized_as_by_the_official_script():
    assert len(set(ANSWERS)) > 250
    assert [normalize_answer(answer) for answer in ANSWERS] == [official_normalize(answer) for answer in ANSWERS]


def test_answers_are_scored_as_by_the_official_script():
    generator = random.Random(1)
    kinds = Counter()
    for prediction in ANSWERS:
        # Near ones: the same characters in another order, one cut short, one too long, itself in other marks
        shuffled = "".join(generator.sample(prediction, len(prediction)))
        near = [shuffled, prediction[1:], f"{prediction}가 나", f"({prediction.upper()})"]
        answers = generator.sample([*near, *generator.sample(ANSWERS, 2)], generator.randint(1, 3))
        expected = {
            "exact_match": max(official_exact_match(prediction, answer) for answer in answers),
            "f1": max(official_f1(prediction, answer) for answer in answers),
        }
        assert compute("answer_match", [prediction], [answers]) == pytest.approx(expected), (prediction, answers)
        kinds[expected["exact_match"], 0 < expected["f1"] < 1] += 1
    assert kinds[1.0, False] > 50 and kinds[0.0, True] > 50


def test_scores_of_answers_are_means_over_questions():
    pairs = [(prediction, answer) for prediction in HARD_ANSWERS for answer in HARD_ANSWERS]
    scores = compute("answer_match", [prediction for prediction, _ in pairs], [[answer] for _, answer in pairs])
    assert scores["exact_match"] == pytest.approx(sum(official_exact_match(*pair) for pair in pairs) / len(pairs))
    assert scores["f1"] == pytest.approx(sum(official_f1(*pair) for pair in pairs) / len(pairs))


def test_answers_of_nothing_match_exactly_and_share_nothing():
    assert compute("answer_match", ["..."], [["()"]]) == {"exact_match": 1.0, "f1": 0.0}


def random_labels(num_rows, num_labels, seed):
    generator = np.random.default_rng(seed)
    # Rounded: scores of exactly 0, and ties
    scores = generator.standard_normal((num_rows, num_labels)).round(seed % 3)
    return scores, generator.integers(2, size=(num_rows, num_labels)) * (generator.random((num_rows, 1)) < 0.8)


LABELS = [random_labels(rows, labels, rows + labels) for rows in (1, 2, 40, 500) for labels in (2, 3, 10, 44)]
LABELS += [
    (-np.ones((5, 3)), np.eye(5, 3, dtype=int)),  # nothing predicted
    (-np.ones((5, 3)), np.zeros((5, 3), dtype=int)),  # nor gold
    (np.ones((5, 3)), np.ones((5, 3), dtype=int)),
    (np.ones((5, 3)), np.zeros((5, 3), dtype=int)),
    (np.zeros((5, 3)), np.eye(5, 3, dtype=int)),
    (1e30 * random_labels(5, 4, 0)[0], random_labels(5, 4, 1)[1]),
]


@pytest.mark.parametrize(("scores", "references"), LABELS)
def test_labels_are_scored_as_by_scikit_learn(scores, references):
    predicted = (scores > 0).astype(int)
    expected = {
        "micro_f1": f1_score(references, predicted, average="micro", zero_division=0),
        "macro_f1": f1_score(references, predicted, average="macro", zero_division=0),
        "lrap": label_ranking_average_precision_score(references, scores),
        "exact_match": accuracy_score(references, predicted),
    }
    assert compute("multi_label", scores, references) == pytest.approx(expected, abs=1e-12)


def test_memory_grows_with_labels_and_not_with_pairs_of_them():
    scores, references = random_labels(500, 500, 0)
    tracemalloc.start()
    measured = METRICS["multi_label"].measure(scores, references)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert measured.shape == (500, 1503) and peak < 500**3 / 4


def test_one_label_alone_is_scored_as_two_classes_are():
    scores, references = random_labels(50, 1, 3)
    f1 = f1_score(references[:, 0], scores[:, 0] > 0)  # of the label; its absence is no second one
    measured = compute("multi_label", scores, references)
    assert measured == pytest.approx(
        {"micro_f1": f1, "macro_f1": f1, "lrap": 1.0, "exact_match": ((scores > 0) == references).mean()}
    )


# Of any metric

EXAMPLES = {
    "accuracy": ([0, 1, 1], [0, 1, 2]),
    "macro_f1": ([0, 1, 1], [0, 1, 2]),
    "correlation": ([0.5, 1.0, 0.0], [1.0, 5.0, 2.0]),
    "entity_f1": ([["PER-B", "O"], ["O"]], [["PER-B", "PER-I"], ["O"]]),
    "answer_match": (["서울", "부산"], [["서울"], ["부산시", "인천"]]),
    "multi_label": ([[0.5, -1.0], [-1.0, -2.0]], [[1, 0], [0, 1]]),
}


@pytest.mark.parametrize("name", METRICS)
def test_scores_are_plain_numbers_and_do_not_depend_on_the_order_of_rows(name):
    predictions, references = EXAMPLES[name]
    scores = compute(name, predictions, references)
    assert json.loads(json.dumps(scores)) == scores
    assert all(type(score) is (int if key == "num_gold" else float) for key, score in scores.items())
    assert compute(name, predictions[::-1], references[::-1]) == pytest.approx(scores)


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "correlation", "multi_label"])
def test_lists_arrays_and_tensors_are_scored_alike(name):
    predictions, references = EXAMPLES[name]
    scores = compute(name, predictions, references)
    for kind in (np.asarray, torch.tensor):
        assert compute(name, kind(predictions), kind(references)) == scores
        assert not is_collapsed(name, kind(predictions))
        assert majority_share(kind(references)) == majority_share(references)


def test_scoring_leaves_the_random_numbers_as_they_were():
    np.random.seed(3)
    expected = np.random.rand(), np.random.rand()
    np.random.seed(3)
    first = np.random.rand()
    compute("accuracy", [0], [0])
    assert (first, np.random.rand()) == expected


def test_metrics_take_batches_and_combine_as_any_of_evaluate():
    metric = evaluate.combine([METRICS["accuracy"](), METRICS["macro_f1"]()])
    for predictions, references in (([0, 1], [0, 1]), ([1], [2])):
        metric.add_batch(predictions=predictions, references=references)
    scores = metric.compute()
    assert scores["accuracy_accuracy"] == scores["macro_f1_accuracy"] == 2 / 3
    assert scores["macro_f1"] == compute("macro_f1", *EXAMPLES["macro_f1"])["macro_f1"]


PROGRAM = """
import json, socket, sys

def refuse(*arguments):
    raise AssertionError("the network was asked for")

socket.socket.connect = socket.getaddrinfo = refuse

from kcelectra.finetuning.metrics import Accuracy, compute

examples, process_id, cache_dir = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for _ in range(10):
    scores = {name: compute(name, *example) for name, example in examples.items()}
metric = Accuracy(num_process=2, process_id=process_id, cache_dir=cache_dir)
scores["gathered"] = metric.compute(predictions=[process_id], references=[1])
print(json.dumps(scores))
"""


def test_processes_score_at_once_offline_without_a_home_and_leave_nothing(tmp_path):
    for name in ("hub", "temporary", "work", "cache"):
        (tmp_path / name).mkdir()
    nowhere = tmp_path / "file"  # below a file, nothing can be made even by root
    nowhere.touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HOME": str(nowhere / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(EXAMPLES), process_id, str(tmp_path / "cache")],
            env=environment | hub,
            cwd=tmp_path / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for process_id, hub in (("0", {"HF_HOME": str(tmp_path / "hub")}), ("1", {}))
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [errors for _, errors in outputs] == [b"", b""]
    scores = [json.loads(output) for output, _ in outputs]
    assert [one.pop("gathered") for one in scores] == [{"accuracy": 0.5}, None]
    assert scores == [{name: compute(name, *example) for name, example in EXAMPLES.items()}] * 2
    assert not [path for name in ("hub", "temporary", "work") for path in (tmp_path / name).iterdir()]


def test_a_metric_of_one_process_keeps_no_file_and_one_of_two_does(tmp_path):
    Accuracy(cache_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())
    Accuracy(cache_dir=str(tmp_path), num_process=2)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("bleu", [0], [0], "unknown metric 'bleu'; use one of accuracy, macro_f1, correlation, entity_f1"),
        ("accuracy", [], [], "no rows to score; give one or more"),
        ("accuracy", [0, 1], [0], "2 predictions and 1 references for accuracy; give one of each per row"),
        ("entity_f1", [], [["O"]], "0 predictions and 1 references"),
        ("accuracy", [1.7], [1], "1.7 is no class id"),
        ("macro_f1", [1], [None], "None is no class id"),
        ("macro_f1", [float("nan")], [1], "nan is no class id"),
        ("correlation", [1.0, float("nan"), float("inf")], [1, 2, 3], "2 of 3 predictions are not finite .* row 1"),
        ("multi_label", [[1.0, 2.0], [0.0, float("nan")]], [[0, 1]] * 2, "1 of 2 predictions .* row 1"),
        ("entity_f1", [["O"], ["O"]], [["O"], ["O", "O"]], "row 1 has 1 tags, expected 2"),
        ("entity_f1", [["B-PER"]], [["PER-B"]], "'B-PER' is no tag; .* like PER-B"),
        ("answer_match", ["서울", "부산"], [["서울"], []], "row 1 has no gold answer"),
        ("multi_label", [[0.0, 1.0]], [[0, 1, 1]], "row 0 has 2 labels, expected 3"),
        ("multi_label", [[0.0], [0.0, 1.0]], [[0], [0, 1]], "row 1 has 2 labels, expected 1"),
        ("multi_label", [[0.0, 1.0]], [[0, 2]], "other numbers than 0 and 1"),
        ("multi_label", [[0.0, 1.0]], [[0, 0.7]], "other numbers than 0 and 1"),
    ],
)
def test_what_cannot_be_scored_is_named(name, predictions, references, message):
    with pytest.raises(InputError, match=message):
        compute(name, predictions, references)


@pytest.mark.parametrize(
    ("name", "predictions"), [("accuracy", [[1, 2]]), ("entity_f1", ["O"]), ("answer_match", [1])]
)
def test_another_type_is_refused(name, predictions):
    with pytest.raises(ValueError, match=r"expected format|expected a list"):
        compute(name, predictions, EXAMPLES[name][1][:1])


@pytest.mark.parametrize(
    ("name", "predictions", "expected"),
    [
        ("accuracy", [1, 1, 1], True),
        ("accuracy", [1, 1, 0], False),
        ("macro_f1", np.zeros(5, dtype=int), True),
        ("correlation", [2.5, 2.5 + 9e-7, 2.5 - 9e-7], True),
        ("correlation", [2.5, 2.5, 2.50001], False),
        ("correlation", [float("nan")] * 3, True),
        ("correlation", [1.0, float("nan"), float("inf")], False),
        ("entity_f1", [["O", "O"], ["O"], []], True),
        ("entity_f1", [[], []], True),
        ("entity_f1", [["PER-I", "PER-I"], ["PER-I"]], True),
        ("entity_f1", [["O", "PER-I"], ["O"]], False),
        ("answer_match", ["", " ", "..."], True),
        ("answer_match", ["서울", "서울.", "(서울)"], True),
        ("answer_match", ["서울", ""], False),
        ("multi_label", [[3.0, -1.0], [0.1, 0.0]], True),
        ("multi_label", [[-3.0, -1.0], [-0.1, 0.0]], True),
        ("multi_label", [[3.0, -1.0], [-3.0, 1.0]], False),
    ],
)
def test_a_model_that_always_gives_the_same_has_collapsed(name, predictions, expected):
    assert is_collapsed(name, predictions) is expected


def test_the_majority_share_is_the_accuracy_of_always_answering_it():
    references = np.random.default_rng(0).integers(3, size=100).tolist()
    scores = [compute("accuracy", [label] * 100, references)["accuracy"] for label in range(3)]
    assert majority_share(references) == max(scores)
    rows = [[0, 1], [1, 0], [0, 1], [0, 0]]
    assert majority_share(rows) == compute("multi_label", [[-1.0, 1.0]] * 4, rows)["exact_match"] == 0.5


def test_nothing_has_no_majority_and_cannot_collapse():
    with pytest.raises(InputError, match="no rows"):
        majority_share([])
    with pytest.raises(InputError, match="no rows"):
        is_collapsed("accuracy", [])
    with pytest.raises(InputError, match="unknown metric"):
        is_collapsed("f2", [1])


def test_without_the_extra_the_recipe_says_what_to_install(tmp_path):
    (tmp_path / "evaluate.py").write_text("raise ModuleNotFoundError(\"No module named 'evaluate'\")")
    command = [sys.executable, str(Path(__file__).parents[1] / "recipes/finetune.py"), "--help"]
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    printed = subprocess.run(command, env=path, capture_output=True, text=True, timeout=120).stderr
    assert "No module named 'evaluate'; fine-tuning needs it: pip install \"kcelectra[finetuning]\"" in printed
