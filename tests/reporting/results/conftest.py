"""Protocols, published rows and rows of ours for tests of the results pages."""

import pytest

from recpipe.data.protocol import Protocol
from recpipe.reporting.results.ours import OurRow, Value
from recpipe.reporting.results.published import PublishedResults, PublishedRow

SAS = {"split": "leave_one_out", "history": 50, "exclude_seen": True}
PAPERS = {"split": "leave_one_out", "history": 20, "exclude_seen": False}


@pytest.fixture(scope="session")
def protocols():
    return {"sas": SAS, "papers": PAPERS}


@pytest.fixture(scope="session")
def paper_row():
    def make(model="TIGER", protocol="papers", ndcg=0.0384, **fields):
        values = {"model": model, "protocol": protocol, "kind": "paper", "source": "arXiv 2305.05065"}
        values["metrics"] = {"recall@10": ndcg * 1.7, "ndcg@10": ndcg}
        values["ours"] = [model.lower()]
        return PublishedRow.model_validate(values | fields)

    return make


@pytest.fixture(scope="session")
def our_row():
    def make(model="tiger", ndcg=0.0390, width=0.002, fields=PAPERS, **changes):
        protocol = Protocol(dataset="shop", fingerprint="f", **fields)
        bounds = () if width is None else (ndcg - width, ndcg + width)
        metrics = {"ndcg@10": Value(ndcg, *bounds), "recall@10": Value(ndcg * 1.7)}
        values = {"dataset": "shop", "protocol": {"id": protocol.id, **protocol.to_dict()}, "model": model}
        values |= {"settings_id": "a1b2c3d4", "seeds": (42,), "users": 5, "metrics": metrics, "commit": "0a1b2c3"}
        values |= {"hardware": "NVIDIA H200", "train_seconds": 90.0, "finished": "2026-11-20T10:00:00"}
        return OurRow(**values | changes)

    return make


@pytest.fixture(scope="session")
def results():
    def make(*rows, **fields):
        values = {"title": "Shop", "users": 5, "items": 4, "events": 20, "rows": list(rows)}
        return PublishedResults.model_validate(values | fields)

    return make
