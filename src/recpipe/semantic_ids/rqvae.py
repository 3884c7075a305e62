"""What the RQ-VAE and the PQ-VAE share: fitting, codes, tensors. They differ in what a level sees of the latent.

RQ-VAE: residual quantization of a learned latent (Zeghidour et al. 2021; semantic ids: TIGER, Rajput et al. 2023).

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

PQ-VAE: product quantization of a learned latent, for models that predict all codes at once (Parallel TIGER).

As the RQ-VAE, but every level quantizes a slice of its own of the latent and knows nothing of the others; the decoder
gets the slices side by side. Principal components are dealt to the slices in turn, so that none gets all the variance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recpipe.semantic_ids.autoencoder import Autoencoder, CodedAutoencoder, VAEConfig
from recpipe.semantic_ids.codebooks import LearnedCodebooks, scaling
from recpipe.semantic_ids.quantizer import OnEpoch, Quantizer, QuantizerConfig
from recpipe.semantic_ids.rqvae_training import Training

LEAST_HELD_OUT = 20  # items; of fewer nothing is held out


class VAE(Quantizer):
    """Standardised vectors, a `CodedAutoencoder`, and its training. All on the CPU, where it is repeatable."""

    Config: ClassVar[type[QuantizerConfig]] = VAEConfig
    config: VAEConfig

    @abstractmethod
    def _masks(self) -> Tensor:
        """(L, Z) of 0 and 1: the latent dimensions that a level sees."""

    @abstractmethod
    def _order(self) -> Tensor:
        """(Z,) at which latent dimension the first, second … principal component begins."""

    def _fit(self, x_ND: NDArray[np.float32], *, seed: int, on_epoch: OnEpoch | None) -> None:
        with _threads(self.config.threads):
            self._train(x_ND, seed, on_epoch)

    def _train(self, x_ND: NDArray[np.float32], seed: int, on_epoch: OnEpoch | None) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.from_numpy(x_ND)
        self.mean, self.scale = scaling(x, self.config.standardise)
        x = (x - self.mean) / self.scale
        held_out, train = self._split(x, generator)
        self.coded = CodedAutoencoder(self._network(seed), bf16=_bf16(self.config.precision))
        self.coded.network.start_at_components(train, self._order())
        training = Training(
            self.config, self.coded, self.sizes, self._masks(), train, held_out, generator, on_epoch
        )
        training.run()
        self.history = training.history

    def _encode(self, x_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        return self.coded.choose(self._standardised(x_ND)).int().numpy()

    def _decode(self, codes_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        return (self.coded.decode(torch.from_numpy(codes_NL).long()) * self.scale + self.mean).numpy()

    def _level_distances(
        self, x_ND: NDArray[np.float32], codes_NL: NDArray[np.int32], level: int
    ) -> NDArray[np.float32]:
        codes = torch.from_numpy(codes_NL).long()
        return self.coded.distances(self._standardised(x_ND), codes, level).numpy()

    def tensors(self) -> dict[str, Tensor]:
        """mean, scale, book_1 .. book_L, and the network's weights."""
        assert self.coded.books is not None
        books = {f"book_{level}": book for level, book in enumerate(self.coded.books.books, 1)}
        return {"mean": self.mean, "scale": self.scale, **books, **self.coded.network.state_dict()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError for tensors that do not fit."""
        rest = dict(tensors)
        self.mean, self.scale = rest.pop("mean"), rest.pop("scale")
        books = [rest.pop(f"book_{level}") for level in range(1, len(self.sizes) + 1)]
        found = [tuple(book.shape) for book in books]
        if found != (expected := [(size, self.config.latent) for size in self.sizes]):
            raise RuntimeError(f"codebooks have shapes {found}, not {expected}")
        self.coded = CodedAutoencoder(self._network(0), LearnedCodebooks(books, self._masks()))
        self.coded.network.load_state_dict(rest)

    def _network(self, seed: int) -> Autoencoder:
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.manual_seed(seed)
            return Autoencoder(self.width, self.config.latent, self.config.widths)

    def _split(self, x_ND: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        held_out = int(self.config.held_out * len(x_ND))
        if not held_out or len(x_ND) < LEAST_HELD_OUT:
            return x_ND, x_ND
        order = torch.randperm(len(x_ND), generator=generator)
        return x_ND[order[:held_out]], x_ND[order[held_out:]]

    def _standardised(self, x_ND: NDArray[np.float32]) -> Tensor:
        return (torch.from_numpy(x_ND) - self.mean) / self.scale


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bf16(precision: str) -> bool:
    """Three times as fast with AMX; without it the conversions cost more than they save."""
    if precision != "auto":
        return precision == "bf16"
    capabilities: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    return bool(capabilities and capabilities().get("amx_bf16"))


class RQVAE(VAE):
    """Every level sees the whole latent."""

    type = "rqvae"

    def _masks(self) -> Tensor:
        return torch.ones(self.config.levels, self.config.latent)

    def _order(self) -> Tensor:
        return torch.arange(self.config.latent)


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
