"""A sweep does each run once, whoever is killed, and loses none."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import ElectraConfig, ElectraForPreTraining

from kcelectra import KcElectraConfig, KcElectraForPreTraining
from kcelectra.errors import InputError
from kcelectra.finetuning import runner
from kcelectra.finetuning import sweep as sweep_module
from kcelectra.finetuning.results import read_results
from kcelectra.finetuning.sweep import Job, Model, Sweep, parse_model, plan_jobs, run_sweep
from kcelectra.finetuning.tasks import TASKS
from kcelectra.pretraining.checkpoints import write_checkpoint
from kcelectra.tokenization import save_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS

ROOT = Path(__file__).parents[1]
WORDS = ["좋다", "최고", "싫다", "최악", "영화", "배우"]
SHORT = {"num_epochs": 1, "batch_size": 8}


def make_model(directory: Path, seed: int) -> str:
    tokenizer = as_bert_tokenizer([*SPECIAL_TOKENS, *WORDS])
    torch.manual_seed(seed)
    config = ElectraConfig(vocab_size=len(tokenizer), embedding_size=16, hidden_size=16, intermediate_size=32)
    config.num_hidden_layers, config.num_attention_heads = 1, 2
    ElectraForPreTraining(config).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return str(directory)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Model]:
    """Two of one name, which only their directories tell apart."""
    root = tmp_path_factory.mktemp("models")
    return [Model(make_model(root / str(seed) / "discriminator", seed), step=100 * (seed + 1)) for seed in range(2)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("data")
    for task in ("nsmc", "question_pair", "korsts"):
        (directory / task).mkdir()
    rows = [(f"{WORDS[4 + number % 2]} {WORDS[number % 4]} {WORDS[number % 3]}", number % 2) for number in range(60)]
    for split in ("train", "test"):
        lines = "".join(f"{split}{number}\t{text}\t{label}\n" for number, (text, label) in enumerate(rows))
        (directory / f"nsmc/ratings_{split}.txt").write_text(f"id\tdocument\tlabel\n{lines}", encoding="utf-8")
    for split in ("train", "dev", "test"):
        lines = "".join(f"{text}\t{WORDS[0]}\t{label}\n" for text, label in rows)
        header = "question1\tquestion2\tis_duplicate\n"
        (directory / f"question_pair/{split}.tsv").write_text(
            f"{header}{split}\t{split}\t0\n{lines}", encoding="utf-8"
        )
        lines = "".join(f"{number % 6}\t{text}\t{WORDS[0]}\n" for number, (text, _) in enumerate(rows))
        header = "score\tsentence1\tsentence2\n"
        (directory / f"korsts/sts-{split}.tsv").write_text(f"{header}1.5\t{split}\t{split}\n{lines}", encoding="utf-8")
    return str(directory)


def keys_of(output_dir: Path) -> list[tuple]:
    rows = read_results(output_dir / "results.jsonl")
    return [(row["weights_sha256"], row["step"], row["task"], row["seed"]) for row in rows]


def test_every_model_task_and_seed_has_one_row(models, data_dir, tmp_path):
    sweep = Sweep(output_dir=str(tmp_path), data_dir=data_dir, options=SHORT)
    jobs = plan_jobs(models, ["nsmc", "question-pair"], [0, 1])
    rows = run_sweep(sweep, jobs)
    assert [(row["step"], row["task"], row["seed"]) for row in rows] == [
        (job.model.step, job.task, job.seed) for job in jobs
    ]
    assert len(set(keys_of(tmp_path))) == len(keys_of(tmp_path)) == 8
    for row in rows:  # models of one name do not write over each other's
        assert len((tmp_path / row["predictions"]).read_text().splitlines()) == row["num_examples"]["test"]
    assert len({row["predictions"] for row in rows}) == 8


def test_the_same_command_again_does_nothing_even_where_the_models_have_moved(models, data_dir, tmp_path):
    options = {**SHORT, "max_train": 16}
    sweep = Sweep(output_dir=str(tmp_path / "out"), data_dir=data_dir, options=options)
    rows = run_sweep(sweep, plan_jobs(models, ["nsmc"], [3]))
    shutil.copytree(models[0].source, tmp_path / "moved")
    before = (tmp_path / "out/results.jsonl").read_bytes()
    again = run_sweep(sweep, plan_jobs([Model(str(tmp_path / "moved")), *models], ["nsmc"], [3]))
    assert again == [json.loads(json.dumps(row)) for row in (rows[0], *rows)]
    assert (tmp_path / "out/results.jsonl").read_bytes() == before


def test_weights_that_have_changed_below_the_same_path_are_another_run(data_dir, tmp_path):
    sweep = Sweep(output_dir=str(tmp_path / "out"), data_dir=data_dir, options={**SHORT, "max_train": 16})
    for seed in range(2):
        make_model(tmp_path / "model", seed)
        run_sweep(sweep, plan_jobs([Model(str(tmp_path / "model"))], ["nsmc"], [0]))
    first, second = read_results(tmp_path / "out/results.jsonl")
    assert first["model"] == second["model"] and first["predictions"] != second["predictions"]


def test_what_cannot_be_done_is_named_after_all_else_is_done(models, data_dir, tmp_path):
    sweep = Sweep(output_dir=str(tmp_path), data_dir=data_dir, options={**SHORT, "max_train": 16})
    with pytest.raises(
        InputError, match=r"2 of 4 runs could not be done, all others were:\n.*paws, seed 0: paws: no "
    ):
        run_sweep(sweep, plan_jobs(models, ["paws", "nsmc"], [0]))
    assert [row["task"] for row in read_results(tmp_path / "results.jsonl")] == ["nsmc", "nsmc"]


def test_a_run_without_memory_or_weights_ends_no_other(models, data_dir, tmp_path, monkeypatch):
    broken = Model(shutil.copytree(models[0].source, tmp_path / "broken"))
    (tmp_path / "broken/model.safetensors").write_bytes(b"cut")
    train = runner.train

    def lack_memory(*arguments, **options):
        if options["seed"] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return train(*arguments, **options)

    monkeypatch.setattr(runner, "train", lack_memory)
    sweep = Sweep(output_dir=str(tmp_path), data_dir=data_dir, options={**SHORT, "max_train": 16})
    with pytest.raises(InputError) as caught:
        run_sweep(sweep, plan_jobs([broken, models[0]], ["nsmc"], [0, 1, 2]))
    first, *reasons = str(caught.value).split("\n")
    assert first.startswith("4 of 6 runs could not be done") and len(reasons) == 4
    memory = "8 rows of 128 tokens; give a smaller --batch_size or --max_length (CUDA out of memory)"
    assert [reason for reason in reasons if "seed 1: the device has no memory for " + memory in reason]
    assert [row["seed"] for row in read_results(tmp_path / "results.jsonl")] == [0, 2]


def test_what_fails_in_every_run_is_said_once(models, data_dir, tmp_path):
    with pytest.raises(InputError, match="^paws: no translated_train.tsv or train.tsv in [^\n]*$"):
        run_sweep(Sweep(output_dir=str(tmp_path), data_dir=data_dir), plan_jobs(models, ["paws"], [0, 1, 2]))


def test_a_sweep_in_several_launched_processes_is_refused(models, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="start it with python, not accelerate launch: a sweep uses every GPU"):
        run_sweep(Sweep(output_dir=str(tmp_path / "out"), data_dir=data_dir), plan_jobs(models, ["nsmc"], [0]))
    assert not (tmp_path / "out").exists()


def test_a_run_that_collapses_is_followed_by_another_seed(models, data_dir, tmp_path):
    sweep = Sweep(output_dir=str(tmp_path), data_dir=data_dir, options={**SHORT, "learning_rate": 5.0})
    rows = run_sweep(sweep, plan_jobs(models[:1], ["nsmc"], [0, 7], reruns_collapsed=True))
    assert [(row["seed"], row["collapsed"]) for row in rows] == [(0, True), (8, True), (7, True), (9, True)]


def test_options_of_one_task_are_its_own(models, data_dir, tmp_path):
    only = {"korsts": {"train_file": f"{data_dir}/korsts/sts-dev.tsv", "dev_file": f"{data_dir}/korsts/sts-train.tsv"}}
    sweep = Sweep(output_dir=str(tmp_path), data_dir=data_dir, options=SHORT, task_options=only)
    korsts, nsmc = run_sweep(sweep, plan_jobs(models[:1], ["korsts", "nsmc"], [0]))
    assert "not the official files: train, dev, test" in korsts["notes"][0] and nsmc["task"] == "nsmc"
    plain = run_sweep(Sweep(str(tmp_path), data_dir, options=SHORT), plan_jobs(models[:1], ["korsts"], [0]))[0]
    assert plain["data_sha256"]["train"] == korsts["data_sha256"]["dev"] != korsts["data_sha256"]["train"]


def test_jobs_come_seed_by_seed_and_names_stand_for_several_tasks():
    jobs = plan_jobs([Model("a"), Model("b")], ["korsts", "proxy"], [5, 6])
    assert [(job.seed, job.task, job.model.source) for job in jobs[:4]] == [
        (5, "korsts", "a"),
        (5, "korsts", "b"),
        (5, "nsmc", "a"),
        (5, "nsmc", "b"),
    ]
    assert len(jobs) == 2 * 3 * 2 and jobs[0] == Job(Model("a"), "korsts", 5)
    assert [job.task for job in plan_jobs([Model("a")], ["all"], [0])] == list(TASKS)
    for given in (([], ["nsmc"], [0]), ([Model("a")], [], [0]), ([Model("a")], ["nsmc"], [])):
        with pytest.raises(InputError, match="nothing to run; give a model, a task and a seed, or more"):
            plan_jobs(*given)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InputError, match=f"--seeds {seed}: give numbers from 0 to 4294967295"):
        plan_jobs([Model("a")], ["nsmc"], [0, seed])


def test_a_model_may_be_a_path_or_a_revision_of_the_hub(tmp_path):
    (tmp_path / "with@sign").mkdir()
    assert parse_model(str(tmp_path / "with@sign")) == Model(str(tmp_path / "with@sign"))
    assert parse_model("beomi/KcELECTRA-base@v2022") == Model("beomi/KcELECTRA-base", "v2022")
    assert parse_model("beomi/KcELECTRA-base", step=7) == Model("beomi/KcELECTRA-base", None, 7)


def test_a_damaged_checkpoint_is_left_out_and_the_others_are_measured(tmp_path, caplog):
    tokenizer = as_bert_tokenizer([*SPECIAL_TOKENS, *WORDS])
    config = KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1)

    def write(directory: Path) -> None:
        KcElectraForPreTraining(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / "trainer_state.json").write_text("{}")

    for step in (1, 2):
        write_checkpoint(tmp_path, step, write)
    export_checkpoints = runpy.run_path(str(ROOT / "recipes/sweep.py"))["export_checkpoints"]
    (tmp_path / "checkpoint-1/model.safetensors").write_bytes(b"cut")
    assert [model.step for model in export_checkpoints(str(tmp_path))] == [2]
    assert "left out: " in caplog.text and "checkpoint-1 cannot be trusted" in caplog.text
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(InputError, match="checkpoint-1 cannot be trusted"):
        export_checkpoints(str(tmp_path))


# killed


def start(models: list[Model], data_dir: str, output_dir: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "recipes/sweep.py"), "--data_dir", data_dir, "--output_dir", str(output_dir)]
    command += ["--models", *(model.source for model in models), "--tasks", "nsmc", "question-pair", "korsts"]
    command += ["--seeds", "0", "1", "--num_epochs", "1", "--batch_size", "8", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_rows(output_dir: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(read_results(output_dir / "results.jsonl")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("num_workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_sweep_that_was_killed_goes_on_without_a_duplicate_or_lost_row(models, data_dir, tmp_path, num_workers):
    for count in (1, 4)[: int(num_workers)]:
        process = start(models, data_dir, tmp_path, "--num_workers", num_workers)
        wait_for_rows(tmp_path, count)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with open(tmp_path / "results.jsonl", "a") as file:
            file.write('{"key": "cut')  # the worst moment
    printed, _ = start(models, data_dir, tmp_path, "--num_workers", num_workers).communicate(timeout=240)
    assert f"12 runs in {tmp_path}/results.jsonl" in printed
    assert len(keys_of(tmp_path)) == len(set(keys_of(tmp_path))) == 12


@pytest.mark.slow
def test_what_a_killed_worker_did_not_do_another_does(models, data_dir, tmp_path):
    process = start(models, data_dir, tmp_path, "--num_workers", "2")
    wait_for_rows(tmp_path, 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "12 runs in" in printed
    assert len(keys_of(tmp_path)) == len(set(keys_of(tmp_path))) == 12


def test_two_sweeps_at_once_share_the_runs(models, data_dir, tmp_path):
    processes = [start(models, data_dir, tmp_path) for _ in range(2)]
    assert ["12 runs in" in process.communicate(timeout=240)[0] for process in processes] == [True, True]
    assert len(keys_of(tmp_path)) == len(set(keys_of(tmp_path))) == 12


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_progress_bar_is_shown_to_a_terminal_alone(monkeypatch, tmp_path, is_terminal):
    given = []
    monkeypatch.setattr(
        sweep_module, "finetune", lambda *args, **options: given.append(options) or {"collapsed": False}
    )
    monkeypatch.setattr(sweep_module, "describe_row", str)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    list(Sweep(str(tmp_path)).run(Job(Model("m"), "nsmc", 0)))
    assert [options["disable_tqdm"] for options in given] == [not is_terminal]
