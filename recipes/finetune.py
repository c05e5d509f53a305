"""Fine-tune a model on a task, with several seeds, and append a row for each to a results file.

    python recipes/finetune.py --model out/smoke/export/discriminator --task nsmc --data_dir data --seeds 0 1 2 3 4

The best step is chosen on dev, test is reported. A row that is there already is not trained again.
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from transformers.utils.logging import set_verbosity_error

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.finetuning.runner import FinetuningArguments, finetune
from kcelectra.finetuning.tasks import TASKS


@dataclass
class RunArguments:
    """What is trained, on what, and where the results go."""

    model: str | None = field(default=None, metadata={"help": "Directory, or id of a repository on the Hub."})
    task: str | None = field(default=None, metadata={"help": f"One of {', '.join(TASKS)}."})
    data_dir: str | None = field(default=None, metadata={"help": "Directory of all tasks, or of this one."})
    output_dir: str = field(default="out/finetune", metadata={"help": "Gets a model for each task and seed."})
    results_file: str = field(default="out/finetune/results.jsonl", metadata={"help": "That rows are appended to."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "A run each; five for a score to report."})
    revision: str | None = field(default=None, metadata={"help": "Of a model on the Hub."})
    step: int | None = field(default=None, metadata={"help": "Of pretraining, for the row."})
    rerun_collapsed: bool = field(
        default=False, metadata={"help": "Run another seed, once, for each that collapsed; its row stays."}
    )

    def __post_init__(self) -> None:
        examples = {"model": "out/smoke/export/discriminator", "task": "nsmc", "data_dir": "data"}
        for name, example in examples.items():
            if getattr(self, name) is None:
                raise InputError(f"give --{name}, such as --{name} {example}")


def main() -> None:
    """Run the seeds, and print their scores."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    set_verbosity_error()  # that the new head is not in the checkpoint is no news
    arguments, options = parse_args(RunArguments, FinetuningArguments)
    rows: list[dict[str, Any]] = []
    seeds, num_reruns = list(arguments.seeds), 0
    while seeds:
        seed = seeds.pop(0)
        row = finetune(
            str(arguments.model),
            str(arguments.task),
            data_dir=str(arguments.data_dir),
            output_dir=Path(arguments.output_dir, f"{arguments.task}-{seed}"),
            seed=seed,
            revision=arguments.revision,
            step=arguments.step,
            results_file=arguments.results_file,
            disable_tqdm=False,
            **asdict(options),
        )
        rows.append(row)
        print(describe_row(row))
        if row["collapsed"] and arguments.rerun_collapsed and num_reruns < len(arguments.seeds):
            num_reruns += 1
            seeds.append(max(arguments.seeds) + num_reruns)
    chosen = TASKS[str(arguments.task)].selected_by
    scores = [row["metrics"][chosen] for row in rows if not row["collapsed"]]
    if len(scores) > 1:
        print(f"{arguments.task} {chosen}: {mean(scores):.4f} ± {stdev(scores):.4f} ({len(scores)} seeds)")
    print(f"rows: {arguments.results_file}")


def describe_row(row: dict[str, Any]) -> str:
    """Return a line: the scores, where they were chosen, and what is wrong with them."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
    warning = "  COLLAPSED: every prediction is the same" if row["collapsed"] else ""
    notes = f"  ({'; '.join(row['notes'])})" if row["notes"] else ""
    return (
        f"{row['task']} seed {row['seed']}: {scores} at step {row['best_step']} of {row['num_steps']}{warning}{notes}"
    )


if __name__ == "__main__":
    run_recipe(main)
