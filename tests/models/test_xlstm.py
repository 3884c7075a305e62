"""xLSTM against the package's recurrent step, one event at a time."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlstm_kernels.torch import get_mlstm_kernel
from torch.nn import functional as F

import recpipe.models.xlstm as ours
from recpipe.data.batches import Batch
from recpipe.models.registry import build
from recpipe.models.xlstm import mLSTMBlock, xLSTMLargeConfig

ITEMS, LONGEST = 30, 101


def build_model(**config):
    torch.manual_seed(0)
    model = build("xlstm", {"dim": 32, "heads": 2, **config}, n_items=ITEMS, max_length=LONGEST)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def library_block(block: ours.MatrixBlock) -> mLSTMBlock:
    """The package's block with our weights, in recurrent mode."""
    settings = {**block.config.__dict__, "mode": "inference"}
    whole = mLSTMBlock(xLSTMLargeConfig(**settings)).eval()
    whole.load_state_dict(block.state_dict(), strict=True)
    return whole


def hidden(model, items_BT: torch.Tensor) -> torch.Tensor:
    return model.hidden(Batch(items_BT, torch.full((len(items_BT),), items_BT.shape[1]), None))


@torch.no_grad()
def step_by_step(model, items_BT: torch.Tensor) -> torch.Tensor:
    """Hidden states of the package, one event at a time."""
    x_BTD = F.embedding(items_BT, model.items.table()) * math.sqrt(model.config.dim)
    for block in model.blocks:
        outputs, state = [], None
        if isinstance(block, ours.ScalarBlock):
            for x in x_BTD.split(1, 1):
                y, state = block.step(x, **(state or {}))
                outputs.append(y)
        else:
            library = library_block(block)
            for x in x_BTD.split(1, 1):
                y, state = library(x, state)
                outputs.append(y)
        x_BTD = torch.cat(outputs, 1)
    return model.norm(x_BTD)


@pytest.mark.parametrize("slstm_at", [(), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("length", [1, 7, 40, 41, 101])
def test_any_length_equals_the_librarys_recurrent_step(length, slstm_at):
    model = build_model(slstm_at=slstm_at)
    items = torch.randint(1, ITEMS + 1, (3, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        torch.testing.assert_close(hidden(model, items), step_by_step(model, items), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [("auto", None), ("native_autograd", 7), ("native_custbw", None)])
@pytest.mark.parametrize("length", [3, 40, 97])
def test_gradients_do_not_depend_on_how_the_length_is_cut(length, kernel):
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 2, length, 8), (2, 2, length, 8), (2, 2, length, 16), (2, 2, length), (2, 2, length)]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    weight = torch.randn(shapes[2], generator=generator)
    whole = get_mlstm_kernel(ours.NATIVE)(*inputs, chunk_size=length)  # a single chunk: the parallel form
    cut, _ = ours.PaddedKernel(*kernel)(*inputs)
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-4)
    if "custbw" in kernel[0]:  # its gradient is right before a norm, which the block has
        cut, whole = (torch.nn.functional.rms_norm(outputs, outputs.shape[-1:]) for outputs in (cut, whole))
    expected = torch.autograd.grad((whole * weight).sum(), inputs)
    for got, wanted in zip(torch.autograd.grad((cut * weight).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_chunks_hold_every_length_and_obey_the_librarys_rules_for_triton(monkeypatch):
    rules = triton_rules(monkeypatch)
    for length in range(1, 700):
        chunk, padded = ours.equal_chunks(length, ours.NATIVE_CHUNK)
        assert padded % chunk == 0 and chunk <= ours.NATIVE_CHUNK
        assert length <= padded < length + padded // chunk
        chunk, padded = ours.triton_chunks(length)
        assert padded >= length and padded % chunk == 0
        assert rules(padded, chunk).chunk_size_intra in (chunk, padded)  # raises where a rule is broken


def triton_rules(monkeypatch):
    """The package's check of lengths, loaded from its file since importing the package needs Triton."""
    folder = Path(importlib.util.find_spec("mlstm_kernels").submodule_search_locations[0]) / "triton/chunkwise"
    spec = importlib.util.spec_from_file_location("triton_rules", folder / "kernel_param_heuristics.py")
    module = importlib.util.module_from_spec(spec)
    module.__package__ = "mlstm_kernels.triton.chunkwise"
    monkeypatch.setitem(sys.modules, "triton_rules", module)
    spec.loader.exec_module(module)
    return module.get_xl_chunk_kernel_params


def test_bf16_autocast_stays_near_float32():
    model = build_model()
    items = torch.randint(1, ITEMS + 1, (3, 50), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact = hidden(model, items)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = hidden(model, items)
    assert F.cosine_similarity(exact, low.float(), dim=-1).min() > 0.995


def test_the_head_starts_near_uniform_and_memory_starts_long():
    torch.manual_seed(0)
    model = build("xlstm", {}, n_items=500, max_length=9).eval()
    batch = Batch(torch.randint(1, 501, (4, 9)), torch.full((4,), 9), None)
    with torch.no_grad():
        assert model.score(batch)[:, 1:].softmax(1).max() < 0.02
        x = torch.randn(2, 9, 64)
        assert model.blocks[0].mlstm_layer.fgate_preact(x).sigmoid().mean() > 0.9


def test_our_module_and_the_package_of_the_same_name_are_two():
    package = sys.modules["xlstm"]
    assert ours.__name__ == "recpipe.models.xlstm"
    assert package.__file__ != ours.__file__ and issubclass(ours.ScalarBlock, package.sLSTMBlock)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": 30, "heads": 4}, "width of 30 .* not a multiple of heads 4"),
        ({"kernel": "fast"}, "kernel is 'fast'; allowed: auto, native_autograd"),
        ({"chunk": 0}, "chunk is 0"),
        ({"slstm_at": [2]}, r"slstm_at has \[2\]; allowed: 0 to 1"),
        ({"dim": 4, "heads": 4, "qk_dim_factor": 1.0, "slstm_at": [0]}, "at least 2 wide"),
    ],
)
def test_settings_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build("xlstm", config, n_items=5, max_length=5)


def test_a_triton_kernel_trains_on_a_gpu_only_and_is_used_on_a_cpu_with_the_native_one():
    model = build_model(kernel="triton_xl_chunk")
    items = torch.randint(1, ITEMS + 1, (3, 9))
    with torch.no_grad():
        torch.testing.assert_close(hidden(model, items), hidden(build_model(), items))
    with pytest.raises(ValueError, match="trains on a GPU only; set kernel: auto"):
        hidden(model.train(), items)


def test_the_package_is_imported_where_there_is_a_card_and_no_toolkit():
    """The package asks torch for the toolkit if there is a GPU; torch raises if there is none."""
    code = (
        "import os, torch; from torch.utils import cpp_extension; torch.cuda.is_available = lambda: True; "
        "cpp_extension.CUDA_HOME = None; {}; "
        "assert cpp_extension.CUDA_HOME is None and 'CUDA_LIB' not in os.environ"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_LIB"}
    for imported, works in (("import xlstm", False), ("import recpipe.models.xlstm", True)):
        command = [sys.executable, "-c", code.format(imported)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == works, done.stderr
        assert works or "CUDA_HOME" in done.stderr


def test_the_kernels_own_way_back_is_right_where_a_norm_follows():
    """Custom kernels treat the normaliser as constant; a norm per head cancels the difference."""

    def gradients(name, normed):
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, 2, 80, 8), (1, 2, 80, 8), (1, 2, 80, 16), (1, 2, 80), (1, 2, 80)]
        inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        mixed = get_mlstm_kernel(name)(*inputs, chunk_size=40)
        mixed = F.rms_norm(mixed, mixed.shape[-1:]) if normed else mixed
        weight = torch.randn(mixed.shape, generator=generator)
        return torch.cat([each.flatten() for each in torch.autograd.grad((mixed * weight).sum(), inputs)])

    own = "chunkwise--native_custbw"
    torch.testing.assert_close(gradients(own, True), gradients(ours.NATIVE, True), rtol=1e-3, atol=1e-4)
    assert (gradients(own, False) - gradients(ours.NATIVE, False)).norm() > 0.1
