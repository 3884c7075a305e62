"""Weights prepared for a CPU are left as they are on a card."""

from __future__ import annotations

import torch
from tests.cuda.made import ASKED, ITEMS, fresh

from recpipe.layers.t5 import Encoder, T5Shape
from recpipe.layers.t5_decoder import Decoder
from recpipe.layers.t5_prepared import Product
from recpipe.layers.t5_prepared_decoder import prepared

SHAPE = T5Shape(dim=32, heads=3, head_dim=8, feed_forward=40, layers=2, decoder_layers=2)


def test_modules_on_the_card_are_their_own_form_for_inference():
    encoder, decoder = Encoder(SHAPE).cuda(), Decoder(SHAPE).cuda()
    assert prepared(encoder, decoder) == (encoder, decoder)


def test_a_product_multiplies():
    weight, x = torch.randn(7, 5), torch.randn(3, 5)
    found = Product(weight.cuda())(x.cuda(), relu=True)
    torch.testing.assert_close(found.cpu(), (x @ weight.T).relu(), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_model_that_moves_between_devices_searches_on_each():
    """Trees, rows and prepared weights are made for the device at hand, whichever came first."""
    torch.manual_seed(0)
    model, found = fresh("tiger", {}).eval(), []
    for device in ("cpu", "cuda", "cpu"):
        found.append(model.to(device).recommend(ASKED, ITEMS, exclude_seen=True))
    for items, scores in found[1:]:
        assert (items == found[0][0]).mean() > 0.9
        torch.testing.assert_close(
            torch.from_numpy(scores), torch.from_numpy(found[0][1]), rtol=1e-4, atol=1e-4
        )
