"""Rows that were packed once: read from a directory or the Hub, in an order that needs no state but one number."""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from kcelectra.corpus.comments import find_files, find_revision
from kcelectra.errors import InputError
from kcelectra.manifest import MANIFEST, read_manifest, seal_manifest, to_json
from kcelectra.tokenization import hash_tokenizer, load_tokenizer

STAGE = "packed"
BLOCKS_FILE = "blocks.json"
TOKENIZER_DIR = "tokenizer"
NUM_CACHED = 4  # blocks; rows come block by block, and a batch may end in the next one
CURE = "replace it with a good copy, or delete the directory and write it again with recipes/pack.py"


class RowOrder:
    """An order of the rows of blocks that is a function of (seed, epoch, position) alone.

    Each epoch permutes the blocks, and the rows within each. As rows were shuffled all together when they were
    written, a block is a random sample of them.

    Args:
        block_sizes: rows of each block, above 0.
        seed: >= 0, of the permutations.
    """

    def __init__(self, block_sizes: Sequence[int] | np.ndarray, seed: int) -> None:
        self.block_sizes = np.asarray(block_sizes, np.int64)
        self.num_rows = int(self.block_sizes.sum())
        self.seed = seed
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def locate(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the block, and the row in it, that stands at each position.

        Args:
            positions: (n,) >= 0; `num_rows` of them are an epoch. What one costs does not depend on how large it is.

        Returns:
            Two (n,) int64 arrays.
        """
        epochs, ranks = np.divmod(np.asarray(positions, np.int64), self.num_rows)
        blocks, rows = np.empty_like(ranks), np.empty_like(ranks)
        for epoch in np.unique(epochs).tolist():
            order, ends = self._order_blocks(epoch)
            mine = np.flatnonzero(epochs == epoch)
            places = np.searchsorted(ends, ranks[mine], side="right")
            blocks[mine] = order[places]
            rows[mine] = ranks[mine] - ends[places] + self.block_sizes[blocks[mine]]
            for block in np.unique(blocks[mine]).tolist():
                inside = mine[blocks[mine] == block]
                rows[inside] = _permute(int(self.block_sizes[block]), self.seed, epoch, 1 + block)[rows[inside]]
        return blocks, rows

    def _order_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the blocks in the order of an epoch, and the rank behind the last row of each."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = _permute(len(self.block_sizes), self.seed, epoch, 0)
            self._epoch = epoch, order, np.cumsum(self.block_sizes[order])
        return self._epoch[1:]


@lru_cache(maxsize=NUM_CACHED)
def _permute(size: int, seed: int, epoch: int, number: int) -> np.ndarray:
    # numpy keeps the stream of a bit generator for ever, that of `Generator.permutation` it may change (NEP 19)
    return np.argsort(np.random.PCG64([seed, epoch, number]).random_raw(size), kind="stable")


class _Block(NamedTuple):
    """Bytes `start` to `stop` of a file; what lies between two blocks belongs to one of them, and all is summed."""

    file: str
    start: int
    stop: int
    ids_at: int  # from `start` on
    num_rows: int
    crc32: int


class PackedRows(Dataset):
    """Rows `{"input_ids": (length,) uint16 or uint32, "row_id": int}` that `pack_corpus` wrote, in a seeded order.

    There is a row at every position from 0 on: after `num_rows` of them comes another epoch, in another order, with
    other row ids, so that a row is masked anew. Read them one after the other; a sampler that shuffles reads a block
    for every row.

    Every byte of a file is read under a checksum, each time that it is used: one that has changed since it was
    written stops the run, whenever it changed. No file stays open: the data set can be sent to any process.

    Args:
        dataset: a directory, or the id of a dataset on the Hub, of which blocks are fetched as they are needed, by
            each process for itself.
        seed: of the order.
        revision: of a dataset on the Hub.

    Attributes:
        manifest: what `pack_corpus` returned.
        num_rows: of an epoch.
        max_length: of a row.
        vocab_size: of the tokenizer.
        position: of the first row that has not been taken; see `resume`.

    Raises:
        InputError: it holds no packed rows, or a file is missing or was changed; in use too.
    """

    def __init__(self, dataset: str, *, seed: int, revision: str | None = None) -> None:
        self.dataset = dataset
        self.commit = None if os.path.isdir(dataset) else find_revision(dataset, revision)
        self._directory = Path(dataset) if self.commit is None else _download_facts(dataset, self.commit)
        self.manifest = _read_facts(self._directory, dataset)
        self.max_length: int = self.manifest["max_length"]
        self.vocab_size: int = self.manifest["vocab_size"]
        self._dtype = row_dtype(self.vocab_size)
        self._blocks = _read_blocks(self._directory, self.manifest)
        if self.commit is None:
            _require_sizes(self._directory, self.manifest)
        self.order = RowOrder([block.num_rows for block in self._blocks], seed)
        self.num_rows = self.order.num_rows
        self._first_rows = np.cumsum(self.order.block_sizes) - self.order.block_sizes
        self._cached: dict[int, np.ndarray] = {}
        self.position = 0

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows at some positions; a `DataLoader` asks for a batch at a time."""
        blocks, rows = self.order.locate(positions)
        ids = np.empty((len(rows), self.max_length), self._dtype)
        for block in np.unique(blocks).tolist():
            inside = blocks == block
            ids[inside] = self._load(block)[rows[inside]]
        epochs = np.asarray(positions, np.int64) // self.num_rows
        row_ids = epochs * self.num_rows + self._first_rows[blocks] + rows
        return [{"input_ids": row, "row_id": row_id} for row, row_id in zip(ids, row_ids.tolist(), strict=True)]

    def state_at(self, num_rows: int) -> dict[str, Any]:
        """Return the state, JSON, after so many rows from `position` on."""
        return {"position": self.position + num_rows}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.position = state["position"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells whether two runs read the same rows in the same order."""
        files = hashlib.sha256(to_json(self.manifest["files"]).encode()).hexdigest()
        return {"files_sha256": files, "num_rows": self.num_rows, "seed": self.order.seed}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer that the rows were made with."""
        tokenizer = load_tokenizer(self._directory / TOKENIZER_DIR)
        self.check_tokenizer(tokenizer)
        return tokenizer

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise an `InputError` if the rows were made with another tokenizer."""
        if hash_tokenizer(tokenizer) != self.manifest["tokenizer_sha256"]:
            raise InputError(
                f"{self.dataset} was packed with another tokenizer, of {self.vocab_size} tokens; leave out "
                f"--tokenizer, as its own lies in {TOKENIZER_DIR}/, or pack the comments anew with recipes/pack.py"
            )

    def verify(self) -> None:
        """Read every block once.

        Raises:
            InputError: a byte of a file has changed.
        """
        for block in self._blocks:
            self._read(block)

    def _load(self, number: int) -> np.ndarray:
        """Return the ids of a block, (rows, length)."""
        if number not in self._cached:
            ids = self._read(self._blocks[number])
            if len(self._cached) == NUM_CACHED:
                del self._cached[next(iter(self._cached))]
            self._cached[number] = ids
        return self._cached[number]

    def _read(self, block: _Block) -> np.ndarray:
        content = _read_local(self._directory, block) if self.commit is None else self._fetch(block)
        if zlib.crc32(content) != block.crc32:
            raise InputError(
                f"{self.dataset}/{block.file}: bytes {block.start} to {block.stop} are not what was written; {CURE}"
            )
        num_ids = block.num_rows * self.max_length
        return np.frombuffer(content, self._dtype, num_ids, block.ids_at).reshape(-1, self.max_length)

    def _fetch(self, block: _Block) -> bytes:
        from huggingface_hub import HfFileSystem  # half a second, which local files do without
        from huggingface_hub.errors import HTTPError

        path = f"datasets/{self.dataset}@{self.commit}/{block.file}"
        try:
            with HfFileSystem().open(path, cache_type="none") as file:  # or it reads 5 MB ahead
                file.seek(block.start)
                return file.read(block.stop - block.start)
        except (OSError, HTTPError) as error:
            raise InputError(f"cannot read {path} of the Hub: {error}; the same command goes on") from error


def row_dtype(vocab_size: int) -> np.dtype:
    """Return the type that token ids are kept in: uint16, uint32 where there are too many."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def is_packed(dataset: str, *, revision: str | None = None) -> bool:
    """Return whether a dataset, local or on the Hub, is a directory of packed rows.

    Raises:
        InputError: it has a manifest that was changed, or is not there at all.
    """
    if os.path.isdir(dataset):
        manifest = _read_manifest(Path(dataset), dataset)
    elif find_files(dataset):
        return False
    else:
        manifest = _read_manifest(_download_facts(dataset, find_revision(dataset, revision)), dataset)
    return manifest is not None and manifest.get("stage") == STAGE


def _download_facts(dataset: str, commit: str) -> Path:
    """Return a directory with all files of a dataset on the Hub but the rows."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    wanted = [MANIFEST, BLOCKS_FILE, f"{TOKENIZER_DIR}/*"]
    try:
        return Path(snapshot_download(dataset, repo_type="dataset", revision=commit, allow_patterns=wanted))
    except (OSError, HTTPError) as error:
        raise InputError(f"cannot read {dataset!r} of the Hub: {error}; the same command goes on") from error


def _read_manifest(directory: Path, dataset: str) -> dict[str, Any] | None:
    try:
        return read_manifest(directory)
    except ValueError as error:
        raise InputError(f"cannot read {dataset}/{MANIFEST}: {error}; {CURE}") from error


def _read_facts(directory: Path, dataset: str) -> dict[str, Any]:
    """Return the manifest, once it and the small files are what was written."""
    manifest = _read_manifest(directory, dataset)
    if manifest is None or manifest.get("stage") != STAGE:
        raise InputError(f"{dataset} holds no packed rows, or not all of them; recipes/pack.py writes them")
    if (directory / MANIFEST).read_text(encoding="utf-8") != seal_manifest(manifest):
        raise InputError(f"{dataset}/{MANIFEST} has lost its checksum; {CURE}")
    for name, expected in manifest["files"].items():
        if name == BLOCKS_FILE or name.startswith(f"{TOKENIZER_DIR}/"):
            path = directory / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected["sha256"]:
                raise InputError(f"{dataset}/{name} is missing or not what {MANIFEST} says; {CURE}")
    return manifest


def _read_blocks(directory: Path, manifest: dict[str, Any]) -> list[_Block]:
    blocks = []
    for name, facts in json.loads((directory / BLOCKS_FILE).read_text(encoding="utf-8")).items():
        edges = pairwise([0, *facts["starts"][1:], manifest["files"][name]["size"]])
        ids_at = [facts["starts"][0], *[0] * (len(facts["starts"]) - 1)]
        columns = zip(edges, ids_at, facts["num_rows"], facts["crc32"], strict=True)
        blocks += [_Block(name, *edges, *values) for edges, *values in columns]
    return blocks


def _require_sizes(directory: Path, manifest: dict[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != expected["size"]:
            raise InputError(f"{path} is missing or was cut: {expected['size']} bytes were written; {CURE}")


def _read_local(directory: Path, block: _Block) -> bytes:
    # Read, not mapped: a file that is cut while a run reads it would kill the process, and pages of a mapped one
    # may be read from the disk again after their checksum was taken.
    try:
        with open(directory / block.file, "rb") as file:
            file.seek(block.start)
            return file.read(block.stop - block.start)
    except OSError as error:
        raise InputError(f"cannot read {directory / block.file}: {error}; {CURE}") from error
