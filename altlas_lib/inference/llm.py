"""Large language models: what a GGUF file, or a folder of safetensors, needs on a GPU, and how fast llama.cpp is there.

Generation reads all weights for each token, at the memory's rate or at what the multiprocessors can ask for, whichever is
less; then the cache; and each layer has its start. A prompt is products, attention's scores, and starts for each micro-batch.
The constants, fitted by `python -m benchmarks.llm --write` on published speeds, stand with their errors in llm.toml.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from ..devices import GpuSpec, find_gpu, load_catalogue
from ..paths import read_bounded, shipped_toml
from ..results import Model, Quantity
from ..results.quantity import Share
from .child import InferenceError, run_child

MICRO_BATCH = 512  # tokens of a prompt that llama.cpp takes at once
CONTEXT_BYTES = 2**29  # CUDA's context and its libraries, an allowance
SAFETY_FACTOR = 1.05  # of cache and work space, which are computed; the weights are exact
_MAX_HEADER_BYTES = 2**27


class LanguageModel(Model):
    """What of a large language model decides about memory and speed, by the header of its file."""

    name: str
    quantisation: str
    n_parameters: PositiveInt
    weights_bytes: PositiveInt  # exact, of the file's tensors
    n_layers: PositiveInt
    n_heads: PositiveInt
    head_size: PositiveInt
    n_cached: PositiveInt  # numbers that a token leaves in the cache, keys and values of all layers
    hidden_size: PositiveInt
    vocabulary: PositiveInt
    active_share: Share = 1.0  # of the weights that a token needs; less of a mixture of experts


class LlmPlan(Model):
    """Whether a large language model fits a GPU beside its cache, and how fast one stream of tokens is there."""

    model: LanguageModel
    gpu: str
    context: PositiveInt
    batch: PositiveInt
    cache_bytes: PositiveInt  # keys and values of `batch` contexts
    work_bytes: PositiveInt  # logits and activations of a micro-batch, and CUDA's context: an allowance
    usable_bytes: PositiveInt
    verdict: Literal["fits", "tight", "out of memory"]
    n_layers_on_gpu: NonNegativeInt  # that fit with their part of the cache; the others stay in host memory
    largest_context: NonNegativeInt  # tokens of all streams together; 0: none fits
    prompt: Quantity | None = None  # projected tokens/s of one stream; None: not all layers fit
    generation: Quantity | None = None
    largest_quantisation: dict[str, str | None]  # GPU of the catalogue -> the largest that fits


def read_model(path: str | Path) -> LanguageModel:
    """From the header of a `.gguf` file, or of a folder with `config.json` and `*.safetensors`; no weight is read.

    Raises:
        InferenceError: it is neither, is damaged, lacks what decides, or its header takes more than a minute.
    """
    path = Path(path)
    if not path.is_dir() and not (path.is_file() and path.suffix == ".gguf"):
        raise InferenceError(f"{path} is no .gguf file, and no folder with config.json and *.safetensors")
    return LanguageModel(**run_child("llm", {"path": str(path)}, 60))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the child, which bounds what a hostile header costs; called by `run_child`."""
    path = Path(request["path"])
    try:
        found, tensors = (_read_folder if path.is_dir() else _read_gguf)(path)
        largest, n_bytes = max(tensors, key=lambda tensor: tensor[2]), sum(tensor[2] for tensor in tensors)
        n_heads, n_layers = found["n_heads"], found["n_layers"]
        n_heads = max(n_heads) if isinstance(n_heads, list) else n_heads  # some headers say it of each layer
        key_size = found["key_size"] or found["hidden_size"] // n_heads
        cached = found["n_cached_heads"] or n_heads
        n_cached_heads = sum(cached) if isinstance(cached, list) else n_layers * cached
        expert_share = sum(tensor[2] for tensor in tensors if re.search(r"_exps\.|\.experts\.", tensor[0])) / n_bytes
        model = LanguageModel(
            name=path.name,
            quantisation=found.get("quantisation") or largest[3],
            n_parameters=sum(math.prod(shape) for _, shape, *_ in tensors),
            weights_bytes=n_bytes,
            n_layers=n_layers,
            n_heads=n_heads,
            head_size=key_size,
            n_cached=n_cached_heads * (key_size + (found["value_size"] or key_size)),
            hidden_size=found["hidden_size"],
            vocabulary=next(max(shape) for name, shape, *_ in tensors if "embd" in name or "embed_tokens" in name),
            active_share=1 - expert_share * (1 - (found["n_used_experts"] or 1) / (found["n_experts"] or 1)),
        )
    except Exception as error:  # whatever a damaged header makes the readers raise
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise InferenceError(f"{path.name} is damaged or lacks what decides ({reason}): download it again") from None
    return model.model_dump()


def _read_gguf(path: Path) -> tuple[dict[str, Any], list[tuple]]:
    """What decides, and name, shape, bytes and type of each tensor."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    found = {name: fields.get(f"{fields['general.architecture']}.{key}") for name, (key, _) in _table("keys").items()}
    if (file_type := fields.get("general.file_type")) is not None:
        found["quantisation"] = gguf.LlamaFileType(file_type).name.removeprefix("MOSTLY_")
    return found, [(each.name, each.shape.tolist(), int(each.n_bytes), each.tensor_type.name) for each in reader.tensors]


def _read_folder(path: Path) -> tuple[dict[str, Any], list[tuple]]:
    """As `_read_gguf`."""
    config, sizes, tensors = json.loads(read_bounded(path / "config.json")), _table("item_bytes"), []
    for file in filter(Path.is_file, path.glob("*.safetensors")):
        with file.open("rb") as opened:
            n_bytes = int.from_bytes(opened.read(8), "little")
            if n_bytes > min(_MAX_HEADER_BYTES, file.stat().st_size):
                raise ValueError(f"{file.name} says that its header has {n_bytes:,} bytes")
            header = json.loads(opened.read(n_bytes))
        header.pop("__metadata__", None)
        for name, at in header.items():
            tensors.append((name, at["shape"], math.prod(at["shape"]) * sizes[at["dtype"]], at["dtype"]))
    config = config.get("text_config", config)
    return {name: config.get(key) for name, (_, key) in _table("keys").items()}, tensors


def plan_model(
    model: LanguageModel, gpu: str | GpuSpec = "T4", *, context: int = 8192, batch: int = 1, cache_item_bytes: float = 2
) -> LlmPlan:
    """Whether the model fits beside its cache, what would, and how fast it is.

    Of layers that look back through a window only, the cache is an upper bound.

    Args:
        context: tokens of each of `batch` streams.
        cache_item_bytes: of a number in the cache: 2 is float16, llama.cpp's default; 1.0625 its q8_0.

    Raises:
        ValueError: no such GPU in the catalogue, or a number below 1.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    if context < 1 or batch < 1:
        raise ValueError(f"context {context}, batch {batch}: expected 1 or more")
    usable_bytes, token_bytes = int(gpu.usable_memory_gib * 2**30), model.n_cached * cache_item_bytes
    work_bytes = 4 * MICRO_BATCH * (model.vocabulary + 2 * model.hidden_size) + CONTEXT_BYTES
    cache_bytes = int(context * batch * token_bytes)
    needed_bytes = model.weights_bytes + cache_bytes + work_bytes
    left_bytes = (usable_bytes - SAFETY_FACTOR * work_bytes - model.weights_bytes) / SAFETY_FACTOR
    verdict = "fits" if left_bytes >= cache_bytes else "tight" if needed_bytes <= usable_bytes else "out of memory"
    n_layers = int((usable_bytes - work_bytes) / ((model.weights_bytes + cache_bytes) / model.n_layers))
    sizes = {name: model.n_parameters * bits / 8 for name, bits in _table("bits").items()}
    free = {each.name: each.usable_memory_gib * 2**30 - needed_bytes + model.weights_bytes for each in load_catalogue()}
    phases = ("prompt", "generation") if verdict != "out of memory" else ()
    return LlmPlan(
        model=model,
        gpu=gpu.name,
        context=context,
        batch=batch,
        cache_bytes=cache_bytes,
        work_bytes=work_bytes,
        usable_bytes=usable_bytes,
        verdict=verdict,
        n_layers_on_gpu=max(0, min(n_layers, model.n_layers)),
        largest_context=max(0, int(left_bytes / token_bytes)),
        largest_quantisation={gpu: next((name for name in sizes if sizes[name] <= left), None) for gpu, left in free.items()},
        **{phase: speed(model, gpu, context, phase) for phase in phases},
    )


# Speed --------------------------------------------------------------------------------------------------------------------


def seconds_per_token(model: LanguageModel, gpu: GpuSpec, n_tokens: int, phase: str, constants: dict[str, float]) -> float:
    """Of one stream, the mean over `n_tokens` that are read ("prompt") or written ("generation") from an empty context."""
    n_before, active = n_tokens / 2, model.active_share
    bytes_per_s, clocks_per_s = gpu.memory_bandwidth_gb_per_s * 1e9, gpu.multiprocessors * gpu.boost_clock_ghz * 1e9
    if phase == "generation":
        slowest = (constants["memory_share"] * bytes_per_s) ** -4
        slowest += (constants["bytes_per_clock"] * clocks_per_s) ** -4
        cache_bytes = model.n_layers * model.n_heads * model.head_size * 4 * n_before * constants["cache_reads"]
        weights_s = active * model.weights_bytes * slowest**0.25
        return weights_s + cache_bytes / bytes_per_s + model.n_layers * constants["layer_us"] * 1e-6
    is_half = model.weights_bytes >= 1.9 * model.n_parameters
    share = constants["half_share" if is_half else "quantised_share"]
    flops = share * clocks_per_s * _table("flops_per_clock")[gpu.compute_capability]
    products_s = 2 * active * model.n_parameters / flops
    scores_s = model.n_layers * model.n_heads * n_before * constants["score_bytes"] / bytes_per_s
    return products_s + scores_s + model.n_layers * constants["batch_us"] * 1e-6 / MICRO_BATCH


def speed(model: LanguageModel, gpu: GpuSpec, n_tokens: int, phase: str) -> Quantity:
    """Tokens per second of one stream as a band; the arguments are those of `seconds_per_token`."""
    factor = _table("accuracy")[phase]["factor"]
    centre = 1 / seconds_per_token(model, gpu, n_tokens, phase, _table("constants"))
    bound_by = "memory bandwidth" if phase == "generation" else "compute"
    return Quantity.projected(centre / factor, centre * factor, "tokens/s", gpu.name, bound_by)


def _table(name: str) -> dict[str, Any]:
    return shipped_toml(__package__, "llm.toml")[name]
