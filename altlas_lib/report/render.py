"""From the files of a run to its report: results are read, set side by side and rendered."""

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import escape

from ..paths import RunFolder, write_atomically
from ..results import FigureFile
from .bands import Band
from .costs import savings, side_by_side
from .decide import Report, load_tables
from .language import Language
from .rules import Rules
from .stale import stale


def _markdown_text(value: Any) -> str:
    """Text that stays text in a Markdown table: no HTML, no entity, no cell border, no line break, no markup."""
    return re.sub(r"([\\`*_\[\]|~<>&#!])", r"\\\1", " ".join(str(value).split()))


def _templates(report: Report) -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=lambda name: not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    language = report.language
    environment.globals["_"] = lambda sentence, **values: language.text(sentence, escape, **values)
    environment.globals |= {"report": report, "language": language, "rules": report.rules, "chapters": load_tables().chapters}
    environment.globals |= {"savings": savings, "side_by_side": side_by_side, "stale": stale, "Band": Band}
    environment.globals |= {"picture": lambda figure: _picture(report.run, figure), "now": datetime.now(UTC)}
    environment.filters |= {
        "md": _markdown_text,
        "amount": language.amount,
        "band": lambda band: language.text("unknown") if band is None else language.band(band),
        "write": language.write,
        "percent": lambda share: language.text("not measured") if share is None else language.amount(share, "share"),
    }
    macros = environment.get_template("_macros.html.j2").module
    environment.filters |= {"quantity": macros.quantity, "said": macros.said}
    return environment


def _picture(run: RunFolder, figure: FigureFile) -> str | None:
    """The figure's file as a data URL; None where it is gone."""
    path = run.figures / figure.file
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}" if path.is_file() else None


def render_report(run: RunFolder, *, language: str = "en", rules: Rules | str | Path | None = None) -> list[Path]:
    """Write `report/index.html`, and where chapter 20 has a result `report/poc_cosine_similarity_cupy_report.md`.

    A missing result does not fail the report: it is named, with the command that makes it.

    Args:
        language: of the page, "en" or "tr"; the Markdown is English.
        rules: as for `Report.read`.

    Returns:
        The files written.

    Raises:
        ValueError: no such language, or rules that cannot be read.
    """
    report = Report.read(run, language=language, rules=rules)
    files = {run.report / "index.html": report}
    markdown = run.report / "poc_cosine_similarity_cupy_report.md"
    if "similarity" in report.results:
        files[markdown] = replace(report, language=Language.load("en"))
    else:
        markdown.unlink(missing_ok=True)  # of an earlier result
    return [write_atomically(file, _templates(said).get_template(f"{file.name}.j2").render()) for file, said in files.items()]


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
