"""What several test files share: the embedded sample, a vocabulary trained on it, and the real data where it lies."""

import json
import os
from pathlib import Path

# Read when transformers and datasets are imported: no test reaches the network, and no worker forks a thread pool.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest

from kcelectra.corpus.cleaning import clean
from kcelectra.corpus.sample import generate_sample
from kcelectra.tokenization import train_tokenizer

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
PROCESS_GROUPS = []  # kept to the end: a destructor waits for its threads with the lock held that they may wait for
VOCAB_SIZE = 1200  # the sample's alphabet alone takes 911 ids; the rest are merged pieces


@pytest.fixture(scope="session")
def sample_comments():
    return list(generate_sample())


@pytest.fixture(scope="session")
def tokenizer(sample_comments):
    return train_tokenizer((clean(comment["text"]) for comment in sample_comments), vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="session")
def sample_file(sample_comments, tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "comments.jsonl"
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in sample_comments), encoding="utf-8")
    return path


def run_here(function, work_dir, tasks, *, num_workers, on_done):
    """Stand for `run_tasks`, whose processes take seconds to start."""
    for task in tasks:
        on_done(task, function(work_dir, task))


@pytest.fixture(scope="session")
def pack_here():
    """`pack_corpus` in this process."""
    from kcelectra.pretraining import packed_corpus

    def pack(*args, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed_corpus, "run_tasks", run_here)
            return packed_corpus.pack_corpus(*args, **options)

    return pack


@pytest.fixture(scope="session")
def shared_data():
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real comments at {SHARED_DATA}; the embedded sample is tested without them")
    return SHARED_DATA


@pytest.fixture
def process_group():
    """A group of this process alone."""
    from torch.distributed import HashStore, destroy_process_group, group, init_process_group

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    PROCESS_GROUPS.append(group.WORLD)
    yield
    destroy_process_group()
