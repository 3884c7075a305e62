"""Fast versions for a CPU on a card: its encoder and decoder are the model's own."""

from __future__ import annotations

import torch
from tests.cuda.small_models import HISTORIES, ITEMS, fresh

from recpipe.accelerate.code_transformer import FastCodeTransformer
from recpipe.accelerate.t5 import FastLinear


def test_encoder_and_decoder_on_the_card_are_the_models_own():
    transformer = fresh("tiger", {}).cuda().transformer
    fast = FastCodeTransformer.of(transformer)
    assert fast.encoder is transformer.encoder and fast.decoder is transformer.decoder


def test_a_product_multiplies():
    weight, x = torch.randn(7, 5), torch.randn(3, 5)
    product = FastLinear(weight.cuda())(x.cuda(), relu=True)
    torch.testing.assert_close(product.cpu(), (x @ weight.T).relu(), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_model_that_moves_between_devices_searches_on_each():
    """Trees, rows and derived weights are of the device at hand, whichever came first."""
    torch.manual_seed(0)
    model, lists = fresh("tiger", {}).eval(), []
    for device in ("cpu", "cuda", "cpu"):
        lists.append(model.to(device).recommend(HISTORIES, ITEMS, exclude_seen=True))
    for items, scores in lists[1:]:
        assert (items == lists[0][0]).mean() > 0.9
        torch.testing.assert_close(torch.from_numpy(scores), torch.from_numpy(lists[0][1]), rtol=1e-4, atol=1e-4)
