"""Whether two tables arrange the same items alike, however they are turned. I items, D and E widths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def linear_cka(x_ID: NDArray[np.float64], y_IE: NDArray[np.float64]) -> float:
    """‖Y'X‖² / (‖X'X‖ ‖Y'Y‖) of centred columns, in Frobenius norms; Kornblith et al., ICML 2019, equation 4.

    1 for what is the same up to rotation and scale. Tables that have nothing in common are above 0 by chance, more so
    the wider they are: give the same of random tables beside it. nan where one does not vary. Raises ValueError for
    tables of different items.
    """
    if len(x_ID) != len(y_IE):
        raise ValueError(f"the tables have {len(x_ID)} and {len(y_IE)} rows; they must be of the same items")
    x, y = x_ID - x_ID.mean(0), y_IE - y_IE.mean(0)
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / own) if own > 0 else np.nan
