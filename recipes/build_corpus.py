"""Build a corpus of raw comments: clean, without exact duplicates, in Parquet shards with their counts.

    python recipes/build_corpus.py --sources "comments/*.jsonl.gz" --output_dir out/corpus

Without sources, of the embedded sample. The same command again continues an interrupted build.
"""

import logging
from pathlib import Path

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.corpus.build import CorpusArguments, build_corpus, describe_corpus
from kcelectra.corpus.sample import write_sample
from kcelectra.release.corpus_card import write_corpus_card


def main() -> None:
    """Build the corpus and its card, and print what became of the comments."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    (arguments,) = parse_args(CorpusArguments)
    if not arguments.sources:
        arguments.sources = [str(write_sample(Path(arguments.output_dir).parent / "sample"))]
    manifest = build_corpus(**vars(arguments))
    print(describe_corpus(manifest))
    print(f"card: {write_corpus_card(arguments.output_dir)}")


if __name__ == "__main__":
    run_recipe(main)
