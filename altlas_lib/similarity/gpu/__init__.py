"""The GPU engine: half-precision products bound, float32 products verify, CUDA C++ kernels select."""

from .search import load_kernel, score_slack, top_k

__all__ = ["load_kernel", "score_slack", "top_k"]
