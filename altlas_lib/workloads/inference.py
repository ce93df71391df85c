"""Inference service: JSON request -> texts -> hashed word features -> a small network -> JSON answer with the best labels."""

import functools
import itertools
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from .. import data

N_FEATURES = 2048
_HIDDEN = (1024, 256)
LABELS = tuple(f"topic-{number:02d}" for number in range(16))
_WORD = re.compile(r"\w+")

Layers = list[tuple[np.ndarray, np.ndarray]]


def load_input(
    texts: str = "builtin",
    text_column: str | None = None,
    on_bad: str = "raise",
    n_texts: int = 1000,
    n_requests: int = 100,
    texts_per_request: int = 8,
) -> list[str]:
    """`n_requests` request bodies with texts of `altlas_lib.data.load_texts`, at most `n_texts` different ones, in turn."""
    endless = itertools.cycle(data.load_texts(texts, column=text_column, limit=n_texts, on_bad=on_bad).texts)
    return [
        json.dumps({"id": number, "texts": list(itertools.islice(endless, texts_per_request))}) for number in range(n_requests)
    ]


def run(requests: Sequence[str]) -> list[str]:
    """The answer to each request, one after the other, as one worker of several gives them: each keeps to one BLAS thread."""
    with threadpool_limits(1, user_api="blas"):
        return [answer(request) for request in requests]


def answer(request: str) -> str:
    """The JSON answer to one JSON request."""
    number, texts = parse(request)
    return postprocess(number, predict(preprocess(texts), load_model()))


def parse(request: str) -> tuple[int, list[str]]:
    """Number and texts of a request `{"id": 1, "texts": ["...", ...]}`.

    Raises:
        ValueError: the request is not JSON of that form.
    """
    expected = 'expected {"id": number, "texts": [at least one text]}'
    try:
        body = json.loads(request)
    except json.JSONDecodeError as error:
        raise ValueError(f"request {request[:80]!r} is not JSON ({error}); {expected}") from None
    match body:
        case {"id": int(number), "texts": [_, *_] as texts} if all(isinstance(text, str) for text in texts):
            return number, texts
    raise ValueError(f"request {request[:80]!r}: {expected}")


def preprocess(texts: Sequence[str]) -> np.ndarray:
    """Hashed word counts, damped by log(1 + n), rows of unit length: float32 `(len(texts), N_FEATURES)`."""
    features = np.zeros((len(texts), N_FEATURES), dtype=np.float32)
    for row, text in enumerate(texts):
        counts = Counter(zlib.crc32(word.encode("utf-8", "replace")) % N_FEATURES for word in _WORD.findall(text.casefold()))
        for column, count in counts.items():
            features[row, column] = math.log1p(count)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@functools.cache
def load_model(seed: int = 0) -> Layers:
    """Weights and biases of each layer, float32, drawn from `seed` (He et al. 2015): its cost is real, its labels are not."""
    rng = np.random.default_rng(seed)
    sizes = (N_FEATURES, *_HIDDEN, len(LABELS))
    return [
        (
            rng.normal(0, math.sqrt(2 / n_in), (n_in, n_out)).astype(np.float32),
            rng.normal(0, 0.01, n_out).astype(np.float32),
        )
        for n_in, n_out in itertools.pairwise(sizes)
    ]


def predict(features: np.ndarray, layers: Layers) -> np.ndarray:
    """Probability of each label, `(n, N_FEATURES)` -> `(n, len(LABELS))`: dense layers with ReLU, softmax at the end."""
    *hidden, (weights, bias) = layers
    activation = features
    for layer_weights, layer_bias in hidden:
        activation = np.maximum(activation @ layer_weights + layer_bias, 0)
    logits = activation @ weights + bias
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def postprocess(number: int, probabilities: np.ndarray, *, n_best: int = 3) -> str:
    """`{"id": number, "answers": [[{"label": ..., "score": ...}, ...], ...]}` with the `n_best` labels of each text."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :n_best]
    answers = [
        [{"label": LABELS[column], "score": round(float(row[column]), 4)} for column in columns]
        for row, columns in zip(probabilities, best, strict=True)
    ]
    return json.dumps({"id": number, "answers": answers})
