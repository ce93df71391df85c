"""Figures of chapter 30: the series, memory by part, training and scores.

Each function draws into an Axes and returns it; the title states the message, the axes carry units.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ..figures import COLOURS
from ..results import Metric, Remedy


def multiplier_survival(ax: Axes, values: np.ndarray, *, return_to_player: float = 0.97) -> Axes:
    """Share of the values that reach x, on logarithmic axes, beside the odds of a game that pays back `return_to_player`.

    Args:
        values: (n,) multipliers, 1.00 or more.
    """
    reached = np.sort(values)
    ax.step(reached, 1 - np.arange(len(reached)) / len(reached), where="pre", label=f"share of {len(reached):,} values")
    x = np.geomspace(1, reached[-1], 200)
    ax.plot(x, return_to_player / x, "--", color=COLOURS["grey"], label=f"{return_to_player} / x")
    ax.axvline(1.5, color=COLOURS["orange"], linewidth=1, label="1.5, the model's threshold")
    ax.set(xscale="log", yscale="log", xlabel="multiplier x", ylabel="P(value ≥ x)")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    share, odds = np.mean(reached >= 1.5), return_to_player / 1.5
    ax.set_title(f"{share:.1%} of the values reach 1.5; {return_to_player} / x is {odds:.1%}")
    ax.legend()
    return ax


def memory_by_part(ax: Axes, remedies: Sequence[Remedy]) -> Axes:
    """What a training step holds on the GPU under each mitigation, part by part, beside what the GPU has."""
    plans = [(remedy.name, remedy.plan) for remedy in remedies if remedy.plan]
    rows, left = np.arange(len(plans)), np.zeros(len(plans))
    parts = ("weights", "optimizer", "accumulators", "inputs", "temporaries", "beside the step")
    for part, colour in zip(parts, COLOURS.values(), strict=False):
        sizes = [plan.overhead_bytes if part == parts[-1] else plan.bytes_by_part.get(part, 0) for _, plan in plans]
        widths = np.array(sizes) / 2**30
        ax.barh(rows, widths, left=left, color=COLOURS["grey"] if part == parts[-1] else colour, label=part)
        left += widths
    for row, (end, (_, plan)) in enumerate(zip(left, plans, strict=True)):
        ax.annotate(f" {plan.verdict}", (end, row), va="center", fontsize=9)
    first = plans[0][1]
    usable_gib = first.usable_bytes / 2**30
    ax.axvline(
        usable_gib, color=COLOURS["red"], linestyle="--", label=f"what CUDA offers on a {first.gpu}: {usable_gib:.1f} GiB"
    )
    ax.set_yticks(rows, [name for name, _ in plans])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=f"memory of one training step, {first.peak.basis} (GiB)", xlim=(0, 1.2 * max(*left, usable_gib)))
    n_fit = sum(plan.verdict == "fits" for _, plan in plans)
    ax.set_title(f"{n_fit} of {len(plans)} fit a {first.gpu}; the {plans[0][0]} {_fits(first.verdict)}")
    ax.figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return ax


def _fits(verdict: str) -> str:
    return {"fits": "does", "tight": "barely does"}.get(verdict, "does not")


def training_curves(ax: Axes, history: Sequence[dict[str, float]]) -> Axes:
    """Training loss after each epoch, and validation loss where it was measured; from the metrics of each."""
    epochs = range(1, len(history) + 1)
    for name, label, colour in (("loss", "training, with dropout", "blue"), ("val_loss", "validation", "orange")):
        if name in history[0]:
            ax.plot(epochs, [metrics[name] for metrics in history], "o-", color=COLOURS[colour], label=label)
            losses, title = [metrics[name] for metrics in history], label.partition(",")[0].capitalize()
    ax.set_xticks(epochs)
    ax.set(xlabel="epoch", ylabel="loss")
    best = f"at best {min(losses):.3f} (epoch {losses.index(min(losses)) + 1})"
    ax.set_title(f"{title} loss {losses[0]:.3f} after the first epoch, {best}")
    ax.legend()
    return ax


def scores_beside_base_rate(ax: Axes, metrics: Sequence[Metric]) -> Axes:
    """One row per score that is a share: the model, the base rate and, where it is known, the best possible."""
    shares = [metric for metric in metrics if metric.unit == "share"]
    rows = range(len(shares))
    for row, metric in enumerate(shares):
        if metric.gain_low is not None:
            sign = 1 if metric.higher_is_better else -1
            ends = [100 * (metric.base_rate + sign * gain) for gain in (metric.gain_low, metric.gain_high)]
            ax.plot(ends, [row, row], color=COLOURS["blue"], linewidth=5, alpha=0.3, solid_capstyle="butt")
    for score, label, marker, size, colour in (
        ("base_rate", "base rate", "s", 11, "grey"),
        ("best_possible", "best possible", "D", 9, "orange"),
        ("model", "model, with the 95 % interval of its gain", "o", 6, "blue"),
    ):
        known = [(100 * getattr(metric, score), row) for row, metric in enumerate(shares) if getattr(metric, score) is not None]
        if known:
            fill = "full" if score == "model" else "none"
            ax.plot(*zip(*known, strict=True), marker, markersize=size, color=COLOURS[colour], fillstyle=fill, label=label)
    arrows = {True: "more is better", False: "less is better"}
    ax.set_yticks(rows, [f"{m.name}\n{arrows[m.higher_is_better]}, n = {m.n_samples:,}" for m in shares])
    ax.set(xlim=(-3, 103), ylim=(len(shares) - 0.5, -0.5), xlabel="share of n unseen values (%)")
    first = shares[0]
    ax.set_title(f"{first.name.capitalize()}: model {first.model:.1%}, base rate {first.base_rate:.1%}")
    ax.figure.legend(loc="outside lower center", ncols=3)
    return ax
