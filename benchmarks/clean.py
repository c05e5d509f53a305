"""Speed of `clean_batch` on one core, beside the functions that KcELECTRA's README publishes, on the same comments.

    pip install -c constraints.txt -e ".[reference]"
    python benchmarks/clean.py --dataset "comments/*.parquet"

The two sides take turns on slices of the comments; every row that differs is counted. With `--examples N`, also N
comments before and after each rule of `corpus`.
"""

import argparse
import re
import time
import warnings
from collections.abc import Callable

import emoji

from kcelectra import clean, clean_batch
from kcelectra.corpus.cleaning import RULE_SETS
from kcelectra.corpus.comments import CommentReader

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # soynlp is of 2019
    from soynlp.normalizer import repeat_normalize

NUM_SLICES = 12
KEPT = " .,?!/@$%~％·∼()\x00-\x7fㄱ-ㅣ가-힣"
NOT_KEPT = re.compile(f"[^{KEPT}]+")
NOT_KEPT_NOR_EMOJI = re.compile(f"[^{KEPT}{''.join(sorted(set(''.join(emoji.EMOJI_DATA))))}]+")
URL = re.compile(
    r"https?:\/\/(www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_\+.~#?&//=]*)"
)


def published_v2022(text: str) -> str:
    """Clean as the second function of the README does."""
    text = emoji.replace_emoji(NOT_KEPT.sub(" ", text), replace="")
    return repeat_normalize(URL.sub("", text).strip(), num_repeats=2)


def published_v2021(text: str) -> str:
    """Clean as the first function of the README does, with the emoji of today's library."""
    text = NOT_KEPT_NOR_EMOJI.sub(" ", text)
    return repeat_normalize(URL.sub("", text).strip(), num_repeats=2)


def seconds_of(function: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Return what a call takes and gives."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(rules: str, name: str, peer: Callable[[str], str], texts: list[str]) -> None:
    """Print how many times as many rows a second `clean_batch` does as `peer`, row by row."""
    clean_batch(texts[:1000], rules)  # makes its tables
    slices = [texts[start::NUM_SLICES] for start in range(NUM_SLICES)]
    ratios, ours, theirs, num_different = [], 0.0, 0.0, 0
    for rows in slices:
        peer_seconds, expected = seconds_of(lambda rows=rows: [peer(text) for text in rows])
        seconds, cleaned = seconds_of(lambda rows=rows: clean_batch(rows, rules))
        num_different += sum(a != b for a, b in zip(cleaned, expected, strict=True))
        ratios.append(peer_seconds / seconds)
        ours, theirs = ours + seconds, theirs + peer_seconds
    print(
        f"{rules}: {len(texts) / ours:,.0f} rows/s, {name} {len(texts) / theirs:,.0f} rows/s: "
        f"{theirs / ours:.1f}x ({min(ratios):.1f} to {max(ratios):.1f} by slice), "
        f"{num_different} of {len(texts):,} rows differ"
    )


def print_examples(texts: list[str], number: int) -> None:
    """Print comments before and after each rule of `corpus`."""
    for rule in RULE_SETS["corpus"]:
        changed = ((text, rule(text)) for text in texts if rule(text) != text)
        print(f"{rule.__name__}")
        for before, after in (pair for pair, _ in zip(changed, range(number), strict=False)):
            print(f"  {before!r}\n  {after!r}")


def main() -> None:
    """Compare each rule set with its peer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="file, quoted glob or directory")
    parser.add_argument("--examples", type=int, default=0, help="comments to show of each rule")
    arguments = parser.parse_args()
    texts = [comment.text for comments in CommentReader(arguments.dataset) for comment in comments]
    compare("v2022", "the published function", published_v2022, texts)
    compare("v2021", "the published function", published_v2021, texts)
    compare("corpus", "rule by rule", lambda text: clean(text, "corpus"), texts)
    if arguments.examples:
        print_examples(texts, arguments.examples)


if __name__ == "__main__":
    main()
