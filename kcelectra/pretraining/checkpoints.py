"""Checkpoints that are there whole or not at all, and are trusted only as far as they can be verified.

A checkpoint is `checkpoint-N` of a run, N the optimizer steps behind it. It is written under a hidden name, reaches
the disk, and gets its name by one rename, so that a kill or a crash at any moment leaves what was there before or the
new one.
"""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kcelectra.errors import InputError
from kcelectra.manifest import find_damage, list_files, read_manifest, write_manifest

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
STAGE = "checkpoint"
BROKEN_DIR = "broken"
BYTES_PER_WEIGHT = 4  # float32
BYTES_PER_PARAMETER = 12  # float32 weights and the two moments of Adam
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BrokenCheckpoint(InputError):
    """A checkpoint is not what was written."""


def write_checkpoint(run_dir: str | Path, step: int, write: Callable[[Path], None], **facts: Any) -> Path:
    """Write `checkpoint-N` of a run so that it is there whole or not at all.

    Args:
        run_dir: of the run.
        step: N. If the run has that checkpoint, the new one takes its place.
        write: writes all files into the directory that it gets.
        **facts: for the manifest; must be JSON.

    Returns:
        The checkpoint.

    Raises:
        InputError: the disk is full; the checkpoints before are as they were.
    """
    checkpoint_dir = Path(run_dir, f"checkpoint-{step}")
    staging, old = _hidden(checkpoint_dir, "tmp"), _hidden(checkpoint_dir, "old")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        write(staging)
        for path in staging.rglob("*"):
            _sync(path)
        write_manifest(staging, stage=STAGE, step=step, **facts)
        _sync(staging)
    except Exception as error:  # safetensors and tokenizers have no exception of their own for a full disk
        if (number := _error_number(error)) not in NO_ROOM:
            raise
        raise InputError(_no_room(checkpoint_dir, staging, os.strerror(number))) from error
    if checkpoint_dir.exists():
        shutil.rmtree(old, ignore_errors=True)
        checkpoint_dir.rename(old)
    staging.rename(checkpoint_dir)
    _sync(checkpoint_dir.parent)
    shutil.rmtree(old, ignore_errors=True)
    return checkpoint_dir


def verify_checkpoint(checkpoint_dir: str | Path) -> dict[str, Any]:
    """Check every byte of a checkpoint and return its manifest.

    Raises:
        BrokenCheckpoint: a file, which may be the manifest, is missing, was cut or was changed, or is one too many.
    """
    damage = _find_damage(Path(checkpoint_dir))
    if damage is not None:
        raise BrokenCheckpoint(f"{damage}; {checkpoint_dir} cannot be trusted, give another checkpoint")
    return _read_manifest(checkpoint_dir)


def find_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the checkpoints of a run that have a manifest, oldest first; their other files are not looked at."""
    return [path for path in _list_checkpoints(run_dir) if _has_manifest(path)]


def find_last_checkpoint(run_dir: str | Path, *, quarantine: bool = False) -> Path | None:
    """Return the newest checkpoint of a run that is whole, or None if the run has none at all.

    Args:
        run_dir: of the run.
        quarantine: move newer ones, which are broken, to `broken/` of the run; for one process of it.

    Raises:
        BrokenCheckpoint: there are checkpoints, and all are broken; they stay where they are.
    """
    broken: dict[Path, str] = {}
    for path, damage in _examine(run_dir):
        if damage is None:
            for other, reason in broken.items():
                moved = f", {other.name} is moved to {_quarantine(other)}" if quarantine else ""
                logger.warning("%s; %s is used instead%s", reason, path.name, moved)
            return path
        broken[path] = damage
    if broken:
        reasons = "; ".join(broken.values())
        raise BrokenCheckpoint(f"{run_dir} has no whole checkpoint: {reasons}; begin anew with another --output_dir")
    return None


def rotate_checkpoints(run_dir: str | Path, limit: int | None) -> None:
    """Delete all but the newest checkpoints of a run.

    The newest that stays was read back from its files: a broken one does not count, and if all are broken none is
    deleted.

    Args:
        run_dir: of the run.
        limit: how many stay; all if None, or below 1 as in transformers.
    """
    if limit is None or limit < 1 or len(find_checkpoints(run_dir)) <= limit:
        return
    newest = next((path for path, damage in _examine(run_dir) if damage is None), None)
    if newest is not None:
        checkpoints = find_checkpoints(run_dir)
        for path in checkpoints[: max(0, checkpoints.index(newest) + 1 - limit)]:
            _delete(path)


def choose_checkpoint(run_dir: str | Path, wanted: str | bool | None) -> Path | None:
    """Return the checkpoint that a run begins with, verified, or None; what a killed run left half done is deleted.

    Args:
        run_dir: of the run.
        wanted: a checkpoint; true for the newest of the run that is whole, if there is one.

    Raises:
        InputError: the one that is wanted, or all that the run has, are broken.
    """
    clear_leftovers(run_dir)
    if wanted is True:
        return find_last_checkpoint(run_dir, quarantine=True)
    if wanted:
        verify_checkpoint(wanted)
    return Path(wanted) if wanted else None


def clear_leftovers(run_dir: str | Path) -> None:
    """Put in order what a killed process left; for one process, before it looks for checkpoints."""
    for path in sorted(Path(run_dir).glob(".checkpoint-*.*")):
        checkpoint_dir = path.with_name(path.stem[1:])
        if path.suffix == ".old" and not checkpoint_dir.exists():  # killed before the new one got the name
            path.rename(checkpoint_dir)
        else:
            shutil.rmtree(path)


def read_step(checkpoint_dir: str | Path) -> int:
    """Return the number of optimizer steps that a checkpoint has behind it."""
    return _read_manifest(checkpoint_dir)["step"]


def read_history(checkpoint_dir: str | Path) -> list[dict[str, Any]]:
    """Return what the run logged up to a checkpoint, one dictionary an interval."""
    return json.loads(Path(checkpoint_dir, STATE_FILE).read_text(encoding="utf-8"))["log_history"]


def require_disk_space(directory: str | Path, *, num_bytes: int, purpose: str) -> None:
    """Raise if a directory's disk has less room than is needed.

    Raises:
        InputError: it has; the message says how much is needed and free.
    """
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise InputError(
            f"{purpose} needs {num_bytes / 1e6:,.0f} MB in {directory}, {free / 1e6:,.0f} MB are free; make room, "
            "lower --save_total_limit, or give an --output_dir on another disk. The same command then continues"
        )


def _list_checkpoints(run_dir: str | Path) -> list[Path]:
    paths = [path for path in Path(run_dir).glob("checkpoint-*") if _number(path) is not None]
    return sorted(paths, key=lambda path: _number(path) or 0)


def _number(path: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else None


def _read_manifest(checkpoint_dir: str | Path) -> dict[str, Any]:
    manifest = read_manifest(checkpoint_dir)
    if manifest is None or manifest.get("stage") != STAGE:
        raise BrokenCheckpoint(f"{checkpoint_dir} is no checkpoint; give a checkpoint-N of a run")
    return manifest


def _has_manifest(checkpoint_dir: Path) -> bool:
    try:
        return bool(_read_manifest(checkpoint_dir))
    except (OSError, ValueError):
        return False


def _examine(run_dir: str | Path) -> Iterator[tuple[Path, str | None]]:
    """Yield each checkpoint with what is wrong with it, the newest first."""
    for path in reversed(_list_checkpoints(run_dir)):
        yield path, _find_damage(path)


def _find_damage(checkpoint_dir: Path) -> str | None:
    damage = find_damage(checkpoint_dir)
    if damage is not None:
        return damage
    manifest = read_manifest(checkpoint_dir) or {}
    if manifest.get("stage") != STAGE:
        return f"{checkpoint_dir} is no checkpoint"
    for name in list_files(checkpoint_dir):
        if name not in manifest["files"]:
            return f"{checkpoint_dir / name} was not written with the checkpoint"
    if _number(checkpoint_dir) not in (None, manifest["step"]):  # one that was pulled has another name
        return f"{checkpoint_dir} is the checkpoint of step {manifest['step']}"
    return None


def _quarantine(checkpoint_dir: Path) -> Path:
    broken_dir = checkpoint_dir.parent / BROKEN_DIR
    broken_dir.mkdir(exist_ok=True)
    path, number = broken_dir / checkpoint_dir.name, 1
    while path.exists():
        number += 1
        path = broken_dir / f"{checkpoint_dir.name}-{number}"
    return checkpoint_dir.rename(path)


def _delete(checkpoint_dir: Path) -> None:
    deleted = _hidden(checkpoint_dir, "deleted")
    shutil.rmtree(deleted, ignore_errors=True)
    checkpoint_dir.rename(deleted)
    _sync(checkpoint_dir.parent)
    shutil.rmtree(deleted, ignore_errors=True)


def _hidden(checkpoint_dir: Path, suffix: str) -> Path:
    return checkpoint_dir.with_name(f".{checkpoint_dir.name}.{suffix}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))  # as Rust says it
    return int(match[1]) if match else None


def _no_room(checkpoint_dir: Path, staging: Path, reason: str) -> str:
    """Remove what was written of a checkpoint, and return what to say."""
    num_written = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    shutil.rmtree(staging, ignore_errors=True)
    run_dir = checkpoint_dir.parent
    last = next((path for path, damage in _examine(run_dir) if damage is None), None)
    files = _read_manifest(last)["files"].values() if last else ()
    num_needed = max(num_written, sum(file["size"] for file in files))
    free = shutil.disk_usage(run_dir).free
    return (
        f"cannot write {checkpoint_dir}: {reason}; it needs about {num_needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB "
        f"are free; {f'{last.name} is intact' if last else 'there is no checkpoint before it'}. Make room or lower "
        "--save_total_limit; the same command then continues"
    )
