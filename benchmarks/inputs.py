"""The vectors that the benchmark runs on: noise, and what makes a bound, a threshold or an order of work useless."""

from collections.abc import Callable

import numpy as np


def gaussian(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Independent normal values: all cosines near 0, and the nearest hardly nearer than the others."""
    return rng.standard_normal((n, d), dtype=np.float32)


def drift(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """A random walk: the neighbours of a row stand beside it, so that the k-th best improves from block to block."""
    return np.cumsum(gaussian(rng, n, d), axis=0)


def outliers(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Four dimensions are 20 times larger, of either sign: a scale per row wastes nearly all of int8's range."""
    vectors = gaussian(rng, n, d)
    vectors[:, rng.choice(d, min(4, d), replace=False)] *= 20
    return vectors


def duplicates(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """All rows are equal: every pair ties with every other, and no bound discards any."""
    return np.repeat(gaussian(rng, 1, d), n, axis=0)


def clusters(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """500 tight clusters in random order: the true neighbours differ by less than int8 can tell."""
    centres = gaussian(rng, 500, d)
    return centres[rng.integers(500, size=n)] + np.float32(0.05) * gaussian(rng, n, d)


def embeddings(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """As text embeddings lie: in a narrow cone (mean cosine about 0.5), with a spectrum that falls like Zipf's law.

    Mu and Viswanath 2018, "All-but-the-top", describe both properties.
    """
    deviations = 1 / np.sqrt(np.arange(1, d + 1, dtype=np.float32))
    rotation = np.linalg.qr(gaussian(rng, d, d))[0]
    mean = gaussian(rng, 1, d)
    mean *= np.linalg.norm(deviations) / np.linalg.norm(mean)
    return (gaussian(rng, n, d) * deviations) @ rotation + mean


INPUTS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    function.__name__: function for function in (gaussian, drift, outliers, duplicates, clusters, embeddings)
}
