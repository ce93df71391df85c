"""From profiles to a decision: which functions to look at first, and what the best possible gain from each would be."""

from collections.abc import Sequence

from ..results import Candidate, FunctionTime, WorkloadProfile
from .folding import OWN_LINES


def rank_candidates(
    profiles: Sequence[WorkloadProfile], *, per_workload: int = 2, smallest_share: float = 0.1
) -> list[Candidate]:
    """The `per_workload` functions of each workload that own most of its time, greatest share first.

    The share is that of the function's own time, library code folded in (`WorkloadProfile.share`), so shares add up. Below
    `smallest_share` a function is no candidate: at 0.1 even one that took no time would make the workload 1.11 times as
    fast. That bound is Amdahl's (1967), 1 / (1 - share).
    """
    return [
        Candidate(
            workload=profile.workload,
            function=function.name,
            share=share,
            tool="py-spy" if profile.n_samples else "cProfile",
            largest_gain=1 / (1 - share) if share < 1 else None,
            reason=_reason(profile, function, share),
        )
        for profile in profiles
        for function in profile.functions[:per_workload]
        if (share := profile.share(function)) >= smallest_share
    ]


def _reason(profile: WorkloadProfile, function: FunctionTime, share: float) -> str:
    """What was seen; a verdict on GPUs would need the arrays themselves."""
    seen = f"{share:.0%} of {profile.n_samples:,} samples" if profile.n_samples else f"{share:.0%} of the time under cProfile"
    parts = [
        f"{part:.0%} in {'its own lines, NumPy operators (@, +) included' if name == OWN_LINES else name}"
        for name, part in function.own_by_library.items()
        if part >= 0.05
    ]
    return f"{seen}, {function.n_calls:,} call{'s' if function.n_calls != 1 else ''} per run; {', '.join(parts)}"
