"""What a run will take, before it starts: parameters, operations, memory of a device, time and price."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.models.electra.modeling_electra import ElectraAttention

from kcelectra.pretraining.configuration import KcElectraConfig
from kcelectra.pretraining.modeling import KcElectraForPreTraining, MaskedHead

OPTIMIZER_BYTES = 8  # a parameter: both moments of Adam, float32
PARTS: dict[type[nn.Module], str] = {ElectraAttention: "attention", MaskedHead: "masked head"}


@dataclass(frozen=True)
class Device:
    """An accelerator, or a part of a machine, that a run is planned for.

    Args:
        name: in words.
        precision: float32, bfloat16 or float16; what it multiplies in.
        teraflops: its peak there, of each unit; dense.
        gibibytes: memory of each unit; None where it is that of the machine.
        utilisation: share of the peak that training reaches, by the formula of `training_flops_per_row`.
        basis: of the utilisation.
        dollars_per_hour: of all units; an assumption, the list prices of 2025.
        num_units: that each take rows of their own.
        fuses_attention: its kernels do not write the attention weights down.
    """

    name: str
    precision: str
    teraflops: float
    gibibytes: float | None
    utilisation: float
    basis: str
    dollars_per_hour: float
    num_units: int = 1
    fuses_attention: bool = True


OUR_H200 = "measured on one H200, base, rows of 512"
LIKE_H200 = f"assumption: as {OUR_H200}"
LIKE_V3 = "assumption: as reported for a TPU v3-8"
#: Peaks and memory from the makers' data sheets (NVIDIA; Google Cloud, "TPU architecture").
DEVICES = {
    "h100": Device("NVIDIA H100 SXM", "bfloat16", 989, 80, 0.30, LIKE_H200, 3.0),
    "h200": Device("NVIDIA H200", "bfloat16", 989, 141, 0.30, OUR_H200, 3.5),
    "a100-80": Device("NVIDIA A100 80 GB", "bfloat16", 312, 80, 0.19, "reported by NVIDIA for its own ELECTRA", 1.8),
    "a100-40": Device("NVIDIA A100 40 GB", "bfloat16", 312, 40, 0.19, "reported by NVIDIA for its own ELECTRA", 1.3),
    "l4": Device("NVIDIA L4", "bfloat16", 121, 24, 0.30, LIKE_H200, 0.7),
    "t4": Device("NVIDIA T4", "float16", 65, 16, 0.30, LIKE_H200, 0.35),
    "tpu-v3-8": Device(
        "TPU v3-8", "bfloat16", 61.5, 16, 0.18, "reported: KcELECTRA-base in 10 days", 8.0, 8, fuses_attention=False
    ),
    "tpu-v5e-8": Device("TPU v5e-8", "bfloat16", 197, 16, 0.18, LIKE_V3, 9.6, 8, fuses_attention=False),
    "tpu-v6e-8": Device("TPU v6e-8", "bfloat16", 918, 32, 0.18, LIKE_V3, 21.6, 8, fuses_attention=False),
    "cpu": Device(
        "core of a CPU",
        "float32",
        0.14,
        None,
        0.30,
        "measured on one core of a Xeon of 2023, AVX-512, size small, rows of 128",
        0.05,
        fuses_attention=False,
    ),
}


def count_parameters(config: KcElectraConfig) -> dict[str, int]:
    """Return the parameters of both halves, those they share, and of the model, which counts these once."""
    with torch.device("meta"):
        model = KcElectraForPreTraining(config)
    generator, discriminator, total = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (model.generator, model.discriminator, model)
    )
    shared = generator + discriminator - total
    return {"generator": generator, "discriminator": discriminator, "shared": shared, "total": total}


def estimate_memory(
    config: KcElectraConfig,
    *,
    num_rows: int,
    max_length: int,
    num_masked: int,
    precision: str = "float32",
    activation_checkpointing: bool = False,
    is_accumulated: bool = False,
    fuses_attention: bool = False,
    is_generator_frozen: bool = False,
) -> dict[str, int]:
    """Say what a training step holds in memory at its fullest moment, by parts.

    The step runs on tensors without contents, each of which is counted for as long as it lives. So a model that
    changes needs no formula that follows it. What a kernel needs for itself, and what an allocator cannot use because
    it is in pieces, is not seen. Compiled code keeps less.

    Args:
        config: of the model.
        num_rows: of a batch.
        max_length: tokens of a row.
        num_masked: masked positions of a row.
        precision: float32, bfloat16 or float16, of the products.
        activation_checkpointing: whether layers compute their activations anew in the backward pass.
        is_accumulated: whether a step has several batches, the gradients of which wait.
        fuses_attention: see `Device`.
        is_generator_frozen: whether the generator only draws.

    Returns:
        Bytes of weights, gradients, optimizer, attention, masked head and other activations.
    """
    config = KcElectraConfig.from_dict(config.to_dict())
    for half in (config.generator_config, config.discriminator_config):
        if fuses_attention:
            half.attention_probs_dropout_prob = 0.0  # the kernel that a CPU has drops nothing
    shapes = {"input_ids": max_length, "masked_positions": num_masked, "masked_labels": num_masked}
    shapes |= dict.fromkeys(("document_ids", "position_ids", "token_type_ids"), max_length)
    dtype = torch.bfloat16 if precision != "float32" else torch.float32
    with FakeTensorMode(), _Allocations() as allocations:
        with allocations.of("weights"):
            model = KcElectraForPreTraining(config).train()
        if is_generator_frozen:
            model.freeze_generator()
        if config.discriminator_weight == 0:
            model.freeze_discriminator()
        if activation_checkpointing:
            model.activation_checkpointing_enable()
        allocations.watch(model)
        batch = {name: torch.zeros(num_rows, width, dtype=torch.int64) for name, width in shapes.items()}
        for _ in range(2 if is_accumulated else 1):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(**batch).loss
            with allocations.of("gradients"):
                loss.backward()
    num_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {**allocations.at_peak, "optimizer": OPTIMIZER_BYTES * num_parameters}


class _Allocations(TorchDispatchMode):
    """Counts the bytes of living tensors, by the part of the step that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "other activations"
        self.living: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._seen: set[int] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count what is made in here as a part's."""
        before, self.part = self.part, part
        yield
        self.part = before

    def watch(self, model: nn.Module) -> None:
        """Count what the modules of `PARTS` make as theirs."""
        for module in model.modules():
            if type(module) in PARTS:
                stack = contextlib.ExitStack()
                part = PARTS[type(module)]
                module.register_forward_pre_hook(lambda *_, stack=stack, part=part: stack.enter_context(self.of(part)))
                module.register_forward_hook(lambda *_, stack=stack: stack.close())

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes(), self.part)
            self.living[self.part] += storage.nbytes()
            if self.living.total() > sum(self.at_peak.values()):
                self.at_peak = dict(self.living)

    def _forget(self, key: int, num_bytes: int, part: str) -> None:
        self._seen.remove(key)
        self.living[part] -= num_bytes
