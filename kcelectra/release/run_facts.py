"""What the files of a pretraining run say of it: what was asked for, how long it took, what it was trained on."""

import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from kcelectra.arguments import read_preset
from kcelectra.errors import InputError
from kcelectra.finetuning.tables import HUB_ID
from kcelectra.manifest import read_manifest
from kcelectra.release.plots import EVAL_LOSS
from kcelectra.release.predictions import show

SETTINGS_FILE, RECORD_FILE = "run.yaml", "run.json"
STATE_FILE, HISTORY_FILE = "trainer_state.json", "report/history.json"
FACTS_FILE = "facts.yaml"
TEXTS, NUMBERS = ("device", "text"), ("watts", "grams_co2_per_kwh")
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by their names in accelerate


@dataclass(frozen=True)
class RunFacts:
    """What a run's files say; None where they say nothing.

    Args:
        settings: every argument that was given, by name; none of them a token.
        step: that the weights have behind them.
        max_steps: of the whole run.
        history: what was logged, one dictionary an interval.
        evaluations: the same of rows that were not trained on.
        flos: operations up to the step.
        tokens_per_step: that were trained on, of all processes, padding aside; a mean.
        seconds: of training up to the step, as far as it is logged: work that was lost is not.
        corpus: manifest of the corpus.
        rows: manifest of the packed rows.
        tokenizer: manifest of the tokenizer.
        versions: of the packages that exported the weights.
        told: `device`, by the record of the run unless `facts.yaml` says it, `text`, `watts` and `grams_co2_per_kwh`,
            each None where it is not known.
        precision: that the last start computed in.
        earlier: the runs whose exports it went on from, oldest first, as far as they are where its settings say.
    """

    settings: dict[str, Any]
    step: int
    max_steps: int | None
    history: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    flos: float | None
    tokens_per_step: float | None
    seconds: float | None
    corpus: dict[str, Any] | None
    rows: dict[str, Any] | None
    tokenizer: dict[str, Any] | None
    versions: dict[str, str]
    told: dict[str, Any]
    precision: str | None
    earlier: tuple["RunFacts", ...]

    @property
    def dataset(self) -> str | None:
        """What was trained on: the id of a dataset on the Hub, or the name of what lay on this machine."""
        dataset = self.settings.get("dataset")
        return None if dataset is None else name_of(dataset)

    @property
    def hub_dataset(self) -> str | None:
        """The id of the dataset, if it is one of the Hub: it looks like it, and neither it nor its owner is a path."""
        dataset = str(self.settings.get("dataset"))
        is_id = HUB_ID.fullmatch(dataset) is not None and not Path(dataset).parent.exists()
        return dataset if is_id else None

    @property
    def origin(self) -> str:
        """What the weights were at the first step: random, or those of models that the run went on from."""
        halves = {half: self.settings.get(f"init_{half}") for half in ("discriminator", "generator")}
        known = {half: name_of(source) for half, source in halves.items() if source is not None}
        if len(set(known.values())) == 1 and len(known) == len(halves):
            return f"both from {known['generator']}"
        return ", ".join(f"the {half} from {source}" for half, source in known.items()) or "from random weights"

    @property
    def has_discriminator(self) -> bool:
        """Whether one was trained: with a weight of 0 it was masked language modelling alone."""
        return self.settings.get("discriminator_weight") != 0

    @property
    def rules(self) -> str | None:
        """The rule set that the text was cleaned by, where a manifest or the settings name it."""
        if self.corpus is not None:
            return self.corpus["settings"]["rules"]
        if self.rows is not None and (cleaning := self.rows.get("cleaning")):
            return cleaning["rules"]
        # One that the run trained read what the run reads; that of a corpus names the rules on top of the corpus's own
        own = self.tokenizer["settings"] if self.tokenizer and "tokenizer" not in self.settings else {}
        return self.settings.get("rules") or own.get("rules")

    @property
    def max_length(self) -> int | None:
        """Tokens of a row, where the settings or the packed rows name them."""
        return self.rows["max_length"] if self.rows is not None else self.settings.get("max_length")

    @property
    def command(self) -> str:
        """What makes the run again; a path of this machine goes by its name alone."""
        words = ["accelerate", "launch", "recipes/pretrain.py"]
        for key, value in self.settings.items():
            values = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
            words += [] if value is None else [f"--{key}", *map(name_of, values)]
        return shlex.join(map(show, words))


def read_run(
    run_dir: str | Path, *, corpus_dir: str | Path | None = None, tokenizer_dir: str | Path | None = None
) -> RunFacts:
    """Return what the files of a run say.

    Args:
        run_dir: the output directory of `recipes/pretrain.py`. What no run knows may stand there in `facts.yaml`:
            `text`, what the comments are and whose; `device`; `watts`, that all devices drew together;
            `grams_co2_per_kwh`, of their electricity.
        corpus_dir: what the run was trained on, if its settings do not say so or it has moved.
        tokenizer_dir: the same of its tokenizer.

    Raises:
        InputError: it is no run or has logged nothing, `corpus_dir` is no corpus, or `facts.yaml` holds something
            else, or `tokenizer_dir` is no tokenizer.
    """
    run_dir = Path(run_dir)
    if not (run_dir / SETTINGS_FILE).is_file():
        raise InputError(f"{run_dir} has no {SETTINGS_FILE}; give the --output_dir of recipes/pretrain.py")
    settings = {key: value for key, value in read_preset(run_dir / SETTINGS_FILE).items() if not _is_secret(key)}
    state = _read_last_state(run_dir)
    history, evaluations = _read_history(run_dir, state)
    step = max(state.get("global_step", 0), history[-1]["step"])
    per_step = state["total_flos"] / state["global_step"] if state else None
    tokens = per_step / median(entry["flops_per_token"] for entry in history) if per_step else None
    if tokenizer_dir is not None and _read_stage(tokenizer_dir, "tokenizer") is None:
        raise InputError(f"{tokenizer_dir} is no tokenizer; give the --output_dir of recipes/train_tokenizer.py")
    tokenizer_dir = tokenizer_dir or settings.get("tokenizer") or run_dir / "tokenizer"
    start = _read_last_start(run_dir)
    return RunFacts(
        settings=settings,
        step=step,
        max_steps=state.get("max_steps") or settings.get("max_steps"),
        history=history,
        evaluations=evaluations,
        flos=per_step and per_step * step,
        tokens_per_step=tokens,
        seconds=tokens and tokens * _sum_seconds_per_token(history),
        corpus=_read_corpus(corpus_dir, settings.get("dataset")),
        rows=_read_stage(settings.get("dataset"), "packed"),
        tokenizer=_read_stage(tokenizer_dir, "tokenizer"),
        versions=(read_manifest(run_dir / "export") or {}).get("versions", {}),
        told=dict.fromkeys(TEXTS + NUMBERS) | {"device": start.get("hardware")} | _read_facts(run_dir / FACTS_FILE),
        precision=PRECISIONS.get(start.get("precision", "")),
        earlier=_read_earlier(settings),
    )


def name_of(value: object) -> str:
    """Return a setting as text; of a path that only this machine has, its name."""
    text = str(value)
    return os.path.basename(text.rstrip("/")) if os.path.isabs(os.path.expanduser(text)) else text


def _read_earlier(settings: Mapping[str, Any]) -> tuple[RunFacts, ...]:
    sources = [Path(str(settings[key])) for key in ("init_generator", "init_discriminator") if settings.get(key)]
    exports = [each for source in sources for each in (source, source.parent) if each.name == "export"]
    run_dirs = dict.fromkeys(export.parent for export in exports)
    runs = [read_run(run_dir) for run_dir in run_dirs if (run_dir / SETTINGS_FILE).is_file()]
    return tuple(each for run in runs for each in (*run.earlier, run))


def _is_secret(key: str) -> bool:
    return key.endswith("token")  # `hub_token`


def _read_last_state(run_dir: Path) -> dict[str, Any]:
    """Return the state of the newest checkpoint that can be read, or nothing."""
    states = []
    for path in run_dir.glob(f"checkpoint-*/{STATE_FILE}"):
        try:
            states.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:  # cut while it was written
            continue
    return max(states, key=lambda state: state["global_step"], default={})


def _read_history(run_dir: Path, state: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what was logged of training, and of rows that were not trained on."""
    path = run_dir / HISTORY_FILE
    logged = _read_json(path) if path.is_file() else state.get("log_history", [])
    entries = [{key: math.nan if value is None else value for key, value in entry.items()} for entry in logged]
    training = [entry for entry in entries if "generator_loss" in entry]
    if not training:
        raise InputError(f"{run_dir} has logged nothing; give a run that has, with --logging_strategy steps")
    return training, [entry for entry in entries if EVAL_LOSS in entry]


def _sum_seconds_per_token(history: list[dict[str, Any]]) -> float:
    """Return the time of a run whose steps have one token each."""
    pairs = pairwise([{"step": 0}, *history])
    return sum((entry["step"] - before["step"]) / entry["tokens_per_second"] for before, entry in pairs)


def _read_corpus(corpus_dir: str | Path | None, dataset: str | None) -> dict[str, Any] | None:
    manifest = _read_stage(corpus_dir or dataset, "corpus")
    if corpus_dir is not None and manifest is None:
        raise InputError(f"{corpus_dir} is no corpus; give the --output_dir of recipes/build_corpus.py")
    return manifest


def _read_stage(directory: str | Path | None, stage: str) -> dict[str, Any] | None:
    manifest = read_manifest(directory) if directory is not None and Path(directory).is_dir() else None
    return manifest if manifest is not None and manifest.get("stage") == stage else None


def _read_facts(path: Path) -> dict[str, Any]:
    facts = read_preset(path) if path.is_file() else {}
    for name, value in facts.items():
        is_number = name in NUMBERS and isinstance(value, (int, float)) and value > 0
        if not is_number and not (name in TEXTS and isinstance(value, str)):
            raise InputError(
                f"{path}: {name} is {value!r}; give {' and '.join(TEXTS)} in words, {' and '.join(NUMBERS)} above 0"
            )
    return facts


def _read_last_start(run_dir: Path) -> dict[str, Any]:
    """Return what the record of a run says of its last start, or nothing."""
    path = run_dir / RECORD_FILE
    starts = _read_json(path)["starts"] if path.is_file() else []
    return starts[-1] if starts else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; delete it, and the card does without") from error
