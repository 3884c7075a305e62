"""Dot plots of the results pages: colours with contrast on their own background, light and dark."""

import re

import pytest

from recpipe.reporting.results.dot_plot import Point, dot_plot


def luminance(colour):
    """Relative luminance of WCAG 2.2 for #rrggbb."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_have_the_contrast_of_wcag_aa(scheme):
    svg = dot_plot([Point("RPG", 0.05), Point("rpg", 0.06, 0.05, 0.07, is_ours=True)], metric="ndcg@10", title="shop")
    papers, greys, blues = (re.findall(rf"--{name}: (#\w{{6}})", svg) for name in ("paper", "grey", "blue"))
    assert len(papers) == 2 and contrast("#ffffff", "#000000") == pytest.approx(21)
    assert min(contrast(colour, papers[scheme]) for colour in (greys[scheme], blues[scheme])) >= 4.5
