"""Chapter 10: the operations on arrays that the tracer saw."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from .quantity import Model

OperationKind = Literal[
    "product", "elementwise", "reduction", "sort", "gather", "fft", "factorisation", "copy", "model", "view", "unknown"
]


class ArrayOperation(Model):
    """Calls of one operation on arrays of one shape, in one run of one function."""

    name: str  # as the library calls it: 'numpy.matmul' (also for @), 'ndarray.argsort'
    kind: OperationKind
    rate: str = ""  # class of rate, as operations.toml names it; empty: its kind's
    sizes: dict[str, float] = Field(default={})  # what its rate depends on besides, such as m, n and k of a product
    operands: list[str]  # 'float32[4000, 384]' for each array among the arguments
    dtype: str  # that it computes in
    n_calls: PositiveInt
    time_s: NonNegativeFloat  # all calls together
    flops: NonNegativeFloat | None = None  # all calls together; None: not known
    moved_bytes: NonNegativeFloat | None = None  # read and written, all calls together; None: not known
    working_set_bytes: NonNegativeFloat = 0  # operands and result of one call
    n_kernels: NonNegativeInt = 1  # that a GPU would start for one call


class HiddenTransfer(Model):
    """A place that would copy between GPU and host each time it runs, were its arrays on a GPU."""

    line: int
    what: str  # 'float(x)', 'truth of an array', 'iteration'
    n_times: PositiveInt  # in one run


class ArrayTrace(Model):
    """What the tracer saw of one of the user's functions in one run: every operation on arrays that its own lines asked for."""

    function: str  # qualified name
    file: str
    line: int
    n_calls: PositiveInt
    operations: list[ArrayOperation]
    n_element_accesses: NonNegativeInt = 0  # single elements read or written: a Python loop over an array
    input_bytes: NonNegativeFloat  # arrays that came as arguments, all calls together
    output_bytes: NonNegativeFloat  # arrays that were returned, all calls together
    hidden_transfers: list[HiddenTransfer] = Field(default=[])  # by line; looked for where a port is checked

    @property
    def operations_s(self) -> float:
        return sum(operation.time_s for operation in self.operations)

    @property
    def known_s(self) -> float:
        """Time of the operations whose cost is known."""
        return sum(operation.time_s for operation in self.operations if operation.kind != "unknown")
