"""A look at the answer itself: the most similar texts, side by side."""

from collections.abc import Sequence

import numpy as np

from ..devices import to_cpu
from .engine import Neighbors


def most_similar_pairs(
    neighbors: Neighbors, texts: Sequence[str], n_pairs: int = 5, *, max_characters: int = 300
) -> list[tuple[str, str, float]]:
    """The `n_pairs` most similar pairs of texts with their score, the most similar first, each pair once.

    Exact: a pair that is in neither text's k nearest has k pairs before it, so `n_pairs` up to k are all there.

    Args:
        neighbors: of `top_k` without `Y`, for these (n) `texts`.
        max_characters: texts are shortened to this; white space becomes one blank.

    Raises:
        ValueError: the number of texts is not that of the neighbours, or `n_pairs` is more than k while there are
            more than k + 1 texts to choose from.
    """
    indices, scores = to_cpu(neighbors.indices), to_cpu(neighbors.scores)
    n, k = indices.shape
    if len(texts) != n:
        raise ValueError(
            f"{len(texts):,} texts for the neighbours of {n:,} rows: pass the texts that the vectors were made from"
        )
    if n_pairs > k and k < n - len(neighbors.skipped_rows) - 1:
        raise ValueError(
            f"n_pairs={n_pairs} of neighbours with k={k}: the {k} most similar pairs are certain; ask top_k for more"
        )
    first, rank = np.nonzero(indices >= 0)
    second, score = indices[first, rank], scores[first, rank]
    pairs, at = np.unique(np.minimum(first, second) * n + np.maximum(first, second), return_index=True)
    best = np.argsort(-score[at], kind="stable")[:n_pairs]
    low, high = np.divmod(pairs[best], n)
    shortened = ([_shorten(texts[row], max_characters) for row in rows] for rows in (low, high))
    return list(zip(*shortened, score[at][best].tolist(), strict=True))


def _shorten(text: str, max_characters: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= max_characters else text[: max_characters - 1].rstrip() + "…"
