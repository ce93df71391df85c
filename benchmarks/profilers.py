"""What profiling costs: cProfile, py-spy and line_profiler alone, beside a whole profile of ours.

    python -m benchmarks.profilers --rounds 5
    python -m benchmarks.profilers --show benchmarks/results/profilers.json

Three programs of different character; each run of a tool is a process of its own, which warms up and then repeats the program
for about a second. The tools take turns, round after round, so that a machine that slows down slows them alike. Factors compare
fastest runs: what else the machine does only ever adds time. The spread over rounds says how far to trust them.
"""

import argparse
import cProfile
import functools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import Field
from threadpoolctl import threadpool_limits

from altlas_lib.paths import write_atomically
from altlas_lib.results import Model, Provenance

Tool = Literal["none", "cProfile", "py-spy", "line_profiler"]
TOOLS: tuple[Tool, ...] = get_args(Tool)
_FOR_S = 1.0


# The programs ---------------------------------------------------------------------------------------------------------

_rng = np.random.default_rng(0)
_TEXT = " ".join(random.Random(0).choices([f"word{i}" for i in range(2000)], k=20_000))
_ROWS = _rng.standard_normal((700, 256), dtype=np.float32)


def is_letter(character: str) -> bool:
    return character.isalnum()


def tokenise(text: str) -> list[str]:
    """Character by character, a call for each: what costs under a tool that sees calls or lines."""
    tokens, token = [], ""
    for character in text:
        if is_letter(character):
            token += character
        elif token:
            tokens.append(token)
            token = ""
    return tokens


def pure_python() -> Counter:
    return Counter(tokenise(_TEXT))


def matrices() -> float:
    """Few calls that each take long."""
    x = _ROWS / np.linalg.norm(_ROWS, axis=1, keepdims=True)
    scores = x @ x.T
    best = np.argpartition(-scores, 10, axis=1)[:, :10]
    return float(np.take_along_axis(scores, best, axis=1).sum())


def answer(request: str) -> str:
    """A request: parse, count words, a small network, answer."""
    body = json.loads(request)
    features = np.zeros((len(body["texts"]), 256), dtype=np.float32)
    for row, text in enumerate(body["texts"]):
        for word, n in Counter(re.findall(r"\w+", text.lower())).items():
            features[row, sum(map(ord, word)) % 256] += n
    hidden = np.maximum(features @ _ROWS[:256], 0)
    return json.dumps({"id": body["id"], "best": np.argmax(hidden, axis=1).tolist()})


def service() -> list[str]:
    words = _TEXT.split()
    texts = [" ".join(words[i : i + 100]) for i in range(0, 4000, 100)]
    return [answer(json.dumps({"id": i, "texts": texts[i : i + 8]})) for i in range(32)]


PROGRAMS: dict[str, Callable] = {"pure Python": pure_python, "matrices": matrices, "service": service}


# What was measured ----------------------------------------------------------------------------------------------------


class Cost(Model):
    """One tool on one program."""

    program: str
    tool: Tool
    fastest_s: list[float] = Field(default=[], description="fastest run of each round")
    factors: list[float] = Field(default=[], description="of each round: with it / without any, fastest runs")


class Record(Model):
    provenance: Provenance
    costs: list[Cost]
    whole_profile_s: dict[str, list[float]] = Field(description="program -> seconds that altlas_lib.profiling.profile took")

    def cost(self, program: str, tool: Tool) -> Cost:
        return next(cost for cost in self.costs if (cost.program, cost.tool) == (program, tool))

    def factor(self, cost: Cost) -> float:
        """Fastest run with the tool / without, over all rounds."""
        return min(cost.fastest_s) / min(self.cost(cost.program, "none").fastest_s)


# Measuring ------------------------------------------------------------------------------------------------------------


def _repeat(program: str, tool: Tool) -> float:
    """In a process of its own: the fastest run within about a second."""
    threadpool_limits(1)  # threads that wait for each other measure the machine's other work
    call = PROGRAMS[program]
    call()
    run = call
    if tool == "cProfile":
        run = functools.partial(cProfile.Profile().runcall, call)
    elif tool == "line_profiler":
        import line_profiler

        profiler = line_profiler.LineProfiler(is_letter, tokenise, pure_python, matrices, answer, service)
        run = functools.partial(profiler.runcall, call)
    stop = time.perf_counter() + _FOR_S
    seconds = []
    while len(seconds) < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _alone(program: str, tool: Tool) -> float:
    command = [sys.executable, "-m", __spec__.name, "--repeat", program, tool]
    if tool == "py-spy":
        command = ["py-spy", "record", "--rate", "200", "--format", "raw", "--output", os.devnull, "--", *command]
    scripts = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": scripts})
    return float(next(line for line in done.stdout.splitlines() if line.startswith("fastest ")).split()[1])


def measure(rounds: int) -> Record:
    from altlas_lib import profiling

    costs = {(program, tool): Cost(program=program, tool=tool) for program in PROGRAMS for tool in TOOLS}
    whole_s: dict[str, list[float]] = {program: [] for program in PROGRAMS}
    for number in range(rounds):
        for program in PROGRAMS:
            tools = [*TOOLS[number % len(TOOLS) :], *TOOLS[: number % len(TOOLS)]]  # another one first in each round
            for tool in tools:
                costs[program, tool].fastest_s.append(_alone(program, tool))
            plain_s = costs[program, "none"].fastest_s[-1]
            for tool in TOOLS:
                costs[program, tool].factors.append(costs[program, tool].fastest_s[-1] / plain_s)
            start = time.perf_counter()
            profiling.profile(f"{__spec__.name}:{PROGRAMS[program].__name__}")
            whole_s[program].append(time.perf_counter() - start)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    provenance = Provenance.now({"rounds": rounds, "for_s": _FOR_S})
    return Record(provenance=provenance, costs=list(costs.values()), whole_profile_s=whole_s)


def table(record: Record) -> str:
    """Each tool's factor with its spread over the rounds, program by program."""
    programs = list(record.whole_profile_s)
    rows = [["times as long as without", *programs]]
    for tool in TOOLS[1:]:
        row = [tool]
        for program in programs:
            cost = record.cost(program, tool)
            row.append(f"{record.factor(cost):.2f} ({min(cost.factors):.2f} to {max(cost.factors):.2f})")
        rows.append(row)
    rows.append(["one run without (ms)", *(f"{1e3 * min(record.cost(p, 'none').fastest_s):.1f}" for p in programs)])
    rows.append(["our whole profile (s)", *(f"{min(record.whole_profile_s[p]):.1f}" for p in programs)])
    return "\n".join(f"{row[0]:<26}" + "".join(f"{cell:>24}" for cell in row[1:]) for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.profilers", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="%(default)s")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/profilers.json"), help="%(default)s")
    parser.add_argument("--show", type=Path, metavar="JSON", help="measure nothing: print the table of this file")
    parser.add_argument("--repeat", nargs=2, metavar=("PROGRAM", "TOOL"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.repeat:
        print("fastest", _repeat(*options.repeat))
        return
    if options.show:
        print(table(Record.model_validate_json(options.show.read_bytes())))
        return
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected at least 1")
    record = measure(options.rounds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, record.model_dump_json(indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
