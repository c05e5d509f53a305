"""The vocabulary at the masked positions: loss, its gradient, a sample and the best guess, in one pass.

N masked positions of a batch, E embedding, V vocabulary. Only one (N, V) tensor exists at a time, in the autocast
dtype: the scores, which become their own gradient chunk by chunk. Loss, noise and gradient one after the other would
make eight, most of them in float32 (measured: a tenth of a step of the small size on two cores).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kcelectra.pretraining.collator import IGNORED

CHUNK_ELEMENTS = 2**22  # scores that are float32 at once: 16 MB
#: Of scores in a row: products of 16-bit matrices whose rows start anywhere do not use the tensor cores.
MULTIPLES = {"cuda": 64}


def sample_replacements(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    unsampled_token_ids: list[int] | tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token per masked position from the generator's distribution.

    Gumbel-max. The noise is drawn in float32 whatever the autocast dtype: in bfloat16 a token of probability 0.1 would
    be drawn 99.8 % of the time, because the largest noise a 16-bit uniform can give is 5.5. On a CPU, where noise for
    each token is dear (measured: a twelfth of a step of 4 layers of 256), one number is held against the summed
    probabilities.

    Args:
        logits: (..., vocab), any float dtype, unnormalised.
        temperature: > 0; 1.0 in the paper. A tensor, a scalar on the device, is not looked at.
        unsampled_token_ids: ids that are never drawn.
        generator: source of the noise; torch's global one if None.

    Returns:
        (...) int64 token ids.

    Raises:
        ValueError: temperature is not positive.

    Source: Clark et al. 2020, section 2; google-research/electra `sample_from_softmax`.
    """
    is_tensor = isinstance(temperature, Tensor)
    if not is_tensor and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (1.0 in the paper)")
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        if logits.device.type == "cpu":
            return _sample_by_sums(logits.float() / temperature, unsampled_token_ids, generator)
        scores = torch.rand(logits.shape, dtype=torch.float32, device=logits.device, generator=generator)
        scores.clamp_min_(2.0**-25)  # a uniform of 0 would give noise of minus infinity
        scores.log_().neg_().log_().neg_()
        scores += logits if not is_tensor and temperature == 1.0 else logits.float() / temperature
        for token_id in unsampled_token_ids:
            scores[..., token_id] = -torch.inf
        return scores.argmax(dim=-1)


def _sample_by_sums(
    scores: Tensor, unsampled_token_ids: list[int] | tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    for token_id in unsampled_token_ids:
        scores[..., token_id] = -torch.inf
    sums = scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_().cumsum(dim=-1)
    shares = torch.rand(*sums.shape[:-1], 1, device=sums.device, generator=generator)
    drawn = torch.searchsorted(sums, shares * sums[..., -1:], right=True).squeeze(-1)
    return drawn.clamp_max(sums.shape[-1] - 1)  # where rounding, or NaN, puts the number above every sum


def masked_language_modeling(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor | None = 1.0,
    unsampled_token_ids: list[int] | tuple[int, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Score the vocabulary at masked positions; see what the model loses, draws and predicts.

    The gradient is left out where none of the inputs wants one.

    Args:
        hidden: (N, E), what the generator says of each position.
        weight: (V, E), the output embedding.
        bias: (V,).
        labels: (N,) int64, the original tokens; -100 where a slot holds no position.
        temperature: of the draw; nothing is drawn if None.
        unsampled_token_ids: ids that are never drawn.

    Returns:
        Summed cross entropy in nats, scalar float32; drawn tokens, (N,) int64, the labels where nothing is drawn; most
        probable tokens, (N,) int64.
    """
    return _MaskedLanguageModeling.apply(hidden, weight, bias, labels, temperature, tuple(unsampled_token_ids))


class _MaskedLanguageModeling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        temperature: float | Tensor | None,
        unsampled_token_ids: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        is_wanted = any(ctx.needs_input_grad)
        num_padding = -len(weight) % MULTIPLES.get(hidden.device.type, 1)
        logits = F.linear(hidden, _pad(weight, num_padding), _pad(bias, num_padding, value=-torch.inf))  # (N, V)
        sampled_ids, predictions = labels.clone(), torch.empty_like(labels)
        losses = []  # a sum in place would have no gradient once it is compiled; seen with torch 2.11
        # compiled code keeps scores in registers, whatever their number
        is_compiled = torch.compiler.is_compiling() or logits.device.type == "xla"
        num_rows = len(labels) if is_compiled else max(1, CHUNK_ELEMENTS // logits.shape[1])
        for start in range(0, len(labels), num_rows):
            rows = slice(start, start + num_rows)
            scores = logits[rows].float()
            if temperature is not None:
                sampled_ids[rows] = sample_replacements(
                    scores, temperature=temperature, unsampled_token_ids=unsampled_token_ids
                )
            predictions[rows] = scores.argmax(dim=-1)
            losses.append(_cross_entropy_and_gradient_(scores, labels[rows], predictions[rows], is_wanted))
            if is_wanted and scores.dtype != logits.dtype:  # else they are the same memory
                logits[rows] = scores  # from here on the gradient
        if is_wanted:
            ctx.save_for_backward(hidden, weight, logits)
        ctx.mark_non_differentiable(sampled_ids, predictions)
        return torch.stack(losses).sum(), sampled_ids, predictions

    @staticmethod
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, gradient = ctx.saved_tensors
        dtype = gradient.dtype
        # the scale goes to the small factor before the product: in float16 it keeps small values from vanishing
        vocab_size = len(weight)
        of_weight = (gradient.t() @ (hidden * scale).to(dtype))[:vocab_size]
        of_hidden = (gradient @ _pad(weight.to(dtype), gradient.shape[1] - vocab_size)).to(hidden.dtype) * scale
        of_bias = gradient.sum(dim=0, dtype=torch.float32)[:vocab_size] * scale
        return of_hidden, of_weight.to(weight.dtype), of_bias, None, None, None


def _pad(tensor: Tensor, num_rows: int, *, value: float = 0.0) -> Tensor:
    """Append rows, if any, of a value."""
    return F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, num_rows), value=value) if num_rows else tensor


def _cross_entropy_and_gradient_(scores: Tensor, labels: Tensor, predictions: Tensor, is_wanted: bool) -> Tensor:
    """Return the summed cross entropy of scores, (rows, V) float32, which become its gradient if that is wanted."""
    is_used = (labels != IGNORED)[:, None]
    index = labels.clamp(min=0)[:, None]
    highest, true = scores.gather(1, predictions[:, None]), scores.gather(1, index)
    scores.sub_(highest).exp_()
    normaliser = scores.sum(dim=-1, keepdim=True)
    if is_wanted:
        scores.mul_(is_used / normaliser).scatter_add_(1, index, -is_used.float())
    return ((normaliser.log() + highest - true) * is_used).sum()
