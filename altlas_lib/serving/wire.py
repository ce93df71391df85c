"""What goes over the wire: the Open Inference Protocol in JSON and binary tensors, and .npy bodies. Nothing is unpickled.

The protocol: https://github.com/kserve/open-inference-protocol; its binary tensors: Triton's "binary tensor data" extension.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, NonNegativeInt, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from starlette.exceptions import HTTPException

Parameters = dict[str, StrictBool | StrictInt | StrictFloat | StrictStr]
Arrays = Mapping[str, np.ndarray]

DTYPES = {"BOOL": np.dtype("?"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
DTYPES |= {f"{name}{8 * size}": np.dtype(f"<{name[0].lower()}{size}") for name in ("INT", "UINT") for size in (1, 2, 4, 8)}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_ANSWERS = 2**22  # neighbours, of 12 bytes each
_TAKES = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}  # kind of a tensor -> kinds of JSON values that it takes


class Tensor(BaseModel):
    name: StrictStr
    datatype: StrictStr
    shape: list[NonNegativeInt]
    parameters: Parameters = {}
    data: list[Any] | None = None


class Output(BaseModel):
    name: StrictStr
    parameters: Parameters = {}


class InferRequest(BaseModel):
    id: StrictStr | None = None
    parameters: Parameters = {}
    inputs: list[Tensor] = Field(min_length=1)
    outputs: list[Output] = []


class InferResponse(BaseModel):
    model_name: str
    id: str | None = None
    outputs: list[Tensor]


def decode(text: bytes, raw: memoryview) -> tuple[InferRequest, dict[str, np.ndarray]]:
    """A request and its tensors, of which the binary ones lie in `raw` one behind the other; these are not copied.

    Raises:
        HTTPException: 400 for what is not JSON, or bytes of another length than announced; 422 for what is not the protocol.
    """
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HTTPException(400 if first["type"] == "json_invalid" else 422, f"{where}: {first['msg']}".lstrip(": ")) from None
    arrays = {}
    for tensor in request.inputs:
        if tensor.name in arrays:
            raise HTTPException(422, f"input {tensor.name!r} occurs twice")
        arrays[tensor.name], raw = _read_tensor(tensor, raw)
    if len(raw):
        raise HTTPException(400, f"{len(raw):,} bytes follow the last binary tensor; correct the tensors' binary_data_size")
    return request, arrays


def _read_tensor(tensor: Tensor, raw: memoryview) -> tuple[np.ndarray, memoryview]:
    """The tensor's array, and the bytes that follow its own."""
    where, dtype = f"input {tensor.name!r}", DTYPES.get(tensor.datatype)
    if dtype is None:
        raise HTTPException(422, f"{where}: datatype {tensor.datatype!r}; expected one of {', '.join(DTYPES)}")
    n_values, size = math.prod(tensor.shape), tensor.parameters.get("binary_data_size")
    try:
        if size is not None:
            if size != n_values * dtype.itemsize or size > len(raw):
                problem = f"shape {tensor.shape} of {tensor.datatype} takes {n_values * dtype.itemsize:,} bytes"
                raise HTTPException(422, f"{where}: {problem}, binary_data_size is {size!r}, the body has {len(raw):,}")
            return np.frombuffer(raw[:size], dtype).reshape(tensor.shape), raw[size:]
        values = np.asarray(tensor.data)
        if values.size != n_values or (n_values and values.dtype.kind not in _TAKES[dtype.kind]):
            raise HTTPException(
                422, f"{where}: {values.size:,} values of {values.dtype}; expected {n_values:,} of {tensor.datatype}"
            )
        with np.errstate(over="ignore"):  # becomes infinity, which `check` refuses
            cast = values.astype(dtype).reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise HTTPException(422, f"{where}: {error}") from None
    if dtype.kind in "iu" and (cast.ravel() != values.ravel()).any():
        raise HTTPException(422, f"{where}: values beyond what {tensor.datatype} holds")
    return cast, raw


def check(model: dict[str, Any], request: InferRequest, arrays: Arrays) -> tuple[int, int]:
    """The number of rows that a model of this metadata is asked for, and the `k` of a search, 0 where the model has none.

    Raises:
        HTTPException: 422 for other names, datatypes or shapes than the model's, no rows, NaN or infinity, or such a `k`.
    """
    expected, known = ({each["name"]: each for each in model[side]} for side in ("inputs", "outputs"))
    if arrays.keys() != expected.keys() or not {output.name for output in request.outputs} <= known.keys():
        takes = f"{model['name']!r} takes {', '.join(expected)} and gives {', '.join(known)}"
        raise HTTPException(422, f"inputs {', '.join(arrays)}, outputs {[output.name for output in request.outputs]}; {takes}")
    for name, array in arrays.items():
        datatype, shape = expected[name]["datatype"], expected[name]["shape"]
        fits = len(shape) == array.ndim and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
        if DATATYPES[array.dtype] != datatype or not fits or not array.size:
            problem = f"{DATATYPES[array.dtype]} of shape {list(array.shape)}; expected {datatype} of shape {shape}"
            raise HTTPException(422, f"input {name!r}: {problem}, with at least one row (-1: any number)")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise HTTPException(422, f"input {name!r} holds NaN or infinity; correct or remove these rows")
    rows = {len(array) for array in arrays.values() if array.ndim} or {1}
    if model["batches"] and len(rows) > 1:
        raise HTTPException(422, f"inputs of {sorted(rows)} rows; expected as many in each")
    k, most = request.parameters.get("k", 10), model["max_k"]
    if most and (type(k) is not int or not 1 <= k <= most or max(rows) * k > _MAX_ANSWERS):
        raise HTTPException(422, f"k={k!r}: expected 1 to {most}, at most {_MAX_ANSWERS:,} with all rows; else send a job")
    return max(rows), k if most else 0


def encode(model: str, request: InferRequest, outputs: Arrays) -> tuple[bytes, list[memoryview]]:
    """The answer's JSON, and the bytes that follow it: of the outputs that the request wants binary.

    Raises:
        HTTPException: 422 for NaN or infinity in an output that is not binary: JSON has neither.
    """
    everything = request.parameters.get("binary_data_output", False)
    wanted = {output.name: output.parameters.get("binary_data", everything) for output in request.outputs}
    tensors, raw = [], []
    for name, binary in (wanted or dict.fromkeys(outputs, everything)).items():
        array = np.ascontiguousarray(outputs[name])
        tensor = {"name": name, "datatype": DATATYPES[array.dtype], "shape": list(outputs[name].shape)}
        if binary:
            raw.append(array.reshape(-1).view(np.uint8).data)
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise HTTPException(422, f"output {name!r} holds NaN or infinity, which JSON has not; ask for binary_data_output")
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    return json.dumps({"model_name": model, "id": request.id, "outputs": tensors}).encode(), raw


def check_npy(path: Path) -> tuple[int, int]:
    """The shape (n, d) of the matrix in a .npy file, whose header is believed only if the file is as long as it says.

    Raises:
        HTTPException: 422 for anything else.
    """
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with open(path, "rb") as file:
            shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
            expected = file.tell() + math.prod(shape) * dtype.itemsize
    except Exception as error:  # whatever a forged header makes of parsing it
        raise HTTPException(422, f"the body is not a .npy file of version 1 or 2 ({error}); write it by numpy.save") from None
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative or len(shape) != 2 or min(shape) < 1:
        raise HTTPException(422, f"the body holds {dtype} of shape {shape}; expected a matrix of numbers, one row per vector")
    if expected != path.stat().st_size:
        raise HTTPException(422, f"the .npy header announces {expected:,} bytes, the body has {path.stat().st_size:,}")
    return shape
