"""What optimizer, schedule, scaler and guard know, in one file that runs no code when it is loaded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kcelectra.errors import InputError
from kcelectra.pretraining.sharding import shard_like

STATES_FILE = "states.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam: each has the shape of its parameter


def save_states(directory: str | Path, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `states.safetensors`: the tensors by their place, the rest as JSON beside them.

    Args:
        directory: of a checkpoint.
        states: what `state_dict()` gives, by the name of its owner: tensors of any shape and dtype, numbers, texts,
            truth values and None, in dictionaries, lists and tuples.

    Raises:
        TypeError: there is something else in a state.
    """
    tensors: dict[str, Tensor] = {}
    packed = {name: _pack(state, name, tensors) for name, state in states.items()}
    addresses = set()
    for place, tensor in tensors.items():  # a file cannot hold two that share their memory
        address = tensor.untyped_storage().data_ptr()
        if address in addresses:
            tensors[place] = tensor.clone()
        addresses.add(address)
    save_file(tensors, Path(directory, STATES_FILE), metadata={"states": json.dumps(packed)})


def load_states(checkpoint_dir: str | Path, owners: Mapping[str, Any]) -> None:
    """Give each owner the state that `save_states` wrote for it.

    Args:
        checkpoint_dir: a checkpoint that was verified.
        owners: what has `load_state_dict`, by the names that `save_states` got; one that is None is not there.

    Raises:
        InputError: the file is not there, holds the states of other owners, or one does not fit, such as that of an
            optimizer with other parameters.
    """
    path = Path(checkpoint_dir, STATES_FILE)
    if not path.is_file():
        raise InputError(f"{checkpoint_dir} has no {STATES_FILE}, it was not written to go on from; give another")
    owners = {name: owner for name, owner in owners.items() if owner is not None}
    with safe_open(path, framework="pt") as file:
        packed = json.loads(file.metadata()["states"])
        if packed.keys() != owners.keys():
            raise InputError(
                f"{path} holds the states of {', '.join(packed)}, this run has {', '.join(owners)}; "
                "give the arguments that the checkpoint was trained with, --precision and --optim among them"
            )
        # a copy: a tensor that is mapped would keep the file on the disk after its checkpoint is deleted
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    for name, owner in owners.items():
        state = _unpack(packed[name], tensors)
        try:
            if isinstance(owner, torch.optim.Optimizer):
                _fit(state, owner)
            owner.load_state_dict(state)
        except (ValueError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{path}: the state of the {name} is not of this run: {error}; "
                "give the arguments that the checkpoint was trained with"
            ) from error


@contextmanager
def keep_arguments(optimizer: torch.optim.Optimizer, scheduler: Any) -> Iterator[None]:
    """Let an optimizer that is loaded inside keep its rate, decay and epsilon: those of a checkpoint may be others.

    Args:
        optimizer: as the arguments of this start made it.
        scheduler: of the optimizer; one that is no function of the step keeps what is loaded.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    rates = list(getattr(scheduler, "base_lrs", ()))
    yield
    for group, given in zip(optimizer.param_groups, own, strict=True):
        group.update({name: value for name, value in given.items() if name != "lr"})
    if rates and rates != scheduler.base_lrs:
        for group, before, now in zip(optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
            group["lr"] *= now / before
        scheduler.base_lrs, scheduler._last_lr = rates, [group["lr"] for group in optimizer.param_groups]


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return JSON that stands for a value, and put its tensors where they are to be saved."""
    if isinstance(value, Tensor):
        while place in tensors:  # {1: ..., "1": ...}
            place += "_"
        tensors[place] = value.detach().cpu().contiguous()
        return {"tensor": place}
    if isinstance(value, Mapping):  # JSON turns the key 0 into "0", so keys are values
        return {"items": [[key, _pack(each, f"{place}.{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        packed = [_pack(each, f"{place}.{number}", tensors) for number, each in enumerate(value)]
        return packed if isinstance(value, list) else {"tuple": packed}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place} is of {type(value)}, which no state can hold")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unpack(content, tensors))
    return {key: _unpack(each, tensors) for key, each in content}


def _fit(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Shard moments as their parameters; raise if one has another shape, which `load_state_dict` does not look at."""
    saved = [index for group in state["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(saved, parameters, strict=False):  # `load_state_dict` compares their number
        for name in MOMENTS:
            moment = state["state"].get(index, {}).get(name)
            if moment is None:
                continue
            if moment.shape != parameter.shape:
                raise ValueError(
                    f"{name} of parameter {index} is of {tuple(moment.shape)}, not {tuple(parameter.shape)}"
                )
            state["state"][index][name] = shard_like(moment, parameter)
