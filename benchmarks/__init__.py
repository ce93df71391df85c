"""Benchmarks: scripts to run by hand, `python -m benchmarks.similarity --help`. Speed is never asserted in a test."""
