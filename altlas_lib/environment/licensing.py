"""Declared licences of installed packages, with what a closed-source product must look at flagged.

A declared licence is not the whole truth: wheels bundle parts under other licences (NumPy's hold GCC's runtime under the GPL
with its exception; CUDA's are proprietary). So the table says: declared licence; bundled parts need review.
"""

import re
from collections.abc import Iterable
from importlib import metadata

from ..results import Licence

_DISTRIBUTION = "altlas-cuda-workbook"
_FLAGS = {
    "copyleft": re.compile(
        r"\b[AL]?GPL|\bGNU\b|\bMPL|mozilla public|\bEU?PL\b|eclipse public|\bCDDL|CeCILL|share.?alike|CC.BY.SA", re.I
    ),
    "proprietary": re.compile(r"proprietary|nvidia|commercial", re.I),
}


def tools() -> list[str]:
    """The packages that this project names as its dependencies, those of its extras included."""
    required = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in metadata.requires(_DISTRIBUTION) or ()}
    return sorted(required)


def licences(packages: Iterable[str] | None = None) -> list[Licence]:
    """The declared licence of each of `packages` (default: `tools()`) that is installed, in their order.

    Read from the package's metadata: the licence expression (PEP 639), else the trove classifiers, else the first line of the
    licence field, which some packages fill with the whole text.
    """
    found = []
    for package in tools() if packages is None else packages:
        try:
            about = metadata.metadata(package)
        except metadata.PackageNotFoundError:
            continue
        declared = _declared(about)
        flags = [flag for flag, pattern in _FLAGS.items() if declared and pattern.search(declared)]
        flag = None if declared and not flags else (flags or ["not declared"])[0]
        found.append(Licence(package=package, version=about["Version"], declared=declared or "not declared", flag=flag))
    return found


def _declared(about: metadata.PackageMetadata) -> str:
    if expression := about.get("License-Expression"):
        return expression
    prefix = "License :: "
    classifiers = [c.removeprefix(prefix) for c in about.get_all("Classifier") or () if c.startswith(prefix)]
    if names := [c.rpartition(" :: ")[2] for c in classifiers if c != "OSI Approved"]:
        return "; ".join(names)
    return (about.get("License") or "").strip().partition("\n")[0].strip()[:80]
