"""ONNX graphs against torch: which models export, equal scores, lists without torch, damaged files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.conftest import PROJECT
from tests.synthetic import described, random_sequences, side_of, untrained

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.generator import Generator
from recpipe.models.registry import build, model_class, types
from recpipe.serving.model import ServingBundle
from recpipe.serving.onnx.export import export_bundle, main
from recpipe.serving.onnx.model import OnnxModel, top_k
from recpipe.training.bundle import Bundle, save_bundle

pytest.importorskip("onnxscript", reason="pip install 'recpipe[onnx]'")

ITEMS, WINDOW = 25, 10
DATA = random_sequences(40, ITEMS, longest=16, seed=1)
SMALL = {
    "xlstm": {"layers": 1, "dim": 16},
    "setrec": {"dim": 32, "heads": 2, "head_dim": 16, "feed_forward": 64, "layers": 1, "decoder_layers": 1},
}
CANNOT = {
    "item_knn": "sparse rows are read with numpy",
    "user_knn": "sparse rows are read with numpy",
    "mf": "the linear system of a user has no ONNX operator; mf with loss: bpr exports",
    "nmf": "which parts are zero decides the length of a loop",
    "ials": "the linear system of a user has no ONNX operator",
    "markov": "items of histories are counted with numpy",
    "slim": "items of histories are counted with numpy",
    "hop_graph": "rings of a user are merged with numpy, so that the graph is of one number of users",
    "parallel_tiger": "items with an id are read with numpy",
    "rpg": "items with an id are read with numpy",
    "mamba4rec": "the scan changes a diagonal in place and loops over chunks",
}
GENERATORS = {name for name in types() if issubclass(model_class(name), Generator)}
CAN = [name for name in types() if name not in CANNOT and name not in GENERATORS]


def bundle_of(name: str, type_: str | None = None, *, cold: bool = True, **config) -> Bundle:
    """A bundle of a fitted or randomly weighted model, which falls back to what is popular."""
    torch.manual_seed(0)
    type_ = type_ or name
    model = untrained(type_, {**SMALL.get(type_, {}), **config}, DATA, n_items=ITEMS, max_length=WINDOW)
    if model.closed_form:
        model.fit(DATA)
    else:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
    return in_bundle(name, type_, model, cold=cold)


def in_bundle(name: str, type_: str, model, *, cold: bool = True) -> Bundle:
    if cold:
        model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(DATA, seed=0)
    vocabulary = Vocabulary(np.array([f"i{n:02}" for n in range(1, ITEMS + 1)], object))
    titles = [f"Lantern {n}" if n % 2 else None for n in range(ITEMS)]
    events = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
    return Bundle(name, type_, model.eval(), vocabulary, titles, events, Protocol(dataset="tiny"))


def histories(n: int = 30) -> dict[str, list[str]]:
    """Histories of every length, also beyond the window, with unknown items, and an empty one."""
    rows = {f"u{u}": [f"i{item:02}" for item in DATA.row(u)] for u in range(n)}
    return rows | {
        "new": [],
        "stranger": ["what"],
        "partly": ["what", "i03"],
        "long": [f"i{n:02}" for n in range(1, 16)],
    }


def assert_same_lists(table, expected) -> None:
    assert table["user_id"].to_pylist() == expected["user_id"].to_pylist()
    for name in ("rank", "source"):
        assert table[name].to_pylist() == expected[name].to_pylist()
    for name in ("item_id", "title"):  # but for items of nearly equal scores
        pairs = zip(table[name].to_pylist(), expected[name].to_pylist(), strict=True)
        assert np.mean([ours == theirs for ours, theirs in pairs]) > 0.98
    np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-4, atol=1e-4)
    if expected["probability"].null_count:
        assert table["probability"].null_count == len(table)
    else:
        np.testing.assert_allclose(table["probability"], expected["probability"], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CAN if name not in ("sasrec", "popular")])
def test_lists_of_the_graph_are_those_of_torch(name, tmp_path):
    bundle = bundle_of(name)
    result = export_bundle(bundle, tmp_path / f"{name}.onnx")
    assert result.difference < 1e-4
    table = OnnxModel(result.graph, threads=1).recommend(histories(), 7)
    assert_same_lists(table, ServingBundle.of(bundle).recommend(histories(), 7))


def test_sasrec_is_served_without_torch(tmp_path):
    bundle = bundle_of("sasrec")
    result = export_bundle(bundle, tmp_path / "sasrec.onnx")
    assert result.difference < 1e-4
    code = f"""
import json, sys
from recpipe.serving.onnx.model import OnnxModel
model = OnnxModel({str(result.graph)!r}, threads=1)
table = model.recommend(json.loads(sys.stdin.read()), 7)
loaded = sorted(sys.modules)
print(json.dumps({{"rows": table.to_pylist(), "modules": loaded}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(histories()),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PROJECT / "src"), "PATH": ""},
    )
    answer = json.loads(done.stdout)
    assert not {"torch", "lightning", "yaml", "kedro", "recpipe.training"} & {*answer["modules"]}
    assert answer["rows"] == OnnxModel(result.graph, threads=1).recommend(histories(), 7).to_pylist()
    assert_same_lists(
        OnnxModel(result.graph).recommend(histories(), 7), ServingBundle.of(bundle).recommend(histories(), 7)
    )
    seen = OnnxModel(result.graph).recommend(histories(), 99, exclude_seen=False)
    assert_same_lists(seen, ServingBundle.of(bundle).recommend(histories(), 99, rules={"seen": "allow"}))


@pytest.mark.parametrize("name", ["item_knn", "mf", "nmf"])  # the others take ten seconds and more to fail
def test_what_cannot_be_exported_is_said(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} cannot be exported: torch finds no ONNX graph"):
        export_bundle(bundle_of(name), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_graph_of_one_number_of_users_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="hop_graph cannot be exported: its graph does not run"):
        export_bundle(bundle_of("hop_graph"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_generative_models_and_lists_decoded_item_by_item_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not score the whole catalogue"):
        export_bundle(bundle_of("tiger", layers=1, decoder_layers=1), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="item by item"):
        export_bundle(bundle_of("gpt", generate=2), tmp_path / "model.onnx")


def test_inputs_without_a_place_in_the_graph_are_refused(tmp_path):
    side = side_of(described(DATA), ITEMS, events="rating+hour")
    model = build("sasrec", {"dim": 16}, n_items=ITEMS, max_length=WINDOW, side=side)
    with pytest.raises(ValueError, match=r"columns of users or events \(rating\)"):
        export_bundle(in_bundle("sasrec", "sasrec", model), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="time of the query"):
        export_bundle(bundle_of("hstu", time_mode="query"), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="ends in .onnx"):
        export_bundle(bundle_of("popular"), tmp_path / "model.bin")


def test_side_information_of_items_and_times_are_part_of_the_graph(tmp_path):
    side = side_of(DATA, ITEMS, vectors="text", items="genres+price", events="hour+weekday+gap")
    torch.manual_seed(0)
    model = build("gpt", {"dim": 16}, n_items=ITEMS, max_length=WINDOW, side=side)
    bundle = in_bundle("gpt", "gpt", model)
    result = export_bundle(bundle, tmp_path / "model.onnx")
    assert result.difference < 1e-4
    times = {user: [1_600_000_000 + 5000 * n for n in range(len(items))] for user, items in histories().items()}
    served = OnnxModel(result.graph, threads=1)
    expected = ServingBundle.of(bundle).recommend(histories(), 5, timestamps=times)
    assert_same_lists(served.recommend(histories(), 5, timestamps=times), expected)
    with pytest.raises(ValueError, match="give timestamps"):
        served.recommend(histories(), 5)
    with pytest.raises(ValueError, match="user 'u0' are not one for each"):
        served.recommend(histories(), 5, timestamps={**times, "u0": [1]})


def test_a_model_without_fallback_scores_an_empty_history_itself(tmp_path):
    bundle = bundle_of("gru4rec", cold=False)
    served = OnnxModel(export_bundle(bundle, tmp_path / "model.onnx").graph, threads=1)
    assert_same_lists(served.recommend({"new": []}, 4), ServingBundle.of(bundle).recommend({"new": []}, 4))


def test_requests_are_checked(tmp_path):
    served = OnnxModel(export_bundle(bundle_of("popular"), tmp_path / "model.onnx").graph, threads=1)
    assert served.recommend({}, 3).num_rows == 0
    for k in (0, -1, "ten", True):
        with pytest.raises(ValueError, match="at least one item is needed"):
            served.recommend({"u": ["i01"]}, k)
    assert served.recommend({"u": ["i01"]}, 10**9).num_rows == ITEMS - 1


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    result = export_bundle(bundle_of("popular"), tmp_path / "model.onnx")
    other = export_bundle(bundle_of("popular", days=None), tmp_path / "other.onnx")
    content = result.items.read_bytes()
    result.items.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged or of another export"):
        OnnxModel(result.graph)
    result.items.unlink()
    with pytest.raises(ValueError, match="model.items.parquet missing"):
        OnnxModel(result.graph)
    other.graph.write_bytes(other.graph.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is no graph"):
        OnnxModel(other.graph)


def test_a_graph_that_differs_from_torch_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("recpipe.serving.onnx.export.largest_difference", lambda graph, path: 0.01)
    with pytest.raises(ValueError, match="differs from torch by 1.0e-02"):
        export_bundle(bundle_of("popular"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_bundle_and_says_what_it_cannot(tmp_path, caplog):
    folder = tmp_path / "bundle"
    folder.mkdir()
    save_bundle(bundle_of("popular"), folder)
    assert main([str(folder), "--into", str(tmp_path / "out" / "popular.onnx")]) == 0
    assert OnnxModel(tmp_path / "out" / "popular.onnx").description["name"] == "popular"
    assert main([str(folder), "--into", str(tmp_path / "popular")]) == 2
    assert main([str(tmp_path / "none"), "--into", str(tmp_path / "popular.onnx")]) == 2
    assert "no bundle in" in caplog.text


def test_top_k_is_that_of_a_sort_with_ties_in_their_order():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (40, 30)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    scores[3] = -np.inf
    ties = rng.permutation(30)
    items, values = top_k(scores, 6, ties)
    for u in range(len(scores)):
        best = [i for i in sorted(range(30), key=lambda i: (-scores[u, i], ties[i])) if scores[u, i] > -np.inf][:6]
        assert items[u].tolist() == best + [0] * (6 - len(best))
        assert values[u].tolist() == [*scores[u, best], *[-np.inf] * (6 - len(best))]
