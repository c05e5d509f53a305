"""One flat YAML, then `--key value`; whatever is misspelt is an error that names the right spelling."""

import importlib.util
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import yaml

from kcelectra.arguments import given_settings, parse_args, read_preset, run_recipe
from kcelectra.errors import InputError
from kcelectra.pretraining.configuration import SIZES
from kcelectra.pretraining.run_arguments import DataArguments, ModelArguments
from kcelectra.pretraining.training_arguments import PretrainingArguments

RECIPES_DIR = Path(__file__).parents[1] / "recipes"
PRESETS = sorted(RECIPES_DIR.glob("*/pretrain*.yaml"))


@dataclass
class Model:
    size: str = field(default="tiny", metadata={"help": "Architecture."})
    dropout: float | None = field(default=None, metadata={"help": "Share."})
    is_tied: bool = field(default=True, metadata={"help": "Tie the embeddings."})


@dataclass
class Training:
    learning_rate: float = field(default=1.0, metadata={"help": "Peak."})
    max_steps: int = field(default=10, metadata={"help": "Steps."})
    use_cpu: bool = field(default=False, metadata={"help": "No accelerator."})
    dataset: str | None = field(default=None, metadata={"help": "Source."})


def write_preset(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def parse(tmp_path):
    def parse(preset: str = "", *words: str) -> tuple[Model, Training]:
        path = write_preset(tmp_path / "preset.yaml", preset)
        return parse_args(Model, Training, argv=[str(path), *words])

    return parse


# values


def test_the_command_line_overrides_the_preset_and_the_preset_the_default(parse):
    model, training = parse("size: small\nmax_steps: 20\n", "--max_steps", "30", "--dataset=댓글 모음.txt")
    assert model == Model(size="small")
    assert training == Training(max_steps=30, dataset="댓글 모음.txt")


def test_without_a_preset_the_defaults_hold():
    assert parse_args(Model, Training, argv=[]) == (Model(), Training())


def test_the_default_preset_is_used_only_where_none_is_given(tmp_path):
    default = write_preset(tmp_path / "default.yaml", "max_steps: 1\nsize: base\n")
    other = write_preset(tmp_path / "other.yml", "max_steps: 2\n")
    assert parse_args(Model, Training, argv=[], default_preset=default)[1].max_steps == 1
    assert parse_args(Model, Training, argv=["--max_steps", "3"], default_preset=default)[1].max_steps == 3
    assert parse_args(Model, Training, argv=[str(other)], default_preset=default) == (Model(), Training(max_steps=2))


@pytest.mark.parametrize("text", ["5e-4", "5.0e-4", "0.0005", "'5e-4'", "+5E-4", "5e-04"])
def test_every_spelling_of_a_float_becomes_a_float(parse, text):
    _, training = parse(f"learning_rate: {text}\n")
    assert training.learning_rate == 5e-4
    assert isinstance(training.learning_rate, float)
    assert parse("", "--learning_rate", text.strip("'"))[1].learning_rate == 5e-4


@pytest.mark.parametrize("text", ["1", "1.0"])
def test_a_whole_number_becomes_a_float_where_the_field_is_one(parse, text):
    assert isinstance(parse(f"learning_rate: {text}\n")[1].learning_rate, float)
    assert isinstance(parse(f"dropout: {text}\n")[0].dropout, float)


@pytest.mark.parametrize("text", ["1_000", "1000", "'1_000'"])
def test_underscores_group_digits(parse, text):
    assert parse(f"max_steps: {text}\n")[1].max_steps == 1000
    assert parse("", "--max_steps", text.strip("'"))[1].max_steps == 1000


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("yes", True), ("'no'", False)])
def test_booleans_are_read_from_both(parse, text, value):
    model, training = parse(f"is_tied: {text}\nuse_cpu: {text}\n")
    assert (model.is_tied, training.use_cpu) == (value, value)
    model, training = parse("", "--is_tied", text.strip("'"), "--use_cpu", text.strip("'"))
    assert (model.is_tied, training.use_cpu) == (value, value)


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_null_in_a_preset_is_none(parse, text):
    model, training = parse(f"dropout: {text}\ndataset: {text}\n")
    assert model.dropout is None
    assert training.dataset is None


def test_a_string_that_looks_like_a_number_stays_a_string(parse):
    assert parse("dataset: '2021'\n")[1].dataset == "2021"


def test_an_empty_preset_gives_the_defaults(parse):
    assert parse("") == parse("# nothing\n") == (Model(), Training())


# what is misspelt


def test_an_unknown_preset_key_names_the_nearest(parse):
    with pytest.raises(InputError, match="unknown key 'max_step' in the preset; did you mean 'max_steps'?"):
        parse("max_step: 3\n")


@pytest.mark.parametrize("word", ["--max_step", "--max_step=3", "--max-step"])
def test_an_unknown_argument_names_the_nearest(parse, word):
    with pytest.raises(InputError, match="unknown argument '--max.step.*did you mean 'max_steps'?"):
        parse("", word, *([] if "=" in word else ["3"]))


def test_an_abbreviation_is_no_key(parse):
    with pytest.raises(InputError, match="did you mean 'learning_rate'?"):
        parse("", "--learning", "1")


def test_a_key_that_is_like_no_other_points_to_help(parse):
    with pytest.raises(InputError, match="unknown key 'zzz' in the preset; see --help"):
        parse("zzz: 3\n")
    with pytest.raises(InputError, match="unknown argument 'stray'; see --help"):
        parse("", "stray")


def test_a_key_that_is_no_text_is_unknown_too(parse):
    with pytest.raises(InputError, match="unknown key 1 in the preset"):
        parse("1: 3\n")


def test_a_word_is_a_list_of_one_and_a_list_may_be_empty(tmp_path):
    @dataclass
    class Lists:
        names: list[str] = field(default_factory=lambda: ["x"], metadata={"help": "Names."})

    for text, names in [
        ("vocab.txt", ["vocab.txt"]),
        ("[a, b]", ["a", "b"]),
        ("[a]", ["a"]),
        ("[]", []),
        ("-1", ["-1"]),
    ]:
        path = write_preset(tmp_path / "lists.yaml", f"names: {text}\n")
        assert parse_args(Lists, argv=[str(path)]) == (Lists(names),)


def test_a_list_for_one_value_is_an_error(parse):
    with pytest.raises(InputError, match=r"unknown argument 'b\.txt'"):
        parse("dataset: [a.txt, b.txt]\n")


@pytest.mark.parametrize("text", ["lr_scheduler_type: lineer", "eval_strategy: no"])
def test_a_choice_that_there_is_not_lists_those_there_are(tmp_path, capsys, text):
    path = write_preset(tmp_path / "preset.yaml", f"{text}\n")
    with pytest.raises(SystemExit):
        parse_args(PretrainingArguments, argv=[str(path)])
    assert f"argument --{text.split(':')[0]}" in capsys.readouterr().err


NO_PRESETS = {
    "nested": "training:\n  max_steps: 3\n",
    "a list": "- max_steps\n",
    "a word": "max_steps\n",
    "no YAML": "a: [1\n",
}


@pytest.mark.parametrize("text", NO_PRESETS.values(), ids=NO_PRESETS)
def test_a_preset_that_is_not_flat_is_named(parse, tmp_path, text):
    with pytest.raises(InputError, match="preset.yaml"):
        parse(text)


def test_a_preset_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"size: \xff\n")
    for name in ("missing.yaml", "a.yaml"):
        with pytest.raises(InputError, match=f"cannot read the preset .*{name}"):
            read_preset(tmp_path / name)


def test_a_recipe_ends_with_the_message_alone_and_status_2(capsys):
    def main() -> None:
        raise InputError("no file matches 'x'; give a file")

    with pytest.raises(SystemExit) as ended:
        run_recipe(main)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: no file matches 'x'; give a file\n")


# settings


def settings_of(argv, default_preset=None):
    instances = parse_args(Model, Training, argv=argv, default_preset=default_preset)
    return given_settings(*instances, argv=argv, default_preset=default_preset)


def test_a_file_where_a_directory_is_wanted_ends_a_recipe_with_status_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(SystemExit) as ended:
            run_recipe(lambda name=name: (tmp_path / name).mkdir(exist_ok=True))
        assert ended.value.code == 2
        assert f"error: {tmp_path / name} is in the way: a file is where a directory" in capsys.readouterr().err


def test_a_path_that_cannot_be_written_ends_a_recipe_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run_recipe(lambda: Path("/dev/null-dir/x").mkdir())
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: cannot open or write /dev/null-dir/x: No such file or directory; give another path\n"
    )
    with pytest.raises(OSError, match="the peer"):  # of no path
        run_recipe(lambda: (_ for _ in ()).throw(ConnectionResetError("the peer went away")))


def test_given_settings_are_those_of_preset_and_command_line(tmp_path):
    preset = write_preset(tmp_path / "a.yaml", "size: small\nmax_steps: 1_000\nlearning_rate: 5e-4\n")
    assert settings_of([str(preset), "--max_steps", "7", "--dataset=x y", "--use_cpu", "true"]) == {
        "size": "small",
        "max_steps": 7,
        "learning_rate": 5e-4,
        "dataset": "x y",
        "use_cpu": True,
    }
    assert settings_of([], default_preset=preset)["size"] == "small"
    assert settings_of([]) == {}


def test_the_order_of_the_arguments_does_not_change_the_settings():
    forwards = settings_of(["--max_steps", "7", "--size=small"])
    assert forwards == settings_of(["--size", "small", "--max_steps=7"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["--max_steps", "7"], ["--max-steps", "7"]),
        (["--use_cpu", "true"], ["--use_cpu"]),
        (["--learning_rate", "5e-4"], ["--learning_rate", "0.0005"]),
    ],
    ids=["dashes", "a bare flag", "a number"],
)
def test_two_spellings_of_an_argument_are_one_setting(one, other):
    assert parse_args(Model, Training, argv=one) == parse_args(Model, Training, argv=other)
    assert settings_of(one) == settings_of(other)


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("size: small\nlearning_rate: 5e-4\nmax_steps: 1_000\nis_tied: no\n", []),
        ("", ["--max_steps", "7", "--dataset", "a b.txt"]),
        ("dropout:\ndataset: null\n", []),
        ("", ["--max-steps", "7"]),
        ("", ["--use_cpu"]),
        ("", ["--no_is_tied"]),
    ],
    ids=["values", "arguments", "null", "dashes", "a bare flag", "a no_ flag"],
)
def test_given_settings_are_a_preset_of_the_same_run(tmp_path, preset, words):
    """`claim_run_dir` writes them as run.yaml, and tells the user to continue with that file."""
    argv = [str(write_preset(tmp_path / "preset.yaml", preset)), *words]
    run = write_preset(tmp_path / "run.yaml", yaml.safe_dump(settings_of(argv), allow_unicode=True))
    assert parse_args(Model, Training, argv=[str(run)]) == parse_args(Model, Training, argv=argv)
    assert settings_of([str(run)]) == settings_of(argv)


# the shipped presets


def test_there_are_presets():
    names = {"smoke", "small", "base-v2021", "base-v2022", "comments-tiny", "comments-small"}
    assert {path.parent.name for path in PRESETS} >= names


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.parent.name + "/" + path.name)
def test_a_shipped_preset_parses_and_every_value_arrives(path, tmp_path):
    classes = (ModelArguments, DataArguments, PretrainingArguments)
    model, data, training = parsed = parse_args(*classes, argv=[str(path), "--output_dir", str(tmp_path)])
    for key, value in read_preset(path).items():
        (owner,) = [instance for instance in parsed if key in {each.name for each in fields(instance)}]
        arrived = getattr(owner, key)
        if key == "output_dir":
            assert arrived == str(tmp_path)
        elif isinstance(arrived, int | float) and not isinstance(arrived, bool):
            assert arrived == float(value)
        elif isinstance(arrived, dict):
            assert arrived == json.loads(value)
        else:
            assert str(arrived).removeprefix("SchedulerType.").lower() == str(value).lower()
    assert model.size in SIZES
    assert (data.max_length or 0) <= model.max_position_embeddings  # packed rows have a length of their own
    assert training.max_steps > 0
    assert not list(tmp_path.iterdir())


def test_the_recipe_starts_from_the_smoke_preset():
    spec = importlib.util.spec_from_file_location("pretrain_recipe", RECIPES_DIR / "pretrain.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    assert recipe.SMOKE_PRESET in PRESETS
