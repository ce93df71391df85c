"""Who takes part, in which setting, and round after round in turn: from cases to measurements."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from altlas_lib import similarity
from altlas_lib.devices import describe_cpu
from altlas_lib.results import Provenance
from altlas_lib.similarity.poc.validation import compare

from .inputs import INPUTS
from .peers import Contestant
from .records import Case, Exactness, Measurement, Record, Trial
from .worker import Sample, WarmUp, Worker, WorkerError, inherited_settings

_TRIAL_ROWS = 3000  # enough for products to take most of the time
_TRIAL_RUNS = 3
_LEAST_GAIN = 0.97  # of the default's time: a smaller gain is noise
_CHECKED_ROWS = 500
_PAUSE_S = 0.3  # until the threads of the last contestant, which wait by spinning, have gone to sleep
_LOAD_S = 0.1  # over which the load by other programs is measured, when all contestants wait
_SEED = 0


@dataclass
class _Entry:
    """A contestant in one case: its process, what that has sent, and why it is out where it is."""

    contestant: Contestant
    failure: str | None = None
    worker: Worker | None = None
    warm_up: WarmUp | None = None
    samples: list[Sample] = field(default_factory=list)
    others_busy: list[float] = field(default_factory=list)


@dataclass
class Contest:
    """A run of the benchmark.

    Attributes:
        folder: for the rows, and for compiled code, so that the first call in it compiles.
        limit_s: who would take longer for one call, by its time at another size, is left out.
        n_rounds: of every case; None: by its size.
    """

    contestants: Sequence[Contestant]
    folder: Path
    n_threads: int
    limit_s: float
    n_rounds: int | None = None
    _settings: dict[str, str] = field(default_factory=dict, init=False)  # contestant -> kernels of OpenBLAS
    _unfit: dict[str, str] = field(default_factory=dict, init=False)  # contestant -> why it cannot run here
    _paces: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)  # contestant -> rows, wall seconds

    def run(self, cases: Sequence[Case], record: Record) -> Iterator[Record]:
        """The record after the trials and after each case, for the caller to save: what is measured is not lost."""
        trial_case = max(cases, key=lambda case: case.n).model_copy(update={"k": cases[0].k})
        trial_case = trial_case.model_copy(update={"n": min(trial_case.n, _TRIAL_ROWS)})
        path = self._save_rows(trial_case)
        trials = [trial for contestant in self.contestants if (trial := self._try_out(contestant, trial_case, path))]
        yield (record := record.model_copy(update={"trials": trials}))
        for number, case in enumerate(cases, 1):
            print(f"{number} of {len(cases)}: {case}", flush=True)
            measurements = [*record.measurements, *self._measure(case)]
            yield (record := record.model_copy(update={"measurements": measurements}))

    def _save_rows(self, case: Case) -> Path:
        path = self.folder / "rows.npy"
        np.save(path, INPUTS[case.input](np.random.default_rng(_SEED), case.n, case.d).astype(np.float32, copy=False))
        return path

    def _worker(self, contestant: Contestant, path: Path, k: int, rows: np.ndarray, setting: str) -> Worker:
        environment = {"NUMBA_CACHE_DIR": str(self.folder / "compiled" / contestant.name)}
        environment |= {} if setting == "default" else {"OPENBLAS_CORETYPE": setting}
        timeout_s = 60 + 5 * self.limit_s  # some import for half a minute
        return Worker(contestant.name, path, k, rows, n_threads=self.n_threads, environment=environment, timeout_s=timeout_s)

    # Which kernels of OpenBLAS ---------------------------------------------------------------------------------------

    def _try_out(self, contestant: Contestant, case: Case, path: Path) -> Trial | None:
        """Find the fastest setting; None, and the reason kept, if the contestant cannot run here."""
        if contestant.missing_modules:
            self._unfit[contestant.name] = f"not installed: {', '.join(contestant.missing_modules)}"
            return None
        print(f"trying {contestant.name}", flush=True)
        cpu_s, wall_s, first_calls_s = {}, {}, []
        for setting in ["default", *(core_types() if contestant.openblas else [])]:
            try:
                with self._worker(contestant, path, case.k, np.arange(0), setting) as worker:
                    first_calls_s.append(worker.warm_up().first_call_s)
                    samples = [worker.sample() for _ in range(_TRIAL_RUNS)]
            except WorkerError as error:
                if setting == "default":
                    self._unfit[contestant.name] = str(error)
                    return None
                continue  # kernels that this build lacks
            cpu_s[setting] = min(sample.cpu_s for sample in samples)
            wall_s[setting] = min(sample.wall_s for sample in samples)
        fastest = min(cpu_s, key=cpu_s.__getitem__)
        chosen = fastest if cpu_s[fastest] < _LEAST_GAIN * cpu_s["default"] else "default"
        self._settings[contestant.name] = chosen
        self._paces[contestant.name] = case.n, wall_s[chosen]
        return Trial(contestant=contestant.name, n=case.n, cpu_s=cpu_s, chosen=chosen, cold_first_call_s=first_calls_s[0])

    # One case --------------------------------------------------------------------------------------------------------

    def _measure(self, case: Case) -> list[Measurement]:
        path = self._save_rows(case)
        rows = np.sort(np.random.default_rng(_SEED).choice(case.n, min(case.n, _CHECKED_ROWS), replace=False))
        with ExitStack() as workers:
            entries = [self._enter(contestant, case, path, rows, workers) for contestant in self.contestants]
            for turn in range(self.n_rounds or default_rounds(case.n)):
                running = [entry for entry in entries if not entry.failure]
                for entry in rotated(running, turn):
                    time.sleep(_PAUSE_S)
                    entry.others_busy.append(psutil.cpu_percent(interval=_LOAD_S) / 100)
                    try:
                        entry.samples.append(entry.worker.sample())
                    except WorkerError as error:
                        entry.failure = str(error)
        X = np.load(path)
        expected = similarity.reference(X, case.k, rows=rows)
        return [self._measurement(entry, case, X, rows, expected) for entry in entries]

    def _enter(self, contestant: Contestant, case: Case, path: Path, rows: np.ndarray, workers: ExitStack) -> _Entry:
        """Start and warm up, unless it is known to be of no use."""
        entry = _Entry(contestant, failure=self._unfit.get(contestant.name) or self._too_slow(contestant, case))
        if not entry.failure:
            worker = self._worker(contestant, path, case.k, rows, self._settings[contestant.name])
            entry.worker = workers.enter_context(worker)
            try:
                entry.warm_up = worker.warm_up()
            except WorkerError as error:
                entry.failure = str(error)
        return entry

    def _too_slow(self, contestant: Contestant, case: Case) -> str | None:
        n, wall_s = self._paces[contestant.name]
        expected_s = wall_s * (case.n / n) ** 2
        if expected_s <= self.limit_s:
            return None
        return f"would take about {expected_s:.3g} s by its time for {n:,} rows; the limit is {self.limit_s:.3g} s"

    def _measurement(
        self, entry: _Entry, case: Case, X: np.ndarray, rows: np.ndarray, expected: similarity.Neighbors
    ) -> Measurement:
        contestant, warm_up = entry.contestant, entry.warm_up
        common = {"case": case, "contestant": contestant.name, "kind": contestant.kind, "on_gpu": contestant.on_gpu}
        if entry.failure:
            return Measurement(**common, skipped=entry.failure)
        wall_s = [sample.wall_s for sample in entry.samples]
        if case.n >= self._paces[contestant.name][0]:  # a smaller case foretells a larger one less well
            self._paces[contestant.name] = case.n, min(wall_s)
        return Measurement(
            **common,
            setting=self._settings[contestant.name],
            blas=warm_up.blas,
            first_call_s=warm_up.first_call_s,
            cpu_s=[sample.cpu_s for sample in entry.samples],
            wall_s=wall_s,
            others_busy=statistics.median(entry.others_busy),
            peak_bytes=warm_up.peak_bytes,
            peak_gpu_bytes=warm_up.peak_gpu_bytes,
            exactness=None if warm_up.indices is None else exactness(X, rows, warm_up.indices, warm_up.scores, expected),
        )


def core_types() -> list[str]:
    """The families of OpenBLAS's kernels that this CPU can run, as `OPENBLAS_CORETYPE` names them; none but on x86."""
    instruction_sets = describe_cpu().instruction_sets
    return [
        *(["Haswell", "Zen"] if "AVX2" in instruction_sets else []),
        *(["SkylakeX"] if "AVX-512F" in instruction_sets else []),
    ]


def default_rounds(n: int) -> int:
    return 7 if n <= 10_000 else 3 if n <= 30_000 else 1


def rotated(entries: Sequence[Any], turn: int) -> list[Any]:
    """The order of a round: each begins one later than the last, so that nobody always follows the same other."""
    start = turn % max(1, len(entries))
    return [*entries[start:], *entries[:start]]


def exactness(
    X: np.ndarray, rows: np.ndarray, indices: np.ndarray, scores: np.ndarray, expected: similarity.Neighbors
) -> Exactness:
    """`compare` an answer for some `rows` of `X` (n, d) with the float64 reference's answer for them.

    Args:
        rows: (r,) row numbers.
        indices, scores: (r, k), the answer.

    Raises:
        ValueError: the answer has not the shape of the reference's.
    """
    if not indices.shape == scores.shape == expected.indices.shape:
        raise ValueError(f"the answer has shapes {indices.shape} and {scores.shape}: expected {expected.indices.shape}")
    largest_error, n_wrong = compare(X, rows, indices, scores, expected.scores)
    return Exactness(n_rows=len(rows), largest_error=largest_error, n_wrong=n_wrong)


def new_record(contestants: Sequence[Contestant], parameters: Mapping[str, Any], n_threads: int) -> Record:
    """An empty record with the versions of all that takes part."""
    provenance = Provenance.now(dict(parameters))
    distributions = metadata.packages_distributions()
    modules = {module for contestant in contestants for module in contestant.modules} | {"numba", "onnxruntime", "scipy"}
    installed = {name for module in modules for name in distributions.get(module, ())}
    versions = {name: metadata.version(name) for name in sorted(installed | set(provenance.versions))}
    return Record(
        provenance=provenance.model_copy(update={"versions": versions}),
        n_threads=n_threads,
        ignored_environment=inherited_settings(),
    )
