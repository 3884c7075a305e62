"""One quantizer for several data sets, so that a model trained on one can go on with another: as MQL4GRec pretrains.

A quantizer says what it was fitted to; vectors fit it if one encoder made them. Texts may be of another template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.content.embeddings import Embeddings, text_space


def of_one_encoder(embeddings: Embeddings, about: Mapping[str, Any], space: str) -> bool:
    """Whether the encoder of ``embeddings`` makes the vectors of ``space`` from what ``about`` says of them.

    Equal spaces are; of others only texts can be told, by the encoder's fingerprint and both templates.
    """
    if embeddings.space == space:
        return True
    encoder, own, other = (
        embeddings.about.get("fingerprint"),
        embeddings.about.get("template"),
        about.get("template"),
    )
    if encoder is None or own is None or other is None:
        return False
    return (text_space(encoder, own), text_space(encoder, other)) == (embeddings.space, space)


def vectors_of(embeddings: Embeddings, others: Mapping[str, Embeddings]) -> NDArray[np.float32]:
    """(N, D) of all items with content, of the data set and of ``others`` by name.

    Raises ValueError that names a data set whose vectors are another encoder's.
    """
    for name, other in others.items():
        if not of_one_encoder(embeddings, other.about, other.space):
            raise ValueError(
                f"quantizer_with={name}: its vectors are not of one encoder with these "
                f"({other.about.get('encoder')}, here {embeddings.about.get('encoder')}); embedded by an earlier "
                "version, run the pipeline embed once more"
            )
    return np.concatenate([each.vectors[each.present] for each in (embeddings, *others.values())])
