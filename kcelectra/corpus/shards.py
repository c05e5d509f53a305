"""The steps of a corpus: clean a part, drop duplicates, write a shard, finish. Each may be killed and done again.

They work in the directory that `plan_corpus` makes, each on one task of a number: in processes of one machine or on a
cluster. A file is there whole or not at all, so the result does not depend on who did what, or when.
"""

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kcelectra.corpus.cleaning import get_rules
from kcelectra.corpus.comments import read_hub
from kcelectra.corpus.dedup import DROPPED, KEY_SCHEMA, POSITION_BITS, find_dropped, hash_texts
from kcelectra.corpus.formats import read_part
from kcelectra.corpus.personal_data import find_personal_data, mask_personal_data, may_hold_personal_data, reveal
from kcelectra.corpus.rows import OPTIONAL_COLUMNS, Part, Rows, UnreadableFile
from kcelectra.corpus.vectorized import clean_batch, find_suspects
from kcelectra.corpus.work_dir import read_json, write_json
from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest, write_manifest

PERSONAL_DATA = ("count", "mask", "drop")
ROW_GROUP_ROWS = 50_000
ROW_GROUP_BYTES = 32 << 20  # of text, where comments are longer than any
WINDOW_ROWS = 1 << 19  # of a part, whose fate is held in memory
MAX_LENGTH_COUNTED = 500  # characters; longer comments are counted as this long
MAX_NAMED_ROWS = 20  # bad rows of a part that are named; the others are counted
THREAD_MB = 48  # of dedup; with less to each of 16 threads, 2 M comments with parents do not fit into 192
TEXT_SCHEMA = pa.schema([("position", pa.int64()), *((name, pa.string()) for name in ("text", *OPTIONAL_COLUMNS))])


#: A step: its work directory and its task in, `counts` and `num_rows` of what it did out.
Step = Callable[[str, int], dict[str, Any]]


def count_tasks(step: Step, work_dir: str) -> int:
    """Return how many tasks a step has, once the one before it is done."""
    if step in SINGLE_STEPS:
        return 1
    file, key = ("plan.json", "parts") if step is clean_part else ("shards.json", "shards")
    return len(read_json(work_dir, file)[key])


def clean_part(work_dir: str, index: int) -> dict[str, Any]:
    """Clean a part of the sources, and hash what may be kept of it.

    Returns:
        Its counts.

    Raises:
        InputError: its file is damaged, and `skip_damaged` is not set.
    """
    name = f"{index:06d}"
    done = read_json(work_dir, f"counts/{name}.json")
    if done is not None:
        return done
    plan = read_json(work_dir, "plan.json")
    part = Part(**plan["parts"][index])
    batches = _read(part, plan)
    tally = _Tally(index, plan["settings"])
    texts_file, keys_file = (Path(work_dir, kind, f"{name}.parquet") for kind in ("cleaned", "keys"))
    with (
        _open_writer(work_dir, texts_file, TEXT_SCHEMA, compression="lz4") as text_writer,
        _open_writer(work_dir, keys_file, KEY_SCHEMA, compression="none") as key_writer,
    ):
        try:
            for rows in batches:
                texts, hashes = tally.clean(rows)
                text_writer.write_table(texts)
                key_writer.write_table(hashes)
        except UnreadableFile as error:
            if not plan["resources"]["skip_damaged"]:
                raise InputError(
                    f"{error}; repair it, delete {Path(work_dir).parent} and start again, or keep what can be read "
                    "with --skip_damaged true"
                ) from error
            tally.damage = str(error)
        except InputError as error:  # of a dataset of the Hub, whose cure is another plan
            raise InputError(f"{error}, and delete {Path(work_dir).parent} first") from error
    return write_json(work_dir, f"counts/{name}.json", tally.to_json(part))


def _read(part: Part, plan: dict[str, Any]) -> Iterator[Rows]:
    settings = plan["settings"]
    source = next(source for source in plan["sources"] if source["path"] == part.file)
    if "revision" in source:
        where = {"split": settings["split"], "revision": source["revision"]}
        return (rows for _, rows in read_hub(part.file, settings["text_column"], **where))
    try:
        status = os.stat(part.file)
    except OSError as error:
        raise InputError(f"cannot read {part.file}: {error}; put it back, and the same command goes on") from error
    if (status.st_size, status.st_mtime_ns) != (source["size"], source["modified_ns"]):
        raise InputError(f"{part.file} has changed since the build began; delete its output directory and start again")
    return read_part(part, settings["text_column"])


class _Tally:
    """Cleans the comments of a part, and counts what becomes of them."""

    def __init__(self, index: int, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.next_position = index << POSITION_BITS
        self.num_rows = 0
        self.counts: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        self.personal_data: Counter[str] = Counter()
        self.columns: set[str] = set()
        self.bad_rows: list[tuple[int, str]] = []
        self.damage: str | None = None

    def clean(self, rows: Rows) -> tuple[pa.Table, pa.Table]:
        """Return what may be kept of some rows, of `TEXT_SCHEMA` and of `KEY_SCHEMA`."""
        for number, reason in rows.bad:
            self.counts[reason] += 1
            self.bad_rows.append((self.num_rows + number + 1, reason))
        del self.bad_rows[MAX_NAMED_ROWS:]
        self.num_rows += len(rows)
        raw, private = self._treat_personal_data(rows.columns[self.settings["text_column"]])
        texts = clean_batch(raw, self.settings["rules"], counts=self.rules)
        if self.settings["pii"] != "count":  # what is hidden by what cleaning takes away
            texts, private = self._treat_personal_data(texts, private)
        columns = {name: rows.columns.get(name) or [None] * len(raw) for name in OPTIONAL_COLUMNS}
        kept = self._choose(texts, columns["comment_id"], private)
        columns = {name: [values[i] for i in kept] for name, values in columns.items()}
        texts = [texts[i] for i in kept]
        position = np.arange(self.next_position, self.next_position + len(kept))
        self.next_position += len(kept)
        table = pa.table({"position": position, "text": texts, **columns}, schema=TEXT_SCHEMA)
        self.columns |= {name for name in OPTIONAL_COLUMNS if table[name].null_count < len(kept)}
        hashes = hash_texts(texts, columns["thread"] if self.settings["dedup"] == "thread" else None)
        keys = {
            "position": position,
            "high": hashes[:, 0],
            "low": hashes[:, 1],
            "num_bytes": pc.binary_length(table["text"]),
            "is_short": pc.less(pc.utf8_length(table["text"]), self.settings["min_chars"]),
        }
        return table, pa.table(keys, schema=KEY_SCHEMA)

    def _treat_personal_data(self, texts: list[str], private: list[int] | None = None) -> tuple[list[str], list[int]]:
        """Count personal data; return the texts, masked if that is asked for, and which ones are to be dropped.

        Args:
            texts: comments.
            private: those that are to be dropped already.
        """
        texts, private = list(texts), list(private or ())
        for i in np.setdiff1d(find_suspects(texts), private).tolist():
            if may_hold_personal_data(texts[i]):
                revealed = reveal(texts[i])
                kinds = [kind for kind, _, _ in find_personal_data(revealed)]
                self.personal_data.update(kinds)
                if kinds and self.settings["pii"] == "mask":
                    texts[i] = mask_personal_data(revealed)
                elif kinds and self.settings["pii"] == "drop":
                    private.append(i)
        return texts, private

    def _choose(self, texts: list[str], comment_ids: list[str | None], private: list[int]) -> list[int]:
        """Count comments, and return those that may be kept: a short one may for its replies."""
        length = np.fromiter(map(len, texts), np.int64, len(texts))
        is_private = np.zeros(len(length), bool)
        is_private[private] = True
        has_id = np.array([comment_id is not None for comment_id in comment_ids], bool)
        is_short = (length > 0) & (length < self.settings["min_chars"]) & ~has_id
        reasons = {
            "personal data": is_private,
            "empty": ~is_private & (length == 0),
            "too short": ~is_private & is_short,
        }
        self.counts.update({reason: int(dropped.sum()) for reason, dropped in reasons.items()})
        return np.flatnonzero(~np.any(list(reasons.values()), axis=0)).tolist()

    def to_json(self, part: Part) -> dict[str, Any]:
        """Return all counts."""
        return {
            "num_bytes": part.num_bytes,
            "num_rows": self.num_rows,
            "counts": dict(self.counts),
            "rules": dict(self.rules),
            "personal_data": dict(self.personal_data),
            "columns": sorted(self.columns),
            "bad_rows": self.bad_rows,
            "damage": self.damage,
        }


def drop_duplicates(work_dir: str, index: int = 0) -> dict[str, Any]:
    """Find what is not kept, and cut what is into shards, once every part is clean.

    Returns:
        Its counts.

    Raises:
        InputError: no comment is left, or dedup needs more memory.
    """
    done = read_json(work_dir, "shards.json")
    if done is not None:
        return done
    plan = read_json(work_dir, "plan.json")
    parts = [read_json(work_dir, f"counts/{part:06d}.json") for part in range(len(plan["parts"]))]
    columns = {column for part in parts for column in part["columns"]}
    memory_mb = plan["resources"]["memory_mb"]
    dropped, num_rescued = find_dropped(
        work_dir,
        has_parents="parent_id" in columns,
        scope=plan["settings"]["dedup"],
        memory_limit=f"{memory_mb}MiB",
        num_threads=max(1, min(plan["resources"]["num_workers"], memory_mb // THREAD_MB)),
    )
    shards = _cut_shards(work_dir, len(parts), plan["settings"]["shard_mb"] << 20)
    if not shards:
        counts = sum((Counter(part["counts"]) for part in parts), Counter(dropped))
        listed = ", ".join(f"{reason}: {count}" for reason, count in counts.items() if count)
        cure = "look at the sources, or give another --text_column or a lower --min_chars"
        if counts["invalid UTF-8"]:
            cure = "convert files of another encoding, such as `iconv -f CP949 -t UTF-8`"
        shutil.rmtree(work_dir)  # which holds the output directory for the plan that the cure changes
        raise InputError(f"no comment is left ({listed or 'the sources are empty'}); {cure}")
    known = ["text", *(name for name in OPTIONAL_COLUMNS if name in columns)]
    facts = {"shards": shards, "columns": known, "num_rescued": num_rescued, "num_rows": 0, "counts": dropped}
    return write_json(work_dir, "shards.json", facts)


def _cut_shards(work_dir: str, num_parts: int, shard_bytes: int) -> list[list[tuple[int, int, int]]]:
    """Return of each shard the slices `(part, start, stop)` it is made of; it ends where its text is long enough."""
    shards: dict[int, list[tuple[int, int, int]]] = {}
    num_bytes = 0
    for part in range(num_parts):
        first = 0
        with pq.ParquetFile(Path(work_dir, "keys", f"{part:06d}.parquet")) as keys:
            for batch in keys.iter_batches(WINDOW_ROWS, columns=["num_bytes"], use_threads=False):
                is_kept = _kept(work_dir, part, first, first + len(batch))
                kept = np.where(is_kept, batch["num_bytes"].to_numpy(), 0).astype(np.int64)
                shard_of = (num_bytes + np.cumsum(kept) - kept) // shard_bytes
                num_bytes += int(kept.sum())
                edges = [0, *(np.flatnonzero(np.diff(shard_of)) + 1).tolist(), len(kept)]
                for start, stop in itertools.pairwise(edges):
                    if is_kept[start:stop].any():
                        shards.setdefault(int(shard_of[start]), []).append((part, first + start, first + stop))
                first += len(batch)
    return list(shards.values())


def _kept(work_dir: str, part: int, start: int, stop: int) -> np.ndarray:
    """Return (stop - start,) bool: which rows of a part are kept."""
    first = (part << POSITION_BITS) + start
    inside = [("position", ">=", first), ("position", "<", first + stop - start)]
    kept = np.ones(stop - start, bool)
    kept[pq.read_table(Path(work_dir, DROPPED), filters=inside)["position"].to_numpy() - first] = False
    return kept


def write_shard(work_dir: str, index: int) -> dict[str, Any]:
    """Write one shard; return the number of its comments by length."""
    name = f"shards/{index:06d}.json"
    done = read_json(work_dir, name)
    shards, columns = (read_json(work_dir, "shards.json")[key] for key in ("shards", "columns"))
    path = Path(work_dir).parent / f"train-{index:05d}-of-{len(shards):05d}.parquet"
    if done is not None and path.exists():
        return done
    num_by_length = np.zeros(MAX_LENGTH_COUNTED + 1, np.int64)
    schema = pa.schema([TEXT_SCHEMA.field(column) for column in columns])
    with _open_writer(work_dir, path, schema, compression="zstd") as writer:
        for table in _in_row_groups(_read_slices(work_dir, shards[index], columns)):
            chars = pc.utf8_length(table["text"]).to_numpy()
            num_by_length += np.bincount(np.minimum(chars, MAX_LENGTH_COUNTED), minlength=len(num_by_length))
            writer.write_table(table.combine_chunks())  # pages end where chunks do
    num_rows = int(num_by_length.sum())
    return write_json(work_dir, name, {"num_rows": num_rows, "num_by_length": num_by_length.tolist(), "counts": {}})


def _read_slices(work_dir: str, slices: list[tuple[int, int, int]], columns: list[str]) -> Iterator[pa.Table]:
    for part, start, stop in slices:
        kept = _kept(work_dir, part, start, stop)
        with pq.ParquetFile(Path(work_dir, "cleaned", f"{part:06d}.parquet")) as parquet:
            end = 0
            for group in range(parquet.num_row_groups):
                begin, end = end, end + parquet.metadata.row_group(group).num_rows
                first, last = max(begin, start), min(end, stop)
                if first < last:
                    table = parquet.read_row_group(group, columns=columns, use_threads=False)
                    yield table.slice(first - begin, last - first).filter(pa.array(kept[first - start : last - start]))


def _in_row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join tables and cut them anew, so that row groups depend on the comments alone."""
    waiting = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while (num_rows := _row_group_end(waiting)) is not None:
            yield waiting.slice(0, num_rows)
            waiting = waiting.slice(num_rows)
    if waiting is not None and len(waiting):
        yield waiting


def _row_group_end(waiting: pa.Table) -> int | None:
    """Return the rows of the row group that a table begins with, or None where it may go on behind the table."""
    num_bytes = np.cumsum(pc.binary_length(waiting["text"][:ROW_GROUP_ROWS]).to_numpy(), dtype=np.int64)
    num_rows = min(int(np.searchsorted(num_bytes, ROW_GROUP_BYTES)) + 1, ROW_GROUP_ROWS)
    return num_rows if num_rows <= len(waiting) else None


def finish_corpus(work_dir: str, index: int = 0) -> dict[str, Any]:
    """Write the manifest of a corpus whose shards are all there, and delete what it was made from."""
    finished = read_manifest(Path(work_dir).parent)
    if finished is not None:
        shutil.rmtree(work_dir, ignore_errors=True)
        return {"num_rows": finished["num_kept"], "counts": {}}
    plan, shards = read_json(work_dir, "plan.json"), read_json(work_dir, "shards.json")
    parts = [read_json(work_dir, f"counts/{part:06d}.json") for part in range(len(plan["parts"]))]
    written = [read_json(work_dir, f"shards/{index:06d}.json") for index in range(len(shards["shards"]))]
    read = _total(part["counts"] for part in parts)
    changed = _total(part["rules"] for part in parts)
    rules = get_rules(plan["settings"]["rules"])
    num_kept = sum(shard["num_rows"] for shard in written)
    write_manifest(
        Path(work_dir).parent,
        stage="corpus",
        settings=plan["settings"],
        sources=plan["sources"],
        num_read=sum(part["num_rows"] for part in parts),
        num_kept=num_kept,
        num_kept_for_replies=shards["num_rescued"],
        dropped=dict(sorted((read + Counter(shards["counts"])).items(), key=lambda item: (-item[1], item[0]))),
        rules={rule.__name__: str(rule.__doc__).splitlines()[0] for rule in rules},
        changed_by_rule={rule.__name__: changed[rule.__name__] for rule in rules},
        personal_data=_total(part["personal_data"] for part in parts),
        bad_rows=_name_bad_rows(plan["parts"], parts),
        damaged_files=[part["damage"] for part in parts if part["damage"]],
        columns=shards["columns"],
        num_by_length=np.sum([shard["num_by_length"] for shard in written], axis=0).tolist(),
    )
    shutil.rmtree(work_dir)
    return {"num_rows": num_kept, "counts": {}}


#: In their order; each needs the one before it to be done.
STEPS: tuple[Step, ...] = (clean_part, drop_duplicates, write_shard, finish_corpus)
SINGLE_STEPS = (drop_duplicates, finish_corpus)  # of one task


def _total(counts: Iterator[dict[str, int]]) -> Counter[str]:
    return sum(map(Counter, counts), Counter())


def _name_bad_rows(parts: list[dict[str, Any]], counts: list[dict[str, Any]]) -> list[str]:
    """Return the first bad rows by file and number, counted through the parts of a file."""
    named, before = [], 0
    for part, counted in zip(parts, counts, strict=True):
        before = before if part["start"] else 0
        named += [f"{part['file']}, row {before + row}: {reason}" for row, reason in counted["bad_rows"]]
        before += counted["num_rows"]
    return named[:MAX_NAMED_ROWS]


@contextmanager
def _open_writer(work_dir: str, path: Path, schema: pa.Schema, *, compression: str) -> Iterator[pq.ParquetWriter]:
    """Open a Parquet file that is there once it is whole."""
    temporary = Path(work_dir, f"{path.parent.name}-{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(exist_ok=True)
    repeated = [name for name in ("thread", "parent_id") if name in schema.names]  # worth a dictionary
    with pq.ParquetWriter(temporary, schema, compression=compression, use_dictionary=repeated) as writer:
        yield writer
    os.replace(temporary, path)
