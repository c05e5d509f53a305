"""Tag each word of a sentence: named entities."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from tokenizers import Encoding
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.finetuning.sources import TaggedWords

NOT_COUNTED = -100  # the label that torch's cross entropy leaves out
NO_ENTITY = "O"
CONTEXT_SHARE = 4  # a later window repeats at most a fourth of its tokens from the one before (assumption)
TEXTS_AT_A_TIME = 1_000  # an encoding of `tokenizers` holds some hundred bytes a token


@dataclass(frozen=True)
class TokensHead:
    """Rows for a model that tags tokens, and from its logits one tag a word.

    The first piece of a word carries its tag. Differs from the reference: a sentence longer than a row becomes several
    windows, so that every tokenizer is scored on every word; there, words beyond the row are left out, up to 8 % of
    the entities.

    Args:
        tokenizer: a fast one.
        labels: the tags by id.
        max_length: tokens of a row, special ones included; at least one more than those.

    Raises:
        InputError: a row has no room for a word.

    Source: KcBERT-Finetune, `processor/ner.py`; kcelectra.md, 2.3.
    """

    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    max_length: int

    auto_class: ClassVar[Any] = AutoModelForTokenClassification

    def __post_init__(self) -> None:
        if self.room < 1:
            raise InputError(
                f"max_length {self.max_length} has no room for a word; give at least {self.max_length - self.room + 1}"
            )

    @property
    def room(self) -> int:
        """Tokens of a row, without special ones."""
        return self.max_length - self.tokenizer.num_special_tokens_to_add(pair=False)

    def encode(self, examples: Sequence[TaggedWords]) -> list[dict[str, Any]]:
        """Return the rows of sentences, in order.

        Returns:
            Rows of at most `max_length` tokens, unpadded: `input_ids`, `token_type_ids`; `labels`, an id where a word
            is counted and -100 elsewhere; `words`, the number of that word in its sentence, and -1 elsewhere; each
            (length,). `example`, the number of the sentence, from 0. A sentence has one row or more, and none if the
            tokenizer makes nothing of it.

        Raises:
            InputError: the tokenizer is not a fast one.
        """
        texts = [" ".join(example.words) for example in examples]
        features: list[dict[str, Any]] = []
        for index, encoding in enumerate(encode_texts(self.tokenizer, texts)):
            features += self._encode_one(index, examples[index], encoding)
        return features

    def decode(
        self, examples: Sequence[TaggedWords], features: Sequence[dict[str, Any]], logits: Sequence[np.ndarray]
    ) -> list[list[str]]:
        """Return the tags of each sentence, one a word; "O" for a word of which the tokenizer makes nothing.

        Args:
            examples: those that were encoded; only the numbers of their words are looked at.
            features: what `encode` made of them.
            logits: of each feature, (length, labels), without padding.
        """
        tags = [[NO_ENTITY] * len(example.words) for example in examples]
        for feature, scores in zip(features, logits, strict=True):
            for word, label in zip(feature["words"], scores.argmax(axis=-1), strict=True):
                if word >= 0:
                    tags[feature["example"]][word] = self.labels[label]
        return tags

    def references(self, examples: Sequence[TaggedWords]) -> list[list[str]]:
        """Return the true tags of each sentence, as `seqeval` takes them."""
        return [list(example.tags) for example in examples]

    def _encode_one(self, index: int, example: TaggedWords, encoding: Encoding) -> Iterator[dict[str, Any]]:
        inside = [position for position, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if not inside:
            return
        before, after = range(inside[0]), range(inside[-1] + 1, len(encoding))
        pieces = [word[: self.room] for word in _pieces_of_words(example.words, encoding.offsets, inside)]
        ids, type_ids = encoding.ids, encoding.type_ids
        for start, counted, end in split_into_windows([len(word) for word in pieces], room=self.room):
            carriers = {pieces[word][0]: word for word in range(counted, end) if pieces[word]}
            positions = [*before, *(piece for word in pieces[start:end] for piece in word), *after]
            words = [carriers.get(position, -1) for position in positions]
            yield {
                "input_ids": [ids[position] for position in positions],
                "token_type_ids": [type_ids[position] for position in positions],
                "labels": [self.labels.index(example.tags[word]) if word >= 0 else NOT_COUNTED for word in words],
                "words": words,
                "example": index,
            }


def split_into_windows(sizes: Sequence[int], *, room: int) -> list[tuple[int, int, int]]:
    """Return `(start, counted, end)` of each window: words from `start` are in it, and from `counted` its own.

    Every word is one window's own. The others of a window are the last ones before: a model sees what they follow.

    >>> split_into_windows([1, 1, 2, 1, 1, 1, 3], room=4)
    [(0, 0, 3), (3, 3, 6), (5, 6, 7)]

    Args:
        sizes: pieces of each word, 0 to `room`.
        room: pieces of a window, at least 1.
    """
    windows = []
    end = 0
    while end < len(sizes):
        start = counted = end
        context = min(room // CONTEXT_SHARE, room - sizes[counted])
        while start > 0 and sum(sizes[start - 1 : counted]) <= context:
            start -= 1
        end += 1
        num_pieces = sum(sizes[start:end])
        while end < len(sizes) and num_pieces + sizes[end] <= room:
            num_pieces += sizes[end]
            end += 1
        windows.append((start, counted, end))
    return windows


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool = True
) -> Iterator[Encoding]:
    """Encode texts whole, some at a time; a "[SEP]" in a text is text.

    The tokenizer is left without truncation and padding, as `Encoding.truncate` and `post_process` need it.

    Raises:
        InputError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not tell where tokens stand in a text; give a fast tokenizer"
        )
    for first in range(0, len(texts), TEXTS_AT_A_TIME):
        part = list(texts[first : first + TEXTS_AT_A_TIME])
        encoded = tokenizer(part, add_special_tokens=add_special_tokens, split_special_tokens=True, verbose=False)
        yield from encoded.encodings or []


def _pieces_of_words(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], positions: Sequence[int]
) -> list[list[int]]:
    # By the last character: the first one of a byte-level piece may be the blank before its word.
    starts = list(accumulate((len(word) + 1 for word in words[:-1]), initial=0))
    pieces: list[list[int]] = [[] for _ in words]
    for position in positions:
        pieces[max(0, bisect_right(starts, offsets[position][1] - 1) - 1)].append(position)
    return pieces
