"""Are projected token speeds of language models true? Held against llama.cpp's published ones, by cards that no fit has seen.

    python -m benchmarks.llm [FILE.csv] [--json] [--write]

FILE has the columns of `benchmarks/published/llm_speeds.csv`. Each card is judged by constants fitted on the others. Cards
that are not in the catalogue, and the architectures of the models, stand in `benchmarks/published/llm_models.toml`. `--write`
fits all points and writes `altlas_lib/inference/llm.toml`, which ships.
"""

import argparse
import csv
import functools
import json
import math
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from altlas_lib.devices import GpuSpec, find_gpu
from altlas_lib.inference import llm
from altlas_lib.inference.llm import LanguageModel, seconds_per_token
from altlas_lib.paths import write_atomically
from benchmarks.published import Verdict, score, table

FOLDER = Path(__file__).parent / "published"
FILE, MODELS = FOLDER / "llm_speeds.csv", FOLDER / "llm_models.toml"
TABLE = Path(llm.__file__).with_name("llm.toml")

# What the constants are without any measurement, why, and how far a fit may move them (a standard deviation as a factor).
PRIORS: dict[str, tuple[float, float, str]] = {
    "memory_share": (0.9, 1.05, "BabelStream and STREAM reach 0.8 to 0.95 of a GPU's peak: Deakin et al., 2018"),
    "bytes_per_clock": (8, 1.5, "estimate: a multiprocessor asks for an eighth of 64 bytes a clock while it unpacks weights"),
    "layer_us": (60, 2, "estimate: 15 kernels for a layer that start in 4 us each"),
    "cache_reads": (0.5, 2, "estimate: each query head reads the cache, half of it from the second-level cache"),
    "quantised_share": (0.4, 2, "estimate: unpacking takes as long as the products"),
    "half_share": (0.6, 2, "estimate: cuBLAS on micro-batches of 512"),
    "score_bytes": (30, 2, "estimate: scores are written and read four times in float32, without flash attention"),
    "batch_us": (500, 3, "estimate: kernels of a layer and what is computed again for each micro-batch"),
}
_BAND_QUANTILE = 0.95
# Of builds: CUDA graphs alone moved an H100 PCIe from 143 to 164 tokens/s (ggml-org/llama.cpp, pull request 6766, 2024).
_BUILDS = 1.15
_WRITTEN = "# From here on written by `python -m benchmarks.llm --write`."


@dataclass(frozen=True)
class Point:
    """A published speed with what it is of."""

    id: str
    gpu: GpuSpec
    model: LanguageModel
    n_tokens: int
    phase: str
    tokens_per_s: float
    trust: str
    source: str


def read_points(file: Path = FILE) -> tuple[list[Point], Counter]:
    """The rows of one GPU that are not doubtful, and why others are left out.

    Raises:
        ValueError: the file cannot be read or lacks a column.
    """
    points, left_out = [], Counter()
    try:
        rows = list(csv.DictReader(file.open(encoding="utf-8", newline="")))
        for row in rows:
            try:
                points.append(_read_point(row))
            except LookupError as error:
                left_out[str(error.args[0])] += 1
    except (OSError, UnicodeDecodeError, TypeError, csv.Error, KeyError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}): expected the columns of {FILE.name}"
        ) from None
    return points, left_out


def _read_point(row: dict[str, str]) -> Point:
    missing = {"gpu", "model", "params_b", "size_gib", "test", "tokens_per_s"} - {name for name in row if row[name]}
    if missing:
        raise LookupError(f"no {', '.join(sorted(missing))}")
    if row.get("trust") == "3" or row.get("all_layers_on_gpu", "").upper().startswith("NO"):
        raise LookupError("doubtful (trust 3), or a part of the layers on the CPU")
    test = re.match(r"(pp|tg)(\d*)", row["test"])
    if not test:
        raise LookupError(f"test {row['test']!r} is neither pp nor tg")
    return Point(
        id=row.get("id", ""),
        gpu=find_card(row["gpu"]),
        model=find_model(row["model"], float(row["params_b"]), float(row["size_gib"]), row.get("quantisation", "")),
        n_tokens=int(test[2] or 512),
        phase={"pp": "prompt", "tg": "generation"}[test[1]],
        tokens_per_s=float(row["tokens_per_s"]),
        trust=row.get("trust", ""),
        source=row.get("source", ""),
    )


@functools.cache
def _read_models() -> dict[str, Any]:
    return tomllib.loads(MODELS.read_text("utf-8"))


def find_card(name: str) -> GpuSpec:
    """A card of llm_models.toml, with what decides here only, else one of the catalogue."""
    key = " ".join(name.replace("NVIDIA", "").replace("GeForce", "").split())
    if card := _read_models()["gpu"].get(key):
        rates = {"memory_bandwidth_gb_per_s": card["gb_per_s"], "boost_clock_ghz": card["ghz"]}
        of_chip = {name: card[name] for name in ("multiprocessors", "compute_capability")}
        return GpuSpec.model_construct(name=key, **rates, **of_chip)
    try:
        return find_gpu(name)
    except ValueError:
        raise LookupError(f"GPU {name!r} is neither in llm_models.toml nor in the catalogue") from None


def find_model(name: str, params_b: float, size_gib: float, quantisation: str) -> LanguageModel:
    """By its name in llm_models.toml, else as models of its size are built: layers of a width that the parameters fill."""
    known = _read_models()["model"]
    match = max((each for each in known if name.lower().startswith(each.lower())), key=len, default=None)
    if match is None and ("moe" in name.lower() or re.search(r"\dx\d", name)):
        raise LookupError(f"model {name!r} is a mixture of experts that llm_models.toml does not know")
    layers = 32 * (params_b / 8) ** 0.4
    shape = known.get(match) or {"layers": round(layers), "heads": max(1, round((params_b * 1e9 / 12 / layers) ** 0.5 / 128))}
    return LanguageModel(
        name=name,
        quantisation=quantisation,
        n_parameters=int(params_b * 1e9),
        weights_bytes=int(size_gib * 2**30),
        n_layers=shape["layers"],
        n_heads=shape["heads"],
        head_size=shape.get("head_size", 128),
        n_cached=1,
        hidden_size=1,
        vocabulary=1,
        active_share=shape.get("active_share", 1.0),
    )


# Fitting ------------------------------------------------------------------------------------------------------------------


def fit(points: Sequence[Point]) -> dict[str, float]:
    """The constants: logarithms of errors, robustly, beside the priors; a card counts by the root of its points."""
    start = np.log([value for value, _, _ in PRIORS.values()])
    spread = np.log([factor for _, factor, _ in PRIORS.values()])
    counts = Counter(point.gpu.name for point in points)

    def errors(logs: np.ndarray) -> np.ndarray:
        of_points = [_error(point, logs) / counts[point.gpu.name] ** 0.25 / 0.1 for point in points]
        return np.array([*of_points, *(logs - start) / spread])

    logs = least_squares(errors, start, loss="soft_l1").x
    return dict(zip(PRIORS, np.exp(logs).tolist(), strict=True))


def _error(point: Point, logs: np.ndarray) -> float:
    constants = dict(zip(PRIORS, np.exp(logs), strict=True))
    return math.log(seconds_per_token(point.model, point.gpu, point.n_tokens, point.phase, constants) * point.tokens_per_s)


def errors_without(points: Sequence[Point], known: Sequence[Point]) -> list[tuple[Point, float]]:
    """Each point's log error by constants that have not seen its card, fitted on the other cards' known points."""
    found = []
    for card in dict.fromkeys(point.gpu.name for point in points):
        logs = np.log(list(fit([point for point in known if point.gpu.name != card]).values()))
        found += [(point, _error(point, logs)) for point in points if point.gpu.name == card]
    return found


def band_factor(errors: Sequence[tuple[Point, float]], phase: str, without: str | None = None) -> float:
    """By which factor a phase's band reaches below and above its centre: so far were the points of all cards but one."""
    sizes = [abs(error) for point, error in errors if point.phase == phase and point.gpu.name != without]
    return _BUILDS * float(np.exp(np.quantile(sizes, _BAND_QUANTILE)))


def judge(errors: Sequence[tuple[Point, float]], known: Sequence[tuple[Point, float]]) -> list[Verdict]:
    """Each point beside a band whose centre and width come from other cards."""
    verdicts = []
    for point, error in errors:
        centre, factor = point.tokens_per_s / math.exp(error), band_factor(known, point.phase, without=point.gpu.name)
        verdicts.append(Verdict(point, point.tokens_per_s, centre / factor, centre * factor))
    return verdicts


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The keys of `benchmarks.published`."""

    def group(name: Callable[[Point], str]) -> dict[str, Any]:
        keys = {name(verdict.point) for verdict in verdicts}
        return {key: score(each for each in verdicts if name(each.point) == key) for key in sorted(keys)}

    scores = {"core": score(each for each in verdicts if each.point.trust == "1"), "all": score(verdicts)}
    return scores | {"by_class": group(lambda point: point.phase), "by_gpu": group(lambda point: point.gpu.name)}


# Showing ------------------------------------------------------------------------------------------------------------------


def worst(verdicts: Sequence[Verdict], n: int = 10) -> str:
    """The `n` points furthest from the centres of their bands."""
    lines = ["furthest off (published / centre of the band):"]
    for verdict in sorted(verdicts, key=lambda each: -abs(math.log(each.ratio)))[:n]:
        point = verdict.point
        said = f"{point.tokens_per_s:,.0f} tokens/s, projected {verdict.low:,.0f} to {verdict.high:,.0f}"
        lines.append(f"  {verdict.ratio:5.2f}x  {point.model.name} {point.phase} on {point.gpu.name}: {said}  {point.id}")
    return "\n".join(lines)


def write_table(points: Sequence[Point], errors: Sequence[tuple[Point, float]]) -> None:
    """Put constants fitted on all points into the table that ships, with how far held-out cards were off."""
    lines = ["[constants]"]
    for name, value in fit(points).items():
        prior, _, source = PRIORS[name]
        lines.append(f"{name} = {value:.4g}  # prior {prior:g}: {source}")
    for phase, scores in summary(judge(errors, errors))["by_class"].items():
        lines += ["", f"[accuracy.{phase}]", f"factor = {band_factor(errors, phase):.4g}", f"n_points = {scores['n']}"]
        lines += [f"{name} = {scores[name]:.4g}" for name in ("inside", "median_error", "median_width")]
    head, marker, _ = TABLE.read_text("utf-8").partition(_WRITTEN)
    write_atomically(TABLE, f"{head}{marker}\n" + "\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    parser.add_argument("--json", action="store_true", help="one object: core, all, by_class, by_gpu, not_priced")
    parser.add_argument("--write", action="store_true", help="write the table that ships, fitted on all points")
    options = parser.parse_args(arguments)
    try:
        points, left_out = read_points(options.file)
        known = points if options.file == FILE else read_points()[0]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    known_errors = errors_without(known, known)
    verdicts = judge(known_errors if points is known else errors_without(points, known), known_errors)
    if options.write:
        write_table(known, known_errors)
    found = summary(verdicts)
    if options.json:
        print(json.dumps(found | {"not_priced": dict(left_out)}, indent=1))
        return 0
    print(f"{len(points):,} points; each card is judged by a fit, and a band's width, that have not seen it")
    print(*(f"  not judged: {n:,} x {reason}" for reason, n in left_out.most_common()), sep="\n")
    print(table(found), worst(verdicts), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
