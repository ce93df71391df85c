"""Facts of a chapter's result: what the conditions and sentences of `decisions.yaml` are about.

Most are expressions that stand beside their table. What has to be searched for in a result is found here.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChainableUndefined, Environment

from ..devices import load_catalogue
from ..inference.compare import choose_variant
from ..results import Candidate, ChapterResult, HotspotsResult, InferenceResult, Remedy, Route, SimilarityResult, TrainingResult
from .bands import Band, fastest_first
from .language import Sentence
from .rules import Rules

Facts = dict[str, Any]

# What profiling advises, cheapest first: a better way on the same CPU, then a GPU by a library, a port or a kernel of its own.
_ON_CPU = ("change the call", "vectorise first")
_ON_GPU = ("try the drop-in", "port it", "keep the data on the GPU", "batch first", "write a kernel")


# Jinja expressions; what they ask of something that is not there is None.
_EXPRESSIONS = Environment(undefined=ChainableUndefined)
_EXPRESSIONS.globals |= {"say": Sentence, "Band": Band}
_compile = functools.cache(_EXPRESSIONS.compile_expression)


def find_facts(key: str, expressions: Mapping[str, str], result: ChapterResult, rules: Rules) -> Facts:
    """All facts of a question: those that are searched for, then its expressions, of which each may use those before it."""
    facts = {"result": result, "rules": rules} | (_SEARCHES[key](result, rules) if key in _SEARCHES else {})
    for name, expression in expressions.items():
        facts[name] = _compile(expression)(**facts)
    return facts


def _port(result: HotspotsResult, rules: Rules) -> Facts:
    """The function that decides: to port for sure, else one with a cheaper way on the CPU, else the most promising."""
    least, candidates = rules.port.least_workload_gain, result.candidates
    unseen = [each for each in candidates if each.advice == "unknown"]
    cheaper = [each for each in candidates if each.advice in _ON_CPU or _cheaper_route(each, least)]
    # Of a workload that gets faster on the CPU the profile is another one then: what to port there is not known before.
    changing = {each.workload for each in cheaper}
    for_a_gpu = [each for each in candidates if each.advice in _ON_GPU and each.workload_gain]
    ported = [each for each in for_a_gpu if each.workload not in changing]
    best = max(ported, key=lambda each: Band.of(each.workload_gain).low, default=None)
    sure = best is not None and Band.of(best.workload_gain).low >= least
    if not sure and (cheaper or not best):
        best = max(cheaper or unseen or candidates, key=lambda each: each.share, default=None)
    possible = best in ported and Band.of(best.workload_gain).high >= least
    found = {"best": best, "sure": sure, "possible": possible, "unseen": unseen, "for_a_gpu": for_a_gpu}
    return found | {"cheaper": cheaper and not sure, "route": best and _cheaper_route(best, least)}


def _cheaper_route(candidate: Candidate, least: float) -> Route | None:
    """The first measured way on the CPU with the same answer that is enough."""
    measured = [each for each in candidate.routes if each.kind == "algorithm" and each.standing == "measured" and each.gain]
    return next((each for each in measured if each.same_answer and Band.of(each.gain).low >= least), None)


def _integrate(result: SimilarityResult, rules: Rules) -> Facts:
    """The fastest method of CPU and GPU at the largest size that both were timed at, or what is expected of a GPU there."""
    on_cpu, on_gpu = (fastest_first(result, on_gpu=kind) for kind in (False, True))
    n = max(on_cpu.keys() & on_gpu.keys() or on_cpu, default=0)
    validated = {each.method for each in result.validations if each.passed and each.n_texts == n}
    cpu = next(iter(on_cpu.get(n, [])), None)
    # Of the methods that were timed, one whose answer was checked at this size counts more than a faster one.
    gpu = min(on_gpu.get(n, []), key=lambda each: each.method not in validated, default=None)
    expected = [each for each in result.expectations if each.on_gpu and each.n_texts == n and not on_gpu]
    other = gpu or next(iter(expected), None)
    found = {"n": n, "largest": max(on_cpu, default=0), "timed_on_gpu": on_gpu, "on_cpu": cpu, "on_gpu": gpu, "other": other}
    gain = Band.of(cpu.time).over(Band.of(other.time)) if cpu and other else None
    return found | {"gain": gain, "expected": gain and not gpu and other, "validated": gpu and gpu.method in validated}


def _fit(result: TrainingResult, rules: Rules) -> Facts:
    """What ran, and which remedies are compiled, or only projected, to fit."""
    accepted, planned = rules.fit.accepted_verdicts, [each for each in result.remedies if each.plan]

    def standing(verdicts: list[str], basis: str) -> list[Remedy]:
        return [each for each in planned if each.plan.verdict in verdicts and each.plan.peak.basis == basis]

    fitting = standing(accepted, "compiled")
    first = result.remedies[0] if result.remedies and result.remedies[0].plan else None  # the model as it is
    gpu = first.plan.gpu if first else result.gpu or "T4"
    sizes = [result.micro_batch_size, *(epoch.micro_batch_size for epoch in result.history)]
    found = {"planned": planned, "first": first, "gpu": gpu, "ran": _ran_there(result, gpu, first), "fits": first in fitting}
    found |= {"size": min(sizes), "asked": max(*sizes, result.micro_batch_size_asked or 0)}
    found |= {"compiled": fitting, "tight": standing(["tight"], "compiled"), "projected": standing(accepted, "projected")}
    found["with_another"] = fitting[0] if fitting and first not in fitting else None
    return found | {"limits": [_limit(each) for each in planned if each.largest_batch][:3]}


def _ran_there(result: TrainingResult, gpu: str, first: Remedy | None) -> bool:
    """Whether the training that was measured is the planned one, on the planned GPU."""
    if not result.peak_memory or result.peak_memory.basis != "measured":
        return False
    device = result.peak_memory.device
    same_gpu = device == gpu or any(each.is_called(device) and each.is_called(gpu) for each in load_catalogue())
    return same_gpu and (first is None or first.plan.configuration.get("model") == result.preset)


def _limit(remedy: Remedy) -> Sentence:
    size, largest = remedy.plan.configuration.get("batch_size"), remedy.largest_batch
    verdict = remedy.plan.verdict if isinstance(size, int) else "fits"
    sentence = {
        "fits": "{name}: batch {n} fits.",
        "out of memory": "{name}: batch {n} fits, {planned} does not.",
        "tight": "{name}: batch {n} fits, {planned} only without reserve.",
    }.get(verdict, "{name}: batch {n} fits, {planned} is open.")
    n = max(largest, size or 0) if verdict == "fits" else largest
    return Sentence(sentence, name=Sentence(remedy.name), n=n, planned=size)


def _produce(result: InferenceResult, rules: Rules) -> Facts:
    """The form that is fast enough and keeps the score, beside the ONNX file in float32 and what a Keras user calls."""
    smallest = min((each.batch for each in result.latencies), default=None)
    at = {each.runner: i for i, each in enumerate(result.latencies) if each.batch == smallest}
    best = choose_variant(result.variants, result.latencies, **rules.produce.model_dump())

    def gain(before: str | None, after: str | None) -> Band | None:
        known = before in at and after in at
        return Band.of(result.latencies[at[before]].time).over(Band.of(result.latencies[at[after]].time)) if known else None

    original = result.variants[0].name if result.variants else None
    over_keras = gain("Keras predict", original)
    found = {"best": best, "batch": smallest, "original_at": at.get(original), "best_at": best and at.get(best.name)}
    found |= {"keras_at": at.get("Keras predict"), "gain": best and gain(original, best.name), "over_keras": over_keras}
    return found | {"onnx_pays": over_keras and over_keras.low >= rules.produce.least_gain}


_SEARCHES: dict[str, Callable[[Any, Rules], Facts]] = {"port": _port, "integrate": _integrate, "fit": _fit, "produce": _produce}
