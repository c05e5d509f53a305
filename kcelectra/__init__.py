"""Pretrain, export and publish ELECTRA models for Korean comments with Hugging Face."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcelectra.corpus.cleaning import clean
    from kcelectra.corpus.vectorized import clean_batch
    from kcelectra.finetuning.runner import finetune
    from kcelectra.finetuning.tasks import TASKS
    from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
    from kcelectra.pretraining.configuration import KcElectraConfig
    from kcelectra.pretraining.export import export_checkpoint
    from kcelectra.pretraining.modeling import KcElectraForPreTraining
    from kcelectra.pretraining.trainer import KcElectraTrainer
    from kcelectra.pretraining.training_arguments import PretrainingArguments

__version__ = "0.1.0"

#: Imported on first use: `from kcelectra import clean` loads no torch.
_PUBLIC = {
    "clean": "kcelectra.corpus.cleaning",
    "clean_batch": "kcelectra.corpus.vectorized",
    "DataCollatorForReplacedTokenDetection": "kcelectra.pretraining.collator",
    "KcElectraConfig": "kcelectra.pretraining.configuration",
    "KcElectraForPreTraining": "kcelectra.pretraining.modeling",
    "KcElectraTrainer": "kcelectra.pretraining.trainer",
    "PretrainingArguments": "kcelectra.pretraining.training_arguments",
    "TASKS": "kcelectra.finetuning.tasks",
    "export_checkpoint": "kcelectra.pretraining.export",
    "finetune": "kcelectra.finetuning.runner",
}

__all__ = [
    "DataCollatorForReplacedTokenDetection",
    "KcElectraConfig",
    "KcElectraForPreTraining",
    "KcElectraTrainer",
    "PretrainingArguments",
    "TASKS",
    "clean",
    "clean_batch",
    "export_checkpoint",
    "finetune",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kcelectra' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
