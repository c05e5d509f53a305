"""Keep a poisoned step out of the weights, and poisoned weights out of a checkpoint."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor

from kcelectra.errors import InputError
from kcelectra.pretraining import xla

SIGMAS = 6.0  # OLMo-core and Levanter skip a step beyond 6 standard deviations of the last 128
#: Of the logarithms of loss and gradient norm, so no rise below e ** 0.6 = 1.8 and e ** 3.6 = 37 times is a spike.
#: Measured on tiny runs over real comments: above the mean of 128 steps a loss rises to 1.06 times, and a norm to 13
#: times, in the steps where the discriminator begins to learn.
MIN_DEVIATIONS = (0.1, 0.6)
READS_FOUND_INF = {"cpu", "cuda"}  # devices whose fused kernel of Adam returns at once where `found_inf` is 1


class Rewind(Exception):
    """The weights, or every step from here on, are poisoned: go back to the last good checkpoint.

    Args:
        message: what is wrong.
        num_bad: steps whose rows led there; none if the weights themselves are poisoned.
    """

    def __init__(self, message: str, *, num_bad: int = 0) -> None:
        super().__init__(message)
        self.num_bad = num_bad


@dataclass
class GuardArguments:
    """When a step is skipped, and when the run goes back."""

    guard_window: int = field(
        default=128,
        metadata={"help": "Good steps that say what a spike is; above max_steps, only NaN and infinity are skipped."},
    )
    skip_budget: int = field(
        default=10, metadata={"help": "Steps skipped in a row before the run goes back to its last checkpoint."}
    )


class Counts(NamedTuple):
    """Steps skipped since the run began, and without a good one between."""

    skipped: int
    in_a_row: int


class UpdateGuard:
    """Decides on the device, and without waiting for it, which steps must not reach the weights.

    A step is bad if its loss or gradient norm is not finite, or if the logarithm of either lies more than `SIGMAS`
    standard deviations above the mean of the last `guard_window` good steps; nothing is a spike before there are so
    many. Logarithms, because gradient norms vary by factors: a loss that falls fast widens its own bound.

    Args:
        arguments: window, at least 2, and budget, at least 1.
        device: of the loss.

    Raises:
        InputError: window or budget is too small.

    Source: OLMo-core `optim/skip_step_optimizer.py`. Differs from it: logarithms; a bad step does not enter the
    window, where a NaN would make every later bound NaN; a floor under the deviation.
    """

    def __init__(self, arguments: GuardArguments, *, device: torch.device) -> None:
        if arguments.guard_window < 2 or arguments.skip_budget < 1:
            raise InputError(
                f"guard_window is {arguments.guard_window} and skip_budget {arguments.skip_budget}; give a "
                "--guard_window of at least 2, 128 by default, and a --skip_budget of at least 1, 10 by default"
            )
        self.budget = arguments.skip_budget
        self.min_deviations = torch.tensor(MIN_DEVIATIONS, device=device)
        self.window = torch.zeros(2, arguments.guard_window, dtype=torch.float32, device=device)  # a ring
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # good, skipped, skipped in a row

    @torch.no_grad()
    def check(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Return whether to skip a step, and remember it.

        Args:
            loss: scalar, of the whole optimizer step; the same in every process, or they part.
            grad_norm: scalar, before it is clipped.

        Returns:
            Scalar float32 on the device, 1.0 for a bad step and 0.0 for a good one.
        """
        values = torch.stack([loss, grad_norm]).float()
        logs = values.log()
        good, skipped, in_a_row = self.counts.unbind()
        size = self.window.shape[1]
        deviation, mean = torch.std_mean(self.window, dim=1)
        is_spike = (logs > mean + SIGMAS * deviation.maximum(self.min_deviations)).any() & (good >= size)
        is_bad = ~values.isfinite().all() | is_spike
        is_slot = torch.arange(size, device=self.window.device) == good % size
        self.window.copy_(torch.where(is_slot & ~is_bad, logs[:, None], self.window))
        self.counts.copy_(torch.stack([good + ~is_bad, skipped + is_bad, (in_a_row + 1) * is_bad]))
        return is_bad.float()

    def forget(self) -> None:
        """Let the window fill anew: the next losses are no longer comparable with those before."""
        self.counts[0] = 0

    def read(self) -> Counts:
        """Return the counts; waits for the device."""
        _, skipped, in_a_row = self.counts.tolist()
        return Counts(skipped, in_a_row)

    def should_rewind(self, counts: Counts) -> bool:
        """Return whether so many steps were skipped in a row that no good one is to be expected."""
        return counts.in_a_row >= self.budget

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs to decide as an uninterrupted one does."""
        return {"window": self.window, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state.

        Raises:
            InputError: it is of another window.
        """
        theirs, ours = state["window"].shape[-1], self.window.shape[-1]
        if theirs != ours:
            raise InputError(f"guard_window is {ours}, the checkpoint has {theirs}; give --guard_window {theirs}")
        self.window.copy_(state["window"])
        self.counts.copy_(state["counts"])


def skip_update(optimizer: torch.optim.Optimizer, is_bad: Tensor) -> None:
    """Make the next `optimizer.step()` do nothing if a step is bad: weights, moments and step counts stay as they are.

    PyTorch's fused Adam reads the decision on the device; on XLA the step is undone there. Any other optimizer, and
    float16, whose scaler puts its own decision in the same place, needs it on the host: without gradients no optimizer
    does anything.

    Args:
        optimizer: as it is or as accelerate wrapped it.
        is_bad: scalar float32 of `UpdateGuard.check`.
    """
    inner, scaler = optimizer, None
    if isinstance(optimizer, AcceleratedOptimizer):
        inner, scaler = optimizer.optimizer, optimizer.scaler
    is_fused = isinstance(inner, torch.optim.Adam) and all(group["fused"] for group in inner.param_groups)
    if is_fused and scaler is None and is_bad.device.type in READS_FOUND_INF:
        inner.found_inf = is_bad  # type: ignore[attr-defined]
    elif is_bad.device.type == "xla":
        xla.undo_if(is_bad, inner)
    elif is_bad.item():
        inner.zero_grad(set_to_none=True)


def require_finite(model: torch.nn.Module) -> None:
    """Raise if a weight is NaN or infinite, so that no such checkpoint is written.

    Raises:
        Rewind: with the names of the tensors.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in parameters]))
    is_finite = (norms.full_tensor() if isinstance(norms, DTensor) else norms).isfinite()
    if not is_finite.all():
        poisoned = [name for name, finite in zip(names, is_finite.tolist(), strict=True) if not finite]
        raise Rewind(f"{len(poisoned)} of {len(names)} weights are not finite: {', '.join(poisoned[:3])}")
