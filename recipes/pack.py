"""Pack comments into rows once, shuffled all together: for runs that are long, many, or on many machines.

    python recipes/pack.py --dataset out/corpus --tokenizer out/tokenizer --output_dir out/packed
    accelerate launch recipes/pretrain.py recipes/base-v2022/pretrain.yaml --dataset out/packed

The same command again continues an interrupted one.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.corpus.cleaning import RULE_SETS
from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.sample import write_sample
from kcelectra.pretraining.packed_corpus import pack_corpus
from kcelectra.tokenization import load_tokenizer


@dataclass
class PackArguments:
    """What is packed, and how."""

    dataset: str | None = field(
        default=None, metadata={"help": "File, quoted glob, directory or Hub id; the embedded sample if not given."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of a Hub dataset."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the comment."})
    tokenizer: str = field(default="out/tokenizer", metadata={"help": "vocab.txt, directory or Hub id."})
    tokenizer_revision: str | None = field(default=None, metadata={"help": "Revision of a tokenizer of the Hub."})
    output_dir: str = field(default="out/packed", metadata={"help": "Gets the rows, the tokenizer and manifest.json."})
    max_length: int = field(default=128, metadata={"help": "Tokens of a row."})
    rules: str | None = field(
        default=None,
        metadata={"help": f"Rule set that cleans: {', '.join(RULE_SETS)}; v2022, or none for a built corpus."},
    )
    min_chars: int | None = field(
        default=None, metadata={"help": "Leave out comments with fewer characters; 10, or 0 for a built corpus."}
    )
    fill_documents: bool = field(
        default=False,
        metadata={"help": "Make a document of as much of a thread as a row holds, not of a comment and its replies."},
    )
    repeat_probability: float = field(
        default=0.0,
        metadata={"help": "Share of documents whose comments each stand beside themselves, less some words."},
    )
    seed: int = field(default=0, metadata={"help": "Of the shuffle and of what is repeated."})
    num_workers: int | None = field(default=None, metadata={"help": "Processes; one a core if not given."})


def main() -> None:
    """Pack, and print the counts."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    (arguments,) = parse_args(PackArguments)
    dataset = arguments.dataset or str(write_sample(Path(arguments.output_dir).parent / "sample"))
    manifest = pack_corpus(
        CommentReader(dataset, arguments.dataset_split, arguments.dataset_revision, arguments.text_column),
        load_tokenizer(arguments.tokenizer, revision=arguments.tokenizer_revision),
        arguments.output_dir,
        max_length=arguments.max_length,
        rules=arguments.rules,
        min_chars=arguments.min_chars,
        fill_documents=arguments.fill_documents,
        repeat_probability=arguments.repeat_probability,
        seed=arguments.seed,
        num_workers=arguments.num_workers,
    )
    for name, number in manifest["counts"].items():
        print(f"{name:<32}{number:>16,}")
    print(f"{'slots that hold a token':<32}{manifest['share_filled']:>16.2%}")
    print(f"rows: {arguments.output_dir}")


if __name__ == "__main__":
    run_recipe(main)
