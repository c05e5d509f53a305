"""Push a corpus to the Hugging Face Hub, with its card.

    python recipes/publish.py --corpus_dir out/corpus --repo_id OWNER/NAME --license cc-by-sa-4.0 --dry_run true

Log in first, with `hf auth login`.
"""

from dataclasses import dataclass, field

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.release.hub import push_corpus


@dataclass
class PublishArguments:
    """What is pushed, and where."""

    corpus_dir: str = field(default="out/corpus", metadata={"help": "What build_corpus.py made."})
    repo_id: str | None = field(default=None, metadata={"help": "OWNER/NAME on the Hub; made if it does not exist."})
    license: str | None = field(
        default=None, metadata={"help": "Licence of the text, by its id on the Hub, such as cc-by-sa-4.0; or other."}
    )
    private: bool = field(default=False, metadata={"help": "Make the repository private."})
    dry_run: bool = field(default=False, metadata={"help": "Write the card and list the files, but push nothing."})

    def __post_init__(self) -> None:
        for name, example in (("repo_id", "OWNER/NAME"), ("license", "cc-by-sa-4.0")):
            if getattr(self, name) is None:
                raise InputError(f"give --{name}, such as --{name} {example}")


def main() -> None:
    """Push, or list what would be pushed."""
    (arguments,) = parse_args(PublishArguments)
    files = push_corpus(**vars(arguments))
    print("\n".join(files))
    print(f"{'would be' if arguments.dry_run else 'are'} at https://huggingface.co/datasets/{arguments.repo_id}")


if __name__ == "__main__":
    run_recipe(main)
