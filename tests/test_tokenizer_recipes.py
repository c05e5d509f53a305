"""The recipes that train and compare tokenizers, as users run them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from kcelectra.corpus import build_corpus
from kcelectra.errors import InputError
from kcelectra.manifest import verify_manifest
from kcelectra.tokenization import load_tokenizer, read_vocabulary

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(recipe: str, *arguments: str) -> None:
        spec = importlib.util.spec_from_file_location(recipe, ROOT / f"recipes/{recipe}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [recipe, *arguments])
        module.main()

    return run


@pytest.fixture(scope="module")
def corpus_dir(sample_file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus") / "built"
    build_corpus(str(sample_file), directory, num_workers=1)
    return str(directory)


def test_without_a_corpus_the_sample_is_trained_on_and_measured(run, tmp_path, capsys):
    run("train_tokenizer", "--vocab_size", "1500")
    manifest = verify_manifest(tmp_path / "out/tokenizer")
    assert set(manifest["files"]) == {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert manifest["num_tokens"] == len(load_tokenizer(tmp_path / "out/tokenizer")) == 1500
    report = json.loads((tmp_path / "out/tokenizer/report/tokenizers.json").read_text(encoding="utf-8"))
    assert report["vocabularies"]["tokenizer"]["coverage"]["corpus"]["unk_share"] == 0
    assert (tmp_path / "out/tokenizer/report/tokenizers.png").stat().st_size > 20_000
    assert "report: out/tokenizer/report" in capsys.readouterr().out


def test_the_same_command_again_changes_nothing_and_another_is_refused(run, tmp_path, corpus_dir):
    arguments = ["--corpus_dir", corpus_dir, "--vocab_size", "1200"]
    run("train_tokenizer", *arguments)
    before = (tmp_path / "out/tokenizer/vocab.txt").stat().st_mtime_ns
    run("train_tokenizer", *arguments)
    assert (tmp_path / "out/tokenizer/vocab.txt").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="vocab_size: 1200 there, 1300 now.*give another --output_dir"):
        run("train_tokenizer", *arguments[:-1], "1300")


def test_a_corpus_is_trained_on_as_it_is_and_other_comments_are_cleaned(run, tmp_path, corpus_dir, sample_file):
    run("train_tokenizer", "--corpus_dir", corpus_dir, "--vocab_size", "1200")
    run("train_tokenizer", "--corpus_dir", str(sample_file), "--vocab_size", "1200", "--output_dir", "out/raw")
    built, raw = (verify_manifest(tmp_path / "out" / name)["settings"] for name in ("tokenizer", "raw"))
    assert (built["rules"], built["min_chars"]) == ("none", 0)
    assert (raw["rules"], raw["min_chars"]) == ("v2022", 10)


def test_morphemes_and_layout_are_options_of_the_recipe(run, tmp_path, corpus_dir):
    (tmp_path / "donor.txt").write_text("[PAD]\n[unused0]\n핵존잼\n", encoding="utf-8")
    layout = ["--donor_vocab", "donor.txt", "--num_unused", "3"]
    words = ["--corpus_dir", corpus_dir, "--vocab_size", "1500", "--sample", "0.5", "--num_workers", "1"]
    run("train_tokenizer", *words, *layout, "--morphemes", "particles")
    tokens = read_vocabulary(tmp_path / "out/tokenizer/vocab.txt")
    assert tokens[1500:] == ["핵존잼", "[unused0]", "[unused1]", "[unused2]"]
    manifest = verify_manifest(tmp_path / "out/tokenizer")
    assert manifest["donor"] == {"num_tokens": 3, "num_unused": 1, "num_overlap": 1, "num_appended": 1}
    assert 0.4 < manifest["num_texts"] / verify_manifest(corpus_dir)["num_kept"] < 0.6


def test_a_vocabulary_is_extended_without_training(run, tmp_path, corpus_dir):
    run("train_tokenizer", "--corpus_dir", corpus_dir, "--vocab_size", "1200", "--output_dir", "out/base")
    (tmp_path / "donor.txt").write_text("핵존잼\n", encoding="utf-8")
    arguments = ["--base_vocab", "out/base/vocab.txt", "--donor_vocab", "donor.txt", "--num_unused", "2"]
    run("train_tokenizer", *arguments, "--corpus_dir", corpus_dir)
    base = read_vocabulary(tmp_path / "out/base/vocab.txt")
    assert read_vocabulary(tmp_path / "out/tokenizer/vocab.txt") == [*base, "핵존잼", "[unused0]", "[unused1]"]


def test_tokenizers_are_compared_without_training(run, tmp_path, corpus_dir, capsys):
    run("train_tokenizer", "--corpus_dir", corpus_dir, "--vocab_size", "1200")
    arguments = ["--tokenizers", "out/tokenizer", "out/tokenizer/vocab.txt", "--corpus_dir", corpus_dir]
    run("compare_tokenizers", *arguments)
    report = json.loads((tmp_path / "out/tokenizers/tokenizers.json").read_text(encoding="utf-8"))
    one, other = report["vocabularies"].values()
    assert one["coverage"] == other["coverage"] and one["sha256"] == other["sha256"]
    assert "report: out/tokenizers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus_dir", "nowhere/*.parquet"], "no file matches 'nowhere/\\*.parquet'"),
        (["--corpus_dir", "empty.txt"], "no text to train a tokenizer on; check --dataset or --corpus_dir"),
        (
            ["--vocab_size", "300"],
            "vocab_size is 300; the special tokens and .* characters, .* give a --vocab_size above",
        ),
        (["--morphemes", "nouns"], "--morphemes is 'nouns'; use one of particles, all"),
        (["--sample", "0"], "a --sample above 0 and up to 1"),
        (["--num_unused", "-1"], "give a --num_unused and a --seed of 0 or more"),
        (["--donor_vocab", "nowhere.txt"], "cannot read the vocabulary nowhere.txt"),
        (["--donor_vocab", "twice.txt"], "twice.txt: line 3 repeats '가' of line 1"),
        (["--base_vocab", "twice.txt"], "twice.txt: line 3 repeats"),
        (
            ["--base_vocab", "donor.txt", "--vocab_size", "999", "--morphemes", "all", "--num_unused", "3"],
            "--base_vocab is extended, not trained; leave out --vocab_size and --morphemes",
        ),
        (["--base_vocab", "donor.txt"], r"\[PAD\] \[UNK\] .* have the ids .*, not 0 to 4"),
        (["--vocab_siz", "300"], "unknown argument '--vocab_siz'; did you mean 'vocab_size'?"),
        (["--compare", "nowhere"], "cannot load a tokenizer from nowhere"),
        (["--data_dir", "."], "no file of a task in ., such as nsmc/ratings_test.txt; give another --data_dir"),
    ],
)
def test_bad_input_is_named_with_what_to_type_and_nothing_is_written(run, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "twice.txt").write_text("가\n나\n가\n", encoding="utf-8")
    (tmp_path / "donor.txt").write_text("가\n나\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        run("train_tokenizer", *arguments)
    assert not (tmp_path / "out/tokenizer").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare; give --tokenizers"),
        (["--tokenizers", "vocab.txt"], "nothing to measure on; give --data_dir, .* or --corpus_dir"),
    ],
)
def test_nothing_to_compare_is_an_error(run, arguments, message):
    with pytest.raises(InputError, match=message):
        run("compare_tokenizers", *arguments)
