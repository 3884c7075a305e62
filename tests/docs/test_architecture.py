"""docs/architecture.md: pipelines, packages, paths and files of the page exist."""

import re
from pathlib import Path

from recpipe.pipelines.wiring import ON_REQUEST, STAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def first_cells(head: str) -> list[str]:
    """Return the cells of the first column of the table with this head line."""
    table = PAGE.split(f"\n{head}\n")[1].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[1:]]


def test_the_table_has_every_pipeline():
    names = [cell.strip("`") for cell in first_cells("| pipeline | reads | leaves |")]
    assert sorted(names) == sorted((*STAGES, *ON_REQUEST))


def test_the_table_has_every_package():
    named = set(re.findall(r"`(\w+)`", " ".join(first_cells("| package | holds |"))))
    source = ROOT / "src" / "recpipe"
    assert named - {"session"} == {path.parent.name for path in source.glob("*/__init__.py")}


def test_files_of_the_page_are_left_by_a_whole_run(whole_run):
    project, _ = whole_run
    files = [path.relative_to(project / "data" / "test").as_posix() for path in (project / "data/test").rglob("*")]
    for folder, names in re.findall(r"^\| `(0[2-8]_[^`]+)` \| (.+) \|$", PAGE, re.MULTILINE):
        if re.search(r"semantic_ids|production|work|recommendations$", folder) or folder.startswith("04"):
            continue  # of other commands, and of models that read vectors
        prefix = re.sub(r"<[^>]+>", "*", folder.replace("<run>", "online_retail/sasrec/seed_42"))
        for name in re.findall(r"`([\w.]+\.\w+)`", names):
            pattern = re.compile(re.escape(prefix).replace(r"\*", "[^/]+") + f"(/.*)?/{re.escape(name)}")
            assert any(pattern.fullmatch(file) for file in files), (folder, name)
