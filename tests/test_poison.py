"""NaN, infinity and spikes: no checkpoint is poisoned, and each costs one step."""

import json
import random

import pytest
import torch
from kill import SAVE_STEPS, RecordingTrainer, make_trainer, rows_of
from safetensors.torch import load_file

from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining.checkpoints import find_checkpoints, find_last_checkpoint, read_history, read_step
from kcelectra.pretraining.record import read_record

NUM_STEPS = 24


@pytest.fixture(scope="module")
def packed_dir(pack_here, tokenizer, sample_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "rows"
    pack_here(CommentReader(str(sample_file)), tokenizer, path, max_length=64)
    return str(path)


class PoisonedTrainer(RecordingTrainer):
    """Does something to the loss, a gradient or a weight of some steps, once each."""

    steps: dict[int, str] = {}
    bad_rows: set[int] = set()
    bad_from = NUM_STEPS + 1

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        kind = self.poison()
        factor = {"loss nan": float("nan"), "loss inf": float("inf"), "loss spike": 1e6}.get(kind, 1.0)
        if self.bad_rows & set(inputs["row_id"].tolist()) or self.state.global_step + 1 >= self.bad_from:
            factor = float("nan")
        return loss * factor

    def training_step(self, model, *args, **kwargs):
        kind = self.poison()
        weight = self.model.discriminator.electra.encoder.layer[0].output.dense.weight
        if kind.startswith("weight"):
            weight.data[3, 3] = float(kind.split()[1])
        loss = super().training_step(model, *args, **kwargs)
        if kind.startswith("gradient"):
            weight.grad[3, 3] = float(kind.split()[1])
        self.steps.pop(self.state.global_step + 1, None)
        return loss

    def poison(self):
        return self.steps.get(self.state.global_step + 1, "")


def train(source, tokenizer, run_dir, *, steps=None, bad_rows=(), bad_from=NUM_STEPS + 1, **arguments):
    trainer = make_trainer(
        source,
        tokenizer,
        run_dir,
        **{
            "trainer_class": PoisonedTrainer,
            "max_steps": NUM_STEPS,
            "guard_window": 4,
            "save_total_limit": None,
            **arguments,
        },
    )
    trainer.steps, trainer.bad_rows, trainer.bad_from = dict(steps or {}), set(bad_rows), bad_from
    run_dir.mkdir(exist_ok=True)
    trainer.train()
    return trainer


def assert_no_checkpoint_is_poisoned(run_dir):
    checkpoints = find_checkpoints(run_dir)
    assert len(checkpoints) == NUM_STEPS // SAVE_STEPS
    for checkpoint in checkpoints:
        for file in ("model.safetensors", "states.safetensors"):
            tensors = load_file(checkpoint / file)
            assert all(tensor.isfinite().all() for name, tensor in tensors.items() if tensor.is_floating_point())


KINDS = ["loss nan", "loss inf", "loss spike", "gradient nan", "gradient inf", "gradient 1e30"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_poisoned_step_is_skipped_and_costs_nothing_else(packed_dir, tokenizer, tmp_path, kind):
    """The weights are those of a run that was never given the step's update; the schedule goes on."""
    trainer = train(packed_dir, tokenizer, tmp_path, steps={9: kind})
    assert trainer.state.global_step == NUM_STEPS
    assert read_history(find_last_checkpoint(tmp_path))[-1]["skipped_steps"] == 1
    assert trainer.optimizer.state_dict()["state"][0]["step"] == NUM_STEPS - 1
    assert_no_checkpoint_is_poisoned(tmp_path)
    assert sum(len(rows) for rows in rows_of(tmp_path)) == 4 * NUM_STEPS


@pytest.mark.slow
def test_two_hundred_poisoned_steps(packed_dir, tokenizer, tmp_path, capsys):
    rng, injected = random.Random(5), 0
    for run in range(50):
        steps = {step: rng.choice(KINDS) for step in rng.sample(range(6, NUM_STEPS + 1), 4)}
        trainer = train(packed_dir, tokenizer, tmp_path / str(run), steps=steps)
        assert trainer.guard.read().skipped == 4, steps
        assert_no_checkpoint_is_poisoned(tmp_path / str(run))
        injected += 4
    with capsys.disabled():
        print(f"\n{injected} poisoned steps, {injected} skipped, no other; no poisoned checkpoint")  # noqa: T201


@pytest.mark.parametrize("value", ["nan", pytest.param("inf", marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [9, 12])
def test_poisoned_weights_send_the_run_back_and_it_ends_as_an_undisturbed_one(
    packed_dir, tokenizer, tmp_path, value, step
):
    straight = train(packed_dir, tokenizer, tmp_path / "straight")
    trainer = train(packed_dir, tokenizer, tmp_path / "run", steps={step: f"weight {value}"})
    for (name, ours), theirs in zip(trainer.model.named_parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    first, second = read_record(tmp_path / "run")["starts"]
    assert "weights are not finite" in first["end"]["how"]
    assert second["checkpoint"].endswith("checkpoint-8") and second["skipped_rows"] == []
    assert_no_checkpoint_is_poisoned(tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "straight")


class RarelyReadTrainer(PoisonedTrainer):
    """Looks at the guard where it logs or saves, as on an accelerator, which would be waited for."""

    def end_step(self, control):
        if control.should_log or control.should_save:
            super().end_step(control)


def test_rows_are_trained_on_again_where_the_weights_were_poisoned_however_late_it_is_seen(
    packed_dir, tokenizer, tmp_path
):
    straight = train(packed_dir, tokenizer, tmp_path / "straight")
    options = {"logging_steps": 4, "skip_budget": 2, "trainer_class": RarelyReadTrainer}
    trainer = train(packed_dir, tokenizer, tmp_path / "run", steps={9: "weight nan"}, **options)
    assert read_record(tmp_path / "run")["starts"][1]["skipped_rows"] == []
    for ours, theirs in zip(trainer.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_discriminator_that_joins_after_the_warm_up_is_no_spike(packed_dir, tokenizer, tmp_path):
    trainer = train(packed_dir, tokenizer, tmp_path, generator_warmup_steps=8)
    assert trainer.state.global_step == NUM_STEPS and trainer.guard.read() == (0, 0)
    losses = [log["loss"] for log in trainer.state.log_history if "generator_loss" in log]
    assert losses[4] > 3 * losses[1]


def test_rows_that_poison_every_step_are_passed_over_after_going_back(packed_dir, tokenizer, tmp_path):
    train(packed_dir, tokenizer, tmp_path / "straight")
    straight = rows_of(tmp_path / "straight")
    bad_rows = [rows[0] for rows in straight[9:12]]
    train(packed_dir, tokenizer, tmp_path / "run", bad_rows=bad_rows, skip_budget=3)
    steps = read_lines(tmp_path / "run")
    assert [step for step, _ in steps] == [*range(1, 13), *range(9, NUM_STEPS + 1)]
    trained = [rows for _, rows in steps[-(NUM_STEPS - 8) :]]
    assert trained == [straight[8], *straight[12:], *trained[-3:]]  # three more, for the three passed over
    assert read_record(tmp_path / "run")["starts"][1]["skipped_rows"] == [[36, 48]]
    assert_no_checkpoint_is_poisoned(tmp_path / "run")


def test_what_was_passed_over_stays_so_after_a_restart(packed_dir, tokenizer, tmp_path):
    train(packed_dir, tokenizer, tmp_path / "straight")
    bad_rows = [rows[0] for rows in rows_of(tmp_path / "straight")[9:12]]
    train(packed_dir, tokenizer, tmp_path / "run", bad_rows=bad_rows, skip_budget=3)
    whole = [rows for _, rows in read_lines(tmp_path / "run")][-8:]
    trainer = make_trainer(packed_dir, tokenizer, tmp_path / "run", max_steps=NUM_STEPS, guard_window=4, skip_budget=3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-16"))
    assert [rows for _, rows in read_lines(tmp_path / "run")][-8:] == whole


def read_lines(run_dir):
    entries = map(json.loads, (run_dir / "rows.jsonl").read_text().splitlines())
    return [(entry["step"], entry["rows"]) for entry in entries]


def test_a_run_that_diverges_again_stops_with_a_cure(packed_dir, tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"step 11: 3 steps in a row .* goes astray again after checkpoint-8; give a"):
        train(packed_dir, tokenizer, tmp_path, bad_from=9, skip_budget=3)


def test_a_run_that_diverges_before_its_first_checkpoint_stops_with_a_cure(packed_dir, tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"step 3: 3 steps in a row .* no checkpoint to go back to; give a lower"):
        train(packed_dir, tokenizer, tmp_path, bad_from=1, skip_budget=3)
    assert find_checkpoints(tmp_path) == []


def test_the_guard_decides_alike_after_a_restart(packed_dir, tokenizer, tmp_path):
    """A spike is one by the window that the run had before it was interrupted."""
    steps = {14: "loss spike", 16: "loss nan"}
    straight = train(packed_dir, tokenizer, tmp_path / "straight", steps=steps)
    train(packed_dir, tokenizer, tmp_path / "run", steps=steps)
    trainer = make_trainer(
        packed_dir, tokenizer, tmp_path / "run", trainer_class=PoisonedTrainer, max_steps=NUM_STEPS, guard_window=4
    )
    trainer.steps = steps
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-12"))
    assert trainer.guard.read() == straight.guard.read() == (2, 0)
    for ours, theirs in zip(trainer.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert read_step(find_last_checkpoint(tmp_path / "run")) == NUM_STEPS
