"""Turn packed rows into batches: where documents begin, what is masked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kcelectra.errors import InputError

IGNORED = -100  # label of a masked slot that holds no position, as in torch.nn.functional.cross_entropy
KEEP_PROBABILITY = 0.15  # of a masked position to show its token; google-research/electra, pretrain_helpers.mask


class DataCollatorForReplacedTokenDetection:
    """Collate packed rows for `KcElectraForPreTraining`.

    Masks depend on (seed, epoch, row id) alone: not on workers, processes, batch size or what was drawn before.

    Differs from the reference: positions are drawn without replacement, so that 15 % of the tokens are masked, not
    13.8 %.

    Args:
        tokenizer: names the special tokens.
        mask_probability: above 0 and below 1; share of a row's tokens, special ones counted, that is masked. 0.15 in
            the paper, 0.25 for its large size.
        seed: of the masks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, mask_probability: float = 0.15, seed: int = 0) -> None:
        if not 0 < mask_probability < 1:
            raise InputError(f"mask_probability is {mask_probability}; give a share between 0 and 1, such as 0.15")
        self.cls_token_id: int = tokenizer.cls_token_id
        self.sep_token_id: int = tokenizer.sep_token_id
        self.pad_token_id: int = tokenizer.pad_token_id
        self.mask_token_id: int = tokenizer.mask_token_id
        self.mask_probability = mask_probability
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Mask anew from here on; `KcElectraTrainer` calls it at the start of each epoch."""
        self.epoch = epoch

    def num_masked(self, max_length: int) -> int:
        """Return the number of slots of a row, `int((mask_probability + 0.005) * max_length)`, as in the reference.

        Raises:
            InputError: there is none.
        """
        slots = min(int((self.mask_probability + 0.005) * max_length), max_length)
        if slots == 0:
            raise InputError(
                f"mask_probability {self.mask_probability} of max_length {max_length} is less than one token: "
                "give a larger --mask_probability or --max_length"
            )
        return slots

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            rows: `input_ids`, as many ids in each row, a framed document first; and `row_id`, not negative.

        Returns:
            The arguments of `KcElectraForPreTraining.forward`, all int64: `input_ids`, `document_ids`, `position_ids`
            and `token_type_ids`, (batch, length); `masked_positions` and `masked_labels`, (batch, masked); `row_id`,
            (batch,).

        Raises:
            ValueError: a row has no id, the rows differ in length, or one does not begin with `[CLS]`.
        """
        _check_rows(rows)
        ids = np.array([row["input_ids"] for row in rows], dtype=np.int64)  # (B, L)
        row_ids = np.array([row["row_id"] for row in rows], dtype=np.int64)  # (B,)
        for row_id in row_ids[ids[:, 0] != self.cls_token_id]:
            raise ValueError(f"row {row_id} does not begin with [CLS] ({self.cls_token_id}); pack rows with Packer")
        document_ids, position_ids, token_type_ids = self._documents(ids)
        positions, labels, input_ids = self._mask(ids, row_ids)
        batch = {
            "input_ids": input_ids,
            "masked_positions": positions,
            "masked_labels": labels,
            "document_ids": document_ids,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
            "row_id": row_ids,
        }
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _documents(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derive document ids, positions and token types, (B, L) each; a document begins at each `[CLS]`."""
        columns = np.arange(ids.shape[1])
        is_token = ids != self.pad_token_id
        starts = np.maximum.accumulate(np.where(ids == self.cls_token_id, columns, 0), axis=1)
        is_sep = ids == self.sep_token_id
        num_seps = np.cumsum(is_sep, axis=1) - is_sep  # before this position
        num_seps -= np.take_along_axis(num_seps, starts, axis=1)
        document_ids = np.cumsum(ids == self.cls_token_id, axis=1) * is_token
        return document_ids, (columns - starts) * is_token, np.minimum(num_seps, 1) * is_token

    def _mask(self, ids: np.ndarray, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose positions (B, K), their labels (B, K), and mask the rows (B, L)."""
        slots = self.num_masked(ids.shape[1])
        specials = (self.pad_token_id, self.cls_token_id, self.sep_token_id, self.mask_token_id)
        is_candidate = ~np.isin(ids, specials)
        num_tokens = (ids != self.pad_token_id).sum(axis=1)
        wanted = np.clip(np.round(num_tokens * self.mask_probability).astype(np.int64), 1, slots)
        num_chosen = np.minimum(wanted, is_candidate.sum(axis=1))
        noise = self._noise(row_ids, ids.shape[1])  # (B, L)
        order = np.argsort(np.where(is_candidate, noise >> np.uint64(1), ~np.uint64(0)), axis=1)[:, :slots]
        is_used = np.arange(slots) < num_chosen[:, None]  # (B, K)
        positions = np.where(is_used, order, 0)
        labels = np.where(is_used, np.take_along_axis(ids, positions, axis=1), IGNORED)
        draws = np.take_along_axis(_scramble(noise), positions, axis=1) / 2.0**64
        is_hidden = is_used & (draws >= KEEP_PROBABILITY)
        masked = ids.copy()
        rows, columns = np.nonzero(is_hidden)
        masked[rows, positions[rows, columns]] = self.mask_token_id
        return positions, labels, masked

    def _noise(self, row_ids: np.ndarray, max_length: int) -> np.ndarray:
        """Hash (seed, epoch, row id, position) to 64 bits, (B, L)."""
        key = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        rows = _scramble(row_ids.astype(np.uint64) ^ key)
        return _scramble(rows[:, None] + np.arange(max_length, dtype=np.uint64) * _GOLDEN)


def _check_rows(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if "row_id" not in row:
            raise ValueError(f"a row has {', '.join(row)}; give input_ids and row_id, which its masks depend on")
    lengths = sorted({len(row["input_ids"]) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"rows have lengths from {lengths[0]} to {lengths[-1]}; give packed rows of one length")


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _scramble(values: np.ndarray) -> np.ndarray:
    """Mix 64-bit integers; the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
