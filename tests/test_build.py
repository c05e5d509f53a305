"""A corpus end to end: as by plain Python, the same bytes whatever builds it, and whole after every interruption."""

import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kcelectra.corpus import build as build_module
from kcelectra.corpus import build_corpus, shards
from kcelectra.corpus.build import CorpusArguments, describe_corpus, plan_corpus
from kcelectra.corpus.cleaning import RULE_SETS, clean
from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.parquet import from_arrow
from kcelectra.corpus.shards import ROW_GROUP_BYTES, ROW_GROUP_ROWS, STEPS, clean_part, count_tasks
from kcelectra.corpus.work_dir import WORK_DIR
from kcelectra.corpus.workers import MAX_DEATHS, run_tasks
from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, read_manifest

MIN_CHARS = 10
COLUMNS = ("text", "thread", "comment_id", "parent_id")


def build(sources, output_dir: Path, *, steps: int = len(STEPS), **options) -> dict | None:
    """Build a corpus, or its first steps, in this process: to start others takes a second and a half."""
    sources = [str(source) for source in (sources if isinstance(sources, list) else [sources])]
    work_dir = plan_corpus(CorpusArguments(sources=sources, output_dir=str(output_dir), **options))
    for step in STEPS[:steps] if work_dir else ():
        for task in range(count_tasks(step, work_dir)):
            step(work_dir, task)
    return read_manifest(output_dir)


def vary(comments: list[dict], num_rows: int) -> list[dict]:
    """Repeat comments in other threads, most of them with another text, some with the same."""
    rows = [dict(comments[number % len(comments)]) for number in range(num_rows)]
    for number, row in enumerate(rows[len(comments) :], len(comments)):
        if number % 5:
            row["text"] += f" {number}번째"
        for name in COLUMNS[1:]:
            row[name] = row[name] and f"{row[name]}-{number // len(comments)}"
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def shards_of(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("train-*.parquet"))


def digests(output_dir: Path) -> dict[str, str]:
    files = [*shards_of(output_dir), output_dir / MANIFEST]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def read_rows(output_dir: Path) -> list[dict]:
    return pa.concat_tables(map(pq.read_table, shards_of(output_dir))).to_pylist()


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    stamps = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # a build that runs beside this renames its temporary files
            if path.is_file():
                status = path.stat()
                stamps[path.relative_to(directory).as_posix()] = (status.st_ino, status.st_mtime_ns)
    return stamps


# the oracle


def expected_rows(comments: list[dict], rules: str, *, scope: str = "global") -> list[dict]:
    """What a corpus of some comments holds, one by one, from the docstrings alone."""
    rows = [{**dict.fromkeys(COLUMNS), **comment, "text": clean(comment["text"], rules)} for comment in comments]
    rows = [{name: row[name] for name in COLUMNS} for row in rows if row["text"]]
    first: dict[tuple, int] = {}
    for number, row in enumerate(rows):
        if len(row["text"]) >= MIN_CHARS:
            first.setdefault((row["text"], row["thread"] if scope == "thread" else None), number)
    kept = set(first.values())
    by_name: dict[tuple, list[int]] = {}
    for number, row in enumerate(rows):
        if row["comment_id"] is not None:
            by_name.setdefault((row["thread"], row["comment_id"]), []).append(number)
    waiting = list(kept)
    while waiting:
        row = rows[waiting.pop()]
        parents = by_name.get((row["thread"], row["parent_id"]), [])
        if row["parent_id"] != row["comment_id"] and parents and kept.isdisjoint(parents):
            kept.add(parents[0])
            waiting.append(parents[0])
    known = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    return [{name: rows[number][name] for name in known} for number in sorted(kept)]


@pytest.mark.parametrize(("rules", "scope"), [("v2022", "global"), ("corpus", "global"), ("corpus", "thread")])
def test_the_sample_becomes_what_plain_python_makes_of_it(sample_comments, tmp_path, rules, scope):
    comments = vary(sample_comments, 6000)
    source = write_jsonl(tmp_path / "comments.jsonl", comments)
    manifest = build(source, tmp_path / "out", rules=rules, dedup=scope, part_mb=1, shard_mb=1)
    expected = expected_rows(comments, rules, scope=scope)
    assert read_rows(tmp_path / "out") == expected
    assert (manifest["num_read"], manifest["num_kept"]) == (len(comments), len(expected))
    assert manifest["num_kept_for_replies"] > 0
    assert manifest["columns"] == list(COLUMNS)


def read_real(files: list[Path]) -> list[dict]:
    tables = [pq.read_table(file, columns=["text", "thread", "comment_id"]) for file in files]
    return pa.concat_tables(tables).to_pylist()


@pytest.mark.parametrize("rules", ["v2022", "corpus"])
@pytest.mark.parametrize(
    "names", [["sample.jsonl", "youtube.parquet"], pytest.param(["*.parquet"], marks=pytest.mark.slow)]
)
def test_real_comments_become_what_plain_python_makes_of_them(shared_data, tmp_path, rules, names):
    comments = []
    for file in [file for name in names for file in sorted((shared_data / "comments").glob(name))]:
        if file.suffix == ".parquet":
            comments += pq.read_table(file, columns=list(COLUMNS[:3])).to_pylist()
        else:
            comments += map(json.loads, file.read_text(encoding="utf-8").split("\n")[:-1])
    sources = [shared_data / "comments" / name for name in names]
    manifest = build(sources, tmp_path / "out", rules=rules, part_mb=4, shard_mb=16)
    expected = expected_rows(comments, rules)
    assert read_rows(tmp_path / "out") == expected
    assert manifest["columns"] == list(COLUMNS[:3])
    assert manifest["num_read"] == len(comments) == len(expected) + sum(manifest["dropped"].values())


def test_the_first_occurrence_is_that_of_the_first_source(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": "어디에나 있는 댓글입니다", "thread": name}])
    for names in ("ab", "ba"):
        build([tmp_path / f"{name}.jsonl" for name in names], tmp_path / names)
        assert [row["thread"] for row in read_rows(tmp_path / names)] == [names[0]]


@pytest.mark.parametrize(
    ("row", "known"),
    [
        ({}, ["text"]),
        ({"thread": None, "comment_id": None, "title": "제목"}, ["text"]),
        ({"comment_id": 7}, ["text", "comment_id"]),
        ({"parent_id": "6", "thread": "글"}, ["text", "thread", "parent_id"]),
    ],
)
def test_columns_are_there_where_they_are_known(tmp_path, row, known):
    rows = [{"text": f"{number}번째 댓글입니다요"} for number in range(3)]
    manifest = build(
        write_jsonl(tmp_path / "comments.jsonl", [*rows, {**rows[0], "text": "마지막으로 온 댓글입니다", **row}]),
        tmp_path / "out",
    )
    assert manifest["columns"] == known
    assert pq.read_schema(shards_of(tmp_path / "out")[0]).names == known
    assert read_rows(tmp_path / "out")[0] == {"text": "0번째 댓글입니다요", **dict.fromkeys(known[1:])}


# the same bytes


NUM_LINES = 60_000


@pytest.fixture(scope="module")
def lines():
    """More than a row group, of which no chunk is a multiple of what Parquet writes at a time."""
    rng = random.Random(0)
    return [
        f"{number}번째 댓글: 오늘 {rng.randrange(10**9)}원 썼어요 " + "ㅋ" * (number % 9)
        for number in range(NUM_LINES)
    ]


@pytest.fixture(scope="module")
def long_source(lines, tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("long") / "comments.txt", lines)


@pytest.fixture(scope="module")
def long_corpus(long_source):
    output_dir = long_source.with_name("out")
    build(long_source, output_dir, rules="none", part_mb=32)
    return output_dir


def test_the_size_of_a_part_does_not_change_a_byte(long_source, long_corpus, tmp_path):
    build(long_source, tmp_path / "out", rules="none", part_mb=1)
    assert digests(tmp_path / "out") == digests(long_corpus)


def test_one_file_or_many_make_the_same_shards(lines, long_corpus, tmp_path):
    (tmp_path / "comments").mkdir()
    for number, (start, stop) in enumerate([(0, 1), (1, 22_222), (22_222, 22_222), (22_222, NUM_LINES)]):
        write_lines(tmp_path / "comments" / f"{number}.txt", lines[start:stop])
    manifest = build(tmp_path / "comments", tmp_path / "out", rules="none")
    whole = read_manifest(long_corpus)
    changed = {key for key in manifest if manifest[key] != whole[key]}
    assert changed == {"sources"}


def test_row_groups_are_full_and_shards_are_one_after_the_other(long_source, long_corpus, tmp_path):
    build(long_source, tmp_path / "out", rules="none", part_mb=2, shard_mb=1)
    (whole,), shards = shards_of(long_corpus), shards_of(tmp_path / "out")
    assert [shard.name for shard in shards] == [
        f"train-{i:05d}-of-{len(shards):05d}.parquet" for i in range(len(shards))
    ]
    assert len(shards) > 1
    texts = [pq.read_table(shard)["text"].to_pylist() for shard in shards]
    assert sum(texts, []) == pq.read_table(whole)["text"].to_pylist()
    num_bytes = 0
    for number, some in enumerate(texts[:-1], 1):
        num_bytes += sum(len(text.encode()) for text in some)
        assert num_bytes - len(some[-1].encode()) < number << 20 <= num_bytes
    for shard in [whole, *shards]:
        metadata = pq.read_metadata(shard)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        assert all(size == ROW_GROUP_ROWS for size in sizes[:-1]) and 0 < sizes[-1] <= ROW_GROUP_ROWS
        assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_row_groups_of_long_texts_end_by_their_bytes_whatever_the_parts(tmp_path):
    texts = [f"{number}번째 " + "길고 긴 댓글 " * 50_000 for number in range(45)]
    source = tmp_path / "comments.parquet"
    pq.write_table(pa.table({"text": texts}), source, row_group_size=10, use_dictionary=False, write_batch_size=1)
    sizes = []
    for part_mb in (1, 64):
        build(source, tmp_path / f"{part_mb}", rules="none", part_mb=part_mb)
        (shard,) = shards_of(tmp_path / f"{part_mb}")
        metadata = pq.read_metadata(shard)
        sizes.append([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        assert pq.read_table(shard)["text"].to_pylist() == texts
    first = next(n for n in range(45) if sum(len(text.encode()) for text in texts[:n]) >= ROW_GROUP_BYTES)
    assert sizes == [[first, 45 - first]] * 2


def test_counts_of_equal_size_come_in_the_same_order_whatever_the_parts(tmp_path):
    texts = [f"{number}번째 " + "길고 긴 댓글 " * 200 for number in range(1400)]
    texts[3], texts[-3] = "짧음", " "
    texts[5], texts[-5] = f"{texts[5]} ＡＢＣ", f"{texts[-5]} &lt;제목&gt;"
    source = tmp_path / "comments.parquet"
    pq.write_table(pa.table({"text": texts}), source, row_group_size=len(texts) // 2, use_dictionary=False)
    for part_mb in (1, 32):
        manifest = build(source, tmp_path / f"{part_mb}", part_mb=part_mb)
        assert {"too short": 1, "empty": 1}.items() <= manifest["dropped"].items()
        assert {"fold_width": 1, "unescape_html": 1}.items() <= manifest["changed_by_rule"].items()
    assert (tmp_path / "1" / MANIFEST).read_text() == (tmp_path / "32" / MANIFEST).read_text()


NUM_PARTS = 4
OPTIONS = {"part_mb": 1, "shard_mb": 1}


@pytest.fixture(scope="module")
def source(sample_comments, tmp_path_factory):
    """Comments in threads, of `NUM_PARTS` parts of a MiB."""
    return write_jsonl(tmp_path_factory.mktemp("source") / "comments.jsonl", vary(sample_comments, 20_000))


@pytest.fixture(scope="module")
def expected(source):
    """The bytes that an undisturbed build makes."""
    build(source, source.with_name("out"), **OPTIONS)
    return digests(source.with_name("out"))


@pytest.mark.parametrize("num_workers", [2, *(pytest.param(num, marks=pytest.mark.slow) for num in (1, 4))])
def test_the_number_of_processes_does_not_change_a_byte(source, expected, tmp_path, num_workers):
    manifest = build_corpus(str(source), tmp_path / "out", num_workers=num_workers, **OPTIONS)
    assert digests(tmp_path / "out") == expected
    assert manifest == read_manifest(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)


# read by others


@pytest.mark.parametrize(("by", "streaming"), [("directory", True), ("files", True), ("files", False)])
def test_datasets_reads_a_corpus(source, expected, tmp_path, monkeypatch, by, streaming):
    import datasets

    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / name))
    output_dir = source.with_name("out")
    how = (
        {"path": str(output_dir)}
        if by == "directory"
        else {"path": "parquet", "data_files": f"{output_dir}/*.parquet"}
    )
    dataset = datasets.load_dataset(**how, streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert list(dataset) == ["train"]
    assert dataset["train"].column_names == list(COLUMNS)
    assert list(dataset["train"]) == read_rows(output_dir)


def test_a_corpus_is_read_as_comments(source, expected):
    reader = CommentReader(str(source.with_name("out")))
    comments = [comment._asdict() for batch in reader for comment in batch]
    assert comments == read_rows(source.with_name("out"))
    assert reader.counts == {"comments": len(comments)}
    assert reader.has_parents


def test_a_corpus_of_a_corpus_is_itself(source, expected, tmp_path):
    manifest = build(source.with_name("out"), tmp_path / "again", rules="none", min_chars=0, dedup="none", shard_mb=1)
    assert read_rows(tmp_path / "again") == read_rows(source.with_name("out"))
    assert (manifest["dropped"], manifest["changed_by_rule"]) == ({}, {"replace_surrogates": 0})


# interrupted


def start(source: Path, output_dir: Path, *, num_workers: int = 2) -> subprocess.Popen:
    """Start a build as users write it, with no `if __name__ == "__main__"`."""
    options = {**OPTIONS, "num_workers": num_workers}
    script = output_dir.with_name("script.py")
    call = f"build_corpus({str(source)!r}, {str(output_dir)!r}, **{options})"
    script.write_text(f"from kcelectra.corpus import build_corpus\n\n{call}\n")
    with open(output_dir.with_name("stderr.txt"), "w") as stderr:
        return subprocess.Popen([sys.executable, str(script)], start_new_session=True, stderr=stderr)


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "--multiprocessing-fork" in child.cmdline()]
    except psutil.Error:  # one of them is gone meanwhile
        return []


def is_dead(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill_all(process: subprocess.Popen) -> None:
    workers = workers_of(process)
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert wait_until(lambda: all(map(is_dead, workers)))


def require_success(process: subprocess.Popen, directory: Path) -> None:
    try:
        status = process.wait(timeout=90)
    except subprocess.TimeoutExpired:
        pytest.fail("the build hangs")
    assert status == 0, (directory / "stderr.txt").read_text()


def require_whole_files(output_dir: Path) -> None:
    for path in output_dir.rglob("*"):
        if path.suffix == ".parquet":
            pq.read_metadata(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    assert not (output_dir / MANIFEST).exists() or (output_dir / MANIFEST).stat().st_size > 0


def finished_in(output_dir: Path) -> dict[str, tuple[int, int]]:
    """Stamps of what says that a task is done."""
    work_dir = output_dir / WORK_DIR
    return {
        name: stamp for name, stamp in stamps(work_dir).items() if re.fullmatch(r"(counts|shards)/\d+\.json", name)
    }


def test_a_build_that_is_killed_again_and_again_redoes_nothing_and_makes_the_same_bytes(source, expected, tmp_path):
    output_dir, before = tmp_path / "out", {}
    for num_finished in (2, NUM_PARTS + 1):  # parts, then shards
        process = start(source, output_dir)
        assert wait_until(lambda: len(finished_in(output_dir)) >= num_finished)  # noqa: B023
        kill_all(process)
        require_whole_files(output_dir)
        after = finished_in(output_dir)
        assert before.items() <= after.items()
        before = after
    build(source, output_dir, **OPTIONS)
    assert digests(output_dir) == expected
    assert sorted(path.name for path in output_dir.iterdir()) == sorted(expected)


def test_a_build_goes_on_when_workers_are_killed_and_makes_the_same_bytes(source, expected, tmp_path):
    output_dir = tmp_path / "out"
    process = start(source, output_dir)
    try:
        for num_finished in (1, 3):
            assert wait_until(lambda: len(finished_in(output_dir)) >= num_finished and workers_of(process))  # noqa: B023
            workers_of(process)[-1].kill()
        require_success(process, tmp_path)
    finally:
        kill_all(process)
    assert digests(output_dir) == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_build_goes_on_when_a_worker_is_killed_at_a_random_moment(source, expected, tmp_path, seed):
    rng = random.Random(seed)
    process = start(source, tmp_path / "out")
    try:
        assert wait_until(lambda: workers_of(process))
        time.sleep(rng.uniform(0, 4))
        wait_until(lambda: workers_of(process) or process.poll() is not None)
        for worker in workers_of(process)[-1:]:
            worker.kill()
        require_success(process, tmp_path)
    finally:
        kill_all(process)
    assert digests(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_build_that_is_killed_at_random_moments_makes_the_same_bytes(source, expected, tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(4):
        process = start(source, tmp_path / "out")
        wait_until(lambda: process.poll() is not None, seconds=rng.uniform(0.5, 6))  # noqa: B023
        kill_all(process)
        require_whole_files(tmp_path / "out")
    build(source, tmp_path / "out", **OPTIONS)
    assert digests(tmp_path / "out") == expected


def test_workers_end_with_the_process_that_started_them(source, tmp_path):
    process = start(source, tmp_path / "out")
    assert wait_until(lambda: finished_in(tmp_path / "out"))
    workers = workers_of(process)
    process.kill()
    process.wait()
    try:
        assert workers and wait_until(lambda: all(map(is_dead, workers)), seconds=5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def kill_itself(work_dir: str, task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_itself_once(work_dir: str, task: int) -> int:
    mark = Path(work_dir, f"{task}")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(work_dir, task)


def square(work_dir: str, task: int) -> int:
    return task * task


def fill_disk(work_dir: str, task: int) -> None:
    raise OSError(28, "No space left on device", "shard")


def test_a_worker_that_is_killed_every_time_is_an_input_error_that_says_what_to_type(caplog):
    done = []
    with pytest.raises(InputError) as error:
        run_tasks(kill_itself, "", [7], num_workers=1, on_done=lambda *result: done.append(result))
    assert f"workers were killed {MAX_DEATHS + 1} times in a row" in str(error.value)
    options = set(re.findall(r"--(\w+)", str(error.value)))
    assert options and options <= vars(CorpusArguments(sources=["a.txt"])).keys()
    assert len(caplog.records) == MAX_DEATHS
    assert done == []


@pytest.mark.slow
def test_deaths_between_which_a_task_is_done_are_forgiven(tmp_path):
    done = []
    tasks = range(MAX_DEATHS + 1)
    run_tasks(kill_itself_once, str(tmp_path), tasks, num_workers=1, on_done=lambda *each: done.append(each))
    assert sorted(done) == [(task, task * task) for task in tasks]


def test_a_worker_that_is_killed_while_tasks_are_handed_out_is_replaced(monkeypatch):
    submit, done = ProcessPoolExecutor.submit, {}

    def kill_after_the_first(pool, *arguments):
        future = submit(pool, *arguments)
        if not done:
            done["killed"] = 0
            for process in pool._processes.values():
                process.kill()
            time.sleep(0.5)  # until the pool has seen it
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", kill_after_the_first)
    run_tasks(square, "", [3, 4], num_workers=1, on_done=done.__setitem__)
    assert {3: 9, 4: 16}.items() <= done.items()


END_OF_A_STEP = """
import operator, os, random, signal, threading, time
import psutil
from kcelectra.corpus.workers import run_tasks

rng, pids, num_done = random.Random({seed}), [], 0


def kill(pid, delay):
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)


def on_done(task, result):
    global num_done
    num_done += 1
    if num_done == 7:
        pids[:] = [child.pid for child in psutil.Process().children() if "--multiprocessing-fork" in child.cmdline()]
    elif num_done == 8:
        threading.Thread(target=kill, args=(rng.choice(pids), rng.uniform(0, 0.002))).start()


for _ in range(15):
    num_done = 0
    run_tasks(operator.mul, "", range(8), num_workers=4, on_done=on_done)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_worker_that_is_killed_when_all_is_done_does_not_stop_the_others_from_ending(tmp_path, seed):
    (tmp_path / "script.py").write_text(END_OF_A_STEP.format(seed=seed))
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], start_new_session=True)
    try:
        assert process.wait(timeout=120) == 0
    finally:
        kill_all(process)


def test_a_full_disk_in_a_worker_is_an_input_error():
    with pytest.raises(InputError, match="No space left on device.*; the same command goes on"):
        run_tasks(fill_disk, "", [0], num_workers=1, on_done=print)


def test_finishing_again_after_the_last_line_changes_nothing(long_source, tmp_path):
    """A worker that is killed when the corpus is whole, but has not said so, is called again."""
    arguments = CorpusArguments(
        sources=[str(write_lines(tmp_path / "a.txt", ["하나뿐인 댓글입니다요"]))], output_dir=str(tmp_path / "out")
    )
    work_dir = plan_corpus(arguments)
    for step in STEPS[:3]:
        step(work_dir, 0)
    result = STEPS[3](work_dir, 0)
    before = stamps(tmp_path / "out")
    assert STEPS[3](work_dir, 0) == result
    assert stamps(tmp_path / "out") == before


# a full disk


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, *, free_kb: int) -> Path:
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    ballast.write_bytes(bytes(status.f_bavail * status.f_frsize - (free_kb << 10)))
    return ballast


@pytest.fixture(scope="module")
def repetitive_source(tmp_path_factory):
    """Comments of which half repeat, so that much is dropped."""
    rng = random.Random(0)
    lines = [f"{rng.randrange(20_000)}번째로 온 사람입니다" for _ in range(40_000)]
    source = write_lines(tmp_path_factory.mktemp("repetitive") / "comments.txt", lines)
    build(source, source.with_name("out"), part_mb=1)
    return source


@pytest.mark.parametrize(
    ("num_steps", "free_kb"),
    [(0, 0), (0, 900), (1, 20), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 30), (3, 4)))],
)
def test_after_a_full_disk_the_same_command_goes_on(small_disk, repetitive_source, num_steps, free_kb):
    output_dir = small_disk / "out"
    build(repetitive_source, output_dir, steps=num_steps, part_mb=1)
    ballast = fill(small_disk, free_kb=free_kb)
    with pytest.raises(InputError, match="[Nn]o space left on device"):
        build_corpus(str(repetitive_source), output_dir, part_mb=1, num_workers=1)
    require_whole_files(output_dir)
    before = finished_in(output_dir)
    ballast.unlink()
    build(repetitive_source, output_dir, part_mb=1, steps=3)
    assert before.items() <= finished_in(output_dir).items()
    build(repetitive_source, output_dir, part_mb=1)
    assert digests(output_dir) == digests(repetitive_source.with_name("out"))


# the same call again, and another one


@pytest.fixture
def comments_dir(tmp_path):
    directory = tmp_path / "comments"
    directory.mkdir()
    for name in "abc":
        write_lines(directory / f"{name}.txt", [f"{name}의 {number}번째 댓글입니다" for number in range(20)])
    return directory


def change(path: Path, *, text: str | None = None) -> None:
    status = path.stat()
    if text is not None:
        path.write_text(text, encoding="utf-8")
        assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def test_a_file_that_two_sources_name_is_read_once(comments_dir, tmp_path):
    manifest = build([comments_dir / "b.txt", comments_dir], tmp_path / "out", dedup="none")
    assert [Path(source["path"]).name for source in manifest["sources"]] == ["b.txt", "a.txt", "c.txt"]
    assert manifest["num_kept"] == 60


def test_its_own_shards_are_no_sources(comments_dir, tmp_path):
    pq.write_table(pa.table({"text": ["열 글자보다 긴 댓글입니다"]}), comments_dir / "a.parquet")
    source, output_dir = comments_dir / "**" / "*.parquet", comments_dir / "out"
    build(source, output_dir, steps=3)
    assert shards_of(output_dir)
    assert build(source, output_dir)["num_read"] == 1
    assert build_corpus(source, output_dir)["num_kept"] == 1


@pytest.mark.parametrize(("memory_mb", "expected"), [(192, 4), (30, 1), (1 << 20, 32)])
def test_each_thread_of_dedup_has_memory_enough(sample_file, tmp_path, monkeypatch, memory_mb, expected):
    given, find_dropped = {}, shards.find_dropped
    monkeypatch.setattr(shards, "find_dropped", lambda *args, **kw: given.update(kw) or find_dropped(*args, **kw))
    build(sample_file, tmp_path / "out", steps=2, num_workers=32, memory_mb=memory_mb)
    assert given["num_threads"] == expected


def test_the_same_call_returns_the_same_manifest_and_touches_nothing(comments_dir, tmp_path, monkeypatch):
    manifest = build(comments_dir, tmp_path / "out")
    before = stamps(tmp_path / "out")
    others = {"num_workers": 3, "memory_mb": 99, "part_mb": 5, "skip_damaged": True}
    assert build_corpus(str(comments_dir), tmp_path / "out") == manifest
    assert build_corpus([f"{comments_dir}/*.txt"], str(tmp_path / "out"), **others) == manifest
    monkeypatch.chdir(tmp_path)
    assert build_corpus("comments", "out") == manifest
    assert stamps(tmp_path / "out") == before


def test_what_does_not_matter_may_change_in_the_middle(source, expected, tmp_path):
    build(source, tmp_path / "out", steps=1, **OPTIONS, num_workers=1)
    before = finished_in(tmp_path / "out")
    others = {"shard_mb": 1, "part_mb": 7, "memory_mb": 64, "num_workers": 2, "skip_damaged": True}
    build(source, tmp_path / "out", steps=2, **others)
    assert before == finished_in(tmp_path / "out")
    build(source, tmp_path / "out", shard_mb=1)
    assert digests(tmp_path / "out") == expected


SETTINGS = [
    ("rules", "v2022", "--rules was 'corpus' and is 'v2022'"),
    ("min_chars", 5, "--min_chars was 10 and is 5"),
    ("dedup", "none", "--dedup was 'global' and is 'none'"),
    ("pii", "mask", "--pii was 'count' and is 'mask'"),
    ("shard_mb", 1, "--shard_mb was 256 and is 1"),
    ("text_column", "comment", "--text_column was 'text' and is 'comment'"),
]


@pytest.mark.parametrize("steps", [0, 1, 3, len(STEPS)])
@pytest.mark.parametrize(("name", "value", "message"), SETTINGS)
def test_a_changed_setting_is_refused_by_name(comments_dir, tmp_path, steps, name, value, message):
    build(comments_dir, tmp_path / "out", steps=steps)
    before = stamps(tmp_path / "out")
    with pytest.raises(InputError) as error:
        build_corpus(str(comments_dir), tmp_path / "out", **{name: value})
    what = "a corpus" if steps == len(STEPS) else "an unfinished corpus"
    assert f"{tmp_path / 'out'} holds {what} of something else: {message}; give another --output_dir" in str(
        error.value
    )
    assert stamps(tmp_path / "out") == before


@pytest.mark.parametrize("steps", [0, 1, 3, len(STEPS)])
@pytest.mark.parametrize(
    ("change_source", "message"),
    [
        (lambda files: change(files["b"], text=files["b"].read_text().replace("댓글", "답글")), "b.txt has changed"),
        (lambda files: change(files["b"]), "b.txt has changed"),
        (lambda files: files["c"].write_text("더 짧은 댓글\n"), "c.txt has changed"),
        (lambda files: shutil.copy(files["a"], files["a"].with_name("d.jsonl")), "d.jsonl is new"),
        (lambda files: files["a"].unlink(), "a.txt is gone"),
    ],
    ids=["same size", "touched", "other size", "added", "removed"],
)
def test_a_changed_source_is_refused_by_name(comments_dir, tmp_path, steps, change_source, message):
    build(comments_dir, tmp_path / "out", steps=steps)
    before = stamps(tmp_path / "out")
    change_source({path.stem: path for path in comments_dir.iterdir()})
    with pytest.raises(InputError) as error:
        build_corpus(str(comments_dir), tmp_path / "out")
    assert f"{comments_dir}/{message}; give another --output_dir, or delete this one" in str(error.value)
    assert stamps(tmp_path / "out") == before


def test_a_source_that_changes_during_the_build_is_refused(comments_dir, tmp_path):
    build(comments_dir, tmp_path / "out", steps=0)
    change(comments_dir / "b.txt")
    clean_part(str(tmp_path / "out" / WORK_DIR), 0)
    with pytest.raises(InputError, match=r"b\.txt has changed since the build began; delete .* start again"):
        clean_part(str(tmp_path / "out" / WORK_DIR), 1)


@pytest.mark.parametrize("steps", [0, len(STEPS)])
def test_sources_in_another_order_are_refused(comments_dir, tmp_path, steps):
    files = [str(comments_dir / name) for name in ("a.txt", "c.txt")]
    build(files, tmp_path / "out", steps=steps)
    with pytest.raises(InputError, match="the sources come in another order; give another --output_dir"):
        build_corpus(files[::-1], tmp_path / "out")


def test_a_finished_corpus_whose_shard_was_cut_is_refused(comments_dir, tmp_path):
    build(comments_dir, tmp_path / "out")
    (shard,) = shards_of(tmp_path / "out")
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(InputError, match=rf"{shard.name} is missing or not what {MANIFEST} says; delete"):
        build_corpus(str(comments_dir), tmp_path / "out")


def test_a_shard_that_is_gone_before_the_end_is_written_again(long_source, long_corpus, tmp_path):
    options = {"rules": "none", "part_mb": 32}
    build(long_source, tmp_path / "out", steps=3, **options)
    shards_of(tmp_path / "out")[0].unlink()
    build(long_source, tmp_path / "out", **options)
    assert digests(tmp_path / "out") == digests(long_corpus)


def test_what_is_left_of_a_build_killed_at_its_end_is_deleted(comments_dir, tmp_path):
    manifest = build(comments_dir, tmp_path / "out", steps=3)
    shutil.copytree(tmp_path / "out" / WORK_DIR, tmp_path / "work")
    manifest = build(comments_dir, tmp_path / "out")
    shutil.copytree(tmp_path / "work", tmp_path / "out" / WORK_DIR)
    assert build_corpus(str(comments_dir), tmp_path / "out") == manifest
    assert not (tmp_path / "out" / WORK_DIR).exists()


# bad input, one line each


def test_a_directory_with_foreign_files_is_refused_and_left_alone(comments_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    before = stamps(tmp_path / "out")
    with pytest.raises(InputError, match="out is there and holds no corpus; give another --output_dir"):
        build_corpus(str(comments_dir), tmp_path / "out")
    assert stamps(tmp_path / "out") == before


def test_a_file_in_place_of_the_directory_is_refused(comments_dir, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="--output_dir"):
        build_corpus(str(comments_dir), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_corpus_whose_manifest_was_changed_is_told_as_that(comments_dir, tmp_path):
    build(comments_dir, tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    path.write_text(path.read_text("utf-8").replace('"num_kept": 60', '"num_kept": 61'), "utf-8")
    with pytest.raises(InputError, match=f"{path} was changed since it was written; delete"):
        build_corpus(str(comments_dir), tmp_path / "out")


@pytest.mark.parametrize("text", ['{"stage": "tokenizer", "files": {}}', '{"stage', "[]"])
def test_the_directory_of_another_stage_is_refused(comments_dir, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="--output_dir"):
        build_corpus(str(comments_dir), tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST).read_text() == text


def test_an_empty_directory_is_taken(comments_dir, tmp_path):
    (tmp_path / "out").mkdir()
    assert build(comments_dir, tmp_path / "out")["num_kept"] == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dedup": "fuzzy"}, "--dedup is 'fuzzy'; use one of global, thread, none"),
        ({"pii": "hide"}, "--pii is 'hide'; use one of count, mask, drop"),
        ({"rules": "v2023"}, "unknown rule set 'v2023'; use one of v2022, v2021, corpus"),
        ({"num_workers": 0}, "--num_workers is 0; give 1 or more"),
        ({"part_mb": 0}, "--part_mb is 0; give 1 or more"),
        ({"shard_mb": -1}, "--shard_mb is -1; give 1 or more"),
        ({"memory_mb": 0}, "--memory_mb is 0; give 1 or more"),
        ({"sources": []}, "no comments; give --sources with files, quoted globs, directories or Hub ids"),
        ({"sources": "nowhere/*.txt"}, "no file matches 'nowhere/*.txt'; give a file"),
        ({"sources": "README.md"}, "unknown extension; use one of .txt, .jsonl"),
    ],
)
def test_bad_input_is_named_with_what_to_type(comments_dir, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("no comments")
    with pytest.raises(InputError) as error:
        build_corpus(**{"sources": str(comments_dir), "output_dir": "out", **options})
    assert message in str(error.value)
    assert not Path("out").exists()


def test_a_column_that_is_not_there_is_named_before_anything_is_written(sample_file, tmp_path):
    table = pa.table({"comment": ["이름이 다른 열의 댓글"]})
    pq.write_table(table, tmp_path / "comments.parquet")
    with pytest.raises(InputError, match="has no column 'text'; it has 'comment': give one as --text_column"):
        build_corpus([str(sample_file), str(tmp_path / "comments.parquet")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "counts"),
    [
        (["굿", "헐", "", "★", "굿"], {"too short": 3, "empty": 2}),
        ([], {}),
    ],
)
def test_a_corpus_of_nothing_is_refused_with_the_counts(tmp_path, lines, counts):
    source = write_lines(tmp_path / "comments.txt", lines)
    with pytest.raises(
        InputError, match="no comment is left .*; look at the sources, or give another --text_column or a"
    ) as error:
        build(source, tmp_path / "out", rules="v2022")
    for reason, count in counts.items():
        assert f"{reason}: {count}" in str(error.value)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_the_cure_for_no_comment_can_be_given_at_once(comments_dir, tmp_path):
    with pytest.raises(InputError, match="no comment is left .*or a lower --min_chars"):
        build(comments_dir, tmp_path / "out", min_chars=100)
    assert build(comments_dir, tmp_path / "out", min_chars=1)["num_kept"] == 60


def test_where_the_cure_is_another_plan_the_message_says_what_to_delete(cut_file, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=rf"; repair it, delete {tmp_path / 'out'} and start again, or keep"):
        build(cut_file[0], tmp_path / "out")
    monkeypatch.setattr(build_module, "find_revision", lambda *_: "0" * 40)
    table = pa.table({"comment": ["글"]})
    monkeypatch.setattr(shards, "read_hub", lambda *_, **__: ((None, from_arrow(i, "a/b", "text")) for i in [table]))
    with pytest.raises(InputError, match=rf"give one as --text_column, and delete {tmp_path / 'hub'} first$"):
        build("a/b", tmp_path / "hub")


def test_a_parquet_file_without_row_groups_is_a_corpus_of_nothing(tmp_path):
    pq.ParquetWriter(tmp_path / "comments.parquet", pa.schema([("text", pa.string())])).close()
    assert pq.read_metadata(tmp_path / "comments.parquet").num_row_groups == 0
    with pytest.raises(InputError, match="no comment is left"):
        build(tmp_path / "comments.parquet", tmp_path / "out")


def test_empty_files_among_others_change_nothing(comments_dir, tmp_path):
    build(comments_dir, tmp_path / "out")
    (comments_dir / "aa.txt").touch()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), comments_dir / "ab.parquet")
    pq.ParquetWriter(comments_dir / "ac.parquet", pa.schema([("text", pa.string())])).close()
    build(comments_dir, tmp_path / "other")
    assert [file.read_bytes() for file in shards_of(tmp_path / "other")] == [
        file.read_bytes() for file in shards_of(tmp_path / "out")
    ]


# personal data, damage, counts


PRIVATE = [
    "전화는 010-1234-5678 로 주세요",
    "메일은 abc@naver.com 입니다",
    "메일은 abc@naver.com 입니다",
    "아무것도 없는 댓글입니다",
]


@pytest.mark.parametrize(
    ("pii", "expected", "dropped"),
    [
        ("count", [PRIVATE[0], PRIVATE[1], PRIVATE[3]], {"duplicate": 1}),
        ("mask", ["전화는 [PHONE] 로 주세요", "메일은 [EMAIL] 입니다", PRIVATE[3]], {"duplicate": 1}),
        ("drop", [PRIVATE[3]], {"personal data": 3}),
    ],
)
def test_personal_data_is_counted_masked_or_dropped(tmp_path, pii, expected, dropped):
    manifest = build(write_lines(tmp_path / "comments.txt", PRIVATE), tmp_path / "out", pii=pii)
    assert [row["text"] for row in read_rows(tmp_path / "out")] == expected
    assert manifest["personal_data"] == {"PHONE": 1, "EMAIL": 2}
    assert manifest["dropped"] == dropped


@pytest.mark.parametrize(
    ("rules", "hidden"),
    [
        ("v2022", "010♥1234♥5678"),
        ("corpus", "0\u03361\u03360\u0336-1\u03362\u03363\u03364\u0336-5678"),
        ("corpus", "010\x001234\x005678"),
    ],
)
@pytest.mark.parametrize("pii", ["mask", "drop"])
def test_what_cleaning_makes_a_phone_number_is_one(tmp_path, rules, hidden, pii):
    source = write_lines(tmp_path / "comments.txt", [f"전화는 {hidden} 로 주세요", PRIVATE[0], PRIVATE[3]])
    manifest = build(source, tmp_path / "out", rules=rules, pii=pii)
    masked = ["전화는 [PHONE] 로 주세요"] if pii == "mask" else []
    assert [row["text"] for row in read_rows(tmp_path / "out")] == [*masked, PRIVATE[3]]
    assert manifest["personal_data"] == {"PHONE": 2}


def test_a_directory_with_brackets_in_its_name_gets_a_corpus(tmp_path):
    source = write_lines(tmp_path / "comments.txt", PRIVATE)
    assert build(source, tmp_path / "c[1]*") == build(source, tmp_path / "plain")


@pytest.fixture
def cut_file(comments_dir):
    """A `.gz` that ends in the middle, and the rows that are in it."""
    rng = random.Random(0)
    lines = [f"{number}번째 댓글 {rng.randrange(10**90)}" for number in range(20_000)]
    data = gzip.compress("".join(f"{line}\n" for line in lines).encode())
    data = data[: len(data) * 3 // 4]
    (comments_dir / "b.txt.gz").write_bytes(data)
    return comments_dir / "b.txt.gz", zlib.decompressobj(wbits=31).decompress(data).decode(errors="ignore").split(
        "\n"
    )[:-1]


def test_a_damaged_file_stops_the_build_unless_its_good_rows_are_wanted(cut_file, tmp_path):
    file, readable = cut_file
    with pytest.raises(InputError, match=r"cannot read .*b\.txt\.gz after row \d+: .* with --skip_damaged true"):
        build(file.parent, tmp_path / "out", rules="none")
    manifest = build(file.parent, tmp_path / "out", rules="none", skip_damaged=True)
    (damage,) = manifest["damaged_files"]
    num_good = int(re.search(rf"cannot read {file} after row (\d+)", damage)[1])
    assert len(readable) - 100 < num_good <= len(readable)  # zlib holds a few KiB back
    assert [row["text"] for row in read_rows(tmp_path / "out")][40:-20] == readable[:num_good]
    assert manifest["num_kept"] == manifest["num_read"] == 60 + num_good
    assert describe_corpus(manifest).endswith(damage)


def test_blank_lines_are_named_as_such(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "아무 문제도 없는 댓글"}\n  \n', "utf-8")
    (tmp_path / "b.csv").write_text("text,thread\n\n아무 문제도 없는 다른 댓글,1\n", "utf-8")
    manifest = build(tmp_path, tmp_path / "out")
    assert (manifest["num_kept"], manifest["dropped"]) == (2, {"blank line": 3})


@pytest.mark.parametrize("rules", RULE_SETS)
def test_half_a_surrogate_pair_costs_no_other_comment(tmp_path, rules):
    source = tmp_path / "comments.jsonl"
    source.write_text('{"text": "반쪽 \\ud83d 이모지가 있는 댓글"}\n{"text": "아무 문제도 없는 댓글"}\n')
    build(source, tmp_path / "out", rules=rules)
    assert read_rows(tmp_path / "out")[-1] == {"text": "아무 문제도 없는 댓글"}


def test_the_table_adds_up(tmp_path):
    rows = [f"{number}번째 댓글입니다 ㅋㅋㅋㅋ".encode() for number in range(50)]
    rows += [
        *rows[:7],
        b"\xff\xfe",
        "짧음".encode(),
        b"",
        *(text.encode() for text in PRIVATE),
        "둘째 잘못 ".encode() + b"\x80",
    ]
    (tmp_path / "comments.txt").write_bytes(b"\n".join(rows) + b"\n")
    manifest = build(tmp_path / "comments.txt", tmp_path / "out", pii="drop")
    assert manifest["dropped"] == {"duplicate": 7, "personal data": 3, "invalid UTF-8": 2, "too short": 1, "empty": 1}
    assert manifest["bad_rows"] == [f"{tmp_path}/comments.txt, row {row}: invalid UTF-8" for row in (58, 65)]
    lines = describe_corpus(manifest).splitlines()
    table = {match[1]: int(match[2]) for line in lines if (match := re.fullmatch(r"  (.+?) +([\d,]+) +[\d.]+%", line))}
    assert table["read"] == len(rows) == table["kept"] + sum(table[reason] for reason in manifest["dropped"])
    assert table["kept"] == manifest["num_kept"] == len(read_rows(tmp_path / "out")) == 51
    assert table["shorten_runs"] == manifest["changed_by_rule"]["shorten_runs"] == 57
    assert table["PHONE"] == 1 and table["EMAIL"] == 2
    assert lines[-2:] == manifest["bad_rows"]


def test_bad_rows_are_named_by_their_number_in_the_file(comments_dir, tmp_path):
    lines = [f"{number}번째 댓글입니다 ".encode() * 20 for number in range(6000)]
    for number in (2, 3000, 5999):
        lines[number] += b"\xff"
    source = comments_dir / "d.txt"
    source.write_bytes(b"\n".join(lines))
    manifest = build([source, comments_dir / "a.txt"], tmp_path / "out", part_mb=1)
    assert manifest["bad_rows"] == [f"{source}, row {number + 1}: invalid UTF-8" for number in (2, 3000, 5999)]
    assert manifest["num_read"] == 6020


def test_the_histogram_counts_every_kept_comment(source, expected):
    manifest = read_manifest(source.with_name("out"))
    lengths = Counter(min(len(row["text"]), 500) for row in read_rows(source.with_name("out")))
    assert {length: count for length, count in enumerate(manifest["num_by_length"]) if count} == lengths
    assert len(manifest["num_by_length"]) == 501
