"""XLA devices, such as TPUs: one process drives all of them, and the rows of a batch are shared out among them.

Nothing here does anything where torch_xla is not installed.
"""

import os
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_torch_xla_available

from kcelectra.errors import InputError

IS_THERE = is_torch_xla_available()
if IS_THERE:
    import torch_xla
    from torch_xla import runtime
    from torch_xla.core.xla_model import send_cpu_data_to_device
    from torch_xla.distributed.spmd import Mesh, ShardingSpec
    from torch_xla.utils.checkpoint import checkpoint


def use_all_devices() -> None:
    """Let this process drive every XLA device, if there are any; before anything else touches one.

    Raises:
        InputError: several processes were started, which do not share out rows here.
    """
    if not IS_THERE:
        return
    ours, all_devices = runtime.addressable_runtime_device_count(), runtime.global_runtime_device_count()
    if runtime.local_process_count() > 1 or ours < all_devices:
        raise InputError(
            f"this is one of several processes that share {all_devices} XLA devices, of which it has {ours}; start a "
            "single one, on one machine, with `python recipes/pretrain.py`: it drives all devices of that machine"
        )
    if ours > 1:
        runtime.use_spmd()
    # torch_xla reads these once, with its first tensor; accelerate sets them on a TPU for bfloat16, and then weights,
    # moments and the noise of the draws would all have 8 bits
    os.environ |= {"XLA_USE_BF16": "0", "XLA_DOWNCAST_BF16": "0"}
    torch.zeros(1, device=torch_xla.device())


def is_tpu() -> bool:
    """Say whether torch_xla computes on a TPU."""
    return IS_THERE and runtime.device_type() == "TPU"


def num_devices() -> int:
    """Return how many devices share the rows of a batch."""
    return runtime.global_runtime_device_count() if IS_THERE and runtime.is_spmd() else 1


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Put a batch on a device, the rows of (batch, ...) tensors of two dimensions shared out if there are several."""
    if num_devices() > 1:
        return send_cpu_data_to_device(batch, device, _share_rows())
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


@cache
def _share_rows() -> "ShardingSpec":
    devices = np.arange(num_devices())
    return ShardingSpec(Mesh(devices, (len(devices), 1), ("rows", "columns")), ("rows", None))


def run_graph() -> None:
    """Let the devices begin with all that was asked of them since the last call; does not wait for them."""
    if IS_THERE:
        torch_xla.sync()


def prepare_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam count its steps on the device: on the host each count would be a constant of another graph."""
    for group in optimizer.param_groups:
        group["capturable"] = True


@torch.no_grad()
def undo_if(is_bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let the next step of an optimizer, whose states begin at 0, change nothing if it is bad; decided on the device.

    Args:
        is_bad: scalar, 1 for a bad step and 0 for a good one.
        optimizer: not wrapped.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights = [parameter.clone() for parameter in parameters]
    states = [{name: value.clone() for name, value in optimizer.state[each].items()} for each in parameters]
    is_still = optimizer.param_groups[0]["lr"] == 0  # by which a `capturable` Adam divides

    def undo(*_: Any) -> None:
        handle.remove()
        for parameter, weight, state in zip(parameters, weights, states, strict=True):
            parameter.copy_(weight if is_still else torch.where(is_bad > 0, weight, parameter))
            for name, value in optimizer.state[parameter].items():
                value.copy_(torch.where(is_bad > 0, state.get(name, 0.0), value))

    handle = optimizer.register_step_post_hook(torch.no_grad()(undo))


def prepare_model(model: torch.nn.Module) -> None:
    """Replace in place what torch_xla computes badly or not at all; no parameter changes.

    It normalises a layer as a batch of as many channels as there are tokens, for which each device gathers the rows of
    all others and computes them too (seen in the compiled step). And PyTorch's own way to compute activations twice
    fails there.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.forward = partial(_normalize, module)  # type: ignore[method-assign]
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=True)  # type: ignore[assignment]


def _normalize(norm: torch.nn.LayerNorm, input: Tensor) -> Tensor:
    with torch.autocast(input.device.type, enabled=False):
        input = input.float()
        variance, mean = torch.var_mean(input, dim=-1, correction=0, keepdim=True)
        return (input - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias
