"""A manifest is there whole or not at all, and knows every byte of its stage."""

import hashlib
import json

import pytest

from kcelectra.errors import InputError
from kcelectra.manifest import (
    MANIFEST,
    find_damage,
    read_manifest,
    seal_manifest,
    verify_manifest,
    write_atomically,
    write_manifest,
)

FILES = {
    "vocab.txt": "[PAD]\n가\n".encode(),
    "deep/er/weights.bin": bytes(range(256)),
    "empty": b"",
    "한글 이름.txt": b"x",
}


@pytest.fixture
def stage(tmp_path):
    directory = tmp_path / "stage"
    for name, data in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def test_a_manifest_survives_a_round_trip(stage):
    written = write_manifest(stage, num_rows=3, rules="v2022", 출처="댓글")
    assert written == read_manifest(stage) == verify_manifest(stage)
    assert (written["num_rows"], written["rules"], written["출처"]) == (3, "v2022", "댓글")


def test_a_manifest_lists_every_file_with_size_and_sha256(stage):
    assert write_manifest(stage)["files"] == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
    }


def test_a_manifest_does_not_list_itself(stage):
    assert write_manifest(stage)["files"] == write_manifest(stage)["files"]
    verify_manifest(stage)


def test_a_manifest_names_the_versions_it_was_made_with(stage):
    import torch

    import kcelectra

    versions = write_manifest(stage)["versions"]
    assert versions["kcelectra"] == kcelectra.__version__
    assert versions["torch"] == torch.__version__


def test_a_directory_that_moved_is_still_whole(stage):
    written = write_manifest(stage)
    assert verify_manifest(stage.rename(stage.with_name("moved"))) == written


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "one flipped bit": flip_a_bit,
    "truncation": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "a missing file": lambda path: path.unlink(),
    "a directory in its place": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", [name for name, data in FILES.items() if data])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_its_file_named(stage, name, damage):
    write_manifest(stage)
    damage(stage / name)
    with pytest.raises(InputError) as error:
        verify_manifest(stage)
    assert str(stage / name) in str(error.value)
    assert f"delete {stage}" in str(error.value)


@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flip_of_any_bit_of_a_manifest_is_found(stage, every):
    write_manifest(stage, num_rows=3, step=12)
    path = stage / MANIFEST
    text = path.read_bytes()
    for place in range(0, len(text) * 8, every):
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="run its stage again"):
            verify_manifest(stage)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + b"\n",
        lambda text: b"[]",
        lambda text: b"",
        lambda text: text.replace(b'"num_rows": 3', b'"num_rows": 4'),
        lambda text: text.replace(b"  ", b" "),
        lambda text: json.dumps({"num_rows": 3, "files": {}}).encode(),  # of an earlier version
    ],
)
def test_a_manifest_that_was_changed_is_found(stage, change):
    write_manifest(stage, num_rows=3)
    (stage / MANIFEST).write_bytes(change((stage / MANIFEST).read_bytes()))
    with pytest.raises(InputError, match=f"{MANIFEST}.*delete {stage} and run its stage again"):
        verify_manifest(stage)


def test_a_changed_fact_is_not_read(stage):
    write_manifest(stage, num_rows=3)
    text = (stage / MANIFEST).read_text(encoding="utf-8")
    (stage / MANIFEST).write_text(text.replace('"num_rows": 3', '"num_rows": 4'), encoding="utf-8")
    with pytest.raises(InputError, match="was changed since it was written"):
        read_manifest(stage)


def test_a_list_of_someone_else_is_no_manifest(stage):
    (stage / MANIFEST).write_text("[]")
    assert read_manifest(stage) is None


@pytest.mark.parametrize("text", [b"", b"{", b"\xff"])
def test_a_manifest_that_is_no_json_is_named(stage, text):
    (stage / MANIFEST).write_bytes(text)
    with pytest.raises(InputError, match=f"{MANIFEST} cannot be read: .*; delete {stage} and run its stage again"):
        read_manifest(stage)


@pytest.mark.parametrize("facts", [{"x": [0.1, 1e-300, float("inf")]}, {"path": "\udced.txt"}, {1: {"나": None}}, {}])
def test_a_seal_holds_whatever_the_facts_are(stage, facts):
    write_manifest(stage, **{"facts": facts})
    verify_manifest(stage)
    (stage / MANIFEST).write_text(seal_manifest(read_manifest(stage)), encoding="utf-8")
    verify_manifest(stage)


def test_a_file_that_cannot_be_read_is_damage(stage):
    write_manifest(stage)
    (stage / "vocab.txt").unlink()
    (stage / "vocab.txt").symlink_to("/proc/self/mem")  # reading it fails, as that of a bad sector does
    assert "vocab.txt" in find_damage(stage)


def test_without_a_manifest_the_stage_has_not_finished(stage):
    assert read_manifest(stage) is None
    with pytest.raises(InputError, match=f"has no {MANIFEST}.*run it again"):
        verify_manifest(stage)


def test_a_directory_that_does_not_exist_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError, match="smoke does not exist; give the directory that a stage wrote"):
        verify_manifest(tmp_path / "smoke")


def test_a_write_leaves_nothing_beside_the_file(tmp_path):
    write_atomically(tmp_path / "a.txt", "하나\n")
    write_atomically(tmp_path / "a.txt", "둘\n")
    assert (tmp_path / "a.txt").read_bytes() == "둘\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_manifest_leaves_nothing_beside_the_stage(stage):
    write_manifest(stage)
    assert {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()} == {*FILES, MANIFEST}


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.txt", "new" * 10_000 + "\ud800")
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_killed_write_does_not_spoil_the_next_manifest(stage):
    (stage / f".{MANIFEST}.tmp").write_text('{"files": {')  # what a killed `write_manifest` leaves
    write_manifest(stage)
    verify_manifest(stage)


def test_a_manifest_is_plain_json_with_readable_hangul(stage):
    write_manifest(stage, dataset="댓글.txt")
    text = (stage / MANIFEST).read_text(encoding="utf-8")
    assert json.loads(text)["dataset"] == "댓글.txt"
    assert "댓글.txt" in text
