"""The card of a model: what it is for, how it was made and measured, told by the files of its run."""

import hashlib
import math
import re
import shutil
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from kcelectra.errors import InputError
from kcelectra.hub import check_repo_id
from kcelectra.manifest import write_atomically
from kcelectra.release.card_scores import (
    EVAL_RESULTS_DIR,
    draw_scores,
    list_eval_results,
    read_model_scores,
    tabulate_model,
    write_eval_results,
)
from kcelectra.release.corpus_card import CARD, DEDUP, PERSONAL_DATA
from kcelectra.release.plots import draw_plots
from kcelectra.release.predictions import show
from kcelectra.release.report import check_learning
from kcelectra.release.run_facts import RunFacts, name_of, read_run
from kcelectra.release.scores import Group
from kcelectra.tokenization.loading import tokens_by_id
from kcelectra.tokenization.vocabulary import hash_vocabulary, identify_vocabulary

IMAGES_DIR = "images"
WEIGHTS_FILE = "model.safetensors"
SIZES = {
    "parameters": "parameters",
    "layers": "num_hidden_layers",
    "hidden size": "hidden_size",
    "attention heads": "num_attention_heads",
    "feed-forward size": "intermediate_size",
    "embedding size": "embedding_size",
    "tokens of the vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
}
#: What a run's weights depend on: these are told where they are defaults, too.
EFFECTIVE = (
    *("size", "generator_fraction", "mask_probability", "max_position_embeddings", "exclude_special_tokens"),
    *("generator_weight", "discriminator_weight", "rules", "min_chars", "max_length", "shuffle_window"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate", "warmup_steps"),
    *("lr_scheduler_type", "product_schedule", "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("adam_bias_correction", "max_grad_norm", "precision", "seed"),
)
OWN_SIZES = ("size", "generator_fraction", "max_position_embeddings")
_MARKUP = re.compile(r"[\\`*<>|~&$]|\](?=\()|(?<!\w)_|_(?!\w)")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # the form of an id on the Hub, which knows the ids


def write_model_card(
    release_dir: str | Path,
    *,
    repo_id: str,
    license: str,
    run_dir: str | Path,
    results_file: str | Path | None = None,
    corpus_dir: str | Path | None = None,
    tokenizer_dir: str | Path | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write the card of a model and what it shows, and return all files.

    What is not at hand the card says is missing; nothing in it is typed by hand that a file knows.

    Args:
        release_dir: what will be the repository: discriminator and tokenizer, and `generator/`; or a masked language
            model that was trained alone. Gets `README.md`, `images/` and `.eval_results/`; those of an earlier card
            are replaced.
        repo_id: `OWNER/NAME`, where it will be on the Hub.
        license: of the weights, by its id on the Hub.
        run_dir: the run that made the weights; see `read_run` for what can be added to it.
        results_file: `results.jsonl`, of which the rows of these very weights are shown.
        corpus_dir: the corpus, if the settings of the run do not say where it is.
        tokenizer_dir: the same of the tokenizer.
        defaults: arguments of the run by name, for those that its settings do not give; of these, the `EFFECTIVE`
            ones are told.

    Raises:
        InputError: a file that the card is made of is not what it should be, no row of the results is of these
            weights, or the id or the licence is none.
    """
    release_dir = Path(release_dir)
    _check_ids(repo_id, license)
    run = read_run(run_dir, corpus_dir=corpus_dir, tokenizer_dir=tokenizer_dir)
    model = describe_half(release_dir)
    generator = describe_half(release_dir / "generator") if run.has_discriminator else None
    own, family = read_model_scores(results_file, release_dir) if results_file is not None else ([], [])
    for name in (IMAGES_DIR, EVAL_RESULTS_DIR):
        shutil.rmtree(release_dir / name, ignore_errors=True)
    images_dir = release_dir / IMAGES_DIR
    images_dir.mkdir()
    curves = draw_plots([*run.history, *run.evaluations], images_dir)
    pictures = draw_scores(own, family, images_dir, repo_id) if own else []
    card = render(
        Path(__file__).with_name("model_card.md.jinja"),
        card_data=describe_metadata(run, own, repo_id=repo_id, license=license).to_yaml(),
        **describe_run(run, defaults or {}),
        is_scored_raw=bool(own) and all(group.first["settings"].get("rules") is None for group in own),
        **describe_tokenizer(release_dir, run),
        **_name_release(repo_id),
        model=model,
        generator=generator,
        license=license,
        sizes=SIZES,
        images_dir=IMAGES_DIR,
        curves=curves,
        table=tabulate_model(own, repo_id) if own else None,
        pictures=pictures,
    )
    write_atomically(release_dir / CARD, card)
    shown = [*curves, *(picture.path for picture in pictures)]
    return [release_dir / CARD, *shown, *write_eval_results(own, release_dir, repo_id)]


def describe_half(directory: Path) -> dict[str, Any]:
    """Return the configuration of one half, how many parameters its file holds, its size and its sha256.

    Raises:
        InputError: the directory holds no model.
    """
    path = directory / WEIGHTS_FILE
    if not path.is_file() or not path.with_name("config.json").is_file():
        raise InputError(f"{directory} has no {WEIGHTS_FILE} and config.json; stage an export of recipes/pretrain.py")
    with safe_open(path, framework="numpy") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    config = AutoConfig.from_pretrained(directory).to_dict()
    return config | {"parameters": parameters, "num_bytes": path.stat().st_size, "sha256": sha256}


def describe_tokenizer(release_dir: Path, run: RunFacts) -> dict[str, Any]:
    """Return what the vocabulary holds, and the manifest of the tokenizer if it is of this very vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(release_dir)
    tokens = tokens_by_id(tokenizer)
    sha256 = hash_vocabulary(tokens)
    return {
        "num_pieces": sum(token.startswith("##") for token in tokens),
        "vocabulary": identify_vocabulary(tokens, pad_token_id=tokenizer.pad_token_id),
        "vocabulary_sha256": sha256,
        "tokenizer": run.tokenizer if run.tokenizer and run.tokenizer["sha256"] == sha256 else None,
    }


def describe_run(run: RunFacts, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card says of text, training and cost."""
    corpus = run.corpus
    others = [key for key in EFFECTIVE if key not in run.settings]
    if "init_discriminator" in run.settings:  # which has its own
        others = [key for key in others if key not in OWN_SIZES]
    chosen = {**defaults, **({"precision": run.precision} if run.precision else {})}
    return {
        "run": run,
        "corpus": corpus,
        "dedup": DEDUP[corpus["settings"]["dedup"]] if corpus else None,
        "treatment": PERSONAL_DATA[corpus["settings"]["pii"]] if corpus else None,
        "dataset": run.hub_dataset or run.dataset,
        "rules": run.rules,
        "max_length": run.max_length,
        "settings": run.settings,
        "defaults": {key: value for key in others if (value := chosen.get(key)) is not None},
        "checks": check_learning(run.history),
        "estimate": estimate_energy(run),
    }


def estimate_energy(run: RunFacts) -> dict[str, float | None] | None:
    """Return kWh, and grams of CO2e where they can be told: power times time; None where one of them is not known.

    Earlier runs are counted.
    """
    kwh, grams = 0.0, 0.0
    for each in (run, *run.earlier):
        watts, per_kwh = each.told["watts"], each.told["grams_co2_per_kwh"]
        if each.seconds is None or watts is None:
            return None
        kwh += watts * each.seconds / 3.6e6
        grams += math.nan if per_kwh is None else per_kwh * watts * each.seconds / 3.6e6
    return {"kwh": kwh, "grams": None if math.isnan(grams) else grams}


def describe_metadata(run: RunFacts, groups: list[Group], *, repo_id: str, license: str) -> ModelCardData:
    """Return the header of the card, with the `model-index` of the scores."""
    facts: dict[str, Any] = {"datasets": [run.hub_dataset]} if run.hub_dataset else {}
    if groups:
        facts |= {"eval_results": list_eval_results(groups), "model_name": repo_id.split("/")[1]}
        facts["metrics"] = list(dict.fromkeys(show(group.first["selected_by"]) for group in groups))
    estimate = estimate_energy(run)
    if estimate and estimate["grams"]:
        facts["co2_eq_emissions"] = {
            "emissions": round(estimate["grams"], 3),  # grams
            "source": "power times the logged time of training, both in the card",
            "training_type": "pre-training",
            **({"hardware_used": show(run.told["device"])} if run.told["device"] else {}),
        }
    objective = "replaced-token-detection" if run.has_discriminator else "masked-language-modeling"
    tags = ["electra", "korean", "comments", objective, "kcelectra"]
    return ModelCardData(language="ko", license=license, library_name="transformers", tags=tags, **facts)


def render(template: Path, **facts: Any) -> str:
    """Return a card; what comes from elsewhere goes through `text`, and can then be nothing but text."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"text": _as_text, "number": _as_number, "setting": _as_setting, "duration": _as_duration}
    environment.filters["score"] = _as_score
    return environment.from_string(template.read_text(encoding="utf-8")).render(**facts)


def _check_ids(repo_id: str, license: str) -> None:
    check_repo_id(repo_id)
    if not _LICENSE.fullmatch(license):
        raise InputError(f"license {license!r} is no id of the Hub; give one such as mit, cc-by-sa-4.0 or other")


def _name_release(repo_id: str) -> dict[str, str]:
    owner, name = repo_id.split("/")
    return {"repo_id": repo_id, "owner": owner, "name": name, "key": re.sub(r"[^a-z0-9]", "", repo_id.lower())}


def _as_text(value: object) -> str:
    """Return Markdown that shows a text as it is, in one line, in a table too; not for the beginning of a line."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", show(value))


def _as_number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if isinstance(value, float) else _as_text(value)


def _as_setting(value: object) -> str:
    plain = value.value if isinstance(value, Enum) else value
    return _as_text(", ".join(map(name_of, plain)) if isinstance(plain, (list, tuple)) else name_of(plain))


def _as_score(score: tuple[float | None, int | None]) -> str:
    value, step = score
    return "" if value is None else f"{value:.2f}" if step is None else f"{value:.2f} ({step:,})"


def _as_duration(seconds: float) -> str:
    return f"{seconds / 60:,.1f} minutes" if seconds < 3600 else f"{seconds / 3600:,.1f} hours"
