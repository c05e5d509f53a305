"""Claims about packed rows: all that the comments hold, once an epoch, in one order, and never a byte that changed."""

import gzip
import hashlib
import json
import os
import pickle
import random
import shutil
import time
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from signal import SIGKILL
from threading import RLock

import numpy as np
import pytest
from conftest import run_here
from datasets import load_dataset
from hub import HubServer, run_client
from torch.utils.data import DataLoader

from kcelectra.corpus import build_corpus
from kcelectra.corpus.comments import CommentReader
from kcelectra.corpus.work_dir import WORK_DIR, write_json
from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, write_manifest
from kcelectra.pretraining import packed_corpus
from kcelectra.pretraining.collator import DataCollatorForReplacedTokenDetection
from kcelectra.pretraining.packed import BLOCKS_FILE, NUM_CACHED, PackedRows, RowOrder, is_packed, row_dtype
from kcelectra.pretraining.packed_corpus import pack_corpus
from kcelectra.pretraining.streaming import PackedStream
from kcelectra.release.publish import release_rows
from kcelectra.tokenization import load_tokenizer
from kcelectra.tokenization.loading import as_bert_tokenizer, tokens_by_id

PAD, CLS = 0, 2
MAX_LENGTH = 64
ROW_BYTES = 2 * MAX_LENGTH
SMALL = {"PART_BYTES": 1, "RUN_BYTES": 50 * ROW_BYTES, "FILE_BYTES": 200 * ROW_BYTES, "BLOCK_BYTES": 32 * ROW_BYTES}


def make_small(patch):
    """Let little data make several parts, runs, files and blocks."""
    for name, value in SMALL.items():
        patch.setattr(packed_corpus, name, value)


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)
    monkeypatch.setattr(packed_corpus, "run_tasks", run_here)


@pytest.fixture(scope="module")
def source(sample_comments, tmp_path_factory):
    """The sample in files that hold whole threads."""
    directory = tmp_path_factory.mktemp("source")
    threads = {}
    for comment in sample_comments:
        threads.setdefault(comment["thread"], []).append(json.dumps(comment, ensure_ascii=False))
    for number in range(4):
        lines = [line for comments in list(threads.values())[number::4] for line in comments]
        (directory / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return directory


def pack(source, tokenizer, output_dir, **options):
    return pack_corpus(CommentReader(str(source)), tokenizer, output_dir, max_length=MAX_LENGTH, **options)


@pytest.fixture(scope="module")
def packed_dir(source, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed") / "rows"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(packed_corpus, "run_tasks", run_here)
        pack(source, tokenizer, directory)
    return directory


@pytest.fixture
def copy(packed_dir, tmp_path):
    return Path(shutil.copytree(packed_dir, tmp_path / "copy"))


def read_epoch(directory, epoch=0, seed=0):
    rows = PackedRows(str(directory), seed=seed)
    return rows.__getitems__(range(epoch * rows.num_rows, (epoch + 1) * rows.num_rows))


def as_pairs(rows):
    return [(row["row_id"], tuple(np.asarray(row["input_ids"]).tolist())) for row in rows]


def contents(rows):
    return [ids for _, ids in as_pairs(rows)]


def documents_of(rows):
    documents = []
    for row in rows:
        tokens = np.asarray(row["input_ids"])
        tokens = tokens[tokens != PAD]
        documents.extend(tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == CLS)[1:]))
    return documents


def digests(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# order


@pytest.mark.parametrize("sizes", [[1], [5], [3, 1, 4, 1, 5], [32] * 7 + [11], [1000, 1]])
def test_each_epoch_holds_every_row_once(sizes):
    order = RowOrder(sizes, seed=3)
    every_row = [(block, row) for block, size in enumerate(sizes) for row in range(size)]
    for epoch in range(3):
        blocks, rows = order.locate(np.arange(epoch * sum(sizes), (epoch + 1) * sum(sizes)))
        assert sorted(zip(blocks.tolist(), rows.tolist(), strict=True)) == every_row


def test_rows_come_block_by_block_and_shuffled_within():
    sizes = np.array([50, 20, 30])
    blocks, rows = RowOrder(sizes, seed=0).locate(range(100))
    visited = blocks[np.flatnonzero(np.diff(blocks, prepend=-1))]
    assert sorted(visited) == [0, 1, 2]
    for block in visited:
        assert rows[blocks == block].tolist() != list(range(sizes[block]))


def test_the_order_differs_between_epochs_and_seeds_and_nothing_else():
    sizes = [40] * 10
    orders = {
        (seed, epoch): np.stack(RowOrder(sizes, seed).locate(range(400 * epoch, 400 * (epoch + 1)))).tobytes()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == 9
    assert np.stack(RowOrder(sizes, 1).locate(range(800, 1200))).tobytes() == orders[1, 2]


def test_where_a_row_stands_does_not_depend_on_what_is_asked_for_with_it():
    order = RowOrder([7, 5, 9], seed=0)
    together = np.stack(order.locate(range(63)), axis=1)
    positions = np.random.default_rng(0).permutation(63)
    assert np.array_equal(np.stack(order.locate(positions), axis=1), together[positions])
    assert all(np.array_equal(np.stack(order.locate([i]), axis=1)[0], together[i]) for i in positions)


def test_the_order_is_the_one_that_runs_have_begun_with():
    blocks, rows = RowOrder([3, 2, 4], seed=7).locate(range(18))
    assert "".join(map(str, blocks)) == "000222211112222000"
    assert "".join(map(str, rows)) == "120302101102130210"


# packing


def test_rows_hold_the_documents_of_the_stream(source, tokenizer, packed_dir):
    stream = PackedStream(CommentReader(str(source)), tokenizer, max_length=MAX_LENGTH, num_passes=1)
    assert Counter(documents_of(read_epoch(packed_dir))) == Counter(documents_of(stream))
    counts = PackedRows(str(packed_dir), seed=0).manifest["counts"]
    assert {**counts, "rows": 0} == {**stream.counts, "rows": 0}


def test_small_files_are_packed_together_into_the_rows_of_the_stream(source, tokenizer, tmp_path, small, monkeypatch):
    monkeypatch.setattr(packed_corpus, "PART_BYTES", 1 << 20)
    pack(source, tokenizer, tmp_path / "out")
    stream = PackedStream(CommentReader(str(source)), tokenizer, max_length=MAX_LENGTH, num_passes=1)
    assert sorted(contents(read_epoch(tmp_path / "out"))) == sorted(contents(stream))


def test_repeated_documents_are_those_of_the_stream(source, tokenizer, tmp_path, small, monkeypatch):
    monkeypatch.setattr(packed_corpus, "PART_BYTES", 1 << 20)  # one part, whose documents are numbered as a stream's
    manifest = pack(source, tokenizer, tmp_path / "out", repeat_probability=0.5, seed=3)
    options = {"max_length": MAX_LENGTH, "num_passes": 1, "repeat_probability": 0.5, "seed": 3}
    stream = PackedStream(CommentReader(str(source)), tokenizer, **options)
    assert Counter(documents_of(read_epoch(tmp_path / "out"))) == Counter(documents_of(stream))
    assert manifest["settings"]["repeat_probability"] == 0.5
    card = release_rows(tmp_path / "out", repo_id="someone/rows", license="mit").files["README.md"].decode()
    assert "Of 50 % of the documents each comment stands beside itself" in card
    with pytest.raises(InputError, match="repeat_probability is 2; give a share from 0 to 1"):
        pack(source, tokenizer, tmp_path / "other", repeat_probability=2)
    assert not (tmp_path / "other").exists()


def test_filled_documents_are_those_of_the_stream(source, tokenizer, packed_dir, tmp_path, small):
    manifest = pack(source, tokenizer, tmp_path / "out", fill_documents=True)
    options = {"max_length": MAX_LENGTH, "num_passes": 1, "fill_documents": True}
    stream = PackedStream(CommentReader(str(source)), tokenizer, **options)
    assert Counter(documents_of(read_epoch(tmp_path / "out"))) == Counter(documents_of(stream))
    assert manifest["settings"]["fill_documents"] is True
    with pytest.raises(InputError, match="holds rows of something else: fill_documents was None and is True"):
        pack(source, tokenizer, packed_dir, fill_documents=True)
    with pytest.raises(InputError, match="holds rows of something else: fill_documents was True and is None"):
        pack(source, tokenizer, tmp_path / "out")


def test_the_manifest_says_what_the_rows_are(source, packed_dir, tokenizer):
    rows = PackedRows(str(packed_dir), seed=0)
    manifest, ids = rows.manifest, np.array(contents(read_epoch(packed_dir)))
    assert manifest["stage"] == "packed"
    assert (len(rows), rows.max_length, rows.vocab_size) == (*ids.shape, len(tokenizer))
    assert manifest["num_rows"] == manifest["counts"]["rows"] == len(rows)
    assert manifest["share_filled"] == np.mean(ids != PAD) > 0.9
    assert [file["name"] for file in manifest["source"]["files"]] == ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"]
    assert manifest["settings"] | {"max_length": MAX_LENGTH, "rules": "v2022", "min_chars": 10} == manifest["settings"]
    assert str(source) not in (packed_dir / MANIFEST).read_text(encoding="utf-8")


def test_rows_of_each_part_are_all_over_every_file(source, tokenizer, packed_dir):
    ranks = {ids: row_id for row_id, ids in as_pairs(read_epoch(packed_dir))}
    blocks = json.loads((packed_dir / BLOCKS_FILE).read_text(encoding="utf-8"))
    ends = np.cumsum([sum(file["num_rows"]) for file in blocks.values()])
    assert len(ends) > 2
    found = []  # where the rows of each of two parts are, in their order
    for name in ("0.jsonl", "1.jsonl"):
        stream = PackedStream(CommentReader(str(source / name)), tokenizer, max_length=MAX_LENGTH, num_passes=1)
        found.append(np.array([ranks[ids] for _, ids in sorted(as_pairs(stream))]))
    num_rows = min(map(len, found))
    for places in found:
        files = np.searchsorted(ends, places, side="right")
        in_file = (places - np.append(0, ends)[files]) / np.diff(ends, prepend=0)[files]
        assert np.bincount(files, minlength=len(ends)).min() > len(places) / len(ends) / 2
        assert np.histogram(in_file, bins=4, range=(0, 1))[0].min() > len(places) / 8
        assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.3  # chance: 0 +- 0.09
    assert abs(np.corrcoef(found[0][:num_rows], found[1][:num_rows])[0, 1]) < 0.3


def test_another_seed_writes_the_same_rows_in_another_order(source, tokenizer, packed_dir, tmp_path, small):
    pack(source, tokenizer, tmp_path / "other", seed=1)
    others, rows = (sorted(as_pairs(read_epoch(directory))) for directory in (tmp_path / "other", packed_dir))
    assert sorted(contents_of(others)) == sorted(contents_of(rows))
    assert others != rows


def contents_of(pairs):
    return [ids for _, ids in pairs]


def test_two_processes_write_the_same_bytes(source, tokenizer, packed_dir, tmp_path, monkeypatch):
    make_small(monkeypatch)
    pack(source, tokenizer, tmp_path / "out", num_workers=2)
    assert digests(tmp_path / "out") == digests(packed_dir)


@pytest.mark.parametrize("vocab_size", [65_536, 65_537])
def test_ids_take_two_bytes_where_they_fit_and_four_where_not(tokenizer, tmp_path, small, vocab_size):
    assert row_dtype(vocab_size) == (np.uint16 if vocab_size == 65_536 else np.uint32)
    tokens = tokens_by_id(tokenizer)
    large = as_bert_tokenizer([*tokens, *(f"[unused{i}]" for i in range(vocab_size - len(tokens) - 1)), "댓글입니다"])
    (tmp_path / "comments.txt").write_text("\n".join(f"{i} 번째 댓글입니다" for i in range(300)), encoding="utf-8")
    pack(tmp_path / "comments.txt", large, tmp_path / "out")
    rows = read_epoch(tmp_path / "out")
    stream = PackedStream(CommentReader(str(tmp_path / "comments.txt")), large, max_length=MAX_LENGTH, num_passes=1)
    assert rows[0]["input_ids"].dtype == row_dtype(vocab_size)
    assert max(max(ids) for ids in contents(rows)) == vocab_size - 1
    assert sorted(contents(rows)) == sorted(contents(stream))


def test_a_built_corpus_is_not_cleaned_again(source, tokenizer, tmp_path, small):
    corpus = Path(shutil.copytree(source, tmp_path / "corpus"))
    write_manifest(corpus, stage="corpus", settings={"rules": "corpus", "min_chars": 7})
    manifest = pack(corpus, tokenizer, tmp_path / "out")
    assert (manifest["settings"]["rules"], manifest["settings"]["min_chars"]) == ("none", 0)
    assert "too short" not in manifest["counts"] and manifest["cleaning"] == {"rules": "corpus", "min_chars": 7}
    card = release_rows(tmp_path / "out", repo_id="someone/rows", license="mit").files["README.md"].decode()
    assert "pretraining with `kcelectra`: cleaned by the rules `corpus`, tokenized" in card


def test_the_unfinished_work_of_another_stage_is_left_alone(source, tokenizer, tmp_path):
    def leave(plan):
        write_json(tmp_path / "out" / WORK_DIR, "plan.json", plan)
        return digests(tmp_path / "out")

    before = leave({"settings": {}, "sources": [], "parts": []})
    with pytest.raises(InputError, match="out is there and holds no packed rows; give another --output_dir"):
        pack(source, tokenizer, tmp_path / "out")
    assert digests(tmp_path / "out") == before
    before = leave({"settings": {}, "source": {}, "parts": [], "file_rows": 1})
    with pytest.raises(InputError, match="out is there and holds no corpus; give another --output_dir"):
        build_corpus(str(source), tmp_path / "out")
    assert digests(tmp_path / "out") == before


def test_the_same_call_again_changes_nothing_and_another_is_refused(source, tokenizer, copy, tmp_path, small):
    before = digests(copy)
    assert pack(source, tokenizer, copy)["num_rows"] == PackedRows(str(copy), seed=0).num_rows
    with pytest.raises(InputError, match="holds rows of something else: min_chars was 10 and is 11; give another"):
        pack(source, tokenizer, copy, min_chars=11)
    with pytest.raises(InputError, match="source_sha256 was"):
        pack(source / "0.jsonl", tokenizer, copy)
    with pytest.raises(InputError, match="holds no packed rows; give another --output_dir"):
        pack(source, tokenizer, source)
    assert digests(copy) == before


@pytest.mark.parametrize("text", ["", "굿\n", "짧은 댓글 하나뿐입니다\n"])
def test_comments_of_less_than_one_row_are_an_input_error(tokenizer, tmp_path, small, text):
    (tmp_path / "short.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"short\.txt.* less than one row of 64; .*lower --max_length"):
        pack(tmp_path / "short.txt", tokenizer, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())  # so that the next call may have another --max_length


def test_a_part_of_less_than_one_row_is_packed_with_the_others(source, tokenizer, packed_dir, tmp_path, small):
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "4.jsonl").write_text('{"text": "짧은 댓글 하나뿐입니다", "thread": "-"}', encoding="utf-8")
    (tmp_path / "source" / "5.jsonl").write_text("", encoding="utf-8")
    pack(tmp_path / "source", tokenizer, tmp_path / "out")
    ours, others = (Counter(documents_of(read_epoch(directory))) for directory in (tmp_path / "out", packed_dir))
    assert sum((ours - others).values()) == 1 and others <= ours


def test_a_full_disk_is_told_before_anything_is_packed(source, tokenizer, tmp_path, small, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"the rows need [\d,]+ MB more in .*; make room, or give an --output_dir"
        ):
            pack(source, tokenizer, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("options", [{"seed": -1}, {"num_workers": 0}, {"rules": "v2023"}])
def test_what_cannot_be_is_refused_before_anything_is_written(source, tokenizer, tmp_path, options):
    with pytest.raises(ValueError, match="--seed of 0 or more|unknown rule set"):
        pack(source, tokenizer, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_damaged_source_is_told_and_leaves_nothing_that_is_half_written(source, tokenizer, tmp_path, small):
    content = gzip.compress((source / "0.jsonl").read_bytes())
    (tmp_path / "cut.jsonl.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read .*cut\.jsonl\.gz after row \d+"):
        pack(tmp_path / "cut.jsonl.gz", tokenizer, tmp_path / "out")
    assert list((tmp_path / "out" / ".work" / "packed").iterdir()) == []


# interruptions


def pack_until(is_time, source, tokenizer, output_dir):
    """Pack in a process of its own until it is time to kill it, or until it is done; return which."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            packed_corpus.tqdm.set_lock(RLock())  # its own is shared by processes, and one may be killed that holds it
            pack(source, tokenizer, output_dir)
            os._exit(0)
        os._exit(1)
    while not is_time():
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return "done"
        time.sleep(0.0005)
    os.kill(child, SIGKILL)
    os.waitpid(child, 0)
    return "killed"


MOMENTS = ("packed/000000.json", "packed/000002.arrow", "packed/000003.json", "written/000001.json")


def test_packing_goes_on_after_each_kill_and_writes_the_same_bytes(source, tokenizer, packed_dir, tmp_path, small):
    out, ends = tmp_path / "out", []
    for name in ("tokenizer", *(f".work/{name}" for name in MOMENTS)):
        ends.append(pack_until(lambda: (out / name).exists(), source, tokenizer, out))  # noqa: B023
        with pytest.raises(InputError, match="holds no packed rows, or not all of them; recipes/pack.py writes them"):
            PackedRows(str(out), seed=0)
    assert ends == ["killed"] * 5
    (out / ".work/written/000000.json").unlink()  # as if killed just before it was written
    stamp = (out / ".work/packed/000000.arrow").stat().st_mtime_ns
    assert pack_until(lambda: stamps_of(out) not in ([], [stamp]), source, tokenizer, out) == "done"
    assert digests(out) == digests(packed_dir)


def stamps_of(out):
    return [path.stat().st_mtime_ns for path in (out / ".work/packed").glob("000000.arrow")]


@pytest.mark.parametrize("num_kills", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_packing_survives_kills_at_random_moments(source, tokenizer, packed_dir, tmp_path, small, num_kills):
    rng = random.Random(0)
    start = time.monotonic()
    pack(source, tokenizer, tmp_path / "whole")
    seconds, kills = time.monotonic() - start, 0
    while kills < num_kills:
        out, end = tmp_path / f"{kills}", "killed"
        while end == "killed":
            moment = time.monotonic() + rng.uniform(0, seconds)
            end = pack_until(lambda: time.monotonic() > moment, source, tokenizer, out)  # noqa: B023
            kills += end == "killed"
        assert digests(out) == digests(packed_dir)


# reading


def test_row_ids_number_the_rows_of_all_epochs(packed_dir):
    rows = PackedRows(str(packed_dir), seed=0)
    epochs = [as_pairs(read_epoch(packed_dir, epoch)) for epoch in range(3)]
    assert sorted(row_id for pairs in epochs for row_id, _ in pairs) == list(range(3 * rows.num_rows))
    by_number = [{row_id % rows.num_rows: ids for row_id, ids in pairs} for pairs in epochs]
    assert by_number[0] == by_number[1] == by_number[2]
    assert rows[2 * rows.num_rows + 5]["row_id"] == epochs[2][5][0]
    assert type(rows[0]["row_id"]) is int


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on fewer cores
@pytest.mark.parametrize("num_workers", [0, 2, 4])
def test_workers_do_not_change_the_rows(packed_dir, num_workers):
    rows = PackedRows(str(packed_dir), seed=1)
    expected = as_pairs(rows[i] for i in range(3 * rows.num_rows // 2))
    batches = [range(i, min(i + 7, len(expected))) for i in range(0, len(expected), 7)]
    loader = DataLoader(rows, batch_sampler=batches, num_workers=num_workers, collate_fn=as_pairs)
    assert [pair for batch in loader for pair in batch] == expected


def test_rows_can_be_sent_to_another_process(packed_dir):
    rows = PackedRows(str(packed_dir), seed=1)
    first = as_pairs([rows[0]])
    assert as_pairs([pickle.loads(pickle.dumps(rows))[0]]) == first


def test_the_state_is_a_position(packed_dir):
    rows = PackedRows(str(packed_dir), seed=0)
    assert rows.state_at(0) == {"position": 0}
    rows.resume(json.loads(json.dumps(rows.state_at(217))))
    assert (rows.position, rows.state_at(3)) == (217, {"position": 220})


def test_the_fingerprint_tells_other_rows_and_another_order(packed_dir, copy, source, tokenizer, tmp_path, small):
    pack(source, tokenizer, tmp_path / "other", seed=1)
    ours = PackedRows(str(packed_dir), seed=0).fingerprint
    assert PackedRows(str(copy), seed=0).fingerprint == ours == json.loads(json.dumps(ours))
    assert PackedRows(str(copy), seed=1).fingerprint != ours
    assert PackedRows(str(tmp_path / "other"), seed=0).fingerprint != ours


def test_the_tokenizer_is_the_one_of_the_rows(packed_dir, tokenizer):
    rows = PackedRows(str(packed_dir), seed=0)
    assert rows.load_tokenizer().get_vocab() == tokenizer.get_vocab()
    rows.check_tokenizer(tokenizer)
    with pytest.raises(InputError, match="was packed with another tokenizer, of 1200 tokens; leave out --tokenizer"):
        rows.check_tokenizer(as_bert_tokenizer(tokens_by_id(tokenizer)[:-1]))


def test_packed_rows_are_told_from_comments(packed_dir, source, tmp_path):
    assert is_packed(str(packed_dir))
    assert not any(is_packed(str(path)) for path in (source, source / "0.jsonl", source / "*.jsonl"))
    with pytest.raises(InputError, match="no file matches"):
        is_packed(str(tmp_path / "none.jsonl"))


def test_no_more_than_a_few_blocks_are_kept_in_memory(packed_dir):
    rows = PackedRows(str(packed_dir), seed=0)
    rows.__getitems__(range(rows.num_rows))
    assert len(rows._blocks) > len(rows._cached) == NUM_CACHED


def test_what_is_no_packed_corpus_is_refused(source):
    with pytest.raises(InputError, match=r"holds no packed rows, or not all of them; recipes/pack\.py writes them"):
        PackedRows(str(source), seed=0)


def test_datasets_streams_the_rows_in_the_order_of_the_files(packed_dir, tokenizer, tmp_path):
    streamed = load_dataset(str(packed_dir), split="train", streaming=True)
    assert as_pairs(streamed) == sorted(as_pairs(read_epoch(packed_dir)))
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    ours = {row["row_id"]: row for row in read_epoch(packed_dir)}
    batches = collator(list(islice(streamed, 4))), collator([ours[i] for i in range(4)])
    assert all(batches[0][name].equal(batches[1][name]) for name in batches[0])


# damage


def use(directory):
    rows = PackedRows(str(directory), seed=0)
    rows.load_tokenizer()
    rows.verify()


def damage_at_random(path, rng):
    content = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "cut", "missing"])
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        path.unlink()
    return kind


@pytest.mark.parametrize("num_damages", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_damage_to_any_byte_of_any_file_is_detected(packed_dir, copy, num_damages):
    use(copy)
    rng, names = random.Random(0), sorted(digests(copy))
    assert {BLOCKS_FILE, MANIFEST, "tokenizer/tokenizer.json"} < set(names)
    for _ in range(num_damages):
        name = rng.choice(names)
        kind = damage_at_random(copy / name, rng)
        with pytest.raises(InputError):
            use(copy)
            pytest.fail(f"{kind} of {name} is not seen")
        shutil.copy(packed_dir / name, copy / name)
    use(copy)


def test_a_manifest_whose_checksum_is_gone_is_an_input_error(copy):
    text = (copy / MANIFEST).read_text(encoding="utf-8")
    (copy / MANIFEST).write_text(text.replace("manifest_sha256", "manifest_sha257"), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{MANIFEST} has lost its checksum; replace it with a good copy"):
        PackedRows(str(copy), seed=0)


def test_a_bit_that_flips_while_a_run_reads_is_detected_when_it_is_used(copy):
    rows = PackedRows(str(copy), seed=0)
    file = sorted(copy.glob("*.arrow"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = rf"{file}: bytes \d+ to \d+ are not what was written; replace it with a good copy, or delete"
    with pytest.raises(InputError, match=message):
        rows.__getitems__(range(rows.num_rows))


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 100), os.remove])
def test_a_file_that_is_cut_or_gone_is_told_at_once_and_while_a_run_reads(copy, damage):
    rows = PackedRows(str(copy), seed=0)
    damage(sorted(copy.glob("*.arrow"))[1])
    with pytest.raises(InputError, match=r"train-00001-of-\d+\.arrow.*; replace it with a good copy, or delete"):
        rows.__getitems__(range(rows.num_rows))
    with pytest.raises(InputError, match=r"train-00001-of-\d+\.arrow is missing or was cut: \d+ bytes were written"):
        PackedRows(str(copy), seed=0)


# the Hub

TOKEN = "hf_" + "p" * 34
ROWS_FROM_HUB = """
from datasets import load_dataset
from torch.utils.data import DataLoader
from kcelectra.errors import InputError
from kcelectra.hub import push_files
from kcelectra.pretraining.packed import PackedRows, is_packed
from kcelectra.release.publish import release_rows

def pairs(rows):
    return [[row["row_id"], list(map(int, row["input_ids"]))] for row in rows]

attempt("streamed", lambda: pairs(load_dataset("someone/packed", split="train", streaming=True)))
rows = PackedRows("someone/packed", seed=1)
attempt("taken", lambda: pairs(rows.__getitems__(range(40))))
loader = DataLoader(rows, batch_sampler=[range(0, 20), range(20, 40)], num_workers=2, collate_fn=pairs)
attempt("loaded", lambda: [row for batch in loader for row in batch])
attempt("fingerprint", lambda: rows.fingerprint)
attempt("tokenizer", lambda: len(rows.load_tokenizer()))
attempt("packed", lambda: [is_packed("someone/packed"), is_packed("someone/comments")])
attempt("comments", lambda: PackedRows("someone/comments", seed=1))
attempt("none", lambda: PackedRows("someone/none", seed=1))
attempt("damaged", lambda: PackedRows("someone/damaged", seed=1).verify())
release = release_rows(sys.argv[1], repo_id="someone/published", license="mit")
attempt("pushed", lambda: bool(push_files(**vars(release), repo_id="someone/published", public=True)))
attempt("published", lambda: pairs(PackedRows("someone/published", seed=1).__getitems__(range(40))))
attempt("published stream", lambda: pairs(load_dataset("someone/published", split="train", streaming=True)))
"""


@pytest.fixture(scope="module")
def client(packed_dir, source, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name, directory in (("packed", packed_dir), ("damaged", packed_dir), ("comments", source)):
        shutil.copytree(directory, root / "datasets" / "someone" / name / "main")
    file = next((root / "datasets/someone/damaged/main").glob("*.arrow"))
    file.write_bytes(bytes(reversed(file.read_bytes())))
    with HubServer(root, users={TOKEN: "someone"}) as hub:
        return run_client(
            ROWS_FROM_HUB, str(packed_dir), token=TOKEN, hub=hub, directory=tmp_path_factory.mktemp("client")
        )


def test_rows_of_the_hub_are_those_of_the_directory(client, packed_dir):
    rows = PackedRows(str(packed_dir), seed=1)
    assert set(client.elsewhere) <= {"datasets-server.127.0.0.1"} and client.unknown == []
    assert [(row_id, tuple(ids)) for row_id, ids in client.results["streamed"]] == sorted(
        as_pairs(read_epoch(packed_dir))
    )
    assert [(row_id, tuple(ids)) for row_id, ids in client.results["taken"]] == as_pairs(rows.__getitems__(range(40)))
    assert client.results["loaded"] == client.results["taken"]
    assert not [call for call in client.calls if "/resolve/main/train-" in call]  # which may move meanwhile
    assert client.results["fingerprint"] == rows.fingerprint
    assert client.results["tokenizer"] == rows.vocab_size
    assert client.results["packed"] == [True, False]


def test_rows_that_are_published_are_those_of_the_directory(client):
    assert client.results["pushed"] is True
    assert client.results["published"] == client.results["taken"]
    assert client.results["published stream"] == client.results["streamed"]


def test_what_the_hub_does_not_have_is_an_input_error(client):
    assert "InputError: someone/comments holds no packed rows" in client.results["comments"]
    assert "InputError: cannot open 'someone/none'" in client.results["none"]
    assert "InputError: someone/damaged/train-" in client.results["damaged"]


# real comments


@pytest.mark.slow
def test_real_comments_lose_no_token(shared_data, tmp_path):
    tokenizer = load_tokenizer(shared_data / "vocab" / "kcelectra_v2021_vocab.txt")
    reader = CommentReader(str(shared_data / "comments" / "naver_*.parquet"))
    manifest = pack_corpus(reader, tokenizer, tmp_path / "out", rules="v2021")
    stream = PackedStream(reader, tokenizer, max_length=128, rules="v2021", num_passes=1)
    counts, packed = Counter(), Counter()
    for row in stream:
        counts.update(row["input_ids"].tolist())
    for row in read_epoch(tmp_path / "out"):
        packed.update(row["input_ids"].tolist())
    specials = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert {id: n for id, n in packed.items() if id not in specials} == {
        id: n for id, n in counts.items() if id not in specials
    }
    assert manifest["share_filled"] > 0.99
