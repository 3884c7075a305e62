"""What training leaves on disk: resumable checkpoints and finished bundles, as safetensors and JSON. No pickle.

A checkpoint is one file, so that it is replaced in one step: tensors as such, the rest as JSON in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recpipe.data.atomic import atomic_file

TENSOR, PAIRS, TUPLE = "__tensor__", "__pairs__", "__tuple__"


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning's checkpoints without pickle."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_tree(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return dict(load_tree(Path(path)))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def save_tree(tree: Any, path: Path) -> None:
    """Writes nested dicts, lists, tuples, numbers, strings and tensors; atomically.

    Raises TypeError for anything else: it would need pickle.
    """
    tensors: dict[str, Tensor] = {}
    layout = json.dumps(_pack(tree, tensors))
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": layout})


def load_tree(path: Path) -> Any:
    """What ``save_tree`` wrote, tensors on the CPU. Raises ValueError for a file that is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            layout = (file.metadata() or {})["tree"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error}); delete it to start training anew"
        ) from error
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
    elif isinstance(node, str | Path):  # an enum's member that is a string, too
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
    """The states of torch's generators, to go on with the same dropout after a resume."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Restores ``random_state``; a state of a device that is absent here is passed over."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
