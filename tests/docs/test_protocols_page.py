"""docs/protocols.md: examples print what the page says, and the table of named protocols is that of the conf."""

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from recpipe.config.__main__ import main
from recpipe.data.protocol import CHOICES, TIME_CHOICES, Protocol

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocols.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def rows(title: str) -> list[list[str]]:
    """Cells of the first table after a heading, without its two head lines."""
    table = re.search(r"^\|.*?(?=\n\n)", PAGE.split(f"# {title}\n")[1], re.MULTILINE | re.DOTALL)
    assert table
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


def test_every_example_prints_what_the_page_says():
    assert len(EXAMPLES) == PAGE.count("```python") == 4
    names: dict[str, object] = {}
    for code, output in EXAMPLES:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/protocols.md", "exec"), names)
        assert printed.getvalue() == output


def test_commands_and_the_protocol_of_ones_own_run(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    ((path, content),) = re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(content)
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(command) for command in re.findall(r"```bash\n(.*?)\n```", PAGE)]
    assert [command[:2] for command in commands] == [["recpipe", "config"]] * 2
    papers, own = (main(command[2:]) or capsys.readouterr().out for command in commands)
    assert re.search(r"protocol.history +20 +# conf/base/parameters/protocols.yml", papers)
    assert re.search(r"protocol.history +50 +# conf/local/parameters/protocols.yml", own)
    assert re.search(r"protocol.name +last_50", own)


def test_named_protocols_are_those_of_the_conf():
    conf = yaml.safe_load((ROOT / "conf/base/parameters/protocols.yml").read_text())["protocols"]
    table = {row[0].strip("`"): row[1:4] for row in rows("Named protocols")}
    assert list(table) == list(conf)
    for name, (split, history, seen) in table.items():
        fields = conf[name]
        assert (split.strip("`"), int(history)) == (fields["split"], fields["history"])
        assert seen == ("excluded" if fields["exclude_seen"] else "allowed")
        assert (fields["targets"], fields["candidates"], fields["time"]) == ("next", "full", "none")
    assert conf["rolling"]["folds"] == 3


def test_the_table_of_fields_has_every_field():
    named = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in rows("Fields and the id"))))
    assert named == {field.name for field in dataclasses.fields(Protocol)} - {"name", "fingerprint", "steps"}


def test_splits_and_uses_of_time_are_those_of_the_code():
    assert {row[0].strip("`") for row in rows("Splits")} == set(CHOICES["split"])
    assert tuple(row[0].strip("`") for row in rows("Time")) == TIME_CHOICES


@pytest.mark.parametrize(
    ("field", "value", "split", "enters"),
    [
        ("valid", 0.2, "leave_one_out", False),
        ("valid", 0.2, "temporal", True),
        ("seed", 1, "leave_one_out", False),
        ("seed", 1, "cold_users", True),
        ("folds", 5, "temporal", False),
        ("folds", 5, "rolling", True),
        ("history", 50, "leave_one_out", True),
        ("exclude_seen", False, "leave_one_out", True),
        ("cutoffs", (10,), "leave_one_out", True),
        ("ties", "shuffle", "leave_one_out", True),
        ("time", "query", "leave_one_out", True),
        ("name", "papers", "leave_one_out", False),
    ],
)
def test_a_field_changes_the_id_only_where_the_page_says_so(field, value, split, enters):
    protocol = Protocol(dataset="shop", split=split)
    assert (dataclasses.replace(protocol, **{field: value}).id != protocol.id) == enters
