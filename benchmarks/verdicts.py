"""Does the advice agree with a GPU practitioner? Workloads of many packages, each with the answer that was written down first.

    python -m benchmarks.verdicts
    python -m benchmarks.verdicts --only kernel_name other_name --json FILE.json

Each workload is profiled in a child process of its own and projected onto one GPU. What is compared is the advice for the
function that owns most of the time. The expected answers, in `verdict_workloads/expected.toml`, come from what is known of
the GPU and the libraries, and were committed before any workload was profiled.
"""

import argparse
import textwrap
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from altlas_lib import profiling
from altlas_lib.paths import write_atomically
from altlas_lib.results import Advice, Candidate, Model, Provenance

Standing = Literal["right", "unknown", "wrong", "not run"]


class Workload(Model):
    """A workload, and what a practitioner would do about it on a Tesla T4."""

    name: str
    module: str = Field(description="of benchmarks.verdict_workloads")
    package: str = Field(description="whose calls take the time, as its distribution is called; 'Python': the standard library")
    expected: tuple[Advice, ...] = Field(min_length=1, max_length=2, description="two where both are equally right")
    dangerous: tuple[Advice, ...] = Field(default=(), description="would cost somebody weeks, for no gain or a loss")
    why: str = Field(description="the practitioner's reasoning")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if "unknown" in self.expected or set(self.expected) & set(self.dangerous):
            raise ValueError(f"{self.name}: expected must be an answer, and not a dangerous one, got {self.expected}")
        return self

    @property
    def target(self) -> str:
        return f"benchmarks.verdict_workloads.{self.module}:{self.name}"

    @property
    def version(self) -> str | None:
        """Of its package; None: not installed."""
        try:
            return "" if self.package == "Python" else metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


WORKLOADS = [
    Workload(name=name, **entry)
    for name, entry in tomllib.loads((Path(__file__).parent / "verdict_workloads/expected.toml").read_text("utf-8")).items()
]


class Outcome(Model):
    """What was advised for one workload, beside what was expected."""

    workload: Workload
    standing: Standing
    got: Advice | None = Field(
        default=None, description="for the function with the greatest share; None: no candidate, or not run"
    )
    is_dangerous: bool = False
    function: str | None = None
    share: float | None = Field(default=None, description="of the workload's time, the function's own")
    reason: str = Field(description="of the advice; or why it did not run")
    run_s: float | None = Field(default=None, description="one run without a profiler")
    profile_s: float = Field(default=0, description="that the whole profile took")


class Record(Model):
    """A whole run of the benchmark."""

    provenance: Provenance
    gpu: str
    versions: dict[str, str] = Field(description="of the workloads' packages that are installed")
    counts: dict[Standing, int]
    n_wrong_ports: int = Field(description="'port it' where it is not what was expected")
    n_dangerous: int
    outcomes: list[Outcome]


# Running them ----------------------------------------------------------------------------------------------------------


def judge(workload: Workload, candidates: Sequence[Candidate]) -> Outcome:
    """By the candidate with the greatest share; without any the answer is unknown."""
    if not candidates:
        return Outcome(workload=workload, standing="unknown", reason="no function is a candidate")
    owner = max(candidates, key=lambda candidate: candidate.share)
    return Outcome(
        workload=workload,
        standing="unknown" if owner.advice == "unknown" else "right" if owner.advice in workload.expected else "wrong",
        got=owner.advice,
        is_dangerous=owner.advice in workload.dangerous,
        function=owner.function,
        share=owner.share,
        reason=owner.reason,
    )


def run(workload: Workload, gpu: str) -> Outcome:
    """Profiles a workload and judges the advice; a missing package or a profile that fails is an outcome too."""
    if workload.version is None:
        return Outcome(workload=workload, standing="not run", reason=f"{workload.package} is not installed")
    start = time.perf_counter()
    try:
        profile = profiling.profile(workload.target, setup=f"{workload.target}_input", workload=workload.name)
        outcome = judge(workload, profiling.rank_candidates([profile], gpu=gpu))
    except profiling.ProfilingError as error:
        return Outcome(workload=workload, standing="not run", reason=str(error), profile_s=time.perf_counter() - start)
    run_s = profile.total.value if profile.total else None
    return outcome.model_copy(update={"run_s": run_s, "profile_s": time.perf_counter() - start})


def record(outcomes: Sequence[Outcome], gpu: str) -> Record:
    standings = Counter(outcome.standing for outcome in outcomes)
    workloads = [outcome.workload for outcome in outcomes]
    return Record(
        provenance=Provenance.now({"gpu": gpu, "only": [workload.name for workload in workloads]}),
        gpu=gpu,
        versions={workload.package: workload.version for workload in workloads if workload.version},
        counts={standing: standings[standing] for standing in Standing.__args__},
        n_wrong_ports=sum(outcome.standing == "wrong" and outcome.got == "port it" for outcome in outcomes),
        n_dangerous=sum(outcome.is_dangerous for outcome in outcomes),
        outcomes=list(outcomes),
    )


_HEADER = f"{'workload':20}{'package':14}{'expected':38}{'got':26}{'':18}{'run':>8}{'profile':>9}"


def row(outcome: Outcome) -> str:
    workload, standing = outcome.workload, "wrong, DANGEROUS" if outcome.is_dangerous else outcome.standing
    run_s = "" if outcome.run_s is None else f"{outcome.run_s:.2f} s"
    return (
        f"{workload.name:20}{workload.package:14}{' or '.join(workload.expected):38}{outcome.got or '-':26}{standing:18}"
        f"{run_s:>8}{outcome.profile_s:7.1f} s"
    )


def summary(found: Record) -> str:
    """The counts, and the reason of every answer that is not right."""
    counts = ", ".join(f"{n} {standing}" for standing, n in found.counts.items())
    lines = [
        f"{len(found.outcomes)} workloads: {counts}; {found.n_wrong_ports} times 'port it' is wrong, "
        f"{found.n_dangerous} answers are dangerous; {sum(outcome.profile_s for outcome in found.outcomes):.0f} s in all"
    ]
    for outcome in found.outcomes:
        if outcome.standing != "right":
            where = f" ({outcome.function}, {outcome.share:.0%})" if outcome.function else ""
            lines.append(f"\n{outcome.workload.name}: {outcome.got or outcome.standing}{where}: {outcome.reason}")
            lines.append(textwrap.indent(textwrap.fill(f"Expected: {outcome.workload.why}", 118), "    "))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.verdicts", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these workloads, in place of all")
    parser.add_argument("--gpu", default="T4", help="project onto this one; what is expected holds for a %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found")
    options = parser.parse_args(arguments)
    known = [workload.name for workload in WORKLOADS]
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"--only {' '.join(sorted(unknown))}: no such workload; there are {', '.join(known)}")
    print(_HEADER)
    outcomes = []
    for workload in WORKLOADS:
        if not options.only or workload.name in options.only:
            outcomes.append(run(workload, options.gpu))
            print(row(outcomes[-1]), flush=True)
    found = record(outcomes, options.gpu)
    print(summary(found))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, found.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    main()
