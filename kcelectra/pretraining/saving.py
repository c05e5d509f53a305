"""Save without a pause in training: from a copy in the host's memory, in a thread."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import torch
from torch import Tensor, UntypedStorage
from torch.utils._pytree import tree_leaves, tree_map_only

from kcelectra.pretraining.checkpoints import rotate_checkpoints, write_checkpoint

HOST_MARGIN = 2  # the copy, and as much again for what else needs memory before the next save; an assumption


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, and deletes the old ones.

    Where the host has no room for a copy of the tensors, `save` writes before it returns.

    Args:
        run_dir: gets `checkpoint-N`.
        limit: how many checkpoints are kept; all if None.
        on_saved: called with each checkpoint that was written, in the thread that wrote it, beside training: it must
            not draw from torch's random generators or change its defaults.
    """

    def __init__(
        self, run_dir: str | Path, *, limit: int | None = None, on_saved: Callable[[Path], None] | None = None
    ) -> None:
        self.run_dir, self.limit, self.on_saved = run_dir, limit, on_saved
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, tensors: Any, write: Callable[[Path, Any], None], **facts: Any) -> None:
        """Begin to write a checkpoint; wait for the one before.

        Args:
            step: optimizer steps behind it.
            tensors: what training goes on to change: tensors in dictionaries, lists and tuples, beside values that
                are no tensors.
            write: writes all files of the checkpoint into the directory that it gets, with the tensors as they are
                now. It runs beside training, and looks at nothing else that training changes.
            **facts: for the manifest; must be JSON.

        Raises:
            InputError: the disk is full.
            Exception: whatever else went wrong while this checkpoint or the one before was written.
        """
        self.wait()
        if not _has_room(tensors):
            self._save(step, lambda directory: write(directory, tensors), facts)
            return
        copy = copy_to_host(tensors)
        self._thread = Thread(target=self._run, args=(step, lambda directory: write(directory, copy), facts))
        self._thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint that was begun is written, and raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
        try:
            self._save(step, write, facts)
        except BaseException as error:  # `wait` raises it: nothing may go wrong unseen in a thread
            self._error = error

    def _save(self, step: int, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
        checkpoint = write_checkpoint(self.run_dir, step, write, **facts)
        rotate_checkpoints(self.run_dir, self.limit)
        if self.on_saved is not None:
            self.on_saved(checkpoint)


def copy_to_host(state: Any) -> Any:
    """Return a state whose tensors are copies in the host's memory; two that shared theirs do so again.

    Args:
        state: tensors in dictionaries, lists and tuples, beside other values, which are not copied.
    """
    copies: dict[int, UntypedStorage] = {}
    copied = tree_map_only(Tensor, partial(_copy, copies=copies), state)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()  # once for all copies
    return copied


def _copy(tensor: Tensor, copies: dict[int, UntypedStorage]) -> Tensor:
    if tensor.device.type == "xla":  # has no storage to share
        return tensor.detach().cpu()
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in copies:
        copies[storage.data_ptr()] = UntypedStorage(storage.nbytes()).copy_(storage, non_blocking=True)
    copy = torch.empty(0, dtype=tensor.dtype)
    return copy.set_(copies[storage.data_ptr()], tensor.storage_offset(), tensor.shape, tensor.stride())


def _has_room(state: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    # XLA's are written from a copy in any case
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "xla"]
    num_bytes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return psutil.virtual_memory().available > HOST_MARGIN * sum(num_bytes.values())
