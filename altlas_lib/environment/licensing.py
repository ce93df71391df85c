"""Declared licences of installed packages, with what a closed-source product must look at flagged.

A declared licence is not the whole truth: wheels bundle parts under other licences (NumPy's hold GCC's runtime under the GPL
with its exception; CUDA's are proprietary). So the table says: declared licence; bundled parts need review.
"""

import re
from collections.abc import Iterable
from importlib import metadata

from ..results import Licence
from ..results.provenance import library_versions

_FLAGS = {
    "not declared": re.compile("not declared"),
    "copyleft": re.compile(
        r"\b[AL]?GPL|\bGNU\b|\bMPL|mozilla public|\bEU?PL\b|eclipse public|\bCDDL|CeCILL|share.?alike|CC.BY.SA", re.I
    ),
    "proprietary": re.compile(r"proprietary|nvidia|commercial", re.I),
}


def licences(packages: Iterable[str] | None = None) -> list[Licence]:
    """The declared licence of each of `packages` that is installed, in their order; None: of all that this one may require.

    Read from the package's metadata: the licence expression (PEP 639), else the trove classifiers, else the first line of the
    licence field, which some packages fill with the whole text.
    """
    found = []
    for package in sorted(library_versions(), key=str.lower) if packages is None else packages:
        if installed := next(iter(metadata.distributions(name=package)), None):
            declared = _declared(installed.metadata) or "not declared"
            flag = next((flag for flag, pattern in _FLAGS.items() if pattern.search(declared)), None)
            found.append(Licence(package=package, version=installed.version, declared=declared, flag=flag))
    return found


def _declared(about: metadata.PackageMetadata) -> str:
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [c for c in about.get_all("Classifier") or () if c.startswith("License :: ")]
    if names := [c.rpartition(" :: ")[2] for c in classifiers if not c.endswith(":: OSI Approved")]:
        return "; ".join(names)
    return (about.get("License") or "").strip().partition("\n")[0].strip()[:80]
