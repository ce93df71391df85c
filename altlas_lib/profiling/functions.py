"""The rows of a profile: what cProfile, py-spy and line_profiler each say of one of the user's functions."""

import statistics
from collections import Counter
from collections.abc import Sequence

from ..devices import describe_cpu
from ..results import FunctionTime, Quantity
from .record.folding import CallGraph, Project, Time, fold
from .record.measure import FunctionLines
from .record.sampling import Stack, by_function, display_name
from .run.targets import FunctionKey


def function_times(
    project: Project,
    root: FunctionKey,
    stacks: Counter[Stack],
    classified: Counter[Stack],
    recordings: Sequence[CallGraph],
    lines: Sequence[FunctionLines],
) -> dict[FunctionKey, FunctionTime]:
    """Every user's function, greatest share first; times are medians over the runs, 0 for a run in which it was not called.

    Args:
        stacks, classified: the samples that shares are taken of, and those that classes of time are taken of.
    """
    device, n_samples = str(describe_cpu()), stacks.total()
    (sampled, holding), (with_classes, _) = (by_function(each, project, root) for each in (stacks, classified))
    runs = [fold(recording, project.library, root) for recording in recordings]
    lines_of = {each.key: each.lines for each in lines}
    functions = {}
    for key in dict.fromkeys([*(key for run in runs for key in run), *holding]):
        rows = [run.get(key, (Time(), {})) for run in runs]
        times, own = [time for time, _ in rows], [sum(own.values()) for _, own in rows]
        seen = any(time.n_calls for time in times)  # else it ran in another thread, of which cProfile knows nothing
        by_library = sum((Counter(own) for _, own in rows), Counter())
        classes = with_classes[key]
        functions[key] = FunctionTime(
            name=display_name(key),
            file=project.relative(key.file),
            line=key.line,
            n_calls=statistics.median_high(time.n_calls for time in times) if seen else None,
            own=Quantity.measured(own, "s", device) if seen else None,
            cumulative=Quantity.measured([time.cumulative_s for time in times], "s", device) if seen else None,
            own_by_library={name: s / by_library.total() for name, s in by_library.most_common()},
            sampled_own_share=sampled[key].total() / n_samples if n_samples else None,
            sampled_share=holding[key].total() / n_samples if n_samples else None,
            own_by_class={kind: n / classes.total() for kind, n in classes.most_common() if kind},
            lines=lines_of.get(key, []),
            ran_in="the calling thread" if seen else holding[key].most_common(1)[0][0],
        )
    own_s = {key: row.own.value if row.own else 0 for key, row in functions.items()}
    return dict(sorted(functions.items(), key=lambda item: (-(item[1].sampled_own_share or 0), -own_s[item[0]])))
