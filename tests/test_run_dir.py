"""A run's directory is one run's, and its tokenizer is trained once."""

import json
import re
import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml

from kcelectra.arguments import given_settings, parse_args
from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.workers import num_cores
from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, verify_manifest, write_manifest
from kcelectra.pretraining.checkpoints import find_last_checkpoint, write_checkpoint
from kcelectra.pretraining.run import LOCK_SECONDS, SETTINGS_FILE, claim_run_dir, lock_run_dir, prepare_cpu
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.run_data import TOKENIZER_DIR, open_source, prepare_tokenizer
from kcelectra.pretraining.training_arguments import PretrainingArguments
from kcelectra.tokenization import load_tokenizer, save_tokenizer, train_tokenizer

SETTINGS = {"size": "tiny", "max_steps": "300", "dataset": "댓글.txt"}


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "out" / "run"


def train_a_step(run_dir: Path) -> None:
    write_checkpoint(run_dir, 1, lambda directory: (directory / "model.safetensors").write_text("weights"))


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


# claiming


def test_a_new_directory_is_made_and_holds_the_settings(run_dir):
    claim_run_dir(run_dir, SETTINGS)
    assert yaml.safe_load((run_dir / SETTINGS_FILE).read_text(encoding="utf-8")) == SETTINGS
    assert list(contents(run_dir)) == [SETTINGS_FILE]


def test_a_link_to_nothing_is_not_claimed(run_dir, tmp_path):
    run_dir.parent.mkdir()
    run_dir.symlink_to(tmp_path / "disk")
    with pytest.raises(InputError, match="run links to nothing; make .*disk, or give another --output_dir"):
        claim_run_dir(run_dir, SETTINGS)
    (tmp_path / "disk").mkdir()
    claim_run_dir(run_dir, SETTINGS)


def test_an_empty_directory_is_claimed(run_dir):
    run_dir.mkdir(parents=True)
    claim_run_dir(run_dir, SETTINGS)
    assert (run_dir / SETTINGS_FILE).exists()


def test_the_same_settings_continue_a_run_and_change_nothing(run_dir):
    claim_run_dir(run_dir, SETTINGS)
    train_a_step(run_dir)
    before = contents(run_dir)
    claim_run_dir(str(run_dir), dict(reversed(SETTINGS.items())))
    assert contents(run_dir) == before


@pytest.mark.parametrize("changes", [{}, {"max_steps": "9"}])
@pytest.mark.parametrize("left", ["export", "exports", "report", "probe"])
def test_what_is_left_of_a_run_without_its_checkpoints_is_not_taken_for_that_of_another(run_dir, changes, left):
    claim_run_dir(run_dir, SETTINGS)
    (run_dir / left).mkdir()
    before = contents(run_dir)
    with pytest.raises(InputError, match=f"run has {left} of a run whose checkpoints are gone; .*delete it to train"):
        claim_run_dir(run_dir, SETTINGS | changes)
    assert contents(run_dir) == before
    train_a_step(run_dir)
    claim_run_dir(run_dir, SETTINGS)


def test_a_run_that_is_being_trained_is_not_trained_by_another_process(run_dir, monkeypatch):
    claim_run_dir(run_dir, SETTINGS)
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    with lock_run_dir(run_dir), pytest.raises(InputError, match="another process trains .*run; end that one, or give"):
        with lock_run_dir(run_dir):
            pass
    assert waits == [1] * LOCK_SECONDS
    with lock_run_dir(run_dir):  # let go of
        claim_run_dir(run_dir, SETTINGS)


def test_a_directory_that_is_no_run_is_not_locked(run_dir):
    run_dir.mkdir(parents=True)
    (run_dir / "thesis.txt").write_text("가", encoding="utf-8")
    with pytest.raises(InputError, match="run is there and holds no run.yaml; give another --output_dir"):
        with lock_run_dir(run_dir):
            pass
    assert [path.name for path in run_dir.iterdir()] == ["thesis.txt"]


def test_where_the_directory_lies_is_no_setting(run_dir):
    claim_run_dir(run_dir, {**SETTINGS, "output_dir": "out/run"})
    train_a_step(run_dir)
    moved = run_dir.rename(run_dir.with_name("moved"))
    claim_run_dir(moved, {**SETTINGS, "output_dir": str(moved)})


def test_a_different_run_is_refused_once_it_has_trained(run_dir):
    claim_run_dir(run_dir, SETTINGS)
    train_a_step(run_dir)
    before = contents(run_dir)
    with pytest.raises(InputError) as error:
        claim_run_dir(run_dir, {"size": "small", "max_steps": "300", "seed": "1"})
    message = str(error.value)
    assert f"{run_dir} holds a different run" in message
    assert "size: tiny there, small now" in message
    assert "dataset: 댓글.txt there, None now" in message
    assert "seed: None there, 1 now" in message
    assert "max_steps: " not in message
    assert "give another --output_dir" in message
    assert f"--resume_from_checkpoint {find_last_checkpoint(run_dir)})" in message
    assert contents(run_dir) == before


def test_what_changes_no_result_may_change_in_mid_run(run_dir):
    claim_run_dir(run_dir, {**SETTINGS, "save_steps": 10, "logging_steps": 5})
    train_a_step(run_dir)
    claim_run_dir(run_dir, {**SETTINGS, "save_steps": 20, "dataloader_num_workers": 2})


def test_another_batch_is_another_run(run_dir):
    claim_run_dir(run_dir, {**SETTINGS, "per_device_train_batch_size": 8})
    train_a_step(run_dir)
    with pytest.raises(InputError, match="per_device_train_batch_size: 8 there, 4 now"):
        claim_run_dir(run_dir, {**SETTINGS, "per_device_train_batch_size": 4})


def test_with_the_rows_of_a_step_given_their_split_may_change(run_dir):
    settings = {**SETTINGS, "total_train_batch_size": 16}
    claim_run_dir(run_dir, {**settings, "per_device_train_batch_size": 8})
    train_a_step(run_dir)
    claim_run_dir(run_dir, {**settings, "per_device_train_batch_size": 4})


@pytest.mark.parametrize("name", ["run", "a run"])
def test_the_cure_in_the_refusal_continues_the_run(tmp_path, name):
    run_dir = tmp_path / name
    argv = ["--max_steps", "7", "--learning_rate=5e-4", "--dataset", "a b.txt", "--output_dir", str(run_dir)]
    classes = (ModelArguments, DataArguments, PretrainingArguments)
    claim_run_dir(run_dir, given_settings(*parse_args(*classes, argv=argv), argv=argv))
    train_a_step(run_dir)
    with pytest.raises(InputError) as error:
        claim_run_dir(run_dir, SETTINGS)
    (command,) = re.findall("`(.+)`", str(error.value))
    words = shlex.split(command)
    assert words[:3] == ["accelerate", "launch", "recipes/pretrain.py"]
    assert [str(each) for each in parse_args(*classes, argv=words[3:])] == [
        str(each) for each in parse_args(*classes, argv=argv)
    ]
    claim_run_dir(run_dir, given_settings(*parse_args(*classes, argv=words[3:]), argv=words[3:]))


def test_before_it_has_trained_a_run_may_be_changed_and_its_tokenizer_goes(run_dir):
    claim_run_dir(run_dir, SETTINGS)
    (run_dir / TOKENIZER_DIR).mkdir()
    (run_dir / TOKENIZER_DIR / "vocab.txt").write_text("of the other run")
    changed = {**SETTINGS, "vocab_size": "500"}
    claim_run_dir(run_dir, changed)
    assert yaml.safe_load((run_dir / SETTINGS_FILE).read_text(encoding="utf-8")) == changed
    assert not (run_dir / TOKENIZER_DIR).exists()


def test_a_cut_checkpoint_is_no_training(run_dir):
    claim_run_dir(run_dir, SETTINGS)
    (run_dir / "checkpoint-1").mkdir()
    (run_dir / "checkpoint-1" / "trainer_state.json").write_text('{"global_st')
    claim_run_dir(run_dir, {**SETTINGS, "seed": "1"})


def test_a_directory_with_foreign_files_is_refused_and_left_alone(run_dir):
    run_dir.mkdir(parents=True)
    (run_dir / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is there and holds no run\.yaml; give another --output_dir"):
        claim_run_dir(run_dir, SETTINGS)
    assert contents(run_dir) == {"thesis.txt": b"mine"}


def test_a_file_in_place_of_the_directory_is_refused(run_dir):
    run_dir.parent.mkdir()
    run_dir.write_text("mine")
    with pytest.raises(InputError, match="--output_dir"):
        claim_run_dir(run_dir, SETTINGS)
    assert run_dir.read_text() == "mine"


# source and tokenizer


@pytest.fixture
def reader(tmp_path, run_dir):
    claim_run_dir(run_dir, SETTINGS)
    path = tmp_path / "comments.txt"
    lines = [f"이 영화 정말 좋아요 {i}번 봤습니다 ㅋㅋㅋㅋ" for i in range(200)] + ["짧음", "ZZ"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CommentReader(str(path))


def stamps(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_without_a_dataset_the_sample_is_read(run_dir):
    claim_run_dir(run_dir, SETTINGS)
    texts = [comment.text for batch in open_source(DataArguments(), run_dir) for comment in batch]
    lines = (run_dir / "sample" / "comments.jsonl").read_text(encoding="utf-8").split("\n")
    assert texts == [json.loads(line)["text"] for line in lines if line]
    assert len(texts) == 2000


def test_the_tokenizer_is_trained_once(reader, run_dir):
    arguments = DataArguments(vocab_size=120)
    first = prepare_tokenizer(arguments, reader, run_dir)
    before = stamps(run_dir / TOKENIZER_DIR)
    assert {"vocab.txt", "tokenizer.json", MANIFEST} <= before.keys()
    Path(reader.dataset).unlink()
    second = prepare_tokenizer(arguments, reader, run_dir)
    assert stamps(run_dir / TOKENIZER_DIR) == before
    assert second.get_vocab() == first.get_vocab()
    assert len(first) <= 120


def test_the_tokenizer_is_trained_on_what_the_model_will_see(reader, run_dir):
    """Cleaned, and without what is too short."""
    vocabulary = prepare_tokenizer(DataArguments(vocab_size=200), reader, run_dir).get_vocab()
    assert "Z" not in vocabulary
    assert "짧" not in vocabulary
    assert "영화" in vocabulary
    assert "##ㅋㅋㅋ" not in vocabulary


def test_the_manifest_of_the_tokenizer_names_its_source(reader, run_dir):
    prepare_tokenizer(DataArguments(vocab_size=120), reader, run_dir)
    settings = verify_manifest(run_dir / TOKENIZER_DIR)["settings"]
    assert (settings["corpus"], settings["rules"]) == (reader.dataset, "v2022")


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json"])
def test_a_changed_tokenizer_is_found(reader, run_dir, name):
    arguments = DataArguments(vocab_size=120)
    prepare_tokenizer(arguments, reader, run_dir)
    with open(run_dir / TOKENIZER_DIR / name, "a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(InputError, match=f"{name} is missing or not what {MANIFEST} says"):
        prepare_tokenizer(arguments, reader, run_dir)


def test_a_tokenizer_that_was_cut_while_it_was_written_is_trained_anew(reader, run_dir):
    arguments = DataArguments(vocab_size=120)
    whole = prepare_tokenizer(arguments, reader, run_dir).get_vocab()
    (run_dir / TOKENIZER_DIR / MANIFEST).unlink()
    (run_dir / TOKENIZER_DIR / "tokenizer.json").write_text("{")
    (run_dir / TOKENIZER_DIR / "stale.txt").write_text("x")
    assert prepare_tokenizer(arguments, reader, run_dir).get_vocab() == whole
    assert not (run_dir / TOKENIZER_DIR / "stale.txt").exists()


@pytest.fixture
def vocabulary(tmp_path):
    save_tokenizer(train_tokenizer(["가나다라 마바사"] * 5, vocab_size=40), tmp_path / "given")
    return tmp_path / "given" / "vocab.txt"


def test_a_given_tokenizer_is_used_and_none_is_trained(reader, run_dir, vocabulary):
    size = len(load_tokenizer(vocabulary))
    for vocab_size in (None, size):
        for source in (vocabulary, vocabulary.parent):
            arguments = DataArguments(tokenizer=str(source), vocab_size=vocab_size)
            assert len(prepare_tokenizer(arguments, reader, run_dir)) == size
    assert not (run_dir / TOKENIZER_DIR).exists()


def test_a_vocab_size_that_is_not_the_tokenizers_is_refused(reader, run_dir, vocabulary):
    size = len(load_tokenizer(vocabulary))
    with pytest.raises(InputError, match=f"has {size} tokens, vocab_size is {size + 1}; leave out --vocab_size"):
        prepare_tokenizer(DataArguments(tokenizer=str(vocabulary), vocab_size=size + 1), reader, run_dir)


def test_comments_that_are_all_too_short_train_no_tokenizer(reader, run_dir):
    with pytest.raises(InputError, match="no text to train a tokenizer on"):
        prepare_tokenizer(DataArguments(min_chars=1000), reader, run_dir)
    assert not (run_dir / TOKENIZER_DIR / MANIFEST).exists()


# what a corpus needs no more


def test_a_built_corpus_is_not_cleaned_again(tmp_path):
    (tmp_path / "corpus").mkdir()
    write_manifest(tmp_path / "corpus", stage="corpus")
    assert DataArguments(dataset=str(tmp_path / "corpus")).cleaning() == {"rules": "none", "min_chars": 0}
    assert DataArguments(dataset=str(tmp_path)).cleaning() == {"rules": "v2022", "min_chars": 10}
    assert DataArguments(dataset=str(tmp_path / "corpus"), rules="v2021", min_chars=5).cleaning() == {
        "rules": "v2021",
        "min_chars": 5,
    }


@pytest.mark.parametrize(("launcher", "num_threads"), [({}, 1), ({"ACCELERATE_MIXED_PRECISION": "no"}, num_cores())])
def test_the_one_thread_of_the_launcher_becomes_all_and_that_of_the_user_stays(launcher, num_threads, monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"OMP_NUM_THREADS": "1", **launcher}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("ctypes.CDLL", Mock())  # the allocator of this process stays as it is
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        prepare_cpu()
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
