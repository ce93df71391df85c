"""The flame graph of a profile: one self-contained HTML page, in an iframe that may run its few lines of script and no more."""

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...results import WorkloadProfile

_SMALLEST_SHARE = 0.002  # of all samples; what is narrower cannot be seen
_ROW_PX = 20


def frames_of(stacks: Mapping[str, int]) -> list[dict[str, Any]]:
    """Where each frame lies: outermost call at depth 0, callees above their caller, side by side in the order of their names.

    Name, depth, number of samples, left end and width of each, these two as shares of the whole width.

    Args:
        stacks: 'outer;inner' -> number of samples, as in `WorkloadProfile.stacks`.
    """
    n_samples: Counter[tuple[str, ...]] = Counter()  # by path; the empty one is the whole width
    for stack, n in stacks.items():
        names = tuple(stack.split(";"))
        n_samples.update({names[:depth]: n for depth in range(len(names) + 1)})
    frames, free_from = [], {(): 0}  # where the next frame above a path goes
    for path in sorted(n_samples)[1:]:  # callers before their callees
        free_from[path] = left = free_from[path[:-1]]
        free_from[path[:-1]] += n_samples[path]
        left, width, n = left / n_samples[()], n_samples[path] / n_samples[()], n_samples[path]
        if width >= _SMALLEST_SHARE:
            frames.append({"name": path[-1], "depth": len(path) - 1, "left": left, "width": width, "n_samples": n})
    return frames


class FlameGraph(str):
    """An iframe, shown by JupyterLab, and in a notebook exported to HTML, without a network."""

    _repr_html_ = str.__str__


def flame_graph(profile: WorkloadProfile) -> FlameGraph:
    """The stacks that py-spy took, each as wide as its share of the samples; a click zooms in, a click on the lowest row out.

    Without any the page has the profile's notes, which say why.
    """
    frames = frames_of(profile.stacks)
    depth = 1 + max((frame["depth"] for frame in frames), default=0)
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("flamegraph.html.j2").render(profile=profile, frames=frames, depth=depth, row_px=_ROW_PX)
    # Without allow-same-origin the page cannot touch the notebook around it, whatever a function is named.
    style = f"width: 100%; height: {_ROW_PX * (depth + 2) + 16}px; border: 0"
    return FlameGraph(f'<iframe title="flame graph" sandbox="allow-scripts" style="{style}" srcdoc="{escape(page)}"></iframe>')
