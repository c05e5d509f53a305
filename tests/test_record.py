"""The record of a run, and what must not have changed when it goes on."""

import json

import pytest
import torch

from kcelectra.errors import InputError
from kcelectra.pretraining.record import RunRecord, code_fingerprint, compare_fingerprints, read_record

THEN = {
    "data": {"rows": {"files_sha256": "a" * 64, "num_rows": 10}, "mask_probability": 0.15},
    "tokenizer": "t1",
    "config": {"generator_config": {"hidden_size": 64}, "discriminator_weight": 50.0},
    "code": {"torch": "2.13.0"},
}


def changed(**parts):
    return {**json.loads(json.dumps(THEN)), **parts}


def compare(now, *allowed):
    return compare_fingerprints(THEN, now, allowed=allowed, checkpoint="run/checkpoint-5")


def test_what_is_as_it_was_goes_on():
    assert compare(changed()) == []


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (changed(tokenizer="t2"), r"tokenizer \(t1 then, t2 now\)"),
        (changed(code={"torch": "2.14.0"}), r"code \(torch: 2.13.0 then, 2.14.0 now\)"),
        (changed(config={**THEN["config"], "discriminator_weight": 1.0}), r"config \(discriminator_weight: 50.0 then"),
        (
            changed(config={**THEN["config"], "generator_config": {"hidden_size": 32}}),
            r"config \(generator_config.hidden_size: 64 then, 32 now\)",
        ),
        (
            changed(data={**THEN["data"], "rows": None}),
            r"data \(rows: \{'files_sha256': 'aaaaaa.*\.\.\. then, None now",
        ),
    ],
)
def test_a_change_is_refused_with_what_differs_and_the_flag_that_allows_it(now, told):
    part = told.split()[0]
    with pytest.raises(InputError, match=rf"run/checkpoint-5 .*{told}.*--allow_changed {part}$"):
        compare(now)
    assert len(compare(now, part)) == 1


def test_each_change_must_be_allowed():
    now = changed(tokenizer="t2", code={"torch": "2.14.0"})
    with pytest.raises(InputError, match=r"tokenizer \(.*--allow_changed tokenizer code$"):
        compare(now, "code")
    assert compare(now, "code", "tokenizer") == [
        "tokenizer (t1 then, t2 now)",
        "code (torch: 2.13.0 then, 2.14.0 now)",
    ]


DEVICE = {"device": torch.device("cpu"), "num_processes": 1}


def test_every_start_and_its_end_are_in_one_file(tmp_path):
    record = RunRecord(tmp_path / "run")
    record.begin(arguments={"seed": 1}, fingerprints=THEN, **DEVICE, checkpoint=None)
    record.begin(arguments={"seed": 1}, fingerprints=THEN, **DEVICE, checkpoint="checkpoint-5")
    record.end("finished", step=9)
    record = read_record(tmp_path / "run")
    assert record["arguments"] == {"seed": 1}
    killed, last = record["starts"]
    assert "end" not in killed and killed["fingerprints"] == THEN and killed["versions"]["torch"]
    assert last["checkpoint"] == "checkpoint-5" and last["end"] | {"time": 0} == {
        "time": 0,
        "step": 9,
        "how": "finished",
    }


def test_a_run_without_a_record_has_none(tmp_path):
    assert read_record(tmp_path)["starts"] == []


def test_the_fingerprint_of_the_code_is_that_of_its_files():
    code = code_fingerprint()
    assert code == code_fingerprint() and len(code["kcelectra files"]) == 64
    assert code["transformers"].startswith("5.")
