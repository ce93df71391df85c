"""Chapter 90: what the saved results say, as one self-contained page and as the proof of concept's Markdown report."""

# ruff: noqa: F401 (these names are the package's face)
from .compare import Comparison, compare_runs, format_comparison
from .decide import Decision, Overall, Report
from .render import print_report, render_report
from .rules import Rules
from .stale import stale
from .what_if import WhatIf, panel
