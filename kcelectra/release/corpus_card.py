"""The card of a corpus: what it holds, and what became of the comments it was made of."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from huggingface_hub import DatasetCard, DatasetCardData
from matplotlib.figure import Figure

from kcelectra.manifest import verify_manifest, write_atomically

CARD = "README.md"
PLOTS_DIR = "plots"
SIZES = {"n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7, "10M<n<100M": 1e8}
DEDUP = {
    "global": "Of equal comments the first is kept.",
    "thread": "Of equal comments in a thread the first is kept.",
    "none": "Equal comments are kept.",
}
PERSONAL_DATA = {
    "count": "It was looked for and counted, and left in the text.",
    "mask": "It was replaced: `[PHONE]`, `[EMAIL]`, `[RRN]` (resident registration number), `[CARD]`, `[ACCOUNT]`.",
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
        "sources": [Path(source["path"]).name for source in manifest["sources"]],
        "name": (repo_id or corpus_dir.absolute().name).split("/")[-1],
        "repo_id": repo_id or corpus_dir,
        "plots_dir": PLOTS_DIR,
        "rules": [(rule, what, manifest["changed_by_rule"].get(rule, 0)) for rule, what in manifest["rules"].items()],
        "dedup": DEDUP[settings["dedup"]],
        "treatment": PERSONAL_DATA[settings["pii"]],
    }
    card_data = DatasetCardData(
        license=license,
        language="ko",
        task_categories=["fill-mask"],
        size_categories=next((size for size, end in SIZES.items() if manifest["num_kept"] < end), "100M<n<1B"),
        tags=["kcelectra", "comments"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.parquet"}]}],
    )
    template = Path(__file__).with_name("corpus_card.md.jinja")
    write_atomically(corpus_dir / CARD, str(DatasetCard.from_template(card_data, str(template), **facts)))
    return corpus_dir / CARD


def draw_corpus_plots(manifest: dict[str, Any], output_dir: Path) -> list[Path]:
    """Draw how long the comments are and what each rule changed, and return the files."""
    output_dir.mkdir(exist_ok=True)
    lengths = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = lengths.subplots()
    by_length = manifest["num_by_length"]
    axes.bar(range(len(by_length)), by_length, width=1.0)
    axes.set(title="Length of the comments", xlabel="characters (the last bar: more)", ylabel="comments")
    rules = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = rules.subplots()
    counts = manifest["changed_by_rule"] | {f"dropped: {reason}": n for reason, n in manifest["dropped"].items()}
    names = sorted(counts, key=lambda name: counts[name])
    bars = axes.barh(names, [100 * counts[name] / max(1, manifest["num_read"]) for name in names])
    axes.bar_label(bars, [f"{counts[name]:,}" for name in names], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.set(title="Comments that each rule changed or dropped", xlabel="% of the comments read")
    paths = [output_dir / "lengths.png", output_dir / "rules.png"]
    for figure, path in zip((lengths, rules), paths, strict=True):
        figure.savefig(path)
    return paths
