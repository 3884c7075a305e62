"""The tutorial on semantic ids: its commands run, other ids come out, and exported ids are read back."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow


def test_the_page_makes_kinds_of_ids_and_reads_back_what_it_exports(project, page_project_after_demo) -> None:
    outputs = run_page(project / "docs" / "tutorials" / "semantic-ids.md", page_project_after_demo)
    assert "LANTERN" in outputs[1].stdout
    folder = page_project_after_demo / "data" / "05_model_input" / "online_retail" / "semantic_ids"
    tables = {kind: pq.read_table(folder / f"{kind}_ids" / "semantic_ids.parquet") for kind in ("text", "foreign")}
    codes = {
        kind: dict(zip(*table.select(["item_id", "codes"]).to_pydict().values(), strict=True))
        for kind, table in tables.items()
    }
    assert (folder / "text_parts_ids" / "semantic_ids.parquet").is_file()
    assert {item: codes["text"][item] for item in codes["foreign"]} == codes["foreign"]
