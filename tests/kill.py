"""Kill runs and let them go on: forked from a process that has imported everything, so that a start takes a moment."""

import json
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from tqdm import tqdm

from kcelectra import (
    DataCollatorForReplacedTokenDetection,
    KcElectraConfig,
    KcElectraForPreTraining,
    KcElectraTrainer,
    PretrainingArguments,
)
from kcelectra.corpus.comments import CommentReader
from kcelectra.pretraining import saving
from kcelectra.pretraining.packed import PackedRows
from kcelectra.pretraining.streaming import PackedStream

MAX_LENGTH = 64
SAVE_STEPS = 4


class RecordingTrainer(KcElectraTrainer):
    """Appends the row ids of each step to `rows.jsonl`, and begin and end of each save to a pipe."""

    def get_batch_samples(self, *args):
        batches, count = super().get_batch_samples(*args)
        rows = [batch["row_id"].tolist() for batch in batches]
        gathered = gather_object([rows])  # of each process its micro-steps
        if self.is_world_process_zero():
            order = [row_id for micro_step in zip(*gathered, strict=True) for part in micro_step for row_id in part]
            append(self.run_dir / "rows.jsonl", {"step": self.state.global_step + 1, "rows": order})
        return batches, count


def append(path: Path, entry: dict) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, json.dumps(entry).encode() + b"\n")
    os.close(descriptor)


def make_dataset(source: str, tokenizer, *, window: int = 30) -> PackedRows | PackedStream:
    """Open packed rows of a directory, or a stream of a file."""
    if Path(source).is_dir():
        return PackedRows(source, seed=3)
    return PackedStream(CommentReader(source), tokenizer, max_length=MAX_LENGTH, shuffle_window=window)


def make_trainer(
    source: str,
    tokenizer,
    run_dir: Path,
    *,
    trainer_class=RecordingTrainer,
    collator_class=None,
    config=None,
    **arguments,
) -> RecordingTrainer:
    torch.manual_seed(0)
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1, **(config or {}))
    defaults = {
        "max_steps": 24,
        "per_device_train_batch_size": 4,
        "warmup_steps": 2,
        "logging_steps": 3,
        "save_steps": SAVE_STEPS,
        "save_total_limit": 2,
        "precision": "float32",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return trainer_class(
        model=KcElectraForPreTraining(config),
        args=PretrainingArguments(output_dir=str(run_dir), **{**defaults, **arguments}),
        train_dataset=make_dataset(source, tokenizer),
        data_collator=(collator_class or DataCollatorForReplacedTokenDetection)(tokenizer),
        processing_class=tokenizer,
    )


def fork(function: Callable[[], None], log: Path) -> int:
    """Run a function in a child and return its process id; what it prints goes to a file."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        sys.stdout = sys.stderr = open(log, "a", buffering=1)
        os.dup2(sys.stdout.fileno(), 1)
        os.dup2(sys.stdout.fileno(), 2)
        torch.set_num_threads(1)  # a forked process has lost the threads of its parent
        tqdm.set_lock(threading.RLock())  # not the one of all processes, which a killed one may hold for ever
        function()
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def fork_together(num_processes: int, function: Callable[[], None], log_dir: Path) -> list[int]:
    """Run a function in children that train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(rank: int) -> None:
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
        os.environ |= {key: str(value) for key, value in world.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
        os.environ["OMP_NUM_THREADS"] = "1"  # accelerate warns where nothing says it
        AcceleratorState._reset_state(reset_partial_state=True)  # of the parent, which was alone
        function()

    return [fork(partial(run, rank), log_dir / f"log{rank}.txt") for rank in range(num_processes)]


def wait(child: int) -> int:
    """Return the exit status; of a killed process minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(source: str, tokenizer, run_dir: Path, saves: int | None = None, **arguments) -> None:
    """Train, or go on; `saves` is a pipe that is told when a save begins and ends."""
    if saves is not None:
        write_checkpoint = saving.write_checkpoint

        def told(*args, **kwargs):
            os.write(saves, b"b")
            try:
                return write_checkpoint(*args, **kwargs)
            finally:
                os.write(saves, b"e")

        saving.write_checkpoint = told
    make_trainer(source, tokenizer, run_dir, **arguments).train(resume_from_checkpoint=True)


def kill_once(start: Callable[[int], int], rng: random.Random, *, in_save: bool, seconds: float) -> tuple[int, bool]:
    """Start a child and kill it at a random moment.

    Args:
        start: forks the child, which writes to the pipe that it gets.
        rng: chooses the moment.
        in_save: after the beginning of one of its saves.
        seconds: that a child takes, about; of a save if `in_save`.

    Returns:
        The exit status, and whether a save was going on.
    """
    reading, writing = os.pipe()
    child = start(writing)
    os.close(writing)
    told = b""
    if in_save:
        for _ in range(rng.randint(1, 3)):
            while (byte := os.read(reading, 1)) == b"e":
                pass
            told = byte
    time.sleep(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    status = wait(child)
    while byte := os.read(reading, 1):
        told = byte
    os.close(reading)
    return status, status == -signal.SIGKILL and told == b"b"


def rows_of(run_dir: Path) -> list[list[int]]:
    """Return the rows that each step was trained on; those of a step that was trained again must be the same."""
    steps: dict[int, list[int]] = {}
    for line in (run_dir / "rows.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert steps.setdefault(entry["step"], entry["rows"]) == entry["rows"]
    assert sorted(steps) == list(range(1, len(steps) + 1))
    return [steps[step] for step in sorted(steps)]


def steps_lost(run_dir: Path) -> int:
    """Return how many steps at most were trained again after a restart."""
    steps = [json.loads(line)["step"] for line in (run_dir / "rows.jsonl").read_text().splitlines()]
    return max((before - after + 1 for before, after in zip(steps, steps[1:], strict=False)), default=0)
