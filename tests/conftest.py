"""Every test writes into a folder of its own, and `gpu` tests are skipped, and counted as skipped, without a GPU."""

import random
import signal
import sys
import textwrap

import hypothesis
import pytest

from altlas_lib import devices, paths, profiling

hypothesis.settings.register_profile("untimed", deadline=None)  # speed is the benchmarks' business, and machines are busy
hypothesis.settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts what runs in its background so, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """The parent of all runs during a test."""
    monkeypatch.setenv("ALTLAS_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def run(outputs) -> paths.RunFolder:
    return paths.run_folder("test")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, where targets are written and found."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(folder):
    """Writes a Python file and returns its module's name, another one each time."""

    def write_module(source: str, suffix: str = ".py") -> str:
        name = f"user_{random.getrandbits(64):x}"
        (folder / f"{name}{suffix}").write_text(textwrap.dedent(source))
        return name

    return write_module


@pytest.fixture
def shell(monkeypatch):
    """An IPython shell; its main module goes with it, for a process that is spawned later is told of the main module."""
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    shell = InteractiveShell.instance()
    yield shell
    shell.reset(new_session=False)
    InteractiveShell.clear_instance()


@pytest.fixture(scope="session")
def py_spy_permitted():
    """Skips where the system does not let py-spy read even its own child, as macOS without root; other failures are ours."""
    notes = profiling.profile("platform:platform", n_repeats=1, sampling_s=0.3, trace_arrays=False).notes
    if any("permission" in note.lower() or "not permitted" in note.lower() for note in notes):
        pytest.skip(f"this system refuses py-spy: {notes}")


def pytest_collection_modifyitems(config, items):
    if devices.has_gpu():
        return
    if config.getoption("-m") == "gpu":  # else a run on the wrong machine would look like a success
        pytest.exit("no CUDA GPU that CuPy sees; run `altlas check` to learn what is missing", returncode=1)
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU that CuPy sees"))
