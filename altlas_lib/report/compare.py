"""What changed between two runs, quantity by quantity: how a team reads "laptop against T4 server"."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from ..paths import RunFolder
from ..results import CHAPTERS, ChapterResult, Quantity, ResultError, format_value

_IDENTIFYING = (
    *("workload", "method", "name", "function", "option", "series", "tool"),
    *("n_texts", "on_gpu", "with_transfers", "stage", "epoch"),
)


@dataclass(frozen=True)
class Change:
    """A quantity that two runs have, or one of them.

    Attributes:
        ratio: second / first, of the values or of the middles of bands; None where one is missing or 0.
        sure: the two ranges, from the fastest to the slowest run or of the band, do not overlap; a measurement of fewer than
            three runs has no range to speak of, and nothing is sure about it.
    """

    chapter: str
    what: str
    first: Quantity | None
    second: Quantity | None

    @property
    def ratio(self) -> float | None:
        if not self.first or not self.second or not _middle(self.first) or self.first.unit != self.second.unit:
            return None
        return _middle(self.second) / _middle(self.first)

    @property
    def sure(self) -> bool:
        if not self.first or not self.second or min(each.n_runs or 3 for each in (self.first, self.second)) < 3:
            return False
        (low, high), (other_low, other_high) = _range(self.first), _range(self.second)
        return high < other_low or other_high < low

    @property
    def verdict(self) -> str:
        """The change in words; of two numbers within each other's noise no change is claimed."""
        if not self.first or not self.second:
            return "only in the second" if self.second else "only in the first"
        if self.first.basis != self.second.basis:
            return f"{self.second.basis} beside {self.first.basis}"
        if not self.sure:
            return "within the noise" if _range(self.first) != _range(self.second) else "the same"
        return format_value(self.ratio, "x") if self.ratio else "changed"


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


def _middle(quantity: Quantity) -> float:
    return quantity.value if quantity.value is not None else (quantity.low + quantity.high) / 2


def _range(quantity: Quantity) -> tuple[float, float]:
    return (quantity.value, quantity.value) if quantity.low is None else (quantity.low, quantity.high)


def quantities(model: BaseModel, path: str = "") -> Iterator[tuple[str, Quantity]]:
    """Every quantity in a result with a name made of its fields; an entry of a list is named by what it says of itself."""
    for name in type(model).model_fields:
        value, where = getattr(model, name), f"{path} {name.replace('_', ' ')}".strip()
        if isinstance(value, Quantity):
            yield where, value
        elif isinstance(value, BaseModel):
            yield from quantities(value, where)
        elif isinstance(value, list):
            seen = Counter()
            for entry in value:
                if isinstance(entry, BaseModel):
                    identity = _identity(entry)
                    seen[identity] += 1
                    again = f" #{seen[identity]}" if seen[identity] > 1 else ""
                    yield from quantities(entry, f"{where} [{identity}{again}]")


def _identity(model: BaseModel) -> str:
    """What tells an entry of a list from the others; whatever else it holds may differ between two runs of the same thing."""
    words = []
    for name in _IDENTIFYING:
        value = getattr(model, name, None)
        if value not in (None, False):
            words.append(name.replace("_", " ") if value is True else f"{value:,} texts" if name == "n_texts" else str(value))
    return ", ".join(words)


def compare_runs(first: RunFolder, second: RunFolder) -> Comparison:
    """What the two runs measured, compiled and projected, side by side; what only one has is named."""
    differences, changes, problems = [], [], []
    for chapter in CHAPTERS:
        pair = []
        for run in (first, second):
            try:
                pair.append(chapter.load(run))
            except ResultError as error:
                problems.append(str(error))
        if len(pair) < 2:
            continue
        differences += [f"{chapter.chapter}: {difference}" for difference in _differences(*pair)]
        one, two = (dict(quantities(result)) for result in pair)
        changes += [Change(chapter.chapter, what, one.get(what), two.get(what)) for what in dict.fromkeys([*one, *two])]
    return Comparison(first, second, list(dict.fromkeys(differences)), changes, problems)


def _differences(one: ChapterResult, two: ChapterResult) -> Iterator[str]:
    if one.provenance.devices != two.provenance.devices:
        yield f"made on {'; '.join(one.provenance.devices)} and on {'; '.join(two.provenance.devices)}"
    sources = [getattr(result, "source", None) for result in (one, two)]
    if None not in sources and sources[0].sha256 != sources[1].sha256:
        yield f"made from different data: {sources[0].name} and {sources[1].name}"
    commits = [(result.provenance.git_commit or "unknown")[:10] for result in (one, two)]
    if commits[0] != commits[1]:
        yield f"made by different code: {commits[0]} and {commits[1]}"
    parameters, others = one.provenance.parameters, two.provenance.parameters
    for name in sorted(parameters.keys() | others.keys()):
        if name != "run_name" and parameters.get(name) != others.get(name):
            yield f"{name} = {parameters.get(name)!r} and {others.get(name)!r}"


def format_comparison(comparison: Comparison, *, everything: bool = False) -> str:
    """For a terminal: what the runs were made with, then each chapter's quantities, those that surely changed first.

    Args:
        everything: also what stayed within the noise.
    """
    first, second = comparison.first.name, comparison.second.name
    lines = [f"{first} beside {second}", ""]
    lines += [f"! {problem}" for problem in comparison.problems]
    lines += [f"* {difference}" for difference in comparison.differences] or [
        "* made with the same devices, data, code and parameters"
    ]
    for chapter in dict.fromkeys(change.chapter for change in comparison.changes):
        of_chapter = [change for change in comparison.changes if change.chapter == chapter]
        told = [change for change in of_chapter if everything or change.verdict not in ("within the noise", "the same")]
        told.sort(key=lambda change: not change.sure)
        lines += ["", f"{chapter}: {sum(change.sure for change in of_chapter)} of {len(of_chapter)} surely changed"]
        lines += [
            f"  {change.what}\n      {change.first or '-'!s:>12} -> {change.second or '-'!s:12}  {change.verdict}"
            for change in told
        ]
    return "\n".join(lines)
