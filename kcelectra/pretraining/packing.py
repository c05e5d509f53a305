"""Frame documents and pack them into rows, losing no token."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from random import Random

import numpy as np

from kcelectra.errors import InputError

NUM_PENDING = (
    256  # documents kept back to fill gaps with; measured on real comments: rows are 99.1 % full at length 128
)
MIN_LENGTH = 8
DROP_PROBABILITY = 0.15  # of a word in one of the two; not varied


def frame_document(
    comment: list[int], replies: list[int], *, max_length: int, cls_token_id: int, sep_token_id: int
) -> list[list[int]]:
    """Frame a document as `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, cut into several where it is too long.

    Differs from the reference, which throws the overflow away (6 to 20 % of comment text).

    Args:
        comment: token ids without special tokens.
        replies: token ids of all its replies, possibly empty.
        max_length: at least 8.
        cls_token_id: id of `[CLS]`.
        sep_token_id: id of `[SEP]`.

    Returns:
        Pieces of at most `max_length` ids; their contents, joined, are the comment and its replies.
    """
    room = max_length - 2
    pieces = []
    while len(comment) > room:
        pieces.append([cls_token_id, *comment[:room], sep_token_id])
        comment = comment[room:]
    room_for_replies = room - len(comment) - 1
    if comment and replies and room_for_replies > 0:
        first, replies = replies[:room_for_replies], replies[room_for_replies:]
        pieces.append([cls_token_id, *comment, sep_token_id, *first, sep_token_id])
    elif comment:
        pieces.append([cls_token_id, *comment, sep_token_id])
    pieces.extend([cls_token_id, *replies[i : i + room], sep_token_id] for i in range(0, len(replies), room))
    return pieces


class Repeater:
    """Set comments beside themselves, less some of their words, so that a model learns to read across two texts.

    What is masked in the one stands in the other; beside a neighbour or a reply it hardly ever does, and a small model
    learns to look at one text alone (`recipes/LOG.md`, 21). The draws depend on the seed and a document's number.

    Args:
        probability: from 0 to 1, of a document to be repeated.
        tokens: of the vocabulary, by id; one with `##` belongs to the word before it.
        seed: of the draws.

    Raises:
        InputError: `probability` is not from 0 to 1.
    """

    def __init__(self, probability: float, *, tokens: Sequence[str] = (), seed: int = 0) -> None:
        if not 0 <= probability <= 1:
            raise InputError(f"repeat_probability is {probability}; give a share from 0 to 1, such as 0.5")
        self.probability = probability
        self.seed = seed
        self._continues_word = [token.startswith("##") for token in tokens]

    def repeat(self, comment: list[int], replies: list[int], number: int) -> Iterator[tuple[list[int], list[int]]]:
        """Yield a document as it is, or one of its comment and one of its replies, each beside itself.

        Args:
            comment: token ids without special tokens.
            replies: likewise, possibly empty.
            number: of the document, from 0.
        """
        draw = Random(f"{self.seed} {number}") if self.probability else None
        if draw is None or draw.random() >= self.probability:
            yield comment, replies
            return
        for ids in filter(None, (comment, replies)):
            rest = self._drop_words(ids, draw)
            yield (ids, rest) if draw.random() < 0.5 else (rest, ids)

    def _drop_words(self, ids: list[int], draw: Random) -> list[int]:
        kept: list[int] = []
        is_kept = True
        for token_id in ids:
            if not self._continues_word[token_id]:
                is_kept = draw.random() >= DROP_PROBABILITY
            if is_kept:
                kept.append(token_id)
        return kept or ids


class Packer:
    """Pack framed documents into rows of equal length, best fit, keeping back what does not fit yet.

    Args:
        max_length: of a row.
        pad_token_id: fills what is left of a row.
        pending: of the packer whose work this one goes on with.

    Raises:
        InputError: `max_length` is below 8.
    """

    def __init__(self, max_length: int, *, pad_token_id: int, pending: Iterable[list[int]] = ()) -> None:
        if max_length < MIN_LENGTH:
            raise InputError(f"max_length is {max_length}; give at least {MIN_LENGTH}")
        self.max_length = max_length
        self.pad_token_id = pad_token_id
        self._pending: list[deque[list[int]]] = [deque() for _ in range(max_length + 1)]  # by length
        self._lengths = 0  # bit n is set where a document of length n is pending
        self._num_pending = 0
        for document in pending:
            self._keep(document)

    @property
    def pending(self) -> list[list[int]]:
        """The documents that no row holds yet: those of a length in the order in which they came."""
        return list(chain.from_iterable(self._pending))

    def add(self, documents: Iterable[list[int]]) -> Iterator[np.ndarray]:
        """Take in documents of at most `max_length` ids; yield each row, (length,) int32, that is ready."""
        for document in documents:
            self._keep(document)
            if self._num_pending >= NUM_PENDING:
                yield self._next_row()

    def flush(self) -> Iterator[np.ndarray]:
        """Yield rows until nothing is pending; the last ones hold padding."""
        while self._num_pending:
            yield self._next_row()

    def _keep(self, document: list[int]) -> None:
        length = len(document)
        self._pending[length].append(document)
        self._lengths |= 1 << length
        self._num_pending += 1

    def _next_row(self) -> np.ndarray:
        row = np.full(self.max_length, self.pad_token_id, dtype=np.int32)
        used = 0
        while length := self._choose(self.max_length - used):
            row[used : used + length] = self._take(length)
            used += length
        return row

    def _choose(self, room: int) -> int:
        """Return the longest length that fits and, where there is one, leaves room for exactly one more or none."""
        fitting = self._lengths & ((2 << room) - 1)
        longest = fitting.bit_length() - 1
        if longest == room or fitting == 0:
            return max(longest, 0)
        length = longest
        while length > room // 2:
            if fitting >> (room - length) & 1:
                return length
            length = (fitting & ((1 << length) - 1)).bit_length() - 1
        return longest

    def _take(self, length: int) -> list[int]:
        pending = self._pending[length]
        document = pending.popleft()
        self._num_pending -= 1
        if not pending:
            self._lengths &= ~(1 << length)
        return document
