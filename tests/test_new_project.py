"""`recpipe new`: a project folder that works, from the repository and from an installed wheel."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import duckdb
import pytest
from tests.conftest import PROJECT
from tests.docs.snippets import run_page

import recpipe
from recpipe.config import Configuration
from recpipe.new_project import SAMPLE, create_project, main

LOG = PROJECT / "data/01_raw/online_retail/transactions.parquet"
LARGEST_WHEEL = 5_000_000  # bytes
SOURCES = ("conf", "notebooks", "src", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return create_project(tmp_path / "my shop")


def test_conf_is_that_of_the_repository_without_local_settings(shop: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    ours, theirs = files(shop / "conf"), files(PROJECT / "conf")
    changed = "base/parameters/datasets/online_retail.yml"
    assert {name: text for name, text in ours.items() if name != changed} == {
        name: text
        for name, text in theirs.items()
        if name != changed
        and (name.split("/")[0] in ("base", "test", "spark", "logging.yml") or name == "local/.gitkeep")
    }


def test_the_sample_is_every_fifth_customer_of_the_bundled_log(shop: Path) -> None:
    rule = "CustomerID % 5 = 0 OR (CustomerID IS NULL AND InvoiceNo LIKE '%00')"
    with duckdb.connect() as connection:
        expected = connection.execute(f"SELECT * FROM '{LOG}' WHERE {rule} ORDER BY ALL").fetchall()
        rows = connection.execute(f"SELECT * FROM '{shop / SAMPLE}' ORDER BY ALL").fetchall()
    assert rows == expected
    readme = (shop / SAMPLE).with_name("README.md").read_text(encoding="utf-8")
    assert f"{len(rows):,} of the {541_909:,} invoice lines" in " ".join(readme.split())
    assert "CC BY 4.0" in readme


def test_the_data_set_has_the_checksum_of_the_sample_and_says_that_it_is_one(shop: Path) -> None:
    block = Configuration.read(shop / "conf").parameters()["datasets"]["online_retail"]
    digest = hashlib.sha256((shop / SAMPLE).read_bytes()).hexdigest()
    assert block["files"]["interactions"]["checksum"] == f"sha256:{digest}"
    assert "sample" in block["title"]


def test_the_project_names_its_version_and_its_folder(shop: Path) -> None:
    tools = tomllib.loads((shop / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["kedro"]["project_name"] == "my shop"
    assert tools["recpipe"]["version"] == recpipe.__version__
    for file in ("pyproject.toml", "README.md"):
        assert "{" not in (shop / file).read_text(encoding="utf-8")


def test_a_folder_with_files_is_refused_and_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("user,item\n", encoding="utf-8")
    assert main([str(tmp_path)]) == 2
    assert "is not empty, it has log.csv: choose a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_virtual_environment_and_hidden_folders_may_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/pyvenv.cfg").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["."]) == 0
    assert (tmp_path / "conf/base").is_dir()
    assert "  cd " not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sh[o]p", "{shop}", "shop*"])
def test_a_path_that_kedro_reads_as_a_pattern_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose another name"):
        create_project(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["bücher 😀", "a 'b' \"c\"", "back\\slash", "#1 - $HOME"])
def test_any_printable_name_of_a_folder_is_the_name_of_the_project(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / name)]) == 0
    tools = tomllib.loads((tmp_path / name / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["kedro"]["project_name"] == name
    assert (tmp_path / name / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  cd "))
    assert shlex.split(command) == ["cd", str(tmp_path / name)]


def test_a_control_character_in_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="control character"):
        create_project(tmp_path / "a\nb")
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_replaced_nor_taken_for_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("text", encoding="utf-8")
    for folder in (tmp_path / "notes", tmp_path / "notes" / "shop"):
        assert main([str(folder)]) == 2
        assert capsys.readouterr().err == f"error: {tmp_path / 'notes'} is a file: choose another name\n"
    assert (tmp_path / "notes").read_text(encoding="utf-8") == "text"


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "shop"))

    monkeypatch.setattr(os, "makedirs", refuse)
    assert main([str(tmp_path / "shop")]) == 2
    error = capsys.readouterr().err
    assert "Permission denied" in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source distribution, and the wheel that was built from it, without a network."""
    base = tmp_path_factory.mktemp("build")
    source, into = base / "source", base / "dist"
    source.mkdir()
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(PROJECT / name, source / name, ignore=ignore)
        else:
            shutil.copy(PROJECT / name, source)
    (source / "conf/local/secret.yml").write_text("key: value\n", encoding="utf-8")
    (source / "conf/base/credentials.yml").write_text("key: value\n", encoding="utf-8")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), str(source)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    return next(into.glob("*.tar.gz")), next(into.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_configuration_templates_and_the_explorer_and_no_tests(packages: tuple[Path, Path]) -> None:
    sdist, wheel = packages
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    tracked = [path for name in ("base", "test", "spark") for path in (PROJECT / "conf" / name).rglob("*.yml")]
    notebooks = (PROJECT / "notebooks").glob("*.ipynb")
    template = {f"recpipe/project_template/{path.relative_to(PROJECT).as_posix()}" for path in [*tracked, *notebooks]}
    assert template <= names
    assert {
        "recpipe/py.typed",
        f"recpipe/project_template/{SAMPLE}",
        "recpipe/reporting/templates/report.html",
    } <= names
    explorer = (PROJECT / "src/recpipe/serving/http/explorer").iterdir()
    assert {f"recpipe/serving/http/explorer/{path.name}" for path in explorer if path.is_file()} <= names
    assert {name.split("/")[0] for name in names} == {"recpipe", f"recpipe-{recpipe.__version__}.dist-info"}
    assert not [name for name in names if "secret" in name or "credentials" in name or "/local/" in name]
    assert wheel.stat().st_size <= LARGEST_WHEEL
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests/" in name or "secret" in name or "/docs/" in name]


@pytest.fixture(scope="module")
def installation(packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Folder of programs of an environment with the wheel, and its variables.

    Dependencies are those of this environment, the repository is not on its path: a ``.pth`` file adds a folder and
    not what the ``.pth`` files there add.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = ["install", "--quiet", "--ignore-installed", "--no-deps", "--no-index", str(packages[1])]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], env=environment, check=True)
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(site.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    kedro = folder / "bin" / "kedro"
    kedro.write_text(f"#!{python}\nfrom kedro.framework.cli import main\nmain()\n", encoding="utf-8")
    kedro.chmod(0o755)
    return folder / "bin", environment | {"PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"}


@pytest.mark.slow
def test_the_commands_of_a_new_project_work_with_the_installed_wheel(
    installation: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    programs, environment = installation

    def run(*command: str, folder: Path = tmp_path / "shop") -> str:
        process = subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stdout[-1000:] + process.stderr[-3000:]
        return process.stdout

    assert "kedro run" in run("recpipe", "new", "shop", folder=tmp_path)
    code = "import json, recpipe, sys; print(json.dumps([recpipe.__file__, *sys.path]))"
    places = json.loads(run("python", "-c", code))
    assert not [place for place in places if place and Path(place).resolve().is_relative_to(PROJECT / "src")]
    shop = tmp_path / "shop"
    shutil.copytree(shop / "conf/test/parameters", shop / "conf/local/parameters")  # small models
    first, *_ = run_page(shop / "README.md", shop, {"PATH": environment["PATH"], "PYTHONPATH": ""})
    assert "sasrec" in first.stdout and "recommended" in first.stdout
    code = (
        "import recpipe; model = recpipe.load_bundle('data/06_models/online_retail/sasrec'); "
        "print(model.recommend({'ann': ['21754', '22423']}, k=3).num_rows)"
    )
    assert run("python", "-c", code).split() == ["3"]
