"""Each task says where its data is from, under what licence, and how its official files are told from others."""

import hashlib
import re

import pytest

from kcelectra.finetuning.metrics import METRICS
from kcelectra.finetuning.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_where_it_is_from(name):
    task = TASKS[name]
    assert task.name == name and task.metric in METRICS
    assert task.licence and task.source.startswith("https://")
    assert task.hub_id is None or re.fullmatch(r"[\w-]+/[\w-]+", task.hub_id)


@pytest.mark.parametrize("name", TASKS)
def test_hashes_are_those_of_the_official_files_and_none_is_missing(shared_data, name):
    task = TASKS[name]
    official = {names[0] for names in task.files.values() if names}
    found = {name: shared_data / task.directory / name for name in official}
    found = {name: path.read_bytes() for name, path in found.items() if path.is_file()}
    assert found
    assert task.sha256 == {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
