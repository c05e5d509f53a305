"""Models x tasks x seeds: runs that are shared out over processes, each done once, whoever is killed."""

import fcntl
import hashlib
import json
import logging
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import patch_environment
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from kcelectra.corpus.workers import num_cores
from kcelectra.errors import InputError
from kcelectra.finetuning.own_data import TaskData
from kcelectra.finetuning.results import LOCKS_DIR, RESULTS_FILE, describe_row, read_runs
from kcelectra.finetuning.runner import finetune, refuse_launcher
from kcelectra.finetuning.tasks import TASKS
from kcelectra.hub import split_revision

logger = logging.getLogger(__name__)

#: What follows the pretraining of a model closely and cheaply; the others are saturated or noise (kcelectra.md 2.2).
PROXY_TASKS = ("korsts", "nsmc", "korquad")
DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Args:
        source: a directory, or the id of a repository on the Hub.
        revision: of one on the Hub.
        step: of its pretraining, where it is known.
    """

    source: str
    revision: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Job:
    """One run of a sweep, and the seed that is run as well should it collapse."""

    model: Model
    task: str
    seed: int
    next_seed: int | None = None


@dataclass(frozen=True)
class Sweep:
    """What the runs of a sweep have in common.

    Args:
        output_dir: gets `results.jsonl` and a directory for each run.
        data_dir: the directory of all tasks; None where all is own data.
        own: a task of one's own, by its name.
        protocol: a key of `PROTOCOLS`.
        options: the fields of `FinetuningArguments`.
        task_options: more of them, by task.
    """

    output_dir: str
    data_dir: str | None = None
    own: dict[str, TaskData] = field(default_factory=dict)
    protocol: str = "strict"
    options: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, job: Job) -> Iterator[dict[str, Any]]:
        """Yield the row of a job and, where it collapsed and another seed is given, that of the other seed."""
        row = self._finetune(job, job.seed)
        yield row
        if row["collapsed"] and job.next_seed is not None:
            yield self._finetune(job, job.next_seed)

    def _finetune(self, job: Job, seed: int) -> dict[str, Any]:
        options = {**self.options, **self.task_options.get(job.task, {})}
        row = finetune(
            job.model.source,
            self.own.get(job.task, job.task),
            output_dir=Path(self.output_dir, Path(job.model.source).name, f"{job.task}-{seed}-{{key}}"),
            data_dir=self.data_dir,
            protocol=self.protocol,
            seed=seed,
            revision=job.model.revision,
            step=job.model.step,
            results_file=Path(self.output_dir, RESULTS_FILE),
            # bars of several processes would overwrite each other, and in a file fill it
            disable_tqdm=parent_process() is not None or not sys.stderr.isatty(),
            **options,
        )
        logger.info(describe_row(row))
        return row

    def path_of(self, job: Job) -> Path:
        """Return the file that is locked by who does a job."""
        digest = hashlib.sha256(repr((self.data_dir, self.protocol, self.options, job)).encode()).hexdigest()
        return Path(self.output_dir, LOCKS_DIR, f"{digest[:16]}.json")


def log_rows() -> None:
    """Print a line for each run, and nothing of what is no news, such as that a head is not in the checkpoint."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    set_verbosity_error()
    disable_progress_bar()


def parse_model(word: str, *, step: int | None = None) -> Model:
    """Return a model that is given as a directory, OWNER/NAME or OWNER/NAME@REVISION."""
    return Model(*split_revision(word), step)


def plan_jobs(
    models: Sequence[Model], tasks: Sequence[str], seeds: Sequence[int], *, reruns_collapsed: bool = False
) -> list[Job]:
    """Return the runs of a sweep, seed by seed, so that every cell of a table has its first score early.

    Args:
        models: to measure.
        tasks: names; `all` and `proxy` stand for several.
        seeds: of each model and task.
        reruns_collapsed: give each run another seed, for if it collapses; its row stays.

    Raises:
        InputError: there is nothing to run, or a seed is none.
    """
    names = dict.fromkeys(
        name for task in tasks for name in {"all": tuple(TASKS), "proxy": PROXY_TASKS}.get(task, (task,))
    )
    if wrong := [seed for seed in seeds if not 0 <= seed < 1 << 32]:
        raise InputError(f"--seeds {wrong[0]}: give numbers from 0 to {(1 << 32) - 1}")
    if not (models and names and seeds):
        raise InputError("nothing to run; give a model, a task and a seed, or more")
    return [
        Job(model, task, seed, max(seeds) + 1 + number if reruns_collapsed else None)
        for number, seed in enumerate(dict.fromkeys(seeds))
        for task in names
        for model in models
    ]


def run_sweep(sweep: Sweep, jobs: Sequence[Job], *, num_workers: int | None = None) -> list[dict[str, Any]]:
    """Run the jobs that are not done yet, and return the rows of all.

    Each process goes through the jobs and does those that no other holds the lock of. The lock of a process that was
    killed is free at once, so that another one, or the same command again, does its run anew; and several commands may
    share an `output_dir`. Whether a run is done is told by the contents that went into it, see `hash_row`.

    Args:
        sweep: what the runs have in common.
        jobs: see `plan_jobs`.
        num_workers: processes; one a GPU if None, or one where there is none.

    Raises:
        InputError: a task is unknown; or runs could not be done, and all others were; or a launcher started several
            processes, of which one that has no run to do would leave the others waiting.
    """
    refuse_launcher()
    for job in jobs:
        if job.task not in sweep.own and job.task not in TASKS:
            raise InputError(f"unknown task {job.task!r}; use all, proxy, or some of {', '.join(TASKS)}")
    num_devices = torch.cuda.device_count()
    num_workers = num_workers or max(1, num_devices)
    token = uuid.uuid4().hex
    Path(sweep.output_dir, LOCKS_DIR).mkdir(parents=True, exist_ok=True)
    if num_workers > 1 or num_devices > 1:
        _run_in_processes(sweep, jobs, token, num_workers=num_workers, num_devices=num_devices)
    outcomes = _do_jobs(sweep, jobs, token)  # all, or those of a worker that was killed
    errors = {job: outcome["error"] for job, outcome in outcomes.items() if "error" in outcome}
    if len(errors) == len(jobs) and len(set(errors.values())) == 1:
        raise InputError(errors[jobs[0]])  # the same of every seed
    if errors:
        reasons = [f"{job.model.source}, {job.task}, seed {job.seed}: {error}" for job, error in errors.items()]
        raise InputError(
            "\n  ".join([f"{len(errors)} of {len(jobs)} runs could not be done, all others were:", *reasons])
        )
    rows = {row["key"]: row for row in read_runs(Path(sweep.output_dir, RESULTS_FILE))}
    return [rows[key] for outcome in outcomes.values() for key in outcome["keys"]]


def _run_in_processes(sweep: Sweep, jobs: Sequence[Job], token: str, *, num_workers: int, num_devices: int) -> None:
    num_threads = max(1, num_cores() // num_workers)
    devices = os.environ.get(DEVICES, ",".join(map(str, range(num_devices)))).split(",")
    processes = [
        get_context("spawn").Process(target=_work, args=(sweep, jobs, token, num_threads), daemon=True)
        for _ in range(num_workers)
    ]
    try:
        for number, process in enumerate(processes):
            with patch_environment(**{DEVICES: devices[number % len(devices)]}):
                process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def _work(sweep: Sweep, jobs: Sequence[Job], token: str, num_threads: int) -> None:
    log_rows()
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _do_jobs(sweep, jobs, token)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do_jobs(sweep: Sweep, jobs: Sequence[Job], token: str) -> dict[Job, dict[str, Any]]:
    """Do the jobs that are free, then wait for those that others do, who may be killed; return what became of each."""
    outcomes = {job: _do_job(sweep, job, token, waits=False) for job in jobs}
    return {job: outcome or _do_job(sweep, job, token, waits=True) or {} for job, outcome in outcomes.items()}


def _do_job(sweep: Sweep, job: Job, token: str, *, waits: bool) -> dict[str, Any] | None:
    """Do a job, unless it has been done since the sweep began; return what became of it, None if it is locked."""
    with open(sweep.path_of(job), "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        file.seek(0)
        outcome = _read_outcome(file.read(), token)
        if outcome is None:
            outcome = {"sweep": token}
            try:
                outcome["keys"] = [row["key"] for row in sweep.run(job)]
            except InputError as error:
                outcome["error"] = str(error)
            file.truncate(0)
            file.write(json.dumps(outcome))
    return outcome


def _read_outcome(text: str, token: str) -> dict[str, Any] | None:
    """Return what became of a job since the sweep began."""
    try:
        outcome = json.loads(text)
    except ValueError:  # nothing yet, or cut
        return None
    return outcome if outcome["sweep"] == token else None
