"""BERT4Rec against transformers' BERT, and its masks against the settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import described, random_sequences, sequences, side_of

from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.protocol import Protocol
from recpipe.data.splits import split
from recpipe.evaluation.evaluate import validator
from recpipe.models.registry import build
from recpipe.training.fit import train
from recpipe.training.losses.full_softmax import FullSoftmax
from recpipe.training.settings import TrainSettings

ITEMS, LONGEST = 20, 12


def build_model(**config):
    torch.manual_seed(0)
    return build("bert4rec", {"dim": 16, **config}, n_items=ITEMS, max_length=LONGEST).eval()


def batch_of(users: int, *, seed: int = 0) -> Batch:
    data = random_sequences(users, ITEMS, longest=LONGEST, shortest=2, seed=seed)
    return DeviceSequences(data, window=LONGEST, device="cpu").batch(np.arange(users))


def encoded(model, items: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return model.encode(Batch(items, lengths, None), model.items.table())


def bert_with_weights_of(model, *, types: bool):
    """Random BertForMaskedLM of transformers; copies its weights into ``model``."""
    transformers = pytest.importorskip("transformers", reason="the peer is transformers' BERT")
    peer = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=ITEMS + 2,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=LONGEST + 1,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for weight in peer.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
        if not types:
            peer.bert.embeddings.token_type_embeddings.weight.zero_()
        peer.cls.predictions.bias.zero_()
        peer.cls.predictions.decoder.bias.zero_()
    theirs, tensors = peer.state_dict(), {}
    renamed = {
        "items": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "types": "bert.embeddings.token_type_embeddings",
        "norm": "bert.embeddings.LayerNorm",
        "transform.0": "cls.predictions.transform.dense",
        "transform.2": "cls.predictions.transform.LayerNorm",
    }
    inside = {
        "attention.out": "attention.output.dense",
        "norm_attention": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm_feed": "output.LayerNorm",
    }
    for name in model.state_dict():
        owner, kind = name.rsplit(".", 1)
        if owner.startswith("blocks."):
            _, number, part = owner.split(".", 2)
            layer = f"bert.encoder.layer.{number}."
            if part == "attention.qkv":
                parts = [theirs[f"{layer}attention.self.{key}.{kind}"] for key in ("query", "key", "value")]
                tensors[name] = torch.cat(parts)
            else:
                tensors[name] = theirs[f"{layer}{inside[part]}.{kind}"]
        else:
            tensors[name] = theirs[f"{renamed[owner]}.{kind}"]
    model.load_state_dict(tensors)
    return peer


@pytest.mark.parametrize("types", [False, True], ids=["without-types", "with-types"])
def test_after_bert_the_blocks_and_the_head_are_transformers(types):
    model = build_model(norm_first=False, type_embedding=types)
    peer = bert_with_weights_of(model, types=types)
    batch = batch_of(7)
    items = batch.items.masked_fill(model.draw_masks(batch), model.mask_item)
    kinds = (items == model.mask_item).long()
    with torch.no_grad():
        theirs = peer.bert(items, batch.mask.long(), kinds).last_hidden_state
        ours = encoded(model, items, batch.lengths)
        torch.testing.assert_close(ours[batch.mask], theirs[batch.mask], rtol=1e-5, atol=1e-5)
        logits = peer(items, batch.mask.long(), kinds).logits[batch.mask][:, : ITEMS + 1]
        mine = (model.transform(ours) @ model.items.head(model.items.table()).T)[batch.mask]
        torch.testing.assert_close(mine, logits, rtol=1e-5, atol=1e-4)


def test_the_next_item_is_a_mask_after_the_last_event():
    model = build_model()
    batch = batch_of(5)
    for row, length in enumerate(batch.lengths.tolist()):
        alone = torch.cat([batch.items[row, :length], torch.tensor([model.mask_item])])[None]
        with torch.no_grad():
            hidden = encoded(model, alone, torch.tensor([length + 1]))[0, length]
            expected = model.transform(hidden) @ model.items.weight[: ITEMS + 1].T
            torch.testing.assert_close(model.score(batch)[row], expected, rtol=1e-5, atol=1e-5)


def test_places_counted_from_the_end_are_the_same_table_read_backwards():
    """The last event always has position 0."""
    start, end = build_model(), build_model(count_from="end")
    batch = batch_of(8)
    assert len(set(batch.lengths.tolist())) > 3
    whole = end.score(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        start.load_state_dict(end.state_dict())
        with torch.no_grad():
            start.positions.weight[: length + 1] = end.positions.weight[: length + 1].flip(0)
        alone = Batch(batch.items[row : row + 1, :length], batch.lengths[row : row + 1], None)
        torch.testing.assert_close(start.score(alone), whole[row : row + 1])


def test_a_full_history_keeps_all_its_events():
    model = build_model()
    full = torch.randint(1, ITEMS + 1, (2, LONGEST), generator=torch.Generator().manual_seed(0))
    other = full.clone()
    other[:, 0] = other[:, 0] % ITEMS + 1
    lengths = torch.full((2,), LONGEST)
    with torch.no_grad():
        before, after = (model.score(Batch(items, lengths, None)) for items in (full, other))
    assert (before - after).abs().amax(1).min() > 1e-6


def test_both_sides_reach_a_masked_place():
    model = build_model()
    items = torch.randint(1, ITEMS + 1, (1, 9), generator=torch.Generator().manual_seed(0))
    items[0, 4] = model.mask_item
    for place in (0, 8):
        changed = items.clone()
        changed[0, place] = changed[0, place] % ITEMS + 1
        with torch.no_grad():
            before, after = (encoded(model, each, torch.tensor([9])) for each in (items, changed))
        assert (before - after)[0, 4].abs().max() > 1e-6


@pytest.mark.parametrize(("mask_share", "last_share"), [(0.2, 0.0), (0.5, 0.3), (0.2, 1.0)])
def test_masks_have_the_shares_of_the_settings(mask_share, last_share):
    model = build_model(mask_share=mask_share, last_share=last_share)
    lengths, T = torch.tensor([2, 5, 9]).repeat(6000), 9
    items = torch.where(torch.arange(T) < lengths[:, None], 1, 0)
    masks = model.draw_masks(Batch(items, lengths, None)).double()
    assert not (masks[items == 0]).any() and masks.any(1).all()
    for length in (2, 5, 9):
        share = torch.full((length,), mask_share + (1 - mask_share) ** length / length)  # none drawn: one all the same
        expected = (1 - last_share) * share
        expected[-1] += last_share
        got = masks[lengths == length, :length].mean(0)
        np.testing.assert_allclose(got, expected, atol=0.03)


def test_masked_events_are_replaced_or_kept_by_their_shares():
    model = build_model(random_share=0.2, kept_share=0.3)
    items = torch.full((300, 200), 3)
    hidden = torch.rand(items.shape) < 0.5
    read = model.mask_items(items, hidden)
    assert (read[~hidden] == 3).all()
    by_item = torch.bincount(read[hidden], minlength=model.mask_item + 1).double() / hidden.sum()
    expected = torch.full((ITEMS,), 0.2 / ITEMS, dtype=torch.float64)
    expected[2] += 0.3
    np.testing.assert_allclose(by_item[1 : ITEMS + 1], expected, atol=0.01)
    assert by_item[model.mask_item].item() == pytest.approx(0.5, abs=0.01) and by_item[0] == 0
    assert (build_model().mask_items(items, hidden)[hidden] == model.mask_item).all()


def test_what_comes_in_unscaled_is_what_a_larger_table_gives():
    scaled, plain, batch = build_model(), build_model(scale=False), batch_of(6)
    root = scaled.config.dim**0.5
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        plain.items.weight *= root
        plain.positions.weight *= root
        torch.testing.assert_close(plain.score(batch), root * scaled.score(batch), rtol=1e-5, atol=1e-5)


def test_dropout_inside_is_of_the_wide_layer_and_of_what_a_block_gives_on():
    torch.manual_seed(0)
    zeros = {}
    for inside in (False, True):
        model = build("bert4rec", {"dropout": 0.3, "dropout_inside": inside}, n_items=ITEMS, max_length=LONGEST)
        block, x_BTD = model.blocks[0].train(), torch.randn(50, LONGEST, 64)
        seen = []
        block.down.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        given_on = block(x_BTD, torch.ones(50, LONGEST, dtype=torch.bool))
        zeros[inside] = [(each == 0).double().mean().item() for each in (seen[0], given_on)]
    assert zeros[False] == pytest.approx([0, 0], abs=1e-3)
    assert zeros[True] == pytest.approx([0.3, 0.3], abs=0.01)


def test_xaviers_weights_have_the_deviation_of_their_two_sides():
    model = build("bert4rec", {"initial": "xavier"}, n_items=400, max_length=LONGEST)
    for weight in (model.items.weight, model.positions.weight, model.blocks[1].up.weight):
        assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.1)


def test_masks_repeat_with_torchs_seed_and_differ_from_step_to_step():
    model, batch = build_model(), batch_of(50)
    torch.manual_seed(7)
    first, second = model.draw_masks(batch), model.draw_masks(batch)
    torch.manual_seed(7)
    assert torch.equal(model.draw_masks(batch), first) and not torch.equal(first, second)


@pytest.mark.parametrize("norm_first", [True, False])
def test_masked_places_are_learned_in_every_row(norm_first):
    torch.manual_seed(0)
    config = {"dropout": 0.0, "norm_first": norm_first, "last_share": 0.0}
    model = build("bert4rec", config, n_items=ITEMS, max_length=LONGEST)
    batch = batch_of(5)
    optimiser, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(200):
        optimiser.zero_grad()
        loss = model.loss(batch, FullSoftmax())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(ITEMS), rel=0.1)
    assert np.mean(losses[-20:]) < 0.7


def test_rows_without_events_stay_finite_in_value_and_gradient():
    model = build_model().train()
    data = DeviceSequences(sequences([[], [1, 2, 3]]), window=LONGEST, device="cpu").batch(np.arange(2))
    loss = model.loss(data, FullSoftmax())
    loss.backward()
    assert loss.isfinite() and all(weight.grad.isfinite().all() for weight in model.parameters())


def test_mask_is_never_scored_nor_is_its_row_touched_by_the_head():
    model, batch = build_model(), batch_of(4)
    assert model.score(batch).shape == (4, ITEMS + 1)
    assert model.items.head(model.items.table()).shape == (ITEMS + 1, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 15}, "not a multiple of heads"),
        ({"mask_share": 0.0}, "mask_share is 0.0"),
        ({"initial": "he"}, "initial is 'he'; allowed: bert, xavier"),
        ({"random_share": 0.5, "kept_share": 0.5}, "random_share is 0.5"),
        ({"kept_share": -0.1}, "kept_share -0.1"),
        ({"mask_share": 1.0}, "mask_share is 1.0"),
        ({"last_share": 1.5}, "last_share is 1.5"),
        ({"count_from": "middle"}, "count_from is 'middle'; allowed: start, end"),
    ],
)
def test_settings_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(**config)


def test_a_resumed_training_draws_the_masks_it_would_have_drawn(tmp_path):
    protocol = Protocol(dataset="x", history=LONGEST)
    parts = split(random_sequences(60, ITEMS, longest=14, seed=2), protocol)
    judge, calls = validator(parts.valid, protocol), []

    def stopping(model):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(model)

    def run(folder, validate):
        return train(
            lambda: build("bert4rec", {"dim": 8}, n_items=ITEMS, max_length=LONGEST),
            parts.train,
            validate,
            TrainSettings(batch_tokens=200, max_epochs=4, device="cpu"),
            seed=3,
            folder=tmp_path / folder,
        )

    whole = run("whole", judge)
    with pytest.raises(KeyboardInterrupt):
        run("cut", stopping)
    resumed = run("cut", judge)
    assert [row["loss"] for row in resumed.curve] == [row["loss"] for row in whole.curve]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_what_happened_at_a_masked_place_stays_hidden():
    data = described(random_sequences(9, ITEMS, longest=LONGEST))
    side = side_of(data, ITEMS, users="country", events="rating+hour+weekday")
    torch.manual_seed(0)
    model = build("bert4rec", {"dim": 16}, n_items=ITEMS, max_length=LONGEST, side=side).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    batch = model.on_device(data, window=LONGEST).batch(np.arange(9))
    masked = torch.zeros_like(batch.items, dtype=torch.bool)
    masked[:, 1] = True
    inputs = replace(batch, items=batch.items.masked_fill(masked, model.mask_item))
    rating = batch.features["event.rating"]
    other = {**batch.features, "event.rating": torch.where(masked[..., None], 1 + rating % 5, rating)}
    times = torch.where(masked, batch.timestamps + 100_000, batch.timestamps)
    with torch.no_grad():
        table = model.items.table()
        before = model.encode(inputs, table)
        assert torch.equal(model.encode(replace(inputs, timestamps=times, features=other), table), before)
        seen = {**batch.features, "event.rating": 1 + rating % 5}
        assert not torch.allclose(model.encode(replace(inputs, features=seen), table), before)
