"""How fast are beams over semantic ids, and exact scores? Beside transformers' generate on the same weights and ids.

    OMP_NUM_THREADS=2 python benchmarks/decoding.py --peer "$(which python)"

``--tiger``: a folder with model/, inputs.npz and ref_beam{20,50}.npz, written by hf_tiger_generate.py, which lies two
folders up and is run for ``--peer``, a Python with transformers. Its scores are of four codes and an end token over
the whole vocabulary: a fifth level of one code here, except for "no end", as in our models. Lists are equal if all
their items are, in order.
Numbers are the best of ``--seconds``, beside the cores that other processes used meanwhile. Kinds take turns, half of
their time before the peer's and half after. ``--only`` some tables: speed, exact.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness import ALLOCATOR, NOT_INSTALLED, OtherLoad, command_line, from_transformers, peak_gib, random_ids
from recpipe.accelerate import keep_freed_memory
from recpipe.accelerate.t5 import FastDecoder, FastEncoder, FastLinear
from recpipe.decoding import Beams, beam_search, exact_scores, exact_top
from recpipe.decoding.exact import IndependentLevels
from recpipe.layers.t5 import Decoder, Encoder, T5Shape
from recpipe.layers.top_k import top_k
from recpipe.semantic_ids.prefix_tree import PrefixTree

MIN_PART = 160  # beams of a part that is worth a thread
TIMED = {1: 8, 8: 16}  # users that a batch of so many is timed with
LEVELS, CODES, FIRST, END = 4, 256, 2, 1  # token of code c at level l: FIRST + l * CODES + c


def main(argv: list[str] | None = None) -> None:
    """Print the tables."""
    parser = command_line(__doc__)
    parser.add_argument("--tiger", type=Path, default=Path("../shared/peers/prepared/tiger"))
    parser.add_argument("--peer", help="a Python that has transformers")
    parser.add_argument("--only", nargs="+", default=["speed", "exact"])
    parser.add_argument("--beams", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rows", type=int, default=200, help="beams of all users that are decoded together")
    parser.add_argument("--seconds", type=float, default=4, help="for each number")
    parser.add_argument("--kinds", nargs="+", default=["fast", "no end", "plain"])
    arguments = parser.parse_args(argv)
    sizes = QUICK if arguments.quick else FULL
    keep_freed_memory()  # as a training does; the peer gets the same settings
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            arguments.seconds, arguments.beams, arguments.batches = 0, [5], [4]
            arguments.tiger, arguments.peer = generated_tiger(Path(folder), beam=5), None
        if "speed" in arguments.only:
            if (arguments.tiger / "inputs.npz").exists():
                speed(arguments)
            else:
                print(f"{arguments.tiger} does not exist; set it with --tiger")
    if "exact" in arguments.only:
        exact_table(arguments.seconds, sizes)
        parallel_table(arguments.seconds, sizes)


class Sizes(NamedTuple):
    """Sizes of the tables without a peer."""

    exact: tuple[tuple[int, int], ...]  # items, users
    parallel: tuple[int, tuple[int, ...]]  # items, users of a batch


FULL = Sizes(((12_101, 1), (12_101, 256), (100_000, 64), (1_000_000, 1), (1_000_000, 32)), (12_101, (1, 32, 256)))
QUICK = Sizes(((1_000, 1), (1_000, 8)), (1_000, (1, 8)))


class Inputs(NamedTuple):
    """Histories, and the tree of the catalogue's ids, also with a fifth level for the end token."""

    tokens: Tensor  # (U, T)
    mask: Tensor  # (U, T)
    tree: PrefixTree
    ended: PrefixTree


class Tiger:
    """The peer's model by our layers: plain, fast, or fast without an end token."""

    def __init__(self, folder: Path, kind: str) -> None:
        tensors = load_file(folder / "model" / "model.safetensors")
        encoder, decoder = Encoder(T5Shape()).eval(), Decoder(T5Shape()).eval()
        encoder.load_state_dict(from_transformers(tensors, "encoder"))
        decoder.load_state_dict(from_transformers(tensors, "decoder"))
        self.encoder, self.decoder, self.ends = encoder, decoder, kind != "no end"
        if kind != "plain":
            self.encoder, self.decoder = FastEncoder(encoder), FastDecoder(decoder)
        self.table = tensors["shared.weight"]
        self.head = FastLinear(self.table * self.table.shape[1] ** -0.5)

    def lists(self, inputs: Inputs, users: Tensor, beam: int, rows: int) -> Tensor:
        """(B, K) items of users: histories of similar length together, and each part on a thread of its own."""
        lengths = inputs.mask[users].sum(1)
        order, items = lengths.argsort(), torch.empty(len(users), beam, dtype=torch.int64)

        @torch.inference_mode()
        def run(chosen: Tensor) -> None:
            longest = int(lengths[chosen].max())
            items[chosen] = self.search(inputs, users[chosen], longest, beam).items

        threads, beams = torch.get_num_threads(), len(users) * beam
        parts = order.tensor_split(max(min(-(-beams // (rows * threads)) * threads, beams // MIN_PART), 1))
        if threads == 1 or len(parts) == 1:
            for part in parts:
                run(part)
            return items
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(run, parts))
        torch.set_num_threads(threads)
        return items

    def search(self, inputs: Inputs, users: Tensor, longest: int, beam: int) -> Beams:
        """Results for users with histories of similar length."""
        mask = inputs.mask[users, :longest]
        encoded = self.encoder(self.table[inputs.tokens[users, :longest]], mask)
        return beam_search(Steps(self, encoded, mask), inputs.ended if self.ends else inputs.tree, beam=beam)


class Steps:
    """Decoding steps of its beam search."""

    def __init__(self, model: Tiger, encoded: Tensor, mask: Tensor) -> None:
        self.model, self.memory = model, model.decoder.memory(encoded, mask)
        self.cache, self.users = model.decoder.cache(), len(mask)

    def step(self, level: int, codes_BK: Tensor | None, parents_BK: Tensor | None) -> Tensor:
        """Log-probabilities of the softmax over all tokens."""
        if codes_BK is None:
            tokens = torch.zeros(self.users, 1, dtype=torch.int64)
        else:
            tokens = codes_BK + (FIRST + (level - 1) * CODES)
        hidden = self.model.decoder.step(self.model.table[tokens], self.memory, self.cache, parents_BK)
        logits = self.model.head(hidden.flatten(0, 1)).float().unflatten(0, hidden.shape[:2])
        first = FIRST + level * CODES
        rows = slice(first, first + CODES) if level < LEVELS else slice(END, END + 1)
        return logits.log_softmax(-1)[..., rows]


def generated_tiger(folder: Path, *, beam: int, users: int = 8, items: int = 300) -> Path:
    """A ``--tiger`` folder with random weights under transformers' names, and the lists of our plain modules."""
    from transformers import T5Config, T5ForConditionalGeneration

    shape, generator = T5Shape(), np.random.default_rng(0)
    torch.manual_seed(0)
    network = T5ForConditionalGeneration(
        T5Config(
            vocab_size=FIRST + LEVELS * CODES,
            d_model=shape.dim,
            d_kv=shape.head_dim,
            d_ff=shape.feed_forward,
            num_layers=shape.layers,
            num_decoder_layers=shape.decoder_layers,
            num_heads=shape.heads,
        )
    )
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name not in tied}
    (folder / "model").mkdir()
    save_file(tensors, folder / "model" / "model.safetensors")
    codes = random_tree(items)[0]
    tokens = codes[generator.integers(0, items, (users, 3))] + (FIRST + CODES * np.arange(LEVELS))
    input_ids = tokens.reshape(users, -1).astype(np.int64)
    arrays = {"codes": codes, "input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
    np.savez(folder / "inputs.npz", **arrays)
    with torch.inference_mode():
        lists = Tiger(folder, "plain").lists(read_inputs(folder), torch.arange(users), beam, rows=200)
    np.savez(folder / f"ref_beam{beam}.npz", items=lists.numpy())
    return folder


def read_inputs(folder: Path) -> Inputs:
    """Read inputs.npz of a ``--tiger`` folder."""
    arrays = np.load(folder / "inputs.npz")
    ids = np.concatenate([arrays["codes"], np.zeros((len(arrays["codes"]), 1), np.int64)], 1)
    return Inputs(
        torch.from_numpy(arrays["input_ids"]),
        torch.from_numpy(arrays["attention_mask"]).bool(),
        PrefixTree.build(arrays["codes"], [CODES] * LEVELS),
        PrefixTree.build(ids, [*[CODES] * LEVELS, 1]),
    )


def speed(arguments: argparse.Namespace) -> None:
    """Users per second, and whether lists are the peer's."""
    inputs = read_inputs(arguments.tiger)
    models = {kind: Tiger(arguments.tiger, kind) for kind in arguments.kinds}
    print(f"\n{'beam':>5} {'batch':>5} {'what':14} {'users/s':>8} {'others':>7} {'equal lists':>12} {'peak GiB':>9}")
    for beam in arguments.beams:
        expected = np.load(arguments.tiger / f"ref_beam{beam}.npz")["items"]
        for batch in arguments.batches:
            users = torch.arange(len(expected)).split(batch)

            def lists(model: Tiger, some: Sequence[Tensor]) -> Tensor:
                with torch.inference_mode():
                    return torch.cat([model.lists(inputs, each, beam, arguments.rows) for each in some])  # noqa: B023

            same = {kind: int((lists(model, users).numpy() == expected).all(1).sum()) for kind, model in models.items()}
            some = users[: TIMED.get(batch, batch) // batch]
            runs = {kind: partial(lists, model, some) for kind, model in models.items()}
            best = in_turn(runs, arguments.seconds / 2)
            peers = of_peer(arguments, beam, batch) if arguments.peer else None
            again = in_turn(runs, arguments.seconds / 2)
            for kind, model in models.items():
                timing = min(best[kind], again[kind])
                equal = f"{same[kind]} of {len(expected)}" if model.ends else ""
                row(beam, batch, kind, sum(map(len, some)) / timing.seconds, timing.others, equal, peak_gib())
            if peers:
                row(beam, batch, "transformers", *peers[:2], "", peers[2])
            elif arguments.quick:
                print(f"{beam:>5} {batch:>5} {'transformers':14} {NOT_INSTALLED}")


def row(beam: int, batch: int, what: str, rate: float, others: float, equal: str, memory: float) -> None:
    """Print a row of the table of speeds."""
    print(f"{beam:>5} {batch:>5} {what:14} {rate:>8.1f} {others:>7.2f} {equal:>12} {memory:>9.2f}", flush=True)


class Best(NamedTuple):
    """Shortest time of a run, and the cores that other processes used meanwhile."""

    seconds: float
    others: float


def in_turn(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, Best]:
    """The fastest run of each, ``seconds`` for each, in turn: a shared machine is slower now and then."""
    best: dict[str, Best] = {}
    until = time.perf_counter() + seconds * len(runs)
    while not best or time.perf_counter() < until:
        for kind, run in runs.items():
            timing = fastest(run, 0)
            best[kind] = min(best.get(kind, timing), timing)
    return best


def fastest(run: Callable[[], object], seconds: float) -> Best:
    """The shortest time, in parts of a tenth of a second, after a run to warm up."""
    run()
    timings, until = [], time.perf_counter() + seconds
    while not timings or time.perf_counter() < until:
        load, start, times = OtherLoad(), time.perf_counter(), []
        while time.perf_counter() - start < 0.1:
            times.append(-time.perf_counter())
            run()
            times[-1] += time.perf_counter()
        timings.append(Best(min(times), load.cores()))
    return min(timings)


def of_peer(arguments: argparse.Namespace, beam: int, batch: int) -> tuple[float, float, float]:
    """Users per second, cores of others and GiB of the peer's script, which writes beside itself: in a copy."""
    scripts = arguments.tiger.resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("hf_tiger_generate.py", "common.py"):
            shutil.copy(scripts / name, folder)
        environment = {
            **os.environ,
            **ALLOCATOR,
            "BENCH_PREPARED": str(arguments.tiger.resolve().parent),
            "BENCH_RESULTS": folder,
            "BENCH_THREADS": str(torch.get_num_threads()),
        }
        sizes = ["--n1", "8", "--n8", "16", "--n32", "32", "--reps", "6"]
        command = [arguments.peer, "hf_tiger_generate.py", "bench", "--beams", str(beam), "--batches", str(batch)]
        subprocess.run([*command, *sizes], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        result = json.loads((Path(folder) / "hf_tiger_generate.json").read_text())
    row = result["rows"][0]
    return row["users_per_s"], row["others"], result["peak_rss_mib"] / 1024


def parallel_table(seconds: float, sizes: Sizes, k: int = 20) -> None:
    """Print the speed of a model of independent levels at TIGER's sizes, with events as sums of their codes."""
    items, batches = sizes.parallel
    print(f"\nParallel TIGER's shape, {items:,} items, 3 to 20 events: encoder, one pass, all scores, the best {k}")
    print(f"{'batch':>6} {'users/s':>9} {'others':>7}")
    torch.manual_seed(0)
    encoder, decoder = Encoder(T5Shape()).eval(), Decoder(T5Shape(), causal=False).eval()
    fast, queries = FastEncoder(encoder), torch.randn(1, LEVELS, 128)
    heads, codes = (FastLinear(torch.randn(LEVELS * CODES, 128) * 128**-0.5), torch.from_numpy(random_tree(items)[0]))
    for batch in batches:
        lengths = torch.randint(3, 21, (batch,)).sort().values
        events, mask = torch.randn(batch, 20, 128), torch.arange(20) < lengths[:, None]

        def run() -> object:
            parts = []
            for x, real in zip(events.split(64), mask.split(64), strict=True):  # noqa: B023
                T = int(real.sum(1).max())
                memory = decoder.memory(fast(x[:, :T], real[:, :T]), real[:, :T])
                hidden = decoder(queries.expand(len(x), -1, -1), memory)
                logits = heads(hidden.flatten(0, 1)).view(len(x), LEVELS, LEVELS, CODES)
                logs = [logits[:, level, level].log_softmax(-1) for level in range(LEVELS)]
                parts.append(top_k(exact_scores(logs, codes), k))
            return parts

        with torch.inference_mode():
            best = fastest(run, seconds)
        print(f"{batch:>6} {batch / best.seconds:>9.0f} {best.others:>7.2f}", flush=True)


def random_tree(items: int) -> tuple[np.ndarray, PrefixTree]:
    """Random clustered ids, and their tree."""
    codes = random_ids(items, (CODES,) * LEVELS)
    return codes, PrefixTree.build(codes, (CODES,) * LEVELS)


def exact_table(seconds: float, sizes: Sizes, k: int = 20) -> None:
    """Print the time of exact scores from four independent levels, and of their top k by all scores and by the tree."""
    print(f"\nindependent levels: microseconds per user, the best {k}")
    print(
        f"{'items':>9} {'users':>6} {'scores':>9} {'and best':>9} {'by tree':>9} {'beam':>9} {'others':>7} {'GiB':>6}"
    )
    for items, users in sizes.exact:
        codes, tree = random_tree(items)
        rows, tensors = torch.from_numpy(codes), tree.tensors()
        generator = torch.Generator().manual_seed(0)
        logs = [(3 * torch.randn(users, CODES, generator=generator)).log_softmax(-1) for _ in range(LEVELS)]
        runs: list[Callable[[], object]] = [
            lambda: exact_scores(logs, rows),  # noqa: B023
            lambda: top_k(exact_scores(logs, rows), k),  # noqa: B023
            lambda: exact_top(logs, tensors, k),  # noqa: B023
            lambda: beam_search(IndependentLevels(logs), tensors, beam=k),  # noqa: B023
        ]
        timings = [fastest(run, seconds / 4) for run in runs]
        cells = " ".join(f"{1e6 * each.seconds / users:>9.1f}" for each in timings)
        others = max(each.others for each in timings)
        print(f"{items:>9,} {users:>6} {cells} {others:>7.2f} {peak_gib():>6.2f}", flush=True)


if __name__ == "__main__":
    main()
