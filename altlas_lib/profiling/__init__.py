"""Chapter 10: where the time of any Python program goes, what of it suits a GPU, and what that would gain.

profile = profiling.profile("altlas_lib.workloads.segmentation:run", setup="altlas_lib.workloads.segmentation:load_input")
profiling.rank_candidates([profile], gpu="T4")
"""

import importlib

_NAMES_OF = {
    ".profiler": "profile",
    ".project.advice": "rank_candidates",
    ".run.targets": "ProfilingError",
    ".show.flamegraph": "FlameGraph flame_graph",
    ".show.tables": "candidate_table finding function_table line_table operation_table port_table route_table",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    """Loaded when first used: the child process of a profile shall hold what the user's program loads, and nothing else."""
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
