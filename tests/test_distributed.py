"""One run, however it is split: over micro-batches, over processes, and with the weights spread over them."""

import json
import os
import warnings

import pytest
import torch
from kill import MAX_LENGTH, fork_together, make_trainer, rows_of, train, wait
from safetensors.torch import load_file, save_file
from test_recovery import NOISELESS, RaggedCollator, StoppingTrainer, assert_same_end, last_of
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from kcelectra import KcElectraForPreTraining
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining.checkpoints import find_last_checkpoint
from kcelectra.pretraining.pushing import EXPORT_DIR, STAGING_DIR, Pusher
from kcelectra.pretraining.record import read_record
from kcelectra.pretraining.sharding import ASKED_BY, gather
from kcelectra.pretraining.training_arguments import WORLD_SIZES, PretrainingArguments

NUM_STEPS = 4
#: Processes, rows that each takes at a time, whether the weights are spread; 8 rows a step.
SPLITS = {"accumulated": (1, 2, False), "two": (2, 4, False), "sharded": (2, 2, True)}


class GradientTrainer(StoppingTrainer):
    """Writes the gradients of each step, before they are clipped, and how large a share of the weights is here."""

    def _clip_grad_norm(self, model):
        parts = [each.to_local() if isinstance(each, DTensor) else each for each in self.model.parameters()]
        share = sum(part.numel() for part in parts) / self.model.num_parameters()
        num_units = sum(isinstance(module, FSDPModule) for module in self.model.modules())
        (self.run_dir / f"share{self.args.process_index}.json").write_text(json.dumps([share, num_units]))
        gradients = gather({name: each.grad for name, each in self.model.named_parameters()}, keep=True)
        if self.is_world_process_zero():
            save_file(gradients, self.run_dir / f"gradients-{self.state.global_step + 1}.safetensors")
        return super()._clip_grad_norm(model)


@pytest.fixture(scope="module")
def packed_dir(pack_here, tokenizer, sample_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "rows"
    pack_here(CommentReader(str(sample_file)), tokenizer, path, max_length=MAX_LENGTH)
    return path


@pytest.fixture(scope="module")
def run(packed_dir, tokenizer):
    """Return what trains in processes of their own, and see to it that all end with the status that is expected."""

    def run(run_dir, num_processes, batch_size, is_sharded, *, status=0, stop_at=None, function=train, **arguments):
        arguments = {
            "trainer_class": GradientTrainer,
            "max_steps": NUM_STEPS,
            "logging_steps": 1,
            "total_train_batch_size": 8,
            "per_device_train_batch_size": batch_size,
            **arguments,
        }

        def begin():
            StoppingTrainer.stop_at = stop_at
            os.environ[ASKED_BY] = str(is_sharded).lower()
            function(str(packed_dir), tokenizer, run_dir, **arguments)

        run_dir.mkdir(exist_ok=True)
        statuses = [wait(child) for child in fork_together(num_processes, begin, run_dir)]
        assert statuses == [status] * num_processes, (run_dir / f"log{num_processes - 1}.txt").read_text()

    return run


RAGGED = {"config": NOISELESS, "collator_class": RaggedCollator}


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    for name, split in {"one": (1, 8, False), **SPLITS}.items():
        run(directory / name, *split, function=train_from_the_first, **RAGGED)
    return directory


def train_from_the_first(*args, **arguments):
    """Train a model whose weights only the first process knows."""
    trainer = make_trainer(*args, **arguments)
    if trainer.args.process_index > 0:
        for parameter in trainer.model.parameters():
            parameter.data.zero_()
    trainer.train()


def assert_close(ours, theirs, *, atol):
    assert ours.keys() == theirs.keys()
    differences = {name: (ours[name] - theirs[name]).abs().max().item() for name in theirs}
    assert {name: difference for name, difference in differences.items() if difference > atol} == {}


def assert_same_within_rounding(ours, theirs):
    assert rows_of(ours) == rows_of(theirs)
    (_, our_logs, our_weights), (_, their_logs, their_weights) = last_of(ours), last_of(theirs)
    for our, their in zip(our_logs, their_logs, strict=True):
        for key in ("loss", "generator_loss", "discriminator_loss", "discriminator_auc", "fake_rate", "grad_norm"):
            assert our[key] == pytest.approx(their[key], rel=1e-5), key
    assert_close(our_weights, their_weights, atol=1e-6)


@pytest.mark.parametrize("name", SPLITS)
def test_losses_gradients_and_weights_do_not_depend_on_the_split_of_ragged_rows(runs, name):
    assert_same_within_rounding(runs / name, runs / "one")
    for step in range(1, NUM_STEPS + 1):
        ours, theirs = (load_file(runs / each / f"gradients-{step}.safetensors") for each in (name, "one"))
        largest = max(gradient.abs().max() for gradient in theirs.values())
        assert_close(ours, theirs, atol=5e-6 * largest.item())


# sharded


def test_a_sharded_run_saves_what_any_run_saves(runs):
    ours, theirs = (find_last_checkpoint(runs / name) for name in ("sharded", "one"))
    for file in ("model.safetensors", "states.safetensors"):
        shapes = [
            {name: (tensor.shape, tensor.dtype) for name, tensor in load_file(each / file).items()}
            for each in (ours, theirs)
        ]
        assert shapes[0] == shapes[1]
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    assert_close(load_file(ours / "states.safetensors"), load_file(theirs / "states.safetensors"), atol=1e-4)
    model = KcElectraForPreTraining.from_pretrained(ours)
    assert model.generator.generator_lm_head.weight is model.get_input_embeddings().weight


def test_each_process_of_a_sharded_run_holds_its_share(runs):
    parts = [json.loads((runs / f"sharded/share{rank}.json").read_text()) for rank in (0, 1)]
    shares = [share for share, _ in parts]
    assert shares == pytest.approx([0.5, 0.5], abs=0.01) and sum(shares) == 1
    assert [num_units for _, num_units in parts] == [3, 3]  # one layer in each half, and the rest
    assert json.loads((runs / "two/share1.json").read_text()) == [1, 0]


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    """Return a sharded run that nothing disturbed, with a checkpoint of each step."""
    directory = tmp_path_factory.mktemp("straight")
    run(directory, 2, 4, True, save_steps=1, save_total_limit=None)
    return directory


def test_a_sharded_run_that_is_stopped_ends_with_the_bits_of_one_that_is_not(run, straight, tmp_path):
    run(tmp_path, 2, 4, True, status=143, stop_at=2)
    run(tmp_path, 2, 4, True)
    assert_same_end(tmp_path, straight)


class PoisonedTrainer(GradientTrainer):
    """In the last process, a weight is no number in step 3, and when that is done again a gradient in step 4."""

    is_poisoned = False

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        first, is_last = next(self.model.parameters()), self.args.process_index == 1
        if self.state.global_step == 2 and not self.is_poisoned:
            self.is_poisoned = True
            if is_last:
                first.data.to_local()[0] = torch.nan
        elif self.state.global_step == 3 and is_last:
            first.grad.to_local()[0] = torch.nan
        return loss


def test_what_is_poisoned_in_one_process_does_not_reach_a_sharded_run(run, straight, tmp_path):
    """A weight costs the way back to the last checkpoint, a gradient its step."""
    run(tmp_path, 2, 4, True, trainer_class=PoisonedTrainer, save_steps=2)
    ends = [start["end"]["how"].split(":")[0] for start in read_record(tmp_path)["starts"]]
    assert ends == ["went back", "finished"]
    step, logs, weights = last_of(tmp_path)
    assert step == NUM_STEPS and logs[-1]["skipped_steps"] == 1
    expected = load_file(straight / "checkpoint-3/model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_run_may_begin_to_be_sharded_and_cease_to_be(run, runs, tmp_path):
    run(tmp_path, 1, 8, False, status=143, stop_at=1, **RAGGED)
    run(tmp_path, 2, 4, True, status=143, stop_at=3, **RAGGED)
    run(tmp_path, 2, 4, False, **RAGGED)
    assert_same_within_rounding(tmp_path, runs / "one")


@pytest.mark.slow
def test_a_generator_is_warmed_up_in_a_sharded_run_too(run, tmp_path):
    for name, is_sharded in (("sharded", True), ("two", False)):
        run(tmp_path / name, 2, 4, is_sharded, generator_warmup_steps=2, trainer_class=StoppingTrainer, **RAGGED)
    assert_same_within_rounding(tmp_path / "sharded", tmp_path / "two")


@pytest.mark.slow
def test_parts_that_are_compiled_are_sharded(run, runs, tmp_path):
    """The layers are compiled inside of what puts their weights together, so that no graph breaks."""
    graphs = []

    def begin(*args, **arguments):
        def count(graph, inputs):
            graphs.append(graph)
            return graph.forward

        warnings.simplefilter("ignore")  # of dynamo, which looks for gradients everywhere
        trainer = make_trainer(*args, **arguments)
        trainer.model.compile_parts(backend=count)
        trainer.train()
        num_kinds = 5 + (trainer.model.generator.config.hidden_size != trainer.model.discriminator.config.hidden_size)
        (trainer.run_dir / "graphs.json").write_text(json.dumps([len(graphs), num_kinds]))

    run(tmp_path, 2, 4, True, function=begin, max_steps=2, **RAGGED)
    num_graphs, num_kinds = json.loads((tmp_path / "graphs.json").read_text())
    assert num_graphs == num_kinds
    for ours, theirs in zip(last_of(tmp_path)[1], last_of(runs / "one")[1], strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


class Exporting(Pusher):
    """Leaves what it would push where it was prepared."""

    def __init__(self, args):
        self.args, self._in_progress = args, None

    def _push(self, staging_dir, step, **options):
        return None


@pytest.mark.slow
def test_a_sharded_model_is_pushed_whole(run, tmp_path):
    def begin(*args, **arguments):
        trainer = make_trainer(*args, **arguments)
        trainer.train()
        trainer.pusher = Exporting(trainer.args)
        trainer.push_to_hub()

    run(tmp_path, 2, 4, True, function=begin, max_steps=1)
    saved = load_file(find_last_checkpoint(tmp_path) / "model.safetensors")
    for half in ("discriminator", "generator"):
        pushed = load_file(tmp_path / STAGING_DIR / EXPORT_DIR / half / "model.safetensors")
        assert all(torch.equal(weight, saved.get(f"{half}.{name}", weight)) for name, weight in pushed.items())
        assert len(pushed) > 10


# processes that know of no other


@pytest.mark.parametrize("name", WORLD_SIZES)
def test_one_of_several_processes_that_takes_itself_for_the_only_one_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match=f"{name} is 2, but this process knows of no other.*multi_cpu.yaml"):
        PretrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(name, "1")
    PretrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)


def test_sharding_that_accelerate_would_do_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"fsdp is given; .*--config_file recipes/accelerate/fsdp\.yaml"):
        PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, fsdp=True)
