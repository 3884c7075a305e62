"""Lists of users of the log, on the command line and over HTTP, against `recommend` with the same events."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.serving.small_service import IDS, VERSIONS, Answer, running, write_bundle
from tests.synthetic import write_log

import recpipe
from recpipe.data.user_histories import UserHistories
from recpipe.serving.__main__ import main
from recpipe.serving.http.log_histories import add_log_histories
from recpipe.serving.http.requests import RecommendRequest

ANN = [IDS[n] for n in (3, 8, 5, 3, 9, 1, 0, 2, 4, 6, 7, 11, 12)]  # oldest first
LOG = {"ann": ANN, "bob": [IDS[14], IDS[2]], "eve/1": [IDS[7]]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with two models of the data set tiny, and its log; ann's events are stored newest first."""
    data = tmp_path_factory.mktemp("project") / "data"
    for name in ("sasrec", "item_knn"):
        write_bundle(data / "06_models" / "tiny" / name, VERSIONS[0], name=name)
    rows = [(user, item, 100 * n) for user, items in LOG.items() for n, item in reversed(list(enumerate(items)))]
    log = data / "03_primary" / "tiny"
    log.mkdir(parents=True)
    write_log(log / "interactions.parquet", rows)
    pq.write_table(pa.table({"item_id": IDS, "title": [f"T{n}" for n in range(len(IDS))]}), log / "items.parquet")
    users = {"user_id": sorted(LOG), "country": ["AT", None, "DE"]}
    pq.write_table(pa.table(users), log / "users.parquet")
    return data


def model_folder(data: Path, name: str = "sasrec") -> Path:
    return data / "06_models" / "tiny" / name


@pytest.mark.parametrize("name", ["sasrec", "item_knn"])
@pytest.mark.parametrize("user", LOG)
def test_the_list_of_a_user_of_the_log_is_that_of_its_events(data, capsys, name, user) -> None:
    assert main([str(model_folder(data, name)), "--user", user, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = recpipe.load_bundle(model_folder(data, name)).recommend({user: LOG[user]}).to_pylist()
    assert [row["item_id"] for row in rows] == [row["item_id"] for row in expected]
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], rel=1e-5)


def test_rules_in_days_have_the_times_of_the_log(data, capsys) -> None:
    options = ["--rules", "{seen: 1}", "--candidates", f"{IDS[14]},{IDS[2]}", "--json"]
    lists = []
    for now in ("86450", "9000000"):  # a day after the first event and before that of the second; much later
        assert main([str(model_folder(data)), "--user", "bob", *options, "--now", now]) == 0
        lists.append({json.loads(line)["item_id"] for line in capsys.readouterr().out.splitlines()})
    assert lists == [{IDS[14]}, {IDS[14], IDS[2]}]


def test_the_newest_events_are_shown_and_the_others_counted(data, capsys) -> None:
    assert main([str(model_folder(data)), "--user", "ann", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "user ann, 13 events in the log"
    assert lines[2].endswith("... and 3 older")
    assert [line.split()[1] for line in lines[3:13]] == ANN[-10:]
    assert len([line for line in lines if line.startswith("history")]) == 11
    assert main([str(model_folder(data)), "--items", ",".join(ANN[:10]), "--top", "2"]) == 0
    assert "older" not in capsys.readouterr().out


def test_a_model_without_probabilities_shows_its_scores(data, capsys) -> None:
    tables = {}
    for name in ("sasrec", "item_knn"):
        assert main([str(model_folder(data, name)), "--user", "ann", "--top", "3"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines == [line.rstrip() for line in lines]
        (header,) = (n for n, line in enumerate(lines) if line.startswith("rank"))
        tables[name] = lines[header].split()[-1], [line.split()[-1] for line in lines[header + 1 :]]
    assert tables["sasrec"][0] == "probability" and all(value.endswith("%") for value in tables["sasrec"][1])
    name, values = tables["item_knn"]
    expected = recpipe.load_bundle(model_folder(data, "item_knn")).recommend({"ann": ANN}, 3)["score"].to_pylist()
    assert name == "score" and [float(value) for value in values] == pytest.approx(expected, rel=1e-3)


def test_unknown_users_and_absent_logs_are_errors_that_say_what_to_do(data, tmp_path, capsys) -> None:
    def error(folder: Path, user: str) -> str:
        assert main([str(folder), "--user", user]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--items" in line
        return line

    assert "ids such as ann, bob, eve/1" in error(model_folder(data), "zoe")
    assert "similar ids such as eve/1" in error(model_folder(data), "eve")
    shutil.copytree(data / "06_models", tmp_path / "data" / "06_models")
    message = error(tmp_path / "data" / "06_models" / "tiny" / "sasrec", "ann")
    assert "interactions.parquet is missing" in message and "--params dataset=tiny" in message
    (bundle,) = model_folder(data).glob("seed_*/bundle/*/bundle")
    shutil.copytree(bundle, tmp_path / "elsewhere")
    assert "is not in a data folder" in error(tmp_path / "elsewhere", "ann")


@pytest.mark.parametrize("other", ["--items i01", "--item i01", "--times 5", "--find lantern", "--similar i01"])
def test_a_user_of_the_log_with_a_history_is_refused(data, capsys, other) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(model_folder(data)), "--user", "ann", *other.split()])
    assert f"leave out {other.split()[0]}" in capsys.readouterr().err


def post(data: Path, body: dict[str, Any], *, has_log: bool = True, **options: Any) -> Answer:
    """Answer of POST /recommend by the model sasrec."""

    async def run() -> Answer:
        users = data / "03_primary" / "tiny" if has_log else None
        async with running(data / "06_models" / "tiny", users=users, **options) as client:
            return await client.post("/recommend", {"model": "sasrec", **body})

    return asyncio.run(run())


def item_ids(entry: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in entry["items"]]


def test_users_without_items_have_the_history_of_the_log(data) -> None:
    users = [{"user_id": "bob"}, {"user_id": "ann"}, {"user_id": "new", "items": [IDS[5]]}]
    model = recpipe.load_bundle(model_folder(data))
    expected = model.recommend({"bob": LOG["bob"], "ann": ANN, "new": [IDS[5]]}, 4).to_pylist()
    entries = post(data, {"users": users, "k": 4}).json["lists"]
    for entry in entries:
        assert item_ids(entry) == [row["item_id"] for row in expected if row["user_id"] == entry["user_id"]]
        assert entry["source"] == "model" and "warning" not in entry
    assert [entry.get("log_events") for entry in entries] == [2, 13, None]
    (single,) = post(data, {"user_id": "ann", "k": 4}).json["lists"]
    assert item_ids(single) == item_ids(entries[1]) and single["log_events"] == 13


def test_a_user_whose_history_cannot_be_read_is_warned_of(data) -> None:
    users = [{"user_id": "zoe"}, {"user_id": "ann", "items": []}, {"user_id": "bob"}]
    zoe, ann, bob = post(data, {"users": users}).json["lists"]
    assert zoe["source"] == "cold_users" and "'zoe' has no events in the log" in zoe["warning"]
    assert ann["source"] == "cold_users" and not {"warning", "log_events"} & ann.keys()  # asked for as a new user
    assert bob["source"] == "model"
    zoe, ann, bob = post(data, {"users": users}, has_log=False).json["lists"]
    assert "reads no log" in zoe["warning"] and "reads no log" in bob["warning"] and "warning" not in ann
    assert item_ids(zoe) == item_ids(ann) == item_ids(bob)


def test_a_history_of_the_log_has_the_limits_of_a_request(data) -> None:
    answer = post(data, {"user_id": "ann"}, max_history=12)
    assert answer.status == 422 and "13 events" in answer.message
    assert post(data, {"user_id": "ann", "rules": {"seen": 30}}).status == 200  # which needs times
    body = {"users": [{"user_id": "ann"}, {"user_id": "x", "items": [IDS[1]]}], "rules": {"seen": 30}}
    answer = post(data, body)
    assert answer.status == 422 and "timestamps" in answer.message


def test_profiles_of_the_log_are_added_for_the_columns_that_a_model_reads(data) -> None:
    users = [
        {"user_id": "ann"},
        {"user_id": "eve/1", "profile": {"country": "FR"}},
        {"user_id": "new", "items": ["i01"]},
    ]
    log = UserHistories(data / "03_primary" / "tiny")
    request, _ = add_log_histories(RecommendRequest(users=users), log, ["country", "age"])
    assert [user.profile for user in request.user_requests()] == [{"country": "AT"}, {"country": "FR"}, {}]
    request, _ = add_log_histories(RecommendRequest(users=users[:1]), log, [])
    assert request.user_requests()[0].profile is None


def test_an_unknown_field_of_a_user_names_the_fields_of_a_user(data) -> None:
    answer = post(data, {"users": [{"user_id": "ann", "itemz": []}]})
    assert answer.status == 422 and "'users.0.itemz'" in answer.message
    assert set(answer.json["error"]["allowed"]) == {
        "user_id", "items", "timestamps", "profile", "candidates", "exclude"
    }  # fmt: skip
    assert {"users", "rules", "items"} < set(post(data, {"itemz": []}).json["error"]["allowed"])
