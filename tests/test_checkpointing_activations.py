"""Activation checkpointing: layers are computed twice, and nothing else changes."""

import pytest
import torch
from test_attention import COMPILES
from test_trainer import make_model, make_trainer

from kcelectra import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining import masked_head
from kcelectra.pretraining.dropout import Dropout


@pytest.fixture
def batch(tokenizer):
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    rows = torch.randint(5, len(tokenizer), (4, 62), generator=torch.Generator().manual_seed(0)).tolist()
    return collator([{"input_ids": [2, *row, 3], "row_id": index} for index, row in enumerate(rows)])


def train_step(model, batch, *, is_bfloat16=False):
    """Return what a step computes, with dropout."""
    torch.manual_seed(1)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
        output = model.train()(**batch)
    output.loss.backward()
    drawn = {"sampled": output.sampled_ids, "generator": output.generator_loss, "loss": output.loss}
    return drawn | {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("is_bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_losses_draws_and_gradients_keep_their_bits(tokenizer, batch, is_bfloat16):
    model = make_model(tokenizer)
    expected = train_step(model, batch, is_bfloat16=is_bfloat16)
    model.activation_checkpointing_enable()
    torch.testing.assert_close(train_step(model, batch, is_bfloat16=is_bfloat16), expected, rtol=0, atol=0)


def test_layers_of_both_halves_are_computed_twice_and_replacements_drawn_once(tokenizer, batch, monkeypatch):
    draws, dropped, draw = [], [], masked_head.sample_replacements
    monkeypatch.setattr(masked_head, "sample_replacements", lambda *a, **k: draws.append(1) or draw(*a, **k))
    model = make_model(tokenizer)
    for half in (model.generator, model.discriminator):
        for module in half.electra.encoder.modules():
            if isinstance(module, Dropout):
                module.register_forward_hook(lambda module, *_: dropped.append(module))
    train_step(model, batch)
    once = len(dropped)
    assert set(dropped) >= {
        half.electra.encoder.layer[0].output.dropout for half in (model.generator, model.discriminator)
    }
    model.activation_checkpointing_enable()
    train_step(model, batch)
    assert len(dropped) == 3 * once and len(draws) == 2


@COMPILES
def test_compiled_layers_keep_the_bits_of_those_that_are_computed_once(tokenizer, batch):
    model = make_model(tokenizer)
    model.compile_parts(backend="aot_eager")
    expected = train_step(model, batch)
    model = make_model(tokenizer)
    model.activation_checkpointing_enable()
    model.compile_parts(backend="aot_eager")
    torch.testing.assert_close(train_step(model, batch), expected, rtol=0, atol=0)


def test_a_run_with_accumulation_ends_with_the_same_weights(tokenizer, sample_file, tmp_path):
    weights = []
    for is_on in (None, True):
        trainer = make_trainer(
            tokenizer,
            sample_file,
            tmp_path / str(is_on),
            gradient_accumulation_steps=2,
            activation_checkpointing=is_on,
        )
        trainer.train()
        assert trainer.model.discriminator.electra.encoder.layer[0].gradient_checkpointing == bool(is_on)
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
