"""What the plan said, what was projected and compiled, and what was measured, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..results import ChapterResult, HotspotsResult, Quantity, SimilarityResult, TrainingResult
from .language import Language

PLANNED_PARAMETERS = "about 9.8M"


@dataclass(frozen=True)
class Claim:
    """A row of the table: at least one of the four says something.

    Attributes:
        source: result file and place of what was found.
    """

    about: str
    source: str
    planned: str = ""
    projected: str = ""
    compiled: str = ""
    measured: str = ""


def claims(results: dict[str, ChapterResult], language: Language) -> list[Claim]:
    """In the order of the chapters."""
    found = []
    for chapter, rows in (("hotspots", _hotspots), ("similarity", _similarity), ("training", _training)):
        if chapter in results:
            found += rows(results[chapter], language)
    return found


def _by_basis(quantity: Quantity | None, language: Language) -> dict[str, str]:
    return {quantity.basis: f"{language.number(quantity)}, {quantity.device}"} if quantity else {}


def _hotspots(result: HotspotsResult, language: Language) -> Iterator[Claim]:
    for at, candidate in enumerate(result.candidates):
        if candidate.workload_gain:
            about = language.text(
                "{workload} with {function} on a GPU", workload=candidate.workload, function=candidate.function
            )
            yield Claim(
                about, f"results/hotspots.json#/candidates/{at}/workload_gain", **_by_basis(candidate.workload_gain, language)
            )


def _similarity(result: SimilarityResult, language: Language) -> Iterator[Claim]:
    n = max(timing.n_texts for timing in result.timings)
    on_gpu = [each.time for each in result.timings if each.on_gpu and each.with_transfers and each.n_texts == n]
    measured = min(on_gpu, key=lambda time: time.value, default=None)
    for at, expected in enumerate(result.expectations):
        if expected.on_gpu and expected.n_texts == n:
            about = language.text("nearest neighbours of {n} texts on a GPU", n=f"{n:,}")
            source = f"results/similarity.json#/expectations/{at}/time"
            yield Claim(about, source, **_by_basis(expected.time, language), **_by_basis(measured, language))


def _training(result: TrainingResult, language: Language) -> Iterator[Claim]:
    _ = language.text
    for at, remedy in enumerate(result.remedies):
        plan, source = remedy.plan, f"results/training.json#/remedies/{at}/plan"
        if not plan:
            continue
        if not at and plan.configuration.get("model") == "reference":
            yield Claim(
                _("parameters of the model"),
                f"{source}/n_parameters",
                planned=PLANNED_PARAMETERS,
                compiled=f"{plan.n_parameters:,}",
            )
        if remedy.claimed:
            about = _("memory of one training step, {name}", name=remedy.name)
            yield Claim(about, f"{source}/peak", planned=remedy.claimed, **_by_basis(plan.peak, language))
        if plan.step_time and not at:
            yield Claim(
                _("time of one training step, {name}", name=remedy.name),
                f"{source}/step_time",
                **_by_basis(plan.step_time, language),
            )
    for at, quality in enumerate(result.qualities):
        kept = quality.gain_kept
        yield Claim(
            _("quality that {option} keeps, {series}", option=quality.option, series=quality.series),
            f"results/training.json#/qualities/{at}",
            planned="{:.0%} to {:.0%}".format(*quality.claimed),
            measured=f"{kept.value:.0%} ({kept.low:.0%} to {kept.high:.0%})" if kept else _("none to keep"),
        )
    if result.peak_memory:
        yield Claim(
            _("memory of the training that ran"),
            "results/training.json#/peak_memory",
            **_by_basis(result.peak_memory, language),
        )
    about = _("one micro-batch of {n}, preset {preset}", n=result.micro_batch_size, preset=result.preset)
    yield Claim(about, "results/training.json#/step_time", **_by_basis(result.step_time, language))
