"""Published rows: every file of docs/results parses and names source and protocol; bad files are refused by name."""

from pathlib import Path

import pytest

from recpipe.config import ConfigError
from recpipe.reporting.results.__main__ import named_protocols
from recpipe.reporting.results.published import read_not_built, read_published
from recpipe.reporting.results.sections import sections

PROJECT = Path(__file__).parents[3]
FOLDER = PROJECT / "docs" / "results"
PUBLISHED = read_published(FOLDER)
PROTOCOLS = named_protocols(PROJECT / "conf")
HEAD = "title: Shop\nusers: 5\nitems: 4\nevents: 20\n"
ROW = {
    "model": "TIGER",
    "protocol": "papers",
    "metrics": "{ndcg@10: .0384}",
    "kind": "paper",
    "source": "arXiv 2305.05065",
}


def published(tmp_path, text):
    path = tmp_path / "published" / "shop.yml"
    path.parent.mkdir()
    path.write_text(HEAD + text)
    return read_published(tmp_path)["shop"]


def row_text(**changes):
    fields = ", ".join(f"{name}: {value}" for name, value in (ROW | changes).items() if value is not None)
    return f"rows: [{{{fields}}}]\n"


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_every_published_row_has_a_source_and_a_protocol_of_the_data_set_or_a_reason(dataset):
    results = PUBLISHED[dataset]
    assert results.rows
    for row in results.rows:
        assert row.source and row.metrics
        assert row.protocol in PROTOCOLS[dataset] or (row.protocol in ("unknown", "other") and row.caveats)
    assert sum(len(part.published) for part in sections(results, [], PROTOCOLS[dataset])) == len(results.rows)


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_metrics_of_a_row_agree_with_each_other(dataset):
    """With one target NDCG@k is at most recall@k, and both grow with k."""
    for row in PUBLISHED[dataset].rows:
        values = row.metrics
        pairs = [(f"ndcg@{k}", f"recall@{k}") for k in (5, 10)]
        pairs += [(f"{name}@5", f"{name}@10") for name in ("recall", "ndcg")] + [("recall@1", "ndcg@5")]
        for smaller, larger in pairs:
            assert values.get(smaller, 0) <= values.get(larger, 1), (row.model, smaller, larger)


def test_numbers_that_are_quoted_most_are_as_in_their_papers():
    rows = {row.model: row for row in PUBLISHED["amazon-beauty"].rows}
    assert list(rows["TIGER"].metrics.values()) == [0.0454, 0.0321, 0.0648, 0.0384]
    assert rows["RPG"].metrics["recall@10"] == 0.0809 and rows["LETTER-TIGER"].metrics["ndcg@10"] == 0.0364
    sizes = {name: (data.users, data.items, data.events) for name, data in PUBLISHED.items()}
    assert sizes["amazon-beauty"] == (22_363, 12_101, 198_502) and sizes["ml-1m"] == (6040, 3416, 999_611)


def test_a_model_that_could_not_be_built_has_a_reason():
    reasons = {entry.model.partition(" ")[0]: entry.why for entry in read_not_built(FOLDER)}
    assert "abstract" in reasons["MABSRec"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (row_text(source=None), r"shop\.yml.*source"),
        (row_text(protocol=None), r"shop\.yml.*protocol"),
        (row_text(metrics="{ndcg@10: 3.84}"), r"shop\.yml.*ndcg@10"),
        (row_text(metrics="{ndgc@10: .0384}"), r"shop\.yml.*ndgc@10"),
        (row_text(metrics="{}"), r"shop\.yml.*metrics"),
        (row_text(kind="rumour"), "paper.*reproduction.*quoted"),
        (row_text(protocol="unknown"), "TIGER has protocol unknown and no caveats"),
        (row_text(protocol="other", caveats="[validation]", differs="{history: 9}"), "needs the name of a protocol"),
        (row_text(kind_of_ids="texts"), "unknown kind of ids of TIGER 'texts'.*did you mean 'text'"),
        ("rows: [{model: TIGER\n", r"shop\.yml is no YAML"),
        ("row: []\n", r"unknown setting .*shop\.yml\.row.*did you mean 'rows'"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        published(tmp_path, text)


def test_a_protocol_that_the_data_set_lacks_is_refused_with_those_it_has(tmp_path):
    results = published(tmp_path, row_text(protocol="paper"))
    with pytest.raises(ValueError, match="'paper'; the data set has sas, papers"):
        sections(results, [], {"sas": {}, "papers": {"history": 20}})
