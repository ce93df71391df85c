"""The best few among many, with the whole of everything computed first."""

import numpy as np


def cosine_top_k_input(n: int = 1500) -> list[np.ndarray]:
    """Embeddings of six catalogues, float64[n, 300] each."""
    rng = np.random.default_rng(1)
    return [rng.standard_normal((n, 300)) for _ in range(6)]


def cosine_top_k(catalogues: list[np.ndarray]) -> list[np.ndarray]:
    return [most_similar(vectors) for vectors in catalogues]


def most_similar(vectors: np.ndarray, k: int = 10) -> np.ndarray:
    A = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    S = A @ A.T
    np.fill_diagonal(S, -1)
    return np.argpartition(-S, k, axis=1)[:, :k]


def near_duplicates_input(n: int = 6000) -> np.ndarray:
    """Text embeddings, float32[n, 256]; every tenth is another one with a little noise."""
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((n, 256), dtype=np.float32)
    vectors[::10] = vectors[1::10] + 0.1 * rng.standard_normal(vectors[::10].shape, dtype=np.float32)
    return vectors


def near_duplicates(vectors: np.ndarray) -> list[tuple[int, int]]:
    return pairs_alike(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 0.9)


def pairs_alike(unit: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    similarity = unit @ unit.T
    rows, columns = np.where(np.triu(similarity, 1) > threshold)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def nearest_depot_input(n: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Features of customers and depots, float64[n, 32] and float64[400, 32]."""
    rng = np.random.default_rng(3)
    return rng.random((n, 32)), rng.random((400, 32))


def nearest_depot(data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    customers, depots = data
    return squared_distances(customers, depots).argmin(axis=1)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=-1)


def best_sellers_input(n: int = 2_000_000) -> dict[str, np.ndarray]:
    """Region -> score of each article, float64[n]."""
    rng = np.random.default_rng(4)
    return {f"region {i}": rng.gamma(2.0, size=n) for i in range(5)}


def best_sellers(scores: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {region: top_20(of_region) for region, of_region in scores.items()}


def top_20(scores: np.ndarray) -> list[int]:
    order = np.argsort(scores)[::-1]
    return order[:20].tolist()
