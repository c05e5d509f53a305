"""Push to the Hugging Face Hub: one commit, nothing private in it, no token but that of `hf auth login`."""

import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, verify_manifest
from kcelectra.release.corpus_card import PLOTS_DIR, write_corpus_card

SHARDS = "train-*.parquet"


def push_corpus(
    corpus_dir: str | Path, repo_id: str, *, license: str, private: bool = False, dry_run: bool = False
) -> list[str]:
    """Push a corpus with its card, as a dataset.

    Args:
        corpus_dir: what `build_corpus` made.
        repo_id: `OWNER/NAME`; made if it does not exist. Shards of an earlier push are replaced.
        license: of the text, by its id on the Hub.
        private: make the repository private; one that is public already is refused.
        dry_run: write the card, and push nothing.

    Returns:
        The paths in the repository.

    Raises:
        InputError: the corpus is not whole, `repo_id` is none, or the Hub refuses or cannot be reached.
    """
    corpus_dir = Path(corpus_dir)
    _check_repo_id(repo_id)
    manifest = verify_manifest(corpus_dir)
    card = write_corpus_card(corpus_dir, repo_id=repo_id, license=license)
    files = [*(corpus_dir / name for name in manifest["files"]), card, *sorted((corpus_dir / PLOTS_DIR).iterdir())]
    additions = [CommitOperationAdd(file.relative_to(corpus_dir).as_posix(), file) for file in files]
    additions.append(CommitOperationAdd(MANIFEST, json.dumps(_without_paths(manifest), ensure_ascii=False).encode()))
    names = [operation.path_in_repo for operation in additions]
    if not dry_run:
        try:
            _commit(repo_id, additions, private=private)
        except InputError:
            raise
        # ValueError: the Hub refuses the metadata; RuntimeError: an upload broke off, and the cause says why
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            causes = [error, error.__cause__] if isinstance(error, RuntimeError) else [error]
            reason = " ".join(" ".join(map(str, causes)).split())
            raise InputError(
                f"cannot push to {repo_id}: {reason}; log in with `hf auth login`, look at --repo_id and --license, "
                "and type the same again"
            ) from error
    return names


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"--repo_id {repo_id!r}: {error}; give OWNER/NAME") from error
    if "/" not in repo_id:
        raise InputError(f"--repo_id {repo_id!r} has no owner; give OWNER/NAME")


def _commit(repo_id: str, additions: list[CommitOperationAdd], *, private: bool) -> None:
    hub = HfApi()
    hub.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    if private and not hub.dataset_info(repo_id).private:  # `exist_ok` leaves a public repository public
        raise InputError(f"{repo_id} is public; make it private in its settings, or leave out --private")
    names = {operation.path_in_repo for operation in additions}
    earlier = [name for name in hub.list_repo_files(repo_id, repo_type="dataset") if fnmatch(name, SHARDS)]
    deletions = [CommitOperationDelete(name) for name in earlier if name not in names]
    hub.create_commit(
        repo_id, [*additions, *deletions], repo_type="dataset", commit_message="Add the corpus and its card"
    )


def _without_paths(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest without the directories of this machine; a dataset of the Hub keeps its id."""
    text = json.dumps(manifest, ensure_ascii=False)
    paths = [source["path"] for source in manifest["sources"] if os.path.isabs(source["path"])]
    for path in sorted(paths, key=len, reverse=True):  # one may end like another
        written, name = (json.dumps(part, ensure_ascii=False)[1:-1] for part in (path, Path(path).name))
        text = text.replace(written, name)
    return json.loads(text)
