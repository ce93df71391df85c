"""Chapter 30: plan, train and judge within a GPU's memory; any Keras model, and a multi-scale model of a crash-game series.

    plan = plan_memory("reference", "T4", batch_size=64)  # plan.verdict: "out of memory", before anything ran
    run = fit(model, (x, y), batch_size=64, micro_batch_size=8, checkpoint_folder="checkpoints", resume=True)

    series = data.crash_series(12_000, regime_strength=0.8)
    config = find_preset("quick")
    samples = prepare(series.values, window=config.window)
    run = train(samples, config, n_epochs=3, micro_batch_size=32, gradient_accumulation_steps=2, learning_rate=1e-3)
    metrics = evaluate(predict(run.model, samples, samples.split.test), samples, series)

Any Keras backend does: TensorFlow unless `KERAS_BACKEND` names another one. Keras is loaded with the first name that needs it;
plans that ship with the library need none.
"""

import importlib

from .fit import fit

_FACE = {
    "fit.checkpoint": "CheckpointError weights_hash",
    "fit.loop": "TrainingRun",
    "fit.series": "LOSS_WEIGHTS predict train",
    "fit.textfile": "metrics_textfile",
    "model.config": "FEATURE_WINDOWS PRESETS ModelConfig NBeatsConfig TcnConfig TransformerConfig find_preset",
    "model.features": "project_features rolling_features",
    "model.multi_scale": "build_model",
    "model.recompute": "ChunkedAttention",
    "model.windows": "Predictions Samples prepare",
    "own": "describe_data load_own",
    "plan.devices": "plan_devices",
    "plan.mitigations": "explanation gpu_rows gpu_table mitigation_rows mitigation_table module_mitigations",
    "plan.planner": "largest_batch plan_memory",
    "plan.request": "PlanError",
    "score.finding": "finding verdict",
    "score.metrics": "base_rate_predictions best_possible_predictions compare compare_options constant_answer evaluate "
    "forecasts",
}
_MODULE_OF = {name: module for module, names in _FACE.items() for name in names.split()}
__all__ = ["fit", *_MODULE_OF]


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
