"""Before anything runs: does the library take the data set, the engine, the steps, the content, the quantizer, the
protocol, the fallback, the models?
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from recpipe.pipelines.modalities import KINDS, MODALITIES, group

BLOCK = "params:models."


class ChecksHooks:
    """A misspelt key in a YAML file is refused now, and not after half an hour of ingest."""

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Raises ValueError that names the key and those that are known."""
        needed = pipeline.inputs()
        if "params:datasets" in needed:
            _check_dataset(catalog.load("params:datasets"), catalog.load("params:dataset"))
        if "params:ingest" in needed:
            from recpipe.data.interactions import engines
            from recpipe.data.sampling import check

            engines.check(catalog.load("params:ingest").get("engine") or {})
            check(catalog.load("params:datasets")[catalog.load("params:dataset")].get("steps") or [])
        protocol = None
        if "params:protocol" in needed:
            from recpipe.pipelines.blocks import protocol_of

            names = ("protocol", "datasets", "dataset")
            protocol = protocol_of(*(catalog.load(f"params:{name}") for name in names))
        if "params:cold_users" in needed:
            from recpipe.pipelines.blocks import cold_users_of

            cold_users_of(*(catalog.load(f"params:{name}") for name in ("cold_users", "datasets", "dataset")))
        if "params:embed" in needed or "params:semantic_ids" in needed:
            _check_content(needed, catalog)
        if "params:studies" in needed:
            _check_study(needed, catalog)
        for name in sorted(needed):
            if name.startswith(BLOCK):
                _check_model(name.removeprefix(BLOCK), catalog, protocol)
        _check_described(needed, catalog)


def _check_dataset(datasets: dict[str, Any], dataset: str) -> None:
    from recpipe.data import sources
    from recpipe.data.interactions.faults import POLICIES

    where = f"datasets.{dataset}"
    sources.check(datasets[dataset], where=where)
    policy = datasets[dataset].get("bad_rows", POLICIES[0])
    if policy not in POLICIES:
        near = get_close_matches(str(policy), POLICIES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{where}.bad_rows cannot be {policy!r}{hint}; choose one of {', '.join(POLICIES)}")


def _check_content(needed: set[str], catalog: Any) -> None:
    from recpipe.content.vector_file import VectorFile
    from recpipe.pipelines import blocks, encoders
    from recpipe.semantic_ids import quantizer

    where = (catalog.load("params:datasets"), catalog.load("params:dataset"))
    content = blocks.content_block(*where)
    made_of: dict[str, Any] = {}
    if "params:embed" in needed:
        chosen = blocks.embed_block(catalog.load("params:embed"), *where)
        for kind, made in (("text", encoders.text_encoder), ("image", encoders.image_encoder)):
            if (known := f"params:{kind}_encoders") in needed:
                made_of[kind] = made(getattr(chosen, kind), catalog.load(known))
    if "image" in made_of and content.image is not None and not isinstance(made_of["image"], VectorFile):
        from recpipe.content.image_sources import ImageConf

        ImageConf.of(content.image)
    if "params:semantic_ids" in needed:
        for kind in KINDS:
            block = blocks.ids_block(catalog.load("params:semantic_ids"), *where, kind)
            block.gate_settings()
            quantizer.build(*block.chosen())


def _check_study(needed: set[str], catalog: Any) -> None:
    """Every model of the run has what the study changes."""
    from recpipe.models.registry import resolve
    from recpipe.pipelines.blocks import study_of
    from recpipe.training.variants import variants

    asked = study_of(catalog.load("params:study"), catalog.load("params:studies"))
    for name in sorted(each for each in needed if each.startswith(BLOCK)):
        spec = resolve(catalog.load(name), catalog.load("params:dataset"))
        variants(asked, spec, catalog.load("params:train"), catalog.load("params:side"))


def _check_model(name: str, catalog: Any, protocol: Any) -> None:
    from recpipe.models.registry import configured, model_class, resolve, side_config
    from recpipe.training.settings import TrainSettings, check_layout

    spec = resolve(catalog.load(f"{BLOCK}{name}"), catalog.load("params:dataset"))
    config = configured(model_class(spec.type).Config, spec.config, where=f"models.{name}")
    side = side_config(spec, catalog.load("params:side"), where=f"models.{name}")
    if protocol is not None:
        protocol.check_time(getattr(config, "time_mode", "none"), model=name)
        protocol.check_time(side.requires_time, model=name)
    train = {**catalog.load("params:train"), **spec.train}
    settings = configured(TrainSettings, train, where=f"train settings of {name}")
    check_layout(settings, model_class(spec.type))


def _check_described(needed: set[str], catalog: Any) -> None:
    """Vectors and ids that this run does not make itself must be on disk."""
    entries = {name: f"{name}_embeddings" for name in MODALITIES}
    kinds = {name: f"{group(name)}.semantic_ids" for name in KINDS}
    for what, pipelines, found in (("vectors", "embed", entries), ("ids", "embed,semantic_ids", kinds)):
        missing = [name for name, entry in found.items() if entry in needed and not catalog.exists(entry)]
        if missing:
            dataset = catalog.load("params:dataset")
            raise ValueError(
                f"there are no {' and no '.join(missing)} {what} of {dataset} yet: `kedro run --pipelines={pipelines} "
                f"--params dataset={dataset},modality={'+'.join(missing)}` makes them"
            )
