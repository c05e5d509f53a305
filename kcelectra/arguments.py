"""Arguments of a recipe: one flat YAML preset, then `--key value`; an unknown key is an error."""

import difflib
import json
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from kcelectra.errors import InputError


def parse_args(
    *dataclasses: Any, argv: Sequence[str] | None = None, default_preset: Path | None = None
) -> tuple[Any, ...]:
    """Parse `[PRESET.yaml] [--key value ...]` into dataclasses.

    Args:
        *dataclasses: one per concern, with help text on each field.
        argv: what to parse; the command line if None.
        default_preset: the preset if none is given.

    Returns:
        An instance of each dataclass.

    Raises:
        InputError: a key is unknown (the nearest known one is named), or the preset cannot be read.
    """
    preset, words = _split(argv, default_preset)
    parser = HfArgumentParser(list(dataclasses), allow_abbrev=False)
    known = {action.dest for action in parser._actions}
    for key in preset:
        if key not in known:
            raise InputError(f"unknown key {key!r} in the preset{_hint(key, known)}")
    parser.set_defaults(**{key: value for key, value in preset.items() if value in (None, [])})
    words = [*_as_words(preset), *words]
    *instances, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0]
        word = unknown[0].split("=")[0]  # what follows may be a token
        raise InputError(f"unknown argument {word!r}{_hint(key, known)}")
    return tuple(instances)


def given_settings(
    *instances: Any, argv: Sequence[str] | None = None, default_preset: Path | None = None
) -> dict[str, Any]:
    """Return what the preset and the command line set, as `parse_args` understood it; defaults are left out.

    Args:
        *instances: what `parse_args` returned.
        argv: what it parsed.
        default_preset: the preset if none is given.

    Returns:
        Values by key, as YAML can hold them; given as a preset, they make the same run.
    """
    preset, words = _split(argv, default_preset)
    given = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    values = {key: value for instance in instances for key, value in vars(instance).items()}
    keys = {key if key in values else key.removeprefix("no_") for key in [*preset, *given]}
    return {key: _as_yaml(values[key]) for key in sorted(keys)}


def _split(argv: Sequence[str] | None, default_preset: Path | None) -> tuple[dict[str, Any], list[str]]:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].endswith((".yaml", ".yml")):
        return read_preset(words[0]), words[1:]
    return read_preset(default_preset) if default_preset else {}, words


def read_preset(path: str | Path) -> dict[str, Any]:
    """Read a flat YAML file.

    Raises:
        InputError: it does not exist or is not a flat mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the preset {path}: {error}") from error
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise InputError(f"{path} is not a flat list of `key: value` lines")
    return values


def run_recipe(main: Callable[[], None]) -> None:
    """Call a recipe's `main`; an `InputError` ends it with its message alone and exit status 2.

    So do a file where a directory is wanted, and a path that cannot be opened or written.
    """
    try:
        main()
    except InputError as error:
        message = str(error)
    except (FileExistsError, NotADirectoryError) as error:
        message = f"{error.filename} is in the way: a file is where a directory goes; give another one"
    except OSError as error:
        if error.filename is None:
            raise
        message = f"cannot open or write {error.filename}: {error.strerror}; give another path"
    else:
        return
    print(f"error: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


def _hint(key: str, known: set[str]) -> str:
    nearest = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "; see --help for all keys"


def _as_yaml(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return json.dumps(value)
    return value if isinstance(value, (bool, int, float, list, type(None))) else str(value)


def _as_words(preset: dict[str, Any]) -> list[str]:
    """Return a preset as the command line has it: argparse knows of each key what it takes, YAML does not."""
    words: list[str] = []
    for key, value in preset.items():
        if isinstance(value, list) and len(value) > 1:
            words += [f"--{key}", *map(str, value)]
        elif value not in (None, []):
            words.append(f"--{key}={value[0] if isinstance(value, list) else value}")
    return words
