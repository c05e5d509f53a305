"""Measure models, or all checkpoints of a run, on tasks with several seeds.

    python recipes/sweep.py --run_dir out/smoke --tasks proxy --data_dir data
    python recipes/sweep.py --models out/smoke/export/discriminator beomi/KcELECTRA-base@v2022 --data_dir data

A row is appended for each run to `results.jsonl`; the same command goes on where it was interrupted, and
`recipes/report.py` makes tables and plots of the rows.
"""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.finetuning.protocols import PROTOCOLS, find_protocol
from kcelectra.finetuning.results import LOCKS_DIR, RESULTS_FILE, locked
from kcelectra.finetuning.runner import FinetuningArguments
from kcelectra.finetuning.sweep import Model, Sweep, log_rows, parse_model, plan_jobs, run_sweep
from kcelectra.finetuning.tasks import TASKS
from kcelectra.hub import main_half
from kcelectra.pretraining.checkpoints import BrokenCheckpoint, find_checkpoints, read_step, verify_checkpoint
from kcelectra.pretraining.export import export_checkpoint

logger = logging.getLogger(__name__)


@dataclass
class SweepArguments:
    """What is measured, on what, and where the results go."""

    models: list[str] = field(
        default_factory=list, metadata={"help": "Directories, or OWNER/NAME@REVISION of the Hub."}
    )
    run_dir: str | None = field(default=None, metadata={"help": "Output of pretrain.py: all its checkpoints."})
    tasks: list[str] = field(
        default_factory=lambda: ["proxy"],
        metadata={"help": f"all, proxy (korsts, nsmc, korquad: what is cheap and tells), or {', '.join(TASKS)}."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Directory of all tasks."})
    files: list[str] = field(
        default_factory=list,
        metadata={"help": "TASK.SPLIT=FILE, such as kmhas.train=kmhas_valid.txt: in place of the one in --data_dir."},
    )
    output_dir: str = field(default="out/sweep", metadata={"help": "Gets results.jsonl, and a model for each run."})
    protocol: str = field(default="strict", metadata={"help": f"One of {', '.join(PROTOCOLS)}."})
    seeds: list[int] = field(
        default_factory=list, metadata={"help": "The protocol's if none are given; five if strict."}
    )
    rerun_collapsed: bool = field(
        default=False, metadata={"help": "Run another seed, once, for each that collapsed; its row stays."}
    )
    num_workers: int | None = field(default=None, metadata={"help": "Processes; one a GPU, or one, if not given."})

    def __post_init__(self) -> None:
        if not self.models and self.run_dir is None:
            raise InputError("give --models out/smoke/export/discriminator, or --run_dir out/smoke")
        if self.data_dir is None:
            raise InputError("give --data_dir, such as --data_dir data")
        if self.num_workers is not None and self.num_workers < 1:
            raise InputError(f"--num_workers is {self.num_workers}; give 1 or more")


def main() -> None:
    """Run what is not done yet, and say where the rows are."""
    log_rows()
    arguments, options = parse_args(SweepArguments, FinetuningArguments)
    sweep = Sweep(
        output_dir=arguments.output_dir,
        data_dir=arguments.data_dir,
        protocol=arguments.protocol,
        options={name: value for name, value in asdict(options).items() if value is not None},
        task_options=parse_files(arguments.files),
    )
    models = [parse_model(source) for source in arguments.models]
    if arguments.run_dir is not None:
        models += export_checkpoints(arguments.run_dir)
    seeds = arguments.seeds or find_protocol(arguments.protocol).seeds
    jobs = plan_jobs(models, arguments.tasks, seeds, reruns_collapsed=arguments.rerun_collapsed)
    rows = run_sweep(sweep, jobs, num_workers=arguments.num_workers)
    results = Path(arguments.output_dir, RESULTS_FILE)
    print(f"{len(rows)} runs in {results}; tables and plots: python recipes/report.py --results {results}")


def parse_files(words: list[str]) -> dict[str, dict[str, str]]:
    """Return the options that name the files of each task.

    Raises:
        InputError: a word is not TASK.SPLIT=FILE.
    """
    options: dict[str, dict[str, str]] = {}
    for word in words:
        key, _, path = word.partition("=")
        task, _, split = key.partition(".")
        if task not in TASKS or split not in ("train", "dev", "test") or not path:
            raise InputError(f"--files {word}: give TASK.SPLIT=FILE, such as kmhas.train=kmhas_valid.txt")
        options.setdefault(task, {})[f"{split}_file"] = path
    return options


def export_checkpoints(run_dir: str) -> list[Model]:
    """Export the checkpoints of a run, those that are not yet, and return the half of each that is for use.

    A damaged one is logged and left out.

    Raises:
        InputError: there is no whole checkpoint.
    """
    checkpoints = find_checkpoints(run_dir)
    if not checkpoints:
        raise InputError(f"--run_dir {run_dir} has no checkpoint-N; give the output_dir of recipes/pretrain.py")
    models, damages = [], []
    for checkpoint in checkpoints:
        export = Path(run_dir, "exports", checkpoint.name)
        try:
            with locked(export.parent / LOCKS_DIR / export.name):  # another sweep may look at the same run
                if not export.exists():  # it is written whole or not at all, and a run never writes a checkpoint anew
                    verify_checkpoint(checkpoint)
                    export_checkpoint(checkpoint, export)
            models.append(Model(str(main_half(export)), step=read_step(checkpoint)))
        except BrokenCheckpoint as error:
            damages.append(error)
    if not models:
        raise damages[-1]
    for damage in damages:
        logger.warning("left out: %s", damage)
    return models


if __name__ == "__main__":
    run_recipe(main)
