"""RQ-VAE: residual quantization of a learned latent (Zeghidour et al. 2021; semantic ids: TIGER, Rajput et al. 2023).

z = encoder(x); level l takes the code nearest to what levels 1 .. l-1 left of z; the decoder gets the sum of the codes.
Loss = |x - decoder(sum)|² + beta · Σ_l |r_l - stopgrad(e_l)|², both as means per dimension; gradients pass straight
through the codes. Ours, and not the papers' (what each is worth: LOG.md):

- vectors are standardised, and codebooks begin with k-means after a warm-up without codes;
- codebooks are moving averages of what chose them (van den Oord et al. 2017, appendix A.1), not trained by gradient;
- a linear path beside the MLP, which begins as the principal components;
- dead codes are moved onto badly reconstructed items;
- ``separate``: items with equal codes are committed to free codes of the last level, so that they learn to differ;
- dropout of the input;
- Sinkhorn balancing (LC-Rec) of levels that are asked for, in training only;
- the state that reconstructs held-out items best is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recpipe.semantic_ids.vae import VAE


class RQVAE(VAE):
    """Every level sees the whole latent."""

    type = "rqvae"

    def _masks(self) -> Tensor:
        return torch.ones(self.config.levels, self.config.latent)

    def _order(self) -> Tensor:
        return torch.arange(self.config.latent)
