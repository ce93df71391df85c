"""Chapter 00: findings from made-up machines, probes that crash and hang, and ceilings."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altlas_lib import devices, environment, figures
from altlas_lib.environment import ceilings as ceilings_module
from altlas_lib.environment import checks, plots
from altlas_lib.environment import facts as facts_module
from altlas_lib.environment.checks import findings_from
from altlas_lib.environment.facts import Facts, Library
from altlas_lib.results import Ceilings, Finding, Quantity

GIB = 2**30
T4 = devices.Gpu(0, "Tesla T4", 15 * GIB, "7.5", 3, 16)
CPU = devices.Cpu("AMD EPYC", 2, ("AVX2", "FMA3", "AVX-512F", "AVX-512 VNNI"))
MISSING = Library(installed=False)
UNANSWERED = Library(answered=False, error="not answered in 60 s")

LAPTOP = Facts(
    python="/venv/bin/python",
    python_version="3.11.9",
    python_required=">=3.11,<3.14",
    unmet_requirements=(),
    outputs="/book/outputs",
    outputs_writable=True,
    disk_free_bytes=50 * GIB,
    memory_limit_bytes=16 * GIB,
    memory_available_bytes=12 * GIB,
    cpu=CPU,
    cpu_busy_percent=3.0,
    kernel_python="/venv/bin/python3",
    nvidia_smi=None,
    n_nvidia_on_bus=0,
    in_container=False,
    cuda_visible_devices=None,
    openblas_coretype=None,
    libraries={
        "driver": Library(error="NVMLError_LibraryNotFound: NVML Shared Library Not Found"),
        "numpy": Library(
            version="2.4.6", blas="openblas", blas_kernels="SkylakeX", gflops_per_thread=200, computed_on=("CPU",)
        ),
        "keras": Library(version="3.15.1", backend="tensorflow", computed_on=("tensorflow",)),
        "tensorflow": Library(version="2.21.0", cuda={"runtime": "12.5.1", "cuDNN": "9"}, computed_on=("CPU",)),
        "cupy": MISSING,
        "torch": MISSING,
        "jax": MISSING,
    },
)
WORKING_CUPY = Library(
    version="14.2.0", cuda={"runtime": "12.9", "NVRTC": "12.9"}, gpus=("Tesla T4",), computed_on=("Tesla T4",)
)
WORKING_TENSORFLOW = Library(
    version="2.21.0",
    cuda={"runtime": "12.5", "cuDNN": "9.10.2"},
    gpus=("Tesla T4",),
    computed_on=("CPU", "Tesla T4"),
)


def changed(facts: Facts, *, libraries: dict[str, Library] | None = None, driver: Library | None = None, **fields) -> Facts:
    """`facts` with other fields, and with those libraries replaced that are named."""
    replaced = (libraries or {}) | ({"driver": driver} if driver else {})
    return facts.model_copy(update={**fields, "libraries": {**facts.libraries, **replaced}})


T4_SERVER = changed(
    LAPTOP,
    nvidia_smi="/usr/bin/nvidia-smi",
    n_nvidia_on_bus=1,
    driver=Library(version="580.65", cuda_version="13.0", gpus=(T4,)),
    libraries={"cupy": WORKING_CUPY, "tensorflow": WORKING_TENSORFLOW},
)


def find(facts: Facts, check: str) -> Finding:
    (finding,) = [finding for finding in findings_from(facts) if finding.check == check]
    return finding


def problems(facts: Facts) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings_from(facts) if finding.status != "ok"}


# Machines that are well ------------------------------------------------------------------------------------------------


def test_a_laptop_without_a_gpu_is_ready_with_one_warning():
    assert problems(LAPTOP) == {"GPU": "warning"}
    assert environment.is_ready(findings_from(LAPTOP))
    assert "pip install" in find(LAPTOP, "GPU").fix


def test_a_probe_that_a_busy_machine_did_not_answer_makes_it_not_unready():
    findings = findings_from(changed(LAPTOP, libraries=dict.fromkeys(("numpy", "keras", "tensorflow"), UNANSWERED)))
    assert environment.is_ready(findings)
    assert all(
        "not answered in 60 s" in finding.found for finding in findings if finding.check in ("NumPy", "Keras", "TensorFlow")
    )
    assert not any("does not load" in finding.found for finding in findings)


def test_a_t4_server_is_ready_without_a_warning():
    assert problems(T4_SERVER) == {}
    assert find(T4_SERVER, "GPU 0").found == "Tesla T4, 15.0 GiB, compute capability 7.5, PCIe 3 x16"
    assert "runtime 12.9, NVRTC 12.9" in find(T4_SERVER, "CuPy").found
    assert "cuDNN 9.10.2" in find(T4_SERVER, "TensorFlow").found
    assert "580.65, runs CUDA up to 13.0; nvidia-smi: /usr/bin/nvidia-smi" in find(T4_SERVER, "NVIDIA driver").found


def test_a_gpu_machine_with_jax_instead_of_tensorflow_is_ready():
    jax = Library(version="0.11.2", cuda={"runtime": "13"}, gpus=("NVIDIA H200",), computed_on=("NVIDIA H200",))
    keras = Library(version="3.15.1", backend="jax", computed_on=("jax",))
    facts = changed(T4_SERVER, libraries={"tensorflow": MISSING, "keras": keras, "jax": jax})
    assert problems(facts) == {}


# Machines that are not -------------------------------------------------------------------------------------------------

INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version"
NO_GPU_SEEN = Library(version="2.21.0", cuda={"runtime": "12.5.1", "cuDNN": "9"}, computed_on=("CPU",))
BLIND_CUPY = Library(version="14.2.0", cuda={"runtime": "12.9"}, no_gpu_because=INSUFFICIENT)


@pytest.mark.parametrize(
    ("facts", "check", "status", "found", "fix"),
    [
        pytest.param(*row, id=row[1] + ", " + name)
        for name, row in {
            "too old": (changed(LAPTOP, python_version="3.10.2"), "Python", "failure", ">=3.11,<3.14", "venv"),
            "too new": (changed(LAPTOP, python_version="3.14.0rc1"), "Python", "failure", "3.14.0rc1", "venv"),
            "missing": (
                changed(LAPTOP, unmet_requirements=("jinja2>=3.1 (not installed)",)),
                *("Packages", "failure", "jinja2>=3.1 (not installed)", "pip install 'jinja2>=3.1'"),
            ),
            "read-only": (changed(LAPTOP, outputs_writable=False), "Disk", "failure", "/book/outputs", "ALTLAS_OUTPUTS"),
            "full": (changed(LAPTOP, disk_free_bytes=GIB // 10), "Disk", "failure", "0.1 GiB free", "ALTLAS_OUTPUTS"),
            "nearly full": (changed(LAPTOP, disk_free_bytes=GIB), "Disk", "warning", "1.0 GiB free", "ALTLAS_OUTPUTS"),
            "little": (changed(LAPTOP, memory_available_bytes=GIB), "Memory", "failure", "1.0 GiB of 16.0", "close"),
            "tight": (changed(LAPTOP, memory_available_bytes=3 * GIB), "Memory", "warning", "3.0 GiB of 16.0", "close"),
            "in a container": (
                changed(LAPTOP, memory_available_bytes=GIB, in_container=True),
                *("Memory", "failure", "1.0 GiB", "docker run --memory"),
            ),
            "busy": (changed(LAPTOP, cpu_busy_percent=80), "CPU", "warning", "80 % busy", "top"),
            "no AVX2": (
                changed(LAPTOP, cpu=devices.Cpu("QEMU", 2, ("SSE4.2",))),
                *("Instruction sets", "warning", "no AVX2", "-cpu host"),
            ),
            "no VNNI": (
                changed(LAPTOP, cpu=devices.Cpu("Xeon E5", 2, ("SSE4.2", "AVX2"))),
                *("Instruction sets", "warning", "int8 similarity falls back to float32", "-cpu host"),
            ),
            "none": (changed(LAPTOP, kernel_python=None), "Notebook kernel", "failure", "no kernelspec", "ipykernel install"),
            "another": (
                changed(LAPTOP, kernel_python="/usr/bin/python3"),
                *("Notebook kernel", "failure", "/usr/bin/python3", "ipykernel install"),
            ),
            "wrong answer": (
                changed(LAPTOP, libraries={"numpy": Library(version="2.4.6", error="ArithmeticError: wrong")}),
                *("NumPy", "failure", "ArithmeticError", "pip install"),
            ),
            "idle AVX-512": (
                changed(
                    LAPTOP,
                    libraries={
                        "numpy": Library(version="2", blas="openblas", blas_kernels="Haswell", gflops_per_thread=120),
                        "numpy with AVX-512": Library(version="2", gflops_per_thread=230),
                    },
                ),
                *("BLAS kernels", "warning", "OpenBLAS uses its Haswell", "export OPENBLAS_CORETYPE=SkylakeX"),
            ),
            "forbidden AVX-512": (
                changed(
                    LAPTOP,
                    libraries={
                        "numpy": Library(version="2", blas="openblas", blas_kernels="Haswell", gflops_per_thread=120),
                        "numpy with AVX-512": Library(version="2", gflops_per_thread=230),
                    },
                    openblas_coretype="Haswell",
                ),
                *("BLAS kernels", "warning", "OPENBLAS_CORETYPE=Haswell holds", "unset OPENBLAS_CORETYPE"),
            ),
            "crash": (
                changed(LAPTOP, libraries={"tensorflow": Library(error="crashed (Illegal instruction): no message")}),
                *("TensorFlow", "failure", "Illegal instruction", "probe tensorflow"),
            ),
            "no answer": (
                changed(LAPTOP, libraries={"tensorflow": UNANSWERED}),
                *("TensorFlow", "warning", "not answered in 60 s", "probe tensorflow"),
            ),
            "gone": (
                changed(LAPTOP, libraries={"tensorflow": MISSING, "keras": Library(version="3", error="No module")}),
                *("TensorFlow", "failure", "not installed", "[training]"),
            ),
            "no training": (
                changed(LAPTOP, libraries={"tensorflow": MISSING, "keras": MISSING}),
                *("Keras", "warning", "not installed: chapters 30 and 40", "[training]"),
            ),
            "no notebooks": (changed(LAPTOP, kernel_python=""), "Notebook kernel", "warning", "not installed", "[book]"),
            "broken, though Keras does not use it": (
                changed(
                    LAPTOP,
                    libraries={
                        "tensorflow": Library(error="ImportError: x"),
                        "keras": Library(version="3", backend="jax", computed_on=("jax",)),
                        "jax": Library(version="0.10", computed_on=("CPU",)),
                    },
                ),
                *("TensorFlow", "warning", "ImportError: x", "probe tensorflow"),
            ),
            "no backend": (
                changed(
                    LAPTOP,
                    libraries={
                        "tensorflow": MISSING,
                        "keras": Library(version="3.15", error="ModuleNotFoundError: No module named 'tensorflow'"),
                        "jax": Library(version="0.10", computed_on=("CPU",)),
                    },
                ),
                *("Keras", "failure", "ModuleNotFoundError", "export KERAS_BACKEND=jax"),
            ),
            "GPU without a driver": (
                changed(LAPTOP, n_nvidia_on_bus=2),
                *("NVIDIA driver", "warning", "2 NVIDIA GPU(s) are on the bus", "ubuntu-drivers install"),
            ),
            "GPU outside the container": (
                changed(LAPTOP, n_nvidia_on_bus=1, in_container=True),
                *("NVIDIA driver", "warning", "on the bus", "docker run --gpus all"),
            ),
            "not loaded": (
                changed(LAPTOP, n_nvidia_on_bus=1, driver=Library(error="NVMLError_DriverNotLoaded: Driver Not Loaded")),
                *("NVIDIA driver", "warning", "not working", "modprobe nvidia"),
            ),
            "half updated": (
                changed(LAPTOP, n_nvidia_on_bus=1, driver=Library(error="NVMLError_LibRmVersionMismatch: mismatch")),
                *("NVIDIA driver", "warning", "not working", "reboot"),
            ),
            "hangs": (
                changed(LAPTOP, n_nvidia_on_bus=0, driver=UNANSWERED),
                *("NVIDIA driver", "warning", "does not answer", "probe driver"),
            ),
            "lost GPU": (
                changed(T4_SERVER, driver=Library(version="580.65", cuda_version="13.0", error="NVMLError_GpuIsLost: lost")),
                *("NVIDIA driver", "warning", "NVMLError_GpuIsLost", "reboot"),
            ),
            "CUDA 11": (
                changed(T4_SERVER, driver=Library(version="470.1", cuda_version="11.4", gpus=(T4,))),
                *("NVIDIA driver", "warning", "too old for CUDA 12", "ubuntu-drivers install"),
            ),
            "works, but not NVML": (
                changed(T4_SERVER, in_container=True, driver=LAPTOP.libraries["driver"]),
                *("NVIDIA driver", "warning", "on the bus", "NVIDIA_DRIVER_CAPABILITIES"),
            ),
            "driver without a GPU": (
                changed(LAPTOP, driver=Library(version="580.65", cuda_version="13.0")),
                *("GPU", "warning", "none", "pip install"),
            ),
            "hidden": (
                changed(T4_SERVER, cuda_visible_devices="-1", libraries={"tensorflow": NO_GPU_SEEN, "cupy": BLIND_CUPY}),
                *("GPU", "warning", "CUDA_VISIBLE_DEVICES='-1'", "unset CUDA_VISIBLE_DEVICES"),
            ),
            "missing beside a GPU": (
                changed(T4_SERVER, libraries={"cupy": MISSING}),
                *("CuPy", "warning", "not installed", 'pip install "cupy-cuda13x[ctk]"'),
            ),
            "missing beside an older driver": (
                changed(T4_SERVER, libraries={"cupy": MISSING}, driver=Library(version="550", cuda_version="12.4", gpus=(T4,))),
                *("CuPy", "warning", "not installed", 'pip install "cupy-cuda12x[ctk]"'),
            ),
            "without a driver": (
                changed(LAPTOP, libraries={"cupy": BLIND_CUPY}),
                *("CuPy", "warning", "cudaErrorInsufficientDriver", "pip uninstall cupy-cuda12x"),
            ),
            "without a driver, GPU on the bus": (
                changed(LAPTOP, n_nvidia_on_bus=1, libraries={"cupy": BLIND_CUPY}),
                *("CuPy", "warning", "cudaErrorInsufficientDriver", "ubuntu-drivers install"),
            ),
            "newer than the driver": (
                changed(
                    T4_SERVER,
                    driver=Library(version="550", cuda_version="12.4", gpus=(T4,)),
                    libraries={"cupy": Library(version="14", cuda={"runtime": "13.0"}, no_gpu_because=INSUFFICIENT)},
                ),
                *("CuPy", "warning", "runs CUDA up to 12.4 only", 'pip install "cupy-cuda12x[ctk]"'),
            ),
            "newer within CUDA 12": (
                changed(T4_SERVER, driver=Library(version="550", cuda_version="12.4", gpus=(T4,))),
                *("CuPy", "warning", "newer PTX", "ubuntu-drivers install"),
            ),
            "GPU seen, product wrong": (
                changed(T4_SERVER, libraries={"cupy": Library(version="14", gpus=("Tesla T4",), error="no NVRTC")}),
                *("CuPy", "failure", "no NVRTC", 'pip install "cupy-cuda13x[ctk]"'),
            ),
            "CPU build": (
                changed(T4_SERVER, libraries={"tensorflow": Library(version="2.21.0", computed_on=("CPU",))}),
                *("TensorFlow", "warning", "built without CUDA", "tensorflow[and-cuda]"),
            ),
            "blind": (
                changed(T4_SERVER, libraries={"tensorflow": NO_GPU_SEEN}),
                *("TensorFlow", "warning", "does not see the GPU", "tensorflow[and-cuda]"),
            ),
            "PyTorch on the CPU": (
                changed(T4_SERVER, libraries={"torch": Library(version="2.11.0+cpu", computed_on=("CPU",))}),
                *("PyTorch", "warning", "built without CUDA", "pip install"),
            ),
            "JAX fails": (
                changed(LAPTOP, libraries={"jax": Library(version="0.10", error="RuntimeError: x")}),
                *("JAX", "warning", "RuntimeError: x", "probe jax"),
            ),
        }.items()
    ],
)
def test_each_defect_is_named_with_its_fix(facts, check, status, found, fix):
    finding = find(facts, check)
    assert finding.status == status
    assert found in finding.found
    assert fix in finding.fix
    assert environment.is_ready(findings_from(facts)) == ("failure" not in problems(facts).values())


def test_every_row_of_the_texts_can_be_called_for_and_every_row_called_for_has_one():
    named = {}
    for _, section, rows, _ in [*checks._checks(LAPTOP), *checks._checks(T4_SERVER)]:
        named.setdefault(section, set()).update(rows)
    texts = tomllib.loads(Path(checks.__file__).with_name("checks.toml").read_text("utf-8"))
    assert {name for name in texts if not name.startswith("DxDiag")} - {"frameworks", "library"} == named.keys()
    for section, rows in named.items():
        codes = {name for name in rows | texts[section].keys() if not name or name.startswith("NVMLError")}
        assert rows - codes == texts[section].keys() - codes


def test_a_newer_driver_of_the_same_cuda_is_no_problem_and_neither_is_a_plain_major_version():
    jax = Library(version="0.10", cuda={"runtime": "12"}, gpus=("Tesla T4",), computed_on=("Tesla T4",))
    facts = changed(T4_SERVER, driver=Library(version="575", cuda_version="12.9", gpus=(T4,)), libraries={"jax": jax})
    assert problems(facts) == {}


def test_idle_avx512_says_how_much_it_costs():
    numpy = Library(version="2", blas="openblas", blas_kernels="Haswell", gflops_per_thread=120)
    facts = changed(LAPTOP, libraries={"numpy": numpy, "numpy with AVX-512": Library(version="2", gflops_per_thread=230)})
    (finding,) = [finding for finding in findings_from(facts) if finding.check == "BLAS kernels"]
    assert "1.9x worse" in finding.found


def test_a_small_gain_of_other_kernels_is_not_worth_a_warning():
    numpy = Library(version="2", blas="openblas", blas_kernels="Haswell", gflops_per_thread=100)
    facts = changed(LAPTOP, libraries={"numpy": numpy, "numpy with AVX-512": Library(version="2", gflops_per_thread=110)})
    assert "BLAS kernels" not in problems(facts)


VERSIONS = st.sampled_from([None, "12", "12.4", "12.9", "13.0", "11.8"])
LIBRARIES = st.builds(
    Library,
    installed=st.booleans(),
    version=st.sampled_from([None, "1.0"]),
    cuda=VERSIONS.map(lambda version: {"runtime": version} if version else {}),
    gpus=st.sampled_from([(), ("Tesla T4",)]),
    computed_on=st.sampled_from([(), ("CPU",), ("CPU", "Tesla T4")]),
    error=st.sampled_from([None, "not answered in 60 s", "<b>crashed</b>"]),
    gflops_per_thread=st.sampled_from([None, 1.0]),
    backend=st.just("jax"),
).filter(lambda library: library.version or library.error or not library.installed)


@settings(deadline=None)  # the machine may be busy
@given(
    libraries=st.fixed_dictionaries(dict.fromkeys(LAPTOP.libraries.keys() - {"driver"}, LIBRARIES)),
    driver=st.builds(
        Library,
        version=st.sampled_from([None, "580"]),
        cuda_version=VERSIONS,
        gpus=st.sampled_from([(), (T4,)]),
        error=st.sampled_from([None, "NVMLError_Unknown: x", "not answered in 60 s"]),
    ).filter(lambda driver: (driver.version and driver.cuda_version) or driver.error),
    n_nvidia_on_bus=st.integers(0, 2),
    in_container=st.booleans(),
    cuda_visible_devices=st.sampled_from([None, "", "-1", "0"]),
)
def test_whatever_the_facts_each_finding_is_one_line_with_a_fix_where_needed(**fields):
    findings = findings_from(changed(LAPTOP, **fields))
    assert len({finding.check for finding in findings}) == len(findings)
    for finding in findings:
        assert (finding.fix is None) == (finding.status == "ok")
        assert "\n" not in finding.found + (finding.fix or "")
        assert "None" not in finding.found
    for lines in (environment.format_findings(findings), environment.findings_table(findings).to_html()):
        assert all(finding.check in lines for finding in findings)


# Probes: children that crash, hang and chatter ---------------------------------------------------------------------------


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """Run a probe whose program is the given source."""

    def run(source: str, timeout_s: float = 20.0):
        (tmp_path / "made_up_probe.py").write_text(textwrap.dedent(source))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(facts_module, "PROBE_MODULE", "made_up_probe")
        return facts_module._probe("numpy", timeout_s)

    return run


def test_the_last_line_is_the_report_whatever_was_printed_before(probe):
    report = probe("""
        import os, sys
        os.write(1, b"\\xff\\x00 garbage without an end of line\\n{\\n")
        print("warning: chatter", file=sys.stderr)
        print('{"version": "1.0", "computed_on": ["CPU"]}')
    """)
    assert report == Library(version="1.0", computed_on=("CPU",))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed (Segmentation fault): no message"),
        (
            "import os, sys; print('terminate called', file=sys.stderr, flush=True); os.abort()",
            "crashed (Aborted): terminate called",
        ),
        ("raise SystemExit('no such thing')", "ended with exit code 1: no such thing"),
        ("1 / 0", "ended with exit code 1: ZeroDivisionError: division by zero"),
        ("pass", "expected a report in JSON, got ''"),
        ("print('all is well')", "expected a report in JSON, got 'all is well'"),
        ("print('[1, 2]')", "expected a report in JSON, got '[1, 2]'"),
        ("""print('{"version": "1", "surprise": 1}')""", "expected a report in JSON"),
        ("""print('{"version": NaN}')""", "expected a report in JSON"),
        ("print('x' * 10**6)", "expected a report in JSON, got 'xxx"),
        ("""print('{"error": "two\\\\nlines"}')""", "two lines"),
        ("""print('{"error": "' + 'long ' * 10**4 + '"}')""", "long long"),
        ("import sys; sys.exit('long ' * 10**4)", "ended with exit code 1: long long"),
    ],
)
def test_a_broken_probe_is_an_error_in_one_line(probe, source, error):
    report = probe(source)
    assert report.error.startswith(error)
    assert "\n" not in report.error
    assert len(report.error) < 300


def test_a_hanging_probe_ends_at_its_time_limit_though_its_own_child_lives_on(probe):
    start = time.monotonic()
    report = probe(
        """
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"])
        time.sleep(60)
        """,
        timeout_s=1.0,
    )
    assert report == Library(answered=False, error="not answered in 1 s")
    assert time.monotonic() - start < 5


def run_probe_module(name: str, *, path: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "altlas_lib.environment.probe", name]
    surroundings = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=surroundings, check=False)


def test_an_unknown_probe_says_which_there_are():
    ended = run_probe_module("fortran")
    assert ended.returncode == 2
    assert "numpy" in ended.stderr


FAKE_CUPY = """
    import os
    from types import SimpleNamespace
    import numpy as np

    os.write(1, b"CuPy says hello on file descriptor 1\\n")
    print("and on sys.stdout")
    __version__ = "14.2.0"
    asarray = np.asarray

    def asnumpy(x):
        return x {damage}

    class CUDARuntimeError(RuntimeError):
        pass

    class Device:
        def __init__(self, index): pass
        def __enter__(self): pass
        def __exit__(self, *error): pass

    def getDeviceCount():
        if not {available}:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: too old")
        return 2

    cuda = SimpleNamespace(
        Device=Device,
        is_available=lambda: {available},
        nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)),
        runtime=SimpleNamespace(
            runtimeGetVersion=lambda: 12090,
            getDeviceCount=getDeviceCount,
            getDeviceProperties=lambda i: {{"name": b"Tesla T4"}},
            CUDARuntimeError=CUDARuntimeError,
        ),
    )
"""


@pytest.mark.parametrize(
    ("available", "damage", "expected"),
    [
        (True, "", {"gpus": ["Tesla T4"] * 2, "computed_on": ["Tesla T4"] * 2}),
        (
            True,
            "+ 1",
            {"gpus": ["Tesla T4"] * 2, "error": "ArithmeticError: a 64 x 64 float32 matrix product"},
        ),
        (False, "", {"no_gpu_because": "cudaErrorInsufficientDriver: too old"}),
    ],
)
def test_the_cupy_probe_computes_on_each_gpu_and_keeps_stdout_clean(tmp_path, available, damage, expected):
    (tmp_path / "cupy.py").write_text(textwrap.dedent(FAKE_CUPY).format(available=available, damage=damage))
    ended = run_probe_module("cupy", path=tmp_path)
    (line,) = ended.stdout.splitlines()
    report = json.loads(line)
    assert "hello on file descriptor 1" in ended.stderr
    assert report.pop("error", "").startswith(expected.pop("error", ""))
    assert report == {"installed": True, "version": "14.2.0", "cuda": {"runtime": "12.9", "NVRTC": "12.9"}, **expected}
    assert Library.model_validate_json(line).version == "14.2.0"


FAKE_JAX = """
    import contextlib
    import numpy as np
    from types import SimpleNamespace

    __version__ = "0.10.2"
    devices = lambda: [SimpleNamespace(platform="cpu", device_kind="cpu")]
    default_device = contextlib.nullcontext
    numpy = SimpleNamespace(matmul=np.matmul)
    lax = SimpleNamespace(conv=lambda *arrays, **options: SimpleNamespace(block_until_ready=lambda: None))
"""


@pytest.mark.parametrize("plugin", [None, "xla_cuda12"])
def test_the_jax_probe_works_with_and_without_a_plug_in(tmp_path, plugin):
    (tmp_path / "jax.py").write_text(textwrap.dedent(FAKE_JAX))
    plugins = tmp_path / "jax_plugins"
    plugins.mkdir()
    (plugins / "__init__.py").touch()  # hides the plug-ins that are installed
    if plugin:
        (plugins / plugin).mkdir()
    report = json.loads(run_probe_module("jax", path=tmp_path).stdout)
    cuda = {"cuda": {"runtime": "12"}} if plugin else {}
    assert report == {"installed": True, "version": "0.10.2", "gpus": [], "computed_on": ["CPU"], **cuda}


def test_ctrl_c_ends_a_library_that_hangs_outside_of_python(tmp_path):
    (tmp_path / "torch.py").write_text("print('busy', flush=True); sum(range(10**12))")
    command = [sys.executable, "-m", "altlas_lib.environment.probe", "torch"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(tmp_path)}) as process:
        assert process.stderr.readline() == b"busy\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == -signal.SIGINT
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("source", "report"),
    [
        ("raise ImportError('libtorch.so: no such file')", {"error": "ImportError: libtorch.so: no such file"}),
        ("import sys; sys.stdout.close(); raise MemoryError", {"error": "MemoryError: "}),
    ],
)
def test_a_library_that_does_not_load_is_reported(tmp_path, source, report):
    (tmp_path / "torch.py").write_text(source)
    ended = run_probe_module("torch", path=tmp_path)
    assert json.loads(ended.stdout) == {"installed": True, **report}


# Facts of this machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "-m", "ipykernel_launcher"], sys.executable),
        (["python3", "-m", "ipykernel_launcher"], sys.executable),
        (["/elsewhere/bin/python", "-m", "ipykernel_launcher"], "/elsewhere/bin/python"),
    ],
)
def test_the_kernelspec_is_read_as_jupyter_reads_it(tmp_path, monkeypatch, argv, expected):
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert facts_module._kernel_python() == expected


@pytest.fixture(scope="module")
def findings():
    """The real check of this machine, once."""
    return environment.check_environment()


def test_this_machine_runs_its_own_tests_and_so_is_ready(findings):
    assert environment.is_ready(findings), environment.format_findings(findings)
    by_check = {finding.check: finding for finding in findings}
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in by_check["Python"].found
    assert by_check["Keras"].status == "ok"
    assert "computed on" in by_check["NumPy"].found


def test_findings_survive_json(findings):
    assert [Finding.model_validate_json(finding.model_dump_json()) for finding in findings] == findings


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_found(findings):
    by_check = {finding.check: finding for finding in findings}
    assert by_check["NVIDIA driver"].status == "ok"
    assert by_check["GPU 0"].status == "ok"
    assert "GiB" in by_check["GPU 0"].found
    assert by_check["CuPy"].status != "failure"
    assert "computed on" in by_check["CuPy"].found
    assert "runtime" in by_check["CuPy"].found


def test_the_terminal_shows_each_fix_unbroken(findings, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    facts = changed(T4_SERVER, libraries={"cupy": MISSING}, kernel_python=None)
    text = environment.format_findings(findings_from(facts))
    assert text.splitlines()[-1] == "not ready (1 failure, 1 warning)"
    for finding in findings_from(facts):
        assert f"[{finding.status}]" in text
        assert finding.fix is None or f"fix: {finding.fix}\n" in text


def test_text_from_elsewhere_is_escaped_in_the_notebook():
    hostile = Finding(check="Keras", status="failure", found="<script>alert(1)</script>", fix="<b>x</b>")
    html = environment.findings_table([hostile]).to_html()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "✗ failure" in html


# Ceilings ----------------------------------------------------------------------------------------------------------------


def test_ceilings_of_this_cpu(monkeypatch):
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    ceilings = environment.measure_ceilings(matrix_size=64, copy_mib=1, n_runs=3)
    for rate, unit in ((ceilings.cpu_matmul_float32, "GFLOP/s"), (ceilings.cpu_copy_bandwidth, "GB/s")):
        assert (rate.unit, rate.basis, rate.n_runs) == (unit, "measured", 3)
        assert rate.device == str(devices.describe_cpu())
        assert 0 < rate.low <= rate.value <= rate.high
    assert ceilings.gpu_matmul_float32 is None
    assert "not measured" in environment.ceilings_table(ceilings).to_html()


def test_rates_count_operations_and_bytes_as_documented(monkeypatch):
    def took(work, n_runs):
        work()
        return [0.5, 0.25, 1.0][:n_runs]

    monkeypatch.setattr(ceilings_module, "_cpu_seconds", took)
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    ceilings = environment.measure_ceilings(matrix_size=100, copy_mib=10, n_runs=3)
    assert ceilings.cpu_matmul_float32.value == pytest.approx(2 * 100**3 / 0.5 / 1e9)
    assert ceilings.cpu_copy_bandwidth.value == pytest.approx(2 * 10 * 2**20 / 0.5 / 1e9)
    assert ceilings.cpu_copy_bandwidth.high == pytest.approx(2 * 10 * 2**20 / 0.25 / 1e9)


def test_warm_up_runs_are_not_counted():
    calls = []
    seconds = ceilings_module._cpu_seconds(lambda: calls.append(1), 4)
    assert len(seconds) == 4
    assert len(calls) > 4


def test_the_array_that_is_copied_exceeds_the_caches(monkeypatch):
    monkeypatch.setattr(devices, "memory_available_bytes", lambda: 2**40)
    for cache, expected in ((None, 2**28), (2**20, 2**28), (2**29, 2**31)):
        monkeypatch.setattr(devices, "last_level_cache_bytes", lambda cache=cache: cache)
        assert ceilings_module._beyond_the_caches() == expected
    monkeypatch.setattr(devices, "memory_available_bytes", lambda: 2**30)
    assert ceilings_module._beyond_the_caches() == 2**27


@pytest.mark.parametrize("name", ["matrix_size", "copy_mib", "gpu_matrix_size", "n_runs"])
@pytest.mark.parametrize("value", [0, -5])
def test_sizes_below_one_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: expected 1 or more"):
        environment.measure_ceilings(**{name: value})


def test_gpu_rates_count_as_documented(monkeypatch):
    """The GPU half with NumPy in CuPy's place and a clock that always says 0.5 s: sizes, directions and units."""
    copies = []

    class OnGpu(np.ndarray):
        data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))

    def memcpy_async(target, source, n_bytes, kind, stream):
        copies.append((n_bytes, kind))

    def benchmark(work, n_repeat, n_warmup):
        work()
        return SimpleNamespace(gpu_times=np.full((1, n_repeat), 0.5))

    pool = SimpleNamespace(free_all_blocks=lambda: None)
    runtime = SimpleNamespace(
        getDeviceProperties=lambda i: {"name": b"Tesla T4"},
        memcpyAsync=memcpy_async,
        memcpyHostToDevice=1,
        memcpyDeviceToHost=2,
        memcpyDeviceToDevice=3,
    )
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(
        runtime=runtime, Device=lambda: SimpleNamespace(id=0), get_current_stream=lambda: SimpleNamespace(ptr=0)
    )
    cupy.uint8, cupy.asarray, cupy.empty_like, cupy.matmul = np.uint8, np.asarray, np.empty_like, np.matmul
    cupy.ones = lambda *a: np.ones(*a).view(OnGpu)
    cupy.zeros = lambda *a: np.zeros(*a).view(OnGpu)
    cupy.get_default_memory_pool = cupy.get_default_pinned_memory_pool = lambda: pool
    for name, module in {
        "cupy": cupy,
        "cupyx": SimpleNamespace(empty_pinned=np.empty),
        "cupyx.profiler": SimpleNamespace(benchmark=benchmark),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    free = 2**20
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.setattr(devices, "memory_stats", lambda device: devices.MemoryStats(device, free, free))

    ceilings = environment.measure_ceilings(matrix_size=8, copy_mib=1, gpu_matrix_size=1024, n_runs=2)

    n, n_bytes = 128, free // 4  # three float32 matrices of 256 x 256 would take more than half of 1 MiB
    assert ceilings.gpu_matmul_float32.value == ceilings.gpu_matmul_float16.value == pytest.approx(2 * n**3 / 0.5 / 1e9)
    assert ceilings.gpu_copy_bandwidth.value == pytest.approx(2 * n_bytes / 0.5 / 1e9)
    host_copies = [f"{way}_{kind}" for way in ("host_to_device", "device_to_host") for kind in ("pageable", "pinned")]
    for name in host_copies:
        assert getattr(ceilings, name).value == pytest.approx(n_bytes / 0.5 / 1e9)
    assert copies == [(n_bytes, kind) for kind in (3, 1, 2, 1, 2)]
    assert {getattr(ceilings, name).device for name in Ceilings.model_fields if not name.startswith("cpu")} == {"Tesla T4"}


@pytest.mark.gpu
def test_ceilings_of_the_gpu_are_below_its_data_sheet():
    import cupy

    ceilings = environment.measure_ceilings(matrix_size=256, copy_mib=1, gpu_matrix_size=4096, n_runs=3)
    for name in Ceilings.model_fields:
        rate = getattr(ceilings, name)
        assert rate.basis == "measured", name
        assert 0 < rate.low <= rate.value <= rate.high, name
    try:
        spec = devices.find_gpu(cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())
    except ValueError as error:
        pytest.skip(str(error))
    # A rate beyond the peak would mean that the clock stopped before the GPU did.
    assert ceilings.gpu_matmul_float32.value < 1.1 * 1000 * spec.float32_tflops
    assert ceilings.gpu_matmul_float16.value < 1.1 * 1000 * spec.float16_tensor_tflops
    assert ceilings.gpu_copy_bandwidth.value < 1.1 * spec.memory_bandwidth_gb_per_s


# What the reader sees --------------------------------------------------------------------------------------------------------


def measured(value: float, unit: str, device: str) -> Quantity:
    return Quantity.measured([0.9 * value, value, 1.2 * value], unit, device)


CPU_CEILINGS = Ceilings(
    cpu_matmul_float32=measured(200, "GFLOP/s", "AMD EPYC (2 threads)"),
    cpu_copy_bandwidth=measured(40, "GB/s", "AMD EPYC (2 threads)"),
)
GPU_CEILINGS = CPU_CEILINGS.model_copy(
    update={
        name: measured(10_000 if "matmul" in name else 300, "GFLOP/s" if "matmul" in name else "GB/s", "Tesla T4")
        for name in Ceilings.model_fields
        if not name.startswith("cpu")
    }
)


@pytest.mark.parametrize("ceilings", [CPU_CEILINGS, GPU_CEILINGS], ids=["CPU", "GPU"])
def test_figures_tell_measured_from_data_sheet(ceilings):
    for draw in (plots.matrix_rates, plots.copy_bandwidths, plots.roofline):
        with figures.figure() as (fig, ax):
            assert draw(ax, ceilings, devices.find_gpu("T4")) is ax
            labels = " ".join(text.get_text() for text in ax.get_legend().get_texts())
            assert "measured" in labels
            assert "data sheet peak" in labels
            assert "AMD EPYC" in ax.get_xlabel()
            assert ("Tesla T4" in ax.get_xlabel()) == (ceilings is GPU_CEILINGS)
            assert ax.get_title("left")
            fig.savefig(io.BytesIO())


def test_the_roof_bends_where_arithmetic_overtakes_memory():
    with figures.figure() as (_, ax):
        plots.roofline(ax, CPU_CEILINGS, devices.find_gpu("T4"))
        intensity, roof = ax.get_lines()[0].get_data()
        assert "5 operations per byte" in ax.get_title("left")
    np.testing.assert_allclose(roof, np.minimum(40 * intensity, 200))


def test_the_sentence_names_devices_numbers_and_their_basis():
    t4 = devices.find_gpu("T4")
    sentence = environment.summarize(findings_from(LAPTOP), CPU_CEILINGS, t4)
    assert sentence == (
        "This machine is ready (1 warning): AMD EPYC (2 threads) multiplies float32 matrices at 200 GFLOP/s and copies "
        "memory at 40 GB/s (measured); the data sheet of the T4 promises 8,100 GFLOP/s and 320 GB/s."
    )
    assert "Tesla T4 at 10,000 GFLOP/s and 300 GB/s" in environment.summarize(findings_from(T4_SERVER), GPU_CEILINGS, t4)


# Licences ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "declared", "flag"),
    [
        ({"License-Expression": "BSD-3-Clause"}, "BSD-3-Clause", None),
        ({"License-Expression": "MPL-2.0 AND MIT"}, "MPL-2.0 AND MIT", "copyleft"),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT License", None),
        ({"Classifier": "License :: OSI Approved", "License": "LGPLv3\nlong text"}, "LGPLv3", "copyleft"),
        ({"Classifier": "License :: Other/Proprietary License"}, "Other/Proprietary License", "proprietary"),
        ({"License": "GNU General Public License"}, "GNU General Public License", "copyleft"),
        ({"Classifier": "Programming Language :: Python"}, "not declared", "not declared"),
    ],
)
def test_declared_licences_are_read_and_flagged(monkeypatch, headers, declared, flag):
    about = Message()
    for name, value in {"Version": "1.0", **headers}.items():
        about[name] = value
    monkeypatch.setattr(metadata, "distributions", lambda name: [SimpleNamespace(metadata=about, version="1.0")])
    (licence,) = environment.licences(["some-package"])
    assert (licence.declared, licence.flag) == (declared, flag)


def test_the_projects_own_tools_are_listed_and_what_is_not_installed_is_left_out():
    found = {licence.package: licence for licence in environment.licences()}
    assert found["numpy"].declared.startswith("BSD")
    assert found["tqdm"].flag == "copyleft"
    assert "bundled parts need review" in environment.licence_table(list(found.values())).to_html()
    assert environment.licences(["no-such-package"]) == []
