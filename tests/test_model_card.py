"""A model's card says what the files of its run say, gives nothing away, and what it tells to type works."""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import math
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hub import HubServer, run_client
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from safetensors.torch import load_file
from score_rows import make_lines, make_row, make_runs, write_results
from transformers import ElectraConfig, ElectraForPreTraining, pipeline

from kcelectra import KcElectraConfig, KcElectraForPreTraining, clean
from kcelectra.arguments import given_settings, parse_args
from kcelectra.corpus.cleaning import RULE_SETS, get_rules
from kcelectra.errors import InputError
from kcelectra.finetuning.results import read_results
from kcelectra.finetuning.runner import FinetuningArguments, hash_weights, load_head
from kcelectra.finetuning.tasks import TASKS
from kcelectra.manifest import read_manifest, write_manifest
from kcelectra.pretraining.export import export_model
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.release import model_card
from kcelectra.release.card_scores import (
    _describe_command,
    _rename,
    draw_scores,
    list_eval_results,
    read_model_scores,
    tabulate_model,
)
from kcelectra.release.model_card import EFFECTIVE, write_model_card
from kcelectra.release.predictions import show
from kcelectra.release.publish import release_model
from kcelectra.release.published import read_published
from kcelectra.release.published_card import FACTS_FILE, render_published_card, write_published_cards
from kcelectra.release.run_facts import read_run
from kcelectra.release.scores import read_groups
from kcelectra.tokenization.loading import as_bert_tokenizer, save_tokenizer, tokens_by_id
from kcelectra.tokenization.vocabulary import PUBLISHED, SPECIAL_TOKENS, hash_vocabulary

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "model_card.md"
OWN = sorted(path.parent for path in (ROOT / "hub_cards").glob("*/results.jsonl"))
WEIGHTS = [ROOT / "hub_cards" / name for name in ("comments-tiny-41m", "comments-small-545m")]
CARDS = sorted({path.parent for path in (ROOT / "hub_cards").glob(f"*/{FACTS_FILE}")} - {*OWN})
REPO = "someone/kc-base"
CANARY = "hf_canaryThatMustNotSing"
HOSTILE = '<script>alert(1)</script> "q" | `x` *y* _z_ $w$ [v](javascript:0) ![u](http://t)'
HOSTILE += "\n---\n# s\n```\n\\ \u202eab &lt; {{ r }} ~~p~~ <!-- o"
SETTINGS = {
    "dataset": "out/corpus",
    "learning_rate": 0.001,
    "max_length": 128,
    "max_steps": 300,
    "per_device_train_batch_size": 32,
    "product_schedule": True,
    "size": "tiny",
    "tokenizer": "out/tokenizer",
    "warmup_steps": 30.0,
}
VERSIONS = {"kcelectra": "0.1.0", "torch": "2.13.0"}
TOKENS_PER_STEP, SECONDS_PER_STEP, FLOPS_PER_TOKEN = 4000, 2.0, 7e6

USE = """
import os
sys.modules["kcelectra"] = None  # any import of it now fails
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

def follow(path):
    names, text = {}, open(path, encoding="utf-8").read()
    exec(text.split("```python")[1].split("```")[0], names)
    return names

def use():
    names = follow(hf_hub_download(sys.argv[1], "README.md"))
    return [list(names[name].shape) for name in ("vectors", "is_replaced", "scores")] + [
        names["discriminator"](**names["inputs"]).logits.tolist(), names["inputs"]["input_ids"].tolist()
    ]

def validate():
    card = ModelCard(open(hf_hub_download(sys.argv[1], "README.md"), encoding="utf-8").read())
    return card.validate() or card.data.license

def validate_unknown():
    try:
        ModelCard("---\\nlicense: none-such\\n---\\n").validate()
    except ValueError as error:
        return str(error)

attempt("use", use)
attempt("validate", validate)
attempt("validate unknown", validate_unknown)
for path in sys.argv[2:]:
    attempt(path, lambda: follow(path)["model"].config.vocab_size)
"""


def make_history(num_steps: int = 300) -> list[dict]:
    """Return a log with an interval of 20 steps a line, which takes 40 seconds."""
    return [
        {
            "step": step,
            "generator_loss": 8 - step / 100,
            "unigram_entropy": 6.0,
            "discriminator_loss": 0.5 - step / 3000,
            "fake_rate_entropy": 0.42,
            "discriminator_auc": 0.5 + step / 1000,
            "discriminator_precision": None if step < 100 else 0.6,
            "discriminator_recall": 0.1,
            "generator_accuracy": 0.2,
            "sampled_accuracy": 0.1,
            "fake_rate": 0.13,
            "learning_rate": 1e-3 * (1 - step / num_steps),
            "tokens_per_second": TOKENS_PER_STEP / SECONDS_PER_STEP,
            "flops_per_token": FLOPS_PER_TOKEN,
        }
        for step in range(20, num_steps + 1, 20)
    ]


def write_state(run_dir: Path, step: int) -> None:
    directory = run_dir / f"checkpoint-{step}"
    directory.mkdir(exist_ok=True)
    total_flos = step * TOKENS_PER_STEP * FLOPS_PER_TOKEN
    state = {"global_step": step, "max_steps": 300, "total_flos": total_flos, "log_history": make_history(step)}
    (directory / "trainer_state.json").write_text(json.dumps(state))


def write_corpus(directory: Path, **changes) -> None:
    rules = {rule.__name__: str(rule.__doc__).splitlines()[0] for rule in get_rules("corpus")}
    facts = {
        "settings": {"rules": "corpus", "min_chars": 10, "dedup": "global", "pii": "mask"},
        "num_read": 98_765_432,
        "num_kept": 89_876_543,
        "dropped": {"too short": 7_654_321, "duplicate": 1_234_568},
        "rules": rules,
        "changed_by_rule": {name: 11_111 * number for number, name in enumerate(rules, start=1)},
        "personal_data": {"PHONE": 23_456, "EMAIL": 3_457},
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_manifest(directory, stage="corpus", **facts | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """A run with two checkpoints, its export, its corpus and its tokenizer, with results of three tasks."""
    directory = tmp_path_factory.mktemp("trained")
    run_dir = directory / "out" / "run"
    torch.manual_seed(0)
    model = KcElectraForPreTraining(KcElectraConfig.from_size("tiny", vocab_size=len(tokenizer), num_hidden_layers=1))
    run_dir.mkdir(parents=True)
    export_model(model, tokenizer, run_dir / "export")
    manifest = read_manifest(run_dir / "export") | {"versions": VERSIONS}
    (run_dir / "export" / "manifest.json").write_text(json.dumps(manifest))
    (run_dir / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    for step in (200, 300):
        write_state(run_dir, step)
    (run_dir / "report").mkdir()
    (run_dir / "report" / "history.json").write_text(json.dumps(make_history()))
    write_corpus(directory / "out" / "corpus")
    tokens = tokens_by_id(tokenizer)
    facts = {"stage": "tokenizer", "sha256": hash_vocabulary(tokens), "num_texts": 89_876_544, "num_alphabet": 4_321}
    outside = {"num_characters": 1_357, "num_occurrences": 24_680}
    (directory / "out" / "tokenizer").mkdir()
    write_manifest(
        directory / "out" / "tokenizer",
        **facts,
        settings={"morphemes": "particles", "rules": "none"},
        outside_alphabet=outside,
    )
    discriminator = run_dir / "export" / "discriminator"
    # By what fine-tuning hashes: a classifier's encoder
    weights = hash_weights(load_head(TASKS["nsmc"], discriminator)[1].base_model)
    identity = {"weights_sha256": weights, "tokenizer_sha256": facts["sha256"], "model": str(discriminator)}
    return SimpleNamespace(directory=directory, run_dir=run_dir, identity=identity)


def official(task: str) -> dict[str, str]:
    return {split: TASKS[task].sha256.get(names[0], split) for split, names in TASKS[task].files.items() if names}


@pytest.fixture(scope="module")
def results(trained) -> Path:
    """Results of the model on three tasks, one on official files, and of another model."""
    lines = make_lines([0.5, 1.4, 2.2, 2.9, 4.5], [1.0, 0.5, 2.0, 4.0, 3.0])
    notes = ["not the official files: train, dev, test", "only the first 5 of 1,379 of test"]
    korsts = [
        (make_row("korsts", seed, lines, notes=notes, **trained.identity, predictions=f"k{seed}.jsonl"), lines)
        for seed in (0, 3)
    ]
    legacy = make_runs([12], protocol="kcbert-finetune", selected_on="test", **trained.identity)
    runs = [
        *make_runs([13, 15, 16, 16, 19], data_sha256=official("nsmc"), **trained.identity),
        *korsts,
        *legacy,
        *make_runs([2, 3, 1], model="out/other", weights_sha256="c" * 64),
    ]
    return write_results(trained.directory / "results", runs)


@pytest.fixture(autouse=True)
def in_its_directory(trained, monkeypatch):
    monkeypatch.chdir(trained.directory)  # the settings name the corpus from there


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(trained.run_dir, tmp_path / "run"))


@pytest.fixture
def write_card(trained, tmp_path, monkeypatch):
    """Return the files of a card, by name, of the run or of a changed copy; without pictures, which are slow."""

    def write(
        run_dir: Path | None = None, *, export_dir: Path | None = None, draws: bool = False, **options
    ) -> dict[str, Path]:
        release_dir = tmp_path / "release"
        if not draws:
            monkeypatch.setattr(model_card, "draw_plots", lambda history, images_dir: [])
            monkeypatch.setattr(model_card, "draw_scores", lambda own, family, images_dir, repo_id: [])
        stage(export_dir or trained.run_dir / "export", release_dir)
        options = {"repo_id": REPO, "license": "mit", "run_dir": run_dir or trained.run_dir} | options
        paths = write_model_card(release_dir, **options)
        return {path.relative_to(release_dir).as_posix(): path for path in paths}

    return write


def stage(export_dir: Path, release_dir: Path) -> None:
    shutil.copytree(export_dir / "discriminator", release_dir, dirs_exist_ok=True)
    shutil.copytree(export_dir / "generator", release_dir / "generator", dirs_exist_ok=True)


@pytest.fixture(scope="module")
def full(trained, results, tmp_path_factory):
    """A card with everything: results, corpus, tokenizer, power."""
    directory = tmp_path_factory.mktemp("full")
    run_dir = Path(shutil.copytree(trained.run_dir, directory / "run"))
    (run_dir / "facts.yaml").write_text("device: one accelerator\nwatts: 250\ngrams_co2_per_kwh: 400\n")
    stage(run_dir / "export", directory / "release")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.directory)
        paths = write_model_card(
            directory / "release", repo_id=REPO, license="mit", run_dir=run_dir, results_file=results
        )
    return SimpleNamespace(dir=directory / "release", paths=paths, text=paths[0].read_text("utf-8"), run_dir=run_dir)


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def section(card: str, title: str) -> str:
    """Return what stands below a heading, up to the next one; a comment in a block of code is none."""
    lines, here, in_code = list[str](), False, False
    for line in body(card).splitlines():
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            here = line.lstrip("# ") == title
        elif here:
            lines.append(line)
    return "\n".join(lines) + "\n"


def tables(text: str) -> list[list[dict[str, str]]]:
    """Return the rows of each table, by the names of its columns."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    for table in filter(None, found):
        assert {len(row) for row in table} == {len(table[0])}, table
    return [[dict(zip(table[0], row, strict=True)) for row in table[2:]] for table in found if table]


def blocks(card: str, language: str = "") -> list[str]:
    return [
        code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", card, re.DOTALL | re.MULTILINE) if kind == language
    ]


def edit(path: Path, **changes) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text("utf-8")) | changes, allow_unicode=True), "utf-8")


# the whole card


def test_the_card_is_the_golden_one(full, tmp_path):
    sha256 = re.search(r"has the sha256 `(\w{64})`", full.text)[1]
    card = full.text.replace(sha256, "<sha256>").replace(sha256[:16], "<sha256>")  # of weights drawn by this torch
    new = tmp_path / "model_card.md"
    new.write_text(card, "utf-8")
    assert card == GOLDEN.read_text("utf-8"), f"if this is what you want: cp {new} {GOLDEN}"


def test_what_is_returned_is_what_was_written_and_shown(full, trained):
    export = {
        path.relative_to(trained.run_dir / "export").as_posix() for path in (trained.run_dir / "export").rglob("*")
    }
    staged = {name.removeprefix("discriminator/") for name in export}
    written = {path.relative_to(full.dir).as_posix() for path in full.dir.rglob("*") if path.is_file()} - staged
    assert written == {path.relative_to(full.dir).as_posix() for path in full.paths}
    shown = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", full.text))
    assert shown == {name for name in written if name.endswith(".png")}
    assert all((full.dir / name).read_bytes().startswith(b"\x89PNG") for name in shown)


def test_the_same_run_has_the_same_card_and_one_of_less_leaves_nothing_of_it(write_card, results, trained, full):
    (trained.run_dir / "facts.yaml").write_bytes((full.run_dir / "facts.yaml").read_bytes())
    first = write_card(results_file=results, draws=True)
    (trained.run_dir / "facts.yaml").unlink()
    contents = {name: path.read_bytes() for name, path in first.items()}
    assert contents == {path.relative_to(full.dir).as_posix(): path.read_bytes() for path in full.paths}
    second = write_card()
    assert {name for name in first if "finetuning" in name} and {name for name in first if "eval_results" in name}
    assert {name for name, path in first.items() if path.exists()} == set(second) == {"README.md"}


def test_every_large_number_is_in_a_file_of_the_run(full, trained, results):
    halves = [trained.run_dir / "export" / name for name in ("discriminator", "generator")]
    files = [trained.directory / "out" / name / "manifest.json" for name in ("corpus", "tokenizer")]
    files += [results, *(half / "config.json" for half in halves)]
    known = set(re.findall(r"\d+", " ".join(path.read_text("utf-8").replace("1,379", "1379") for path in files)))
    weights = [load_file(half / "model.safetensors").values() for half in halves]
    known |= {str(sum(tensor.numel() for tensor in tensors)) for tensors in weights}
    known |= {str(300 * TOKENS_PER_STEP), str(TOKENS_PER_STEP)}
    told = re.findall(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?!\w|[.,]\d)", body(full.text))
    large = {number.replace(",", "") for number in told}
    assert len(large) > 20 and large <= known


# scores


def score_rows(card: str) -> list[dict[str, str]]:
    return tables(section(card, "Evaluation"))[0]


def test_every_score_of_the_table_is_computed_from_the_results(full, trained, results):
    rows = [row for row in read_results(results) if row["weights_sha256"] == trained.identity["weights_sha256"]]
    expected = set()
    for told in score_rows(full.text):
        own = [row for row in rows if (row["task"], row["protocol"]) == (told["task"], told["protocol"])]
        scores = np.array([100 * row["metrics"][told["score"]] for row in own])
        mean, *deviation = told["mean ± sd [interval]"].partition(" [")[0].split(" ± ")
        assert float(mean) == pytest.approx(scores.mean(), abs=0.00501)
        assert [float(one) for one in deviation] == pytest.approx(
            [scores.std(ddof=1)] if len(own) > 1 else [], abs=0.00501
        )
        assert (told["seeds"], told["step chosen on"]) == (str(len(own)), own[0]["selected_on"])
        expected |= {(told["task"], told["protocol"], name) for row in own for name in row["metrics"]}
    assert {(told["task"], told["protocol"], told["score"]) for told in score_rows(full.text)} == expected
    assert {(row["task"], row["protocol"]) for row in rows} == {key[:2] for key in expected}


def test_the_interval_is_that_of_the_report(full, results):
    summaries = {(group.first["task"], group.first["protocol"]): group.summary for group in read_groups(results)[:3]}
    for told in score_rows(full.text):
        one = summaries[told["task"], told["protocol"]]
        reported = told["score"] == TASKS[told["task"]].selected_by
        interval = re.findall(r"\[(.*), (.*)\]", told["mean ± sd [interval]"])
        assert interval == ([(f"{100 * one.low:.2f}", f"{100 * one.high:.2f}")] if reported else [])


def test_notes_of_the_rows_and_what_makes_them_less_stand_below_the_table(full):
    text = section(full.text, "Evaluation")
    notes = dict(re.findall(r"^([⁰¹²³⁴⁵⁶⁷⁸⁹]+) (.*?)\s*$", text, re.MULTILINE))
    told = {
        (row["task"], row["protocol"]): [notes[mark] for mark in row["notes"].split()] for row in score_rows(full.text)
    }
    assert told["nsmc", "strict"] == []
    assert "not the official files: train, dev, test" in told["korsts", "strict"]
    assert "only the first 5 of 1,379 of test" in told["korsts", "strict"]
    assert any(note.startswith("selected on test") for note in told["nsmc", "kcbert-finetune"])
    assert "the interval is over examples alone" in told["nsmc", "kcbert-finetune"]


def test_without_predictions_the_interval_says_what_it_covers(write_card, trained, tmp_path):
    runs = [(row, None) for row, _ in make_runs([12, 14], **trained.identity)]
    card = write_card(results_file=write_results(tmp_path / "r", runs))["README.md"].read_text("utf-8")
    assert "the interval is over seeds alone" in card
    one = write_results(tmp_path / "one", runs[:1])
    assert "no interval: one seed, and no predictions" in write_card(results_file=one)["README.md"].read_text("utf-8")


def load_recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_command(line: str):
    words = shlex.split(line)
    assert words[:2] == ["python", "recipes/finetune.py"]
    return parse_args(load_recipe("finetune").RunArguments, FinetuningArguments, argv=words[2:])


def test_each_condition_has_the_command_that_makes_it_again(full, trained, results):
    comments, commands = (blocks(section(full.text, "Evaluation"))[0].splitlines()[start::2] for start in (0, 1))
    groups = [group for group in read_groups(results) if group.first["model"] == trained.identity["model"]]
    by_comment = {f"{one['task']} {one['selected_by']}, {one['protocol']}": one for one in (g.first for g in groups)}
    assert len(comments) == len(groups) == 3
    for comment, command in zip(comments, commands, strict=True):
        row = by_comment[comment.lstrip("# ").split(";")[0]]
        run, options = parse_command(command)
        assert (run.model, run.task, run.protocol) == (REPO, row["task"], row["protocol"])
        assert all(f"{split} {digest[:12]}" in comment for split, digest in row["data_sha256"].items())
    assert {command.split("--seeds ")[1].split(" --")[0] for command in commands} == {"0 1 2 3 4", "0 3", "0"}


def test_a_command_has_the_settings_that_are_not_the_protocols(write_card, trained, tmp_path):
    changes = {
        "learning_rate": 0.001,
        "num_epochs": 2.0,
        "layer_decay": 0.8,
        "rules": "v2022",
        "precision": "bfloat16",
    }
    notes = ["only the first 400 of 135,058 of train", "only the first 1,300 of 50,000 of test"]
    usual = make_runs([1])[0][0]["settings"]
    runs = make_runs([12, 14], settings=usual | changes, notes=notes, **trained.identity)
    card = write_card(results_file=write_results(tmp_path / "r", runs))["README.md"].read_text("utf-8")
    run, options = parse_command(blocks(section(card, "Evaluation"))[0].splitlines()[1])
    given = {name: value for name, value in dataclasses.asdict(options).items() if value is not None}
    assert given == changes | {"max_train": 400, "max_eval": 1300}
    assert run.seeds == [0, 1]


@pytest.mark.parametrize(
    ("columns", "labels", "text", "label"),
    [
        (["review", "stars"], ["1", "2"], ["review"], ["stars"]),
        (["a", "b", "score"], None, ["a", "b"], ["score"]),
        (["text", "toxic", "rude"], ["toxic", "rude"], ["text"], ["toxic", "rude"]),
    ],
)
def test_the_command_of_ones_own_task_names_its_columns(write_card, trained, tmp_path, columns, labels, text, label):
    runs = make_runs([12], **trained.identity, columns=columns, labels=labels)
    for row, _ in runs:
        row["task"] = "my-reviews"
    card = write_card(results_file=write_results(tmp_path / "r", runs))["README.md"].read_text("utf-8")
    run, _ = parse_command(blocks(section(card, "Evaluation"))[0].splitlines()[1])
    assert (run.data, run.text, run.label, run.name) == ("FILE", text, label, "my-reviews")


def test_weights_in_half_precision_are_said_to_be(write_card, full, run_dir):
    for half in ("discriminator", "generator"):
        config = run_dir / "export" / half / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float16"}))
    text = write_card(export_dir=run_dir / "export")["README.md"].read_text("utf-8")
    assert "The weights are stored in float16. Give `from_pretrained` also `dtype=torch.float32`" in text
    assert "The weights are stored in" not in full.text


def test_a_share_of_right_answers_stands_beside_that_of_the_most_frequent_label(tmp_path):
    groups = read_groups(write_results(tmp_path, make_runs([15], majority_share=0.5)))
    assert any("the most frequent label alone has 50.00" in note for note in tabulate_model(groups, "a/b").footnotes)


def test_a_card_says_how_long_the_rows_were_and_that_later_positions_are_random(write_card, run_dir):
    edit(run_dir / "run.yaml", max_length=64)
    card = write_card(run_dir)["README.md"].read_text("utf-8")
    assert "texts of more than 64 tokens in one piece: rows of so many were trained on" in card


def test_scores_of_other_weights_are_not_shown_and_not_enough(write_card, full, tmp_path):
    assert "out/other" not in section(full.text, "Evaluation")
    others = write_results(tmp_path / "r", make_runs([2, 3], weights_sha256="c" * 64))
    with pytest.raises(InputError, match="no row of .* is of the weights and the tokenizer in .*--model"):
        write_card(results_file=others)


def test_the_same_weights_with_another_tokenizer_are_another_model(write_card, trained, tmp_path):
    runs = make_runs([2, 3], **trained.identity | {"tokenizer_sha256": "d" * 64})
    with pytest.raises(InputError, match="no row"):
        write_card(results_file=write_results(tmp_path / "r", runs))


def test_scores_over_pretraining_are_drawn_where_checkpoints_were_measured(trained, tmp_path):
    runs = make_runs([12, 14], **trained.identity | {"model": "out/run/checkpoint-300/export", "step": 300})
    runs += make_runs([9, 10], model="out/run/checkpoint-200/export", step=200, weights_sha256="c" * 64)
    runs += make_runs([1, 2], model="elsewhere", weights_sha256="e" * 64)
    expected = ["scores.png", "finetuning-1.png"]
    for name, some in (("all", runs), ("one", runs[:2])):
        groups = read_model_scores(write_results(tmp_path / name, some), trained.run_dir / "export" / "discriminator")
        assert [picture.path.name for picture in draw_scores(*groups, tmp_path, REPO)] == expected
        expected = expected[1:]


def test_where_the_model_lay_is_not_drawn(trained, tmp_path):
    drawn = []
    for model in ("/home/someone/secret", "out/run"):
        runs = make_runs([12, 14], **trained.identity | {"model": model})
        groups = read_model_scores(write_results(tmp_path, runs), trained.run_dir / "export" / "discriminator")
        drawn.append([picture.path.read_bytes() for picture in draw_scores(*groups, tmp_path, REPO)])
    assert drawn[0] == drawn[1] and len(drawn[0]) == 1


# metadata


def test_the_header_has_the_mean_of_each_reported_score(full):
    data = ModelCard(full.text).data
    assert (data.language, data.license, data.library_name, data.model_name) == (
        "ko",
        "mit",
        "transformers",
        "kc-base",
    )
    found = {
        (one.dataset_type, one.metric_name.split(", protocol ")[1].split(",")[0]): one for one in data.eval_results
    }
    assert set(found) == {("e9t/nsmc", "strict"), ("korsts", "strict"), ("nsmc", "kcbert-finetune")}
    for (_, protocol), one in found.items():
        task = one.dataset_name.split(",")[0]
        (told,) = [
            row
            for row in score_rows(full.text)
            if (row["task"], row["protocol"], row["score"]) == (task, protocol, one.metric_type)
        ]
        assert told["mean ± sd [interval]"].startswith(f"{one.metric_value:.2f}")
        assert one.dataset_split == "test" and f"step chosen on {told['step chosen on']}" in one.metric_name
        assert ("not the official" in one.dataset_name) == (one.dataset_type != "e9t/nsmc")


def test_the_hubs_own_form_of_results_holds_what_can_stand_beside_others(full):
    files = sorted((full.dir / ".eval_results").iterdir())
    assert [file.name for file in files] == ["nsmc.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[0].read_text("utf-8")))
    assert isinstance(entry, EvalResultEntry)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("e9t/nsmc", "nsmc", 79.0)
    assert "mean of 5 seeds" in entry.notes and "protocol strict" in entry.notes
    assert entry.source_url == f"https://huggingface.co/{REPO}"


@pytest.mark.parametrize(
    "changes",
    [
        {"data_sha256": {"train": "1", "test": "2"}},
        {"notes": ["only the first 20 of 50,000 of test"]},
        {"protocol": "kcbert-finetune", "selected_on": "test"},
    ],
    ids=["another test split", "a part of the test split", "chosen on test"],
)
def test_a_score_that_cannot_stand_beside_others_is_in_the_card_alone(write_card, trained, tmp_path, changes):
    runs = make_runs([12, 13], **trained.identity, **{"data_sha256": official("nsmc")} | changes)
    files = write_card(results_file=write_results(tmp_path / "r", runs))
    assert not [name for name in files if name.startswith(".eval_results")]
    assert score_rows(files["README.md"].read_text("utf-8"))


def test_the_official_test_split_is_so_too_where_the_hub_has_it_not(write_card, trained, tmp_path):
    lines = make_lines([3.5, 1.0, 2.0], [3.0, 1.5, 2.5])
    row = make_row("korsts", 0, lines, **trained.identity, data_sha256=official("korsts"), predictions=None)
    files = write_card(results_file=write_results(tmp_path / "r", [(row, None)]))
    (one,) = ModelCard(files["README.md"].read_text("utf-8")).data.eval_results
    assert (one.dataset_name, one.dataset_type) == ("korsts", "korsts")


def test_a_part_of_train_leaves_the_test_split_official(write_card, trained, tmp_path):
    notes = ["only the first 80 of 135,058 of train"]
    runs = make_runs([12, 13], **trained.identity, data_sha256=official("nsmc"), notes=notes)
    settings = runs[0][0]["settings"] | {"num_epochs": 1}
    runs += make_runs([14, 13], **trained.identity, data_sha256=official("nsmc"), settings=settings)
    for row, _ in runs[2:]:
        row["predictions"] = None
    files = write_card(results_file=write_results(tmp_path / "r", [(row, None) for row, _ in runs]))
    assert {name for name in files if "eval_results" in name} == {
        ".eval_results/nsmc.yaml",
        ".eval_results/nsmc.1.yaml",
    }
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/nsmc.yaml"].read_text("utf-8")))
    assert notes[0] in entry.notes


def test_a_dataset_of_the_hub_is_in_the_header_and_a_path_is_not(write_card, run_dir):
    for dataset, expected in (("someone/comments", ["someone/comments"]), ("out/gone", None), ("/data/x", None)):
        edit(run_dir / "run.yaml", dataset=dataset)
        assert ModelCard.load(write_card(run_dir)["README.md"]).data.datasets == expected


# training


def test_every_argument_that_was_given_is_told_and_makes_the_same_run(full):
    (command,) = blocks(section(full.text, "Training"))
    words = shlex.split(command)
    assert words[:3] == ["accelerate", "launch", "recipes/pretrain.py"]
    classes = (ModelArguments, DataArguments, PretrainingArguments)
    arguments = parse_args(*classes, argv=words[3:])
    assert given_settings(*arguments, argv=words[3:]) == SETTINGS
    told = {row["argument"]: row["value"] for row in tables(section(full.text, "Training"))[0]}
    assert told == {key: str(value) for key, value in SETTINGS.items()}


def test_defaults_are_told_that_matter_and_were_not_given(write_card):
    classes = (ModelArguments, DataArguments, PretrainingArguments)
    defaults = {field.name: field.default for one in classes for field in dataclasses.fields(one)}
    assert set(EFFECTIVE) <= set(defaults)
    card = write_card(defaults=defaults)["README.md"].read_text("utf-8")
    rows = tables(section(card, "Training"))[0]
    told = {row["argument"]: row["value"] for row in rows if row[""] == "default"}
    assert told.keys() == {name for name in EFFECTIVE if name not in SETTINGS and defaults[name] is not None}
    assert (told["weight_decay"], told["adam_epsilon"], told["lr_scheduler_type"]) == ("0.01", "1e-06", "linear")


def test_time_and_cost_are_those_of_the_log(full):
    run = read_run(full.run_dir)
    assert (run.step, run.flos) == (300, 300 * TOKENS_PER_STEP * FLOPS_PER_TOKEN)
    assert run.seconds == pytest.approx(300 * SECONDS_PER_STEP)
    text = section(full.text, "Cost")
    kwh = 250 * 600 / 3600 / 1000
    assert f"{run.flos:.3g} floating point operations" in text and "10.0 minutes at 250 W" in text
    assert f"is {kwh:.3g} kWh" in text and f"{kwh * 400 / 1000:.3g} kg of CO2e" in text and "one accelerator" in text
    emissions = ModelCard(full.text).data.to_dict()["co2_eq_emissions"]
    assert emissions["emissions"] == pytest.approx(kwh * 400, abs=0.001)
    assert (emissions["training_type"], emissions["hardware_used"]) == ("pre-training", "one accelerator")


def test_an_interval_after_a_resume_which_counts_all_operations_so_far_does_not_stretch_the_time(run_dir):
    history = make_history()
    history[7]["flops_per_token"] *= 8
    (run_dir / "report" / "history.json").write_text(json.dumps(history))
    assert read_run(run_dir).seconds == pytest.approx(300 * SECONDS_PER_STEP)


def test_an_interval_that_was_slower_takes_longer(run_dir):
    history = make_history()
    history[0]["tokens_per_second"] /= 3
    (run_dir / "report" / "history.json").write_text(json.dumps(history))
    assert read_run(run_dir).seconds == pytest.approx((300 + 2 * 20) * SECONDS_PER_STEP)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "Trained on a device that is not recorded. The power that was drawn is not recorded, so energy"),
        ({"device": "a CPU"}, "Trained on a CPU. The power that was drawn is not recorded"),
        ({"watts": 100}, "electricity emitted cannot be told"),
    ],
)
def test_energy_and_co2_are_told_as_far_as_they_are_known(write_card, run_dir, facts, said):
    (run_dir / "facts.yaml").write_text(yaml.safe_dump(facts))
    card = write_card(run_dir)["README.md"].read_text("utf-8")
    assert said in " ".join(section(card, "Cost").split())
    assert "co2_eq_emissions" not in card and "kg of CO2e" not in card
    assert ("kWh" in card) == ("watts" in facts)


def test_where_no_one_says_so_the_record_of_the_run_names_device_and_precision(write_card, run_dir):
    starts = [{"hardware": "4 cores of a CPU", "precision": "no"}, {"hardware": "2 x H100", "precision": "bf16"}]
    (run_dir / "run.json").write_text(json.dumps({"starts": starts}))
    card = write_card(run_dir, defaults={"precision": "auto"})["README.md"].read_text("utf-8")
    assert "Trained on 2 x H100. The power" in card and "| precision | bfloat16 | default |" in card
    (run_dir / "facts.yaml").write_text("device: two of them\ntext: Reviews of films.\n")
    card = write_card(run_dir)["README.md"].read_text("utf-8")
    assert "Trained on two of them. The power" in card
    assert "## Training text\n\n**What it is.** Reviews of films.\n\n" in card


@pytest.mark.parametrize(
    "facts", [{"watts": "300 W"}, {"watts": 0}, {"watts": math.nan}, {"power": 3}, {"device": 3}, {"text": ["a"]}]
)
def test_a_fact_that_is_none_is_named(run_dir, facts):
    (run_dir / "facts.yaml").write_text(yaml.safe_dump(facts))
    with pytest.raises(InputError, match=f"facts.yaml: {next(iter(facts))} is .*; give device"):
        read_run(run_dir)


def test_a_run_that_still_trains_has_the_log_of_its_last_whole_checkpoint(write_card, run_dir):
    shutil.rmtree(run_dir / "report")
    shutil.rmtree(run_dir / "export")
    (run_dir / "checkpoint-300" / "trainer_state.json").write_text('{"global_step": 300, "tot')
    card = write_card(run_dir)["README.md"].read_text("utf-8")
    assert "step 200 of 300" in card and "Exported with" not in card


# what is missing


def test_a_card_without_results_says_so(write_card):
    card = write_card()["README.md"].read_text("utf-8")
    text = section(card, "Evaluation")
    assert "how good this model is cannot be told here" in text and not tables(text)
    run, _ = parse_command(blocks(text)[0].strip())
    assert (run.model, run.task) == (REPO, "nsmc")
    assert "평가 결과가 없어" in card and "model-index" not in card


def test_a_card_without_its_corpus_says_so(write_card, run_dir):
    edit(run_dir / "run.yaml", dataset="someone/comments", dataset_revision="abc123", rules="v2022")
    text = section(write_card(run_dir)["README.md"].read_text("utf-8"), "Training text")
    assert "someone/comments, revision abc123" in text
    assert "what became of the comments by each rule" in text and "personal data" in text
    assert not tables(text)


def test_the_corpus_can_be_given_and_must_be_one(write_card, run_dir, tmp_path):
    edit(run_dir / "run.yaml", dataset="elsewhere/corpus")
    write_corpus(tmp_path / "moved", num_kept=77_777_777)
    card = write_card(run_dir, corpus_dir=tmp_path / "moved")["README.md"].read_text("utf-8")
    assert "77,777,777 comments" in card
    with pytest.raises(InputError, match="is no corpus; give the --output_dir of recipes/build_corpus.py"):
        write_card(run_dir, corpus_dir=run_dir)


def test_the_tokenizer_of_packed_rows_can_be_given_and_must_be_one(write_card, run_dir, tmp_path, trained):
    trained_here = trained.directory / "out" / "tokenizer"
    edit(run_dir / "run.yaml", tokenizer=None)
    text = section(write_card(run_dir)["README.md"].read_text("utf-8"), "Training text")
    assert "Its manifest is not at hand: what it was trained on" in text
    text = section(write_card(run_dir, tokenizer_dir=trained_here)["README.md"].read_text("utf-8"), "Training text")
    assert f"Trained on {read_manifest(trained_here)['num_texts']:,} texts" in text
    with pytest.raises(InputError, match="is no tokenizer; give the --output_dir of recipes/train_tokenizer.py"):
        write_card(run_dir, tokenizer_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "origin"),
    [
        ({}, "generator and discriminator together, from random weights"),
        (
            {"init_discriminator": "someone/kc@v1"},
            "generator and discriminator together, the discriminator from someone/kc@v1",
        ),
        (
            {"init_discriminator": "/home/me/out/mlm", "init_generator": "/home/me/out/mlm", "frozen_generator": True},
            "generator frozen, both from mlm",
        ),
    ],
)
def test_the_card_says_what_the_weights_were_at_first(write_card, run_dir, changes, origin):
    edit(run_dir / "run.yaml", **changes)
    card = write_card(run_dir, defaults={"generator_fraction": 0.25})["README.md"].read_text("utf-8")
    assert f"{origin}:\nstep" in section(card, "Training")
    assert ("| generator_fraction | 0.25 | default |" in card) == (not changes)
    assert ("pretrained from scratch" in card) == (not changes)


@pytest.mark.parametrize("source", ["export", "export/generator"])
def test_the_card_counts_the_run_that_the_weights_come_from(write_card, run_dir, tmp_path, source):
    first = shutil.copytree(run_dir, tmp_path / "first")
    edit(run_dir / "run.yaml", init_generator=str(first / source))
    for number, directory in enumerate((first, run_dir), start=1):
        (directory / "facts.yaml").write_text(yaml.safe_dump({"watts": 100 * number, "grams_co2_per_kwh": 400}))
    card = write_card(run_dir)["README.md"].read_text("utf-8")
    assert f"Before that, from random weights, step 300, about {300 * TOKENS_PER_STEP:,} tokens" in card
    assert read_run(first).command in card
    cost, kwh = " ".join(section(card, "Cost").split()), (100 + 200) * 600 / 3.6e6
    assert f"Before that: {300 * TOKENS_PER_STEP * FLOPS_PER_TOKEN:.3g} in 10.0 minutes." in cost
    assert "10.0 minutes at 200 W and 10.0 minutes at 100 W, as if all devices together had drawn" in cost
    assert f"is {kwh:.3g} kWh" in cost and f"{kwh * 400 / 1000:.3g} kg of CO2e" in cost
    shutil.rmtree(first)
    cost = section(write_card(run_dir)["README.md"].read_text("utf-8"), "Cost")
    assert "What the weights that it began with had cost is not counted here." in cost and "Before that" not in cost


def test_a_masked_language_model_that_was_trained_alone_is_published_without_a_discriminator(
    run_dir, tmp_path, monkeypatch
):
    edit(run_dir / "run.yaml", discriminator_weight=0)
    shutil.rmtree(run_dir / "export" / "discriminator")
    write_manifest(run_dir / "export")
    release_dir = tmp_path / "release"
    words = [
        "--run_dir",
        run_dir,
        "--repo_id",
        REPO,
        "--license",
        "mit",
        "--dry_run",
        "true",
        "--copy_dir",
        release_dir,
    ]
    monkeypatch.setattr("sys.argv", ["publish.py", *map(str, words)])
    load_recipe("publish").main()
    card = (release_dir / "README.md").read_text("utf-8")
    assert "masked-language-modeling" in card and "replaced-token-detection" not in card
    assert "pretrained\nfrom scratch to fill blanks in comments. It has no discriminator." in card
    assert "Masked language modelling alone (`--discriminator_weight 0`), from random weights:\nstep" in card
    code = re.search(r"```python\n(import torch.*?)```", card, re.DOTALL)[1]
    names: dict = {}
    exec(code.replace(f'"{REPO}", "main"', f'"{release_dir}", "main"'), names)
    assert names["scores"].shape[-1] == names["masked"].config.vocab_size
    for word in ("generator/", "is_replaced", "AutoModelForPreTraining", "the generator fills", "생성기"):
        assert word not in card, word


def test_what_is_pushed_can_be_looked_at_first(trained, run_dir, tmp_path, monkeypatch, capsys):
    write_manifest(run_dir / "export")
    words = ["--run_dir", run_dir, "--corpus_dir", trained.directory / "out" / "corpus"]
    words += ["--repo_id", REPO, "--license", "mit", "--dry_run", "true", "--copy_dir", tmp_path / "release"]
    monkeypatch.setattr("sys.argv", ["publish.py", *map(str, words)])
    load_recipe("publish").main()
    listed = dict(line.split()[::-1] for line in capsys.readouterr().out.splitlines()[:-2])
    files = [path for path in (tmp_path / "release").rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path / "release").as_posix(): f"{path.stat().st_size:,}" for path in files} == listed
    manifest = read_manifest(trained.directory / "out" / "corpus")
    assert f"{manifest['num_kept']:,} comments of" in (tmp_path / "release" / "README.md").read_text("utf-8")
    with pytest.raises(InputError, match="release is not empty; give another --copy_dir"):
        load_recipe("publish").main()


def test_the_embedded_sample_is_called_what_it_is(write_card, run_dir):
    (run_dir / "run.yaml").write_text("size: tiny\n")
    text = section(write_card(run_dir)["README.md"].read_text("utf-8"), "Training text")
    assert "synthetic" in text and "shows that the pipeline works, and nothing else" in text


def test_of_an_extended_tokenizer_the_card_says_what_it_was_extended_from(write_card, run_dir, tmp_path, trained):
    sha256 = read_manifest(trained.directory / "out" / "tokenizer")["sha256"]
    settings = {"base_vocab": "vocab.txt", "donor_vocab": None, "num_unused": 7}
    write_manifest(tmp_path, stage="tokenizer", sha256=sha256, settings=settings, num_own=1_193)
    edit(run_dir / "run.yaml", tokenizer=str(tmp_path))
    text = section(write_card(run_dir)["README.md"].read_text("utf-8"), "Training text")
    assert "Extended, without training, from one of 1,193 tokens.\n" in text and "Trained on" not in text


def test_without_its_manifest_or_with_that_of_another_the_tokenizers_training_is_not_told(
    write_card, run_dir, tmp_path
):
    for name, sha256 in (("none", None), ("other", "f" * 64)):
        directory = tmp_path / name
        directory.mkdir()
        if sha256:
            write_manifest(directory, stage="tokenizer", sha256=sha256, settings={}, num_texts=55_444)
        edit(run_dir / "run.yaml", tokenizer=str(directory))
        text = section(write_card(run_dir)["README.md"].read_text("utf-8"), "Training text")
        assert "what it was trained on cannot be told here" in text and "55,444" not in text


def test_without_checkpoints_cost_is_not_told(write_card, run_dir):
    for path in run_dir.glob("checkpoint-*"):
        shutil.rmtree(path)
    card = write_card(run_dir)["README.md"].read_text("utf-8")
    assert "operations and time cannot be told here" in section(card, "Cost")
    assert "step 300 of 300" in card and "tokens a step" not in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo_id": "base"}, "has no owner; give OWNER/NAME"),
        ({"repo_id": "a/b/c"}, "give OWNER/NAME"),
        ({"repo_id": 'a/b"); import os #'}, "give OWNER/NAME"),
        ({"license": "mit\n---\n# x"}, "give one such as mit"),
        ({"run_dir": Path("out/corpus")}, "has no run.yaml; give the --output_dir of recipes/pretrain.py"),
        ({"results_file": "none.jsonl"}, "no results file none.jsonl"),
    ],
)
def test_what_is_wrong_is_said_with_the_cure(write_card, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        write_card(**options)


def test_a_directory_without_both_halves_is_refused(trained, tmp_path):
    shutil.copytree(trained.run_dir / "export" / "discriminator", tmp_path / "half")
    with pytest.raises(InputError, match="generator has no model.safetensors and config.json"):
        write_model_card(tmp_path / "half", repo_id=REPO, license="mit", run_dir=trained.run_dir)


@pytest.mark.parametrize("name", ["report/history.json", "run.json"])
def test_a_cut_file_of_a_run_is_named(run_dir, name):
    (run_dir / name).write_text('{"starts": [')
    with pytest.raises(InputError, match=f"{name} is damaged: .*; delete it, and the card does without"):
        read_run(run_dir)


def test_a_run_that_has_logged_nothing_is_refused(run_dir):
    (run_dir / "report" / "history.json").write_text("[]")
    with pytest.raises(InputError, match="has logged nothing; give a run that has, with --logging_strategy"):
        read_run(run_dir)


# what it says of the text


def test_the_counts_of_the_corpus_are_its_manifests(full, trained):
    manifest = read_manifest(trained.directory / "out" / "corpus")
    fates, rules = tables(section(full.text, "Training text"))
    counts = {row[""].strip("*").removeprefix("left out: "): int(row["comments"].replace(",", "")) for row in fates}
    assert counts == {"read": manifest["num_read"], **manifest["dropped"], "kept": manifest["num_kept"]}
    changed = {row["rule"]: int(row["comments changed"].replace(",", "")) for row in rules}
    assert changed == manifest["changed_by_rule"]
    text = " ".join(section(full.text, "Training text").split())
    assert "Personal data was replaced by its kind" in text and "23,456 PHONE, 3,457 EMAIL" in text


@pytest.mark.parametrize("rules", RULE_SETS)
def test_the_cleaning_that_is_advised_is_that_of_the_training_text(write_card, trained, tmp_path, rules):
    settings = {"rules": rules, "min_chars": 10, "dedup": "none", "pii": "count"}
    write_corpus(tmp_path / "corpus", settings=settings, rules={}, changed_by_rule={})
    card = write_card(corpus_dir=tmp_path / "corpus")["README.md"].read_text("utf-8")
    codes = blocks(card, "python")
    if rules == "none":
        assert len(codes) == 1 and "there is nothing to do here" in card
    else:
        names: dict[str, object] = {}
        exec(codes[1], names)  # asserts what `clean` gives
        assert f'rules="{rules}"' in codes[1] and names["text"] == clean("이영화 진짜 ㅋㅋ 최고", rules)


def test_without_a_corpus_the_rules_are_those_given_or_of_the_tokenizer_that_the_run_trained(run_dir):
    def rules(**settings) -> str | None:
        (run_dir / "run.yaml").write_text(yaml.safe_dump(settings))
        return read_run(run_dir).rules

    assert (rules(dataset="x.txt", rules="v2021"), rules(dataset="x.txt")) == ("v2021", None)
    (run_dir / "tokenizer").mkdir()
    write_manifest(run_dir / "tokenizer", stage="tokenizer", settings={"rules": "v2022"})
    assert (rules(dataset="x.txt"), rules(dataset="x.txt", tokenizer=str(run_dir / "tokenizer"))) == ("v2022", None)


# what must not be in it


def test_nothing_of_this_machine_and_no_token_is_in_any_file(
    write_card, run_dir, results, trained, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    private = {"dataset": "/mnt/secret-owner/comments", "tokenizer": str(tmp_path / "secret-owner" / "words")}
    edit(run_dir / "run.yaml", **private, hub_token=CANARY, hub_model_id=REPO)
    files = write_card(run_dir, results_file=results, corpus_dir=trained.directory / "out" / "corpus")
    assert files.keys() == {"README.md", ".eval_results/nsmc.yaml"}
    for name, path in files.items():
        content = path.read_bytes()
        for word in (
            CANARY,
            "secret-owner",
            str(tmp_path),
            str(trained.directory),
            str(Path.home()) + "/",
            "hub_token",
        ):
            assert word.encode() not in content, f"{word} in {name}"
    assert "--dataset comments" in files["README.md"].read_text("utf-8")


def test_rows_of_other_models_are_not_pushed(trained, results, tmp_path):
    export = Path(shutil.copytree(trained.run_dir, tmp_path / "run")) / "export"
    (export / "manifest.json").unlink()
    write_manifest(export)
    others = write_results(tmp_path / "others", make_runs([2, 3], weights_sha256="c" * 64))
    with pytest.raises(InputError, match=f"finetune.py --model {export / 'discriminator'} --task"):
        release_model(tmp_path / "run", tmp_path / "no", repo_id=REPO, license="mit", results_file=others)
    release = release_model(tmp_path / "run", tmp_path / "staging", repo_id=REPO, license="mit", results_file=results)
    rows = [json.loads(line) for line in release.files["results.jsonl"].splitlines()]
    assert len(rows) == 8 and {row["weights_sha256"] for row in rows} == {trained.identity["weights_sha256"]}


def test_a_plot_names_no_directory(tmp_path):
    runs = [
        run
        for step, weights in ((100, "a"), (200, "b"))
        for run in make_runs(
            [15], model=f"/mnt/secret-owner/exports/checkpoint-{step}", step=step, weights_sha256=weights
        )
    ]
    groups = [_rename(group, REPO) for group in read_groups(write_results(tmp_path, runs))]
    assert [group.family for group in groups] == [f"{REPO}, step N"] * 2


def test_the_command_names_the_files_that_are_not_those_of_their_split(tmp_path):
    files = {name: digest for name, digest in TASKS["kmhas"].sha256.items()}
    lines = make_lines([[1.0] * 9], [[1] * 9])
    digests = {"train": files["kmhas_valid.txt"], "test": files["kmhas_test.txt"]}
    (group,) = read_groups(write_results(tmp_path, [(make_row("kmhas", 0, lines, data_sha256=digests), lines)]))
    assert "--task kmhas --data_dir data --train_file data/hate_speech/kmhas/kmhas_valid.txt --protocol" in (
        _describe_command(group, REPO)
    )


def test_the_command_names_the_files_of_a_resplit_and_leaves_the_official_ones(tmp_path):
    lines = make_lines([1], [1])
    digests = {"train": "1" * 64, "dev": "2" * 64, "test": TASKS["paws"].sha256["test_2k.tsv"]}
    row = make_row("paws", 0, lines, data_sha256=digests, notes=["not the official files: train, dev"])
    (group,) = read_groups(write_results(tmp_path, [(row, lines)]))
    assert (
        "--data_dir data --train_file data/paws/resplit/train.tsv --dev_file data/paws/resplit/dev.tsv --protocol"
        in _describe_command(group, REPO)
    )
    (result,) = list_eval_results([group])
    assert (result.dataset_type, result.dataset_config) == ("google-research-datasets/paws-x", "ko")


@pytest.mark.parametrize(
    ("hashed", "notes", "expected"),
    [
        (("train",), [], "--data FILE --text text --label label --labels b a --name mine"),
        (
            ("train", "dev", "test"),
            [],
            "--data FILE --text text --label label --labels b a --dev_file FILE --test_file FILE --name mine",
        ),
        (
            ("train", "test"),
            [f"someone/reviews at {'0a' * 20}"],
            f"--data someone/reviews --data_revision {'0a' * 20} --text text --label label --labels b a --name mine",
        ),
    ],
)
def test_the_command_of_own_data_has_all_that_split_and_numbered_it(tmp_path, hashed, notes, expected):
    changes = {"task": "mine", "labels": ["b", "a"], "notes": notes, "data_sha256": dict.fromkeys(hashed, "1" * 64)}
    ((row, lines),) = make_runs([15])
    (group,) = read_groups(write_results(tmp_path, [(row | changes, lines)]))
    assert expected in _describe_command(group, REPO)


def test_hostile_text_is_text_and_nothing_else(write_card, run_dir, trained, tmp_path, full):
    markdown = pytest.importorskip("markdown_it", reason="renders the card")
    edit(run_dir / "run.yaml", **{"dataset": HOSTILE, "size": HOSTILE, HOSTILE: [HOSTILE]})
    (run_dir / "facts.yaml").write_text(
        yaml.safe_dump({"device": HOSTILE, "text": HOSTILE, "watts": 9, "grams_co2_per_kwh": 9})
    )
    facts = {"dropped": {HOSTILE: 1}, "rules": {HOSTILE: HOSTILE}, "changed_by_rule": {HOSTILE: 1}}
    settings = {"rules": HOSTILE, "min_chars": 1, "dedup": "none", "pii": "count"}
    write_corpus(tmp_path / "corpus", **facts, personal_data={HOSTILE: 1}, settings=settings)
    runs = make_runs([12, 13], **trained.identity, notes=[HOSTILE])
    for row, _ in runs:
        row |= {
            "task": HOSTILE,
            "protocol": HOSTILE,
            "selected_on": HOSTILE,
            "labels": [HOSTILE] * 2,
            "columns": [HOSTILE] * 2,
        }
    hostile = write_results(tmp_path / "hostile", runs)
    options = {"corpus_dir": tmp_path / "corpus", "defaults": {"seed": HOSTILE}}
    card = write_card(run_dir, results_file=hostile, draws=True, **options)["README.md"].read_text("utf-8")
    parser = markdown.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    ours, theirs = (outline(parser, text) for text in (card, full.text))
    assert ours["headings"] == theirs["headings"] and ours["fences"] == theirs["fences"]
    assert ours["links"] == theirs["links"] and ours["html"] == theirs["html"] == {"<br>"}
    assert ours["images"] <= theirs["images"]
    # As it was given, with what cannot be seen spelt out: in tables and below
    assert sum(show(HOSTILE) in text for text in ours["texts"]) >= 15
    assert "\u202e" not in card and "$" not in ours["raw"]
    tables(body(card))
    data = ModelCard(card).data
    assert data.license == "mit" and [one.metric_type for one in data.eval_results] == ["accuracy"]
    assert HOSTILE.split("\n")[0] in data.eval_results[0].dataset_name


def outline(parser, card: str) -> dict[str, object]:
    tokens = parser.parse(body(card))
    inline = [child for token in tokens if token.type == "inline" for child in token.children]
    return {
        "headings": [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"],
        "fences": [token.info for token in tokens if token.type == "fence"],
        "links": [token.attrs["href"] for token in inline if token.type == "link_open"],
        "images": {token.attrs["src"] for token in inline if token.type == "image"},
        "html": {token.content for token in [*tokens, *inline] if token.type in ("html_block", "html_inline")},
        "raw": "".join(token.content for token in tokens if token.type == "inline"),
        "texts": [
            "".join(child.content for child in token.children if child.type == "text")
            for token in tokens
            if token.type == "inline"
        ],
    }


def test_limits_are_named_in_both_languages(full):
    english, korean = section(full.text, "Limitations"), section(full.text, "한국어")
    assert "Hate speech in, hate speech out" in english and "혐오" in korean
    for example in ("저는 외국인 노동자입니다", "요즘 젊은 사람들은 다 [MASK]"):
        assert example in english and example in korean
    assert "Cite" not in korean and "lee2021kcelectra" in section(full.text, "Citation")


# what it tells to type


@pytest.fixture(scope="module")
def visitor(full, tmp_path_factory):
    """What the snippets do for one who has not this package, at a Hub that serves the release and two old models."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(full.dir, root / "models" / REPO / "main")
    for known in PUBLISHED:
        if known.repo_id == "beomi/KcELECTRA-base" and known.sha256:
            directory = root / "models" / known.repo_id / known.revision
            words = [*SPECIAL_TOKENS, *(f"w{number}" for number in range(known.size - len(SPECIAL_TOKENS)))]
            save_tokenizer(as_bert_tokenizer(words), directory)
            sizes = dict.fromkeys(("embedding_size", "hidden_size", "intermediate_size"), 2)
            config = ElectraConfig(vocab_size=known.size, num_hidden_layers=1, num_attention_heads=1, **sizes)
            ElectraForPreTraining(config).save_pretrained(directory)
    cards = [str(directory / "README.md") for directory in CARDS]
    with HubServer(root) as hub:
        return run_client(USE, REPO, *cards, hub=hub, directory=tmp_path_factory.mktemp("visitor"))


def test_the_snippet_of_the_card_runs_without_this_package_on_what_was_staged(visitor, full):
    vectors, is_replaced, scores, logits, ids = visitor.results["use"]
    model = ElectraForPreTraining.from_pretrained(full.dir)
    length = len(ids[0])
    assert vectors == [1, length, model.config.hidden_size]
    assert is_replaced == [1, length] and scores == [1, length, model.config.vocab_size]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=torch.tensor(ids)).logits, torch.tensor(logits))
    assert not visitor.elsewhere and not visitor.unknown


def test_the_hub_accepts_the_header(visitor):
    assert visitor.results["validate"] == "mit"
    assert "license" in visitor.results["validate unknown"]  # or nothing was asked


def test_the_index_has_each_card_and_the_scores_of_our_own():
    index = (ROOT / "hub_cards" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\(\1/README\.md\) \| .+ \| (.+) \| (.+) \|$", index, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(path.name for path in (*OWN, *CARDS))
    assert {name for name, _, weights in rows if weights == "here"} == {path.name for path in WEIGHTS}
    for name, score, _ in rows[: len(OWN)]:
        card = (ROOT / "hub_cards" / name / "README.md").read_text(encoding="utf-8")
        measured = re.search(r"\| nsmc \| accuracy \| ([\d.]+(?: ± [\d.]+)?) \[", card)
        assert score.split(",")[0] == measured[1]


@pytest.mark.parametrize("directory", WEIGHTS, ids=lambda path: path.name)
def test_what_the_hub_shows_beside_others_is_committed_with_the_card(directory):
    header = yaml.safe_load((directory / "README.md").read_text("utf-8").split("---\n")[1])
    scores = {
        result["dataset"]["name"]: result["metrics"][0]["value"]
        for result in header["model-index"][0]["results"]
        if "/" in result["dataset"]["type"]
    }
    files = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (directory / ".eval_results").iterdir()}
    assert {task: entry["value"] for task, (entry,) in files.items()} == scores and "nsmc" in scores


# the published models


def test_there_is_a_card_for_each_published_kcelectra():
    assert [directory.name for directory in CARDS] == ["KcELECTRA-base-v2021", "KcELECTRA-base-v2022"]


@pytest.mark.parametrize("directory", CARDS, ids=lambda path: path.name)
def test_the_committed_card_is_what_its_facts_give(directory):
    card = render_published_card(directory / FACTS_FILE)
    assert (directory / "README.md").read_text("utf-8") == card, "run python recipes/render_cards.py"


def test_the_recipe_writes_the_cards(tmp_path, monkeypatch, capsys):
    for directory in CARDS:
        (tmp_path / directory.name).mkdir()
        shutil.copy(directory / FACTS_FILE, tmp_path / directory.name)
    monkeypatch.setattr("sys.argv", ["render_cards.py", "--cards_dir", str(tmp_path)])
    load_recipe("render_cards").main()
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / one.name / "README.md") for one in CARDS]
    for directory in CARDS:
        assert (tmp_path / directory.name / "README.md").read_bytes() == (directory / "README.md").read_bytes()


@pytest.mark.parametrize("directory", CARDS, ids=lambda path: path.name)
def test_the_notes_say_whose_the_model_is_and_how_to_get_this_one(directory, visitor):
    card = (directory / "README.md").read_text("utf-8")
    known = next(
        one for one in PUBLISHED if one.name == yaml.safe_load((directory / FACTS_FILE).read_text())["vocabulary"]
    )
    assert "**The model is Junbum Lee's**" in card and "These notes are not his" in card and "lee2021kcelectra" in card
    assert "another model and another tokenizer in April 2023" in " ".join(card.split()) and "2023년 4월" in card
    assert visitor.results[str(directory / "README.md")] == known.size
    assert known.revision in blocks(card, "python")[0] and known.sha256 in card
    run, _ = parse_command(blocks(card)[0].strip())
    assert (run.model, run.protocol) == (f"{known.repo_id}@{known.revision}", "kcbert-finetune")


@pytest.mark.parametrize("directory", CARDS, ids=lambda path: path.name)
def test_the_notes_have_every_score_of_the_model_and_every_cell_that_does_not_hold(directory):
    card, cells = (directory / "README.md").read_text("utf-8"), read_published()
    name = yaml.safe_load((directory / FACTS_FILE).read_text("utf-8"))["table_name"]
    (own,), (wrong,) = (
        tables(section(card, title)) for title in ("Its published scores", "Cells of the whole table that do not hold")
    )
    show = lambda value, step: "" if value is None else f"{value:.2f} ({step:,})"  # noqa: E731
    for cell, row in zip([cell for cell in cells if cell.model == name], own, strict=True):
        assert (row["task"], row["score"], row["published"]) == (cell.task, cell.score, f"{cell.published:.2f}")
        assert row["best on test"] == show(cell.best_on_test, cell.best_step)
        assert row["chosen on dev"] == show(cell.dev_selected, cell.dev_step)
        assert (row["last step"], row["verdict"], row["note"]) == (f"{cell.last:.2f}", cell.verdict, cell.note)
    assert [(row["model"], row["task"], row["score"], row["verdict"], row["note"]) for row in wrong] == [
        (cell.model, cell.task, cell.score, cell.verdict, cell.note)
        for cell in cells
        if cell.verdict not in ("ok", "no files")
    ]
    assert len(wrong) == 8


@pytest.mark.parametrize("directory", CARDS, ids=lambda path: path.name)
def test_every_fact_has_its_source_and_the_ids_of_the_vocabulary_are_all_told(directory):
    facts = yaml.safe_load((directory / FACTS_FILE).read_text("utf-8"))
    assert all(fact.keys() == {"fact", "value", "source"} and fact["source"] for fact in facts["facts"])
    size = next(one.size for one in PUBLISHED if one.name == facts["vocabulary"])
    ids = [number for first, last, _ in facts["vocabulary_layout"] for number in range(first, last + 1)]
    assert ids == list(range(size))
    assert facts["unknown"]


@pytest.mark.parametrize("directory", CARDS, ids=lambda path: path.name)
def test_the_layout_is_that_of_the_real_vocabulary(directory, shared_data):
    facts = yaml.safe_load((directory / FACTS_FILE).read_text("utf-8"))
    path = shared_data / "vocab" / f"kcelectra_{facts['branch']}_vocab.txt"
    tokens = path.read_text("utf-8").splitlines()
    parts = {what: tokens[first : last + 1] for first, last, what in facts["vocabulary_layout"]}
    special, alphabet, *_ = parts.values()
    assert tuple(special) == SPECIAL_TOKENS
    assert all(len(token.removeprefix("##")) == 1 for token in alphabet)
    (example,) = (
        re.search(r"as (\w+) does in (\w+)$", fact["value"]) for fact in facts["facts"] if "KorQuAD" in fact["fact"]
    )
    assert example[2] in tokens and example[2].startswith(example[1])
    comments = [*alphabet, *parts["pieces that were trained on the comments"]]
    has = lambda pattern: any(re.search(pattern, token) for token in comments)  # noqa: E731
    if facts["branch"] == "v2021":
        assert parts["[unused0] to [unused999]"] == [f"[unused{number}]" for number in range(1000)]
        assert not has("OOO") and not has(r"(\w)\1{3}") and has(r"(\w)\1{2}") and not has("[\U0001f300-\U0001faff]")
    else:
        assert parts["<s>, </s>"] == ["<s>", "</s>"]
        assert has("[一-鿿]") and has("[ぁ-ヿ]") and has("^http$") and has("^www$") and has(r"(\w)\1{3}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": "KcELECTRA v2020"}, "no 'KcELECTRA v2020' in kcelectra/tokenization/vocabulary.py"),
        ({"table_name": "KcElectra"}, "no 'KcElectra' in kcelectra/release/published.csv"),
        ({"steps": 1}, "has the keys .*steps.*; give branch, differs"),
    ],
)
def test_facts_of_no_published_model_are_refused(tmp_path, changes, message):
    shutil.copy(CARDS[0] / FACTS_FILE, tmp_path)
    edit(tmp_path / FACTS_FILE, **changes)
    with pytest.raises(InputError, match=message):
        render_published_card(tmp_path / FACTS_FILE)


def test_a_directory_without_facts_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no directory with a facts.yaml; give --cards_dir hub_cards"):
        write_published_cards(tmp_path)


# the models that were trained here


@pytest.mark.parametrize("directory", OWN, ids=lambda path: path.name)
def test_the_committed_card_of_a_model_of_our_own_has_its_pictures_and_the_scores_of_its_results(directory):
    card = (directory / "README.md").read_text("utf-8")
    pictures = re.findall(r"\]\(([^)]+\.png)\)", card)
    assert pictures and all((directory / picture).is_file() for picture in pictures)
    groups = read_groups(directory / "results.jsonl")
    rows = tables(section(card, "Evaluation"))[0]
    assert rows
    for row in rows:
        scores = [group.measure(row["score"])[0] for group in groups if group.first["task"] == row["task"]]
        assert row["mean ± sd [interval]"].split()[0] in [f"{100 * score:.2f}" for score in scores]


@pytest.mark.parametrize(("model", "rows"), [("comments-tiny", "results.jsonl"), ("comments-tiny-41m", "sweep.jsonl")])
def test_a_committed_table_of_scores_has_the_means_of_its_rows_and_no_others(model, rows):
    directory = ROOT / "hub_cards" / model
    cells = {
        (line["model"], column): cell.split()[0]
        for line in tables((directory / "scores.md").read_text("utf-8"))[0]
        for column, cell in line.items()
        if column != "model" and cell
    }
    groups = read_groups(directory / rows)
    assert cells == {(group.model, group.column): f"{100 * group.summary.mean:.2f}" for group in groups}


@pytest.mark.parametrize("directory", WEIGHTS, ids=lambda path: path.name)
def test_the_committed_weights_are_those_of_the_card_and_of_its_results_and_fill_a_blank(
    directory, caplog, monkeypatch
):
    card, weights = (directory / "README.md").read_text("utf-8"), directory / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [caplog.handler])
    own, _ = read_model_scores(directory / "results.jsonl", directory)
    assert sum(group.summary.num_seeds for group in own) == len(read_results(directory / "results.jsonl"))
    assert not caplog.records  # of weights that are missing, as for the wrong class
    fill = pipeline("fill-mask", str(directory), dtype=torch.float32)
    assert fill("배우들의 [MASK]가 좋았다")[0]["token_str"] == "연기"


@pytest.mark.parametrize("directory", OWN, ids=lambda path: path.name)
def test_what_a_model_of_our_own_was_trained_on_is_recorded(directory):
    assert yaml.safe_load((directory / FACTS_FILE).read_text("utf-8"))["device"]
    histories = [json.loads(path.read_text("utf-8")) for path in directory.glob("*history.json")]
    assert histories and all(entry["tokens_per_second"] > 0 for history in histories for entry in history[:1])
