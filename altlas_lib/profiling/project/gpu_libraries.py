"""What GPU libraries have in place of other libraries' calls: a table that a maintainer's script reads from their wheels.

    gpu_libraries()["cuml.accel"].offer("sklearn.cluster.KMeans.fit")  # Offer("offered on conditions", "KMeans", "falls ...")

Nobody needs the libraries installed, nor a GPU. What the table does not know is unknown, never absent: absent is only what a
module or a class that was read does not list.
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import Field

from ...paths import shipped_toml
from ...results import Model, RouteKind, RouteStanding

_PUBLIC_NAMES = (  # pattern -> what the table calls it
    (r"^numpy\.add\.reduce$", "numpy.sum"),
    (r"^numpy\.(maximum|minimum)\.reduce$", lambda match: f"numpy.{match[1][:3]}"),
    (r"^ndarray\b", "numpy.ndarray"),
    (r"^numba:", "numba."),
    (r"^scipy\.sparse\.(?:\w+\.)*(cs[rc])_array\b", r"scipy.sparse.\1_matrix"),
)


@functools.lru_cache(maxsize=4096)
def public_parts(name: str) -> tuple[str, ...]:
    """'pandas.core.frame.DataFrame.__getitem__' by its parts, without private modules; 'ndarray.sort' is NumPy's."""
    for pattern, public in _PUBLIC_NAMES:
        name = re.sub(pattern, public, name)
    return tuple(part for part in name.split(".") if part and not re.match(r"_(?!_\w+__$)", part)) or (name or "?",)


class Offer(NamedTuple):
    """What a GPU library has of one call."""

    standing: RouteStanding
    name: str  # as it is listed
    condition: str = ""  # of this call; that of all calls is the library's


class GpuLibrary(Model):
    """What a GPU library has in place of other libraries' calls, as its wheel says."""

    name: str
    kind: RouteKind
    package: str
    version: str
    licence: str
    download_mb: int
    least_compute_capability: str
    hosts: list[str]
    needs: str = ""
    how: str
    condition: str = ""
    deep: bool = False
    whole: bool = False
    names: dict[str, str] = Field(default={})
    conditions: dict[str, str] = Field(default={})

    @functools.cached_property
    def listed(self) -> dict[tuple[str, ...], frozenset[str]]:
        """Module or class, by its parts -> the names in it."""
        return {tuple(key.split(".")): frozenset(names.split()) for keys, names in self.names.items() for key in keys.split()}

    def offer(self, name: str) -> Offer | None:
        """Whether it has a counterpart of a call, and on what condition; None: the call is of no library that it stands in for.

        Args:
            name: as the tracer writes it, with or without private modules: 'sklearn.cluster._kmeans.KMeans.fit'.
        """
        parts = public_parts(name)
        if parts[0] not in self.hosts:
            return None
        if self.whole:
            return self._offered(".".join(parts[-2:]))
        for i in range(len(parts) - 1, 0, -1):
            part, names, of_class = parts[i], self._under(parts[:i]), i < len(parts) - 1
            if names is None or (of_class and not part[0].isupper()):  # such as numpy.add, of numpy.add.reduceat
                continue
            if names.isdisjoint({part, f"__{part}__"}):
                if (of_class or part.startswith("__")) and names and parts[:i] not in self.listed:
                    break  # a class that is known by another name, perhaps
                return Offer("absent", ".".join(parts[i - 1 :]))
            if of_class and any(key[-1][0].isupper() for key in self.listed):
                break  # methods are listed, but not those of this class
            spoken = f"{parts[i - 1]}.{part}" if parts[i - 1][0].isupper() else part
            return self._offered(spoken, self.conditions.get(spoken, self.conditions.get(part, "")))
        return Offer("unknown", ".".join(parts))

    def _offered(self, name: str, condition: str = "") -> Offer:
        return Offer("offered on conditions" if condition or self.condition else "offered", name, condition)

    def _under(self, path: tuple[str, ...]) -> frozenset[str] | None:
        """The names listed for a module or a class; a class is known by its name, wherever it is defined."""
        if path in self.listed or path[-1][0].isupper():
            return self.listed.get(path, self.listed.get((path[0], path[-1])))
        if self.deep and not any(part[0].isupper() for part in path):
            return next((self.listed[path[:i]] for i in range(len(path), 0, -1) if path[:i] in self.listed), None)
        return None

    def describe(self) -> str:
        """How to switch it on, and what that takes."""
        package = f"{self.package} {self.version}{f' (needs {self.needs})' if self.needs else ''}, {self.licence}"
        machine = f"Linux, an NVIDIA GPU of compute capability {self.least_compute_capability} or more; not measured"
        download = f"{self.download_mb / 1000:.1f} GB to download with all that it needs"
        return "; ".join(filter(None, (self.condition, self.how, package, download, machine)))


@functools.cache
def gpu_libraries() -> dict[str, GpuLibrary]:
    """By name, in the order of the table."""
    entries = map(GpuLibrary.model_validate, shipped_toml(__package__, "gpu_libraries.toml")["library"])
    return {library.name: library for library in entries}


def cupy_coverage(names: Iterable[str]) -> dict[str, list[str]]:
    """Distinct operations by whether CuPy, `cupyx.scipy` included, "has" or "lacks" a counterpart, or that is "unknown".

    It lacks those of libraries that another GPU library stands in for, such as pandas.
    """
    coverage: dict[str, list[str]] = {"has": [], "lacks": [], "unknown": []}
    cupy, cupyx = gpu_libraries()["CuPy"], gpu_libraries()["cupyx.scipy"]
    others = {host for library in gpu_libraries().values() for host in library.hosts} - {*cupy.hosts, *cupyx.hosts}
    for name in dict.fromkeys(names):
        offer = cupy.offer(name) or cupyx.offer(name) or Offer("unknown", name)
        is_lacking = offer.standing == "absent" or (offer.standing == "unknown" and public_parts(name)[0] in others)
        coverage["lacks" if is_lacking else "unknown" if offer.standing == "unknown" else "has"].append(name)
    return coverage
