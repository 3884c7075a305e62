"""docs/glossary.md: terms in alphabetical order, each once, with a sentence and an anchor of its own."""

import re
from pathlib import Path

from docs.generators.glossary import PAGE, anchor, terms, with_headings

TEXT = (Path(__file__).parents[2] / "docs" / PAGE).read_text()


def test_terms_stand_in_alphabetical_order():
    words = [re.sub(r"[^a-z0-9 ]", "", term.casefold()) for term in terms(TEXT)]
    assert words == sorted(words)
    assert len(words) == len(set(words)) > 100


def test_each_term_has_one_line_with_a_sentence():
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(terms(TEXT))
    assert all(re.fullmatch(r"\| [^|]+ \| [^|]+\. \|", line) for line in lines)


def test_each_term_has_an_anchor_of_its_own():
    anchors = [anchor(term) for term in terms(TEXT)]
    assert len(anchors) == len(set(anchors))
    assert re.findall(r'id="([^"]+)"', with_headings(TEXT)) == anchors
    assert anchor("beam, beam search") == "beam"
    assert anchor("semantic id") == "semantic-id"
