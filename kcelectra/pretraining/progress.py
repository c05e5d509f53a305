"""What a run shows while it trains."""

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

EVALUATED = {
    "loss": "eval_loss",
    "generator": "eval_generator_loss",
    "discriminator": "eval_discriminator_loss",
    "auc": "eval_discriminator_auc",
}


@dataclass
class Interval:
    """What was spent since the last log, over restarts."""

    seconds: float = 0.0  # before the restart
    input_seconds: float = 0.0
    flos: float = 0.0  # of the run, when the interval began
    start: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Return the seconds of the interval."""
        return self.seconds + time.perf_counter() - self.start

    def state_dict(self) -> dict[str, float]:
        """Return what goes on after a restart."""
        return {"seconds": self.elapsed(), "input_seconds": self.input_seconds, "flos": self.flos}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there."""
        self.seconds, self.input_seconds, self.flos = state["seconds"], state["input_seconds"], state["flos"]


def format_log(logs: dict[str, float], state: TrainerState) -> str:
    """Return one line for a logging interval, each loss beside the baseline it must beat."""
    if "eval_generator_loss" in logs:
        values = (f"{name} {logs[key]:.3f}" for name, key in EVALUATED.items() if key in logs)
        return "  ".join([f"step {state.global_step}/{state.max_steps}", "not trained on:", *values])
    if "generator_loss" not in logs:
        return " ".join(f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, (int, float)))
    discriminator = ""
    if "discriminator_loss" in logs:  # else it does not run
        discriminator = (
            f"  discriminator {logs['discriminator_loss']:.4f} (fake rate {logs['fake_rate_entropy']:.4f})"
            f"  auc {logs['discriminator_auc']:.3f}"
        )
    return (
        f"step {state.global_step}/{state.max_steps}"
        f"  loss {logs['loss']:.3f}"
        f"  generator {logs['generator_loss']:.3f} (unigram {logs['unigram_entropy']:.3f}){discriminator}"
        f"  lr {logs['learning_rate']:.2e}"
        f"  {logs['tokens_per_second']:,.0f} tokens/s at {logs['flops_per_token'] / 1e6:,.1f} MFLOP"
    )


class OneLineLog(PrinterCallback):
    """Print one line for each log, with the time left; where the output is no terminal."""

    def __init__(self) -> None:
        self._start = (0.0, 0)  # seconds, step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._start = (time.perf_counter(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line, in the main process."""
        if not state.is_world_process_zero or not logs:
            return
        seconds, step = self._start
        per_step = (time.perf_counter() - seconds) / max(1, state.global_step - step)
        left = timedelta(seconds=round(per_step * (state.max_steps - state.global_step)))
        print(f"{format_log(logs, state)}  {left} left", flush=True)  # noqa: T201


class TokensPerSecondProgress(ProgressCallback):
    """The stock progress bar with tokens per second beside the time left, and one line for each log."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line above the bar."""
        if self.training_bar is None or not logs:
            return
        if "tokens_per_second" in logs:
            self.training_bar.set_postfix_str(f"{logs['tokens_per_second']:,.0f} tokens/s", refresh=False)
        self.training_bar.write(format_log(logs, state))


class EpochCallback(TrainerCallback):
    """Tell the collator which epoch begins, before the data loader copies it into its workers."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch."""
        self.collator.set_epoch(int(state.epoch or 0))
