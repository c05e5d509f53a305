"""Fine-tune a model on a task with one seed, and append a row to `results.jsonl`."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from kcelectra.corpus.vectorized import clean_batch
from kcelectra.errors import InputError
from kcelectra.finetuning.loading import hash_tokenizer, hash_weights, load_head
from kcelectra.finetuning.metrics import is_collapsed, majority_share
from kcelectra.finetuning.original import keep_learnable
from kcelectra.finetuning.own_data import TaskData
from kcelectra.finetuning.protocols import Protocol, Settings, find_protocol
from kcelectra.finetuning.results import LOCKS_DIR, RESULTS_FILE, append_result, hash_row, locked, read_runs
from kcelectra.finetuning.scale import measure_scale
from kcelectra.finetuning.sources import LabelledTexts, Span, Splits, TaggedWords, read_splits
from kcelectra.finetuning.tasks import TASKS, Task
from kcelectra.finetuning.training import EvaluationSplit, Head, Watcher, train
from kcelectra.manifest import to_json, write_atomically
from kcelectra.precision import choose_precision
from kcelectra.tokenization.loading import save_tokenizer

PREDICTIONS_FILE = "predictions.jsonl"
PACKAGES = ("kcelectra", "torch", "transformers", "tokenizers", "evaluate")
HYPERPARAMETERS = ("num_epochs", "batch_size", "learning_rate", "max_length", "layer_decay")
OPTIONS = (*HYPERPARAMETERS, "rules", "precision")


@dataclass(frozen=True)
class FinetuningArguments:
    """How a task is trained on; what is None is the protocol's or the task's own."""

    num_epochs: float | None = field(default=None, metadata={"help": "Over the training split."})
    batch_size: int | None = field(default=None, metadata={"help": "Rows of a step."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "The highest; `strict` warms up over a tenth of the steps."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a row."})
    layer_decay: float | None = field(
        default=None, metadata={"help": "Each layer learns at this times the rate of the one above, such as 0.8."}
    )
    rules: str | None = field(
        default=None, metadata={"help": "Clean the texts by these rules: corpus, v2022 or v2021."}
    )
    precision: str | None = field(
        default=None,
        metadata={"help": "float32 if not given; auto (what the device computes fast), bfloat16 or float16."},
    )
    max_train: int | None = field(default=None, metadata={"help": "Train on so many examples, the first ones."})
    max_eval: int | None = field(default=None, metadata={"help": "Evaluate on so many examples, the first ones."})
    train_file: str | None = field(default=None, metadata={"help": "In place of the one in --data_dir."})
    dev_file: str | None = field(default=None, metadata={"help": "In place of the one in --data_dir."})
    test_file: str | None = field(default=None, metadata={"help": "In place of the one in --data_dir."})

    def __post_init__(self) -> None:
        for name in (*HYPERPARAMETERS, "max_train", "max_eval"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"--{name} is {value}; give more than 0")
        if self.layer_decay is not None and self.layer_decay > 1:
            raise InputError(f"--layer_decay is {self.layer_decay}; give 1 or less, such as 0.8")

    def settle(self, task: Task, protocol: Protocol) -> Settings:
        """Return all that a run is trained by: what is given, else the protocol's, else the task's."""
        given = {name: getattr(self, name) for name in OPTIONS}
        if self.precision is not None:
            given["precision"] = choose_precision(self.precision)
        if self.num_epochs is not None and float(self.num_epochs).is_integer():
            given["num_epochs"] = int(self.num_epochs)  # as the tasks have it, or the same run had another key
        settings = protocol.settle(task)
        return replace(settings, **{name: value for name, value in given.items() if value is not None})

    def files(self) -> dict[str, str]:
        """Return the files that are given, by split."""
        paths = {"train": self.train_file, "dev": self.dev_file, "test": self.test_file}
        return {split: path for split, path in paths.items() if path is not None}


def finetune(
    model: str | Path,
    task: str | TaskData,
    *,
    output_dir: str | Path,
    data_dir: str | Path | None = None,
    protocol: str = "strict",
    seed: int = 0,
    revision: str | None = None,
    step: int | None = None,
    results_file: str | Path | None = None,
    disable_tqdm: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Fine-tune a model on a task, and say how good it is.

    By the protocol `strict` the best step is chosen on dev after each epoch, and test decides nothing. Rows are padded
    to the longest of their batch, and batches hold rows of about one length. `kcbert-finetune` and `koelectra-v3` do
    as those did: the best step is chosen on test, which the row says.

    Args:
        model: a directory or the id of a repository on the Hub: an encoder with its tokenizer.
        task: a key of `TASKS`, or what `read_own_data` returned.
        output_dir: gets the best model as a plain repository, and `predictions.jsonl`, the test split's; `{key}` in it
            stands for what tells runs apart.
        data_dir: the directory of all tasks, or that of this one; None for own data.
        protocol: a key of `PROTOCOLS`.
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
        InputError: the task or the protocol is unknown, the files or the model cannot be read, the tokenizer is not
            the model's, `output_dir` holds another run, the device has too little memory, or a launcher started
            several processes.
    """
    refuse_launcher()
    arguments = FinetuningArguments(**options)
    chosen = find_protocol(protocol)
    entry, splits = _read(task, data_dir, arguments, chosen)
    settings = arguments.settle(entry, chosen)
    splits = _prepare(entry, splits, arguments, settings.rules)
    set_seed(seed)
    head, network = load_head(entry, model, revision=revision, max_length=settings.max_length, protocol=chosen)
    row: dict[str, Any] = {
        "model": str(model),
        "revision": revision,
        "step": step,
        "task": entry.name,
        "seed": seed,
        "protocol": protocol,
        "selected_on": chosen.selected_on,
        "metric": entry.metric,
        "selected_by": entry.selected_by,
        "labels": list(entry.labels) if entry.labels else None,
        "columns": [*entry.text_columns, *entry.label_columns],
        "settings": settings.record(),
        "num_examples": {split: len(getattr(splits, split)) for split in ("train", "dev", "test")},
        "weights_sha256": hash_weights(network.base_model),
        "tokenizer_sha256": hash_tokenizer(head.tokenizer),
        "data_sha256": splits.files,
        "notes": splits.notes,
    }
    if head.max_length < settings.max_length:
        row["notes"] = [*splits.notes, f"rows of {head.max_length} tokens: the model has no more positions"]
    row["key"] = hash_row(row)
    output_dir = Path(str(output_dir).replace("{key}", row["key"][:12]))
    results = Path(results_file or output_dir / RESULTS_FILE)
    row["predictions"] = os.path.relpath(output_dir / PREDICTIONS_FILE, results.parent)
    with locked(results.parent / LOCKS_DIR / row["key"]):  # the same weights may be known by two paths
        for earlier in read_runs(results):
            if earlier["key"] == row["key"]:
                return earlier
            if earlier.get("predictions") == row["predictions"]:
                raise InputError(f"{output_dir} holds another run of {results}; give another output_dir")
        start, commit = time.monotonic(), find_commit()  # of the code that runs: there may be another one at the end
        try:
            row |= _run(row, network, head, entry, splits, settings, output_dir=output_dir, disable_tqdm=disable_tqdm)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the device has no memory for {settings.batch_size} rows of {head.max_length} tokens; give a smaller "
                f"--batch_size or --max_length ({str(error).partition('.')[0]})"
            ) from error
        row |= {
            "seconds": round(time.monotonic() - start, 1),
            "versions": {package: version(package) for package in PACKAGES},
            "commit": commit,
        }
        return append_result(results, row)


def refuse_launcher() -> None:
    """Raise `InputError` in one of several processes that a launcher started: each would do a share of each run."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(
            f"a launcher started {os.environ['WORLD_SIZE']} processes; start it with python, not accelerate launch: a "
            "sweep uses every GPU by itself"
        )


def _run(
    row: dict[str, Any],
    network: PreTrainedModel,
    head: Head,
    task: Task,
    splits: Splits,
    settings: Settings,
    *,
    output_dir: Path,
    disable_tqdm: bool,
) -> dict[str, Any]:
    """Train, test, and save the model and what it predicts; return the scores."""
    chosen = find_protocol(row["protocol"])
    pads = chosen.is_original
    tested = EvaluationSplit(task, head, splits.test, pads_to_max=pads)
    others = {"dev": EvaluationSplit(task, head, splits.dev, pads_to_max=pads)} if splits.dev else {}
    chosen_on = tested if chosen.selected_on == "test" else others.pop("dev")
    name = f"{row['model']}, {task.name}, seed {row['seed']}, {chosen.selected_on}"
    watcher = Watcher(name, chosen_on, settings, others)
    learnt = keep_learnable(splits.train) if chosen.is_original else splits.train
    scale = measure_scale(learnt) if settings.is_standardized else None
    num_steps = train(
        network,
        head,
        scale.standardize(learnt) if scale else learnt,
        settings,
        output_dir=str(output_dir),
        seed=row["seed"],
        pads_to_max=pads,
        watcher=watcher,
        disable_tqdm=disable_tqdm,
    )
    scores, predictions = _test(network, tested, watcher, num_steps)  # correlations are the same on any scale
    if scale:
        predictions = scale.restore(network, predictions)
    network.save_pretrained(output_dir)
    save_tokenizer(head.tokenizer, output_dir)
    _write_predictions(output_dir / PREDICTIONS_FILE, tested, predictions)
    return scores


def _read(
    task: str | TaskData, data_dir: str | Path | None, arguments: FinetuningArguments, protocol: Protocol
) -> tuple[Task, Splits]:
    if isinstance(task, TaskData):
        return task.task, task.splits
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; use one of {', '.join(TASKS)}")
    if data_dir is None:
        raise InputError(f"{task}: give data_dir, the directory of its files")
    carves = protocol.selected_on == "dev"
    return TASKS[task], read_splits(TASKS[task], data_dir, files=arguments.files(), carves=carves)


def _prepare(task: Task, splits: Splits, arguments: FinetuningArguments, rules: str | None) -> Splits:
    """Return the splits cut to so many examples and cleaned, with a note of what was cut."""
    if rules is not None and task.head != "sequence":
        raise InputError(f"--rules changes words and where they stand, which {task.name} is about; leave it out")
    prepared: dict[str, Any] = {"notes": list(splits.notes)}
    limits = {"train": arguments.max_train, "dev": arguments.max_eval, "test": arguments.max_eval}
    for split, limit in limits.items():
        examples = getattr(splits, split)
        prepared[split] = _clean(examples[:limit], rules) if rules else examples[:limit]
        if limit is not None and limit < len(examples):
            prepared["notes"].append(f"only the first {limit:,} of {len(examples):,} of {split}")
    return splits._replace(**prepared)


def _clean(examples: Sequence[Any], rules: str) -> list[Any]:
    columns = [clean_batch(list(column), rules) for column in zip(*(row.texts for row in examples), strict=True)]
    return [row._replace(texts=texts) for row, texts in zip(examples, zip(*columns, strict=True), strict=True)]


def _test(
    model: PreTrainedModel, test: EvaluationSplit, watcher: Watcher, num_steps: int
) -> tuple[dict[str, Any], list[Any]]:
    """Return the scores of the best step and the last, and what the best predicts; the model is then the best."""
    metrics, predictions = last_metrics, _ = test.evaluate(model)
    if watcher.best["step"] < num_steps:
        model.load_state_dict(watcher.best_weights)
        metrics, predictions = test.evaluate(model)
    is_on_test = watcher.chosen_on is test
    scores = {
        "metrics": metrics,
        "last_metrics": last_metrics,
        "dev_metrics": watcher.best.get("dev_metrics") if is_on_test else watcher.best["metrics"],
        "best_step": watcher.best["step"],
        "num_steps": num_steps,
        "curve": watcher.curve,
        "collapsed": is_collapsed(test.task.metric, predictions),
    }
    if test.task.metric in ("accuracy", "macro_f1"):
        scores["majority_share"] = majority_share(test.references)
    return scores, predictions


def _write_predictions(path: Path, split: EvaluationSplit, predictions: list[Any]) -> None:
    rows = zip(map(_texts_of, split.examples), predictions, split.references, strict=True)
    lines = (to_json({"text": text, "prediction": prediction, "gold": gold}) for text, prediction, gold in rows)
    write_atomically(path, "".join(f"{line}\n" for line in lines))


def _texts_of(example: LabelledTexts | TaggedWords | Span) -> list[str]:
    if isinstance(example, Span):
        return [example.question]
    return list(example.words if isinstance(example, TaggedWords) else example.texts)


def find_commit() -> str | None:
    """Return the commit of this package's repository, or None where it is not in one, though below another."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        finished = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return finished.stdout.strip()
