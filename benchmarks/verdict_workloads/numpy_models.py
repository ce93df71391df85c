"""A trained network written in NumPy: asked request by request, and for a whole archive."""

import itertools

import numpy as np

Layers = list[tuple[np.ndarray, np.ndarray]]


def _layers(rng: np.random.Generator, *sizes: int) -> Layers:
    return [
        (rng.standard_normal((a, b), dtype=np.float32) / np.float32(a**0.5), np.zeros(b, np.float32))
        for a, b in itertools.pairwise(sizes)
    ]


def predict(rows: np.ndarray, layers: Layers) -> np.ndarray:
    """Probabilities float32[rows, classes]."""
    for weights, bias in layers[:-1]:
        rows = np.maximum(rows @ weights + bias, 0)
    weights, bias = layers[-1]
    scores = rows @ weights + bias
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def mlp_requests_input(n: int = 4000) -> tuple[list[np.ndarray], Layers]:
    """n requests of float32[64, 128], and a network with two hidden layers."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal((64, 128), dtype=np.float32) for _ in range(n)], _layers(rng, 128, 128, 64, 10)


def mlp_requests(data: tuple[list[np.ndarray], Layers]) -> list[list[int]]:
    requests, layers = data
    return [predict(rows, layers).argmax(axis=1).tolist() for rows in requests]


def mlp_archive_input(n: int = 65_536) -> tuple[np.ndarray, Layers]:
    """An archive of images float32[n, 784], and a network with two hidden layers."""
    rng = np.random.default_rng(2)
    return rng.standard_normal((n, 784), dtype=np.float32), _layers(rng, 784, 512, 256, 10)


def mlp_archive(data: tuple[np.ndarray, Layers]) -> np.ndarray:
    rows, layers = data
    return predict(rows, layers).argmax(axis=1)


def attention_input(n: int = 1536) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values of 12 heads for n tokens, float32[12, n, 64] each."""
    rng = np.random.default_rng(3)
    return tuple(rng.standard_normal((12, n, 64), dtype=np.float32) for _ in range(3))


def attention(heads: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    return attended(*heads)


def attended(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    scores = queries @ keys.transpose(0, 2, 1) / np.float32(8)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return weights @ values / weights.sum(axis=2, keepdims=True)
