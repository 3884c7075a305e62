"""HSTU against its equations in loops, and its use of time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences, train_until

from recpipe.config import Configuration, read_parameters
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.models.hstu import HSTU
from recpipe.models.registry import build

ITEMS, N = 13, 9
MODES = ("none", "last_item", "query")


def build_model(**config) -> HSTU:
    """A small model in float64 with random weights."""
    torch.manual_seed(0)
    sizes = {"dim": 6, "layers": 2, "heads": 2, "qk_dim": 4, "v_dim": 3, **config}
    model = build("hstu", sizes, n_items=ITEMS, max_length=N).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    return model.eval()


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def by_hand(model: HSTU, items: list[int], times: list[int], query_times: list[int]) -> np.ndarray:
    """Hidden states (T, D) of one sequence; ``query_times``: time of the query at each position."""
    c, T = model.config, len(items)
    w = {name: value.numpy() for name, value in model.state_dict().items()}
    x = [
        w["items.weight"][i] * math.sqrt(c.dim) + (w["positions.weight"][t] if c.positions else 0)
        for t, i in enumerate(items)
    ]
    for layer in range(c.layers):
        mine = {key.removeprefix(f"layers.{layer}."): value for key, value in w.items()}
        projected = [silu(mine["uvqk.weight"] @ normalised(row)) for row in x]
        wide, narrow = c.heads * c.v_dim, c.heads * c.qk_dim
        parts = [np.split(row, [wide, 2 * wide, 2 * wide + narrow]) for row in projected]
        out = []
        for t in range(T):
            mixed = np.zeros((c.heads, c.v_dim))
            for h in range(c.heads):
                v_cut, k_cut = (slice(h * width, (h + 1) * width) for width in (c.v_dim, c.qk_dim))
                for s in range(t + 1):
                    score = parts[t][2][k_cut] @ parts[s][3][k_cut]
                    if c.position_bias:
                        score += mine["by_lag"][t - s]
                    if c.time_mode != "none":
                        query = times[t] if c.time_mode == "last_item" else query_times[t]
                        gap = max(1, abs(query - times[s]))
                        score += mine["by_bucket"][min(int(math.log(gap) / 0.301), 128)]
                    mixed[h] += silu(score) / N * parts[s][1][v_cut]
            gated = parts[t][0] * normalised(mixed.reshape(-1))
            out.append(mine["out.weight"] @ gated + mine["out.bias"] + x[t])
        x = out
    return np.array(x)


def irregular(rows: int = 5, seed: int = 0) -> tuple[Batch, list[list[int]]]:
    """Sequences of several lengths whose gaps go from none to years, and the query time of each position."""
    rng = np.random.default_rng(seed)
    data = random_sequences(rows, ITEMS, longest=N, seed=seed)
    gaps = np.exp(rng.uniform(0, 18, len(data.items))).astype(np.int64) * (rng.random(len(data.items)) < 0.8)
    data = replace(data, timestamps=np.cumsum(gaps) + 10**9)
    moments = data.timestamps[data.offsets[1:] - 1] + np.exp(rng.uniform(0, 18, rows)).astype(np.int64)
    data = replace(data, query_times=moments)
    query_times = [
        [*data.timestamps[a + 1 : b].tolist(), int(moment)]
        for a, b, moment in zip(data.offsets[:-1], data.offsets[1:], moments, strict=True)
    ]
    return DeviceSequences(data, window=N, device="cpu").batch(np.arange(rows)), query_times


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_hidden_states_are_those_of_the_equations(mode, biases):
    model = build_model(time_mode=mode, positions=biases, position_bias=biases)
    batch, query_times = irregular()
    actual = model.hidden(batch).detach().numpy()
    for b, n in enumerate(batch.lengths.tolist()):
        items, times = batch.items[b, :n].tolist(), batch.timestamps[b, :n].tolist()
        np.testing.assert_allclose(actual[b, :n], by_hand(model, items, times, query_times[b]), rtol=1e-9, atol=1e-9)


def test_scores_are_cosines_over_the_temperature_where_asked_and_products_else():
    batch, query_times = irregular()
    for normalise in (True, False):
        model = build_model(normalise=normalise, temperature=0.2)
        scores, table = model.score(batch).detach().numpy(), model.items.weight.detach().numpy()
        for b, n in enumerate(batch.lengths.tolist()):
            items, times = batch.items[b, :n].tolist(), batch.timestamps[b, :n].tolist()
            h = by_hand(model, items, times, query_times[b])[-1]
            for i in range(1, ITEMS + 1):
                size = np.linalg.norm(h) * np.linalg.norm(table[i]) * 0.2 if normalise else 1.0
                assert scores[b, i] == pytest.approx(h @ table[i] / size, abs=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_training_asks_at_every_place_what_recommending_asks_at_the_last(mode):
    """Training predicts event t + 1 from the hidden state of a history that ends at t, with that query time."""
    model, (batch, _) = build_model(time_mode=mode), irregular(rows=1)
    inputs, targets = batch.inputs_and_targets()
    trained = model.hidden(inputs)[0]
    for t in range(int((targets > 0).sum())):
        moment = batch.timestamps[0, t + 1]
        history = sequences([batch.items[0, : t + 1].tolist()])
        history = replace(history, timestamps=batch.timestamps[0, : t + 1].numpy(), query_times=np.array([int(moment)]))
        alone = DeviceSequences(history, window=N, device="cpu").batch(np.array([0]))
        torch.testing.assert_close(model.hidden(alone)[0, -1], trained[t])


@pytest.mark.parametrize(("mode", "follows"), [("none", ""), ("last_item", "past"), ("query", "past asked")])
def test_each_mode_follows_the_times_that_it_may_and_no_other(mode, follows):
    model, (batch, _) = build_model(time_mode=mode), irregular()
    before = model.score(batch)
    last = torch.arange(batch.items.shape[1]) == batch.lengths[:, None] - 1
    changes = {
        "past": replace(batch, timestamps=batch.timestamps - 10**8 * (batch.mask & ~last)),
        "asked": replace(batch, query_times=batch.query_times + 10**9 * last),
    }
    for name, changed in changes.items():
        differs = (model.score(changed) - before).abs().amax(1)
        assert (differs > 1e-6).all() if name in follows else (differs == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_in_training_a_later_event_and_its_time_reach_no_earlier_place(mode):
    model, (batch, _) = build_model(time_mode=mode), irregular()
    later = torch.arange(batch.items.shape[1]) >= 2
    changed = replace(
        batch,
        items=torch.where(later & batch.mask, batch.items % ITEMS + 1, batch.items),
        timestamps=batch.timestamps + 10**9 * (later & batch.mask),
    )
    one, two = (model.hidden(each.inputs_and_targets()[0]) for each in (batch, changed))
    seen = 1 if mode == "query" else 2  # the query at place 1 knows when the event at place 2 happens
    torch.testing.assert_close(one[:, :seen], two[:, :seen], rtol=0, atol=0)
    assert ((one[:, 1] - two[:, 1]).abs().amax() > 1e-6) == (mode == "query")


@pytest.mark.parametrize("mode", MODES)
def test_packed_sequences_are_as_alone(mode):
    model, (batch, _) = build_model(time_mode=mode), irregular(rows=2, seed=3)
    a, b = batch.lengths.tolist()
    joined = {
        name: torch.cat([getattr(batch, name)[0, :a], getattr(batch, name)[1, :b]])[None]
        for name in ("items", "timestamps", "query_times")
    }
    packed = replace(
        batch,
        **joined,
        lengths=torch.tensor([a + b]),
        segments=torch.tensor([[1] * a + [2] * b]),
        segment_positions=torch.tensor([[*range(a), *range(b)]]),
    )
    big = build("hstu", vars(model.config), n_items=ITEMS, max_length=2 * N).double().eval()
    for name, weight in model.state_dict().items():
        weights = big.state_dict()[name]
        weights[: len(weight)] = weight
    for layer in big.layers:
        layer.max_length = N
    alone, together = model.hidden(batch), big.hidden(packed)[0]
    torch.testing.assert_close(together[:a], alone[0, :a])
    torch.testing.assert_close(together[a:], alone[1, :b])


@pytest.mark.parametrize("mode", MODES)
def test_every_weight_learns_and_the_loss_falls_with_cosines(mode):
    torch.manual_seed(0)
    sizes = {"dim": 16, "qk_dim": 16, "v_dim": 16, "dropout": 0.0, "normalise": True, "time_mode": mode}
    model = build("hstu", sizes, n_items=25, max_length=10)
    batch = DeviceSequences(random_sequences(16, 25, longest=11), window=11, device="cpu").batch(np.arange(16))
    losses = train_until(model, batch, lambda loss: loss < 1, rate=1e-2, at_most=200)
    assert losses[0] > 4 and losses[-1] < 1
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_times_that_are_missing_are_named():
    untimed, timed = sequences([[1, 2, 3]], times=False), sequences([[1, 2, 3]])
    for mode in ("last_item", "query"):
        with pytest.raises(ValueError, match=f"time_mode is {mode} and these histories have no timestamps"):
            build_model(time_mode=mode).recommend(untimed, 3)
    with pytest.raises(ValueError, match=r"no query times.* protocol.time=query"):
        build_model(time_mode="query").recommend(timed, 3)
    model = build_model(time_mode="query").float()
    assert (model.recommend(replace(timed, query_times=np.array([900])), 3)[0] > 0).all()


def test_an_empty_history_can_be_asked_about_at_any_time():
    model, data = build_model(time_mode="query").float(), sequences([[], [1, 2]])
    for chosen in (data, data.select(np.array([0]), np.array([0]), np.array([0]))):
        items, scores = model.recommend(replace(chosen, query_times=np.full(len(chosen), 900)), 3)
        assert (items[0] > 0).all() and np.isfinite(scores[0]).all()


def test_untied_items_are_scored_by_output_weights_of_their_own():
    batch, query_times = irregular()
    model = build_model(tied=False)
    scores, output = model.score(batch).detach().numpy(), model.output_items.detach().numpy()
    for b, n in enumerate(batch.lengths.tolist()):
        items, times = batch.items[b, :n].tolist(), batch.timestamps[b, :n].tolist()
        np.testing.assert_allclose(scores[b], output @ by_hand(model, items, times, query_times[b])[-1], atol=1e-9)
    assert torch.equal(model.item_vectors(), model.item_tables()["output"])
    model.train().loss(batch, lambda hidden, table, *_: (hidden @ table.T).square().mean()).backward()
    assert model.output_items.grad.abs().sum() > 0 and model.items.weight.grad.abs().sum() > 0


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="time_mode is 'now'; allowed: none, last_item, query"):
        HSTU.Config(time_mode="now")
    with pytest.raises(ValueError, match="temperature is 0"):
        HSTU.Config(temperature=0)


@pytest.mark.parametrize(("name", "time"), [("hstu", "none"), ("hstu_last_item", "last_item"), ("hstu_query", "query")])
def test_variants_need_their_time_on_every_data_set(name, time, project):
    files = read_parameters(project / "conf", "base")
    for dataset in files["datasets"]:
        run = Configuration(files, {"dataset": dataset}).run(name)
        assert build(run.type, run.settings, n_items=30, max_length=10).requires_time == time
