"""What may be published, and what is refused before anything is sent."""

import json
import pickle
import random
import re
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import save

from kcelectra.errors import InputError
from kcelectra.outgoing import check_files

CANARY = "hf_canaryThatMustNotSing"
CONFIG = {"model_type": "electra", "vocab_size": 8}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A directory beside a secret file, on a machine where nobody is logged in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / "home" / name))
    (tmp_path / "home").mkdir()
    (tmp_path / ".env").write_text("PASSWORD=secret")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def write(root: Path, name: str, content: bytes) -> dict[str, Path]:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    return {name: root / name}


def refuse(files, root: Path, message: str) -> str:
    with pytest.raises(InputError, match=message) as error:
        check_files(files, roots=[root])
    return str(error.value)


def test_what_is_pushed_today_passes_with_its_sizes(root):
    weights = save({"weight": np.zeros((80, 80), dtype=np.float32)})
    files = {
        **write(root, "model.safetensors", weights),
        **write(root, "generator/config.json", json.dumps(CONFIG).encode()),
        **write(root, "tokenizer_config.json", b'{"vocab_file": "vocab.txt", "tokenizer_file": null}'),
        **write(root, "vocab.txt", "[PAD]\n영화\n##가\n".encode()),
        **write(root, ".eval_results/nsmc.yaml", b"- value: 1.0\n"),
        **write(root, "empty.txt", b""),
        "README.md": b"---\nlicense: mit\n---\n",
    }
    sizes = check_files(files, roots=[root])
    assert list(sizes) == list(files) and sizes["model.safetensors"] == len(weights) and sizes["empty.txt"] == 0


# where a file lies


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a//b", "./a", ".", "", "a\\b", "a\nb", "a/./b"])
def test_a_name_that_is_no_plain_path_is_refused(root, name):
    refuse({name: b"text"}, root, "is no path in a repository")


def test_a_file_outside_its_root_is_refused_however_it_is_written(root):
    for path in (root.parent / ".env", root / ".." / ".env", Path("/etc/hostname")):
        refuse({"a.txt": path}, root, "not below")


def test_a_link_is_refused_to_a_file_and_on_the_way_to_one(root):
    write(root, "real/a.txt", b"text")
    (root / "link.txt").symlink_to(root.parent / ".env")
    (root / "inner.txt").symlink_to(root / "real" / "a.txt")
    (root / "way").symlink_to(root / "real")
    for name in ("link.txt", "inner.txt", "way/a.txt"):
        refuse({"a.txt": root / name}, root, "is a link")


def test_a_root_that_is_reached_by_a_link_is_a_root(root):
    """As /tmp and a home often are."""
    write(root, "a.txt", b"text")
    linked = root.parent / "linked"
    linked.symlink_to(root)
    assert check_files({"a.txt": linked / "a.txt"}, roots=[linked]) == {"a.txt": 4}


def test_what_is_no_file_is_refused(root):
    refuse({"a.txt": root}, root, "no file")
    refuse({"a.txt": root / "none.txt"}, root, "no file")


# what may not be in it


class Reduced:
    def __reduce__(self):
        return print, ("loaded",)


def saved(value, **options) -> bytes:
    buffer = BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


PLAIN = ({"weight": [1.0]}, [1], ("a", 2))


@pytest.mark.parametrize(
    ("value", "protocol"),
    [
        *((Reduced(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        *((value, protocol) for value in PLAIN for protocol in (0, 2, 3, 4, 5)),  # of 1 it looks like any bytes
    ],
)
def test_a_pickle_is_refused_by_its_content(root, protocol, value):
    refuse(write(root, "weights", pickle.dumps(value, protocol)), root, "weights is a pickle")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_torch_saves_is_refused_by_its_content(root, options):
    content = saved({"weight": torch.zeros(3)}, **options)
    refuse(write(root, "model.safetensors", content), root, "is a pickle")
    refuse({"model.safetensors": content}, root, "is a pickle")


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "pkl", "pickle", "ckpt"])
def test_a_name_of_a_pickle_is_refused_whatever_it_holds(root, suffix):
    refuse({f"training_args.{suffix}": b"text"}, root, "is a pickle")


def test_what_only_looks_like_a_pickle_passes(root):
    for length in range(0x0280, 0x0581, 0x100):  # whose first two bytes are those of protocols 2 to 5
        name = "n" * (length - 60)
        content = save({name: np.zeros(1, dtype=np.float32)})
        while struct.unpack("<Q", content[:8])[0] < length:
            name += "n"
            content = save({name: np.zeros(1, dtype=np.float32)})
        assert content[0] == 0x80 and content[1] in (2, 3, 4, 5)
        assert check_files({"model.safetensors": content}, roots=[root])
    for text in (b"comment\nhello\nthe end", b"(note)\nsee below.", b"."):
        assert check_files({"README.md": text}, roots=[root])


def test_a_zip_file_without_a_pickle_passes(root):
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    assert check_files({"a.zip": root / "a.zip", "b.zip": b"PK\3\4 cut"}, roots=[root])


def test_code_and_what_asks_for_it_are_refused(root):
    for name in ("modeling.py", "setup.PY", "run.sh", "look.ipynb"):
        refuse({name: b"print()"}, root, "is code")
    for key, value in (("auto_map", {"AutoModel": "modeling.Model"}), ("custom_pipelines", {"a": {"impl": "a.B"}})):
        for config in ({**CONFIG, key: value}, {**CONFIG, "generator_config": {key: value}}):
            refuse({"generator/config.json": json.dumps(config).encode()}, root, f"has '{key}'")
    assert check_files({"config.json": b'{"auto_map": null}'}, roots=[root])


@pytest.mark.parametrize("value", ["../../.env", "../.env", "/etc/passwd", ".env", "other.txt", "a/../vocab.txt"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generator/tokenizer_config.json"])
def test_a_configuration_that_names_a_file_which_is_not_pushed_is_refused(root, value, name):
    """Who loads it and saves it again would copy that file of their machine, and publish it with their next push."""
    files = {"vocab.txt": b"[PAD]\n", "generator/vocab.txt": b"[PAD]\n"}
    config = {"tokenizer_class": "BertTokenizer", "vocab_file": value}
    refuse({**files, name: json.dumps(config).encode()}, root, "names .* as 'vocab_file'")
    nested = {"extra": [{"merges_file": value}]}
    refuse({**files, name: json.dumps(nested).encode()}, root, "as 'merges_file'")


def test_a_configuration_that_is_no_json_is_refused(root):
    refuse({"config.json": b"{"}, root, "config.json is no JSON")


# secrets


SECRETS = {
    "a token of the Hub": "hf_" + "aB3" * 11 + "x",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn",
    "a key of AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "a temporary key of AWS": "ASIA" + "IOSFODNN7EXAMPLE",
    "a secret key of AWS": "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "a secret key of AWS, in the environment's form": "AWS_SECRET_ACCESS_KEY=" + "a1B2c3d4" * 5,
    "a token of GitHub": "ghp_" + "a1B2c3" * 6,
    "a fine-grained token of GitHub": "github_pat_" + "a1B2c3" * 10,
    "a key of OpenAI": "sk-proj-" + "a1B2c3" * 7,
    "a key of Google": "AIza" + "a1B2c3d" * 5,
    "a token of Slack": "xoxb-" + "1234567890-" + "a1B2c3d4e5f6",
    "a key of Weights & Biases": "WANDB_API_KEY=" + "0a1b2c3d" * 5,
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("name", ["README.md", "report/history.json", "model.safetensors"])
def test_a_secret_is_found_anywhere_in_a_file_and_not_repeated(root, kind, name):
    secret = SECRETS[kind].encode()
    for content in (secret, bytes(70_000) + secret + bytes(10), b'{"a": "\\n' + secret + b'"}'):
        for files in (write(root, name, content), {name: content}):
            message = refuse(files, root, f"{name} holds {kind}")
            assert SECRETS[kind][:12] not in message


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("in_dictionary", [False, True])
def test_a_secret_is_found_in_the_compressed_comments_of_a_corpus(root, kind, in_dictionary):
    rng = random.Random(0)  # few letters in no order: they take fewer bits, and then so does the secret
    texts = ["".join(rng.choices("abcd", k=60)) for _ in range(3000)]
    comments = pa.array([*texts, f"b {SECRETS[kind]}"])  # neither the first nor the last, which stand in the footer
    table = pa.table({"n": range(3001), "text": comments.dictionary_encode() if in_dictionary else comments})
    pq.write_table(table, root / "a.parquet", compression="zstd")
    assert SECRETS[kind][:12].encode() not in (root / "a.parquet").read_bytes()
    refuse({"a.parquet": root / "a.parquet"}, root, f"a.parquet holds {kind}")
    pq.write_table(table.slice(0, 3000).combine_chunks(), root / "b.parquet", compression="zstd")
    assert in_dictionary or check_files({"b.parquet": root / "b.parquet"}, roots=[root])


def test_a_parquet_file_that_cannot_be_read_is_named(root):
    refuse(write(root, "a.parquet", b"PAR1, and no more"), root, "a.parquet cannot be read")


@pytest.mark.parametrize(
    "text", ["hf_hub_download(repo_id)", "hf_transformers_version", "-----BEGIN CERTIFICATE-----"]
)
def test_what_only_looks_like_a_secret_passes(root, text):
    assert check_files({"README.md": text.encode()}, roots=[root])


@pytest.mark.parametrize("place", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"])
def test_the_token_of_this_machine_is_found_whatever_it_looks_like(root, monkeypatch, place):
    token = "not.like:a+token"
    if place.endswith("_PATH"):
        stored = f"[my-own-name]\nhf_token = {token}\n" if "STORED" in place else f"{token}\n"
        Path(getattr(constants, place)).write_text(stored)
    else:
        monkeypatch.setenv(place, token)
    message = refuse(
        {"model.safetensors": b"\0" + token.encode()}, root, "holds the token of HF_TOKEN or `hf auth login`"
    )
    assert token not in message
    assert check_files({"README.md": b"my-own-name hf_token notXlike:a+token"}, roots=[root])


def test_a_token_of_a_few_letters_is_not_looked_for(root, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "abc")
    assert check_files({"README.md": b"abc"}, roots=[root])


def test_a_message_names_the_file_alone(root, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    message = refuse(write(root, "run.yaml", f"hub_token: {CANARY}".encode()), root, "run.yaml holds")
    assert not re.search("canary", message)
