"""Checkpoints without pickle: one safetensors file each, tensors as such and the rest as JSON in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recpipe.data.atomic import atomic_file, remove
from recpipe.data.digests import verified
from recpipe.training.distributed import Ranks

BEST, LAST = "best.safetensors", "last.safetensors"
TENSOR, PAIRS, TUPLE = "__tensor__", "__pairs__", "__tuple__"


class Checkpoints(ModelCheckpoint):
    """Lightning callback that writes the best and the last checkpoint at the end of an epoch."""

    FILE_EXTENSION = ".safetensors"
    CHECKPOINT_NAME_LAST = "last"

    def __init__(self, folder: Path, *, monitor: str | None) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode="min" if monitor is None else "max",
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last`` in every epoch; Lightning writes it only with a new ``best``."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            trainer.save_checkpoint(Path(str(self.dirpath)) / LAST)


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning plugin that reads and writes checkpoints as safetensors."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write the checkpoint to ``path``."""
        save_tree(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint of ``path`` on the CPU."""
        return dict(load_tree(Path(path)))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the checkpoint of ``path``."""
        remove(Path(path))


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a training, the one that is resumed first."""
    for name in (LAST, BEST):
        remove(folder / name)


def save_tree(tree: Any, path: Path) -> None:
    """Write nested dicts, lists, tuples, numbers, strings and tensors atomically; raise TypeError for anything else."""
    tensors: dict[str, Tensor] = {}
    layout = json.dumps(_pack(tree, tensors))
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": layout})


def load_tree(path: Path) -> Any:
    """Read a file of ``save_tree``, tensors on the CPU. Raises ValueError for a damaged file."""
    verified(path, "delete it to start training anew")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            layout = (file.metadata() or {})["tree"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not a complete checkpoint ({error}); delete it to start training anew") from error
    return _unpack(json.loads(layout), tensors)


def _pack(node: Any, tensors: dict[str, Tensor]) -> Any:
    packed: Any
    if isinstance(node, Tensor):
        packed = {TENSOR: str(len(tensors))}
        tensors[packed[TENSOR]] = node.detach().cpu().contiguous().clone()
    elif isinstance(node, Mapping) and all(isinstance(key, str) and key[:2] != "__" for key in node):
        packed = {key: _pack(value, tensors) for key, value in node.items()}
    elif isinstance(node, Mapping):
        packed = {PAIRS: [[_pack(key, tensors), _pack(value, tensors)] for key, value in node.items()]}
    elif isinstance(node, list | tuple):
        packed = [_pack(value, tensors) for value in node]
        packed = {TUPLE: packed} if isinstance(node, tuple) else packed
    elif isinstance(node, str | Path):  # includes members of string enums
        packed = str(node)
    elif node is None or isinstance(node, bool | int | float):
        packed = node
    else:
        raise TypeError(f"a checkpoint cannot hold a {type(node).__name__} without pickle")
    return packed


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if TENSOR in node:
        return tensors[node[TENSOR]]
    if TUPLE in node:
        return tuple(_unpack(value, tensors) for value in node[TUPLE])
    if PAIRS in node:
        return {_unpack(key, tensors): _unpack(value, tensors) for key, value in node[PAIRS]}
    return {key: _unpack(value, tensors) for key, value in node.items()}


def random_state() -> dict[str, Tensor]:
    """Return the states of torch's random generators by device, each a tensor of bytes (n,)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Restore ``random_state``, tensors of bytes (n,); ignore the state of an absent device."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def derive_random_state(ranks: Ranks) -> None:
    """Let ranks 1, 2, … draw random numbers of their own, which follow from the random state of rank 0."""
    states = [ranks.of_main(state) for _, state in sorted(random_state().items())]
    if not ranks.is_main:
        digest = hashlib.sha256(b"".join(state.numpy().tobytes() for state in states))
        torch.manual_seed(int.from_bytes(digest.digest()[:7]) + ranks.rank)
