"""A Trainer whose runs cannot be lost: exact data, verified checkpoints, guarded updates, agreed stops."""

import copy
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, parse_flag_from_env, patch_environment
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy, TrainOutput

from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest
from kcelectra.pretraining import xla
from kcelectra.pretraining.checkpoints import STATE_FILE, choose_checkpoint, read_step
from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.guards import Rewind, UpdateGuard, require_finite, skip_update
from kcelectra.pretraining.packed import PackedRows
from kcelectra.pretraining.progress import Interval
from kcelectra.pretraining.record import (
    RunRecord,
    code_fingerprint,
    compare_fingerprints,
    config_fingerprint,
)
from kcelectra.pretraining.row_loader import RowLoader
from kcelectra.pretraining.saving import CheckpointWriter
from kcelectra.pretraining.sharding import ASKED_BY, gather, load_weights, shard_model
from kcelectra.pretraining.signals import EXIT_STATUS, StopSignals
from kcelectra.pretraining.states import keep_arguments, load_states, save_states
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.pretraining.training_arguments import OwnArguments
from kcelectra.tokenization import hash_tokenizer, save_tokenizer

logger = logging.getLogger(__name__)


class RecoverableTrainer(Trainer):
    """`transformers.Trainer` for runs that are killed, preempted or diverge.

    A resumed run ends with the bits of an uninterrupted one: `PackedRows` or a `PackedStream` goes on with the row it
    stopped before; other data sets are read again up to there, as the stock Trainer does. Checkpoints are written
    beside the training, and are there whole or not at all. An update that is not finite, or a spike, is skipped; after
    `skip_budget` of them in a row the run goes back to its last checkpoint, and passes over the rows that led there.
    After SIGTERM or SIGUSR1 to any process all save the same step and exit with status 143.

    Attributes:
        is_sharded: the processes share weights and moments, as `accelerate launch` was asked for FSDP.
        after_save: called with each checkpoint once it is whole, beside the training.
        recorded: arguments beside its own, for the record of the run.
    """

    model: Any
    processing_class: PreTrainedTokenizerBase | None
    data_collator: DataCollatorForReplacedTokenDetection
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.is_sharded = parse_flag_from_env(ASKED_BY)
        super().__init__(*args, **kwargs)
        self.own = self.args if isinstance(self.args, OwnArguments) else OwnArguments()
        self.guard = UpdateGuard(self.own, device=self.args.device)
        self.signals = StopSignals()
        self.run_dir = Path(str(self.args.output_dir))
        self.record = RunRecord(self.run_dir)
        self.writer = CheckpointWriter(self.run_dir, limit=self.args.save_total_limit, on_saved=self._saved)
        self.after_save: list[Callable[[Path], None]] = []
        self.recorded: dict[str, Any] = {}
        self._data_state: dict[str, Any] = {"position": 0, "skipped": []}
        self._loader: RowLoader | None = None
        self._num_batches = 0  # taken from the loader
        self._interval = Interval()
        self._fingerprints: dict[str, Any] = {}
        self._gone_back_to: set[Path] = set()
        self.add_callback(_StepEnd(self))

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train, from a checkpoint if one is given.

        Args:
            resume_from_checkpoint: a checkpoint; true for the newest of `output_dir` that is whole. From one that has
                all steps behind it only the weights and the state are loaded.
            **kwargs: passed on.

        Raises:
            InputError: the checkpoint is broken, or of other data, tokenizer, configuration or code; the disk is full;
                or the run diverges again after it went back.
            SystemExit: with status 143, after SIGTERM or SIGUSR1.
        """
        checkpoint = self.find_checkpoint(resume_from_checkpoint)
        if checkpoint is not None and 0 < self.args.max_steps <= read_step(checkpoint):  # else one more would be taken
            self._load_from_checkpoint(str(checkpoint))
            self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
            if self._reads_rows:
                self.train_dataset.resume((read_manifest(checkpoint) or {})["data"]["dataset"])
            return TrainOutput(self.state.global_step, math.nan, {})
        self._begin(checkpoint)
        with self.signals:
            while True:
                try:
                    output = super().train(str(checkpoint) if checkpoint else None, **kwargs)
                    self.writer.wait()
                    break
                except Rewind as rewind:
                    checkpoint = self._go_back(rewind)
                except InputError as error:
                    self._end_record(f"ended by an error: {error}")
                    raise
        is_done = self.state.global_step >= self.state.max_steps
        if self.signals.received is None or is_done:
            self._end_record("finished")
            return output
        self._end_record(f"stopped by {self.signals.received.name}")
        sys.exit(EXIT_STATUS)

    def find_checkpoint(self, wanted: str | bool | None) -> Path | None:
        """Return the checkpoint to begin with: verified by the main process, and the same in all.

        Args:
            wanted: a checkpoint; true for the newest of `output_dir` that is whole, if there is one.
        """
        found: list[Path | InputError | None] = [None]
        if self.is_world_process_zero():
            try:
                found = [choose_checkpoint(self.run_dir, wanted)]
            except InputError as error:  # which the others wait for too
                found = [error]
        chosen = broadcast_object_list(found)[0] if self.args.world_size > 1 else found[0]
        if isinstance(chosen, InputError):
            raise chosen
        return chosen

    def create_accelerator_and_postprocess(self) -> None:
        """Have an accelerator that leaves it to `shard_model` to shard."""
        with patch_environment(**{ASKED_BY: "false"}):
            super().create_accelerator_and_postprocess()

    def _prepare_for_training(self, *args: Any) -> tuple[torch.nn.Module, Any]:
        if self.is_sharded:
            shard_model(self.model, device=self.args.device)
            self.is_distributed_loading_by_transformers = True  # it is not to be wrapped again
        return super()._prepare_for_training(*args)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        return nullcontext()  # whole gradients of a step would take the room that is spared

    def get_train_dataloader(self) -> Any:
        """Return the batches of this process: in one global order for our data sets, else the stock ones."""
        if not self._reads_rows:
            return super().get_train_dataloader()
        self._loader = RowLoader(
            self.train_dataset,
            self.data_collator,
            batch_size=self._train_batch_size,
            device=self.args.device,
            process_index=self.args.process_index,
            num_processes=self.args.world_size,
            num_workers=self.args.dataloader_num_workers,
            timeout=self.own.input_timeout,
            position=self._data_state["position"],
            skipped=self._data_state["skipped"],
        )
        return self._loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """Collect the batches of an optimizer step, and how long that took."""
        began = time.perf_counter()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._interval.input_seconds += time.perf_counter() - began
        self._num_batches += len(batches)
        self._step_loss: Any = 0.0  # a tensor would be an execution of its own on XLA
        return batches, num_items

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Add up the loss of the optimizer step for the guard."""
        loss = super().training_step(*args, **kwargs)
        self._step_loss = self._step_loss + loss
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Let the guard see the step before the optimizer takes it."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        loss = self.reduce(self._step_loss, reduction="mean")
        assert self.optimizer is not None
        skip_update(self.optimizer, self.guard.check(loss, grad_norm))
        return grad_norm

    def reduce(self, tensor: torch.Tensor, *, reduction: str = "sum") -> torch.Tensor:
        """Return a tensor as all processes have it together; accelerate executes a graph of XLA for one alone too."""
        return self.accelerator.reduce(tensor, reduction=reduction) if self.args.world_size > 1 else tensor

    def end_step(self, control: TrainerControl) -> None:
        """Save and stop if any process was told to; go back if the guard has given up. Called after each step."""
        xla.run_graph()
        if isinstance(self.train_dataset, PackedRows) and self._loader is not None:
            self.state.epoch = self._loader.position_after(self._num_batches) / self.train_dataset.num_rows
        elif self._reads_rows:
            self.state.epoch = self.state.global_step / self.state.max_steps
        if self.state.global_step == self.state.max_steps < self.state.logging_steps:
            control.should_log |= self.args.logging_strategy == IntervalStrategy.STEPS  # or nothing would be logged
        if self.signals.agreed():
            control.should_save = control.should_training_stop = True
        if self.args.device.type == "cpu" or control.should_log or control.should_save:  # else it would wait for it
            counts = self.guard.read()
            if counts.in_a_row:
                require_finite(self.model)
            if self.guard.should_rewind(counts):
                raise Rewind(f"{counts.in_a_row} steps in a row were not finite, or spikes", num_bad=counts.in_a_row)

    @property
    def _reads_rows(self) -> bool:
        return isinstance(self.train_dataset, (PackedRows, PackedStream))

    def _begin(self, checkpoint: Path | None, skipped: list[list[int]] | None = None) -> None:
        """Set the data to where a checkpoint left it, once it is clear that all else is as it was."""
        self._fingerprints, changed = self._take_fingerprints(), []
        if checkpoint is not None:
            facts = read_manifest(checkpoint) or {}
            changed = compare_fingerprints(
                facts["fingerprints"],
                self._fingerprints,
                allowed=self.own.allow_changed,
                checkpoint=str(checkpoint),
            )
            self._data_state = facts["data"]
            self._data_state["skipped"] += skipped or []
            if self._reads_rows:
                self.train_dataset.resume(self._data_state["dataset"])
        self._num_batches, self._interval = 0, Interval()
        if self.is_world_process_zero():
            self.record.begin(
                arguments={**self.recorded, **self.args.to_sanitized_dict()},
                fingerprints=self._fingerprints,
                checkpoint=str(checkpoint) if checkpoint else None,
                changed=changed,
                skipped_rows=self._data_state["skipped"],
                device=self.args.device,
                num_processes=self.args.world_size,
                precision=self.accelerator.mixed_precision,
            )

    def _take_fingerprints(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one before."""
        num_rows = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return {
            "data": {
                "rows_per_step": num_rows,
                "rows": self.train_dataset.fingerprint if self._reads_rows else None,
                "mask_probability": self.data_collator.mask_probability,
                "mask_seed": self.data_collator.seed,
            },
            "tokenizer": hash_tokenizer(self.processing_class) if self.processing_class else None,
            "config": config_fingerprint(self.model.config),
            "code": code_fingerprint(),
        }

    def _go_back(self, rewind: Rewind) -> Path:
        """Return the last checkpoint, with the data set to it; rows that led astray are passed over from there on.

        Weights that are not finite were poisoned by something else, and the same rows are trained on again.
        """
        step = self.state.global_step
        self.writer.wait()
        self._end_record(f"went back: {rewind}")
        checkpoint = self.find_checkpoint(True)
        if checkpoint is None or checkpoint in self._gone_back_to:
            where = f"goes astray again after {checkpoint.name}" if checkpoint else "has no checkpoint to go back to"
            raise InputError(
                f"step {step}: {rewind}, and the run {where}; give a lower --learning_rate or more --warmup_steps, or "
                "see what is in the rows of these steps"
            )
        self._gone_back_to.add(checkpoint)
        skipped = []
        if self._loader is not None and rewind.num_bad:
            ends = [self._num_batches - rewind.num_bad * self.args.gradient_accumulation_steps, self._num_batches]
            skipped = [[self._loader.position_after(end) for end in ends]]
        logger.warning("step %d: %s; going back to %s and passing over rows %s", step, rewind, checkpoint, skipped)
        self._begin(checkpoint, skipped)
        return checkpoint

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Begin to write a checkpoint: the weights, what the optimizer knows, where the data is; no pickle."""
        require_finite(self.model)
        self.store_flos()
        states = {name: owner.state_dict() for name, owner in self._owners().items() if owner is not None}
        tensors = {"weights": self._weights(), "states": states}
        if self.is_sharded:
            tensors = gather(tensors, keep=self.args.should_save)
        if not self.args.should_save:
            return
        stateful = [
            each for each in [*self.callback_handler.callbacks, self.control] if isinstance(each, ExportableState)
        ]
        state = copy.deepcopy(self.state)
        state.stateful_callbacks = {type(each).__name__: each.state() for each in stateful}  # type: ignore[assignment]

        def write(directory: Path, tensors: dict[str, Any]) -> None:
            self.model.save_pretrained(directory, state_dict=tensors["weights"])
            if self.processing_class is not None:
                save_tokenizer(self.processing_class, directory)
            save_states(directory, tensors["states"])
            state.save_to_json(str(directory / STATE_FILE))

        self.writer.save(
            self.state.global_step,
            tensors,
            write,
            data=self._loader.state_after(self._num_batches) if self._loader else self._data_state,
            fingerprints=self._fingerprints,
        )

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return the weights by name, those that are tied once."""
        tied = self.model.all_tied_weights_keys
        return {name: weight for name, weight in self.model.state_dict().items() if name not in tied}

    def _owners(self) -> dict[str, Any]:
        """Return what has a state beside the weights, by its name in a checkpoint."""
        return {
            "optimizer": self.optimizer,
            "scheduler": self.lr_scheduler,
            "scaler": self.accelerator.scaler,
            "guard": self.guard,
            "interval": self._interval,
        }

    def _init_training_state(self, *args: Any) -> tuple[int, int]:
        epochs, num_batches = super()._init_training_state(*args)
        self.state.compute_steps(self.args, self.state.max_steps)  # when to log and save, which a checkpoint has too
        return epochs, 0 if self._reads_rows else num_batches  # to pass over: our rows go on where they stopped

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_weights(self.model, resume_from_checkpoint, is_xla=self.args.device.type == "xla")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None
            with keep_arguments(self.optimizer, self.lr_scheduler):
                load_states(checkpoint, self._owners())

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """There is none: each step seeds anew."""

    def _saved(self, checkpoint: Path) -> None:
        for call in self.after_save:
            call(checkpoint)

    def _end_record(self, how: str) -> None:
        if self.is_world_process_zero():
            self.record.end(how, step=self.state.global_step)


class _StepEnd(TrainerCallback):
    def __init__(self, trainer: RecoverableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.device.type == "xla":
            xla.prepare_model(self.trainer.model)
            xla.run_graph()
            require_finite(self.trainer.model)  # compiled here, or it would be with the first checkpoint

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.trainer.end_step(control)
        return control
