"""The GPU engine: half-precision products bound, float32 products verify, CUDA C++ kernels select."""

from .launch import load_kernel
from .search import pairs_above, score_slack, top_k

__all__ = ["load_kernel", "pairs_above", "score_slack", "top_k"]
