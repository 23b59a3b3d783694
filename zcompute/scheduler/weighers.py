"""Weighers: which of the hosts that pass is best."""

import numpy as np
from numpy.typing import NDArray

from zcompute.scheduler.host_states import View

Weights = NDArray[np.float64]


def spread_weigher(view: View) -> Weights:
    """Most free memory first, so that instances spread over the hosts (Nova's RAMWeigher, multiplier 1)."""
    return view.free_memory_mb.astype(np.float64)


def best_rows(weights: Weights, rows: NDArray[np.intp], count: int, random: np.random.Generator) -> list[int]:
    """Up to ``count`` of the rows, best first; equal ones in random order."""
    noisy = weights[rows] + random.random(len(rows))  # below 1 MiB: it orders equals and never outweighs a difference
    if count < len(rows):
        chosen = np.argpartition(-noisy, count)[:count]
        rows, noisy = rows[chosen], noisy[chosen]
    return [int(row) for row in rows[np.argsort(-noisy)]]
