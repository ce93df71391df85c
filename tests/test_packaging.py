"""The promises of the package as a whole: light to import, one truth for dependencies, commands that exist."""

import itertools
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from altlas_lib import ROOMS, paths

ROOT = paths.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *itertools.chain(*EXTRAS.values())]


def run_python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout


def package_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_import_is_light():
    loaded = run_python("import sys, altlas_lib; print(*sys.modules)").split()
    assert not {"tensorflow", "keras", "cupy", "numpy", "pandas", "matplotlib", "sklearn"} & set(loaded)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_loads_without_a_framework(room):
    """`similarity` works where TensorFlow is not installed, `training` where CuPy is not; no room wakes one up on import."""
    blocked = {"training": ["cupy"]}.get(room, ["tensorflow", "keras", "jax", "torch", "cupy"])
    run_python(f"import sys; sys.modules.update(dict.fromkeys({blocked})); import altlas_lib; altlas_lib.{room}")


def test_an_unknown_room_is_named():
    import altlas_lib

    with pytest.raises(AttributeError, match="'kitchen'; its rooms are"):
        altlas_lib.kitchen  # noqa: B018


def test_rooms_import_only_the_ground_floor():
    ground_floor = {"paths", "devices", "results", "data", "plots", "tables", "names"}
    chapters = {"environment", "profiling", "similarity", "training", "report"}
    for chapter in chapters:
        for file in (ROOT / "altlas_lib" / chapter).rglob("*.py"):
            imported = set(re.findall(r"^\s*from \.\.(\w+)", file.read_text(), re.M))
            imported |= {
                name
                for line in re.findall(r"^\s*from \.\. import (.+)$", file.read_text(), re.M)
                for name in re.findall(r"\w+", line)
            }
            others = chapters if chapter == "report" else {chapter}  # the report looks at several rooms, none looks at it
            assert imported <= ground_floor | others, file


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
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("\nmake test")


def test_every_make_command_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"```.*?```|`[^`]+`", readme, re.S))))
    assert {"run", "test", "lab", "clean", "help", "gpu-test"} <= named <= targets


def test_every_altlas_option_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(
        r"\baltlas (\w+)((?: +(?:--?[a-z][\w-]*|[^\s`|#]+))*)", "\n".join(re.findall(r"```.*?```|`[^`\n]+`", readme, re.S))
    )
    assert commands
    for command, arguments in commands:
        completed = subprocess.run(
            [sys.executable, "-m", "altlas_lib.cli", command, "--help"], capture_output=True, text=True, env={"COLUMNS": "300"}
        )
        assert completed.returncode == 0, command
        for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments):
            assert option in completed.stdout, f"altlas {command} {option}"
