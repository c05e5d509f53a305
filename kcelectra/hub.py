"""Push to the Hugging Face Hub: one commit or none, tried again where it broke off, with no token but the login's."""

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, seal_manifest, verify_manifest
from kcelectra.outgoing import check_files

logger = logging.getLogger(__name__)
T = TypeVar("T")

WAITS = (1, 2, 4, 8)  # seconds between the tries
LONGEST_WAIT = 600  # seconds that a busy Hub may ask for
TRANSIENT = (408, 412, 429)  # and 500 and above; 412: main has moved since the push began
TAG = re.compile(r"\w[\w.-]*")
ADVICE = {
    401: "log in with `hf auth login`, and type the same again",
    403: "log in with `hf auth login` as one who may write there, and type the same again",
    409: "see who else pushes there, log in with `hf auth login` as the right one, and type the same again",
}
OTHER_ADVICE = "look at the name and the licence (--license), and type the same again"
#: What a push of a model replaces as a whole: its own files, and those of another model that would be loaded for it.
MODEL_FILES: tuple[str, ...] = ("model*.safetensors", "generator/*", "vocab.txt", "tokenizer*.json", "pytorch_model*")
MODEL_FILES += ("tf_model.h5", "flax_model.msgpack", "training_args.bin", "optimizer.pt", "scheduler.pt", "*.pth")
MODEL_FILES += ("images/*", ".eval_results/*", "history.json", "results.jsonl")


class HubUnreachable(InputError):
    """The Hub is down or busy; the same may succeed later."""


def push_files(
    files: Mapping[str, Path | bytes],
    *,
    roots: Collection[Path],
    repo_id: str,
    message: str,
    repo_type: str = "model",
    public: bool = False,
    owned: Collection[str] = (),
    tag: str | None = None,
) -> CommitInfo:
    """Push files as one commit.

    What broke off can be pushed again: an object that arrived is not sent twice, and a commit whose answer was lost is
    found. A commit names the one it was made upon, and the Hub refuses it if another came between: main never holds
    files of two pushes.

    Args:
        files: by the path that they get in the repository.
        roots: directories that the files lie below.
        repo_id: `OWNER/NAME`; made if it does not exist.
        message: first line of the commit.
        repo_type: `model` or `dataset`.
        public: show the repository to everybody, once it holds the files. If not, one that is public is refused.
        owned: patterns of paths that belong to the push; those in the repository that are not in `files` are deleted.
        tag: a name for the commit.

    Returns:
        The commit; that on main if it holds the files already.

    Raises:
        HubUnreachable: the Hub is down or busy, after a few tries.
        InputError: `files` may not be published, and nothing was sent; or the Hub refuses.
    """
    check_repo_id(repo_id)
    check_tag(tag)
    check_files(files, roots=roots)
    repository = _Repository(repo_id, repo_type, public)
    return _retry(lambda: repository.push(files, message=message, owned=owned, tag=tag), repo_id)


def open_repository(repo_id: str, *, repo_type: str = "model", public: bool = False) -> None:
    """Make a repository, or see that it may be pushed to; arguments and errors are those of `push_files`."""
    check_repo_id(repo_id)
    _retry(_Repository(repo_id, repo_type, public).open, repo_id)


def check_repo_id(repo_id: str) -> None:
    """Raise an `InputError` if a text is not `OWNER/NAME`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no repository: {error}; give OWNER/NAME") from error
    if "/" not in repo_id:
        raise InputError(f"{repo_id!r} has no owner; give OWNER/NAME")


def check_tag(tag: str | None) -> None:
    """Raise an `InputError` if a text cannot name a revision."""
    if tag is not None and (tag == "main" or not TAG.fullmatch(tag)):
        raise InputError(f"{tag!r} is no name of a revision; give letters, digits, dots and dashes, such as v2022")


def split_revision(source: str) -> tuple[str, str | None]:
    """Return a directory as it is; of OWNER/NAME@REVISION both parts, and None where no revision is given.

    >>> split_revision("beomi/KcELECTRA-base@v2022")
    ('beomi/KcELECTRA-base', 'v2022')
    """
    if Path(source).exists():
        return source, None
    root, _, revision = source.partition("@")
    return root, revision or None


def main_half(export_dir: str | Path) -> Path:
    """Return the half of an export that is for use: the discriminator, or a generator that was trained alone."""
    halves = Path(export_dir, "discriminator"), Path(export_dir, "generator")
    return halves[1] if halves[1].is_dir() and not halves[0].is_dir() else halves[0]


def model_files(export_dir: Path) -> dict[str, Path | bytes]:
    """Return the files of an export by their path in a repository: the main half at the root, and a manifest.

    Raises:
        InputError: one of them is not what the manifest of the export says.
    """
    manifest = verify_manifest(export_dir)
    root = f"{main_half(export_dir).name}/"
    names = {name: name.removeprefix(root) for name in manifest["files"]}
    described = {names[name]: facts for name, facts in manifest["files"].items()}
    files: dict[str, Path | bytes] = {names[name]: export_dir / name for name in names}
    return files | {MANIFEST: seal_manifest({**manifest, "files": described}).encode()}


@dataclass(frozen=True)
class _Repository:
    repo_id: str
    repo_type: str
    public: bool

    def open(self) -> ModelInfo | DatasetInfo:
        hub = HfApi()
        # a new one is seen by nobody before it holds the files
        hub.create_repo(self.repo_id, repo_type=self.repo_type, private=True, exist_ok=True)
        info = hub.repo_info(self.repo_id, repo_type=self.repo_type)
        assert isinstance(info, (ModelInfo, DatasetInfo))
        if not self.public and not info.private:  # `exist_ok` leaves a public repository public
            raise InputError(
                f"{self.repo_id} is public; make it private in its settings, or push for everybody to see, with "
                "`--public true` (publish.py) or `--hub_private_repo false` (pretrain.py)"
            )
        return info

    def push(
        self, files: Mapping[str, Path | bytes], *, message: str, owned: Collection[str], tag: str | None
    ) -> CommitInfo:
        """Do what is not done yet; a call that breaks off is repeated as a whole."""
        hub, info = HfApi(), self.open()
        names = {sibling.rfilename for sibling in info.siblings or ()}
        if ".gitignore" in names:
            raise InputError(f"{self.repo_id} has a .gitignore, which may leave out files; delete it there")
        tagged = self._find(tag)
        if tagged not in (None, info.sha):
            raise InputError(f"{tag} of {self.repo_id} names another commit; give another name, or delete it there")
        stale = [name for name in sorted(names - files.keys()) if _is_owned(name, owned)]
        commit = hub.create_commit(
            self.repo_id,
            [
                *(CommitOperationAdd(name, source) for name, source in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            repo_type=self.repo_type,
            commit_message=message,
            parent_commit=info.sha,
        )
        if tagged not in (None, commit.oid):
            raise InputError(f"main of {self.repo_id} holds the files, and {tag} others as before; give another name")
        if tag is not None and tagged is None:
            hub.create_tag(self.repo_id, tag=tag, revision=commit.oid, repo_type=self.repo_type)
        if self.public and info.private:
            hub.update_repo_settings(self.repo_id, private=False, repo_type=self.repo_type)
        return commit

    def _find(self, tag: str | None) -> str | None:
        """Return the commit that a tag names, None if there is no such tag."""
        try:
            return HfApi().repo_info(self.repo_id, repo_type=self.repo_type, revision=tag).sha if tag else None
        except RevisionNotFoundError:
            return None


def _is_owned(name: str, owned: Collection[str]) -> bool:
    """Tell whether a pattern takes a path; `*` alone would take `/` too, and `models/a.safetensors` with it."""
    return any(fnmatchcase(name, pattern) and ("/" in pattern or "/" not in name) for pattern in owned)


def _retry(call: Callable[[], T], repo_id: str) -> T:
    waits = iter(WAITS)
    while True:
        try:
            return call()
        except InputError:
            raise
        # ValueError: the Hub refuses the metadata; RuntimeError: an upload broke off, and its cause says why
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            wait = _wait(cause, next(waits, None))
            reason = " ".join(f"{'' if cause is error else error} {cause}".split())
            if wait is None:
                raise _explain(cause, f"cannot push to {repo_id}: {reason}") from error
            logger.warning("push to %s: %s; trying again in %d s", repo_id, reason, wait)
            time.sleep(wait)


def _wait(error: BaseException, wait: int | None) -> int | None:
    """Return the seconds to wait before the next try, None if there should be none."""
    if wait is None or not _is_transient(error):
        return None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    wait = max(wait, int(asked)) if asked.isdigit() else wait
    return wait if wait <= LONGEST_WAIT else None


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT or error.response.status_code >= 500
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # a gateway answers with no JSON; ConnectionError: of the storage, which has a client of its own
    return isinstance(error, (HTTPError, RuntimeError, ConnectionError, TimeoutError, json.JSONDecodeError))


def _explain(error: BaseException, message: str) -> InputError:
    if _is_transient(error):
        return HubUnreachable(f"{message}; type the same again later, and what has arrived is not sent twice")
    if isinstance(error, OfflineModeIsEnabled):
        return InputError(f"{message}; type the same again without HF_HUB_OFFLINE")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    is_refused = status is not None or isinstance(error, ValueError)  # else it is of this machine: a file, a disk
    other = OTHER_ADVICE if is_refused else "mend that, and type the same again"
    return InputError(f"{message}; {ADVICE.get(status or 0, other)}")
