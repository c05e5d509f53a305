"""Means, intervals and differences equal those worked out the long way, and hold what they claim to hold."""

import itertools
import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, t, ttest_rel

from kcelectra.errors import InputError
from kcelectra.finetuning.metrics import METRICS, compute
from kcelectra.release.statistics import Comparison, Run, Summary, compare, summarize

REPORTED = {
    "accuracy": "accuracy",
    "macro_f1": "macro_f1",
    "correlation": "spearman",
    "entity_f1": "f1",
    "answer_match": "f1",
    "multi_label": "lrap",
}
TAGS = ["O", "O", "O", "PER-B", "PER-I", "ORG-B", "ORG-I"]


def draw_references(metric, num_rows, seed):
    draw = random.Random(seed)
    make = {
        "accuracy": lambda: draw.randrange(3),
        "macro_f1": lambda: draw.randrange(4),
        "correlation": lambda: draw.randrange(6) / 2,  # ties
        "entity_f1": lambda: draw.choices(TAGS, k=draw.randrange(8)),
        "answer_match": lambda: ["".join(draw.choices("가나다", k=3)), "라"],
        "multi_label": lambda: draw.choices([0, 1], k=3),
    }[metric]
    return [make() for _ in range(num_rows)]


def draw_predictions(metric, references, seed):
    draw = random.Random(seed)

    def miss(right, wrong):
        return wrong if draw.random() < 0.4 else right

    make = {
        "accuracy": lambda gold: miss(gold, draw.randrange(3)),
        "macro_f1": lambda gold: miss(gold, draw.randrange(5)),
        "correlation": lambda gold: round(gold + draw.gauss(0, 1), 1),
        "entity_f1": lambda gold: [miss(tag, draw.choice(TAGS)) for tag in gold],
        "answer_match": lambda gold: miss(gold[0], "".join(draw.choices("가나다라", k=2))),
        "multi_label": lambda gold: [round(miss(label, 1 - label) - 0.5 + draw.gauss(0, 0.3), 1) for label in gold],
    }[metric]
    return [make(gold) for gold in references]


def run_of(seed, metric, predictions, references):
    return Run(seed, compute(metric, predictions, references)[REPORTED[metric]], predictions, references)


def draw_runs(metric, *, num_seeds=3, num_rows=40, seed=0):
    references = draw_references(metric, num_rows, seed=7)
    seeds = range(num_seeds)
    return [
        run_of(number, metric, draw_predictions(metric, references, (seed + 1) * 100 + number), references)
        for number in seeds
    ]


def scores_alone(*scores):
    return [Run(seed, score) for seed, score in enumerate(scores)]


def options_of(metric):
    return {"metric": metric, "score": REPORTED[metric]}


ACCURACY = options_of("accuracy")


# Scores of resamples


def repeat(rows, weights):
    return [row for row, weight in zip(rows, weights, strict=True) for _ in range(weight)]


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_weigh_are_scored_as_rows_that_are_repeated(metric):
    generator = np.random.default_rng(0)
    for num_rows in (2, 5, 60):
        (run,) = draw_runs(metric, num_seeds=1, num_rows=num_rows)
        weights = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=20)
        weights[0] = np.eye(num_rows, dtype=int)[0] * num_rows  # one row alone: constant, classes missing
        scores = METRICS[metric].score(METRICS[metric].measure(run.predictions, run.references), weights)
        for number, weight in enumerate(weights):
            expected = compute(metric, repeat(run.predictions, weight), repeat(run.references, weight))
            assert {name: values[number] for name, values in scores.items()} == pytest.approx(expected, abs=1e-12)


def test_an_outlier_that_is_left_out_costs_no_digits():
    generator = np.random.default_rng(0)
    predictions, references = [*generator.random(20), 1e9], [*range(20), 20]
    weights = [1] * 20 + [0]
    scores = METRICS["correlation"].score(np.column_stack([predictions, references]), np.array([weights]))
    assert scores["pearson"][0] == pytest.approx(np.corrcoef(predictions[:20], references[:20])[0, 1], abs=1e-12)


def test_a_resample_that_is_nearly_constant_correlates_with_nothing():
    predictions, references = [5.0, 1.0, 1.0 + 1e-8, 1.0 + 2e-8], [0.0, 1.0, 2.0, 3.0]
    measured, weights = np.column_stack([predictions, references]), np.array([[0, 1, 1, 1], [1, 1, 0, 0]])
    for pair in (measured, measured[:, ::-1]):
        for values in METRICS["correlation"].score(pair, weights).values():
            assert values == pytest.approx([0, -1], abs=1e-12)


def test_a_reference_that_is_no_number_does_not_correlate():
    with pytest.raises(InputError, match="references of correlation hold other values than finite numbers"):
        compute("correlation", [1.0, 2.0], [1.0, math.nan])


# Intervals


def enumerate_resamples(sides, metric):
    """Every mean that a bootstrap may draw, each with its probability, by scoring rows that are repeated."""
    num_seeds, num_rows = len(sides[0]), len(sides[0][0].references)
    weights = [weight for weight in itertools.product(range(num_rows + 1), repeat=num_rows) if sum(weight) == num_rows]
    means, probabilities = [], []
    for weight in weights:
        by_side = [
            [
                compute(metric, repeat(run.predictions, weight), repeat(run.references, weight))[REPORTED[metric]]
                for run in runs
            ]
            for runs in sides
        ]
        ways = math.factorial(num_rows) / math.prod(map(math.factorial, weight)) / num_rows**num_rows
        for seeds in itertools.product(range(num_seeds), repeat=num_seeds):
            first, *others = (statistics.fmean(scores[seed] for seed in seeds) for scores in by_side)
            means.append(first - sum(others))
            probabilities.append(ways / num_seeds**num_seeds)
    return np.array(means), np.array(probabilities)


def quantile(means, probabilities, share):
    order = np.argsort(means)
    return means[order][np.searchsorted(np.cumsum(probabilities[order]), share)]


def assert_is_interval(low, high, means, probabilities):
    assert sum(probabilities) == pytest.approx(1)
    for end, share in ((low, 0.025), (high, 0.975)):
        # 0.005 is 4.5 standard errors of a share of 0.025 among 20,000
        assert quantile(means, probabilities, share - 0.005) - 1e-9 <= end
        assert end <= quantile(means, probabilities, share + 0.005) + 1e-9


@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_is_that_of_all_resamples_of_seeds_and_examples(metric):
    runs = draw_runs(metric, num_seeds=2, num_rows=4)
    summary = summarize(runs, **options_of(metric), num_resamples=20_000)
    assert summary.covers == "seeds and examples"
    means, probabilities = enumerate_resamples([runs], metric)
    assert len(set(means.round(9))) > 4
    assert_is_interval(summary.low, summary.high, means, probabilities)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "correlation"])
def test_the_interval_of_a_difference_is_that_of_all_paired_resamples(metric):
    sides = [draw_runs(metric, num_seeds=2, num_rows=4, seed=seed) for seed in (0, 1)]
    comparison = compare(*sides, **options_of(metric), num_resamples=20_000)
    assert comparison.covers == "seeds and examples"
    assert_is_interval(comparison.low, comparison.high, *enumerate_resamples(sides, metric))


def test_seeds_alone_are_resampled_where_predictions_are_missing():
    scores = (0.1, 0.2, 0.4, 0.8)
    whole = [statistics.fmean(drawn) for drawn in itertools.product(scores, repeat=4)]
    summary = summarize(scores_alone(*scores), **ACCURACY, num_resamples=20_000)
    assert summary.covers == "seeds"
    assert_is_interval(summary.low, summary.high, np.array(whole), np.full(4**4, 4.0**-4))
    comparison = compare(scores_alone(*scores), scores_alone(0, 0, 0, 0), **ACCURACY, num_resamples=20_000)
    assert (comparison.low, comparison.high) == pytest.approx((summary.low, summary.high))


@pytest.mark.parametrize(("share", "num_rows"), [(0.5, 1000), (0.9, 400), (0.9, 8000)])
def test_the_interval_of_one_seed_is_that_of_a_proportion(share, num_rows):
    num_right = round(share * num_rows)
    run = run_of(0, "accuracy", [1] * num_right + [0] * (num_rows - num_right), [1] * num_rows)
    summary = summarize([run], **ACCURACY, num_resamples=5000)
    half_width = 1.96 * math.sqrt(share * (1 - share) / num_rows)
    assert (summary.high - summary.low) / 2 == pytest.approx(half_width, rel=0.06)
    assert (summary.high + summary.low) / 2 == pytest.approx(share, abs=0.1 * half_width)
    assert (summary.sd, summary.num_seeds, summary.covers) == (None, 1, "examples")


def test_one_seed_without_predictions_has_no_interval():
    assert summarize([Run(3, 0.5)], **ACCURACY) == Summary(0.5, None, None, None, 1, "nothing")
    assert compare([Run(3, 0.5)], [Run(3, 0.25)], **ACCURACY) == Comparison(0.25, None, None, None, (3,), "nothing")


def test_one_run_without_predictions_leaves_seeds_alone():
    runs = draw_runs("accuracy")
    assert summarize([replace(runs[0], predictions=None), *runs[1:]], **ACCURACY).covers == "seeds"
    assert summarize([replace(runs[0], references=None), *runs[1:]], **ACCURACY).covers == "seeds"


def test_mean_and_deviation_are_those_of_a_sample():
    scores = (0.91, 0.905, 0.9, 0.89, 0.93)
    summary = summarize(scores_alone(*scores), **ACCURACY)
    assert (summary.mean, summary.sd) == pytest.approx((statistics.mean(scores), statistics.stdev(scores)))
    assert summary.num_seeds == 5
    assert summary.low < summary.mean < summary.high


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_model_is_perfect_in_every_resample(metric):
    references = draw_references(metric, 40, seed=0)
    predict = {"answer_match": lambda gold: gold[0], "multi_label": lambda gold: [label - 0.5 for label in gold]}
    predictions = list(map(predict.get(metric, lambda gold: gold), references))
    runs = [run_of(seed, metric, predictions, references) for seed in range(3)]
    summary = summarize(runs, **options_of(metric))
    assert (summary.mean, summary.sd, summary.low, summary.high) == pytest.approx((1, 0, 1, 1), abs=1e-12)
    comparison = compare(runs, runs, **options_of(metric))
    assert (comparison.difference, comparison.low, comparison.high, comparison.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_runs_and_examples_does_not_matter(metric):
    ours, theirs = (draw_runs(metric, seed=seed) for seed in (0, 1))
    order = random.Random(0).sample(range(40), 40)

    def shuffle(runs):
        return [
            replace(
                run, **{side: [getattr(run, side)[row] for row in order] for side in ("predictions", "references")}
            )
            for run in reversed(runs)
        ]

    options = options_of(metric)
    assert vars(summarize(shuffle(ours), **options)) == pytest.approx(vars(summarize(ours, **options)), abs=1e-12)
    expected, shuffled = (compare(*sides, **options) for sides in ((ours, theirs), map(shuffle, (ours, theirs))))
    assert shuffled.seeds == expected.seeds
    for name in ("difference", "low", "high", "p_value"):
        assert getattr(shuffled, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_the_seed_makes_the_interval():
    ours, theirs = (draw_runs("entity_f1", seed=seed) for seed in (0, 1))
    options = options_of("entity_f1")
    for make in (
        lambda seed: summarize(ours, **options, seed=seed),
        lambda seed: compare(ours, theirs, **options, seed=seed),
    ):
        assert make(0) == make(0)
        assert (make(0).low, make(0).high) != (make(1).low, make(1).high)


def test_rows_of_more_than_a_block_have_the_interval_of_theory():
    generator = np.random.default_rng(0)
    references = generator.random(5000).tolist()
    run = run_of(0, "correlation", (np.array(references) + generator.normal(0, 0.3, 5000)).tolist(), references)
    summary = summarize([run], **options_of("correlation"), num_resamples=1000)
    z = np.arctanh(run.score)  # Fisher
    expected = [np.tanh(z + sign * 1.96 * math.sqrt((1 + run.score**2 / 2) / (5000 - 3))) for sign in (-1, 1)]
    assert (summary.low, summary.high) == pytest.approx(expected, abs=0.003)


# Differences


def test_the_p_value_is_that_of_a_paired_t_test():
    ours, theirs = (0.91, 0.905, 0.9, 0.89, 0.93), (0.9, 0.903, 0.901, 0.885, 0.921)
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    statistic = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(5))
    comparison = compare(scores_alone(*ours), scores_alone(*theirs), **ACCURACY)
    assert comparison.p_value == pytest.approx(2 * t.sf(abs(statistic), 4))
    assert comparison.p_value == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert comparison.difference == pytest.approx(statistics.mean(differences))
    assert comparison.covers == "seeds"
    swapped = compare(scores_alone(*theirs), scores_alone(*ours), **ACCURACY)
    assert (swapped.difference, swapped.p_value) == pytest.approx((-comparison.difference, comparison.p_value))
    assert (swapped.low, swapped.high) == pytest.approx((-comparison.high, -comparison.low), abs=1e-3)


@pytest.mark.parametrize(("shift", "p_value"), [(0.0, 1.0), (0.1, 0.0), (-0.1, 0.0)])
def test_differences_that_are_all_equal_have_the_p_value_of_the_limit(shift, p_value):
    scores = (0.7, 0.8, 0.1, 0.3)
    comparison = compare(scores_alone(*(score + shift for score in scores)), scores_alone(*scores), **ACCURACY)
    assert comparison.p_value == p_value
    assert (comparison.low, comparison.high) == pytest.approx((shift, shift))


def test_seeds_that_one_side_lacks_are_left_out():
    ours, theirs = draw_runs("accuracy", num_seeds=4), draw_runs("accuracy", num_seeds=4, seed=1)
    comparison = compare(ours[:3], theirs[1:], **ACCURACY)
    assert comparison.seeds == (1, 2)
    assert comparison == compare(ours[1:3], theirs[1:3], **ACCURACY)
    alone = compare(ours[:2], theirs[1:], **ACCURACY)
    assert (alone.seeds, alone.p_value, alone.covers) == ((1,), None, "examples")
    assert alone.low < alone.difference < alone.high


def test_two_models_meet_the_same_examples():
    """A model that is right once more than another: what both get wrong is no part of the difference."""
    references = [1] * 500
    wrong = [0] * 250 + [1] * 250
    ours = run_of(0, "accuracy", [*wrong[:249], *[1] * 251], references)
    comparison = compare([ours], [run_of(0, "accuracy", wrong, references)], **ACCURACY, num_resamples=20_000)
    # the row is drawn 0 to 4 times, but for 0.4 %
    assert comparison.low == 0
    assert comparison.high == pytest.approx(3 / 500)


def test_a_comparison_across_data_sets_is_of_seeds_alone():
    ours, theirs = draw_runs("accuracy"), draw_runs("accuracy", num_rows=39)
    comparison = compare(ours, theirs, **ACCURACY)
    scores = [[Run(run.seed, run.score) for run in runs] for runs in (ours, theirs)]
    assert comparison == compare(*scores, **ACCURACY)
    assert comparison.covers == "seeds"


# Coverage


def simulate(generator, *, num_seeds, num_rows, seed_sd, num_models=1):
    """Models of an accuracy of 0.9 over seeds and examples; an example is as hard for every seed."""
    threshold = norm.ppf(0.9) * math.sqrt(1.5**2 + 1 + seed_sd**2)
    hard = generator.normal(0, 1.5, num_rows)
    models = []
    for _ in range(num_models):
        skill = threshold + generator.normal(0, seed_sd, (num_seeds, 1))
        is_right = skill + hard + generator.normal(0, 1, (num_seeds, num_rows)) > 0
        models.append([Run(seed, row.mean(), row.astype(int), np.ones(num_rows)) for seed, row in enumerate(is_right)])
    return models


@pytest.mark.parametrize(
    ("num_seeds", "seed_sd", "expected"),
    [(5, 0.1, (0.9, 1)), (5, 0.5, (0.75, 0.95)), (1, 0.5, (0, 0.5))],
)
def test_the_interval_holds_the_mean_as_often_as_its_docstring_says(num_seeds, seed_sd, expected):
    generator = np.random.default_rng(0)
    num_held = 0
    for _ in range(100):
        (runs,) = simulate(generator, num_seeds=num_seeds, num_rows=500, seed_sd=seed_sd)
        summary = summarize(runs, **ACCURACY, num_resamples=500)
        num_held += summary.low <= 0.9 <= summary.high
    assert expected[0] <= num_held / 100 <= expected[1]


def test_the_interval_of_two_equal_models_holds_no_difference():
    generator = np.random.default_rng(0)
    comparisons = [
        compare(
            *simulate(generator, num_seeds=5, num_rows=500, seed_sd=0.1, num_models=2), **ACCURACY, num_resamples=500
        )
        for _ in range(60)
    ]
    assert sum(comparison.low <= 0 <= comparison.high for comparison in comparisons) >= 55
    assert sum(comparison.p_value < 0.05 for comparison in comparisons) <= 8


# Errors

RUNS = draw_runs("accuracy")


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ([], {}, r"runs has seeds \[\]; give one or more, each once"),
        ([Run(1, 0.5), Run(2, 0.5), Run(1, 0.6)], {}, r"runs has seeds \[1, 1, 2\]; give one or more, each once"),
        ([*RUNS[:2], replace(RUNS[2], references=[0] * 40)], {}, "references differ .* not of one data set"),
        ([*RUNS[:2], replace(RUNS[2], references=RUNS[2].references[:-1])], {}, "references differ"),
        ([Run(1, 0.5)], {"metric": "bleu"}, "unknown metric 'bleu'; use one of accuracy"),
        (RUNS, {"score": "f1"}, "the metric has no 'f1'; use one of accuracy"),
        ([replace(RUNS[0], score=RUNS[0].score + 0.01)], {}, "predictions of seed 0 have accuracy .* give the"),
        ([replace(RUNS[0], score=100 * RUNS[0].score)], {}, "scores as shares"),
        ([replace(RUNS[0], score=math.nan)], {}, "its result nan"),
        ([replace(RUNS[0], predictions=[0])], {}, "seed 0 has 1 predictions and 40 references; give one of each"),
        ([Run(0, 0.5, [], [])], {}, "seed 0 has 0 predictions and 0 references"),
    ],
)
def test_what_cannot_be_summarized_is_named(runs, options, message):
    with pytest.raises(InputError, match=message):
        summarize(runs, **{**ACCURACY, **options})


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([Run(1, 0.5), Run(0, 0.5)], [Run(2, 0.5)], r"ours has seeds \[0, 1\], theirs has \[2\]; give one or more in"),
        ([Run(1, 0.5)], [Run(1, 0.5)] * 2, r"theirs has seeds \[1, 1\]"),
        ([], [Run(1, 0.5)], r"ours has seeds \[\]"),
        (RUNS, [*RUNS[:2], replace(RUNS[2], references=[0] * 40)], "between the seeds of theirs"),
    ],
)
def test_what_cannot_be_compared_is_named(ours, theirs, message):
    with pytest.raises(InputError, match=message):
        compare(ours, theirs, **ACCURACY)


def test_a_score_may_be_rounded():
    runs = [replace(run, score=round(run.score, 4)) for run in draw_runs("entity_f1")]
    assert summarize(runs, **options_of("entity_f1")).covers == "seeds and examples"
