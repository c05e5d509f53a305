"""A model becomes ONNX, in float32 and on request in int8, and is compared with PyTorch before it counts."""

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch.export import Dim
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest, verify_manifest, write_manifest
from kcelectra.tokenization import load_tokenizer, save_tokenizer

EXTRA = ("onnx", "onnxscript", "onnxruntime")
MODEL, INT8_MODEL = "model.onnx", "model_int8.onnx"
TOLERANCE = 1e-4  # of any output on any of the batches below
BATCHES = ((1, 1), (2, 9), (3, 64), (1, 512))  # rows, and tokens of the longest
OPSETS = range(18, 24)  # below, torch writes another than was asked for; above, onnxruntime of 2025 loads none
EXAMPLE = "give a directory such as out/smoke/export/discriminator, or one that recipes/finetune.py made"
SOURCE_SUFFIXES = (".safetensors", ".bin", ".json", ".txt")
AUTO_CLASSES = {
    "ForPreTraining": transformers.AutoModelForPreTraining,
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForTokenClassification": transformers.AutoModelForTokenClassification,
    "ForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
    "Model": transformers.AutoModel,
}


def export_onnx(model_dir: str | Path, output_dir: str | Path, *, quantize: bool = False, opset: int = 20) -> Path:
    """Write a model as ONNX, for batches of any number of rows and tokens.

    The inputs are `input_ids`, `attention_mask` and `token_type_ids`, each (batch, length) int64; the outputs go by
    the names they have in PyTorch. int8 needs no data: activations are scaled as they come, by one scale a batch, so
    that a row's output changes a little with the rows beside it.

    Args:
        model_dir: an exported or fine-tuned repository: a model with one of the heads of `AUTO_CLASSES`, and its
            tokenizer.
        output_dir: gets `model.onnx`, `config.json`, the tokenizer, and `manifest.json`, whose `max_difference` is
            the largest there is to PyTorch. New or empty; the same export is not made twice.
        quantize: write `model_int8.onnx` too.
        opset: version of ONNX's operators, one of `OPSETS`.

    Returns:
        The path of `model.onnx`, or of `model_int8.onnx` if `quantize`.

    Raises:
        InputError: `kcelectra[onnx]` is not installed; the model, its weights or its tokenizer cannot be read;
            `output_dir` holds something else; or the float32 model differs from PyTorch by more than `TOLERANCE`.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise InputError(f'ONNX needs {", ".join(missing)}; type: pip install "kcelectra[onnx]"')
    if opset not in OPSETS:
        raise InputError(f"opset is {opset}; give {OPSETS[0]} to {OPSETS[-1]}")
    model_dir, output_dir = Path(model_dir), Path(output_dir)
    path = output_dir / (INT8_MODEL if quantize else MODEL)
    _check_files(model_dir)
    facts = {"opset": opset, "quantize": quantize, "source_sha256": _hash_files(model_dir)}
    if _is_finished(output_dir, facts):
        return path
    model, tokenizer = _load(model_dir)
    staging = output_dir.with_name(f".{output_dir.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        save_tokenizer(tokenizer, staging)
        model.config.save_pretrained(staging)
        differences = _write_models(model, staging, quantize=quantize, opset=opset)
        versions = {name: version(name) for name in EXTRA}
        write_manifest(staging, **facts, max_difference=differences, onnx_versions=versions)
        staging.rename(output_dir)
    except OSError as error:
        raise InputError(f"cannot write {output_dir}: {error}; give another output_dir") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def _check_files(model_dir: Path) -> None:
    if not (model_dir / "config.json").is_file():  # transformers would look on the Hub
        raise InputError(f"{model_dir} is no model: it has no config.json; {EXAMPLE}")
    if not any((model_dir / name).is_file() for name in ("tokenizer.json", "vocab.txt")):  # it would make an empty one
        raise InputError(f"{model_dir} has no tokenizer: copy tokenizer.json and tokenizer_config.json there")


def _hash_files(model_dir: Path) -> dict[str, str]:
    files = [path for path in sorted(model_dir.iterdir()) if path.is_file() and path.suffix in SOURCE_SUFFIXES]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _is_finished(output_dir: Path, facts: dict[str, Any]) -> bool:
    """Return whether this very export is there; anything else that is there is refused."""
    if output_dir.is_dir() and facts.items() <= (read_manifest(output_dir) or {}).items():
        verify_manifest(output_dir)
        return True
    is_free = not output_dir.exists() or output_dir.is_dir() and not any(output_dir.iterdir())
    if not is_free or output_dir.is_symlink() or not output_dir.name:
        raise InputError(f"{output_dir} is there, and holds something else; give another output_dir, or delete it")
    return False


def _load(model_dir: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        architectures = PreTrainedConfig.get_config_dict(model_dir)[0].get("architectures")
        architecture = next(iter(architectures or ()), "model without architectures")
        if architecture == "KcElectraForPreTraining":
            raise InputError(f"{model_dir} holds both halves; part them with kcelectra.export_checkpoint first")
        suffix = next((suffix for suffix in AUTO_CLASSES if architecture.endswith(suffix)), "Model")
        model, report = AUTO_CLASSES[suffix].from_pretrained(model_dir, dtype=torch.float32, output_loading_info=True)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the model in {model_dir}: {error}; {EXAMPLE}") from error
    if type(model).__name__ != architecture:
        raise InputError(f"{model_dir} holds a {architecture}; it must be one of {', '.join(AUTO_CLASSES)}")
    if report["missing_keys"]:
        raise InputError(f"{model_dir} lacks weights of its {architecture}, such as {min(report['missing_keys'])}")
    return model.eval(), load_tokenizer(model_dir, config=model.config)


def _write_models(model: PreTrainedModel, directory: Path, *, quantize: bool, opset: int) -> dict[str, float]:
    """Write the models and return how far each is from PyTorch."""
    _write_float32(model, directory / MODEL, opset=opset)
    differences = {MODEL: _find_difference(model, directory / MODEL)}
    if not differences[MODEL] <= TOLERANCE:  # nor if it is no number
        raise InputError(
            f"ONNX differs from PyTorch by {differences[MODEL]:.1e}, more than {TOLERANCE}: nothing was written; give "
            "another opset, or install the versions of constraints.txt"
        )
    if quantize:
        _write_int8(directory / MODEL, directory / INT8_MODEL)
        differences[INT8_MODEL] = _find_difference(model, directory / INT8_MODEL)
    return differences


def _write_float32(model: PreTrainedModel, path: Path, *, opset: int) -> None:
    (example,) = _draw_batches(model.config, BATCHES[1:2])
    axes = {0: Dim("batch"), 1: Dim("length", max=model.config.max_position_embeddings)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of calls of its own, and of axes that are named alike
        program = torch.onnx.export(
            model,
            kwargs=example,
            dynamo=True,
            input_names=list(example),
            output_names=list(model(**example)),
            dynamic_shapes=dict.fromkeys(example, axes),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.save(path)


def _write_int8(source: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".tmp")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    # 7 bits: products of 8 overflow the 16 bits they are added in, on a CPU without VNNI. Measured, NSMC, two layers:
    # 99.90 % of 50,000 answers are those of float32, with 8 bits 99.92 %.
    options = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(prepared, path, op_types_to_quantize=["MatMul", "Gather"], **options)
    prepared.unlink()


@torch.inference_mode()
def _find_difference(model: PreTrainedModel, path: Path) -> float:
    """Return the largest difference between any output of ONNX and PyTorch."""
    from onnxruntime import InferenceSession

    session, largest = InferenceSession(path, providers=["CPUExecutionProvider"]), torch.tensor(0.0)
    for batch in _draw_batches(model.config, BATCHES):
        outputs = session.run(None, {name: value.numpy() for name, value in batch.items()})
        for ours, expected in zip(outputs, model(**batch).values(), strict=True):
            largest = torch.maximum(largest, (torch.from_numpy(ours) - expected).abs().max())  # NaN stays NaN
    return largest.item()


def _draw_batches(
    config: PreTrainedConfig, shapes: tuple[tuple[int, int], ...] = BATCHES
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield random batches; each row is shorter than the one before."""
    generator = torch.Generator().manual_seed(0)
    for rows, longest in shapes:
        length = min(longest, config.max_position_embeddings)
        lengths = torch.tensor([max(1, length * (rows - row) // rows) for row in range(rows)])
        yield {
            "input_ids": torch.randint(config.vocab_size, (rows, length), generator=generator),
            "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
            "token_type_ids": torch.randint(config.type_vocab_size, (rows, length), generator=generator),
        }
