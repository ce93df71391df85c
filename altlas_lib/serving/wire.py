"""What goes over the wire: the Open Inference Protocol in JSON and binary tensors, and .npy bodies. Nothing is unpickled.

The protocol: https://github.com/kserve/open-inference-protocol; its binary tensors: Triton's "binary tensor data" extension.
"""

import io
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
_MAX_HEADER_BYTES = 2**16  # numpy.save writes some hundred
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


def decode(model: dict[str, Any], text: bytes, raw: memoryview) -> tuple[InferRequest, dict[str, np.ndarray], int, int]:
    """A request to a model of this metadata, its tensors, the number of rows, and the `k` of a search (0: the model has none).

    The binary tensors lie in `raw` one behind the other; they are not copied.

    Raises:
        HTTPException: 400 for what is not JSON, or bytes of another length than announced; 422 for what is not the protocol,
            for other names, datatypes or shapes than the model's, no rows, NaN or infinity, or such a `k`.
    """
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HTTPException(400 if first["type"] == "json_invalid" else 422, f"{where}: {first['msg']}".lstrip(": ")) from None
    expected, known = ({each["name"]: each for each in model[side]} for side in ("inputs", "outputs"))
    names, wanted = [tensor.name for tensor in request.inputs], [output.name for output in request.outputs]
    if sorted(names) != sorted(expected) or not set(wanted) <= known.keys():
        takes = f"{model['name']!r} takes {', '.join(expected)}, each once, and gives {', '.join(known)}"
        raise HTTPException(422, f"inputs {', '.join(names)}, outputs {', '.join(wanted)}; {takes}")
    arrays = {}
    for tensor in request.inputs:
        arrays[tensor.name], raw = _read_tensor(tensor, expected[tensor.name], raw)
    if len(raw):
        raise HTTPException(400, f"{len(raw):,} bytes follow the last binary tensor; correct the tensors' binary_data_size")
    rows = {len(array) for array in arrays.values() if array.ndim} or {1}
    if model["batches"] and len(rows) > 1:
        raise HTTPException(422, f"inputs of {sorted(rows)} rows; expected as many in each")
    k, most = request.parameters.get("k", 10), model["max_k"]
    if most and (type(k) is not int or not 1 <= k <= most or max(rows) * k > _MAX_ANSWERS):
        raise HTTPException(422, f"k={k!r}: expected 1 to {most}, at most {_MAX_ANSWERS:,} with all rows; else send a job")
    return request, arrays, max(rows), k if most else 0


def _read_tensor(tensor: Tensor, expected: dict[str, Any], raw: memoryview) -> tuple[np.ndarray, memoryview]:
    """The tensor's array, and the bytes that follow its own. Raises HTTPException 422."""
    where, shape, datatype = f"input {tensor.name!r}", tensor.shape, expected["datatype"]
    n_values, fits = math.prod(shape), [want in (-1, got) for want, got in zip(expected["shape"], shape, strict=False)]
    if (
        tensor.datatype != datatype
        or datatype not in DTYPES
        or len(shape) != len(expected["shape"])
        or not all(fits)
        or not n_values
    ):
        takes = f"expected {datatype} of shape {expected['shape']}, with at least one row (-1: any number)"
        raise HTTPException(422, f"{where}: {tensor.datatype} of shape {shape}; {takes}")
    dtype, n_bytes = DTYPES[datatype], tensor.parameters.get("binary_data_size")
    try:
        if n_bytes is None:
            values = np.asarray(tensor.data)
            if values.size != n_values or values.dtype.kind not in _TAKES[dtype.kind]:
                raise ValueError(f"{values.size:,} values of {values.dtype}; expected {n_values:,} of {datatype}")
            with np.errstate(over="ignore"):  # becomes infinity
                array = values.astype(dtype).reshape(shape)
            if dtype.kind in "iu" and (array.ravel() != values.ravel()).any():
                raise ValueError(f"values beyond what {datatype} holds")
        elif n_bytes != n_values * dtype.itemsize or n_bytes > len(raw):
            problem = f"shape {shape} of {datatype} takes {n_values * dtype.itemsize:,} bytes"
            raise ValueError(f"{problem}, binary_data_size is {n_bytes!r}, the body has {len(raw):,}")
        else:
            array, raw = np.frombuffer(raw[:n_bytes], dtype).reshape(shape), raw[n_bytes:]
    except (ValueError, TypeError, OverflowError) as error:
        raise HTTPException(422, f"{where}: {error}") from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise HTTPException(422, f"{where} holds NaN or infinity; correct or remove these rows")
    return array, raw


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
            head = io.BytesIO(file.read(_MAX_HEADER_BYTES))
        shape, _, dtype = readers[np.lib.format.read_magic(head)](head)
        expected = head.tell() + math.prod(shape) * dtype.itemsize
    except Exception as error:  # whatever a forged header makes of parsing it
        raise HTTPException(422, f"the body is not a .npy file of version 1 or 2 ({error}); write it by numpy.save") from None
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dtype.isnative or len(shape) != 2 or min(shape) < 1:
        raise HTTPException(422, f"the body holds {dtype} of shape {shape}; expected a matrix of numbers, one row per vector")
    if expected != path.stat().st_size:
        raise HTTPException(422, f"the .npy header announces {expected:,} bytes, the body has {path.stat().st_size:,}")
    return shape
