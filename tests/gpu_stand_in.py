"""A strict stand-in for CuPy, so that the source that runs on a GPU is executed on every machine.

Arrays are NumPy's inside but refuse what CuPy refuses: mixing with NumPy's, converting without being asked, functions beyond
those listed, each of which CuPy has. Kernels are compiled by the C++ compiler, with `cuda_on_cpu.h` in front, and run; their
arguments are checked against their parameters, which CuPy does not do. Float16 products are off by what tensor cores may be
off, at random.

What is asked of a stream is queued, and done as late, or as early, as events and synchronisation allow: see `Machine`.
Memory that is given back goes to whoever asks next in the same stream, as from CuPy's pool, whatever other streams still do
with it. So an order that is not enforced shows as a wrong answer, or as an error.
"""

import collections
import contextlib
import ctypes
import functools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
import typing
import weakref
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
SHARED_BYTES = 48 * 1024  # of a block, at most, without asking the driver for more
GRID_LIMITS = 2**31 - 1, 65535, 65535  # of every GPU that this is compiled for; blocks: 1024 threads, 64 of them in z
SCALARS = {
    "int": np.int32,
    "unsigned int": np.uint32,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "unsigned char": np.uint8,
    "float": np.float32,
    "double": np.float64,
}
# What a pointer may point to, beside its own kind: two and four of them, read at once, and half precision.
VECTORS = {"ulonglong2": np.float16, "float4": np.float32, "unsigned short": np.float16}


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
    """The GPU's, of so many bytes; what is given back is kept for the stream in which it was allocated."""

    def __init__(self, limit_bytes):
        self.limit_bytes = limit_bytes
        self.used_bytes = self.peak_bytes = 0
        self.free = {}  # stream -> blocks

    def allocate(self, shape, dtype):
        """Garbage of this shape and what owns it: while that lives, nobody else gets it."""
        dtype = np.dtype(dtype)
        n_bytes = max(1, int(np.prod(shape)) * dtype.itemsize)
        stream = Stream.current
        blocks = self.free.setdefault(stream, [])
        fitting = [block for block in blocks if n_bytes <= block.nbytes < 4 * n_bytes]
        block = min(fitting, key=lambda block: block.nbytes) if fitting else np.full(-(-n_bytes // 16) * 16, 0xA5, np.uint8)
        if fitting:
            blocks[:] = [other for other in blocks if other is not block]
        if self.used_bytes + block.nbytes > self.limit_bytes:
            raise OutOfMemoryError(f"Out of memory allocating {n_bytes:,} bytes")
        self.used_bytes += block.nbytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        owner = Owner()
        weakref.finalize(owner, self.release, stream, block).atexit = False
        return block[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape), owner

    def release(self, stream, block):
        self.used_bytes -= block.nbytes
        self.free[stream].append(block)


class Owner:
    """Of a block of memory, shared by all arrays in it."""


class StandInArray(np.lib.mixins.NDArrayOperatorsMixin):
    memory = Memory(2**30)  # of the GPU

    def __init__(self, host_array, owner=None):
        self._host = np.asarray(host_array)
        self._owner = owner
        if owner is None:
            values = self._host
            self._host, self._owner = self.memory.allocate(values.shape, values.dtype)
            self._host[...] = values

    def __array__(self, *arguments, **named):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **named):
        assert method == "__call__"
        Stream.current.finish()
        if out is not None:
            ufunc(*map(host, inputs), out=host(out), **named)
            return out[0]
        return StandInArray(ufunc(*map(host, inputs), **named))

    def __getitem__(self, key):
        if isinstance(key, StandInArray):
            Stream.current.finish()
            return StandInArray(self._host[host(key)])
        found = self._host[host(key)]
        is_view = isinstance(found, np.ndarray) and np.shares_memory(found, self._host)
        if is_view or not np.size(found):
            return StandInArray(found, self._owner)
        Stream.current.finish()
        return StandInArray(self._host[host(key)])

    def __setitem__(self, key, value):
        array, key, value = self._host, host(key), host(value)
        Stream.current.ask(lambda: array.__setitem__(key, value))

    def fill(self, value):
        self[...] = value

    def __len__(self):
        return len(self._host)

    def __bool__(self):
        Stream.current.finish()
        return bool(self._host)

    def __int__(self):
        Stream.current.finish()
        return int(self._host)

    def __getattr__(self, name):
        if name in {"shape", "dtype", "ndim", "itemsize", "size", "nbytes"}:
            return getattr(self._host, name)
        if name == "T":
            return StandInArray(self._host.T, self._owner)
        if name == "reshape":
            return lambda *shape: self._view(self._host.reshape(*shape))
        if name in {"all", "any", "astype", "copy", "view"}:

            def call(*arguments, **named):
                Stream.current.finish()
                return StandInArray(getattr(self._host, name)(*map(host, arguments), **named))

            return call
        raise AttributeError(name)

    def _view(self, found):
        assert np.shares_memory(found, self._host) or not found.size, "CuPy would copy"
        return StandInArray(found, self._owner)

    def set(self, array, stream):
        """An asynchronous copy: the host's memory is read when its turn comes."""
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        assert (array.dtype, array.shape) == (self.dtype, self.shape)
        pinned, target = weakref.ref(pinned_memory(array)), self._host
        address = array.ctypes.data

        def copy():
            assert pinned() is not None, "pinned memory was given back before the GPU had read it"
            ctypes.memmove(target.ctypes.data, address, target.nbytes)

        del array
        stream.ask(copy)


class PinnedMemory(bytearray):
    """What `alloc_pinned_memory` gives; it can be watched."""


def pinned_memory(array):
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    while isinstance(array, memoryview):
        array = array.obj
    assert isinstance(array, PinnedMemory), "a copy from memory that is not pinned is not asynchronous"
    return array


def on_stand_ins(function):
    def call(*arguments, **named):
        Stream.current.finish()
        found = function(*map(host, arguments), **{name: host(value) for name, value in named.items()})
        return named["out"] if "out" in named else StandInArray(found)

    return call


def new_array(fill):
    """`cupy.full` and its like: memory at once, its content when its turn comes."""

    def call(shape, *arguments, dtype=float):
        value = fill(*arguments)
        array = StandInArray(*StandInArray.memory.allocate(shape, dtype))
        if value is not None:
            array.fill(value)
        return array

    return call


def asarray(x):
    if isinstance(x, StandInArray):
        return x
    values = np.array(x)
    array = StandInArray(*StandInArray.memory.allocate(values.shape, values.dtype))
    target = array._host
    Stream.current.ask(lambda: target.__setitem__(..., values))  # a snapshot: CuPy stages it
    return array


def asnumpy(x):
    Stream.current.finish()
    return x._host.copy()


def matmul(a, b, out=None):
    """cuBLAS's: float16 is added up in float32 less carefully than on a CPU, and a NaN stays in its row or column."""
    if a.dtype != np.float16:
        return on_stand_ins(np.matmul)(a, b, **({} if out is None else {"out": out}))
    assert cublas.mode == 16, "cuBLAS may add float16 products in float16"
    left, right, target = host(a), host(b), host(out)
    assert target.flags.c_contiguous
    assert all(array.ctypes.data % 16 == 0 for array in (left, right, target)), "not aligned for tensor cores"

    def multiply():
        with np.errstate(invalid="ignore", over="ignore"):
            products = np.matmul(left.astype(np.float32), right.astype(np.float32))
            allowed = left.shape[1] * 2.0**-22
            products += np.random.default_rng(products.size).uniform(-allowed, allowed, products.shape).astype(np.float32)
            target[...] = products

    Stream.current.ask(multiply)
    return out


class Machine:
    """The streams of a GPU, and the order in which they do what is asked of them.

    A stream that is not eager does nothing before somebody waits for it; an eager one goes ahead as far as its events allow,
    whatever the others have not done. Between them lies every order that a GPU may choose.
    """

    eager = frozenset()  # numbers of streams: 0 is the default one, 1 to 3 are others in turn
    ignored = None  # a line of the source whose waiting, recording or synchronising is left out
    pending: typing.ClassVar[list["Stream"]] = []
    n_streams = 0

    @classmethod
    def begin(cls):
        """Nothing is asked of the GPU, and only the default stream is there."""
        cls.pending.clear()
        cls.n_streams = 0
        Stream.current = Stream()

    @classmethod
    def run_ahead(cls):
        """Eager streams do what they can."""
        progress = True
        while progress:
            progress = False
            for stream in [stream for stream in cls.pending if stream.number in cls.eager]:
                while stream.step(forced=False):
                    progress = True

    @classmethod
    def is_left_out(cls):
        """Whether the caller's caller is the line that a test leaves out."""
        frame = sys._getframe(2)
        return cls.ignored == (Path(frame.f_code.co_filename).name, frame.f_lineno)


class Stream:
    current = None

    def __init__(self, non_blocking=False):
        self.queue = collections.deque()
        self.outer = []
        self.number = 1 + (Machine.n_streams - 1) % 3 if Machine.n_streams else 0
        Machine.n_streams += 1

    def __enter__(self):
        self.outer.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *_):
        Stream.current = self.outer.pop()

    def ask(self, act):
        """To do this when its turn comes."""
        if not self.queue:
            Machine.pending.append(self)
        self.queue.append(act)
        Machine.run_ahead()

    def step(self, forced):
        """Do the next thing; False where there is none, or it waits for what only `forced` sets going."""
        if not self.queue:
            return False
        first = self.queue[0]
        if isinstance(first, Event) and first.stream is not self and not first.is_done:
            if not forced:
                return False
            first.synchronize_now()
            if not self.queue or self.queue[0] is not first:
                return True  # it went ahead as soon as it could
        self.queue.popleft()
        if not self.queue:
            Machine.pending.remove(self)
        if isinstance(first, Event):
            if first.stream is self:
                first.is_done, first.time_s = True, time.perf_counter()
        else:
            first()
        return True

    def finish(self):
        while self.step(forced=True):
            Machine.run_ahead()

    def record(self):
        event = Event(self)
        if Machine.is_left_out():
            event.is_done = True  # who waits for an event that was never recorded does not wait
        else:
            self.ask(event)
        return event

    def wait_event(self, event):
        assert isinstance(event, Event)
        if not Machine.is_left_out() and event.stream is not self:
            self.ask(event)

    def synchronize(self):
        if not Machine.is_left_out():
            self.finish()


class Event:
    """In the queue of its own stream it comes to pass; in that of another it is waited for."""

    def __init__(self, stream):
        self.stream, self.is_done, self.time_s = stream, False, None

    def synchronize(self):
        if not Machine.is_left_out():
            self.synchronize_now()

    def synchronize_now(self):
        while not self.is_done and self.stream.step(forced=True):
            Machine.run_ahead()
        assert self.is_done


def elapsed_ms(begun, ended):
    assert None not in (begun.time_s, ended.time_s), "an event that has not come to pass"
    return 1000 * (ended.time_s - begun.time_s)


Machine.begin()


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

    def used_bytes(self):
        return StandInArray.memory.used_bytes

    def free_bytes(self):
        return 0


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
        assert all(0 < size <= most for size, most in zip(grid, GRID_LIMITS, strict=False)), f"grid {grid}"
        assert 0 < math.prod(block) <= 1024, f"block {block}"
        values, kept = [], []  # NumPy's arrays: the stand-in's may be given back before the kernel runs, as on a GPU
        for argument, kind in zip(args, types_of, strict=True):
            of_pointer = kind.endswith("*")
            kind = kind.rstrip("* ")
            kind = kinds.get(kind, kind)
            if of_pointer:
                assert isinstance(argument, StandInArray), f"{argument!r} for a pointer"
                assert argument._host.flags.c_contiguous
                assert argument.dtype == SCALARS.get(kind, VECTORS.get(kind)), f"{argument.dtype} for {kind} *"
                assert kind not in {"ulonglong2", "float4"} or argument._host.ctypes.data % 16 == 0, f"{kind} *: not aligned"
                values.append(ctypes.c_void_p(argument._host.ctypes.data))
                kept.append(argument._host)
            else:
                assert type(argument) is SCALARS[kind], f"{type(argument)} for {kind}"
                values.append(np.ctypeslib.as_ctypes_type(argument.dtype)(argument.item()))
        arguments = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        schedule = self.schedule

        def run():
            message = launch(*sizes, schedule, arguments, ctypes.c_size_t(shared_mem))
            values.clear(), kept.clear()  # until now they had to live
            if message:
                raise RuntimeError(message.decode())

        Stream.current.ask(run)


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
    for name in ("inf", "nan", "float16", "float32", "float64", "int32", "int64", "uint8", "uint32", "uint64"):
        setattr(cupy, name, getattr(np, name))
    for name in (
        *("arange", "argsort", "ascontiguousarray", "clip", "count_nonzero", "cumsum", "dot", "flatnonzero"),
        *("isfinite", "partition", "take_along_axis", "where"),
    ):
        setattr(cupy, name, on_stand_ins(getattr(np, name)))
    cupy.empty, cupy.zeros, cupy.full = new_array(lambda: None), new_array(lambda: 0), new_array(lambda value: value)
    cupy.matmul, cupy.asarray, cupy.asnumpy = matmul, asarray, asnumpy
    cupy.linalg = types.SimpleNamespace(norm=on_stand_ins(np.linalg.norm))
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(
        free_bytes=lambda: 0,
        total_bytes=lambda: StandInArray.memory.peak_bytes,
        used_bytes=lambda: StandInArray.memory.used_bytes,
    )
    ranges = []
    cupy.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        get_current_stream=lambda: Stream.current,
        Stream=Stream,
        get_elapsed_time=elapsed_ms,
        alloc_pinned_memory=PinnedMemory,
        cublas=cublas,
        nvtx=types.SimpleNamespace(RangePush=ranges.append, RangePop=ranges.pop),
        device=types.SimpleNamespace(get_cublas_handle=lambda: 0),
        Device=lambda number=0: types.SimpleNamespace(id=number),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        MemoryPool=StandInPool,
        using_allocator=lambda allocator: contextlib.nullcontext(),
        runtime=types.SimpleNamespace(
            memGetInfo=lambda: (free_bytes, 2 * free_bytes), getDeviceProperties=lambda device: {"name": b"stand-in for a GPU"}
        ),
    )
    Machine.begin()
    return cupy
