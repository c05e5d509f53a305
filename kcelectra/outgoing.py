"""What may leave this machine: plain files that were named, no pickle, no code, no secret."""

import io
import json
import mmap
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants

from kcelectra.errors import InputError

Content = bytes | mmap.mmap

CODE_SUFFIXES = (".py", ".pyc", ".so", ".sh", ".ipynb")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# `PROTO`, then an opcode: the length that a safetensors file begins with may have the same first two bytes
PICKLE = re.compile(rb"\x80[\x01-\x05][(-\xff]")
TEXT_PICKLE = re.compile(rb"c\w[\w.]*\n\w[\w.]*\n|\((?:[dlt]p?\d*\n|i?\w[\w.]*\n)")  # of protocol 0; it ends with "."
# each begins with a fixed text: 440 MB of weights are searched in 2 seconds, with `(?:AKIA|ASIA)` alone in 4
SECRETS = {
    "a token of the Hub": re.compile(rb"hf_[A-Za-z0-9]{20}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY"),
    "a key of AWS": re.compile(rb"AKIA[A-Z0-9]{16}"),
    "a temporary key of AWS": re.compile(rb"ASIA[A-Z0-9]{16}"),
    "a secret key of AWS": re.compile(rb"aws_secret_access_key\W{1,5}[A-Za-z0-9/+]{40}"),
    "a secret key of AWS, in the environment's form": re.compile(rb"AWS_SECRET_ACCESS_KEY\W{1,5}[A-Za-z0-9/+]{40}"),
    "a token of GitHub": re.compile(rb"gh[oprsu]_[A-Za-z0-9]{36}"),
    "a fine-grained token of GitHub": re.compile(rb"github_pat_[A-Za-z0-9_]{60}"),
    "a key of OpenAI": re.compile(rb"sk-proj-[A-Za-z0-9_-]{40}"),
    "a key of Google": re.compile(rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    "a token of Slack": re.compile(rb"xox[abprs]-[0-9]{10,13}-[A-Za-z0-9-]{10}"),
    "a key of Weights & Biases": re.compile(rb"WANDB_API_KEY\W{1,5}[0-9a-f]{40}"),
}
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LOGIN = re.compile(rb"(?:^|=)[ \t]*([^\s=\[\]]{8,})[ \t]*$", re.MULTILINE)  # a token alone, or `hf_token = ...`
MIN_TOKEN_CHARS = 8  # a shorter one would be found everywhere
REMOTE_CODE = ("auto_map", "custom_pipelines")


def check_files(files: Mapping[str, Path | bytes], *, roots: Collection[Path]) -> dict[str, int]:
    """Check that files may be published, and return their sizes in bytes.

    Args:
        files: by the path that they get in the repository.
        roots: directories; a file lies below one of them, and no link leads to it.

    Raises:
        InputError: a file is not below `roots`, is a link, a pickle or code, holds a secret, or is a configuration
            that names a file which is not among them. The message names the file, never the secret.
    """
    secrets = SECRETS | _login_secrets()
    sizes = {}
    for name, source in files.items():
        _check_name(name)
        if isinstance(source, Path):
            _check_place(source, roots)
        with _open(source) as content:
            sizes[name] = len(content)
            if _is_pickle(name, content):
                raise InputError(f"{name} is a pickle, which runs code where it is loaded; give safetensors or JSON")
            for piece in chain([content], _read_columns(name, content)):
                for kind, pattern in secrets.items():
                    if pattern.search(piece):
                        raise InputError(f"{name} holds {kind}; take it out, and replace it wherever it was seen")
            if name.endswith("config.json"):
                _check_configuration(name, bytes(content), files)
    return sizes


def _login_secrets() -> dict[str, re.Pattern[bytes]]:
    """Return a pattern for each token that this machine can push with."""
    tokens = [os.environ.get(name, "").strip().encode() for name in TOKEN_VARIABLES]
    for path in (constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH):
        if os.path.isfile(path):
            tokens += LOGIN.findall(Path(path).read_bytes())
    tokens = [token for token in tokens if len(token) >= MIN_TOKEN_CHARS]
    return (
        {"the token of HF_TOKEN or `hf auth login`": re.compile(b"|".join(map(re.escape, tokens)))} if tokens else {}
    )


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    is_plain = path.parts and not path.is_absolute() and ".." not in path.parts and str(path) == name
    if not is_plain or not name.isprintable() or "\\" in name:
        raise InputError(f"{name!r} is no path in a repository; give one like generator/config.json")
    if path.suffix.lower() in CODE_SUFFIXES:
        raise InputError(f"{name} is code, and nothing that is pushed may ask to be run; leave it out")


def _check_place(path: Path, roots: Collection[Path]) -> None:
    """Follow every link, also in a directory on the way, and see that this leads nowhere else."""
    parents = [root for root in roots if path.is_relative_to(root)]
    is_inside = any(path.resolve() == root.resolve() / path.relative_to(root) for root in parents)
    if not is_inside or not path.is_file():
        raise InputError(f"{path} is a link, no file, or not below {', '.join(map(str, roots))}; give the file itself")


@contextmanager
def _open(source: Path | bytes) -> Iterator[Content]:
    if isinstance(source, bytes):
        yield source
        return
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""  # there is nothing to map
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _is_pickle(name: str, content: Content) -> bool:
    if name.endswith(PICKLE_SUFFIXES) or PICKLE.match(content):
        return True
    if content[:4] == b"PK\3\4":  # torch.save writes a zip file
        try:
            names = zipfile.ZipFile(io.BytesIO(content)).namelist()
        except zipfile.BadZipFile:
            return False
        return any(name.endswith(PICKLE_SUFFIXES) for name in names)
    return bool(TEXT_PICKLE.match(content)) and content[-1:] == b"."


def _read_columns(name: str, content: Content) -> Iterator[Any]:
    """Yield the texts of a Parquet file, in which they are compressed."""
    if not name.endswith(".parquet"):
        return
    import pyarrow as pa  # a Space has none
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(io.BytesIO(content) if isinstance(content, bytes) else content).iter_batches():
            for column in batch.columns:
                yield from filter(None, getattr(column, "dictionary", column).buffers())
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{name} cannot be read: {error}; build the corpus again") from error


def _check_configuration(name: str, content: bytes, files: Collection[str]) -> None:
    """See that what loads a configuration runs no code and, when it saves it again, copies no file of its machine."""
    try:
        facts = json.loads(content)
    except ValueError as error:
        raise InputError(f"{name} is no JSON ({error}); export it again") from error
    for key, value in _pairs(facts):
        if key in REMOTE_CODE and value:
            raise InputError(f"{name} has {key!r}, which loads code from a repository; take it out")
        if key.endswith("_file") and isinstance(value, str):
            if str(PurePosixPath(name).parent / value) not in files:  # `..` is in none of their names
                raise InputError(f"{name} names {value!r} as {key!r}, which is not among the files; take it out")


def _pairs(facts: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(facts, dict):
        yield from facts.items()
    for value in facts.values() if isinstance(facts, dict) else facts if isinstance(facts, list) else ():
        yield from _pairs(value)
