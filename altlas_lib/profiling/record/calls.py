"""Calls on arrays as the child process describes them: names, shapes, dtypes and parameters, no costs.

The parent prices a `Call` by the table in `project.operations`; `benchmarks.published` makes calls of published timings.
"""

import math
import re
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt
from typing_extensions import TypeAliasType

# An extension type whose name is none of these is described as 'object'.
DTYPE = re.compile(
    r"^((u?int|b?float|complex)\d\w*|bool|mixed|object|string|category|(str|bytes)\d*|(datetime|timedelta)64.*)$"
)


class Array(NamedTuple):
    """An array by what decides its cost; its values are not kept."""

    dtype: Annotated[str, Field(pattern=DTYPE.pattern)]  # 'float32'; 'mixed' for a table
    shape: tuple[StrictInt, ...]
    n_bytes: int | None = None  # where it is not the elements' size times their number, as of a sparse matrix or a table
    n_stored: int | None = None  # of a sparse matrix its stored values, of a boolean mask the elements that are True

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def n(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


# ["float32", [1760, 1760]] is an array, as it comes out of a file or from another process.
Value = TypeAliasType("Value", Annotated[Array | list["Value"] | dict[str, "Value"] | Any, Field(union_mode="left_to_right")])


class ModelWork(NamedTuple):
    """What a framework itself states of one call, from shapes alone."""

    flops: float
    moved_bytes: float
    n_kernels: int


class Call(BaseModel):
    """One call: what is equal in all fields costs the same.

    Attributes:
        name: 'numpy.matmul' (also for `@`), 'ndarray.argsort', 'sklearn.cluster.KMeans.fit', 'torch.nn.Linear.__call__',
            'numba:<function>': the shortest public one.
        args: an `Array` for each array, lists of them for lists, JSON values as they are, None for anything else; a method's
            array comes first. Of indexing: the array, then a list of the index's parts, of which arrays, lists and names are
            kept; of `array[index] = value` the value last. Infinity is 'inf'.
        results: the arrays that came out, NumPy's scalars included; of `array[index] = value` the region that is written to, if
            no array or list of indices says where.
        is_view: the results lie in the memory of the operands, also of what works in place.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    args: tuple[Value, ...] = ()
    kwargs: dict[str, Value] = {}
    results: tuple[Array, ...] = ()
    is_view: bool = False
    model_work: ModelWork | None = None

    @property
    def operands(self) -> list[Array]:
        """The arrays among the arguments and, one level down, in lists and dictionaries."""
        found = []
        for value in (*self.args, *self.kwargs.values()):
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            found += [each for each in inner if isinstance(each, Array)]
        return found


class RecordedCall(BaseModel):
    """A call, how often a function made it in one run, and the seconds of all of them together."""

    call: Call
    n_calls: int
    time_s: float


class RecordedFunction(BaseModel):
    """What one of the user's functions asked of libraries in one run.

    Attributes:
        n_element_accesses: single elements read or written from Python.
        input_bytes: of arrays that came as arguments, in each call; of others that were read, such as weights, once.
        output_bytes: of arrays that were returned.
        hidden_transfers: as `results.HiddenTransfer`, by line.
    """

    function: str
    file: str
    line: int
    n_calls: int
    calls: list[RecordedCall]  # most time first
    n_element_accesses: int = 0
    input_bytes: float = 0
    output_bytes: float = 0
    hidden_transfers: list[dict[str, Any]] = []
