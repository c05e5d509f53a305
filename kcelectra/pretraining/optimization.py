"""Schedules of the learning rate and of the temperature, and the reference's Adam."""

import math

import torch

CORRECTED_AFTER = 1e6  # steps after which the bias correction of Adam is 1 in float32; 0.999 ** 1e6 is 0

#: Share of the steps in which the learning rate of `warmup_stable_decay` falls; Hu et al. 2024 (MiniCPM).
DECAY_SHARE = 0.1
#: In steps as a share of all, of what the temperature has above 1. Dong et al. 2023 (Fast-ELECTRA) let it fall
#: exponentially; the value is an assumption.
TEMPERATURE_DECAY = 0.1


def falling_temperature(step: int, *, max_steps: int, initial: float) -> float:
    """Return the temperature at which a frozen generator draws: `initial` in step 0, falling exponentially to 1.

    Source: Dong et al. 2023 (Fast-ELECTRA), arXiv 2310.07347.
    """
    return 1 + (initial - 1) * math.exp(-step / (TEMPERATURE_DECAY * max_steps))


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
