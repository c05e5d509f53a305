"""The global order of rows: one, whatever the number of processes and workers, also when it changes."""

import os
import time
from itertools import islice
from threading import Event

import psutil
import pytest
import torch

from kcelectra import DataCollatorForReplacedTokenDetection
from kcelectra.corpus.comments import CommentReader
from kcelectra.errors import InputError
from kcelectra.pretraining.packed import PackedRows
from kcelectra.pretraining.row_loader import RowLoader
from kcelectra.pretraining.signals import SIGNALS
from kcelectra.pretraining.streaming import PackedStream

MAX_LENGTH = 64


@pytest.fixture(scope="module")
def packed_dir(pack_here, tokenizer, sample_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "rows"
    pack_here(CommentReader(str(sample_file)), tokenizer, path, max_length=MAX_LENGTH)
    return path


@pytest.fixture(params=["packed", "stream"])
def make_dataset(request, tokenizer, sample_file, packed_dir):
    if request.param == "packed":
        return lambda: PackedRows(str(packed_dir), seed=1)
    return lambda: PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=MAX_LENGTH, shuffle_window=50)


def make_loader(dataset, tokenizer, *, batch_size=4, state=None, **options):
    if state is not None:
        dataset.resume(state["dataset"])
        options |= {"position": state["position"], "skipped": [tuple(gap) for gap in state["skipped"]]}
    collator = DataCollatorForReplacedTokenDetection(tokenizer)
    return RowLoader(dataset, collator, batch_size=batch_size, **options)


def take(loader, num_batches):
    return [batch["row_id"].tolist() for batch in islice(iter(loader), num_batches)]


def take_together(make_dataset, tokenizer, num_processes, num_batches, *, batch_size, **options):
    """Return the row ids of all processes in the global order, and the state behind them."""
    loaders = [
        make_loader(
            make_dataset(),
            tokenizer,
            batch_size=batch_size,
            process_index=index,
            num_processes=num_processes,
            **options,
        )
        for index in range(num_processes)
    ]
    batches = zip(*(take(loader, num_batches) for loader in loaders), strict=True)
    states = [loader.state_after(num_batches) for loader in loaders]
    assert all(state == states[0] for state in states)
    return [row_id for batch in batches for rows in batch for row_id in rows], states[0]


def test_the_order_does_not_depend_on_the_number_of_processes(make_dataset, tokenizer):
    alone, _ = take_together(make_dataset, tokenizer, 1, 30, batch_size=8)
    assert len(set(alone)) == 240
    for num_processes in (2, 4):
        together, _ = take_together(make_dataset, tokenizer, num_processes, 30, batch_size=8 // num_processes)
        assert together == alone


def test_the_number_of_processes_may_change_in_mid_run(make_dataset, tokenizer):
    straight, _ = take_together(make_dataset, tokenizer, 1, 30, batch_size=8)
    state, order = None, []
    for num_processes in (2, 1, 4):
        rows, state = take_together(
            make_dataset, tokenizer, num_processes, 10, batch_size=8 // num_processes, state=state
        )
        order += rows
    assert order == straight


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than there are cores
@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_read_the_same_rows(packed_dir, tokenizer, num_workers):
    expected = take(make_loader(PackedRows(str(packed_dir), seed=1), tokenizer), 20)
    loader = make_loader(PackedRows(str(packed_dir), seed=1), tokenizer, num_workers=num_workers)
    assert take(loader, 20) == expected
    assert loader.state_after(20)["position"] == 80  # however many the workers have read


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_outlive_a_signal_that_a_whole_job_gets(packed_dir, tokenizer, number):
    expected = take(make_loader(PackedRows(str(packed_dir), seed=1), tokenizer), 20)
    before = {child.pid for child in psutil.Process().children()}
    batches = iter(make_loader(PackedRows(str(packed_dir), seed=1), tokenizer, num_workers=1))
    rows = [next(batches)["row_id"].tolist() for _ in range(4)]
    (worker,) = [child for child in psutil.Process().children() if child.pid not in before]
    os.kill(worker.pid, number)
    rows += [batch["row_id"].tolist() for batch in islice(batches, 16)]
    assert rows == expected and worker.is_running()
    batches.close()
    psutil.wait_procs([worker], timeout=30)
    assert not worker.is_running()


def test_positions_that_are_skipped_are_passed_over_and_the_state_knows(make_dataset, tokenizer):
    rows, _ = take_together(make_dataset, tokenizer, 1, 30, batch_size=4)
    skipped = [(4, 8), (10, 13), (40, 44)]
    kept = [row for index, row in enumerate(rows) if not any(start <= index < stop for start, stop in skipped)]
    order, state = take_together(make_dataset, tokenizer, 2, 6, batch_size=2, skipped=skipped)
    assert order == kept[:24]
    assert state["position"] == 31 and state["skipped"] == [[40, 44]]
    order, state = take_together(make_dataset, tokenizer, 1, 4, batch_size=4, state=state)
    assert order == kept[24:40] and state["position"] == 51 and state["skipped"] == []


@pytest.mark.parametrize("num_batches", range(12))
def test_a_position_is_that_of_the_next_row_or_of_the_gap_before_it(packed_dir, tokenizer, num_batches):
    loader = make_loader(
        PackedRows(str(packed_dir), seed=1), tokenizer, batch_size=1, skipped=[(2, 3), (3, 5), (9, 9)]
    )
    kept = [position for position in range(30) if position not in (2, 3, 4)]
    last = kept[num_batches - 1] if num_batches else -1
    assert loader.position_after(num_batches) == last + 1


def test_a_stream_is_not_read_by_workers(tokenizer, sample_file):
    stream = PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=MAX_LENGTH)
    with pytest.raises(InputError, match=r"dataloader_num_workers is 2; leave it out.*recipes/pack\.py"):
        make_loader(stream, tokenizer, num_workers=2)


def test_what_a_worker_says_is_said_without_its_code(packed_dir, tokenizer, monkeypatch):
    def refuse(rows, positions):
        raise InputError("row 7 was changed; pack it again")

    monkeypatch.setattr(PackedRows, "__getitems__", refuse)
    loader = make_loader(PackedRows(str(packed_dir), seed=0), tokenizer, num_workers=1)
    with pytest.raises(InputError, match="^row 7 was changed; pack it again$"):
        next(iter(loader))


def test_workers_that_stall_end_the_run(packed_dir, tokenizer, monkeypatch):
    monkeypatch.setattr(PackedRows, "__getitems__", lambda rows, positions: time.sleep(60))
    loader = make_loader(PackedRows(str(packed_dir), seed=0), tokenizer, num_workers=1, timeout=2)
    with pytest.raises(InputError, match="no worker read a batch for 2 s; .* a higher --input_timeout"):
        next(iter(loader))


def test_a_source_that_stalls_ends_the_run(tokenizer, sample_file, monkeypatch):
    stream = PackedStream(CommentReader(str(sample_file)), tokenizer, max_length=MAX_LENGTH)
    stalled = Event()
    monkeypatch.setattr(CommentReader, "read", lambda self, position: stalled.wait(30) and iter(()))
    loader = make_loader(stream, tokenizer, timeout=0.2)
    with pytest.raises(InputError, match=r"nothing could be read for 0\.2 s.*--input_timeout"):
        next(iter(loader))
    stalled.set()


def test_batches_are_what_the_collator_makes_of_their_rows(packed_dir, tokenizer):
    dataset = PackedRows(str(packed_dir), seed=1)
    batch = next(iter(make_loader(dataset, tokenizer)))
    expected = DataCollatorForReplacedTokenDetection(tokenizer)([dataset[i] for i in range(4)])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
