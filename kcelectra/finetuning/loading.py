"""Load a model with the head of a task, and tell its weights from others."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.finetuning.original import make_original_head
from kcelectra.finetuning.protocols import PROTOCOLS, Protocol
from kcelectra.finetuning.sequence import SequenceHead
from kcelectra.finetuning.spans import SpansHead
from kcelectra.finetuning.tasks import Task
from kcelectra.finetuning.tokens import TokensHead
from kcelectra.finetuning.training import Head
from kcelectra.tokenization.loading import as_bert_tokenizer, load_tokenizer, tokens_by_id
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS, hash_vocabulary


def load_head(
    task: Task,
    model: str | Path,
    *,
    revision: str | None = None,
    max_length: int | None = None,
    protocol: Protocol = PROTOCOLS["strict"],
) -> tuple[Head, PreTrainedModel]:
    """Return the head of a task for a model's tokenizer, and the model, float32, with a new output layer.

    Args:
        task: one of `TASKS`, or one's own.
        model: a directory, or the id of a repository on the Hub.
        revision: of a model on the Hub.
        max_length: tokens of a row; the task's if None, and never more than the model has positions.
        protocol: that the rows are made by.

    Raises:
        InputError: the model cannot be loaded, or the tokenizer is not its own.
    """
    try:
        config = AutoConfig.from_pretrained(str(model), revision=revision)
        tokenizer = load_tokenizer(model, revision=revision, config=config)
        max_length = min(max_length or task.max_length, config.max_position_embeddings)
        make = make_original_head if protocol.is_original else make_head
        head = make(task, tokenizer, max_length=max_length)
        if task.labels is not None:
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {label: index for index, label in enumerate(task.labels)}
        elif task.head == "sequence":
            config.num_labels = 1
        else:
            config.num_labels = 2  # the first and the last token, whatever the model was fine-tuned on
        if isinstance(head, SequenceHead):
            config.problem_type = head.problem_type
        if getattr(config, "type_vocab_size", 0) < 2:
            raise InputError(f"{model} is a {config.model_type} without token types; give an ELECTRA or BERT model")
        network, report = head.auto_class.from_pretrained(
            str(model),
            revision=revision,
            config=config,
            dtype=torch.float32,  # whatever was saved: in half precision most updates are rounded away
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(
            f"cannot load the weights of {model}: {error}; the file is damaged: copy, download or export it again"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the model {model}: {error}; give a directory such as out/smoke/export/discriminator, or "
            "OWNER/NAME@REVISION of the Hub"
        ) from error
    _renew_head(network, model, {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    return head, network


def _renew_head(network: PreTrainedModel, model: str | Path, new: set[str]) -> None:
    """See that all of the encoder was in the file, and give a head that was there too new weights.

    Args:
        network: as it was loaded.
        model: where it came from.
        new: names of the weights that were not in the file.
    """
    encoder = f"{network.base_model_prefix}."
    lost = sorted(name for name in new if name.startswith(encoder) and not name.startswith(f"{encoder}pooler."))
    if lost:
        raise InputError(f"{model} lacks {len(lost)} weights of its encoder, such as {lost[0]}; export it again")
    kept = [name for name in network.state_dict() if not name.startswith(encoder) and name not in new]
    if kept:
        fresh = type(network)(network.config).state_dict()
        network.load_state_dict({name: fresh[name] for name in kept}, strict=False)


def make_head(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Head:
    """Return what encodes the examples of a task and reads predictions off logits."""
    if task.head == "tokens":
        return TokensHead(tokenizer, task.labels or (), max_length)
    if task.head == "spans":
        return SpansHead(tokenizer, max_length)
    return SequenceHead(tokenizer, task.labels, max_length, task.is_multi_label)


def hash_weights(model: torch.nn.Module) -> str:
    """Return the sha256 of a model's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("pooler."):
            continue  # of some heads only
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of a vocabulary, and of what is done to texts before where `as_bert_tokenizer` does not.

    The rows of this project's tokenizers have that of the vocabulary alone.
    """
    vocabulary = hash_vocabulary(tokens_by_id(tokenizer))
    if not tokenizer.is_fast:
        return vocabulary
    steps, usual = (_describe_steps(one) for one in (tokenizer, as_bert_tokenizer(SPECIAL_TOKENS)))
    return vocabulary if steps == usual else hashlib.sha256(f"{vocabulary} {steps}".encode()).hexdigest()


def _describe_steps(tokenizer: PreTrainedTokenizerBase) -> str:
    steps = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer = steps["normalizer"] or {}
    if normalizer.get("strip_accents", 0) is None:  # then they go with the capitals
        normalizer["strip_accents"] = normalizer["lowercase"]
    return json.dumps([normalizer, steps["pre_tokenizer"]], sort_keys=True)
