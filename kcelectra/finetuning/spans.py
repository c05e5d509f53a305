"""Find the answer to a question in a text."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tokenizers import Encoding
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.finetuning.sources import Span
from kcelectra.finetuning.tokens import encode_texts

N_BEST = 20  # first and last tokens that are looked at, the most likely of a window; the reference's n_best_size
OUTSIDE = -1  # the offsets of what is not a token of the text


@dataclass(frozen=True)
class SpansHead:
    """Rows for a model that points at the first and last token of an answer, and from its logits the answer.

    A text longer than a row becomes several windows. Differs from the reference: an answer is always cut at tokens,
    there at whole words where it begins inside one, holds [UNK] or is changed by normalisation; windows overlap by
    `stride` tokens, where the reference moves them by as many; a token is taken from any window that has it.

    Args:
        tokenizer: a fast one.
        max_length: tokens of a row, special ones included.
        stride: tokens of the text that two windows share, at most half of a window's.
        max_question_length: tokens of a question; what follows them is cut off.
        max_answer_length: tokens of an answer that is given.

    Raises:
        InputError: a row has no room for a token of a text.

    Source: KcBERT-Finetune, `run_squad.py`; transformers, `data/metrics/squad_metrics.py`,
    `compute_predictions_logits`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 512
    stride: int = 128
    max_question_length: int = 64
    max_answer_length: int = 30

    auto_class: ClassVar[Any] = AutoModelForQuestionAnswering

    def __post_init__(self) -> None:
        least = self.max_question_length + self.tokenizer.num_special_tokens_to_add(pair=True) + 1
        if self.max_length < least:
            raise InputError(
                f"max_length {self.max_length} has no room for a text beside a question of {self.max_question_length} "
                f"tokens; give at least {least}, or a smaller max_question_length"
            )

    def encode(self, examples: Sequence[Span]) -> list[dict[str, Any]]:
        """Return the windows of questions and their texts, in order, one or more each.

        Returns:
            Rows of at most `max_length` tokens, unpadded: `input_ids`, `token_type_ids`, each (length,);
            `start_positions` and `end_positions`, the first and last token of those that cover the answer, or 0, which
            is [CLS], where the window has not all of them; `offsets`, (length, 2) int32, where each token begins and
            ends in the text, in code points, -1 for those that are not of the text; `example`, the number of the
            question, from 0.

        Raises:
            InputError: the tokenizer is not a fast one.
        """
        questions = encode_texts(self.tokenizer, [span.question for span in examples], add_special_tokens=False)
        contexts = encode_texts(self.tokenizer, [span.context for span in examples], add_special_tokens=False)
        features = []
        for index, (span, question, context) in enumerate(zip(examples, questions, contexts, strict=True)):
            answer = _find_answer(span, context.offsets)
            for window in self._windows(question, context):
                features.append({**_encode_window(window, answer), "example": index})
        return features

    def decode(
        self,
        examples: Sequence[Span],
        features: Sequence[dict[str, Any]],
        logits: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> list[str]:
        """Return the best answer to each question, as it stands in its text; "" if a text has no token.

        Args:
            examples: those that were encoded; only their texts are looked at.
            features: what `encode` made of them.
            logits: of each feature, two of (length,), without padding: that a token is the first, and the last.
        """
        best = [(-np.inf, "")] * len(examples)
        for feature, (first, last) in zip(features, logits, strict=True):
            offsets, index = np.asarray(feature["offsets"]), feature["example"]
            score, start, end = self._best_span(offsets, first, last)
            if score > best[index][0]:
                best[index] = (score, examples[index].context[offsets[start, 0] : offsets[end, 1]])
        return [text for _, text in best]

    def references(self, examples: Sequence[Span]) -> list[list[str]]:
        """Return the right answers to each question."""
        return [[span.answer, *span.others] for span in examples]

    def _windows(self, question: Encoding, context: Encoding) -> list[Encoding]:
        question.truncate(self.max_question_length)
        room = self.max_length - len(question) - self.tokenizer.num_special_tokens_to_add(pair=True)
        context.truncate(room, stride=min(self.stride, room // 2))
        join = self.tokenizer.backend_tokenizer.post_process
        return [join(question, part) for part in (context, *context.overflowing)]

    def _best_span(self, offsets: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[float, int, int]:
        inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
        if not len(inside):
            return -np.inf, 0, 0
        starts, ends = (
            inside[np.argsort(-scores[inside].astype(np.float64), kind="stable")[:N_BEST]] for scores in (first, last)
        )
        num_tokens = ends[None, :] - starts[:, None] + 1
        is_span = (num_tokens >= 1) & (num_tokens <= self.max_answer_length)
        scores = np.where(is_span, first[starts, None].astype(np.float64) + last[None, ends], -np.inf)
        row, column = np.unravel_index(scores.argmax(), scores.shape)
        return float(scores[row, column]), int(starts[row]), int(ends[column])


def _find_answer(span: Span, offsets: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return where the tokens that cover the answer begin and end, or None if there are none."""
    if not offsets or not span.context.startswith(span.answer, span.start):
        return None
    begins, ends = zip(*offsets, strict=True)
    first, last = bisect_right(ends, span.start), bisect_left(begins, span.start + len(span.answer)) - 1
    return (begins[first], ends[last]) if first <= last else None


def _encode_window(window: Encoding, answer: tuple[int, int] | None) -> dict[str, Any]:
    is_text = np.array(window.sequence_ids) == 1
    offsets = np.where(is_text[:, None], np.array(window.offsets, dtype=np.int32), np.int32(OUTSIDE))
    begins, ends = offsets[is_text].T
    start = end = 0
    if answer and begins[0] <= answer[0] and answer[1] <= ends[-1]:
        covering = np.flatnonzero(is_text & (offsets[:, 1] > answer[0]) & (offsets[:, 0] < answer[1]))
        start, end = int(covering[0]), int(covering[-1])
    return {
        "input_ids": window.ids,
        "token_type_ids": window.type_ids,
        "start_positions": start,
        "end_positions": end,
        "offsets": offsets,
    }
