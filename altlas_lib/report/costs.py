"""Money and energy: what a run costs on this CPU and on a GPU, what a month saves, and which GPU is the cheapest that is enough.

All of it follows from times that the chapters measured or projected and from prices in the rules; every number is a band.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..devices import GpuSpec, find_gpu
from ..results import ChapterResult, HotspotsResult, Sentence, SimilarityResult, TrainingResult
from .bands import Band
from .rules import Money, Rules

DAYS_PER_MONTH = 365 / 12
HOURS_PER_MONTH = 24 * DAYS_PER_MONTH


@dataclass(frozen=True)
class Use:
    """Something that runs again and again, on this CPU and on a GPU; times in seconds.

    Attributes:
        basis: of the GPU's time.
        source: result file and place that it follows from.
    """

    chapter: str
    what: Sentence
    on_cpu: Band
    on_gpu: Band
    gpu: GpuSpec
    basis: str
    source: str


@dataclass(frozen=True)
class Saving:
    """What the GPU saves in a month; a negative number is what it costs more.

    Attributes:
        money: in the rules' currency; None: no price for this GPU.
        break_even_months: until it has paid for the port; high end None: perhaps never, both None: never.
        own_prices: the user gave both prices, they are no examples.
    """

    use: Use
    hours: Band
    kwh: Band
    money: Band | None
    break_even_months: tuple[float | None, float | None]
    own_prices: bool

    @property
    def chapter(self) -> str:
        return self.use.chapter


@dataclass(frozen=True)
class GpuRow:
    """A GPU beside others.

    Attributes:
        verdict: of the plan that fits it best, and its name; None: not planned for this GPU.
        gain: of the search, times as fast as the CPU; None: not timed on the CPU.
        cost: of 1,000 searches; None: no price.
        always_on: price of a month.
    """

    gpu: GpuSpec
    verdict: str | None
    plan: str
    gain: Band | None
    cost: Band | None
    always_on: Band | None
    is_cheapest_search: bool = False
    is_cheapest_fit: bool = False


def _search(result: SimilarityResult, gpu: GpuSpec) -> Use | None:
    """The search at the largest size that was timed on the CPU; measured on this GPU where it was, else projected."""
    from ..similarity import expected_times

    n = max((each.n_texts for each in result.timings if not each.on_gpu), default=None)
    here = [each for each in result.timings if each.n_texts == n and each.with_transfers]
    if not here:
        return None
    on_cpu = min((Band.of(each.time) for each in here if not each.on_gpu), key=lambda time: time.high)
    measured = [Band.of(each.time) for each in here if each.on_gpu and each.time.device in (gpu.name, *gpu.aliases)]
    if measured:
        on_gpu, basis = min(measured, key=lambda time: time.high), "measured"
    else:
        on_gpu = Band.of(next(each.time for each in expected_times([n], result.n_dimensions, result.k, gpu) if each.on_gpu))
        basis = "projected"
    what = Sentence(text="nearest neighbours of {n} texts", values={"n": n})
    return Use("similarity", what, on_cpu, on_gpu, gpu, basis, "results/similarity.json#/timings")


def _workloads(result: HotspotsResult) -> Iterator[Use]:
    """Each profiled workload with its function that gains most on the target GPU."""
    for workload in result.workloads:
        own = [each for each in result.candidates if each.workload == workload.workload and each.workload_gain]
        best = max(own, key=lambda each: Band.of(each.workload_gain).low, default=None)
        if best is None or workload.total is None:
            continue
        try:
            gpu = find_gpu(best.workload_gain.device)
        except ValueError:  # not in the catalogue: its power is not known
            continue
        on_cpu = Band.of(workload.total)
        on_gpu = on_cpu.over(Band.of(best.workload_gain), "s")
        if on_gpu:
            what = Sentence(
                text="{workload} with {function} on a GPU", values={"workload": workload.workload, "function": best.function}
            )
            source = f"results/hotspots.json#/candidates/{result.candidates.index(best)}/workload_gain"
            yield Use("hotspots", what, on_cpu, on_gpu, gpu, best.workload_gain.basis, source)


def savings(results: Mapping[str, ChapterResult], money: Money) -> list[Saving]:
    """Of each use what a month on its GPU saves over the same runs on this CPU."""
    uses = list(_workloads(results["hotspots"])) if "hotspots" in results else []
    if similarity := results.get("similarity"):
        target = results["environment"].target_gpu if "environment" in results else find_gpu("T4")
        measured = {each.time.device for each in similarity.timings if each.on_gpu}
        timed_on = next((gpu for gpu in money.specs if measured & {gpu.name, *gpu.aliases}), target)
        uses += filter(None, [_search(similarity, timed_on)])
    return [_saving(use, money) for use in uses]


def _saving(use: Use, money: Money) -> Saving:
    runs = money.runs_per_day * DAYS_PER_MONTH
    on_cpu, on_gpu = (time.times(runs / 3600, "h") for time in (use.on_cpu, use.on_gpu))
    watts = (money.cpu_power_w, money.cpu_power_w + use.gpu.power_w)  # a GPU's machine has a CPU, too
    kwh = on_cpu.times(watts[0] / 1000, "kWh").minus(on_gpu.times(watts[1] / 1000, "kWh"))
    prices = [money.price_per_hour.get(name) for name in ("CPU", use.gpu.name)]
    saved, months = None, (None, None)
    if None not in prices:
        saved = on_cpu.times(prices[0], money.currency).minus(on_gpu.times(prices[1], money.currency))
        saved = saved.plus(kwh.times(money.price_per_kwh, money.currency))
        effort = money.person_days * money.price_per_person_day
        months = tuple(effort / end if end > 0 else None for end in (saved.high, saved.low))
    return Saving(use, on_cpu.minus(on_gpu), kwh, saved, months, {"CPU", use.gpu.name} <= money.given)


def side_by_side(results: Mapping[str, ChapterResult], rules: Rules) -> list[GpuRow]:
    """Each GPU of the user's list, or of the catalogue; the cheapest that is enough for the search and for the training is marked."""
    rows, money = [], rules.money
    similarity, training = results.get("similarity"), results.get("training")
    for gpu in money.specs:
        use = _search(similarity, gpu) if similarity else None
        price = money.price_per_hour.get(gpu.name)
        verdict, plan = _best_plan(training, gpu, rules) if training else (None, "")
        cost = use.on_gpu.times(1000 * price / 3600, money.currency) if use and price is not None else None
        always_on = None if price is None else Band(price, price, money.currency).times(HOURS_PER_MONTH, money.currency)
        rows.append(GpuRow(gpu, verdict, plan, use.on_cpu.over(use.on_gpu) if use else None, cost, always_on))
    enough = [each for each in rows if each.cost and each.gain and each.gain.low >= rules.integrate.least_gain]
    holding = [each for each in rows if each.always_on and each.verdict in rules.fit.accepted_verdicts]
    search = min(enough, key=lambda each: each.cost.high, default=None)
    fit = min(holding, key=lambda each: each.always_on.low, default=None)
    return [GpuRow(**vars(each) | {"is_cheapest_search": each is search, "is_cheapest_fit": each is fit}) for each in rows]


def _best_plan(result: TrainingResult, gpu: GpuSpec, rules: Rules) -> tuple[str | None, str]:
    """Verdict and name of the first compiled plan for this GPU that is accepted, else of the model as it is."""
    plans = [(each.plan, each.name) for each in result.remedies if each.plan]
    plans += [(each, str(each.configuration.get("model", ""))) for each in result.plans]
    of_gpu = [(plan.verdict, name) for plan, name in plans if plan.gpu == gpu.name and plan.peak.basis == "compiled"]
    return next((each for each in of_gpu if each[0] in rules.fit.accepted_verdicts), of_gpu[0] if of_gpu else (None, ""))
