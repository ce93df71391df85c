"""What is installed of this package: its extras are said in pyproject.toml, and its metadata repeats them everywhere."""

import json
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement

DISTRIBUTION = "altlas-cuda-workbook"


def requirements(extra: str = "") -> list[Requirement]:
    """What an extra adds on this system; of "" what the light core requires."""

    def is_in(requirement: Requirement, extra: str) -> bool:
        return not requirement.marker or requirement.marker.evaluate({"extra": extra})

    known = map(Requirement, metadata.requires(DISTRIBUTION) or ())
    return [each for each in known if is_in(each, extra) and not (extra and is_in(each, ""))]


def unmet(extra: str = "") -> list[str]:
    """Those that are not installed, or in another version, each with what is wrong."""
    problems = []
    for each in requirements(extra):
        found = next(iter(metadata.distributions(name=each.name)), None)
        if not found or not each.specifier.contains(found.version, prereleases=True):
            problems.append(f"{each.name}{each.specifier} ({f'found {found.version}' if found else 'not installed'})")
    return problems


def is_installed(extra: str) -> bool:
    """Whether all that an extra adds is there, in whatever versions."""
    return all(any(metadata.distributions(name=each.name)) for each in requirements(extra))


def extra_of(module: str | None) -> str | None:
    """The extra that brings a module; None: none does."""
    name = (module or "").partition(".")[0].replace("_", "-")
    known = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or ()
    bringing = [extra for extra in known if name in {each.name.split("-cuda")[0] for each in requirements(extra)}]
    # the smallest; `gpu` has another build of TensorFlow, which is needed where CuPy is
    return min(bringing, key=lambda extra: (extra == "gpu", len(requirements(extra))), default=None)


def runs_by_uvx() -> bool:
    """Whether this environment was made by `uvx`, which makes another one for other extras."""
    return Path(sys.prefix).parent.name.startswith("archive-v")


def command_for(extra: str, command: Sequence[str] = ("...",)) -> str:
    """How an extra is added, from where this package came: a folder, a wheel, an index. For uvx: how `command` runs with it."""
    origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    url = urlsplit(origin.get("url", ""))
    source = shlex.quote(f"{url2pathname(url.path) if url.scheme == 'file' else DISTRIBUTION}[{extra}]")
    if runs_by_uvx():
        return f"uvx --from {source} altlas {shlex.join(command)}"
    install = "pip install" if util.find_spec("pip") else "uv pip install"
    return f"{install} {'-e ' * bool(origin.get('dir_info', {}).get('editable'))}{source}"
