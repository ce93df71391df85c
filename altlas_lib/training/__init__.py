"""Chapter 30: a multi-scale model of a crash-game series, planned and trained within a GPU's memory, beside the base rate.

    plan = plan_memory("reference", "T4", batch_size=64)  # plan.verdict: "out of memory", before anything ran
    series = data.crash_series(12_000, regime_strength=0.8)
    config = find_preset("quick")
    samples = prepare(series.values, window=config.window)
    run = train(samples, config, n_epochs=3, micro_batch_size=32, gradient_accumulation_steps=2, learning_rate=1e-3)
    metrics = evaluate(run.predict(samples, samples.split.test), samples, series)

Any Keras backend does: TensorFlow unless `KERAS_BACKEND` names another one.
"""

from .fit.checkpoint import CheckpointError, weights_hash
from .fit.train import STAGES, Stage, TrainingRun, train
from .model.accumulation import AccumulatingOptimizer, MicroBatching
from .model.config import PRESETS, ModelConfig, NBeatsConfig, TcnConfig, TransformerConfig, find_preset
from .model.features import FEATURE_WINDOWS, rolling_features
from .model.multi_scale import build_model, parameters_by_part
from .model.predictions import Predictions
from .model.recompute import ChunkedAttention, Recompute
from .model.windows import Samples, prepare
from .plan.compiler import PlanError
from .plan.planner import largest_batch, plan_memory
from .plan.remedies import explanation, format_plan, format_remedies, plan_command, remedy_rows, remedy_table
from .score.metrics import base_rate_predictions, best_possible_predictions, compare, evaluate, finding, verdict
from .score.quality import compare_options, forecasts, quality_rows

__all__ = [
    "FEATURE_WINDOWS",
    "PRESETS",
    "STAGES",
    "AccumulatingOptimizer",
    "CheckpointError",
    "ChunkedAttention",
    "MicroBatching",
    "ModelConfig",
    "NBeatsConfig",
    "PlanError",
    "Predictions",
    "Recompute",
    "Samples",
    "Stage",
    "TcnConfig",
    "TrainingRun",
    "TransformerConfig",
    "base_rate_predictions",
    "best_possible_predictions",
    "build_model",
    "compare",
    "compare_options",
    "evaluate",
    "explanation",
    "find_preset",
    "finding",
    "forecasts",
    "format_plan",
    "format_remedies",
    "largest_batch",
    "parameters_by_part",
    "plan_command",
    "plan_memory",
    "prepare",
    "quality_rows",
    "remedy_rows",
    "remedy_table",
    "rolling_features",
    "train",
    "verdict",
    "weights_hash",
]
