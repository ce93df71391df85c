"""Chapter 10: where the time of any Python program goes, what of it suits a GPU, and what that would gain.

profile = profiling.profile("altlas_lib.workloads.segmentation:run", setup="altlas_lib.workloads.segmentation:load_input")
profiling.rank_candidates([profile], gpu="T4")
"""

import importlib

_MODULE_OF = {
    "FlameGraph": ".show.flamegraph",
    "ProfilingError": ".run.runnable",
    "answers": ".show.tables",
    "baseline_table": ".show.tables",
    "candidate_table": ".show.tables",
    "finding": ".show.tables",
    "flame_graph": ".show.flamegraph",
    "function_table": ".show.tables",
    "line_table": ".show.tables",
    "operation_table": ".show.tables",
    "profile": ".profiler",
    "rank_candidates": ".project.advice",
    "port_table": ".show.tables",
    "route_table": ".show.tables",
    "tool_table": ".show.tables",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    """Loaded when first used: the child process of a profile shall hold what the user's program loads, and nothing else."""
    if name in _MODULE_OF:
        globals()[name] = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
