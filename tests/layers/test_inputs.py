"""Input layer: embeddings against loops, time codes against datetime, gradients."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from tests.synthetic import FULL, described, random_sequences, side_of

from recpipe.data.batches import Batch, DeviceSequences
from recpipe.layers.inputs import ItemInput, time_codes
from recpipe.layers.side import Scale

ITEMS, DIM, WINDOW = 12, 8, 9
DATA = described(random_sequences(70, ITEMS))


def build_input(extra: int = 0, **settings) -> ItemInput:
    torch.manual_seed(0)
    items = ItemInput(ITEMS, DIM, side_of(DATA, ITEMS, **settings), extra=extra)
    with torch.no_grad():
        for weight in items.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
        if len(items.weight) > ITEMS:
            items.weight[0] = 0.0
    return items


def batch_of(items: ItemInput, rows: np.ndarray) -> Batch:
    held = DeviceSequences(DATA, window=WINDOW, device="cpu", features=items.side.encode(DATA))
    return held.batch(rows)


def part_by_loop(items: ItemInput, i: int) -> list[np.ndarray | None]:
    """Embedding of item i by each source, None for a missing value."""
    values, actual = items.side.values, []
    for name in items.side.widths:
        table = values[f"vectors.{name}"]
        *vector, there = Scale.of(table).apply(table)[i]
        layer = items.vectors[f"of_{name}"].project
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        actual.append(weight @ np.array(vector) + bias if there else None)
    for column in items.side.items:
        value, weight = (values[f"items.{column.name}"][i], items.columns[f"of_{column.name}"].weight.detach().numpy())
        codes = [code for code in value if code > 0]
        if column.categorical:
            actual.append(np.mean([weight[code] for code in codes], axis=0) if codes else None)
        else:
            actual.append(value[0] * weight[0] + weight[1] if value[1] else None)
    return actual


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("combine", ["add", "concat", "alone"])
def test_the_table_is_what_is_known_of_each_item(combine, extra):
    items = build_input(extra, vectors="text+image", items="genres+price", combine=combine)
    table, ids = items.table().detach().numpy(), items.weight.detach().numpy()
    assert table.shape == (ITEMS + 1 + extra, DIM)
    assert not table[0].any()
    for i in range(1, ITEMS + 1):
        parts = part_by_loop(items, i)
        filled = [np.zeros(DIM) if part is None else part for part in parts]
        if combine == "add":
            expected = ids[i] + sum(filled)
        elif combine == "concat":
            expected = items.joined.weight.detach().numpy() @ np.concatenate([ids[i], *filled])
        else:
            known = any(part is not None for part in parts)
            expected = sum(filled) if known else items.missing.detach().numpy()
        np.testing.assert_allclose(table[i], expected, rtol=1e-4, atol=1e-5)
    if extra:
        np.testing.assert_array_equal(table[-1], ids[-1])
    assert items.head(items.table()).shape == (ITEMS + 1, DIM)


def test_a_missing_vector_adds_nothing():
    items = build_input(vectors="text")
    absent = items.side.values["vectors.text"][:, -1] == 0
    torch.testing.assert_close(items.table()[absent], items.weight[absent])
    assert (items.table()[~absent] - items.weight[~absent]).abs().amax(1).min() > 1e-3


def test_the_head_may_be_ids_alone():
    items = build_input(vectors="text", head="ids")
    assert torch.equal(items.head(items.table()), items.weight)
    assert not torch.allclose(items.table(), items.weight)


def test_without_side_information_ids_are_all_there_is():
    items = ItemInput(ITEMS, DIM, extra=2)
    assert items.table() is items.weight and [*items.state_dict()] == ["weight"]


@pytest.mark.parametrize("trained", [False, True])
def test_frozen_vectors_get_no_gradient_and_trained_ones_do(trained):
    items = build_input(vectors="text", combine="alone", train_vectors=trained)
    before = items.vectors["of_text"].given.clone()
    optimiser = torch.optim.SGD(items.parameters(), 0.1)
    items.table().square().sum().backward()
    optimiser.step()
    given = items.vectors["of_text"].given
    assert ("vectors.of_text.given" in dict(items.named_parameters())) == trained
    there = items.vectors["of_text"].is_present()
    if trained:
        assert (given[there] != before[there]).any(1).all() and torch.equal(given[~there], before[~there])
    else:
        assert given.grad is None and torch.equal(given, before)
    assert items.vectors["of_text"].project.weight.grad.abs().sum() > 0


def test_events_and_users_are_added_where_they_belong():
    items = build_input(**{**FULL, "items": "none"})
    rows = np.array([3, 0, 11, 5])
    batch = batch_of(items, rows)
    x_BTD = items.embed(batch, items.table()).detach().numpy()
    table = items.table().detach().numpy()
    country, age, rating = (m.weight.detach().numpy() for m in (*items.users.values(), *items.events.values()))
    encoded = items.side.encode(DATA)
    moments = {name: m.weight.detach().numpy() for name, m in items.moments.items()}
    for b, u in enumerate(rows):
        code, number = encoded["user.country"][u, 0], encoded["user.age"][u]
        profile = (country[code] if code else 0) + number[0] * age[0] + number[1] * age[1]
        start = max(DATA.offsets[u + 1] - WINDOW, DATA.offsets[u])
        for t, n in enumerate(range(start, DATA.offsets[u + 1])):
            when = datetime.fromtimestamp(int(DATA.timestamps[n]), UTC)
            expected = table[DATA.items[n]] + profile
            rated = encoded["event.rating"][n, 0]
            expected = expected + (rating[rated] if rated else 0)
            expected = expected + moments["of_hour"][when.hour + 1] + moments["of_weekday"][when.weekday() + 1]
            if t:
                gap = int(DATA.timestamps[n] - DATA.timestamps[n - 1])
                expected = expected + moments["of_gap"][(gap + 1).bit_length()]
            np.testing.assert_allclose(x_BTD[b, t], expected, rtol=1e-4, atol=1e-5)


def test_moments_are_datetimes_and_gaps_are_powers_of_two():
    rng = np.random.default_rng(0)
    gaps = np.concatenate([[0, 1, 2, 3, 4, 7, 8, 2**16 - 2, 2**16 - 1, 2**30], rng.integers(0, 2**20, 300)])
    times = torch.from_numpy(np.cumsum(np.concatenate([[86_399], gaps])))[None]
    batch = Batch(torch.ones_like(times), torch.tensor([times.shape[1]]), times)
    when = [datetime.fromtimestamp(second, UTC) for second in times[0].tolist()]
    assert time_codes("hour", batch)[0].tolist() == [w.hour + 1 for w in when]
    assert time_codes("weekday", batch)[0].tolist() == [w.weekday() + 1 for w in when]
    assert time_codes("gap", batch)[0].tolist() == [0, *((int(gap) + 1).bit_length() for gap in gaps)]


@pytest.mark.parametrize("name", ["hour", "weekday", "gap"])
def test_padding_and_histories_without_times_have_no_moment(name):
    items = torch.tensor([[1, 2, 0], [3, 0, 0]])
    times = torch.tensor([[86_400 * 9, 86_400 * 9 + 50, 0], [1_000_000, 0, 0]])
    actual = time_codes(name, Batch(items, torch.tensor([2, 1]), times))
    assert not actual[items == 0].any() and actual.any()
    assert not time_codes(name, Batch(items, torch.tensor([2, 1]), None)).any()


def test_gaps_do_not_cross_packed_sequences():
    times = torch.tensor([[100, 200, 100, 107]])
    marks = {"segments": [[1, 1, 2, 2]], "segment_positions": [[0, 1, 0, 1]]}
    tensors = {name: torch.tensor(value) for name, value in marks.items()}
    packed = Batch(torch.ones_like(times), torch.tensor([4]), times, **tensors)
    assert time_codes("gap", packed)[0].tolist() == [0, (101).bit_length(), 0, (8).bit_length()]


def test_hidden_places_tell_nothing_but_their_item():
    items = build_input(1, vectors="text", **FULL)
    batch = batch_of(items, np.array([1, 2]))
    hidden = torch.zeros_like(batch.items, dtype=torch.bool)
    hidden[:, 1] = True
    masked = batch.items.masked_fill(hidden, ITEMS + 1)
    table = items.table()
    x_BTD = items.embed(Batch(masked, batch.lengths, batch.timestamps, features=batch.features), table, masked=hidden)
    profile = sum(
        part.look_up(batch.features[f"user.{column.name}"])[:, 0]
        for column, part in zip(items.side.users, items.users.values(), strict=True)
    )
    torch.testing.assert_close(x_BTD[:, 1], items.weight[-1] + profile)


def test_a_held_table_is_made_once_and_let_go():
    items = build_input(vectors="text")
    with items.cached_weights():
        held = items.table()
        assert items.table() is held
        with items.cached_weights():
            assert items.table() is held
        assert items.table() is held
    with torch.no_grad():
        items.weight[1:] += 1.0
    torch.testing.assert_close(items.table()[1:], held[1:] + 1.0)
