"""Recommendations for external ids, in Python and on the command line, against the model itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.synthetic import catalogue, catalogue_ids, random_sequences, sequences

import recpipe
from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.digests import write_manifest
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.side import Side, SideConfig
from recpipe.models.registry import build
from recpipe.serving.__main__ import main
from recpipe.serving.model import ServingBundle
from recpipe.serving.similarity import similar_items
from recpipe.training.bundle import WEIGHTS, Bundle, load_bundle, save_bundle
from recpipe.training.bundle_folders import CONFIG, newest_bundle

ITEMS = 20
TINY = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1, "beam": 12}


VOCABULARY = Vocabulary(np.array([f"i{n:02}" for n in range(ITEMS)], object))


@pytest.fixture(params=["tiger", "parallel_tiger", "mql4grec"])
def run(request, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    data = random_sequences(30, ITEMS, seed=1)
    names = ("text", "image") if request.param == "mql4grec" else ("text",)
    ids = {name: catalogue_ids(ITEMS, seed=seed) for seed, name in enumerate(names)}
    model = build(request.param, TINY, n_items=ITEMS, max_length=6, ids=ids)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(data, seed=0)
    bundle = Bundle(
        request.param,
        request.param,
        model.eval(),
        VOCABULARY,
        [f"Lantern {n}" if n % 2 else None for n in range(ITEMS)],
        np.bincount(data.items, minlength=ITEMS + 1)[1:],
        Protocol(dataset="tiny"),
    )
    for version in ("2026-01-01T00.00.00.000Z", "2026-02-01T00.00.00.000Z"):
        folder = tmp_path / "bundle" / version / "bundle"
        folder.mkdir(parents=True)
        save_bundle(bundle, folder)
    return tmp_path


def json_rows(capsys: pytest.CaptureFixture, *arguments: object) -> list[dict]:
    assert main([*map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_recommendations_are_those_of_the_model(run, capsys):
    bundle = load_bundle(newest_bundle(run))
    rows = json_rows(capsys, run, "--items", "i02, i07,nothing", "--top", 4)
    items, scores = bundle.model.recommend(sequences([[3, 8]], times=False), 4)
    assert [row["item_id"] for row in rows] == [f"i{n - 1:02}" for n in items[0]]
    np.testing.assert_allclose([row["score"] for row in rows], scores[0], rtol=1e-5)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    for row, item in zip(rows, items[0], strict=True):
        for name, codes in bundle.model.item_codes().items():
            assert row[f"{name}_codes"] == codes.codes[item].tolist()
        assert row["title"] == (f"Lantern {item - 1}" if item % 2 == 0 else row["item_id"])
        assert 0 < row["probability"] < 1


def test_settings_of_the_search_are_an_option(run, capsys):
    if load_bundle(newest_bundle(run)).type == "parallel_tiger":
        assert main([str(run), "--search", "stochastic=true"]) == 2
        assert "search is exact" in capsys.readouterr().err
        run_options = ["--search", "search=beam"]
        assert main([str(run), *run_options]) == 2  # chosen when the model is built
        assert "search setting of parallel_tiger" in capsys.readouterr().err
        return
    best = json_rows(capsys, run, "--items", "i02")
    options = ("--search", "stochastic=true", "--search")
    samples = [json_rows(capsys, run, "--items", "i02", *options, f"sample_seed={seed}") for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2] and samples[0] != best
    assert main([str(run), "--search", "beams=3"]) == 2
    assert "beam" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--search", "temperatures=[1,2"])
    assert "'temperatures=[1,2' cannot be read" in capsys.readouterr().err


def test_candidates_restrict_and_seen_items_are_an_option(run, capsys):
    rows = json_rows(capsys, run, "--items", "i02", "--candidates", "i02,i05,what")
    assert [row["item_id"] for row in rows] == ["i05"]
    rows = json_rows(capsys, run, "--items", "i02", "--candidates", "i02,i05", "--seen")
    assert {row["item_id"] for row in rows} == {"i02", "i05"}


def test_ids_with_commas_and_leading_blanks_are_one_option_each(tmp_path, capsys):
    ids = ["a,b", " lead", "--item", *(f"i{n}" for n in range(9))]
    model = build("item_knn", {}, n_items=12, max_length=6)
    data = sequences([[1, 2, 4], [1, 2, 4], [3, 5, 6], [3, 5, 6]])
    model.fit(data)
    events = np.bincount(data.items, minlength=13)[1:]
    vocabulary = Vocabulary(np.array(ids, dtype=object))
    titles = [None, *["\x1b[2Jtitle\u202e"] * 11]
    save_bundle(Bundle("knn", "item_knn", model, vocabulary, titles, events, Protocol(dataset="tiny")), tmp_path)
    best = json_rows(capsys, tmp_path, "--item", "a,b", "--item", " lead")[0]
    assert (best["item_id"], best["source"]) == ("i0", "model")
    assert json_rows(capsys, tmp_path, "--item", "a,b", "--item", " i0 ") == json_rows(
        capsys, tmp_path, "--item", "a,b", "--item", "i0"
    )
    assert json_rows(capsys, tmp_path, "--item=--item")[0]["item_id"] in ("i1", "i2")
    rows = json_rows(capsys, tmp_path, "--items", "i0", "--candidate", "a,b", "--candidate", " lead")
    assert {row["item_id"] for row in rows} == {"a,b", " lead"}
    for request in (["--item", " lead"], ["--find", "title"]):
        assert main([str(tmp_path), *request]) == 0
        printed = capsys.readouterr().out
        assert "title" in printed and not {"\x1b", "\u202e"} & {*printed}


@pytest.mark.parametrize("items", ["", "what,that"])
def test_an_empty_history_gets_the_list_of_users_without_history(run, capsys, items):
    assert main([str(run), "--items", items, "--top", "2"]) == 0
    assert "users without history" in capsys.readouterr().out


def test_slots_recommend_items_without_training_events(tmp_path, capsys):
    data = random_sequences(30, ITEMS - 5, seed=1)  # the last five items have no event
    vectors, _ = catalogue(ITEMS)[1]["text"]
    content = {"text": (vectors, np.ones(ITEMS, bool))}
    side = Side.of(SideConfig(vectors="text"), data, {}, content, n_items=ITEMS)
    events = np.bincount(data.items, minlength=ITEMS + 1)[1:]
    for name, part in (("popular", None), ("content_knn", side)):
        model = build(name, {}, n_items=ITEMS, max_length=6, **({"side": part} if part else {}))
        model.fit(data)
        folder = tmp_path / name
        folder.mkdir()
        save_bundle(
            Bundle(name, name, model.eval(), VOCABULARY, [None] * ITEMS, events, Protocol(dataset="tiny")), folder
        )
    request = [tmp_path / "popular", "--items", "i02", "--top", 10]
    plain = json_rows(capsys, *request)
    rows = json_rows(capsys, *request, "--slots", 0.2, "--content", tmp_path / "content_knn")
    cold = {f"i{n}" for n in range(ITEMS - 5, ITEMS)}
    assert not cold & {row["item_id"] for row in plain}
    assert [row["rank"] for row in rows if row["item_id"] in cold] == [5, 10]
    assert [row["rank"] for row in rows if row["source"] == "content_slots"] == [5, 10]
    warm = [row["item_id"] for row in rows if row["item_id"] not in cold]
    assert warm == [row["item_id"] for row in plain][:8]


def test_items_are_found_by_title(run, capsys):
    assert main([str(run), "--find", "LANTERN 1"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {
        "i01",
        *(f"i{n}" for n in range(11, 20, 2)),
    }
    assert main([str(run), "--find", "boat"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "0"], "k is 0"),
        (["--candidates", "what"], "none of the 1 candidates"),
        (["--new-items", "0.2"], "no item of .* is new by 'train_events = 0'"),
        (["--new-where", "train_events < 3"], "--new-where needs --new-items"),
        (["--where", "prise > 3"], "position 1, 'prise > 3': the items have no column 'prise'"),
        (["--where", "__import__('os').system('ls')"], "cannot be read"),
        (["--diversity", "2"], "diversity is 2.0; it is a number from 0 and at most 1"),
        (["--max-per-category", "brand=2"], "unknown item column of .* 'brand'"),
        (["--max-per-category", "title=0"], "max_per_category is 0"),
        (["--rules", "{seen: 30}"], "needs timestamps"),
        (["--rules", "{sean: 30}"], "sean.*did you mean 'seen'"),
        (["--times", "5,6"], "not one for each event"),
        (["--current", "nothing.parquet"], "nothing.parquet"),
    ],
)
def test_invalid_requests_are_one_line_errors(run, capsys, arguments, message):
    assert main([str(run), "--items", "i02", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize(
    "arguments", ["--times now", "--max-per-category brand", "--rules [seen]", "--rules {seen", "--diversity x"]
)
def test_options_that_cannot_be_read_are_refused(run, capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main([str(run), *arguments.split()])
    assert capsys.readouterr().err.splitlines()[-1].startswith("recpipe recommend: error: argument --")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Model with vectors of items, that the columns price and brand describe; the last two have no event."""
    torch.manual_seed(0)
    model = build("sasrec", {"dim": 16}, n_items=ITEMS, max_length=6).eval()
    events = np.array([*range(1, ITEMS - 1), 0, 0])
    columns = pa.table({"price": np.arange(ITEMS) / 2, "brand": [f"b{n % 3}" for n in range(ITEMS)]})
    bundle = Bundle(
        "sasrec", "sasrec", model, VOCABULARY, [None] * ITEMS, events, Protocol(dataset="tiny"), item_columns=columns
    )
    folder = tmp_path / "sasrec" / "seed_1" / "production" / "2026-01-01T00.00.00.000Z" / "production"
    folder.mkdir(parents=True)
    save_bundle(bundle, folder)
    return tmp_path / "sasrec"


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ("--where|price < 5 and brand <> 'b1'", {"where": "price < 5 and brand <> 'b1'"}),
        ("--exclude|i01,i02|--exclude-item|i03", {"exclude": ["i01", "i02", "i03"]}),
        ("--max-per-category|brand=1", {"max_per_category": 1, "category": "brand"}),
        ("--diversity|0.7", {"diversity": 0.7}),
        ("--new-items|0.4|--new-where|train_events < 6", {"new_items": {"share": 0.4, "where": "train_events < 6"}}),
        ("--rules|{seen: 1, exclude: [i09]}|--times|0,86400|--now|90000", {"seen": 1, "exclude": ["i09"]}),
        ("--rules|{seen: exclude, diversity: 0.5}|--seen", {"seen": "allow", "diversity": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_are_the_rules_of_the_same_names(shop, capsys, options, rules):
    rows = json_rows(capsys, shop, "--items", "i02,i07", "--top", 5, *options.split("|"))
    times = {"timestamps": {"user": [0, 86400]}, "now": 90000} if "--times" in options else {}
    model = recpipe.load_bundle(shop)
    expected = model.recommend({"user": ["i02", "i07"]}, 5, rules=rules, **times).drop_columns("user_id").to_pylist()
    assert [row["item_id"] for row in rows] == [row["item_id"] for row in expected]
    assert rows != model.recommend({"user": ["i02", "i07"]}, 5).drop_columns("user_id").to_pylist()


def test_current_columns_replace_those_of_the_bundle(shop, tmp_path, capsys):
    pq.write_table(pa.table({"item_id": ["i04", "i05", "other"], "stock": [0, 3, 9]}), tmp_path / "stock.parquet")
    rows = json_rows(capsys, shop, "--current", tmp_path / "stock.parquet", "--where", "stock > 0")
    assert [row["item_id"] for row in rows] == ["i05"]
    assert main([str(shop), "--items", "i05", "--candidates", "i05", "--unseen"]) == 0
    assert "No item is left by the rules and the history." in capsys.readouterr().out


def test_a_folder_without_a_bundle_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no bundle in" in capsys.readouterr().err


def test_a_missing_model_is_told_from_those_beside_it(tmp_path, capsys):
    models = tmp_path / "data" / "06_models" / "films"
    for name in ("popular", "item_knn"):
        (models / name).mkdir(parents=True)
    assert main([str(models / "itemknn")]) == 2
    assert "there is no such folder, only item_knn, popular; train one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "params"),
    [
        ("data/06_models/films/sasrec", "dataset=films,model=sasrec"),
        ("data/06_models/films/sasrec/seed_7", "dataset=films,model=sasrec,seed=7"),
        ("data/06_models/films", "dataset=films,model=<name>"),
        ("models", "model=<name>"),
    ],
)
def test_a_missing_model_names_the_command_that_trains_it(tmp_path, folder, params):
    with pytest.raises(ValueError, match=f"--pipelines=train --params {params}`"):
        newest_bundle(tmp_path / folder)


def test_weights_with_other_ids_are_an_error(run):
    folder = newest_bundle(run)
    described = json.loads((folder / CONFIG).read_text())
    described["ids"]["text"]["digest"] = "0" * 64
    (folder / CONFIG).write_text(json.dumps(described))
    assert (folder / WEIGHTS).is_file()
    write_manifest(folder)
    with pytest.raises(ValueError, match="do not belong together"):
        load_bundle(folder)


def neural(name: str = "sasrec", *, untrained: tuple[int, ...] = ()) -> Bundle:
    """Small model; items of the indices ``untrained`` have no training events."""
    torch.manual_seed(0)
    model = build(name, {"dim": 16}, n_items=ITEMS, max_length=6).eval()
    events = np.ones(ITEMS, np.int64)
    events[list(untrained)] = 0
    return Bundle(name, name, model, VOCABULARY, [None, "A", *["B"] * (ITEMS - 2)], events, Protocol(dataset="tiny"))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_similar_items_are_the_nearest_vectors_of_trained_items():
    bundle = neural(untrained=(4, 7))
    vectors = bundle.model.item_vectors()[1:].detach().numpy()
    rows = similar_items(bundle, "i02", ITEMS).to_pylist()
    expected = {f"i{n:02}": cosine(vectors[2], vectors[n]) for n in range(ITEMS) if n not in (2, 4, 7)}
    assert [row["item_id"] for row in rows] == sorted(expected, key=expected.__getitem__, reverse=True)
    assert [row["similarity"] for row in rows] == pytest.approx([expected[row["item_id"]] for row in rows], abs=1e-6)
    assert {row["item_id"]: row["title"] for row in rows}["i01"] == "A"
    assert similar_items(bundle, "i02", 3).to_pylist() == rows[:3]


def test_similar_items_of_semantic_ids_are_those_of_alike_codes(run, capsys):
    bundle = load_bundle(newest_bundle(run))
    table = torch.cat(list(bundle.model.item_tables().values()), 1)[1:].detach().numpy()
    rows = json_rows(capsys, run, "--similar", "i03", "--top", 4)
    expected = sorted((cosine(table[3], table[n]), f"i{n:02}") for n in range(ITEMS) if n != 3)[::-1][:4]
    assert [row["similarity"] for row in rows] == pytest.approx([value for value, _ in expected], abs=1e-6)
    assert {row["item_id"] for row in rows} == {item for _, item in expected}
    assert main([str(run), "--similar", "i03", "--top", "2"]) == 0
    assert f"{rows[0]['similarity']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_similar_users_are_those_of_the_nearest_last_hidden_state(name):
    bundle, data = neural(name), random_sequences(9, ITEMS, seed=2)
    histories = {f"u{n}": [f"i{item - 1:02}" for item in data.row(n)] for n in range(9)}
    histories |= {"new": [], "stranger": ["x"]}
    states = {}
    for user, items in histories.items():
        if user not in ("new", "stranger"):
            rows = sequences([[int(item[1:]) + 1 for item in items]])
            batch = bundle.model.on_device(rows, window=6).batch(np.zeros(1, np.int64))
            states[user] = bundle.model.hidden(batch)[0, batch.lengths[0] - 1].detach().numpy()
    expected = {user: cosine(states["u3"], state) for user, state in states.items() if user != "u3"}
    rows = ServingBundle.of(bundle).similar_users(histories, "u3", 20).to_pylist()
    assert [row["user_id"] for row in rows] == sorted(expected, key=expected.__getitem__, reverse=True)
    assert [row["similarity"] for row in rows] == pytest.approx([expected[row["user_id"]] for row in rows], abs=1e-5)


def test_similarity_that_a_model_cannot_tell_is_refused(run, capsys):
    bundle = neural(untrained=(4,))
    for item, message in (("i04", "no trained vector of item 'i04'"), ("zz", "'zz' is not in the catalogue")):
        with pytest.raises(ValueError, match=message):
            similar_items(bundle, item)
    with pytest.raises(ValueError, match="k is 0"):
        similar_items(bundle, "i01", 0)
    for user, message in (("none", "'none' has no history"), ("new", "knows no item of the history of user 'new'")):
        with pytest.raises(ValueError, match=message):
            ServingBundle.of(bundle).similar_users({"new": ["x"], "u": ["i01"]}, user)
    with pytest.raises(ValueError, match="no hidden states of histories"):
        ServingBundle.of(load_bundle(newest_bundle(run))).similar_users({"u": ["i01"]}, "u")
    bundle.model = build("item_knn", {}, n_items=ITEMS, max_length=6)
    with pytest.raises(ValueError, match="has no vectors of items"):
        similar_items(bundle, "i01")
    assert main([str(run), "--similar", "zz"]) == 2 and "not in the catalogue" in capsys.readouterr().err


def test_search_settings_of_a_model_without_a_search_are_refused():
    model = build("popular", {}, n_items=ITEMS, max_length=6)
    titles, counts = [None] * ITEMS, np.ones(ITEMS, np.int64)
    bundle = Bundle("popular", "popular", model, VOCABULARY, titles, counts, Protocol(dataset="tiny"))
    with pytest.raises(ValueError, match="no search settings: leave out beam"):
        ServingBundle.of(bundle).recommend({"u": ["i01"]}, k=2, search={"beam": 3})
