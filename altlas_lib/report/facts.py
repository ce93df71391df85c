"""What the chapters' results say, as the named facts that the conditions and sentences of `decisions.yaml` are about."""

from collections.abc import Callable, Iterator
from typing import Any

from ..results import (
    Candidate,
    ChapterResult,
    EnvironmentResult,
    HotspotsResult,
    Remedy,
    Sentence,
    SimilarityResult,
    TrainingResult,
    format_value,
)
from .bands import Band
from .rules import Rules

Facts = dict[str, Any]


def say(text: str, **values: Any) -> Sentence:
    return Sentence(text=text, values=values)


def _machine(result: EnvironmentResult, rules: Rules) -> Facts:
    return {
        "ready": result.ready,
        "has_gpu": result.ceilings.gpu_matmul_float32,
        "gpu": result.target_gpu.name,
        "device": result.target_gpu.name,
        "fixes": [finding.fix for finding in result.findings if finding.status == "failure"],
    }


def _port(result: HotspotsResult, rules: Rules) -> Facts:
    least = rules.port.least_workload_gain
    known = [each for each in result.candidates if each.workload_gain]
    unseen = [each for each in result.candidates if each.advice == "unknown"]
    best = max(known, key=lambda each: (each in result.to_port, each.workload_gain.low), default=None)
    facts = {"projected": best, "all_on_cpu": result.candidates and not unseen, "unseen": unseen, "least": f"{least:g}"}
    if best is None:
        return facts | {"at": None}
    return facts | {
        "at": result.candidates.index(best),
        "device": result.provenance.devices[0],
        "named": say("{function} in {workload}", function=best.function, workload=best.workload),
        "gain": best.workload_gain,
        "advice": say(best.advice),
        "sure": best in result.to_port and best.workload_gain.low >= least,
        "as_it_is": best.advice == "port it",
        "possible": best.workload_gain.high >= least and best.advice != "unknown",
        "bounds": [*_bounds(best, least), *_open(unseen)],
    }


def _open(unseen: list[Candidate]) -> Iterator[Sentence]:
    if unseen:
        names = ", ".join(each.function for each in unseen)
        yield say("What was not seen of {names}: its projection is open.", names=names)


def _bounds(best: Candidate, least: float) -> Iterator[Sentence]:
    projection = best.projection
    if projection and best.advice == "keep the data on the GPU":
        yield say(
            "The data stay on the GPU: then the function takes {resident} there instead of {moved}.",
            resident=projection.on_gpu_resident,
            moved=projection.on_gpu,
        )
    elif best.advice == "batch first":
        yield say("Larger batches: this work is too small for a GPU's launches.")
    elif best.advice == "vectorise first":
        yield say("Its Python loops become array operations first: that alone may be enough.")
    if best.largest_gain and best.largest_gain < least:
        gain = format_value(best.largest_gain, "x")
        yield say("A larger share of the time in it: now at most {gain} can be won, were it free.", gain=gain)
    if projection:
        yield say("What bounds it on the GPU: {cause}.", cause=say(projection.bound_by))


def _integrate(result: SimilarityResult, rules: Rules) -> Facts:
    rule, of_kind = rules.integrate, {False: {}, True: {}}
    for at, timing in enumerate(result.timings):
        if timing.with_transfers:
            of_kind[timing.on_gpu].setdefault(timing.n_texts, []).append((at, timing))
    on_cpu, on_gpu = of_kind.values()
    wrong = [each.method for each in result.validations if not each.passed]
    n = max(on_cpu.keys() & on_gpu.keys() or on_cpu, default=None)
    validated = {each.method for each in result.validations if each.passed and each.n_texts == n}
    # Of the methods that were timed, one whose answer was checked at this size counts more than a faster one.
    cpu_at, cpu = min(on_cpu.get(n, []), key=lambda each: each[1].time.value, default=(None, None))
    fastest = sorted(on_gpu.get(n, []), key=lambda each: (each[1].method not in validated, each[1].time.value))
    gpu_at, gpu = fastest[0] if fastest else (None, None)
    projected = [(at, each) for at, each in enumerate(result.expectations) if each.on_gpu and each.n_texts == n]
    expected_at, expected = projected[0] if projected and not on_gpu else (None, None)
    other = gpu or expected
    gain = Band.of(cpu.time).over(Band.of(other.time)) if cpu and other else None
    facts = {
        **{"source": result.source.name, "wrong": wrong, "methods": ", ".join(wrong), "n": n, "gain": gain},
        **{"on_cpu": cpu, "cpu_at": cpu_at, "cpu_method": cpu and cpu.method},
        **{"timed_on_gpu": on_gpu, "on_gpu": gpu, "gpu_at": gpu_at, "gpu_method": gpu and gpu.method},
        **{"expected": gain and expected, "expected_at": gain and expected_at, "gpu": other and other.time.device},
        "validated": gpu and gpu.method in validated,
        **{"least_runs": rule.least_runs, "too_few_runs": gpu and min(cpu.time.n_runs, gpu.time.n_runs or 0) < rule.least_runs},
        **{"sure": gain and gain.low >= rule.least_gain, "too_little": gain and gain.high < rule.least_gain},
        "conditions": [],
    }
    if gpu and (result.break_even_n_texts or 0) > min(timing.n_texts for timing in result.timings):
        size = result.break_even_n_texts
        facts["conditions"].append(say("From {break_even} texts on; below that the CPU is faster.", break_even=size))
    if gpu and max(on_cpu) > n:
        facts["conditions"].append(say("Up to {n} texts: {larger} were timed on the CPU only.", n=n, larger=max(on_cpu)))
    return facts


def _fit(result: TrainingResult, rules: Rules) -> Facts:
    accepted = rules.fit.accepted_verdicts
    planned = [(at, each) for at, each in enumerate(result.remedies) if each.plan]
    if not result.remedies or not result.remedies[0].plan:  # the first is the model as it is
        return {"planned": False, "fitting": [], "at": None, "fitting_at": None, "gpu": result.gpu or "T4"}
    first = result.remedies[0].plan
    fitting = [(at, each) for at, each in planned if each.plan.verdict in accepted]
    fits = first.verdict in accepted
    fitting_at, with_it = fitting[0] if fitting and not fits else (None, result.remedies[0])
    return {
        **{"planned": True, "fits": fits, "fitting": fitting and not fits, "does_not_fit": first.verdict == "out of memory"},
        **{"at": 0, "name": result.remedies[0].name, "batch": first.configuration["batch_size"]},
        **{"fitting_at": fitting_at, "fitting_name": with_it.name, "fitting_batch": with_it.plan.configuration["batch_size"]},
        **{"gpu": first.gpu, "device": first.gpu, "peak": first.peak},
        "names": ", ".join(remedy.name for _at, remedy in fitting[:3]),
        "open": len(planned) < len(result.remedies) or any(each.plan.verdict == "undecided" for _at, each in planned),
        "limits": [_limit(each) for _at, each in planned if each.largest_batch][:3],
    }


def _limit(remedy: Remedy) -> Sentence:
    planned = remedy.plan.configuration["batch_size"]
    if remedy.plan.verdict == "fits":
        return say("{name}: batch {n} fits.", name=remedy.name, n=max(planned, remedy.largest_batch))
    sizes = {"n": remedy.largest_batch, "planned": planned}
    return say("{name}: batch {n} fits, {planned} does not.", name=remedy.name, **sizes)


def _predict(result: TrainingResult, rules: Rules) -> Facts:
    rule = rules.predict
    facts = {
        **{"scored": result.metrics, "metric": 0 if result.metrics else None, "device": result.step_time.device},
        **{"source": result.source.name, "n_values": result.source.n_rows, "preset": result.preset, "n_seeds": result.n_seeds},
        **{"stand_in": result.preset in rule.stand_in_presets, "one_class": result.answers_one_class},
        **{"least_seeds": rule.least_seeds, "too_few_seeds": result.n_seeds < rule.least_seeds},
    }
    if not result.metrics:
        return facts
    accuracy = result.metrics[0]
    best, interval = accuracy.best_possible, None not in (accuracy.gain_low, accuracy.gain_high)
    facts |= {
        **{"score": accuracy.name, "n_test": accuracy.n_samples, "interval": interval},
        "generated": best is not None if result.is_generated is None else result.is_generated,
        "nothing_to_predict": best is not None and best <= accuracy.base_rate,
        **{"gain_points": accuracy.model - accuracy.base_rate, "least": 100 * rule.least_gain},
        "worse": [
            say("Its {score} is worse than without a model, beyond chance.", score=each.name)
            for each in result.metrics[1:]
            if each.gain_high is not None and each.gain_high < 0
        ],
    }
    if interval:
        facts |= {
            **{"low_points": accuracy.gain_low, "high_points": accuracy.gain_high},
            **{"surely_more": accuracy.gain_low >= rule.least_gain, "surely_less": accuracy.gain_high < rule.least_gain},
        }
    return facts


FACTS: dict[str, Callable[[ChapterResult, Rules], Facts]] = {
    "Is this machine ready?": _machine,
    "Is there a function worth porting?": _port,
    "Does the GPU port go into production?": _integrate,
    "Does the training fit the GPU?": _fit,
    "Is the model worth training?": _predict,
}
