"""Installed without a clone: what a wheel brings, what the light core does, and what is said where an extra is missing."""

import os
import subprocess
import sys
import tomllib
import zipfile

import numpy as np
import pytest

from altlas_lib import extras, paths, runner

ROOT = paths.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = (
    "IPython",
    "cupy",
    "fastapi",
    "gguf",
    "ipykernel",
    "jax",
    "jupyterlab",
    "keras",
    "nbformat",
    "pandas",
    "papermill",
    "pyarrow",
)
HEAVY = (*HEAVY, "tensorflow", "tf2onnx", "torch", "uvicorn")


@pytest.fixture
def metadata(tmp_path, monkeypatch):
    """Writes the package's metadata as an installer would, before what is installed."""

    def write(requirements: str, origin: str = "{}"):
        folder = tmp_path / "site" / "altlas_cuda_workbook-9.dist-info"
        folder.mkdir(parents=True)
        lines = [f"Requires-Dist: {line.strip()}" for line in requirements.strip().splitlines()]
        lines += [f"Provides-Extra: {extra}" for extra in ("book", "gpu", "small", "dev")]
        (folder / "METADATA").write_text(
            "\n".join(["Metadata-Version: 2.4", "Name: altlas-cuda-workbook", "Version: 9", *lines])
        )
        (folder / "direct_url.json").write_text(origin)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    return write


REQUIREMENTS = """
    numpy>=1
    numpy>=99
    no-such-package-at-all>=1
    no-such-package; sys_platform == 'beos'
    keras>=1; extra == 'book'
    no-such-engine>=1; extra == 'book'
    tensorflow; extra == 'book'
    tensorflow[and-cuda]; extra == 'gpu'
    cupy-cuda12x[ctk]; extra == 'gpu'
    no-such-engine>=1; (sys_platform != 'beos') and extra == 'small'
    pytest; extra == 'dev'
"""


def test_unmet_requirements_are_listed(metadata):
    metadata(REQUIREMENTS)
    assert extras.unmet() == [f"numpy>=99 (found {np.__version__})", "no-such-package-at-all>=1 (not installed)"]
    assert extras.unmet("small") == ["no-such-engine>=1 (not installed)"]
    assert not extras.is_installed("book")
    assert extras.is_installed("dev")


@pytest.mark.parametrize(
    ("module", "extra"),
    [("tensorflow.keras", "book"), ("cupy", "gpu"), ("no_such_engine", "small"), ("numpy", None), ("gone", None), (None, None)],
)
def test_a_missing_module_is_brought_by_the_smallest_extra(metadata, module, extra):
    metadata(REQUIREMENTS)
    assert extras.extra_of(module) == extra


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ("{}", "pip install 'altlas-cuda-workbook[book]'"),
        ('{"url": "file:///my%20book", "dir_info": {"editable": true}}', "pip install -e '/my book[book]'"),
        ('{"url": "file:///my%20book", "dir_info": {}}', "pip install '/my book[book]'"),
        ('{"url": "https://example.org/altlas.whl"}', "pip install 'altlas-cuda-workbook[book]'"),
    ],
)
def test_the_command_that_adds_an_extra_starts_from_where_the_package_came(metadata, monkeypatch, origin, command):
    metadata("numpy", origin)
    assert extras.command_for("book").removeprefix("uv ") == command
    monkeypatch.setattr(sys, "prefix", "/home/me/.cache/uv/archive-v0/Ab3")
    source = command.split("install ")[1].removeprefix("-e ")
    assert extras.command_for("book", ["run", "--only", "20"]) == f"uvx --from {source} altlas run --only 20"


def test_the_light_core_requires_nothing_heavy():
    text = " ".join(PROJECT["dependencies"])
    assert not [name for name in HEAVY if name in text.replace("onnxruntime", "")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A wheel made of the checkout, unpacked as an installer does; the folder is then read-only."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    for path in (folder / "site").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder / "site"


ABSENT = """
import sys
from importlib.machinery import PathFinder

class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        return None if name.partition(".")[0] in HEAVY else super().find_spec(name, *where)

sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""


@pytest.fixture
def light(installed, tmp_path):
    """Runs Python on that wheel in a folder that has nothing to do with the checkout, without a home and what is heavy."""

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALTLAS_")}
        environment |= {"PYTHONPATH": str(installed), "HOME": str(tmp_path / "no home"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", f"HEAVY = {HEAVY}\n{ABSENT}{program}", *arguments]
        where = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 240}
        return subprocess.run(command, **where)

    return run


CLI = "from altlas_lib.cli import main; main()"


def test_a_wheel_brings_the_book_to_be_copied(light, tmp_path):
    done = light(CLI, "new", "my study")
    assert done.stdout == "made my study/; now: cd 'my study' && altlas run\n", done.stderr
    for part in ("notebooks", "data"):
        names = {path.relative_to(ROOT) for path in (ROOT / part).rglob("*.*") if path.suffix in (".ipynb", ".yaml", ".csv")}
        assert names
        for name in names:
            copied = tmp_path / "my study" / name
            assert copied.read_bytes() == (ROOT / name).read_bytes()
            assert os.stat(copied).st_mode & 0o200
    again = light(CLI, "new", "my study")
    assert again.returncode == 1
    assert again.stderr == "there is my study already; give a new name\n"


def test_the_light_core_searches_profiles_checks_and_reports(light, tmp_path):
    (tmp_path / "job.py").write_text("def work():\n    return sum(i * i for i in range(20_000))\n")
    done = light(
        """
        import numpy as np
        from altlas_lib import data, paths, profiling, report, similarity
        texts = data.load_texts("texts_sample.csv", column="body").texts
        print(similarity.top_k(data.embed(texts, n_dimensions=32).vectors, k=3).indices.shape)
        print(len(profiling.profile("job:work", n_repeats=1, sampling_s=0.2).functions))
        run = paths.run_folder("light")
        report.render_report(run)
        print(run.path, (run.report / "index.html").stat().st_size > 10_000)
    """.replace("\n        ", "\n")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["(200,", "3)", "1", str(tmp_path / "outputs" / "light"), "True"]


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("run", "notebooks"),
        ("lab", "book"),
        ("serve --corpus vectors.npy", "serve"),
        ("plan model.gguf", "training"),
    ],
)
def test_a_command_that_needs_an_extra_says_which(light, tmp_path, command, extra):
    np.save(tmp_path / "vectors.npy", np.ones((4, 4), np.float32))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    done = light(CLI, *command.split())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith(f"[{extra}]'"), done.stderr


def test_chapters_that_lack_their_extra_are_left_out_unless_asked_for(monkeypatch, run):
    monkeypatch.setattr(extras, "is_installed", lambda extra: extra != "training")
    ran, told = [], []
    monkeypatch.setattr(runner, "execute", lambda chapter, run, parameters: ran.append(chapter.number))
    runner.run_book(name="some", tell=told.append)
    assert ran == ["00", "10", "20", "50", "90"]
    left_out = f"left out, needs the extra 'training': {extras.command_for('notebooks,training')}"
    assert told[0].split(maxsplit=1) == ["30_memory_optimized_training", left_out]
    with pytest.raises(runner.RunError, match="nothing was run"):
        runner.run_book(name="asked", only=["30"], tell=told.append)
    assert told[-1].startswith("30_memory_optimized_training")
