"""What all chapters' results share: what made them, a finding and figures, in a file that is whole or not there."""

import contextlib
import functools
import re
import subprocess
import textwrap
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, ValidationError
from pydantic_core import PydanticSerializationError

from ..devices import device_names
from ..extras import DISTRIBUTION
from ..paths import RunFolder, is_shipped, outputs_dir, project_root, write_atomically
from .quantity import Model, Share, first_problem

# Of the processors. A program that wants them all takes 1 / (1 - 0.2) = 1.25 times as long, less than a projection's own error.
LARGEST_OTHER_LOAD = 0.2


@functools.cache
def git_state() -> tuple[str | None, bool]:
    """The commit of the checkout that this is, None where it is none, and whether it has uncommitted changes."""
    if is_shipped():  # a repository around an installed package has nothing to do with it
        return None, False
    command = ["git", "-C", str(project_root()), "status", "--porcelain=v2", "--branch"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout
        return None, False
    return said[0].removeprefix("# branch.oid "), any(not line.startswith("#") for line in said)


@functools.cache
def library_versions() -> dict[str, str]:
    """The installed versions of this package and of all that it may require, tools of its developers aside."""
    required = [each for each in metadata.requires(DISTRIBUTION) or () if not re.search("extra == .dev.", each)]
    names = [DISTRIBUTION, *(re.match(r"[\w.-]+", each)[0] for each in required)]
    installed = ((name, next(iter(metadata.distributions(name=name)), None)) for name in dict.fromkeys(names))
    return {name: found.version for name, found in installed if found}


class Provenance(Model):
    """When, where, from which code and with which parameters a result was made."""

    created_at: datetime
    git_commit: str | None
    git_dirty: bool  # the checkout had uncommitted changes
    parameters: dict[str, JsonValue]
    devices: list[str]
    versions: dict[str, str]

    @classmethod
    def now(cls, parameters: dict[str, Any]) -> Self:
        """Provenance of a result that is being made here and now by a notebook with these parameters."""
        commit, dirty = git_state()
        code = {"git_commit": commit, "git_dirty": dirty, "versions": library_versions()}
        return cls(created_at=datetime.now(UTC), parameters=parameters, devices=device_names(), **code)


class ResultError(Exception):
    """A result file that is missing, damaged, or of another schema version."""


class DataSource(Model):
    """Which data a result was made from, so that two results can be told to be about the same thing."""

    name: str  # file name or generator, as the user gave it
    n_rows: NonNegativeInt  # rows used
    n_skipped: NonNegativeInt = 0  # invalid rows left out on the user's wish
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class UnderLoad(Model):
    """Something that was timed while other programs could take the processors."""

    other_load: Share | None = None  # share of the processors that they took meanwhile; None: not known

    @property
    def is_too_busy(self) -> bool:
        """Whether they slowed it down by so much that a gain over it would be theirs."""
        return (self.other_load or 0) > LARGEST_OTHER_LOAD


class FigureFile(Model):
    """A picture that a chapter saved under the run's `figures/`."""

    file: str = Field(pattern=r"^[\w.-]+\.png$")
    title: str
    alt: str = Field(min_length=1)  # what the picture shows, for who cannot see it


class ChapterResult(Model):
    """What all chapters' results share."""

    chapter: ClassVar[str]  # its file's name
    number: ClassVar[str]  # of the notebook that makes it

    schema_version: Literal[4] = 4
    provenance: Provenance
    finding: str = Field(min_length=1)  # what was found, in one sentence
    figures: list[FigureFile] = Field(default=[])

    def __init_subclass__(cls, *, chapter: str, number: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.chapter, cls.number = chapter, number

    def __str__(self) -> str:
        return textwrap.fill(self.finding, 96)

    def save(self, run: RunFolder) -> Self:
        """Write `results/<chapter>.json` atomically: a kill at any moment leaves the old file or the new one.

        Then the chapter's pictures (`figures/<number>_*`) that this result does not name are removed.

        Raises:
            ResultError: a text in it has half a character (a lone surrogate), as from a file name that is not UTF-8.
        """
        try:
            content = self.model_dump_json(indent=1)
        except PydanticSerializationError as error:
            what = f"the {self.chapter} result cannot be written ({error})"
            raise ResultError(f"{what}: rename the file, or mend the text, that is not UTF-8") from None
        write_atomically(run.results / f"{self.chapter}.json", content + "\n")
        named = {run.figures / figure.file for figure in self.figures}
        for picture in {*run.figures.glob(f"{self.number}_*")} - named:
            picture.unlink(missing_ok=True)
        return self

    @classmethod
    def latest(cls) -> Self | None:
        """Of the run that made it last; None where no run has a valid one."""
        found = outputs_dir().glob(f"*/results/{cls.chapter}.json")
        for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
            with contextlib.suppress(ResultError):
                return cls.load(RunFolder(path.parent.parent))
        return None

    @classmethod
    def load(cls, run: RunFolder) -> Self:
        """Read `results/<chapter>.json`.

        Raises:
            ResultError: the file is missing, damaged, or was made by another schema version.
        """
        path = run.results / f"{cls.chapter}.json"
        again = f"run its chapter again: altlas run --run {run.name} --only {cls.number}"
        try:
            return cls.model_validate_json(run.read(f"results/{path.name}"))
        except FileNotFoundError:
            raise ResultError(f"no {cls.chapter} result in run {run.name!r}; {again}") from None
        except (OSError, ValidationError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else error
            raise ResultError(f"{path.name} of run {run.name!r} cannot be read ({reason}); {again}") from None
