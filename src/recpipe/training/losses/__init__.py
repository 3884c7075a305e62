"""Losses by conf name, each usable with every model that learns by gradient.

A loss is called as ``criterion(hidden (N, D), table (I + 1, D), targets (N,))``; row 0 of the item table is padding.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from recpipe.config import ConfigError, check_arguments, check_known
from recpipe.training.losses.amince import AMINCE
from recpipe.training.losses.full_softmax import FullSoftmax
from recpipe.training.losses.sampled import (
    BPR,
    GBCE,
    BinaryCrossEntropy,
    Focal,
    InfoNCE,
    NegativeSampling,
    SampledSoftmax,
)

LOSSES: dict[str, type[nn.Module]] = {
    "full_softmax": FullSoftmax,
    "sampled_softmax": SampledSoftmax,
    "bce": BinaryCrossEntropy,
    "gbce": GBCE,
    "focal": Focal,
    "bpr": BPR,
    "infonce": InfoNCE,
    "amince": AMINCE,
}


def make_loss(
    settings: dict[str, Any], counts: Tensor | None = None, trained: Tensor | None = None
) -> nn.Module:
    """``{"name": ..., <arguments>}`` to a loss; ``counts`` (I + 1,) is how often each item is a training target,
    ``trained`` (I + 1,) bool which of them training has events of.

    Raises ValueError for an unknown name or argument, and where a loss needs counts and has none.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    check_known(name, sorted(LOSSES), what="loss", also=" (train.loss.name)")
    check_arguments(LOSSES[name], arguments, what=f"{name} (train.loss)", internal=("counts", "trained"))
    if issubclass(LOSSES[name], NegativeSampling | AMINCE):
        arguments["counts"] = counts
    if LOSSES[name] is FullSoftmax:
        arguments["trained"] = trained
    try:
        return LOSSES[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss {name} (train.loss): {error}") from None
