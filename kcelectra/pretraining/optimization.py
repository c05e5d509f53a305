"""Schedules of the learning rate, and the reference's Adam."""

import torch

CORRECTED_AFTER = 1e6  # steps after which the bias correction of Adam is 1 in float32; 0.999 ** 1e6 is 0


def product_schedule(step: int, *, warmup_steps: int, max_steps: int) -> float:
    """Return the reference's learning rate as a share of its peak: decay times warm-up, from the first step on.

    Source: google-research/electra `optimization.create_optimizer`.
    """
    return max(0.0, 1 - step / max_steps) * min(1.0, step / max(1, warmup_steps))


def leave_out_bias_correction(optimizer: torch.optim.Optimizer) -> None:
    """Let a fresh Adam take its first steps as the reference's, which does not correct its moments."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.tensor(CORRECTED_AFTER),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
