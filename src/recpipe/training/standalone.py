"""Training without Kedro on data that Kedro prepared, for example on a GPU machine.

It needs torch, lightning, numpy, pyarrow, pyyaml and safetensors; with pydantic, types of settings are checked too.
Copy conf and data/03_primary, 04_feature, 05_model_input there (and 06_models of a model whose item vectors another one
reads). Copy the folder --into back:

    python -m recpipe.training.standalone --dataset amazon-beauty --models tiger sasrec --into trained --minutes 9
    cp -r trained/* data/                                                     # where Kedro is
    kedro run --pipelines=evaluate,report --params dataset=amazon-beauty,model=tiger+sasrec

Several GPUs of a machine need `--params train.devices=4` only. Several machines see the same folders, and each runs
`torchrun --nnodes=2 --nproc-per-node=4 ... -m recpipe.training.standalone` with the arguments from above and `--params
train.devices=4,train.num_nodes=2` (docs/tutorials/gpus-and-clusters.md).

After an interruption, by --minutes or otherwise, the same command continues. `--params` changes settings as in
`kedro run`: `--params models.tiger.dropout=.3,models.tiger.train.max_epochs=60`. Only the validation fold is used for
selection.

With --refit, models that were trained and evaluated are trained on all events instead (see ``recpipe.training.refit``);
it needs 03_primary, 06_models and 08_reporting of the data set too.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from recpipe.config import ConfigError, Configuration, DataPaths, RunConfig, build_config, parse_overrides
from recpipe.config.run_config import AUTO
from recpipe.content.embeddings import Embeddings
from recpipe.data.atomic import atomic_file, atomic_folder, latest_version, record_version
from recpipe.data.digests import verified
from recpipe.data.protocol import log_steps
from recpipe.data.sequence_builder import build_sequences
from recpipe.data.sequences import Fold
from recpipe.data.splits import TrainingData
from recpipe.evaluation.evaluate import validator
from recpipe.models.registry import model_class, model_info
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree
from recpipe.training.bundle import Bundle, curve_table, load_bundle, save_bundle
from recpipe.training.distributed import RankError, Ranks, count_devices, external_group, external_ranks
from recpipe.training.job import ItemInputs, TrainingJob, Validator
from recpipe.training.module import OnEpoch
from recpipe.training.newest import evaluation_of
from recpipe.training.refit import MeasuredRun, choose_item_model
from recpipe.training.refit import refit as refit_measured
from recpipe.training.settings import TrainSettings, check_model, choose_device

log = logging.getLogger(__name__)

OTHERS_FIRST = 3.0  # seconds in which torchrun ends a rank if rank 0 has failed too, so that an error is read once


def main(arguments: list[str] | None = None) -> int:
    """Train each model and log its validation metric; return 1 if time was up before all were finished.

    Under torchrun or SLURM's srun all ranks run it, and rank 0 logs and writes. Raises ConfigError for a data set whose
    profile is auto, and for wrong settings.
    """
    options = _parser().parse_args(arguments)
    ranks = external_ranks()
    logging.basicConfig(level=logging.INFO if ranks.is_main else logging.ERROR, format="%(message)s")
    logging.getLogger("recpipe.training.module").setLevel(logging.WARNING)  # `epoch_logger` shows every epoch
    ends = time.perf_counter() + 60 * options.minutes
    data = DataFolder(options.data, options.dataset, options.seed, options.into)
    overrides = {**parse_overrides(options.params), "dataset": options.dataset, "seed": options.seed}
    configuration = Configuration.read(options.conf, options.env, overrides, model_info)
    configuration.check_one_protocol()
    if configuration.profile == AUTO:
        raise ConfigError(
            f"datasets.{options.dataset}.profile is auto, which `kedro run` resolves: give the profile that it "
            f"logged, or null, as --params datasets.{options.dataset}.profile=sparse"
        )
    runs = [configuration.run(name) for name in options.models]
    for run in runs:  # an error in the last one is reported before the first is trained
        check_model(run)
    device = _check_ranks(runs)
    start = refit if options.refit else train
    with external_group(ranks, device):
        unfinished = [run.name for run in runs if not _finished(start, run, data, ends, ranks)]
    if unfinished:
        log.info("time is up; the same command continues with %s", ", ".join(unfinished))
    return int(bool(unfinished))


def _check_ranks(runs: list[RunConfig]) -> str:
    """Return the device of the runs. Raises ValueError where the number of ranks is not that of their settings."""
    device = "cpu"
    for run in runs:
        if not model_class(run.type).closed_form:
            settings = build_config(TrainSettings, run.train, where=f"models.{run.name}.train")
            device = choose_device(settings.device)
            count_devices(settings, device)
    return device


def _finished(start: Callable[..., Bundle], run: RunConfig, data: DataFolder, ends: float, ranks: Ranks) -> bool:
    """Train the model by ``start`` if necessary; return whether it is finished. Raises KeyboardInterrupt for Ctrl-C."""
    (is_time_up,) = ranks.decide(time.perf_counter() > ends)
    if is_time_up:
        return False
    try:
        bundle = start(run, data, epoch_logger(run.name, ends))
    except KeyboardInterrupt:
        if time.perf_counter() > ends or not ranks.is_main:
            return False
        raise
    costs = "  ".join(f"{key} {value}" for key, value in bundle.training["cost"].items())
    log.info("%s seed %s done: %s", run.name, data.seed, costs)
    return True


def train(run: RunConfig, data: DataFolder, on_epoch: OnEpoch | None = None) -> Bundle:
    """Train one model, or return the previous bundle of the same settings and data; write bundle and curve.

    Raises KeyboardInterrupt where ``on_epoch`` interrupts training, which the same call resumes.
    """
    job = data.job(run, validator)

    def train_job() -> Bundle:
        return job.train(on_epoch=on_epoch, keep_checkpoints=True)

    return _train_once(job, train_job, data.bundle_folder(run.name), {}, curves=data.curves_file(run.name))


def refit(run: RunConfig, data: DataFolder, on_epoch: OnEpoch | None = None) -> Bundle:
    """Train a measured model on all events, as ``train``, and write a production bundle."""
    measured = data.measured(run)
    log_data, config = data.whole_log(measured), measured.config(run)
    inputs, about = data.item_inputs(run), {"refit_of": measured.version}
    if run.item_model is not None and inputs.collaborative is not None:
        production = data.latest(run.item_model, "production")
        loaded = None if production is None else load_bundle(production)
        chosen = choose_item_model(inputs.collaborative, loaded, log_data)
        source = production if chosen is loaded else data.latest(run.item_model, "bundle")
        assert source is not None  # one of the two was loaded
        inputs, about["item_vectors"] = replace(inputs, collaborative=chosen), "/".join(source.parts[-2:])
    work = data.results.refit_work(run.name, data.seed)
    job = TrainingJob(config=config, data=log_data, inputs=inputs, work_folder=work, validator=validator)

    def refit_job() -> Bundle:
        return refit_measured(job, measured, on_epoch=on_epoch, keep_checkpoints=True)

    folder = data.bundle_folder(run.name, "production")
    return _train_once(job, refit_job, folder, about)


def _train_once(
    job: TrainingJob,
    train_job: Callable[[], Bundle],
    bundles: Path,
    about: Mapping[str, str],
    *,
    curves: Path | None = None,
) -> Bundle:
    """Return the version among ``bundles`` with the identity of ``job`` and ``about``, or train it and write it.

    Ranks after the first write nothing, and return the bundle of their last state.
    """
    ranks = external_ranks()
    identity = json.loads(json.dumps({**job.identity(), **about}))
    record = job.work_folder / "done.json"
    previous = json.loads(verified(record).read_text()) if record.is_file() else {}
    folder = bundles / previous.get("version", "") / bundles.name
    (is_done,) = ranks.decide(previous.get("identity") == identity and folder.is_dir())
    if is_done:
        log.info("%s was trained with the same settings before: %s", job.config.name, folder)
        return load_bundle(folder, accelerate=job.config.accelerate)
    bundle = train_job()
    if ranks.is_main:
        _write(bundle, bundles, record, identity, curves)
    ranks.wait()
    return bundle


def _write(bundle: Bundle, bundles: Path, record: Path, identity: dict[str, Any], curves: Path | None) -> None:
    """Write a new version of a bundle and its curve, and the record of it; then delete the checkpoints."""
    version = datetime.now(UTC).strftime("%Y-%m-%dT%H.%M.%S.%f")[:-3] + "Z"  # Kedro's form, and its order
    with atomic_folder(bundles / version / bundles.name) as temporary:
        save_bundle(bundle, temporary)
    record_version(bundles, version)
    if curves is not None:
        with atomic_file(curves) as file:
            pq.write_table(curve_table(bundle), file)
    with atomic_file(record) as file:
        file.write_text(json.dumps({"identity": identity, "version": version}))
    bundle.remove_checkpoints()


def epoch_logger(name: str, ends: float) -> OnEpoch:
    """Return a callback that logs every epoch and interrupts training when time is up."""

    def log_epoch(row: Mapping[str, Any]) -> bool:
        log.info("%s  %s", name, "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
        return time.perf_counter() > ends

    return log_epoch


@dataclass(frozen=True)
class DataFolder:
    """Data folder of a data set and a seed, with the paths of conf/base/catalog; ``into``: another one for results."""

    data: Path
    dataset: str
    seed: int = 42
    into: Path | None = None

    @property
    def inputs(self) -> DataPaths:
        """Folders of the inputs."""
        return DataPaths(self.data, self.data, self.dataset)

    @property
    def results(self) -> DataPaths:
        """Folders of the results."""
        return DataPaths(self.into or self.data, self.data, self.dataset)

    def bundle_folder(self, model: str, kind: str = "bundle") -> Path:
        """Return the folder with all versions of a model's bundle, or of its ``production`` bundle."""
        return self.results.models / model / f"seed_{self.seed}" / kind

    def curves_file(self, model: str) -> Path:
        """Return the file of a model's training curve."""
        return self.results.reporting / model / f"seed_{self.seed}" / "curves.parquet"

    def test(self) -> Fold:
        """Read the test fold, which no training reads. Raises ValueError for that of another split."""
        fold = Fold.read(self.inputs.split / "test_set.arrow")
        TrainingData.read(self.inputs.split).check_test_set(fold)
        return fold

    def job(self, config: RunConfig, validator: Validator) -> TrainingJob:
        """Return the training job of a model. Raises ValueError for a missing file, with the command that makes it."""
        if config.init_from != "none":
            raise ValueError(f"init_from={config.init_from}: only `kedro run` begins with another run's weights")
        split = self.inputs.split
        if not (split / "train_set.arrow").is_file():
            raise ValueError(
                f"{split} holds no split; run `kedro run --pipelines=train --params dataset={self.dataset},"
                "model=popular` where Kedro is, and copy the folder"
            )
        data, inputs = TrainingData.read(split), self.item_inputs(config)
        folder = self.results.work(config.name, self.seed)
        return TrainingJob(config=config, data=data, inputs=inputs, work_folder=folder, validator=validator)

    def measured(self, config: RunConfig) -> MeasuredRun:
        """Return a trained and evaluated model. Raises ValueError where it is not on disk."""
        run, folder = f"{config.name}/seed_{self.seed}", self.latest(config.name, "bundle")
        metrics = self.inputs.reporting / run / "metrics.json"
        latest = latest_version(metrics)
        if config.init_from != "none" or folder is None or latest is None:
            raise ValueError(
                f"refit needs {self.dataset}/{run} trained without init_from and evaluated; run "
                f"`kedro run --pipelines=train,evaluate --params dataset={self.dataset},model={config.name},"
                f"seed={self.seed}` where Kedro is, and copy its folders in 06_models and 08_reporting"
            )
        curves = self.inputs.reporting / run / "curves.parquet"
        curve = pq.read_table(verified(curves)) if curves.is_file() else None
        bundle = load_bundle(folder)
        evaluation = evaluation_of(metrics, bundle) or json.loads(verified(latest).read_text(encoding="utf-8"))
        return MeasuredRun(bundle, evaluation, folder.parent.name, curve)

    def whole_log(self, measured: MeasuredRun) -> TrainingData:
        """Read all events of the log. Raises ValueError where it is not that of ``measured``."""
        tables = ("interactions", "users", "ingest_steps")
        log, users, steps = (verified(_existing(self.inputs.primary / f"{t}.parquet", "ingest")) for t in tables)
        protocol = measured.bundle.protocol
        sequences, vocabulary = build_sequences(
            log,
            ties=protocol.ties,
            seed=protocol.seed,
            target_events=protocol.target_events,
            folder=self.inputs.intermediate,
        )
        return measured.whole_log(
            sequences, vocabulary, pq.read_table(users), log_steps(pq.read_table(steps).to_pylist())
        )

    def item_inputs(self, config: RunConfig) -> ItemInputs:
        """Read the table of items, and the vectors and ids that the model reads."""
        paths = self.inputs
        ids, vectors = {}, {}
        for kind in config.ids:
            codes = SemanticIds.read(_existing(paths.ids(kind) / "semantic_ids.parquet", "semantic_ids"))
            tree = PrefixTree.read(_existing(paths.ids(kind) / "prefix_tree.safetensors", "semantic_ids"))
            ids[kind] = codes, tree
        items = pq.read_table(verified(_existing(paths.primary / "items.parquet", "ingest")))
        for name in config.vectors:
            vectors[name] = Embeddings.read(_existing(paths.features / f"{name}_embeddings.parquet", "embed"))
        collaborative = None if config.item_model is None else self._bundle(config.item_model, config.name)
        return ItemInputs(items, vectors, ids, collaborative)

    def _bundle(self, model: str, reader: str) -> Bundle:
        """Load the latest bundle of a model, whose item vectors ``reader`` reads."""
        latest = self.latest(model, "bundle")
        if latest is None:
            reason = f"{self.dataset} has no trained {model} of seed {self.seed}"
            raise ValueError(f"{reason}, whose item vectors {reader} reads: train it first")
        return load_bundle(latest)

    def latest(self, model: str, kind: str) -> Path | None:
        """Return the latest ``bundle`` or ``production`` bundle of a model among inputs and results."""
        folders = {paths.models / model / f"seed_{self.seed}" / kind for paths in (self.inputs, self.results)}
        bundles = [bundle for folder in folders if (bundle := latest_version(folder)) is not None]
        return max(bundles, key=lambda bundle: bundle.parent.name, default=None)


def _existing(file: Path, pipeline: str) -> Path:
    if not file.is_file():
        raise ValueError(f"{file} is missing; run `kedro run --pipelines={pipeline}` where Kedro is, and copy it")
    return file


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m recpipe.training.standalone", description=__doc__, formatter_class=form)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--models", nargs="+", required=True, help="names of files in the conf's models folder")
    parser.add_argument("--data", type=Path, default=Path("data"), help="what Kedro prepared")
    parser.add_argument("--into", type=Path, default=None, help="where results go; by default the same folder")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="the folder with base/")
    parser.add_argument("--env", default=None, help="the environment over base; by default local")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--minutes", type=float, default=1e9, help="training ends after the epoch then running")
    parser.add_argument("--refit", action="store_true", help="train measured models on all events, for use")
    parser.add_argument("--params", default="", metavar="KEY=VALUE,...", help="settings, as in `kedro run`")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, RankError) as error:  # of the user's settings or files; the message says what to do
        if not (ranks := external_ranks()).is_main:
            time.sleep(OTHERS_FIRST)
        sys.exit(f"error: {error}" if ranks.size == 1 else f"error on rank {ranks.rank}: {error}")
