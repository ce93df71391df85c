"""The promises of the package as a whole: light to import, one truth for dependencies, commands that exist."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from altlas_lib import PACKAGES, paths

ROOT = paths.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values())]
REQUIREMENTS = [each for each in REQUIREMENTS if not each.startswith(PROJECT["name"])]  # extras that name other extras


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout


def package_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_import_is_light():
    loaded = run_python("import sys, altlas_lib; print(*sys.modules)").split()
    assert not {"tensorflow", "keras", "cupy", "numpy", "pandas", "matplotlib", "sklearn"} & set(loaded)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_loads_without_a_framework(package):
    """`similarity` works where TensorFlow is not installed, `training` where CuPy is not; no package wakes one up on import."""
    blocked = {"training": ["cupy"]}.get(package, ["tensorflow", "keras", "jax", "torch", "cupy"])
    run_python(f"import sys; sys.modules.update(dict.fromkeys({blocked})); import altlas_lib; altlas_lib.{package}")


def test_an_unknown_package_is_named():
    import altlas_lib

    with pytest.raises(AttributeError, match="'kitchen'; its packages are"):
        altlas_lib.kitchen  # noqa: B018


def imported_modules(file: Path) -> set[tuple[str, ...]]:
    """Modules of this project that a file imports, as the parts of their path below `altlas_lib`."""
    package = file.relative_to(ROOT / "altlas_lib").parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            named = [(*base, *node.module.split("."))] if node.module else [(*base, alias.name) for alias in node.names]
            found |= set(named)
    return found


CHAPTERS = {"environment", "profiling", "similarity", "training", "inference", "serving", "report"}


# A forward pass is compiled as a training step is: by the planner's description of a GPU and its counts.
# What a PyTorch module is, is said once.
COMPILER = {
    "inference/forward.py": {("training", "plan", "request"), ("training",)},
    "inference/export.py": {("training", "pytorch", "task")},
}


@pytest.mark.parametrize("chapter", sorted(CHAPTERS - {"report"}))  # the report looks at several chapters, none looks at it
def test_a_chapter_imports_no_other_chapter(chapter):
    for file in (ROOT / "altlas_lib" / chapter).rglob("*.py"):
        others = {module[:3] for module in imported_modules(file) if module[0] in CHAPTERS - {chapter}}
        assert others <= COMPILER.get(file.relative_to(ROOT / "altlas_lib").as_posix(), set()), file


def test_environment_yml_is_a_conda_environment_that_repeats_nothing():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    *conda, last = environment["dependencies"]
    assert {re.split(r"[=<>]", requirement)[0] for requirement in conda} == {"python", "pip"}
    (editable,) = [line for line in last["pip"] if line.startswith("-e ")]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", editable).group(1).split(",")
    assert "gpu" in extras
    assert set(extras) <= set(EXTRAS)
    assert [line for line in last["pip"] if not line.startswith("-e ")] == ["--constraint requirements.lock"]
    python = next(requirement for requirement in conda if requirement.startswith("python"))
    low, high = (tuple(map(int, version.split("."))) for version in re.findall(r"[\d.]+", PROJECT["requires-python"]))
    assert low <= tuple(map(int, python.removeprefix("python=").split("."))) < high


def test_the_extras_are_those_that_the_plan_names():
    gpu = EXTRAS["gpu"]
    assert any(requirement.startswith("cupy-cuda12x") for requirement in gpu)
    assert any(requirement.startswith("tensorflow[and-cuda]") for requirement in gpu)
    everything = {package_name(requirement) for requirement in REQUIREMENTS}
    assert {"jupyterlab", "numpy", "matplotlib", "papermill", "nbval"} <= everything


def test_the_lock_pins_every_dependency_and_names_no_address():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+!]+( ; .+)?", line) for line in lines), "names, versions and markers only"
    pinned = {line.split("==")[0] for line in lines}
    assert {package_name(requirement) for requirement in REQUIREMENTS} <= pinned


def test_ci_runs_the_readmes_test_command():
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("\nmake test\nmake e2e")


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_of_pages():
    return "\n".join(code for page in PAGES for code in re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.S))


def test_every_make_command_of_the_pages_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", code_of_pages()))
    assert {"run", "test", "lab", "clean", "help", "gpu-test", "e2e"} <= named <= targets


# Who runs the commands of the pages' blocks: a test, which is named, or why none does.
RUN_BY = {
    r"make (run|setup|test|e2e|help|clean|lab)\b": "tests/test_packaging.py",  # test_the_commands_of_make_are_what_ci_runs
    r"make (gpu-test|gpu-session|run EXTRAS=dev,gpu)": "needs a GPU",
    r"make fuzz": "tests/test_fuzz.py",
    r"make bench-similarity": "tests/test_benchmarks.py",
    r"altlas serve": "tests/test_serving_api.py",
    r"make serve": "tests/test_serving_api.py",
    r"pip install": "done by `make setup`",
    r"altlas new": "tests/test_install.py",
    r"altlas run": "tests/book/test_book.py",
    r"altlas check": "tests/test_environment.py",
    r"altlas profile": "tests/test_profiling_targets.py",
    r"altlas plan .*gguf": "tests/test_inference_llm.py",
    r"torchrun": "tests/test_torch_fit.py",
    r"altlas plan": "tests/test_training_planner.py",
    r"altlas optimize": "tests/test_inference_variants.py",
    r"altlas compare": "tests/test_report_compare.py",
    r"source \.venv/bin/activate": "a shell's own",
    r"\.venv/bin/pre-commit install": "changes the user's git",
}


def test_every_command_of_the_pages_is_run_by_a_test_or_says_why_not():
    fenced = [pair for page in PAGES for pair in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M)]
    blocks = [block for language, block in fenced if not language]
    lines = [re.sub(r"^\$ ", "", line) for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if re.match(r"(make|altlas|python|pip|docker|source|\.venv/bin/)\b", line)]
    assert len(commands) > 15
    for command in commands:
        who = next((who for pattern, who in RUN_BY.items() if re.match(pattern, command)), None)
        assert who, f"no test runs {command!r}"
        if who.startswith("tests/"):
            word = re.sub(r"^(altlas |make (bench-)?)", "", command).split()[0]
            assert word in (ROOT / who).read_text(), f"{who} does not run {command!r}"


def snippets(page: Path) -> list[str]:
    """A page's Python, magics as IPython runs them, cells of a notebook server aside."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M)
    return [block for language, block in blocks if language == "python" and "google.colab" not in block]


@pytest.mark.parametrize("name", ["README.md", "docs/your-notebook.md"])
def test_the_python_of_a_page_runs_as_it_stands(name, folder, shell):
    ran = [shell.run_cell(block) for block in snippets(ROOT / name)]
    assert len(ran) >= 2
    for result in ran:
        result.raise_error()


def test_the_commands_of_make_are_what_ci_runs():
    """`run`, `setup`, `test` and `e2e` are parts of what CI does in a fresh clone; the rest is tried here without doing it."""
    ci, makefile = (ROOT / ".ci/run").read_text(), (ROOT / "Makefile").read_text()
    assert "make test" in ci
    assert "make e2e" in ci
    assert "altlas run" in makefile[makefile.index("\nrun:") :]
    for target in ("run", "lab", "clean", "help", "setup"):
        assert subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True).returncode == 0


def test_every_altlas_option_of_the_pages_exists():
    commands = set(re.findall(r"(?<![%\w])altlas (\w+)((?: +(?:--?[a-z][\w-]*|[^\s`|#]+))*)", code_of_pages()))
    assert commands
    known = {}
    for command, arguments in commands:
        if command not in known:
            known[command] = subprocess.run(
                [sys.executable, "-m", "altlas_lib.cli", command, "--help"],
                capture_output=True,
                text=True,
                env={"COLUMNS": "300"},
            )
        assert known[command].returncode == 0, command
        for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments):
            assert option in known[command].stdout, f"altlas {command} {option}"


def test_the_files_for_servers_and_ci_are_what_their_readers_take():
    """Of `deploy/` more in `test_serving_deploy.py`."""
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    for service in compose.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        if "build" in service:
            assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    copied = re.findall(r"^COPY (?:--chown=\S+ )?(.+) \S+$", dockerfile, re.M)
    assert len(copied) == 6
    assert all((ROOT / file).exists() for files in copied for file in files.split())
    assert re.findall(r"'\.\[(\w+)\]'", dockerfile) == ["serve"]  # its dependencies are those of the extra, listed in one place
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    job = yaml.safe_load((ROOT / "docs/ci/github-actions.yaml").read_text())["jobs"]["book"]
    ran = [step["run"] for step in job["steps"] if "run" in step]
    assert ran
    assert {re.match(r"make (\S+)", command)[1] for command in ran} <= targets
