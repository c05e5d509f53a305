"""Time and memory of training a vocabulary, beside bare `tokenizers` on the same comments.

    pip install -c constraints.txt -e ".[morphemes]"
    python benchmarks/tokenizer.py --dataset "comments/*.parquet"

The comments are cleaned once, all are kept, and both sides read them from the same Parquet file, each in a process of
its own, by turns. With `--growth 1,2,4`, also the peak memory on so many copies of the comments, each with words of
its own: the worst that a larger corpus can be.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from kcelectra.corpus.comments import CommentReader, read_texts
from kcelectra.tokenization import train_tokenizer

BATCH = 10_000
SIDES = ("bare", "plain", "particles", "all")


def train(side: str, path: str, vocab_size: int) -> None:
    """Train on one side, as its user would."""
    if side != "bare":
        morphemes = None if side == "plain" else side
        train_tokenizer(path, rules="none", min_chars=0, vocab_size=vocab_size, morphemes=morphemes)
        return
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    batches = (batch.column(0).to_pylist() for batch in pq.ParquetFile(path).iter_batches(BATCH))
    tokenizer.train_from_iterator(
        batches, vocab_size=vocab_size, min_frequency=2, limit_alphabet=4000, show_progress=False
    )


def measure(side: str, path: str, vocab_size: int) -> tuple[float, float]:
    """Return the seconds and the peak MiB, the largest process, of a training in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--train", side, "--dataset", path, "--vocab_size", str(vocab_size)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return time.perf_counter() - start, float(printed.split()[-1])


def write_comments(texts: list[str], path: str, num_copies: int = 1) -> str:
    """Write comments; the words of each copy end in its number."""

    def batches() -> Iterator[list[str]]:
        for copy in range(num_copies):
            mark = str(copy) if copy else ""
            for start in range(0, len(texts), BATCH):
                yield [text.replace(" ", f"{mark} ") + mark for text in texts[start : start + BATCH]]

    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for batch in batches():
            writer.write_table(pa.table({"text": batch}))
    return path


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="file, quoted glob or directory")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES), help="bare, plain, particles, all")
    parser.add_argument("--growth", default="", help="numbers of copies, such as 1,2,4")
    parser.add_argument("--train", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.dataset, arguments.vocab_size)
        usages = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(max(usages))
        return
    texts = list(read_texts(CommentReader(arguments.dataset), rules="corpus", min_chars=0))
    sides = arguments.sides.split(",")
    with tempfile.TemporaryDirectory() as directory:
        path = write_comments(texts, os.path.join(directory, "comments.parquet"))
        measured: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(arguments.num_rounds):
            for side in sides:
                measured[side].append(measure(side, path, arguments.vocab_size))
        print(
            f"{len(texts):,} comments, {arguments.vocab_size:,} tokens, {arguments.num_rounds} rounds, ratios to bare:"
        )
        for side in sides:
            pairs = zip(measured[side], measured["bare"], strict=True)
            seconds, mib = zip(*((ours[0] / bare[0], ours[1] / bare[1]) for ours, bare in pairs), strict=True)
            print(
                f"{side:<10} wall time {median(seconds):.2f}x ({min(seconds):.2f} to {max(seconds):.2f}), "
                f"peak memory {median(mib):.2f}x ({median(x for _, x in measured[side]):,.0f} MiB)"
            )
        for number in map(int, filter(None, arguments.growth.split(","))):
            path = write_comments(texts, os.path.join(directory, "grown.parquet"), number)
            peaks = {side: measure(side, path, arguments.vocab_size)[1] for side in ("bare", "plain")}
            print(
                f"{number * len(texts):>10,} comments: plain {peaks['plain']:,.0f} MiB, bare {peaks['bare']:,.0f} MiB"
            )
            Path(path).unlink()


if __name__ == "__main__":
    main()
