"""The scores of one model for its card: a table, what regenerates each row, and the Hub's two forms of them."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from kcelectra.errors import InputError
from kcelectra.finetuning.loading import hash_tokenizer, hash_weights
from kcelectra.finetuning.protocols import PROTOCOLS
from kcelectra.finetuning.runner import OPTIONS
from kcelectra.finetuning.sources import RESPLIT
from kcelectra.finetuning.tasks import TASKS
from kcelectra.manifest import write_atomically
from kcelectra.release.predictions import show
from kcelectra.release.score_plots import Picture, draw_curves, draw_steps
from kcelectra.release.scores import (
    Group,
    columns_of,
    describe_interval,
    describe_score,
    list_footnotes,
    mark,
    read_groups,
)

EVAL_RESULTS_DIR = ".eval_results"
#: Of the Hub, by metric; text classification for all others, a number to predict included.
HUB_TASKS = {"entity_f1": "token-classification", "answer_match": "question-answering"}
HUB_CONFIGS = {"paws": "ko", "kornli": "xnli"}  # that the test split is of, where a dataset has several
NOT_OFFICIAL = ", not the official test split as a whole"
_HASH = re.compile(r" #[0-9a-f]{6}$")
_HUB_DATA = re.compile("(.+) at ([0-9a-f]{40})")  # what the notes of own data say
_OTHERS = re.compile(r"not the official files: ([a-z, ]+)")
_CAPPED = re.compile(r"only the first ([\d,]+) of [\d,]+ of (train|dev|test)")


@dataclass(frozen=True)
class ScoreTable:
    """A row for each score, the footnotes below, and for each condition a comment and what is typed."""

    rows: list[dict[str, Any]]
    footnotes: list[str]
    commands: list[tuple[str, str]]


def read_model_scores(
    results_file: str | Path, model_dir: str | Path, *, shown_as: str | None = None
) -> tuple[list[Group], list[Group]]:
    """Return the groups of a model, and those of all checkpoints of its run: by contents, whatever they are called.

    Raises:
        InputError: no row is of these weights with this tokenizer, or the file cannot be read.
    """
    shown_as = shown_as or str(model_dir)
    is_generator = AutoConfig.from_pretrained(model_dir).architectures == ["ElectraForMaskedLM"]
    half = AutoModelForMaskedLM if is_generator else AutoModelForPreTraining  # else a head is missed, with a warning
    weights = hash_weights(half.from_pretrained(model_dir).base_model)
    tokenizer = hash_tokenizer(AutoTokenizer.from_pretrained(model_dir))
    groups = read_groups(results_file)
    wanted = (weights, tokenizer)
    own = [group for group in groups if (group.first["weights_sha256"], group.first["tokenizer_sha256"]) == wanted]
    if not own:
        raise InputError(
            f"no row of {results_file} is of the weights and the tokenizer in {shown_as}; fine-tune these: "
            f"python recipes/finetune.py --model {shown_as} --task nsmc --data_dir data"
        )
    families = {group.family for group in own}
    family = [group for group in groups if group.family in families]
    short = {group.column: _HASH.sub("", group.column) for group in own}  # other models may have made it necessary
    names = {column: name if list(short.values()).count(name) == 1 else column for column, name in short.items()}
    ordered = [group for members in columns_of(own).values() for group in members]
    return [replace(group, column=names[group.column]) for group in ordered], family


def is_row_of(groups: Sequence[Group], row: Mapping[str, Any]) -> bool:
    """Tell whether a row of results is of the weights and the tokenizer of a group."""
    return any(all(row[key] == group.first[key] for key in ("weights_sha256", "tokenizer_sha256")) for group in groups)


def tabulate_model(groups: Sequence[Group], repo_id: str) -> ScoreTable:
    """Return the table of a model's scores, in percent, and the commands, for which it lies at `repo_id`."""
    rows, footnotes, commands = [], list[str](), []
    for group in groups:
        first, one = group.first, group.summary
        facts = {key: first[key] for key in ("task", "protocol", "selected_on")} | {"num_seeds": one.num_seeds}
        facts["marks"] = mark(footnotes, [*group.caveats, *group.limits, *_describe_baseline(first)]).strip()
        names = [name for name in first["metrics"] if not name.startswith("num_")]  # which are counts
        for name in sorted(names, key=lambda name: name != first["selected_by"]):
            score = describe_score(name, *group.measure(name))
            if name == first["selected_by"]:
                score += f" {describe_interval(one)}"
            rows.append({**facts, "name": name, "score": score.strip()})
        files = ", ".join(f"{split} {digest[:12]}" for split, digest in first["data_sha256"].items())
        commands.append((show(f"{group.column}; sha256 of the files: {files}"), _describe_command(group, repo_id)))
    return ScoreTable(rows, list_footnotes(footnotes), commands)


def _describe_baseline(row: Mapping[str, Any]) -> list[str]:
    if row["selected_by"] != "accuracy" or "majority_share" not in row:
        return []
    return [f"the most frequent label alone has {100 * row['majority_share']:.2f}"]


def draw_scores(groups: Sequence[Group], family: Sequence[Group], images_dir: Path, repo_id: str) -> list[Picture]:
    """Draw the scores over pretraining, where there are any, and each column over fine-tuning."""
    steps = draw_steps([_rename(group, repo_id) for group in family], images_dir / "scores.png")
    pictures = [steps] if steps else []
    for number, (column, members) in enumerate(columns_of(groups).items(), start=1):
        curves = draw_curves([_rename(group, repo_id) for group in members], images_dir / f"finetuning-{number}.png")
        caption = f"{column}. A line for each seed, a dot at the step that was chosen."
        pictures += [curves._replace(caption=caption)] if curves else []
    return pictures


def list_eval_results(groups: Sequence[Group]) -> list[EvalResult]:
    """Return what `model-index` of a card is made of: the mean of each reported score, in percent."""
    return [
        EvalResult(
            task_type=HUB_TASKS.get(group.first["metric"], "text-classification"),
            dataset_type=_hub_id(group) or show(group.first["task"]),
            dataset_name=show(group.first["task"]) + ("" if _is_official(group) else NOT_OFFICIAL),
            dataset_config=HUB_CONFIGS.get(group.first["task"]) if _hub_id(group) else None,
            dataset_split=TASKS[group.first["task"]].hub_split if _hub_id(group) else "test",
            metric_type=group.first["selected_by"],
            metric_value=round(100 * group.summary.mean, 2),
            metric_name=show(f"{group.first['selected_by']}, {_describe_mean(group)}"),
        )
        for group in groups
    ]


def write_eval_results(groups: Sequence[Group], release_dir: Path, repo_id: str) -> list[Path]:
    """Write `.eval_results/*.yaml`, which the Hub shows beside others' scores, and return the files.

    Only what can stand there: on a whole official test split that is on the Hub, the step chosen on dev.
    """
    paths = list[Path]()
    for group in groups:
        dataset_id = _hub_id(group)
        if dataset_id is None or group.first["selected_on"] != "dev":
            continue
        entry = EvalResultEntry(
            dataset_id=dataset_id,
            task_id=group.first["task"],
            value=round(100 * group.summary.mean, 2),
            source_url=f"https://huggingface.co/{repo_id}",
            notes="; ".join([show(f"{group.first['selected_by']}, {_describe_mean(group)}"), *group.caveats]),
        )
        directory = release_dir / EVAL_RESULTS_DIR
        directory.mkdir(exist_ok=True)
        same = [path for path in paths if path.name.startswith(f"{entry.task_id}.")]
        paths.append(directory / f"{entry.task_id}.{len(same)}.yaml" if same else directory / f"{entry.task_id}.yaml")
        write_atomically(paths[-1], yaml.safe_dump(eval_result_entries_to_yaml([entry]), allow_unicode=True))
    return paths


def _hub_id(group: Group) -> str | None:
    """Return where on the Hub the test split lies, if it is the official one and was used as a whole."""
    return TASKS[group.first["task"]].hub_id if _is_official(group) else None


def _is_official(group: Group) -> bool:
    task = TASKS.get(group.first["task"])
    if task is None or "test" in _find_caps(group.first):
        return False
    official = task.sha256.get(task.files["test"][0])
    return official is not None and group.first["data_sha256"].get("test") == official


def _find_caps(row: dict[str, Any]) -> dict[str, str]:
    """Return how many examples of a split were used, of those splits that were cut; the runner's notes say it."""
    return {split: count.replace(",", "") for note in row["notes"] for count, split in _CAPPED.findall(note)}


def _describe_mean(group: Group) -> str:
    one, first = group.summary, group.first
    parts = ["1 seed" if one.num_seeds == 1 else f"mean of {one.num_seeds} seeds"]
    if one.sd is not None:
        parts.append(f"sd {100 * one.sd:.2f}")
    if one.low is not None and one.high is not None:
        parts.append(f"95 % interval {100 * one.low:.2f} to {100 * one.high:.2f}")
    return ", ".join([*parts, f"protocol {first['protocol']}", f"step chosen on {first['selected_on']}"])


def _rename(group: Group, repo_id: str) -> Group:
    """Return a group under the name of the release: its own may be a path of this machine."""
    step = group.first["step"]
    rows = [row | {"model": repo_id, "revision": None} for row in group.rows]
    return replace(group, model=repo_id if step is None else f"{repo_id}, step {step}", rows=rows)


def _describe_command(group: Group, repo_id: str) -> str:
    """Return what makes the rows of a group again, where the data lie as the recipe looks for them."""
    first = group.first
    words = ["python", "recipes/finetune.py", "--model", repo_id, *_describe_data(first)]
    words += ["--protocol", first["protocol"], "--seeds", *(str(row["seed"]) for row in group.rows)]
    task, protocol = TASKS.get(first["task"]), PROTOCOLS.get(first["protocol"])
    usual = asdict(protocol.settle(task)) if task and protocol and task.name in (protocol.changes or TASKS) else {}
    for name in OPTIONS:
        value = first["settings"].get(name)
        words += [f"--{name}", str(value)] if value is not None and value != usual.get(name) else []
    capped = _find_caps(first)
    words += ["--max_train", capped["train"]] if "train" in capped else []
    words += ["--max_eval", capped.get("test") or capped["dev"]] if {"dev", "test"} & capped.keys() else []
    return shlex.join(map(show, words))


def _describe_data(row: dict[str, Any]) -> list[str]:
    if row["task"] in TASKS:
        task = TASKS[row["task"]]
        words = ["--task", task.name, "--data_dir", "data"]
        names = {digest: name for name, digest in task.sha256.items()}
        others = {split for note in row["notes"] for listed in _OTHERS.findall(note) for split in listed.split(", ")}
        suffix = Path(task.test_file).suffix
        for split, digest in row["data_sha256"].items():
            default = f"{RESPLIT}/{split}{suffix}" if split in others else None
            name = names.get(digest, default)  # left to itself, the recipe takes the official files where they are
            words += [] if name in (None, *task.files[split]) else [f"--{split}_file", f"data/{task.directory}/{name}"]
        return words
    columns, labels = row["columns"] or ["TEXT", "LABEL"], row["labels"] or []
    num_labels = len(labels) if columns[-len(labels) :] == labels else 1
    source = next(filter(None, map(_HUB_DATA.fullmatch, row["notes"])), None)
    words = ["--data", source[1], "--data_revision", source[2]] if source else ["--data", "FILE"]
    words += ["--text", *columns[:-num_labels], "--label", *columns[-num_labels:]]
    words += ["--labels", *labels] if labels and num_labels == 1 else []
    for split in ("dev", "test") if source is None else ():
        words += [f"--{split}_file", "FILE"] if split in row["data_sha256"] else []
    return [*map(str, words), "--name", row["task"]]
