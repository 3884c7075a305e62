"""Forward and backward time of the Mamba-2 mixer against that of transformers, by size of chunk.

    OMP_NUM_THREADS=1 python benchmarks/mamba2.py

Milliseconds of CPU time, the best of ``--rounds``; every round runs all variants. The last rows are networks of two
layers without the loss, at their default sizes; their ratio is to SASRec.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from harness import command_line
from recpipe.data.batches import Batch
from recpipe.layers.ssd import Mamba2
from recpipe.models.registry import build

DIM, STATE, ITEMS = 64, 32, 3416


def main(argv: list[str] | None = None) -> None:
    """Print a row per variant."""
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--chunks", type=int, nargs="+", default=[20, 40, 50, 67, 100, 200])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.batch, arguments.length, arguments.chunks, arguments.rounds = 2, 20, [10, 20], 1
    torch.manual_seed(0)
    rows = mixers(arguments) | networks(arguments)
    best = dict.fromkeys(rows, math.inf)
    for _ in range(arguments.rounds + 1):  # one to warm up
        for name, step in rows.items():
            start = time.process_time()
            step()
            best[name] = min(best[name], time.process_time() - start)
    ours = min(seconds for name, seconds in best.items() if name.startswith("ours"))
    print(f"{'variant':32}{'ms':>8}{'ratio':>8}")
    for name, seconds in best.items():
        base = best["sasrec"] if name in ("sasrec", "sasrec ff 4", "mamba4rec") else ours
        print(f"{name:32}{seconds * 1e3:8.0f}{seconds / base:8.2f}")


def mixers(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return steps of mixers by name, with equal weights and, as is checked, equal outputs."""
    x = torch.randn(arguments.batch, arguments.length, DIM, requires_grad=True)
    weight = torch.randn(arguments.batch, arguments.length, DIM)
    modules: dict[str, torch.nn.Module] = {}
    for chunk in arguments.chunks:
        modules[f"ours, chunk {chunk}"] = Mamba2(DIM, state=STATE, head_dim=arguments.head_dim, chunk=chunk)
        config = Mamba2Config(
            hidden_size=DIM,
            num_heads=2 * DIM // arguments.head_dim,
            head_dim=arguments.head_dim,
            state_size=STATE,
            n_groups=1,
            chunk_size=chunk,
            num_hidden_layers=1,
        )
        modules[f"transformers, chunk {chunk}"] = Mamba2Mixer(config, layer_idx=0)
    first, *others = modules.values()
    for other in others:
        other.load_state_dict(first.state_dict(), strict=True)
        torch.testing.assert_close(other(x), first(x), rtol=1e-4, atol=1e-4)
    return {name: lambda mixer=mixer: mixer(x).backward(weight) for name, mixer in modules.items()}


def networks(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return steps of networks by name, from items to hidden states and back."""
    items = torch.randint(1, ITEMS + 1, (arguments.batch, arguments.length))
    batch = Batch(items, torch.full((arguments.batch,), arguments.length), None)
    weight = torch.randn(arguments.batch, arguments.length, DIM)
    variants = {"sasrec": ("sasrec", {}), "sasrec ff 4": ("sasrec", {"feed_forward": 4})}
    variants["mamba4rec"] = ("mamba4rec", {"state": STATE, "head_dim": arguments.head_dim})
    models = {
        name: build(kind, {"dim": DIM, **config}, n_items=ITEMS, max_length=arguments.length).train()
        for name, (kind, config) in variants.items()
    }
    return {name: lambda model=model: model.hidden(batch).backward(weight) for name, model in models.items()}


if __name__ == "__main__":
    main()
