"""How IPython shows results: the verdict and its basis in a sentence, above a short table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import profiling, training
from .report import Decision
from .results import Candidate, MemoryPlan, Remedy, WorkloadProfile, format_value
from .tables import ShownAsTable, Table


@dataclass(frozen=True, repr=False)
class _Shown(ShownAsTable):
    said: str
    table: Table

    def _summary(self) -> tuple[str, Table]:
        return self.said, self.table


def _show_profile(profile: WorkloadProfile) -> _Shown:
    run = f"{profile.total} a run, {profile.total.basis} on {profile.total.device}" if profile.total else "not measured"
    return _Shown(f"{profile.workload}: {run}; {profile.n_runs} runs in all", profiling.function_table(profile))


def _show_candidate(candidate: Candidate) -> _Shown:
    return _Shown(profiling.answers([], [candidate]), profiling.route_table([candidate]))


def _show_plan(plan: MemoryPlan) -> _Shown:
    usable = format_value(plan.usable_bytes, "bytes")
    said = f"{plan.verdict}: {plan.peak}, {plan.peak.basis} for {plan.gpu}, of which a program can use {usable}"
    parts = plan.bytes_by_part | {"beside the program (an allowance)": plan.overhead_bytes}
    return _Shown(said, Table([{"part": name, "memory": format_value(size, "bytes")} for name, size in parts.items()]))


def _show_remedy(remedy: Remedy) -> _Shown:
    said = _show_plan(remedy.plan).said if remedy.plan else remedy.problem or "not compiled"
    return _Shown(f"{remedy.name}: {said}", Table(training.mitigation_rows([remedy])))


def _show_decision(decision: Decision) -> _Shown:
    rows = [
        {"number": each.label, "value": each.text, "basis": each.basis, "device": each.device} for each in decision.evidence
    ]
    return _Shown(f"{decision.question} {decision.verdict}: {decision.why}", Table(rows))


SHOWN: dict[type, Callable[[Any], _Shown]] = {
    WorkloadProfile: _show_profile,
    Candidate: _show_candidate,
    MemoryPlan: _show_plan,
    Remedy: _show_remedy,
    Decision: _show_decision,
}


def register(formatters: Any) -> None:
    """Make an IPython shell's `display_formatter.formatters` show results so."""
    for kind, show in SHOWN.items():
        formatters["text/html"].for_type(kind, lambda found, show=show: show(found)._repr_html_())
        formatters["text/plain"].for_type(kind, lambda found, page, cycle, show=show: page.text(repr(show(found))))
