"""GPT: block against transformers' GPT-2, packed against padded rows, generation against a loop over users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences, target_mask

from recpipe.config import Configuration, build_config, read_parameters
from recpipe.data.batch_samplers import PackedBatches, TrainingBatches
from recpipe.data.batches import DeviceSequences
from recpipe.layers import attention
from recpipe.layers.top_k import tie_order
from recpipe.models.gpt import GPT
from recpipe.models.next_item import NextItem
from recpipe.models.registry import build, side_config
from recpipe.training.losses.full_softmax import FullSoftmax
from recpipe.training.settings import TrainSettings

ITEMS, WINDOW = 25, 10
DATA = random_sequences(60, ITEMS, longest=16, seed=1)
VARIANTS = ("gpt", "transformer", "transformer_generative", "siglip_oneshot", "with_decay", "all_data")
PACKING = (("gpt", {}), ("gpt", {"bias": True, "heads": 4}), ("sasrec", {}), ("sasrec", {"block": "ligr"}))


def build_model(name: str = "gpt", **config) -> NextItem:
    torch.manual_seed(0)
    model = build(name, {"dim": 16, **config}, n_items=ITEMS, max_length=WINDOW)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


def steps(size: int = 2 * WINDOW, data=DATA):
    """(packed, padded) batches of all users of two events or more."""
    held = DeviceSequences(data, window=WINDOW + 1, device="cpu")
    rows = PackedBatches(held.lengths, size=size, tokens=10_000, seed=0)
    users = TrainingBatches(held.lengths, tokens=10_000, seed=0, minimum=2)
    (parts,), (padded,) = rows, users
    return rows.gather(held, parts[0]), [users.gather(held, part) for part in padded]


def test_packed_targets_have_their_weights():
    data = replace(DATA, weights=np.random.default_rng(0).integers(0, 5, len(DATA.items)).astype(np.float32))
    packed, padded = steps(data=data)
    model, criterion = build_model(), FullSoftmax()
    whole = sum(part.n_targets for part in padded)
    expected = sum(model.loss(part, criterion) * (part.n_targets / whole) for part in padded)
    torch.testing.assert_close(model.loss(packed, criterion), expected, rtol=1e-5, atol=1e-6)
    alike = model.loss(replace(packed, next_weights=None), criterion)
    assert abs(alike.item() - expected.item()) > 0.1


def test_packed_targets_are_target_events_only():
    data = replace(DATA, is_target=np.random.default_rng(0).random(len(DATA.items)) < 0.4)
    packed, padded = steps(data=data)
    model, whole = build_model(), sum(part.n_targets for part in padded)
    assert packed.n_targets == whole == target_mask(data.last(WINDOW + 1)).sum() == (packed.next_items > 0).sum()
    parts = [part for part in padded if part.n_targets]
    expected = sum(model.loss(part, FullSoftmax()) * (part.n_targets / whole) for part in parts)
    torch.testing.assert_close(model.loss(packed, FullSoftmax()), expected, rtol=1e-5, atol=1e-6)


def by_sequence(model: NextItem, batch) -> dict[tuple, torch.Tensor]:
    """Hidden states by the prefix of a user's history."""
    inputs, targets = batch.inputs_and_targets()
    hidden = model.hidden(inputs)
    places = inputs.positions.expand_as(inputs.items)
    actual: dict[tuple, torch.Tensor] = {}
    for row, column in torch.nonzero(targets > 0).tolist():
        start = column - int(places[row, column])
        actual[(*inputs.items[row, start : column + 1].tolist(), int(targets[row, column]))] = hidden[row, column]
    return actual


@pytest.mark.parametrize(("name", "config"), PACKING)
@pytest.mark.parametrize("size", [WINDOW, 15, 64])
def test_packed_is_padded(name, config, size):
    model, (packed, padded) = build_model(name, **config), steps(size)
    assert packed.segments is not None and len(packed.items) < sum(len(part.items) for part in padded)
    ours, theirs = by_sequence(model, packed), {}
    for part in padded:
        theirs |= by_sequence(model, part)
    assert ours.keys() == theirs.keys() and len(ours) > 300
    for key, hidden in ours.items():
        torch.testing.assert_close(hidden, theirs[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "config"), PACKING)
def test_packed_and_padded_steps_have_one_loss_and_one_gradient(name, config):
    gradients = []
    packed, padded = steps()
    for parts in ([packed], padded):
        model, criterion = build_model(name, **config), FullSoftmax()
        whole = sum(part.n_targets for part in parts)
        loss = sum(model.loss(part, criterion) * (part.n_targets / whole) for part in parts)
        loss.backward()
        gradients.append((loss.detach(), *(weight.grad for weight in model.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt", "sasrec"])
def test_neighbours_in_a_row_do_not_matter(name):
    model, (batch, _) = build_model(name), steps()
    before = model.hidden(batch)
    for segment in (1, 2):
        theirs = batch.segments == segment
        batch.items[theirs] = batch.items[theirs] % ITEMS + 1
        after = model.hidden(batch)
        others = (batch.items > 0) & ~theirs
        torch.testing.assert_close(after[others], before[others])
        assert (after - before)[theirs].abs().max() > 1e-3
        batch.items[theirs] = (batch.items[theirs] - 2) % ITEMS + 1


@pytest.mark.parametrize("width", [16, 6], ids=["wide", "too narrow for the kernels"])
def test_flex_attention_is_given_the_same_mask(width):
    torch.manual_seed(0)
    batch, _ = steps()
    q, k, v = (torch.randn(*batch.items.shape, 2, width).transpose(1, 2) for _ in range(3))
    with torch.no_grad():
        flex_attend = attention.attend(q, k, v, attention.block_mask(batch.segments))
    plain = attention.attend(q, k, v, attention.causal_mask(batch, q))
    real = (batch.items > 0)[:, None, :, None]
    torch.testing.assert_close(flex_attend * real, plain * real, rtol=1e-5, atol=1e-5)


def test_dropout_on_attention_weights_keeps_to_the_mask(monkeypatch):
    batch, _ = steps()
    q, k, v = (torch.randn(*batch.items.shape, 1, 8).transpose(1, 2) for _ in range(3))
    mask, dropout = attention.causal_mask(batch, q), torch.nn.Dropout(0.5).train()
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    torch.testing.assert_close(attention.attend(q, k, v, mask, dropout), attention.attend(q, k, v, mask))


def test_weights_begin_as_nanogpt_has_them():
    torch.manual_seed(0)
    model = build("gpt", {"dim": 64, "layers": 8}, n_items=500, max_length=200)
    for block in model.blocks:
        for layer, std in ((block.qkv, 0.02), (block.up, 0.02), (block.out, 0.005), (block.down, 0.005)):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
    assert model.positions.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]
    assert torch.equal(model.items.head(model.items.table()), model.items.weight)


def generated(model: NextItem, history: list[int], n: int, allowed: set[int]) -> list[int]:
    """Items of one user, decoded one at a time by a model without ``generate``."""
    actual, order = [], tie_order(ITEMS + 1).numpy()
    for _ in range(n):
        (_, scores), *_ = model.score_batches(sequences([[*history, *actual]]), exclude_seen=False)
        left = [item for item in allowed if item not in actual]
        if left:
            actual.append(min(left, key=lambda i: (-scores[0, i].item(), order[i])))
    return actual


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_generation_is_a_loop_over_users(exclude_seen):
    data = sequences([[], [3], *(DATA.row(u).tolist() for u in range(12)), list(range(1, ITEMS - 1))])
    model, once = build_model(generate=4), build_model()
    candidates = torch.ones(ITEMS + 1, dtype=torch.bool)
    candidates[[5, 6]] = False
    items, values = model.recommend(data, ITEMS, exclude_seen=exclude_seen, candidates=candidates)
    plain, plain_values = once.recommend(data, ITEMS, exclude_seen=exclude_seen, candidates=candidates)
    differ = 0
    for u in range(len(data)):
        history = data.row(u).tolist()
        allowed = {item for item in range(1, ITEMS + 1) if item not in (5, 6)}
        allowed -= set(history) if exclude_seen else set()
        first = generated(once, history, 4, allowed)
        assert items[u, : len(first)].tolist() == first
        rest = [item for item in plain[u].tolist() if item not in first]  # by the scores of one answer
        assert items[u, len(first) :].tolist()[: len(allowed) - len(first)] == [i for i in rest if i]
        assert (np.diff(values[u, : len(allowed)]) <= 0).all() and np.isneginf(values[u, len(allowed) :]).all()
        kept = dict(zip(plain[u].tolist(), plain_values[u].tolist(), strict=True))
        for item, value in list(zip(items[u], values[u], strict=True))[len(first) : len(allowed)]:
            assert value == pytest.approx(kept[item], rel=1e-5, abs=1e-5)
        differ += first != plain[u, :4].tolist()
    assert differ > 5
    assert once.probabilistic and not model.probabilistic


def test_a_bias_against_the_history_holds_for_every_generated_item():
    """A bias that no score outweighs gives the items that excluding the history gives, as long as there are some."""
    model, plain = build_model(generate=4), build_model(generate=4)
    model.history_bias = -1e4
    data = sequences([[3], *(DATA.row(u).tolist() for u in range(12))])
    items, _ = model.recommend(data, 6, exclude_seen=False)
    np.testing.assert_array_equal(items, plain.recommend(data, 6, exclude_seen=True)[0])


def test_sampled_items_are_drawn_from_the_best_by_their_softmax():
    history = sequences([[3, 7, 2]] * 4000)
    once = build_model()
    ((_, scores), *_) = once.score_batches(sequences([[3, 7, 2]]), exclude_seen=True)
    best = scores[0].topk(3)
    chances = dict(zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True))
    model = build_model(generate=1, sample_from=3)
    first = model.recommend(history, 2)[0][:, 0].tolist()
    assert set(first) == set(chances)
    for item, chance in chances.items():
        assert first.count(item) / len(first) == pytest.approx(chance, abs=0.03)
    long = build_model(generate=4, sample_from=3).recommend(DATA, ITEMS)[0]
    assert all(len(set(row[row > 0])) == (row > 0).sum() for row in long)
    assert (long == build_model(generate=4, sample_from=3).recommend(DATA, ITEMS)[0]).all()
    assert (long != build_model(generate=4, sample_from=3, sample_seed=1).recommend(DATA, ITEMS)[0]).any()
    with pytest.raises(ValueError, match="sample_from is 0"):
        GPT.Config(sample_from=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_train_packed_with_clipping_and_dropout_and_read_images_where_named(name, project):
    """tests/config/test_models.py builds and trains them."""
    files = read_parameters(project / "conf", "base")
    for dataset in files["datasets"]:
        run = Configuration(files, {"dataset": dataset}).run(name)
        settings = build_config(TrainSettings, run.train, where=name)
        assert settings.layout == "packed" and settings.gradient_clip
        assert build(run.type, run.settings, n_items=30, max_length=10).config.dropout > 0
        side = side_config(run.type, run.side, where=name)
        assert side.vectors == ("image" if name in VARIANTS[3:] else "none")
        assert settings.train_on_validation == (name == "all_data")


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="dim 10 is not a multiple of heads 3"):
        GPT.Config(dim=10, heads=3)
    with pytest.raises(ValueError, match="generate is -1"):
        GPT.Config(generate=-1)
