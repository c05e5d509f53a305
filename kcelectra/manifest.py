"""`manifest.json`: what a stage wrote, written last, so that a half-written stage is never taken for a whole one."""

import hashlib
import json
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kcelectra.errors import InputError

MANIFEST = "manifest.json"
SEAL = "manifest_sha256"
RECORDED_PACKAGES = ("kcelectra", "torch", "transformers", "accelerate", "datasets", "tokenizers", "pyarrow", "duckdb")


def write_manifest(directory: str | Path, **facts: Any) -> dict[str, Any]:
    """Write `manifest.json` of a finished directory by an atomic rename.

    Args:
        directory: every file in it and below is listed with its size in bytes and its sha256; hidden ones are not.
        **facts: counts and parameters of the stage; must be JSON.

    Returns:
        The manifest: `facts`, `files` and `versions`.
    """
    directory = Path(directory)
    manifest = {
        **facts,
        "files": {name: _describe(directory / name) for name in list_files(directory)},
        "versions": dict(_versions()),
    }
    write_atomically(directory / MANIFEST, seal_manifest(manifest))
    return manifest


def list_files(directory: str | Path) -> list[str]:
    """Return the files in a directory and below that a manifest lists; not itself, and no hidden ones."""
    names = sorted(path.relative_to(directory) for path in Path(directory).rglob("*") if path.is_file())
    names = [name for name in names if name.name != MANIFEST and not any(part[0] == "." for part in name.parts)]
    return [name.as_posix() for name in names]


def seal_manifest(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest, whose last entry is the sha256 of the others."""
    digest = hashlib.sha256(to_json(manifest, indent=2).encode()).hexdigest()
    return to_json({**manifest, SEAL: digest}, indent=2) + "\n"


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """Return the manifest of a directory, or None where there is none, as the stage has not finished.

    Raises:
        InputError: it was cut or changed since it was written.
    """
    path = Path(directory, MANIFEST)
    if not path.exists():
        return None
    try:
        text = path.read_bytes().decode()
        manifest = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}; delete {directory} and run its stage again") from error
    if not isinstance(manifest, dict):  # a file of someone else that has this name
        return None
    if manifest.pop(SEAL, None) is not None and text != seal_manifest(manifest):
        raise InputError(f"{path} was changed since it was written; delete {directory} and run its stage again")
    return manifest


def read_stage(directory: str | Path, stage: str) -> dict[str, Any] | None:
    """Return the manifest of a directory that a stage wrote, or None of any other, whose manifest may be anybody's.

    Raises:
        InputError: the stage wrote it, and it was cut or changed since.
    """
    path = Path(directory, MANIFEST)
    if not path.is_file() or f'"stage": "{stage}"'.encode() not in path.read_bytes():
        return None
    manifest = read_manifest(directory)
    return manifest if manifest is not None and manifest.get("stage") == stage else None


def verify_manifest(directory: str | Path) -> dict[str, Any]:
    """Check every file against the manifest, and it against itself, and return it.

    Raises:
        InputError: there is no directory or no manifest, or it or a file is missing, was cut or was changed.
    """
    if not Path(directory).is_dir():
        raise InputError(f"{directory} does not exist; give the directory that a stage wrote")
    if not Path(directory, MANIFEST).is_file():
        raise InputError(f"{directory} has no {MANIFEST}: the stage that writes it has not finished; run it again")
    damage = find_damage(directory)
    if damage is not None:
        raise InputError(f"{damage}; delete {directory} and run its stage again")
    return read_manifest(directory) or {}


def find_damage(directory: str | Path) -> str | None:
    """Return what is wrong with a directory that should have a manifest, or None if all is as it was written."""
    path = Path(directory, MANIFEST)
    if not path.is_file():
        return f"{directory} has no {MANIFEST}: it is not whole, or an earlier version wrote it"
    try:
        text = path.read_bytes().decode()
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or not manifest.pop(SEAL, None) or text != seal_manifest(manifest):
            return f"{path} was changed since it was written, or an earlier version wrote it"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    return find_damaged_file(directory, manifest)


def find_damaged_file(directory: str | Path, manifest: dict[str, Any]) -> str | None:
    """Return what is wrong with the files that a manifest lists, or None if all are as they were written."""
    for name, expected in manifest["files"].items():
        path = Path(directory, name)
        try:
            if not path.is_file() or _describe(path) != expected:
                return f"{path} is missing or not what {MANIFEST} says"
        except OSError as error:
            return f"{path} cannot be read: {error}"
    return None


def to_json(facts: Any, *, indent: int | None = None) -> str:
    """Return facts as readable JSON; in ASCII where a file name is no UTF-8."""
    text = json.dumps(facts, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(facts, indent=indent)
    return text


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    temporary = _temporary(path)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@cache
def _versions() -> dict[str, str]:
    return {package: version(package) for package in RECORDED_PACKAGES}


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
