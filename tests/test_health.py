"""A sick run raises its alarm, a healthy one raises none."""

import logging
import math
import re

import pytest
from test_trainer import make_model, make_trainer
from transformers import TrainerControl, TrainerState

from kcelectra import DataCollatorForReplacedTokenDetection, PretrainingArguments
from kcelectra.pretraining.health import BANDS, LATE_STEPS, Alarm, HealthCallback, check_health
from kcelectra.pretraining.progress import format_log
from kcelectra.release.report import write_report

HEALTHY = {
    "generator_loss": 4.0,
    "generator_accuracy": 0.4,
    "sampled_accuracy": 0.3,
    "unigram_entropy": 7.0,
    "discriminator_loss": 0.2,
    "fake_rate": 0.1,
    "discriminator_accuracy": 0.95,
    "discriminator_recall": 0.5,
    "discriminator_auc": 0.9,
    "learning_rate": 1e-4,
    "grad_norm": 1.0,
    "skipped_steps": 0,
}
#: What a sick run logs: the alarm, the smallest change that raises it, and one that does not.
SICK = [
    ("loss not finite", {"generator_loss": math.nan}, {}),
    ("loss not finite", {"discriminator_loss": math.inf}, {}),
    ("steps skipped", {"skipped_steps": 1}, {"skipped_steps": 0}),
    ("weights do not move", {"grad_norm": 0.0}, {"grad_norm": 1e-9}),
    ("weights do not move", {"learning_rate": 0.0}, {"learning_rate": 1e-12}),
    ("collapsed sampler", {"sampled_accuracy": 0.385}, {"sampled_accuracy": 0.375}),
    (
        "collapsed sampler",
        {"sampled_accuracy": 0.021, "generator_accuracy": 0.021},
        {"sampled_accuracy": 0.019, "generator_accuracy": 0.019},
    ),
    (
        "fake rate out of its band",
        {"fake_rate": 0.029, "discriminator_accuracy": 0.98},
        {"fake_rate": 0.031, "discriminator_accuracy": 0.98},
    ),
    (
        "fake rate out of its band",
        {"fake_rate": 0.31, "discriminator_accuracy": 0.95},
        {"fake_rate": 0.29, "discriminator_accuracy": 0.95},
    ),
    ("generator no better than word counts", {"generator_loss": 7.0}, {"generator_loss": 6.99}),
    ("discriminator at the all-real baseline", {"discriminator_accuracy": 0.9}, {"discriminator_accuracy": 0.901}),
    ("recall stuck at 0", {"discriminator_recall": 0.009}, {"discriminator_recall": 0.011}),
    ("discriminator at chance", {"discriminator_auc": 0.53}, {"discriminator_auc": 0.54}),
]
LATE = {band.name for band in BANDS if band.is_late}


def make_history(*entries, start=LATE_STEPS, interval=100):
    return [{**HEALTHY, **entry, "step": start + interval * index} for index, entry in enumerate(entries)]


def names(history, *, warmup_steps=10):
    return [alarm.name for alarm in check_health(history, warmup_steps=warmup_steps)]


# the bands


@pytest.mark.parametrize(("name", "sick", "healthy"), SICK)
def test_a_band_is_left_at_its_limit_and_no_other_with_it(name, sick, healthy):
    assert names(make_history(*[healthy] * 5)) == []
    assert names(make_history(*[sick] * 5)) == [name]


def test_every_band_is_tested():
    assert {name for name, _, _ in SICK} == {band.name for band in BANDS}


def test_every_alarm_says_what_it_means_and_what_to_try():
    for band in BANDS:
        assert band.meaning.count(". ") == 1 and band.meaning.endswith("."), band.name


@pytest.mark.parametrize(("name", "sick", "healthy"), [case for case in SICK if case[0] in LATE])
@pytest.mark.parametrize(("warmup_steps", "first"), [(10, LATE_STEPS), (10_000, 20_000)])
def test_what_is_normal_at_first_is_judged_long_after_warm_up_only(name, sick, healthy, warmup_steps, first):
    early = make_history(*[sick] * 9, start=first - 900)
    assert names(early, warmup_steps=warmup_steps) == []
    late = make_history(*[sick] * 3, start=first)
    (alarm,) = check_health(early + late, warmup_steps=warmup_steps)
    assert (alarm.step, alarm.name) == (first + 200, name)


@pytest.mark.parametrize(("name", "sick", "healthy"), [case for case in SICK if case[0] in LATE])
def test_one_noisy_interval_is_no_alarm(name, sick, healthy):
    assert names(make_history(sick, sick, {}, sick, sick, {}, sick)) == []
    assert names(make_history(sick, sick, {}, sick, sick, sick)) == [name]


def test_only_newly_skipped_steps_are_an_alarm():
    alarms = check_health(make_history(*({"skipped_steps": n} for n in (0, 2, 2, 2, 3, 7, 7))), warmup_steps=10)
    assert [(alarm.step, alarm.until) for alarm in alarms] == [(2100, 2200), (2400, 2600)]


def test_the_first_step_of_a_warm_up_has_a_rate_of_0():
    assert names(make_history({"learning_rate": 0.0}, {}, start=1, interval=1)) == []


# alarms


def test_an_alarm_begins_once_and_says_when_it_is_over():
    sick = {"grad_norm": 0.0}
    alarms = check_health(make_history({}, sick, sick, {}, {}, sick, sick), warmup_steps=10)
    band = next(band for band in BANDS if band.name == "weights do not move")
    assert alarms == [Alarm(2100, band.name, band.meaning, 2300), Alarm(2500, band.name, band.meaning, None)]


def test_alarms_of_several_bands_come_by_step():
    history = make_history({}, {"fake_rate": 0.01}, {"grad_norm": 0.0}, {"skipped_steps": 1})
    assert names(history) == ["fake rate out of its band", "weights do not move", "steps skipped"]


def test_what_is_no_training_interval_or_was_not_logged_raises_nothing():
    losses = {"generator_loss": 4.0, "discriminator_loss": 0.2, "step": LATE_STEPS}
    assert names([{"step": LATE_STEPS, "train_runtime": 1.0}, losses, losses, losses]) == []
    assert names([]) == []


# the callback


def warnings_of(history, tmp_path, caplog, *, is_main=True, warmup_steps=10, generator_warmup_steps=0):
    """Log the intervals one after the other, as the Trainer does, and return what is said after each."""
    callback = HealthCallback(generator_warmup_steps)
    arguments = PretrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup_steps, max_steps=10_000)
    said = []
    for index, entry in enumerate(history):
        state = TrainerState(
            log_history=history[: index + 1],
            global_step=entry["step"],
            max_steps=10_000,
            is_world_process_zero=is_main,
        )
        caplog.clear()
        callback.on_log(arguments, state, TrainerControl(), logs=entry)
        assert all(record.levelno == logging.WARNING for record in caplog.records)
        said.append([record.getMessage() for record in caplog.records])
    return said


def test_the_callback_warns_once_and_says_when_it_is_over(tmp_path, caplog):
    sick = {"sampled_accuracy": 0.4}
    said = warnings_of(make_history({}, sick, sick, {}, {}), tmp_path, caplog)
    (band,) = [band for band in BANDS if band.name == "collapsed sampler"]
    assert said == [
        [],
        [f"step 2100: collapsed sampler. {band.meaning}"],
        [],
        ["step 2300: over since step 2100: collapsed sampler"],
        [],
    ]


@pytest.mark.parametrize(("warmup_steps", "num_warnings"), [(10, 1), (0.3, 0)])
def test_the_callback_knows_the_warm_up_also_as_a_share_of_all_steps(tmp_path, caplog, warmup_steps, num_warnings):
    history = make_history(*[{"discriminator_auc": 0.5}] * 3)
    said = warnings_of(history, tmp_path, caplog, warmup_steps=warmup_steps)
    assert [len(each) for each in said] == [0, 0, num_warnings]


def test_the_callback_knows_the_warm_up_of_a_new_generator(tmp_path, caplog):
    history = make_history(*[{"discriminator_auc": 0.5}] * 3)
    said = warnings_of(history, tmp_path, caplog, generator_warmup_steps=5000)
    assert said == [[], [], []]


def test_only_the_main_process_warns_and_only_after_a_training_interval(tmp_path, caplog):
    sick = make_history({"grad_norm": 0.0})
    summary = {"step": sick[-1]["step"], "train_runtime": 1.0}
    assert warnings_of(sick, tmp_path, caplog, is_main=False) == [[]]
    assert [len(said) for said in warnings_of([*sick, summary], tmp_path, caplog)] == [1, 0]


# real runs


def train(tokenizer, sample_file, tmp_path, *, steps, log_every=5, mask_probability=0.15, rate=2e-3, **overrides):
    trainer = make_trainer(
        tokenizer,
        sample_file,
        tmp_path,
        model=make_model(tokenizer, **overrides),
        collator=DataCollatorForReplacedTokenDetection(tokenizer, mask_probability=mask_probability),
        max_steps=steps,
        logging_steps=log_every,
        learning_rate=rate,
    )
    trainer.train()
    return trainer.state.log_history


def long_after(history):
    """Renumber the intervals, as if the run had gone on like this for long."""
    return [{**entry, "step": entry["step"] * LATE_STEPS} for entry in history]


def test_a_run_without_a_learning_rate_does_not_move(tokenizer, sample_file, tmp_path):
    history = train(tokenizer, sample_file, tmp_path, steps=6, log_every=2, rate=0.0)
    assert names(history) == ["weights do not move"]
    assert "generator no better than word counts" in names(long_after(history))


def test_sampling_at_a_temperature_near_0_is_a_collapsed_sampler(tokenizer, sample_file, tmp_path):
    assert names(train(tokenizer, sample_file, tmp_path / "healthy", steps=30)) == []
    collapsed = train(tokenizer, sample_file, tmp_path / "sick", steps=30, sampling_temperature=0.01)
    assert set(names(collapsed)) == {"collapsed sampler"}


def test_a_discriminator_that_does_not_run_is_neither_logged_nor_judged(tokenizer, sample_file, tmp_path):
    history = train(tokenizer, sample_file, tmp_path, steps=30, discriminator_weight=0.0)
    assert not [key for entry in history for key in entry if key.startswith(("discriminator", "fake", "sampled"))]
    assert names(history) == []
    assert set(names(long_after(history))) <= {"generator no better than word counts"}
    page = write_report(tmp_path, history, facts={}, alarms=[])
    assert "generator loss below the unigram entropy" in page.read_text("utf-8")
    assert sorted(path.stem for path in page.parent.glob("*.png")) == [
        "generator",
        "generator_loss",
        "learning_rate",
        "throughput",
    ]
    state = TrainerState(global_step=30, max_steps=30)
    assert re.search(r"generator \S+ \(unigram \S+\)  lr ", format_log(history[-2], state))


def test_a_young_discriminator_finds_nothing_and_an_old_one_that_finds_nothing_is_stuck(
    tokenizer, sample_file, tmp_path
):
    history = train(tokenizer, sample_file, tmp_path, steps=40)
    assert names(history) == []
    assert {"recall stuck at 0", "discriminator at the all-real baseline"} <= set(names(long_after(history)))


def test_too_large_a_mask_is_a_fake_rate_out_of_its_band(tokenizer, sample_file, tmp_path):
    history = train(tokenizer, sample_file, tmp_path, steps=6, log_every=2, mask_probability=0.4)
    assert names(history) == ["fake rate out of its band"]
