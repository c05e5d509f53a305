"""A joint checkpoint becomes two plain Hugging Face repositories."""

import copy
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.manifest import write_manifest
from kcelectra.pretraining.embeddings import plain_state_dict
from kcelectra.pretraining.modeling import KcElectraForPreTraining
from kcelectra.tokenization import check_pairing, save_tokenizer

#: Of every published ELECTRA, and what a model is fine-tuned with where nobody says otherwise.
DROPOUT = 0.1
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def export_checkpoint(
    checkpoint_dir: str | Path, output_dir: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write both halves of a checkpoint, with the tokenizer, so that they load where `kcelectra` is not installed.

    Args:
        checkpoint_dir: a checkpoint of `KcElectraForPreTraining` with its tokenizer.
        output_dir: gets `discriminator/` (`ElectraForPreTraining`), but where it had no weight and has learnt nothing,
            `generator/` (`ElectraForMaskedLM`) and `manifest.json`; replaced if it is there. What was pretrained
            without dropout says 0.1 there, for the fine-tuning that follows.
        dtype: of the weights; `torch.float16` halves the files, and `recipes/finetune.py` trains it in float32.

    Raises:
        InputError: there is no checkpoint, its tokenizer is not the model's, or there is no such `dtype`.
    """
    if not Path(checkpoint_dir, "config.json").is_file():
        raise InputError(f"{checkpoint_dir} is not a checkpoint: it has no config.json; give a checkpoint-N directory")
    model = KcElectraForPreTraining.from_pretrained(checkpoint_dir)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir)
    try:
        check_pairing(tokenizer, model.config.discriminator_config)
    except InputError as error:
        raise InputError(f"{checkpoint_dir}: {error}") from error
    export_model(model, tokenizer, output_dir, dtype=dtype)


def export_model(
    model: KcElectraForPreTraining,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write both halves of a model; see `export_checkpoint`."""
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; give one of {', '.join(map(str, DTYPES))}")
    output_dir = Path(output_dir)
    staging = output_dir.with_name(f".{output_dir.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    halves: dict[str, PreTrainedModel] = {"generator": model.generator}
    if model.config.discriminator_weight:
        halves["discriminator"] = model.discriminator
    for name, half in halves.items():
        half.save_pretrained(staging / name, state_dict=_cast(plain_state_dict(half), dtype))
        config = _with_dropout(half.config)
        config.dtype = dtype
        config.save_pretrained(staging / name)
        save_tokenizer(tokenizer, staging / name)
    write_manifest(staging, num_parameters=model.num_parameters())
    shutil.rmtree(output_dir, ignore_errors=True)
    staging.rename(output_dir)


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights in another type; those that were one tensor, as tied ones are, stay one."""
    done: dict[int, Tensor] = {}
    return {name: done.setdefault(value.data_ptr(), value.to(dtype)) for name, value in state.items()}


def _with_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.hidden_dropout_prob = config.hidden_dropout_prob or DROPOUT
    config.attention_probs_dropout_prob = config.attention_probs_dropout_prob or DROPOUT
    return config
