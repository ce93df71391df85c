"""What `altlas serve` offers, in its worker processes: similarity over a corpus, ONNX models, and the jobs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import inference, similarity
from .serving.wire import Arrays

_MAX_K = 1024
_JOBS = {"top_k": ("k", "device", "method"), "pairs_above": ("threshold", "device", "method")}  # kind -> its arguments


class SimilarityModel:
    """The nearest rows of a corpus to each query. `similarity.Corpus` on a CPU; on a GPU the rows stay there."""

    def __init__(self, corpus: Path, device: str) -> None:
        rows = np.load(corpus, mmap_mode="r")
        if device == "gpu":
            rows = similarity.to_gpu(rows)
            self._search = lambda queries, k: similarity.top_k(queries, k, Y=rows, device="gpu")
        else:
            self._search = similarity.Corpus(rows).top_k
        shape = {"queries": [-1, rows.shape[1]], "indices": [-1, -1], "scores": [-1, -1]}
        datatypes = {"queries": "FP32", "indices": "INT64", "scores": "FP32"}
        told = {name: {"name": name, "datatype": datatypes[name], "shape": shape[name]} for name in shape}
        self.metadata = {
            "platform": "altlas_similarity",
            "inputs": [told["queries"]],
            "outputs": [told["indices"], told["scores"]],
            "batches": True,
            "max_k": _MAX_K,
        }
        self({"queries": np.zeros((1, rows.shape[1]), np.float32)}, 1)  # compiles what must be

    def __call__(self, inputs: Arrays, k: int) -> Arrays:
        found = self._search(inputs["queries"], k)
        return {"indices": found.indices, "scores": found.scores}


class OnnxModel:
    """A model that ONNX Runtime computes. Raises InferenceError: as `inference.open_session`, a fall back to the CPU too."""

    def __init__(self, file: Path, device: str) -> None:
        self._session = inference.open_session(file, "cuda" if device == "gpu" else "cpu", any_input=True)
        ends = self._session.get_inputs(), self._session.get_outputs()
        self._outputs = [output.name for output in ends[1]]
        self.metadata = {
            "platform": "onnxruntime_" + self._session.get_providers()[0].removesuffix("ExecutionProvider").lower(),
            "inputs": [_describe(each) for each in ends[0]],
            "outputs": [_describe(each) for each in ends[1]],
            "batches": all(each.shape and not isinstance(each.shape[0], int) for side in ends for each in side),
            "max_k": 0,
        }

    def __call__(self, inputs: Arrays, k: int) -> Arrays:
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))


def _describe(value: Any) -> dict[str, Any]:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    datatype = {"float": "FP32", "double": "FP64", "float16": "FP16"}.get(kind, kind.upper())
    return {"name": value.name, "datatype": datatype, "shape": [n if isinstance(n, int) else -1 for n in value.shape]}


def load(role: str, device: str, options: dict[str, Any]) -> tuple[dict[str, Any], Callable]:
    """For `serving.worker`: the models that there are, by their names, and what answers requests or does jobs."""
    return (_load_jobs if role == "jobs" else _load_models)(device, options)


def _load_models(device: str, options: dict[str, Any]) -> tuple[dict[str, Any], Callable]:
    models = {"similarity": SimilarityModel(options["corpus"], device)} if options["corpus"] else {}
    models |= {Path(file).stem: OnnxModel(file, device) for file in options["models"]}

    def compute(message: tuple[str, Arrays, int], report: Callable) -> Arrays:
        model, inputs, k = message
        return models[model](inputs, k)

    return {name: model.metadata | {"name": name} for name, model in models.items()}, compute


def _load_jobs(device: str, options: dict[str, Any]) -> tuple[dict[str, Any], Callable]:
    if device == "cpu":
        os.nice(10)  # requests go before jobs
    client = None
    if options["dask"]:
        from distributed import Client

        client = Client(options["dask"])
    similarity.warm_up()

    def compute(asked: dict[str, Any], report: Callable) -> None:
        kind = asked["kind"]
        chosen = {name: asked[name] for name in _JOBS[kind]} | {"progress": report}
        if client is not None and kind == "top_k":
            chosen["client"] = client
        found = getattr(similarity, kind)(np.load(asked["body"], mmap_mode="r"), **chosen)
        names = ("indices", "scores") if kind == "top_k" else ("first", "second", "scores")
        with open(asked["result"], "wb") as file:
            np.savez(file, **{name: getattr(found, name) for name in names})

    return {}, compute
