"""Load what the page tries: a discriminator, its generator where there is one, and fine-tuned classifiers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextClassificationPipeline,
)

from kcelectra.errors import InputError
from kcelectra.hub import split_revision
from kcelectra.tokenization import check_pairing, load_tokenizer


@dataclass(frozen=True)
class TriedModel:
    """What the page tries.

    Args:
        name: a directory, OWNER/NAME or OWNER/NAME@REVISION.
        tokenizer: of both halves.
        discriminator: finds replaced tokens.
        generator: proposes replacements; None where none was published.
        classifiers: by name.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    discriminator: PreTrainedModel
    generator: PreTrainedModel | None
    classifiers: dict[str, TextClassificationPipeline]

    @property
    def max_length(self) -> int:
        """Tokens that are read, special ones included."""
        halves = filter(None, (self.discriminator, self.generator))
        return min(half.config.max_position_embeddings for half in halves)


def load_model(source: str, classifiers: Sequence[str] = ()) -> TriedModel:
    """Load what the page tries.

    Args:
        source: a directory with `discriminator/` and `generator/`, as an export has them; or a directory, or a
            repository on the Hub as OWNER/NAME or OWNER/NAME@REVISION, that is a discriminator and may hold a
            `generator/`.
        classifiers: models fine-tuned to a label, labels or a number of one text, in the same notation.

    Raises:
        InputError: there is no such model, weights are missing, or the tokenizer is not the model's.
    """
    root, revision = split_revision(source)
    has_halves = Path(root, "discriminator").is_dir()
    try:
        discriminator = _load(ElectraForPreTraining, f"{root}/discriminator" if has_halves else root, revision)
        tokenizer = load_tokenizer(str(discriminator.name_or_path), revision=revision, config=discriminator.config)
        generator = None
        if _has_generator(root, revision):
            generator = _load(ElectraForMaskedLM, root, revision, subfolder="generator")
            check_pairing(tokenizer, generator.config)
        return TriedModel(source, tokenizer, discriminator, generator, {x: _load_classifier(x) for x in classifiers})
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        given, reason = " ".join([source, *classifiers]), " ".join(str(error).split())
        raise InputError(
            f"cannot load {given}: {reason}; give a directory such as out/smoke/export, or OWNER/NAME@REVISION"
        ) from error


def _load(kind: Any, source: str, revision: str | None, *, subfolder: str = "") -> PreTrainedModel:
    where = {"revision": revision, "subfolder": subfolder}
    model, report = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **where)
    missing = sorted(report["missing_keys"])
    if missing and kind is ElectraForPreTraining and model.config.architectures == ["ElectraForMaskedLM"]:
        raise InputError(
            f"{source} is a masked language model alone, and the page shows a discriminator; give as --model the "
            "export of a run that has one"
        )
    if missing:  # transformers fills them with random numbers
        raise InputError(
            f"{source} is no {kind.__name__}: it has no {missing[0]}; give as --model what pretraining exported, as "
            "--classifier what fine-tuning made of it for a label or a number"
        )
    return model.eval()


def _has_generator(root: str, revision: str | None) -> bool:
    if Path(root).is_dir():
        return Path(root, "generator").is_dir()
    try:
        hf_hub_download(root, "generator/config.json", revision=revision)
    except RemoteEntryNotFoundError:
        return False
    return True


def _load_classifier(source: str) -> TextClassificationPipeline:
    root, revision = split_revision(source)
    model = _load(AutoModelForSequenceClassification, root, revision)
    tokenizer: Any = load_tokenizer(root, revision=revision, config=model.config)
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    options = {"function_to_apply": "none"} if model.config.num_labels == 1 else {}  # else as its problem_type says
    return TextClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu", top_k=None, **options)
