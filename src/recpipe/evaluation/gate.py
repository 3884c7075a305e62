"""Gate of an adaptive ensemble: the weights of a user's members, from what is known before the target.

A softmax over the members, linear in features of the history and of the members' lists. It starts from fixed weights,
which a user with mean features gets, and maximises the probability of the validation target among the best items of the
members, of users whose target is one of these, with an L2 penalty. Ding et al. 2026 (arXiv 2603.19809) combine a model
of item ids with a generative one by an indicator of memorisation; this gate learns the weights of several features, for
any members. Mixtures of experts with a gate: Jacobs et al. 1991.
Shapes: B, U users, F features, M members, C items of a user's set, I items, K places of a list.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Names
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recpipe.data.sequences import Sequences, count_items
from recpipe.data.transitions import Transitions, last_items
from recpipe.layers.top_k import top_k

PLACES = 10  # of the members' lists that features read
LARGEST = 5.0  # standard deviations of a feature: what no validation user has is not extrapolated
SMALLEST_SHARE = 0.02  # of a member in the fixed weights that a gate starts from
STEPS = 50  # of L-BFGS


@dataclass(frozen=True)
class FeatureReader:
    """Features of users that are known before the target, from the training set and the members' lists."""

    transitions: Transitions
    train_events: np.ndarray  # (I + 1,)
    members: tuple[str, ...]

    @classmethod
    def of(cls, train: Sequences, n_items: int, members: Names[str]) -> FeatureReader:
        """Read transitions and popularity from the training set of the split."""
        return cls(Transitions.of(train), count_items(train.items, n_items), tuple(members))

    @property
    def names(self) -> list[str]:
        """Names of the features, in the order of the columns."""
        of_history = ["history length", "popularity of the last item", "successors of the last item"]
        of_members = [
            f"{what} in the list of {member}" for what in ("seen transitions", "entropy") for member in self.members
        ]
        return [*of_history, "agreement of the lists", *of_members]

    def __call__(self, histories: Sequences, scores_MBI: Names[Tensor]) -> Tensor:
        """Compute the features (B, F) float64 of users with ``histories`` and the ``scores`` (B, I + 1) of members.

        Scores are -inf for items that a user must not get. Of lists shorter than K places, the places there are count.
        """
        last = last_items(histories)
        lists = [top_k(scores, PLACES) for scores in scores_MBI]
        items = [each.cpu().numpy() for each, _ in lists]
        counts = np.stack([histories.lengths, self.train_events[last], self.transitions.successors(last)], axis=1)
        seen = [self.transitions.contains(np.broadcast_to(last[:, None], each.shape), each) for each in items]
        sizes = [np.maximum((each > 0).sum(1), 1) for each in items]
        shares = [mask.sum(1) / size for mask, size in zip(seen, sizes, strict=True)]
        pairs = [_overlap(a, b) for a, b in itertools.combinations(items, 2)]
        columns = [
            *np.log1p(counts).T,
            np.mean(pairs, axis=0),
            *shares,
            *map(_entropy, scores_MBI, (values for _, values in lists)),
        ]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float64))


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of places (B,) of two lists (B, K) whose item is in both."""
    return np.asarray(((a[:, :, None] == b[:, None, :]) & (a > 0)[:, :, None]).any(2).mean(1))


def _entropy(scores_BI: Tensor, best_BK: Tensor) -> np.ndarray:
    """Entropy (B,) in nats of the softmax of a list's scores, a measure of how unsure a member is.

    Scores are in standard deviations over all items that the member may recommend, as members have scales of their own.
    """
    finite = scores_BI > -torch.inf
    count = finite.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(finite, scores_BI, 0).sum(1, keepdim=True) / count
    deviation = (torch.where(finite, scores_BI - mean, 0).square().sum(1, keepdim=True) / count).sqrt()
    standardised = (best_BK - mean) / torch.where(deviation > 0, deviation, 1)
    probability = standardised.double().softmax(1).nan_to_num(0)  # NaN for an empty list
    return torch.special.entr(probability).sum(1).cpu().numpy()


class Gate(nn.Module):
    """Weights of members as a softmax that is linear in standardised features; constant features have no influence."""

    base: Tensor
    mean: Tensor
    precision: Tensor
    coefficients: Tensor

    def __init__(self, base: Tensor, features: Tensor) -> None:
        """Take the fixed weights ``base`` (M,) and the features (U, F) to standardise by; coefficients are 0."""
        super().__init__()
        share = base.double().clamp(min=SMALLEST_SHARE)
        deviation = features.std(0, correction=0)
        is_constant = deviation <= 1e-9 * features.abs().amax(0).clamp(min=1)
        self.register_buffer("base", share.log())
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("precision", torch.where(is_constant, 0, 1 / deviation))  # inverse standard deviation
        self.register_buffer("coefficients", torch.zeros(features.shape[1], len(base), dtype=torch.float64))

    def standardise(self, features: Tensor) -> Tensor:
        """Return the features (B, F) in standard deviations from the mean of the users of the constructor."""
        return ((features.to(self.mean) - self.mean) * self.precision).clamp(-LARGEST, LARGEST)

    def forward(self, features: Tensor) -> Tensor:
        """Return the weights (B, M) of the members for users with ``features`` (B, F); they sum to 1."""
        return (self.base + self.standardise(features) @ self.coefficients).softmax(1)


@dataclass(frozen=True)
class ItemSets:
    """The target and the best items of every member, of some users: what a gate learns from."""

    features: Tensor  # (U, F)
    parts: Tensor  # (U, M, C), normalised scores of the members, the target first
    is_item: Tensor  # (U, C), False for places without an item of their own

    def select(self, rows: Tensor) -> ItemSets:
        """Select the users ``rows`` (n,)."""
        return ItemSets(self.features[rows], self.parts[rows], self.is_item[rows])

    def __len__(self) -> int:
        return len(self.features)


def fit_gate(sets: ItemSets, base: Tensor, *, l2: float, is_probability: bool) -> Gate:
    """Fit a gate to the targets of ``sets``, deterministically; ``base`` (M,) are the fixed weights.

    Minimises the mean of −log softmax of the target's score among its set, plus ``l2`` times the squared coefficients.
    The score is the weighted sum of the parts, or its logarithm where these are probabilities, times a learned scale.
    """
    gate = Gate(base, sets.features)
    x, parts = gate.standardise(sets.features), sets.parts.double()
    coefficients = torch.zeros_like(gate.coefficients, requires_grad=True)
    log_scale = _first_scale(gate, sets, is_probability).requires_grad_()
    optimiser = torch.optim.LBFGS([coefficients, log_scale], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        weights = (gate.base + x @ coefficients).softmax(1)
        scores = _scores(weights, parts, is_probability) * log_scale.exp()
        target = scores.masked_fill(~sets.is_item, -torch.inf).log_softmax(1)[:, 0]
        value = l2 * coefficients.square().sum() - target.mean()
        value.backward()
        return value

    optimiser.step(loss)
    gate.coefficients.copy_(coefficients.detach())
    return gate


def _scores(weights_BM: Tensor, parts_BMC: Tensor, is_probability: bool) -> Tensor:
    scores = torch.einsum("bm,bmc->bc", weights_BM, parts_BMC)
    return scores.clamp(min=torch.finfo(torch.float32).tiny).log() if is_probability else scores


def _first_scale(gate: Gate, sets: ItemSets, is_probability: bool) -> Tensor:
    """Logarithm of the scale at the start: 0 for probabilities, else that of scores with standard deviation 1."""
    if is_probability:
        return torch.zeros((), dtype=torch.float64)
    weights = gate.base.softmax(0).expand(len(sets), -1)
    deviation = _scores(weights, sets.parts.double(), False)[sets.is_item].std()
    return torch.where(deviation > 0, -deviation.log(), 0.0).nan_to_num(0).detach()
