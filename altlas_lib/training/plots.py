"""Figures of chapter 30: memory by part, training and scores.

Each function draws into an Axes and returns it; the title states the message, the axes carry units.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..figures import COLOURS
from ..results import Metric, Remedy


def memory_by_part(ax: Axes, remedies: Sequence[Remedy]) -> Axes:
    """What a training step holds on the GPU under each mitigation, part by part, beside what the GPU has."""
    plans = {remedy.name: remedy.plan for remedy in remedies if remedy.plan}
    parts = {name: plan.bytes_by_part | {"beside the step": plan.overhead_bytes} for name, plan in plans.items()}
    sizes_gib = pd.DataFrame.from_dict(parts, orient="index") / 2**30
    colours = [*list(COLOURS.values())[: sizes_gib.shape[1] - 1], COLOURS["grey"]]
    sizes_gib.plot.barh(ax=ax, stacked=True, width=0.8, color=colours, legend=False)
    ax.bar_label(ax.containers[-1], [plan.verdict for plan in plans.values()], padding=3, fontsize=9)
    name, first = next(iter(plans.items()))
    usable_gib = first.usable_bytes / 2**30
    offered = f"what CUDA offers on a {first.gpu}: {usable_gib:.1f} GiB"
    ax.axvline(usable_gib, color=COLOURS["red"], linestyle="--", label=offered)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    most_gib = max(*sizes_gib.sum(axis=1), usable_gib)
    ax.set(xlabel=f"memory of one training step, {first.peak.basis} (GiB)", xlim=(0, 1.2 * most_gib))
    n_fit = sum(plan.verdict == "fits" for plan in plans.values())
    fits = {"fits": "does", "tight": "barely does"}.get(first.verdict, "does not")
    ax.set_title(f"{n_fit} of {len(plans)} fit a {first.gpu}; the {name} {fits}")
    ax.figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return ax


def training_curves(ax: Axes, history: Sequence[dict[str, float]]) -> Axes:
    """Training loss after each epoch, and validation loss where it was measured; from the metrics of each."""
    labels = {"loss": "training, with dropout", "val_loss": "validation"}
    losses = pd.DataFrame(history, index=range(1, len(history) + 1)).filter(labels).rename(columns=labels)
    losses.plot(ax=ax, style="o-", xticks=losses.index, xlabel="epoch", ylabel="loss")
    last = losses.iloc[:, -1]
    best = f"at best {last.min():.3f} (epoch {last.idxmin()})"
    ax.set_title(f"{last.name.partition(',')[0].capitalize()} loss {last.iloc[0]:.3f} after the first epoch, {best}")
    return ax


def scores_beside_base_rate(ax: Axes, metrics: Sequence[Metric]) -> Axes:
    """One row per score that is a share: the model, the base rate and, where it is known, the best possible."""
    shares = [metric for metric in metrics if metric.unit == "share"]
    columns = ("model", "base_rate", "best_possible", "gain_low", "gain_high")
    percent = 100 * pd.DataFrame([metric.model_dump(include=set(columns)) for metric in shares]).astype("float64")
    sign = np.array([1 if metric.higher_is_better else -1 for metric in shares])
    ends = (percent.base_rate + sign * percent[gain] for gain in ("gain_low", "gain_high"))
    ax.hlines(percent.index, *ends, color=COLOURS["blue"], linewidth=5, alpha=0.3)
    hollow, labels = {"fillstyle": "none", "color": COLOURS["grey"]}, ("base rate", "best possible")
    for score, label, marker, size in zip(columns[1:3], labels, "sD", (11, 9), strict=True):
        if percent[score].notna().any():
            ax.plot(percent[score], percent.index, marker, markersize=size, label=label, **hollow)
    ax.plot(percent.model, percent.index, "o", color=COLOURS["blue"], label="model, with the 95 % interval of its gain")
    arrows = {True: "more is better", False: "less is better"}
    ax.set_yticks(percent.index, [f"{m.name}\n{arrows[m.higher_is_better]}, n = {m.n_samples:,}" for m in shares])
    ax.set(xlim=(-3, 103), ylim=(len(shares) - 0.5, -0.5), xlabel="share of n unseen values (%)")
    first = shares[0]
    ax.set_title(f"{first.name.capitalize()}: model {first.model:.1%}, base rate {first.base_rate:.1%}")
    ax.figure.legend(loc="outside lower center", ncols=3)
    return ax
