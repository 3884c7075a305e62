"""Results pages: tables, marks, origin of our rows, reasons, pictures; the command that writes them."""

import re
import xml.etree.ElementTree as ET

import pytest
from tests.reporting.runs_on_disk import write_runs

from recpipe.config import ConfigError
from recpipe.reporting.results.__main__ import dataset_titles, main, named_protocols, write_results
from recpipe.reporting.results.dot_plot import LETTERS, Point, dot_plot
from recpipe.reporting.results.pages import dataset_page, index_page
from recpipe.reporting.results.readme_table import END, START, ReadmeError
from recpipe.reporting.results.sections import sections

SVG = "{http://www.w3.org/2000/svg}"


def page(published, ours, protocols):
    return dataset_page("shop", published, sections(published, ours, protocols), title="Shop")


def table_rows(text, head):
    """Cells of the table whose header begins with ``head``."""
    lines = text[text.index(f"| {head}") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_a_table_has_published_rows_and_ours_with_interval_and_mark(paper_row, our_row, results, protocols):
    published = results(paper_row("RPG", ndcg=0.0464), paper_row("TIGER", ndcg=0.0350))
    text = page(published, [our_row("tiger", 0.0400)], protocols).text
    head, _, *rows = table_rows(text, "# |")
    assert head == ["#", "model", "NDCG@10", "95\u202f% interval", "Recall@10", "ours"]
    assert rows == [
        ["1", "RPG [1]", ".0464", "", ".0789", ""],
        ["2", "**tiger**", "**.0400**", ".0380\u2013.0420", ".0680", ""],
        ["3", "TIGER [2]", ".0350", "", ".0595", "▲ tiger"],
    ]
    assert "2. TIGER, paper: arXiv 2305.05065." in text


def test_our_rows_have_seeds_commit_hardware_settings_and_date(paper_row, our_row, results, protocols):
    text = page(results(paper_row()), [our_row(seeds=(42, 123), kinds_of_ids=("text",))], protocols).text
    (row,) = table_rows(text, "ours | protocol id")[2:]
    assert row[2:] == ["a1b2c3d4", "42, 123", "0a1b2c3", "NVIDIA H200", "1.5 min", "2026-11-20", "ids: text"]


def test_models_of_ids_carry_the_note_of_the_data_set(paper_row, our_row, results, protocols):
    published = results(paper_row(), note_on_ids="ids of attributes")
    text = page(published, [our_row(kinds_of_ids=("text",)), our_row("sasrec")], protocols).text
    notes = {row[0]: row[-1] for row in table_rows(text, "ours | protocol id")[2:]}
    assert notes == {"sasrec": "", "tiger": "ids of attributes"}


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_a_bias_on_seen_items_is_noted_where_they_may_be_recommended(
    our_row, results, protocols, paper_row, exclude_seen
):
    fields = {"split": "leave_one_out", "history": 20, "exclude_seen": exclude_seen}
    row = our_row(history_bias=-20.0, fields=fields)
    text = page(results(paper_row()), [row], protocols).text
    notes = [row[-1] for row in table_rows(text, "ours | protocol id")[2:]]
    assert notes == ([""] if exclude_seen else ["-20 on the scores of seen items (`train.history_bias`)"])


def test_several_settings_of_a_model_are_told_apart(our_row, results, protocols, paper_row):
    text = page(results(paper_row()), [our_row(), our_row(settings_id="ffff0000")], protocols).text
    assert "**tiger (a1b2c3d4)**" in text and "**tiger (ffff0000)**" in text
    text = page(results(paper_row()), [our_row(), our_row(seeds=(1, 2))], protocols).text
    assert "**tiger (seed 42)**" in text and "**tiger (seeds 1, 2)**" in text


def test_warm_and_cold_targets_have_a_table_where_published(paper_row, our_row, results, protocols):
    metrics = {"warm_recall@10": 0.07, "warm_ndcg@10": 0.04, "cold_recall@10": 0.10, "cold_ndcg@10": 0.038}
    text = page(results(paper_row("LIGER", metrics=metrics)), [our_row()], protocols).text
    assert table_rows(text, "model | warm")[2:] == [["LIGER [1]", ".0700", ".0400", ".1000", ".0380", ""]]


def test_what_was_not_reproduced_has_a_reason(results, protocols):
    entries = [{"model": "BARGE", "why": "Not in recpipe | yet."}]
    text = page(results(not_reproduced=entries), [], protocols).text
    assert "| BARGE | Not in recpipe \\| yet. |" in text


def test_the_index_names_the_best_and_counts_the_marks(paper_row, our_row, results, protocols):
    published = results(paper_row("RPG", ndcg=0.0464), paper_row("TIGER", ndcg=0.0300))
    parts = sections(published, [our_row("tiger"), our_row("rpg", 0.02)], protocols)
    text = index_page({"shop": (published, parts)}, [], {"shop": "Shop"})
    assert table_rows(text, "data set")[2] == ["[Shop](shop.md)", "`papers`", "RPG .0464", "tiger .0390", "1 ▲ 1 ▼"]


def test_a_picture_has_rings_dots_and_intervals_in_place():
    points = [Point("RPG <paper>", 0.05), Point("tiger", 0.04, 0.03, 0.045, is_ours=True), Point("x" * 99, 0.01)]
    root = ET.fromstring(dot_plot(points, metric="ndcg@10", title="shop & co"))
    legend, circles = 2, root.findall(f"{SVG}circle")[2:]
    x = [float(circle.get("cx")) for circle in circles]
    assert len(circles) == 3 and (x[0] - x[1]) == pytest.approx((x[0] - x[2]) / 4, abs=0.1)  # .05, .04, .01
    assert [circle.get("class") for circle in circles] == [None, "ours", None]
    interval = next(line for line in root.findall(f"{SVG}line") if line.get("stroke-width") == "2.5")
    assert float(interval.get("x1")) < x[1] < float(interval.get("x2"))
    assert max(len(text.text) for text in root.findall(f"{SVG}text")[legend + 1 :]) <= LETTERS
    assert int(root.get("width")) <= 430  # of a telephone


def test_a_section_with_one_number_has_no_picture(paper_row, results, protocols):
    assert page(results(paper_row()), [], protocols).pictures == {}
    unknown = [paper_row(model, "unknown", caveats=["?"]) for model in "AB"]
    assert page(results(*unknown), [], protocols).pictures == {}  # their numbers do not compare


SHOP = (
    "title: Shop\nusers: 150\nitems: 40\nevents: 900\nrows:\n"
    "  - {model: SASRec, protocol: sas, metrics: {ndcg@10: .4}, kind: paper, source: a paper, ours: [sasrec]}\n"
)
CONF = {"shop": {"sas": {"history": 200, "exclude_seen": True}}, "other": {}}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "results" / "published" / "shop.yml"
    path.parent.mkdir(parents=True)
    path.write_text(SHOP)
    return path.parents[1]


@pytest.fixture
def data(tmp_path, make_run):
    run = make_run("sasrec", 42)
    return write_runs(tmp_path / "data", make_run, protocol=run["protocol"] | {"dataset": "shop"})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_command_writes_pages_and_store_and_again_the_same(folder, data):
    assert write_results(folder, CONF, data=[data]) == []
    first = contents(folder)
    assert set(first) == {"index.md", "shop.md", "shop-sas.svg", "ours.json"}
    assert "**sasrec**" in first["shop.md"].decode() and "sasrec" in first["ours.json"].decode()
    assert write_results(folder, CONF, data=[data]) == [] and contents(folder) == first


def test_a_name_or_folder_without_runs_is_told(folder, data, tmp_path):
    with pytest.raises(ConfigError, match="shpo: no such data set; there are other, shop"):
        write_results(folder, CONF, data=[data], datasets=["shpo"])
    assert set(contents(folder)) == set()
    (message,) = write_results(folder, CONF, data=[data], datasets=["other"])
    assert "has no runs of other: --data names the folder" in message
    (message,) = write_results(folder, CONF, data=[tmp_path / "nowhere"])
    assert "nowhere/08_reporting has no runs of any data set" in message


def test_our_rows_stay_without_the_runs(folder, data, tmp_path):
    write_results(folder, CONF, data=[data])
    first = contents(folder)
    write_results(folder, CONF, data=[tmp_path / "nowhere"])
    assert contents(folder) == first


def test_pages_without_any_run_have_the_published_rows(folder):
    write_results(folder, CONF)
    text = (folder / "shop.md").read_text()
    assert "SASRec [1]" in text and "**" not in text


def test_pages_and_pictures_that_are_no_longer_written_are_removed(folder):
    write_results(folder, CONF)
    (folder / "old.md").write_text((folder / "shop.md").read_text())
    (folder / "shop-old.svg").write_text("<svg/>")
    (folder / "README.md").write_text("Written by hand.")
    write_results(folder, CONF)
    assert set(contents(folder)) == {"index.md", "shop.md", "ours.json", "README.md"}


def test_nothing_is_written_for_a_bad_input(folder, data):
    (folder / "ours.json").write_text("{")
    with pytest.raises(ValueError, match=r"ours\.json cannot be read"):
        write_results(folder, CONF, data=[data])
    (folder / "ours.json").unlink()
    with pytest.raises(ConfigError, match="results of shop, which are no data sets"):
        write_results(folder, {"other": {}}, data=[data])
    with pytest.raises(ConfigError, match=r"published/shop\.yml: SASRec was published under protocol 'sas'"):
        write_results(folder, {"shop": {"papers": {}}}, data=[data])
    assert set(contents(folder)) == set()


def test_a_data_set_without_published_results_has_a_page_of_ours(folder, data):
    (folder / "published" / "shop.yml").unlink()
    write_results(folder, CONF, data=[data], titles={"shop": "A shop"})
    text = (folder / "shop.md").read_text()
    assert text.startswith("# A shop\n") and "**sasrec**" in text and "▲" not in text
    assert "[A shop](shop.md)" in (folder / "index.md").read_text()


def test_titles_of_data_sets_are_those_of_the_conf(project):
    titles = dataset_titles(project / "conf")
    assert titles["online_retail"] == "UCI Online Retail" and set(titles) == set(named_protocols(project / "conf"))


def test_the_command_replaces_the_table_of_the_readme(folder, data, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write_results(folder, CONF, data=[data], readme=readme)
    text = readme.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text and "| `sasrec` |" in text


def test_nothing_is_written_for_a_readme_without_a_place_for_the_table(folder, data, tmp_path):
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ReadmeError):
        write_results(folder, CONF, data=[data], readme=tmp_path / "README.md")
    assert set(contents(folder)) == set()


def test_a_readme_that_does_not_exist_is_an_error(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["results", "--results", str(folder), "--readme", str(folder / "none.md")])
    with pytest.raises(SystemExit):
        main()
    assert "--readme" in capsys.readouterr().err and set(contents(folder)) == set()
