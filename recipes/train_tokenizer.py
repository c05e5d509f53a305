"""Train a WordPiece vocabulary on a corpus, or extend one, and compare it with others.

    python recipes/train_tokenizer.py --corpus_dir out/corpus --output_dir out/tokenizer --vocab_size 32000 \
        --morphemes particles

How v2021 was built, of the vocabulary of an earlier model:

    python recipes/train_tokenizer.py --base_vocab dev.txt --donor_vocab donor.txt --num_unused 1000
"""

import logging
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.corpus.comments import CommentReader, choose_cleaning, read_texts
from kcelectra.corpus.sample import write_sample
from kcelectra.errors import InputError
from kcelectra.release.tokenizer_report import (
    MAX_TEXTS,
    check_sources,
    describe_tokenizers,
    write_tokenizer_report,
)
from kcelectra.tokenization.training import VocabularyArguments, extend_tokenizer, train_tokenizer


@dataclass
class TokenizerArguments:
    """Where it comes from, where it goes, and what it is compared with."""

    corpus_dir: str | None = field(
        default=None,
        metadata={"help": "What build_corpus.py made, or another source of comments; the sample if not given."},
    )
    output_dir: str = field(default="out/tokenizer", metadata={"help": "Gets the tokenizer, and report/."})
    base_vocab: str | None = field(
        default=None, metadata={"help": "vocab.txt that is extended by --donor_vocab and --num_unused, not trained."}
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the comment."})
    split: str = field(default="train", metadata={"help": "Of a dataset of the Hub."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a dataset of the Hub."})
    rules: str | None = field(default=None, metadata={"help": "Rule set that cleans; none for a built corpus."})
    min_chars: int | None = field(default=None, metadata={"help": "Shortest comment that is read; 0 for a corpus."})
    num_workers: int | None = field(default=None, metadata={"help": "Processes; one a core if not given."})
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "vocab.txt, directories or OWNER/NAME@REVISION beside it in the report."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Directory of the tasks that it is measured on."})


def main() -> None:
    """Train or extend, then measure."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    arguments, vocabulary = parse_args(TokenizerArguments, VocabularyArguments)
    output_dir = Path(arguments.output_dir)
    if arguments.base_vocab:
        _require_no_training(vocabulary)
    check_sources(arguments.compare, data_dir=arguments.data_dir)
    corpus = arguments.corpus_dir or str(write_sample(output_dir.parent / "sample"))
    reader = CommentReader(
        corpus, text_column=arguments.text_column, split=arguments.split, revision=arguments.revision
    )
    cleaning = choose_cleaning(corpus, arguments.rules, arguments.min_chars)
    if arguments.base_vocab:
        extend_tokenizer(
            arguments.base_vocab, output_dir, donor_vocab=vocabulary.donor_vocab, num_unused=vocabulary.num_unused
        )
    else:
        train_tokenizer(reader, output_dir, num_workers=arguments.num_workers, **cleaning, **asdict(vocabulary))
    report = write_tokenizer_report(
        [output_dir, *arguments.compare],
        output_dir / "report",
        data_dir=arguments.data_dir,
        texts=list(islice(read_texts(reader, **cleaning), MAX_TEXTS)),
    )
    print(describe_tokenizers(report))
    print(f"report: {output_dir / 'report'}")


def _require_no_training(vocabulary: VocabularyArguments) -> None:
    of_both = ("donor_vocab", "num_unused")
    given = [name for name, value in asdict(VocabularyArguments()).items() if getattr(vocabulary, name) != value]
    unused = [f"--{name}" for name in given if name not in of_both]
    if unused:
        raise InputError(f"--base_vocab is extended, not trained; leave out {' and '.join(unused)}")


if __name__ == "__main__":
    run_recipe(main)
