"""Money and energy: what runs cost on this CPU and on a GPU, what a month saves, and the cheapest GPU that is enough.

All of it follows from times that the chapters measured or projected and from prices in the rules; every number is a band.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..devices import GpuSpec, find_gpu, load_catalogue
from ..results import ChapterResult, HotspotsResult, SimilarityResult, TrainingResult
from .bands import Band, fastest_first
from .language import Sentence
from .rules import Money, Rules

DAYS_PER_MONTH = 365 / 12


@dataclass(frozen=True)
class Use:
    """Something that runs again and again, on this CPU and on a GPU, and what a month on the GPU saves; negative: costs more.

    Attributes:
        on_cpu, on_gpu: seconds of a run.
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
    rules: Money

    def _month(self, cpu_rate: float, gpu_rate: float, unit: str) -> Band:
        """What a month's runs take on the CPU less what they take on the GPU, at a rate for an hour of each."""
        hours = self.rules.runs_per_day * DAYS_PER_MONTH / 3600
        return self.on_cpu.times(hours * cpu_rate, unit).minus(self.on_gpu.times(hours * gpu_rate, unit))

    @property
    def hours(self) -> Band:
        return self._month(1, 1, "h")

    @property
    def kwh(self) -> Band:
        """The CPU under load against the same CPU, which a GPU's machine has too, and the GPU at its board's limit."""
        watts = self.rules.cpu_power_w
        return self._month(watts / 1000, (watts + self.gpu.power_w) / 1000, "kWh")

    @property
    def money(self) -> Band | None:
        """In the rules' currency; None: no price for this GPU."""
        prices = [self.rules.price_per_hour.get(name) for name in ("CPU", self.gpu.name)]
        if None in prices:
            return None
        return self._month(*prices, self.rules.currency).plus(self.kwh.times(self.rules.price_per_kwh, self.rules.currency))

    @property
    def break_even_months(self) -> tuple[float | None, float | None]:
        """Until it has paid for the port, soonest and latest; None: perhaps never."""
        effort, saved = self.rules.person_days * self.rules.price_per_person_day, self.money
        return tuple(effort / end if end > 0 else None for end in (saved.high, saved.low)) if saved else (None, None)

    @property
    def own_prices(self) -> bool:
        """The user gave both prices, they are no examples."""
        return {"CPU", self.gpu.name} <= self.rules.given


@dataclass
class GpuRow:
    """A GPU beside others.

    Attributes:
        verdict: of the plan that fits it best, and its name; None: not compiled for this GPU.
        gain: of the search, times as fast as the CPU; None: not timed on the CPU.
        cost: of 1,000 searches; None: no price.
        always_on: price of a month.
    """

    gpu: GpuSpec
    verdict: str | None
    plan: str
    gain: Band | None = None
    cost: Band | None = None
    always_on: Band | None = None
    is_cheapest_search: bool = False
    is_cheapest_fit: bool = False


def _search(result: SimilarityResult, gpu: GpuSpec, rules: Money) -> Use | None:
    """The search at the largest size that was timed on the CPU; measured on this GPU where it was, else projected."""
    from ..similarity import expected_times

    on_cpu, on_gpu = (fastest_first(result, on_gpu=kind) for kind in (False, True))
    if not on_cpu:
        return None
    n = max(on_cpu)
    times = [each.time for each in on_gpu.get(n, []) if each.time.device in (gpu.name, *gpu.aliases)]
    times += [each.time for each in expected_times([n], result.n_dimensions, result.k, gpu) if each.on_gpu]
    bands, what = [Band.of(on_cpu[n][0].time), Band.of(times[0])], Sentence("nearest neighbours of {n} texts", n=n)
    return Use("similarity", what, *bands, gpu, times[0].basis, "results/similarity.json#/timings", rules)


def _workloads(result: HotspotsResult, rules: Money) -> Iterator[Use]:
    """Each profiled workload with its function that gains most on the target GPU."""
    for workload in result.workloads:
        own = [each for each in result.candidates if each.workload == workload.workload and each.workload_gain]
        if not own or workload.total is None:
            continue
        best = max(own, key=lambda each: Band.of(each.workload_gain).low)
        what = Sentence("{workload} with {function} on a GPU", workload=workload.workload, function=best.function)
        source = f"results/hotspots.json#/candidates/{result.candidates.index(best)}/workload_gain"
        on_cpu, gain = Band.of(workload.total), best.workload_gain
        on_gpu = on_cpu.over(Band.of(gain), "s")
        for gpu in load_catalogue():  # of one that is not there the power is not known
            if on_gpu and gpu.name == gain.device:
                yield Use("hotspots", what, on_cpu, on_gpu, gpu, gain.basis, source, rules)


def savings(results: Mapping[str, ChapterResult], rules: Money) -> list[Use]:
    """Each workload with its best function, and the search, on the GPU that it was measured on or that is planned for."""
    uses = list(_workloads(results["hotspots"], rules)) if "hotspots" in results else []
    if similarity := results.get("similarity"):
        target = results["environment"].target_gpu if "environment" in results else find_gpu("T4")
        measured = {each.time.device for each in similarity.timings if each.on_gpu}
        timed_on = next((gpu for gpu in rules.gpus if measured & {gpu.name, *gpu.aliases}), target)
        uses += filter(None, [_search(similarity, timed_on, rules)])
    return uses


def side_by_side(results: Mapping[str, ChapterResult], rules: Rules) -> list[GpuRow]:
    """Each GPU of the user's list, or of the catalogue; the cheapest enough for the search, and for the training, is marked."""
    rows, money = [], rules.money
    similarity, training = results.get("similarity"), results.get("training")
    for gpu in money.gpus:
        row = GpuRow(gpu, *(_best_plan(training, gpu, rules) if training else (None, "")))
        price, use = money.price_per_hour.get(gpu.name), _search(similarity, gpu, money) if similarity else None
        row.gain = use and use.on_cpu.over(use.on_gpu)
        if price is not None:
            row.always_on = Band(price, price, money.currency).times(24 * DAYS_PER_MONTH, money.currency)
            row.cost = use and use.on_gpu.times(1000 * price / 3600, money.currency)
        rows.append(row)
    enough = [each for each in rows if each.cost and each.gain and each.gain.low >= rules.integrate.least_gain]
    holding = [each for each in rows if each.always_on and each.verdict in rules.fit.accepted_verdicts]
    cheapest = min(enough, key=lambda each: each.cost.high, default=None)
    smallest = min(holding, key=lambda each: each.always_on.low, default=None)
    return [replace(each, is_cheapest_search=each is cheapest, is_cheapest_fit=each is smallest) for each in rows]


def _best_plan(result: TrainingResult, gpu: GpuSpec, rules: Rules) -> tuple[str | None, str]:
    """Verdict and name of the first way that the compiler for this GPU says fits, else of the model as it is."""
    for fit in result.gpu_fits:
        if fit.gpu == gpu.name:
            return ("fits", fit.fitting[0]) if fit.fitting else (fit.as_it_is, "")
    compiled = [(each.plan, each.name) for each in result.remedies if each.plan and each.plan.peak.basis == "compiled"]
    of_gpu = [(plan.verdict, name) for plan, name in compiled if plan.gpu == gpu.name]
    return next((each for each in of_gpu if each[0] in rules.fit.accepted_verdicts), of_gpu[0] if of_gpu else (None, ""))
