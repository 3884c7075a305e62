"""Geometry of runs on disk: selection and order of bundles, messages for damaged files."""

import pyarrow as pa
import pytest
from tests.evaluation.geometry.test_study import DATA, ITEMS, VOCABULARY, bundle
from tests.reporting.runs_on_disk import VERSION, store, write_json
from tests.reporting.test_run_store import embeddings

from recpipe.config.schema import GeometryConfig
from recpipe.data.protocol import Protocol
from recpipe.reporting.geometry import geometry_of_runs
from recpipe.training.bundle import save_bundle

PROTOCOL = Protocol(dataset="shop")
SPLIT = {"id": PROTOCOL.id, **PROTOCOL.to_dict()}
CONFIG = GeometryConfig(models="all", k=5, nulls=2, items=50, map=20, examples=1, nearest=2, beside=2)


@pytest.fixture
def folder(tmp_path):
    """Bundles of three models, and validation metrics of two of them."""
    for name in ("svd", "popular", "sasrec"):
        path = tmp_path / "06_models" / "shop" / name / "seed_1" / "bundle" / VERSION / "bundle"
        path.mkdir(parents=True)
        save_bundle(bundle(name), path)
    for name, value in (("svd", 0.1), ("sasrec", 0.2)):
        metrics = {"dataset": "shop", "model": name, "seed": 1, "protocol": SPLIT, "test": {}}
        path = tmp_path / "08_reporting" / "shop" / name / "seed_1" / "metrics.json" / VERSION
        write_json(path / "metrics.json", metrics | {"valid": {"ndcg@10": value}})
    (tmp_path / "04_feature" / "shop").mkdir(parents=True)
    return tmp_path


def measure(folder, models="all"):
    items = pa.table({"item_id": VOCABULARY.ids.tolist(), "title": [f"title {n}" for n in range(ITEMS)]})
    config = CONFIG.model_copy(update={"models": models})
    return geometry_of_runs(store(folder), VOCABULARY, DATA, items, SPLIT, config=config, metric="ndcg@10", seed=1)


def test_the_best_model_comes_first_and_models_can_be_selected(folder) -> None:
    result = measure(folder)
    assert [table["name"] for table in result["tables"]] == ["sasrec input", "svd input"]
    assert (result["without"], result["problems"]) == (["popular"], [])
    assert (result["protocol"], result["seed"], result["k"]) == (PROTOCOL.id, 1, 5)
    assert [table["name"] for table in measure(folder, "svd")["tables"]] == ["svd input"]
    with pytest.raises(ValueError, match=r"mf of shop.* popular, sasrec, svd.*`kedro run"):
        measure(folder, "svd+mf")


def test_damaged_bundles_and_vectors_have_messages_and_the_rest_is_measure(folder) -> None:
    (weights,) = (folder / "06_models" / "shop" / "svd").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:50])
    (folder / "04_feature" / "shop" / "text_embeddings.parquet").write_bytes(b"nothing")
    embeddings(3).write(folder / "04_feature" / "shop" / "image_embeddings.parquet")
    result = measure(folder)
    assert [table["name"] for table in result["tables"]][:1] == ["sasrec input"]
    text, svd, *_ = result["problems"]
    assert text.startswith("the text vectors are left out: ")
    assert svd.startswith("svd/seed_1 is left out: ") and "model.safetensors" in svd
