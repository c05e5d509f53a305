"""Build a corpus of raw comments: clean, without exact duplicates, in Parquet shards with their counts.

    python recipes/build_corpus.py --sources "comments/*.jsonl.gz" --output_dir out/corpus

The same command again continues an interrupted build.
"""

import logging

from kcelectra.release.corpus_card import write_corpus_card

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.corpus.build import CorpusArguments, build_corpus, describe_corpus


def main() -> None:
    """Build the corpus and its card, and print what became of the comments."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    (arguments,) = parse_args(CorpusArguments)
    manifest = build_corpus(**vars(arguments))
    print(describe_corpus(manifest))
    print(f"card: {write_corpus_card(arguments.output_dir)}")


if __name__ == "__main__":
    run_recipe(main)
