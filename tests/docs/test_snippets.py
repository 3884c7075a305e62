"""Blocks of pages are executed in order, and the first one that fails is named with page, line, command and output."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlopen

import pytest
from tests.docs.page_projects import finished_project, small_project
from tests.docs.snippets import PageRunner, SnippetError, read_snippets, run_page


@pytest.fixture
def write(tmp_path: Path):
    def page(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(text.replace("~~~", "```"), encoding="utf-8")
        return path

    return page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


PAGE = """\
# Page

~~~yaml
# conf/local/a.yml
key: 3
~~~

1. In a list:

   ~~~bash
   echo 4 >> conf/local/a.yml
   cat conf/local/a.yml
   ~~~

~~~python
lines = open("conf/local/a.yml").readlines()
~~~
~~~text
not run
~~~
<!-- test: output -->
~~~bash
exit 1
~~~
~~~python
print("hello")
lines[-1].strip()
~~~
"""


def test_blocks_of_one_page_share_a_folder_and_python_names(write, folder) -> None:
    outputs = run_page(write(PAGE), folder)
    assert [output.stdout for output in outputs] == ["# conf/local/a.yml\nkey: 3\n4\n", "", "hello\n4\n"]


def test_a_failing_command_is_named_with_page_line_and_the_end_of_its_output(write, folder) -> None:
    page = write("\n\n~~~bash\necho fine\n\nls /no/such/folder | cat\nls /no/such/folder\necho never\n~~~\n")
    with pytest.raises(SnippetError) as error:
        run_page(page, folder)
    first, command, *output = str(error.value).splitlines()
    assert first.startswith("page.md:7: exit status ") and command.strip() == "ls /no/such/folder"
    assert "No such file" in output[-1] and "never" not in str(error.value)


def test_an_unset_variable_fails(write, folder) -> None:
    with pytest.raises(SnippetError, match=r"page.md:2: exit status[\s\S]*NO_SUCH_NAME: unbound"):
        run_page(write("~~~bash\necho $NO_SUCH_NAME\n~~~\n"), folder)


@pytest.mark.parametrize(
    ("code", "line"),
    [("x = 1\nx / 0", 4), ("def f():\n    return {}['a']\n\nf()", 6), ("x = 1\nif x", 4), ("raise SystemExit(0)", 3)],
    ids=["expression", "function", "syntax", "exit"],
)
def test_a_python_error_is_named_with_the_line_of_the_page(write, folder, code, line) -> None:
    with pytest.raises(SnippetError, match=rf"^page.md:{line}: \w+"):
        run_page(write(f"\n~~~python\n{code}\n~~~\n"), folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~~~\nkedro run\n~~~\n", "language ''"),
        ("~~~sh\nkedro run\n~~~\n", "language 'sh'"),
        ("~~~bash\nkedro run\n", "never closed"),
        ("<!-- test: later -->\n~~~bash\nls\n~~~\n", "directive 'later'"),
        ("<!-- test: skip -->\n~~~bash\nls\n~~~\n", "needs a reason"),
    ],
)
def test_a_block_that_no_test_would_see_is_refused(write, text, message) -> None:
    with pytest.raises(SnippetError, match=message):
        read_snippets(write(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- test: skip, no GPU -->\n~~~bash\nif true\n~~~\n", "bash cannot read"),
        (
            "<!-- test: skip, no GPU -->\n~~~bash\nsrun python -m recpipe.config show --parms a=1\n~~~\n",
            "no option --parms",
        ),
        ("<!-- test: skip, no GPU -->\n~~~bash\nmake demos\n~~~\n", "no target demos"),
        ("~~~yaml\na: [1\n~~~\n", "no YAML"),
    ],
)
def test_blocks_that_are_not_run_are_checked(write, folder, text, message) -> None:
    with pytest.raises(SnippetError, match=message):
        run_page(write(text), folder)


def test_a_skipped_block_with_options_that_exist_passes(write, folder) -> None:
    text = "~~~bash\nA=1 srun python -m recpipe.config show \\\n  --params=a=1\nmake demo\n~~~\n"
    assert run_page(write(f"<!-- test: skip, no GPU -->\n{text}"), folder) == []


def test_a_service_answers_later_blocks_on_a_free_port_and_ends_with_the_page(write, folder) -> None:
    server = "~~~bash\npython -m http.server --bind 127.0.0.1 --directory . 8000 # port 8000\n~~~\n"
    server = server.replace(" 8000 # port 8000", ' ${PORT} ; : "port 8000"').replace("python", "PORT=0\npython", 1)
    server = "<!-- test: background -->\n" + server.replace("PORT=0", 'words="port 8000"\nPORT=${words#port }')
    (folder / "answer.txt").write_text("here\n")
    snippets = read_snippets(write(f"{server}~~~bash\npython -c \"print('127.0.0.1:8000')\"\n~~~\n"))
    with PageRunner(folder) as runner:
        _, output = [runner.run(snippet) for snippet in snippets]
        address = f"http://{output.stdout.strip()}/answer.txt"
        assert ":8000/" not in address
        assert urlopen(address, timeout=10).read() == b"here\n"
    with pytest.raises(OSError):
        urlopen(address, timeout=10)


def test_a_service_that_does_not_start_is_an_error_with_its_output(write, folder) -> None:
    with pytest.raises(SnippetError, match=r"page.md:3: the service does not answer[\s\S]*no such place"):
        run_page(write("<!-- test: background -->\n~~~bash\necho no such place >&2; exit 2\n~~~\n"), folder)


def test_projects_of_pages_read_small_sizes_and_write_below_data(tmp_path) -> None:
    from recpipe.config import Configuration, DataPaths

    project = small_project(tmp_path / "project")
    configuration = Configuration.read(project / "conf", None, {})
    assert configuration.run("sasrec").settings["dim"] == 16
    models = DataPaths(**configuration.parameters()["paths"]).models
    assert models == project / "data" / "06_models" / "online_retail"
    assert not (project / "data" / "01_raw").is_symlink()


@pytest.mark.slow
def test_a_page_after_the_demo_finds_its_bundles(tmp_path, whole_run, write) -> None:
    project = finished_project(tmp_path / "copy", whole_run[0])
    code = "import recpipe\nmodel = recpipe.load_bundle('data/06_models/online_retail/sasrec')\n"
    (output,) = run_page(write(f"~~~python\n{code}model.recommend({{'ann': ['21754']}}, k=3).num_rows\n~~~\n"), project)
    assert output.stdout == "3\n"
