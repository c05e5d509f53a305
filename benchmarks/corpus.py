"""Speed and memory of building a corpus, beside datatrove and bare DuckDB on the same rows. Linux.

    pip install datatrove==0.10.1 duckdb==2.0.0 psutil xxhash
    python benchmarks/corpus.py --dataset "comments/*.parquet"

The input is the comments, repeated with variation. Beside datatrove: all from raw to deduplicated Parquet, rows per
second of CPU, on the first `--peer_rows`. Beside DuckDB: the deduplication alone, cleaned texts in, the first of each
out in order, with as many threads and as much memory. Then the peak memory of ours at each of `--rss_rows`. Each side
has a process of its own that imports no other side; they take turns, and what they write is checked.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from kcelectra import clean
from kcelectra.corpus.comments import find_files
from kcelectra.manifest import read_manifest

RULES, MIN_CHARS = "v2022", 10
ROWS_PER_FILE, ROWS_PER_GROUP = 500_000, 50_000
REPEAT_PERCENT = 15
SAMPLE_SECONDS = 0.05
LIMIT_MIB = 512
# Three ways to ask for the first of each text, in order; the fastest counts. Each sorts: DuckDB keeps the order of a
# scan, not of a join (seen: a semi-join alone returns another order).
DUCKDB_QUERIES = {
    "group-by": "SELECT text FROM (SELECT text, min(row) AS row FROM cleaned GROUP BY text) ORDER BY row",
    "window": "SELECT text FROM cleaned QUALIFY row_number() OVER (PARTITION BY text ORDER BY row) = 1 ORDER BY row",
    "semi-join": "SELECT text FROM cleaned SEMI JOIN (SELECT min(row) AS row FROM cleaned "
    "GROUP BY md5_number(text)) USING (row) ORDER BY row",
}
REFERENCE = {"count-distinct": "SELECT count(DISTINCT text) AS num_texts FROM cleaned"}


def vary(text: str, number: int, version: int, seed: int) -> str:
    """Return what row `number` shows of a comment: itself the first time, then a version that is new even cleaned.

    `REPEAT_PERCENT` of the later rows repeat the comment.
    """
    draw, percent = divmod(zlib.crc32(f"{seed}-{number}".encode()), 100)
    if version == 0 or percent < REPEAT_PERCENT:
        return text
    place, kind = divmod(draw, 4)
    syllable = chr(ord("가") + 37 * version % 11172)  # another one for each version: 37 does not divide 11,172
    if kind == 0:
        return f"{text}   {version}번째"
    if kind == 1:
        return text.replace(" ", f" {version} ", 1) if " " in text else f"{version} {text}"
    if kind == 2:
        return text[: place % len(text)] + syllable + text[place % len(text) + 1 :]
    return f"{text} {syllable}" + "ㅋ" * (4 + place % 9)


class Input:
    """The input; a row depends on its number alone: a shorter input is the beginning of a longer one."""

    def __init__(self, dataset: str, output_dir: Path, seed: int) -> None:
        files = find_files(dataset)
        tables = [pq.read_table(file, columns=["text", "thread"], filters=[("text", "!=", "")]) for file in files]
        self.comments, self.seed = pa.concat_tables(tables), seed
        source = repr([seed, *((Path(file).name, Path(file).stat().st_size) for file in files)])
        self.directory = output_dir / f"input-{hashlib.sha256(source.encode()).hexdigest()[:8]}"

    def write(self, num_rows: int, rows_per_file: int = ROWS_PER_FILE) -> list[str]:
        """Write the first rows, those files that are not there yet, and return the files."""
        self.directory.mkdir(parents=True, exist_ok=True)
        files = []
        for start in range(0, num_rows, rows_per_file):
            rows = range(start, min(start + rows_per_file, num_rows))
            files.append(self.directory / f"rows-{rows.start:012}-{rows.stop:012}.parquet")
            if not files[-1].exists():
                groups = (rows[first : first + ROWS_PER_GROUP] for first in range(0, len(rows), ROWS_PER_GROUP))
                write_parquet(files[-1], map(self._make_rows, groups))
        return [str(file) for file in files]

    def _make_rows(self, numbers: range) -> pa.Table:
        versions, places = np.divmod(numbers, len(self.comments))
        table = self.comments.take(places)
        rows = zip(table["text"].to_pylist(), numbers, versions.tolist(), strict=True)
        threads = map("{}-{}".format, table["thread"].to_pylist(), versions.tolist())
        return pa.table({"text": [vary(*row, self.seed) for row in rows], "thread": list(threads)})


def write_parquet(file: Path, tables: Iterable[pa.Table]) -> None:
    """Write a file that is there whole or not at all, a row group for each table."""
    tables = iter(tables)
    first = next(tables)
    with pq.ParquetWriter(file.with_suffix(".tmp"), first.schema, compression="zstd") as writer:
        for table in chain([first], tables):
            writer.write_table(table)
    file.with_suffix(".tmp").rename(file)


def read_cleaned(files: Iterable[str]) -> Iterator[list[str]]:
    """Yield the cleaned texts that are long enough, by row group: what there is to deduplicate."""
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP, columns=["text"]):
            cleaned = (clean(text, RULES) for text in batch["text"].to_pylist())
            yield [text for text in cleaned if len(text) >= MIN_CHARS]


def write_cleaned(file: Path, files: Iterable[str]) -> int:
    """Write what DuckDB is to deduplicate, each text with a row number; return how many there are."""
    rows = count()
    tables = ({"row": list(islice(rows, len(texts))), "text": texts} for texts in read_cleaned(files))
    write_parquet(file, map(pa.table, tables))
    return next(rows)


def run_ours(output_dir: str, files: list[str], num_workers: int, memory_mb: int) -> dict[str, Any]:
    """Build the corpus with this package."""
    from kcelectra.corpus.build import CorpusArguments, plan_corpus, run_step
    from kcelectra.corpus.shards import STEPS, finish_corpus

    options = {"rules": RULES, "min_chars": MIN_CHARS, "num_workers": num_workers, "memory_mb": memory_mb}
    work_dir = plan_corpus(CorpusArguments(files, output_dir, **options))
    seconds = {}
    for step in STEPS[:-1]:  # as `build_corpus` does
        start = time.perf_counter()
        run_step(step, work_dir, num_workers=num_workers)
        seconds[step.__name__] = time.perf_counter() - start
    finish_corpus(work_dir)
    return {"seconds": seconds, "dropped": read_manifest(output_dir)["dropped"]}


def run_datatrove(output_dir: str, files: list[str], num_workers: int) -> None:
    """Build the corpus with datatrove's own steps, a task for each worker, as fast as its options make it.

    Measured, 200,000 rows, 2 workers: "fork" saves 5 CPU seconds of imports, to write the text alone 3 of 20; to clean
    twice is no slower than to write and read cleaned rows; buffers and Parquet options stay within the noise.
    """
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import ExactDedupFilter, ExactDedupSignature, ExactFindDedups
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.formatters.base import BaseFormatter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    class Clean(BaseFormatter):
        name = "clean"

        def format(self, text: str) -> str:
            return clean(text, RULES)

    def read() -> list:
        reader = ParquetReader(os.path.dirname(files[0]), paths_file=paths, read_metadata=False)
        return [reader, Clean(), LambdaFilter(lambda document: len(document.text) >= MIN_CHARS)]

    os.mkdir(output_dir)
    paths, hashes, found, train = (f"{output_dir}/{name}" for name in ("files.txt", "hashes", "found", "train"))
    Path(paths).write_text("\n".join(map(os.path.basename, files)))
    # bytes: with xxhash 4, which `datasets` allows, datatrove 0.10.1 fails on str
    config = ExactDedupConfig(content_getter=lambda document: document.text.encode())
    writer = ParquetWriter(train, compression="zstd", adapter=lambda self, document: {"text": document.text})
    stages = (
        [*read(), ExactDedupSignature(hashes, config, finder_workers=num_workers)],
        [ExactFindDedups(hashes, found, config)],
        [*read(), ExactDedupFilter(found, config), writer],
    )
    for number, stage in enumerate(stages):
        logs = f"{output_dir}/logs-{number}"
        LocalPipelineExecutor(stage, num_workers, num_workers, logging_dir=logs, start_method="fork").run()


def run_hashing(output: str, cleaned: str) -> float:
    """Return the seconds of hashing the cleaned texts on one core: our part of deduplication that `clean` times."""
    from kcelectra.corpus.dedup import hash_texts

    seconds = 0.0
    for batch in pq.ParquetFile(cleaned).iter_batches(ROWS_PER_GROUP, columns=["text"]):
        texts = batch["text"].to_pylist()
        start = time.perf_counter()
        hash_texts(texts)
        seconds += time.perf_counter() - start
    return seconds


def run_duckdb(output: str, cleaned: str, query: str, num_workers: int, memory_mb: int) -> float:
    """Write what a query selects and return its seconds, infinite if the memory does not suffice."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {num_workers}; SET memory_limit = '{memory_mb}MiB'")
    connection.execute(f"SET temp_directory = '{output}.spill'")
    connection.execute(f"CREATE VIEW cleaned AS FROM '{cleaned}'")
    start = time.perf_counter()
    with suppress(duckdb.OutOfMemoryException):  # level 1 is pyarrow's
        connection.execute(f"COPY ({query}) TO '{output}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
        return time.perf_counter() - start
    return float("inf")


@dataclass(frozen=True)
class Run:
    """What a side returned and took; memory in MiB: of its largest process, and of all together."""

    result: Any
    seconds: float
    cpu_seconds: float
    process_mib: float
    total_mib: float

    def __str__(self) -> str:
        memory = f"peak {self.total_mib:4.0f} MiB, largest process {self.process_mib:4.0f} MiB"
        return f"{self.seconds:7.2f} s, {self.cpu_seconds:7.2f} s of CPU, {memory}"


def measure(side: Callable, output: Path, *arguments: Any) -> Run:
    """Run one side in a process of its own, from nothing, and watch its memory."""
    shutil.rmtree(output, ignore_errors=True)
    code = f"import corpus; corpus.report(corpus.{side.__name__}, {str(output)!r}, *{arguments!r})"
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.abspath(__file__))}
    peaks = np.zeros(2)
    with open(f"{output}.log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=log, env=environment)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peaks = np.maximum(peaks, memory_of(watched))
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{side.__name__} failed: {output}.log says why")
    return Run(*json.loads(process.stdout.read().splitlines()[-1]), *(peaks / 1024).tolist())


def report(side: Callable, *arguments: Any) -> None:
    """Run one side and print its result, its seconds and its CPU seconds."""
    start = time.perf_counter()
    result = side(*arguments)
    seconds, process = time.perf_counter() - start, psutil.Process()
    family = (process, *process.children(recursive=True))
    cpu_seconds = sum(sum(member.cpu_times()[:4]) for member in family)  # own, and of children that have ended
    print(json.dumps([result, seconds, cpu_seconds]))


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Return, in KiB, the largest peak of a process from this one down, and what all of them hold now.

    What they share counts once. Pages of files, most of them libraries, are shared with processes outside too: of
    those, as many count as the process with the most has.
    """
    peaks, memory, files = [0], 0, [0]
    with suppress(psutil.NoSuchProcess):
        for member in (process, *process.children(recursive=True)):
            with suppress(OSError, KeyError):  # it has just ended
                text = "".join(Path(f"/proc/{member.pid}/{name}").read_text() for name in ("status", "smaps_rollup"))
                kib = {words[0]: int(words[1]) for line in text.splitlines() if (words := line.split())[2:] == ["kB"]}
                memory += kib["Pss_Anon:"] + kib["Pss_Shmem:"]
                files.append(kib["RssFile:"])
                peaks.append(kib["VmHWM:"])  # the kernel's own: nothing is missed between two looks
    return max(peaks), max(memory + max(files), *peaks)


def check(claim: str, is_true: bool) -> None:
    """Print a claim that holds, or end with one that does not."""
    if not is_true:
        raise SystemExit(f"  WRONG: {claim}")
    print(f"  checked: {claim}")


def count_rows(files: Iterable[Path | str]) -> int:
    """Return the number of rows of Parquet files."""
    return sum(pq.read_metadata(file).num_rows for file in files)


def digest(files: Iterable[Path]) -> str:
    """Return a digest of the texts of Parquet files, in order."""
    state = hashlib.blake2b()
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
            state.update("".join(f"{text}\n" for text in batch["text"].to_pylist()).encode())
    return state.hexdigest()


class Benchmark:
    """The three comparisons; each prints what it saw, checks it, and adds to `lines` what is to be said at the end."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output_dir, self.sides = Path(arguments.output_dir), arguments.sides.split(",")
        self.input = Input(arguments.dataset, self.output_dir, arguments.seed)
        self.limits, self.num_rounds = (arguments.num_workers, arguments.memory_mb), arguments.num_rounds
        self.lines: list[str] = []

    def build(self, files: list[str]) -> tuple[Run, list[Path]]:
        """Run ours; return its shards too."""
        run = measure(run_ours, self.output_dir / "ours", files, *self.limits)
        shards = sorted((self.output_dir / "ours").glob("train-*.parquet"))
        num_rows, kept, dropped = count_rows(files), count_rows(shards), sum(run.result["dropped"].values())
        print(f"  ours, {num_rows:,} rows: {run}; {num_rows / run.cpu_seconds:,.0f} rows/s of CPU")
        check(f"{num_rows:,} rows = {kept:,} kept + {dropped:,} dropped", num_rows == kept + dropped)
        return run, shards

    def compare_with_datatrove(self, peer_rows: int, num_rows: int) -> None:
        """Build the same corpus with both, then a larger one with ours, where its start counts less."""
        sample = self.input.write(peer_rows, rows_per_file=-(-peer_rows // self.limits[0]))
        inputs = {peer_rows: sample, num_rows: self.input.write(num_rows)} if "ours" in self.sides else {}
        num_texts = len({text for texts in read_cleaned(sample) for text in texts})
        ratios: dict[int, list[tuple[float, float]]] = {size: [] for size in inputs}
        print(f"from raw to deduplicated, {self.limits[0]} workers")
        for _ in range(self.num_rounds):
            peer = measure(run_datatrove, self.output_dir / "datatrove", sample, self.limits[0])
            print(f"  datatrove, {peer_rows:,} rows: {peer}; {peer_rows / peer.cpu_seconds:,.0f} rows/s of CPU")
            kept = count_rows((self.output_dir / "datatrove/train").glob("*.parquet"))
            check(f"datatrove kept {kept:,} of {num_texts:,} distinct texts", kept == num_texts)
            for size, files in inputs.items():
                ours, shards = self.build(files)
                if files is sample:
                    kept = count_rows(shards)
                    check(f"ours kept {kept:,} of {num_texts:,} distinct texts", kept == num_texts)
                by_cpu, by_wall = peer.cpu_seconds / ours.cpu_seconds, peer.seconds / ours.seconds
                ratios[size].append((by_cpu * size / peer_rows, by_wall * size / peer_rows))
        for size, pairs in ratios.items():
            by_cpu, by_wall = zip(*pairs, strict=True)
            self.add_ratio(f"rows per second of CPU, ours on {size:,} rows / datatrove", by_cpu)
            self.add_ratio(f"rows per second, as many workers, ours on {size:,} rows / datatrove", by_wall)

    def compare_with_duckdb(self, num_rows: int) -> None:
        """Deduplicate the same cleaned texts with both."""
        files, cleaned, ratios = self.input.write(num_rows), self.output_dir / "cleaned.parquet", []
        num_texts = write_cleaned(cleaned, files)
        print(f"deduplication, {num_texts:,} cleaned texts, {self.limits[0]} threads or workers, {self.limits[1]} MiB")
        for _ in range(self.num_rounds):
            seconds = {}
            for name, query in (DUCKDB_QUERIES | REFERENCE).items():
                output = self.output_dir / f"duckdb-{name}.parquet"
                peer = measure(run_duckdb, output, str(cleaned), query, *self.limits)
                print(f"  DuckDB, {name}: {peer.result:.2f} s; with its start {peer}")
                if name in DUCKDB_QUERIES:
                    seconds[output] = peer.result
            if "ours" in self.sides:
                run, shards = self.build(files)
                hashing = measure(run_hashing, self.output_dir / "hashing", str(cleaned)).result / self.limits[0]
                stages = {"hashing, a part of clean": hashing, **run.result["seconds"]}
                print("    " + ", ".join(f"{stage} {value:.2f} s" for stage, value in stages.items()))
                fastest = min(seconds, key=seconds.get)
                ratios.append((hashing + stages["drop_duplicates"] + stages["write_shard"]) / seconds[fastest])
                check("ours kept what DuckDB kept, in the same order", digest(shards) == digest([fastest]))
        self.add_ratio("seconds of hashing, deduplicating and writing, ours / fastest of DuckDB", ratios)

    def measure_memory(self, sizes: list[int]) -> None:
        """Build corpora of growing size and draw the peaks."""
        from matplotlib.figure import Figure  # here: a side imports this file

        print("peak memory")
        runs = [self.build(self.input.write(size))[0] for size in sizes]
        millions, total = np.array(sizes) / 1e6, [run.total_mib for run in runs]
        figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
        axes = figure.subplots()
        axes.plot(millions, total, marker="o", label="all processes")
        axes.plot(millions, [run.process_mib for run in runs], marker="o", label="largest process")
        axes.axhline(LIMIT_MIB, color="black", linestyle="--", label=f"{LIMIT_MIB} MiB")
        axes.set(title="Peak memory of building a corpus", xlabel="million rows", ylabel="MiB")
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.legend()
        figure.savefig(self.output_dir / "rss.png")
        self.lines.append(f"peak memory / {LIMIT_MIB} MiB: {max(total) / LIMIT_MIB:.2f}")
        if len(sizes) > 1:
            self.lines.append(f"growth of it: {np.polyfit(millions, total, 1)[0]:.1f} MiB per million rows")

    def add_ratio(self, name: str, ratios: Sequence[float]) -> None:
        """Keep the median, the least and the largest of some ratios for the end."""
        if ratios:
            self.lines.append(f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    """Run the chosen comparisons, then print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="Parquet files with columns text and thread: a quoted glob")
    parser.add_argument("--output_dir", default="out/benchmark_corpus", help="its input is used again by another run")
    parser.add_argument("--num_rows", type=int, default=4_000_000, help="rows beside DuckDB")
    parser.add_argument("--peer_rows", type=int, default=400_000, help="rows beside datatrove: its rate is constant")
    parser.add_argument("--rss_rows", default="1000000,5000000,20000000", help="rows to measure memory at, or ''")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--memory_mb", type=int, default=192, help="MiB for the deduplication, ours and DuckDB's")
    parser.add_argument("--num_rounds", type=int, default=3)
    parser.add_argument("--sides", default="ours,datatrove,duckdb", help="those to run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments)
    if "datatrove" in benchmark.sides:
        benchmark.compare_with_datatrove(arguments.peer_rows, arguments.num_rows)
    if "duckdb" in benchmark.sides:
        benchmark.compare_with_duckdb(arguments.num_rows)
    if "ours" in benchmark.sides and arguments.rss_rows:
        benchmark.measure_memory([int(size) for size in arguments.rss_rows.split(",")])
    print("\n".join(["all of this run:", *benchmark.lines]))


if __name__ == "__main__":
    main()
