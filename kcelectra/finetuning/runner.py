"""Fine-tune a model on a task with one seed, choose the best step on dev, and append a row to `results.jsonl`."""

import hashlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from transformers import (
    AutoConfig,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from kcelectra.errors import InputError
from kcelectra.finetuning.metrics import compute, is_collapsed, majority_share
from kcelectra.finetuning.results import RESULTS_FILE, append_result, hash_row, read_results
from kcelectra.finetuning.sequence import SequenceHead
from kcelectra.finetuning.sources import Example, read_splits
from kcelectra.finetuning.spans import SpansHead
from kcelectra.finetuning.tasks import TASKS, Task
from kcelectra.finetuning.tokens import TokensHead
from kcelectra.manifest import to_json, write_atomically
from kcelectra.tokenization.loading import load_tokenizer, save_tokenizer, tokens_by_id
from kcelectra.tokenization.vocabulary import hash_vocabulary

PROTOCOL = "strict"
WARMUP = 0.1  # of the steps; without, some seeds never leave the majority class (kcelectra.md 2.2)
PREDICTIONS_FILE = "predictions.jsonl"
EVAL_BATCH_SIZE = 64
PACKAGES = ("kcelectra", "torch", "transformers", "tokenizers", "evaluate")


class Head(Protocol):
    """Encodes the examples of a task, and reads predictions off logits."""

    auto_class: ClassVar[Any]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""

    def encode(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Return rows: `input_ids`, `token_type_ids`, what is learnt, and `example`, the number of the example."""

    def decode(self, examples: Sequence[Any], features: Sequence[dict[str, Any]], logits: Sequence[Any]) -> list[Any]:
        """Return a prediction an example, as the metric takes it."""

    def references(self, examples: Sequence[Any]) -> list[Any]:
        """Return what an example should be, as the metric takes it."""


@dataclass(frozen=True)
class FinetuningArguments:
    """How a task is trained on; what is None is the task's own."""

    num_epochs: float | None = field(default=None, metadata={"help": "Over the training split."})
    batch_size: int | None = field(default=None, metadata={"help": "Rows of a step."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "The highest, after a warm-up over a tenth of the steps."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a row."})
    max_train: int | None = field(default=None, metadata={"help": "Train on so many examples, the first ones."})
    max_eval: int | None = field(default=None, metadata={"help": "Evaluate on so many examples, the first ones."})
    train_file: str | None = field(default=None, metadata={"help": "In place of the one in --data_dir."})
    dev_file: str | None = field(default=None, metadata={"help": "In place of the one in --data_dir."})
    test_file: str | None = field(default=None, metadata={"help": "In place of the one in --data_dir."})

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size", "learning_rate", "max_length", "max_train", "max_eval"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"--{name} is {value}; give more than 0")

    def settle(self, task: Task) -> dict[str, Any]:
        """Return every hyperparameter, those not given by the task."""
        names = ("num_epochs", "batch_size", "learning_rate", "max_length")
        given = {name: getattr(self, name) for name in names}
        return {name: getattr(task, name) if value is None else value for name, value in given.items()}

    def files(self) -> dict[str, str]:
        """Return the files that are given, by split."""
        paths = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}
        return {split: path for split, path in paths.items() if path is not None}


def finetune(
    model: str | Path,
    task: str,
    *,
    data_dir: str | Path,
    output_dir: str | Path,
    seed: int = 0,
    revision: str | None = None,
    step: int | None = None,
    results_file: str | Path | None = None,
    disable_tqdm: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune a model on a task, and say how good it is.

    The best step is chosen on dev after each epoch; test decides nothing. Rows are padded to the longest of their
    batch, and batches hold rows of about one length.

    Args:
        model: a directory or the id of a repository on the Hub: an encoder with its tokenizer.
        task: a key of `TASKS`.
        data_dir: the directory of all tasks, or that of this one.
        output_dir: gets the best model as a plain repository, and `predictions.jsonl`, the test split's.
        seed: of the new head, the order of the rows, and dropout.
        revision: of a model on the Hub.
        step: of pretraining, for the row.
        results_file: that the row is appended to; `results.jsonl` in `output_dir` if None. A row that is there already
            with the same weights, tokenizer, data, seed and settings is returned as it is.
        disable_tqdm: no progress bar.
        **options: the fields of `FinetuningArguments`.

    Returns:
        The row. `metrics` are those of test at the best step, `last_metrics` those at the last: shares from 0 to 1.

    Raises:
        InputError: the task is unknown, its files or the model cannot be read, or the tokenizer is not the model's.
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; use one of {', '.join(TASKS)}")
    arguments = FinetuningArguments(**options)
    entry = replace(TASKS[task], **arguments.settle(TASKS[task]))
    splits = read_splits(entry, data_dir, files=arguments.files())
    train = splits.train[: arguments.max_train]
    dev, test = splits.dev[: arguments.max_eval], splits.test[: arguments.max_eval]
    set_seed(seed)
    head, network = load_head(entry, model, revision=revision)
    row: dict[str, Any] = {
        "model": str(model),
        "revision": revision,
        "step": step,
        "task": task,
        "seed": seed,
        "protocol": PROTOCOL,
        "selected_on": "dev",
        "settings": {**arguments.settle(TASKS[task]), "warmup": WARMUP},
        "num_examples": {"train": len(train), "dev": len(dev), "test": len(test)},
        "weights_sha256": hash_weights(network.base_model),
        "tokenizer_sha256": hash_vocabulary(tokens_by_id(head.tokenizer)),
        "data_sha256": splits.files,
        "notes": splits.notes,
    }
    results = Path(results_file or Path(output_dir, RESULTS_FILE))
    row["key"] = hash_row(row)
    done = next((earlier for earlier in read_results(results) if earlier["key"] == row["key"]), None)
    if done is not None:
        return done
    start = time.monotonic()
    training = _training_arguments(entry, str(output_dir), seed=seed, disable_tqdm=disable_tqdm)
    scores, predictions = _train_and_test(entry, head, network, (train, dev, test), training)
    row |= {
        **scores,
        "seconds": round(time.monotonic() - start, 1),
        "versions": {package: version(package) for package in PACKAGES},
        "commit": find_commit(),
    }
    network.save_pretrained(output_dir)
    save_tokenizer(head.tokenizer, output_dir)
    pairs = zip(predictions, head.references(test), strict=True)
    lines = "".join(f"{to_json({'prediction': prediction, 'gold': gold})}\n" for prediction, gold in pairs)
    write_atomically(Path(output_dir, PREDICTIONS_FILE), lines)
    append_result(results, row)
    return row


def _training_arguments(task: Task, output_dir: str, *, seed: int, disable_tqdm: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir,
        num_train_epochs=task.num_epochs,
        per_device_train_batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        warmup_steps=WARMUP,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.accelerator.is_available(),
        logging_strategy="no",
        disable_tqdm=disable_tqdm,
        seed=seed,
    )


def _train_and_test(
    task: Task,
    head: Head,
    model: PreTrainedModel,
    splits: tuple[Sequence[Example], Sequence[Example], Sequence[Example]],
    arguments: TrainingArguments,
) -> tuple[dict[str, Any], list[Any]]:
    """Return the scores of the best step and the last, and what the best predicts; the model is then the best."""
    train, dev, test = splits
    watcher = _Watcher(task, head, dev)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=head.encode(train),
        data_collator=make_collator(head),
        callbacks=[watcher],
    )
    trainer.train()
    features = head.encode(test)
    metrics, predictions = last_metrics, _ = evaluate_on(task, head, model, test, features)
    if watcher.best["step"] < trainer.state.global_step:
        model.load_state_dict(watcher.best_weights)
        metrics, predictions = evaluate_on(task, head, model, test, features)
    scores = {
        "metrics": metrics,
        "last_metrics": last_metrics,
        "dev_metrics": watcher.best["metrics"],
        "best_step": watcher.best["step"],
        "num_steps": trainer.state.global_step,
        "curve": watcher.curve,
        "collapsed": is_collapsed(task.metric, predictions),
    }
    if task.head == "sequence" and task.labels is not None and not task.is_multi_label:
        scores["majority_share"] = majority_share(head.references(test))
    return scores, predictions


def load_head(task: Task, model: str | Path, *, revision: str | None = None) -> tuple[Head, PreTrainedModel]:
    """Return the head of a task for a model's tokenizer, and the model with a new output layer.

    Raises:
        InputError: the model cannot be loaded, or the tokenizer is not its own.
    """
    try:
        config = AutoConfig.from_pretrained(str(model), revision=revision)
        tokenizer = load_tokenizer(model, revision=revision, config=config)
        head = make_head(task, tokenizer, max_length=min(task.max_length, config.max_position_embeddings))
        if task.labels is not None:
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {label: index for index, label in enumerate(task.labels)}
        elif task.head == "sequence":
            config.num_labels = 1
        if isinstance(head, SequenceHead):
            config.problem_type = head.problem_type
        return head, head.auto_class.from_pretrained(str(model), revision=revision, config=config)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load the model {model}: {error}; give a directory such as out/smoke/export/discriminator, or an "
            "id of the Hub and its --revision"
        ) from error


def make_head(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Head:
    """Return what encodes the examples of a task and reads predictions off logits."""
    if task.head == "tokens":
        return TokensHead(tokenizer, task.labels or (), max_length)
    if task.head == "spans":
        return SpansHead(tokenizer, max_length)
    return SequenceHead(tokenizer, task.labels, max_length, task.is_multi_label)


def make_collator(head: Head) -> DataCollatorWithPadding | DataCollatorForTokenClassification:
    """Return what pads a batch to its longest row."""
    if isinstance(head, TokensHead):
        return DataCollatorForTokenClassification(head.tokenizer)
    return DataCollatorWithPadding(head.tokenizer)


def evaluate_on(
    task: Task, head: Head, model: PreTrainedModel, examples: Sequence[Example], features: Sequence[dict[str, Any]]
) -> tuple[dict[str, float], list[Any]]:
    """Return the metrics of a model on examples, and its predictions; `features` are what the head made of them."""
    logits = predict(model, features, head.tokenizer)
    predictions = head.decode(examples, features, logits)
    return compute(task.metric, predictions, head.references(examples)), predictions


@torch.no_grad()
def predict(
    model: PreTrainedModel, features: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[Any]:
    """Return the logits of each feature, unpadded: an array, or for spans the starts' and the ends'."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]))
    logits: list[Any] = [None] * len(features)
    for start in range(0, len(order), EVAL_BATCH_SIZE):
        indices = order[start : start + EVAL_BATCH_SIZE]
        rows = [{key: features[index][key] for key in ("input_ids", "token_type_ids")} for index in indices]
        batch = DataCollatorWithPadding(tokenizer)(rows)
        output = model(**{key: value.to(model.device) for key, value in batch.items()})
        for place, index in enumerate(indices):
            length = len(features[index]["input_ids"])
            if "start_logits" in output:
                pair = (output.start_logits, output.end_logits)
                logits[index] = tuple(values[place, :length].float().cpu().numpy() for values in pair)
            else:
                values = output.logits[place].float().cpu().numpy()
                logits[index] = values[:length] if values.ndim == 2 else values
    model.train(was_training)
    return logits


class _Watcher(TrainerCallback):
    """Evaluates on dev after each epoch, and keeps the weights of the best."""

    def __init__(self, task: Task, head: Head, dev: Sequence[Example]) -> None:
        self.task, self.head, self.dev = task, head, dev
        self.features = head.encode(dev)
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.best_weights: dict[str, torch.Tensor] = {}

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Evaluate; of equals the first is kept."""
        metrics, _ = evaluate_on(self.task, self.head, model, self.dev, self.features)
        point = {"step": state.global_step, "metrics": metrics}
        self.curve.append(point)
        chosen = self.task.selected_by
        if not self.best or metrics[chosen] > self.best["metrics"][chosen]:
            self.best = point
            self.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def hash_weights(model: torch.nn.Module) -> str:
    """Return the sha256 of a model's weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def find_commit() -> str | None:
    """Return the commit of this package's repository, or None where it is not in one."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return finished.stdout.strip()
