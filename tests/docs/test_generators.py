"""Links, pictures, formulas and navigation of the documentation site."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from docs.generators import formulas, hooks, links, navigation, pictures, registry, tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

MATHML = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture
def root(tmp_path):
    """A repository with a page, code, configuration and Markdown outside of docs."""
    for path, text in {
        "docs/tutorials/serve.md": "",
        "docs/glossary.md": "",
        "src/model.py": 'TEXT = """\n```\n"""\n',
        "conf/base/train.yml": "epochs: 1\n",
        "CONTRIBUTING.md": "See [the model](src/model.py) and [terms](docs/glossary.md#id).\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


class TestLinks:
    def test_code_outside_of_docs_becomes_a_page(self, root):
        text = "The [model](../../src/model.py#L3) and [terms](../glossary.md)."
        assert links.relink(text, "tutorials/serve.md", root) == (
            "The [model](../files/src/model.py.md) and [terms](../glossary.md)."
        )

    def test_code_leads_to_the_repository_where_it_has_an_address(self, root):
        text = links.relink("[model](../src/model.py#L3)", "x.md", root, repository_url="https://example.org/r/")
        assert text == "[model](https://example.org/r/blob/main/src/model.py#L3)"

    def test_code_blocks_are_left_alone(self, root):
        text = "```text\n[model](../src/model.py)\n```\n"
        assert links.relink(text, "x.md", root) == text

    def test_files_that_do_not_exist_stay_for_mkdocs_to_report(self, root):
        assert links.relink("[x](../src/none.py)", "x.md", root) == "[x](../src/none.py)"

    def test_pages_are_made_for_linked_files_and_for_those_that_they_link_to(self, root):
        pages = links.file_pages({"x.md": "[how](../CONTRIBUTING.md), [settings](../conf/base/)"}, root)
        assert set(pages) == {"files/CONTRIBUTING.md", "files/src/model.py.md", "files/conf/base.md"}
        assert "````python" in pages["files/src/model.py.md"]  # a longer fence than the one in the code
        assert "- `train.yml`" in pages["files/conf/base.md"]

    def test_markdown_outside_of_docs_links_back_to_pages(self, root):
        text = links.relink((root / "CONTRIBUTING.md").read_text(), "files/CONTRIBUTING.md", root)
        assert text == "See [the model](src/model.py.md) and [terms](../glossary.md#id).\n"


class TestPictures:
    def test_both_colours_become_images(self):
        text = (
            '<picture>\n<source media="(prefers-color-scheme: dark)" srcset="p/dark.png">\n'
            '<img alt="A report" src="p/light.png">\n</picture>'
        )
        assert pictures.by_scheme(text) == (
            '<img alt="A report" src="p/light.png#only-light"><img alt="A report" src="p/dark.png#only-dark">'
        )

    def test_a_picture_of_one_colour_stays_an_image(self):
        assert pictures.by_scheme('<picture><img src="a.svg"></picture>') == '<img src="a.svg">'


class TestFormulas:
    def test_tex_becomes_mathml(self):
        html = formulas.with_mathml(r'<p><span class="arithmatex">\(a &lt; \frac{1}{2}\)</span></p>')
        fraction = ElementTree.fromstring(html).find(f".//{MATHML}mfrac")
        assert [part.text for part in fraction.iter(f"{MATHML}mn")] == ["1", "2"]

    def test_displayed_formulas_stand_in_a_block(self):
        html = formulas.with_mathml('<div class="arithmatex">\\[x^2\\]</div>')
        assert html.startswith('<div class="formula"><math') and 'display="block"' in html


class TestNavigation:
    def test_sections_stand_in_their_order_and_unknown_pages_at_the_end(self):
        nav = navigation.navigation({"glossary.md": "", "other.md": "", "index.md": ""})
        assert nav == [{"Start": "index.md"}, {"Glossary": "glossary.md"}, "other.md"]

    def test_pages_of_a_folder_follow_their_index(self):
        texts = {"models/index.md": "[b](b.md) [a](a.md#x) [c](c.md)", "models/a.md": "", "models/c.md": ""}
        texts |= {"models/b.md": ""}
        (section,) = navigation.navigation(texts)
        assert section["Models"] == ["models/index.md", "models/b.md", "models/a.md", "models/c.md"]

    def test_headings_of_an_index_become_groups(self):
        texts = {"models/index.md": "# Models\n## Old\n[a](a.md)\n## New\n[b](b.md) and [a](a.md)\n"}
        (section,) = navigation.navigation(texts | {"models/a.md": "", "models/b.md": ""})
        assert section["Models"] == ["models/index.md", {"Old": ["models/a.md"]}, {"New": ["models/b.md"]}]


def test_two_generators_of_one_page_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "GENERATORS", ("api", "api"))
    with pytest.raises(ValueError, match="writes api/"):
        registry.generated_pages()


def test_a_generated_page_that_stands_in_docs_is_refused(monkeypatch):
    config = MkDocsConfig()
    config.load_dict({"site_name": "recpipe", "docs_dir": str(hooks.ROOT / "docs")})
    assert config.validate()[0] == []
    config.plugins._current_plugin = "hooks"  # mkdocs sets it while it calls a hook
    monkeypatch.setattr(registry, "generated_pages", lambda: {"index.md": "", "models/new.md": ""})
    with pytest.raises(PluginError, match=r"docs/index\.md"):
        hooks.on_files(Files([File.generated(config, "index.md", content="")]), config)
    files = hooks.on_files(Files([File.generated(config, "other.md", content="")]), config)
    assert {"models/new.md", "other.md"} <= set(files.src_uris)


def test_no_generated_page_stands_in_docs():
    assert [uri for uri in registry.generated_pages() if (hooks.ROOT / "docs" / uri).exists()] == []


def test_long_cells_of_tables_are_marked_by_the_length_of_their_text():
    link = '<a href="a-very-long-address-of-a-page.html">short</a>'
    html = f'<td>{link}</td>\n<td style="text-align: right;">.1</td>\n<td>{"word " * 10}</td>'
    assert tables.with_long_cells(html) == html.replace("<td>word", '<td class="long">word')
