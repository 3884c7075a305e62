"""PureSVD: Cremonesi, Koren, Turrin, Performance of Recommender Algorithms on Top-N Recommendation Tasks, RecSys 2010.

X ≈ P V' by a truncated SVD of the user × item matrix X with zeros for what is not there; a user, known or new, is
scored by x V V'. B batch, I items, K factors.

Deviations: X holds events, not ratings, weighted by ``scaling``; a user's factors always come from the history that
is asked about, so nothing is kept of training users.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import Pairs, counts_of, pairs_of
from recpipe.models.recommender import Scorer

SCALINGS = ("binary", "log", "tfidf", "popularity")
OVERSAMPLING, ITERATIONS, SEED = 16, 10, 0  # of the randomised SVD, which they make exact to about 1e-4


class SVD(Scorer):
    """The score of an item is its entry in the projection of the history on the first right singular vectors."""

    @dataclass(frozen=True)
    class Config:
        """``scaling`` says what an item of c events weighs in a row of X; n users of U have it.

        - binary: 1
        - log: ln(1 + c)
        - tfidf: (1 + ln c) · (1 + ln((1 + U) / (1 + n))), scikit-learn's smoothed form with sublinear counts
        - popularity: n^((exponent - 1) / 2), so that a column's norm is its binary norm to the power ``exponent``: 1 is
          binary, less weakens popular items (EigenRec's scaling: Nikolakopoulos et al., Inf. Sci. 2019)
        """

        factors: int = 64
        scaling: str = "popularity"
        exponent: float = 0.5

        def __post_init__(self) -> None:
            if self.scaling not in SCALINGS:
                raise ValueError(f"svd.scaling is {self.scaling!r}; allowed: {', '.join(SCALINGS)}")
            if self.factors < 1:
                raise ValueError(f"svd.factors is {self.factors}; it must be at least 1")

    closed_form = True
    probabilistic = False
    config: Config
    factors: Tensor
    weight: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("factors", torch.zeros(n_items + 1, 0))  # V (I + 1, K)
        self.register_buffer("weight", torch.ones(n_items + 1))  # of an item in any row of X

    def fit(self, train: Sequences) -> None:
        pairs = pairs_of(
            train, self.n_items, torch.device("cpu")
        )  # so that every device has the same factors
        weight = self._weights(pairs)
        matrix = pairs.matrix(self._counted(pairs.count) * weight[pairs.item])
        kept = min(self.config.factors, self.n_items, pairs.users)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            _, _, V = torch.svd_lowrank(matrix, q=min(kept + OVERSAMPLING, *matrix.shape), niter=ITERATIONS)
        self.weight, self.factors = weight.to(self.device), V[:, :kept].contiguous().to(self.device)

    def item_tables(self) -> dict[str, Tensor]:
        return {"input": self.factors}

    def score(self, batch: Batch) -> Tensor:
        counts = counts_of(batch.items, self.n_items)
        x = self._counted(counts) * self.weight
        return (x @ self.factors) @ self.factors.T

    def _counted(self, counts: Tensor) -> Tensor:
        """The part of an entry that depends on the number of its events; 0 for none."""
        if self.config.scaling == "log":
            return counts.log1p()
        if self.config.scaling == "tfidf":
            return torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0)
        return (counts > 0).float()

    def _weights(self, pairs: Pairs) -> Tensor:
        """The part of an entry that depends on its item, (I + 1,)."""
        owners = torch.bincount(pairs.item, minlength=pairs.width).float()
        if self.config.scaling == "tfidf":
            return 1 + ((1 + pairs.users) / (1 + owners)).log()
        if self.config.scaling == "popularity":
            return owners.clamp(min=1) ** ((self.config.exponent - 1) / 2)
        return torch.ones_like(owners)
