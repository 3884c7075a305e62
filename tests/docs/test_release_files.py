"""Files beside the code: one version everywhere, a citation by the schema, issue forms that GitHub reads."""

from __future__ import annotations

import re
from datetime import date

import pytest
import yaml
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration
from tests.conftest import PROJECT

import recpipe
from recpipe.training.bundle import FORMATS

FORMS = sorted(path for path in (PROJECT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
CHANGELOG = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")


def citation():
    return yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))


def newest_release():
    match = re.search(r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)$", CHANGELOG, re.MULTILINE)
    return match[1], date.fromisoformat(match[2])


def test_the_package_takes_its_version_from_the_module(monkeypatch):
    monkeypatch.chdir(PROJECT)
    built = apply_configuration(Distribution({"src_root": str(PROJECT)}), "pyproject.toml").metadata.version
    assert built == recpipe.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", built)


def test_changelog_and_citation_are_of_this_version():
    assert newest_release()[0] == recpipe.__version__ == str(citation()["version"])
    assert citation()["date-released"] == newest_release()[1]


def test_the_citation_has_what_the_schema_of_cff_1_2_0_requires():
    values = citation()
    assert values["cff-version"] == "1.2.0" and values["type"] in ("software", "dataset")
    assert all(isinstance(values[name], str) and values[name] for name in ("message", "title"))
    assert values["authors"] and all("name" in author or "family-names" in author for author in values["authors"])
    known = {"abstract", "authors", "cff-version", "date-released", "keywords", "license", "message", "title", "type"}
    assert set(values) <= known | {"version", "doi", "repository-code", "url"}
    assert values["license"] == "Apache-2.0"


def test_bundles_of_0_1_0_are_read():
    assert {1, 2} <= set(FORMATS)  # 0.1.0 wrote both


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_the_fields_that_github_requires(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"] and form["body"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields and len({field["id"] for field in fields}) == len(fields)
    assert all(field["type"] in ("input", "textarea", "dropdown", "checkboxes") for field in fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_there_are_forms_for_a_bug_a_number_and_a_model():
    assert {path.stem for path in FORMS} == {"bug", "number", "model_or_dataset"}


def test_security_says_how_to_report_and_which_versions_get_fixes():
    text = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
    assert "Report a vulnerability" in text and f"{recpipe.__version__.rpartition('.')[0]}.x" in text
