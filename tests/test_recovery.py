"""A run cannot be lost: killed at any moment, told to stop or elastic, it ends as an undisturbed one does."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from kill import (
    MAX_LENGTH,
    SAVE_STEPS,
    RecordingTrainer,
    fork,
    fork_together,
    kill_once,
    make_trainer,
    rows_of,
    steps_lost,
    train,
    wait,
)
from safetensors.torch import load_file

from kcelectra import DataCollatorForReplacedTokenDetection
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining.checkpoints import find_checkpoints, find_last_checkpoint, read_history, read_step
from kcelectra.pretraining.record import read_record
from kcelectra.pretraining.run import describe_run

TIMES = {"seconds", "tokens_per_second", "teraflops_per_second", "input_wait_share"}


@pytest.fixture(scope="module")
def packed_dir(pack_here, tokenizer, sample_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "rows"
    pack_here(CommentReader(str(sample_file)), tokenizer, path, max_length=MAX_LENGTH)
    return path


def train_undisturbed(source, tokenizer, run_dir):
    run_dir.mkdir()
    assert wait(fork(partial(train, str(source), tokenizer, run_dir), run_dir / "log.txt")) == 0
    return str(source), run_dir


@pytest.fixture(scope="module")
def on_packed(tokenizer, packed_dir, tmp_path_factory):
    """Return packed rows, and a run on them that nothing disturbed."""
    return train_undisturbed(packed_dir, tokenizer, tmp_path_factory.mktemp("packed") / "straight")


@pytest.fixture(scope="module", params=["packed", "stream"])
def undisturbed(request, tokenizer, sample_file, tmp_path_factory):
    """Return a source of either kind, and a run on it that nothing disturbed."""
    if request.param == "packed":
        return request.getfixturevalue("on_packed")
    return train_undisturbed(sample_file, tokenizer, tmp_path_factory.mktemp("stream") / "straight")


def last_of(run_dir):
    checkpoint = find_last_checkpoint(run_dir)
    history = [{key: log[key] for key in log.keys() - TIMES} for log in read_history(checkpoint)]
    return read_step(checkpoint), history, load_file(checkpoint / "model.safetensors")


def assert_same_end(run_dir, straight):
    ours, theirs = last_of(run_dir), last_of(straight)
    assert ours[0] == theirs[0]
    assert ours[2].keys() == theirs[2].keys()
    assert all(torch.equal(ours[2][name], theirs[2][name]) for name in theirs[2])
    assert ours[1] == theirs[1]
    assert rows_of(run_dir) == rows_of(straight)


def kill_until_done(source, tokenizer, run_dir, rng, *, seconds, save_seconds):
    """Return how often the run was killed, and how often inside a save."""
    kills = [0, 0]
    run_dir.mkdir()
    while True:
        in_save = kills[0] == 0 or rng.random() < 0.5  # a fast machine would end the first run before it is killed

        def start(pipe):
            return fork(partial(train, source, tokenizer, run_dir, pipe), run_dir / "log.txt")

        status, was_saving = kill_once(start, rng, in_save=in_save, seconds=save_seconds if in_save else seconds)
        if status == 0:
            return kills
        assert status == -signal.SIGKILL, (run_dir / "log.txt").read_text()
        kills[0] += 1
        kills[1] += was_saving


def test_a_run_that_is_killed_at_any_moment_ends_as_an_undisturbed_one(undisturbed, tokenizer, tmp_path):
    source, straight = undisturbed
    kills = kill_until_done(source, tokenizer, tmp_path / "run", random.Random(0), seconds=0.6, save_seconds=0.05)
    assert_same_end(tmp_path / "run", straight)
    assert steps_lost(tmp_path / "run") <= 2 * SAVE_STEPS
    assert kills[0] >= 1


@pytest.mark.slow
def test_five_hundred_kills_of_which_a_hundred_inside_a_save(tokenizer, sample_file, packed_dir, tmp_path, capsys):
    total, inside, most_lost, runs, rng = 0, 0, 0, 0, random.Random(11)
    straight = {}
    while total < 500 or inside < 100:
        source = str((packed_dir, sample_file)[runs % 2])
        if source not in straight:
            straight[source] = tmp_path / f"straight{runs}"
            straight[source].mkdir()
            assert wait(fork(partial(train, source, tokenizer, straight[source]), tmp_path / "log.txt")) == 0
        run_dir = tmp_path / f"run{runs}"
        kills = kill_until_done(source, tokenizer, run_dir, rng, seconds=0.8, save_seconds=0.05)
        assert_same_end(run_dir, straight[source])
        most_lost = max(most_lost, steps_lost(run_dir))
        total, inside, runs = total + kills[0], inside + kills[1], runs + 1
        shutil.rmtree(run_dir)
        with capsys.disabled():
            print(f"\n{runs} runs, {total} kills, {inside} inside a save, at most {most_lost} steps trained again")  # noqa: T201
    assert most_lost <= 2 * SAVE_STEPS


def test_a_run_that_was_killed_after_its_last_save_is_not_trained_further(undisturbed, tokenizer, tmp_path):
    source, straight = undisturbed
    shutil.copytree(straight, tmp_path / "run")
    trainer = make_trainer(source, tokenizer, tmp_path / "run")
    assert trainer.train(resume_from_checkpoint=True).global_step == 24
    assert_same_end(tmp_path / "run", straight)
    facts = describe_run(trainer)  # a report that was not written yet has the numbers of the run
    assert facts["Training"]["model FLOPs (3 x forward, look-ups free)"] > 0
    assert "Data" not in facts or facts["Data"]["passes"] > 0
    weights = load_file(tmp_path / "run" / "checkpoint-24" / "model.safetensors")
    assert all(torch.equal(trainer.model.state_dict()[name], weight) for name, weight in weights.items())


def test_a_run_goes_on_with_the_saves_and_logs_that_are_asked_for_now(undisturbed, tokenizer, tmp_path):
    source, straight = undisturbed
    shutil.copytree(straight, tmp_path / "run")
    *_, before_last, last = find_checkpoints(tmp_path / "run")
    shutil.rmtree(last)
    trainer = make_trainer(source, tokenizer, tmp_path / "run", save_steps=1, logging_steps=2, save_total_limit=9)
    begun = read_step(before_last)
    trainer.train(resume_from_checkpoint=True)
    steps = [read_step(checkpoint) for checkpoint in find_checkpoints(tmp_path / "run")]
    assert [step for step in steps if step > begun] == [*range(begun + 1, 25)]
    logged = [log["step"] for log in trainer.state.log_history if "loss" in log and log["step"] > begun]
    assert logged == [step for step in range(begun + 1, 25) if step % 2 == 0]
    assert all(
        torch.equal(last_of(tmp_path / "run")[2][name], weight) for name, weight in last_of(straight)[2].items()
    )


def test_a_run_that_goes_on_elsewhere_has_the_rate_and_the_decay_of_now(on_packed, tokenizer, tmp_path):
    source, straight = on_packed
    checkpoint = str(find_checkpoints(straight)[0])
    trainers = [
        make_trainer(source, tokenizer, tmp_path / str(rate), learning_rate=rate, weight_decay=decay, logging_steps=1)
        for rate, decay in ((1e-3, 0.01), (1e-4, 0.5))
    ]
    for trainer in trainers:
        trainer.train(resume_from_checkpoint=checkpoint)
    rates = [[log["learning_rate"] for log in trainer.state.log_history if "loss" in log] for trainer in trainers]
    begun = read_step(Path(checkpoint))
    assert rates[1][-(24 - begun) :] == pytest.approx([rate / 10 for rate in rates[0][-(24 - begun) :]])
    assert max(group["weight_decay"] for group in trainers[1].optimizer.param_groups) == 0.5


def test_a_start_that_ends_with_an_error_says_so_in_the_record(on_packed, tokenizer, tmp_path, monkeypatch):
    trainer = make_trainer(on_packed[0], tokenizer, tmp_path / "run")
    trainer.recorded = {"size": "tiny"}

    def fail(*args):
        raise InputError("the disk is full")

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(InputError, match="the disk is full"):
        trainer.train()
    record = read_record(tmp_path / "run")
    assert record["starts"][-1]["end"]["how"] == "ended by an error: the disk is full"
    assert record["arguments"]["size"] == "tiny" and record["arguments"]["max_steps"] == 24


# told to stop


def wait_for_steps(run_dir, num_steps, child):
    """Wait until a run has begun so many steps."""
    rows = run_dir / "rows.jsonl"
    while not rows.exists() or len(rows.read_text().splitlines()) < num_steps:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it has ended"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_stop_saves_exits_with_143_and_goes_on(undisturbed, tokenizer, tmp_path, number):
    source, straight = undisturbed
    child = fork(partial(train, source, tokenizer, tmp_path), tmp_path / "log.txt")
    wait_for_steps(tmp_path, 6, child)
    os.kill(child, number)
    assert wait(child) == 143
    step = read_step(find_last_checkpoint(tmp_path))
    assert step == len(rows_of(tmp_path)) < 24  # nothing is lost
    assert read_record(tmp_path)["starts"][-1]["end"]["how"] == f"stopped by {number.name}"
    assert wait(fork(partial(train, source, tokenizer, tmp_path), tmp_path / "log.txt")) == 0
    assert_same_end(tmp_path, straight)
    assert steps_lost(tmp_path) == 0


class StoppingTrainer(RecordingTrainer):
    """The last process is told to stop in step `stop_at`."""

    stop_at = None

    def training_step(self, *args, **kwargs):
        is_last = self.args.process_index == self.args.world_size - 1
        if self.state.global_step + 1 == self.stop_at and is_last and self._micro_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(*args, **kwargs)


def train_together(num_processes, source, tokenizer, run_dir, *, stop_at=None, **arguments):
    """Train with several processes and return their exit statuses."""

    def run():
        StoppingTrainer.stop_at = stop_at
        train(source, tokenizer, run_dir, trainer_class=StoppingTrainer, **arguments)

    run_dir.mkdir(exist_ok=True)
    return [wait(child) for child in fork_together(num_processes, run, run_dir)]


def test_all_processes_save_the_same_step_when_one_is_told_to_stop(on_packed, tokenizer, tmp_path):
    source, _ = on_packed
    train_two = partial(train_together, 2, source, tokenizer, max_steps=8, per_device_train_batch_size=2)
    assert train_two(tmp_path / "straight") == [0, 0]
    assert train_two(tmp_path / "run", stop_at=3) == [143, 143]
    assert read_step(find_last_checkpoint(tmp_path / "run")) == 3
    assert train_two(tmp_path / "run") == [0, 0]
    assert_same_end(tmp_path / "run", tmp_path / "straight")


# another number of processes


class RaggedCollator(DataCollatorForReplacedTokenDetection):
    """Leaves up to two thirds of a row empty, so that no two processes have as many tokens."""

    def __call__(self, rows):
        lengths = [MAX_LENGTH - 5 * (row["row_id"] % 9) for row in rows]
        kept = [np.arange(MAX_LENGTH) < length for length in lengths]
        return super().__call__(
            [{**row, "input_ids": np.where(keep, row["input_ids"], 0)} for row, keep in zip(rows, kept, strict=True)]
        )


#: Without noise that differs between processes: what is left is how the rows were split.
NOISELESS = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "sampling_temperature": 1e-5,
    "initializer_range": 0.1,
}


def test_the_number_of_processes_may_change_in_mid_run(on_packed, tokenizer, tmp_path):
    """The rows of each step are the same in the same order, and so are the losses within rounding."""
    source, _ = on_packed
    steps = {"max_steps": 6, "logging_steps": 1, "total_train_batch_size": 8, "config": NOISELESS}
    steps["collator_class"] = RaggedCollator
    assert train_together(1, source, tokenizer, tmp_path / "one", per_device_train_batch_size=8, **steps) == [0]
    for num_processes, batch_size, stop_at in ((2, 4, 2), (1, 2, 4), (2, 1, None)):
        statuses = train_together(
            num_processes,
            source,
            tokenizer,
            tmp_path / "changing",
            per_device_train_batch_size=batch_size,
            stop_at=stop_at,
            **steps,
        )
        assert statuses == [143 if stop_at else 0] * num_processes
    assert rows_of(tmp_path / "changing") == rows_of(tmp_path / "one")
    ours, theirs = last_of(tmp_path / "changing"), last_of(tmp_path / "one")
    for our, their in zip(ours[1], theirs[1], strict=True):
        for key in ("loss", "generator_loss", "discriminator_loss", "discriminator_auc", "fake_rate", "grad_norm"):
            assert our[key] == pytest.approx(their[key], rel=2e-4), key
    for name, weight in theirs[2].items():
        torch.testing.assert_close(ours[2][name], weight, atol=5e-5, rtol=0)


def test_more_processes_without_a_total_batch_size_are_refused(on_packed, tokenizer, tmp_path):
    source, _ = on_packed
    assert train_together(1, source, tokenizer, tmp_path, max_steps=4, stop_at=2) == [143]
    assert train_together(2, source, tokenizer, tmp_path, max_steps=4) == [1, 1]
    assert "data (rows_per_step: 4 then, 8 now)" in (tmp_path / "log0.txt").read_text()


# what has changed


def test_other_data_are_refused_and_may_be_allowed(tokenizer, sample_file, tmp_path):
    """A run that was stopped goes on with an edited file only if it is told to."""
    source = tmp_path / "comments.jsonl"
    shutil.copy(sample_file, source)
    assert train_together(1, str(source), tokenizer, tmp_path / "run", stop_at=3, max_steps=6) == [143]
    with open(source, "a") as file:
        file.write('{"text": "하나 더 있는 댓글입니다"}\n')
    trainer = make_trainer(str(source), tokenizer, tmp_path / "run", max_steps=6)
    with pytest.raises(InputError, match=r"checkpoint-3 was made with other things .*data .*--allow_changed data$"):
        trainer.train(resume_from_checkpoint=True)
    trainer = make_trainer(str(source), tokenizer, tmp_path / "run", max_steps=6, allow_changed=["data"])
    trainer.train(resume_from_checkpoint=True)
    start = read_record(tmp_path / "run")["starts"][-1]
    assert len(start["changed"]) == 1 and start["changed"][0].startswith("data (")
    assert re.fullmatch(r"\d+ cores of \S.*|\d+ x \S.*", start["hardware"])


def test_a_full_disk_ends_the_run_with_a_cure_and_the_checkpoint_before_is_whole(on_packed, tokenizer, tmp_path):
    source, straight = on_packed

    def fill():
        class Filling(RecordingTrainer):
            def _save_checkpoint(self, *args):
                self.writer.wait()
                if self.state.global_step > SAVE_STEPS:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # what a full disk does to a file
                super()._save_checkpoint(*args)

        train(source, tokenizer, tmp_path, trainer_class=Filling)

    assert wait(fork(fill, tmp_path / "log.txt")) == 1
    message = (tmp_path / "log.txt").read_text().splitlines()[-1]
    assert "InputError" in message and "checkpoint-4" in message and "same command" in message
    assert read_step(find_last_checkpoint(tmp_path)) == SAVE_STEPS
    assert wait(fork(partial(train, source, tokenizer, tmp_path), tmp_path / "log.txt")) == 0
    assert_same_end(tmp_path, straight)


@pytest.mark.slow
def test_the_order_is_the_same_through_accelerate_launch(packed_dir, tokenizer, tmp_path, capsys):
    """One process, two with two workers each, four with four; and two that go on from where one stopped."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)

    def launch(name, num_processes, num_workers, stop_at=0):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(num_processes)]
        command += ["--multi_gpu"] if num_processes > 1 else ["--cpu"]
        command += ["--main_process_port", "0", str(script), str(packed_dir), str(tmp_path / "tokenizer")]
        command += [str(tmp_path / name), str(8 // num_processes), str(num_workers), str(stop_at)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.path.dirname(__file__)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert (done.returncode == 0) == (stop_at == 0), done.stderr[-3000:]
        return rows_of(tmp_path / name)

    alone = launch("1", 1, 0)
    assert len(alone) == 6
    assert launch("2", 2, 2) == launch("4", 4, 4) == alone
    launch("changing", 1, 1, stop_at=2)
    assert launch("changing", 2, 0) == alone
    with capsys.disabled():
        print("\n1, 2 and 4 processes with 0, 2 and 4 workers, and 1 then 2: one order of 48 rows")  # noqa: T201


LAUNCHED = """
import sys, warnings
from pathlib import Path
from transformers import AutoTokenizer
from kill import train
from test_recovery import StoppingTrainer

source, tokenizer, run_dir, batch_size, num_workers, stop_at = sys.argv[1:]
warnings.simplefilter("ignore")
Path(run_dir).mkdir(exist_ok=True)
StoppingTrainer.stop_at = int(stop_at) or None
train(source, AutoTokenizer.from_pretrained(tokenizer), Path(run_dir), trainer_class=StoppingTrainer, max_steps=6,
      total_train_batch_size=8, per_device_train_batch_size=int(batch_size), dataloader_num_workers=int(num_workers))
"""
