"""Exact cosine similarity of all texts with all texts, without the n x n matrix, on the CPU and on the GPU.

    neighbors = similarity.top_k(vectors, k=10)
    neighbors.indices[0]  # the ten rows nearest to row 0, nearest first
    neighbors.scores[0]   # their cosines

The whole matrix, plainly computed as the plan has it, and a float64 `reference` stand beside it for comparison.
"""

from ..devices import to_cpu, to_gpu
from .benchmark import break_even, summarize, time_sizes, usable_sizes
from .engine import Neighbors, top_k
from .matrix import calculate_similarity_cpu, calculate_similarity_gpu_cupy, cosine_similarity
from .methods import METHODS, Method, available_methods
from .pairs import most_similar_pairs
from .validation import reference, validate

__all__ = [
    "METHODS",
    "Method",
    "Neighbors",
    "available_methods",
    "break_even",
    "calculate_similarity_cpu",
    "calculate_similarity_gpu_cupy",
    "cosine_similarity",
    "most_similar_pairs",
    "reference",
    "summarize",
    "time_sizes",
    "to_cpu",
    "to_gpu",
    "top_k",
    "usable_sizes",
    "validate",
]
