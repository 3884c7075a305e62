"""RQ-VAE and PQ-VAE: residual and product quantization of a learned latent.

RQ-VAE (Zeghidour et al. 2021; semantic ids: TIGER, Rajput et al. 2023): z = encoder(x); level l takes the code nearest
to the residual of levels 1 .. l-1; the decoder gets the sum of the codes. Loss = |x - decoder(sum)|² + beta ·
Σ_l |r_l - stopgrad(e_l)|², both as means per dimension, with straight-through gradients.

PQ-VAE, for models that predict all codes at once (Parallel TIGER): every level quantizes its own slice of the latent.
Principal components are dealt to the slices in turn, so that the variance is spread over all levels.

Deviations from the papers, for both (measurements: LOG.md):

- vectors are standardised, and codebooks start from k-means after a warm-up without codes;
- codebooks are moving averages (van den Oord et al. 2017, appendix A.1) instead of trained parameters;
- a linear path beside the MLP starts as the principal components;
- dead codes are moved onto badly reconstructed items;
- ``separate``: items with equal codes are committed to free codes of the last level, so that they learn to differ;
- dropout of the input;
- optional Sinkhorn balancing of levels (LC-Rec), in training only;
- the state with the lowest reconstruction error of held-out items is restored.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from recpipe.semantic_ids.autoencoder import Autoencoder, LearnedCodebooks, QuantizedAutoencoder
from recpipe.semantic_ids.collisions import Codes, Vectors
from recpipe.semantic_ids.quantizer import OnEpoch, Quantizer, QuantizerConfig, scaling, thread_limit
from recpipe.semantic_ids.rqvae_training import RQVAEConfig, Training

MIN_HELD_OUT_ITEMS = 20  # catalogues below this size hold out no items


class AutoencoderQuantizer(Quantizer):
    """Quantizer by a ``QuantizedAutoencoder`` of standardised vectors, trained on the CPU."""

    Config: ClassVar[type[QuantizerConfig]] = RQVAEConfig
    config: RQVAEConfig

    @abstractmethod
    def _masks(self) -> Tensor:
        """(L, Z) 1 for the latent dimensions of a level, 0 elsewhere."""

    @abstractmethod
    def _order(self) -> Tensor:
        """(Z,) latent dimension in which the first, second, … principal component starts."""

    def _fit(self, x_ND: Vectors, *, seed: int, on_epoch: OnEpoch | None) -> None:
        with thread_limit(torch.get_num_threads, torch.set_num_threads, self.config.threads):
            generator = torch.Generator().manual_seed(seed)
            self.mean, self.scale = scaling(torch.from_numpy(x_ND), self.config.standardise)
            held_out = train = self._scaled(x_ND)
            count = int(self.config.held_out * len(train))
            if count and len(train) >= MIN_HELD_OUT_ITEMS:
                order = torch.randperm(len(train), generator=generator)
                held_out, train = train[order[:count]], train[order[count:]]
            self.model = QuantizedAutoencoder(self._network(seed), bf16=_use_bf16(self.config.precision))
            self.model.network.init_components(train, self._order())
            training = Training(
                self.config, self.model, self.sizes, self._masks(), train, held_out, generator, on_epoch
            )
            training.run()
            self.history = training.history

    def _encode(self, x_ND: Vectors) -> Codes:
        return self.model.encode(self._scaled(x_ND)).int().numpy()

    def _decode(self, codes_NL: Codes) -> Vectors:
        return self._unscaled(self.model.decode(torch.from_numpy(codes_NL).long()))

    def _level_distances(self, x_ND: Vectors, codes_NL: Codes, level: int) -> Vectors:
        return self.model.distances(self._scaled(x_ND), torch.from_numpy(codes_NL).long(), level).numpy()

    def tensors(self) -> dict[str, Tensor]:
        assert self.model.codebooks is not None
        books = {f"book_{level}": book for level, book in enumerate(self.model.codebooks.books, 1)}
        return {"mean": self.mean, "scale": self.scale, **books, **self.model.network.state_dict()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        weights = dict(tensors)
        self.mean, self.scale = weights.pop("mean"), weights.pop("scale")
        books = [weights.pop(f"book_{level}") for level in range(1, len(self.sizes) + 1)]
        shapes = [tuple(book.shape) for book in books]
        if shapes != (expected := [(size, self.config.latent) for size in self.sizes]):
            raise RuntimeError(f"codebooks have shapes {shapes}, not {expected}")
        self.model = QuantizedAutoencoder(self._network(0), LearnedCodebooks(books, self._masks()))
        self.model.network.load_state_dict(weights)

    def _network(self, seed: int) -> Autoencoder:
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.manual_seed(seed)
            return Autoencoder(self.width, self.config.latent, self.config.widths)


class RQVAE(AutoencoderQuantizer):
    """Residual quantization: every level sees the whole latent."""

    type = "rqvae"

    def _masks(self) -> Tensor:
        return torch.ones(self.config.levels, self.config.latent)

    def _order(self) -> Tensor:
        return torch.arange(self.config.latent)


class PQVAE(AutoencoderQuantizer):
    """Product quantization: every level sees its slice of the latent, cut as evenly as possible."""

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
        return torch.stack([part[turn] for turn in range(len(slices[0])) for part in slices if turn < len(part)])


def _use_bf16(precision: str) -> bool:
    """For auto whether the processor has AMX: with it bf16 is three times as fast, without it slower than fp32."""
    if precision != "auto":
        return precision == "bf16"
    capabilities: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    return bool(capabilities and capabilities().get("amx_bf16"))
