"""Training: the same result however a batch is split, interrupted or resumed."""

import math

import pytest
import torch
from test_modeling import assert_tied
from transformers import Trainer, TrainingArguments

from kcelectra import (
    DataCollatorForReplacedTokenDetection,
    KcElectraConfig,
    KcElectraForPreTraining,
    KcElectraTrainer,
    PretrainingArguments,
)
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.precision import choose_precision
from kcelectra.pretraining.modeling import SHARED_EMBEDDINGS
from kcelectra.pretraining.optimization import product_schedule
from kcelectra.pretraining.streaming import PackedStream

MAX_LENGTH = 64
LOGGED = {
    "loss",
    "generator_loss",
    "generator_accuracy",
    "sampled_accuracy",
    "unigram_entropy",
    "discriminator_loss",
    "fake_rate",
    "fake_rate_entropy",
    "discriminator_precision",
    "discriminator_recall",
    "discriminator_auc",
    "tokens_per_second",
    "flops_per_token",
    "teraflops_per_second",
}


def make_model(tokenizer, **overrides):
    torch.manual_seed(0)
    return KcElectraForPreTraining(
        KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1, **overrides)
    )


def make_rows(tokenizer, sample_file):
    return list(PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=MAX_LENGTH, num_passes=1))


def make_trainer(
    tokenizer, sample_file, output_dir, *, model=None, dataset=None, eval_dataset=None, collator=None, **arguments
):
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "precision": "float32",
        "disable_tqdm": True,
    }
    stream = PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=MAX_LENGTH, shuffle_window=16)
    return KcElectraTrainer(
        model=model or make_model(tokenizer),
        args=PretrainingArguments(**{**defaults, **arguments}),
        train_dataset=dataset or stream,
        eval_dataset=eval_dataset,
        data_collator=collator or DataCollatorForReplacedTokenDetection(tokenizer),
        processing_class=tokenizer,
    )


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_equal_weights(ours, theirs):
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_stock_trainer_trains_and_evaluates_with_default_arguments(tokenizer, sample_file, tmp_path):
    rows = make_rows(tokenizer, sample_file)
    model = make_model(tokenizer)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), use_cpu=True, max_steps=30, learning_rate=2e-3, logging_steps=10, disable_tqdm=True
        ),
        train_dataset=rows[8:],
        eval_dataset=rows[:8],
        data_collator=DataCollatorForReplacedTokenDetection(tokenizer),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 5
    assert_tied(model)


def test_every_metric_is_logged_and_in_range(tokenizer, sample_file, tmp_path):
    trainer = make_trainer(tokenizer, sample_file, tmp_path)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 6
    for entry in entries:
        assert entry.keys() >= LOGGED
        assert entry["loss"] == pytest.approx(entry["generator_loss"] + 50 * entry["discriminator_loss"], rel=1e-4)
        assert 0 < entry["fake_rate"] < 0.2
        assert 0 < entry["unigram_entropy"] < math.log(len(tokenizer))
        assert entry["flops_per_token"] > 0 and entry["tokens_per_second"] > 0
    assert entries[0]["generator_loss"] == pytest.approx(math.log(len(tokenizer)), abs=0.2)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 2), (1, 8)])
def test_accumulation_changes_neither_loss_nor_weights_for_ragged_rows(
    tokenizer, sample_file, tmp_path, batch_size, accumulation
):
    """Dropout off and a temperature that makes each draw the argmax: what is left is how the batch was split.

    The weights begin far apart, as two logits that differ in the last bit alone would be drawn either way.
    """
    ragged = [{**row, "input_ids": row["input_ids"].copy()} for row in make_rows(tokenizer, sample_file)[:24]]
    for index, row in enumerate(ragged):
        row["input_ids"][MAX_LENGTH - 5 * (index % 9) :] = 0

    def train(name, per_device, steps):
        model = make_model(
            tokenizer,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            sampling_temperature=1e-5,
            initializer_range=0.1,
        )
        trainer = make_trainer(
            tokenizer,
            sample_file,
            tmp_path / name,
            model=model,
            dataset=ragged,
            max_steps=3,
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=steps,
        )
        trainer.train()
        return trainer

    whole, split = train("whole", 8, 1), train("split", batch_size, accumulation)
    for ours, theirs in zip(split.state.log_history[:3], whole.state.log_history[:3], strict=True):
        for key in ("loss", "generator_loss", "discriminator_loss", "fake_rate", "discriminator_auc", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-4), key
    for name, parameter in weights(split).items():
        torch.testing.assert_close(parameter, weights(whole)[name], atol=2e-5, rtol=0)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tokenizer, sample_file, tmp_path):
    straight = make_trainer(tokenizer, sample_file, tmp_path / "straight", max_steps=6)
    straight.train()
    first = make_trainer(tokenizer, sample_file, tmp_path / "run", max_steps=6, save_strategy="steps", save_steps=3)
    first.train()
    again = make_trainer(tokenizer, sample_file, tmp_path / "run", max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_tied(again.model)
    assert_equal_weights(weights(again), weights(straight))
    losses = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in again.state.log_history if "loss" in entry] == losses


def test_masked_modeling_alone_moves_no_weight_of_the_discriminator_but_the_shared_embeddings(
    tokenizer, sample_file, tmp_path
):
    model = make_model(tokenizer, discriminator_weight=0.0)
    before = {name: weight.clone() for name, weight in model.discriminator.named_parameters()}
    make_trainer(tokenizer, sample_file, tmp_path, model=model, weight_decay=0.1).train()
    moved = {name for name, weight in model.discriminator.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {f"electra.embeddings.{name}" for name in SHARED_EMBEDDINGS}


def test_masks_change_from_epoch_to_epoch(tokenizer, sample_file, tmp_path):
    seen = set()

    class Recorder(DataCollatorForReplacedTokenDetection):
        def __call__(self, rows):
            batch = super().__call__(sorted(rows, key=lambda row: row["row_id"]))
            seen.add(tuple(batch["masked_positions"].flatten().tolist()))
            return batch

    rows = make_rows(tokenizer, sample_file)[:4]
    make_trainer(tokenizer, sample_file, tmp_path, dataset=rows, max_steps=3, collator=Recorder(tokenizer)).train()
    assert len(seen) == 3


def test_the_product_schedule_is_the_references():
    """Clark et al.: peak 2e-4, 10,000 warm-up steps, 766,000 steps."""

    def rate(step):
        return 2e-4 * product_schedule(step, warmup_steps=10_000, max_steps=766_000)

    assert rate(0) == 0
    assert rate(5_000) == pytest.approx(9.93473e-5, rel=1e-5)
    assert rate(10_000) == pytest.approx(1.97389e-4, rel=1e-5)
    assert rate(766_000) == 0


def test_the_product_schedule_is_what_the_trainer_then_uses(tokenizer, sample_file, tmp_path):
    trainer = make_trainer(tokenizer, sample_file, tmp_path, product_schedule=True, max_steps=4, warmup_steps=2)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0, 0.5 * 0.75 * 1e-3, 0.5e-3, 0.25e-3])


@pytest.mark.parametrize(("warmup_steps", "is_warned"), [(4, True), (3, False)])
def test_a_warmup_that_outlasts_the_run_is_said(tokenizer, sample_file, tmp_path, caplog, warmup_steps, is_warned):
    trainer = make_trainer(tokenizer, sample_file, tmp_path, max_steps=4, warmup_steps=warmup_steps)
    trainer.create_optimizer_and_scheduler(4)
    assert ("rises for 4 steps of 4 and never reaches its peak; give fewer --warmup_steps" in caplog.text) == is_warned


def test_adam_without_bias_correction_takes_the_references_first_step(tokenizer, sample_file, tmp_path):
    """Fresh moments: lr * 0.1 g / (sqrt(0.001) |g| + 1e-6), about 3.16 lr."""
    trainer = make_trainer(tokenizer, sample_file, tmp_path, adam_bias_correction=False, weight_decay=0.0)
    optimizer = trainer.create_optimizer()
    parameter = trainer.model.discriminator.discriminator_predictions.dense.weight
    before, gradient = parameter.detach().clone(), torch.randn_like(parameter)
    parameter.grad = gradient.clone()
    optimizer.step()
    expected = 1e-3 * 0.1 * gradient / (0.001**0.5 * gradient.abs() + 1e-6)
    torch.testing.assert_close(before - parameter.detach(), expected, atol=1e-7, rtol=1e-4)


def test_embeddings_decay_and_biases_and_layer_norms_do_not(tokenizer, sample_file, tmp_path):
    trainer = make_trainer(tokenizer, sample_file, tmp_path)
    optimizer = trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01 and optimizer.param_groups[1]["weight_decay"] == 0
    assert "discriminator.electra.embeddings.word_embeddings.weight" in decayed
    assert all(name.endswith("bias") or "LayerNorm" in name for name in kept)
    assert not any(name.endswith("bias") or "LayerNorm" in name for name in decayed)
    assert len(decayed) + len(kept) == len(names)
    assert optimizer.defaults["eps"] == 1e-6


def test_bfloat16_trains_in_float32_weights(tokenizer, sample_file, tmp_path):
    trainer = make_trainer(tokenizer, sample_file, tmp_path, precision="bfloat16", max_steps=2)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("machine", "maker", "has_amx", "expected"),
    [
        ("x86_64", "GenuineIntel", True, "bfloat16"),
        ("x86_64", "GenuineIntel", False, "float32"),  # its AVX512-BF16 alone is slower than float32
        ("x86_64", "AuthenticAMD", False, "bfloat16"),
        ("aarch64", "ARM", True, "float32"),
    ],
)
def test_precision_is_what_the_processor_computes_fast(machine, maker, has_amx, expected, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("kcelectra.precision.Path.read_text", lambda path: f"vendor_id: {maker}")
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    assert choose_precision(use_cpu=True) == expected


@pytest.mark.parametrize(("precision", "message"), [("int8", "auto, float32"), ("float16", "which is for GPUs")])
def test_a_precision_that_cannot_be_is_refused(precision, message):
    with pytest.raises(InputError, match=message):
        PretrainingArguments(output_dir="unused", precision=precision, use_cpu=True)


def test_a_run_shorter_than_an_interval_logs_at_its_end(tokenizer, sample_file, tmp_path):
    for logging_steps, expected in ((500, [3]), (2, [2]), (3, [3])):
        trainer = make_trainer(tokenizer, sample_file, tmp_path, max_steps=3, logging_steps=logging_steps)
        trainer.train()
        assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == expected


def test_a_tokenizer_of_another_size_is_refused(tokenizer, sample_file, tmp_path):
    model = KcElectraForPreTraining(KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer) + 1))
    with pytest.raises(InputError, match=f"{len(tokenizer)} tokens, the model {len(tokenizer) + 1}"):
        make_trainer(tokenizer, sample_file, tmp_path, model=model)
