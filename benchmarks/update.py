"""Quality and CPU seconds of a stale model, of its update on new events, and of a refit on all events.

kedro run --pipelines=ingest
python benchmarks/update.py

The last month (30 days) of the log has two halves of equally many events. The stale model is trained on everything
before the month, the update continues it on the first half, the refit is trained on everything before the second half
as the stale model was. All are asked for the next item in the second half: after the events of each user before it
(first), and after all events before a random event of it (any); histories are up to date for all three. ``--month 2``
is the month before the last; ``--grid`` tries other values of conf/base/parameters/update.yml there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from harness import OtherLoad, command_line, configuration, generated_log
from recpipe.config import RunConfig
from recpipe.content.item_texts import clear_placeholder_texts
from recpipe.data.protocol import Protocol
from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequence_builder import build_sequences
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.evaluation.evaluate import validator
from recpipe.models.registry import build
from recpipe.training import fit
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.job import ItemInputs
from recpipe.training.settings import TrainSettings
from recpipe.training.update import Update
from recpipe.training.update_data import UpdateSettings

DAY, MONTH = 86_400, 30
GRID = {"learning_rate": (0.1, 0.3, 1.0), "replay": (0.0, 0.5, 0.8)}
JUDGED = 5000  # random events


@dataclass(frozen=True)
class Months:
    """The log until the end of a month, and the times at which the month and its second half begin."""

    sequences: Sequences
    vocabulary: Vocabulary
    start: int
    middle: int

    @classmethod
    def of(cls, sequences: Sequences, vocabulary: Vocabulary, back: int) -> Months:
        """Take the ``back``-th month from the end of the log."""
        times = sequences.timestamps
        assert times is not None
        end = int(times.max()) + 1 - (back - 1) * MONTH * DAY
        start = end - MONTH * DAY
        middle = int(np.median(times[(times >= start) & (times < end)]))
        return cls(before(sequences, end), vocabulary, start, middle)


def before(sequences: Sequences, moment: int) -> Sequences:
    """Return the events before ``moment`` of the users who have any."""
    assert sequences.timestamps is not None
    counts = np.diff(np.concatenate([[0], np.cumsum(sequences.timestamps < moment)])[sequences.offsets])
    rows = np.flatnonzero(counts)
    return sequences.select(rows, np.zeros_like(rows), counts[rows])


def catalogue(sequences: Sequences, vocabulary: Vocabulary) -> tuple[Sequences, Vocabulary]:
    """Return ``sequences`` by a vocabulary of the items that they have."""
    present = np.unique(sequences.items)
    index = np.searchsorted(present, sequences.items) + 1
    return replace(sequences, items=index.astype(np.int32)), Vocabulary(vocabulary.ids[present - 1])


def main(argv: list[str] | None = None) -> None:
    """Print a row per model."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--dataset", default="online_retail")
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--month", type=int, default=1, help="counted from the end of the log")
    parser.add_argument("--keep", type=Path, help="a folder for the two long trainings, which it keeps for other calls")
    parser.add_argument("--grid", action="store_true", help="try other settings of the update, without the refit")
    options = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        log = options.data / "03_primary" / options.dataset / "interactions.parquet"
        if options.quick:
            log = generated_log(Path(folder) / "interactions.parquet", users=300)
        if not log.is_file():
            parser.error(f"{log} is missing; run `kedro run --pipelines=ingest --params dataset={options.dataset}`")
        options.keep = options.keep or Path(folder)
        compare(options, log, Path(folder))


def compare(options: argparse.Namespace, log: Path, folder: Path) -> None:
    """Train the three models and print their table."""
    conf = configuration(options.dataset, seed=options.seed)
    config = conf.run(options.model)
    config = replace(config, train={**config.train, "device": "cpu", "loggers": [], "resume": False})
    protocol = Protocol.from_dict({**conf["protocol"], "dataset": options.dataset})
    if options.quick:
        months = quick_months(log)
    else:
        months = Months.of(*build_sequences(log, ties=protocol.ties, seed=protocol.seed), options.month)
    queries = {"first": first_queries(months), "any": any_queries(months)}
    load = OtherLoad()
    sizes = [len(before(months.sequences, moment).items) for moment in (months.start, months.middle)]
    users = {name: len(histories) for name, (histories, _) in queries.items()}
    print(f"events: {sizes[0]:,} before, {sizes[1] - sizes[0]:,} in the first half; queries {users}", flush=True)
    print(f"{'model':<44}{'NDCG@10 first':>15}{'any':>9}{'items':>8}{'CPU s':>9}")
    stale, seconds = trained(months, months.start, config, protocol, options.keep)
    print_row("stale", stale, queries, months, seconds)
    for settings in update_settings(conf["update"], grid=options.grid):
        name = ", ".join(f"{key} {getattr(settings, key)}" for key in GRID) if options.grid else ""
        started = time.process_time()
        bundle = updated(stale, months, config, protocol, settings, folder / "update")
        seconds = time.process_time() - started
        print_row(f"update {name}", bundle, queries, months, seconds)
        print(json.dumps({key: value for key, value in bundle.training["updates"][0].items() if key != "settings"}))
    if not options.grid:
        refit, seconds = trained(months, months.middle, config, protocol, options.keep)
        print_row("refit", refit, queries, months, seconds)
    print(f"cores used by others: {load.cores():.1f}")


def quick_months(log: Path) -> Months:
    """Take two halves of the last ten hours of a generated log, in which every event is an hour later."""
    sequences, vocabulary = build_sequences(log)
    assert sequences.timestamps is not None
    end = int(sequences.timestamps.max()) + 1
    return Months(sequences, vocabulary, end - 16 * 3600, end - 10 * 3600)


def update_settings(block: dict, *, grid: bool) -> Iterator[UpdateSettings]:
    """Yield the settings of the conf, or with ``grid`` those with other values."""
    if not grid:
        yield UpdateSettings(**block)
        return
    for values in product(*GRID.values()):
        yield UpdateSettings(**{**block, **dict(zip(GRID, values, strict=True))})


def trained(months: Months, moment: int, config: RunConfig, protocol: Protocol, keep: Path) -> tuple[Bundle, float]:
    """Train on all events before ``moment``, or read the model from ``keep``; return its CPU seconds too."""
    folder = keep / f"{config.name}_{config.seed}_{moment}"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        save_bundle(train_anew(months, moment, config, protocol, keep / "work"), folder)
    bundle = load_bundle(folder, with_seen_events=True)
    return bundle, bundle.training["seconds"]


def train_anew(months: Months, moment: int, config: RunConfig, protocol: Protocol, work: Path) -> Bundle:
    """Train on all events before ``moment``; nothing is validated."""
    data, vocabulary = catalogue(before(months.sequences, moment), months.vocabulary)
    settings = TrainSettings(**config.train)
    window = min(protocol.history, settings.window or protocol.history)
    started = time.process_time()
    result = fit.train(
        lambda: build(config.type, config.settings, n_items=len(vocabulary), max_length=window),
        data,
        None,
        settings,
        seed=config.seed,
        folder=work,
    )
    training = {"seconds": time.process_time() - started, "settings": {"train": dataclasses.asdict(settings)}}
    events = np.bincount(data.items, minlength=len(vocabulary) + 1)[1:]
    return Bundle(
        config.name, config.type, result.model.eval(), vocabulary, [None] * len(vocabulary), events, protocol, training,
        seen_events=SeenEvents.of(data),
    )  # fmt: skip


def updated(
    bundle: Bundle, months: Months, config: RunConfig, protocol: Protocol, settings: UpdateSettings, folder: Path
) -> Bundle:
    """Continue ``bundle`` on the first half of the month."""
    import pyarrow as pa

    data, vocabulary = catalogue(before(months.sequences, months.middle), months.vocabulary)
    ids = pa.array(vocabulary.ids, pa.string())
    return Update(
        bundle=bundle,
        version="stale",
        stands_for={},
        sequences=data,
        vocabulary=vocabulary,
        protocol=replace(protocol, fingerprint=data.fingerprint()),
        inputs=ItemInputs(clear_placeholder_texts(pa.table({"item_id": ids, "title": ids}))),
        config=config,
        settings=settings,
        validator=validator,
        work_folder=folder,
    ).run()


def first_queries(months: Months) -> tuple[Sequences, np.ndarray]:
    """Return histories of all users with events before and in the second half, and the ids of their next item."""
    sequences = months.sequences
    assert sequences.timestamps is not None
    counts = np.diff(np.concatenate([[0], np.cumsum(sequences.timestamps < months.middle)])[sequences.offsets])
    rows = np.flatnonzero((counts > 0) & (counts < sequences.lengths))
    return queries_at(months, rows, counts[rows])


def any_queries(months: Months) -> tuple[Sequences, np.ndarray]:
    """Return histories before random events of the second half, and the ids of these."""
    sequences = months.sequences
    assert sequences.timestamps is not None
    owner = np.repeat(np.arange(len(sequences)), sequences.lengths)
    place = np.arange(len(owner)) - sequences.offsets[owner]
    events = np.flatnonzero((sequences.timestamps >= months.middle) & (place > 0))
    events = np.random.default_rng(0).permutation(events)[:JUDGED]
    return queries_at(months, owner[events], place[events])


def queries_at(months: Months, rows: np.ndarray, places: np.ndarray) -> tuple[Sequences, np.ndarray]:
    """Return the histories of users ``rows`` before their events ``places``, and the ids of these."""
    sequences = months.sequences
    targets = sequences.items[sequences.offsets[rows] + places]
    return sequences.select(rows, np.zeros_like(places), places), months.vocabulary.ids[targets - 1]


def ndcg(bundle: Bundle, histories: Sequences, targets: np.ndarray, months: Months) -> float:
    """Return the mean NDCG@10; an item that the model does not know counts as not found."""
    index = np.concatenate([[0], bundle.vocabulary.encode(months.vocabulary.ids)]).astype(np.int32)
    items = index[histories.items]
    known = items > 0
    offsets = np.concatenate([[0], np.cumsum(known)])[histories.offsets]
    times = None if histories.timestamps is None else histories.timestamps[known]
    histories = Sequences(histories.users, items[known], times, offsets)
    lists, _ = bundle.model.recommend(histories, 10, exclude_seen=bundle.protocol.exclude_seen)
    hits = (lists == bundle.vocabulary.encode(targets)[:, None]) & (lists > 0)
    return float((hits / np.log2(np.arange(2, lists.shape[1] + 2))).sum(1).mean())


def print_row(name: str, bundle: Bundle, queries: dict, months: Months, seconds: float) -> None:
    """Print quality and seconds of a model."""
    first, any_ = (ndcg(bundle, *queries[key], months) for key in ("first", "any"))
    print(f"{name:<44}{first:>15.4f}{any_:>9.4f}{len(bundle.vocabulary):>8,}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
