"""Between two logs no step waits for the device: no value is read from it, and no shape depends on one."""

import sys
import threading
from collections import defaultdict

import pytest
import torch
from test_trainer import make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback, TrainerControl

from kcelectra import DataCollatorForReplacedTokenDetection
from kcelectra.corpus.comments import CommentReader
from kcelectra.pretraining.guards import UpdateGuard
from kcelectra.pretraining.packed import PackedRows
from kcelectra.pretraining.packed_corpus import pack_corpus
from kcelectra.pretraining.row_loader import RowLoader

WAITING_OPERATORS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal", "bincount"}
READS = ("tolist", "numpy", "cpu")  # that a CPU does without an operator


class StepCounter(TrainerCallback):
    """Says in which step the run is."""

    def __init__(self, waits):
        self.waits = waits

    def on_step_begin(self, args, state, control, **kwargs):
        """Count from 1."""
        self.waits.step = state.global_step + 1


class Waits(TorchDispatchMode):
    """Notes by step what would wait for an accelerator; on a CPU, where tests run, each is a mere call.

    `RecoverableTrainer.end_step` reads the guard in each step where that is one, and there alone.
    """

    def __init__(self, monkeypatch):
        super().__init__()
        self.found, self.step = defaultdict(set), 0
        for name in READS:
            monkeypatch.setattr(torch.Tensor, name, self.noting(name, getattr(torch.Tensor, name)))

    def noting(self, name, read):
        """Return a method that is noted."""

        def note(tensor, *args, **kwargs):
            self.note(name)
            return read(tensor, *args, **kwargs)

        return note

    def note(self, name):
        """Remember who called, unless it is the guard, or the thread that reads ahead."""
        callers, frame = [], sys._getframe(1)
        while frame is not None:
            callers.append(frame.f_code)
            frame = frame.f_back
        if UpdateGuard.read.__code__ not in callers and threading.current_thread() is threading.main_thread():
            self.found[self.step].add(name)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        """Note what waits."""
        if (name := operator._schema.name.removeprefix("aten::")) in WAITING_OPERATORS:
            self.note(name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"short_length": 32}, {"activation_checkpointing": True}], ids=str)
def test_only_steps_that_log_wait_for_the_device(tokenizer, sample_file, tmp_path, monkeypatch, precision, options):
    arguments = {"logging_steps": 4, "max_steps": 9, "gradient_accumulation_steps": 2, "precision": precision}
    trainer = make_trainer(tokenizer, sample_file, tmp_path, **arguments, **options)
    with Waits(monkeypatch) as waits:
        trainer.add_callback(StepCounter(waits))
        trainer.train()
    assert "_local_scalar_dense" in waits.found[4] and "tolist" in waits.found[8]  # it does see them
    assert set(waits.found) <= {0, 4, 8, 9}  # 0 before the first step, 9 the end of the run


def test_the_guard_is_read_in_steps_that_log_or_save_alone(tokenizer, sample_file, tmp_path, monkeypatch):
    trainer, reads = make_trainer(tokenizer, sample_file, tmp_path), []
    trainer.state.max_steps, read = 1, trainer.guard.read
    monkeypatch.setattr(trainer.guard, "read", lambda: reads.append(1) or read())
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cuda"))  # of which only the name is looked at
    trainer.end_step(TrainerControl())
    assert not reads
    trainer.end_step(TrainerControl(should_log=True))
    trainer.end_step(TrainerControl(should_save=True))
    assert len(reads) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; the same is tested on the CPU by its operators")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_cuda_sees_no_step_wait_but_those_that_log(tokenizer, sample_file, tmp_path):
    arguments = {"logging_steps": 4, "max_steps": 9, "precision": "auto", "compile": False}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            torch.cuda.set_sync_debug_mode("error" if state.global_step % 4 not in (0, 3) else "default")

        def on_step_end(self, args, state, control, **kwargs):
            torch.cuda.set_sync_debug_mode("default")

    trainer = make_trainer(tokenizer, sample_file, tmp_path, use_cpu=False, **arguments)
    trainer.add_callback(Watch())
    trainer.train()


def test_batches_for_a_gpu_are_pinned_beside_the_training_and_copied_without_waiting(
    tokenizer, sample_file, tmp_path, monkeypatch
):
    pinned, copied = [], []

    def pin(tensor):
        assert threading.current_thread() is not threading.main_thread()
        pinned.append(tensor)
        return tensor

    def copy(tensor, device, *, non_blocking=False):
        copied.append((tensor, str(device), non_blocking))
        return tensor

    trainer = make_trainer(tokenizer, sample_file, tmp_path)
    loader = iter(
        RowLoader(trainer.train_dataset, trainer.data_collator, batch_size=4, device=torch.device("cuda", 0))
    )
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "pin_memory", pin)
        patched.setattr(torch.Tensor, "to", copy)
        batch = next(loader)
        loader.close()
    assert copied and {(device, non_blocking) for _, device, non_blocking in copied} == {("cuda:0", True)}
    assert [id(tensor) for tensor, *_ in copied] == [id(tensor) for tensor in batch.values()]
    assert {id(tensor) for tensor in batch.values()} <= {id(tensor) for tensor in pinned}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; the calls are tested without one")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_packed_rows_lie_in_pinned_memory(tokenizer, sample_file, tmp_path, num_workers):
    pack_corpus(CommentReader(str(sample_file)), tokenizer, tmp_path / "rows", max_length=64, num_workers=1)
    loader = RowLoader(
        PackedRows(str(tmp_path / "rows"), seed=0),
        DataCollatorForReplacedTokenDetection(tokenizer),
        batch_size=4,
        device=torch.device("cuda"),
        num_workers=num_workers,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking: tensor)
        assert all(tensor.is_pinned() for tensor in next(iter(loader)).values())
