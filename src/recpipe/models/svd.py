"""PureSVD: truncated singular value decomposition of the user × item matrix.

Paper: Cremonesi, Koren, Turrin, Performance of Recommender Algorithms on Top-N Recommendation Tasks, RecSys 2010 (doi
10.1145/1864708.1864721).

X ≈ P V' by a truncated SVD of the user × item matrix X with zeros for missing entries; a user with row x is scored by x
V V'.

Differences: X holds events, not ratings, scaled by ``scaling``; every user is projected from his history, so that no
training users are stored.

Shapes: B batch, I items, K factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recpipe.config import check_at_least, check_choices
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import history_values, pair_values, user_item_pairs
from recpipe.models.recommender import ClosedForm

OVERSAMPLING, ITERATIONS, SEED = 16, 10, 0  # of the randomised SVD: exact to about 1e-4


class SVD(ClosedForm):
    """Truncated SVD: projects histories on the first right singular vectors."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the matrix and of its factors.

        ``scaling``: entry of X for c events of an item that n of U users have.

        - binary: 1
        - log: ln(1 + c)
        - tfidf: (1 + ln c) · (1 + ln((1 + U) / (1 + n))), scikit-learn's smoothed form with sublinear counts
        - popularity: n^((exponent - 1) / 2), EigenRec's scaling (Nikolakopoulos et al., Knowl. Inf. Syst. 2019): 1 is
          binary, less weakens popular items

        Where events have weights, c is their sum and w the largest weight of the pair: binary w, log ln(1 + c), tfidf w
        (1 + ln(c / w)) times the same factor, popularity w · n^((exponent - 1) / 2) with n = Σ w² over the users.
        """

        factors: int = 64
        scaling: str = "popularity"
        exponent: float = 0.5

        def __post_init__(self) -> None:
            check_choices(self, scaling=("binary", "log", "tfidf", "popularity"))
            check_at_least(1, self, "factors")

    takes_weights = True
    dense_queries = True
    config: Config
    factors: Tensor
    weight: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("factors", torch.zeros(n_items + 1, 0))  # V (I + 1, K)
        self.register_buffer("weight", torch.ones(n_items + 1))  # of items

    def fit(self, train: Sequences) -> None:
        """Fit the factors V (I + 1, K) and the weights of items (I + 1,) to training events."""
        # on the CPU, so that the factors do not depend on the device
        pairs = user_item_pairs(train, self.n_items, torch.device("cpu"))
        owners = torch.bincount(pairs.item, minlength=pairs.width).float()
        weight = torch.ones_like(owners)
        if self.config.scaling == "tfidf":
            weight = 1 + ((1 + pairs.users) / (1 + owners)).log()
        elif self.config.scaling == "popularity":
            squares = owners
            if pairs.weight is not None:
                squares = torch.zeros_like(owners).index_add_(0, pairs.item, pairs.weight.square())
            weight = torch.where(squares > 0, squares, 1) ** ((self.config.exponent - 1) / 2)
        matrix = pairs.matrix(pair_values(pairs.count, pairs.weight, self.config.scaling) * weight[pairs.item])
        factors = min(self.config.factors, self.n_items, pairs.users)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            _, _, V = torch.svd_lowrank(matrix, q=min(factors + OVERSAMPLING, *matrix.shape), niter=ITERATIONS)
        self.weight, self.factors = weight.to(self.device), V[:, :factors].contiguous().to(self.device)

    def item_tables(self) -> dict[str, Tensor]:
        """Return the factors V (I + 1, K) as the table ``input``."""
        return {"input": self.factors}

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return the projections (B, K) of histories."""
        x = history_values(batch, self.n_items, self.config.scaling) * self.weight
        return x @ self.factors

    def output_vectors(self) -> Tensor:
        """Return the factors V (I + 1, K)."""
        return self.factors
