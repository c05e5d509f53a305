"""`run.json`: what ran. The resolved arguments, every start with where and on what, and how each ended."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from kcelectra.corpus.workers import num_cores
from kcelectra.errors import InputError
from kcelectra.manifest import RECORDED_PACKAGES, to_json, write_atomically

RECORD_FILE = "run.json"
#: Parts of what a run goes on from, and what it means that one has changed.
FINGERPRINTS = {
    "data": "the rows that come next would not be those of the run",
    "tokenizer": "the ids would mean other tokens",
    "config": "the weights belong to another architecture or objective",
    "code": "the same rows and weights may give other results",
}
_CODE = ("transformers", "torch", "accelerate")
_COMPUTES_NOTHING = {"architectures", "dtype", "transformers_version"}  # of a configuration


class RunRecord:
    """The record of a run's directory; only the main process writes it.

    Args:
        run_dir: of the run.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir, RECORD_FILE)

    def begin(
        self,
        *,
        arguments: dict[str, Any],
        fingerprints: dict[str, Any],
        device: torch.device,
        num_processes: int,
        **facts: Any,
    ) -> None:
        """Add a start. One without an `end` was killed."""
        record = read_record(self.path.parent)
        start = {
            "time": _now(),
            "host": platform.node(),
            "process": os.getpid(),
            "device": str(device),
            "hardware": describe_hardware(device, num_processes),
            "num_processes": num_processes,
            **facts,
            "fingerprints": fingerprints,
            "versions": {package: version(package) for package in RECORDED_PACKAGES},
        }
        self._write({"arguments": arguments, "starts": [*record["starts"], start]})

    def end(self, how: str, *, step: int) -> None:
        """Say how the last start ended."""
        record = read_record(self.path.parent)
        record["starts"][-1]["end"] = {"time": _now(), "step": step, "how": how}
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, to_json(record, indent=2) + "\n")


def read_record(run_dir: str | Path) -> dict[str, Any]:
    """Return the record of a run, one without a start if there is none."""
    path = Path(run_dir, RECORD_FILE)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"arguments": {}, "starts": []}


def describe_hardware(device: torch.device, num_processes: int) -> str:
    """Return what the processes compute on, such as `2 x NVIDIA H100 80GB HBM3`."""
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{num_processes} x {name}"
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpus.read_text(), re.MULTILINE) if cpus.exists() else None
    return f"{num_cores()} cores of {model[1] if model else platform.machine()}"


def code_fingerprint() -> dict[str, str]:
    """Return what computes: this package by its version and its files, and the libraries by their versions."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*root.glob("pretraining/*.py"), *root.glob("corpus/*.py"), *root.glob("tokenization/*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    packages = {package: version(package) for package in ("kcelectra", *_CODE)}
    return {**packages, "kcelectra files": digest.hexdigest()}


def config_fingerprint(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what of a configuration computes something, its parts' included."""
    return _without(json.loads(config.to_json_string(use_diff=False)), _COMPUTES_NOTHING)


def compare_fingerprints(
    before: dict[str, Any], now: dict[str, Any], *, allowed: Sequence[str], checkpoint: str
) -> list[str]:
    """See that a run goes on with what it began with.

    Args:
        before: fingerprints of the checkpoint.
        now: of the run that would go on from it.
        allowed: parts that may have changed.
        checkpoint: its name, for the message.

    Returns:
        What has changed and may.

    Raises:
        InputError: something else has; the message says what, and what allows it.
    """
    changes = {}
    for part in FINGERPRINTS:
        differing = list(_differences(before.get(part), now.get(part)))
        if differing:
            changes[part] = f"{part} ({'; '.join(differing)})"
    refused = [part for part in changes if part not in allowed]
    if refused:
        raise InputError(
            f"{checkpoint} was made with other things than are here: {', '.join(changes[part] for part in refused)}. "
            + " ".join(f"With other {part}, {FINGERPRINTS[part]}." for part in refused)
            + f" Bring back what was there, or go on all the same with --allow_changed {' '.join(changes)}"
        )
    return list(changes.values())


def _without(config: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {
        key: _without(value, keys) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in keys and not key.startswith("_")
    }


def _differences(before: Any, now: Any, name: str = "") -> Any:
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    else:
        yield f"{name + ': ' if name else ''}{_shorten(before)} then, {_shorten(now)} now"


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
