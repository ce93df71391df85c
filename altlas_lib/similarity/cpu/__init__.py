"""The CPU engine: cheap products bound, float32 products verify, compiled loops select. Importing it loads Numba."""

from .search import Settings, pairs_above, top_k

__all__ = ["Settings", "pairs_above", "top_k"]
