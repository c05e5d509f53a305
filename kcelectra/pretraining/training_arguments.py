"""Arguments of a pretraining run."""

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_tpu_available

from kcelectra.errors import InputError
from kcelectra.precision import choose_precision
from kcelectra.pretraining import xla
from kcelectra.pretraining.attention import BACK_ENDS
from kcelectra.pretraining.guards import GuardArguments
from kcelectra.pretraining.pushing import check_push_arguments
from kcelectra.pretraining.record import FINGERPRINTS

#: Where a launcher says how many processes it has started: torchrun, Slurm, Open MPI, MPICH.
WORLD_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
#: The least that may be given.
LEAST = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "input_timeout": 1, "seed": 0}
LEAST |= {"generator_warmup_steps": 0, "per_device_eval_batch_size": 1}


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
    frozen_generator: bool = field(
        default=False,
        metadata={
            "help": "Fast-ELECTRA (Dong et al. 2023): leave the --init_generator as it is; needs --embedding_sharing "
            "gdes."
        },
    )
    initial_temperature: float = field(
        default=2.0, metadata={"help": "At which a frozen generator draws at the start; it falls to 1 over the run."}
    )
    short_length: int | None = field(
        default=None,
        metadata={
            "help": "Cut rows into shorter ones of so many tokens in the first steps (Devlin et al. 2019, A.2: 128 of "
            "512)."
        },
    )
    short_length_steps: float = field(
        default=0.9, metadata={"help": "First steps that see short rows; a share of all steps if below 1."}
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
        self._check_numbers()
        for part in self.allow_changed:
            if part not in FINGERPRINTS:
                raise InputError(f"allow_changed names {part!r}; use any of {', '.join(FINGERPRINTS)}")
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = _as_options(self.lr_scheduler_kwargs)
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        # without this the parent refuses bfloat16 on a machine that has only a CPU
        self.use_cpu = self.use_cpu or not (torch.accelerator.is_available() or xla.IS_THERE)
        self._choose_precision()
        if self.optim == OptimizerNames.ADAMW_TORCH_FUSED and (xla.IS_THERE or is_torch_tpu_available()):
            self.optim = OptimizerNames.ADAMW_TORCH  # the fused kernel is there for CPU and CUDA alone
        if self.compile and xla.IS_THERE:
            raise InputError("compile is given, and XLA compiles each step as a whole; leave out --compile")
        xla.use_all_devices()
        self._check_launch(is_alone="MASTER_ADDR" not in os.environ)  # without it no process finds another
        try:
            super().__post_init__()
        except ValueError as error:
            raise InputError(str(error)) from error
        if not (self.bf16 or self.fp16):
            self.mixed_precision = "no"  # else what the launcher was told would hold
        self._n_gpu = min(1, self.n_gpu)  # one process, one device: rows would be scattered over all of them
        self._check_launch(is_alone=self.world_size == 1)
        if self.total_train_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation(self.total_train_batch_size)
        check_push_arguments(self)

    def _choose_precision(self) -> None:
        asked = "bfloat16" if self.bf16 else "float16" if self.fp16 else self.precision
        if self.precision not in ("auto", asked):
            raise InputError(
                f"precision is {self.precision}, and {asked} is asked for too; leave out --bf16 and --fp16"
            )
        precision = choose_precision(asked, use_cpu=self.use_cpu)
        if asked == "auto" and xla.is_tpu():
            precision = "bfloat16"
        self.bf16, self.fp16 = precision == "bfloat16", precision == "float16"

    def _check_numbers(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; give {least} or more")
        for name in ("save_steps", "logging_steps"):
            value = getattr(self, name)
            if value <= 0 or (value > 1 and value != int(value)):
                raise InputError(f"{name} is {value}; give a number of steps, or a share of them as 0.1")
        if self.auto_find_batch_size:
            raise InputError("auto_find_batch_size loses count of the rows; leave it out, and see recipes/plan.py")

    @property
    def train_batch_size(self) -> int:
        """Return the rows of a batch of this process, which may drive several XLA devices."""
        return super().train_batch_size * xla.num_devices()

    def _check_launch(self, *, is_alone: bool) -> None:
        """Raise if this process was started as one of several, which would all write one run, and is alone."""
        started = {name: int(os.environ.get(name, 1)) for name in WORLD_SIZES}
        told = [f"{name} is {size}" for name, size in started.items() if size > 1]
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
            told.append("accelerate launch was asked for several processes")  # and started one, as with --cpu
        if told and is_alone:
            raise InputError(
                f"{told[0]}, but this process knows of no other and would train alone; start with `accelerate launch "
                "--config_file recipes/accelerate/multi_gpu.yaml --num_processes N recipes/pretrain.py`, on CPUs with "
                "multi_cpu.yaml, on several machines with multi_node.yaml once on each; or for one process with "
                "cpu.yaml, gpu.yaml, tpu.yaml or xla.yaml, without --num_processes"
            )
        if self.fsdp:
            raise InputError(
                "fsdp is given; leave it out, and start with `accelerate launch --config_file "
                "recipes/accelerate/fsdp.yaml recipes/pretrain.py`"
            )

    def _accumulation(self, total: int) -> int:
        rows = self.train_batch_size * self.world_size
        if total < rows or total % rows:
            raise InputError(
                f"total_train_batch_size {total} is no multiple of {rows}, the rows of {self.world_size} processes at "
                f"{self.train_batch_size} each; give another --per_device_train_batch_size or --total_train_batch_size"
            )
        if self.gradient_accumulation_steps not in (1, total // rows):
            raise InputError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, and follows from "
                f"total_train_batch_size {total}; give --gradient_accumulation_steps 1"
            )
        return total // rows


def _as_options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except json.JSONDecodeError:
        options = None
    if not isinstance(options, dict):
        raise InputError(f"lr_scheduler_kwargs is {text!r}; give JSON such as '{{\"num_decay_steps\": 5000}}'")
    return options
