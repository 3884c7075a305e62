"""Mamba-2 in chunks against the plain recurrence, and the block against transformers'."""

from __future__ import annotations

import pytest
import torch

from recpipe.layers import ssd
from recpipe.layers.ssd import Mamba2, causal_conv, chunked_scan, recurrent_scan


def drawn(length: int, kind: torch.dtype, *, batch: int = 2) -> list[torch.Tensor]:
    """x, Δ, A, B, C with decays from almost none to almost all."""
    torch.manual_seed(length)
    x, b, c = (torch.randn(batch, length, *shape, dtype=kind) for shape in ((3, 4), (5,), (5,)))
    dt = torch.rand(batch, length, 3, dtype=kind) * torch.tensor([0.01, 0.3, 2.0], dtype=kind)
    return [x, dt, -torch.tensor([1.0, 4.0, 16.0], dtype=kind), b, c]


def some_segments(length: int) -> torch.Tensor:
    torch.manual_seed(length)
    return (torch.rand(2, length) < 0.2).cumsum(1) + 1


@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
@pytest.mark.parametrize("length", [1, 5, 16, 50])
def test_chunks_are_the_recurrence(length, chunk, packed):
    segments = some_segments(length) if packed else None
    for kind, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        given = drawn(length, kind)
        expected = recurrent_scan(*given, segments=segments)
        got = chunked_scan(*given, segments=segments, chunk=chunk)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
def test_gradients_are_those_of_the_recurrence(packed):
    given = [value.requires_grad_() for value in drawn(21, torch.float64)]
    segments = some_segments(21) if packed else None
    weight = torch.randn(2, 21, 3, 4, dtype=torch.float64)
    scans = (
        recurrent_scan(*given, segments=segments),
        chunked_scan(*given, segments=segments, chunk=6),
    )
    expected, got = (torch.autograd.grad((y * weight).sum(), given) for y in scans)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_the_recurrence_forgets_at_the_border_of_a_segment():
    x, dt, a, b, c = drawn(12, torch.float64)
    segments = torch.tensor([1] * 5 + [2] * 7).expand(2, 12)
    whole = recurrent_scan(x, dt, a, b, c, segments=segments)
    alone = recurrent_scan(x[:, 5:], dt[:, 5:], a, b[:, 5:], c[:, 5:])
    torch.testing.assert_close(whole[:, 5:], alone)
    assert (recurrent_scan(x, dt, a, b, c)[:, 5:] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_convolution_is_torchs_after_padding_on_the_left(length):
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3).double()
    x = torch.randn(2, length, 6, dtype=torch.float64)
    theirs = conv(x.transpose(1, 2))[..., :length].transpose(1, 2)
    torch.testing.assert_close(causal_conv(x, conv.weight[:, 0], conv.bias), theirs)


def block(**settings) -> Mamba2:
    torch.manual_seed(0)
    made = Mamba2(16, **{"state": 8, "head_dim": 8, "expand": 2, "conv": 4, **settings})
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


@pytest.mark.parametrize("length", [1, 7, 70])
def test_the_block_is_transformers_with_the_same_weights(length):
    transformers = pytest.importorskip("transformers", reason="the peer is transformers' Mamba-2")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = transformers.Mamba2Config(
        hidden_size=16,
        state_size=8,
        num_heads=4,
        head_dim=8,
        expand=2,
        conv_kernel=4,
        n_groups=1,
        chunk_size=16,
    )
    ours, peer = block(), Mamba2Mixer(config, layer_idx=0).eval()
    peer.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, length, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), peer(x), rtol=1e-5, atol=1e-5)


def test_packed_sequences_are_what_they_are_alone():
    mixer, x = block(), torch.randn(1, 150, 16)
    lengths = [3, 90, 1, 56]
    segments = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(lengths))[None]
    with torch.no_grad():
        alone = torch.cat([mixer(part) for part in x.split(lengths, 1)], 1)
        torch.testing.assert_close(mixer(x, segments), alone, rtol=1e-4, atol=1e-5)
        assert (mixer(x) - alone).abs().max() > 1e-3


def test_steps_start_between_a_thousandth_and_a_tenth():
    step = torch.nn.functional.softplus(Mamba2(64, state=4, head_dim=1, expand=2, conv=2).dt_bias)
    assert step.min() >= 1e-3 * 0.99 and step.max() <= 0.1 * 1.01 and step.std() > 0.01


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="32 is not a multiple of head_dim 5"):
        block(head_dim=5)
    with pytest.raises(ValueError, match="kernel is 'cuda'; allowed: auto, torch, mamba_ssm"):
        block(kernel="cuda")


def test_a_kernel_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(ssd, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mamba_ssm and it is not installed"):
        block(kernel="mamba_ssm")


@pytest.mark.skipif(
    not torch.cuda.is_available() or ssd.find_spec("mamba_ssm") is None, reason="needs CUDA and mamba_ssm"
)
@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
def test_the_kernel_and_torch_agree(packed):
    given = [value.cuda() for value in drawn(100, torch.float32)]
    segments = some_segments(100).cuda() if packed else None
    expected = chunked_scan(*given, segments=segments)
    torch.testing.assert_close(ssd.fused_scan(*given, segments=segments), expected, rtol=1e-2, atol=1e-2)
