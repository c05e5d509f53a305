"""Build a corpus: raw comments in, clean ones without duplicates out, in Parquet shards with their counts."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kcelectra.corpus.cleaning import RULE_SETS, get_rules
from kcelectra.corpus.comments import find_files, find_revision
from kcelectra.corpus.dedup import SCOPES
from kcelectra.corpus.formats import check_file, split_file
from kcelectra.corpus.rows import Part, UnreadableFile
from kcelectra.corpus.shards import (
    PERSONAL_DATA,
    Step,
    clean_part,
    count_tasks,
    drop_duplicates,
    finish_corpus,
    write_shard,
)
from kcelectra.corpus.work_dir import WORK_DIR, read_earlier, read_json, write_json
from kcelectra.corpus.workers import num_cores, run_tasks
from kcelectra.errors import InputError
from kcelectra.manifest import verify_manifest

#: What the result depends on; the other arguments say how it is got.
SETTINGS = ("rules", "text_column", "split", "revision", "min_chars", "dedup", "pii", "shard_mb")
PROGRESS = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}"


@dataclass
class CorpusArguments:
    """What a corpus is built of, and how."""

    sources: list[str] = field(
        default_factory=list, metadata={"help": "Files, quoted globs, directories or Hub ids, in this order."}
    )
    output_dir: str = field(default="out/corpus", metadata={"help": "Where the shards and manifest.json go."})
    rules: str = field(default="corpus", metadata={"help": f"Rule set that cleans: {', '.join(RULE_SETS)}."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the comment."})
    split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    revision: str | None = field(default=None, metadata={"help": "Revision of a Hub dataset."})
    min_chars: int = field(default=10, metadata={"help": "Drop comments with fewer characters after cleaning."})
    dedup: str = field(
        default="global", metadata={"help": "Drop what repeats an earlier comment: global, of its thread, or none."}
    )
    pii: str = field(default="count", metadata={"help": "Personal data: count, mask, or drop the comment."})
    shard_mb: int = field(default=256, metadata={"help": "MiB of text in a shard."})
    num_workers: int | None = field(default=None, metadata={"help": "Processes; one a core if not given."})
    memory_mb: int = field(default=192, metadata={"help": "MiB that dedup may use; what is more goes to the disk."})
    part_mb: int = field(default=32, metadata={"help": "MiB of input that a process takes at a time."})
    skip_damaged: bool = field(
        default=False, metadata={"help": "Keep what can be read of a damaged file instead of stopping."}
    )

    def __post_init__(self) -> None:
        get_rules(self.rules)
        for name, known in (("dedup", SCOPES), ("pii", PERSONAL_DATA)):
            if getattr(self, name) not in known:
                raise InputError(f"--{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")
        for name in ("shard_mb", "memory_mb", "part_mb", "num_workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; give 1 or more")


def build_corpus(sources: str | Path | Sequence[str | Path], output_dir: str | Path, **options: Any) -> dict[str, Any]:
    """Build a corpus of raw comments.

    The same call again goes on where one was interrupted, and leaves a finished corpus as it is.

    Args:
        sources: files, globs, directories or Hub ids.
        output_dir: for `train-*.parquet` with a column `text`, and `thread`, `comment_id` and `parent_id` where they
            are known, and `manifest.json`.
        **options: the other fields of `CorpusArguments`.

    Returns:
        The manifest: settings, sources, and counts of what was read, changed and dropped.

    Raises:
        InputError: a source cannot be read, `output_dir` holds something else, or no comment is left.
    """
    listed = [sources] if isinstance(sources, str | Path) else sources
    arguments = CorpusArguments(sources=list(map(str, listed)), output_dir=str(output_dir), **options)
    try:
        work_dir = plan_corpus(arguments)
        if work_dir is not None:
            for step in (clean_part, drop_duplicates, write_shard):
                run_step(step, work_dir, num_workers=arguments.num_workers or num_cores())
            finish_corpus(work_dir)
    except OSError as error:
        raise InputError(f"{error}; the same command goes on where this one ended") from error
    return verify_manifest(output_dir)


def run_step(step: Step, work_dir: str, *, num_workers: int) -> None:
    """Do one step of a planned corpus, with a progress bar: time left, rows a second, and what was dropped."""
    weights = [1] * count_tasks(step, work_dir)
    if step is clean_part:
        weights = [part["num_bytes"] for part in read_json(work_dir, "plan.json")["parts"]]
    done: Counter[str] = Counter()
    with tqdm(total=sum(weights), desc=step.__name__.replace("_", " "), bar_format=PROGRESS) as bar:

        def show(task: int, result: dict[str, Any]) -> None:
            done.update(result["counts"], rows=result["num_rows"])
            bar.set_postfix_str(_describe_progress(done.copy(), bar.format_dict["elapsed"]), refresh=False)
            bar.update(weights[task])

        run_tasks(step, work_dir, range(len(weights)), num_workers=num_workers, on_done=show)


def _describe_progress(done: Counter[str], seconds: float) -> str:
    rows = done.pop("rows")
    text = f"{rows:,} rows, {rows / max(seconds, 0.001):,.0f} rows/s"
    dropped = [f", {reason} {count / rows:.1%}" for reason, count in done.most_common(4) if rows and count]
    return text + "".join(dropped)


def plan_corpus(arguments: CorpusArguments) -> str | None:
    """Claim the output directory, and split the sources into parts.

    Returns:
        The directory that `clean_part`, `drop_duplicates`, `write_shard` and `finish_corpus` work in; None if the
        corpus is there already.

    Raises:
        InputError: a source cannot be read, or the output directory holds another corpus or something else.
    """
    if not arguments.sources:
        raise InputError("no comments; give --sources with files, quoted globs, directories or Hub ids")
    output_dir, work_dir = Path(arguments.output_dir), Path(arguments.output_dir, WORK_DIR).absolute()
    found = {source: find_files(source) or [source] for source in arguments.sources}
    files = [os.path.abspath(file) if os.path.lexists(file) else file for names in found.values() for file in names]
    outside = [file for file in files if not Path(file).is_relative_to(work_dir.parent)]  # its own shards are inside
    files = list(dict.fromkeys(outside or files))
    plan = {
        "settings": {key: value for key, value in asdict(arguments).items() if key in SETTINGS},
        "sources": [_describe_source(file, arguments) for file in files],
    }
    earlier = read_earlier(output_dir, work_dir, stage="corpus", key="sources", what="corpus")
    if earlier is None:
        plan["parts"] = [asdict(part) for file in files for part in _split_source(file, arguments)]
    else:
        _require_same(output_dir, earlier, plan)
        if "files" in earlier:
            shutil.rmtree(work_dir, ignore_errors=True)  # of a run that ended between its last two steps
            return None
        plan["parts"] = earlier["parts"]
    plan["resources"] = {
        "num_workers": arguments.num_workers or num_cores(),
        "memory_mb": arguments.memory_mb,
        "skip_damaged": arguments.skip_damaged,
    }
    write_json(work_dir, "plan.json", plan)
    return str(work_dir)


def _describe_source(file: str, arguments: CorpusArguments) -> dict[str, Any]:
    """Return what tells if a source has changed."""
    if os.path.isabs(file):
        try:
            check_file(file, arguments.text_column)
        except UnreadableFile:
            if not arguments.skip_damaged:
                raise
        status = os.stat(file)
        return {"path": file, "size": status.st_size, "modified_ns": status.st_mtime_ns}
    return {"path": file, "revision": find_revision(file, arguments.revision)}


def _split_source(file: str, arguments: CorpusArguments) -> list[Part]:
    try:
        return split_file(file, arguments.part_mb << 20) if os.path.isabs(file) else [Part(file)]
    except UnreadableFile:
        return [Part(file)]  # `clean_part` says so


def _require_same(output_dir: Path, earlier: dict[str, Any], plan: dict[str, Any]) -> None:
    settings, sources = earlier["settings"], {source["path"]: source for source in earlier["sources"]}
    changed = [
        f"--{key} was {settings.get(key)!r} and is {value!r}"
        for key, value in plan["settings"].items()
        if settings.get(key) != value
    ]
    now = {source["path"]: source for source in plan["sources"]}
    changed += [f"{path} is new" for path in now if path not in sources]
    changed += [f"{path} is gone" for path in sources if path not in now]
    changed += [f"{path} has changed" for path in now if path in sources and now[path] != sources[path]]
    if list(now) != list(sources) and not changed:
        changed = ["the sources come in another order"]
    if changed:
        what = "a corpus" if "files" in earlier else "an unfinished corpus"
        raise InputError(
            f"{output_dir} holds {what} of something else: {'; '.join(changed[:5])}; "
            "give another --output_dir, or delete this one"
        )


def describe_corpus(manifest: dict[str, Any]) -> str:
    """Return a table of what became of the comments, rule by rule."""
    num_read = max(1, manifest["num_read"])
    sections = {
        "comments": {"read": manifest["num_read"], "kept": manifest["num_kept"]},
        "dropped": manifest["dropped"],
        "changed by rule": manifest["changed_by_rule"],
        "personal data": manifest["personal_data"],
    }
    lines = []
    for title, counts in sections.items():
        lines.append(title)
        lines += [f"  {name:<32}{count:>14,}{count / num_read:>10.3%}" for name, count in counts.items()] or ["  none"]
    return "\n".join([*lines, *manifest["bad_rows"], *manifest["damaged_files"]])
