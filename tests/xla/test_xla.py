"""On XLA devices: no graph is made anew, two devices are as one, and what is saved is what was trained."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining import xla
from kcelectra.pretraining.guards import skip_update
from kcelectra.pretraining.packed_corpus import pack_corpus
from kcelectra.pretraining.training_arguments import PretrainingArguments

pytestmark = pytest.mark.skipif(
    not xla.IS_THERE, reason="torch_xla needs a torch of its own; `make test-xla` installs both"
)
MAX_LENGTH = 32
LOGGING_STEPS = 10
#: Nothing is random but the weights, and each draw is the argmax; those that are near are made far apart.
EXACT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "sampling_temperature": 1e-5,
    "initializer_range": 0.1,
}
DEFAULTS = {
    "max_steps": 200,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 150,
    "logging_steps": LOGGING_STEPS,
    "save_strategy": "no",
}
TIMES = {"tokens_per_second", "teraflops_per_second", "input_wait_share"}


@pytest.fixture(scope="module")
def packed_dir(tokenizer, sample_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "rows"
    pack_corpus(CommentReader(str(sample_file)), tokenizer, path, max_length=MAX_LENGTH, num_workers=1)
    return str(path)


def start(packed_dir, run_dir, *, num_devices=1, **options):
    """Train in a process; 0 devices are PyTorch on the CPU."""
    run_dir.mkdir(exist_ok=True)
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(num_devices), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    environment |= {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "USE_TORCH_XLA": str(min(1, num_devices))}
    options["arguments"] = {**DEFAULTS, **options.get("arguments", {})}
    command = [sys.executable, Path(__file__).with_name("train.py"), packed_dir, run_dir, json.dumps(options)]
    with open(run_dir / "log.txt", "w") as log:
        return subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode


def train(packed_dir, run_dir, **options):
    assert start(packed_dir, run_dir, **options) == 0, (run_dir / "log.txt").read_text()[-3000:]
    return json.loads((run_dir / "result.json").read_text())


@pytest.fixture(scope="module")
def long(packed_dir, tmp_path_factory):
    """Return what 200 steps cost on one device, whose learning rate changes in most, and their directory."""
    run_dir = tmp_path_factory.mktemp("long") / "run"
    arguments = {"save_strategy": "steps", "save_steps": 100, "save_total_limit": None}
    return train(packed_dir, run_dir, arguments=arguments), run_dir


def assert_one_graph_a_step(steps, *, executions=1):
    """After the first logging interval nothing is compiled, and each step without a log is one execution."""
    later = [(before, step) for before, step in zip(steps, steps[1:], strict=False) if before["step"] > LOGGING_STEPS]
    assert len({step["UncachedCompile"] for _, step in later}) == 1
    costs = [
        sum(step[name] - before[name] for name in ("ExecuteComputation", "ExecuteReplicated"))
        for before, step in later
        if not before["logs"] and before["step"] % 100 != 0
    ]
    assert set(costs) == {executions} and len(costs) > 5


def test_two_hundred_steps_compile_nothing_after_the_first_log_and_are_one_execution_each(long):
    steps = long[0]["steps"]
    assert [step["step"] for step in steps] == list(range(1, 201))
    assert_one_graph_a_step(steps)


def test_no_operator_has_a_dynamic_shape_and_none_is_read_between_logs(long):
    reads = [step.pop("aten::_local_scalar_dense", 0) for step in long[0]["steps"]]
    assert not any(name.startswith("aten::") for step in long[0]["steps"] for name in step)
    for step, read, after in zip(long[0]["steps"], reads, reads[1:], strict=False):
        assert step["logs"] or read == after


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(packed_dir, long, tmp_path):
    shutil.copytree(long[1] / "checkpoint-100", tmp_path / "run" / "checkpoint-100")
    resumed = train(packed_dir, tmp_path / "run", arguments={"save_strategy": "steps", "save_steps": 100})
    assert [step["step"] for step in resumed["steps"]] == list(range(101, 201))
    for name in ("model.safetensors", "states.safetensors"):
        ours, theirs = (load_file(run / "checkpoint-200" / name) for run in (tmp_path / "run", long[1]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    runs = resumed, long[0]
    ours, theirs = ([{key: log[key] for key in log.keys() - TIMES} for log in run["history"]] for run in runs)
    assert ours == theirs


def test_tied_weights_are_saved_once(long):
    with safe_open(long[1] / "checkpoint-200" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert sum("word_embeddings" in name for name in names) == 1
    assert not any("lm_head.weight" in name for name in names)


def test_two_devices_that_share_the_rows_are_as_one(packed_dir, long, tmp_path, monkeypatch):
    """And exchange gradients alone: what is gathered has been computed by each for the rows of both."""
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text")
    arguments = {"max_steps": 3 * LOGGING_STEPS, "per_device_train_batch_size": 2}
    two = train(packed_dir, tmp_path / "run", num_devices=2, arguments=arguments)
    assert (two["num_devices"], two["rows"]) == (2, long[0]["rows"])
    assert_one_graph_a_step(two["steps"])
    for ours, theirs in zip(two["history"], long[0]["history"], strict=False):
        for key in ("generator_loss", "discriminator_loss", "fake_rate"):
            assert ours[key] == pytest.approx(theirs[key], abs=5e-5), (ours["step"], key)
    graph = max(tmp_path.glob("*after_optimizations.txt"), key=lambda path: path.stat().st_size).read_text()
    assert " all-reduce(" in graph and " all-gather(" not in graph


def test_losses_are_those_of_pytorch_on_the_cpu(packed_dir, tmp_path):
    arguments = {"max_steps": LOGGING_STEPS, "logging_steps": 1}
    runs = [
        train(packed_dir, tmp_path / name, num_devices=number, arguments=arguments, config=EXACT)
        for number, name in enumerate(["cpu", "xla"])
    ]
    assert [run["device"] for run in runs] == ["cpu", "xla:0"]
    for ours, theirs in zip(runs[1]["history"], runs[0]["history"], strict=True):
        for key in ("loss", "generator_loss", "discriminator_loss", "fake_rate", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-4), (ours["step"], key)


def test_bfloat16_keeps_float32_weights_where_accelerate_asks_for_16_bits(packed_dir, tmp_path, monkeypatch):
    """And recomputed activations, and what accelerate executes before each step, cost no execution more."""
    monkeypatch.setenv("XLA_USE_BF16", "1")  # as `accelerate launch` does
    arguments = {"max_steps": 3 * LOGGING_STEPS, "precision": "bfloat16", "activation_checkpointing": True}
    run = train(packed_dir, tmp_path / "run", pretend_tpu=True, arguments=arguments)
    assert run["dtypes"] == ["torch.float32"] and not run["is_rounded"]
    assert_one_graph_a_step(run["steps"])


def test_a_bad_step_leaves_weights_moments_and_counts_as_they_are():
    """Also the first, and one of learning rate 0 in which a row has no gradient, as that of an unused position has."""
    device, gradients = torch.device("xla"), torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    gradients[:3, 1] = 0
    ours, theirs = (torch.nn.Parameter(torch.ones(3, 4, device=where)) for where in (device, "cpu"))
    optimizers = [torch.optim.AdamW([weights], lr=0.0, weight_decay=0.5) for weights in (ours, theirs)]
    xla.prepare_optimizer(optimizers[0])
    for step, gradient in enumerate(gradients):
        is_bad = step % 3 == 0
        ours.grad = torch.full_like(ours, torch.nan) if is_bad else gradient.to(device)
        theirs.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 * (step > 1)
        skip_update(optimizers[0], torch.tensor(float(is_bad), device=device))
        for optimizer in optimizers[: 1 if is_bad else 2]:
            optimizer.step()
    torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=1e-5, atol=1e-6)
    for name, value in optimizers[1].state[theirs].items():
        torch.testing.assert_close(optimizers[0].state[ours][name].cpu(), value, rtol=1e-5, atol=1e-6)


def test_layers_that_are_to_be_compiled_apart_are_refused(tmp_path):
    with pytest.raises(InputError, match="leave out --compile"):
        PretrainingArguments(output_dir=str(tmp_path), compile=True)


def test_one_of_several_processes_is_refused(packed_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PJRT_LOCAL_PROCESS_COUNT", "2")
    assert start(packed_dir, tmp_path / "run") != 0
    assert "`python recipes/pretrain.py`" in (tmp_path / "run" / "log.txt").read_text()
