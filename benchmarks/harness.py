"""What the benchmarks share: command line, conf, load of the machine, and the generated data of ``--quick``.

``--quick`` runs the same code on data of a few dozen users and items, in seconds. Its numbers mean nothing; it shows
that the benchmark works, and tests/benchmarks runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from torch import Tensor

    from recpipe.config import Configuration
    from recpipe.data.protocol import Protocol

CONF = Path(__file__).parents[1] / "conf"
NOT_INSTALLED = "not installed"
ALLOCATOR = {"MALLOC_TOP_PAD_": "268435456", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BENCH_THREADS")
WORDS = ("red", "blue", "small", "large", "cup", "plate", "lamp", "clock", "glass", "wood", "garden", "kitchen")


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--quick``; ``doc`` is the benchmark's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, on small generated data; numbers mean nothing")
    return parser


class OtherLoad:
    """CPU cores that other processes used since this object was made. 0 where the system does not tell."""

    def __init__(self) -> None:
        self.started, self.busy, self.own = time.perf_counter(), cores_busy(), own_cpu()

    def cores(self) -> float:
        """The mean so far, without this process and its finished children."""
        others = cores_busy() - self.busy - (own_cpu() - self.own)
        return max(others / (time.perf_counter() - self.started), 0.0)


def cores_busy() -> float:
    """CPU seconds of the whole machine so far, 0 where that is not known."""
    try:
        values = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def own_cpu() -> float:
    """CPU seconds of this process, its threads and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_gib() -> float:
    """Peak memory of this process so far in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run_alone(command: list[str], cwd: Path | None = None, *, threads: int = 2) -> tuple[str, float]:
    """Standard output of a program, and the cores that other processes used meanwhile. SystemExit where it fails.

    Every program gets the same allocator settings.
    """
    load = OtherLoad()
    environment = {**os.environ, **ALLOCATOR, **dict.fromkeys(THREADS, str(threads))}
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed, see above")
    return done.stdout, load.cores()


def measure_alone(file: str, *words: str, quick: bool) -> dict:
    """What ``file --measure …`` prints as JSON in its last line, in a process of its own, and ``others``.

    On two threads; on one with ``--quick``, as two wait for each other where the tests share a machine.
    """
    output, others = run_alone([sys.executable, file, *words], threads=1 if quick else 2)
    return {"others": others, **json.loads(output.splitlines()[-1])}


def configuration(dataset: str, **overrides: Any) -> Configuration:
    """The configuration of a data set, as ``kedro run`` has it without a local environment."""
    from recpipe.config import Configuration
    from recpipe.models.registry import model_info

    return Configuration.read(CONF, "base", {**overrides, "dataset": dataset}, model_info)


def protocol_of(dataset: str) -> Protocol:
    """The protocol of a data set."""
    from recpipe.data.protocol import Protocol

    return Protocol.from_dict({**configuration(dataset)["protocol"], "dataset": dataset})


def random_ids(n: int, sizes: tuple[int, ...], *, seed: int = 0) -> np.ndarray:
    """(n, L) distinct semantic ids that cluster: first codes of a power law, the rest even; in random order."""
    generator = np.random.default_rng(seed)
    first = np.minimum(generator.zipf(1.3, 2 * n) - 1, 4 * sizes[0]) % sizes[0]
    codes = np.stack([first, *(generator.integers(0, size, 2 * n) for size in sizes[1:])], axis=1)
    keys = np.unique(np.ravel_multi_index(tuple(codes.T), sizes))
    keys = generator.permutation(keys)[:n]
    assert len(keys) == n
    return np.stack(np.unravel_index(keys, sizes), 1).astype(np.int32)


def generated_log(path: Path, *, users: int = 60, items: int = 50) -> Path:
    """An interactions Parquet of users with 5 to 30 events, who usually go on to the next item."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 31, users)
    owner = np.repeat(np.arange(users), lengths)
    place = np.concatenate([np.arange(length) for length in lengths])
    walk = (rng.integers(0, items, users)[owner] + place) % items
    walk = np.where(rng.random(len(walk)) < 0.1, rng.integers(0, items, len(walk)), walk)
    table = {
        "user_id": pa.array([f"u{user:05}" for user in owner], pa.string()),
        "item_id": pa.array([f"i{item:05}" for item in walk], pa.string()),
        "timestamp": pa.array(1_600_000_000 + 3600 * place, pa.int64()),
        "order": pa.array(np.arange(len(walk)), pa.int64()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def generated_items(path: Path, *, items: int = 50) -> Path:
    """An items Parquet with ids, titles, texts and categories."""
    rng = np.random.default_rng(1)
    titles = [" ".join(rng.choice(WORDS, 3)) for _ in range(items)]
    table = {
        "item_id": pa.array([f"i{item:05}" for item in range(items)], pa.string()),
        "title": pa.array(titles, pa.string()),
        "text": pa.array([f"{title}, for the {title.split()[-1]}" for title in titles], pa.string()),
        "categories": pa.array([["all", title.split()[0]] for title in titles], pa.list_(pa.string())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def generated_embeddings(path: Path, *, items: int = 50, width: int = 16) -> Path:
    """Random vectors of all items, as the embed pipeline writes them."""
    from recpipe.content.embeddings import Embeddings

    ids = np.array([f"i{item:05}" for item in range(items)], dtype=object)
    vectors = np.random.default_rng(2).normal(size=(items, width)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    Embeddings(ids, vectors, np.ones(items, bool), ids, "generated").write(path)
    return path


def generated_data(folder: Path, dataset: str, *, held_out_items: float = 0.0) -> Path:
    """A data folder as Kedro leaves it before training: items, text vectors, split, semantic ids."""
    from dataclasses import replace

    from recpipe.data.sequence_builder import build_sequences
    from recpipe.data.splits import split
    from recpipe.semantic_ids.ids import SemanticIds
    from recpipe.semantic_ids.prefix_tree import PrefixTree

    log = generated_log(folder / "03_primary" / dataset / "interactions.parquet")
    generated_items(folder / "03_primary" / dataset / "items.parquet")
    generated_embeddings(folder / "04_feature" / dataset / "text_embeddings.parquet")
    protocol = replace(protocol_of(dataset), held_out_items=held_out_items)
    sequences, vocabulary = build_sequences(log, ties=protocol.ties, seed=protocol.seed)
    protocol, parts = (replace(protocol, fingerprint=sequences.fingerprint()), split(sequences, protocol, vocabulary))
    place = folder / "05_model_input" / dataset
    place.mkdir(parents=True)
    parts.train.write(place / "train_set.arrow")
    parts.valid.write(place / "valid_set.arrow")
    parts.test.write(place / "test_set.arrow")
    vocabulary.write(place / "vocabulary.parquet")
    (place / "protocol.json").write_text(json.dumps(protocol.to_dict()))
    for modality, sizes in {"text": (8, 8, 8), "text_parts": (8,) * 4}.items():
        codes, ids = random_ids(len(vocabulary), sizes), place / "semantic_ids" / f"{modality}_ids"
        ids.mkdir(parents=True)
        added = np.zeros(len(vocabulary), bool)
        found = SemanticIds(vocabulary.ids, codes, codes, added, sizes, {"quantizer": "generated"})
        found.write(ids / "semantic_ids.parquet")
        PrefixTree.build(codes, sizes, source=found.hash).write(ids / "prefix_tree.safetensors")
    return folder


def train_on_generated(data: Path, dataset: str, name: str, settings: dict[str, Any] | None = None) -> None:
    """Trains a model of the conf on ``generated_data`` and leaves its bundle where Kedro would."""
    from recpipe.training.standalone import DataFolder, train

    run = configuration(dataset, models={name: settings or {}}).run(name)
    train(run, DataFolder(data, dataset))


def from_transformers(tensors: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    """State dict of our T5's ``side``, encoder or decoder, from that of transformers' T5ForConditionalGeneration."""
    import torch

    state = {
        "relative.table.weight": tensors[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
        "norm.weight": tensors[f"{side}.final_layer_norm.weight"],
    }
    parts: list[tuple[str, str, dict[str, Sequence[str]]]] = [
        ("attention", "SelfAttention", {"qkv": "qkv", "out": "o"}),
        ("cross", "EncDecAttention", {"q": "q", "kv": "kv", "out": "o"}),
        ("feed", "DenseReluDense", {"up": ["wi"], "down": ["wo"]}),
    ]
    if side == "encoder":
        del parts[1]
    blocks = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith(f"{side}.block."))
    for block, (place, (part, source, weights)) in product(range(blocks), enumerate(parts)):
        stem, target = f"{side}.block.{block}.layer.{place}", f"layers.{block}.{part}"
        state[f"{target}.norm.weight"] = tensors[f"{stem}.layer_norm.weight"]
        for name, sources in weights.items():
            joined = [tensors[f"{stem}.{source}.{each}.weight"] for each in sources]
            state[f"{target}.{name}.weight"] = torch.cat(joined)
    return state
