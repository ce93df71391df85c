"""What was learned from GPUs that ran: measured time over projected time, kept per GPU, and how it corrects a projection."""

import json
import statistics
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import Field, ValidationError

from ...devices import find_gpu
from ...paths import RunFolder, outputs_dir, write_atomically
from ...results import Model, Quantity, ResultError, SimilarityResult
from .projection import middle

_KEPT_PER_GPU = 50  # the latest


class Correction(NamedTuple):
    """Measured / projected on one GPU, of all its residuals."""

    factor: float  # median
    low: float
    high: float


class Residual(Model):
    """One measured time on a GPU beside the time that had been projected for it."""

    gpu: str = Field(description="as the catalogue calls it")
    n_texts: int
    measured: Quantity
    projected: Quantity
    run_at: datetime = Field(description="when the result that it comes from was made")

    @property
    def ratio(self) -> float:
        """Measured median / geometric middle of the projected band."""
        return self.measured.value / middle(self.projected)


def learn(result: SimilarityResult) -> list[Residual]:
    """Of each number of texts the GPU's fastest measured time, transfers included, beside what was projected for that GPU.

    Nothing is learned of a GPU that the catalogue does not have, nor where time and projection name different GPUs.
    """
    projected = {(_gpu(each.time.device), each.n_texts): each.time for each in result.expectations if each.on_gpu}
    fastest: dict[tuple[str, int], Quantity] = {}
    for timing in result.timings:
        key = _gpu(timing.time.device), timing.n_texts
        if timing.on_gpu and timing.with_transfers and key in projected and key[0] is not None:
            fastest[key] = min(fastest.get(key, timing.time), timing.time, key=lambda time: time.value)
    run_at = result.provenance.created_at
    return [
        Residual(gpu=gpu, n_texts=n, measured=time, projected=projected[gpu, n], run_at=run_at)
        for (gpu, n), time in fastest.items()
        if time.value > 0 and projected[gpu, n].low > 0
    ]


def learned_with(run: RunFolder) -> "Residuals":
    """All that is known, with what an earlier execution of chapter 20 in this run measured on a GPU, if there is one.

    Raises:
        ValueError: `outputs/residuals.json` is damaged.
    """
    known = Residuals.load()
    try:
        learned = known.with_those_of(SimilarityResult.load(run))
    except ResultError:  # chapter 20 comes after chapter 10: in a first execution there is none
        return known
    if learned != known:
        learned.save()
    return learned


def _gpu(device: str) -> str | None:
    try:
        return find_gpu(device).name
    except ValueError:
        return None


class Residuals(Model):
    """Residuals of several runs and GPUs, oldest first."""

    residuals: tuple[Residual, ...] = ()

    def with_those_of(self, result: SimilarityResult) -> Self:
        """These and what `result` teaches, once however often it is learned from; the latest 50 of each GPU."""
        kept = {(each.gpu, each.n_texts, each.run_at): each for each in (*self.residuals, *learn(result))}
        ordered = sorted(kept.values(), key=lambda each: each.run_at)
        latest = (
            each
            for gpu in dict.fromkeys(each.gpu for each in ordered)
            for each in [one for one in ordered if one.gpu == gpu][-_KEPT_PER_GPU:]
        )
        return type(self)(residuals=tuple(latest))

    def correction(self, gpu: str) -> Correction | None:
        """Median and extremes of measured / projected on `gpu`; None where nothing was measured on such a one."""
        ratios = [each.ratio for each in self.residuals if each.gpu == _gpu(gpu)]
        return Correction(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """What `save` wrote; empty where there is no file.

        Raises:
            ValueError: the file is damaged; names it and what to do.
        """
        path = path or _file()
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise ValueError(
                f"{path} cannot be read ({problem}); remove it, and what GPUs were measured to take is learned anew "
                "when chapter 20 runs on one"
            ) from None

    def save(self, path: Path | None = None) -> Path:
        """Write `residuals.json` beside the runs, atomically."""
        path = path or _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(path, self.model_dump_json(indent=1) + "\n")


def _file() -> Path:
    return outputs_dir() / "residuals.json"
