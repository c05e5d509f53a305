"""Dropout that does not dominate a training step on a CPU.

PyTorch draws a random number for each element there (measured with 2.13 on two cores: 7 ns an element, 12 to 18 % of a
step), and attention with dropout leaves the fused kernel. Here one 64-bit number serves four elements. Elsewhere, and
in evaluation, everything is PyTorch's own.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "kcelectra_sdpa"
RESOLUTION = 2**16  # a dropout probability is rounded to a multiple of 1 / 65536


def keep_mask(shape: torch.Size, *, probability: float, dtype: torch.dtype) -> Tensor:
    """Draw what dropout multiplies with, on the CPU.

    Args:
        shape: of the result.
        probability: of a 0; at least 0 and below 1.
        dtype: of the result.

    Returns:
        A tensor of 0 and `1 / (1 - probability)`.
    """
    num_elements = math.prod(shape)
    numbers = torch.empty((num_elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    lanes = numbers.view(torch.int16)[:num_elements].view(shape)
    is_kept = lanes >= round(probability * RESOLUTION) - RESOLUTION // 2
    return is_kept.to(dtype).mul_(1 / (1 - probability))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training."""
        if not self.training or self.p == 0 or _is_fast_already(input):
            return super().forward(input)
        return input * keep_mask(input.shape, probability=self.p, dtype=input.dtype)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' `sdpa` does; with dropout on a CPU, by plain matrix products.

    Args:
        module: the attention layer.
        query: (batch, heads, length, head size); `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        attention_mask: (batch, 1, length, length) bool, true where a position is seen.
        dropout: probability to drop an attention weight.
        scaling: of the scores.
        **kwargs: passed on.

    Returns:
        (batch, length, heads, head size), and None in place of the weights.
    """
    if dropout == 0 or attention_mask is None or _is_fast_already(query):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    with torch.autocast("cpu", enabled=False):
        bias = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, -torch.inf)
        scores = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(2, 3) + bias
        weights = scores.softmax(dim=-1)
        weights = weights * keep_mask(weights.shape, probability=dropout, dtype=weights.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), None


def _is_fast_already(input: Tensor) -> bool:
    """Say whether PyTorch's own dropout is cheap: a compiler fuses its numbers into what they are used in."""
    return input.device.type != "cpu" or torch.compiler.is_compiling()


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every dropout of a model by `Dropout`; no parameter changes."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
