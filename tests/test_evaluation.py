"""The loss on rows that are not trained on: what it is, and that the training does not notice."""

import json
from itertools import islice

import pytest
import torch
from test_trainer import MAX_LENGTH, make_model, make_rows, make_trainer

from kcelectra.corpus import build_corpus
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining.collator import IGNORED
from kcelectra.pretraining.progress import format_log
from kcelectra.pretraining.run import build_trainer
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.run_data import open_source
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.release.report import write_report
from kcelectra.release.run_facts import read_run
from kcelectra.tokenization import train_tokenizer


def evaluated(history):
    return [entry for entry in history if "eval_loss" in entry]


def train(tokenizer, sample_file, directory, **arguments):
    trainer = make_trainer(tokenizer, sample_file, directory, **arguments)
    trainer.train()
    return trainer


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_it_is_the_mean_over_all_masked_tokens_whatever_the_batch(tokenizer, sample_file, tmp_path, batch_size):
    rows = make_rows(tokenizer, sample_file)[:8]
    trainer = make_trainer(tokenizer, sample_file, tmp_path, per_device_eval_batch_size=batch_size)
    metrics = trainer.evaluate(rows)
    model, batch = trainer.model.eval(), trainer.data_collator(rows)
    with torch.no_grad():
        output = model(**batch)
    assert metrics["eval_generator_loss"] == pytest.approx(output.generator_loss.item(), rel=1e-5)
    predicted = (output.generator_predictions == batch["masked_labels"])[batch["masked_labels"] != IGNORED]
    assert metrics["eval_generator_accuracy"] == pytest.approx(predicted.float().mean().item())
    expected = metrics["eval_generator_loss"] + 50 * metrics["eval_discriminator_loss"]
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert 0 <= metrics["eval_discriminator_auc"] <= 1


def test_the_training_does_not_notice(tokenizer, sample_file, tmp_path):
    plain = train(tokenizer, sample_file, tmp_path / "plain")
    rows = make_rows(tokenizer, sample_file)[:8]
    watched = train(
        tokenizer, sample_file, tmp_path / "watched", eval_dataset=rows, eval_strategy="steps", eval_steps=2
    )
    ours, theirs = watched.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    entries = evaluated(watched.state.log_history)
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert entries[0]["eval_loss"] > entries[-1]["eval_loss"]
    again = watched.evaluate()
    assert again["eval_loss"] == entries[-1]["eval_loss"] == watched.evaluate()["eval_loss"]
    of_training = [entry["generator_loss"] for entry in watched.state.log_history if "generator_loss" in entry]
    assert of_training == [e["generator_loss"] for e in plain.state.log_history if "generator_loss" in e]


def test_of_masked_modeling_alone_there_is_no_discriminator_in_it(tokenizer, sample_file, tmp_path):
    model = make_model(tokenizer, discriminator_weight=0.0)
    metrics = make_trainer(tokenizer, sample_file, tmp_path, model=model).evaluate(make_rows(tokenizer, sample_file))
    assert metrics["eval_loss"] == metrics["eval_generator_loss"] > 0
    assert not [name for name in metrics if "discriminator" in name or "fake" in name or "sampled" in name]


def test_the_log_and_the_report_show_it_beside_the_loss_of_training(tokenizer, sample_file, tmp_path):
    rows = make_rows(tokenizer, sample_file)[:8]
    trainer = train(tokenizer, sample_file, tmp_path, eval_dataset=rows, eval_strategy="steps", eval_steps=3)
    history = trainer.state.log_history
    line = format_log(evaluated(history)[0], trainer.state)
    assert line.startswith("step 6/6  not trained on:  loss ") and "  generator " in line and "  auc " in line
    write_report(tmp_path, history, facts={}, alarms=[])
    written = json.loads((tmp_path / "report/history.json").read_text())
    assert [entry["step"] for entry in evaluated(written)] == [3, 6]
    (tmp_path / "run.yaml").write_text("size: tiny\n")
    run = read_run(tmp_path)
    assert [entry["step"] for entry in run.evaluations] == [3, 6] and len(run.history) == 6


# the recipe's arguments


def build(tokenizer, sample_file, tmp_path, *, data=None, **training):
    defaults = {"output_dir": str(tmp_path / "run"), "max_steps": 6, "save_steps": 3, "precision": "float32"}
    data_arguments = DataArguments(**{"dataset": str(sample_file), "max_length": MAX_LENGTH, **(data or {})})
    (tmp_path / "run").mkdir(exist_ok=True)
    source = open_source(data_arguments, tmp_path)
    arguments = PretrainingArguments(**{**defaults, **training})
    return build_trainer(ModelArguments(), data_arguments, arguments, source=source, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def other_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "comments.txt"
    path.write_text(
        "".join(f"이 영화 {i}번째 보는데 정말 {'재미있다' if i % 2 else '지루하다'}\n" for i in range(400))
    )
    return path


def test_comments_are_evaluated_as_often_as_a_checkpoint_is_saved(tokenizer, sample_file, other_file, tmp_path):
    trainer = build(tokenizer, sample_file, tmp_path, data={"eval_dataset": str(other_file), "eval_rows": 5})
    assert len(trainer.eval_dataset) == 5 and len(trainer.eval_dataset[0]["input_ids"]) == MAX_LENGTH
    assert (trainer.args.eval_strategy, trainer.args.eval_steps) == ("steps", 3)
    given = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = build(tokenizer, sample_file, tmp_path, data={"eval_dataset": str(other_file)}, **given)
    assert trainer.args.eval_steps == 2 and 5 < len(trainer.eval_dataset) < 1000


@pytest.fixture(scope="module")
def emoji_corpus(tmp_path_factory):
    """A corpus whose emoji and digits v2022 would take, and the file that it was built of."""
    directory = tmp_path_factory.mktemp("emoji")
    lines = [f"{i}번째 본 영화 👍 가격은 1000{i}원 최고입니다\n" for i in range(200)]
    (directory / "raw.txt").write_text("".join(lines), encoding="utf-8")
    build_corpus(directory / "raw.txt", directory / "corpus", rules="corpus", num_workers=1)
    return directory


def texts_of(rows, tokenizer):
    return "".join(tokenizer.decode(row["input_ids"]) for row in rows)


@pytest.mark.parametrize("trained_on", ["corpus", "rows"])
def test_raw_text_is_cleaned_as_what_is_trained_on_was(pack_here, emoji_corpus, tmp_path, trained_on):
    tokenizer = train_tokenizer(emoji_corpus / "corpus", vocab_size=400)
    if trained_on == "rows":
        pack_here(CommentReader(str(emoji_corpus / "corpus")), tokenizer, tmp_path / "rows", max_length=MAX_LENGTH)
    dataset = tmp_path / "rows" if trained_on == "rows" else emoji_corpus / "corpus"
    data = {"dataset": str(dataset), "eval_dataset": str(emoji_corpus / "raw.txt")}
    trainer = build(tokenizer, None, tmp_path, data=data)
    text = texts_of(trainer.eval_dataset, tokenizer)
    assert "👍" in text and "10000" in text
    data |= {"rules": "v2022"}
    if trained_on == "rows":
        with pytest.raises(InputError, match="rules is v2022, and the rows of .* hold what corpus has left"):
            build(tokenizer, None, tmp_path, data=data)


def test_a_corpus_that_is_cleaned_once_more_is_told_of(emoji_corpus, tmp_path, caplog, tokenizer):
    data = {"dataset": str(emoji_corpus / "corpus")}
    build(tokenizer, None, tmp_path, data=data)
    assert "on top of it" not in caplog.text
    build(tokenizer, None, tmp_path, data=data | {"rules": "v2021"})
    assert "was cleaned by corpus, and is cleaned by v2021 on top of it; leave out --rules" in caplog.text


def test_packed_rows_are_taken_as_they_are_and_must_fit(pack_here, tokenizer, sample_file, other_file, tmp_path):
    pack_here(CommentReader(str(other_file)), tokenizer, tmp_path / "rows", max_length=MAX_LENGTH)
    data = {"eval_dataset": str(tmp_path / "rows"), "eval_rows": 4}
    trainer = build(tokenizer, sample_file, tmp_path, data=data)
    packed = open_source(DataArguments(dataset=data["eval_dataset"]), tmp_path, seed=trainer.args.seed)
    taken = zip(trainer.eval_dataset, islice(packed, 4), strict=True)
    assert all((ours["input_ids"] == theirs["input_ids"]).all() for ours, theirs in taken)
    with pytest.raises(InputError, match=f"have {MAX_LENGTH} tokens, not {2 * MAX_LENGTH}; pack others"):
        build(tokenizer, sample_file, tmp_path, data={**data, "max_length": 2 * MAX_LENGTH})


@pytest.mark.parametrize(
    ("data", "training", "message"),
    [
        ({}, {"eval_strategy": "steps"}, "give --eval_dataset, or leave out --eval_strategy"),
        ({"eval_dataset": "SAME"}, {}, "give other comments than the --dataset"),
        ({"eval_dataset": "OTHER", "eval_rows": 0}, {}, "eval_rows 0; give .* 1 or more"),
        (
            {"eval_dataset": "OTHER"},
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3},
            "leave",
        ),
    ],
)
def test_what_cannot_be_evaluated_says_what_to_type(
    tokenizer, sample_file, other_file, tmp_path, data, training, message
):
    files = {"SAME": str(sample_file), "OTHER": str(other_file)}
    data = {key: files.get(value, value) for key, value in data.items()}
    with pytest.raises(InputError, match=message):
        build(tokenizer, sample_file, tmp_path, data=data, **training)
