"""The recipe as users run it, and everything the README tells them to type."""

import importlib.util
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from threading import Timer

import pytest
import torch
from conftest import run_here
from safetensors.torch import load_file

from kcelectra.arguments import parse_args, read_preset, run_recipe
from kcelectra.errors import InputError
from kcelectra.manifest import verify_manifest
from kcelectra.pretraining import packed_corpus
from kcelectra.pretraining.record import read_record
from kcelectra.pretraining.run import lock_run_dir
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.signals import StopSignals
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.tokenization import SPECIAL_TOKENS

ROOT = Path(__file__).parents[1]
SHORT = "--max_steps 6 --logging_steps 2 --save_steps 2 --per_device_train_batch_size 4 --max_length 64".split()
SHORT += ["--save_total_limit", "9", "--warmup_steps", "2", "--shuffle_window", "64"]


def launch(directory: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command += ["--config_file", str(ROOT / "recipes/accelerate/cpu.yaml"), str(ROOT / "recipes/pretrain.py")]
    return subprocess.run([*command, *arguments], cwd=directory, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    directory = tmp_path_factory.mktemp("recipe")
    return directory, launch(directory, *SHORT)


def final_weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "out/smoke/checkpoint-6/model.safetensors")


def test_without_a_dataset_the_recipe_leaves_two_models_and_a_report(first_run):
    directory, result = first_run
    assert result.returncode == 0, result.stderr
    run_dir = directory / "out/smoke"
    assert set(verify_manifest(run_dir / "export")["files"]) >= {
        "discriminator/model.safetensors",
        "discriminator/vocab.txt",
        "generator/model.safetensors",
        "generator/tokenizer.json",
    }
    assert (run_dir / "report/index.html").stat().st_size > 50_000
    assert "generator loss below the unigram entropy" in result.stdout
    assert "tokens/s" in result.stdout and " left" in result.stdout
    assert "attention: sdpa; compiled: no" in result.stdout


def test_the_two_lines_it_prints_load_the_result(first_run, monkeypatch):
    directory, result = first_run
    lines = result.stdout.strip().splitlines()[-2:]
    monkeypatch.chdir(directory)
    exec("\n".join([*lines, "assert sum(p.numel() for p in model.parameters()) > 100_000"]), {})


def test_the_same_command_continues_an_interrupted_run_to_the_same_weights(first_run, tmp_path):
    directory, _ = first_run
    shutil.copytree(directory / "out", tmp_path / "out")
    for name in ("checkpoint-4", "export", "report"):
        shutil.rmtree(tmp_path / "out/smoke" / name)
    cut = tmp_path / "out/smoke/checkpoint-6/trainer_state.json"  # as a kill in the middle of a save leaves it
    cut.write_text(cut.read_text()[:100])
    result = launch(tmp_path, *SHORT)
    assert result.returncode == 0, result.stderr
    steps = re.findall(r"step (\d+)/6", result.stdout)
    assert steps == ["4", "6"]
    ours, theirs = final_weights(tmp_path), final_weights(directory)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_same_command_after_the_end_trains_no_more(first_run):
    directory, _ = first_run
    page = (directory / "out/smoke/report/index.html").read_text(encoding="utf-8")
    before = (directory / "out/smoke/checkpoint-6/model.safetensors").stat().st_mtime_ns
    exported = verify_manifest(directory / "out/smoke/export")["files"]
    shutil.rmtree(directory / "out/smoke/export")  # the output says to load it
    result = launch(directory, *SHORT)
    assert result.returncode == 0, result.stderr
    assert verify_manifest(directory / "out/smoke/export")["files"] == exported
    assert not re.findall(r"step \d+/6", result.stdout)
    assert "has trained its 6 steps; delete it to train anew" in result.stdout
    assert (directory / "out/smoke/checkpoint-6/model.safetensors").stat().st_mtime_ns == before
    assert (directory / "out/smoke/report/index.html").read_text(encoding="utf-8") == page


def test_another_run_in_the_same_directory_is_refused_with_the_cure(first_run, monkeypatch, capsys):
    monkeypatch.chdir(first_run[0])
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *SHORT, "--learning_rate", "5e-4"])
    with pytest.raises(SystemExit, match="2"):
        run_recipe(load_recipe().main)
    error = capsys.readouterr().err
    assert "learning_rate: 0.001 there, 0.0005 now" in error and "give another --output_dir" in error


@pytest.mark.parametrize("half", ["discriminator", pytest.param("generator", marks=pytest.mark.slow)])
def test_a_probe_adds_the_score_of_a_checkpoint(first_run, tmp_path, monkeypatch, capsys, caplog, half):
    """In a process of its own, which must not take itself for one of several that train together."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, start in (("ratings_train.txt", 0), ("ratings_test.txt", 100)):
        rows = [f"{i}\t{'재미있는' if i % 2 else '지루한'} 영화 {i}\t{i % 2}\n" for i in range(start, start + 60)]
        (tmp_path / name).write_text(f"id\tdocument\tlabel\n{''.join(rows)}", encoding="utf-8")
    recipe = load_recipe()
    checkpoint = Path(shutil.copytree(first_run[0] / "out/smoke/checkpoint-6", tmp_path / "run/checkpoint-6"))
    if half == "generator":  # of a run that trained it alone
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | {"discriminator_weight": 0.0}))
    probe_args = recipe.ProbeArguments(probe_task="nsmc", probe_data_dir=str(tmp_path), probe_examples=20)
    recipe.probe(checkpoint, probe_args, StopSignals())
    (row,) = (json.loads(line) for line in (tmp_path / "run/probe/results.jsonl").read_text().splitlines())
    assert (row["step"], row["task"], Path(row["model"]).name) == (6, "nsmc", half)
    assert f"probe of step 6: accuracy {row['metrics']['accuracy']:.4f}" in capsys.readouterr().out
    if half == "discriminator":  # training goes on
        recipe.probe(checkpoint, recipe.ProbeArguments(probe_task="nope", probe_data_dir="x"), StopSignals())
        assert "the probe of step 6 failed, training goes on: " in caplog.text
    with pytest.raises(InputError, match="give --probe_data_dir"):
        recipe.ProbeArguments(probe_task="nsmc")


def test_a_run_that_is_told_to_stop_does_not_wait_for_its_probe(first_run, tmp_path, monkeypatch, caplog):
    """Its own save waits for the thread that the probe runs in."""
    recipe, signals = load_recipe(), StopSignals()
    checkpoint = Path(shutil.copytree(first_run[0] / "out/smoke/checkpoint-6", tmp_path / "run/checkpoint-6"))
    monkeypatch.setattr(sys, "executable", write(tmp_path / "python", "#!/bin/sh\nexec sleep 100\n"))
    (tmp_path / "python").chmod(0o700)
    Timer(0.1, setattr, (signals, "received", signal.SIGTERM)).start()
    recipe.probe(checkpoint, recipe.ProbeArguments(probe_task="nsmc", probe_data_dir=str(tmp_path)), signals)
    assert "the probe of step 6 failed, the run was told to stop" in caplog.text


# packed rows, and released models


def pack(*words: str) -> str:
    """Run the recipe in this process, and return what it prints."""
    output = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.setattr(packed_corpus, "run_tasks", run_here)
        patch.setattr(sys, "argv", ["pack.py", *words])
        load_recipe("recipes/pack.py").main()
    return output.getvalue()


@pytest.fixture(scope="module")
def packed_dir(first_run, tmp_path_factory):
    """Rows of the run's own comments and tokenizer."""
    run_dir, output_dir = first_run[0] / "out/smoke", tmp_path_factory.mktemp("packed") / "rows"
    words = ["--dataset", str(run_dir / "sample"), "--tokenizer", str(run_dir / "tokenizer"), "--max_length", "64"]
    assert f"rows: {output_dir}" in pack(*words, "--output_dir", str(output_dir))
    return output_dir


def test_how_documents_are_made_reaches_the_rows_and_the_run(first_run, run_main, tmp_path):
    run_dir, output_dir = first_run[0] / "out/smoke", tmp_path / "rows"
    words = ["--repeat_probability", "0.25", "--fill_documents", "true"]
    source = ["--dataset", str(run_dir / "sample"), "--tokenizer", str(run_dir / "tokenizer")]
    pack(*source, *words, "--output_dir", str(output_dir))
    run_main(*words)
    (start,) = read_record(tmp_path / "run")["starts"]
    for facts in (verify_manifest(output_dir)["settings"], start["fingerprints"]["data"]["rows"]):
        assert (facts["repeat_probability"], facts["fill_documents"]) == (0.25, True)


def test_a_run_over_packed_rows_counts_passes_and_takes_their_length_and_tokenizer(run_main, packed_dir, tmp_path):
    num_rows = verify_manifest(packed_dir)["num_rows"]
    run_main("--dataset", str(packed_dir), "--max_steps", "-1", "--num_train_epochs", "0.05")
    (start,) = read_record(tmp_path / "run")["starts"]
    assert start["end"]["step"] == math.ceil(0.05 * num_rows / 4)
    assert start["fingerprints"]["data"]["rows"]["num_rows"] == num_rows
    assert not (tmp_path / "run/tokenizer").exists()


def test_a_released_discriminator_goes_on_beside_a_new_generator_that_is_warmed_up(run_main, first_run, tmp_path):
    export = first_run[0] / "out/smoke/export"
    run_main("--init_discriminator", str(export), "--max_steps", "20", "--save_total_limit", "20")
    assert read_record(tmp_path / "run")["arguments"]["generator_warmup_steps"] == 2
    released = load_file(export / "discriminator/model.safetensors")
    weights = {step: load_file(tmp_path / f"run/checkpoint-{step}/model.safetensors") for step in (2, 4)}
    moved = {
        step: [name for name, weight in released.items() if not torch.equal(held[f"discriminator.{name}"], weight)]
        for step, held in weights.items()
    }
    assert moved[2] == [] and len(moved[4]) > 0.9 * len(released)


# bad input, one line each


def load_recipe(script: str = "recipes/pretrain.py"):
    spec = importlib.util.spec_from_file_location(Path(script).stem + "_recipe", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_main(tmp_path, monkeypatch):
    module = load_recipe()

    def run(*arguments: str) -> None:
        words = [*SHORT, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true", *arguments]
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
        module.main()

    return run


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nowhere/*.parquet"], "no file matches 'nowhere/\\*.parquet'; give a file"),
        (["--text_column", "comment"], "has no column 'comment'; it has 'comment_id', 'parent_id', 'thread', 'text'"),
        (["--max_length", "600"], "table, 512; give a --max_length of at most 512, or --max_position_embeddings 600"),
        (["--max_length", "7"], "max_length is 7; give at least 8"),
        (["--mask_probability", "0.001"], "less than one token: give a larger --mask_probability"),
        (["--max_stepz", "5"], "unknown argument '--max_stepz'; did you mean 'max_steps'?"),
        (["--rules", "v2023"], "unknown rule set 'v2023'; use one of v2022, v2021, corpus, none"),
        (["--size", "huge"], "unknown size 'huge'; use one of tiny, mini, small, base, large"),
        (["--max_steps", "-1"], "say how long to train with --max_steps"),
        (["--hidden_dropout", "2"], "hidden_dropout is 2.0; give a share of at least 0 and below 1"),
        (["--attention_dropout", "-1"], "attention_dropout is -1.0; give a share of at least 0 and below 1"),
        (["--short_length_steps", "-1"], "short_length_steps is -1.0; give steps, or a share of them as 0.9"),
        (["--lr_scheduler_kwargs", "{a: 5}"], "lr_scheduler_kwargs is '{a: 5}'; give JSON such as '{\"num_decay"),
        (
            ["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", '{"decay": 5}'],
            "warmup_stable_decay does not take lr_scheduler_kwargs .*'decay': 5.*unexpected keyword argument 'decay'",
        ),
        (["--save_strategy", "no"], "the last checkpoint is what is exported; leave out --save_strategy"),
        (["--save_strategy", "epoch"], "rows are read on without an end of an epoch; leave out --save_strategy"),
        (["--logging_strategy", "no"], "the log is what the report shows; leave out --logging_strategy"),
        (["--generator_weight", "-1"], "generator_weight is -1.0 and discriminator_weight 50.0; give 0 or more"),
        (["--generator_weight", "0", "--discriminator_weight", "0"], "discriminator_weight 0.0; .* one above 0"),
        (["--adam_bias_correction", "false", "--optim", "sgd"], "adam_bias_correction is false, and optim is sgd;"),
        (["--dataloader_num_workers", "2"], "dataloader_num_workers is 2; leave it out"),
        (["--save_steps", "1", "--save_total_limit", "99999999", "--max_steps", "99999999"], "MB are free; make room"),
    ],
)
def test_bad_input_is_named_with_what_to_type(run_main, arguments, message):
    with pytest.raises(InputError, match=message):
        run_main(*arguments)


def test_a_second_start_leaves_what_a_run_has_that_has_not_saved_yet(run_main, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with lock_run_dir(tmp_path / "run"):
        (tmp_path / "run/tokenizer").mkdir()
        write(tmp_path / "run/run.yaml", "size: small\n")
        with pytest.raises(InputError, match="another process trains"):
            run_main()
    assert (tmp_path / "run/run.yaml").read_text() == "size: small\n" and (tmp_path / "run/tokenizer").exists()


def test_an_empty_source_is_named(run_main, tmp_path):
    with pytest.raises(InputError, match="no text to train a tokenizer on; check --dataset"):
        run_main("--dataset", write(tmp_path / "empty.txt", ""))


def test_a_corpus_shorter_than_a_row_is_named(run_main, tmp_path):
    source = write(tmp_path / "short.txt", "짧은 댓글 하나뿐입니다 정말로\n" * 2)
    with pytest.raises(InputError, match="less than one row of 64; give more comments or a lower --max_length"):
        run_main("--dataset", source)


def test_a_vocabulary_size_that_is_not_the_tokenizers_is_named(run_main, tokenizer, tmp_path):
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    vocabulary = write(tmp_path / "vocab.txt", "".join(f"{token}\n" for token in tokens))
    with pytest.raises(InputError, match=f"has {len(tokenizer)} tokens, vocab_size is 999"):
        run_main("--tokenizer", vocabulary, "--vocab_size", "999")


def test_a_bad_byte_costs_its_row_and_no_other(run_main, tmp_path, sample_file, caplog):
    lines = sample_file.read_bytes().splitlines(keepends=True)
    lines[6] = b'{"text": "\xff\xfe"}\n'
    source = tmp_path / "bad.jsonl"
    source.write_bytes(b"".join(lines))
    run_main("--dataset", str(source), "--max_steps", "1")
    assert f"{source}, row 7: invalid UTF-8; the row is left out" in caplog.text
    page = (tmp_path / "run/report/index.html").read_text(encoding="utf-8")
    assert "rows left out, invalid UTF-8" in page


def test_a_full_disk_is_seen_before_training(run_main, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk; the check itself is tested above")
    try:
        with pytest.raises(InputError, match=r"the run needs \d+ MB in .*, \d+ MB are free; make room"):
            run_main("--output_dir", str(disk / "run"))
        assert not list((disk / "run").glob("checkpoint-*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# the README


def blocks(language: str, readme: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)


def readme_commands(readme: str = "README.md") -> list[str]:
    lines = "".join(blocks("bash", readme)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@cache
def help_of(script: str) -> str:
    output = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), suppress(SystemExit):
        patch.setattr(sys, "argv", [script, "--help"])
        load_recipe(script).main()
    return output.getvalue()


PRESET_READMES = ("recipes/comments-tiny/README.md", "recipes/comments-small/README.md")


@pytest.mark.parametrize(
    "command", [*readme_commands(), *(command for readme in PRESET_READMES for command in readme_commands(readme))]
)
def test_every_command_of_a_readme_is_one_that_runs(command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["accelerate", "launch"]:
        script = next(word for word in words if word.endswith(".py"))
        assert (ROOT / script).is_file()
        arguments = words[words.index(script) + 1 :]
        if arguments and arguments[0].endswith(".yaml"):
            arguments[0] = str(ROOT / arguments[0])
        for config in [word for word in words[: words.index(script)] if word.endswith(".yaml")]:
            assert (ROOT / config).is_file()
        parse_args(ModelArguments, DataArguments, PretrainingArguments, argv=arguments)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        known = help_of(words[1])
        assert [word for word in words if word.startswith("--") and word not in known] == []
        for preset in [word for word in words[2:] if word.endswith(".yaml")]:
            read_preset(ROOT / preset)
    else:
        assert words[:2] in (["pip", "install"], ["git", "clone"], ["cd", "kcelectra"])


def test_no_command_of_the_readme_writes_where_the_demo_has_written():
    written = {
        words[words.index("--output_dir") + 1]
        for words in map(shlex.split, readme_commands())
        if "--output_dir" in words
    }
    assert len(written) >= 4
    assert not written & {"out/sample", "out/corpus", "out/tokenizer", "out/smoke"}


def test_every_python_block_of_the_readme_runs_after_the_demo(first_run, tmp_path):
    directory, _ = first_run
    assert len(blocks("python")) >= 3
    (directory / "hub_cards").symlink_to(ROOT / "hub_cards")
    for recipe in ("build_corpus.py", "train_tokenizer.py"):
        command = [sys.executable, ROOT / "recipes" / recipe]
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=200)
    sample = shutil.move(directory / "out/smoke/sample", tmp_path)  # of a run without --dataset alone
    run = "import json, sys\nfor code in json.load(sys.stdin):\n    exec(code, {})"  # none sees the names of another
    command = [sys.executable, "-W", "ignore", "-c", run]
    subprocess.run(command, input=json.dumps(blocks("python")), text=True, cwd=directory, check=True, timeout=400)
    shutil.move(sample, directory / "out/smoke")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_length", "32"], "max_length is 32, the rows of .* have 64 tokens; give --max_length 64"),
        (["--fill_documents", "true"], "holds packed rows; leave out --fill_documents, or give it to recipes/pack.py"),
        (["--repeat_probability", "0.5"], "holds packed rows; leave out --repeat_probability, or give"),
        (["--vocab_size", "99"], "the tokenizer has [0-9]+ tokens, vocab_size is 99; leave out --vocab_size"),
        (["--tokenizer", "OTHER"], "was packed with another tokenizer, of [0-9]+ tokens; leave out --tokenizer"),
        (["--init_embeddings", "generator"], "those of a released pair; give its --init_discriminator"),
        (["--allow_changed", "dada"], "allow_changed names 'dada'; use any of data, tokenizer, config, code"),
        (["--total_train_batch_size", "6"], "total_train_batch_size 6 is no multiple of 4"),
        (["--attention", "flash"], "attention is 'flash'; use auto or one of eager, sdpa, flex_attention"),
    ],
)
def test_what_does_not_fit_packed_rows_is_named_with_what_to_type(run_main, packed_dir, tmp_path, arguments, message):
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join([*SPECIAL_TOKENS, "가", "나"]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        run_main("--dataset", str(packed_dir), *(str(other) if word == "OTHER" else word for word in arguments))
