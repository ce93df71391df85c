"""Hold the memory plans of PyTorch modules against published peaks: how many lie inside the band, and how far off it is.

    python -m benchmarks.torch_memory [FILE.csv] [--json]

FILE.csv has a row for each figure: `model` (ResNet-50, 101 and 152, BERT-base and -large, Llama 2 and 3, U-Net with an FCN
head, in any spelling), `batch` (`4 (x2 accumulation)`), `seq_or_image`, `dtype_amp` (fp32, fp16 AMP, bf16 AMP; bf16:
weights, too), `optimizer`, `checkpointing`, `attention`, `gpu`, `peak_gib` and `measure`; `id`, `note` and `trust` (3:
doubtful) are optional. From a figure of the whole device the CUDA context is taken, as the note says it ("context of 1343
MB"), else 512 MiB. What was compiled, what has adapters, 8-bit optimizers or parts in host memory is not judged, and is
counted with the reason.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from altlas_lib import training
from altlas_lib.devices import find_gpu
from altlas_lib.results import format_value
from altlas_lib.training.plan.planner import CONTEXT_BYTES
from benchmarks.published import Verdict, read_rows, score

FILE = Path(__file__).parent / "published" / "torch_memory.csv"
ROW = "ALTLAS_TORCH_MEMORY_ROW"  # how the planner's child learns which model it is to build
_BERT = {"base": (768, 12, 12), "large": (1024, 24, 16)}
_RESNET = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
_LLAMA = {  # width, layers, heads, groups of keys, inner width, tokens, whether the embedding is the last layer, too
    "3.1 8b": (4096, 32, 32, 8, 14336, 128256, False),
    "3.2 3b": (3072, 28, 24, 8, 8192, 128256, True),
    "3.2 1b": (2048, 16, 32, 8, 8192, 128256, True),
    "2 7b": (4096, 32, 32, 32, 11008, 32000, False),
}
_NOT_BUILT = {
    "lora": "adapters are not built",
    "8-?bit|8bit": "8-bit optimizers are not PyTorch's own",
    "offload": "parts in host memory",
    "compile|chunked|in backward": "compiled, or a step in pieces",
    "unpacked|short": "samples of unknown length",
    "psp|deeplab|tin|init only": "this model is not built",
}


class Point(NamedTuple):
    """A published peak and what it is the peak of."""

    row: dict[str, str]
    how: dict[str, Any]  # of `plan_memory`
    peak_bytes: float


def read_points(path: Path = FILE) -> tuple[list[Point], Counter[str]]:
    """The points of a file and, by reason, how many rows are none.

    Raises:
        ValueError: as `benchmarks.published.read_points`.
    """
    points, left_out = [], Counter()
    for row in read_rows(path, ("model", "batch", "dtype_amp", "optimizer", "peak_gib")):
        try:
            points.append(read_point(row))
        except LookupError as reason:
            left_out[reason.args[0]] += 1
    return points, left_out


def read_point(row: dict[str, str]) -> Point:
    """Of a row of the file.

    Raises:
        LookupError: it is not judged; says why.
    """
    said = " ".join((row["model"], row["optimizer"], row.get("seq_or_image", ""), row.get("checkpointing", ""))).lower()
    for pattern, reason in _NOT_BUILT.items():
        if re.search(pattern, said):
            raise LookupError(reason)
    batch = re.search(r"= *(\d+)|^(\d+)", row["batch"])
    size = re.search(r"\d+", row.get("seq_or_image", ""))
    if not _kind(row["model"]) or not batch or not size:
        raise LookupError("this model is not built" if batch and size else "no batch, length or image size")
    if not _optimizer(row["optimizer"]):
        raise LookupError("an optimizer of another library")
    try:
        peak_bytes = float(row["peak_gib"]) * 2**30
    except ValueError:
        raise LookupError("peak_gib is no number") from None
    if re.search("nvml|nvidia-smi|device", row.get("measure", "").lower()):
        context = re.search(r"context of (\d+) MB", row.get("note", ""))
        peak_bytes -= int(context[1]) * 2**20 if context else CONTEXT_BYTES
    how: dict[str, Any] = {"batch_size": int(batch[1] or batch[2])}
    if steps := re.search(r"x *(\d+) accumulation", row["batch"]):
        how["gradient_accumulation_steps"] = int(steps[1])
    if "amp" in row["dtype_amp"].lower():
        how["dtype_policy"] = "mixed_bfloat16" if "bf16" in row["dtype_amp"] else "mixed_float16"
    if row.get("checkpointing", "").lower().startswith("yes"):
        how["recompute"] = ("*",)
    return Point(row, how, peak_bytes)


def _kind(model: str) -> tuple[str, Any] | None:
    """Which class, and its sizes."""
    name = model.lower()
    if found := re.search(r"bert[- ]?(base|large)", name):
        return "Bert", _BERT[found[1]]
    if found := re.search(r"resnet[- ]?(50|101|152)", name):
        return "ResNet", (_RESNET[found[1]],)
    if found := re.search(r"llama[- ]?(\d(?:\.\d)?)[- ]?(\d+b)", name):
        sizes = _LLAMA.get(f"{found[1]} {found[2]}")
        return ("Llama", sizes) if sizes else None
    return ("UNet", ()) if re.search(r"\bu-?net", name) else None


def _optimizer(name: str) -> Any:
    """By a name that is not told: a function of the parameters, its loop as in the libraries that had no other then."""
    known = {"adamw": ("AdamW", {}), "adafactor": ("Adafactor", {}), "adam": ("Adam", {}), "sgd": ("SGD", {"momentum": 0.9})}
    for start, found in known.items():
        if name.lower().startswith(start):
            if "adamw_hf" in name.lower():  # Hugging Face's own, which had no other way
                found = (found[0], {"foreach": False})
            return found
    return None


def build() -> tuple[Any, ...]:
    """The model of the row at hand, in the planner's child process."""
    import torch

    from benchmarks import torch_models

    row = json.loads(os.environ[ROW])
    (kind, sizes), (optimizer, options) = _kind(row["model"]), _optimizer(row["optimizer"])
    size = int(re.search(r"\d+", row["seq_or_image"])[0])
    if row["dtype_amp"].lower() == "bf16":
        torch.set_default_dtype(torch.bfloat16)
    module = getattr(torch_models, kind)(*sizes)
    if kind in ("Bert", "Llama"):
        x = torch.zeros(1, size, dtype=torch.long)
        y = x if kind == "Llama" else x[:, 0]
    else:
        x = torch.zeros(1, 3, size, size)
        y = torch.zeros(1, *([size, size] if kind == "UNet" else []), dtype=torch.long)
    loss = {"Llama": torch_models.language_loss, "UNet": torch_models.segmentation_loss}.get(kind)
    return module, (x, y), loss, lambda weights: getattr(torch.optim, optimizer)(weights, lr=1e-4, **options)


def judge(point: Point) -> Verdict:
    """The plan of the point on the largest GPU, which changes nothing about a module's step."""
    os.environ[ROW] = json.dumps(point.row)
    plan = training.plan_memory("benchmarks.torch_memory:build", find_gpu("H200"), **point.how)
    return Verdict(point, point.peak_bytes, plan.peak.low, plan.peak.high)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    parser.add_argument("--json", action="store_true", help="one object: all, without_doubtful, rows, not_judged")
    options = parser.parse_args()
    try:
        points, left_out = read_points(options.file)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    verdicts = []
    for point in points:
        try:
            verdicts.append(judge(point))
        except training.PlanError as error:
            left_out[str(error)[:200]] += 1
    scores = {"all": score(verdicts), "without_doubtful": score([v for v in verdicts if v.point.row.get("trust") != "3"])}
    if options.json:
        rows = [
            {"id": v.point.row.get("id"), "peak_bytes": v.point.peak_bytes, "low": v.low, "high": v.high, "inside": v.inside}
            for v in verdicts
        ]
        print(json.dumps(scores | {"rows": rows, "not_judged": dict(left_out)}, indent=1))
        return 0
    for verdict in verdicts:
        row = verdict.point.row
        peak, low, high = (format_value(value, "bytes") for value in (verdict.point.peak_bytes, verdict.low, verdict.high))
        what = ", ".join(row.get(name, "") for name in ("model", "batch", "seq_or_image", "dtype_amp", "checkpointing"))
        print(f"{row.get('id', ''):6}{'inside' if verdict.inside else 'off':8}{peak:>9}, projected {low} to {high}: {what}")
    for name, found in scores.items():
        print(name, *(f"{key} {value:.3g}" for key, value in found.items() if value is not None))
    for reason, n in left_out.most_common():
        print(f"not judged: {n} x {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
