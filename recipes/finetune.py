"""Fine-tune a model on a task, with several seeds, and append a row for each to a results file.

    python recipes/finetune.py --model out/smoke/export/discriminator --task nsmc --data_dir data
    python recipes/finetune.py --model out/smoke/export/discriminator --data reviews.csv --text review --label stars

The second line is a task of one's own: a .csv, .tsv, .jsonl or .parquet file, or a data set of the Hub. The best step
is chosen on dev, test is reported. A row that is there already is not trained again.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.errors import InputError
from kcelectra.finetuning.own_data import read_own_data
from kcelectra.finetuning.protocols import PROTOCOLS, find_protocol
from kcelectra.finetuning.results import RESULTS_FILE
from kcelectra.finetuning.runner import FinetuningArguments
from kcelectra.finetuning.sweep import Sweep, log_rows, parse_model, plan_jobs, run_sweep
from kcelectra.finetuning.tasks import TASKS


@dataclass
class RunArguments:
    """What is trained, on what, and where the results go."""

    model: str | None = field(default=None, metadata={"help": "Directory, or OWNER/NAME@REVISION of the Hub."})
    task: str | None = field(default=None, metadata={"help": f"One of {', '.join(TASKS)}."})
    data_dir: str | None = field(default=None, metadata={"help": "Directory of all tasks, or of this one."})
    data: str | None = field(default=None, metadata={"help": "File or data set of one's own, in place of --task."})
    text: list[str] = field(default_factory=list, metadata={"help": "Its column of texts, or two."})
    label: list[str] = field(
        default_factory=list, metadata={"help": "Its column of labels or numbers, or several of 0 and 1."}
    )
    labels: list[str] = field(
        default_factory=list, metadata={"help": "All labels there are; those of the training split if not given."}
    )
    name: str | None = field(default=None, metadata={"help": "Of your own task; that of its data if not given."})
    data_revision: str | None = field(default=None, metadata={"help": "Of a data set on the Hub."})
    output_dir: str = field(default="out/finetune", metadata={"help": "Gets results.jsonl, and a model for each run."})
    protocol: str = field(default="strict", metadata={"help": f"One of {', '.join(PROTOCOLS)}."})
    seeds: list[int] = field(
        default_factory=list, metadata={"help": "The protocol's if none are given; five if strict."}
    )
    step: int | None = field(default=None, metadata={"help": "Of pretraining, for the row."})
    rerun_collapsed: bool = field(
        default=False, metadata={"help": "Run another seed, once, for each that collapsed; its row stays."}
    )

    def __post_init__(self) -> None:
        if self.model is None:
            raise InputError("give --model, such as --model out/smoke/export/discriminator")
        if (self.task is None) == (self.data is None):
            raise InputError("give --task nsmc, or --data reviews.csv --text review --label stars for your own")
        if self.task is not None and self.data_dir is None:
            raise InputError("give --data_dir, such as --data_dir data")
        for option in ("text", "label", "labels", "name", "data_revision"):
            if self.data is None and getattr(self, option):
                raise InputError(f"--{option} is for --data, and {self.task} has its own; leave one of the two out")
        if self.data is not None and not (self.text and self.label):
            raise InputError("give the columns of --data, such as --text review --label stars")


def main() -> None:
    """Run the seeds, and print their scores."""
    log_rows()
    arguments, options = parse_args(RunArguments, FinetuningArguments)
    own = {}
    if arguments.data is not None:
        if options.train_file is not None:
            raise InputError("--train_file is for a --task; the training split of your own is --data")
        data = read_own_data(
            arguments.data,
            text=arguments.text,
            label=arguments.label,
            labels=arguments.labels or None,
            dev=options.dev_file,
            test=options.test_file,
            revision=arguments.data_revision,
            name=arguments.name,
        )
        own[data.task.name] = data
    task = arguments.task or next(iter(own))
    sweep = Sweep(
        output_dir=arguments.output_dir,
        data_dir=arguments.data_dir,
        own=own,
        protocol=arguments.protocol,
        options={name: value for name, value in asdict(options).items() if value is not None},
    )
    seeds = arguments.seeds or find_protocol(arguments.protocol).seeds
    model = parse_model(str(arguments.model), step=arguments.step)
    rows = run_sweep(sweep, plan_jobs([model], [task], seeds, reruns_collapsed=arguments.rerun_collapsed))
    chosen = rows[0]["selected_by"]
    scores = [row["metrics"][chosen] for row in rows]
    others = [row["metrics"][chosen] for row in rows if not row["collapsed"]]
    if len(scores) > 1:  # those that collapsed count, as in the report
        collapsed = f", of which {len(scores) - len(others)} collapsed and count" if len(others) < len(scores) else ""
        without = f"; without them {mean(others):.4f}" if collapsed and others else ""
        print(f"{task} {chosen}: {mean(scores):.4f} ± {stdev(scores):.4f} ({len(scores)} seeds{collapsed}{without})")
    results = Path(arguments.output_dir, RESULTS_FILE)
    print(f"rows: {results}; tables and plots: python recipes/report.py --results {results}")


if __name__ == "__main__":
    run_recipe(main)
