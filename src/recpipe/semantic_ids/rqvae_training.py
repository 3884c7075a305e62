"""Trains a coded autoencoder: all items in memory, steps of one batch, the best state by held-out items is kept.

Shape letters: N items, D width, L levels.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from recpipe.progress import Progress, progress
from recpipe.semantic_ids.autoencoder import CodedAutoencoder, Forced, Losses, VAEConfig
from recpipe.semantic_ids.codebooks import LearnedCodebooks
from recpipe.semantic_ids.quantizer import OnEpoch, distinct_rows

log = logging.getLogger(__name__)

LOOKS = 50  # at the held-out items, about
WARM_RATE = 20  # steps until the learning rate is at its highest
LEAST_RATE = 0.02  # of the highest
SAMPLE = 65_536  # rows that k-means and the reset of dead codes look at
RESET_LEAST = 200  # steps: where epochs are long, codes are reset once in so many, or once an epoch
SEPARABLE = 100_000  # items; of more, that each epoch looks for free codes for all would cost too much


@dataclass
class Training:
    """One fit; ``run`` leaves in ``coded`` the state that reconstructs held-out items best."""

    config: VAEConfig
    coded: CodedAutoencoder
    sizes: tuple[int, ...]
    masks_LZ: Tensor
    train_ND: Tensor  # standardised
    held_out_ND: Tensor
    generator: torch.Generator
    on_epoch: OnEpoch | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batches = max(1, round(len(self.train_ND) / self.config.batch))
        wanted = self.config.epochs * self.batches
        self.epochs = math.ceil(
            min(max(wanted, self.config.least_steps), self.config.most_steps) / self.batches
        )
        self.steps = self.epochs * self.batches
        self.step = self.revived = 0
        self.optimizer = torch.optim.AdamW(
            self.coded.network.parameters(), self.config.lr, weight_decay=self.config.weight_decay, fused=True
        )
        self.first, self.same = map(torch.from_numpy, distinct_rows(self.train_ND.numpy()))
        self.moved = torch.zeros(len(self.first), dtype=torch.bool)

    def run(self) -> None:
        """A warm-up without codes, k-means, then both together until the steps are used up or nothing improves."""
        with progress(self.steps, "fit quantizer", at_most=True) as bar:
            self._epochs(bar)

    def _epochs(self, bar: Progress) -> None:
        started, best, patience = time.perf_counter(), _Best(), self.config.patience
        look_every = max(1, round(self.epochs / LOOKS))
        for epoch in range(1, self.epochs + 1):
            warm = self.step >= self.config.warm_up * self.steps or epoch == self.epochs
            if self.coded.books is None and warm:
                self._start_codes()
            row = {"epoch": epoch, **self._epoch(bar)}
            self._revive(epoch)
            if epoch % look_every and epoch < self.epochs:
                continue
            if self.coded.books is not None:
                error = self.coded.reconstruction(self.held_out_ND)
                row |= {"valid_reconstruction": error, "revived": self.revived}
                if self.step >= self.config.settle * self.steps:
                    best.take(self.coded, error)
            self._tell({**row, "step": self.step, "seconds": round(time.perf_counter() - started, 3)})
            if best.waited >= patience:
                log.info(
                    "held-out items were not better for %d looks: stopped at step %d", patience, self.step
                )
                break
        best.restore(self.coded)

    def _start_codes(self) -> None:
        latent = self.coded.latent(self._sample())
        self.coded.books = LearnedCodebooks.start(latent, self.sizes, self.masks_LZ, generator=self.generator)

    def _epoch(self, bar: Progress) -> dict[str, float]:
        """Losses are means over the steps, usage is the share of codes that any item chose."""
        size = len(self.train_ND) // self.batches  # all of one shape; the few left over come another time
        order = torch.randperm(len(self.train_ND), generator=self.generator)
        forced, losses, chosen = self._separated(), torch.zeros(2), []
        for rows in order[: size * self.batches].view(self.batches, size):
            found = self.coded.losses(
                self.train_ND[rows],
                hidden_BD=self._hidden(rows),
                sinkhorn_epsilons=self.config.sinkhorn,
                forced=None if forced is None else forced[rows],
            )
            self._step(found)
            bar.add(1, loss=found.reconstruction.detach())
            losses += torch.stack([found.reconstruction, found.commitment]).detach() / self.batches
            chosen += [] if found.codes is None else [found.codes]
        reconstruction, commitment = losses.tolist()
        row = {"loss": reconstruction + self.config.beta * commitment, "reconstruction": reconstruction}
        if chosen:
            row |= {"commitment": commitment, **_usage(torch.cat(chosen), self.sizes)}
        return row

    def _step(self, found: Losses) -> None:
        self.step += 1
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.step / self.steps)
        rate = max(LEAST_RATE, min(1.0, self.step / WARM_RATE) * cosine)
        self.optimizer.param_groups[0]["lr"] = self.config.lr * rate
        self.optimizer.zero_grad()
        (found.reconstruction + self.config.beta * found.commitment).backward()
        self.optimizer.step()
        if self.coded.books is not None and found.codes is not None:
            self.coded.books.follow(found.latent, found.codes, decay=self.config.decay)

    def _separated(self) -> Forced | None:
        """Codes with which no two items collide, to be learned by all that ever had to move: without that memory
        they drift back. Equal vectors, which nothing can tell apart, go together.
        """
        if self.coded.books is None or not self.config.separate or len(self.first) > SEPARABLE:
            return None
        found = self.coded.separated(self.train_ND[self.first], weight=self.config.separate)
        if found is None:
            return None
        self.moved |= found.moved
        return replace(found, moved=self.moved)[self.same]

    def _hidden(self, rows: Tensor) -> Tensor | None:
        if not self.config.dropout:
            return None
        return torch.rand(len(rows), self.train_ND.shape[1], generator=self.generator) < self.config.dropout

    def _revive(self, epoch: int) -> None:
        dead = self.config.dead_codes
        every = min(dead.every, max(1, RESET_LEAST // self.batches))
        if self.coded.books is None or epoch % every or self.step > dead.until * self.steps:
            return
        self.revived += self.coded.books.revive(self.coded.latent(self._sample()), generator=self.generator)

    def _sample(self) -> Tensor:
        if len(self.train_ND) <= SAMPLE:
            return self.train_ND
        return self.train_ND[torch.randperm(len(self.train_ND), generator=self.generator)[:SAMPLE]]

    def _tell(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.on_epoch is not None:
            self.on_epoch(row)


@dataclass
class _Best:
    """The state with the least error, and how many looks ago it was."""

    error: float = math.inf
    waited: int = 0
    state: tuple[dict[str, Tensor], LearnedCodebooks] | None = None

    def take(self, coded: CodedAutoencoder, error: float) -> None:
        self.waited += 1
        if error < self.error:
            assert coded.books is not None
            self.error, self.waited = error, 0
            self.state = (copy.deepcopy(coded.network.state_dict()), coded.books.copy())

    def restore(self, coded: CodedAutoencoder) -> None:
        if self.state is None:
            raise ValueError("the quantizer diverged: no finite reconstruction error; lower lr")
        coded.network.load_state_dict(self.state[0])
        coded.books = self.state[1]


def _usage(codes_NL: Tensor, sizes: tuple[int, ...]) -> dict[str, float]:
    """usage_1 .. usage_L"""
    used = [len(codes.unique()) / size for codes, size in zip(codes_NL.unbind(1), sizes, strict=True)]
    return {f"usage_{level}": share for level, share in enumerate(used, 1)}
