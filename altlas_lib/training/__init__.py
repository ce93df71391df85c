"""Chapter 30: a multi-scale model of a crash-game series, trained within a memory budget and judged beside the base rate.

    series = data.crash_series(12_000, regime_strength=0.8)
    config = find_preset("quick")
    samples = prepare(series.values, window=config.window)
    run = train(samples, config, n_epochs=3, micro_batch_size=32, gradient_accumulation_steps=2, learning_rate=1e-3)
    metrics = evaluate(run.predict(samples, samples.split.test), samples, series)

Any Keras backend does: TensorFlow unless `KERAS_BACKEND` names another one.
"""

from .features import FEATURE_WINDOWS, rolling_features
from .metrics import Predictions, base_rate_predictions, best_possible_predictions, compare, evaluate, finding, verdict
from .model import (
    PRESETS,
    ModelConfig,
    NBeatsConfig,
    TcnConfig,
    TransformerConfig,
    build_model,
    find_preset,
    parameters_by_part,
)
from .train import STAGES, TrainingRun, train
from .windows import Samples, prepare

__all__ = [
    "FEATURE_WINDOWS",
    "PRESETS",
    "STAGES",
    "ModelConfig",
    "NBeatsConfig",
    "Predictions",
    "Samples",
    "TcnConfig",
    "TrainingRun",
    "TransformerConfig",
    "base_rate_predictions",
    "best_possible_predictions",
    "build_model",
    "compare",
    "evaluate",
    "find_preset",
    "finding",
    "parameters_by_part",
    "prepare",
    "rolling_features",
    "train",
    "verdict",
]
