"""From the files of a run to its report. Nothing is computed here: results are read, set side by side and rendered."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..paths import RunFolder, write_atomically
from ..results import CHAPTERS, ChapterResult, FigureFile, Quantity, ResultError, SimilarityResult, format_value

NOT_MEASURED = "not measured"

QUESTIONS = {
    "environment": "Is this machine ready, and what are its ceilings?",
    "hotspots": "Where does the time go?",
    "similarity": "Does the GPU port give the same answer, how much faster, from which size on?",
    "training": "Does the training work, and is it better than the base rate?",
}


@dataclass(frozen=True)
class Report:
    """The results of a run that could be read, and why the others could not."""

    run: RunFolder
    results: dict[str, ChapterResult]
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def devices(self) -> list[str]:
        """Every device that made a result, in the order of the chapters."""
        return list(dict.fromkeys(device for result in self.results.values() for device in result.provenance.devices))

    @property
    def made_on_a_gpu_machine(self) -> bool:
        """Whether any result was made where there is a GPU: `provenance.devices` holds the CPU first, then GPUs."""
        return any(len(result.provenance.devices) > 1 for result in self.results.values())


def read_results(run: RunFolder) -> Report:
    """Read every chapter's result; one that is missing, damaged or of another schema version becomes a problem by name."""
    results, problems = {}, {}
    for chapter in CHAPTERS:
        try:
            results[chapter.chapter] = chapter.load(run)
        except ResultError as error:
            problems[chapter.chapter] = str(error)
    return Report(run, results, problems)


def recommendation(result: SimilarityResult) -> str:
    """Whether to integrate the GPU path in full, as far as the measurements carry."""
    if not all(validation.passed for validation in result.validations):
        return "No integration: an implementation does not give the answer of the reference."
    if not result.gpu_was_timed:
        return f"Not enough evidence for a full integration: no GPU was measured. {_outlook(result)}".strip()
    if not result.break_even_n_texts:
        return "No integration for these sizes: the GPU was slower than the CPU at each of them, transfers included."
    return (
        f"Integrate the GPU path where {result.break_even_n_texts:,} texts or more are compared at once, and keep the CPU path "
        "below that size."
    )


def _outlook(result: SimilarityResult) -> str:
    """At the largest size the CPU's measured time beside what arithmetic projects for the GPU; empty without a projection."""
    n = max(timing.n_texts for timing in result.timings)
    on_cpu = min((timing for timing in result.timings if timing.n_texts == n), key=lambda timing: timing.time.value)
    projected = [each.time for each in result.expectations if each.on_gpu and each.n_texts == n]
    if not projected:
        return ""
    (time,) = projected
    low, high = (on_cpu.time.value / bound for bound in (time.high, time.low))
    worth = (
        "worth a measurement there" if low > 1 else "not certain to pay even there" if high > 1 else "not worth a measurement"
    )
    return (
        f"For {n:,} texts arithmetic projects {time} on a {time.device}, beside {on_cpu.time} measured on this CPU, "
        f"{low:.2g} to {high:.2g} times as fast: {worth}."
    )


def overview(run: RunFolder) -> list[dict[str, str]]:
    """For each question what was found, or why that is missing: rows of a table."""
    report = read_results(run)
    return [
        {
            "question": question,
            "what was found": report.results[chapter].finding if chapter in report.results else report.problems[chapter],
        }
        for chapter, question in QUESTIONS.items()
    ]


def _quantity(quantity: Quantity | None) -> Markup:
    """A number with its basis, device and spread: `12.3 ms` *measured* on ..., 3 runs from 11.9 ms to 13 ms."""
    if quantity is None:
        return Markup('<span class="missing">{}</span>').format(NOT_MEASURED)
    details = f"{quantity.basis}, {quantity.device}"
    if quantity.basis == "measured":
        low, high = (format_value(bound, quantity.unit) for bound in (quantity.low, quantity.high))
        details += f"; {quantity.n_runs} runs, {low} to {high}"
    if quantity.bound_by:
        details += f"; bound by {quantity.bound_by}"
    return Markup('<span class="quantity" title="{}">{} <span class="basis {}">{}</span></span>').format(
        details, str(quantity), quantity.basis, quantity.basis
    )


def _markdown_text(value: Any) -> Markup:
    """Text that stays text in a Markdown table: no HTML, no cell border, no line break, no markup."""
    flat = " ".join(str(value).split())
    return Markup(re.sub(r"([\\`*_\[\]|~])", r"\\\1", str(escape(flat))))


def _markdown_quantity(quantity: Quantity | None) -> Markup:
    return _markdown_text(NOT_MEASURED if quantity is None else f"{quantity} ({quantity.basis}, {quantity.device})")


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "quantity": _quantity,
        "md": _markdown_text,
        "md_quantity": _markdown_quantity,
        "size": lambda n_bytes: format_value(n_bytes, "bytes"),
        "percent": lambda share: NOT_MEASURED if share is None else f"{share:.1%}",
    }
    return environment


def _picture(run: RunFolder, figure: FigureFile) -> str | None:
    """The figure's file as a data URL; None where it is gone."""
    path = run.figures / figure.file
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    try:
        return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    except OSError:
        return None


def render_report(run: RunFolder) -> list[Path]:
    """Write `report/index.html` and `report/poc_cosine_similarity_cupy_report.md` from the saved results alone.

    A missing result does not fail the report: it is named, with the command that makes it.

    Returns:
        The files written.
    """
    report = read_results(run)
    context = {
        "report": report,
        "questions": QUESTIONS,
        "recommendation": recommendation,
        "picture": lambda figure: _picture(run, figure),
        "made_at": datetime.now(UTC),
        "not_measured": NOT_MEASURED,
    }
    written: Sequence[tuple[str, str]] = [
        ("index.html", "index.html.j2"),
        ("poc_cosine_similarity_cupy_report.md", "poc_cosine_similarity_cupy_report.md.j2"),
    ]
    templates = _templates()
    return [write_atomically(run.report / file, templates.get_template(template).render(context)) for file, template in written]
