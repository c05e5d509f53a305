"""Push a model, a corpus, packed rows or a tokenizer to the Hugging Face Hub, with its card.

    python recipes/publish.py --run_dir out/smoke --repo_id OWNER/NAME --license mit --results out/sweep/results.jsonl
    python recipes/publish.py --corpus_dir out/corpus --repo_id OWNER/NAME --license cc-by-sa-4.0
    python recipes/publish.py --rows_dir out/packed --repo_id OWNER/NAME --license cc-by-sa-4.0
    python recipes/publish.py --tokenizer_dir out/tokenizer --repo_id OWNER/NAME --license mit

Log in first, with `hf auth login`. `--dry_run true` lists what would be pushed; only `--public true` shows it to
everybody.
"""

import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.hub import check_repo_id, check_tag, push_files
from kcelectra.outgoing import check_files
from kcelectra.release.publish import Release, release_corpus, release_model, release_rows, release_tokenizer

SOURCES = ("run_dir", "corpus_dir", "rows_dir", "tokenizer_dir")


@dataclass
class PublishArguments:
    """What is pushed, and where."""

    run_dir: str | None = field(
        default=None,
        metadata={
            "help": "A run of pretrain.py, whose card tells of the --corpus_dir and the --tokenizer_dir too; or:"
        },
    )
    corpus_dir: str | None = field(default=None, metadata={"help": "What build_corpus.py made; or:"})
    rows_dir: str | None = field(default=None, metadata={"help": "What pack.py made; or:"})
    tokenizer_dir: str | None = field(default=None, metadata={"help": "What train_tokenizer.py made."})
    repo_id: str | None = field(default=None, metadata={"help": "OWNER/NAME on the Hub; made if it does not exist."})
    license: str | None = field(
        default=None,
        metadata={"help": "Licence of what is pushed, by its id on the Hub, such as cc-by-sa-4.0; or other."},
    )
    results: str | None = field(
        default=None, metadata={"help": "results.jsonl of finetune.py, for the scores in the card of a model."}
    )
    revision: str | None = field(default=None, metadata={"help": "Name for the commit, such as v2022: a tag."})
    public: bool = field(default=False, metadata={"help": "Show the repository to everybody, not to you alone."})
    dry_run: bool = field(default=False, metadata={"help": "List the files with their sizes, but push nothing."})
    copy_dir: str | None = field(
        default=None, metadata={"help": "An empty or new directory for a copy of all files, to look at."}
    )

    def __post_init__(self) -> None:
        of_run = ("corpus_dir", "tokenizer_dir") if self.run_dir is not None else ()
        given = [name for name in SOURCES if getattr(self, name) is not None and name not in of_run]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(f'--{name}' for name in given) or 'nothing'} to push; give exactly one of "
                f"{', '.join(f'--{name}' for name in SOURCES)}"
            )
        for name, example in (("repo_id", "OWNER/NAME"), ("license", "cc-by-sa-4.0")):
            if getattr(self, name) is None:
                raise InputError(f"give --{name}, such as --{name} {example}")
        if self.results is not None and self.run_dir is None:
            raise InputError("--results are the scores of a model; give --run_dir, or leave them out")
        if self.copy_dir is not None and Path(self.copy_dir).exists() and os.listdir(self.copy_dir):
            raise InputError(f"{self.copy_dir} is not empty; give another --copy_dir")
        check_repo_id(self.repo_id)
        check_tag(self.revision)


def main() -> None:
    """Push, or list what would be pushed."""
    (arguments,) = parse_args(PublishArguments)
    with TemporaryDirectory() as staging_dir:
        release = prepare(arguments, Path(staging_dir))
        sizes = check_files(release.files, roots=release.roots)
        for name, size in sorted(sizes.items()):
            print(f"{size:>15,}  {name}")
        print(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
        if arguments.copy_dir is not None:
            copy_files(release.files, Path(arguments.copy_dir))
        if not arguments.dry_run:
            push_files(**vars(release), repo_id=arguments.repo_id, public=arguments.public, tag=arguments.revision)
    kind = "" if release.repo_type == "model" else f"{release.repo_type}s/"
    revision = f"/tree/{arguments.revision}" if arguments.revision else ""
    verb = "would be" if arguments.dry_run else "are"
    print(f"{verb} at https://huggingface.co/{kind}{arguments.repo_id}{revision}")


def copy_files(files: dict[str, Path | bytes], directory: Path) -> None:
    """Write the files of a release below a directory."""
    for name, source in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())


def prepare(arguments: PublishArguments, staging_dir: Path) -> Release:
    """Return what is pushed."""
    options = {"repo_id": arguments.repo_id, "license": arguments.license}
    if arguments.run_dir is not None:
        options |= {"results_file": arguments.results, "defaults": default_arguments()}
        options |= {"corpus_dir": arguments.corpus_dir, "tokenizer_dir": arguments.tokenizer_dir}
        return release_model(arguments.run_dir, staging_dir, **options)
    if arguments.corpus_dir is not None:
        return release_corpus(arguments.corpus_dir, **options)
    if arguments.rows_dir is not None:
        return release_rows(arguments.rows_dir, **options)
    return release_tokenizer(arguments.tokenizer_dir, **options)


def default_arguments() -> dict[str, Any]:
    """Return what `pretrain.py` takes where nothing is given."""
    from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments  # torch, which a corpus does without
    from kcelectra.pretraining.training_arguments import PretrainingArguments

    known = (*fields(ModelArguments), *fields(DataArguments), *fields(PretrainingArguments))
    return {one.name: one.default for one in known if one.default is not MISSING}


if __name__ == "__main__":
    run_recipe(main)
