"""Train a model with a head on a task, evaluate it on the way, and keep the best of its steps."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import is_torch_xla_available

from kcelectra.finetuning.metrics import compute
from kcelectra.finetuning.protocols import Settings
from kcelectra.finetuning.sequence import SequenceHead
from kcelectra.finetuning.spans import SpansHead
from kcelectra.finetuning.tasks import Task
from kcelectra.finetuning.tokens import TokensHead

logger = logging.getLogger(__name__)

EVAL_BATCH_SIZE = 64

Head = SequenceHead | TokensHead | SpansHead


class EvaluationSplit:
    """A split, encoded once; `pads_to_max` pads its rows to the longest there may be."""

    def __init__(self, task: Task, head: Head, examples: Sequence[Any], *, pads_to_max: bool = False) -> None:
        self.task, self.head, self.examples, self.pads_to_max = task, head, examples, pads_to_max
        self.features, self.references = head.encode(examples), head.references(examples)

    def evaluate(self, model: PreTrainedModel) -> tuple[dict[str, float], list[Any]]:
        """Return the metrics of a model and its predictions."""
        max_length = self.head.max_length if self.pads_to_max else None
        logits = predict(model, self.features, self.head.tokenizer, max_length=max_length)
        predictions = self.head.decode(self.examples, self.features, logits)
        return compute(self.task.metric, predictions, self.references), predictions


class Watcher(TrainerCallback):
    """Evaluates a model as it is trained, logs its score, and keeps the weights of the best step.

    Args:
        name: of the run and of the split that decides, for the log.
        chosen_on: the split that decides.
        settings: say after which updates to evaluate; a run that is too short for any is evaluated at its end.
        others: by name, splits whose metrics are noted as well.

    Attributes:
        curve: a point an evaluation, `step` and `metrics`, and `NAME_metrics` of the other splits.
        best: the best point, of equals the first.
    """

    def __init__(
        self, name: str, chosen_on: EvaluationSplit, settings: Settings, others: Mapping[str, EvaluationSplit]
    ) -> None:
        self.name, self.chosen_on, self.settings, self.others = name, chosen_on, settings, others
        self.due: set[int] = set()
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.best_weights: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Find the updates after which to evaluate."""
        steps = self.settings.evaluated_after(state.max_steps, num_per_epoch=len(train_dataloader))
        self.due = set(steps or [state.max_steps])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Evaluate where it is due."""
        if state.global_step not in self.due:
            return
        point: dict[str, Any] = {"step": state.global_step, "metrics": self.chosen_on.evaluate(model)[0]}
        point |= {f"{name}_metrics": split.evaluate(model)[0] for name, split in self.others.items()}
        self.curve.append(point)
        chosen = self.chosen_on.task.selected_by
        score = point["metrics"][chosen]
        logger.info("%s %s %.4f at step %d of %d", self.name, chosen, score, state.global_step, state.max_steps)
        if not self.best or score > self.best["metrics"][chosen]:
            self.best = point
            self.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def train(
    model: PreTrainedModel,
    head: Head,
    examples: Sequence[Any],
    settings: Settings,
    *,
    output_dir: str,
    seed: int,
    pads_to_max: bool,
    watcher: TrainerCallback,
    disable_tqdm: bool,
) -> int:
    """Train a model on examples, in place, and return the number of updates."""
    arguments = TrainingArguments(
        output_dir,
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        adam_epsilon=settings.adam_epsilon,
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        # without this the class refuses bfloat16 on a machine that has only a CPU
        use_cpu=not (torch.accelerator.is_available() or is_torch_xla_available()),
        lr_scheduler_type="linear",
        optim="adamw_torch" if pads_to_max else "adamw_torch_fused",
        train_sampling_strategy="random" if pads_to_max else "group_by_length",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.accelerator.is_available(),
        logging_strategy="no",
        disable_tqdm=disable_tqdm,
        seed=seed,
    )
    if settings.precision == "float32":
        arguments.mixed_precision = "no"  # else what the launcher was told would hold
    optimizer = None
    if settings.layer_decay is not None:
        groups = group_by_layer(model, settings)
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, eps=settings.adam_epsilon)
    arguments._n_gpu = min(1, arguments.n_gpu)  # with more, DataParallel would multiply the batch size
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=head.encode(examples),
        data_collator=make_collator(head, pads_to_max=pads_to_max),
        callbacks=[watcher],
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(PrinterCallback)  # that a row says it all
    trainer.train()
    return trainer.state.global_step


def make_collator(
    head: Head, *, pads_to_max: bool = False
) -> DataCollatorWithPadding | DataCollatorForTokenClassification:
    """Return what pads a batch: to its longest row, or to the longest there may be."""
    options: dict[str, Any] = {"padding": "max_length", "max_length": head.max_length} if pads_to_max else {}
    if "ForTokenClassification" in head.auto_class.__name__:
        return DataCollatorForTokenClassification(head.tokenizer, **options)
    return DataCollatorWithPadding(head.tokenizer, **options)


def group_by_layer(model: PreTrainedModel, settings: Settings) -> list[dict[str, Any]]:
    """Return the parameters with their learning rates, which fall from the head to the embeddings.

    Differs from the reference: the last layer learns at `layer_decay` times the head's rate; there at its square, an
    off-by-one that its author has confirmed.

    Source: google-research/electra, `model/optimization.py`, `_get_layer_lrs`; its issues 51 and 64.
    """
    num_layers, decay = model.config.num_hidden_layers, settings.layer_decay or 1.0
    by_depth: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "layer" in parts:
            depth = int(parts[parts.index("layer") + 1]) + 1
        else:
            depth = 0 if any(part.startswith("embeddings") for part in parts) else num_layers + 1
        by_depth.setdefault(depth, []).append(parameter)
    return [
        {"params": parameters, "lr": settings.learning_rate * decay ** (num_layers + 1 - depth)}
        for depth, parameters in sorted(by_depth.items())
    ]


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    features: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
) -> list[Any]:
    """Return the logits of each feature: an array, or for spans the starts' and the ends'.

    Args:
        model: with its head.
        features: what the head made of examples.
        tokenizer: of the model.
        max_length: to pad to; where it is given, the logits of spans keep those of the padding. The longest of a batch
            if None, and no logits of padding.
    """
    padding: dict[str, Any] = {"padding": "max_length", "max_length": max_length} if max_length else {}
    was_training = model.training
    model.eval()
    order = sorted(range(len(features)), key=lambda index: len(features[index]["input_ids"]))
    logits: list[Any] = [None] * len(features)
    for start in range(0, len(order), EVAL_BATCH_SIZE):
        indices = order[start : start + EVAL_BATCH_SIZE]
        rows = [{key: features[index][key] for key in ("input_ids", "token_type_ids")} for index in indices]
        batch = DataCollatorWithPadding(tokenizer, **padding)(rows)
        output = model(**{key: value.to(model.device) for key, value in batch.items()})
        is_span = "start_logits" in output
        outputs = (output.start_logits, output.end_logits) if is_span else (output.logits,)
        arrays = [values.float().cpu().numpy() for values in outputs]  # at once: the device waits for each copy
        for place, index in enumerate(indices):
            length = len(features[index]["input_ids"])
            if is_span:
                logits[index] = tuple(values[place, : max_length or length] for values in arrays)
            else:
                values = arrays[0][place]
                logits[index] = values[:length] if values.ndim == 2 else values
    model.train(was_training)
    return logits
