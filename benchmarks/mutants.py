"""Would the tests notice? Mutants of the logic that decides, compares, projects, reads data and keeps results, 40 of each.

    make mutants ARGS='--only compare --seed 18'

cosmic-ray makes each mutant, in a copy of this checkout, and runs the tests of its file. The sample depends on the seed, the
files and the operators only, one mutant at a place. Not among them: messages (what is raised), annotations, decorators (a cache
that is gone changes no answer), and exchanges that are no Python or that most values refuse, such as shifts of floats.
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
# Area -> its files in altlas_lib -> their tests: fast ones, without TensorFlow. Of the rows that match a file the first counts.
TESTS = {
    "decisions": dict.fromkeys(
        ("report/decide.py", "report/rules.py"), "tests/test_report_decisions.py tests/test_report_money.py"
    ),
    "comparison": {"report/compare.py": "tests/test_report_compare.py"},
    "projection": {
        "profiling/project/advice.py": "tests/test_profiling_advice.py -k 'not real_program'",
        "profiling/project/loops.py": "tests/test_profiling_loops.py",
        "profiling/project/gpu_libraries.py": "tests/test_profiling_routes.py -k 'not real_program'",
        "profiling/project/routes.py": "tests/test_profiling_advice.py tests/test_profiling_routes.py -k 'not real_program'",
        "profiling/project/*.py": "tests/test_profiling_operations.py tests/test_profiling_projection.py",
    },
    "data": {
        "data/corpus.py": "tests/test_data_texts.py -k 'corpus or paragraphs'",
        "data/*.py": "tests/test_data_texts.py tests/test_data_series.py -k 'not corpus'",
    },
    "results": {
        "results/inference.py": "tests/test_inference_llm.py tests/test_report_decisions.py",
        "results/serving.py": "tests/test_serving_chapter.py tests/test_report_decisions.py",
        **dict.fromkeys(
            ("results/arrays.py", "results/hotspots.py", "results/profile.py"),
            "tests/test_profiling_measure.py::test_what_is_too_busy_to_be_priced tests/test_profiling_operations.py "
            "tests/test_profiling_projection.py tests/test_results.py",
        ),
        "results/*.py": "tests/test_results.py tests/test_report_decisions.py",
    },
}
EXCHANGED = ("Add Sub Mul Div FloorDiv Mod Pow", "BitOr BitAnd BitXor", "Eq NotEq Lt LtE Gt GtE", "Is IsNot")


def mutants(paths: list[Path], seed: int) -> Iterator[MutationSpec]:
    """All of them, in a random order that a change of one file leaves as it is in the others."""
    with work_db.use_db(":memory:") as session:
        init(paths, session, {})
        found = [item.mutations[0] for item in session.work_items if is_meant(item.mutations[0].operator_name)]
    names = {hashlib.sha256(f"{seed} {e.module_path} {e.operator_name} {e.occurrence}".encode()).digest(): e for e in found}
    lines = {path: path.read_text().splitlines() for path in paths}
    unmeant, taken = {path: list(spans_left_out(path)) for path in paths}, set()
    for _, each in sorted(names.items()):
        path, place = each.module_path, each.start_pos
        before, after = lines[path][place[0] - 1][: place[1]].rstrip(), lines[path][place[0] - 1][place[1] :]
        if "Binary" in each.operator_name and (not before or before[-1] in "([{,:"):
            continue  # no operator but the star of a signature or of a call
        if "Number" in each.operator_name and float(re.match(r"[\d._]+(e[-+]?\d+)?", after)[0]) >= 1e6:
            continue  # one more or less of a million changes no answer
        if (path, place) in taken or any(start <= place < end for start, end in unmeant[path]):
            continue
        try:
            ast.parse(mutating.mutate_code(path.read_text(), plugins.get_operator(each.operator_name)(), each.occurrence))
        except (SyntaxError, AttributeError):  # an exception with a dot, which cosmic-ray cannot exchange
            continue
        taken.add((path, place))
        yield each


def is_meant(operator: str) -> bool:
    pair = re.fullmatch(r"core/Replace(?:Binary|Comparison)Operator_(\w+)_(\w+)", operator)
    return any({*pair.groups()} <= {*kind.split()} for kind in EXCHANGED) if pair else operator != "core/RemoveDecorator"


def spans_left_out(path: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        parts = [node] if isinstance(node, ast.Raise) else getattr(node, "decorator_list", [])
        for part in filter(None, (*parts, getattr(node, "annotation", None), getattr(node, "returns", None))):
            yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def run_tests_of(mutant: MutationSpec, tests: str) -> tuple[str, str]:
    """What became of a mutant: "killed", "timeout" or "survived"; and what it is, as a diff."""
    result = mutating.mutate_and_test([mutant], command(tests), LIMIT_S)
    if result.test_outcome not in (TestOutcome.KILLED, TestOutcome.SURVIVED):
        raise RuntimeError(f"{mutant} was not tested: {result}")
    outcome = "timeout" if result.output == "timeout" else result.test_outcome.value
    return outcome, "\n".join(line for line in result.diff.splitlines() if re.match(r"[-+](?![-+]{2})|@@", line))


def command(tests: str) -> str:
    return f"{sys.executable} -m pytest -x -q -p no:cacheprovider {tests}"


def run_area(area: str, seed: int) -> dict[str, Counter]:
    """File -> how many of its mutants were killed, timed out or survived; says each survivor."""
    tests_of = {}
    for pattern, tests in TESTS[area].items():
        tests_of |= {path: tests for path in sorted(Path("altlas_lib").glob(pattern)) if path not in tests_of}
    for tests in set(tests_of.values()):
        outcome, said = testing.run_tests(command(tests), LIMIT_S)
        if outcome != TestOutcome.SURVIVED:
            raise SystemExit(f"without any mutant these tests fail: {tests}\n{said}")
    counts = defaultdict(Counter)
    for mutant in itertools.islice(mutants(list(tests_of), seed), N_OF_AREA):
        outcome, diff = run_tests_of(mutant, tests_of[mutant.module_path])
        counts[mutant.module_path.as_posix()][outcome] += 1
        if outcome == "survived":
            print(f"{mutant.module_path}:{mutant.start_pos[0]}: {mutant.operator_name} survived\n{diff}", flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TESTS, help="the mutants of one area")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the sample; the recorded one is {SEED}")
    asked = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("cosmic-ray", "pytest", "hypothesis")}
    about = {"seed": SEED, "limit_s": LIMIT_S, "python": platform.python_version(), "versions": versions}
    counts = {}
    recorded = json.loads(SUMMARY.read_text())["areas"] if SUMMARY.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "__pycache__"))
        os.chdir(copy)  # which `python -m pytest` puts first
        os.environ["PYTHONPATH"] = str(copy)  # for what the tests start
        for area in [asked.only] if asked.only else TESTS:
            recorded[area] = run_area(area, asked.seed)
            counts |= recorded[area]
            if asked.seed == SEED:  # an area that is run again takes the place of what was recorded of it
                SUMMARY.write_text(json.dumps({**about, "areas": recorded}, indent=1) + "\n")
        os.chdir(ROOT)
    print(f"{'killed':>8}{'timeout':>9}{'survived':>10}")
    for name, of in {**counts, "all": sum(counts.values(), Counter())}.items():
        print(f"{of['killed']:8}{of['timeout']:9}{of['survived']:10}  {name}")


if __name__ == "__main__":
    main()
