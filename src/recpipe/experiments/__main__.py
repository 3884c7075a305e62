"""Trains models on what Kedro prepared, with no Kedro: on a lent GPU, say.

It needs torch, lightning, numpy, pyarrow, pyyaml and safetensors. Bring data/03_primary, 04_feature, 05_model_input
(and 06_models of a model whose items another one reads) and the conf; take back what lands under --into:

    python -m recpipe.experiments --dataset amazon-beauty --models tiger sasrec --into trained --minutes 9
    cp -r trained/* data/                                                     # where Kedro is
    kedro run --pipelines=evaluate,report --params dataset=amazon-beauty,model=tiger+sasrec

Cut off, by --minutes or otherwise, the same command goes on with what is not done. `--set tiger.dropout=.3
tiger.train.max_epochs=60` changes settings. Nothing but the validation fold is read to judge by.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.atomic import replaced_file, replaced_folder
from recpipe.experiments.material import CURVE
from recpipe.experiments.prepared import Conf, Prepared, read_yaml
from recpipe.models.registry import configured
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.settings import TrainSettings

log = logging.getLogger(__name__)


def main(words: list[str] | None = None) -> int:
    """Trains each model and says how it was judged on the validation fold; 1 if time was up before all were done."""
    asked = _parsed(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("recpipe.training.module").setLevel(logging.WARNING)  # `told` shows every epoch
    ends = time.perf_counter() + 60 * asked.minutes
    prepared = Prepared(asked.data, asked.dataset, asked.seed, asked.into)
    conf = Conf(asked.conf, asked.dataset)
    changed = {name: changes_of(name, asked.set) for name in asked.models}
    for name in asked.models:  # what is wrong with the last is said before the first is trained
        spec, _ = conf.model(name, changed[name])
        configured(TrainSettings, {**conf.block("train"), **spec.train}, where=f"train settings of {name}")
    left = [name for name in asked.models if not _finished(name, prepared, conf, changed[name], ends)]
    if left:
        log.info("time is up; the same command goes on with %s", ", ".join(left))
    return int(bool(left))


def _finished(name: str, prepared: Prepared, conf: Conf, changed: Mapping[str, Any], ends: float) -> bool:
    """Trains the model unless that was done, and says whether it is done now. Raises KeyboardInterrupt for Ctrl-C."""
    if time.perf_counter() > ends:
        return False
    try:
        bundle = trained(name, prepared, conf, changed, told(name, ends))
    except KeyboardInterrupt:
        if time.perf_counter() > ends:
            return False
        raise
    shown = "  ".join(f"{key} {value}" for key, value in bundle.training["cost"].items())
    log.info("%s seed %s done: %s", name, prepared.seed, shown)
    return True


def trained(
    name: str,
    prepared: Prepared,
    conf: Conf,
    changed: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Mapping[str, Any]], bool | None] | None = None,
) -> Bundle:
    """One model of the conf, its bundle and curve left where Kedro looks for them; the latest one if it was made so.

    Raises KeyboardInterrupt where ``on_epoch`` ended training early; the same call goes on then.
    """
    spec, other = conf.model(name, changed)
    material = prepared.material(name, spec, other, conf)
    made_of = json.loads(json.dumps(material.made_of(spec)))
    done, runs = material.work_folder / "done.json", prepared.run_folder("06_models", name) / "bundle"
    kept = json.loads(done.read_text()) if done.is_file() else {}
    earlier = runs / kept.get("version", "") / "bundle"
    if kept.get("made_of") == made_of and earlier.is_dir():
        log.info("%s was trained so before: %s", name, earlier)
        return load_bundle(earlier)
    result, about = material.trained(name, spec, on_epoch=on_epoch)
    bundle: Bundle = material.bundle(name, spec, result, about)
    version = datetime.now(UTC).strftime("%Y-%m-%dT%H.%M.%S.%f")[:-3] + "Z"  # Kedro's form, and its order
    with replaced_folder(runs / version / "bundle") as folder:
        save_bundle(bundle, folder)
    with replaced_file(prepared.run_folder("08_reporting", name) / "curves.parquet") as curves:
        columns = dict.fromkeys(key for row in result.curve or [CURVE] for key in row)
        pq.write_table(pa.table({key: [row.get(key) for row in result.curve] for key in columns}), curves)
    with replaced_file(done) as mark:
        mark.write_text(json.dumps({"made_of": made_of, "version": version}))
    return bundle


def changes_of(name: str, said: list[str]) -> dict[str, Any]:
    """Of `MODEL.KEY=VALUE`, those of one model."""
    pairs = dict(each.split("=", 1) for each in said)
    return {
        key.removeprefix(f"{name}."): read_yaml(value)
        for key, value in pairs.items()
        if key.startswith(f"{name}.")
    }


def told(name: str, ends: float) -> Callable[[Mapping[str, Any]], bool]:
    """Logs every epoch, and ends training with it when time is up."""

    def tell(row: Mapping[str, Any]) -> bool:
        log.info("%s  %s", name, "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
        return time.perf_counter() > ends

    return tell


def _parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recpipe.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True)
    parser.add_argument(
        "--models", nargs="+", required=True, help="names of files in the conf's models folder"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="what Kedro prepared")
    parser.add_argument(
        "--into", type=Path, default=None, help="where results go; by default the same folder"
    )
    parser.add_argument("--conf", type=Path, default=Path("conf/base/parameters"))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="training ends after the epoch then running"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="MODEL.KEY=VALUE")
    asked = parser.parse_args(words)
    for each in asked.set:
        if "=" not in each or each.split(".")[0] not in asked.models:
            parser.error(f"--set {each}: give MODEL.KEY=VALUE with one of the models asked for")
    return asked


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:  # what a user can mend; its last line says how
        sys.exit(f"error: {error}")
