"""Non-negative matrix factorisation: Lee & Seung, Nature 401, 1999; fitted by scikit-learn.

X ≈ W H with W, H ≥ 0 for the user × item matrix X, by coordinate descent on ½‖X − W H‖² with penalties (Cichocki &
Phan, IEICE 2009). A user, known or new, gets the row of W that is best for the history with H held: the same descent,
a sweep at a time for all users of a batch (scikit-learn's ``transform`` without leaving the device). The score is w H.
B batch, I items, K factors.

Deviation: X holds events, not ratings.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import counts_of, pairs_of
from recpipe.models.recommender import Scorer

SEED = 0  # of the start, scikit-learn's nndsvda by a randomised SVD
SWEEPS = 20  # over the factors of a user: a convex problem, solved to about 1e-3 by then


class NMF(Scorer):
    """A user is a non-negative mixture of ``factors`` parts of the catalogue."""

    @dataclass(frozen=True)
    class Config:
        """``scaling``: an item of c events enters as 1 (binary) or ln(1 + c) (log).

        ``penalty`` is scikit-learn's alpha_W = alpha_H, of which the share ``l1_ratio`` is L1; ``iterations`` at most.
        """

        factors: int = 32
        scaling: str = "binary"
        penalty: float = 0.0
        l1_ratio: float = 0.0
        iterations: int = 200

        def __post_init__(self) -> None:
            if self.scaling not in ("binary", "log"):
                raise ValueError(f"nmf.scaling is {self.scaling!r}; allowed: binary, log")
            if self.factors < 1 or self.iterations < 1:
                raise ValueError(
                    f"nmf.factors is {self.factors}, iterations {self.iterations}; both must be >= 1"
                )
            if self.penalty < 0 or not 0 <= self.l1_ratio <= 1:
                raise ValueError(
                    f"nmf.penalty is {self.penalty}, l1_ratio {self.l1_ratio}; allowed: >= 0, and from 0 to 1"
                )

    closed_form = True
    probabilistic = False
    config: Config
    parts: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("parts", torch.zeros(0, n_items + 1))  # H (K, I + 1)

    def fit(self, train: Sequences) -> None:
        from scipy.sparse import csr_matrix
        from sklearn.decomposition import NMF as Factorisation
        from sklearn.exceptions import ConvergenceWarning

        pairs = pairs_of(train, self.n_items, torch.device("cpu"))
        values = self._scaled(pairs.count).numpy()
        matrix = csr_matrix(
            (values, (pairs.user.numpy(), pairs.item.numpy() - 1)), (pairs.users, self.n_items)
        )
        fitted = Factorisation(
            min(self.config.factors, *matrix.shape),
            init="nndsvda",
            random_state=SEED,
            max_iter=self.config.iterations,
            alpha_W=self.config.penalty,
            l1_ratio=self.config.l1_ratio,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # `iterations` is how long it may take
            fitted.fit(matrix)
        parts = torch.zeros(fitted.n_components_, self.n_items + 1)
        parts[:, 1:] = torch.from_numpy(fitted.components_)
        self.parts = parts.to(self.device)

    def item_tables(self) -> dict[str, Tensor]:
        return {"input": self.parts.T}

    def score(self, batch: Batch) -> Tensor:
        return self.mixture(self._scaled(counts_of(batch.items, self.n_items))) @ self.parts

    def mixture(self, x: Tensor) -> Tensor:
        """w ≥ 0 (B, K) that minimises ½‖x − w H‖² + I · penalty · (l1_ratio · Σw + (1 − l1_ratio) / 2 · ‖w‖²)."""
        l1, l2 = self._penalties()
        gram = self.parts @ self.parts.T + l2 * torch.eye(len(self.parts), device=x.device)
        wanted = x @ self.parts.T - l1  # (B, K)
        w = torch.zeros_like(wanted)
        usable = torch.nonzero(gram.diagonal() > 0).flatten().tolist()
        for _ in range(SWEEPS):
            for k in usable:
                w[:, k] = (w[:, k] + (wanted[:, k] - w @ gram[k]) / gram[k, k]).clamp(min=0)
        return w

    def _penalties(self) -> tuple[float, float]:
        whole = self.config.penalty * self.n_items
        return whole * self.config.l1_ratio, whole * (1 - self.config.l1_ratio)

    def _scaled(self, counts: Tensor) -> Tensor:
        return counts.log1p() if self.config.scaling == "log" else (counts > 0).float()
