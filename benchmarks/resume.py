"""Time to the first batch of a run that goes on far into its data, beside one that begins.

    python benchmarks/resume.py
    python benchmarks/resume.py --position 217000000 --batch_size 32

The embedded sample is packed, many times over, and its blocks stand again and again in an index of twice as many rows
as `--position`. From there on all is what a run does: the state is set, the rows are located, read, checked and
collated. Both places take turns. The stock Trainer passes over the batches that were trained on, one by one: measured
over some, and multiplied.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from accelerate.data_loader import skip_first_batches
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kcelectra import DataCollatorForReplacedTokenDetection, clean
from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.sample import generate_sample, write_sample
from kcelectra.pretraining.packed import PackedRows, RowOrder
from kcelectra.pretraining.packed_corpus import pack_corpus
from kcelectra.pretraining.row_loader import RowLoader
from kcelectra.tokenization import train_tokenizer

MAX_LENGTH = 128
NUM_COPIES = 20  # of the sample: more than a block, a megabyte
NUM_REPLAYED = {"an index": 20_000, "a stream": 200}  # batches


def pack(directory: Path) -> tuple[Path, DataCollatorForReplacedTokenDetection]:
    """Pack the embedded sample."""
    tokenizer = train_tokenizer((clean(row["text"]) for row in generate_sample()), vocab_size=2000)
    sample = write_sample(directory / "sample")
    comments = directory / f"comments{sample.suffix}"
    comments.write_bytes(sample.read_bytes() * NUM_COPIES)
    reader = CommentReader(str(comments))
    pack_corpus(reader, tokenizer, directory / "rows", max_length=MAX_LENGTH, num_workers=1)
    return directory / "rows", DataCollatorForReplacedTokenDetection(tokenizer)


def open_large(packed_dir: Path, num_rows: int) -> PackedRows:
    """Open the rows as if there were many more."""
    rows = PackedRows(str(packed_dir), seed=0)
    times = math.ceil(num_rows / rows.num_rows)
    rows._blocks = rows._blocks * times
    rows.order = RowOrder([block.num_rows for block in rows._blocks], rows.order.seed)
    rows._first_rows = np.cumsum(rows.order.block_sizes) - rows.order.block_sizes
    rows.num_rows = rows.order.num_rows
    return rows


def first_batch(rows: PackedRows, collator: DataCollatorForReplacedTokenDetection, position: int, size: int) -> float:
    """Return the seconds from the state of a checkpoint to the first batch."""
    start = time.perf_counter()
    rows.resume({"position": position})
    batches = iter(RowLoader(rows, collator, batch_size=size, position=position))
    next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return seconds


class Stream(IterableDataset):
    """The same rows for one who can only read them one after the other."""

    def __init__(self, rows: PackedRows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.rows[position] for position in range(len(self.rows)))


def replay(rows: Dataset, collator: DataCollatorForReplacedTokenDetection, *, num_batches: int, size: int) -> float:
    """Return the seconds that the stock Trainer takes to pass over a batch."""

    def pass_over(num_batches: int) -> float:
        loader = DataLoader(rows, batch_size=size, collate_fn=collator)
        start = time.perf_counter()
        next(iter(skip_first_batches(loader, num_batches)))
        return time.perf_counter() - start

    return (pass_over(num_batches) - pass_over(1)) / (num_batches - 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--position", type=int, default=217_000_000, help="rows behind the state")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    if arguments.position < 1 or arguments.batch_size < 1 or arguments.rounds < 1:
        parser.error("give a --position, a --batch_size and --rounds of 1 or more")
    with tempfile.TemporaryDirectory() as directory:
        packed_dir, collator = pack(Path(directory))
        num_rows = 2 * arguments.position
        size = arguments.batch_size
        times: dict[int, list[float]] = {0: [], arguments.position: []}
        for number in range(arguments.rounds + 2):
            for position in times:
                rows = open_large(packed_dir, num_rows)  # anew, as after a restart
                seconds = first_batch(rows, collator, position, size)
                if number >= 2:
                    times[position].append(seconds)
        rows = open_large(packed_dir, size * (max(NUM_REPLAYED.values()) + 1))
        replayed = {
            kind: replay(stock_rows, collator, num_batches=NUM_REPLAYED[kind], size=size)
            for kind, stock_rows in (("an index", rows), ("a stream", Stream(rows)))
        }
    begin, late = (median(seconds) for seconds in times.values())
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"index of {num_rows:,} rows")
    print(f"first batch at row 0: {begin * 1e3:.1f} ms, at row {arguments.position:,}: {late * 1e3:.1f} ms")
    print(f"ratio {median(ratios):.2f}x (median of {arguments.rounds} rounds), {(late - begin) * 1e3:+.1f} ms apart")
    for kind, per_batch in replayed.items():
        stock = per_batch * arguments.position / size
        print(
            f"stock Trainer, rows of {kind}: {per_batch * 1e3:.3f} ms a batch passed over, {stock / 60:,.0f} minutes, "
            f"{stock / late:,.0f}x"
        )


if __name__ == "__main__":
    main()
