"""What changed between two runs, number by number: how a team reads "laptop against T4 server"."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader
from pydantic import BaseModel

from ..paths import RunFolder
from ..results import ChapterResult, Epoch, Metric, Quantity, format_value
from .bands import Band
from .decide import Report
from .rules import read_yaml

_COMPARED = read_yaml("comparison.yaml")
_FEWEST_RUNS = 3  # of a measurement with a range to speak of


@dataclass(frozen=True)
class Change:
    """A number or a statement, such as a verdict, that two runs have, or one of them.

    Attributes:
        verdict: the change in words, of numbers second / first from range to range; of two within each other's noise no
            change is claimed.
        sure: statements that differ; numbers of one basis whose ranges, of the runs, of an interval or of a band, do not
            overlap. Nothing is sure about a measurement of fewer than three runs.
    """

    chapter: str
    what: str
    first: Quantity | str | None
    second: Quantity | str | None

    @property
    def verdict(self) -> str:
        if not self.first or not self.second:
            return "only in the second" if self.second else "only in the first"
        pair = (self.first, self.second)
        if not all(isinstance(each, Quantity) for each in pair) or self.first.unit != self.second.unit:
            return "the same" if self.first == self.second else "changed"
        if self.first.basis != self.second.basis:
            return f"{self.second.basis} beside {self.first.basis}"
        one, two = map(Band.of, pair)
        if one == two:
            return "the same"
        if min(each.n_runs or _FEWEST_RUNS for each in pair) < _FEWEST_RUNS:
            return "too few runs to say"
        if one.low <= two.high and two.low <= one.high:
            return "within the noise"
        ratio = two.over(one)
        ends = [format_value(end, "x") for end in (ratio.low, ratio.high)] if ratio else ["changed"]
        return " to ".join(dict.fromkeys(ends))

    @property
    def sure(self) -> bool:
        return self.verdict.endswith(("changed", "x"))


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        differences: of what they were made with (devices, data, parameters, code), in words: the first things to look at.
        problems: results that could not be read, and why.
    """

    first: RunFolder
    second: RunFolder
    differences: list[str]
    changes: list[Change]
    problems: list[str]


def quantities(model: BaseModel, path: str = "") -> Iterator[tuple[str, Quantity | str]]:
    """All that two results are compared by, with a name made of its fields: quantities, scores with their intervals, losses of
    the last epoch, batches and verdicts. An entry of a list is named by what it says of itself.
    """
    if isinstance(model, Metric):
        yield path, _score(model)
        return
    for name, value in model:
        where = f"{path} {name.replace('_', ' ')}".strip()
        if isinstance(value, Quantity):
            yield where, value
        elif name in _COMPARED["stated"] and value is not None:
            yield where, str(value)
        elif isinstance(model, Epoch) and name == "metrics":
            yield from ((f"{where} {loss}", Quantity.measured([n], "", model.memory_device)) for loss, n in value.items())
        elif isinstance(value, BaseModel):
            yield from quantities(value, where)
        elif isinstance(value, list):
            seen = Counter()
            for entry in filter(lambda each: isinstance(each, BaseModel), value[-1:] if name == "history" else value):
                seen[identity := _identity(entry)] += 1
                again = f" #{seen[identity]}" if seen[identity] > 1 else ""
                yield from quantities(entry, f"{where} [{identity}{again}]")


def _score(metric: Metric) -> Quantity:
    """A score with the interval of its gain over the base rate, which the same values have in both runs."""
    ends, n_runs = [metric.model], 1
    if None not in (metric.gain_low, metric.gain_high):
        sign, n_runs = 1 if metric.higher_is_better else -1, max(1, metric.n_samples)
        ends += [metric.base_rate + sign * gain for gain in (metric.gain_low, metric.gain_high)]
    about = {"unit": metric.unit, "device": "test values", "basis": "measured", "n_runs": n_runs}
    return Quantity(value=metric.model, low=min(ends), high=max(ends), **about)


def _identity(model: BaseModel) -> str:
    """What tells an entry of a list from the others; whatever else it holds may differ between two runs of the same thing."""
    found = ((written, getattr(model, name, None)) for name, written in _COMPARED["named_by"].items())
    return ", ".join(written.format(value) for written, value in found if value not in (None, False))


def compare_runs(first: RunFolder, second: RunFolder) -> Comparison:
    """What the two runs measured, compiled, projected and decided, side by side; what only one has is named."""
    differences, changes = [], []
    reports = [Report.read(run) for run in (first, second)]
    for chapter in [chapter for chapter in reports[0].results if chapter in reports[1].results]:
        pair = [report.results[chapter] for report in reports]
        one, two = (dict(quantities(result)) for result in pair)
        found = [Change(chapter, what, one.get(what), two.get(what)) for what in dict.fromkeys([*one, *two])]
        one, two = (_made_with(result) for result in pair)
        different = [name for name in one | two if one.get(name) != two.get(name)]
        differences += [f"{chapter}: {name} = {one.get(name)!r} and {two.get(name)!r}" for name in different]
        rates = [each for each in found if each.sure and each.what.startswith("ceilings cpu")]
        if rates and one["devices"] == two["devices"]:
            rate = f"{rates[0].what} {rates[0].first} and {rates[0].second}"
            differences.append(f"{chapter}: the machines have the same name and are not the same: {rate}")
        changes += found
    for one, two in zip(*(report.decisions for report in reports), strict=True):
        if all(one.asked.chapter in report.results for report in reports):
            changes.append(Change("decisions", one.question, one.verdict, two.verdict))
    return Comparison(first, second, differences, changes, [each for report in reports for each in report.problems.values()])


def _made_with(result: ChapterResult) -> dict[str, Any]:
    made, source = result.provenance, getattr(result, "source", None)
    of_own = {"devices": "; ".join(made.devices), "data": source and f"{source.name} ({source.sha256[:10]})"}
    return of_own | {"code": (made.git_commit or "unknown")[:10], **made.parameters, "run_name": None}


def format_comparison(comparison: Comparison, *, everything: bool = False) -> str:
    """For a terminal: what the runs were made with, then each chapter's changes, those that are sure first.

    Args:
        everything: also what stayed within the noise.
    """
    templates = Environment(loader=PackageLoader(__package__), trim_blocks=True)
    text = templates.get_template("comparison.txt.j2").render(comparison=comparison, everything=everything)
    return re.sub(r"[^\n\x20-\x7e\xa0-\uffff]", "?", text)  # a name from data may hold a terminal's control characters
