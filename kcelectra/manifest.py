"""`manifest.json`: what a stage wrote, written last, so that a half-written stage is never taken for a whole one."""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kcelectra.errors import InputError

MANIFEST = "manifest.json"
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
    names = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    names = [name for name in names if name.name != MANIFEST and not any(part[0] == "." for part in name.parts)]
    manifest = {
        **facts,
        "files": {name.as_posix(): _describe(directory / name) for name in names},
        "versions": {package: version(package) for package in RECORDED_PACKAGES},
    }
    write_atomically(directory / MANIFEST, to_json(manifest, indent=2) + "\n")
    return manifest


def read_manifest(directory: str | Path) -> dict[str, Any] | None:
    """Return the manifest of a directory, or None where the stage has not finished."""
    path = Path(directory, MANIFEST)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def verify_manifest(directory: str | Path) -> dict[str, Any]:
    """Check every file against the manifest and return it.

    Raises:
        InputError: there is no manifest, or a file is missing, was cut or was changed.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise InputError(f"{directory} has no {MANIFEST}: the stage that writes it has not finished; run it again")
    for name, expected in manifest["files"].items():
        path = Path(directory, name)
        if not path.is_file() or _describe(path) != expected:
            raise InputError(
                f"{path} is missing or not what {MANIFEST} says; delete {directory} and run its stage again"
            )
    return manifest


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


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
