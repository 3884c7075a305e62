"""Formulas: TeX between dollar signs becomes MathML while the site is built, so that no script draws it."""

from __future__ import annotations

import html as entities
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def with_mathml(html: str) -> str:
    """Replace the formulas that ``pymdownx.arithmatex`` marked."""
    html = BLOCK.sub(lambda match: f'<div class="formula">{_mathml(match[1], "block")}</div>', html)
    return INLINE.sub(lambda match: _mathml(match[1], "inline"), html)


def _mathml(tex: str, display: str) -> str:
    return convert(entities.unescape(tex).strip(), display=display)
