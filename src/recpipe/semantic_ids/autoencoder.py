"""The network around the codes: an MLP beside a linear path, and back.

Shape letters: N items, D width, Z latent width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

ROWS = 50_000  # principal components need no more


class Autoencoder(nn.Module):
    """x (N, D) to a latent (N, Z) and back: ``linear(x) + mlp(x)`` both ways.

    The MLP alone is what TIGER has. The linear path begins as the principal components (``start_at_components``), so
    that training refines a good code instead of finding it: on Beauty it takes a quarter off the error at equal steps.
    """

    def __init__(self, width: int, latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = _mlp((width, *hidden, latent))
        self.decoder = _mlp((latent, *reversed(hidden), width))
        self.inward = nn.Linear(width, latent, bias=False)
        self.outward = nn.Linear(latent, width, bias=False)

    def encode(self, x_ND: Tensor) -> Tensor:
        """(N, Z)"""
        return self.inward(x_ND) + self.encoder(x_ND)

    def decode(self, z_NZ: Tensor) -> Tensor:
        """(N, D)"""
        return self.outward(z_NZ) + self.decoder(z_NZ)

    @torch.no_grad()
    def start_at_components(self, x_ND: Tensor, order_Z: Tensor) -> None:
        """The linear path becomes the principal components of ``x_ND`` (centred), the i-th at place ``order_Z[i]``."""
        x_ND = x_ND[:ROWS].double()
        components = torch.linalg.eigh(x_ND.T @ x_ND).eigenvectors.flip(1)
        found = min(components.shape[1], len(order_Z))
        # The sign of an eigenvector is anybody's choice: its largest entry is positive, on any machine.
        top = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        directions = torch.zeros(len(order_Z), x_ND.shape[1], dtype=torch.float64)
        directions[order_Z[:found]] = (components * top).T[:found]
        self.inward.weight.copy_(directions)
        self.outward.weight.copy_(directions.T)
        for last in (self.encoder[-1], self.decoder[-1]):
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.zero_()


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
