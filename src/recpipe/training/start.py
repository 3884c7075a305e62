"""Training that begins with the weights of another run: pretraining on some data sets, fine-tuning on another."""

from __future__ import annotations

import numpy as np
import torch

from recpipe.data.sequences import Vocabulary
from recpipe.models.recommender import Recommender
from recpipe.training.bundle import Bundle


def begin_with(model: Recommender, start: Bundle | None, vocabulary: Vocabulary, *, where: str) -> int:
    """Gives ``model``, whose catalogue is ``vocabulary``, the weights of ``start``; returns how many tensors.

    A model that reads semantic ids keeps the codes of its own catalogue, and may begin with another one's weights if
    both were made by the same quantizer. What answers for users without history is its own too. Other models need
    the same catalogue. Raises ValueError where ``start`` is None or does not fit; ``where`` is how it was asked for.
    """
    if start is None:
        raise ValueError(
            f"{where}: there is no such run; give <dataset>/<model>/seed_<seed> of a trained model"
        )
    if type(start.model) is not type(model):
        raise ValueError(f"{where} is a {type(start.model).__name__}, not a {type(model).__name__}")
    codes = model.item_codes()
    _check_ids(model, start.model, where)
    if not codes and not np.array_equal(start.vocabulary.ids, vocabulary.ids):
        raise ValueError(
            f"{where} has another catalogue, and {type(model).__name__} knows items by number only"
        )
    own, given = (
        {name: tensor for name, tensor in each.state_dict().items() if not name.startswith("cold_users.")}
        for each in (model, start.model)
    )
    kept = {f"{part}.codes" for part, module in model.named_modules() if module in codes.values()}
    chosen = {name: tensor for name, tensor in given.items() if name not in kept}
    wrong = [
        name
        for name in own.keys() | given.keys()
        if name not in kept and _shape(own, name) != _shape(given, name)
    ]
    if wrong:
        name = min(wrong)
        raise ValueError(
            f"{where} has other settings: {name} is {_shape(given, name)} there and {_shape(own, name)} here"
        )
    model.load_state_dict(chosen, strict=False)
    return len(chosen)


def _check_ids(model: Recommender, start: Recommender, where: str) -> None:
    own, given = model.item_codes(), start.item_codes()
    if own.keys() != given.keys():
        raise ValueError(f"{where} reads ids of {', '.join(given)}, this model of {', '.join(own)}")
    for name, codes in own.items():
        other = given[name].ids
        if (codes.ids.quantizer, codes.ids.sizes) != (other.quantizer, other.sizes):
            raise ValueError(
                f"{where}: its {name} ids were made by another quantizer ({other.quantizer[:12]}, here "
                f"{codes.ids.quantizer[:12]}), so its codes mean other things; let both data sets have ids of one: "
                "quantizer_from"
            )


def _shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
