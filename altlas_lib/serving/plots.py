"""Figures of chapter 50: latency against load, and what the server's metrics say of its batches."""

from matplotlib.axes import Axes
from prometheus_client.parser import text_string_to_metric_families

from ..figures import COLOURS
from ..results import LoadPoint, format_value, sustained_per_s


def latency_by_load(ax: Axes, loads: list[LoadPoint], limit_s: float) -> Axes:
    """95th percentile of the latency against the offered rate, both logarithmic, with and without batching."""
    held = {}
    for batching, colour, name in ((False, "orange", "one at a time"), (True, "blue", "batched")):
        of_kind = sorted(
            (each for each in loads if each.batching == batching and each.p95), key=lambda each: each.offered_per_s
        )
        rates, seconds = [each.offered_per_s for each in of_kind], [each.p95 for each in of_kind]
        bars = [[each.value - each.low for each in seconds], [each.high - each.value for each in seconds]]
        ax.errorbar(
            rates, [each.value for each in seconds], yerr=bars, marker="o", capsize=3, color=COLOURS[colour], label=name
        )
        held[batching] = sustained_per_s(loads, limit_s, batching=batching) or 0
    ax.axhline(limit_s, color=COLOURS["grey"], linestyle="--", label=f"limit, {format_value(limit_s, 's')}")
    ax.set(xscale="log", yscale="log", xlabel="requests offered per second", ylabel="95th percentile of the latency (s)")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set_title(f"Within the limit: {held[True]:g} requests per second batched, {held[False]:g} alone")
    ax.legend(fontsize=8)
    return ax


def batch_sizes(ax: Axes, metrics: str) -> Axes:
    """How many requests were computed together, from the text that `/metrics` gives."""
    counts: dict[float, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "altlas_batch_requests_bucket":
                bound = float(sample.labels["le"])
                counts[bound] = counts.get(bound, 0) + sample.value
    bounds, cumulative = sorted(counts), [counts[bound] for bound in sorted(counts)]
    own = [after - before for before, after in zip([0, *cumulative], cumulative, strict=False)]
    names = [f"up to {bound:g}" if bound < float("inf") else "more" for bound in bounds]
    ax.bar(names, own, color=COLOURS["blue"])
    alone = own[0] / cumulative[-1] if cumulative and cumulative[-1] else 0
    ax.set(xlabel="requests in a batch", ylabel="batches")
    ax.set_title(f"{alone:.0%} of the batches were a single request: nobody waits for company")
    return ax
