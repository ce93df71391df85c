"""Would the tests notice? Mutants of the logic that decides, compares, projects, reads data and keeps results, 40 of each.

    make mutants ARGS='--only comparison --seed 18'

cosmic-ray makes each mutant, in a copy of this checkout, and runs the tests of its file, which `mutants.toml` names. The sample
depends on the seed, the files and the operators only, one mutant at a place. Not among them: messages (what is raised),
annotations, decorators (a cache that is gone changes no answer), exchanges that most values refuse, such as shifts of floats,
and one more or less of a million.
"""

import argparse
import ast
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cosmic_ray import mutating, plugins, testing, work_db
from cosmic_ray.commands.init import init
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).parents[1]
SUMMARY = ROOT / "benchmarks/results/mutants.json"
SEED, N_OF_AREA, LIMIT_S = 17, 40, 120
AREAS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
EXCHANGED = ("Add Sub Mul Div FloorDiv Mod Pow", "BitOr BitAnd BitXor", "Eq NotEq Lt LtE Gt GtE", "Is IsNot")


def mutants(paths: list[Path], seed: int) -> Iterator[MutationSpec]:
    """All of them, in a random order that a change of one file leaves as it is in the others."""
    with work_db.use_db(":memory:") as session:
        init(paths, session, {})
        found = [item.mutations[0] for item in session.work_items]
    named = {hashlib.sha256(f"{seed} {e.module_path} {e.operator_name} {e.occurrence}".encode()).digest(): e for e in found}
    sources, taken = {path: path.read_text() for path in paths}, set()
    unmeant = {path: list(spans_left_out(source)) for path, source in sources.items()}
    for _, each in sorted(named.items()):
        path, place, source = each.module_path, each.start_pos, sources[each.module_path]
        if (path, place) in taken or any(start <= place < end for start, end in unmeant[path]):
            continue
        line = source.splitlines()[place[0] - 1]
        if not is_meant(each.operator_name, line[: place[1]].rstrip(), line[place[1] :]):
            continue
        try:
            ast.parse(mutating.mutate_code(source, plugins.get_operator(each.operator_name)(), each.occurrence))
        except (SyntaxError, AttributeError):  # an exception with a dot, which cosmic-ray cannot exchange
            continue
        taken.add((path, place))
        yield each


def is_meant(operator: str, before: str, after: str) -> bool:
    if pair := re.fullmatch(r"core/Replace(?:Binary|Comparison)Operator_(\w+)_(\w+)", operator):
        is_star = not before or before[-1] in "([{,:"  # of a signature or of a call
        return not is_star and any({*pair.groups()} <= {*kind.split()} for kind in EXCHANGED)
    if operator == "core/NumberReplacer":
        return float(re.match(r"[\d._]+(e[-+]?\d+)?", after)[0]) < 1e6
    return operator != "core/RemoveDecorator"


def spans_left_out(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(ast.parse(source)):
        parts = [node] if isinstance(node, ast.Raise) else getattr(node, "decorator_list", [])
        for part in filter(None, (*parts, getattr(node, "annotation", None), getattr(node, "returns", None))):
            yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def run_area(area: str, seed: int) -> dict[str, Counter]:
    """File -> how many of its mutants were killed, timed out or survived; prints each survivor."""
    commands, counts = {}, defaultdict(Counter)
    for pattern, tests in AREAS[area].items():
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}"
        commands |= {path: command for path in sorted(Path("altlas_lib").glob(pattern)) if path not in commands}
    for command in set(commands.values()):
        outcome, said = testing.run_tests(command, LIMIT_S)
        if outcome != TestOutcome.SURVIVED:
            raise SystemExit(f"without any mutant this fails: {command}\n{said}")
    for mutant in itertools.islice(mutants(list(commands), seed), N_OF_AREA):
        result = mutating.mutate_and_test([mutant], commands[mutant.module_path], LIMIT_S)
        outcome = "timeout" if result.output == "timeout" else result.test_outcome.value  # also "incompetent": not tested
        counts[mutant.module_path.as_posix()][outcome] += 1
        if outcome not in ("killed", "timeout"):
            print(f"{mutant.module_path}:{mutant.start_pos[0]}: {outcome}\n{result.diff}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=AREAS, help="the mutants of one area")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the sample; the recorded one is {SEED}")
    asked = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("cosmic-ray", "pytest", "hypothesis")}
    about = {"seed": SEED, "limit_s": LIMIT_S, "python": platform.python_version(), "versions": versions}
    recorded = json.loads(SUMMARY.read_text())["areas"] if SUMMARY.exists() else {}
    print(f"{'killed':>8}{'timeout':>9}{'survived':>10}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "__pycache__"))
        os.chdir(copy)  # which `python -m pytest` puts first
        os.environ["PYTHONPATH"] = str(copy)  # for what the tests start
        for area in [asked.only] if asked.only else AREAS:
            files = run_area(area, asked.seed)
            for name, of in {**files, f"all of {area}": sum(files.values(), Counter())}.items():
                print(f"{of['killed']:8}{of['timeout']:9}{of['survived']:10}  {name}", flush=True)
            recorded[area] = files
            if asked.seed == SEED:  # an area that is run again takes the place of what was recorded of it
                SUMMARY.write_text(json.dumps({**about, "areas": recorded}, indent=1) + "\n")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
