"""What the chapters' results say, as the named facts that the conditions and sentences of `decisions.yaml` are about."""

from collections.abc import Callable
from typing import Any

from pydantic import JsonValue

from ..devices import find_gpu
from ..results import (
    Advice,
    Candidate,
    ChapterResult,
    EnvironmentResult,
    HotspotsResult,
    MemoryPlan,
    Remedy,
    Sentence,
    SimilarityResult,
    TrainingResult,
)
from .bands import Band
from .language import Word
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


# What profiling advises, cheapest first: a better way on the same CPU, then a GPU by a library, a port or a kernel of its own.
_ON_CPU: tuple[Advice, ...] = ("change the call", "vectorise first")
_ON_GPU: tuple[Advice, ...] = ("try the drop-in", "port it", "keep the data on the GPU", "batch first", "write a kernel")


def _port(result: HotspotsResult, rules: Rules) -> Facts:
    least, candidates = rules.port.least_workload_gain, result.candidates
    unseen = [each for each in candidates if each.advice == "unknown"]
    cheaper = [each for each in candidates if each.advice in _ON_CPU or _cheaper_route(each, least) is not None]
    # Of a workload that gets faster on the CPU the profile is another one then: what to port there is not known before.
    changing = {each.workload for each in cheaper}
    for_a_gpu = [each for each in candidates if each.advice in _ON_GPU and each.workload_gain]
    ported = [each for each in for_a_gpu if each.workload not in changing]
    best = max(ported, key=lambda each: Band.of(each.workload_gain).low, default=None)
    sure = best is not None and Band.of(best.workload_gain).low >= least
    if not sure and (cheaper or not best):
        best = max(cheaper or unseen or candidates, key=lambda each: each.share, default=None)
    facts = {"seen": candidates, "unseen": ", ".join(each.function for each in unseen), "sure": sure, "at": None}
    if best is None:
        return facts
    route_at, projection = _cheaper_route(best, least), best.projection
    route = None if route_at is None else best.routes[route_at]
    return facts | {
        "at": candidates.index(best),
        "device": next(iter(result.provenance.devices), ""),
        "least": least,
        "named": say("{function} in {workload}", function=best.function, workload=best.workload),
        "gain": best.workload_gain,
        "advice": Word(best.advice),
        "as_it_is": best.advice == "port it",
        "cheaper": cheaper and not sure,
        "cheaper_way": route.name if route else Word(best.advice),
        "cheaper_gain": route and route.gain,
        "route_at": route_at,
        "possible": best in ported and Band.of(best.workload_gain).high >= least,
        "for_a_gpu": for_a_gpu,
        "resident": best.advice == "keep the data on the GPU" and projection and projection.on_gpu_resident,
        "moved": projection and projection.on_gpu,
        "too_small": best.advice == "batch first",
        "loops": best.advice == "vectorise first",
        "ceiling": (best.largest_gain or least) < least and Band(best.largest_gain, best.largest_gain, "x"),
        "cause": projection and Word(projection.bound_by or "unknown"),
    }


def _cheaper_route(candidate: Candidate, least: float) -> int | None:
    """Place of a measured way on the CPU with the same answer that is enough; None where there is none."""
    for at, route in enumerate(candidate.routes):
        measured = route.kind == "algorithm" and route.standing == "measured" and route.same_answer and route.gain
        if measured and Band.of(route.gain).low >= least:
            return at
    return None


def _integrate(result: SimilarityResult, rules: Rules) -> Facts:
    rule, of_kind = rules.integrate, {False: {}, True: {}}
    for at, timing in enumerate(result.timings):
        if timing.with_transfers:
            of_kind[timing.on_gpu].setdefault(timing.n_texts, []).append((Band.of(timing.time).high, at, timing))
    on_cpu, on_gpu = of_kind.values()
    wrong = [each.method for each in result.validations if not each.passed]
    n = max(on_cpu.keys() & on_gpu.keys() or on_cpu, default=0)
    validated = {each.method for each in result.validations if each.passed and each.n_texts == n}
    # Of the methods that were timed, one whose answer was checked at this size counts more than a faster one.
    nothing = (0, None, None)
    _, cpu_at, cpu = min(on_cpu.get(n, []), default=nothing, key=lambda each: each[:2])
    _, gpu_at, gpu = min(on_gpu.get(n, []), default=nothing, key=lambda each: (each[2].method not in validated, *each[:2]))
    projected = [(at, each) for at, each in enumerate(result.expectations) if each.on_gpu and each.n_texts == n]
    expected_at, expected = projected[0] if projected and not on_gpu else (None, None)
    other = gpu or expected
    gain = Band.of(cpu.time).over(Band.of(other.time)) if cpu and other else None
    even = result.break_even_n_texts or 0
    return {
        **{"source": result.source.name, "wrong": wrong, "methods": ", ".join(wrong), "n": n, "gain": gain},
        **{"on_cpu": cpu, "cpu_at": cpu_at, "cpu_method": cpu and cpu.method},
        **{"timed_on_gpu": on_gpu, "on_gpu": gpu, "gpu_at": gpu_at, "gpu_method": gpu and gpu.method},
        **{"expected": gain and expected, "expected_at": gain and expected_at, "gpu": other and other.time.device},
        "validated": gpu and gpu.method in validated,
        **{
            "least_runs": rule.least_runs,
            "too_few_runs": gpu and min(each.time.n_runs or 0 for each in (cpu, gpu)) < rule.least_runs,
        },
        **{"sure": gain and gain.low >= rule.least_gain, "too_little": gain and gain.high < rule.least_gain},
        "larger": gpu and max(on_cpu) > n and max(on_cpu),
        "from_size": gpu and even > min(each.n_texts for each in result.timings) and even,
    }


def _fit(result: TrainingResult, rules: Rules) -> Facts:
    accepted = rules.fit.accepted_verdicts
    planned = [(at, each) for at, each in enumerate(result.remedies) if each.plan]
    standing = {
        kind: [(at, each) for at, each in planned if each.plan.verdict in verdicts and (each.plan.peak.basis == basis)]
        for kind, verdicts, basis in (
            ("fits", accepted, "compiled"),
            ("tight", ["tight"], "compiled"),
            ("projected", accepted, "projected"),
        )
    }
    names = {kind: ", ".join(remedy.name for _at, remedy in of_kind[:3]) for kind, of_kind in standing.items()}
    at, first = next(((at, each.plan) for at, each in planned if at == 0), (None, None))  # the model as it is
    fits = any(at == 0 for at, _ in standing["fits"])
    fitting_at, with_it = standing["fits"][0] if standing["fits"] and not fits else (None, None)
    gpu = first.gpu if first else result.gpu or "T4"
    sizes = [result.micro_batch_size, *(epoch.micro_batch_size for epoch in result.history)]
    wanted = result.provenance.parameters.get("micro_batch_size")
    asked = max(*sizes, wanted if isinstance(wanted, int) else 0)
    return {
        "ran": _ran_there(result, gpu, first),
        "retreated": min(sizes) < asked,
        **{"measured": result.peak_memory, "size": min(sizes), "asked": asked},
        **{"planned": planned, "fits": fits, "fitting": with_it, "names": names["fits"]},
        **{"tight": standing["tight"], "tight_names": names["tight"]},
        **{"projected_to_fit": standing["projected"], "projected_names": names["projected"]},
        **{"at": at, "name": result.remedies[0].name if first else "", "batch": first and _batch(first)},
        **{
            "fitting_at": fitting_at,
            "fitting_name": with_it and with_it.name,
            "fitting_batch": with_it and _batch(with_it.plan),
        },
        **{"gpu": gpu, "device": gpu, "peak": first and first.peak, "model": (first and _model(first)) or result.preset},
        **{"does_not_fit": first and first.verdict == "out of memory", "with_another": with_it},
        "open": len(planned) < len(result.remedies) or any(each.plan.verdict == "undecided" for _at, each in planned),
        "limits": [_limit(each) for _at, each in planned if each.largest_batch][:3],
    }


def _ran_there(result: TrainingResult, gpu: str, plan: MemoryPlan | None) -> bool:
    """Whether the training that was measured is the planned one, on the planned GPU."""
    if not result.peak_memory or result.peak_memory.basis != "measured":
        return False
    try:
        same_gpu = find_gpu(result.peak_memory.device) == find_gpu(gpu)
    except ValueError:  # not in the catalogue
        same_gpu = result.peak_memory.device == gpu
    return same_gpu and (plan is None or _model(plan) == result.preset)


def _model(plan: MemoryPlan) -> str:
    return str(plan.configuration.get("model", ""))


def _batch(plan: MemoryPlan) -> JsonValue:
    return plan.configuration.get("batch_size")


def _limit(remedy: Remedy) -> Sentence:
    size, largest = _batch(remedy.plan), remedy.largest_batch
    if remedy.plan.verdict == "fits" or not isinstance(size, int):
        return say("{name}: batch {n} fits.", name=remedy.name, n=max(largest, size if isinstance(size, int) else 0))
    sentence = {
        "out of memory": "{name}: batch {n} fits, {planned} does not.",
        "tight": "{name}: batch {n} fits, {planned} only without reserve.",
    }.get(remedy.plan.verdict, "{name}: batch {n} fits, {planned} is open.")
    return say(sentence, name=remedy.name, n=largest, planned=size)


def _predict(result: TrainingResult, rules: Rules) -> Facts:
    rule = rules.predict
    facts = {
        **{"scored": result.metrics, "metric": 0 if result.metrics else None, "device": result.step_time.device},
        **{"source": result.source.name, "n_values": result.source.n_rows, "n_skipped": result.source.n_skipped},
        **{"preset": result.preset, "n_seeds": result.n_seeds},
        **{"stand_in": result.preset in rule.stand_in_presets, "one_class": result.answers_one_class},
        **{"least_seeds": rule.least_seeds, "too_few_seeds": result.n_seeds < rule.least_seeds},
    }
    if not result.metrics:
        return facts
    accuracy = result.metrics[0]
    best, interval = accuracy.best_possible, None not in (accuracy.gain_low, accuracy.gain_high)
    facts |= {
        **{"score": Word(accuracy.name), "n_test": accuracy.n_samples, "interval": interval},
        "generated": best is not None if result.is_generated is None else result.is_generated,
        "nothing_to_predict": best is not None and best <= accuracy.base_rate,
        **{"gain_points": accuracy.model - accuracy.base_rate, "least": 100 * rule.least_gain},
        "worse": ", ".join(each.name for each in result.metrics if not each.higher_is_better and (each.gain_high or 0) < 0),
    }
    if interval:
        facts |= {
            **{"low_points": accuracy.gain_low, "high_points": accuracy.gain_high},
            **{"surely_more": accuracy.gain_low >= rule.least_gain, "surely_less": accuracy.gain_high < rule.least_gain},
        }
    return facts


FACTS: dict[str, Callable[[ChapterResult, Rules], Facts]] = {
    "machine": _machine,
    "port": _port,
    "integrate": _integrate,
    "fit": _fit,
    "predict": _predict,
}
