"""The card of a corpus: what it holds, and what became of the comments it was made of."""

import os
import shlex
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from huggingface_hub import DatasetCard, DatasetCardData
from matplotlib.figure import Figure

from kcelectra.manifest import verify_manifest, write_atomically

CARD = "README.md"
PLOTS_DIR, PLOTS = "plots", ("lengths.png", "rules.png")
SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7, "10M<n<100M": 1e8}
SIZES |= {"100M<n<1B": 1e9}
DEDUP = {
    "global": "Of equal comments the first is kept.",
    "thread": "Of equal comments in a thread the first is kept.",
    "none": "Equal comments are kept.",
}
WITHOUT_DUPLICATES = {
    "global": "without exact duplicates",
    "thread": "without exact duplicates within a thread",
    "none": "with its duplicates",
}
COLUMNS = {
    "text": "the comment, cleaned",
    "thread": "what it was written under, such as an article or a film",
    "comment_id": "its id in the source",
    "parent_id": "the `comment_id` of the comment it answers; null if none",
}
MAX_NAMED_SOURCES = 20
CHANGED, DROPPED = "tab:blue", "tab:orange"
PERSONAL_DATA = {
    "count": "Personal data was looked for and counted, and left in the text.",
    "mask": "Personal data was replaced by its kind: `[PHONE]`, `[EMAIL]`, `[RRN]`, `[CARD]`, `[ACCOUNT]`.",
    "drop": "Comments that hold any were dropped.",
}


def write_corpus_card(corpus_dir: str | Path, *, repo_id: str | None = None, license: str = "unknown") -> Path:
    """Write the card of a corpus, `README.md`, and its plots.

    Args:
        corpus_dir: what `build_corpus` made.
        repo_id: where it will be on the Hub; the directory if None.
        license: of the text, by its id on the Hub.

    Returns:
        The path of the card.

    Raises:
        InputError: the corpus is not whole.
    """
    corpus_dir = Path(corpus_dir)
    manifest = verify_manifest(corpus_dir)
    draw_corpus_plots(manifest, corpus_dir / PLOTS_DIR)
    settings = manifest["settings"]
    facts = {
        **manifest,
        "command": _describe_command(manifest),
        "at_a_glance": _describe_size(manifest),
        "named_sources": [_describe_source(source) for source in manifest["sources"][:MAX_NAMED_SOURCES]],
        "column_notes": COLUMNS,
        "license": license,
        "on_hub": repo_id is not None,
        "name": (repo_id or corpus_dir.absolute().name).split("/")[-1],
        "repo_id": repo_id or corpus_dir,
        "plots_dir": PLOTS_DIR,
        "rules": [(rule, what, manifest["changed_by_rule"].get(rule, 0)) for rule, what in manifest["rules"].items()],
        "dedup": DEDUP[settings["dedup"]],
        "without_duplicates": WITHOUT_DUPLICATES[settings["dedup"]],
        "treatment": PERSONAL_DATA[settings["pii"]],
    }
    card_data = DatasetCardData(
        license=license,
        language="ko",
        pretty_name=facts["name"],
        annotations_creators=["no-annotation"],
        language_creators=["found"],
        multilinguality=["monolingual"],
        task_categories=["fill-mask", "text-generation"],
        task_ids=["masked-language-modeling", "language-modeling"],
        size_categories=next((size for size, end in SIZES.items() if manifest["num_kept"] < end), "1B<n<10B"),
        tags=["kcelectra", "comments"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.parquet"}]}],
    )
    template = Path(__file__).with_name("corpus_card.md.jinja")
    write_atomically(corpus_dir / CARD, str(DatasetCard.from_template(card_data, str(template), **facts)))
    return corpus_dir / CARD


def _describe_size(manifest: dict[str, Any]) -> dict[str, str]:
    """Return what a visitor asks first."""
    num_by_length = np.array(manifest["num_by_length"])
    ranks = np.cumsum(num_by_length) / max(1, num_by_length.sum())
    half, most, nearly_all = (int(np.searchsorted(ranks, share)) for share in (0.5, 0.9, 0.99))
    shards = [file for name, file in manifest["files"].items() if name.endswith(".parquet")]
    size = sum(file["size"] for file in shards)
    return {
        "comments": f"{manifest['num_kept']:,}",
        "length": f"half have at most {half} characters, 90 % at most {most}, 99 % at most {nearly_all}",
        "download": f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB",
        "files": f"{len(shards):,} Parquet files (zstd), one split: `train`",
    }


def _describe_source(source: dict[str, Any]) -> tuple[str, str]:
    """Return the name of a source, and what tells which one it was."""
    if "revision" in source:
        path = source["path"]
        return f"[{path}](https://huggingface.co/datasets/{path})", f"commit `{source['revision'][:8]}`"
    return f"`{Path(source['path']).name}`", f"{source['size'] / 1e6:,.1f} MB"


def _describe_command(manifest: dict[str, Any]) -> str:
    """Return what builds the corpus; a file goes by its name alone, a dataset of the Hub by its id."""
    paths = [source["path"] for source in manifest["sources"]]
    words = ["--sources", *(Path(path).name if os.path.isabs(path) else path for path in paths)]
    for key, value in manifest["settings"].items():
        words += [] if value is None else [f"--{key}", str(value)]
    return shlex.join(["python", "recipes/build_corpus.py", *words])


def draw_corpus_plots(manifest: dict[str, Any], output_dir: Path) -> list[Path]:
    """Draw how long the comments are and what each rule changed, and return the files."""
    output_dir.mkdir(exist_ok=True)
    lengths = Figure(figsize=(7.2, 3.0), dpi=150, layout="constrained")
    axes = lengths.subplots()
    by_length = np.array(manifest["num_by_length"])
    shares = np.cumsum(by_length) / max(1, by_length.sum())
    end = min(int(np.searchsorted(shares, 0.999)) + 2, len(by_length))  # the longest 0.1 % would squeeze the others
    axes.stairs(by_length[:end], np.arange(end + 1) - 0.5, fill=True, color=CHANGED)  # four times as fast as bars
    median = int(np.searchsorted(shares, 0.5))
    axes.axvline(median, color=DROPPED, linewidth=1)
    axes.annotate(
        f"median {median}",
        (median, 1),
        (4, -4),
        ("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        color=DROPPED,
    )
    axes.set(title="Length of the comments", xlabel="characters", ylabel="comments", xlim=(0, end))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    rules = Figure(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    axes = rules.subplots()
    num_read = max(1, manifest["num_read"])
    counts = {name: (count, CHANGED) for name, count in manifest["changed_by_rule"].items()}
    counts |= {f"dropped: {reason}": (count, DROPPED) for reason, count in manifest["dropped"].items()}
    names = sorted(counts, key=lambda name: counts[name][0])
    bars = axes.barh(
        names, [100 * counts[name][0] / num_read for name in names], color=[counts[name][1] for name in names]
    )
    labels = [f"{counts[name][0]:,}  ({counts[name][0] / num_read:.2%})" for name in names]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.margins(x=0.25)
    axes.set(title="Comments changed or dropped", xlabel="% of the comments read")
    axes.spines[["top", "right"]].set_visible(False)
    paths = [output_dir / name for name in PLOTS]
    for figure, path in zip((lengths, rules), paths, strict=True):
        figure.savefig(path)
    return paths
