"""Metrics of replaced token detection, summed on the device and read only when they are logged."""

import math

import torch
from torch import Tensor

from kcelectra.pretraining.collator import IGNORED
from kcelectra.pretraining.modeling import KcElectraForPreTrainingOutput

NUM_BINS = 4096  # of discriminator logits, for the area under the ROC curve
LOGIT_RANGE = 12.0  # logits beyond are counted in the outermost bins; sigmoid(12) = 0.999994


class PretrainingMetrics:
    """Sums over the batches of a logging interval.

    Everything is a sum, so that batches, accumulation steps and processes can be added in any order; nothing is read
    from the device before `compute`.

    Args:
        vocab_size: of the model.
        device: of the batches.
    """

    def __init__(self, vocab_size: int, *, device: torch.device) -> None:
        self.nats = torch.zeros(2, dtype=torch.float32, device=device)  # generator, discriminator
        self.counts = torch.zeros(len(COUNTED), dtype=torch.int64, device=device)
        self.histogram = torch.zeros(2, NUM_BINS, dtype=torch.int64, device=device)  # original, replaced
        self.token_counts = torch.zeros(vocab_size, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, output: KcElectraForPreTrainingOutput, batch: dict[str, Tensor]) -> None:
        """Add a batch and what the model made of it, unless its loss is not finite: that step is skipped."""
        is_finite = (output.generator_loss + output.discriminator_loss).isfinite()
        labels, is_token = batch["masked_labels"], (batch["document_ids"] > 0) & is_finite
        is_used = (labels != IGNORED) & is_finite
        num_masked, num_tokens = is_used.sum(), is_token.sum()
        divisors = torch.stack([batch.get("num_masked", num_masked), batch.get("num_tokens", num_tokens)])
        nats = torch.stack([output.generator_loss, output.discriminator_loss]).float() * divisors
        self.nats += torch.where(is_finite, nats, 0.0)
        is_replaced = output.is_replaced & is_token
        is_flagged = (output.discriminator_logits > 0) & is_token
        self.counts += torch.stack(
            [
                num_masked,
                ((output.generator_predictions == labels) & is_used).sum(),
                ((output.sampled_ids == labels) & is_used).sum(),
                num_tokens,
                is_replaced.sum(),
                is_flagged.sum(),
                (is_replaced & is_flagged).sum(),
            ]
        )
        self._count_logits(output.discriminator_logits, is_replaced, is_token)
        _add_counts(self.token_counts, torch.where(is_used, labels, 0), is_used)

    def _count_logits(self, logits: Tensor, is_replaced: Tensor, is_token: Tensor) -> None:
        bins = ((logits + LOGIT_RANGE) * (NUM_BINS / (2 * LOGIT_RANGE))).long().clamp(0, NUM_BINS - 1)
        _add_counts(self.histogram.view(-1), bins + NUM_BINS * is_replaced, is_token)

    def tensors(self) -> list[Tensor]:
        """Return what must be summed over processes."""
        return list(self.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums of this process."""
        return {"nats": self.nats, "counts": self.counts, "histogram": self.histogram, "tokens": self.token_counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from sums."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def reset(self) -> None:
        """Start a new interval; the token counts go on, for they describe the corpus."""
        for tensor in (self.nats, self.counts, self.histogram):
            tensor.zero_()


COUNTED = ("masked", "predicted", "sampled", "tokens", "replaced", "flagged", "found")


def compute_metrics(nats: Tensor, counts: Tensor, histogram: Tensor, token_counts: Tensor) -> dict[str, float]:
    """Compute what is logged from the sums of all processes.

    Args:
        nats: (2,), summed losses of generator and discriminator.
        counts: as many as `COUNTED`.
        histogram: (2, bins), discriminator logits of original and of replaced tokens.
        token_counts: (vocab,), how often each token was masked so far.

    Returns:
        Losses in nats; accuracies, fake rate, precision, recall and AUC between 0 and 1; and two baselines in nats:
        `unigram_entropy` (a generator that ignores context cannot be better; from the masked tokens so far, hence a
        little too low) and `fake_rate_entropy` (a discriminator that ignores its input cannot be better).
    """
    count = dict(zip(COUNTED, counts.tolist(), strict=True))
    fake_rate = _ratio(count["replaced"], count["tokens"])
    return {
        "generator_loss": _ratio(nats[0].item(), count["masked"]),
        "generator_accuracy": _ratio(count["predicted"], count["masked"]),
        "sampled_accuracy": _ratio(count["sampled"], count["masked"]),
        "unigram_entropy": entropy(token_counts),
        "discriminator_loss": _ratio(nats[1].item(), count["tokens"]),
        "fake_rate": fake_rate,
        "fake_rate_entropy": entropy(torch.tensor([fake_rate, 1 - fake_rate])),
        "discriminator_accuracy": _ratio(
            count["tokens"] - count["replaced"] - count["flagged"] + 2 * count["found"], count["tokens"]
        ),
        "discriminator_precision": _ratio(count["found"], count["flagged"]),
        "discriminator_recall": _ratio(count["found"], count["replaced"]),
        "discriminator_auc": area_under_curve(histogram),
    }


def area_under_curve(histogram: Tensor) -> float:
    """Compute the area under the ROC curve from the scores' histograms; ties within a bin count one half.

    Args:
        histogram: (2, bins), counts of negatives and of positives by rising score.

    Returns:
        0 to 1; NaN without positives or without negatives.
    """
    negatives, positives = histogram.cpu().double()
    below = negatives.cumsum(0) - negatives / 2
    return _ratio((positives * below).sum().item(), (positives.sum() * negatives.sum()).item())


def entropy(weights: Tensor) -> float:
    """Compute the entropy in nats of the distribution that is proportional to `weights`; NaN if all are 0."""
    probabilities = weights.cpu().double()
    probabilities = probabilities[probabilities > 0] / probabilities.sum()
    return -(probabilities * probabilities.log()).sum().item() if len(probabilities) else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _add_counts(counts: Tensor, bins: Tensor, is_counted: Tensor) -> None:
    counts.scatter_add_(0, bins.flatten(), is_counted.flatten().to(counts.dtype))
