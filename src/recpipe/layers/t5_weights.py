"""Weights of transformers' T5 under the names they have here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def from_transformers(tensors: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """State dict of ``Encoder`` or ``Decoder`` from that of a T5ForConditionalGeneration, ``side`` encoder or decoder.

    Embeddings and head stay where they are: ``shared.weight``, ``lm_head.weight``.
    """
    blocks = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith(f"{side}.block."))
    named = {
        "relative.table.weight": tensors[
            f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ],
        "norm.weight": tensors[f"{side}.final_layer_norm.weight"],
    }
    parts = {"attention": "SelfAttention", "feed": "DenseReluDense"}
    if side == "decoder":
        parts = {"attention": "SelfAttention", "cross": "EncDecAttention", "feed": "DenseReluDense"}
    for block in range(blocks):
        for place, (ours, theirs) in enumerate(parts.items()):
            stem = f"{side}.block.{block}.layer.{place}"
            part = _part(tensors, f"{stem}.{theirs}", ours)
            part["norm.weight"] = tensors[f"{stem}.layer_norm.weight"]
            named |= {f"layers.{block}.{ours}.{name}": tensor for name, tensor in part.items()}
    return named


def _part(tensors: Mapping[str, Tensor], stem: str, ours: str) -> dict[str, Tensor]:
    def joined(names: str) -> Tensor:
        return torch.cat([tensors[f"{stem}.{name}.weight"] for name in names])

    if ours == "feed":
        return {"up.weight": tensors[f"{stem}.wi.weight"], "down.weight": tensors[f"{stem}.wo.weight"]}
    if ours == "cross":
        return {"q.weight": joined("q"), "kv.weight": joined("kv"), "out.weight": joined("o")}
    return {"qkv.weight": joined("qkv"), "out.weight": joined("o")}
