"""Chapter 90: what the saved results say, as one self-contained page and as the proof of concept's Markdown report."""

from .render import QUESTIONS, Report, overview, read_results, render_report

__all__ = ["QUESTIONS", "Report", "overview", "read_results", "render_report"]
