"""A GPU session's result as a short table and a figure."""

import statistics
from typing import Any

from matplotlib.figure import Figure

from altlas_lib.figures import COLOURS

_OURS = "ours, GPU"


def table(record: dict[str, Any]) -> str:
    """A line for each step, and for each contestant and size."""
    lines = [f"{record['gpu']}, {record['measured_at']}"]
    for name, step in record["steps"].items():
        lines.append(f"{name}: {summary(name, step['result']) if 'result' in step else 'FAILED: ' + step['failed'][-300:]}")
    return "\n".join(lines)


def summary(name: str, result: Any) -> str:
    if name == "tests":
        failed = f", FAILED: {', '.join(result['failed'])}" if result["failed"] else ""
        return f"{result['tests']} tests, {result['failures'] + result['errors']} failed, {result['skipped']} skipped{failed}"
    if name == "similarity":
        rows = [each for each in result if each["wall_s"]]
        return "".join(f"\n  {each['n']:>9,} {each['contestant']:28} {_exact(each)}" for each in rows) or "nothing was measured"
    if name == "calibration":
        return ", ".join(f"{of} {factor:.2f}x (within {spread:.2f})" for of, (factor, spread) in result["classes"].items())
    if name == "plans":
        return ", ".join(f"{each['what']}: {each['measured'] / each['planned']:.3f} of the plan" for each in result)
    if name == "torch":
        return "".join(f"\n  {each['what']:42} {_beside_plan(each)}" for each in result)
    if name == "training":
        return ", ".join(f"{each['policy']}: {each['step_s'] * 1000:.1f} ms a step, {each['resumed']}" for each in result)
    return f"{len(result)} lines" if isinstance(result, list) else str(result)


def _beside_plan(each: dict[str, Any]) -> str:
    low, high = each["planned"]
    if each["allocated"] is None:
        return f"planned {low / 2**30:.2f} to {high / 2**30:.2f} GiB, not measured"
    reserved = f"{each['reserved'] / 2**30:.2f} GiB, {'inside' if low <= each['reserved'] <= high else 'OUTSIDE'} its band"
    return f"allocated {each['allocated'] / low:.3f} of the plan; reserved {reserved}"


def _exact(each: dict[str, Any]) -> str:
    exactness = each["exactness"] or {}
    return f"{statistics.median(each['wall_s']):.4g} s, {exactness.get('n_wrong', '?')} wrong neighbours"


def figure(record: dict[str, Any]) -> Figure:
    """Time of each contestant against the number of rows."""
    drawn = Figure(figsize=(8, 5), layout="constrained")
    ax = drawn.add_subplot()
    measured = [each for each in record["steps"].get("similarity", {}).get("result", []) if each["wall_s"]]
    for contestant in dict.fromkeys(each["contestant"] for each in measured):
        of = [each for each in measured if each["contestant"] == contestant]
        colour = {"color": COLOURS["blue"], "linewidth": 3} if contestant == _OURS else {}
        ax.plot(
            [each["n"] for each in of], [statistics.median(each["wall_s"]) for each in of], "o-", label=contestant, **colour
        )
    ax.set(xlabel="rows of 384 values", ylabel="time, host memory to host memory (s)")
    ax.set_title(f"The ten nearest of each row on {record['gpu']}")
    if measured:
        ax.set(xscale="log", yscale="log")
        ax.legend(fontsize=8)
    else:
        ax.text(0.5, 0.5, "nothing was measured", ha="center", transform=ax.transAxes)
    return drawn
