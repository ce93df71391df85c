"""From results to decisions: go, go with conditions, no-go, or not enough evidence, by rules that are data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..results import (
    Candidate,
    ChapterResult,
    EnvironmentResult,
    HotspotsResult,
    Quantity,
    Remedy,
    SimilarityResult,
    Timing,
    TrainingResult,
    format_value,
)
from .language import Language

Verdict = Literal["go", "go with conditions", "no-go", "not enough evidence"]

_Gain = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PortRule(_Rule):
    least_workload_gain: _Gain


class IntegrateRule(_Rule):
    least_gain: _Gain


class FitRule(_Rule):
    accepted_verdicts: list[Literal["fits", "tight"]] = Field(min_length=1)


class PredictRule(_Rule):
    least_gain: float = Field(ge=0, lt=1)


class Rules(_Rule):
    """`rules.yaml`, read and checked."""

    port: PortRule
    integrate: IntegrateRule
    fit: FitRule
    predict: PredictRule

    @classmethod
    def load(cls, path: str | Path | None = None) -> "Rules":
        """The project's rules, with those lines changed that the file at `path` has.

        Raises:
            ValueError: the file cannot be read, or has a rule or value that does not exist; names it.
        """
        rules = yaml.safe_load(resources.files(__package__).joinpath("rules.yaml").read_text(encoding="utf-8"))
        if not path:
            return cls.model_validate(rules)
        try:
            changes = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
            for question, change in changes.items():
                rules[question] = {**rules.get(question, {}), **change}
            return cls.model_validate(rules)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"rules {path}: {where}: {first['msg']}; see altlas_lib/report/rules.yaml") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError) as error:
            raise ValueError(
                f"rules {path} cannot be read ({error}); expected lines as in altlas_lib/report/rules.yaml"
            ) from None


@dataclass(frozen=True)
class Evidence:
    """A number that carries a decision.

    Attributes:
        source: where it stands: result file and place in it.
    """

    label: str
    text: str
    basis: str
    device: str
    source: str


@dataclass(frozen=True)
class Decision:
    """The answer to one question.

    Attributes:
        chapter: whose result it rests on.
        why: one sentence.
        evidence: the two numbers that carry it, or fewer where there are none.
        changes: what would change it, each one sentence.
    """

    question: str
    chapter: str
    verdict: Verdict
    why: str
    evidence: list[Evidence] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def _quoted(quantity: Quantity, label: str, source: str) -> Evidence:
    return Evidence(label, str(quantity), quantity.basis, quantity.device, source)


def decide(results: dict[str, ChapterResult], rules: Rules, language: Language, run_name: str) -> list[Decision]:
    """An answer to each question, from the chapters' results that are there."""
    _ = language.text
    again = "altlas run --run {} --only {}"
    questions: list[tuple[type[ChapterResult], str, Callable]] = [
        (EnvironmentResult, _("Is this machine ready?"), _machine),
        (HotspotsResult, _("Is there a function worth porting?"), _port),
        (SimilarityResult, _("Does the GPU port go into production?"), _integrate),
        (TrainingResult, _("Does the training fit the GPU?"), _fit),
        (TrainingResult, _("Is the model worth training?"), _predict),
    ]
    decisions = []
    for result_type, question, answer in questions:
        chapter = result_type.chapter
        if chapter in results:
            verdict, why, evidence, changes = answer(results[chapter], rules, language)
        else:
            verdict, why, evidence = "not enough evidence", _("This chapter has no result."), []
            changes = [_("Run the chapter: {command}", command=again.format(run_name, result_type.number))]
        evidence = [replace(number, text=language.number(number.text)) for number in evidence]
        decisions.append(Decision(question, chapter, verdict, why, evidence, changes))
    return decisions


_Answer = tuple[Verdict, str, list[Evidence], list[str]]


def _machine(result: EnvironmentResult, rules: Rules, language: Language) -> _Answer:
    _ = language.text
    ceilings, source = result.ceilings, "results/environment.json"
    evidence = [
        _quoted(ceilings.cpu_matmul_float32, _("matrix products on this CPU"), f"{source}#/ceilings/cpu_matmul_float32")
    ]
    fixes = [finding.fix for finding in result.findings if finding.fix and finding.status == "failure"]
    if ceilings.gpu_matmul_float32:
        gpu = _quoted(ceilings.gpu_matmul_float32, _("matrix products on this GPU"), f"{source}#/ceilings/gpu_matmul_float32")
        evidence.append(gpu)
    if not result.ready:
        return "no-go", _("The machine cannot run the workbook."), evidence, fixes
    if ceilings.gpu_matmul_float32:
        return "go", _("It runs the workbook, and its GPU was measured."), evidence, []
    target = Evidence(
        _("matrix products on a {gpu}", gpu=result.target_gpu.name),
        format_value(1000 * result.target_gpu.float32_tflops, "GFLOP/s"),
        "data sheet",
        result.target_gpu.name,
        f"{source}#/target_gpu/float32_tflops",
    )
    why = _("It runs the workbook, but has no GPU: whatever is said about one is projected or compiled.")
    change = _("A GPU in the machine: then its own times are measured.")
    return "go with conditions", why, [*evidence, target], [change]


def _port(result: HotspotsResult, rules: Rules, language: Language) -> _Answer:
    _ = language.text
    least = rules.port.least_workload_gain
    known = [each for each in result.candidates if each.workload_gain]
    unknown = [each for each in result.candidates if each.advice == "unknown"]
    best = max(known, key=lambda each: (each in result.to_port, each.workload_gain.low), default=None)
    if best is None and result.candidates and not unknown:
        why = _("Every function that takes time stays on the CPU: Python's own work, which no GPU takes over.")
        return "no-go", why, [], [_("A function that works on arrays, profiled by chapter 10.")]
    if best is None:
        why = _("No function's work was seen well enough to project it.")
        return "not enough evidence", why, [], [_("A function that works on arrays, profiled by chapter 10.")]
    at = result.candidates.index(best)
    source = f"results/hotspots.json#/candidates/{at}"
    named = _("{function} in {workload}", function=best.function, workload=best.workload)
    evidence = [
        _quoted(best.workload_gain, _("the workload with {named} on a GPU", named=named), f"{source}/workload_gain"),
        Evidence(
            _("share of the time in it"), f"{best.share:.0%}", "measured", result.provenance.devices[0], f"{source}/share"
        ),
    ]
    changes = list(_port_changes(best, least, language))
    if unknown:
        names = ", ".join(each.function for each in unknown)
        changes.append(_("What was not seen of {names}: its projection is open.", names=names))
    if best in result.to_port and best.workload_gain.low >= least:
        why = _("Port {named}: the whole workload gains {gain}.", named=named, gain=best.workload_gain)
        return ("go" if best.advice == "port it" else "go with conditions"), why, evidence, changes
    if best.workload_gain.high >= least and best.advice != "unknown":
        why = _("{named} may gain enough, but is not sure to: {advice}.", named=named, advice=_(best.advice))
        return "go with conditions", why, evidence, changes
    if unknown:  # which is never a no
        return "not enough evidence", _("Too little was seen."), evidence, changes
    why = _("No function makes its workload {least} times as fast, not even at the projection's high end.", least=f"{least:g}")
    return "no-go", why, evidence, changes


def _port_changes(best: Candidate, least: float, language: Language) -> Iterator[str]:
    _ = language.text
    projection = best.projection
    if projection and best.advice == "keep the data on the GPU":
        yield _(
            "The data stay on the GPU: then the function takes {resident} there instead of {moved}.",
            resident=projection.on_gpu_resident,
            moved=projection.on_gpu,
        )
    elif best.advice == "batch first":
        yield _("Larger batches: this work is too small for a GPU's launches.")
    elif best.advice == "vectorise first":
        yield _("Its Python loops become array operations first: that alone may be enough.")
    if best.largest_gain and best.largest_gain < least:
        yield _(
            "A larger share of the time in it: now at most {gain} can be won, were it free.",
            gain=format_value(best.largest_gain, "x"),
        )
    if projection:
        yield _("What bounds it on the GPU: {cause}.", cause=_(projection.bound_by))


def _integrate(result: SimilarityResult, rules: Rules, language: Language) -> _Answer:
    _ = language.text
    failed = [each.method for each in result.validations if not each.passed]
    n = max(timing.n_texts for timing in result.timings if not timing.on_gpu)  # the largest with something to compare with
    at_largest = [(at, timing) for at, timing in enumerate(result.timings) if timing.n_texts == n]
    on_cpu = _fastest(at_largest, on_gpu=False)
    on_gpu = _fastest(at_largest, on_gpu=True)
    evidence = [_of(on_cpu, _("{n} texts on the CPU, {method}", n=f"{n:,}", method=on_cpu[1].method))]
    again = _("A measurement on a GPU: run chapters 20 and 90 there under the same name.")
    if failed:
        why = _("Not the answer of the reference: {methods}.", methods=", ".join(failed))
        return "no-go", why, evidence, [_("The error is found and chapter 20 run again.")]
    if on_gpu is None:
        projected = [(at, each) for at, each in enumerate(result.expectations) if each.on_gpu and each.n_texts == n]
        if not projected:
            return "not enough evidence", _("No GPU was measured, and none was projected."), evidence, [again]
        at, expected = projected[0]
        label = _("{n} texts on a {gpu}", n=f"{n:,}", gpu=expected.time.device)
        evidence.append(_quoted(expected.time, label, f"results/similarity.json#/expectations/{at}/time"))
        low, high = (on_cpu[1].time.value / bound for bound in (expected.time.high, expected.time.low))
        band = Quantity.projected(low, high, "x", expected.time.device, expected.time.bound_by)
        why = _("No GPU was measured. The projection says {band} the speed of the best CPU method.", band=band)
        if high < rules.integrate.least_gain:
            return "no-go", why, evidence, [_("More texts, or a faster GPU."), again]
        return "not enough evidence", why, evidence, [again]
    label = _("{n} texts on the GPU, {method}", n=f"{n:,}", method=on_gpu[1].method)
    evidence.append(_of(on_gpu, label))
    gain = format_value(on_cpu[1].time.value / on_gpu[1].time.value, "x")
    if on_cpu[1].time.value < rules.integrate.least_gain * on_gpu[1].time.value:
        why = _("On the GPU it is {gain} as fast as on the CPU, transfers included: too little.", gain=gain)
        return "no-go", why, evidence, [_("More texts than {n}, or data that stay on the GPU.", n=f"{n:,}")]
    why = _("Same answer, and {gain} as fast as on the CPU, transfers included.", gain=gain)
    smallest = min(timing.n_texts for timing in result.timings)
    if result.break_even_n_texts and result.break_even_n_texts > smallest:
        condition = _("From {n} texts on; below that the CPU is faster.", n=f"{result.break_even_n_texts:,}")
        return "go with conditions", why, evidence, [condition]
    return "go", why, evidence, []


def _fastest(timings: list[tuple[int, Timing]], *, on_gpu: bool) -> tuple[int, Timing] | None:
    of_kind = [(at, timing) for at, timing in timings if timing.on_gpu == on_gpu and timing.with_transfers]
    return min(of_kind, key=lambda each: each[1].time.value, default=None)


def _of(timing: tuple[int, Timing], label: str) -> Evidence:
    return _quoted(timing[1].time, label, f"results/similarity.json#/timings/{timing[0]}/time")


def _fit(result: TrainingResult, rules: Rules, language: Language) -> _Answer:
    _ = language.text
    more = _("All remedies planned: altlas plan --gpu {gpu}.", gpu=result.gpu or "T4")
    if not result.remedies or not result.remedies[0].plan:  # the first is the model as it is
        return "not enough evidence", _("Nothing was planned."), [], [more]
    planned = [(at, remedy) for at, remedy in enumerate(result.remedies) if remedy.plan]
    first = result.remedies[0].plan
    accepted = rules.fit.accepted_verdicts
    fitting = [(at, remedy) for at, remedy in planned if remedy.plan.verdict in accepted]
    evidence = [
        _peak(planned[0], language),
        Evidence(
            _("what CUDA offers on a {gpu}", gpu=first.gpu),
            format_value(first.usable_bytes, "bytes"),
            "data sheet",
            first.gpu,
            "results/training.json#/remedies/0/plan/usable_bytes",
        ),
    ]
    limits = [_limit(remedy, language) for _at, remedy in planned if remedy.largest_batch]
    if first.verdict in accepted:
        return "go", _("The model as planned fits a {gpu}.", gpu=first.gpu), evidence, limits[:3]
    if fitting:
        names = ", ".join(remedy.name for _at, remedy in fitting[:3])
        values = {"peak": first.peak, "gpu": first.gpu, "names": names}
        if first.verdict == "out of memory":
            why = _("As planned it needs {peak} and does not fit a {gpu}; it does with: {names}.", **values)
        else:
            why = _("As planned it needs {peak} and is not sure to fit a {gpu}; it is with: {names}.", **values)
        return "go with conditions", why, [evidence[0], _peak(fitting[0], language)], limits[:3]
    if len(planned) < len(result.remedies) or any(remedy.plan.verdict == "undecided" for _at, remedy in planned):
        return "not enough evidence", _("No remedy is known to fit, and some are not compiled."), evidence, [more]
    return "no-go", _("No remedy makes it fit a {gpu}.", gpu=first.gpu), evidence, [_("A larger GPU, or a smaller model.")]


def _peak(remedy: tuple[int, Remedy], language: Language) -> Evidence:
    at, (plan, name) = remedy[0], (remedy[1].plan, remedy[1].name)
    label = language.text("peak memory of one step, {name}, batch {batch}", name=name, batch=plan.configuration["batch_size"])
    return _quoted(plan.peak, label, f"results/training.json#/remedies/{at}/plan/peak")


def _limit(remedy: Remedy, language: Language) -> str:
    planned = remedy.plan.configuration["batch_size"]
    if remedy.plan.verdict == "fits":
        return language.text("{name}: batch {n} fits.", name=remedy.name, n=max(planned, remedy.largest_batch))
    return language.text(
        "{name}: batch {n} fits, {planned} does not.", name=remedy.name, n=remedy.largest_batch, planned=planned
    )


def _predict(result: TrainingResult, rules: Rules, language: Language) -> _Answer:
    _ = language.text
    accuracy = result.metrics[0] if result.metrics else None
    if accuracy is None:
        return "not enough evidence", _("The model was not scored."), [], []
    device, source = result.step_time.device, "results/training.json#/metrics/0"
    evidence = [
        Evidence(f"{accuracy.name}, {_('the model')}", f"{accuracy.model:.1%}", "measured", device, f"{source}/model"),
        Evidence(_("the base rate"), f"{accuracy.base_rate:.1%}", "measured", device, f"{source}/base_rate"),
    ]
    gain = _gain(accuracy.model - accuracy.base_rate)
    if accuracy.best_possible is not None and accuracy.best_possible <= accuracy.base_rate:
        why = _("On this series nothing can be predicted: the true odds do no better than the base rate.")
        return "no-go", why, evidence, [_("Another series: no model and no training changes this.")]
    if accuracy.gain_low is None:
        return "not enough evidence", _("The gain has no interval."), evidence, []
    interval = _(
        "{gain} points over the base rate, 95 % interval {low} to {high}",
        gain=gain,
        low=_gain(accuracy.gain_low),
        high=_gain(accuracy.gain_high),
    )
    if accuracy.gain_low > rules.predict.least_gain:
        return "go", _("It predicts: {interval}.", interval=interval), evidence, []
    if accuracy.gain_high <= rules.predict.least_gain:
        return "no-go", _("It does not predict enough: {interval}.", interval=interval), evidence, []
    why = _("The interval does not say: {interval}.", interval=interval)
    return "not enough evidence", why, evidence, [_("More test values or more seeds: the interval becomes narrower.")]


def _gain(share: float) -> str:
    return f"{100 * share:+.1f}"
