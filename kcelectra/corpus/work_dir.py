"""The directory in which a stage works until its output is whole, and what an earlier run left there."""

import json
from pathlib import Path
from typing import Any

from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, read_stage, to_json, write_atomically

WORK_DIR = ".work"  # in the output directory


def read_earlier(output_dir: Path, work_dir: str | Path, *, stage: str, key: str, what: str) -> dict[str, Any] | None:
    """Return what an earlier run left: the manifest of a finished stage, the plan of another, or None.

    Args:
        output_dir: of the stage.
        work_dir: in it.
        stage: as its manifest names it.
        key: of its plans alone.
        what: it makes, for the message.

    Raises:
        InputError: the directory holds something else, or its manifest was changed.
    """
    earlier = read_stage(output_dir, stage)
    try:
        if earlier is None and not Path(output_dir, MANIFEST).exists():
            earlier = read_json(work_dir, "plan.json")
        is_free = not output_dir.exists() or all(path.name == WORK_DIR for path in output_dir.iterdir())
    except (NotADirectoryError, ValueError):
        earlier, is_free = None, False
    is_ours = isinstance(earlier, dict) and (key in earlier or earlier.get("stage") == stage)
    if not is_ours and (earlier is not None or not is_free):
        raise InputError(f"{output_dir} is there and holds no {what}; give another --output_dir")
    return earlier if is_ours else None


def read_json(work_dir: str | Path, name: str) -> Any:
    """Return what a file of the work directory holds, or None where there is none."""
    path = Path(work_dir, name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_json(work_dir: str | Path, name: str, facts: Any) -> Any:
    """Write a file of the work directory, whole or not at all, and return the facts."""
    path = Path(work_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json(facts))
    return facts
