"""Build a corpus with datatrove's executors; `recipes/cluster/README.md` says how each engine starts.

python recipes/cluster/build_corpus.py --executor ray --sources "comments/*.parquet" --output_dir out/corpus
"""

from dataclasses import dataclass, field

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor

from kcelectra.arguments import parse_args, run_recipe
from kcelectra.corpus.build import CorpusArguments, plan_corpus
from kcelectra.corpus.cluster import CorpusStep
from kcelectra.corpus.shards import SINGLE_STEPS, STEPS
from kcelectra.errors import InputError


@dataclass
class ClusterArguments:
    """What the corpus is built with."""

    executor: str = field(default="local", metadata={"help": "local, ray or slurm."})
    tasks: int = field(default=2, metadata={"help": "Ranks that share the work of each step."})
    workers: int = field(default=2, metadata={"help": "Ranks that run at a time; -1 for all."})
    partition: str = field(default="cpu", metadata={"help": "Partition of Slurm."})
    time: str = field(default="04:00:00", metadata={"help": "Limit of a Slurm job."})
    mem_per_cpu_gb: int = field(default=2, metadata={"help": "Memory of a rank on Ray or Slurm, GB."})
    venv: str | None = field(default=None, metadata={"help": "Virtual environment that a Slurm job activates."})

    def __post_init__(self) -> None:
        if self.executor not in ("local", "ray", "slurm"):
            raise InputError(f"--executor is {self.executor!r}; use local, ray or slurm")
        for name in ("tasks", "workers", "mem_per_cpu_gb"):
            if getattr(self, name) < 1 and (name, getattr(self, name)) != ("workers", -1):
                raise InputError(f"--{name} is {getattr(self, name)}; give 1 or more")


def main() -> None:
    """Plan the corpus here, and hand its steps to the executor."""
    corpus_args, cluster_args = parse_args(CorpusArguments, ClusterArguments)
    work_dir = plan_corpus(corpus_args)
    if work_dir is None:
        print(f"{corpus_args.output_dir} holds this corpus already")
        return
    executor = None
    for step in STEPS:
        executor = build_executor(cluster_args, CorpusStep(step, work_dir), corpus_args, depends=executor)
    executor.run()  # those it depends on first


def build_executor(
    arguments: ClusterArguments, step: CorpusStep, corpus_args: CorpusArguments, *, depends: PipelineExecutor | None
) -> PipelineExecutor:
    """Return the executor of a step."""
    options = {
        "pipeline": [step],
        "tasks": 1 if step.step in SINGLE_STEPS else arguments.tasks,
        "workers": arguments.workers,
        "depends": depends,
        "logging_dir": f"{corpus_args.output_dir}-logs/{step.name}",
        "skip_completed": False,  # each task sees for itself what is done
    }
    if arguments.executor == "local":
        return LocalPipelineExecutor(**options)
    options["mem_per_cpu_gb"] = arguments.mem_per_cpu_gb
    if arguments.executor == "ray":
        return RayPipelineExecutor(**options)
    limits = {"partition": arguments.partition, "time": arguments.time, "venv_path": arguments.venv}
    return SlurmPipelineExecutor(**options, **limits, job_name=step.name)


if __name__ == "__main__":
    run_recipe(main)
