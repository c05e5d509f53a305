"""A poisoned step never reaches the weights, a healthy one always does, and a resumed guard decides the same."""

import math
import random
import statistics

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load, save
from test_trainer import make_trainer

from kcelectra.errors import InputError
from kcelectra.pretraining.guards import (
    MIN_DEVIATIONS,
    SIGMAS,
    Counts,
    GuardArguments,
    Rewind,
    UpdateGuard,
    require_finite,
    skip_update,
)

WINDOW = 16
CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
OPTIMIZERS = {
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5, fused=True),
    "fused Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=0.5, fused=True),
    "foreach AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.5, fused=True),
}


def make_guard(window=WINDOW, *, budget=10, device=CPU):
    return UpdateGuard(GuardArguments(guard_window=window, skip_budget=budget), device=device)


def decide(guard, steps):
    """Feed (loss, gradient norm) of each step and return what is skipped."""
    return [bool(guard.check(torch.tensor(loss), torch.tensor(norm))) for loss, norm in steps]


def healthy_steps(num_steps, *, seed=0):
    """A loss that falls from 43 to 23, and a gradient norm that varies by a factor of 6."""
    noise = torch.randn(2, num_steps, generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        (23 + 20 * math.exp(-step / 50) + 0.5 * loss, 3 * math.exp(0.3 * norm))
        for step, (loss, norm) in enumerate(zip(*noise, strict=True))
    ]


# what is skipped


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("step", [0, 5, 40])
def test_what_is_not_finite_is_skipped_from_the_first_step_on(bad, place, step):
    steps = healthy_steps(50)
    steps[step] = (bad, steps[step][1]) if place == 0 else (steps[step][0], bad)
    assert decide(make_guard(), steps) == [index == step for index in range(50)]


@pytest.mark.parametrize("place", [0, 1])
def test_a_spike_is_skipped_once_the_window_is_full(place):
    for step in range(10, 50):
        steps = healthy_steps(50)
        loss, norm = steps[step]
        steps[step] = (loss * 10, norm) if place == 0 else (loss, norm * 200)
        assert decide(make_guard(), steps)[step] == (step >= WINDOW), step


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_the_guard_decides_as_its_definition(noise):
    """Plain Python over lists, with rises of every size."""
    draw, window, decisions, expected, guard = random.Random(0), [], [], [], make_guard()
    for _ in range(600):
        rise = 6 * draw.random() * (draw.random() < 0.05)
        step = [20 * math.exp(noise * draw.gauss()), 3 * math.exp(noise * draw.gauss())]
        step[draw.randrange(2)] *= math.exp(rise)
        logs = [math.log(value) for value in step]
        is_spike = len(window) == WINDOW and any(
            log > statistics.mean(past) + SIGMAS * max(statistics.stdev(past), least)
            for log, past, least in zip(logs, zip(*window, strict=True), MIN_DEVIATIONS, strict=True)
        )
        window = window if is_spike else [*window, logs][-WINDOW:]
        expected.append(is_spike)
        decisions += decide(guard, [step])
    assert decisions == expected and 5 < sum(expected) < 30


@pytest.mark.parametrize("seed", range(8))
def test_a_loss_that_falls_fast_and_a_norm_that_varies_are_not_skipped(seed):
    assert not any(decide(make_guard(128), healthy_steps(2000, seed=seed)))


@pytest.mark.parametrize(
    ("loss", "norm", "is_skipped"), [(1.7, 1, False), (1.9, 1, True), (1, 30, False), (1, 45, True)]
)
def test_without_noise_a_spike_is_1_8_times_the_loss_or_37_times_the_norm(loss, norm, is_skipped):
    guard = make_guard()
    decide(guard, [(20.0, 2.0)] * WINDOW)
    assert decide(guard, [(20.0 * loss, 2.0 * norm)]) == [is_skipped]


def test_a_spike_may_be_deep_but_not_high():
    guard, steps = make_guard(), healthy_steps(3 * WINDOW)
    decide(guard, steps[:WINDOW])
    assert not any(decide(guard, [(1e-9, 1e-9), (0.0, 0.0), *steps[WINDOW:]]))
    assert decide(guard, [(200.0, 3.0)]) == [True]


def test_a_bad_step_leaves_no_trace_in_what_is_decided_later():
    steps = healthy_steps(200)
    steps[154] = (100.0, 100.0)  # right after a bad one
    clean, disturbed = make_guard(), make_guard()
    decisions = []
    for index, step in enumerate(steps):
        if index % 7 == 0:
            assert decide(disturbed, [(math.nan, 1.0), (1.0, math.inf)]) == [True, True]
        decisions.append((decide(clean, [step]), decide(disturbed, [step])))
    assert all(ours == theirs for ours, theirs in decisions) and decisions[154] == ([True], [True])
    assert torch.equal(clean.window, disturbed.window)


def test_the_window_forgets():
    """A level that is reached in small steps becomes normal."""
    guard = make_guard()
    levels = [(20 * 1.02**step, 1.0) for step in range(150)]
    assert not any(decide(guard, levels))
    assert decide(guard, [(20.0 * 10, 1.0), (levels[-1][0] * 10, 1.0)]) == [False, True]


def test_after_forgetting_another_level_is_no_spike():
    guard, later = make_guard(), [(200.0, 1.0)] * 30
    decide(guard, healthy_steps(30))
    assert decide(guard, later[:1]) == [True]
    guard.forget()
    assert not any(decide(guard, later))
    assert decide(guard, [(2000.0, 1.0)]) == [True]
    assert guard.read().skipped == 2


# counts


def test_skipped_steps_are_counted_in_total_and_in_a_row():
    guard, good, bad = make_guard(budget=3), (20.0, 1.0), (math.nan, 1.0)
    decide(guard, [good, bad, bad, good, bad])
    assert guard.read() == Counts(skipped=3, in_a_row=1)
    decide(guard, [bad])
    assert not guard.should_rewind(guard.read())
    decide(guard, [bad])
    assert guard.read() == Counts(skipped=5, in_a_row=3)
    assert guard.should_rewind(guard.read())
    decide(guard, [good])
    assert guard.read() == Counts(skipped=5, in_a_row=0)


@pytest.mark.parametrize("arguments", [{"guard_window": 1}, {"skip_budget": 0}])
def test_too_small_a_window_or_budget_is_refused(arguments):
    with pytest.raises(InputError, match="--guard_window of at least 2, .* --skip_budget of at least 1"):
        UpdateGuard(GuardArguments(**arguments), device=CPU)


# resume


@pytest.mark.parametrize("saved_at", [3, 16, 45])
def test_a_resumed_guard_decides_as_one_that_went_on(saved_at):
    steps = healthy_steps(90)
    for bad in (10, 44, 45, 60, 77):
        steps[bad] = (math.nan if bad % 2 else 300.0, 1.0)
    straight, first, resumed = make_guard(), make_guard(), make_guard()
    decisions = decide(straight, steps)
    decide(first, steps[:saved_at])
    resumed.load_state_dict(load(save(first.state_dict())))
    assert decide(resumed, steps[saved_at:]) == decisions[saved_at:]
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in straight.state_dict().items())
    assert resumed.read() == straight.read() and straight.read().skipped == 4  # 10 lies before the window is full


def test_the_state_of_another_window_is_refused():
    with pytest.raises(InputError, match="guard_window is 16, the checkpoint has 32; give --guard_window 32"):
        make_guard(16).load_state_dict(make_guard(32).state_dict())


# on a device


def test_a_decision_reads_nothing_from_the_device():
    """A tensor of the meta device has no values to read."""
    meta = torch.device("meta")
    is_bad = make_guard(device=meta).check(torch.zeros((), device=meta), torch.zeros((), device=meta))
    assert (is_bad.dtype, is_bad.shape, is_bad.device) == (torch.float32, (), meta)


def test_a_decision_is_one_graph():
    steps = healthy_steps(40)
    steps[30] = (500.0, 1.0)
    guard = make_guard()
    check = torch.compile(guard.check, fullgraph=True, backend="eager")
    decisions = [bool(check(torch.tensor(loss), torch.tensor(norm))) for loss, norm in steps]
    assert decisions == decide(make_guard(), steps) == [index == 30 for index in range(40)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_guard_decides_on_its_device(device):
    guard = make_guard(device=torch.device(device))
    steps = torch.tensor([*healthy_steps(30), (300.0, 1.0), (20.0, math.nan)], device=device)
    decisions = [guard.check(*step) for step in steps]
    assert {decision.device.type for decision in decisions} == {device}
    assert [bool(decision) for decision in decisions] == [False] * 30 + [True, True]


# the update


def make_parameters(device):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in ((37, 5), (3,))]


def set_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


def states(parameters, optimizer):
    """Copy the weights, and all that the optimizer remembers of each."""
    remembered = [(name, value) for p in parameters for name, value in optimizer.state[p].items()]
    return [p.detach().clone() for p in parameters] + [value.clone() for _, value in remembered if value is not None]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_skipped_step_changes_neither_weights_nor_moments_nor_step_counts(name, device, is_wrapped):
    """Steps 0, 2 and 3 of an optimizer that skipped step 1 are those of one that never saw it."""
    Accelerator(cpu=device == "cpu")
    weights = {run: make_parameters(device) for run in ("guarded", "plain")}
    optimizers = {run: OPTIMIZERS[name](parameters) for run, parameters in weights.items()}
    guarded = AcceleratedOptimizer(optimizers["guarded"]) if is_wrapped else optimizers["guarded"]
    for step in range(4):
        set_gradients(weights["guarded"], step)
        if step == 1:
            weights["guarded"][0].grad[3, 2] = math.nan
            before = states(weights["guarded"], optimizers["guarded"])
            skip_update(guarded, torch.tensor(1.0, device=device))
            guarded.step()
            assert_equal(states(weights["guarded"], optimizers["guarded"]), before)
            continue
        skip_update(guarded, torch.tensor(0.0, device=device))
        guarded.step()
        set_gradients(weights["plain"], step)
        optimizers["plain"].step()
        assert_equal(*(states(weights[run], optimizers[run]) for run in ("guarded", "plain")))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_very_first_step_can_be_skipped(name):
    skipped, plain = make_parameters("cpu"), make_parameters("cpu")
    optimizer, other = OPTIMIZERS[name](skipped), OPTIMIZERS[name](plain)
    set_gradients(skipped, 0)
    skipped[0].grad.fill_(math.inf)
    skip_update(optimizer, torch.tensor(1.0))
    optimizer.step()
    assert_equal([p.detach() for p in skipped], [p.detach() for p in plain])
    set_gradients(skipped, 1), set_gradients(plain, 1)
    skip_update(optimizer, torch.tensor(0.0))
    optimizer.step(), other.step()
    assert_equal(states(skipped, optimizer), states(plain, other))


@pytest.mark.parametrize("name", ["fused AdamW", "foreach AdamW"])
def test_in_float16_a_spike_is_skipped_too_and_an_overflow_still_lowers_the_scale(name):
    Accelerator(cpu=True)
    parameters = make_parameters("cpu")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    inner = OPTIMIZERS[name](parameters)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)

    def step(factor, is_bad):
        loss = sum((factor * parameter).sum() for parameter in parameters)
        scaler.scale(loss).backward()
        scaler.unscale_(inner)
        skip_update(optimizer, torch.tensor(is_bad))
        optimizer.step()
        optimizer.zero_grad()
        return states(parameters, inner), scaler.get_scale()

    first, scale = step(1.0, 0.0)
    assert scale == 1024
    spike, scale = step(1e3, 1.0)
    assert_equal(spike, first)
    assert scale == 1024
    overflow, scale = step(math.inf, 1.0)
    assert_equal(overflow, first)
    assert scale == 512
    good, _ = step(1.0, 0.0)
    assert not torch.equal(good[0], first[0])


def test_fused_adam_is_told_on_the_device_also_where_accelerate_wraps_it():
    Accelerator(cpu=True)
    for wrap in (lambda optimizer: optimizer, AcceleratedOptimizer):
        optimizer, is_bad = OPTIMIZERS["fused AdamW"](make_parameters("cpu")), torch.tensor(1.0)
        skip_update(wrap(optimizer), is_bad)
        assert optimizer.found_inf is is_bad


# weights


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_poisoned_weight_is_found_and_named(value):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    require_finite(model)
    with torch.no_grad():
        model[0].weight[5, 7] = value
        model[1].bias[0] = value
    with pytest.raises(Rewind, match=r"^2 of 4 weights are not finite: 0.weight, 1.bias$"):
        require_finite(model)


# a real run


@pytest.mark.parametrize("rate", [pytest.param(5e-4, marks=pytest.mark.slow), 2e-3])
def test_a_healthy_run_is_not_disturbed_and_a_spike_in_it_is_found(tokenizer, sample_file, tmp_path, rate):
    arguments = {"max_steps": 60, "learning_rate": rate, "logging_steps": 20, "guard_window": WINDOW}
    trainer, steps = make_trainer(tokenizer, sample_file, tmp_path, **arguments), []
    check = trainer.guard.check

    def watch(loss, norm):
        steps.append((loss.item(), norm.item()))
        return check(loss, norm)

    trainer.guard.check = watch
    trainer.train()
    assert trainer.guard.read() == Counts(0, 0)
    for step in range(2 * WINDOW, 60):
        for factors in ((10, 1), (1, 1000)):
            guard = make_guard()
            decide(guard, steps[:step])
            loss, norm = steps[step]
            assert decide(guard, [(loss * factors[0], norm * factors[1])]) == [True]
