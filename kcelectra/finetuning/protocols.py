"""How a model is trained on a task and by what it is chosen: our protocol, and those of two published tables."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kcelectra.errors import InputError
from kcelectra.finetuning.tasks import Task


@dataclass(frozen=True)
class Settings:
    """What a task is trained with under a protocol.

    Args:
        max_length: tokens of a row, special ones included.
        batch_size: rows of an update.
        num_epochs: over the training split.
        learning_rate: the highest; it falls linearly to 0.
        warmup: share of the updates over which the learning rate rises, 0 to 1.
        layer_decay: each layer learns at the rate of the one above times this; None for one rate.
        rules: that texts are cleaned by before the tokenizer; None for none.
        precision: of products: float32, bfloat16 or float16; weights stay float32.
        adam_epsilon: of AdamW.
        eval_steps: updates from one evaluation to the next; None for those of an epoch.
        is_standardized: numbers are learnt in standard deviations from their mean.
        first_step: where the count of updates starts: with 1, the evaluation at 2000 comes after 1,999 updates.
    """

    max_length: int
    batch_size: int
    num_epochs: float
    learning_rate: float
    warmup: float = 0.0
    layer_decay: float | None = None
    rules: str | None = None
    precision: str = "float32"
    adam_epsilon: float = 1e-8
    eval_steps: int | None = None
    is_standardized: bool = False
    first_step: int = 0

    def record(self) -> dict[str, Any]:
        """Return them as a row has them: without what was the only way once, as earlier rows do."""
        once = [("precision", "float32"), ("is_standardized", False)]
        return {name: value for name, value in asdict(self).items() if (name, value) not in once}

    def evaluated_after(self, num_updates: int, *, num_per_epoch: int) -> list[int]:
        """Return after which updates a model is evaluated; a published protocol leaves out what follows the last.

        >>> Settings(512, 16, 5, 5e-5, eval_steps=2000, first_step=1).evaluated_after(4500, num_per_epoch=900)
        [1999, 3999]
        >>> Settings(50, 64, 2.5, 5e-5).evaluated_after(25, num_per_epoch=10)
        [10, 20, 25]

        Args:
            num_updates: of the whole run; with fewer than `eval_steps` there may be no evaluation.
            num_per_epoch: of one epoch.
        """
        if self.eval_steps is None:
            return [*range(num_per_epoch, num_updates, num_per_epoch), num_updates]
        return list(range(self.eval_steps - self.first_step, num_updates + 1, self.eval_steps))


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Args:
        name: of the protocol.
        selected_on: the split that chooses the best step, `"dev"` or `"test"`. A maximum over steps on test is no
            estimate of what a model does on new texts: it was up to 1.7 points too high (kcelectra.md, 2.3).
        seeds: of the runs that a score is of.
        warmup: share of the updates over which the learning rate rises, 0 to 1.
        is_original: rows are those of `kcelectra.finetuning.original`, each padded to `max_length`, in random order.
            Otherwise they are padded to the longest of their batch, whose rows are of about one length.
        changes: by name of a task, the `Settings` that are not those of its entry in `TASKS`. The protocol is of
            these tasks alone, or, where there are none, of all tasks as they are.
    """

    name: str
    selected_on: str
    seeds: tuple[int, ...]
    warmup: float
    is_original: bool
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settle(self, task: Task) -> Settings:
        """Return what a task is trained with.

        Raises:
            InputError: the protocol is not of this task.
        """
        if self.changes and task.name not in self.changes:
            raise InputError(
                f"the protocol {self.name} was never used for {task.name}; give --protocol strict, or one of its "
                f"tasks: {', '.join(self.changes)}"
            )
        names = ("max_length", "batch_size", "num_epochs", "learning_rate")
        values = {**{name: getattr(task, name) for name in names}, **self.changes.get(task.name, {})}
        return Settings(**values, warmup=self.warmup, is_standardized=task.is_standardized)


#: Source of kcbert-finetune: KcBERT-Finetune, `config/*/KcELECTRA-base-50135-848k.json`, which differ for other models
#: (kcbert-base: PAWS with an epsilon of 1e-8, KorSTS 5 epochs); of koelectra-v3: KoELECTRA,
#: `finetune/config/*/koelectra-base-v3.json`; of both, `run_seq_cls.py`, `run_ner.py` and `run_squad.py`.
#:
#: Differs from the reference: its AdamW, that of transformers 4, adds epsilon before the second moment is corrected
#: for its start at 0, torch's afterwards; there epsilon counts 32-fold in the first update, 1.3-fold in the 1,000th.
#: The seed draws other orders of the rows, other dropout and another output layer. Of the 8,367 comments of BEEP! 12
#: have quotation marks more than in KoELECTRA's copy.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Without a warm-up, some seeds never leave the majority class (kcelectra.md, 2.2)
        Protocol("strict", selected_on="dev", seeds=(0, 1, 2, 3, 4), warmup=0.1, is_original=False),
        Protocol(
            "kcbert-finetune",
            selected_on="test",
            seeds=(42,),
            warmup=0.0,
            is_original=True,
            changes={
                "nsmc": {"max_length": 50, "eval_steps": 2000},
                "naver-ner": {"eval_steps": 1000},
                "paws": {"adam_epsilon": 1e-7, "eval_steps": 1000},
                "kornli": {"eval_steps": 3000},
                "korsts": {"eval_steps": 100},
                "question-pair": {"eval_steps": 100},
                "korquad": {"eval_steps": 2000, "first_step": 1},
            },
        ),
        Protocol(
            "koelectra-v3",
            selected_on="test",
            seeds=(42,),
            warmup=0.0,
            is_original=True,
            changes={
                "nsmc": {"batch_size": 32, "num_epochs": 10, "eval_steps": 2000},
                "naver-ner": {"max_length": 128, "batch_size": 32, "learning_rate": 5e-5, "eval_steps": 1000},
                "paws": {"eval_steps": 1000},
                "kornli": {
                    "max_length": 128,
                    "batch_size": 64,
                    "num_epochs": 15,
                    "learning_rate": 5e-5,
                    "eval_steps": 3000,
                },
                "korsts": {"max_length": 128, "eval_steps": 100},
                "question-pair": {"max_length": 128, "num_epochs": 10, "eval_steps": 100},
                "korquad": {"batch_size": 8, "num_epochs": 7, "eval_steps": 1000, "first_step": 1},
                "beep": {"eval_steps": 100},
            },
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
