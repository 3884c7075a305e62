"""Registry and base class of losses: ``losses/<name>.py`` defines the one ``Loss`` of ``train.loss.name``.

Every loss works with every model that learns by gradient, unless the model's ``losses`` says otherwise.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from recpipe.config import ConfigError, check_arguments, check_known
from recpipe.config.entry_points import import_by_name, module_names

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from recpipe.training.callbacks import Patience

NOT_LOSSES = {"negatives"}


class Loss(nn.Module, ABC):
    """Base class of losses.

    ``needs``: statistics of the training set that the constructor takes as keyword arguments, ``item_counts`` (I + 1,),
    how often each item is a training target, and ``trained_items`` (I + 1,) bool, the items with training events.
    ``candidate_mask`` (I + 1,) bool: the items that targets are compared with; None for all. ``uses_context``: whether
    ``compute`` takes ``context`` (C,), the events of the batch that are no targets.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    uses_context: ClassVar[bool] = False
    candidate_mask: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("candidate_mask", None, persistent=False)

    def forward(
        self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None = None, **context: Tensor
    ) -> Tensor:
        """Return the loss (scalar) of hidden (N, D), table (I + 1, D) with padding in row 0, and targets (N,) in 1..I.

        ``weights`` (N,): factors of the targets' terms, of mean 1 over the training set. ``context`` (C,): the items of
        events that are no targets, for losses with ``uses_context``. Raises ValueError without a target.
        """
        if len(targets) == 0:
            raise ValueError("a batch without a target has no loss")
        return self.compute(hidden, table, targets, weights, **context)

    @abstractmethod
    def compute(self, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Compute ``forward`` for targets (N,), N > 0: a mean over targets, see ``weighted_mean``."""

    def callbacks(self, metric: str, patience: Patience | None) -> list[Callback]:
        """Return callbacks for the trainer. Raises ValueError if the loss needs ``patience`` and it is None."""
        return []


def loss_names() -> list[str]:
    """Return the names of all losses."""
    return sorted(module_names(__name__) - NOT_LOSSES)


def loss_class(name: str | None) -> type[Loss]:
    """Return the class in ``losses/<name>.py``.

    Raises ConfigError with the nearest spelling for an unknown name, ValueError if the file defines no or several
    losses.
    """
    check_known(name, loss_names(), what="loss", hint=" (train.loss.name)")
    module = import_by_name(__name__, str(name))
    members = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    classes = [cls for cls in members if issubclass(cls, Loss)]
    if len(classes) != 1:
        raise ValueError(f"{module.__name__} must define one Loss, it defines {[c.__name__ for c in classes]}")
    return classes[0]


def make_loss(
    settings: Mapping[str, Any], item_counts: Tensor | None = None, trained_items: Tensor | None = None
) -> Loss:
    """Build the loss of a block ``{name: ..., <arguments>}``, with the statistics (I + 1,) that its class ``needs``.

    Raises ConfigError for an unknown name, an unknown or bad argument, and a statistic that is None and needed.
    """
    arguments = dict(settings)
    name = arguments.pop("name", None)
    cls = loss_class(name)
    check_arguments(cls, arguments, what=f"{name} (train.loss)", internal=cls.needs)
    statistics = {"item_counts": item_counts, "trained_items": trained_items}
    try:
        return cls(**arguments, **{need: statistics[need] for need in cls.needs})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss {name} (train.loss): {error}") from None


def weighted_mean(losses_N: Tensor, weights_N: Tensor | None) -> Tensor:
    """Return the mean (scalar) of losses (N,) with weights (N,), (1 / N) Σ w_n loss_n; None is w = 1.

    A weight of 2 is a target that occurs twice. Since weights have mean 1 over the training set, the learning rate
    means the same with and without them.
    """
    return losses_N.mean() if weights_N is None else (weights_N * losses_N).mean()


def at_least_float32(scores: Tensor) -> Tensor:
    """Return ``scores`` (...) in float32 or wider, whatever type autocast gave the products."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
