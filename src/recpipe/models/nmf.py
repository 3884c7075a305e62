"""NMF: non-negative matrix factorisation, fitted by scikit-learn.

Papers: Lee, Seung, Learning the Parts of Objects by Non-negative Matrix Factorization, Nature 401, 1999 (doi
10.1038/44565), by multiplicative updates; coordinate descent of Cichocki, Phan, Fast Local Algorithms for Large Scale
Nonnegative Matrix and Tensor Factorizations, IEICE 2009.

X ≈ W H with W, H ≥ 0 for the user × item matrix X, by coordinate descent on ½‖X − W H‖² with penalties. A user's row of
W is fitted to his history with H fixed, by the same descent in batches on the device (scikit-learn's ``transform``).
The score is w H.

Differences: X holds events, not ratings.

Shapes: B batch, I items, K factors.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_at_least, check_choices
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import history_values, pair_values, user_item_pairs
from recpipe.models.recommender import ClosedForm

SEED = 0  # of the initialisation, scikit-learn's nndsvda
SWEEPS = 20  # of the coordinate descent for a user: exact to about 1e-3


class NMF(ClosedForm):
    """Non-negative factorisation: represents a user as a mixture of ``factors`` parts of the catalogue."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the matrix and of its factorisation.

        ``scaling``: entry of X for c events of an item, 1 (binary) or ln(1 + c) (log); with weights of events, the
        largest of the pair or ln(1 + their sum). ``penalty``: scikit-learn's alpha_W = alpha_H, with the share
        ``l1_ratio`` of L1. ``iterations``: at most.
        """

        factors: int = 32
        scaling: str = "binary"
        penalty: float = 0.0
        l1_ratio: float = 0.0
        iterations: int = 200

        def __post_init__(self) -> None:
            check_choices(self, scaling=("binary", "log"))
            check_at_least(1, self, "factors", "iterations")
            check_at_least(0, self, "penalty", "l1_ratio")
            if self.l1_ratio > 1:
                raise ValueError(f"l1_ratio is {self.l1_ratio}; allowed: 0 to 1")

    takes_weights = True
    dense_queries = True
    config: Config
    parts: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("parts", torch.zeros(0, n_items + 1))  # H (K, I + 1)

    def fit(self, train: Sequences) -> None:
        """Fit the parts H (K, I + 1) to training events."""
        from scipy.sparse import csr_matrix
        from sklearn.decomposition import NMF as Factorisation
        from sklearn.exceptions import ConvergenceWarning

        pairs = user_item_pairs(train, self.n_items, torch.device("cpu"))
        coordinates = (pairs.user.numpy(), pairs.item.numpy() - 1)
        values = pair_values(pairs.count, pairs.weight, self.config.scaling)
        matrix = csr_matrix((values.numpy(), coordinates), (pairs.users, self.n_items))
        fitted = Factorisation(
            min(self.config.factors, *matrix.shape),
            init="nndsvda",
            random_state=SEED,
            max_iter=self.config.iterations,
            alpha_W=self.config.penalty,
            l1_ratio=self.config.l1_ratio,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `iterations` is a limit
            fitted.fit(matrix)
        self.parts = F.pad(torch.from_numpy(fitted.components_).float(), (1, 0)).to(self.device)

    def item_tables(self) -> dict[str, Tensor]:
        """Return the parts Hᵀ (I + 1, K) as the table ``input``."""
        return {"input": self.parts.T}

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return the mixtures (B, K) of histories."""
        return self.mixture(history_values(batch, self.n_items, self.config.scaling))

    def output_vectors(self) -> Tensor:
        """Return the parts Hᵀ (I + 1, K)."""
        return self.parts.T

    def mixture(self, x: Tensor) -> Tensor:
        """Return w ≥ 0 (B, K), fitted to the rows x (B, I + 1) by ``SWEEPS`` of coordinate descent.

        It minimises ½‖x − w H‖² + I · penalty · (l1_ratio · Σw + (1 − l1_ratio) / 2 · ‖w‖²).
        """
        penalty, l1_ratio = self.config.penalty * self.n_items, self.config.l1_ratio
        gram = self.parts @ self.parts.T + penalty * (1 - l1_ratio) * torch.eye(len(self.parts), device=x.device)
        target = x @ self.parts.T - penalty * l1_ratio  # (B, K)
        w = torch.zeros_like(target)
        nonzero_parts = torch.nonzero(gram.diagonal() > 0).flatten().tolist()
        for _ in range(SWEEPS):
            for k in nonzero_parts:
                w[:, k] = (w[:, k] + (target[:, k] - w @ gram[k]) / gram[k, k]).clamp(min=0)
        return w
