"""Fine-tuning: chosen on dev, one row a run, nothing hidden."""

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    pipeline,
    set_seed,
)

from kcelectra.errors import InputError
from kcelectra.finetuning import runner
from kcelectra.finetuning.loading import hash_tokenizer
from kcelectra.finetuning.own_data import read_own_data
from kcelectra.finetuning.protocols import PROTOCOLS
from kcelectra.finetuning.results import append_result, read_results
from kcelectra.finetuning.runner import _test, finetune, load_head
from kcelectra.finetuning.sources import read_examples
from kcelectra.finetuning.tasks import TASKS
from kcelectra.finetuning.training import EvaluationSplit, group_by_layer
from kcelectra.release.scores import read_groups
from kcelectra.tokenization import save_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer
from kcelectra.tokenization.vocabulary import SPECIAL_TOKENS, hash_vocabulary

ROOT = Path(__file__).parents[1]
WORDS = [
    "좋다",
    "최고",
    "재밌다",
    "싫다",
    "최악",
    "지루하다",
    "영화",
    "배우",
    "음악",
    "이",
    "그",
    "저",
    "서울",
    "부산",
    "에서",
]
KEYS = {"model", "step", "task", "seed", "protocol", "metrics", "num_examples", "selected_on", "revision", "collapsed"}
KEYS |= {
    "weights_sha256",
    "tokenizer_sha256",
    "data_sha256",
    "dev_metrics",
    "last_metrics",
    "curve",
    "versions",
    "commit",
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = as_bert_tokenizer([*SPECIAL_TOKENS, *WORDS])
    torch.manual_seed(0)
    config = ElectraConfig(vocab_size=len(tokenizer), embedding_size=32, hidden_size=32, intermediate_size=64)
    config.num_hidden_layers, config.num_attention_heads = 1, 2
    ElectraForPreTraining(config).save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory


def review(number: int) -> tuple[str, int]:
    label = number % 2
    return f"{WORDS[6 + number % 3]} {WORDS[9 + number // 3 % 3]} {WORDS[3 * (1 - label) + number // 9 % 3]}", label


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A few of each: reviews whose last word tells the label, tagged words, questions, several labels."""
    directory = tmp_path_factory.mktemp("data")
    for name in ("nsmc", "naver_ner", "korquad", "hate_speech/unsmile", "korsts"):
        (directory / name).mkdir(parents=True)
    reviews = "".join(f"{number}\t{text}\t{label}\n" for number, (text, label) in enumerate(map(review, range(400))))
    for name in ("ratings_train.txt", "ratings_test.txt"):
        extra = "999\t영화 좋다\t1\n" if "test" in name else ""
        (directory / "nsmc" / name).write_text(f"id\tdocument\tlabel\n{reviews}{extra}", encoding="utf-8")
    sentences = ["영화 서울 에서 좋다\tO LOC-B O O\n", "부산 에서 배우 이\tLOC-B O O O\n"]
    (directory / "naver_ner/train.tsv").write_text("".join(sentences * 40), encoding="utf-8")
    (directory / "naver_ner/dev.tsv").write_text("".join(sentences * 2), encoding="utf-8")
    (directory / "naver_ner/test.tsv").write_text("".join(sentences * 3), encoding="utf-8")
    for split, count in (("train", 30), ("dev", 6), ("test", 8)):
        answer = {"answer_start": 3, "text": "서울"}
        qas = [{"question": "영화", "answers": [answer]} for _ in range(count)]
        paragraphs = [{"context": f"영화 서울 에서 {split}", "qas": qas}]
        data = {"data": [{"title": split, "paragraphs": paragraphs}]}
        (directory / f"korquad/{split}.json").write_text(json.dumps(data))
    labels = TASKS["unsmile"].labels
    flags = ["1" + "\t0" * 9, "0" * 1 + "\t0" * 8 + "\t1"]
    for name, count in (("unsmile_train_v1.0.tsv", 30), ("unsmile_valid_v1.0.tsv", 9)):
        rows = "".join(
            f"{WORDS[number % 15]} {WORDS[number % 7]}\t{flags[number % 2]}\n" for number in range(count * 2)
        )
        (directory / "hate_speech/unsmile" / name).write_text(
            "문장\t" + "\t".join(labels) + "\n" + rows, encoding="utf-8"
        )
    for split, count in (("train", 40), ("dev", 10), ("test", 12)):
        rows = "".join(f"{number % 6}.0\t{WORDS[number % 15]}\t{WORDS[number % 7]}\n" for number in range(count))
        (directory / f"korsts/sts-{split}.tsv").write_text("score\tsentence1\tsentence2\n" + rows, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def run(model_dir, data_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run")
    options = {"num_epochs": 6, "batch_size": 16, "learning_rate": 5e-3}
    row = finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=output_dir / "nsmc-0", **options)
    return row, output_dir / "nsmc-0", options


def test_a_row_says_what_was_measured_on_what(run):
    row, output_dir, _ = run
    assert row.keys() >= KEYS
    assert row["metrics"]["accuracy"] > 0.95 and not row["collapsed"]
    assert row["num_examples"]["test"] == 401 and row["num_examples"]["train"] + row["num_examples"]["dev"] == 400
    assert row["notes"] == ["not the official files: train, test", "dev: 1 in 10 of train, by a hash of the text"]
    assert read_results(output_dir / "results.jsonl") == [json.loads(json.dumps(row))]


def test_the_best_step_is_that_of_dev(run):
    row, _, _ = run
    points = row["curve"]
    assert len(points) == 6 and points[-1]["step"] == row["num_steps"]
    best = max(points, key=lambda point: point["metrics"]["accuracy"])  # the first of equals
    assert (row["best_step"], row["dev_metrics"]) == (best["step"], best["metrics"])


def test_the_model_that_is_kept_and_reported_is_the_best_and_not_the_last(model_dir, data_dir, tmp_path):
    """Dev has its labels the other way round, so that it is best before anything is learnt."""
    rows = "".join(f"{number}\t{text}\t{1 - label}\n" for number, (text, label) in enumerate(map(review, range(90))))
    (tmp_path / "dev.txt").write_text(f"id\tdocument\tlabel\n{rows}", encoding="utf-8")
    options = {"num_epochs": 16, "batch_size": 64, "learning_rate": 3e-3, "dev_file": str(tmp_path / "dev.txt")}
    row = finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path / "out", **options)
    assert row["best_step"] < row["num_steps"]
    assert row["metrics"]["accuracy"] < 0.9 < row["last_metrics"]["accuracy"]
    head, _ = load_head(TASKS["nsmc"], tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    test = list(read_examples(TASKS["nsmc"], data_dir / "nsmc/ratings_test.txt"))
    assert EvaluationSplit(TASKS["nsmc"], head, test).evaluate(model)[0] == row["metrics"]


def test_predictions_are_kept_and_are_the_scores(run):
    row, output_dir, _ = run
    lines = [json.loads(line) for line in (output_dir / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 401
    assert sum(line["prediction"] == line["gold"] for line in lines) / 401 == row["metrics"]["accuracy"]


def test_the_model_is_a_plain_repository_with_its_labels(run):
    _, output_dir, _ = run
    classify = pipeline("text-classification", str(output_dir))
    (good,), (bad,) = classify("영화 이 최고", top_k=1), classify("영화 이 최악", top_k=1)
    assert (good["label"], bad["label"]) == ("1", "0")


def test_the_same_run_is_not_done_again_wherever_the_model_lies(run, model_dir, data_dir, tmp_path):
    row, output_dir, options = run
    shutil.copytree(model_dir, tmp_path / "copy")
    again = finetune(
        tmp_path / "copy",
        "nsmc",
        data_dir=data_dir,
        output_dir=tmp_path / "out",
        results_file=output_dir / "results.jsonl",
        **options,
    )
    assert again == read_results(output_dir / "results.jsonl")[0]
    assert len(read_results(output_dir / "results.jsonl")) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"learning_rate": 1e-3}, {"max_train": 50}])
def test_another_run_is_another_row(run, model_dir, data_dir, tmp_path, changed):
    row, _, options = run
    options = {**options, "num_epochs": 1, "max_train": 60, **changed}
    given = {"data_dir": data_dir, "output_dir": tmp_path / "{key}", "results_file": tmp_path / "results.jsonl"}
    finetune(model_dir, "nsmc", **given, **{**options, "seed": 7})
    finetune(model_dir, "nsmc", **given, **options)
    rows = read_results(tmp_path / "results.jsonl")
    assert len({row["key"] for row in rows}) == 2 and all((tmp_path / row["predictions"]).exists() for row in rows)


def test_the_same_seed_gives_the_same_row(model_dir, data_dir, tmp_path):
    rows = [
        finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path / name, num_epochs=1, max_train=80, seed=3)
        for name in ("one", "two")
    ]
    assert [row.pop("seconds") for row in rows] and rows[0] == rows[1]


def test_a_directory_that_holds_another_run_is_refused(run, model_dir, data_dir):
    _, output_dir, options = run
    before = (output_dir / "predictions.jsonl").read_bytes()
    with pytest.raises(InputError, match="nsmc-0 holds another run of .*results.jsonl; give another output_dir"):
        finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=output_dir, seed=9, **options)
    assert (output_dir / "predictions.jsonl").read_bytes() == before


def test_a_learning_rate_that_is_too_high_collapses_and_the_row_says_so(model_dir, data_dir, tmp_path):
    row = finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path, num_epochs=1, learning_rate=3.0)
    assert row["collapsed"]
    assert row["metrics"]["accuracy"] == pytest.approx(row["majority_share"], abs=0.01)


@pytest.mark.parametrize(
    ("task", "options", "metric"),
    [
        ("naver-ner", {"num_epochs": 8, "learning_rate": 1e-2}, "f1"),
        ("korquad", {"num_epochs": 6, "learning_rate": 1e-2}, "exact_match"),
        ("unsmile", {"num_epochs": 1}, "lrap"),
        ("korsts", {"num_epochs": 1}, "spearman"),
    ],
)
def test_every_head_is_trained_and_measured(model_dir, data_dir, tmp_path, task, options, metric):
    row = finetune(model_dir, task, data_dir=data_dir, output_dir=tmp_path, batch_size=8, **options)
    assert row["metrics"].keys() >= {metric, TASKS[task].selected_by}
    if options["num_epochs"] > 1:
        assert row["metrics"][metric] == 1.0


def test_weights_are_those_of_the_model_whatever_the_head(model_dir, data_dir, tmp_path):
    rows = [
        finetune(model_dir, task, data_dir=data_dir, output_dir=tmp_path / task, num_epochs=1, max_train=8, max_eval=4)
        for task in ("nsmc", "korsts")
    ]
    assert len({row["weights_sha256"] for row in rows}) == len({row["tokenizer_sha256"] for row in rows}) == 1


# results files


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_was_saved_in_half_precision_is_trained_in_single(model_dir, tmp_path, dtype):
    shutil.copytree(model_dir, tmp_path / "half")
    ElectraForPreTraining.from_pretrained(model_dir).to(dtype).save_pretrained(tmp_path / "half")
    assert {value.dtype for value in load_file(tmp_path / "half/model.safetensors").values()} == {dtype}
    for task in ("nsmc", "korsts", "naver-ner", "korquad"):
        _, model = load_head(TASKS[task], tmp_path / "half")
        assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_the_head_of_a_fine_tuned_model_is_made_anew(run):
    _, output_dir, _ = run
    saved = load_file(output_dir / "model.safetensors")
    heads = []
    for task, seed in [("nsmc", 0), ("nsmc", 0), ("nsmc", 1), ("question-pair", 0), ("unsmile", 0)]:
        set_seed(seed)
        _, model = load_head(TASKS[task], output_dir)
        state = model.state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in state.items() if name.startswith("electra."))
        heads.append(state["classifier.dense.weight"])
        assert not torch.equal(heads[-1], saved["classifier.dense.weight"])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_model_whose_weights_have_other_names_is_refused(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "renamed")
    file = tmp_path / "renamed/model.safetensors"
    save_file({f"model.{name}": value for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"renamed lacks \d+ weights of its encoder, such as electra\..*; export it again"
    ):
        load_head(TASKS["nsmc"], tmp_path / "renamed")


def test_a_model_whose_file_was_cut_is_named(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "cut")
    file = tmp_path / "cut/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="weights of .*cut: .*; the file is damaged: copy, download or export it aga"):
        load_head(TASKS["nsmc"], tmp_path / "cut")


def test_a_model_of_three_labels_finds_answers(model_dir, data_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "three")
    config = json.loads((tmp_path / "three/config.json").read_text())
    three = {"id2label": {str(index): label for index, label in enumerate("abc")}}
    (tmp_path / "three/config.json").write_text(json.dumps(config | three))
    options = {"num_epochs": 1, "max_train": 8, "max_eval": 4}
    rows = [
        finetune(model, "korquad", data_dir=data_dir, output_dir=tmp_path / model.name, **options)
        for model in (model_dir, tmp_path / "three")
    ]
    assert rows[0]["key"] == rows[1]["key"] and rows[0]["curve"] == rows[1]["curve"]


def test_a_tokenizer_of_the_same_vocabulary_that_cuts_otherwise_is_another(model_dir, tmp_path):
    usual = AutoTokenizer.from_pretrained(model_dir)
    hashes = [hash_tokenizer(usual)]
    for options in ({"strip_accents": None}, {"do_lower_case": True}, {"tokenize_chinese_chars": False}):
        BertTokenizer(vocab=usual.get_vocab(), **{"do_lower_case": False} | options).save_pretrained(tmp_path)
        hashes.append(hash_tokenizer(AutoTokenizer.from_pretrained(tmp_path)))
    assert hashes[0] == hashes[1] == hash_vocabulary([*SPECIAL_TOKENS, *WORDS]), "accents stay where capitals do"
    assert len(set(hashes)) == 3


def test_a_model_without_token_types_is_refused(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "distil")
    DistilBertModel(DistilBertConfig(vocab_size=100, dim=16, hidden_dim=32, n_layers=1, n_heads=2)).save_pretrained(
        tmp_path / "distil"
    )
    with pytest.raises(InputError, match="is a distilbert without token types; give an ELECTRA or BERT model"):
        load_head(TASKS["nsmc"], tmp_path / "distil")


@pytest.mark.parametrize("task, least", [("nsmc", 3), ("korsts", 5)])
def test_a_row_without_room_for_a_text_is_refused(model_dir, data_dir, tmp_path, task, least):
    with pytest.raises(InputError, match=f"max_length {least - 1} has no room for a text; give at least {least}"):
        finetune(model_dir, task, data_dir=data_dir, output_dir=tmp_path, max_length=least - 1)


def test_a_run_that_another_process_did_in_the_meantime_is_not_done_again(model_dir, data_dir, tmp_path, monkeypatch):
    options = {"data_dir": data_dir, "num_epochs": 1, "max_train": 8, "max_eval": 4}
    row = finetune(model_dir, "nsmc", output_dir=tmp_path / "one", **options)
    shutil.copytree(model_dir, tmp_path / "copy")

    @contextmanager
    def wait(path):
        assert path.name == row["key"]
        append_result(tmp_path / "other/results.jsonl", row)
        yield

    monkeypatch.setattr(runner, "locked", wait)
    monkeypatch.delattr(runner, "train")
    assert finetune(tmp_path / "copy", "nsmc", output_dir=tmp_path / "other", **options) == row


def test_a_line_that_was_cut_is_no_row_and_is_cut_off(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, {"key": "a"})
    with open(path, "a") as file:
        file.write('{"key": "b", "met')
    assert read_results(path) == [{"key": "a"}]
    append_result(path, {"key": "c"})
    assert read_results(path) == [{"key": "a"}, {"key": "c"}]


def test_a_last_row_without_its_line_end_is_a_row_and_stays(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b"}')
    assert read_results(path) == [{"key": "a"}, {"key": "b"}]
    assert append_result(path, {"key": "b", "seconds": 2}) == {"key": "b"}
    append_result(path, {"key": "c"})
    assert path.read_text() == '{"key": "a"}\n{"key": "b"}\n{"key": "c"}\n'


def test_a_row_without_a_key_is_named(model_dir, data_dir, tmp_path):
    (tmp_path / "results.jsonl").write_text('{"key": "a"}\n{"task": "nsmc"}\n')
    for call in (
        lambda: append_result(tmp_path / "results.jsonl", {"key": "b"}),
        lambda: finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path, max_train=8),
    ):
        with pytest.raises(InputError, match=r"results.jsonl, line 2 is no row of a run \(it has no key\); take the"):
            call()


def test_a_row_that_is_there_is_returned_and_not_appended(tmp_path):
    path = tmp_path / "results.jsonl"
    first = append_result(path, {"key": "a", "seconds": 1})
    assert append_result(path, {"key": "a", "seconds": 2}) == first == {"key": "a", "seconds": 1}
    assert read_results(path) == [first]


def _append(path: Path, name: str) -> None:
    for number in range(50):
        append_result(path, {"key": f"{name}{number}", "text": "가" * 5000})


def test_processes_append_to_one_file_without_loss(tmp_path):
    path = tmp_path / "results.jsonl"
    processes = [get_context("spawn").Process(target=_append, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {row["key"] for row in read_results(path)} == {f"{name}{number}" for name in "ab" for number in range(50)}


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"key": "a"}\nnonsense\n{"key": "b"}\n')
    with pytest.raises(InputError, match="results.jsonl, line 2 is no row .*; take the line out"):
        read_results(tmp_path / "results.jsonl")


# errors


def test_what_cannot_be_run_is_named_and_leaves_nothing(model_dir, data_dir, tmp_path):
    given = {"data_dir": data_dir, "output_dir": tmp_path / "out"}
    for arguments, message in (
        ((model_dir, "nsmk"), "unknown task 'nsmk'; use one of nsmc, naver-ner"),
        ((tmp_path / "nowhere", "nsmc"), "cannot load the model .*nowhere.*give a directory such as"),
        (
            (model_dir, "paws"),
            "paws: no translated_train.tsv or train.tsv in .*; download it from .* or name a file with",
        ),
    ):
        with pytest.raises(InputError, match=message):
            finetune(*arguments, **given)
    for name in ("num_epochs", "batch_size", "learning_rate", "max_length", "max_train", "max_eval"):
        with pytest.raises(InputError, match=f"--{name} is 0; give more than 0"):
            finetune(model_dir, "nsmc", **given, **{name: 0})
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_not_the_models_is_refused(model_dir, data_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "mixed")
    save_tokenizer(as_bert_tokenizer([*SPECIAL_TOKENS, *WORDS, "남"]), tmp_path / "mixed")
    with pytest.raises(InputError, match="^the model has 20 tokens, and the tokenizer has 21 tokens"):
        finetune(tmp_path / "mixed", "nsmc", data_dir=data_dir, output_dir=tmp_path / "out")


def test_a_row_longer_than_the_position_table_is_cut(model_dir, data_dir, tmp_path):
    row = finetune(
        model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path, num_epochs=1, max_train=8, max_length=9999
    )
    assert row["settings"]["max_length"] == 9999 and row["metrics"]
    assert row["notes"][-1] == "rows of 512 tokens: the model has no more positions"


# protocols, cleaning, layers


def test_the_originals_protocol_chooses_on_test_and_says_so(model_dir, data_dir, tmp_path):
    options = {"num_epochs": 12, "batch_size": 16, "learning_rate": 3e-3}
    row = finetune(
        model_dir, "korsts", data_dir=data_dir, output_dir=tmp_path, protocol="kcbert-finetune", seed=42, **options
    )
    assert (row["protocol"], row["selected_on"]) == ("kcbert-finetune", "test")
    assert row["num_examples"] == {"train": 40, "dev": 10, "test": 12} and row["num_steps"] == 36
    (point,) = row["curve"]  # 100 updates never come, so that the end is looked at
    assert point.keys() == {"step", "metrics", "dev_metrics"} and point["step"] == row["best_step"] == 36
    assert row["metrics"] == point["metrics"] == row["last_metrics"] and row["dev_metrics"] == point["dev_metrics"]
    assert row["settings"]["warmup"] == 0 and row["settings"]["eval_steps"] == 100


def test_the_originals_protocol_takes_the_best_of_test_on_its_way(model_dir, data_dir, tmp_path):
    options = {"num_epochs": 40, "learning_rate": 3e-3, "batch_size": 8, "seed": 42, "protocol": "koelectra-v3"}
    row = finetune(model_dir, "korsts", data_dir=data_dir, output_dir=tmp_path, **options)
    assert [point["step"] for point in row["curve"]] == [100, 200]
    assert row["metrics"]["spearman"] == max(point["metrics"]["spearman"] for point in row["curve"])


def test_without_a_dev_file_the_original_has_no_dev_split_and_trains_on_all(model_dir, data_dir, tmp_path):
    options = {"num_epochs": 0.2, "protocol": "kcbert-finetune", "max_eval": 9}
    row = finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path, **options)
    assert row["num_examples"] == {"train": 400, "dev": 0, "test": 9} and row["dev_metrics"] is None


@pytest.mark.parametrize("task", ["naver-ner", "korquad"])
def test_every_head_runs_as_the_original_does(model_dir, data_dir, tmp_path, task):
    options = {"num_epochs": 8, "learning_rate": 1e-2, "batch_size": 8, "protocol": "kcbert-finetune"}
    row = finetune(model_dir, task, data_dir=data_dir, output_dir=tmp_path, **options)
    assert row["metrics"]["f1"] == 1.0


def test_cleaning_comes_before_the_tokenizer(model_dir, data_dir, tmp_path):
    (tmp_path / "nsmc").mkdir()
    for name in ("ratings_train.txt", "ratings_test.txt"):
        text = (data_dir / "nsmc" / name).read_text(encoding="utf-8")
        (tmp_path / "nsmc" / name).write_text(text.replace(" ", "   ").replace("최고", "최고👍"), encoding="utf-8")
    given = {"data_dir": tmp_path, "results_file": tmp_path / "results.jsonl", "num_epochs": 1, "batch_size": 16}
    cleaned = finetune(model_dir, "nsmc", output_dir=tmp_path / "cleaned", rules="v2022", **given)
    raw = finetune(model_dir, "nsmc", output_dir=tmp_path / "raw", **given)
    assert cleaned["settings"]["rules"] == "v2022" and cleaned["key"] != raw["key"]
    lines = (tmp_path / "cleaned/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines[:400]] == [[review(number)[0]] for number in range(400)]
    for task in ("naver-ner", "korquad"):
        with pytest.raises(InputError, match=f"--rules changes words .* which {task} is about; leave it out"):
            finetune(model_dir, task, data_dir=data_dir, output_dir=tmp_path / "x", rules="v2022")
    with pytest.raises(InputError, match="v2023"):
        finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path / "x", rules="v2023")


@pytest.mark.parametrize("task", ["nsmc", "naver-ner", "korquad"])
def test_layers_learn_the_slower_the_deeper_they_are(model_dir, task):
    _, model = load_head(TASKS[task], model_dir)
    settings = replace(PROTOCOLS["strict"].settle(TASKS[task]), learning_rate=1.0, layer_decay=0.5)
    groups = group_by_layer(model, settings)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {"electra.embeddings": 0.25, "electra.encoder.layer.0": 0.5}
    for name, parameter in model.named_parameters():
        (rate,) = [rate for start, rate in expected.items() if name.startswith(start)] or [1.0]
        assert rates.pop(id(parameter)) == rate, name
    assert not rates


def test_with_layer_decay_deep_layers_move_less(model_dir, data_dir, tmp_path):
    moved = {}
    for decay in (1.0, 0.01):
        options = {"num_epochs": 1, "learning_rate": 1e-3, "layer_decay": decay}
        finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path / str(decay), **options)
        after = load_file(tmp_path / str(decay) / "model.safetensors")
        name = "electra.embeddings.word_embeddings.weight"
        moved[decay] = (after[name] - load_file(model_dir / "model.safetensors")[name]).abs().max().item()
    assert 0 < moved[0.01] < moved[1.0] / 100


def test_bfloat16_computes_so_keeps_float32_weights_and_is_another_run(run, model_dir, data_dir, monkeypatch):
    whole, whole_dir, options = run
    seen = set()

    def spy(self, inputs):
        seen.add((torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None, self.weight.dtype))
        return torch.nn.functional.linear(inputs, self.weight, self.bias)

    options = options | {"data_dir": data_dir, "results_file": whole_dir / "results.jsonl"}
    output_dir = whole_dir.with_name("bfloat16")
    monkeypatch.setattr(torch.nn.Linear, "forward", spy)
    row = finetune(model_dir, "nsmc", output_dir=output_dir, precision="bfloat16", **options)
    assert seen == {(torch.bfloat16, torch.float32)}, "in training and evaluation alike"
    assert {values.dtype for values in load_file(output_dir / "model.safetensors").values()} == {torch.float32}
    assert row["settings"] == whole["settings"] | {"precision": "bfloat16"}, "float32 is as it was without a choice"
    assert row["metrics"]["accuracy"] > 0.95 and row["key"] != whole["key"]
    again = finetune(model_dir, "nsmc", output_dir=whole_dir, precision="float32", **options)
    assert again == json.loads(json.dumps(whole))


def test_what_a_launcher_was_told_changes_no_run(run, model_dir, data_dir, tmp_path, monkeypatch):
    whole, whole_dir, options = run
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    row = finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path, **options)
    same, other = (load_file(directory / "model.safetensors") for directory in (whole_dir, tmp_path))
    assert row["key"] == whole["key"] and all(torch.equal(same[name], other[name]) for name in same)


def test_one_of_several_launched_processes_is_refused(model_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a launcher started 2 processes; start it with python, not accelerate"):
        finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path)


def test_an_automatic_precision_is_what_the_device_computes_fast(model_dir, data_dir, tmp_path, monkeypatch):
    options = {"data_dir": data_dir, "num_epochs": 1, "precision": "auto"}
    for is_fast, expected in ((True, "bfloat16"), (False, None)):
        monkeypatch.setattr("kcelectra.precision._is_bfloat16_fast_on_cpu", lambda is_fast=is_fast: is_fast)
        row = finetune(model_dir, "nsmc", output_dir=tmp_path / str(is_fast), **options)
        assert row["settings"].get("precision") == expected


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("int8", "precision is 'int8'; give --precision and one of auto, float32"),
        ("float16", "float16, which is for GPUs; give --precision auto"),
    ],
)
def test_a_precision_that_cannot_be_is_refused(model_dir, data_dir, tmp_path, precision, message, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(InputError, match=message):
        finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path, precision=precision)


def test_the_commit_is_the_one_that_a_run_began_with(model_dir, data_dir, tmp_path, monkeypatch):
    commits = ["before"]
    monkeypatch.setattr("kcelectra.finetuning.runner.find_commit", lambda: commits[-1])
    monkeypatch.setattr("kcelectra.finetuning.runner._test", lambda *args: commits.append("after") or _test(*args))
    row = finetune(model_dir, "nsmc", data_dir=data_dir, output_dir=tmp_path, num_epochs=1)
    assert (row["commit"], commits[-1]) == ("before", "after")


def test_a_commit_of_a_repository_that_does_not_hold_the_package_is_none(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.example"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    site = tmp_path / "venv/site-packages"
    site.mkdir(parents=True)
    monkeypatch.setattr(runner, "__file__", str(shutil.copy(runner.__file__, site)))
    assert runner.find_commit() is None
    for command in (["add", "."], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *command], check=True)
    assert runner.find_commit() is not None


# the recipe


@pytest.fixture
def run_recipe(tmp_path, monkeypatch, model_dir, data_dir):
    spec = importlib.util.spec_from_file_location("finetune_recipe", ROOT / "recipes/finetune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str, task: str | None = "nsmc") -> None:
        monkeypatch.chdir(tmp_path)
        given = ["--model", str(model_dir), "--num_epochs", "1"]
        given += ["--task", task, "--data_dir", str(data_dir / task)] if task else []
        monkeypatch.setattr(sys, "argv", ["finetune.py", *given, *arguments])
        module.main()

    return run


def test_the_recipe_runs_its_seeds_and_prints_mean_and_deviation(run_recipe, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    run_recipe("--seeds", "0", "1", "--max_train", "200", "--learning_rate", "1e-2")
    printed = caplog.text + capsys.readouterr().out
    assert "nsmc, seed 0: accuracy 0." in printed and "nsmc, seed 1: accuracy" in printed
    assert "± " in printed or "COLLAPSED" in printed
    for point in read_results(tmp_path / "out/finetune/results.jsonl")[0]["curve"]:
        assert f"nsmc, seed 0, dev accuracy {point['metrics']['accuracy']:.4f} at step {point['step']} of" in printed
    assert [row["seed"] for row in read_results(tmp_path / "out/finetune/results.jsonl")] == [0, 1]
    assert len(list((tmp_path / "out/finetune/tiny").glob("nsmc-1-*/model.safetensors"))) == 1


def test_collapsed_runs_stay_and_as_many_other_seeds_are_run(run_recipe, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    run_recipe(
        "--rerun_collapsed",
        "true",
        "--max_train",
        "60",
        "--learning_rate",
        "3.0",
        "--seeds",
        "0",
        "4",
    )
    rows = read_results(tmp_path / "out/finetune/results.jsonl")
    assert [(row["seed"], row["collapsed"]) for row in rows] == [(0, True), (5, True), (4, True), (6, True)]
    printed = caplog.text + capsys.readouterr().out
    assert printed.count("COLLAPSED: every prediction is the same") == 4
    assert "± 0.0" in printed and "(4 seeds, of which 4 collapsed and count)" in printed


def test_the_mean_is_that_of_the_report_where_a_seed_collapsed(run_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "is_collapsed", lambda *_: next(seeds))
    seeds = iter((False, True, False))
    run_recipe("--max_train", "30", "--seeds", "0", "1", "2")
    scores = [row["metrics"]["accuracy"] for row in read_results(tmp_path / "out/finetune/results.jsonl")]
    (group,) = read_groups(tmp_path / "out/finetune/results.jsonl")
    assert group.summary.mean == pytest.approx(mean(scores))
    printed = capsys.readouterr().out
    assert f"nsmc accuracy: {mean(scores):.4f} ± {stdev(scores):.4f} (3 seeds, of which 1 collapsed and" in printed
    assert f"count; without them {mean(scores[::2]):.4f})" in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": None}, "give --model, such as --model out/smoke/export/discriminator"),
        ({"task": None}, "give --task nsmc, or --data reviews.csv --text review --label stars for your own"),
        ({"data": "reviews.csv"}, "give --task nsmc, or --data reviews.csv"),
        ({"label": ["stars"]}, "--label is for --data, and nsmc has its own; leave one of the two out"),
        ({"name": "mine"}, "--name is for --data, and nsmc has its own"),
        ({"data_dir": None}, "give --data_dir, such as --data_dir data"),
        ({"task": None, "data": "reviews.csv", "text": ["a"]}, "give the columns of --data, such as --text review"),
    ],
)
def test_what_the_recipe_needs_is_named(given, message):
    spec = importlib.util.spec_from_file_location("finetune_recipe", ROOT / "recipes/finetune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(InputError, match=message):
        module.RunArguments(**{"model": "x", "task": "nsmc", "data_dir": "y", **given})


def test_a_task_of_ones_own_needs_no_code(run_recipe, tmp_path, capsys):
    lines = "".join(f'"{text}",{("bad", "good")[label]}\n' for text, label in map(review, range(300)))
    (tmp_path / "reviews.csv").write_text(f"review,stars\n{lines}", encoding="utf-8")
    own = ["--data", "reviews.csv", "--text", "review", "--label", "stars", "--seeds", "1", "2"]
    run_recipe(*own, "--num_epochs", "12", "--learning_rate", "5e-3", task=None)
    first, second = read_results(tmp_path / "out/finetune/results.jsonl")
    assert first["task"] == "reviews" and first["labels"] == ["bad", "good"] and first["metrics"]["macro_f1"] > 0.95
    assert (first["seed"], second["seed"]) == (1, 2) and "reviews macro_f1: " in capsys.readouterr().out
    classify = pipeline("text-classification", str((tmp_path / "out/finetune" / first["predictions"]).parent))
    assert [row["label"] for row in classify(["영화 이 최고", "영화 이 최악"])] == ["good", "bad"]


def test_numbers_of_ones_own_are_learnt_and_predicted_on_any_scale(model_dir, tmp_path):
    given = {"results_file": tmp_path / "results.jsonl", "num_epochs": 6, "batch_size": 16, "learning_rate": 5e-3}
    for name, factor, offset in (("small", 0.5, 0.25), ("large", 100.0, 0.5), ("far", 1.0, 75.5), ("equal", 0.0, 0.5)):
        rows = "".join(f"{text},{factor * label + offset}\n" for text, label in map(review, range(300)))
        (tmp_path / f"{name}.csv").write_text(f"text,number\n{rows}", encoding="utf-8")
        data = read_own_data(tmp_path / f"{name}.csv", text=["text"], label=["number"])
        row = finetune(model_dir, data, output_dir=tmp_path / name, precision="bfloat16", **given)
        assert row["settings"]["is_standardized"]
        lines = [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        assert max(abs(line["prediction"] - line["gold"]) for line in lines) < 0.1 * (factor or 1)
        head, _ = load_head(data.task, tmp_path / name)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
        _, predictions = EvaluationSplit(data.task, head, data.splits.test).evaluate(model)
        assert predictions == pytest.approx([line["prediction"] for line in lines], abs=0.02 * (factor or 1))


# the benchmark


def test_the_benchmark_runs_with_one_seed_and_an_error_is_one_line(model_dir, data_dir, tmp_path, capsys, monkeypatch):
    options = ["--tokenizer", str(model_dir), "--size", "tiny", "--num_rounds", "1", "--num_seeds", "1"]
    command = ["finetune.py", *options, "--max_train", "64", "--precision", "float32", "--data_dir"]
    monkeypatch.setattr(sys, "argv", [*command, str(data_dir)])
    runpy.run_path(str(ROOT / "benchmarks/finetune.py"), run_name="__main__")
    assert re.search(r"tiny model, dynamic  accuracy 0\.\d+ \(1 seeds\)\n", capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "benchmarks/finetune.py"), run_name="__main__")
    assert capsys.readouterr().err.startswith("error: nsmc: no ratings_train.txt")
