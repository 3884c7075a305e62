"""PQ-VAE: product quantization of a learned latent, for models that predict all codes at once (Parallel TIGER).

As the RQ-VAE, but every level quantizes a slice of its own of the latent and knows nothing of the others; the decoder
gets the slices side by side. Principal components are dealt to the slices in turn, so that none gets all the variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recpipe.semantic_ids.vae import VAE


class PQVAE(VAE):
    """Latent widths that the levels do not divide are cut as evenly as possible."""

    type = "pqvae"

    def _slices(self) -> tuple[Tensor, ...]:
        return torch.arange(self.config.latent).tensor_split(self.config.levels)

    def _masks(self) -> Tensor:
        masks = torch.zeros(self.config.levels, self.config.latent)
        for mask, dimensions in zip(masks, self._slices(), strict=True):
            mask[dimensions] = 1
        return masks

    def _order(self) -> Tensor:
        slices = self._slices()
        turns = [part[turn] for turn in range(len(slices[0])) for part in slices if turn < len(part)]
        return torch.stack(turns)
