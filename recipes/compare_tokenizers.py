"""Compare tokenizers on the tasks, and on comments: tokens, [UNK], truncation, span ceiling, overlap.

    python recipes/compare_tokenizers.py --tokenizers out/tokenizer beomi/KcELECTRA-base@v2022 --data_dir data

The files of the tasks lie below --data_dir as `kcelectra.finetuning.tasks` names them; those that do not are left out.
"""

from dataclasses import dataclass, field
from itertools import islice

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.corpus.comments import CommentReader, choose_cleaning, read_texts
from kcelectra.errors import InputError
from kcelectra.release.tokenizer_report import MAX_TEXTS, describe_tokenizers, write_tokenizer_report


@dataclass
class CompareArguments:
    """What is compared, and on what."""

    tokenizers: list[str] = field(
        default_factory=list, metadata={"help": "vocab.txt, directories, or OWNER/NAME@REVISION of the Hub."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Directory of the tasks."})
    corpus_dir: str | None = field(default=None, metadata={"help": "Comments to measure on too."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the comment."})
    output_dir: str = field(default="out/tokenizers", metadata={"help": "Gets the page, its plot and the numbers."})

    def __post_init__(self) -> None:
        if not self.tokenizers:
            raise InputError("nothing to compare; give --tokenizers out/tokenizer beomi/KcELECTRA-base@v2022")


def main() -> None:
    """Measure, and say where the report is."""
    (arguments,) = parse_args(CompareArguments)
    texts: list[str] = []
    if arguments.corpus_dir:
        reader = CommentReader(arguments.corpus_dir, text_column=arguments.text_column)
        texts = list(islice(read_texts(reader, **choose_cleaning(arguments.corpus_dir)), MAX_TEXTS))
    report = write_tokenizer_report(
        arguments.tokenizers, arguments.output_dir, data_dir=arguments.data_dir, texts=texts
    )
    print(describe_tokenizers(report))
    print(f"report: {arguments.output_dir}")


if __name__ == "__main__":
    run_recipe(main)
