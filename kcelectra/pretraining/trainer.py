"""The stock Trainer, with both losses and their metrics in the log, and one loss for any split of a batch."""

import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from huggingface_hub import CommitInfo
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import HubStrategy
from transformers.utils import is_torch_xla_available

from kcelectra.errors import InputError
from kcelectra.pretraining.collator import IGNORED, DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.metrics import COUNTED, PretrainingMetrics, compute_metrics
from kcelectra.pretraining.modeling import KcElectraForPreTraining
from kcelectra.pretraining.plain_checkpoint import load_states
from kcelectra.pretraining.progress import EpochCallback, OneLineLog, TokensPerSecondProgress
from kcelectra.pretraining.pushing import Pusher, check_push_arguments

CORRECTED_AFTER = 1e6  # steps after which the bias correction of Adam is 1 in float32; 0.999 ** 1e6 is 0
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass
class PretrainingArguments(TrainingArguments):
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
    precision: str = field(
        default="auto",
        metadata={"help": "auto (what the device computes fast), float32, bfloat16 or float16."},
    )
    product_schedule: bool = field(
        default=False,
        metadata={"help": "Multiply warm-up and decay, as the reference does: its peak is a little lower."},
    )
    adam_bias_correction: bool = field(
        default=True, metadata={"help": "Correct the moments of Adam for their start at 0; the reference does not."}
    )

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; use one of {', '.join(PRECISIONS)}")
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        # without this the parent refuses bfloat16 on a machine that has only a CPU
        self.use_cpu = self.use_cpu or not (torch.accelerator.is_available() or is_torch_xla_available())
        if not self.bf16 and not self.fp16:
            precision = choose_precision(use_cpu=self.use_cpu) if self.precision == "auto" else self.precision
            self.bf16, self.fp16 = precision == "bfloat16", precision == "float16"
        super().__post_init__()
        check_push_arguments(self)


def choose_precision(*, use_cpu: bool = False) -> str:
    """Return the fastest of float32, bfloat16 and float16 that the device computes in hardware."""
    if torch.cuda.is_available() and not use_cpu:
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if os.environ.get("PJRT_DEVICE") == "TPU":
        return "bfloat16"
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return "bfloat16" if is_x86 and torch.cpu._is_avx512_bf16_supported() else "float32"


def product_schedule(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Return the reference's learning rate as a share of its peak: decay times warm-up, from the first step on.

    Source: google-research/electra `optimization.create_optimizer`.
    """
    return max(0.0, 1 - step / max_steps) * min(1.0, step / max(1, warmup_steps))


class KcElectraTrainer(Trainer):
    """`transformers.Trainer` for `KcElectraForPreTraining`.

    Adds to the log: both losses with the baselines they must beat, the metrics of both halves, tokens per second and
    model FLOPs per second. Divides both losses by the masked positions and tokens of *all* accumulated batches and
    processes, so that the split of a batch does not change the result (the stock Trainer averages means). Dropout and
    Gumbel noise are a function of (seed, step, process), so a resumed run repeats what an uninterrupted one does.

    With `push_to_hub` it pushes as `Pusher` does, which is not the joint model and no pickle.

    Raises:
        InputError: tokenizer and model disagree about the vocabulary, or the arguments name a token or no repository.
    """

    model: KcElectraForPreTraining
    processing_class: PreTrainedTokenizerBase | None
    data_collator: DataCollatorForReplacedTokenDetection
    train_dataset: Any
    pusher: Pusher | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_push_arguments(self.args)
        vocab_size = self.model.config.discriminator_config.vocab_size
        if self.processing_class is not None and len(self.processing_class) != vocab_size:
            raise InputError(
                f"the tokenizer has {len(self.processing_class)} tokens, the model {vocab_size}; "
                "build the configuration with vocab_size=len(tokenizer)"
            )
        self.metrics = PretrainingMetrics(vocab_size, device=self.args.device)
        self._micro_step = 0
        self._interval_start = time.perf_counter()
        self._interval_flos = 0.0
        self.add_callback(EpochCallback(self.data_collator))
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TokensPerSecondProgress())
        else:
            self.remove_callback(PrinterCallback)
            self.add_callback(OneLineLog())

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer; without bias correction if the reference's Adam is asked for."""
        optimizer = super().create_optimizer(model)
        if isinstance(self.args, PretrainingArguments) and not self.args.adam_bias_correction:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[parameter] = {
                    "step": torch.tensor(CORRECTED_AFTER),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the reference's schedule if it is asked for, else what `lr_scheduler_type` names."""
        optimizer = optimizer or self.optimizer
        is_product = isinstance(self.args, PretrainingArguments) and self.args.product_schedule
        if self.lr_scheduler is None and is_product and optimizer is not None:
            warmup_steps = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = LambdaLR(
                optimizer,
                lambda step: product_schedule(step, warmup_steps=warmup_steps, max_steps=num_training_steps),
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Collect the batches of an optimizer step, and give each the divisors of both losses over all of them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            counts = torch.stack(
                [
                    sum((batch["masked_labels"] != IGNORED).sum() for batch in batches),
                    sum((batch["document_ids"] > 0).sum() for batch in batches),
                ]
            ).to(device)
            num_masked, num_tokens = self.accelerator.reduce(counts, reduction="sum")
            batches = [{**batch, "num_masked": num_masked, "num_tokens": num_tokens} for batch in batches]
        self._micro_step = 0
        return batches, None

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Seed dropout and Gumbel noise for this step, then do what the stock Trainer does."""
        key = (self.args.seed, self.state.global_step, self._micro_step, self.args.process_index)
        set_seed(_hash_seed(key))
        self._micro_step += 1
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss, a share of the optimizer step's; undo the divisions that assume a mean."""
        output = model(**inputs)
        loss = output.loss
        if model.training:
            self.metrics.update(output, inputs)
            loss = loss * self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the interval to a training log."""
        if "loss" in logs:
            logs.update(self._interval_metrics())
        super().log(logs, start_time)

    def _interval_metrics(self) -> dict[str, float]:
        sums = [self.accelerator.reduce(tensor, reduction="sum") for tensor in self.metrics.tensors()]
        metrics = compute_metrics(*sums)
        seconds = time.perf_counter() - self._interval_start
        num_tokens, flos = int(sums[1][COUNTED.index("tokens")]), self.state.total_flos - self._interval_flos
        self.metrics.reset()
        self._interval_start, self._interval_flos = time.perf_counter(), self.state.total_flos
        return {
            **metrics,
            "tokens_per_second": num_tokens / seconds,
            "flops_per_token": flos / num_tokens,
            "teraflops_per_second": flos / seconds / 1e12,
        }

    def init_hf_repo(self) -> None:  # type: ignore[override]  # no token
        """See before a step is trained that there is a repository to push to."""
        if self.is_world_process_zero():
            self.pusher = Pusher(self.args)

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = None, revision: str | None = None
    ) -> CommitInfo | None:
        """Push the model as it is now, and wait for it; `revision` is a tag. See `Pusher.push`."""
        if not self.is_world_process_zero():
            return None
        if self.pusher is None:  # without `push_to_hub` in the arguments
            self.init_hf_repo()
        assert self.pusher is not None and self.processing_class is not None
        model = self.accelerator.unwrap_model(self.model)
        return self.pusher.push_model(
            model, self.processing_class, step=self.state.global_step, message=commit_message, tag=revision
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.pusher is not None and self.args.hub_strategy != HubStrategy.END:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self.pusher.begin(Path(checkpoint_folder))

    def _finish_current_push(self) -> None:
        if self.pusher is not None:
            self.pusher.finish()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            owners = {"optimizer": self.optimizer, "scheduler": self.lr_scheduler, "scaler": self.accelerator.scaler}
            load_states(Path(checkpoint), owners)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of a batch by the formula of `training_flops_per_row`."""
        num_rows, max_length = inputs["input_ids"].shape
        num_masked = inputs["masked_positions"].shape[1]
        return num_rows * training_flops_per_row(self.model.config, max_length=max_length, num_masked=num_masked)


def _hash_seed(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
