"""States come back bit for bit from a file that runs no code, and those of another run are refused."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from kcelectra.errors import InputError
from kcelectra.pretraining.states import STATES_FILE, keep_arguments, load_states, save_states


class Owner:
    """Keeps what it is given."""

    def load_state_dict(self, state):
        self.state = state


def round_trip(directory, state):
    owner = Owner()
    save_states(directory, {"owner": state})
    load_states(directory, {"owner": owner})
    return owner.state


def same(left, right):
    """Compare to the bit and the type."""
    if isinstance(left, torch.Tensor):
        is_same = left.dtype == right.dtype and left.shape == right.shape
        return is_same and left.numpy(force=True).tobytes() == right.numpy(force=True).tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right)) and type(left) is type(right)
    return type(left) is type(right) and (left == right or (math.isnan(left) and math.isnan(right)))


DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_a_tensor_comes_back_with_its_bits_dtype_and_shape(tmp_path, dtype, shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(getattr(torch, dtype))
    assert same(round_trip(tmp_path, {"x": tensor}), {"x": tensor})


def test_a_bfloat16_comes_back(tmp_path):
    tensor = torch.randn(5, dtype=torch.bfloat16)
    loaded = round_trip(tmp_path, {"x": tensor})["x"]
    assert loaded.dtype == torch.bfloat16 and torch.equal(loaded, tensor)


def test_not_a_number_and_minus_zero_keep_their_bits(tmp_path):
    bits = torch.tensor([0x7FC00001, -2147483648, 0x7F800000, 1], dtype=torch.int32)
    assert torch.equal(round_trip(tmp_path, {"x": bits.view(torch.float32)})["x"].view(torch.int32), bits)


def test_all_that_is_no_tensor_comes_back_as_it_was(tmp_path):
    state = {
        "betas": (0.9, 0.999),
        "lr": 0.1 + 0.2,
        "tiny": 5e-324,
        "infinite": float("inf"),
        "nan": float("nan"),
        "step": 2**60,
        "none": None,
        "true": True,
        "text": "한글 😂 \x00",
        0: {"deep": [1, [2.0, (3, {"x": torch.tensor(1.0)})], {}, [], ()]},
        "0": {},
        True: "a truth value is the key 1",
    }
    assert same(round_trip(tmp_path, state), state)


def test_the_keys_0_and_zero_are_two(tmp_path):
    state = {0: torch.tensor(1), "0": torch.tensor(2), "0_": torch.tensor(3), "a.b": torch.tensor(4)}
    state["a"] = {"b": torch.tensor(5)}
    assert same(round_trip(tmp_path, state), state)


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    state = {"table": table, "again": table, "row": table[1], "turned": table.T}
    assert same(round_trip(tmp_path, state), {key: value.contiguous() for key, value in state.items()})


def test_what_is_loaded_is_not_mapped_from_the_file(tmp_path):
    """A mapped file keeps its room on the disk after its checkpoint is deleted."""
    loaded = round_trip(tmp_path, {"x": torch.ones(100_000)})
    with open("/proc/self/maps") as maps:
        assert not any(STATES_FILE in line for line in maps)
    assert loaded["x"].sum() == 100_000


def test_what_no_state_can_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"optimizer\.state\.0 is of <class 'set'>"):
        save_states(tmp_path, {"optimizer": {"state": [{1}]}})


# optimizer, schedule, scaler


def make_owners(*, width=4, groups=2, schedule=None):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, width) for _ in range(groups)]
    optimizer = torch.optim.AdamW([{"params": list(layer.parameters())} for layer in layers], lr=1e-2)
    schedule = schedule or (lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 1)))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return layers, {"optimizer": optimizer, "scheduler": schedule(optimizer), "scaler": scaler}


def train(layers, owners, num_steps):
    for step in range(num_steps):
        inputs = torch.arange(6.0).reshape(2, 3) / (step + 1)
        loss = sum(layer(inputs).square().mean() for layer in layers)
        owners["scaler"].scale(loss).backward()
        owners["scaler"].step(owners["optimizer"])
        owners["scaler"].update()
        owners["optimizer"].zero_grad()
        owners["scheduler"].step()


def weigh(layers):
    return b"".join(parameter.detach().numpy().tobytes() for layer in layers for parameter in layer.parameters())


def states(owners):
    return {name: owner.state_dict() for name, owner in owners.items()}


@pytest.mark.parametrize("schedule", [None, lambda optimizer: CosineAnnealingLR(optimizer, 10)])
def test_training_goes_on_bit_for_bit(tmp_path, schedule):
    layers, owners = make_owners(schedule=schedule)
    train(layers, owners, 3)
    save_states(tmp_path, states(owners))
    weights = [layer.state_dict() for layer in layers]
    others, other_owners = make_owners(schedule=schedule)
    for layer, weight in zip(others, weights, strict=True):
        layer.load_state_dict(weight)
    load_states(tmp_path, other_owners)
    assert same(states(other_owners), states(owners))
    train(layers, owners, 3)
    train(others, other_owners, 3)
    assert weigh(others) == weigh(layers)


def test_another_rate_and_decay_are_those_of_this_start(tmp_path):
    layers, owners = make_owners()
    train(layers, owners, 3)
    save_states(tmp_path, states(owners))
    _, same_owners = make_owners()
    with keep_arguments(same_owners["optimizer"], same_owners["scheduler"]):
        load_states(tmp_path, same_owners)
    assert same(states(same_owners), states(owners))
    _, others = make_owners()
    for group in others["optimizer"].param_groups:
        group |= {"lr": 5e-3, "initial_lr": 5e-3, "weight_decay": 0.5, "eps": 1e-4}
    others["scheduler"].base_lrs = [5e-3] * 2
    with keep_arguments(others["optimizer"], others["scheduler"]):
        load_states(tmp_path, others)
    for _ in range(2):
        for group, theirs in zip(others["optimizer"].param_groups, owners["optimizer"].param_groups, strict=True):
            assert group["lr"] == pytest.approx(theirs["lr"] / 2, rel=1e-12) and theirs["lr"] < 1e-2
            assert (group["weight_decay"], group["eps"]) == (0.5, 1e-4)
        for each in (owners, others):
            each["scheduler"].step()
    assert same(others["optimizer"].state_dict()["state"], owners["optimizer"].state_dict()["state"])


def test_only_tensors_and_json_are_in_the_file(tmp_path):
    layers, owners = make_owners()
    train(layers, owners, 1)
    save_states(tmp_path, states(owners))
    assert [path.name for path in tmp_path.iterdir()] == [STATES_FILE]
    assert b"optimizer.state.0.exp_avg" in (tmp_path / STATES_FILE).read_bytes()


@pytest.fixture
def saved(tmp_path):
    layers, owners = make_owners()
    train(layers, owners, 1)
    save_states(tmp_path, states(owners))
    return tmp_path


def test_a_state_that_is_needed_and_not_there_is_refused(saved):
    _, owners = make_owners()
    with pytest.raises(InputError, match="holds the states of optimizer, scheduler, scaler, this run has .*guard"):
        load_states(saved, {**owners, "guard": Owner()})


def test_a_state_that_is_there_and_not_needed_is_refused(saved):
    _, owners = make_owners()
    with pytest.raises(InputError, match="this run has optimizer, scheduler; give .*--precision"):
        load_states(saved, {**owners, "scaler": None})


def test_a_checkpoint_without_states_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"has no {STATES_FILE}"):
        load_states(tmp_path, make_owners()[1])


@pytest.mark.parametrize(
    ("other", "reason"),
    [({"width": 5}, r"exp_avg of parameter 0 is of \(4, 3\), not \(5, 3\)"), ({"groups": 3}, "parameter groups")],
)
def test_the_state_of_another_optimizer_is_refused(saved, other, reason):
    _, owners = make_owners(**other)
    before = states(owners)
    with pytest.raises(InputError, match=f"the state of the optimizer is not of this run: .*{reason}"):
        load_states(saved, owners)
    assert same(states(owners), before)


def test_the_state_of_a_scaler_that_did_not_scale_is_refused(tmp_path):
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    save_states(tmp_path, {"scaler": disabled.state_dict()})
    with pytest.raises(InputError, match="the state of the scaler is not of this run"):
        load_states(tmp_path, {"scaler": make_owners()[1]["scaler"]})
    load_states(tmp_path, {"scaler": disabled})
