"""Find checkpoints, and know before a save that it will fit on the disk."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from kcelectra.errors import InputError

STATE_FILE = "trainer_state.json"  # the Trainer writes it last
BYTES_PER_WEIGHT = 4  # float32
BYTES_PER_PARAMETER = 12  # float32 weights and the two moments of Adam


def find_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return the whole `checkpoint-N` of a run, oldest first.

    A checkpoint whose state cannot be read was cut while it was written, and is passed over.
    """
    numbered = sorted((int(match[1]), path) for path in Path(run_dir).glob("checkpoint-*") if (match := _number(path)))
    return [path for _, path in numbered if _is_whole(path)]


def find_last_checkpoint(run_dir: str | Path) -> Path | None:
    """Return the newest whole `checkpoint-N` of a run, or None."""
    return next(reversed(find_checkpoints(run_dir)), None)


def read_step(checkpoint_dir: Path) -> int:
    """Return the number of optimizer steps that a checkpoint has behind it."""
    return _read_state(checkpoint_dir)["global_step"]


def read_history(checkpoint_dir: Path) -> list[dict[str, Any]]:
    """Return what the run logged up to a checkpoint, one dictionary an interval."""
    return _read_state(checkpoint_dir)["log_history"]


def _read_state(checkpoint_dir: Path) -> dict[str, Any]:
    return json.loads((checkpoint_dir / STATE_FILE).read_text(encoding="utf-8"))


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


def _number(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.name)


def _is_whole(path: Path) -> bool:
    try:
        read_step(path)
    except (OSError, ValueError, KeyError):
        return False
    return True
