"""A checkpoint without a pickle, to be pushed and gone on from."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

STATES_FILE = "states.safetensors"
PICKLES = {"optimizer": "optimizer.pt", "scheduler": "scheduler.pt", "scaler": "scaler.pt"}
PLAIN_SUFFIXES = (".json", ".safetensors", ".txt")


def copy_plainly(checkpoint_dir: Path, output_dir: Path) -> None:
    """Copy a checkpoint, with the states of optimizer, schedule and scaler in one safetensors file.

    The arguments and the states of random generators are left out: who goes on gives the arguments, and every step
    seeds anew.
    """
    output_dir.mkdir()
    for path in sorted(checkpoint_dir.iterdir()):
        if path.suffix in PLAIN_SUFFIXES:
            shutil.copyfile(path, output_dir / path.name)
    states = {
        name: torch.load(checkpoint_dir / file, map_location="cpu", weights_only=True)
        for name, file in PICKLES.items()
        if (checkpoint_dir / file).is_file()
    }
    tensors = {}
    for number, state in states.get("optimizer", {}).get("state", {}).items():
        for name in [name for name, value in state.items() if isinstance(value, torch.Tensor)]:
            tensors[f"{number}.{name}"] = state.pop(name).contiguous()
    save_file(tensors, output_dir / STATES_FILE, metadata={"states": json.dumps(states)})


def load_states(checkpoint_dir: Path, owners: Mapping[str, Any]) -> None:
    """Load the states that `copy_plainly` wrote, if it did.

    Args:
        checkpoint_dir: a checkpoint.
        owners: optimizer, scheduler and scaler by these names.
    """
    path = checkpoint_dir / STATES_FILE
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        states = json.loads(file.metadata()["states"])
        moments = {int(number): state for number, state in states["optimizer"]["state"].items()}  # JSON has no number
        for key in file.keys():
            number, _, name = key.partition(".")
            moments[int(number)][name] = file.get_tensor(key)
    states["optimizer"]["state"] = moments
    for name, state in states.items():
        owners[name].load_state_dict(state)
