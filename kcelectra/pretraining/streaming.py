"""Raw comments in, packed rows out: cleaned, tokenised and packed on the fly."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count, islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from kcelectra.corpus.cleaning import get_rules
from kcelectra.corpus.comments import Comment, CommentReader
from kcelectra.corpus.vectorized import clean_batch
from kcelectra.errors import InputError
from kcelectra.pretraining.packing import Packer, Repeater, frame_document
from kcelectra.tokenization import hash_tokenizer
from kcelectra.tokenization.loading import tokens_by_id

MAX_OPEN_DOCUMENTS = 10_000  # of a thread; one that has more is cut there
SHUFFLE_WINDOW = 4096  # rows; at length 128 half a million tokens, a second or two of tokenising
MAX_READ_AHEAD = 1 << 15  # rows
START: dict[str, Any] = {
    "version": 1,  # of these keys and of what they mean
    "row": 0,  # rows that were taken before it, in all passes
    "epoch": 0,
    "window": 0,  # the number of its shuffle window in the pass
    "window_row": 0,  # rows before that window, in all passes
    # and before the batch of comments that was read last when that window began:
    "position": None,  # of the reader
    "counts": {},
    "building": None,
    "pending": [],
}


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
        fill: join the comments of a thread in their order, whoever replies to whom, and cut the last so that a
            document has just this many tokens without special ones. Comments without a thread are one thread.
        state: of the builder that this one goes on for.
    """

    def __init__(
        self, *, pair_neighbours: bool = False, fill: int | None = None, state: dict[str, Any] | None = None
    ) -> None:
        state = state or {"thread": None, "documents": [], "numbers": {}}
        self.pair_neighbours = pair_neighbours
        self.fill = fill
        self._thread: str | None = state["thread"]
        self._open = [_Document(comment, [*replies]) for comment, replies in state["documents"]]
        self._numbers: dict[str, int] = {**state["numbers"]}  # in `_open`, by comment id

    @property
    def state(self) -> dict[str, Any]:
        """What is being built, JSON."""
        documents = [[document.comment, [*document.replies]] for document in self._open]
        return {"thread": self._thread, "documents": documents, "numbers": {**self._numbers}}

    def add(self, comment: Comment, ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Take in a comment and its token ids; yield the documents that are complete."""
        if comment.thread != self._thread or len(self._open) > MAX_OPEN_DOCUMENTS:
            yield from self.flush()
        self._thread = comment.thread
        if self.fill is not None:
            yield from self._fill(ids)
            return
        if not self._open and comment.thread is None and comment.comment_id is None:
            yield ids, []  # nothing can join it, so that there is nothing to remember of a source of text alone
            return
        number = self._find(comment)
        if number is None:
            number = len(self._open)
            self._open.append(_Document(ids))
        else:
            self._open[number].replies.extend(ids)
        if comment.comment_id is not None:
            self._numbers.setdefault(comment.comment_id, number)

    def _fill(self, ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        assert self.fill is not None
        while ids:
            if not self._open:
                self._open.append(_Document([]))
            document = self._open[0]
            part = document.replies if document.comment else document.comment
            room = self.fill - len(document.comment) - len(document.replies)
            part.extend(ids[:room])
            ids = ids[room:]
            if len(document.comment) + len(document.replies) >= self.fill:
                yield from self.flush()

    def _find(self, comment: Comment) -> int | None:
        if not self.pair_neighbours:
            return None if comment.parent_id is None else self._numbers.get(comment.parent_id)
        is_single = bool(self._open) and not self._open[-1].replies
        return len(self._open) - 1 if is_single and comment.thread is not None else None

    def flush(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the documents that are being built."""
        yield from ((document.comment, document.replies) for document in self._open)
        self._open.clear()
        self._numbers.clear()


class PackedStream(IterableDataset):
    """Packed rows of a stream of comments, `{"input_ids": (length,) int32, "row_id": int}`, shuffled in windows.

    The order is a function of the source and the seed alone. Each pass over the source shuffles anew, and a row id is
    never used twice, so that a row is masked anew in each pass.

    Iterate where `state_at` is called, or in a thread of that process: what a worker of a `DataLoader` has read, no
    other process knows.

    Args:
        reader: where the comments come from.
        tokenizer: with its special tokens at the published ids.
        max_length: of a row.
        rules: rule set that cleans.
        min_chars: a cleaned comment with fewer characters is left out; 10 in KcELECTRA.
        seed: of the shuffle.
        shuffle_window: rows that are shuffled together.
        num_passes: over the source; without end if None, for a run that counts steps.
        fill_documents: a document is not a comment and its replies but as much of a thread as a row holds.
        repeat_probability: of a document to be its comments beside themselves, see `Repeater`.

    Attributes:
        counts: `comments`, `too short`, `documents`, `tokens` (special ones included) and `rows` that were generated,
            those before the state that it was resumed from too.
        max_read_ahead: rows, or two windows: what may be generated behind the row that a state is asked for.

    Raises:
        InputError: in iteration, the source holds less than one row, or is not what it was when a state was taken.
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
        fill_documents: bool = False,
        repeat_probability: float = 0.0,
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
        self.fill_documents = fill_documents
        self.repeat_probability = repeat_probability
        self.max_read_ahead = MAX_READ_AHEAD
        self._backend = _copy_backend(tokenizer)
        self._repeater = Repeater(repeat_probability, tokens=tokens_by_id(tokenizer), seed=seed)
        self._frame = partial(
            frame_document,
            max_length=max_length,
            cls_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id,
        )
        self.resume(START)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells whether two streams have the same rows in the same order."""
        names = ("rules", "min_chars", "max_length", "shuffle_window", "seed")
        return {
            "source": self.reader.fingerprint(),
            **{name: getattr(self, name) for name in names},
            **{name: value for name in ("fill_documents", "repeat_probability") if (value := getattr(self, name))},
            "tokenizer_sha256": hash_tokenizer(self.tokenizer),
        }

    def state_at(self, num_rows: int) -> dict[str, Any]:
        """Return the state, JSON, after the first `num_rows` of the iteration that began last.

        Args:
            num_rows: that were taken, however many more were generated, up to `max_read_ahead`.

        Raises:
            ValueError: fewer were generated, or too many more.
        """
        windows, row = self._windows, self._start["row"] + num_rows
        index = _find(row, windows)
        if index < 0 or row > max(self._start["row"], self.counts["rows"]):
            raise ValueError(f"asked for the state after {num_rows} rows, when {self.counts['rows']} were generated")
        return {**windows[index], "row": row}

    def resume(self, state: dict[str, Any]) -> None:
        """Let every iteration from now on begin at a state, which reads one shuffle window again.

        Raises:
            InputError: it is the state of something else.
        """
        if state.keys() != START.keys() or state["version"] != START["version"]:
            raise InputError(
                "this is no state of a stream of comments, or one of another version of kcelectra; continue the run "
                "with the version and the kind of data that it began with, or begin another in a new --output_dir"
            )
        self._start = state
        self._rewind()

    def _rewind(self) -> None:
        self.counts: Counter[str] = Counter(self._start["counts"])
        self._batch = self._start
        self._windows = [self._start]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InputError(
                f"dataloader_num_workers is {worker.num_workers}; give 0 or 1: the tokenizer already uses every core"
            )
        self._rewind()
        return self._all_passes()

    def _all_passes(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of each window in their shuffled order."""
        state = self._start
        while self.num_passes is None or state["epoch"] < self.num_passes:
            rows = islice(self._one_pass(state), state["window_row"] - self.counts["rows"], None)
            for window in count(state["window"]):
                first_row = max(self.counts["rows"], state["window_row"])
                self._remember(first_row, epoch=state["epoch"], window=window)
                chosen = list(islice(rows, self.shuffle_window))
                if self.counts["rows"] < state["row"]:
                    raise InputError(
                        f"{self.reader.dataset} has no row {state['row']}, from where it was to be read on: it has "
                        "changed; put it back as it was, or begin a new run"
                    )
                if not chosen:
                    break
                order = np.random.default_rng([self.seed, state["epoch"], window]).permutation(len(chosen))
                for index in order[max(0, state["row"] - first_row) :]:
                    yield chosen[index]
            num_rows = self.counts["rows"]
            begun = {"epoch": state["epoch"] + 1, "row": num_rows, "window_row": num_rows, "counts": {**self.counts}}
            state = self._batch = {**START, **begun}

    def _remember(self, first_row: int, *, epoch: int, window: int) -> None:
        """Keep the state that a window begins in, and drop those that nobody will ask for."""
        oldest = first_row - max(self.max_read_ahead, 2 * self.shuffle_window)
        recent = self._windows[max(0, _find(oldest, self._windows)) :]
        begun = {**self._batch, "epoch": epoch, "window": window, "window_row": first_row}
        self._windows = [*recent, begun]  # another thread may be searching the old list

    def _one_pass(self, state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield rows from the batch of comments on that a state names."""
        for row in self.pack_pass(state):
            row_id = self.counts["rows"]
            self.counts["rows"] += 1
            yield {"input_ids": row, "row_id": row_id}
        if self.counts["tokens"] < self.max_length:
            raise InputError(
                f"{self.reader.dataset} holds {self.counts['tokens']} tokens after cleaning with {self.rules!r} and "
                f"min_chars {self.min_chars}, less than one row of {self.max_length}; give more comments or a lower "
                "--max_length"
            )

    def pack_pass(self, state: Mapping[str, Any] = START) -> Iterator[np.ndarray]:
        """Yield the rows of one pass, (length,) int32, however few, in their order: not shuffled.

        Args:
            state: where in the pass to begin.
        """
        fill = self.max_length - 3 if self.fill_documents else None  # `[CLS]` and two `[SEP]`
        builder = DocumentBuilder(fill=fill, state=state["building"])
        packer = Packer(self.max_length, pad_token_id=self.tokenizer.pad_token_id, pending=state["pending"])
        for position, comments in self.reader.read(state["position"]):
            batch = {"position": position, "building": builder.state, "pending": packer.pending}
            self._batch = {**START, **batch, "counts": {**self.counts}}
            builder.pair_neighbours = not self.reader.has_parents
            added = (builder.add(comment, ids) for comment, ids in zip(*self._tokenize(comments), strict=True))
            yield from packer.add(self._framed(chain.from_iterable(added)))
        yield from packer.add(self._framed(builder.flush()))
        yield from packer.flush()

    def _framed(self, documents: Iterable[tuple[list[int], list[int]]]) -> Iterator[list[int]]:
        """Yield documents of at most `max_length` tokens."""
        for document in documents:
            for comment, replies in self._repeater.repeat(*document, self.counts["documents"]):
                pieces = self._frame(comment, replies)
                self.counts["documents"] += 1
                self.counts["tokens"] += sum(map(len, pieces))
                yield from pieces

    def _tokenize(self, comments: list[Comment]) -> tuple[list[Comment], list[list[int]]]:
        """Clean a batch, leave out what is too short, and tokenise the rest on all cores."""
        self.counts["comments"] += len(comments)
        cleaned = clean_batch((comment.text for comment in comments), self.rules)
        kept = [i for i, text in enumerate(cleaned) if len(text) >= self.min_chars]
        self.counts["too short"] += len(comments) - len(kept)
        # a comment that says "[SEP]" must not become one; a copy in another process forgets that
        self._backend.encode_special_tokens = True
        encodings = self._backend.encode_batch_fast([cleaned[i] for i in kept], add_special_tokens=False)
        return [comments[i] for i in kept], [encoding.ids for encoding in encodings]


def _find(row: int, windows: list[dict[str, Any]]) -> int:
    """Return the number of the last window that begins at a row or before it, or -1."""
    return bisect_right(windows, row, key=itemgetter("window_row")) - 1


def _copy_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the tokenizer within, for whole texts: it takes two thirds of the time of a call of the outer one."""
    backend: Tokenizer = deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return backend
