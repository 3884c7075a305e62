"""T5 in a beam search, plain and fast, against teacher forcing of every item."""

from __future__ import annotations

import pytest
import torch
from tests.decoding.oracles import random_case
from torch.nn import functional as F

from recpipe.accelerate.t5 import FastDecoder, FastEncoder
from recpipe.decoding import beam_search
from recpipe.layers.t5 import Decoder, Encoder, T5Shape

SHAPE = T5Shape(dim=24, heads=3, head_dim=8, feed_forward=32, layers=2, decoder_layers=2)
SIZES, USERS = (5, 6, 4), 4


class Steps:
    """A small TIGER: token 0 begins, code c of level l is 1 + c + the sizes before."""

    def __init__(self, encoder, decoder, table, x, mask):
        self.decoder, self.table, self.users = decoder, table, len(x)
        self.memory, self.cache = decoder.memory(encoder(x, mask), mask), decoder.cache()

    def step(self, level, codes_BK, parents_BK):
        first = [1, 6, 12]
        tokens = torch.zeros(self.users, 1, dtype=torch.int64) if level == 0 else codes_BK + first[level - 1]
        hidden = self.decoder.step(self.table[tokens], self.memory, self.cache, parents_BK)
        logs = F.linear(hidden * 24**-0.5, self.table).log_softmax(-1)
        return logs[..., first[level] : first[level] + SIZES[level]]


@pytest.mark.parametrize("kind", ["plain", "fast"])
@torch.no_grad()
def test_a_wide_beam_is_teacher_forcing_of_every_item(kind):
    torch.manual_seed(0)
    encoder, decoder, table = Encoder(SHAPE).eval(), Decoder(SHAPE).eval(), torch.randn(16, 24)
    x, mask = torch.randn(USERS, 7, 24), torch.arange(7) < torch.tensor([7, 0, 3, 5])[:, None]
    case = random_case(50, SIZES)
    codes = torch.from_numpy(case.codes)
    tokens = torch.cat([torch.zeros(50, 1, dtype=torch.int64), codes + torch.tensor([1, 6, 12])], 1)
    expected = torch.zeros(USERS, 50)
    for row in range(50):
        memory = decoder.memory(encoder(x, mask), mask)
        hidden = decoder(table[tokens[row, :-1]].expand(USERS, -1, -1), memory)
        logs = F.linear(hidden * 24**-0.5, table).log_softmax(-1)
        expected[:, row] = logs[:, range(3), tokens[row, 1:]].sum(1)
    pair = (FastEncoder(encoder), FastDecoder(decoder)) if kind == "fast" else (encoder, decoder)
    beams = beam_search(Steps(*pair, table, x, mask), case.tree, beam=50)
    values, order = expected.sort(descending=True)
    torch.testing.assert_close(beams.scores, values, rtol=1e-5, atol=1e-5)
    assert torch.equal(beams.items, order)
    seen = (torch.tensor([0, 30, 30, 30, 30]), order[0, :30])
    narrow = beam_search(Steps(*pair, table, x, mask), case.tree, beam=20, seen=seen)
    assert set(narrow.items[0].tolist()) == set(order[0, 30:].tolist())
