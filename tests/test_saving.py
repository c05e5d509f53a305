"""A save does not hold up training, is of the moment it was asked for, and does not fail in silence."""

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import make_model

from kcelectra import KcElectraForPreTraining
from kcelectra.pretraining import saving
from kcelectra.pretraining.checkpoints import find_checkpoints, find_last_checkpoint, verify_checkpoint
from kcelectra.pretraining.saving import CheckpointWriter, copy_to_host
from kcelectra.pretraining.states import save_states

SECONDS = 20  # more than any wait should take


class SlowDisk:
    """A `write` that waits until it may go on."""

    def __init__(self):
        self.may_go_on, self.has_begun, self.thread = threading.Event(), threading.Event(), None

    def __call__(self, directory: Path, tensors) -> None:
        self.thread = threading.current_thread()
        self.has_begun.set()
        assert self.may_go_on.wait(SECONDS)
        save_states(directory, {"model": tensors})


def write(directory: Path, tensors) -> None:
    save_states(directory, {"model": tensors})


def read(checkpoint_dir: Path) -> torch.Tensor:
    verify_checkpoint(checkpoint_dir)
    return load_file(checkpoint_dir / "states.safetensors")["model.weights"]


# the writer


def test_a_slow_disk_does_not_hold_up_training_and_what_is_saved_is_of_its_moment(tmp_path):
    disk, writer, weights = SlowDisk(), CheckpointWriter(tmp_path), torch.zeros(5)
    writer.save(1, {"weights": weights}, disk, rows=8)
    assert disk.has_begun.wait(SECONDS) and find_checkpoints(tmp_path) == []
    weights += 1  # training goes on
    disk.may_go_on.set()
    writer.wait()
    assert disk.thread is not threading.main_thread()
    assert torch.equal(read(tmp_path / "checkpoint-1"), torch.zeros(5))
    assert verify_checkpoint(tmp_path / "checkpoint-1")["rows"] == 8


def test_one_save_waits_for_the_one_before(tmp_path):
    disk, writer = SlowDisk(), CheckpointWriter(tmp_path)
    done = []

    def write_next(directory, tensors):
        done.extend(path.name for path in find_checkpoints(tmp_path))
        write(directory, tensors)

    writer.save(1, {"weights": torch.zeros(5)}, disk)
    assert disk.has_begun.wait(SECONDS)
    threading.Timer(0.2, disk.may_go_on.set).start()
    writer.save(2, {"weights": torch.ones(5)}, write_next)
    writer.wait()
    assert done == ["checkpoint-1"] and find_last_checkpoint(tmp_path).name == "checkpoint-2"


def fail(directory, tensors):
    raise ZeroDivisionError("in the thread")


def test_what_goes_wrong_in_the_thread_is_raised_once_at_the_next_occasion(tmp_path):
    writer = CheckpointWriter(tmp_path)
    for occasion in (writer.wait, lambda: writer.save(2, {"weights": torch.zeros(5)}, write)):
        writer.save(1, {"weights": torch.zeros(5)}, fail)
        with pytest.raises(ZeroDivisionError, match="in the thread"):
            occasion()
    writer.save(3, {"weights": torch.zeros(5)}, write)
    writer.wait()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-3"]


def test_where_memory_is_short_it_is_saved_before_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "HOST_MARGIN", 1e15)
    writer, threads, weights = CheckpointWriter(tmp_path), [], torch.zeros(5)

    def write_here(directory, tensors):
        threads.append(threading.current_thread())
        assert tensors["weights"] is weights
        write(directory, tensors)

    writer.save(1, {"weights": weights}, write_here)
    assert threads == [threading.main_thread()]
    assert find_last_checkpoint(tmp_path).name == "checkpoint-1"
    with pytest.raises(ZeroDivisionError):
        writer.save(2, {"weights": weights}, fail)


def test_room_is_counted_once_for_tensors_that_share_their_memory(monkeypatch):
    weights = torch.zeros(1000)
    shared = {"a": weights, "b": [weights[:10], {"c": (weights.view(10, 100),)}]}
    available = saving.psutil.virtual_memory().available
    monkeypatch.setattr(saving, "HOST_MARGIN", available / 2 / 4000)
    assert saving._has_room(shared)
    assert not saving._has_room({"a": weights, "b": [torch.zeros(2000)]})


def test_old_checkpoints_go_and_each_new_one_is_announced(tmp_path):
    announced = []
    writer = CheckpointWriter(tmp_path, limit=2, on_saved=lambda path: announced.append((path.name, len(names()))))

    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    for step in (1, 2, 3, 4):
        writer.save(step, {"weights": torch.zeros(5)}, write)
    writer.wait()
    assert announced == [("checkpoint-1", 1), ("checkpoint-2", 2), ("checkpoint-3", 2), ("checkpoint-4", 2)]
    assert names() == ["checkpoint-3", "checkpoint-4"]


def test_an_error_of_who_is_told_is_not_lost(tmp_path):
    writer = CheckpointWriter(tmp_path, on_saved=lambda path: 1 / 0)
    writer.save(1, {"weights": torch.zeros(5)}, write)
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    verify_checkpoint(tmp_path / "checkpoint-1")


def test_a_writer_goes_on_after_a_fork(tmp_path):
    writer = CheckpointWriter(tmp_path)
    writer.save(1, {"weights": torch.zeros(5)}, write)
    writer.wait()
    pid = os.fork()
    if pid == 0:
        try:
            writer.save(2, {"weights": torch.ones(5)}, write)
            writer.wait()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert torch.equal(read(tmp_path / "checkpoint-2"), torch.ones(5))


# the copy


def storages(state: dict[str, torch.Tensor]) -> dict[str, int]:
    return {name: tensor.untyped_storage().data_ptr() for name, tensor in state.items()}


def test_a_copy_has_the_same_bits_and_no_memory_in_common():
    table = torch.randn(6, 4)
    state = {
        "a": table,
        1: [table[2:], (table.T, torch.tensor(3), torch.empty(0, 2))],
        "half": torch.randn(3, dtype=torch.bfloat16),
        "text": "x",
        "none": None,
    }
    copy = copy_to_host(state)
    pairs = [(state["a"], copy["a"]), (state[1][0], copy[1][0]), (state["half"], copy["half"])]
    pairs += zip(state[1][1], copy[1][1], strict=True)
    for original, copied in pairs:
        assert torch.equal(original, copied) and original.dtype == copied.dtype
        assert original.stride() == copied.stride()
        assert not original.numel() or original.data_ptr() != copied.data_ptr()
    assert (copy["text"], copy["none"], type(copy[1][1])) == ("x", None, tuple)
    expected = table.clone()
    table.zero_()
    assert torch.equal(copy["a"], expected) and torch.equal(copy[1][0], expected[2:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_from_a_gpu_is_of_its_moment():
    weights, factor = torch.ones(50_000_000, device="cuda"), torch.randn(4000, 4000, device="cuda")
    for _ in range(50):  # keeps the GPU busy while the copy is asked for
        factor = (factor @ factor).tanh()
    weights *= 2
    copy = copy_to_host({"a": weights, "b": weights[1:], "step": torch.tensor(3.0, device="cuda")})
    weights.zero_()
    assert copy["a"].device.type == copy["step"].device.type == "cpu" and copy["step"] == 3
    assert bool((copy["a"] == 2).all())
    assert storages({"b": copy["b"]})["b"] == storages({"a": copy["a"]})["a"]


def test_tied_weights_stay_tied_in_the_copy(tokenizer, tmp_path):
    model = make_model(tokenizer)
    state = model.state_dict()
    copy = copy_to_host(state)
    originals, copies = storages(state), storages(copy)
    assert len({*originals.values()}) == len({*copies.values()}) < len(state)
    for first in state:
        for second in state:
            assert (originals[first] == originals[second]) == (copies[first] == copies[second])
    model.save_pretrained(tmp_path / "copy", state_dict=copy)
    model.save_pretrained(tmp_path / "original")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("copy", "original")]
    assert files[0] == files[1]
    loaded = KcElectraForPreTraining.from_pretrained(tmp_path / "copy")
    assert all(torch.equal(loaded.state_dict()[name], state[name]) for name in state)
