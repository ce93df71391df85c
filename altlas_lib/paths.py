"""Where things lie: the project, its data, and the folder of a run."""

import contextlib
import errno
import functools
import os
import re
import shutil
import sys
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

_SHIPPED = Path(__file__).resolve().parent / "shipped"  # the book as the package brings it; not in a checkout


def project_root() -> Path:
    """The folder that holds `notebooks/` and `data/`.

    `ALTLAS_ROOT` when set; else the current folder or the next one above that has `notebooks/parameters/`; else the checkout
    that this package is installed from (`pip install -e`), or what the package brings.

    Raises:
        FileNotFoundError: there are no `notebooks/` in that folder.
    """
    here = Path.cwd()
    studies = (folder for folder in (here, *here.parents) if (folder / "notebooks" / "parameters").is_dir())
    own = _SHIPPED if _SHIPPED.is_dir() else _SHIPPED.parent.parent
    root = Path(os.environ.get("ALTLAS_ROOT") or next(studies, own))
    if not (root / "notebooks").is_dir():
        raise FileNotFoundError(f"no notebooks/ in {root}: make a folder that has them (altlas new), or set ALTLAS_ROOT to one")
    return root


def is_shipped() -> bool:
    """Whether the book is the package's own, which is not to be edited: there is no study and no checkout here."""
    return project_root() == _SHIPPED


def copy_book(folder: Path) -> Path:
    """Notebooks, parameters and samples in a new folder, to be edited and run there.

    Raises:
        FileExistsError: there is such a folder or file.
    """
    root = project_root()
    if folder.exists():
        raise FileExistsError(f"there is {folder} already; give a new name")
    for part in ("notebooks", "data"):
        for source in sorted((root / part).rglob("[!._]*.*")):
            target = folder / source.relative_to(root)
            if source.is_file() and not {".ipynb_checkpoints", "__pycache__"} & set(source.parts):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)  # without the modes of an installed package, which may be read-only
    return folder


def notebooks_dir() -> Path:
    return project_root() / "notebooks"


def data_dir() -> Path:
    """The small data sets that ship with the project; `ALTLAS_DATA` when set."""
    return Path(os.environ.get("ALTLAS_DATA") or project_root() / "data")


def outputs_dir() -> Path:
    """The parent of all runs: `ALTLAS_OUTPUTS` when set, else `outputs/` beside the book; here if that is the package's."""
    return Path(os.environ.get("ALTLAS_OUTPUTS") or (Path.cwd() if is_shipped() else project_root()) / "outputs")


@dataclass(frozen=True)
class RunFolder:
    """One run of the book: `outputs/<name>/{executed,results,figures,report}`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def executed(self) -> Path:
        return self.path / "executed"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def read(self, name: str) -> bytes:
        """A file of the run, which somebody may have put another in the place of; raises as `read_bounded`."""
        return read_bounded(self.path / name)


def run_folder(name: str) -> RunFolder:
    """The folder of the run called `name`, made if need be.

    Raises:
        ValueError: the name is not a plain folder name (letters, digits, `.`, `_`, `-`; no leading dot).
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            f"run name {name!r}: expected 1 to 100 letters, digits, '.', '_' or '-', not starting with '.'; choose another name"
        )
    run = RunFolder(outputs_dir() / name)
    for folder in (run.executed, run.results, run.figures, run.report):
        folder.mkdir(parents=True, exist_ok=True)
    return run


MIB = 2**20
UNFINISHED = ".tmp"  # what a killed writer leaves ends so, and begins with a dot


def read_bounded(path: str | Path, limit_bytes: int = 64 * MIB) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: there is none that can be read, it is a folder, FIFO or device, or larger than `limit_bytes`; names the path.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # to open a FIFO would wait for its writer
            raise OSError(errno.EINVAL, "no regular file", str(path))
        with open(path, "rb") as file:
            content = file.read(limit_bytes + 1)
    except ValueError as error:  # a NUL character, or half of one, in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes / MIB:g} MiB, which no such file is", str(path))
    return content


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write a file so that a kill at any moment leaves the old one or the new one, never a part. A link is followed.

    Raises:
        OSError: the disk is full, the folder cannot be written to, or there is a device or FIFO; names the path.
    """
    path = Path(path)
    target = path.resolve()
    if target.exists() and not target.is_file():  # a rename would put a file in the place of the device
        raise OSError(errno.EINVAL, "no regular file, which can be replaced; name another", str(path))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may keep the rename and lose the bytes
        os.replace(temporary, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def lock_exclusively(file: IO) -> None:
    """Hold an open, empty file for this process; the system lets go when it is closed or the process ends.

    Raises:
        OSError: another one holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@functools.cache
def shipped_toml(package: str, name: str) -> dict[str, Any]:
    """A TOML file that lies beside a package's modules, read once: leave what is returned as it is."""
    return tomllib.loads(resources.files(package).joinpath(name).read_text("utf-8"))


@contextlib.contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Send file descriptor 2, of this process and of those that it starts, to a file: C++ code writes there, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(path, "wb") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
