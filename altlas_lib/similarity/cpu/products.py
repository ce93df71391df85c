"""The cheap products of a tile, and the bounds that make an exact answer of them: float32 and int8, by ONNX Runtime."""

import functools
import math
import os
from typing import Any, NamedTuple

import numpy as np

from .compiled import Bounds, quantise
from .preparation import UnitRows
from .threads import Block, for_each

# A row of normally distributed values has its largest at sqrt(2 ln d) standard deviations, 3.4 for d = 384. Twice that
# doubles the step of the int8 codes, and the pairs to verify grow several times: worth a rotation.
_OUTLIER_RATIO = 6.0


class Operand(NamedTuple):
    """What a method makes of the rows of one side, for `multiply`."""

    left: np.ndarray  # (n, d), what stands left in a product
    right: list[Any]  # what stands right, by block
    bounds: Bounds  # of all rows


class Float32:
    """Products of the rows as they are.

    Two float32 dot products of the same two unit vectors of d values differ by 2 d 2^-24 at most, in any order of summation:
    each is off by d 2^-24 (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1); one is in the tile,
    the other is the score. The rest of the slack is for scales and offsets.
    """

    name = "float32"
    dtype = np.float32

    def __init__(self, sample: UnitRows) -> None:
        self.slack = np.float32(2.0**-24 * (2 * sample.rows.shape[1] + 32))

    def prepare(self, unit: UnitRows, blocks: list[Block], n_threads: int) -> Operand:
        """What the method needs of the rows."""
        bounds = Bounds.empty(len(unit), self.slack)
        bounds.scale[: len(unit)] = unit.inverse_norms
        return Operand(unit.rows, [unit.rows[block] for block in blocks], bounds)


class Int8:
    """Products of int8 codes of the rows, less their mean, and rotated where a few dimensions would spoil the codes.

    Text embeddings have a large common part, which codes need not hold: (u + c).(v + c) = u.v + u.c + v.c + c.c. A rotation
    (signs at random, then a discrete cosine transform) changes no product and spreads an outlying dimension over all.

    Why a bound (`Bounds`) is one. With e = 2^-24, m the length of the mean, lengths of rows less the mean up to 1 + m <= 2:
    - u.v - p.q <= |u - p| |v| + |p| |v - q| for the vectors p and q that the codes stand for, whose product is exact. Lengths
      are sums of d squares of values that cost up to 512 e to compute: (d + 512) e of them is added.
    - each offset, a float32 product with the mean and half of the mean's square, is off by d (m (1 + m) + m^2 / 2) e, in any
      order of summation; the score by d e.
    - scaling to length 1 and taking off the mean costs 2 (1 + m) e per row, and the bound itself, of terms up to 4, six
      operations on each: less than 48 e.
    - a fast transform costs each row up to 7 e log2 d (Higham 2002, section 24.1), twice that with its scaling; with the
      length of the other row 28, for both 56 e log2 d.
    """

    name = "int8"
    dtype = np.int32

    def __init__(self, sample: UnitRows) -> None:
        d = sample.rows.shape[1]
        unit = sample.rows * sample.inverse_norms[:, None]
        self.mean = unit.mean(axis=0, dtype=np.float32)
        unit -= self.mean
        largest, square = abs(unit).max(axis=1), (unit**2).mean(axis=1)
        usual = square > 0
        ratio = np.median(largest[usual] / np.sqrt(square[usual])) if usual.any() else 0.0
        self.signs = np.random.default_rng(0).choice(np.float32([-1, 1]), d) if ratio > _OUTLIER_RATIO else None
        self.rotated_mean = self._rotate(self.mean[None].copy())[0]
        m = float(np.linalg.norm(self.mean))
        transform = 0 if self.signs is None else 56 * math.log2(d)
        self.slack = np.float32(2.0**-24 * (d * (1 + 2 * m + 3 * m**2) + 48 + transform))

    def _rotate(self, rows: np.ndarray) -> np.ndarray:
        if self.signs is None:
            return rows
        from scipy.fft import dct

        return dct(np.multiply(rows, self.signs, out=rows), norm="ortho", axis=1, overwrite_x=True)

    def prepare(self, unit: UnitRows, blocks: list[Block], n_threads: int) -> Operand:
        """As `Float32.prepare`."""
        n, d = unit.rows.shape
        bounds = Bounds.empty(n, self.slack)
        codes, transposed = np.empty((n, d), np.uint8), [np.empty((d, b.stop - b.start), np.int8) for b in blocks]
        half_square_of_mean = np.float32(self.mean @ self.mean / 2)
        growth = np.float32(1 + (d + 512) * 2.0**-24)

        def make_worker() -> Any:
            centred = np.empty((max(b.stop - b.start for b in blocks), d), np.float32)

            def worker(block: int) -> None:
                some = blocks[block]
                part = np.multiply(unit.rows[some], unit.inverse_norms[some, None], out=centred[: some.stop - some.start])
                part = self._rotate(np.subtract(part, self.mean, out=part))
                of_block = [values[some] for values in bounds[:4]]
                quantise(part, self.rotated_mean, half_square_of_mean, growth, codes[some], transposed[block], *of_block)

            return worker

        for_each(range(len(blocks)), len(blocks), make_worker, n_threads)
        return Operand(codes, transposed, bounds)


# int8 are the codes on the right; those on the left are uint8, the codes plus 128.
_MODELS = {
    "float32": """product (float[m, d] left, float[n, d] right) => (float[m, n] product) {
        product = Gemm<transB = 1>(left, right)
    }""",
    "int8": """product (uint8[m, d] left, int8[d, n] right) => (int32[m, n] product) {
        zero = Constant<value = uint8 {128}>()
        product = MatMulInteger(left, right, zero)
    }""",
}


def multiply(model: str, left: np.ndarray, right: Any, shape: tuple[int, int], products: np.ndarray) -> None:
    """Into the first values of `products`. In the thread that calls it, whatever BLAS is set to: a session has one thread.

    Args:
        right: what the model takes, or what `packed` made of it.
    """
    is_array = isinstance(right, np.ndarray)
    session = _session(model) if is_array else right
    binding = session.io_binding()
    binding.bind_cpu_input("left", left)
    if is_array:
        binding.bind_cpu_input("right", right)
    binding.bind_output("product", "cpu", 0, products.dtype, shape, products.ctypes.data)
    session.run_with_iobinding(binding)


@functools.cache
def _session(model: str) -> Any:
    return packed(model)


os.register_at_fork(after_in_child=_session.cache_clear)  # a thread that is gone may have held a session's lock


def packed(model: str, right: np.ndarray | None = None) -> Any:
    """A session of ONNX Runtime that multiplies, with `right` as a constant if there is one."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime
    from onnx import numpy_helper
    from onnx.parser import parse_model

    product = parse_model(f'<ir_version: 8, opset_import: ["": 13]> {_MODELS[model]}')
    if right is not None:
        del product.graph.input[1]
        product.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(right), "right"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(product.SerializeToString(), options, providers=["CPUExecutionProvider"])


@functools.cache
def int8_problem() -> str | None:
    """Why int8 products cannot be used here, or None.

    Without VNNI instructions some CPUs add pairs of 8-bit products in 16 bits, which overflow: the extremes are tried.
    """
    left, right = np.full((64, 128), 255, np.uint8), np.full((128, 64), 127, np.int8)
    right[:, ::2] = -127
    products = np.empty(64 * 64, np.int32)
    multiply("int8", left, right, (64, 64), products)
    if not np.array_equal(products.reshape(64, 64), (left.astype(np.int32) - 128) @ right.astype(np.int32)):
        return "this CPU has no instructions that multiply 8-bit integers without overflow (VNNI)"
    return None
