"""Train the joint model: both losses and their metrics in the log, and one loss for any split of a batch."""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from huggingface_hub import CommitInfo
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from kcelectra.errors import InputError
from kcelectra.pretraining import xla
from kcelectra.pretraining.collator import IGNORED
from kcelectra.pretraining.continuing import GeneratorWarmup
from kcelectra.pretraining.flops import training_flops_per_row
from kcelectra.pretraining.health import HealthCallback
from kcelectra.pretraining.metrics import COUNTED, PretrainingMetrics, compute_metrics
from kcelectra.pretraining.modeling import KcElectraForPreTraining
from kcelectra.pretraining.optimization import (
    DECAY_SHARE,
    falling_temperature,
    leave_out_bias_correction,
    product_schedule,
)
from kcelectra.pretraining.progress import EpochCallback, Interval, OneLineLog, TokensPerSecondProgress
from kcelectra.pretraining.pushing import Pusher, check_push_arguments
from kcelectra.pretraining.recovery import RecoverableTrainer
from kcelectra.pretraining.sharding import gather

logger = logging.getLogger(__name__)


class KcElectraTrainer(RecoverableTrainer):
    """`transformers.Trainer` for `KcElectraForPreTraining`; see `RecoverableTrainer` for what it survives.

    Adds to the log: both losses with the baselines they must beat, the metrics of both halves, tokens per second and
    model FLOPs per second. Divides both losses by the masked positions and tokens of *all* accumulated batches and
    processes, so that the split of a batch does not change the result (the stock Trainer averages means). Dropout and
    Gumbel noise are a function of (seed, step, process), so a resumed run repeats what an uninterrupted one does.

    With `push_to_hub` it pushes as `Pusher` does, which is not the joint model and no pickle.

    Raises:
        InputError: tokenizer and model disagree about the vocabulary, or the arguments name a token or no repository.
    """

    model: KcElectraForPreTraining
    pusher: Pusher | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_push_arguments(self.args)
        vocab_size = self.model.config.discriminator_config.vocab_size
        num_tokens = vocab_size if self.processing_class is None else len(self.processing_class)
        if (
            not set(range(num_tokens, vocab_size)) <= {*self.model.config.unsampled_token_ids}
            or num_tokens > vocab_size
        ):
            raise InputError(
                f"the tokenizer has {num_tokens} tokens, the model {vocab_size}; "
                "build the configuration with vocab_size=len(tokenizer)"
            )
        if self.own.frozen_generator:  # before there is an optimizer
            self.model.freeze_generator()
        if self.model.config.discriminator_weight == 0:
            self.model.freeze_discriminator()
        self.metrics = PretrainingMetrics(vocab_size, device=self.args.device)
        self.generator_warmup = GeneratorWarmup(self.own.generator_warmup_steps or 0)
        self._micro_step = 0
        self.after_save.append(self._push_from_checkpoint)
        self.add_callback(HealthCallback(self.generator_warmup.num_steps))
        if not self._reads_rows:  # the ids of our rows are new in each epoch
            self.add_callback(EpochCallback(self.data_collator))
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TokensPerSecondProgress())
        else:
            self.remove_callback(PrinterCallback)
            self.add_callback(OneLineLog())

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer; without bias correction if the reference's Adam is asked for."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and not self.own.adam_bias_correction:
            if not isinstance(optimizer, torch.optim.Adam):
                kind = OptimizerNames(self.args.optim).value
                raise InputError(f"adam_bias_correction is false, and optim is {kind}; leave one out")
            leave_out_bias_correction(optimizer)
        if self.args.device.type == "xla":
            xla.prepare_optimizer(optimizer)
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the reference's schedule if it is asked for, else what `lr_scheduler_type` names.

        `warmup_stable_decay` (Hu et al. 2024, MiniCPM) falls as 1 - sqrt (Hägele et al. 2024) in the last steps, of
        which `lr_scheduler_kwargs` may give `num_decay_steps`.
        Where a generator is warmed up first, the schedule begins again when the discriminator begins to move.
        """
        optimizer = optimizer or self.optimizer
        num_steps = num_training_steps - self.generator_warmup.num_steps
        warmup_steps = self.args.get_warmup_steps(num_steps)
        if warmup_steps >= num_steps:
            logger.warning(
                "the learning rate rises for %d steps of %d and never reaches its peak; give fewer --warmup_steps",
                warmup_steps,
                num_steps,
            )
        if self.lr_scheduler is None and self.own.product_schedule and optimizer is not None:
            self.lr_scheduler = LambdaLR(
                optimizer, lambda step: product_schedule(step, warmup_steps=warmup_steps, max_steps=num_steps)
            )
            self._created_lr_scheduler = True
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            given, decay_steps = self.args.lr_scheduler_kwargs or {}, round(DECAY_SHARE * num_steps)
            assert isinstance(given, dict)  # the arguments parse what was text
            self.args.lr_scheduler_kwargs = {"num_decay_steps": decay_steps, "decay_type": "1-sqrt", **given}
        try:
            scheduler = super().create_scheduler(num_steps, optimizer)
        except (TypeError, ValueError) as error:
            kind = SchedulerType(self.args.lr_scheduler_type).value
            raise InputError(
                f"{kind} does not take lr_scheduler_kwargs {self.args.lr_scheduler_kwargs}: {error}; give others"
            ) from error
        if self.generator_warmup.num_steps:
            if num_steps <= 0 or not isinstance(scheduler, LambdaLR):
                raise InputError(
                    f"generator_warmup_steps {self.generator_warmup.num_steps} of {num_training_steps} steps with "
                    f"lr_scheduler_type {self.args.lr_scheduler_type}; give fewer --generator_warmup_steps, and a "
                    "schedule that is a function of the step, such as linear"
                )
            scheduler.lr_lambdas = [
                self.generator_warmup.schedule(base, warmup_steps=warmup_steps) for base in scheduler.lr_lambdas
            ]
        return scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Collect the batches of an optimizer step, whose losses are divided by what all of them hold."""
        self._batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_step = 0
        return self._batches, None

    def _count_step(self) -> dict[str, torch.Tensor]:
        """Return the divisors of both losses, over all batches of the step."""
        counts = [
            sum((batch["masked_labels"] != IGNORED).sum() for batch in self._batches),
            sum((batch["document_ids"] > 0).sum() for batch in self._batches),
        ]
        num_masked, num_tokens = self.reduce(torch.stack(counts).to(self.args.device))
        return {"num_masked": num_masked, "num_tokens": num_tokens}

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Seed dropout and Gumbel noise for this step, then do what the stock Trainer does."""
        key = (self.args.seed, self.state.global_step, self._micro_step, self.args.process_index)
        set_seed(_hash_seed(key))
        if self._micro_step == 0:  # not before, or accelerate would execute it as a graph of its own on a TPU
            self._divisors = self._count_step()
        self._micro_step += 1
        loss = super().training_step(model, {**inputs, **self._divisors}, num_items_in_batch)
        if self.generator_warmup.holds(self.state.global_step):
            self.generator_warmup.drop_gradients(self.accelerator.unwrap_model(model))
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss, a share of the optimizer step's; undo the divisions that assume a mean."""
        output = model(**inputs, **(self._options() if model.training else {}))
        loss = output.loss
        if model.training:
            self.metrics.update(output, inputs)
            loss = loss * self.current_gradient_accumulation_steps * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _options(self) -> dict[str, Any]:
        """Return how the model is to compute a step: a function of its number, so that a resumed run does the same."""
        step, options = self.state.global_step, dict[str, Any](short_length=self._short_length())
        if self.generator_warmup.holds(step):
            options["generator_only"] = True
        if self.own.frozen_generator:
            initial = self.own.initial_temperature
            temperature = falling_temperature(step, max_steps=self.state.max_steps, initial=initial)
            options["sampling_temperature"] = torch.tensor(temperature).to(self.args.device, non_blocking=True)
        return options

    def _short_length(self) -> int | None:
        share = self.own.short_length_steps
        num_steps = math.ceil(share * self.state.max_steps) if share < 1 else share
        return self.own.short_length if self.state.global_step < num_steps else None

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        if self.generator_warmup.num_steps == self.state.global_step > 0:
            self.guard.forget()  # the loss of the discriminator comes in
        return super()._get_grad_norm(model, grad_norm=grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the interval to a training log."""
        if "loss" in logs:
            logs.update(self._interval_metrics())
        super().log(logs, start_time)

    def _interval_metrics(self) -> dict[str, float]:
        sums = [self.reduce(tensor).cpu() for tensor in self.metrics.tensors()]
        metrics, seconds = compute_metrics(*sums), self._interval.elapsed()
        num_tokens, flos = int(sums[1][COUNTED.index("tokens")]), self.state.total_flos - self._interval.flos
        metrics |= {
            "skipped_steps": self.guard.read().skipped,
            "input_wait_share": self._interval.input_seconds / seconds,
            "tokens_per_second": num_tokens / seconds,
            "flops_per_token": flos / num_tokens if num_tokens else math.nan,
            "teraflops_per_second": flos / seconds / 1e12,
        }
        metrics = self._used(metrics, generator_only=self.generator_warmup.holds(self.state.global_step - 1))
        self.metrics.reset()
        xla.run_graph()  # or the next step would be of another graph
        self._interval = Interval(flos=self.state.total_flos)
        return metrics

    def _used(self, metrics: dict[str, float], *, generator_only: bool = False) -> dict[str, float]:
        """Return metrics with the loss, over restarts and without skipped steps; none of what does not run."""
        config = self.model.config
        if config.discriminator_weight == 0:  # nothing is drawn for it either
            unused = "discriminator", "fake", "sampled"
            metrics = {key: value for key, value in metrics.items() if not key.startswith(unused)}
            return metrics | {"loss": config.generator_weight * metrics["generator_loss"]}
        if generator_only:
            return metrics
        losses = metrics["generator_loss"], metrics["discriminator_loss"]
        return metrics | {"loss": config.generator_weight * losses[0] + config.discriminator_weight * losses[1]}

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute losses and metrics of rows that are not trained on, with the same masks and draws each time.

        Of several processes the last rows count twice where they do not fill a batch of all.
        """
        began, epoch = time.perf_counter(), self.data_collator.epoch
        metrics = PretrainingMetrics(len(self.metrics.token_counts), device=self.args.device)
        self.data_collator.set_epoch(0)
        set_seed(self.args.seed)
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for batch in dataloader:
                metrics.update(self.model(**batch), batch)
        self.data_collator.set_epoch(epoch)
        values = self._used(compute_metrics(*(self.reduce(tensor).cpu() for tensor in metrics.tensors())))
        self._interval.start += time.perf_counter() - began  # which is not training
        named = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        return EvalLoopOutput(np.empty(0), None, named, num_samples=self.num_examples(dataloader))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._gather_metrics()
        super()._save_checkpoint(model, trial)

    def _gather_metrics(self) -> None:
        """Let the main process, which saves, have the sums of all."""
        if self.args.world_size > 1:
            sums = [self.reduce(tensor) for tensor in self.metrics.tensors()]
            for tensor, total in zip(self.metrics.tensors(), sums, strict=True):
                tensor.copy_(total if self.is_world_process_zero() else torch.zeros_like(total))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self.is_world_process_zero():
            for tensor in self.metrics.tensors():
                tensor.zero_()

    def _owners(self) -> dict[str, Any]:
        return {**super()._owners(), "metrics": self.metrics}

    def init_hf_repo(self) -> None:  # type: ignore[override]  # no token
        """See before a step is trained that there is a repository to push to."""
        if self.is_world_process_zero():
            self.pusher = Pusher(self.args)

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = None, revision: str | None = None
    ) -> CommitInfo | None:
        """Push the model as it is now, and wait for it; `revision` is a tag. See `Pusher.push`.

        Every process of a sharded run must ask.
        """
        model = self.accelerator.unwrap_model(self.model)
        if self.is_sharded:
            weights = gather(self._weights(), keep=self.is_world_process_zero())
        if not self.is_world_process_zero():
            return None
        if self.pusher is None:  # without `push_to_hub` in the arguments
            self.init_hf_repo()
        assert self.pusher is not None and self.processing_class is not None
        if self.is_sharded:
            model = KcElectraForPreTraining(model.config)
            model.load_state_dict(weights, strict=False)  # without those that are tied
        return self.pusher.push_model(
            model, self.processing_class, step=self.state.global_step, message=commit_message, tag=revision
        )

    def _push_from_checkpoint(self, checkpoint_folder: Path) -> None:  # type: ignore[override]
        if self.pusher is not None and self.args.hub_strategy != HubStrategy.END:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self.pusher.begin(checkpoint_folder)

    def _finish_current_push(self) -> None:
        self.writer.wait()
        if self.pusher is not None:
            self.pusher.finish()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of a batch by the formula of `training_flops_per_row`."""
        num_rows, max_length = inputs["input_ids"].shape
        num_masked = inputs["masked_positions"].shape[1]
        return num_rows * training_flops_per_row(
            self.model.config,
            max_length=max_length,
            num_masked=num_masked,
            num_seen=self._short_length(),
            is_generator_frozen=self.own.frozen_generator,
            is_discriminator_frozen=self.generator_warmup.holds(self.state.global_step),
        )


def _hash_seed(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])
