"""What a stack's innermost native frames do: the class of its time.

From the leaf outwards, the first frame that says something decides. The C library and CPython's own object code say nothing:
they allocate, copy and count references for whoever called them. So a dict that the JSON scanner fills is parsing, and one that
the user's line fills, without a native frame that says more, is the interpreter. A wait is remembered on the way: it is
waiting, unless an array library or a framework waits for its own threads. Code without a file was compiled at run time: it is a
kernel of the library that called it, natively or from Python, else what a compiler of array code (Numba) made of a function.
"""

import contextlib
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...results import TimeClass


class NativeFrame(NamedTuple):
    function: str
    file: str  # shared library or, with debugging information, source; may be empty, as of code compiled at run time


class _Rule(NamedTuple):
    time_class: TimeClass
    files: re.Pattern[str]
    functions: re.Pattern[str]

    def holds(self, frame: NativeFrame) -> bool:
        return bool(self.files.search(frame.file) and self.functions.search(frame.function))


def _rule(time_class: TimeClass, files: str, functions: str = "") -> _Rule:
    return _Rule(time_class, re.compile(files), re.compile(functions))


def _packages(names: str) -> str:
    """The compiled files of installed packages, and the libraries that their wheels bring along."""
    return rf"/(?:{'|'.join(names.split())})(?:\.libs)?[/.]"


_COMPILED = re.compile(
    r"\.(?:so|dylib|pyd)[.\d]*$|\.(?:c|cc|cpp|cxx|h|hh|hpp|hxx|tcc|inl|ipp|cu|cuh|rs|pyx|pxd|pxi|f|f90|s|S)$|^\[?vdso"
)
_CPYTHON = re.compile(
    r"/libpython3[\d.]*t?\.(?:so|dylib)|/python3?[\d.]*t?$|/(?:Modules|Objects|Python|Include|Parser)/[\w./]+\.[ch]$"
)
_SYSTEM = re.compile(
    r"/(?:libc|libm|libpthread|libdl|librt|ld-linux[\w-]*|ld-musl[\w-]*|libstdc\+\+|libgcc_s|libjemalloc|libtcmalloc\w*"
    r"|libmimalloc)[-.\d]*(?:\.so[.\d]*)?$|vdso"
)
_WAIT = re.compile(  # what a thread sleeps in, by the C library's names: time, locks, processes, files, sockets
    r"^_*(?:libc_|GI_)*(?:(?:clock_)?nanosleep|usleep|futex\w*|sem_\w*wait\w*|pthread_(?:cond|mutex|rwlock|join|clockjoin)\w*"
    r"|lll_lock_wait\w*|sched_yield|wait(?:4|pid|id)|e?poll(?:_p?wait2?)?|ppoll|p?select(?:64)?|kevent"
    r"|p?(?:read|write)v?(?:64)?|recv\w*|send\w*|connect|accept4?|open(?:at)?(?:64)?|[fl]?stat(?:at)?(?:64)?|f(?:data)?sync|flock"
    r"|getdents\w*|io_getevents|syscall)(?:_nocancel)?$"
)
# What waits for another thread or process, by CPython's names; without names, a call of the kernel in the C library's locks.
_LOCKS_AND_LOOPS = re.compile(
    r"take_gil|PyThread_acquire_lock|_Py(?:Semaphore_Wait|ParkingLot_Park)|acquire_timed|rlock_acquire|lock_acquire|SemLock_acquire"
    r"|SimpleQueue_get|ThreadHandle_join|^uv__io_poll|^uv_run|^syscall$"
)
_SYSCALLS = {"x86_64": b"\x0f\x05", "aarch64": b"\x01\x00\x00\xd4"}  # the instruction that enters the kernel
_NUMBERS = "byte|u?short|u?int|u?long|u?longlong|half|float|double|longdouble|cfloat|cdouble|clongdouble"
_RULES = (
    _rule("regex", _CPYTHON.pattern, r"^_?(?:sre_|pattern_)"),
    _rule("regex", rf"{_packages('regex re2 hyperscan pcre2?')}|/_sre\b|/_?(?:lib)?(?:re2|pcre2?|hs)\b"),
    _rule(
        "parsing",
        _CPYTHON.pattern,
        r"^(?:scan_once|scanner_|scanstring|_(?:parse|match)_\w+_unicode|encoder_|ascii_escape|Reader_iter"
        r"|parse_(?:process|add|save)_|csv_write|_pickle_|(?:save|load)_(?:dict|list|tuple|str|unicode|long|float|reduce)"
        r"|[rw]_object|zlib_(?:de)?compress)",
    ),
    _rule(
        "parsing",
        _packages("orjson ujson rapidjson simdjson msgspec msgpack cbor2 pydantic_core lxml yaml ruamel selectolax ijson")
        + r"|/_?(?:json|csv|pickle|marshal|struct|binascii|pyexpat|elementtree|zlib|zlibmodule|bz2|lzma|zstd|brotli)\b[\w.-]*$"
        r"|/lib(?:xml2|yaml|expat|z|bz2|lzma|zstd|brotli\w*|snappy|lz4|parquet|protobuf)\b|/google/(?:_upb|protobuf)/"
        r"|/pandas/_libs/(?:parsers|json|writers)",
        r"^(?!.*(?:crc32|adler32))",  # checksums
    ),
    _rule(
        "framework",
        _packages("tensorflow torch jaxlib mxnet paddle tflite_runtime mlx") + r"|/lib(?:torch|tensorflow|c10)",
    ),
    # Numbers in boxes, one by one: Python's work, though NumPy does it.
    _rule("interpreter", "/numpy/", rf"^(?:gentype_|convert_to_|PyArray_Scalar|(?:{_NUMBERS})_(?!pairwise|sum_of)[a-z_]+$)"),
    _rule(
        "arrays",
        _packages(
            "numpy scipy scikit_learn sklearn pandas numba llvmlite numexpr bottleneck pyarrow polars cupy statsmodels "
            r"onnxruntime faiss usearch hnswlib xgboost lightgbm cv2 opencv[\w_]* skimage PIL pillow pywt pyfftw h5py"
        )
        + r"|openblas|mkl_|/lib(?:mkl|blas|cblas|lapack|blis|gfortran|gomp|omp|iomp|tbb|fftw|arrow|cuda|cublas|cufft|cusolver)"
        r"|/(?:Accelerate|vecLib)\b",
    ),
)


class CodeMaps:
    """Where code lies in the memory of processes: tells a call of the kernel where the C library has no symbols.

    A thread that sleeps does so in the kernel, so its innermost address is that after the instruction which enters it. Linux.
    """

    def __init__(self, pids: Iterable[int]):
        self._maps = []
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended; what it was forked from has the same addresses
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                    extent, mode, offset, _, _, *file = line.split(maxsplit=5)
                    if "x" in mode and file and _SYSTEM.search(file[0]):
                        start, end = (int(address, 16) for address in extent.split("-"))
                        self._maps.append((start, end, int(offset, 16), file[0], f"/proc/{pid}/root{file[0]}"))

    def name_of(self, function: str, file: str) -> str:
        """'syscall' for a nameless address in the C library behind a call of the kernel; else `function` as it is."""
        instruction = _SYSCALLS.get(platform.machine())
        if instruction and function.startswith("0x") and _SYSTEM.search(file):
            address = int(function, 16)
            for start, end, offset, mapped, readable in self._maps:
                if start <= address < end and mapped == file:
                    with contextlib.suppress(OSError), open(readable, "rb") as code:
                        code.seek(offset + address - start - len(instruction))
                        return "syscall" if code.read(len(instruction)) == instruction else function
        return function


def is_native(file: str) -> bool:
    """Whether a frame's file is that of compiled code: a script may have any other name."""
    return not file or bool(_COMPILED.search(file) or _CPYTHON.search(file))


def time_class(frames: Iterable[NativeFrame], python_file: str = "") -> TimeClass:
    """Of the native frames within the innermost Python frame, leaf first; without any it is the interpreter."""
    waits = is_unknown = is_compiled_at_run_time = False
    for frame in frames:
        if _SYSTEM.search(frame.file):
            waits = waits or bool(_WAIT.match(frame.function))
        elif found := _class_of(frame):
            return "waiting" if waits and found not in ("arrays", "framework") else found
        elif _CPYTHON.search(frame.file):
            waits = waits or bool(_LOCKS_AND_LOOPS.search(frame.function))
        elif frame.file:
            is_unknown = True
        else:
            is_compiled_at_run_time = True
    if waits:
        return "waiting"
    if is_compiled_at_run_time and not is_unknown:
        return _class_of(NativeFrame("", python_file)) or "arrays"
    return "other native" if is_unknown else "interpreter"


def _class_of(frame: NativeFrame) -> TimeClass | None:
    return next((rule.time_class for rule in _RULES if rule.holds(frame)), None)


def waits_for_threads(frames: Sequence[NativeFrame]) -> bool:
    """Whether a thread waits until another one does something: for a lock, for the interpreter, in an event loop."""
    return any(_LOCKS_AND_LOOPS.search(frame.function) for frame in frames)
