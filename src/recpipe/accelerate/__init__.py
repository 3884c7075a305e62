"""Faster CPU versions of algorithms in ``layers``, installed by ``recpipe.models.registry.build``.

The setting ``accelerate`` is the switch: auto installs them, off leaves the clear versions everywhere. Lists are the
same and scores differ by rounding; dropout draws other masks. Each module states its gain, and has a parity test.
"""

from __future__ import annotations

from torch import nn

from recpipe.accelerate.code_transformer import T5Accelerator
from recpipe.accelerate.dropout import FastDropout
from recpipe.accelerate.weight_cache import WeightCache
from recpipe.layers.code_transformer import CodeTransformer
from recpipe.layers.set_items import SetItems


def install(model: nn.Module) -> None:
    """Replace layers of ``model`` by their faster versions; its state dict stays the same."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))
        if isinstance(module, CodeTransformer):
            module.accelerator = T5Accelerator()
        elif isinstance(module, SetItems):
            module.cache = WeightCache()
