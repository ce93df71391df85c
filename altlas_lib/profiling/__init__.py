"""Chapter 10: where the time of any Python function goes, and which functions are worth a closer look.

profile = profiling.profile("altlas_lib.workloads.segmentation:run", setup="altlas_lib.workloads.segmentation:load_input")
profiling.rank_candidates([profile])
"""

from .candidates import rank_candidates
from .profiler import profile
from .tables import candidate_table, finding, function_table, overhead_table
from .targets import ProfilingError

__all__ = [
    "ProfilingError",
    "candidate_table",
    "finding",
    "function_table",
    "overhead_table",
    "profile",
    "rank_candidates",
]
