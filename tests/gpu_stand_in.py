"""A strict stand-in for CuPy, so that the source that runs on a GPU is executed on every machine.

Arrays are NumPy's inside but refuse what CuPy refuses: mixing with NumPy's, converting without being asked, functions beyond
those listed, each of which CuPy has. Kernels are compiled by the C++ compiler, with `cuda_on_cpu.h` in front, and run; their
arguments are checked against their parameters, which CuPy does not do. Memory that a GPU would still be reading is watched.
Float16 products are off by what tensor cores may be off, at random.
"""

import contextlib
import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
import types
import typing
import weakref
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
SHARED_BYTES = 48 * 1024  # of a block, at most, without asking the driver for more
SCALARS = {
    "int": np.int32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "float": np.float32,
}


def host(x):
    """What stands in a stand-in array; NumPy arrays are refused."""
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(x, tuple):
        return tuple(map(host, x))
    return x._host if isinstance(x, StandInArray) else x


class OutOfMemoryError(MemoryError):
    pass


class Memory:
    """What the stand-in's arrays take, temporary ones included."""

    def __init__(self, limit_bytes):
        self.limit_bytes = limit_bytes
        self.used_bytes = self.peak_bytes = 0
        self.owners = set()

    def hold(self, array):
        if array.base is not None or id(array) in self.owners:
            return
        if self.used_bytes + array.nbytes > self.limit_bytes:
            raise OutOfMemoryError(f"Out of memory allocating {array.nbytes:,} bytes")
        self.owners.add(id(array))
        self.used_bytes += array.nbytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        weakref.finalize(array, self.release, id(array), array.nbytes)

    def release(self, owner, n_bytes):
        self.owners.discard(owner)
        self.used_bytes -= n_bytes


class StandInArray(np.lib.mixins.NDArrayOperatorsMixin):
    memory = Memory(2**30)  # of the GPU

    def __init__(self, host_array):
        self._host = np.asarray(host_array)
        self.memory.hold(self._host)

    def __array__(self, *arguments, **named):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **named):
        assert method == "__call__"
        if out is not None:
            named["out"] = host(out)
        return StandInArray(ufunc(*map(host, inputs), **named))

    def __getitem__(self, key):
        return StandInArray(self._host[host(key)])

    def __setitem__(self, key, value):
        self._host[host(key)] = host(value)

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __getattr__(self, name):
        if name in {"shape", "dtype", "ndim", "itemsize", "size"}:
            return getattr(self._host, name)
        if name == "T":
            return StandInArray(self._host.T)
        if name in {"all", "astype", "copy", "reshape"}:
            return lambda *arguments, **named: StandInArray(getattr(self._host, name)(*map(host, arguments), **named))
        raise AttributeError(name)

    def set(self, array, stream):
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        assert (array.dtype, array.shape) == (self.dtype, self.shape)
        self._host[...] = array
        stream.copies.append(Copy(array))


def on_stand_ins(function):
    def call(*arguments, **named):
        return StandInArray(function(*map(host, arguments), **{name: host(value) for name, value in named.items()}))

    return call


def matmul(a, b, out=None):
    """cuBLAS's: float16 is added up in float32 less carefully than on a CPU, and a NaN stays in its row or column."""
    if a.dtype != np.float16:
        return on_stand_ins(np.matmul)(a, b, **({} if out is None else {"out": out}))
    assert cublas.mode == 16, "cuBLAS may add float16 products in float16"
    with np.errstate(invalid="ignore"):
        products = np.matmul(host(a).astype(np.float32), host(b).astype(np.float32))
    allowed = a.shape[1] * 2.0**-22
    products += np.random.default_rng(products.size).uniform(-allowed, allowed, products.shape).astype(np.float32)
    out[...] = StandInArray(products.astype(np.float16))
    return out


class StandInStream:
    """Does all at once, but remembers which host memory a GPU would still be reading."""

    current = None

    def __init__(self, non_blocking=False):
        self.copies = []

    def __enter__(self):
        self.outer, StandInStream.current = StandInStream.current, self
        return self

    def __exit__(self, *_):
        StandInStream.current = self.outer

    def record(self):
        return StandInEvent(self.copies[:])

    def wait_event(self, event):
        assert isinstance(event, StandInEvent)

    def synchronize(self):
        self.record().synchronize()


class StandInEvent:
    def __init__(self, copies):
        self.copies, self.time_s = copies, time.perf_counter()

    def synchronize(self):
        for copy in self.copies:
            copy.finish()


class Copy:
    """A copy to the GPU: what it reads must stay as it is until somebody has waited for it."""

    unfinished: typing.ClassVar[set["Copy"]] = set()

    def __init__(self, array):
        self.array, self.bytes = array, array.tobytes()
        self.unfinished.add(self)

    def finish(self):
        if self in self.unfinished:
            assert self.array.tobytes() == self.bytes, "pinned memory was overwritten while the GPU read it"
            self.unfinished.discard(self)


StandInStream.current = StandInStream()


class cublas:
    mode = 0

    @classmethod
    def getMathMode(cls, handle):
        return cls.mode

    @classmethod
    def setMathMode(cls, handle, mode):
        cls.mode = mode


class StandInPool:
    malloc = None

    def total_bytes(self):
        return StandInArray.memory.peak_bytes


class RawModule:
    """CuPy's, for kernels without templates."""

    schedule = 0  # in which order the threads of a block run: 0 ascending, 1 descending, others at random

    def __init__(self, *, code, options=()):
        self.code = code

    def get_function(self, name):
        found = re.search(rf'extern "C" __global__ void {name}\((.*?)\)', self.code, re.DOTALL)
        parameters = [parameter.rsplit(None, 1) for parameter in re.sub(r"\*\s*", "* ", found[1]).split(",")]
        types_of = [kind.replace("const ", "").strip() for kind, _ in parameters]
        return functools.partial(self._launch, getattr(compile_for_cpu(self.code), f"launch_{name}"), types_of)

    def _launch(self, launch, types_of, grid, block, args, *, shared_mem=0):
        aliases = dict(re.findall(r"^typedef ([\w ]+?) (\w+);", self.code, re.MULTILINE))
        kinds = {alias: kind for kind, alias in aliases.items()}
        assert len(args) == len(types_of), f"{len(args)} arguments for {len(types_of)} parameters"
        assert shared_mem <= SHARED_BYTES
        assert all(size > 0 for size in (*grid, *block)), f"grid {grid}, block {block}"
        values = []
        for argument, kind in zip(args, types_of, strict=True):
            of_pointer = kind.endswith("*")
            kind = kind.rstrip("* ")
            kind = kinds.get(kind, kind)
            if of_pointer:
                assert isinstance(argument, StandInArray), f"{argument!r} for a pointer"
                assert argument._host.flags.c_contiguous
                assert argument.dtype == SCALARS[kind] or argument.dtype == np.float16, f"{argument.dtype} for {kind} *"
                values.append(ctypes.c_void_p(argument._host.ctypes.data))
            else:
                assert type(argument) is SCALARS[kind], f"{type(argument)} for {kind}"
                values.append(np.ctypeslib.as_ctypes_type(argument.dtype)(argument.item()))
        arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        message = launch(*sizes, self.schedule, arguments, ctypes.c_size_t(shared_mem))
        if message:
            raise RuntimeError(message.decode())


@functools.cache
def compile_for_cpu(code):
    """The library of `code`: `launch_<kernel>` of every kernel in it.

    Raises:
        RuntimeError: there is no C++ compiler, or it refuses the source.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise RuntimeError("no C++ compiler (c++, g++, clang++ or $CXX): install one, by which tests run CUDA kernels on a CPU")
    names = re.findall(r'extern "C" __global__ void (\w+)\(', code)
    dynamic = re.search(r"extern __shared__ (\w+) (\w+)\[\];", code)  # the kernel declares it, we define it
    kind, memory = dynamic.groups() if dynamic else ("char", "no_shared_memory")
    launchers = "\n".join(
        f'extern "C" const char *launch_{name}(const unsigned *grid, const unsigned *block, unsigned schedule, '
        f"void **arguments, size_t shared_bytes) {{ return cuda_on_cpu::launch({name}, grid, block, schedule, arguments, "
        f"reinterpret_cast<unsigned char *>({memory}), sizeof {memory}, shared_bytes); }}"
        for name in names
    )
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    try:
        source, library = folder / "kernel.cpp", folder / "kernel.so"
        storage = f"thread_local {kind} {memory}[{SHARED_BYTES} / sizeof({kind})];"
        source.write_text(f'#include "{HEADER}"\n#line 1 "kernel.cu"\n{code}\n{storage}\n{launchers}\n')
        command = [
            compiler,
            "-std=c++17",
            "-O2",
            "-U_FORTIFY_SOURCE",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(source),
        ]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode:
            raise RuntimeError(compiled.stderr)
        loaded = ctypes.CDLL(str(library))
    finally:
        shutil.rmtree(folder)  # what is loaded stays
    for name in names:
        getattr(loaded, f"launch_{name}").restype = ctypes.c_char_p
    return loaded


def stand_in_cupy(free_bytes):
    """A module to put in CuPy's place, that says to have `free_bytes`; what it has is `StandInArray.memory`."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.RawModule = StandInArray, RawModule
    for name in ("inf", "nan", "float16", "float32", "float64", "int32", "int64", "uint64"):
        setattr(cupy, name, getattr(np, name))
    for name in (
        *("arange", "argsort", "ascontiguousarray", "clip", "count_nonzero", "cumsum", "dot", "empty", "flatnonzero", "full"),
        *("isfinite", "partition", "take_along_axis", "where", "zeros"),
    ):
        setattr(cupy, name, on_stand_ins(getattr(np, name)))
    cupy.matmul = matmul
    cupy.asarray = lambda x: x if isinstance(x, StandInArray) else StandInArray(np.array(x))
    cupy.asnumpy = lambda x: x._host.copy()
    cupy.linalg = types.SimpleNamespace(norm=on_stand_ins(np.linalg.norm))
    cupy.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        get_current_stream=lambda: StandInStream.current,
        Stream=StandInStream,
        get_elapsed_time=lambda begun, ended: 1000 * (ended.time_s - begun.time_s),
        alloc_pinned_memory=bytearray,
        cublas=cublas,
        device=types.SimpleNamespace(get_cublas_handle=lambda: 0),
        Device=lambda: types.SimpleNamespace(id=0),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        MemoryPool=StandInPool,
        using_allocator=lambda allocator: contextlib.nullcontext(),
        runtime=types.SimpleNamespace(
            memGetInfo=lambda: (free_bytes, 2 * free_bytes), getDeviceProperties=lambda device: {"name": b"stand-in for a GPU"}
        ),
    )
    return cupy
