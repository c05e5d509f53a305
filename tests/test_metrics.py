"""Claims about the metrics: they equal their definitions, add up in any order, and never count padding."""

import math

import numpy as np
import pytest
import torch

from kcelectra.pretraining.collator import IGNORED
from kcelectra.pretraining.metrics import PretrainingMetrics, area_under_curve, compute_metrics, entropy
from kcelectra.pretraining.modeling import KcElectraForPreTrainingOutput

VOCAB_SIZE = 50
CPU = torch.device("cpu")


def rank_statistic(negatives, positives):
    """Share of (negative, positive) pairs that are in order, a tie counting one half: the exact AUC."""
    negatives = np.sort(negatives)
    below = np.searchsorted(negatives, positives, side="left") + np.searchsorted(negatives, positives, side="right")
    return below.mean() / 2 / len(negatives)


def make_step(num_rows=6, max_length=32, slots=5, *, seed=0):
    """Draw a batch with padding and unused slots, what a model made of it, and the losses of each slot and token."""
    random = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(high, shape, generator=random)

    num_tokens, num_used = 8 + integers(max_length - 8, num_rows), 1 + integers(slots, num_rows)
    num_tokens[0], num_used[0] = max_length, slots
    is_token = torch.arange(max_length) < num_tokens[:, None]
    labels = torch.where(torch.arange(slots) < num_used[:, None], integers(VOCAB_SIZE, num_rows, slots), IGNORED)
    batch = {"masked_labels": labels, "document_ids": is_token.long()}
    nats = [torch.rand(shape, generator=random) for shape in (labels.shape, is_token.shape)]
    output = KcElectraForPreTrainingOutput(
        discriminator_logits=torch.randn(num_rows, max_length, generator=random) * 3,
        is_replaced=(torch.rand(num_rows, max_length, generator=random) < 0.2) & is_token,
        generator_predictions=torch.where(integers(2, num_rows, slots) == 0, labels, integers(VOCAB_SIZE, 1, slots)),
        sampled_ids=torch.where(integers(3, num_rows, slots) == 0, labels, integers(VOCAB_SIZE, 1, slots)),
    )
    return batch, with_losses(output, batch, nats), nats


def with_losses(output, batch, nats):
    is_used, is_token = batch["masked_labels"] != IGNORED, batch["document_ids"] > 0
    output.generator_loss = (nats[0] * is_used).sum() / batch.get("num_masked", is_used.sum())
    output.discriminator_loss = (nats[1] * is_token).sum() / batch.get("num_tokens", is_token.sum())
    return output


def rows_of(step, rows, **divisors):
    """Take some rows of a batch, and its losses over these rows."""
    batch, output, nats = step
    batch = {name: tensor[rows] for name, tensor in batch.items()} | divisors
    tensors = {name: tensor[rows] for name, tensor in output.items() if tensor.ndim}
    return batch, with_losses(KcElectraForPreTrainingOutput(**tensors), batch, [tensor[rows] for tensor in nats])


def metrics_of(*steps):
    metrics = PretrainingMetrics(VOCAB_SIZE, device=CPU)
    for batch, output, *_ in steps:
        metrics.update(output, batch)
    return metrics


def assert_equal_sums(actual, expected):
    for one, other in zip(actual.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


# Area under the curve


@pytest.mark.parametrize(
    ("negatives", "positives"),
    [
        ((0.0, 1.0), (1.0, 1.0)),
        ((-2.0, 1.5), (0.5, 2.5)),
        ((0.0, 1.0), (0.0, 1.0)),  # chance
        ((1.0, 1.0), (-1.0, 1.0)),  # worse than chance
        ((0.0, 0.02), (0.01, 0.02)),  # the spread at initialisation
        ((-1.8, 0.02), (-1.79, 0.02)),
        ((-9.0, 3.0), (9.0, 3.0)),  # many logits beyond the histogram
        ((-7.0, 2.5), (-3.0, 4.0)),
    ],
)
def test_area_under_curve_equals_the_rank_statistic(negatives, positives):
    random = np.random.default_rng(0)
    scores = [random.normal(*negatives, 20_000), random.normal(*positives, 4_000)]
    logits = torch.from_numpy(np.concatenate(scores)).float()
    order = torch.from_numpy(random.permutation(len(logits)))
    output = KcElectraForPreTrainingOutput(
        generator_loss=torch.tensor(1.0),
        discriminator_loss=torch.tensor(1.0),
        discriminator_logits=logits[order].view(240, 100),
        is_replaced=(order >= 20_000).view(240, 100),
        generator_predictions=torch.zeros(240, 1, dtype=torch.long),
        sampled_ids=torch.zeros(240, 1, dtype=torch.long),
    )
    batch = {
        "masked_labels": torch.zeros(240, 1, dtype=torch.long),
        "document_ids": torch.ones(240, 100, dtype=torch.long),
    }
    assert area_under_curve(metrics_of((batch, output)).histogram) == pytest.approx(rank_statistic(*scores), abs=1e-3)


def test_logits_beyond_the_histogram_are_ties():
    batch, output, _ = make_step()
    output.discriminator_logits = torch.where(output.is_replaced, 14.0, 13.0)
    assert area_under_curve(metrics_of((batch, output)).histogram) == 0.5
    output.discriminator_logits = torch.where(output.is_replaced, 11.0, -1e6)
    assert area_under_curve(metrics_of((batch, output)).histogram) == 1.0


def test_area_under_curve_counts_ties_one_half():
    assert area_under_curve(torch.tensor([[2, 1, 0], [0, 1, 3]])) == (1 * 2.5 + 3 * 3) / 12
    assert area_under_curve(torch.tensor([[0, 5, 0], [0, 7, 0]])) == 0.5


@pytest.mark.parametrize("histogram", [[[3, 4], [0, 0]], [[0, 0], [3, 4]], [[0, 0], [0, 0]]])
def test_area_under_curve_is_nan_without_positives_or_without_negatives(histogram):
    assert math.isnan(area_under_curve(torch.tensor(histogram)))


# Everything that is logged


def test_metrics_equal_their_definitions():
    batch, output, nats = make_step()
    logged = compute_metrics(*metrics_of((batch, output)).tensors())

    labels, is_token = batch["masked_labels"].numpy(), batch["document_ids"].numpy() > 0
    is_used = labels != IGNORED
    replaced = output.is_replaced.numpy()[is_token]
    logits = output.discriminator_logits.numpy()[is_token]
    flagged = logits > 0
    unigrams = np.bincount(labels[is_used]) / is_used.sum()
    unigrams = unigrams[unigrams > 0]
    fake_rate = replaced.mean()
    auc = logged.pop("discriminator_auc")
    assert auc == pytest.approx(rank_statistic(logits[~replaced], logits[replaced]), abs=1e-3)
    assert logged == pytest.approx(
        {
            "generator_loss": nats[0].numpy()[is_used].mean(),
            "generator_accuracy": (output.generator_predictions.numpy() == labels)[is_used].mean(),
            "sampled_accuracy": (output.sampled_ids.numpy() == labels)[is_used].mean(),
            "unigram_entropy": -(unigrams * np.log(unigrams)).sum(),
            "discriminator_loss": nats[1].numpy()[is_token].mean(),
            "fake_rate": fake_rate,
            "fake_rate_entropy": -fake_rate * np.log(fake_rate) - (1 - fake_rate) * np.log(1 - fake_rate),
            "discriminator_accuracy": (flagged == replaced).mean(),
            "discriminator_precision": (flagged & replaced).sum() / flagged.sum(),
            "discriminator_recall": (flagged & replaced).sum() / replaced.sum(),
        }
    )


def test_sums_over_parts_of_a_batch_equal_the_whole():
    step = make_step(num_rows=12)
    whole = metrics_of(step)
    for size in (1, 5, 6):
        parts = [rows_of(step, slice(start, start + size)) for start in range(0, 12, size)]
        assert_equal_sums(metrics_of(*parts), whole)
        assert_equal_sums(metrics_of(*reversed(parts)), whole)


def test_sums_of_processes_added_equal_the_whole():
    step = make_step(num_rows=12)
    processes = [metrics_of(rows_of(step, slice(0, 5))), metrics_of(rows_of(step, slice(5, 12)))]
    sums = [sum(tensors) for tensors in zip(*(process.tensors() for process in processes), strict=True)]
    assert compute_metrics(*sums) == pytest.approx(compute_metrics(*metrics_of(step).tensors()))


def test_losses_that_were_divided_by_the_counts_of_the_whole_step_add_up_too():
    step = make_step(num_rows=12)
    batch = step[0]
    divisors = {
        "num_masked": (batch["masked_labels"] != IGNORED).sum(),
        "num_tokens": (batch["document_ids"] > 0).sum(),
    }
    parts = [rows_of(step, slice(0, 5), **divisors), rows_of(step, slice(5, 12), **divisors)]
    assert_equal_sums(metrics_of(*parts), metrics_of(step))


def test_padding_and_unused_slots_are_never_counted():
    batch, output, _ = make_step()
    expected = metrics_of((batch, output))
    is_padding, is_unused = batch["document_ids"] == 0, batch["masked_labels"] == IGNORED
    assert is_padding.any() and is_unused.any()
    output.discriminator_logits[is_padding] = 9.0
    output.is_replaced[is_padding] = True
    output.generator_predictions[is_unused] = IGNORED  # equal to the label
    output.sampled_ids[is_unused] = IGNORED
    assert_equal_sums(metrics_of((batch, output)), expected)


def test_tokens_are_counted_as_often_as_they_were_masked():
    batch, output, _ = make_step()
    labels = batch["masked_labels"]
    expected = torch.bincount(labels[labels != IGNORED], minlength=VOCAB_SIZE)
    assert torch.equal(metrics_of((batch, output)).token_counts, expected)


def test_update_leaves_no_gradient_and_no_float_counts():
    batch, output, _ = make_step()
    output.discriminator_logits.requires_grad_()
    output.generator_loss = output.discriminator_logits.mean()
    nats, *counts = metrics_of((batch, output)).tensors()
    assert not nats.requires_grad
    assert all(tensor.dtype == torch.int64 for tensor in counts)  # a float32 stops counting at 16.8 million


@pytest.mark.parametrize("n", [1, 2, 30522])
def test_entropy_of_the_uniform_distribution_is_ln_n(n):
    assert entropy(torch.full((n,), 7)) == pytest.approx(math.log(n))
    assert entropy(torch.cat([torch.full((n,), 7), torch.zeros(10)])) == pytest.approx(math.log(n))


def test_entropy_of_nothing_is_nan():
    assert math.isnan(entropy(torch.zeros(5)))


def test_metrics_without_replaced_tokens_are_nan_where_they_are_undefined():
    batch, output, _ = make_step()
    output.is_replaced.fill_(False)
    logged = compute_metrics(*metrics_of((batch, output)).tensors())
    assert math.isnan(logged["discriminator_auc"]) and math.isnan(logged["discriminator_recall"])
    assert logged["fake_rate"] == logged["fake_rate_entropy"] == logged["discriminator_precision"] == 0


def test_metrics_before_the_first_batch_are_nan():
    assert all(math.isnan(value) for value in compute_metrics(*metrics_of().tensors()).values())


def test_reset_begins_a_new_interval_but_keeps_the_token_counts():
    first, second = make_step(seed=1), make_step(seed=2)
    metrics = metrics_of(first)
    counted = metrics.token_counts.clone()
    metrics.reset()
    assert torch.equal(metrics.token_counts, counted)
    metrics.update(second[1], second[0])
    expected = metrics_of(second)
    for one, other in zip(metrics.tensors()[:3], expected.tensors()[:3], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(metrics.token_counts, counted + expected.token_counts)
