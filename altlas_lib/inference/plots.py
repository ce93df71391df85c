"""Figures of chapter 40: the time of a call by batch, measured here and projected for a GPU."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from ..results import Forward, Latency


def latency_by_batch(ax: Axes, latencies: Sequence[Latency], forwards: Sequence[Forward]) -> Axes:
    """Medians with the fastest and slowest run of each runner, and the bands of what was compiled for a GPU."""
    for runner in dict.fromkeys(each.runner for each in latencies):
        own = [each for each in latencies if each.runner == runner]
        x, y = [each.batch for each in own], [1000 * each.time.value for each in own]
        errors = [[1000 * abs(getattr(each.time, end) - each.time.value) for each in own] for end in ("low", "high")]
        ax.errorbar(x, y, errors, marker="o", capsize=3, label=runner)
    for each in (each for each in forwards if each.time):
        label = f"{each.gpu}, {each.dtype}, projected" if each.batch == forwards[0].batch else None
        ax.plot(
            [each.batch] * 2, [1000 * each.time.low, 1000 * each.time.high], color="black", linewidth=6, alpha=0.4, label=label
        )
    ax.set(xscale="log", yscale="log", xlabel="samples in a call", ylabel="time of a call (ms)")
    ax.set_title("A call on this CPU, measured, beside what a GPU is projected to take")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=9)
    return ax
