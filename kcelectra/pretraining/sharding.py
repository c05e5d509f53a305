"""Weights and moments spread over the processes of a run, and whole again in its checkpoints."""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only
from transformers.models.electra.modeling_electra import ElectraLayer
from transformers.utils import SAFE_WEIGHTS_NAME

ASKED_BY = "ACCELERATE_USE_FSDP"  # what `accelerate launch` sets where its configuration says FSDP


def shard_model(model: nn.Module, *, device: torch.device) -> None:
    """Spread the weights of a model over all processes, in place; those of the first are taken.

    Each layer is a unit, which is put together when it is computed. What is left is one more, and stays together from
    forward to backward: it holds the tables that both halves use, which no second unit may see. That is why accelerate
    cannot do it, which makes a unit of the input embedding; nor does it shard anything on a CPU.

    Args:
        model: nothing happens if it is sharded already.
        device: of the model.
    """
    if isinstance(model, FSDPModule):
        return
    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), src=0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in [*(module for module in model.modules() if isinstance(module, ElectraLayer)), model]:
        fully_shard(unit, mesh=mesh)
    # of operations in place on what the model returns: there are none
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def gather(state: Any, *, keep: bool) -> Any:
    """Return a state with its sharded tensors whole, in the host's memory; every process must ask.

    Args:
        state: tensors in dictionaries, lists and tuples, beside other values.
        keep: whether this process wants them; if not, it gets None in their place.
    """

    def make_whole(tensor: DTensor) -> Tensor | None:
        whole = tensor.full_tensor()
        return whole.cpu() if keep else None

    return tree_map_only(DTensor, make_whole, state)


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return what this process has of a tensor if its parameter is sharded, else the tensor."""
    if not isinstance(parameter, DTensor):
        return tensor
    tensor = tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def load_weights(model: nn.Module, checkpoint: str | Path, *, is_xla: bool) -> None:
    """Load the weights of a checkpoint, of which each process takes what it has."""
    path = Path(checkpoint, SAFE_WEIGHTS_NAME)
    parameters = dict(model.named_parameters())
    is_sharded = any(isinstance(each, DTensor) for each in parameters.values())  # it goes back: not at the start
    if is_xla or is_sharded:  # safetensors cannot see which weights of XLA are tied
        weights = {name: shard_like(weight, parameters[name]) for name, weight in load_file(path).items()}
        model.load_state_dict(weights, strict=False)  # without those that are tied
    else:
        load_model(model, path)
