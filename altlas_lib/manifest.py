"""`run.json` of a run: what it was asked for, and which chapters ran how; for the runner, and for the report without it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, NonNegativeFloat, ValidationError

from .paths import RunFolder, write_atomically

if TYPE_CHECKING:
    from .book import Chapter


class Finished(BaseModel):
    """A chapter that ran to its end, in the run's manifest."""

    parameters: dict[str, Any]
    notebook_sha256: str
    duration_s: NonNegativeFloat
    finished_at: datetime


class Manifest(BaseModel):
    """`run.json`: what was asked for and which chapters are done, so that `--resume` can go on."""

    parameters: dict[str, Any] = {}
    chapters: list[str] = []
    finished: dict[str, Finished] = {}

    @classmethod
    def load(cls, run: RunFolder) -> Self:
        """The run's manifest; an empty one where there is none or it cannot be read: then nothing counts as done."""
        try:
            return cls.model_validate_json(run.read("run.json"))
        except (OSError, ValidationError):
            return cls()

    def ask_for(self, selected: "Sequence[Chapter]", values: Mapping[str, Any], chapters: "Sequence[Chapter]") -> None:
        """Note what is asked for now. What the run was asked for before still is, as far as it is about other chapters."""
        names = {chapter.name for chapter in selected}
        self.chapters = [chapter.name for chapter in chapters if chapter.name in names | set(self.chapters)]
        asked_anew = {name for chapter in selected for name in chapter.parameters}
        kept = {name: value for name, value in self.parameters.items() if name not in asked_anew}
        self.parameters = kept | {name: value for name, value in values.items() if name in asked_anew}

    def by_number(self) -> dict[str, Finished]:
        """Number of a chapter -> how it last ran to its end."""
        return {name[:2]: chapter for name, chapter in self.finished.items()}

    def save(self, run: RunFolder) -> None:
        write_atomically(run.path / "run.json", self.model_dump_json(indent=1) + "\n")
