"""A profile and its candidates as plain text, the answer first, for a terminal of up to 120 columns."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from jinja2 import PackageLoader

from ...results import Candidate, WorkloadProfile
from ...tables import plain
from ..project.advice import JINJA
from . import tables

_WIDEST = 120


def format_profile(profile: WorkloadProfile, candidates: Sequence[Candidate] = (), *, check_port: bool = False) -> str:
    """What to do and why with every way out, the cheapest first; then the evidence: functions, lines and notes."""
    width = max(60, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))

    def wrapped(text: Any, indent: str = "  ") -> str:
        return textwrap.fill(plain(str(text)), width, initial_indent=indent, subsequent_indent=indent)

    page = JINJA.overlay(loader=PackageLoader(__package__), trim_blocks=True, lstrip_blocks=True).get_template("profile.txt.j2")
    shown = {"profile": profile, "candidates": candidates, "check_port": check_port, "n_functions": 12}
    text = page.render(shown, tables=tables, wrapped=wrapped, width=width)
    return re.sub("\n{3,}", "\n\n", text).strip("\n")  # sections that are empty leave no gap
