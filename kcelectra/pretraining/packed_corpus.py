"""Pack comments into rows once, shuffled all together, for runs that are long, many, or on many machines."""

import hashlib
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from kcelectra.corpus.cleaning import get_rules
from kcelectra.corpus.comments import CommentReader, choose_cleaning, find_corpus_cleaning
from kcelectra.corpus.work_dir import WORK_DIR, read_earlier, read_json, write_json
from kcelectra.corpus.workers import num_cores, run_tasks
from kcelectra.errors import InputError
from kcelectra.manifest import read_manifest, to_json, write_manifest
from kcelectra.pretraining.packed import BLOCKS_FILE, STAGE, TOKENIZER_DIR, row_dtype
from kcelectra.pretraining.packing import Packer, Repeater
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.tokenization import hash_tokenizer, load_tokenizer, save_tokenizer

PART_BYTES = 1 << 20  # of the files that a process takes at a time, at least; what a part ends with is not filled up
RUN_BYTES = 64 << 20  # of rows that are sorted in memory
FILE_BYTES = 256 << 20  # of a file's rows, which are held in memory too
BLOCK_BYTES = 1 << 20  # of a block's rows, which are read together
KEYS = 1 << 63
ROW_SHARE = 0.5  # bytes of rows, written twice, of a byte of comments; assumption, on the low side: 0.76 of plain text


def pack_corpus(
    reader: CommentReader,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    max_length: int = 128,
    rules: str | None = None,
    min_chars: int | None = None,
    fill_documents: bool = False,
    repeat_probability: float = 0.0,
    seed: int = 0,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Pack comments into rows as `PackedStream` does, shuffle them all together, and write them.

    The rows and their order are a function of the comments and the arguments, `num_workers` apart. The same call again
    goes on where one was interrupted, with the first file that is not packed; it leaves finished rows as they are.
    Twice their size is needed on the disk.

    Rows get a random key each and are sorted by it: those of a part of the source in runs, of which each file then
    takes its range of keys. So no process ever holds more than a run or a file in memory.

    Args:
        reader: of the comments. Its files are packed apart or a few together, and a thread that goes on in the next
            one is cut there.
        tokenizer: with its special tokens at the published ids.
        output_dir: for `train-*.arrow`, with columns `input_ids` and `row_id`; `blocks.json`, `tokenizer/` and
            `manifest.json`. `PackedRows` reads it, and so does `datasets.load_dataset`.
        max_length: of a row.
        rules: rule set that cleans; v2022 if None, none for a built corpus.
        min_chars: shortest comment that is kept; 10 if None, 0 for a built corpus.
        fill_documents: a document is not a comment and its replies but as much of a thread as a row holds.
        repeat_probability: of a document to be its comments beside themselves, see `Repeater`.
        seed: of the shuffle and of what is repeated.
        num_workers: processes; one a core if None.

    Returns:
        The manifest: settings, sources, and counts of comments, documents, tokens and rows.

    Raises:
        InputError: a source cannot be read, the disk is full, `output_dir` holds something else, or the comments are
            less than one row.
    """
    cleaning = choose_cleaning(reader.dataset, rules, min_chars)
    get_rules(cleaning["rules"])
    Packer(max_length, pad_token_id=tokenizer.pad_token_id)  # which sees that rows are long enough
    Repeater(repeat_probability)  # that this is a share
    if seed < 0 or (num_workers is not None and num_workers < 1):
        raise InputError(f"give a --seed of 0 or more, not {seed}, and --num_workers of 1 or more, not {num_workers}")
    settings = {"max_length": max_length, **cleaning, "text_column": reader.text_column, "seed": seed}
    options = {"fill_documents": fill_documents, "repeat_probability": repeat_probability}
    settings |= {name: value for name, value in options.items() if value}
    try:
        work_dir = _plan(reader, tokenizer, Path(output_dir), settings)
        if work_dir is not None:
            num_workers = num_workers or num_cores()
            _run(pack_part, work_dir, len(read_json(work_dir, "plan.json")["parts"]), num_workers=num_workers)
            _require_rows(work_dir)
            _run(write_file, work_dir, _count_files(work_dir), num_workers=num_workers)
            _finish(work_dir)
    except OSError as error:
        raise InputError(f"{error}; the same command goes on where this one ended") from error
    return read_manifest(output_dir) or {}


def _plan(
    reader: CommentReader, tokenizer: PreTrainedTokenizerBase, output_dir: Path, settings: dict[str, Any]
) -> str | None:
    """Claim the directory; return that of the work, or None if the rows are there already."""
    work_dir = Path(output_dir, WORK_DIR).absolute()
    source = reader.fingerprint()
    settings["tokenizer_sha256"] = hash_tokenizer(tokenizer)
    settings["source_sha256"] = hashlib.sha256(to_json(source).encode()).hexdigest()
    earlier = read_earlier(output_dir, work_dir, stage=STAGE, key="source", what="packed rows")
    if earlier is not None:
        _require_same(output_dir, earlier["settings"], settings)
        if "files" in earlier:
            shutil.rmtree(work_dir, ignore_errors=True)  # of a run that ended between its last two steps
            return None
    else:
        row_bytes = settings["max_length"] * row_dtype(len(tokenizer)).itemsize
        plan = {
            "settings": settings,
            "source": source,
            "vocab_size": len(tokenizer),
            "cleaning": find_corpus_cleaning(reader.dataset) or {key: settings[key] for key in ("rules", "min_chars")},
            "dataset": {"dataset": reader.dataset, "split": reader.split, "revision": source.get("commit")},
            "parts": _group_files(reader.files),
            "run_rows": max(1, RUN_BYTES // row_bytes),
            "file_rows": max(1, FILE_BYTES // row_bytes),
            "block_rows": max(1, BLOCK_BYTES // row_bytes),
        }
        output_dir.mkdir(parents=True, exist_ok=True)
        _require_room(output_dir, sum(map(os.path.getsize, reader.files)) * ROW_SHARE)
        write_json(work_dir, "plan.json", plan)
    save_tokenizer(tokenizer, output_dir / TOKENIZER_DIR)
    return str(work_dir)


def _require_same(output_dir: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    changed = [
        f"{key} was {earlier.get(key)!r} and is {settings.get(key)!r}"
        for key in {**settings, **earlier}
        if earlier.get(key) != settings.get(key)
    ]
    if changed:
        raise InputError(
            f"{output_dir} holds rows of something else: {'; '.join(changed)}; give another --output_dir, or delete "
            "this one"
        )


def _group_files(files: list[str]) -> list[list[str]]:
    """Return files, in their order, in groups that are worth a task; one empty group for a dataset on the Hub."""
    groups: list[list[str]] = [[]]
    num_bytes = 0
    for file in map(os.path.abspath, files):
        if num_bytes >= PART_BYTES:
            groups.append([])
            num_bytes = 0
        groups[-1].append(file)
        num_bytes += os.path.getsize(file)
    return groups


def _require_room(output_dir: Path, num_bytes: float) -> None:
    free = shutil.disk_usage(output_dir).free
    if free < num_bytes:
        raise InputError(
            f"the rows need {num_bytes / 1e6:,.0f} MB more in {output_dir}, {free / 1e6:,.0f} MB are free; make room, "
            "or give an --output_dir on another disk. The same command goes on where this one ended"
        )


def _require_rows(work_dir: str) -> None:
    """See, before files are written, that there is something to write and room for it."""
    plan = read_json(work_dir, "plan.json")
    settings, counts = plan["settings"], _count(work_dir)
    if counts["tokens"] < settings["max_length"]:
        for directory in (work_dir, Path(work_dir).parent / TOKENIZER_DIR):  # they hold the output directory for the
            shutil.rmtree(directory)  # plan that the cure changes
        raise InputError(
            f"{plan['dataset']['dataset']} holds {counts['tokens']} tokens after cleaning with {settings['rules']!r} "
            f"and min_chars {settings['min_chars']}, less than one row of {settings['max_length']}; give more "
            "comments or a lower --max_length"
        )
    packed = sum(path.stat().st_size for path in Path(work_dir, "packed").glob("*.arrow"))
    _require_room(Path(work_dir), packed - sum(path.stat().st_size for path in Path(work_dir).parent.glob("*.arrow")))


def _run(step: Callable[[str, int], dict[str, Any]], work_dir: str, num_tasks: int, *, num_workers: int) -> None:
    num_rows = 0
    with tqdm(total=num_tasks, desc=step.__name__.replace("_", " ")) as bar:

        def show(task: int, result: dict[str, Any]) -> None:
            nonlocal num_rows
            num_rows += result["num_rows"]
            bar.set_postfix_str(f"{num_rows:,} rows", refresh=False)
            bar.update()

        run_tasks(step, work_dir, range(num_tasks), num_workers=num_workers, on_done=show)


def pack_part(work_dir: str, index: int) -> dict[str, Any]:
    """Pack a part of the source into runs of rows, each sorted by the rows' keys; return its counts."""
    name = f"packed/{index:06d}"
    done = read_json(work_dir, f"{name}.json")
    if done is not None:
        return done
    plan = read_json(work_dir, "plan.json")
    settings, files = plan["settings"], plan["parts"][index]
    source = plan["dataset"] | {"dataset": files[0]} if files else plan["dataset"]
    reader = CommentReader(**source, text_column=settings["text_column"])
    reader.files = files
    tokenizer = load_tokenizer(Path(work_dir).parent / TOKENIZER_DIR)
    names = ("max_length", "rules", "min_chars", "fill_documents", "repeat_probability", "seed")
    stream = PackedStream(reader, tokenizer, **{name: settings[name] for name in names if name in settings})
    rows = stream.pack_pass()
    keys = np.random.PCG64([settings["seed"], index])  # its stream stays with every numpy (NEP 19)
    row, schema = np.dtype((row_dtype(len(tokenizer)), settings["max_length"])), _schema("key", plan)
    num_rows = 0
    with _open_file(work_dir, Path(work_dir, f"{name}.arrow")) as file, pa.ipc.new_file(file, schema) as writer:
        while len(run := np.fromiter(islice(rows, plan["run_rows"]), row)):
            drawn = keys.random_raw(len(run)) >> 1  # so that the end of their range is a 64-bit integer too
            order = np.argsort(drawn, kind="stable")
            writer.write_batch(_batch(run[order], drawn[order], schema))
            num_rows += len(run)
    counts = stream.counts + Counter({reason: n for reason, n in reader.counts.items() if reason != "comments"})
    return write_json(work_dir, f"{name}.json", {"num_rows": num_rows, "counts": {**counts, "rows": num_rows}})


def write_file(work_dir: str, index: int) -> dict[str, Any]:
    """Write the rows of one range of keys; return where its blocks are."""
    name = f"written/{index:06d}.json"
    done = read_json(work_dir, name)
    plan, num_files = read_json(work_dir, "plan.json"), _count_files(work_dir)
    path = Path(work_dir).parent / f"train-{index:05d}-of-{num_files:05d}.arrow"
    if done is not None and path.exists():
        return done
    first, keys, ids = _take_range(work_dir, index * KEYS // num_files, (index + 1) * KEYS // num_files)
    order, schema = np.argsort(keys, kind="stable"), _schema("row_id", plan)
    with _open_file(work_dir, path) as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(order), plan["block_rows"]):
            chosen = order[start : start + plan["block_rows"]]
            row_ids = np.arange(first + start, first + start + len(chosen))
            writer.write_batch(_batch(ids[chosen], row_ids, schema))
    facts = {"file": path.name, "num_rows": len(order), "blocks": _describe_blocks(path)}
    return write_json(work_dir, name, facts)


def _take_range(work_dir: str, low: int, high: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the number of rows with lower keys, and the keys (n,) and ids (n, length) of those from low to high."""
    num_lower, keys, ids = 0, [], []
    for path in sorted(Path(work_dir, "packed").glob("*.arrow")):
        runs = pa.ipc.open_file(pa.memory_map(str(path)))
        for run in map(runs.get_batch, range(runs.num_record_batches)):
            start, stop = np.searchsorted(run["key"].to_numpy(), np.array([low, high], np.uint64))
            num_lower += int(start)
            keys.append(run["key"].to_numpy()[start:stop])
            ids.append(run["input_ids"].flatten().to_numpy().reshape(len(run), -1)[start:stop])
    return num_lower, np.concatenate(keys), np.concatenate(ids)


def _describe_blocks(path: Path) -> dict[str, list[int]]:
    """Return of each block where its ids begin, its rows, and the CRC-32 of the bytes from there to the next.

    What is before the first block counts to it, so that every byte of the file is under one of them.
    """
    content = pa.memory_map(str(path)).read_buffer()
    blocks = pa.ipc.open_file(content)
    batches = [blocks.get_batch(number) for number in range(blocks.num_record_batches)]
    starts = [batch["input_ids"].flatten().buffers()[1].address - content.address for batch in batches]
    edges = pairwise([0, *starts[1:], content.size])
    crc32 = [zlib.crc32(content[start:stop]) for start, stop in edges]
    return {"starts": starts, "num_rows": [len(batch) for batch in batches], "crc32": crc32}


def _count(work_dir: str) -> Counter[str]:
    """Return the counts of all parts together."""
    num_parts = len(read_json(work_dir, "plan.json")["parts"])
    parts = [read_json(work_dir, f"packed/{index:06d}.json") for index in range(num_parts)]
    return sum((Counter(part["counts"]) for part in parts), Counter())


def _count_files(work_dir: str) -> int:
    return -(-_count(work_dir)["rows"] // read_json(work_dir, "plan.json")["file_rows"])


def _finish(work_dir: str) -> None:
    """Write the manifest, once every file is there, and delete what they were made from."""
    output_dir, plan = Path(work_dir).parent, read_json(work_dir, "plan.json")
    counts = _count(work_dir)
    files = [read_json(work_dir, f"written/{index:06d}.json") for index in range(_count_files(work_dir))]
    write_json(output_dir, BLOCKS_FILE, {file["file"]: file["blocks"] for file in files})
    write_manifest(
        output_dir,
        stage=STAGE,
        settings=plan["settings"],
        source=plan["source"],
        tokenizer_sha256=plan["settings"]["tokenizer_sha256"],
        vocab_size=plan["vocab_size"],
        max_length=plan["settings"]["max_length"],
        num_rows=counts["rows"],
        counts=counts,
        cleaning=plan.get("cleaning"),
        share_filled=counts["tokens"] / (counts["rows"] * plan["settings"]["max_length"]),
    )
    shutil.rmtree(work_dir)


def _schema(other: str, plan: dict[str, Any]) -> pa.Schema:
    """Return columns of ids and of another number, a row's key or its id."""
    ids = pa.from_numpy_dtype(row_dtype(plan["vocab_size"]))
    number = pa.uint64() if other == "key" else pa.int64()
    return pa.schema({"input_ids": pa.list_(ids, plan["settings"]["max_length"]), other: number})


def _batch(ids: np.ndarray, numbers: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), ids.shape[1])
    return pa.record_batch([rows, pa.array(numbers)], schema=schema)


@contextmanager
def _open_file(work_dir: str, path: Path) -> Iterator[BinaryIO]:
    """Open a file that is there once it is whole; a worker of a run that was killed may still be at it, too."""
    temporary = Path(work_dir, f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(exist_ok=True)
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
