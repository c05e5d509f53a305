"""ONNX and int8: the numbers of PyTorch, and files that need neither PyTorch nor this package."""

import importlib.util
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from onnx import load, numpy_helper
from onnxruntime import InferenceSession
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ElectraConfig

from kcelectra import KcElectraConfig, KcElectraForPreTraining
from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest, verify_manifest
from kcelectra.release import onnx
from kcelectra.release.onnx import INT8_MODEL, MODEL, _find_difference, export_onnx
from kcelectra.tokenization import SPECIAL_TOKENS, save_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer

ROOT = Path(__file__).parents[1]
WORDS = ["영화", "배우", "음악", "최고", "최악", "##가", "##는", "좋다", "싫다"]
HEADS = {
    "ElectraForPreTraining": ["logits"],
    "ElectraForMaskedLM": ["logits"],
    "ElectraForSequenceClassification": ["logits"],
    "ElectraForTokenClassification": ["logits"],
    "ElectraForQuestionAnswering": ["start_logits", "end_logits"],
    "ElectraModel": ["last_hidden_state"],
}
RARE = ("ElectraForPreTraining", "ElectraModel")  # as ONNX: what is fine-tuned is of the others
HALF_PRECISION = "ElectraForMaskedLM"  # in its file; float32 in ONNX
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
RUN = """
import sys
sys.modules |= dict.fromkeys(["torch", "transformers", "kcelectra", "onnx", "onnxscript"])  # any import now fails
import numpy
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding()
encodings = tokenizer.encode_batch(["영화가 최고", "배우"])
names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
batch = {name: numpy.array([getattr(row, key) for row in encodings]) for name, key in names.items()}
for model in ("model.onnx", "model_int8.onnx"):
    print(InferenceSession(model).run(["logits"], batch)[0].shape)
"""


def make_repository(directory: Path, architecture: str) -> Path:
    tokenizer = as_bert_tokenizer([*SPECIAL_TOKENS, *WORDS])
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2}
    config = ElectraConfig(vocab_size=len(tokenizer), num_hidden_layers=1, num_attention_heads=2, **sizes)
    dtype = torch.bfloat16 if architecture == HALF_PRECISION else torch.float32
    find_class(architecture)(config).to(dtype).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def find_class(architecture: str) -> type[transformers.PreTrainedModel]:
    return getattr(transformers, architecture)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Returns the repository of an architecture, and where both of its forms are; made once."""

    @cache
    def make(architecture: str) -> tuple[Path, Path]:
        directory = make_repository(tmp_path_factory.mktemp("head") / "model", architecture)
        return directory, export_onnx(directory, directory / "onnx", quantize=True).parent

    return make


@pytest.fixture
def classifier(export):
    return export("ElectraForSequenceClassification")


def draw_batch(rows: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows * length)
    ids = generator.integers(0, len(SPECIAL_TOKENS) + len(WORDS), (rows, length))
    lengths = generator.integers(1, length, rows, endpoint=True)
    types = generator.integers(0, 2, (rows, length))
    return dict(zip(INPUTS, (ids, (np.arange(length) < lengths[:, None]).astype(np.int64), types), strict=True))


def run_torch(model: torch.nn.Module, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(values) for name, values in batch.items()})
    return {name: values.numpy() for name, values in output.items()}


# the numbers


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=pytest.mark.slow if name in RARE else ()) for name in HEADS],
)
def test_every_head_gives_the_numbers_of_pytorch_for_any_rows_and_tokens(architecture, export):
    directory, output_dir = export(architecture)
    session = InferenceSession(output_dir / MODEL)
    model = find_class(architecture).from_pretrained(directory, dtype=torch.float32).eval()
    assert [value.name for value in session.get_inputs()] == INPUTS
    assert [value.name for value in session.get_outputs()] == HEADS[architecture]
    assert all(value.shape == ["batch", "length"] for value in session.get_inputs())
    for rows, length in ((1, 1), (3, 1), (1, 7), (5, 33), (2, 512)):
        batch = draw_batch(rows, length)
        expected = run_torch(model, batch)
        for name, values in zip(HEADS[architecture], session.run(None, batch), strict=True):
            assert values.shape == expected[name].shape and values.dtype == np.float32
            np.testing.assert_allclose(values, expected[name], atol=1e-5, rtol=0)
    assert np.ptp(values) > 0.1  # or nothing would have been compared


def test_what_pads_a_batch_changes_no_real_token(export):
    _, output_dir = export("ElectraForTokenClassification")
    session, short, long = InferenceSession(output_dir / MODEL), draw_batch(1, 5), draw_batch(1, 40)
    alone = {**short, "attention_mask": np.ones((1, 5), dtype=np.int64)}
    padded = {name: np.concatenate([np.ones_like(long[name]), long[name]]) for name in INPUTS}
    for name in INPUTS:
        padded[name][0, :5] = alone[name]
    padded["attention_mask"][0] = np.arange(40) < 5
    (expected,), (values,) = session.run(None, alone), session.run(None, padded)
    np.testing.assert_allclose(values[0, :5], expected[0], atol=1e-6, rtol=0)


def test_the_manifest_says_how_far_each_form_is_from_pytorch(classifier):
    _, output_dir = classifier
    manifest = verify_manifest(output_dir)
    assert 0 <= manifest["max_difference"][MODEL] < 1e-5 < manifest["max_difference"][INT8_MODEL] < 0.1
    assert set(manifest["onnx_versions"]) == {"onnx", "onnxscript", "onnxruntime"}
    expected = {MODEL, INT8_MODEL, "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert set(manifest["files"]) == expected


@pytest.mark.parametrize("architecture", HEADS)
def test_int8_is_smaller_and_near(architecture, export):
    _, output_dir = export(architecture)
    sizes = [(output_dir / name).stat().st_size for name in (INT8_MODEL, MODEL)]
    assert sizes[0] < sizes[1]
    batch = draw_batch(16, 128)
    float32, int8 = (InferenceSession(output_dir / name).run(None, batch) for name in (MODEL, INT8_MODEL))
    for expected, values in zip(float32, int8, strict=True):
        assert np.corrcoef(expected.ravel(), values.ravel())[0, 1] > 0.99


def test_an_int8_weight_has_seven_bits_and_a_scale_a_column(classifier):
    _, output_dir = classifier
    values = {value.name: numpy_helper.to_array(value) for value in load(output_dir / INT8_MODEL).graph.initializer}
    weights = {name: value for name, value in values.items() if value.dtype == np.int8 and value.ndim == 2}
    assert len(weights) == 9  # the projection of the embeddings, six of the layer, two of the head
    for name, value in weights.items():
        assert np.abs(value.astype(int)).max() == 64
        assert values[name.replace("_quantized", "_scale")].shape == value.shape[1:]


def test_a_difference_is_found_and_is_the_largest(classifier):
    directory, output_dir = classifier
    model = find_class("ElectraForSequenceClassification").from_pretrained(directory).eval()
    assert _find_difference(model, output_dir / MODEL) < 1e-6
    with torch.no_grad():
        model.classifier.out_proj.bias += torch.tensor([0.25, -0.5])
    assert _find_difference(model, output_dir / MODEL) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_other_opsets_give_the_same_in_both_forms(opset, classifier, tmp_path):
    directory, output_dir = classifier
    path = export_onnx(directory, tmp_path / "onnx", quantize=True, opset=opset)
    batch = draw_batch(4, 20)
    for name, tolerance in ((MODEL, 1e-6), (INT8_MODEL, 0.05)):
        values, expected = (InferenceSession(place / name).run(None, batch)[0] for place in (path.parent, output_dir))
        np.testing.assert_allclose(values, expected, atol=tolerance)


# the files


def test_the_files_run_with_onnxruntime_and_a_tokenizer_alone(classifier):
    _, output_dir = classifier
    command = [sys.executable, "-c", RUN]
    result = subprocess.run(command, cwd=output_dir, check=True, capture_output=True, text=True, timeout=60)
    assert result.stdout.split("\n")[:2] == ["(2, 2)", "(2, 2)"]
    assert len(AutoTokenizer.from_pretrained(output_dir)) == len(SPECIAL_TOKENS) + len(WORDS)
    assert json.loads((output_dir / "config.json").read_text())["architectures"] == [
        "ElectraForSequenceClassification"
    ]


def test_the_same_model_gives_the_same_bytes_whatever_a_killed_export_left(classifier, tmp_path):
    directory, output_dir = classifier
    (tmp_path / ".onnx.tmp").mkdir()
    (tmp_path / ".onnx.tmp/half.onnx").write_text("half")
    (tmp_path / "onnx").mkdir()  # empty
    path = export_onnx(directory, tmp_path / "onnx")
    assert path == tmp_path / "onnx" / MODEL and [path.name for path in tmp_path.iterdir()] == ["onnx"]
    files = read_manifest(output_dir)["files"]
    assert verify_manifest(path.parent)["files"] == {name: file for name, file in files.items() if name != INT8_MODEL}


def test_no_path_of_this_machine_is_in_the_files(classifier):
    directory, output_dir = classifier
    for name in (MODEL, INT8_MODEL):
        written = (output_dir / name).read_bytes()
        assert not [
            path
            for path in (b"site-packages", b"stack_trace", bytes(ROOT), bytes(directory.parents[1]))
            if path in written
        ]


def test_a_finished_export_is_not_made_again_and_a_damaged_one_is_found(classifier, tmp_path):
    directory, output_dir = classifier
    shutil.copytree(output_dir, tmp_path / "onnx")
    before = (tmp_path / "onnx" / MODEL).stat().st_mtime_ns
    assert export_onnx(directory, tmp_path / "onnx", quantize=True) == tmp_path / "onnx" / INT8_MODEL
    assert (tmp_path / "onnx" / MODEL).stat().st_mtime_ns == before
    for other in ({"quantize": False}, {"quantize": True, "opset": 18}):
        with pytest.raises(InputError, match="holds something else; give another output_dir"):
            export_onnx(directory, tmp_path / "onnx", **other)
    with open(tmp_path / "onnx" / MODEL, "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="not what manifest.json says"):
        export_onnx(directory, tmp_path / "onnx", quantize=True)


def test_another_model_in_the_same_place_is_refused(classifier, tmp_path):
    directory, output_dir = classifier
    shutil.copytree(directory, tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "model/model.safetensors")
    with pytest.raises(InputError, match="holds something else"):
        export_onnx(tmp_path / "model", output_dir, quantize=True)


# what is refused


@pytest.mark.parametrize(
    ("tolerance", "value", "shown"),
    [(1e-12, 0.0, r"\d\.\de-0\d"), pytest.param(1e-4, float("nan"), "nan", marks=pytest.mark.slow)],
)
def test_numbers_that_are_not_pytorchs_are_refused(tolerance, value, shown, classifier, tmp_path, monkeypatch):
    shutil.copytree(classifier[0], tmp_path / "model", ignore=lambda *_: ["onnx"])
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["classifier.out_proj.bias"][0] = value
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(onnx, "TOLERANCE", tolerance)
    with pytest.raises(InputError, match=f"differs from PyTorch by {shown}, more than .*: nothing was written"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def spoil(directory: Path, kind: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    if kind == "config":
        (directory / "config.json").unlink()
    elif kind == "tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (directory / name).unlink()
    elif kind == "another tokenizer":
        save_tokenizer(as_bert_tokenizer([*SPECIAL_TOKENS, *WORDS, "하나"]), directory)
    elif kind == "weights":
        (directory / "model.safetensors").unlink()
    elif kind == "half the weights":
        data = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(data[: len(data) // 2])
    else:
        (directory / "config.json").write_text(json.dumps({**config, "architectures": kind and [kind]}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("config", "is no model: it has no config.json; give a directory such as out/smoke/export/discriminator"),
        ("tokenizer", "has no tokenizer: copy tokenizer.json and tokenizer_config.json there"),
        ("another tokenizer", "the model has 14 tokens, and the tokenizer has 15 tokens"),
        ("weights", "cannot load the model in .*no file named .*model.safetensors"),
        ("half the weights", "cannot load the model in .*; give a directory such as"),
        ("ElectraForTokenClassification", "lacks weights of its ElectraForTokenClassification, such as classifier"),
        (
            "ElectraForMultipleChoice",
            "holds a ElectraForMultipleChoice; it must be one of ForPreTraining, ForMaskedLM",
        ),
        (None, "holds a model without architectures; it must be one of ForPreTraining"),
    ],
)
def test_what_is_no_whole_repository_is_refused_and_leaves_nothing(kind, message, classifier, tmp_path):
    shutil.copytree(classifier[0], tmp_path / "model")
    spoil(tmp_path / "model", kind)
    with pytest.raises(InputError, match=message):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_of_pretraining_is_refused(tokenizer, tmp_path):
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer))
    KcElectraForPreTraining(config).save_pretrained(tmp_path / "checkpoint-1")
    save_tokenizer(tokenizer, tmp_path / "checkpoint-1")
    with pytest.raises(
        InputError, match="checkpoint-1 holds both halves; part them with kcelectra.export_checkpoint first"
    ):
        export_onnx(tmp_path / "checkpoint-1", tmp_path / "onnx")


def test_nothing_that_is_there_already_is_written_over(classifier, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("file", "full", "link", "broken"):
        with pytest.raises(InputError, match=f"{name} is there, and holds something else; give another output_dir"):
            export_onnx(classifier[0], tmp_path / name)
    with pytest.raises(InputError, match="cannot write .*file/below.*; give another output_dir"):
        export_onnx(classifier[0], tmp_path / "file/below")
    with pytest.raises(InputError, match="holds something else"):
        export_onnx(classifier[0], classifier[0])
    assert (tmp_path / "file").read_text() == (tmp_path / "full/notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full", "empty", "link", "broken"}


@pytest.mark.parametrize("opset", [5, 17, 24])
def test_an_opset_that_torch_or_onnxruntime_would_not_write_is_refused(opset, classifier, tmp_path):
    with pytest.raises(InputError, match=f"opset is {opset}; give 18 to 23"):
        export_onnx(classifier[0], tmp_path / "onnx", opset=opset)


def test_without_the_extra_one_is_told_what_to_type(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, onnxruntime.__name__, None)
    with pytest.raises(InputError, match=r'ONNX needs onnxruntime; type: pip install "kcelectra\[onnx\]"'):
        export_onnx(classifier[0], tmp_path / "onnx")


# the recipe


@pytest.fixture
def run_recipe(monkeypatch):
    spec = importlib.util.spec_from_file_location("onnx_recipe", ROOT / "recipes/export_onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["export_onnx.py", *arguments])
        module.main()

    return run


def test_the_recipe_prints_sizes_and_differences(run_recipe, classifier, capsys):
    directory, output_dir = classifier
    run_recipe("--model", str(directory), "--output_dir", str(output_dir), "--quantize", "true")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{output_dir}/model.onnx: 0.") and first.endswith(" from PyTorch")
    assert second.startswith(f"{output_dir}/model_int8.onnx: 0.") and " MB, at most " in second


def test_the_recipe_wants_a_model(run_recipe):
    with pytest.raises(InputError, match="give --model, such as --model out/smoke/export/discriminator"):
        run_recipe()
