"""Exported weights load where the package is not installed, and compute the same."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, ElectraForMaskedLM, ElectraForPreTraining

from kcelectra import KcElectraConfig, KcElectraForPreTraining, export_checkpoint
from kcelectra.errors import InputError
from kcelectra.hub import main_half, model_files
from kcelectra.manifest import verify_manifest
from kcelectra.pretraining.checkpoints import write_checkpoint
from kcelectra.pretraining.export import export_model
from kcelectra.tokenization import save_tokenizer

LOAD = """
import sys
sys.modules["kcelectra"] = None  # any import of it now fails
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer, ElectraForSequenceClassification
)

directory, ids, output = sys.argv[1], load_file(sys.argv[2])["ids"], {}
loaders = {
    "backbone": (AutoModel, {}, set(), {"discriminator_predictions"}),
    "discriminator": (AutoModelForPreTraining, {}, set(), set()),
    "generator": (AutoModelForMaskedLM, {"subfolder": "generator"}, set(), set()),
    "classifier": (ElectraForSequenceClassification, {}, {"classifier"}, {"discriminator_predictions"}),
}
for name, (loader, kwargs, new_heads, other_heads) in loaders.items():
    source = directory if kwargs else directory + "/discriminator"
    model, info = loader.from_pretrained(source, output_loading_info=True, **kwargs)
    # nothing but the head that this class adds, and the head that it does not have
    assert {key.split(".")[0] for key in info["missing_keys"]} == new_heads, (name, info)
    assert {key.split(".")[0] for key in info["unexpected_keys"]} <= other_heads, (name, info)
    assert not info["mismatched_keys"], (name, info)
    output[name] = model.eval()(ids)[0].detach().contiguous()
tokenizer = AutoTokenizer.from_pretrained(directory + "/discriminator")
assert type(tokenizer).__name__ == "BertTokenizer" and len(tokenizer) == model.config.vocab_size
assert AutoTokenizer.from_pretrained(directory, subfolder="generator").get_vocab() == tokenizer.get_vocab()
save_file(output, sys.argv[3])
"""


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = KcElectraForPreTraining(KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=2))
    model.save_pretrained(tmp_path / "checkpoint-1")
    tokenizer.save_pretrained(tmp_path / "checkpoint-1")
    return tmp_path / "checkpoint-1"


def test_the_export_loads_without_the_package_and_gives_the_same_logits(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "export")
    ids = torch.randint(5, 400, (2, 12))
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    command = [sys.executable, "-c", LOAD]
    paths = [str(tmp_path / name) for name in ("export", "ids.safetensors", "logits.safetensors")]
    subprocess.run([*command, *paths], check=True, cwd=tmp_path, timeout=120)
    logits = load_file(tmp_path / "logits.safetensors")
    model = KcElectraForPreTraining.from_pretrained(checkpoint).eval()
    assert torch.equal(logits["discriminator"], model.discriminator(ids).logits)
    assert torch.equal(logits["generator"], model.generator(ids).logits)
    assert torch.equal(logits["backbone"], model.discriminator.electra(ids).last_hidden_state)
    assert logits["classifier"].shape == (2, 2)


@pytest.mark.parametrize("embedding_sharing", ["full", "gdes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_files_and_rounds_the_weights(tokenizer, tmp_path, dtype, embedding_sharing):
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), embedding_sharing=embedding_sharing)
    model = KcElectraForPreTraining(config)
    export_model(model, tokenizer, tmp_path / "single")
    export_model(model, tokenizer, tmp_path / "half", dtype=dtype)
    for name, model_class in (("discriminator", ElectraForPreTraining), ("generator", ElectraForMaskedLM)):
        single, half = (tmp_path / kind / name for kind in ("single", "half"))
        sizes = [(path / "model.safetensors").stat().st_size for path in (single, half)]
        assert 0.5 < sizes[1] / sizes[0] < 0.51  # no tied table twice
        assert AutoConfig.from_pretrained(half).dtype == dtype
        expected = model_class.from_pretrained(single).to(dtype).state_dict()
        loaded = model_class.from_pretrained(half).state_dict()
        assert loaded.keys() == expected.keys()
        for key, value in loaded.items():
            assert value.dtype == dtype and torch.equal(value, expected[key]), key


def test_a_type_that_is_none_is_named(checkpoint, tmp_path):
    with pytest.raises(InputError, match="dtype is 'float16'; give one of torch.float32, torch.float16, torch.bfloat"):
        export_checkpoint(checkpoint, tmp_path / "export", dtype="float16")
    assert not (tmp_path / "export").exists()


def test_the_export_after_a_resize_has_the_new_vocabulary(checkpoint, tokenizer, tmp_path):
    model = KcElectraForPreTraining.from_pretrained(checkpoint)
    tokenizer = tokenizer.__class__.from_pretrained(checkpoint)
    tokenizer.add_tokens(["갓작", "노잼각"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "checkpoint-2")
    save_tokenizer(tokenizer, tmp_path / "checkpoint-2")
    export_checkpoint(tmp_path / "checkpoint-2", tmp_path / "export")
    ids = torch.tensor([[2, len(tokenizer) - 1, 3]])
    generator = ElectraForMaskedLM.from_pretrained(tmp_path / "export/generator")
    assert generator(ids).logits.shape == (1, 3, len(tokenizer))
    discriminator = ElectraForPreTraining.from_pretrained(tmp_path / "export/discriminator").eval()
    torch.testing.assert_close(discriminator(ids).logits, model.eval().discriminator(ids).logits)


@pytest.mark.parametrize(("pretrained_with", "expected"), [(0.0, 0.1), (0.2, 0.2)])
def test_what_was_pretrained_without_dropout_is_fine_tuned_with_it(tokenizer, tmp_path, pretrained_with, expected):
    dropouts = {"hidden_dropout_prob": pretrained_with, "attention_probs_dropout_prob": pretrained_with}
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1, **dropouts)
    model = KcElectraForPreTraining(config)
    export_model(model, tokenizer, tmp_path / "export")
    for half in ("discriminator", "generator"):
        exported = AutoConfig.from_pretrained(tmp_path / "export" / half)
        assert (exported.hidden_dropout_prob, exported.attention_probs_dropout_prob) == (expected, expected)
    assert model.discriminator.config.hidden_dropout_prob == pretrained_with  # a run goes on after an export


def test_the_export_is_complete_or_absent(checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "export")
    manifest = verify_manifest(tmp_path / "export")
    halves = {name.split("/")[0] for name in manifest["files"]}
    assert halves == {"discriminator", "generator"}
    assert not [name for name in manifest["files"] if name.endswith((".bin", ".pt", ".pkl"))]
    export_checkpoint(checkpoint, tmp_path / "export")  # safe to repeat
    assert verify_manifest(tmp_path / "export")["files"] == manifest["files"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "export"}


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="checkpoint-N"):
        export_checkpoint(tmp_path, tmp_path / "export")


@pytest.mark.parametrize(("weight", "half"), [(50.0, "discriminator"), (0.0, "generator")])
def test_a_sweep_of_a_run_measures_the_half_that_was_trained_for_use(tokenizer, tmp_path, weight, half):
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "generator_fraction": 1.0}
    model = KcElectraForPreTraining(KcElectraConfig.from_size("tiny", discriminator_weight=weight, **sizes))

    def write(directory):
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "trainer_state.json").write_text("{}")

    write_checkpoint(tmp_path, 7, write)
    recipe = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "sweep.py"))
    (found,) = recipe["export_checkpoints"](str(tmp_path))
    names = model_files(tmp_path / "exports" / "checkpoint-7")  # what of it would be pushed
    assert "model.safetensors" in names and ("generator/model.safetensors" in names) == (half == "discriminator")
    assert (found.source, found.step) == (str(tmp_path / "exports" / "checkpoint-7" / half), 7)
    assert AutoConfig.from_pretrained(found.source).hidden_size == 128


def test_the_main_half_of_an_export_is_the_discriminator_or_a_generator_alone(tmp_path):
    (tmp_path / "generator").mkdir()
    assert main_half(tmp_path) == tmp_path / "generator"
    (tmp_path / "discriminator").mkdir()
    assert main_half(tmp_path) == tmp_path / "discriminator"
    assert main_half(tmp_path / "none") == tmp_path / "none" / "discriminator"
