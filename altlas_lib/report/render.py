"""From the files of a run to its report: results are read, set side by side and rendered."""

import base64
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..manifest import Manifest
from ..paths import RunFolder, write_atomically
from ..results import CHAPTERS, ChapterResult, FigureFile, Quantity, ResultError
from .bands import Band
from .costs import savings, side_by_side
from .decide import Decider, Decision, Overall
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

    def decider(self, language: Language, rules: Rules | str | Path | None = None) -> Decider:
        ruled = rules if isinstance(rules, Rules) else Rules.load(rules)
        minutes = {number: chapter.duration_s / 60 for number, chapter in Manifest.load(self.run).by_number().items()}
        return Decider(self.results, ruled, language, self.run.name, minutes)


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
    found = report.problems | {chapter: result.finding for chapter, result in report.results.items()}
    return [{"question": question, "what was found": found[chapter]} for chapter, question in QUESTIONS.items()]


def decisions(run: RunFolder, *, language: str = "en", rules: Rules | str | Path | None = None) -> list[Decision]:
    """The answers of the report's first screen.

    Args:
        rules: what makes a go and what it costs: `Rules.load(...)`, or a file that changes it; "" or None: as they are.

    Raises:
        ValueError: no such language, or rules that cannot be read.
    """
    return read_results(run).decider(Language.load(language), rules).decide()


def overall(run: RunFolder, *, language: str = "en", rules: Rules | str | Path | None = None) -> Overall:
    """The one answer above these decisions, and the next steps; arguments and errors as for `decisions`."""
    decider = read_results(run).decider(Language.load(language), rules)
    return decider.overall(decider.decide())


def _quantity(quantity: Quantity | None, language: Language) -> Markup:
    """A number with its basis, device and spread: `12.3 ms` *measured* on ..., median of 3 runs from 11.9 ms to 13 ms."""
    if quantity is None:
        return Markup('<span class="missing">{}</span>').format(language.text(NOT_MEASURED))
    details = f"{language.text(quantity.basis)}, {quantity.device}"
    if quantity.basis == "measured":
        spread = language.band(Band.of(quantity))
        details += language.text("; median of {n} runs, {spread}", n=quantity.n_runs, spread=spread)
    if quantity.bound_by:
        details += language.text("; bound by {cause}", cause=language.say(quantity.bound_by))
    return Markup('<span class="quantity" title="{}">{} <span class="basis {}">{}</span></span>').format(
        details, language.band(quantity), quantity.basis, language.text(quantity.basis)
    )


def _said(text: str, language: Language) -> Markup:
    """What a chapter wrote, in the report's language where its sentence is known, else marked as English."""
    found = language.say(text)
    is_english = language.code != "en" and found == text and text not in language.sentences
    return Markup('<span lang="en">{}</span>').format(text) if is_english else escape(found)


def _markdown_text(value: Any) -> str:
    """Text that stays text in a Markdown table: no HTML, no entity, no cell border, no line break, no markup."""
    return re.sub(r"([\\`*_\[\]|~<>&#!])", r"\\\1", " ".join(str(value).split()))


def _markdown_quantity(quantity: Quantity | None) -> str:
    return _markdown_text(NOT_MEASURED if quantity is None else f"{quantity} ({quantity.basis}, {quantity.device})")


def _templates(language: Language) -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=lambda name: not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    missing = language.text("unknown")
    environment.globals["_"] = language.html
    environment.filters |= {
        "quantity": lambda quantity: _quantity(quantity, language),
        "said": lambda text: _said(text, language),
        "md": _markdown_text,
        "md_quantity": _markdown_quantity,
        "amount": language.amount,
        "band": lambda band: missing if band is None else language.band(band),
        "n": language.integer,
        "when": language.when,
        "percent": lambda share: language.text(NOT_MEASURED) if share is None else language.amount(share, "share"),
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


def render_report(run: RunFolder, *, language: str = "en", rules: Rules | str | Path | None = None) -> list[Path]:
    """Write `report/index.html`, and where chapter 20 has a result `report/poc_cosine_similarity_cupy_report.md`.

    A missing result does not fail the report: it is named, with the command that makes it.

    Args:
        language: of the page, "en" or "tr"; the Markdown is English.
        rules: as for `decisions`.

    Returns:
        The files written.

    Raises:
        ValueError: no such language, or rules that cannot be read.
    """
    report = read_results(run)
    decider, in_english = (report.decider(Language.load(code), rules) for code in (language, "en"))
    decided, spoken = decider.decide(), decider.language
    context = {
        "report": report,
        "language": spoken,
        "rules": decider.rules,
        "decisions": decided,
        "overall": decider.overall(decided),
        "missing_command": decider.missing_command(),
        "savings": savings(report.results, decider.rules.money),
        "gpus": side_by_side(report.results, decider.rules),
        "integration": next(each for each in in_english.decide() if each.key == "integrate"),
        "stale": stale(run, report.results, spoken),
        "questions": QUESTIONS,
        "picture": lambda figure: _picture(run, figure),
        "made_at": datetime.now(UTC),
        "not_measured": NOT_MEASURED,
    }
    files = {run.report / "index.html": spoken, run.report / "poc_cosine_similarity_cupy_report.md": in_english.language}
    if "similarity" not in report.results:
        files.popitem()[0].unlink(missing_ok=True)  # of an earlier result
    return [
        write_atomically(file, _templates(written).get_template(f"{file.name}.j2").render(context))
        for file, written in files.items()
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
