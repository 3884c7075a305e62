"""What faiss learns for us: k-means and the rotation of optimised product quantization.

faiss runs on one thread here. It ships an OpenMP and a BLAS of its own beside torch's, and on two cores two threads
took 2.4 times as long as one (k-means of 12,101 x 384, 256 codes: 1.97 s and .81 s); one thread is also repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def kmeans(x_ND: Tensor, codes: int, *, iterations: int, steps: int, sample: int, seed: int) -> Tensor:
    """(V, D) centroids of at most about ``sample`` rows. Empty clusters take half of a full one.

    With ``steps`` above 1 it clusters first in a few principal components and then, step by step, in all, with
    ``iterations`` each (faiss' progressive clustering, the default of its ResidualQuantizer).
    """
    import faiss

    settings = {
        "niter": iterations,
        "seed": _short(seed),
        "min_points_per_centroid": 1,
        "max_points_per_centroid": max(1, math.ceil(sample / codes)),
    }
    if steps > 1 and len(x_ND) >= x_ND.shape[1]:  # principal components of fewer rows are not defined
        settings["progressive_dim_steps"] = steps
    clustering = faiss.Kmeans(x_ND.shape[1], codes, **settings)
    with one_thread():
        clustering.train(np.ascontiguousarray(x_ND.numpy()))
    return torch.from_numpy(np.array(clustering.centroids, np.float32).reshape(codes, -1))


def opq_rotation(x_ND: Tensor, sizes: tuple[int, ...], *, iterations: int, sample: int, seed: int) -> Tensor:
    """(D, D) orthonormal R; the sub-vectors of ``x @ R.T`` suit a product quantizer (Ge et al. 2013).

    D must be a multiple of the levels. Codes per level count as the power of two below the smallest of them.
    """
    import faiss

    width, levels = x_ND.shape[1], len(sizes)
    pq = faiss.ProductQuantizer(width, levels, min(sizes).bit_length() - 1)
    pq.cp.min_points_per_centroid, pq.cp.seed = 1, _short(seed)
    opq = faiss.OPQMatrix(width, levels)
    opq.pq, opq.niter, opq.max_train_points = pq, iterations, max(sample, width)
    # With fewer rows than dimensions faiss 1.15 writes past its memory; the same rows several times mean the same.
    x_ND = x_ND.repeat(math.ceil(width / len(x_ND)), 1)
    with one_thread():
        opq.train(np.ascontiguousarray(x_ND.numpy()))
    return torch.from_numpy(faiss.vector_to_array(opq.A).reshape(width, width).copy())


@contextmanager
def one_thread() -> Iterator[None]:
    """faiss on one thread inside, as before afterwards."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _short(seed: int) -> int:
    return seed % (1 << 31)
