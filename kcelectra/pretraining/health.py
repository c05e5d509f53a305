"""Bands that a healthy run stays in, and alarms where one leaves them; for a person to judge, they stop nothing."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LATE_WARMUPS = 2  # assumption: a half has learnt something after twice the warm-up,
LATE_STEPS = 2000  # and not before this step; in step 400 tiny runs that do learn still find 0 to 0.2 of the tokens
PATIENCE = 3  # assumption: logged intervals in a row, of those that are noisy

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Band:
    """One thing to watch.

    Args:
        name: of the alarm.
        is_left: whether a logged interval is outside the band; a key that was not logged is NaN.
        meaning: what it means and what to try, a sentence each.
        is_late: judge only long after warm-up, and after `PATIENCE` intervals in a row.
    """

    name: str
    is_left: Callable[[dict[str, float]], bool]
    meaning: str
    is_late: bool = False


class Alarm(NamedTuple):
    """A band was left at `step`, and entered again at `until`, or not yet."""

    step: int
    name: str
    meaning: str
    until: int | None = None


BANDS = (
    Band(
        "loss not finite",
        lambda log: not all(math.isfinite(log[key]) for key in ("generator_loss", "discriminator_loss") if key in log),
        "A batch or the weights gave NaN or infinity. If the next intervals are no better, go back to an earlier "
        "checkpoint with a lower --learning_rate or with --precision float32.",
    ),
    Band(
        "steps skipped",
        lambda log: log["newly_skipped"] > 0,
        "The loss or gradient of a step was not finite or far above the steps before, and did not reach the weights. "
        "Now and then it harms nothing; if it goes on, lower --learning_rate or look at the rows of these steps.",
    ),
    Band(
        "weights do not move",  # the first step of a warm-up has a rate of 0
        lambda log: log["grad_norm"] == 0 or (log["learning_rate"] == 0 and log["step"] > 1),
        "The learning rate or the gradient is 0, so nothing is learnt. Look at --learning_rate, and at --max_steps "
        "and --lr_scheduler_type if the schedule has ended before the run.",
    ),
    Band(
        "collapsed sampler",  # assumption; measured: at most 0.41 of it in healthy tiny runs, 1.0 in collapsed ones
        lambda log: log["sampled_accuracy"] > 0.95 * log["generator_accuracy"] > 0.95 * 0.02,
        "Sampled tokens are right as often as the most probable ones, so the sampler draws the argmax and the "
        "discriminator sees no variety. Look for a sampling_temperature near 0 or noise drawn in half precision.",
    ),
    Band(
        # half of the 6 % that google/electra issue 49 reports late; ELECTRA-large, with the most masks, begins at 25 %
        "fake rate out of its band",
        lambda log: not math.isnan(log["fake_rate"]) and not 0.03 <= log["fake_rate"] <= 0.30,
        "Published runs replace from 15 % of the tokens at first to 6 % late, and what lies far from it teaches the "
        "discriminator little. Unless --mask_probability asks for it: too few come from too large a generator "
        "(--generator_fraction) or from a corpus that repeats itself, too many from a wrong mask.",
    ),
    Band(
        "generator no better than word counts",
        lambda log: log["generator_loss"] >= log["unigram_entropy"],
        "Long after warm-up the generator does not beat a guess that ignores the context: it has not begun to learn, "
        "or has forgotten. Look at --learning_rate and at whether the tokenizer fits the corpus.",
        is_late=True,
    ),
    Band(
        "discriminator at the all-real baseline",
        lambda log: log["discriminator_accuracy"] <= 1 - log["fake_rate"],
        "Its accuracy is no higher than that of calling every token original. Give it time while its AUC rises; else "
        "lower --learning_rate, lengthen --warmup_steps, or look at --discriminator_weight, 50 in the paper.",
        is_late=True,
    ),
    Band(
        "recall stuck at 0",  # assumption: below one in a hundred
        lambda log: log["discriminator_recall"] < 0.01,
        "The discriminator finds no replaced token, which is the majority-class failure of a run that was too fast or "
        "too small. Give it time while its AUC rises; else lower --learning_rate, lengthen --warmup_steps, or take "
        "larger batches.",
        is_late=True,
    ),
    Band(
        "discriminator at chance",  # measured: 0.50 +- 0.01 in dead tiny runs, 0.57 after 400 steps of a healthy one
        lambda log: log["discriminator_auc"] <= 0.53,
        "It does not tell replaced from original tokens at all: it is dead, or learns from labels that mean nothing. "
        "Lower --learning_rate and go back to a checkpoint from before; look at --discriminator_weight.",
        is_late=True,
    ),
)


def check_health(history: list[dict[str, Any]], *, warmup_steps: int) -> list[Alarm]:
    """Return every alarm of a run, by step.

    Args:
        history: `log_history` of the Trainer's state; what is no training interval is passed over.
        warmup_steps: of the run; some bands count only after twice as many and `LATE_STEPS`.

    Source of the bands: `BANDS`, each beside its number; ELECTRA repository issues; KoELECTRA issue 26.
    """
    logs = [defaultdict(lambda: math.nan, entry) for entry in history if "generator_loss" in entry]
    for earlier, log in zip([{"skipped_steps": 0}, *logs], logs, strict=False):
        log["newly_skipped"] = log["skipped_steps"] - earlier["skipped_steps"]
    first_late = max(LATE_WARMUPS * warmup_steps, LATE_STEPS)
    late = [log for log in logs if log["step"] >= first_late]
    return sorted(alarm for band in BANDS for alarm in _leavings(band, late if band.is_late else logs))


def _leavings(band: Band, logs: list[defaultdict[str, float]]) -> Iterator[Alarm]:
    patience, in_a_row, alarm = PATIENCE if band.is_late else 1, 0, None
    for log in logs:
        step = int(log["step"])
        in_a_row = in_a_row + 1 if band.is_left(log) else 0
        if in_a_row == patience:
            alarm = Alarm(step, band.name, band.meaning)
        elif in_a_row == 0 and alarm is not None:
            yield alarm._replace(until=step)
            alarm = None
    if alarm is not None:
        yield alarm


class HealthCallback(TrainerCallback):
    """Warn once when a band is left, and say when it is entered again.

    It keeps nothing: what is new is what the history says about its last step, also in a run that was resumed.

    Args:
        generator_warmup_steps: before those of the schedule.
    """

    def __init__(self, generator_warmup_steps: int = 0) -> None:
        self.generator_warmup_steps = generator_warmup_steps

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Compare the interval that was logged with the bands, in the main process."""
        if not state.is_world_process_zero or "generator_loss" not in state.log_history[-1]:
            return
        warmup_steps = self.generator_warmup_steps + args.get_warmup_steps(state.max_steps)
        for alarm in check_health(state.log_history, warmup_steps=warmup_steps):
            if alarm.step == state.global_step:
                _logger.warning("step %d: %s. %s", alarm.step, alarm.name, alarm.meaning)
            elif alarm.until == state.global_step:
                _logger.warning("step %d: over since step %d: %s", alarm.until, alarm.step, alarm.name)
