"""Chapter 10: where the time of any Python program goes, what of it suits a GPU, and what that would gain.

profile = profiling.profile("altlas_lib.workloads.segmentation:run", setup="altlas_lib.workloads.segmentation:load_input")
profiling.rank_candidates([profile], gpu="T4")
"""

import importlib

_MODULE_OF = {
    "FlameGraph": "flamegraph",
    "ProfilingError": "runnable",
    "Residuals": "residuals",
    "answers": "tables",
    "baseline_table": "tables",
    "candidate_table": "tables",
    "finding": "tables",
    "flame_graph": "flamegraph",
    "function_table": "tables",
    "learned_with": "residuals",
    "licence_table": "tables",
    "licences": "licensing",
    "line_table": "tables",
    "operation_table": "tables",
    "profile": "profiler",
    "rank_candidates": "candidates",
    "residual_table": "tables",
    "tool_table": "tables",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    """Loaded when first used: the child process of a profile shall hold what the user's program loads, and nothing else."""
    if name in _MODULE_OF:
        globals()[name] = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
