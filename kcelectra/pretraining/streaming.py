"""Raw comments in, packed rows out: cleaned, tokenised and packed on the fly."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from kcelectra.corpus.cleaning import get_rules
from kcelectra.corpus.comments import Comment, CommentReader
from kcelectra.corpus.vectorized import clean_batch
from kcelectra.errors import InputError
from kcelectra.pretraining.packing import Packer, frame_document

MAX_OPEN_DOCUMENTS = 10_000  # of a thread; one that has more is cut there
SHUFFLE_WINDOW = 4096  # rows; at length 128 half a million tokens, a second or two of tokenising


@dataclass
class _Document:
    comment: list[int]
    replies: list[int] = field(default_factory=list)


class DocumentBuilder:
    """Join each comment with the replies to it in its thread, and with the replies to those.

    The comments of a thread stand together in the source; a reply may stand anywhere after what it replies to, up to
    `MAX_OPEN_DOCUMENTS` later.

    Args:
        pair_neighbours: make a document of two neighbours of a thread; for sources that know threads but not parents,
            so that token type 1 is trained as in the reference.
    """

    def __init__(self, *, pair_neighbours: bool = False) -> None:
        self.pair_neighbours = pair_neighbours
        self._thread: str | None = None
        self._open: deque[_Document] = deque()
        self._document_of: dict[str, _Document] = {}

    def add(self, comment: Comment, ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Take in a comment and its token ids; yield the documents that are complete."""
        if comment.thread != self._thread or len(self._open) > MAX_OPEN_DOCUMENTS:
            yield from self.flush()
        self._thread = comment.thread
        document = self._find(comment)
        if document is None:
            document = _Document(ids)
            self._open.append(document)
        else:
            document.replies.extend(ids)
        if comment.comment_id is not None:
            self._document_of.setdefault(comment.comment_id, document)

    def _find(self, comment: Comment) -> _Document | None:
        if not self.pair_neighbours:
            return None if comment.parent_id is None else self._document_of.get(comment.parent_id)
        is_single = bool(self._open) and not self._open[-1].replies
        return self._open[-1] if is_single and comment.thread is not None else None

    def flush(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the documents that are being built."""
        yield from ((document.comment, document.replies) for document in self._open)
        self._open.clear()
        self._document_of.clear()


class PackedStream(IterableDataset):
    """Packed rows of a stream of comments, `{"input_ids": (length,) int32, "row_id": int}`, shuffled in windows.

    The order is a function of the source and the seed alone. Each pass over the source shuffles anew, and a row id is
    never used twice, so that a row is masked anew in each pass.

    Args:
        reader: where the comments come from.
        tokenizer: with its special tokens at the published ids.
        max_length: of a row.
        rules: rule set that cleans.
        min_chars: a cleaned comment with fewer characters is left out; 10 in KcELECTRA.
        seed: of the shuffle.
        shuffle_window: rows that are shuffled together.
        num_passes: over the source; without end if None, for a run that counts steps.

    Attributes:
        counts: `comments`, `too short`, `documents`, `tokens` (special ones included) and `rows` since the start.

    Raises:
        InputError: in iteration, the source holds less than one row.
    """

    def __init__(
        self,
        reader: CommentReader,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        rules: str = "v2022",
        min_chars: int = 10,
        seed: int = 0,
        shuffle_window: int = SHUFFLE_WINDOW,
        num_passes: int | None = None,
    ) -> None:
        get_rules(rules)
        self.reader = reader
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.rules = rules
        self.min_chars = min_chars
        self.seed = seed
        self.shuffle_window = shuffle_window
        self.num_passes = num_passes
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InputError(
                f"dataloader_num_workers is {worker.num_workers}; give 0 or 1: the tokenizer already uses every core"
            )
        row_ids = count()
        for epoch in count() if self.num_passes is None else range(self.num_passes):
            rows = ({"input_ids": row, "row_id": next(row_ids)} for row in self._one_pass())
            for window in count():
                chosen = list(islice(rows, self.shuffle_window))
                if not chosen:
                    break
                for index in np.random.default_rng([self.seed, epoch, window]).permutation(len(chosen)):
                    yield chosen[index]

    def _one_pass(self) -> Iterator[np.ndarray]:
        packer = Packer(self.max_length, pad_token_id=self.tokenizer.pad_token_id)
        tokens_before = self.counts["tokens"]
        for row in chain(packer.add(self._documents()), packer.flush()):
            self.counts["rows"] += 1
            yield row
        num_tokens = self.counts["tokens"] - tokens_before
        if num_tokens < self.max_length:
            raise InputError(
                f"{self.reader.dataset} holds {num_tokens} tokens after cleaning with {self.rules!r} and min_chars "
                f"{self.min_chars}, less than one row of {self.max_length}; give more comments or a lower --max_length"
            )

    def _documents(self) -> Iterator[list[int]]:
        """Yield framed documents of at most `max_length` tokens."""
        for comment, replies in self._token_documents():
            self.counts["documents"] += 1
            pieces = frame_document(
                comment,
                replies,
                max_length=self.max_length,
                cls_token_id=self.tokenizer.cls_token_id,
                sep_token_id=self.tokenizer.sep_token_id,
            )
            self.counts["tokens"] += sum(map(len, pieces))
            yield from pieces

    def _token_documents(self) -> Iterator[tuple[list[int], list[int]]]:
        builder = DocumentBuilder()
        for comments in self.reader:
            builder.pair_neighbours = not self.reader.has_parents
            for comment, ids in zip(*self._tokenize(comments), strict=True):
                yield from builder.add(comment, ids)
        yield from builder.flush()

    def _tokenize(self, comments: list[Comment]) -> tuple[list[Comment], list[list[int]]]:
        """Clean a batch, leave out what is too short, and tokenise the rest on all cores."""
        self.counts["comments"] += len(comments)
        cleaned = clean_batch((comment.text for comment in comments), self.rules)
        kept = [i for i, text in enumerate(cleaned) if len(text) >= self.min_chars]
        self.counts["too short"] += len(comments) - len(kept)
        if not kept:
            return [], []
        encoded = self.tokenizer(
            [cleaned[i] for i in kept],
            add_special_tokens=False,
            split_special_tokens=True,  # a comment that says "[SEP]" must not become one
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [comments[i] for i in kept], encoded["input_ids"]
