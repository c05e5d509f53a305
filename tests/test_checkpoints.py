"""A checkpoint is there whole or not at all, and no damage to it goes unseen."""

import contextlib
import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file
from test_trainer import make_model
from transformers.trainer_callback import TrainerState

from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, read_manifest, write_manifest
from kcelectra.pretraining.checkpoints import (
    BrokenCheckpoint,
    clear_leftovers,
    find_checkpoints,
    find_last_checkpoint,
    read_history,
    read_step,
    require_disk_space,
    rotate_checkpoints,
    verify_checkpoint,
    write_checkpoint,
)
from kcelectra.pretraining.states import save_states
from kcelectra.tokenization import save_tokenizer

MEGABYTE = 1_000_000


def write_bytes(step: int, *, size: int = 1000):
    """Return a writer of two files, one of them in a subdirectory, that are a function of the step."""

    def write(directory: Path) -> None:
        (directory / "deep").mkdir()
        (directory / "model.safetensors").write_bytes(Random(step).randbytes(size))
        (directory / "deep" / "states.safetensors").write_bytes(Random(-step).randbytes(size))

    return write


def write(run_dir: Path, *steps: int, size: int = 1000) -> None:
    run_dir.mkdir(exist_ok=True)
    for step in steps:
        write_checkpoint(run_dir, step, write_bytes(step, size=size), rows=step * 8)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_a_child(function) -> int:
    """Run a function in a fork and return how it ended, as a signal below 0."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent are not there
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# writing and finding


def test_a_checkpoint_survives_a_round_trip(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 7, write_bytes(7), data={"row": 56}, seed=1)
    assert checkpoint == tmp_path / "checkpoint-7"
    manifest = verify_checkpoint(checkpoint)
    assert (manifest["step"], manifest["data"], manifest["seed"]) == (7, {"row": 56}, 1)
    assert read_step(checkpoint) == 7
    assert names(tmp_path) == ["checkpoint-7"]
    assert names(checkpoint) == ["deep", MANIFEST, "model.safetensors"]


def test_checkpoints_are_found_by_number_and_not_by_name_or_age(tmp_path):
    write(tmp_path, 100, 20, 3)
    assert [read_step(path) for path in find_checkpoints(tmp_path)] == [3, 20, 100]
    assert read_step(find_last_checkpoint(tmp_path)) == 100


def test_a_run_without_checkpoints_has_no_last_one(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoints").mkdir()
    assert find_last_checkpoint(tmp_path) is None and find_last_checkpoint(tmp_path / "none") is None
    assert find_checkpoints(tmp_path) == []


def test_the_history_of_a_run_is_read_from_its_checkpoint(tmp_path):
    history = [{"loss": 1.5, "step": 3}]
    state = TrainerState(global_step=3, log_history=history)
    checkpoint = write_checkpoint(tmp_path, 3, lambda path: state.save_to_json(str(path / "trainer_state.json")))
    assert read_history(checkpoint) == history


def test_a_checkpoint_that_is_written_again_is_replaced(tmp_path):
    write(tmp_path, 2)
    write_checkpoint(tmp_path, 2, write_bytes(3))
    assert (tmp_path / "checkpoint-2/model.safetensors").read_bytes() == Random(3).randbytes(1000)
    verify_checkpoint(tmp_path / "checkpoint-2")
    assert names(tmp_path) == ["checkpoint-2"]


def test_all_is_on_the_disk_before_the_checkpoint_gets_its_name_and_then_the_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def record(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write(tmp_path, 2)
    staging = "/.checkpoint-2.tmp"
    files = {f"{staging}/{name}" for name in ("deep", "deep/states.safetensors", "model.safetensors")}
    assert {*synced[:3]} == files
    assert synced[3:] == [f"{staging}/.{MANIFEST}.tmp", staging, ""]
    rotate_checkpoints(tmp_path, 1)
    write(tmp_path, 3)
    synced.clear()
    rotate_checkpoints(tmp_path, 1)
    assert synced == [""]


def test_what_a_kill_left_is_not_part_of_what_comes_next(tmp_path):
    (tmp_path / ".checkpoint-2.tmp").mkdir()
    (tmp_path / ".checkpoint-2.tmp" / "stale").write_text("x")
    write(tmp_path, 1, 2)
    assert names(tmp_path / "checkpoint-2") == ["deep", MANIFEST, "model.safetensors"]
    for name in (".checkpoint-2.old", ".checkpoint-1.deleted"):
        shutil.copytree(tmp_path / "checkpoint-2", tmp_path / name)
    write(tmp_path, 2)
    rotate_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-2"]


def test_an_error_while_writing_is_raised_as_it_is_and_leaves_no_checkpoint(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(ZeroDivisionError):
        write_checkpoint(tmp_path, 2, lambda path: 1 / 0)
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_checkpoint_without_a_manifest_is_not_trusted(tmp_path):
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9/trainer_state.json").write_text('{"global_step": 9}')
    assert find_checkpoints(tmp_path) == []
    with pytest.raises(BrokenCheckpoint, match="checkpoint-9 has no manifest.json: .* an earlier version wrote it"):
        find_last_checkpoint(tmp_path)


@pytest.mark.parametrize("facts", [{"stage": "corpus", "step": 9}, {}])
def test_another_directory_is_no_checkpoint(tmp_path, facts):
    directory = tmp_path / "checkpoint-9"
    directory.mkdir()
    write_manifest(directory, **facts)
    assert find_checkpoints(tmp_path) == []
    for use in (verify_checkpoint, read_step):
        with pytest.raises(BrokenCheckpoint, match="checkpoint-9 is no checkpoint"):
            use(directory)


# verifying


def test_a_checkpoint_under_the_number_of_another_is_not_trusted(tmp_path):
    write(tmp_path, 1, 2)
    (tmp_path / "checkpoint-2").rename(tmp_path / "checkpoint-3")
    with pytest.raises(BrokenCheckpoint, match="checkpoint-3 is the checkpoint of step 2"):
        verify_checkpoint(tmp_path / "checkpoint-3")
    assert read_step(find_last_checkpoint(tmp_path)) == 1


def test_a_checkpoint_that_was_pulled_under_another_name_is_trusted(tmp_path):
    write(tmp_path, 2)
    pulled = shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "last-checkpoint")
    assert verify_checkpoint(pulled)["step"] == 2


def test_a_file_that_was_put_in_is_found_and_a_hidden_one_does_not_matter(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "checkpoint-2/.DS_Store").write_text("")
    verify_checkpoint(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2/deep/config.json").write_text("{}")
    with pytest.raises(BrokenCheckpoint, match="deep/config.json was not written with the checkpoint"):
        verify_checkpoint(tmp_path / "checkpoint-2")


def test_a_broken_checkpoint_is_named_moved_away_and_the_one_before_it_used(tmp_path, caplog):
    write(tmp_path, 1, 2, 3, 4)
    damage(tmp_path / "checkpoint-4/model.safetensors")
    (tmp_path / "checkpoint-3/deep/states.safetensors").unlink()
    before = contents(tmp_path)
    assert read_step(find_last_checkpoint(tmp_path)) == 2
    assert contents(tmp_path) == before
    caplog.clear()
    assert read_step(find_last_checkpoint(tmp_path, quarantine=True)) == 2
    assert names(tmp_path) == ["broken", "checkpoint-1", "checkpoint-2"]
    assert names(tmp_path / "broken") == ["checkpoint-3", "checkpoint-4"]
    for record, name in zip(caplog.records, ["checkpoint-4/model", "checkpoint-3/deep/states"], strict=True):
        assert record.levelno == logging.WARNING
        assert f"{tmp_path / name}.safetensors is missing or not what manifest.json says" in record.message
        assert "checkpoint-2 is used instead" in record.message and f"to {tmp_path / 'broken'}" in record.message


def test_each_broken_checkpoint_is_kept(tmp_path):
    write(tmp_path, 1)
    for number in range(3):
        write_checkpoint(tmp_path, 2, write_bytes(number))
        damage(tmp_path / "checkpoint-2" / MANIFEST)
        find_last_checkpoint(tmp_path, quarantine=True)
    assert names(tmp_path / "broken") == ["checkpoint-2", "checkpoint-2-2", "checkpoint-2-3"]


def test_if_all_are_broken_it_is_said_and_nothing_is_moved(tmp_path):
    write(tmp_path, 1, 2)
    damage(tmp_path / "checkpoint-1" / MANIFEST)
    damage(tmp_path / "checkpoint-2/model.safetensors")
    before = contents(tmp_path)
    with pytest.raises(BrokenCheckpoint) as error:
        find_last_checkpoint(tmp_path, quarantine=True)
    for said in ("has no whole checkpoint", "checkpoint-1/manifest.json", "checkpoint-2/model", "--output_dir"):
        assert said in str(error.value)
    assert contents(tmp_path) == before


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """Two checkpoints of a real model, with its optimizer, schedule and tokenizer."""
    run_dir = tmp_path_factory.mktemp("run")
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

        def write(directory, step=step):
            model.save_pretrained(directory)
            save_tokenizer(tokenizer, directory)
            save_states(directory, {"optimizer": optimizer.state_dict()})
            TrainerState(global_step=step).save_to_json(str(directory / "trainer_state.json"))

        write_checkpoint(run_dir, step, write, data={"row": step * 8}, seed=0)
    return run_dir


def corrupt(checkpoint_dir: Path, random: Random) -> str:
    """Do something random to a checkpoint, and return what."""
    files = sorted(path for path in checkpoint_dir.rglob("*") if path.is_file())
    path = random.choice(files)
    data = bytearray(path.read_bytes())
    kind = random.choice(["flip", "flips", "cut", "empty", "more", "missing", "swap", "zeros"])
    if kind in ("flip", "flips"):
        for place in random.sample(range(len(data)), 1 if kind == "flip" else min(20, len(data))):
            data[place] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del data[random.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    elif kind == "more":
        data += random.randbytes(random.randrange(1, 100))
    elif kind == "zeros":  # a block that never reached the disk; a byte that is no zero is among them
        start = random.choice([place for place in range(0, len(data), 512) if any(data[place : place + 512])])
        data[start : start + 512] = bytes(len(data[start : start + 512]))
    elif kind == "swap":
        other = random.choice([other for other in files if other.read_bytes() != data])
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return kind
    path.unlink() if kind == "missing" else path.write_bytes(data)
    return kind


@pytest.mark.parametrize("num_corruptions", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_random_corruption_is_found_and_the_checkpoint_before_used(
    run, tmp_path, num_corruptions, caplog, capsys
):
    random = Random(num_corruptions)
    broken_run = Path(shutil.copytree(run, tmp_path / "run"))
    first, last = broken_run / "checkpoint-1", broken_run / "checkpoint-2"
    whole = contents(last)
    kinds = Counter()
    for number in range(num_corruptions):
        kind = corrupt(last, random)
        present = contents(last)
        changed = sorted(name for name in whole if present.get(name) != whole[name])
        assert changed, kind
        kinds.update([kind])
        caplog.clear()
        assert find_last_checkpoint(broken_run) == first, (kind, changed)
        assert any(f"{last / name} " in caplog.text for name in changed) or MANIFEST in changed
        if number % 10 == 0:
            with pytest.raises(BrokenCheckpoint, match="has no whole checkpoint"):
                find_last_checkpoint(alone(last, tmp_path / "alone"))
        for name in changed:
            (last / name).write_bytes(whole[name])
    verify_checkpoint(last)
    with capsys.disabled():
        sys.stdout.write(f"\n{num_corruptions} corruptions, all found: {dict(kinds)}\n")


def alone(checkpoint_dir: Path, run_dir: Path) -> Path:
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(checkpoint_dir, run_dir / checkpoint_dir.name)
    return run_dir


# rotation


def test_the_newest_checkpoints_stay(tmp_path):
    write(tmp_path, 1, 2, 30, 4)
    for limit, left in ((None, 4), (0, 4), (-1, 4), (4, 4), (3, 3), (1, 1)):
        rotate_checkpoints(tmp_path, limit)
        assert len(names(tmp_path)) == left
    assert names(tmp_path) == ["checkpoint-30"]


def test_a_broken_checkpoint_does_not_count_among_those_that_stay(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    damage(tmp_path / "checkpoint-4/model.safetensors")
    rotate_checkpoints(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    rotate_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert read_step(find_last_checkpoint(tmp_path)) == 3


def test_no_more_is_deleted_where_fewer_are_whole_than_may_stay(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    for step in (3, 4):
        damage(tmp_path / f"checkpoint-{step}/model.safetensors")
    rotate_checkpoints(tmp_path, 3)
    assert len(names(tmp_path)) == 4


def test_if_all_are_broken_none_is_deleted(tmp_path):
    write(tmp_path, 1, 2, 3)
    for step in (1, 2, 3):
        damage(tmp_path / f"checkpoint-{step}/model.safetensors")
    rotate_checkpoints(tmp_path, 1)
    assert len(names(tmp_path)) == 3


# kills


def test_a_kill_before_any_operation_on_files_loses_nothing(tmp_path):
    """A save that replaces a checkpoint and deletes another, killed in turn before each thing it does to the disk."""

    def save_and_die(run_dir, *, at):
        num_done = 0

        def die(event, arguments):
            nonlocal num_done
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
                num_done += 1
                if num_done == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        write_checkpoint(run_dir, 2, write_bytes(20))
        rotate_checkpoints(run_dir, 1)

    write(tmp_path / "before", 1, 2)
    found = Counter()
    for at in range(1, 1000):
        run_dir = Path(shutil.copytree(tmp_path / "before", tmp_path / str(at)))
        status = in_a_child(lambda run_dir=run_dir, at=at: save_and_die(run_dir, at=at))
        clear_leftovers(run_dir)
        last = find_last_checkpoint(run_dir)
        content = (last / "model.safetensors").read_bytes()
        assert last.name == "checkpoint-2" and content in (Random(2).randbytes(1000), Random(20).randbytes(1000))
        assert {*names(run_dir)} <= {"checkpoint-1", "checkpoint-2"}
        for path in find_checkpoints(run_dir):
            verify_checkpoint(path)
        found["old" if content == Random(2).randbytes(1000) else "new"] += 1
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert found["old"] > 10 and found["new"] > 5, found
    assert names(run_dir) == ["checkpoint-2"]


@pytest.mark.parametrize("num_kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_loses_at_most_the_checkpoint_that_is_written(tmp_path, num_kills, capsys):
    random = Random(num_kills)
    last, inside = 0, 0
    for _ in range(num_kills):
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                for step in range(last + 1, last + 1000):
                    write_checkpoint(tmp_path, step, write_bytes(step, size=MEGABYTE))
                    os.write(writer, step.to_bytes(4))
                    rotate_checkpoints(tmp_path, 2)
            os._exit(1)
        os.close(writer)
        time.sleep(random.uniform(0.005, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        with open(reader, "rb") as pipe:
            said = pipe.read()
        done = int.from_bytes(said[-4:]) if said else last
        inside += any(name.startswith(".checkpoint") for name in names(tmp_path))
        clear_leftovers(tmp_path)
        if done > 0 or find_checkpoints(tmp_path):
            found = find_last_checkpoint(tmp_path)
            last = read_step(found)
            assert last in (done, done + 1)
            assert (found / "model.safetensors").read_bytes() == Random(last).randbytes(MEGABYTE)
            rotate_checkpoints(tmp_path, 2)  # a life may be too short for its own
            assert find_last_checkpoint(tmp_path) == found
            assert len(find_checkpoints(tmp_path)) == len(names(tmp_path)) <= 2
    with capsys.disabled():
        sys.stdout.write(f"\n{num_kills} kills, {inside} of them inside a save or a deletion; {last} checkpoints\n")
    assert inside > 0 and last > 0


def test_what_a_kill_left_is_cleared_and_other_files_are_not(tmp_path):
    write(tmp_path, 1, 2)
    for name in (".checkpoint-3.tmp", ".checkpoint-1.deleted", ".checkpoint-2.old"):
        shutil.copytree(tmp_path / "checkpoint-2", tmp_path / name)
    (tmp_path / "run.yaml").write_text("")
    (tmp_path / ".push").mkdir()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == [".push", "checkpoint-1", "checkpoint-2", "run.yaml"]


# a full disk


def write_big(directory: Path) -> None:
    save_file({"weights": torch.zeros(MEGABYTE)}, directory / "model.safetensors")


def write_big_plainly(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(bytes(4 * MEGABYTE))


def assert_refused_and_intact(run_dir: Path, write_it) -> None:
    before = contents(run_dir)
    with pytest.raises(InputError) as error:
        write_checkpoint(run_dir, 2, write_it)
    message = str(error.value)
    assert f"cannot write {run_dir / 'checkpoint-2'}" in message and "checkpoint-1 is intact" in message
    assert " MB are free" in message and "the same command then continues" in message
    assert contents(run_dir) == before and names(run_dir) == ["checkpoint-1"]
    verify_checkpoint(run_dir / "checkpoint-1")


@pytest.mark.parametrize("write_it", [write_big, write_big_plainly])
def test_a_full_disk_leaves_the_checkpoint_before_and_is_explained(tmp_path, write_it):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk; a limit on the size of files is tested below")
    try:
        write(tmp_path, 1, size=500_000)
        assert_refused_and_intact(tmp_path, write_it)
        write(tmp_path, 2, size=500_000)  # what is smaller has room
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("write_it", [write_big, write_big_plainly])
def test_a_file_that_may_not_grow_leaves_the_checkpoint_before_and_is_explained(tmp_path, write_it):
    write(tmp_path, 1)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, MEGABYTE))
        assert_refused_and_intact(tmp_path, write_it)

    assert in_a_child(limited) == 0


def test_if_the_disk_is_full_and_there_is_no_checkpoint_it_is_said(tmp_path):
    def write_to_a_full_device(directory):
        (directory / "model.safetensors").write_bytes(bytes(2 * MEGABYTE))
        with open("/dev/full", "wb") as file:
            file.write(b"x")

    with pytest.raises(InputError, match=r"needs about 2\.0 MB, .* MB are free; there is no checkpoint before it"):
        write_checkpoint(tmp_path, 2, write_to_a_full_device)
    assert names(tmp_path) == []


def test_another_error_of_the_disk_is_raised_as_it_is(tmp_path):
    def fail(directory):
        raise OSError(errno.EIO, "a bad sector")

    with pytest.raises(OSError, match="a bad sector"):
        write_checkpoint(tmp_path, 2, fail)


def test_room_is_required_before_it_is_needed(tmp_path):
    require_disk_space(tmp_path, num_bytes=1, purpose="the run")
    with pytest.raises(InputError, match=r"the run needs 1,000,000,000,000 MB in .* are free; make room"):
        require_disk_space(tmp_path, num_bytes=10**18, purpose="the run")


def test_the_manifest_holds_what_the_run_gave_and_is_json(tmp_path):
    write(tmp_path, 2)
    manifest = json.loads((tmp_path / "checkpoint-2" / MANIFEST).read_text())
    assert manifest["rows"] == 16 and {*manifest["files"]} == {"model.safetensors", "deep/states.safetensors"}
    assert read_manifest(tmp_path / "checkpoint-2")["files"] == manifest["files"]
