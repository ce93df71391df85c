"""From the files of a run to its report. Nothing is computed here: results are read, set side by side and rendered."""

import base64
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..paths import RunFolder, write_atomically
from ..results import CHAPTERS, ChapterResult, FigureFile, Quantity, ResultError, format_value
from .claims import claims
from .decide import Decision, decide
from .language import Language
from .rules import Rules
from .stale import stale

NOT_MEASURED = "not measured"

QUESTIONS = {
    "environment": "Is this machine ready, and what are its ceilings?",
    "hotspots": "Where does the time go?",
    "similarity": "Does the GPU port give the same answer, how much faster, from which size on?",
    "training": "Does the training fit, and is the model better than the base rate?",
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


def decisions(run: RunFolder, *, language: str = "en", rules: str | Path | None = None) -> list[Decision]:
    """The answers of the report's first screen.

    Args:
        rules: a file that changes what makes a go; "" or None: none.

    Raises:
        ValueError: no such language, or rules that cannot be read.
    """
    return decide(read_results(run).results, Rules.load(rules), Language.load(language), run.name)


def _quantity(quantity: Quantity | None, language: Language) -> Markup:
    """A number with its basis, device and spread: `12.3 ms` *measured* on ..., 3 runs from 11.9 ms to 13 ms."""
    if quantity is None:
        return Markup('<span class="missing">{}</span>').format(language.text(NOT_MEASURED))
    details = f"{quantity.basis}, {quantity.device}"
    if quantity.basis == "measured":
        low, high = (format_value(bound, quantity.unit) for bound in (quantity.low, quantity.high))
        details += f"; {quantity.n_runs} runs, {low} to {high}"
    if quantity.bound_by:
        details += f"; bound by {quantity.bound_by}"
    return Markup('<span class="quantity" title="{}">{} <span class="basis {}">{}</span></span>').format(
        details, language.number(quantity), quantity.basis, language.text(quantity.basis)
    )


def _markdown_text(value: Any) -> Markup:
    """Text that stays text in a Markdown table: no HTML, no cell border, no line break, no markup."""
    flat = " ".join(str(value).split())
    return Markup(re.sub(r"([\\`*_\[\]|~])", r"\\\1", str(escape(flat))))


def _markdown_quantity(quantity: Quantity | None) -> Markup:
    return _markdown_text(NOT_MEASURED if quantity is None else f"{quantity} ({quantity.basis}, {quantity.device})")


def _templates(language: Language) -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["_"] = language.html
    environment.filters |= {
        "quantity": lambda quantity: _quantity(quantity, language),
        "md": _markdown_text,
        "md_quantity": _markdown_quantity,
        "size": lambda n_bytes: format_value(n_bytes, "bytes"),
        "percent": lambda share: language.text(NOT_MEASURED) if share is None else f"{share:.1%}",
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


def render_report(run: RunFolder, *, language: str = "en", rules: str | Path | None = None) -> list[Path]:
    """Write `report/index.html` and `report/poc_cosine_similarity_cupy_report.md` from the saved results alone.

    A missing result does not fail the report: it is named, with the command that makes it.

    Args:
        language: of the page, "en" or "tr". What the chapters wrote themselves, findings and figures, is English, and so is
            the Markdown.
        rules: a file that changes what makes a go, see `rules.yaml`.

    Returns:
        The files written.

    Raises:
        ValueError: no such language, or rules that cannot be read.
    """
    spoken, ruled, report = Language.load(language), Rules.load(rules), read_results(run)
    decided, in_english = (decide(report.results, ruled, each, run.name) for each in (spoken, Language.load("en")))
    context = {
        "report": report,
        "language": spoken,
        "rules": ruled,
        "decisions": decided,
        "integration": next(each for each in in_english if each.chapter == "similarity"),
        "claims": claims(report.results, spoken),
        "stale": stale(run, report.results, spoken),
        "questions": QUESTIONS,
        "picture": lambda figure: _picture(run, figure),
        "made_at": datetime.now(UTC),
        "not_measured": NOT_MEASURED,
    }
    templates = _templates(spoken)
    return [
        write_atomically(run.report / file, templates.get_template(f"{file}.j2").render(context))
        for file in ("index.html", "poc_cosine_similarity_cupy_report.md")
    ]


def print_report(run: RunFolder) -> Path | None:
    """Write `report/report.pdf` from the page; None where WeasyPrint or the system's Pango is not installed.

    Raises:
        FileNotFoundError: there is no page yet; `render_report` makes it.
    """
    page, file = run.report / "index.html", run.report / "report.pdf"
    file.unlink(missing_ok=True)  # of an earlier page
    try:
        import weasyprint
    except (ImportError, OSError):
        return None
    return write_atomically(file, weasyprint.HTML(string=page.read_text(encoding="utf-8")).write_pdf())
