"""The head for a label or a number of one text or two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.finetuning.sources import LabelledTexts


@dataclass(frozen=True)
class SequenceHead:
    """Encodes texts, and reads labels off logits.

    Args:
        tokenizer: of the model.
        labels: by id; None for a number.
        max_length: tokens of a row, special ones included; of a pair the longer text is cut first.
        is_multi_label: a text may have several labels, or none.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...] | None
    max_length: int
    is_multi_label: bool = False

    auto_class: ClassVar[Any] = AutoModelForSequenceClassification

    @property
    def problem_type(self) -> str:
        """What `transformers` chooses the loss by."""
        if self.labels is None:
            return "regression"
        return "multi_label_classification" if self.is_multi_label else "single_label_classification"

    def encode(self, examples: Sequence[LabelledTexts]) -> list[dict[str, Any]]:
        """Return a feature an example: `input_ids`, `token_type_ids`, `labels`, and `example`, its number.

        Raises:
            InputError: a row has no room for a token of each text.
        """
        if not examples:
            return []
        columns = list(zip(*(example.texts for example in examples), strict=True))
        least = self.tokenizer.num_special_tokens_to_add(pair=len(columns) > 1) + len(columns)
        if self.max_length < least:  # below the special tokens, the tokenizer would cut nothing
            raise InputError(f"max_length {self.max_length} has no room for a text; give at least {least}")
        encoded = self.tokenizer(
            *map(list, columns), truncation=True, max_length=self.max_length, split_special_tokens=True
        )
        return [
            {
                "input_ids": encoded["input_ids"][number],
                "token_type_ids": encoded["token_type_ids"][number],
                "labels": list(map(float, label)) if isinstance(label, tuple) else label,
                "example": number,
            }
            for number, (_, label) in enumerate(examples)
        ]

    def decode(
        self, examples: Sequence[LabelledTexts], features: Sequence[dict[str, Any]], logits: Sequence[np.ndarray]
    ) -> list[Any]:
        """Return a prediction an example: an id, a number, or a score a label, above 0 where it is predicted.

        Args:
            examples: what was encoded.
            features: what `encode` made of them.
            logits: (labels,) each, in the order of the features.
        """
        if self.labels is None:
            return [float(row[0]) for row in logits]
        return [row.tolist() for row in logits] if self.is_multi_label else [int(row.argmax()) for row in logits]

    def references(self, examples: Sequence[LabelledTexts]) -> list[Any]:
        """Return the labels as the metric takes them."""
        return [list(label) if isinstance(label, tuple) else label for _, label in examples]
