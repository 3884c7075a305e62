"""Losses: values and gradients equal plain formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recpipe.training.losses import full_softmax, loss_names, make_loss
from recpipe.training.losses.amince import tail_of
from recpipe.training.losses.full_softmax import FullSoftmax
from recpipe.training.losses.negatives import NegativeSampler

ITEMS, N, D = 30, 64, 8
COUNTS = torch.cat([torch.zeros(1), torch.arange(1.0, ITEMS + 1)])


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that operations return."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def batch(seed: int = 0, items: int = ITEMS, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, dtype=torch.float64, generator=generator).mul_(scale).requires_grad_()
    table = torch.randn(items + 1, D, dtype=torch.float64, generator=generator, requires_grad=True)
    return hidden, table, torch.randint(1, items + 1, (N,), generator=generator)


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-11, abs=1e-13)
    pairs = zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * theirs, inputs), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-13)


def sample(loss, targets: Tensor, items: int = ITEMS, seed: int = 5) -> list[list[int]]:
    """The negatives that the loss samples after this seed, a list per target."""
    torch.manual_seed(seed)
    negatives, _ = loss.negatives(targets, items, shared=loss.shared)
    return negatives.expand(len(targets), -1).tolist()


def seeded(loss, *arguments: Tensor, seed: int = 5) -> Tensor:
    torch.manual_seed(seed)
    return loss(*arguments)


def sampled_softmax(s: Tensor, negatives: list[float], options: dict) -> Tensor:
    others = [n.exp() for n in negatives]
    return -(s.exp() / (s.exp() + sum(others))).log()


def bce(s: Tensor, negatives: list[Tensor], options: dict) -> Tensor:
    terms = [-torch.sigmoid(s).log(), *(-(1 - torch.sigmoid(n)).log() for n in negatives)]
    return sum(terms) / len(terms)


def gbce(s: Tensor, negatives: list[Tensor], options: dict) -> Tensor:
    """By the paper's eq. for the loss: the positive's sigmoid to the power of beta, in the open."""
    alpha = options["k"] / (ITEMS - 1)
    beta = alpha * (options["t"] * (1 - 1 / alpha) + 1 / alpha)
    terms = [-(torch.sigmoid(s) ** beta).log(), *(-(1 - torch.sigmoid(n)).log() for n in negatives)]
    return sum(terms) / len(terms)


def focal(s: Tensor, negatives: list[Tensor], options: dict) -> Tensor:
    p, a, g = torch.sigmoid(s), options.get("alpha"), options["gamma"]
    yes, no = (1, 1) if a is None else (a, 1 - a)
    terms = [-yes * (1 - p) ** g * p.log()]
    terms += [-no * torch.sigmoid(n) ** g * (1 - torch.sigmoid(n)).log() for n in negatives]
    return sum(terms) / len(terms)


def bpr(s: Tensor, negatives: list[Tensor], options: dict) -> Tensor:
    return sum((-torch.sigmoid(s - n).log() for n in negatives), s * 0) / max(len(negatives), 1)


FORMULAS = {"sampled_softmax": sampled_softmax, "bce": bce, "gbce": gbce, "focal": focal, "bpr": bpr}
SOURCES = [{"uniform": 7}, {"popularity": 7}, {"in_batch": 7}, {"uniform": 5, "in_batch": 6, "popularity": 4}]
CASES = [
    ("sampled_softmax", {}),
    ("sampled_softmax", {"temperature": 0.3}),
    ("bce", {}),
    ("gbce", {"t": 0.75}),
    ("gbce", {"t": 1.0}),
    ("gbce", {"t": 0.0}),
    ("focal", {"gamma": 2.0}),
    ("focal", {"gamma": 1.5, "alpha": 0.25}),
    ("bpr", {}),
]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sources", SOURCES)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_losses_with_negatives_equal_their_formulas(name, options, sources, shared):
    hidden, table, targets = batch()
    loss = make_loss({"name": name, "negatives": sources, "shared": shared, **options}, COUNTS)
    negatives = sample(loss, targets)
    k = len(negatives[0])
    assert k == sum(sources.values())
    assert any(y in row for y, row in zip(targets.tolist(), negatives, strict=True))  # collisions happen
    rows = []
    for h, y, row in zip(hidden, targets.tolist(), negatives, strict=True):
        scale = options.get("temperature", 1.0)
        scores = [h @ table[j] / scale for j in row if j != y]
        rows.append(FORMULAS[name](h @ table[y] / scale, scores, {"k": k, **options}))
    same(seeded(loss, hidden, table, targets), torch.stack(rows).mean(), hidden, table)


@pytest.mark.parametrize("shared", [True, False])
def test_log_q_takes_the_log_of_the_expected_count_from_every_negative(shared):
    hidden, table, targets = batch()
    sources = {"uniform": 9, "popularity": 5, "in_batch": 6}
    loss = make_loss(
        {"name": "sampled_softmax", "negatives": sources, "log_q": True, "power": 0.75, "shared": shared}, COUNTS
    )
    smooth, plain = COUNTS.double() ** 0.75, COUNTS.double()
    expected = 9 / ITEMS + 5 * smooth / smooth.sum() + 6 * plain / plain.sum()
    rows = []
    for h, y, row in zip(hidden, targets.tolist(), sample(loss, targets), strict=True):
        others = sum((h @ table[j]).exp() / expected[j] for j in row if j != y)
        rows.append(-((h @ table[y]).exp() / ((h @ table[y]).exp() + others)).log())
    same(seeded(loss, hidden, table, targets), torch.stack(rows).mean(), hidden, table)


@pytest.mark.parametrize("shared", [True, False])
def test_sampled_softmax_of_all_items_is_the_full_softmax(shared):
    hidden, table, targets = batch()
    loss = make_loss({"name": "sampled_softmax", "negatives": {"uniform": ITEMS}, "log_q": True, "shared": shared})
    theirs = F.cross_entropy(hidden @ table[1:].T, targets - 1)
    same(loss(hidden, table, targets), theirs, hidden, table)


@pytest.mark.parametrize(
    "sources", [{"popularity": 20}, {"uniform": 2, "popularity": 10}, {"in_batch": 6, "popularity": 20}]
)
def test_the_gradient_with_log_q_goes_to_that_of_the_full_softmax(sources):
    """Ten times the negatives, nearer; without the correction, popular negatives stay far from it."""
    hidden, table, _ = batch(scale=0.3)
    generator = torch.Generator().manual_seed(1)
    targets = torch.multinomial(COUNTS, N, True, generator=generator)
    exact = torch.autograd.grad(F.cross_entropy(hidden @ table[1:].T, targets - 1), table)[0]

    def distance(times: int, log_q: bool) -> float:
        torch.manual_seed(0)
        negatives = {source: times * n for source, n in sources.items()}
        loss = make_loss({"name": "sampled_softmax", "negatives": negatives, "log_q": log_q}, COUNTS)
        mean = sum(torch.autograd.grad(loss(hidden, table, targets), table)[0] for _ in range(50))
        return float((mean / 50 - exact).norm() / exact.norm())

    corrected, plain = distance(10, True), distance(10, False)
    assert corrected < 0.1
    assert distance(1, True) > 1.25 * corrected and plain > 2.5 * corrected


@pytest.mark.parametrize("shared", [True, False])
def test_negatives_are_sampled_as_often_as_expected(shared):
    torch.manual_seed(0)
    negatives = NegativeSampler(
        {"uniform": 6, "popularity": 9, "in_batch": 5}, item_counts=COUNTS, power=0.5, with_expected=True
    )
    draws = 4000 if shared else 80
    seen, expected = torch.zeros(ITEMS + 1), torch.zeros(ITEMS + 1, dtype=torch.float64)
    for _ in range(draws):
        items, counts = negatives(torch.multinomial(COUNTS, 50, True), ITEMS, shared=shared)
        seen += torch.bincount(items.flatten(), minlength=ITEMS + 1) / (draws if shared else 50 * draws)
        expected[items] = counts
    assert seen[0] == 0 and (expected[1:] > 0).all()
    torch.testing.assert_close(seen.double(), expected, rtol=0.15, atol=0.0)


def test_items_without_a_count_are_never_popularity_negatives():
    counts = torch.tensor([9.0, 0, 3, 0, 1, 0])  # the count of the padding is ignored
    items, _ = NegativeSampler({"popularity": 500}, item_counts=counts)(torch.tensor([1]), 5, shared=True)
    assert set(items.tolist()) == {2, 4}


NEGATIVE = {"negatives": {"uniform": 4}}
ALL = {
    "full_softmax": {},
    "sampled_softmax": NEGATIVE,
    "bce": NEGATIVE,
    "gbce": NEGATIVE,
    "focal": NEGATIVE,
    "bpr": NEGATIVE,
    "infonce": {},
    "amince": {"dropout": 0.5, "tail": 10},
}


def default_loss(name: str):
    return make_loss({"name": name, **ALL[name]}, COUNTS)


def test_every_loss_is_tested():
    assert set(ALL) == set(loss_names())


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_the_values(name):
    hidden, table, targets = batch(scale=0.5)
    loss = default_loss(name)
    assert torch.autograd.gradcheck(lambda h, w: seeded(loss, h, w, targets[:9]), (hidden[:9], table))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [1e3, 1e-3])
def test_large_scores_stay_finite(name, scale):
    hidden, table, targets = batch(scale=scale)
    hidden, table = (x.detach().float().requires_grad_() for x in (hidden, table))
    loss = seeded(default_loss(name), hidden, table, targets)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(hidden.grad).all() and torch.isfinite(table.grad).all()
    assert table.grad[0].abs().sum() == 0
    assert loss >= 0


@pytest.mark.parametrize("name", ALL)
def test_a_catalogue_of_one_item(name):
    hidden, table, targets = batch(items=1)
    loss = make_loss({"name": name, **ALL[name]}, torch.tensor([0.0, 3.0]))(hidden, table, targets)
    gradients = torch.autograd.grad(loss, (hidden, table), allow_unused=True)
    assert torch.isfinite(loss) and all(g is None or torch.isfinite(g).all() for g in gradients)
    if name not in ("bce", "gbce", "focal"):  # these still say yes to the target
        assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_and_bf16_is_close(name):
    hidden, table, targets = batch(scale=0.3)
    hidden, table = hidden.detach().float().requires_grad_(), table.detach().float().requires_grad_()
    loss = default_loss(name)
    assert seeded(loss, hidden, table, targets) == seeded(loss, hidden, table, targets)
    exact = torch.autograd.grad(seeded(loss, hidden, table, targets), (hidden, table))
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.autograd.grad(seeded(loss, hidden, table, targets), (hidden, table))
    for mine, other in zip(rough, exact, strict=True):
        assert mine.dtype == torch.float32 and ((mine - other).norm() / other.norm()) < 0.03


@pytest.mark.parametrize("name", ALL)
def test_gradient_steps_lift_the_targets(name):
    torch.manual_seed(0)
    hidden, table, targets = torch.randn(N, 16), torch.zeros(ITEMS + 1, 16), torch.randint(1, ITEMS, (N,))
    hidden, table = hidden.requires_grad_(), (table + 0.02 * torch.randn(ITEMS + 1, 16)).requires_grad_()
    optimiser = torch.optim.Adam([hidden, table], 0.05)
    loss = default_loss(name)
    for _ in range(150):
        optimiser.zero_grad()
        loss(hidden, table, targets).backward()
        optimiser.step()
    best = (hidden @ table[1:].T).argmax(1) + 1
    assert (best == targets).float().mean() > 0.9


def test_infonce_is_a_softmax_over_the_other_targets_of_the_batch():
    hidden, table, targets = batch()
    loss = make_loss({"name": "infonce", "candidates": 1000, "temperature": 0.5})
    rows = []
    for h, y in zip(hidden, targets.tolist(), strict=True):
        scores = [h @ table[y] / 0.5, *(h @ table[j] / 0.5 for j in targets.tolist() if j != y)]
        rows.append(-F.log_softmax(torch.stack(scores), 0)[0])
    same(loss(hidden, table, targets), torch.stack(rows).mean(), hidden, table)


def amince_by_hand(
    hidden, table, targets, *, tail, views, tail_views, temperature=1.0, context=(), per_target=False
) -> Tensor:
    """No dropout: a view is its item's vector. Sums over all places of the batch, as in the paper."""
    rows = []
    for h, y in zip(hidden, targets.tolist(), strict=True):
        above = below = torch.zeros((), dtype=h.dtype)
        for j in [*targets.tolist(), *context]:
            n_views = views + tail_views * (j in tail and j in targets.tolist())
            e = n_views * (h @ table[j] / temperature).exp()
            above, below = above + e * (j == y), below + e
        rows.append(-(above / below).log())
    return torch.stack(rows) if per_target else torch.stack(rows).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_amince_over_the_whole_batch_equals_its_formula(temperature):
    hidden, table, targets = batch()
    options = {"views": 3, "tail_views": 2, "temperature": temperature}
    loss = make_loss({"name": "amince", "tail": 12, "dropout": 0.0, "candidates": 1000, **options}, COUNTS)
    theirs = amince_by_hand(hidden, table, targets, tail=set(range(1, 13)), **options)
    same(loss(hidden, table, targets), theirs, hidden, table)
    first_events = [*range(1, ITEMS + 1, 3), int(targets[0])]
    theirs = amince_by_hand(hidden, table, targets, tail=set(range(1, 13)), context=first_events, **options)
    same(loss(hidden, table, targets, context=torch.tensor(first_events)), theirs, hidden, table)


def test_the_second_stage_of_amince_is_the_formula_over_the_tail_with_all_places_as_candidates():
    hidden, table, targets = batch()
    targets[: N // 2] = torch.arange(N // 2) % 5 + 1  # as many tail targets as others: no random choice among these
    targets[N // 2 :] = 6 + torch.arange(N - N // 2) % (ITEMS - 5)
    options = {"views": 3, "tail_views": 2}
    loss = make_loss({"name": "amince", "tail": 5, "dropout": 0.0, "candidates": 1000, **options}, COUNTS)
    loss.begin_second_stage()
    theirs = amince_by_hand(hidden, table, targets, tail=set(range(1, 6)), context=[1, 7, 9], **options)
    same(loss(hidden, table, targets, context=torch.tensor([1, 7, 9])), theirs, hidden, table)
    fewer = targets.clone()
    fewer[3 : N // 2] = 8  # three tail targets, the others are drawn
    ours = loss(hidden, table, fewer)
    loss.tail_only = False
    used = torch.autograd.grad(ours, hidden, retain_graph=True)[0].abs().sum(1) > 0
    rows = amince_by_hand(hidden, table, fewer, tail=set(range(1, 6)), per_target=True, **options)
    assert used.sum() == 6 and used[:3].all()
    same(ours, rows[used].mean(), hidden, table)


def test_amince_favours_the_tail_and_its_views_differ():
    hidden, table, targets = batch()
    flat, lifted = (
        make_loss({"name": "amince", "tail": 12, "dropout": 0.0, "candidates": 1000, "tail_views": n}, COUNTS)
        for n in (0, 6)
    )
    tail = targets <= 12
    gain = (
        torch.autograd.grad(flat(hidden, table, targets), hidden)[0]
        - torch.autograd.grad(lifted(hidden, table, targets), hidden)[0]
    )
    assert gain[tail].norm() > 0 and gain[~tail].norm() > 0
    loss = default_loss("amince")
    one, other = seeded(loss, hidden, table, targets), seeded(loss, hidden, table, targets, seed=6)
    assert one != other
    loss.eval()
    loss.candidates = 1000
    assert loss(hidden, table, targets).item() == pytest.approx(loss(hidden, table, targets).item(), rel=1e-12)


def test_the_second_stage_is_over_the_tail_and_as_many_others():
    hidden, table, targets = batch()
    loss = make_loss({"name": "amince", "tail": 5, "second_stage_after": 2}, COUNTS)
    loss.begin_second_stage()
    gradient = torch.autograd.grad(loss(hidden, table, targets), hidden)[0]
    has_gradient = gradient.abs().sum(1) > 0
    tail = targets <= 5
    assert 0 < tail.sum() < N / 2
    assert has_gradient[tail].all() and has_gradient.sum() == 2 * tail.sum()
    no_tail = torch.full_like(targets, 20)
    assert torch.autograd.grad(loss(hidden, table, no_tail), hidden)[0].abs().sum() == 0


def test_the_tail_by_count_and_by_share():
    counts = torch.tensor([0, 5, 1, 9, 3, 7])
    assert tail_of(counts, 5).tolist() == [False, True, True, False, True, False]
    assert tail_of(counts, 0.4).tolist() == [False, False, True, False, True, False]
    assert tail_of(counts, 1.0).tolist() == [False] + [True] * 5


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_full_softmax_and_its_gradients_equal_torch(chunk):
    hidden, table, targets = batch(chunk)
    theirs = F.cross_entropy(hidden @ table[1:].T, targets - 1)
    same(FullSoftmax(chunk)(hidden, table, targets), theirs, hidden, table)


@pytest.mark.parametrize("logits", [1, ITEMS + 1, 5 * ITEMS])
def test_chunks_of_large_catalogues_are_smaller_and_exact(logits, monkeypatch):
    monkeypatch.setattr(full_softmax, "MAX_LOGITS", logits)
    hidden, table, targets = batch(logits)
    theirs = F.cross_entropy(hidden @ table[1:].T, targets - 1)
    with LargestTensor() as largest:
        ours = FullSoftmax(512)(hidden, table, targets)
    same(ours, theirs, hidden, table)
    assert largest.elements <= max(logits, table.numel(), hidden.numel())


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_softmax_over_trained_items_equals_torch_over_these(chunk):
    hidden, table, targets = batch(chunk)
    trained = torch.zeros(ITEMS + 1, dtype=torch.bool)
    trained[targets.unique()[::2]] = True
    rows = trained[targets]
    items = trained.nonzero()[:, 0]
    positions = (targets[rows, None] == items).long().argmax(1)
    theirs = F.cross_entropy(hidden[rows] @ table[items].T, positions)
    loss = make_loss({"name": "full_softmax", "chunk": chunk, "items": "trained"}, trained_items=trained)
    same(loss(hidden[rows], table, targets[rows]), theirs, hidden, table)
    assert not torch.autograd.grad(loss(hidden[rows], table, targets[rows]), table)[0][~trained].any()


def test_a_softmax_over_codes_cannot_leave_out_items():
    loss = FullSoftmax(items="trained", trained_items=torch.tensor([False, True, True]))
    with pytest.raises(ValueError, match="leaves out items, and this softmax is over 4 codes"):
        loss(torch.ones(1, 2), torch.zeros(5, 2), torch.tensor([1]))


def test_large_logits_of_the_full_softmax_are_exact():
    hidden = torch.tensor([[200.0], [-200.0]])
    table = torch.tensor([[0.0], [1.0], [-1.0]])
    assert FullSoftmax()(hidden, table, torch.tensor([2, 2])).item() == pytest.approx((400 + 0) / 2)


def test_padding_gets_no_probability():
    loss = FullSoftmax()(torch.ones(1, 2), torch.zeros(4, 2), torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "softmax"}, "unknown loss 'softmax'"),
        ({"name": "full_softmax", "chunks": 3}, "train.loss"),
        ({"name": "full_softmax", "chunk": 0}, "loss.chunk is 0"),
        ({"name": "full_softmax", "items": "warm"}, "loss.items is 'warm'; allowed: all, trained"),
        ({"name": "full_softmax", "items": "trained"}, "needs the mask"),
        ({"name": "bce"}, "negatives"),
        ({"name": "bce", "negatives": {"random": 3}}, r"unknown negatives \['random'\]"),
        ({"name": "bce", "negatives": {"uniform": 0}}, "at least 1"),
        ({"name": "bce", "negatives": {}}, "at least 1"),
        ({"name": "bce", "negatives": {"popularity": 2}}, "how often items are training targets"),
        ({"name": "sampled_softmax", "negatives": {"in_batch": 2}, "log_q": True}, "how often items"),
        ({"name": "sampled_softmax", "negatives": {"in_batch": 2}, "temperature": 0}, "temperature is 0"),
        ({"name": "gbce", "negatives": {"uniform": 2}, "t": 1.5}, "t is 1.5"),
        ({"name": "focal", "negatives": {"uniform": 2}, "alpha": 1.5}, "alpha 1.5"),
        ({"name": "amince"}, "how often items are training targets"),
        ({"name": "amince", "views": 0}, "views is 0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loss(settings)


@pytest.mark.parametrize("name", ALL)
def test_a_batch_without_a_target_is_refused(name):
    with pytest.raises(ValueError, match="without a target"):
        default_loss(name)(torch.ones(0, 2), torch.ones(3, 2), torch.ones(0, dtype=torch.long))


@pytest.mark.parametrize("name", ALL)
def test_a_weight_multiplies_the_term_of_its_target(name):
    hidden, table, targets = batch(scale=0.5)
    loss, weights = default_loss(name), torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for factors, row in ((torch.ones(N, dtype=torch.float64), None), (weights, weights)):
        terms = [seeded(loss, hidden, table, targets, one) for one in torch.eye(N, dtype=torch.float64)]
        expected = sum(factor * term for factor, term in zip(factors, terms, strict=True))
        same(seeded(loss, hidden, table, targets, row), expected, hidden, table)


@pytest.mark.parametrize("chunk", [512, 5])
def test_a_whole_weight_is_a_target_that_occurs_as_often(chunk):
    hidden, table, targets = batch()
    times = torch.arange(N) % 4
    scores = (hidden @ table[1:].T).repeat_interleave(times, 0)
    expected = F.cross_entropy(scores, targets.repeat_interleave(times) - 1, reduction="sum")
    weights = times / times.double().mean()
    same(FullSoftmax(chunk)(hidden, table, targets, weights), expected / times.sum(), hidden, table)
