"""Mamba-2 against its recurrence and against transformers with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recpipe.layers import ssd as module
from recpipe.layers.ssd import KERNELS, Mamba2, causal_conv, choose_kernel, equal_chunks, ssd

DIM = 24


def inputs(T: int, kind: torch.dtype = torch.float64, *, B: int = 3, H: int = 2) -> list[Tensor]:
    """x, dt, A, B, C, D with weak and strong decays."""
    g = torch.Generator().manual_seed(T)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    dt = torch.nn.functional.softplus(draw(B, T, H) * 2 - 1)
    values = [draw(B, T, H, 8), dt, -draw(H).exp(), draw(B, T, 5), draw(B, T, 5), draw(H)]
    return [value.to(kind).requires_grad_() for value in values]


def recurrence(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_H: Tensor,
    segments_BT: Tensor | None = None,
) -> Tensor:
    """The recurrence of the docstring of recpipe.layers.ssd, event by event."""
    state, outputs = x_BTHP.new_zeros(*x_BTHP.shape[:1], *x_BTHP.shape[2:], B_BTN.shape[-1]), []
    for t in range(x_BTHP.shape[1]):
        decay = (dt_BTH[:, t] * A_H).exp()
        if segments_BT is not None and t:
            decay = decay * (segments_BT[:, t] == segments_BT[:, t - 1])[:, None]
        x_BHP = x_BTHP[:, t]
        update = (dt_BTH[:, t, :, None] * x_BHP)[..., None] * B_BTN[:, t, None, None]
        state = state * decay[..., None, None] + update
        outputs.append((state * C_BTN[:, t, None, None]).sum(-1) + D_H[:, None] * x_BHP)
    return torch.stack(outputs, 1)


def mixer(seed: int = 0, **config) -> Mamba2:
    torch.manual_seed(seed)
    layer = Mamba2(DIM, **{"state": 8, "head_dim": 16, **config})
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return layer.eval()


def segments(lengths: list[int], T: int) -> Tensor:
    """1, 2, … for ``lengths`` events each, then 0."""
    marks = torch.zeros(T, dtype=torch.long)
    stops = torch.tensor(lengths).cumsum(0).tolist()
    for number, (length, stop) in enumerate(zip(lengths, stops, strict=True), 1):
        marks[stop - length : stop] = number
    return marks


@pytest.mark.parametrize("T", [1, 2, 31, 64, 101])
@pytest.mark.parametrize("chunk", [1, 8, 40, 200])
def test_chunks_equal_the_recurrence(T, chunk):
    exact = recurrence(*inputs(T))
    torch.testing.assert_close(ssd(*inputs(T), chunk), exact, rtol=1e-11, atol=1e-11)
    single = inputs(T, torch.float32)
    torch.testing.assert_close(ssd(*single, chunk), recurrence(*single), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 40])
@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
def test_gradients_equal_those_of_the_recurrence(chunk, packed):
    values = inputs(33)
    marks = segments([10, 1, 15, 4], 33).expand(3, -1) if packed else None
    weight = torch.randn(3, 33, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(ssd(*values, chunk, marks), values, weight)
    theirs = torch.autograd.grad(recurrence(*values, marks), values, weight)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_strong_decays_of_long_chunks_stay_finite():
    x, dt, A, B, C, D = inputs(90, torch.float32)
    dt = torch.full_like(dt, 20.0).requires_grad_()  # exp(-20 * 90 * |A|) is far below what a float holds
    y = ssd(x, dt, A, B, C, D, 90)
    torch.testing.assert_close(y, recurrence(x, dt, A, B, C, D), rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(y.sum(), (x, dt, A, B, C, D)))


def test_convolution_is_that_of_torch_and_keeps_to_segments():
    conv = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3).double()
    x = torch.randn(2, 11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = conv(x.mT)[..., :11].mT
    torch.testing.assert_close(causal_conv(x, conv.weight, conv.bias), expected)
    one = torch.ones(2, 11, dtype=torch.long)
    torch.testing.assert_close(causal_conv(x, conv.weight, conv.bias, one), expected)
    short = causal_conv(x[:, :2], conv.weight, conv.bias, one[:, :2])
    torch.testing.assert_close(short, expected[:, :2])


@pytest.mark.parametrize("chunk", [1, 6, 40])
def test_packed_sequences_are_mixed_as_if_alone(chunk):
    layer = mixer(chunk=chunk)
    lengths = [7, 1, 12, 2, 6]
    parts = [torch.randn(1, n, DIM, generator=torch.Generator().manual_seed(n)) for n in lengths]
    together = layer(torch.cat([*parts, torch.randn(1, 4, DIM)], 1), segments(lengths, 32)[None])
    alone = torch.cat([layer(part) for part in parts], 1)
    torch.testing.assert_close(together[:, :28], alone, rtol=1e-5, atol=1e-5)
    assert (layer(torch.cat(parts, 1)) - alone).abs().max() > 1e-2  # without marks they would mix


@pytest.mark.parametrize("heads", [1, 3])
def test_parity_with_transformers(heads):
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    layer = mixer(head_dim=2 * DIM // heads, chunk=10)
    config = Mamba2Config(
        hidden_size=DIM,
        num_heads=heads,
        head_dim=2 * DIM // heads,
        state_size=8,
        n_groups=1,
        chunk_size=16,
        num_hidden_layers=1,
    )
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    theirs.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(2, 37, DIM, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), theirs(x), rtol=1e-5, atol=1e-5)
    weight = torch.randn(2, 37, DIM, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(layer(x), list(layer.parameters()), weight)
    expected = torch.autograd.grad(theirs(x), [theirs.get_parameter(n) for n, _ in layer.named_parameters()], weight)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_initial_decays_are_in_the_ranges_of_the_paper():
    layer = Mamba2(64, head_dim=1)
    dt = torch.nn.functional.softplus(layer.dt_bias)
    assert 1e-3 * 0.999 <= dt.min() < 0.01 < dt.max() <= 0.1 * 1.001
    decay = layer.A_log.exp()
    assert 0.999 <= decay.min() < 4
    assert 12 < decay.max() <= 16.001
    assert (layer.D == 1).all()


def test_under_autocast_decays_are_in_float32():
    layer, x = mixer(), torch.randn(2, 50, DIM, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert torch.isfinite(low).all()
    exact = layer(x)
    assert (low - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize(("length", "chunk", "expected"), [(200, 40, (40, 200)), (41, 40, (21, 42)), (1, 40, (1, 1))])
def test_chunks_are_equal_and_add_little(length, chunk, expected):
    assert equal_chunks(length, chunk) == expected


def test_the_kernel_is_chosen_by_device_and_what_is_installed(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(module, "has_mamba_ssm", lambda: False)
    assert [choose_kernel("auto", device) for device in (cpu, cuda)] == ["torch", "torch"]
    with pytest.raises(ValueError, match="not installed"):
        Mamba2(16, head_dim=16, kernel="mamba_ssm")
    monkeypatch.setattr(module, "has_mamba_ssm", lambda: True)
    assert [choose_kernel("auto", device) for device in (cpu, cuda)] == ["torch", "mamba_ssm"]
    assert choose_kernel("torch", cuda) == "torch"
    with pytest.raises(ValueError, match="the model is on cpu"):
        choose_kernel("mamba_ssm", cpu)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head_dim": 7}, "head_dim is 7"),
        ({"head_dim": 16, "kernel": "triton"}, f"allowed: {', '.join(KERNELS)}"),
        ({"head_dim": 16, "chunk": -1}, "chunk is -1"),
        ({"head_dim": 16, "state": 0}, "state is 0"),
    ],
)
def test_wrong_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        Mamba2(16, **config)
