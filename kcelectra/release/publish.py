"""What is published of a corpus, rows, a tokenizer or a run: each file by its name, none because it lies there."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from kcelectra.errors import InputError
from kcelectra.finetuning.results import RESULTS_FILE, read_results
from kcelectra.hub import MODEL_FILES, main_half, model_files
from kcelectra.manifest import MANIFEST, seal_manifest, to_json, verify_manifest
from kcelectra.outgoing import check_files
from kcelectra.release.corpus_card import CARD, PLOTS, PLOTS_DIR, write_corpus_card

EXPORT_DIR, HISTORY_FILE = "export", "report/history.json"
SHARDS = "train-*.parquet"
STAGES = {"packed": "packed rows"}  # where their name says too little
ROWS = ("train-*.arrow", "blocks.json", "tokenizer/*")


@dataclass(frozen=True)
class Release:
    """What `push_files` is given.

    Args:
        files: by the path that they get in the repository.
        roots: directories that they lie below.
        repo_type: `model` or `dataset`.
        owned: patterns of the paths that a push replaces as a whole.
        message: of the commit.
    """

    files: dict[str, Path | bytes]
    roots: tuple[Path, ...]
    repo_type: str
    owned: tuple[str, ...]
    message: str


def release_corpus(corpus_dir: str | Path, *, repo_id: str, license: str) -> Release:
    """Return a corpus with its card and its plots, as a dataset; both are written into the directory.

    Args:
        corpus_dir: what `build_corpus` made.
        repo_id: `OWNER/NAME`, where it will be on the Hub.
        license: of the text, by its id on the Hub.

    Raises:
        InputError: the corpus is not whole.
    """
    corpus_dir = Path(corpus_dir)
    manifest = _verify(corpus_dir, "corpus")
    card = write_corpus_card(corpus_dir, repo_id=repo_id, license=license)
    files = _listed(corpus_dir, manifest) | {CARD: card}
    files |= {f"{PLOTS_DIR}/{name}": corpus_dir / PLOTS_DIR / name for name in PLOTS}
    return Release(files, (corpus_dir,), "dataset", (SHARDS, f"{PLOTS_DIR}/*"), "Add the corpus and its card")


def release_rows(rows_dir: str | Path, *, repo_id: str, license: str) -> Release:
    """Return packed rows with their tokenizer and a card, as a dataset.

    Args:
        rows_dir: what `pack_corpus` made.
        repo_id: `OWNER/NAME`, where they will be on the Hub.
        license: of the text, by its id on the Hub.

    Raises:
        InputError: the rows are not whole.
    """
    rows_dir = Path(rows_dir)
    manifest = _verify(rows_dir, "packed")
    card_data = DatasetCardData(
        license=license, language="ko", tags=["kcelectra", "korean"], task_categories=["fill-mask"]
    )
    template = Path(__file__).with_name("rows_card.md.jinja")
    facts = {**manifest, "name": repo_id.split("/")[-1], "repo_id": repo_id}
    card = DatasetCard.from_template(card_data, str(template), **facts)
    files = _listed(rows_dir, manifest) | {CARD: str(card).encode()}
    return Release(files, (rows_dir,), "dataset", ROWS, "Add the rows and their card")


def release_tokenizer(tokenizer_dir: str | Path, *, repo_id: str, license: str) -> Release:
    """Return a tokenizer with its card, as a model.

    Args:
        tokenizer_dir: what `train_tokenizer` made.
        repo_id: `OWNER/NAME`, where it will be on the Hub.
        license: of the vocabulary, by its id on the Hub.

    Raises:
        InputError: the tokenizer is not whole.
    """
    tokenizer_dir = Path(tokenizer_dir)
    manifest = _verify(tokenizer_dir, "tokenizer")
    card_data = ModelCardData(
        license=license, language="ko", library_name="transformers", tags=["kcelectra", "korean"]
    )
    template = Path(__file__).with_name("tokenizer_card.md.jinja")
    facts = {**manifest, "name": repo_id.split("/")[-1], "repo_id": repo_id}
    card = ModelCard.from_template(card_data, str(template), **facts)
    files = _listed(tokenizer_dir, manifest) | {CARD: str(card).encode()}
    return Release(files, (tokenizer_dir,), "model", (), "Add the tokenizer and its card")


def release_model(
    run_dir: str | Path,
    staging_dir: Path,
    *,
    repo_id: str,
    license: str,
    results_file: str | Path | None = None,
    corpus_dir: str | Path | None = None,
    tokenizer_dir: str | Path | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Release:
    """Return the export of a run: the discriminator at the root, `generator/`, the card, the log and the results.

    Args:
        run_dir: the output directory of `recipes/pretrain.py`.
        staging_dir: an empty directory, where the card is made.
        repo_id: `OWNER/NAME`, where it will be on the Hub.
        license: of the weights, by its id on the Hub.
        results_file: `results.jsonl` of `recipes/finetune.py`, for the scores of the card.
        corpus_dir: the corpus, if the settings of the run do not say where it is: a run on packed rows does not know.
        tokenizer_dir: the same of the tokenizer.
        defaults: arguments of the run that its settings do not give, by name.

    Raises:
        InputError: the export is not whole, the run has no report, or the card cannot be made.
    """
    # torch and the tasks, which a corpus does without
    from kcelectra.release.card_scores import is_row_of, read_model_scores
    from kcelectra.release.model_card import write_model_card

    run_dir = Path(run_dir)
    files = model_files(run_dir / EXPORT_DIR)
    history = run_dir / HISTORY_FILE
    if not history.is_file():
        raise InputError(f"{run_dir} has no {HISTORY_FILE}; run recipes/pretrain.py on it again, which writes it")
    check_files(files, roots=[run_dir])  # before the card loads them
    for name, source in files.items():
        (staging_dir / name).parent.mkdir(exist_ok=True)
        if isinstance(source, Path):
            (staging_dir / name).symlink_to(source.absolute())  # for the card to look at; what is pushed is `source`
    if results_file is not None:  # rows of other models stay here
        shown_as = str(main_half(run_dir / EXPORT_DIR))
        own, family = read_model_scores(results_file, staging_dir, shown_as=shown_as)
        rows = [row for row in read_results(results_file) if is_row_of([*own, *family], row)]
        files[RESULTS_FILE] = "".join(f"{to_json(_without_paths(row))}\n" for row in rows).encode()
    card = write_model_card(
        staging_dir,
        repo_id=repo_id,
        license=license,
        run_dir=run_dir,
        results_file=results_file,
        corpus_dir=corpus_dir,
        tokenizer_dir=tokenizer_dir,
        defaults=defaults,
    )
    files |= {path.relative_to(staging_dir).as_posix(): path for path in card}
    files["history.json"] = history
    return Release(files, (run_dir, staging_dir), "model", MODEL_FILES, "Add the model and its card")


def _verify(directory: Path, stage: str) -> dict[str, Any]:
    manifest = verify_manifest(directory)
    if manifest.get("stage") != stage:
        raise InputError(
            f"{directory} holds no {STAGES.get(stage, stage)} but a {manifest.get('stage', 'model')}; give another "
            "directory"
        )
    return manifest


def _listed(directory: Path, manifest: dict[str, Any]) -> dict[str, Path | bytes]:
    """Return the files of a manifest, and it."""
    files: dict[str, Path | bytes] = {name: directory / name for name in manifest["files"]}
    return files | {MANIFEST: seal_manifest(_without_paths(manifest)).encode()}


def _without_paths(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without the directories of this machine; a dataset of the Hub keeps its id."""
    text = json.dumps(facts, ensure_ascii=False)
    paths = {value for value in _strings(facts) if os.path.isabs(value) and Path(value).name}
    for path in sorted(paths, key=len, reverse=True):  # one may end like another
        written, name = (json.dumps(part, ensure_ascii=False)[1:-1] for part in (path, Path(path).name))
        text = re.sub(rf"(?<![\w.~-]){re.escape(written)}", name.replace("\\", r"\\"), text)  # no part of an id
    return json.loads(text)


def _strings(facts: Any) -> Iterator[str]:
    if isinstance(facts, str):
        yield facts
    for part in facts.values() if isinstance(facts, dict) else facts if isinstance(facts, list) else ():
        yield from _strings(part)
