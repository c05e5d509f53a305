"""Vocabularies side by side: as JSON, as a page in Markdown, as one picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from jinja2 import Environment
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from kcelectra.errors import InputError
from kcelectra.finetuning.coverage import measure_coverage, measure_span_ceiling
from kcelectra.finetuning.sources import read_rows, read_spans
from kcelectra.finetuning.tasks import TASKS
from kcelectra.hub import split_revision
from kcelectra.manifest import read_manifest, write_atomically
from kcelectra.tokenization.loading import identify_tokenizer, load_tokenizer, tokens_by_id
from kcelectra.tokenization.vocabulary import hash_vocabulary

JSON_FILE, PAGE_FILE, PLOT_FILE = "tokenizers.json", "README.md", "tokenizers.png"
SPAN_TASK = "korquad"
CORPUS = "corpus"
CORPUS_MAX_LENGTH = 128  # of a row in pretraining
MAX_TEXTS = 20_000  # of the corpus
MEASURES = {
    "tokens_per_eojeol": ("Tokens per eojeol", "{:.3f}"),
    "unk_share": ("Tokens that are [UNK]", "{:.4%}"),
    "truncated_share": ("Rows longer than the task's maximum", "{:.2%}"),
    "emoji_whole": ("Emoji within one token", "{:.1%}"),
    "jamo_whole": ("Runs of jamo (ㅋㅋ, ㅠㅠ) within one token", "{:.1%}"),
}
_PAGE = """# Vocabularies side by side

Measured on texts as they are, not cleaned; `corpus` are comments as pretraining reads them. All of it is in
`tokenizers.json`.

![Tokens per eojeol, span ceiling, \\[UNK\\], overlap](tokenizers.png)

| vocabulary | tokens | sha256 | answers that can be given exactly (KorQuAD 1.0 dev) |
|---|--:|---|--:|
{% for name, one in vocabularies.items() -%}
| {{ name }} | {{ "{:,}".format(one.num_tokens) }} | `{{ one.sha256[:12] }}` | {{ percent(one.span_ceiling) }} |
{% endfor %}
No exact match of an extractive model can be above the last column: its answers begin and end with a token.
{% for key, (title, form) in measures.items() %}
## {{ title }}

| vocabulary |{% for set in sets %} {{ set }} |{% endfor %}
|---|{% for set in sets %}--:|{% endfor %}
{% for name, one in vocabularies.items() -%}
| {{ name }} |{% for set in sets %} {{ show(one.coverage[set][key], form) }} |{% endfor %}
{% endfor %}
{%- endfor %}
The maximum lengths:{% for set in sets %} {{ set }} {{ max_lengths[set] }}{{ "." if loop.last else "," }}{% endfor %}
{%- if missing %} Not measured, as there is no such file: {{ missing | join(", ") }}.{% endif %}

## Tokens in common

| |{% for name in vocabularies %} {{ name }} |{% endfor %}
|---|{% for name in vocabularies %}--:|{% endfor %}
{% for name, row in overlap.items() -%}
| {{ name }} |{% for count in row.values() %} {{ "{:,}".format(count) }} |{% endfor %}
{% endfor %}
## What is lost

Words that most often become `[UNK]`, all sets together, and how often.

| vocabulary | words |
|---|---|
{% for name, one in vocabularies.items() -%}
| {{ name }} | {{ words(one) }} |
{% endfor %}
{%- for name, one in vocabularies.items() if one.outside_alphabet %}
{{ name }}: outside its alphabet are {{ "{:,}".format(one.outside_alphabet.num_characters) }} characters of its corpus,
which occur {{ "{:,}".format(one.outside_alphabet.num_occurrences) }} times
{%- if one.outside_alphabet.most_frequent %}: {{ one.outside_alphabet.most_frequent | join(" ") }}{% endif %}.
{% endfor -%}
"""


def write_tokenizer_report(
    sources: Sequence[str | Path],
    output_dir: str | Path,
    *,
    data_dir: str | Path | None = None,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare tokenizers on the tasks, and write `tokenizers.json`, `README.md` and `tokenizers.png`.

    Args:
        sources: what `load_tokenizer` takes; one of the Hub as `OWNER/NAME@REVISION`.
        output_dir: made if it does not exist.
        data_dir: the directory of all tasks; those whose file is not there are named and left out.
        texts: comments to measure on too, such as some of the corpus; the first `MAX_TEXTS`.

    Returns:
        What `tokenizers.json` holds.

    Raises:
        InputError: a tokenizer or a file cannot be read, or there is nothing to measure on.
    """
    rows, missing = _read_sets(data_dir, texts)
    spans = read_spans(TASKS[SPAN_TASK], data_dir) if data_dir is not None and SPAN_TASK in rows else []
    max_lengths = {name: TASKS[name].max_length if name in TASKS else CORPUS_MAX_LENGTH for name in rows}
    vocabularies: dict[str, dict[str, Any]] = {}
    tokens: dict[str, set[str]] = {}
    for source in sources:
        tokenizer = _load(source)
        name = _name_of(source, tokenizer, vocabularies)
        tokens[name] = set(tokens_by_id(tokenizer))
        vocabularies[name] = {
            "source": str(source),
            "num_tokens": len(tokenizer),
            "sha256": hash_vocabulary(tokens_by_id(tokenizer)),
            "span_ceiling": measure_span_ceiling(tokenizer, spans) if spans else None,
            "coverage": {
                set_name: measure_coverage(tokenizer, rows[set_name], max_length=max_lengths[set_name])
                for set_name in rows
            },
            "outside_alphabet": (_manifest_of(source) or {}).get("outside_alphabet"),
        }
    overlap = {one: {other: len(tokens[one] & tokens[other]) for other in tokens} for one in tokens}
    report = {"vocabularies": vocabularies, "overlap": overlap, "max_lengths": max_lengths, "missing": missing}
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    _draw(report, output_dir / PLOT_FILE)
    write_atomically(output_dir / PAGE_FILE, _render(report))
    write_atomically(output_dir / JSON_FILE, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    return report


def describe_tokenizers(report: dict[str, Any]) -> str:
    """Return a table of what matters most, for a terminal."""
    first = next(name for name in ("nsmc", *report["max_lengths"]) if name in report["max_lengths"])
    lines = [f"{'':<40}{'tokens':>8}{'per eojeol':>12}{'[UNK]':>10}{'span ceiling':>14}   ({first}, KorQuAD)"]
    for name, one in report["vocabularies"].items():
        coverage = one["coverage"][first]
        values = (_show(coverage[key], MEASURES[key][1]) for key in ("tokens_per_eojeol", "unk_share"))
        per_eojeol, unk = values
        lines.append(f"{name:<40}{one['num_tokens']:>8,}{per_eojeol:>12}{unk:>10}{_percent(one['span_ceiling']):>14}")
    return "\n".join(lines)


def check_sources(sources: Sequence[str | Path], *, data_dir: str | Path | None = None) -> None:
    """See that what will be compared can be read, before hours of training.

    Raises:
        InputError: a tokenizer cannot be loaded, or there is no file of any task.
    """
    for source in sources:
        _load(source)
    if data_dir is not None:
        _find_tasks(data_dir)


def _find_tasks(data_dir: str | Path) -> list[str]:
    names = [name for name, task in TASKS.items() if Path(data_dir, task.test_file).is_file()]
    if not names:
        raise InputError(
            f"no file of a task in {data_dir}, such as {TASKS['nsmc'].test_file}; give another --data_dir"
        )
    return names


def _read_sets(
    data_dir: str | Path | None, texts: Sequence[str]
) -> tuple[dict[str, list[tuple[str, ...]]], list[str]]:
    names = _find_tasks(data_dir) if data_dir is not None else []
    rows = {name: read_rows(TASKS[name], str(data_dir)) for name in names}
    if texts:
        rows[CORPUS] = [(text,) for text in texts[:MAX_TEXTS]]
    if not rows:
        raise InputError("nothing to measure on; give --data_dir, the directory of the tasks, or --corpus_dir")
    return rows, [f"{name} ({task.test_file})" for name, task in TASKS.items() if name not in rows]


def _load(source: str | Path) -> PreTrainedTokenizerBase:
    root, revision = split_revision(str(source))
    return load_tokenizer(root, revision=revision, for_pretraining=False)


def _manifest_of(source: str | Path) -> dict[str, Any] | None:
    return read_manifest(source) if Path(source).is_dir() else None


def _name_of(source: str | Path, tokenizer: PreTrainedTokenizerBase, taken: dict[str, Any]) -> str:
    known = identify_tokenizer(tokenizer)
    path = Path(source)
    name = (
        known.name
        if known
        else path.stem
        if path.suffix == ".txt"
        else str(source)
        if "@" in str(source)
        else path.name
    )
    return name if name not in taken else str(source)


def _render(report: dict[str, Any]) -> str:
    environment = Environment(keep_trailing_newline=True)
    facts = {**report, "sets": list(report["max_lengths"]), "measures": MEASURES}
    return environment.from_string(_PAGE).render(**facts, show=_show, percent=_percent, words=_describe_lost)


def _describe_lost(vocabulary: dict[str, Any]) -> str:
    lost: dict[str, int] = {}
    for coverage in vocabulary["coverage"].values():
        for word, count in coverage["unknown"].items():
            lost[word] = lost.get(word, 0) + count
    ranked = sorted(lost.items(), key=lambda item: (-item[1], item[0]))[:12]
    return ", ".join(f"`{word.replace('|', '¦').replace('`', chr(39))}` {count}" for word, count in ranked) or "none"


def _show(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _percent(value: float | None) -> str:
    return _show(value, "{:.1%}")


def _draw(report: dict[str, Any], path: Path) -> None:
    """Draw what matters most: tokens per eojeol by set, the span ceiling, [UNK] by set, the overlap."""
    vocabularies, sets = report["vocabularies"], list(report["max_lengths"])
    names = list(vocabularies)
    colors = matplotlib.colormaps["tab10"](np.arange(len(names)) % 10)
    figure = Figure(figsize=(13, 3 + 0.9 * len(names)), dpi=120, layout="constrained")
    (tokens, ceiling), (unk, overlap) = figure.subplots(2, 2, width_ratios=[3, 2])
    width = 0.8 / len(names)
    for axes, key, factor, title in (
        (tokens, "tokens_per_eojeol", 1, "Tokens per eojeol"),
        (unk, "unk_share", 100, "[UNK], % of the tokens"),
    ):
        for number, name in enumerate(names):
            heights = [factor * (vocabularies[name]["coverage"][set_name][key] or 0) for set_name in sets]
            axes.bar(np.arange(len(sets)) + number * width, heights, width, color=colors[number], label=name)
        axes.set_xticks(np.arange(len(sets)) + 0.4 - width / 2, sets, rotation=30, ha="right")
        axes.set_title(title)
    figure.legend(
        *tokens.get_legend_handles_labels(), fontsize=8, ncols=min(len(names), 4), loc="outside lower center"
    )
    ceilings = [100 * (vocabularies[name]["span_ceiling"] or 0) for name in names]
    ceiling.bar_label(ceiling.barh(names, ceilings, color=colors), fmt="%.1f", padding=3, fontsize=8)
    ceiling.set(title="KorQuAD answers that can be given exactly, %", xlim=(0, 110))
    ceiling.invert_yaxis()
    shares = np.array(
        [[count / vocabularies[one]["num_tokens"] for count in row.values()] for one, row in report["overlap"].items()]
    )
    overlap.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        overlap.text(
            column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color="k" if share < 0.6 else "w"
        )
    overlap.set_xticks(range(len(names)), range(1, len(names) + 1))
    overlap.set_yticks(range(len(names)), [f"{number}  {name}" for number, name in enumerate(names, start=1)])
    overlap.set_title("% of a row's tokens that a column has")
    for axes in (tokens, unk, ceiling):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    overlap.tick_params(labelsize=8)
    figure.savefig(path)
