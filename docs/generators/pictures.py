"""Pictures for light and dark pages.

Markdown files hold ``<picture>`` with a ``<source media="(prefers-color-scheme: dark)">``, as GitHub wants it.
The site has a switch of its own: it gets both images, and its style sheet shows one.
"""

from __future__ import annotations

import re

PICTURE = re.compile(r"<picture>.*?</picture>", re.DOTALL)
DARK = re.compile(r"<source[^>]*prefers-color-scheme:\s*dark[^>]*>")
SRCSET = re.compile(r'srcset="([^"]+)"')
IMAGE = re.compile(r'<img([^>]*?)src="([^"]+)"([^>]*)>', re.DOTALL)


def by_scheme(markdown: str) -> str:
    """Replace each ``<picture>`` by an image for light pages and one for dark pages."""
    return PICTURE.sub(lambda match: _two_images(match[0]), markdown)


def _two_images(picture: str) -> str:
    dark, image = DARK.search(picture), IMAGE.search(picture)
    source = SRCSET.search(dark[0]) if dark else None
    if not image:
        return picture
    if not source:
        return image[0]
    before, light, after = image.groups()
    light_image = f'<img{before}src="{light}#only-light"{after}>'
    return f'{light_image}<img{before}src="{source[1]}#only-dark"{after}>'
