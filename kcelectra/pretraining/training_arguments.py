"""Arguments of a pretraining run."""

import os
import platform
import sys
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_xla_available

from kcelectra.errors import InputError
from kcelectra.pretraining.attention import BACK_ENDS
from kcelectra.pretraining.guards import GuardArguments
from kcelectra.pretraining.pushing import check_push_arguments
from kcelectra.pretraining.record import FINGERPRINTS

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass
class OwnArguments(GuardArguments):
    """What `TrainingArguments` does not have."""

    precision: str = field(
        default="auto",
        metadata={"help": "auto (what the device computes fast), float32, bfloat16 or float16."},
    )
    attention: str = field(
        default="auto", metadata={"help": f"Who computes attention: auto (the fastest), {', '.join(BACK_ENDS)}."}
    )
    compile: bool | None = field(
        default=None, metadata={"help": "Compile the layers of the model; on CUDA if not given."}
    )
    product_schedule: bool = field(
        default=False,
        metadata={"help": "Multiply warm-up and decay, as the reference does: its peak is a little lower."},
    )
    adam_bias_correction: bool = field(
        default=True, metadata={"help": "Correct the moments of Adam for their start at 0; the reference does not."}
    )
    total_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Rows of a step over all processes. Gradients are accumulated to reach it, so that a run may go "
            "on with another number of processes."
        },
    )
    generator_warmup_steps: int | None = field(
        default=None,
        metadata={
            "help": "First steps, in which a new generator learns and a released discriminator stays as it is; if not "
            "given, a tenth of all where there are both, else 0."
        },
    )
    input_timeout: int = field(default=3600, metadata={"help": "Seconds to wait for a batch before the run stops."})
    allow_changed: list[str] = field(
        default_factory=list,
        metadata={"help": f"What may have changed since the checkpoint: {', '.join(FINGERPRINTS)}."},
    )


@dataclass
class PretrainingArguments(OwnArguments, TrainingArguments):
    """`TrainingArguments` with the paper's defaults (Clark et al. 2020, table 6) and the reference's choices."""

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate; 5e-4 small, 2e-4 base."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of all weights but biases and LayerNorms."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of Adam."})
    warmup_steps: float = field(default=10_000, metadata={"help": "Steps, or a share of all steps if below 1."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Log NaN as the last average. Do not."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for parameters without a gradient in each step; there are none."}
    )
    disable_tqdm: bool | None = field(
        default=None, metadata={"help": "Print one line for each log; where the output is no terminal if not given."}
    )

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; use one of {', '.join(PRECISIONS)}")
        for part in self.allow_changed:
            if part not in FINGERPRINTS:
                raise InputError(f"allow_changed names {part!r}; use any of {', '.join(FINGERPRINTS)}")
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        # without this the parent refuses bfloat16 on a machine that has only a CPU
        self.use_cpu = self.use_cpu or not (torch.accelerator.is_available() or is_torch_xla_available())
        if not self.bf16 and not self.fp16:
            precision = choose_precision(use_cpu=self.use_cpu) if self.precision == "auto" else self.precision
            self.bf16, self.fp16 = precision == "bfloat16", precision == "float16"
        super().__post_init__()
        if self.total_train_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation(self.total_train_batch_size)
        check_push_arguments(self)

    def _accumulation(self, total: int) -> int:
        rows = self.train_batch_size * self.world_size
        if total < rows or total % rows:
            raise InputError(
                f"total_train_batch_size {total} is no multiple of {rows}, the rows of {self.world_size} processes at "
                f"{self.train_batch_size} each; give another --per_device_train_batch_size or --total_train_batch_size"
            )
        if self.gradient_accumulation_steps not in (1, total // rows):
            raise InputError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}; leave it out, it follows from "
                f"total_train_batch_size {total}"
            )
        return total // rows


def choose_precision(*, use_cpu: bool = False) -> str:
    """Return the fastest of float32, bfloat16 and float16 that the device computes in hardware."""
    if torch.cuda.is_available() and not use_cpu:
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if os.environ.get("PJRT_DEVICE") == "TPU":
        return "bfloat16"
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return "bfloat16" if is_x86 and torch.cpu._is_avx512_bf16_supported() else "float32"
