"""SETRec against loops, plain numpy and what must not depend on what."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import catalogue, random_sequences, sequences, side_of, train_until
from torch.nn import functional as F

from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.sequences import Sequences
from recpipe.layers import set_items
from recpipe.layers.set_items import COLLABORATIVE, SetItems
from recpipe.layers.side import Scale, Side, SideConfig
from recpipe.models.registry import build
from recpipe.models.setrec import SETRec, between_items, prefixes
from recpipe.training import fit
from recpipe.training.losses.full_softmax import FullSoftmax

ITEMS, WINDOW = 25, 10
DATA = random_sequences(60, ITEMS, longest=16, seed=1)
SMALL = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 2, "decoder_layers": 2}
SMALL |= {"tokens": 3, "widths": (12, 8), "dropout": 0.0}
BOTH = "text+collaborative"
HALF_TRAINED = np.arange(ITEMS) % 4 != 1


def side(vectors: str, **changed: tuple[np.ndarray, np.ndarray]) -> Side:
    columns, vectors_by_name = catalogue(ITEMS)
    return Side.of(SideConfig(vectors=vectors), DATA, columns, {**vectors_by_name, **changed}, n_items=ITEMS)


def create(vectors: str = BOTH, *, seed: int = 0, accelerate: bool = True, **config) -> SETRec:
    """With weights that are not all tiny; items of HALF_TRAINED alone have collaborative vectors."""
    torch.manual_seed(seed)
    collaborative = catalogue(ITEMS)[1][COLLABORATIVE][0] * HALF_TRAINED[:, None]
    info = side(vectors, collaborative=(collaborative, HALF_TRAINED))
    settings = {**SMALL, **config}
    model = build("setrec", settings, n_items=ITEMS, max_length=WINDOW, side=info, accelerate=accelerate)
    assert isinstance(model, SETRec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def batch_of(rows: list[list[int]]) -> Batch:
    return DeviceSequences(sequences(rows), window=WINDOW + 1, device="cpu").batch(np.arange(len(rows)))


def scores(model: SETRec, data: Sequences = DATA) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole


@pytest.mark.parametrize("causal", [True, False])
def test_tokens_look_at_themselves_and_at_other_items(causal):
    owners = [0, 1, 1, 1, 2, 2, 2]
    mask = between_items(torch.tensor(owners), causal=causal)
    for q, mine in enumerate(owners):
        for k, other in enumerate(owners):
            assert mask[q, k] == (q == k or (other < mine if causal else other != mine))


@pytest.mark.parametrize("one_pass", [True, False])
def test_nothing_flows_between_tokens_of_an_item(one_pass):
    encoder = create(one_pass=one_pass, layers=1).encoder
    owners = torch.tensor([0, 1, 1, 1, 2, 2, 2])
    x = torch.randn(1, len(owners), SMALL["dim"], requires_grad=True)
    encoded = encoder(x, attention=between_items(owners, causal=one_pass), positions=owners)
    for token in range(1, len(owners)):
        (flow,) = torch.autograd.grad(encoded[0, token].square().sum(), x, retain_graph=True)
        reached = flow[0].abs().amax(1) > 0
        mine, other = owners == owners[token], (owners < owners[token]) | ~torch.tensor(one_pass)
        assert reached[token] and not (reached & mine).sum() > 1
        assert (reached[~mine] == other[~mine]).all()


def test_queries_do_not_see_each_other():
    model, batch = create(), batch_of([[1, 2, 3], [4]])
    places, tokens = batch.lengths[:, None], model.items.tokens()
    before = model.hidden(batch.items, places, tokens)
    with torch.no_grad():
        model.queries.queries[1] += 1.0
    after = model.hidden(batch.items, places, tokens)
    others = torch.tensor([m for m in range(model.items.count) if m != 1])
    torch.testing.assert_close(before[:, :, others], after[:, :, others], rtol=0, atol=0)
    assert (before[:, :, 1] - after[:, :, 1]).abs().amax() > 1e-3


@pytest.mark.parametrize("one_pass", [True, False])
def test_the_order_of_semantic_tokens_does_not_matter(one_pass):
    model = create(one_pass=one_pass)
    before = scores(model)
    order = torch.tensor([2, 0, 1])
    last = model.items.auto_encoder.encoder[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.view(3, -1, last.in_features)[order].flatten(0, 1))
        last.bias.copy_(last.bias.view(3, -1)[order].flatten())
        for tensor in (model.items.missing, model.queries.queries):
            tensor[1:] = tensor[1:][order]
    np.testing.assert_allclose(scores(model), before, rtol=1e-4, atol=1e-4)


def test_the_order_of_items_does_matter():
    one, other = scores(create(), sequences([[1, 2, 3], [3, 2, 1]]))
    assert np.abs(one[1:] - other[1:]).max() > 1e-2


@pytest.mark.parametrize("sample", [None, 10**6])
def test_the_auto_encoder_is_a_network_and_its_mirror(sample):
    info = side("text+image", image=(catalogue(ITEMS)[1]["image"][0], np.arange(ITEMS) % 3 == 0))
    torch.manual_seed(0)
    items = SetItems(ITEMS, 16, info, tokens=3, widths=(12, 8))
    tokens = items.tokens()

    def network(x: np.ndarray, layers: torch.nn.Sequential) -> np.ndarray:
        linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
        for n, layer in enumerate(linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            x = np.maximum(x, 0) if n < len(linear) - 1 else x
        return x

    squares, count = 0.0, 0
    raw = {name: info.values[f"vectors.{name}"] for name in ("text", "image")}
    tables = {name: Scale.of(table).apply(table) for name, table in raw.items()}
    for i in range(1, ITEMS + 1):
        there = {name: table[i, -1] > 0 for name, table in tables.items()}
        x = np.concatenate([table[i, :-1] for table in tables.values()])
        latent = network(x, items.auto_encoder.encoder)
        expected = latent.reshape(3, 16) if any(there.values()) else items.missing.detach().numpy()
        np.testing.assert_allclose(tokens[i].detach().numpy(), expected, rtol=1e-4, atol=1e-6)
        error = (network(latent * 4.0, items.auto_encoder.decoder) - x) ** 2  # the root of 16
        for part, name in zip(np.split(error, [6]), tables, strict=True):
            if there[name] and any(there.values()):
                squares, count = squares + part.sum(), count + len(part)
    assert items.reconstruction(tokens, sample).item() == pytest.approx(squares / count, rel=1e-4)
    assert (tokens[0] == 0).all()


def test_tokens_are_computed_once_a_step_and_anew_after_it():
    items = create().items
    first = items.step_tokens()
    assert items.step_tokens() is first
    (first.square().sum() + items.step_tokens().sum()).backward()
    whole = items.missing.grad.clone()
    again = items.step_tokens()
    assert again is not first
    items.zero_grad()
    (again.square().sum() + items.tokens().sum()).backward()
    torch.testing.assert_close(items.missing.grad, whole)
    stale = items.step_tokens()
    with torch.no_grad():
        items.missing += 1.0
    assert (items.step_tokens() - stale).abs().max() > 0.5
    with torch.no_grad():
        assert not items.step_tokens().requires_grad


def test_tokens_of_large_catalogues_are_computed_in_blocks(monkeypatch):
    """The same tokens, gradients and scores, and no layer of the whole catalogue."""
    rows = []
    expected, actual = create(seed=1), create(seed=1)
    for model, at_once in ((expected, 1 << 27), (actual, 7 * 12)):
        monkeypatch.setattr(set_items, "HIDDEN_AT_ONCE", at_once)
        encoder = model.items.auto_encoder.encoder
        encoder.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
        scored, before = scores(model), len(rows)
        model.train()
        torch.manual_seed(0)
        model.loss(batch_of([DATA.row(user).tolist() for user in range(5)]), FullSoftmax(512)).backward()
        model.scored, model.calls = scored, rows[before:]
    widest = max(actual.items.auto_encoder.widest, 1)
    assert max(expected.calls) == ITEMS + 1 and max(actual.calls) <= 7 * 12 // widest
    np.testing.assert_allclose(actual.scored, expected.scored, rtol=1e-5, atol=1e-6)
    for (name, mine), (_, other) in zip(actual.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def a_step(model: SETRec) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 0.1)
    model.train().loss(batch_of([DATA.row(0)[:7].tolist()]), FullSoftmax()).backward()
    optimiser.step()
    model.eval()


def through_half(model: SETRec) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def behind_the_back(model: SETRec) -> None:
    model.items.auto_encoder.encoder[0].weight.data.mul_(-1.0)  # leaves no trace in the version


def in_inference(model: SETRec) -> None:
    with torch.inference_mode():
        model.items.missing.mul_(-3.0)
        model.items.collaborative.project.weight.mul_(-1.0)


def other_vectors(model: SETRec) -> None:
    model.items.vectors.mul_(-1.0)


CHANGES = {
    "optimiser": a_step,
    "load_state_dict": lambda model: model.load_state_dict(create(seed=1).state_dict()),
    "assign": lambda model: model.load_state_dict(create(seed=1).state_dict(), assign=True),
    "to": lambda model: model.to(torch.float64),
    "through bfloat16": through_half,
    "data": behind_the_back,
    "inference": in_inference,
    "vectors": other_vectors,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_scores_are_of_the_weights_as_they_are(change):
    model = create()
    before = scores(model)
    change(model)
    after = scores(model)
    other = create().to(model.start.dtype)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(after, scores(other))
    assert (after[:, 1:] != before[:, 1:]).mean() > 0.1


def test_tokens_are_cached_while_weights_stay():
    model, calls = create(), []
    model.items.auto_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = scores(model)
    model.recommend(DATA, 3)
    np.testing.assert_array_equal(scores(model), first)
    assert len(calls) == 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.items.tokens() is model.items.tokens()
    assert len(calls) == 2  # in another precision they are others
    assert model.items.tokens().requires_grad and model.items.tokens() is not model.items.tokens()
    np.testing.assert_array_equal(scores(copy.deepcopy(model)), first)
    model.train()
    assert model.items.cache.entry is None


def test_scores_are_the_same_without_a_cache():
    clear = create(accelerate=False)
    assert clear.items.cache is None
    np.testing.assert_allclose(scores(clear), scores(create()), rtol=1e-5, atol=1e-5)


def test_vectors_without_a_version_counter_are_not_cached():
    with torch.inference_mode():
        model = create()
        before = scores(model)
        other_vectors(model)
    assert (scores(model) != before).any()


def test_prefixes_are_every_target_with_what_came_before():
    rows = [[5, 6, 7, 8], [9, 10], [11]]
    inputs, all_targets = replace(batch_of(rows), context=torch.tensor([2, 1, 1])).inputs_and_targets()
    items, lengths, targets = prefixes(inputs.items, all_targets)
    expected = [([5, 6], 7), ([5, 6, 7], 8), ([9], 10)]
    assert [(row[:n].tolist(), t) for row, n, t in zip(items, lengths, targets.tolist(), strict=True)] == expected
    assert all((row[n:] == 0).all() for row, n in zip(items, lengths, strict=True))


@pytest.mark.parametrize("one_pass", [True, False])
def test_loss_is_that_of_every_prefix_by_itself(one_pass):
    model = create(one_pass=one_pass, alpha=0.3)
    rows = [DATA.row(u)[:7].tolist() for u in range(6)]
    tokens, parts = model.items.tokens(), []
    for row in rows:
        for t in range(1, len(row)):
            batch = batch_of([row[:t]])
            hidden = model.hidden(batch.items, batch.lengths[:, None], tokens)[0, 0]
            for m in range(model.items.count):
                logits = tokens[1:, m] @ hidden[m]
                parts.append(F.cross_entropy(logits, torch.tensor(row[t] - 1)))
    expected = torch.stack(parts).mean() + 0.3 * model.items.reconstruction(tokens)
    torch.testing.assert_close(model.loss(batch_of(rows), FullSoftmax()), expected, rtol=1e-4, atol=1e-4)


def test_in_one_pass_the_future_does_not_reach_the_past():
    model = create()
    items = torch.randint(1, ITEMS + 1, (4, WINDOW), generator=torch.Generator().manual_seed(0))
    changed = items.clone()
    changed[:, 6:] = changed[:, 6:] % ITEMS + 1
    places, tokens = torch.arange(1, WINDOW + 1), model.items.tokens()
    before, after = (model.hidden(each, places, tokens) for each in (items, changed))
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax((1, 2, 3)).min() > 1e-3


def test_scores_are_log_probabilities_weighed_by_beta():
    model, batch = create(), batch_of([DATA.row(u)[:8].tolist() for u in range(5)])
    collaborative, semantic = model.parts(batch)
    described = model.items.has_content()
    assert collaborative is not None
    assert (model.items.has_collaborative()[1:].numpy() == HALF_TRAINED).all()
    torch.testing.assert_close(collaborative[:, 1:].exp().sum(1), torch.ones(5))
    for beta in (0.0, 0.3, 1.0):
        model.beta.fill_(beta)
        mixed = model.score(batch)
        for i in range(1, ITEMS + 1):
            weight = {(True, False): 0.0, (False, True): 1.0}.get((bool(HALF_TRAINED[i - 1]), bool(described[i])), beta)
            expected = (1 - weight) * collaborative[:, i] + weight * semantic[:, i]
            torch.testing.assert_close(mixed[:, i], expected)


def test_without_a_trained_model_there_are_semantic_scores_alone():
    model, batch = create("text"), batch_of([[1, 2, 3], [4]])
    collaborative, semantic = model.parts(batch)
    assert collaborative is None and model.items.count == 3
    torch.testing.assert_close(model.score(batch), semantic)
    assert model.tune(lambda: 1.0) == {}


def test_a_cold_item_is_recommended_where_one_of_equal_text_is():
    """The last item has no event and no collaborative vector, and the text of item 3."""
    rows = [[i for i in DATA.row(u).tolist() if i < ITEMS] for u in range(len(DATA))]
    data = sequences(rows)
    text, collaborative = (vectors.copy() for vectors, _ in (catalogue(ITEMS)[1][n] for n in ("plot", COLLABORATIVE)))
    text[ITEMS - 1] = text[2]
    warm = np.arange(ITEMS) < ITEMS - 1
    info = side("plot+collaborative", plot=(text, np.ones(ITEMS, bool)), collaborative=(collaborative, warm))
    torch.manual_seed(0)
    config = {**SMALL, "dim": 32, "layers": 1, "decoder_layers": 1}
    model = build("setrec", config, n_items=ITEMS, max_length=WINDOW, side=info)
    batch = model.on_device(data, window=WINDOW + 1).batch(np.arange(len(data)))

    def learned(_loss: float) -> bool:
        best, _ = model.recommend(sequences([[21, 22, 23, 24, 1, 2], [7, 8, 9, 10]]), 2, exclude_seen=False)
        return best[0].tolist() == [3, ITEMS] and best[1, 0] == 11 and ITEMS not in best[1]

    train_until(model, batch, learned, rate=3e-3, every=20)
    assert learned(0.0)


@pytest.mark.parametrize("one_pass", [True, False])
def test_a_history_without_items_gets_scores_too(one_pass):
    model = create(one_pass=one_pass)
    values = scores(model, sequences([[], [0, 0], [0], [1, 2]]))
    assert np.isfinite(values[:, 1:]).all()
    np.testing.assert_allclose(values[0], scores(model, sequences([[]]))[0], rtol=1e-5)
    with_unknown = scores(model, sequences([[1, 0, 2]]))
    assert np.abs(with_unknown[:, 1:] - values[3, 1:]).max() > 1e-4  # the place of an unknown item stays empty


def test_beta_is_that_of_the_best_validation_and_is_saved():
    model = create(betas=[0.0, 0.25, 0.75, 1.0])
    assert model.tune(lambda: -abs(model.beta.item() - 0.8)) == {"beta": 0.75}
    other = create(seed=1, betas=[0.0, 0.25, 0.75, 1.0])
    other.load_tensors(model.state_dict())
    np.testing.assert_array_equal(scores(other), scores(model))
    assert other.beta.item() == 0.75


@pytest.mark.parametrize("train_on_validation", [False, True])
def test_training_ends_with_the_choice_of_beta(train_on_validation, tmp_path):
    betas = []

    def validate(model: SETRec) -> dict[str, float]:
        betas.append(round(model.beta.item(), 2))
        return {"valid_ndcg@10": 1.0 - abs(betas[-1] - 0.2)}

    settings = fit.TrainSettings(max_epochs=1, train_on_validation=train_on_validation, loggers=[], device="cpu")
    done = fit.train(create, DATA, validate, settings, seed=1, folder=tmp_path, steps_from=DATA)
    if train_on_validation:
        assert betas == [] and "tuned_beta" not in done.cost
    else:
        assert betas == [0.5, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        assert (done.cost["tuned_beta"], done.cost["tuned_valid_ndcg@10"]) == (0.2, 1.0)
        assert done.model.beta.item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("vectors", "config", "message"),
    [
        (COLLABORATIVE, {}, r"vectors: text"),
        ("text", {"beta": 1.5}, r"beta is 1\.5"),
        ("text", {"betas": [0.5, -1.0]}, r"beta is -1\.0"),
        ("text", {"tokens": 0}, "tokens is 0"),
        ("text", {"widths": []}, "widths"),
        ("text", {"alpha": -1.0}, "alpha is -1"),
        ("text", {"layers": 0}, "layers is 0"),
    ],
)
def test_what_cannot_be_is_refused(vectors, config, message):
    with pytest.raises(ValueError, match=message):
        create(vectors, **config)


def test_other_side_information_is_refused():
    info = side_of(DATA, ITEMS, vectors="text", items="price")
    with pytest.raises(ValueError, match="item vectors only"):
        build("setrec", {}, n_items=ITEMS, max_length=WINDOW, side=info)
