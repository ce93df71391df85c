"""Chapter 00: is this machine ready, and what are its ceilings?

findings = check_environment()       # what is there, what is missing, and the command that mends it
ceilings = measure_ceilings()        # the rates that later chapters compare with
"""

# ruff: noqa: F401 (these names are the package's face)
from ..progress import progress_bar
from ..results import Finding
from .ceilings import measure_ceilings
from .checks import findings_from, is_ready
from .dxdiag import findings_from_dxdiag, read_dxdiag
from .facts import Facts
from .licensing import licences
from .tables import ceilings_table, findings_table, format_findings, framework_table, licence_table, summarize


def check_environment() -> list[Finding]:
    """Look at the machine, its driver and its libraries, and say what to do about what is not well.

    Each library is loaded and made to compute in a process of its own, which gets at most a minute: a crash, a hang or
    chatter of one is a finding about it and nothing more. Takes some ten seconds.
    """
    with progress_bar("check"):
        return findings_from(Facts())
