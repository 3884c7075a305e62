"""Results table of README.md: the newest rows of one protocol per column, the best in bold, a place between markers."""

import pytest

from recpipe.reporting.formatting import MISSING
from recpipe.reporting.results.readme_table import COLUMNS, END, MODELS, START, ReadmeError, readme_table, update_readme

PROTOCOLS = {column.dataset: column.protocol for column in COLUMNS}


@pytest.fixture
def row(our_row):
    """Make a row of a data set, by default under the protocol of its column."""

    def make(model, dataset, ndcg, *, protocol=None, **changes):
        name = protocol or PROTOCOLS[dataset]
        made = our_row(model, ndcg, **changes)
        return our_row(model, ndcg, dataset=dataset, protocol={**made.protocol, "name": name}, **changes)

    return make


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split("|")][2:] for line in lines}


def test_a_row_per_model_and_a_column_per_data_set_with_its_protocol(row):
    text = readme_table([row("sasrec", "ml-100k", 0.1177)], {"ml-100k": "MovieLens 100K"})
    assert "[MovieLens 100K](docs/results/ml-100k.md), `sas`" in text
    assert set(cells(text)) == set(MODELS) and cells(text)["sasrec"] == [MISSING, ".1177", MISSING]


def test_the_best_of_a_complete_column_is_bold(row):
    rows = [row(model, "ml-100k", 0.1) for model in MODELS if model != "rpg"]
    assert "**" not in readme_table(rows, {})
    table = cells(readme_table([*rows, row("rpg", "ml-100k", 0.2)], {}))
    assert table["sasrec"][1] == ".1000" and table["rpg"][1] == "**.2000**"


def test_rows_of_other_protocols_and_models_are_left_out(row):
    rows = [row("sasrec", "ml-100k", 0.1), row("sasrec", "ml-100k", 0.9, protocol="temporal", finished="2027")]
    rows.append(row("gru4rec", "ml-100k", 0.3))
    assert cells(readme_table(rows, {}))["sasrec"][1] == ".1000"


def test_a_measured_zero_is_a_number(row):
    rows = [row(model, "ml-100k", 0.0 if model == "popular" else 0.1) for model in MODELS]
    assert cells(readme_table(rows, {}))["popular"][1] == ".0000" and MISSING in readme_table(rows, {})
    assert cells(readme_table(rows, {}))["sasrec"][1] == "**.1000**"


@pytest.mark.parametrize("newest_first", [False, True])
def test_of_several_settings_the_newest_counts(row, newest_first):
    rows = [row("rpg", "ml-100k", 0.2, finished="2026-11-01"), row("rpg", "ml-100k", 0.1, finished="2026-11-02")]
    assert cells(readme_table(rows[::-1] if newest_first else rows, {}))["rpg"][1] == ".1000"


def test_a_bias_on_seen_items_is_a_footnote(row):
    rows = [row(model, "amazon-beauty", 0.2, history_bias=-20.0) for model in ("sasrec", "rpg")]
    text = readme_table(rows, {"amazon-beauty": "Beauty"})
    note = text.split("\n\n")[1]
    assert note.startswith(f"{MISSING}: not measured yet. Beauty: `rpg` and `sasrec` have `train.history_bias=-20`,")
    assert "history_bias" not in readme_table([row("rpg", "amazon-beauty", 0.2)], {})


def test_only_the_text_between_the_markers_changes(row):
    text = f"before\n{START}\nold .999\n{END}\nafter\n"
    updated = update_readme(text, [row("sasrec", "ml-100k", 0.1)], {})
    assert updated.startswith(f"before\n{START}\n| model |") and updated.endswith(f"{END}\nafter\n")
    assert ".999" not in updated and update_readme(updated, [row("sasrec", "ml-100k", 0.1)], {}) == updated


@pytest.mark.parametrize("text", ["", f"{START}{END}{START}{END}", f"{END}{START}", f"{START}{START}{END}"])
def test_a_readme_needs_each_marker_once(text):
    with pytest.raises(ReadmeError, match="markers"):
        update_readme(text, [], {})
