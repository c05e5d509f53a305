"""Every configuration of accelerate and command of `recipes/README.md`: parsed, and run where a CPU is enough."""

import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from kcelectra.arguments import parse_args
from kcelectra.errors import InputError
from kcelectra.pretraining.record import read_record
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.training_arguments import PretrainingArguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "recipes/README.md").read_text(encoding="utf-8")
CONFIGS = sorted(path.name for path in (ROOT / "recipes/accelerate").iterdir())
ALONE = {"cpu.yaml", "gpu.yaml", "tpu.yaml", "xla.yaml"}
SHORT = "--max_steps 2 --logging_steps 1 --save_steps 2 --per_device_train_batch_size 4 --max_length 64".split()
SHORT += ["--warmup_steps", "2", "--shuffle_window", "64", "--precision", "float32"]


def commands() -> list[str]:
    """Return the commands of the fenced blocks that start a recipe, without what stands before them."""
    blocks = "".join(re.findall(r"```\w+\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"(?:accelerate launch|python) [^\n#]*recipes/\w+\.py[^\n#']*", blocks)
    return [" ".join(command.split()) for command in found]


def read_command(command: str):
    """Return what accelerate understands of a command, None if it does not start it, and the recipe and its words."""
    words = shlex.split(os.path.expandvars(command))
    if words[0] == "python":
        return None, words[1], words[2:]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words[2:]))
    return arguments, arguments.training_script, arguments.training_script_args


@cache
def help_of(recipe: str) -> str:
    output, main = StringIO(), runpy.run_path(recipe)["main"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), suppress(SystemExit):
        patch.setattr(sys, "argv", [recipe, "--help"])
        main()
    return output.getvalue()


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in {"SLURM_PROCID": "1", "FIRST": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)


# parsed


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_one_that_accelerate_knows_and_starts_what_it_says(name):
    path = f"recipes/accelerate/{name}"
    config = load_config_from_file(path)
    arguments, *_ = read_command(f"accelerate launch --config_file {path} recipes/pretrain.py")
    assert arguments.num_processes == config.num_processes
    starts_several = arguments.multi_gpu or arguments.use_fsdp
    assert starts_several == (config.num_processes > 1) == (name not in ALONE)
    assert not (arguments.tpu or arguments.cpu)  # accelerate would start one process for each device, or only one
    assert (config.distributed_type == DistributedType.FSDP) == (name == "fsdp.yaml")
    assert config.mixed_precision == "no"  # the recipe chooses
    assert (config.num_machines > 1) == (name == "multi_node.yaml")


def test_the_readme_tells_of_every_configuration_with_several_processes():
    assert {name for name in CONFIGS if f"accelerate/{name}" in README} >= {*CONFIGS} - ALONE | {"gpu.yaml"}


def test_the_readme_has_a_command_for_each_case():
    assert len(commands()) >= 9
    assert sum("accelerate launch" in command for command in commands()) >= 6


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_that_the_recipe_understands(command, tmp_path):
    arguments, recipe, words = read_command(command)
    assert (ROOT / recipe).is_file()
    if arguments is not None:
        assert arguments.config_file is not None and Path(arguments.config_file).is_file()
    if recipe == "recipes/pretrain.py":
        _, data, training = parse_args(ModelArguments, DataArguments, PretrainingArguments, argv=words)
        rows = training.per_device_train_batch_size * (arguments.num_processes if arguments else 1)
        if training.total_train_batch_size is not None:
            assert training.total_train_batch_size % rows == 0
    else:
        assert [word for word in words if word.startswith("--") and word not in help_of(recipe)] == []


# run


def launch(directory: Path, *words: str) -> subprocess.CompletedProcess:
    """Run a command of accelerate in a directory that sees the recipes."""
    directory.mkdir(exist_ok=True)
    (directory / "recipes").symlink_to(ROOT / "recipes")
    command = [sys.executable, "-m", "accelerate.commands.launch", *words]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=240)


def launch_short(directory: Path, command: str, *options: str) -> None:
    """Run a command of the README for two steps."""
    words = shlex.split(command)[2:]
    at = words.index("recipes/pretrain.py")
    done = launch(directory, "--main_process_port", "0", *words[:at], *options, *words[at:], *SHORT)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_two_have_trained(run_dir: Path) -> None:
    (start,) = read_record(run_dir)["starts"]
    assert (start["num_processes"], start["end"]["how"]) == (2, "finished")
    assert (run_dir / "export/manifest.json").is_file()


@pytest.mark.parametrize("command", [command for command in commands() if "cpu.yaml" in command])
def test_a_command_for_the_cpu_trains_with_as_many_processes_as_it_says(command, tmp_path):
    assert "recipes/accelerate/multi_cpu.yaml" in command
    launch_short(tmp_path, command)
    assert_two_have_trained(tmp_path / "out/smoke")


@pytest.mark.slow
def test_processes_that_share_weights_are_launched_on_a_cpu_too(tmp_path):
    command = "accelerate launch --config_file recipes/accelerate/fsdp.yaml recipes/pretrain.py"
    launch_short(tmp_path, command, "--num_processes", "2")
    assert_two_have_trained(tmp_path / "out/smoke")


@pytest.mark.slow
def test_two_launchers_as_on_two_machines_train_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/multi_node.yaml"]
    words += ["--num_processes", "2", "--main_process_port", port]
    launchers = [
        subprocess.Popen(
            [*words, "--machine_rank", rank, "recipes/pretrain.py", *SHORT, "--output_dir", str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert_two_have_trained(tmp_path / "run")


# one process of two that were asked for

ASKED = [
    ["--cpu", "--num_processes", "2"],
    ["--config_file", "recipes/accelerate/cpu.yaml", "--num_processes", "2"],
    ["--config_file", "recipes/accelerate/gpu.yaml", "--num_processes", "2"],
]


@pytest.mark.parametrize("asked", ASKED)
def test_what_a_launcher_that_starts_one_process_of_two_says_is_understood(tmp_path, monkeypatch, asked):
    """It starts the recipe with this environment, and nothing else says that there should be two."""
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([*asked, "recipes/pretrain.py"]))
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="asked for several processes, but this process knows of no other"):
        PretrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED)
def test_such_a_launcher_is_told_the_cure_before_anything_is_written(tmp_path, asked):
    done = launch(tmp_path, *asked, "recipes/pretrain.py", *SHORT)
    assert done.returncode != 0
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "asked for several processes, but this process knows of no other" in error and "multi_cpu.yaml" in error
    assert not (tmp_path / "out").exists()
