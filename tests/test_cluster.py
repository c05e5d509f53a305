"""The steps of a corpus under datatrove's executors: the same bytes as on one machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="the extra `cluster`: pip install datatrove")

from datatrove.executor import LocalPipelineExecutor

from kcelectra.corpus.build import CorpusArguments, plan_corpus
from kcelectra.corpus.cluster import CorpusStep
from kcelectra.corpus.shards import SINGLE_STEPS, STEPS, count_tasks
from kcelectra.manifest import read_manifest

RECIPE = Path(__file__).parents[1] / "recipes" / "cluster" / "build_corpus.py"
OPTIONS = {"part_mb": 1, "shard_mb": 1}


def plan(source: Path, output_dir: Path) -> str | None:
    return plan_corpus(CorpusArguments(sources=[str(source)], output_dir=str(output_dir), **OPTIONS))


def digests(output_dir: Path) -> dict[str, str]:
    files = [path for path in sorted(output_dir.rglob("*")) if path.is_file()]
    return {path.relative_to(output_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_step(step, work_dir: str, logs: Path, *, tasks: int) -> None:
    tasks = 1 if step in SINGLE_STEPS else tasks
    options = {"logging_dir": str(logs / step.__name__), "skip_completed": False}
    LocalPipelineExecutor([CorpusStep(step, work_dir)], tasks=tasks, workers=1, **options).run()


@pytest.fixture(scope="module")
def source(sample_comments, tmp_path_factory):
    """Comments in threads, more than two MiB of them."""
    path = tmp_path_factory.mktemp("source") / "comments.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for copy in range(6):
            for row in sample_comments:
                ids = {name: row[name] and f"{row[name]}-{copy}" for name in ("thread", "comment_id", "parent_id")}
                text = f"{row['text']} {copy}번째"
                file.write(json.dumps({**row, **ids, "text": text}, ensure_ascii=False) + "\n")
    return path


@pytest.fixture(scope="module")
def expected(source):
    """The bytes that the steps make one after the other, in this process."""
    work_dir = plan(source, source.with_name("out"))
    for step in STEPS:
        for task in range(count_tasks(step, work_dir)):
            step(work_dir, task)
    return digests(source.with_name("out"))


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_any_number_of_ranks_makes_the_same_bytes(source, expected, tmp_path, tasks):
    assert len(expected) > 2
    work_dir = plan(source, tmp_path / "out")
    for step in STEPS:
        run_step(step, work_dir, tmp_path / "logs", tasks=tasks)
    assert digests(tmp_path / "out") == expected


@pytest.mark.parametrize("file", ["counts/000001.json", "shards.json", "shards/000000.json"])
def test_a_second_run_does_what_is_missing_and_no_more(source, expected, tmp_path, file):
    work_dir = plan(source, tmp_path / "out")
    for step in STEPS[:3]:
        run_step(step, work_dir, tmp_path / "logs", tasks=2)
    Path(work_dir, file).unlink()
    before = {path: path.stat().st_mtime_ns for path in Path(work_dir).rglob("*.json") if path.name != "plan.json"}
    assert plan(source, tmp_path / "out") == work_dir
    for step in STEPS[:3]:
        run_step(step, work_dir, tmp_path / "logs", tasks=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Path(work_dir, file).exists()
    run_step(STEPS[3], work_dir, tmp_path / "logs", tasks=1)
    assert digests(tmp_path / "out") == expected


def test_ranks_share_the_tasks_of_a_step(source, tmp_path):
    work_dir = plan(source, tmp_path / "out")
    num_tasks = count_tasks(STEPS[0], work_dir)
    assert num_tasks >= 3
    documents = iter(["passes by"])
    for rank in range(2):
        assert CorpusStep(STEPS[0], work_dir).run(documents, rank=rank, world_size=2) is documents
        done = sorted(int(path.stem) for path in Path(work_dir, "counts").iterdir())
        assert done == sorted({task for task in range(num_tasks) if task % 2 <= rank})
    assert list(documents) == ["passes by"]


def test_what_a_step_did_is_in_its_statistics(source, expected, tmp_path):
    work_dir = plan(source, tmp_path / "out")
    run_step(STEPS[0], work_dir, tmp_path / "logs", tasks=2)
    (statistics,) = json.loads((tmp_path / "logs" / "clean_part" / "stats.json").read_text())
    assert statistics["name"].endswith("clean_part")
    assert statistics["stats"]["comments"]["total"] == read_manifest(source.with_name("out"))["num_read"]


def run_recipe(directory: Path, source: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", f"{value}")]
    command = [sys.executable, str(RECIPE), "--sources", str(source), "--output_dir", "out", *options, *arguments]
    return subprocess.run(
        command, cwd=directory, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_the_recipe_builds_the_same_corpus_once(source, expected, tmp_path):
    arguments = ("--executor", "local", "--tasks", "2", "--workers", "2")
    result = run_recipe(tmp_path, source, *arguments)
    assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "out") == expected
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    result = run_recipe(tmp_path, source, *arguments)
    assert (result.returncode, result.stdout) == (0, "out holds this corpus already\n"), result.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_an_unknown_executor_is_named_with_what_to_type(source, tmp_path):
    for arguments, message in (
        (("--executor", "dask"), "--executor is 'dask'; use local, ray or slurm"),
        (("--workers", "0"), "--workers is 0; give 1 or more"),
    ):
        result = run_recipe(tmp_path, source, *arguments)
        assert (result.returncode, result.stderr) == (2, f"error: {message}\n")
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ray_makes_the_same_bytes(source, expected, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install ray")
    result = run_recipe(tmp_path, source, "--executor", "ray", "--tasks", "2", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "out") == expected


# Stand in for Slurm on this machine: each task of an array runs at once, and a failed one fails the submission.
SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
jobs = os.environ["SLURM_JOBS"]
number = len(os.listdir(jobs)) + 1
print(*sys.argv[1:-1], script, sep="\\n", file=open(f"{{jobs}}/{{number}}", "w"))
last = int((re.search(r"--array=0-([0-9]+)", script) or ["", "0"])[1])
for task in range(last + 1):
    facts = {{"ARRAY_TASK_ID": task, "ARRAY_JOB_ID": number, "JOB_ID": number, "NODELIST": "here"}}
    environment = os.environ | {{f"SLURM_{{name}}": str(fact) for name, fact in facts.items()}}
    subprocess.run(["bash", sys.argv[-1]], env=environment, stdout=2, check=True)
print("Submitted batch job", number)
"""
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/bash\necho here\n"


@pytest.mark.slow
def test_slurm_makes_the_same_bytes(source, expected, tmp_path):
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    (tmp_path / "jobs").mkdir()
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "SLURM_JOBS": str(tmp_path / "jobs")}
    result = run_recipe(tmp_path, source, "--executor", "slurm", "--tasks", "2", "--workers", "2", **environment)
    assert result.returncode == 0, result.stderr
    assert digests(tmp_path / "out") == expected
    jobs = [path.read_text() for path in sorted((tmp_path / "jobs").iterdir(), key=lambda path: int(path.name))]
    steps = [job for job in jobs if "--array=0-" in job and "launch_pickled_pipeline" in job]
    assert [re.search("--job-name=(.+)", job)[1] for job in steps] == [step.__name__ for step in STEPS]
    for before, job in pairwise(steps):
        assert f"--dependency=afterok:{jobs.index(before) + 1}\n" in job
