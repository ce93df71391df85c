"""The memory of a step without its compiler: walk the step's operations and count what must be there at the same time."""

import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal, Var

# What XLA never makes an array of its own for: it computes these within the operations that read them.
_ARITHMETIC = """
    add add_any sub mul div rem neg abs sign max min clamp floor round pow integer_pow square sqrt rsqrt exp expm1 log log1p
    tanh logistic erf select_n eq ne lt le gt ge and or not xor is_finite shift_left shift_right_logical stop_gradient
"""
_LAYOUT = "broadcast_in_dim concatenate convert_element_type copy copy_p expand_dims iota pad reshape rev slice squeeze"
_OTHERS = "transpose random_bits random_wrap random_unwrap threefry2x32"
_FUSED = frozenset(f"{_ARITHMETIC} {_LAYOUT} {_OTHERS}".split())


def peak_temporary_bytes(jaxpr: Jaxpr) -> int:
    """The most bytes of intermediate results that are needed at one time, in the order of the program.

    An elementwise result takes no memory as long as what it is computed from is there; XLA may fuse less than that, reorder,
    and lay results out one after the other with gaps, all of which is unknown here.
    """
    return _Walk(jaxpr).peak_bytes


class _Walk:
    def __init__(self, jaxpr: Jaxpr):
        self.sources: dict[Var, frozenset[Var]] = {}  # the arrays that a value is read or computed from
        own = set()
        last_use: dict[Var, int] = {}
        inner_bytes = []
        for at, equation in enumerate(jaxpr.eqns):
            read = frozenset().union(*(self._sources(value) for value in equation.invars))
            for array in read:
                last_use[array] = at
            inner = [_Walk(each).peak_bytes for each in _inner_jaxprs(equation)]
            inner_bytes.append(max(inner, default=0))
            for result in equation.outvars:
                fused = equation.primitive.name in _FUSED
                self.sources[result] = read if fused else frozenset([result])
                if not fused:
                    own.add(result)
                    last_use[result] = at
        for result in jaxpr.outvars:  # an update of a weight is written in its place
            for array in self._sources(result):
                last_use[array] = len(jaxpr.eqns)

        freed: dict[int, int] = {}
        for array in own:
            freed[last_use[array]] = freed.get(last_use[array], 0) + _bytes(array)
        live = self.peak_bytes = 0
        for at, equation in enumerate(jaxpr.eqns):
            result_bytes = sum(_bytes(result) for result in equation.outvars if result in own)
            self.peak_bytes = max(self.peak_bytes, live + max(result_bytes, inner_bytes[at]))  # its results are made within
            live += result_bytes - freed.get(at, 0)

    def _sources(self, value: Any) -> frozenset[Var]:
        return frozenset() if isinstance(value, Literal) else self.sources.get(value, frozenset())


def _inner_jaxprs(equation: Any) -> list[Jaxpr]:
    found = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
    return [getattr(each, "jaxpr", each) for each in found if hasattr(each, "eqns") or hasattr(each, "jaxpr")]


def _bytes(array: Var) -> int:
    shape, dtype = array.aval.shape, array.aval.dtype
    return math.prod(shape) * getattr(dtype, "itemsize", 4)
