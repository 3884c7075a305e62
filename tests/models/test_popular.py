"""Popularity against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.synthetic import sequences

from recpipe.models.registry import build


def test_popularity_counts_events_and_its_window_only_the_last_days():
    data = sequences([[1, 1, 2], [2, 3]])
    data.timestamps[:] = [0, 86_400 * 9, 86_400 * 10, 86_400 * 5, 86_400 * 10]
    models = {days: build("popular", {"days": days}, n_items=4, max_length=5) for days in (None, 2.0)}
    for model in models.values():
        model.fit(data)
    assert models[None].counts.tolist() == [0, 2, 2, 1, 0]
    assert models[2.0].counts.tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(ValueError, match="timestamps"):
        models[2.0].fit(sequences([[1]], times=False))


def test_popularity_is_the_sum_of_the_weights_of_events():
    data = sequences([[1, 1, 2], [2, 3]])
    data.timestamps[:] = [0, 86_400 * 9, 86_400 * 10, 86_400 * 5, 86_400 * 10]
    data = replace(data, weights=np.array([0.5, 2, 0, 3, 4], np.float32))
    models = {days: build("popular", {"days": days}, n_items=4, max_length=5) for days in (None, 2.0)}
    for model in models.values():
        model.fit(data)
    assert models[None].counts.tolist() == [0, 2.5, 3, 4, 0]
    assert models[2.0].counts.tolist() == [0, 2, 0, 4, 0]
