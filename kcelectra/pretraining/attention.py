"""Attention of packed rows, where a token sees its own document only; who computes it is chosen once, and said."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from kcelectra.errors import InputError

#: In the words of Hugging Face's `attn_implementation`. All compute the same; `flex_attention` skips the blocks of a
#: row in which no token sees another, and cannot drop attention weights.
BACK_ENDS = ("eager", "sdpa", "flex_attention")


def choose_attention(requested: str, *, device_type: str, dropout: float) -> str:
    """Return the back end that computes attention in a run.

    Args:
        requested: one of `BACK_ENDS`, or auto: `flex_attention` on CUDA where no attention weight is dropped.
        device_type: cpu, cuda, xla, ...
        dropout: `attention_probs_dropout_prob` of the configuration, 0 to 1. It is never changed here.

    Raises:
        InputError: the back end is unknown, or cannot train with this dropout or on this device.
    """
    is_flex_possible = device_type == "cuda" and dropout == 0
    if requested == "auto":
        return "flex_attention" if is_flex_possible else "sdpa"
    if requested not in BACK_ENDS:
        raise InputError(f"attention is {requested!r}; use auto or one of {', '.join(BACK_ENDS)}")
    if requested == "flex_attention" and not is_flex_possible:
        raise InputError(
            f"flex_attention trains on CUDA and drops no attention weight; this is {device_type} with "
            f"attention_probs_dropout_prob {dropout}; give a GPU and a probability of 0, or use sdpa"
        )
    return requested


def mask_documents(document_ids: Tensor, *, back_end: str, dtype: torch.dtype) -> Tensor | BlockMask:
    """Return what a back end takes for block-diagonal attention; restarted positions would not keep documents apart.

    Args:
        document_ids: (batch, length) int64; 0, padding, sees itself.
        back_end: one of `BACK_ENDS`.
        dtype: of the scores that `eager` adds the mask to.

    Returns:
        (batch, 1, length, length): bool, true where a token is seen; for `eager` 0 there and else the lowest number;
        for `flex_attention` a block mask.
    """
    if back_end == "flex_attention":
        num_rows, length = document_ids.shape

        def is_seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return document_ids[row, query] == document_ids[row, key]

        return create_block_mask(is_seen, num_rows, None, length, length, device=document_ids.device)
    mask = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype) if back_end == "eager" else mask
