"""Exact cosine similarity of all texts with all texts, without the n x n matrix, on the CPU and on the GPU.

    neighbors = similarity.top_k(vectors, k=10)
    neighbors.indices[0]  # the ten rows nearest to row 0, nearest first
    neighbors.scores[0]   # their cosines

The whole matrix, plainly computed as the plan has it, and a float64 `reference` stand beside it for comparison.
"""

# ruff: noqa: F401 (these names are the package's face)
from ..devices import to_cpu, to_gpu
from .corpus import Corpus
from .engine import Neighbors, Pairs, pairs_above, top_k
from .pairs import most_similar_pairs
from .poc.benchmark import break_even, summarize, time_sizes, time_steps, usable_sizes, warm_up
from .poc.expectation import expected_times
from .poc.methods import (
    METHODS,
    Method,
    available_methods,
    calculate_similarity_cpu,
    calculate_similarity_gpu_cupy,
    calculate_similarity_gpu_kernel,
    cosine_similarity,
)
from .poc.validation import reference, validate
