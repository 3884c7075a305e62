"""RQ-VAE and PQ-VAE: residual and product quantization of a learned latent.

RQ-VAE (Zeghidour et al. 2021; semantic ids: TIGER, Rajput et al. 2023): z = encoder(x); level l takes the code nearest
to the residual of levels 1 .. l-1; the decoder gets the sum of the codes. Loss = |x - decoder(sum)|² + beta ·
Σ_l |r_l - stopgrad(e_l)|², both as means per dimension, with straight-through gradients.

PQ-VAE, for models that predict all codes at once (Parallel TIGER): every level quantizes its own slice of the latent.
Principal components are dealt to the slices in turn, so that the variance is spread over all levels.

Deviations from the papers, for both (measurements: docs/experiments/semantic-ids.md):

- vectors are standardised, and codebooks start from k-means after a warm-up without codes;
- codebooks are moving averages (van den Oord et al. 2017, appendix A.1) instead of trained parameters;
- a linear path beside the MLP starts as the principal components;
- dead codes are moved onto badly reconstructed items;
- ``separate``: items with equal codes are committed to free codes of the last level, so that they learn to differ;
- dropout of the input;
- optional Sinkhorn balancing of levels (LC-Rec), in training only;
- optional alignment with item vectors of a trained model (LETTER), see ``recpipe.semantic_ids.collaborative``;
- the state with the lowest reconstruction error of held-out items is restored.

Shape letters: N items, B batch, D width, L levels, Z latent width.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor

from recpipe.config import check_arguments
from recpipe.progress import Progress, progress
from recpipe.semantic_ids.autoencoder import (
    COMPONENT_ROWS,
    Autoencoder,
    BestState,
    CodeOverrides,
    LearnedCodebooks,
    Losses,
    QuantizedAutoencoder,
)
from recpipe.semantic_ids.collaborative import Alignment, CollaborativeConfig
from recpipe.semantic_ids.quantizer import ItemVectors, OnEpoch, Quantizer, QuantizerConfig, distinct_rows, thread_limit
from recpipe.semantic_ids.vector_rows import StandardisedRows, VectorRows

log = logging.getLogger(__name__)

MIN_HELD_OUT_ITEMS = 20  # catalogues below this size hold out no items
EVALUATIONS = 50  # on held-out items, approximately
WARMUP_STEPS = 20  # of the learning rate
MIN_RATE = 0.02  # share of the highest learning rate
MAX_HELD_OUT = 65_536  # larger catalogues hold out no more items, or choose the best state by so many
SAMPLE = 65_536  # rows for k-means and the reset of dead codes
RESET_STEPS = 200  # steps at most between resets of dead codes, or one epoch where that is longer
MAX_SEPARABLE = 100_000  # items up to which collisions are separated: reallocation each epoch is costly


@dataclass(frozen=True)
class DeadCodes:
    """Schedule for moving unused codes onto badly reconstructed items."""

    every: int = 5  # epochs between two moves
    until: float = 0.7  # share of the steps; 0: never

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.until <= 1:
            raise ValueError(
                f"dead_codes are every {self.every!r}, until {self.until!r}; allowed: at least 1, and from 0 to 1"
            )


@dataclass(frozen=True)
class RQVAEConfig(QuantizerConfig):
    """Settings of RQ-VAE and PQ-VAE.

    Defaults were chosen on Amazon Beauty (12,101 items), see docs/experiments/semantic-ids.md.
    """

    widths: tuple[int, ...] = (512, 256, 128)  # hidden layers of the encoder; the decoder mirrors them
    latent: int = 16  # fewer: items differ in more prefixes; more: vectors are reconstructed better
    beta: float = 0.25  # weight of the commitment loss
    decay: float = 0.95  # decay of the codebooks' moving averages
    batch: int = 512
    epochs: int = 140
    least_steps: int = 600  # bounds for very small and very large catalogues
    most_steps: int = 10_000
    warm_up: float = 0.07  # share of the steps without codes, before k-means
    lr: float = 5e-3  # highest value: a short warm-up, then cosine decay
    weight_decay: float = 1e-4  # weight decay of AdamW
    dropout: float = 0.1  # dropout of the encoder's input
    dead_codes: DeadCodes = DeadCodes()  # when unused codes are moved
    separate: float = 4.0  # commitment weight of colliding items to free codes; 0: off
    sinkhorn: tuple[float, ...] | None = None  # epsilon per level, 0: none; LC-Rec has [0, 0, 0.003]
    settle: float = 0.25  # share of the steps before the best state is tracked
    held_out: float = 0.05  # share of the items that choose the best state; 0: all items do (see MAX_HELD_OUT)
    patience: int = 15  # evaluations without improvement
    precision: str = "auto"  # fp32, bf16; auto: bf16 where the processor has AMX
    threads: int = 1  # 1 is repeatable on any machine
    collaborative: CollaborativeConfig | None = None  # alignment with item vectors of a trained model

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.dead_codes, DeadCodes):
            check_arguments(DeadCodes, self.dead_codes, what="dead_codes")
            object.__setattr__(self, "dead_codes", DeadCodes(**self.dead_codes))
        if self.collaborative is not None and not isinstance(self.collaborative, CollaborativeConfig):
            check_arguments(CollaborativeConfig, self.collaborative, what="collaborative")
            object.__setattr__(self, "collaborative", CollaborativeConfig(**self.collaborative))
        for name in ("latent", "batch", "epochs", "least_steps", "most_steps", "patience", "threads"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("latent", self.latent >= self.levels, f"at least levels, {self.levels}")
        for name in ("decay", "held_out", "warm_up", "dropout", "settle"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("beta", "weight_decay", "separate"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("lr", self.lr > 0, "above 0")
        self._check("precision", self.precision in ("auto", "fp32", "bf16"), "auto, fp32, bf16")
        self._check("widths", all(width >= 1 for width in self.widths), "at least 1 each")
        if self.sinkhorn is not None:
            valid = len(self.sinkhorn) == self.levels and min(self.sinkhorn) >= 0
            self._check("sinkhorn", valid, f"null, or {self.levels} numbers of at least 0")

    def _check(self, name: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")


class AutoencoderQuantizer(Quantizer):
    """Base class of quantizers by a ``QuantizedAutoencoder`` of standardised vectors, trained on the CPU."""

    Config: ClassVar[type[QuantizerConfig]] = RQVAEConfig
    config: RQVAEConfig

    @abstractmethod
    def _dimensions(self) -> list[list[int]]:
        """(L) latent dimensions that each level quantizes."""

    @property
    def settings(self) -> dict[str, Any]:
        """Config as plain JSON types, without ``collaborative`` where it is off, as older files have it."""
        settings = super().settings
        return settings if self.config.collaborative else {k: v for k, v in settings.items() if k != "collaborative"}

    def _fit(self, x_ND: VectorRows, *, seed: int, on_epoch: OnEpoch | None) -> None:
        if self.config.collaborative is not None:
            raise ValueError("collaborative is set, but fit got no item vectors of a trained model: give it targets")
        self._train(x_ND, None, seed=seed, on_epoch=on_epoch)

    def _fit_aligned(self, x_ND: VectorRows, targets: ItemVectors, *, seed: int, on_epoch: OnEpoch | None) -> None:
        if self.config.collaborative is None:
            raise ValueError("fit got item vectors of a trained model, but collaborative is not set in the quantizer")
        if len(targets.vectors) != len(x_ND):
            raise ValueError(f"{len(x_ND)} rows, but {len(targets.vectors)} item vectors")
        self._train(x_ND, targets, seed=seed, on_epoch=on_epoch)

    def _train(self, x_ND: VectorRows, targets: ItemVectors | None, *, seed: int, on_epoch: OnEpoch | None) -> None:
        with thread_limit(torch.get_num_threads, torch.set_num_threads, self.config.threads):
            generator = torch.Generator().manual_seed(seed)
            held_out = train = StandardisedRows(x_ND, self.mean, self.scale)
            held_out_targets = targets
            count = int(self.config.held_out * len(train))
            if (count and len(train) >= MIN_HELD_OUT_ITEMS) or len(train) > MAX_HELD_OUT:
                rows = torch.randperm(len(train), generator=generator)
                held_out_rows, train_rows = rows[: count or len(rows)][:MAX_HELD_OUT], rows[count:]
                held_out, train = train.select(held_out_rows), train.select(train_rows)
                if targets is not None:
                    held_out_targets, targets = targets.select(held_out_rows), targets.select(train_rows)
            alignment = None
            if targets is not None and self.config.collaborative is not None:
                rows_of = (targets, held_out_targets or targets)
                alignment = Alignment(self.config.collaborative, *rows_of, self.config.latent, seed=seed)
            self.model = QuantizedAutoencoder(self._network(seed), bf16=_use_bf16(self.config.precision))
            self.model.network.init_components(train.tensor(slice(COMPONENT_ROWS)), self._order())
            training = Training(
                self.config,
                self.model,
                self.sizes,
                self._masks(),
                train,
                held_out.tensor(slice(None)),
                generator,
                on_epoch,
                alignment=alignment,
            )
            training.run()
            self.history = training.history

    def _encode(self, z_ND: Tensor) -> Tensor:
        return self.model.encode(z_ND)

    def _decode(self, codes_NL: Tensor) -> Tensor:
        return self.model.decode(codes_NL)

    def _level_distances(self, z_ND: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        return self.model.distances(z_ND, codes_NL, level)

    def tensors(self) -> dict[str, Tensor]:
        """Return mean and scale (D,), the codebooks (V, Z) of the levels and the weights of the network, by name."""
        assert self.model.codebooks is not None
        books = {f"book_{level}": book for level, book in enumerate(self.model.codebooks.books, 1)}
        return {"mean": self.mean, "scale": self.scale, **books, **self.model.network.state_dict()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore mean and scale (D,), the codebooks (V, Z) and the weights of the network, after sizes and width.

        Raises KeyError or RuntimeError for tensors that do not fit.
        """
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

    def _order(self) -> Tensor:
        """(Z,) latent dimension in which the first, second, … principal component starts: the levels take turns."""
        turns = chain.from_iterable(zip_longest(*self._dimensions()))
        return torch.tensor([*dict.fromkeys(dimension for dimension in turns if dimension is not None)])

    def _masks(self) -> Tensor:
        """(L, Z) 1 for the latent dimensions of a level, 0 elsewhere."""
        masks = torch.zeros(self.config.levels, self.config.latent)
        for mask, dimensions in zip(masks, self._dimensions(), strict=True):
            mask[dimensions] = 1
        return masks


class RQVAE(AutoencoderQuantizer):
    """Residual quantization of a learned latent: every level sees the whole latent."""

    type = "rqvae"

    def _dimensions(self) -> list[list[int]]:
        return [[*range(self.config.latent)]] * self.config.levels


class PQVAE(AutoencoderQuantizer):
    """Product quantization of a learned latent: every level sees its slice, cut as evenly as possible."""

    type = "pqvae"

    def _dimensions(self) -> list[list[int]]:
        return [part.tolist() for part in torch.arange(self.config.latent).tensor_split(self.config.levels)]


@dataclass
class Training:
    """Training of one quantizer; ``run`` leaves the state with the lowest held-out error in ``model``."""

    config: RQVAEConfig
    model: QuantizedAutoencoder
    sizes: tuple[int, ...]
    masks_LZ: Tensor
    train_ND: StandardisedRows
    held_out_ND: Tensor
    generator: torch.Generator
    on_epoch: OnEpoch | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    alignment: Alignment | None = None

    def __post_init__(self) -> None:
        conf = self.config
        self.batches = max(1, round(len(self.train_ND) / conf.batch))
        steps = min(max(conf.epochs * self.batches, conf.least_steps), conf.most_steps)
        self.epochs = math.ceil(steps / self.batches)
        self.steps = self.epochs * self.batches
        self.step = self.revived = 0
        weights = [*self.model.network.parameters()]
        weights += [] if self.alignment is None else [*self.alignment.parameters()]
        self.optimizer = torch.optim.AdamW(weights, conf.lr, weight_decay=conf.weight_decay, fused=True)
        self.distinct, self.group = map(torch.from_numpy, distinct_rows(self.train_ND))
        self.separated = torch.zeros(len(self.distinct), dtype=torch.bool)

    def run(self) -> None:
        """Warm up without codes, initialise codebooks by k-means, then train both until steps or patience end."""
        started, best = time.perf_counter(), BestState()
        evaluate_every = max(1, round(self.epochs / EVALUATIONS))
        reset_every = min(self.config.dead_codes.every, max(1, RESET_STEPS // self.batches))
        with progress(self.steps, "fit quantizer", at_most=True) as bar:
            for epoch in range(1, self.epochs + 1):
                warm = self.step >= self.config.warm_up * self.steps or epoch == self.epochs
                if self.model.codebooks is None and warm:
                    self.model.codebooks = LearnedCodebooks.from_kmeans(
                        self.model.latent(self._sample()), self.sizes, self.masks_LZ, generator=self.generator
                    )
                if self.alignment is not None and self.model.codebooks is not None:
                    self.alignment.cluster_codes(self.model.codebooks)
                row = {"epoch": epoch, **self._epoch(bar)}
                reset = epoch % reset_every == 0 and self.step <= self.config.dead_codes.until * self.steps
                if self.model.codebooks is not None and reset:
                    latent = self.model.latent(self._sample())
                    self.revived += self.model.codebooks.revive(latent, generator=self.generator)
                if epoch % evaluate_every and epoch < self.epochs:
                    continue
                if self.model.codebooks is not None:
                    error = self.model.reconstruction_error(self.held_out_ND)
                    row |= {"valid_reconstruction": error, "revived": self.revived}
                    if self.alignment is not None:
                        row["valid_alignment"] = self.alignment.held_out(self.model.quantized(self.held_out_ND))
                        error += self.alignment.config.alpha * row["valid_alignment"]
                    if self.step >= self.config.settle * self.steps:
                        best.update(self.model, error)
                row |= {"step": self.step, "seconds": round(time.perf_counter() - started, 3)}
                self.history.append(row)
                if self.on_epoch is not None:
                    self.on_epoch(row)
                if best.age >= self.config.patience:
                    log.info("stopped at step %d: no improvement in %d evaluations", self.step, best.age)
                    break
        best.restore(self.model)

    def _epoch(self, bar: Progress) -> dict[str, float]:
        """Mean losses over the steps, and the share of codes per level that any item chose."""
        size = len(self.train_ND) // self.batches  # equal batches; the remaining rows are left out of this epoch
        order = torch.randperm(len(self.train_ND), generator=self.generator)
        overrides, means, codes = self._separating_codes(), torch.zeros(2), []
        for rows in order[: size * self.batches].view(self.batches, size):
            x_BD, dropped_BD = self.train_ND.tensor(rows), None
            if self.config.dropout:
                dropped_BD = torch.rand(x_BD.shape, generator=self.generator) < self.config.dropout
            losses = self.model.losses(
                x_BD,
                dropped_BD=dropped_BD,
                sinkhorn_epsilons=self.config.sinkhorn,
                overrides=None if overrides is None else overrides[rows],
            )
            self._optimizer_step(losses, rows)
            bar.add(1, loss=losses.reconstruction.detach())
            means += torch.stack([losses.reconstruction, losses.commitment]).detach() / self.batches
            codes += [] if losses.codes is None else [losses.codes]
        reconstruction, commitment = means.tolist()
        row = {"loss": reconstruction + self.config.beta * commitment, "reconstruction": reconstruction}
        if codes:
            row["commitment"] = commitment
            for level, used in enumerate(torch.cat(codes).unbind(1), 1):
                row[f"usage_{level}"] = len(used.unique()) / self.sizes[level - 1]
        return row

    def _optimizer_step(self, losses: Losses, rows: Tensor) -> None:
        self.step += 1
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.step / self.steps)
        rate = max(MIN_RATE, min(1.0, self.step / WARMUP_STEPS) * cosine)
        self.optimizer.param_groups[0]["lr"] = self.config.lr * rate
        self.optimizer.zero_grad()
        loss = losses.reconstruction + self.config.beta * losses.commitment
        if self.alignment is not None:
            terms, weights = self.alignment.terms(rows, losses, self.model.codebooks), self.alignment.config
            loss = loss + weights.alpha * terms.info_nce + weights.beta * terms.diversity
        loss.backward()
        self.optimizer.step()
        if self.model.codebooks is not None and losses.codes is not None:
            self.model.codebooks.update(losses.latent, losses.codes, decay=self.config.decay)

    def _separating_codes(self) -> CodeOverrides | None:
        """Collision-free codes for all items that ever had to move: without that memory they drift back.

        Equal vectors share their codes.
        """
        weight = self.config.separate
        if self.model.codebooks is None or not weight or len(self.distinct) > MAX_SEPARABLE:
            return None
        if (overrides := self.model.separating_codes(self.train_ND.tensor(self.distinct), weight=weight)) is None:
            return None
        self.separated |= overrides.mask
        return replace(overrides, mask=self.separated)[self.group]

    def _sample(self) -> Tensor:
        if len(self.train_ND) <= SAMPLE:
            return self.train_ND.tensor(slice(None))
        return self.train_ND.tensor(torch.randperm(len(self.train_ND), generator=self.generator)[:SAMPLE])


def _use_bf16(precision: str) -> bool:
    """For auto whether the processor has AMX: with it bf16 is three times as fast, without it slower than fp32."""
    if precision != "auto":
        return precision == "bf16"
    capabilities: Callable[[], dict[str, object]] | None = getattr(torch.cpu, "get_capabilities", None)
    return bool(capabilities and capabilities().get("amx_bf16"))
