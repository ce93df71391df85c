"""Chapter 30: windows and features against a loop over samples, the model, its training, scores against scikit-learn."""

import functools
import subprocess
import sys
import types
from collections import Counter

import numpy as np
import pytest
from gpu_stand_in import on_stand_ins, stand_in_cupy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight

from altlas_lib import data, devices, figures, training
from altlas_lib.results import Provenance, Quantity, TrainingResult
from altlas_lib.training import (
    ModelConfig,
    NBeatsConfig,
    Predictions,
    TcnConfig,
    TransformerConfig,
    backend,
    plots,
)
from altlas_lib.training.backend import keras
from altlas_lib.training.fit.dataset import MicroBatches
from altlas_lib.training.fit.series import open_samples
from altlas_lib.training.model import losses
from altlas_lib.training.model.accumulation import MicroBatching
from altlas_lib.training.model.windows import Split
from altlas_lib.training.score import metrics

MULTIPLIERS = st.one_of(st.floats(1, 20), st.sampled_from([1.0, 1.49, 1.5, 9.99, 10.0, 1e6])).map(lambda x: round(x, 2))
TINY = ModelConfig(nbeats=(NBeatsConfig(window=20, units=8, n_blocks=2),), fusion=(16,))


@pytest.fixture(scope="module")
def series():
    return data.crash_series(2000, regime_strength=0.9, seed=3)


@pytest.fixture(scope="module")
def samples(series):
    return training.prepare(series.values, window=1000)


# Windows and features -------------------------------------------------------------------------------------------------


def bare_samples(values):
    """Samples without scaling, for what does not depend on it."""
    values = np.asarray(values)
    nothing = slice(0, 0)
    logs = np.log(values).astype("float32")
    return training.Samples(values, logs, logs[:, None], Split(nothing, nothing, nothing))


@given(values=st.lists(MULTIPLIERS, min_size=2, max_size=40), random=st.data())
def test_windows_equal_a_loop_over_samples(values, random):
    window = random.draw(st.integers(1, len(values) - 1))
    positions = random.draw(st.lists(st.integers(window, len(values) - 1), min_size=1, max_size=8))
    prepared = bare_samples(values)

    expected = [[np.float32(np.log(values[at])) for at in range(position - window, position)] for position in positions]
    np.testing.assert_array_equal(prepared.inputs(np.array(positions), window)["window"], expected)
    targets = prepared.targets(np.array(positions))
    for i, position in enumerate(positions):
        value = values[position]
        assert targets["regression"][i] == np.float32(np.log(value))
        assert targets["classification"][i] == (0 if value < 1.5 else 1 if value < 10 else 2)
        assert targets["threshold"][i] == (value >= 1.5)


def naive_features(past):
    """The 121 statistics of one sample by their definitions, in float64."""
    row = []
    for window in training.FEATURE_WINDOWS:
        values = past[-window:]
        logs, below = np.log(values), values < 1.5
        mean, std, n = logs.mean(), logs.std(ddof=1), window
        constant = np.ptp(logs) == 0
        skew = 0 if constant else n / ((n - 1) * (n - 2)) * (((logs - mean) / std) ** 3).sum()
        pairs_vary = np.ptp(logs[1:]) and np.ptp(logs[:-1])
        row += [mean, std, skew, logs.min(), np.median(logs), logs.max()]
        row += [0 if constant else (logs[-1] - mean) / std, np.corrcoef(logs[1:], logs[:-1])[0, 1] if pairs_vary else 0]
        row += [below.mean(), (values >= 10).mean(), (below[1:] != below[:-1]).mean()]
    return row


@settings(max_examples=20, deadline=None)
@given(values=st.lists(MULTIPLIERS, min_size=1, max_size=60), seed=st.integers(0, 99))
def test_features_equal_a_loop_over_samples(values, seed):
    history = data.crash_series(1000, seed=seed).values
    values = np.concatenate([history, [1e9], values, np.full(8, 1.2), [3.0]])  # a huge value, and a stretch without variation
    features = training.rolling_features(values)
    assert features.shape == (len(values), 121)
    assert np.isnan(features[:1000]).any(axis=1).all()
    for at in {1000, 1001, len(values) - 2, len(values) - 1}:
        np.testing.assert_allclose(features[at], naive_features(values[:at]), rtol=1e-5, atol=1e-6)


@settings(max_examples=6, deadline=None)
@given(values=st.lists(MULTIPLIERS, min_size=1, max_size=30), seed=st.integers(0, 99))
def test_the_array_code_for_a_gpu_gives_pandas_features(values, seed):
    history = data.crash_series(1000, seed=seed).values
    values = np.concatenate([history, [1e9], values, np.full(8, 1.2), [3.0]])
    by_pandas, by_arrays = training.rolling_features(values), training.rolling_features(values, xp=np)
    assert by_arrays.dtype == by_pandas.dtype
    np.testing.assert_allclose(by_arrays, by_pandas, rtol=1e-4, atol=1e-4)


def test_the_array_code_is_cupys():
    """Every function that it calls is one of the stand-in's, which takes and gives its own arrays only."""
    cupy, values = stand_in_cupy(2**30), data.crash_series(1100, seed=1).values
    for name in ("log", "max", "mean", "min", "sort", "sqrt", "stack", "sum"):
        setattr(cupy, name, on_stand_ins(getattr(np, name)))
    features = training.rolling_features(cupy.asarray(values), xp=cupy)
    np.testing.assert_array_equal(cupy.asnumpy(features), training.rolling_features(values, xp=np))


def test_the_projected_time_of_the_features_follows_values_and_bandwidth():
    t4, h200 = (devices.find_gpu(name) for name in ("T4", "H200"))
    once, twice, fast = (training.project_features(n, gpu) for n, gpu in ((5000, t4), (10_000, t4), (5000, h200)))
    assert (once.basis, once.device, once.bound_by) == ("projected", "T4", "memory bandwidth")
    assert (twice.low, twice.high) == pytest.approx((2 * once.low, 2 * once.high))
    assert once.low / fast.low == pytest.approx(h200.memory_bandwidth_gb_per_s / t4.memory_bandwidth_gb_per_s)
    assert once.low > 5000 * 2291 * 8 / (t4.memory_bandwidth_gb_per_s * 1e9)  # not less than to read all windows once


@pytest.mark.gpu
def test_the_features_are_the_same_on_a_gpu():
    import cupy

    values = data.crash_series(1500, seed=1).values
    on_gpu = cupy.asnumpy(training.rolling_features(cupy.asarray(values), xp=cupy))
    np.testing.assert_allclose(on_gpu, training.rolling_features(values), rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(at=st.integers(1000, 1099), seed=st.integers(0, 99))
def test_no_sample_sees_its_own_value_or_a_later_one(at, seed):
    values = data.crash_series(1100, seed=1).values
    other = values.copy()
    other[at:] = data.crash_series(1100 - at, seed=1000 + seed).values * 3
    np.testing.assert_array_equal(training.rolling_features(values)[: at + 1], training.rolling_features(other)[: at + 1])
    positions = np.arange(1000, at + 1)
    one, two = (bare_samples(v).inputs(positions, 1000)["window"] for v in (values, other))
    np.testing.assert_array_equal(one, two)


def test_the_parts_follow_each_other_and_the_first_sample_has_all_its_past(samples):
    split = samples.split
    assert (split.train, split.validation, split.test) == (slice(1000, 1700), slice(1700, 1800), slice(1800, 2000))
    assert training.prepare(samples.values, window=1500).split.train.start == 1500
    assert np.isfinite(samples.features[1000:]).all()


def test_what_scales_the_inputs_knows_the_training_part_only(series, samples):
    end = samples.split.train.stop
    np.testing.assert_allclose(samples.scaled_logs[:end].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(samples.scaled_logs[:end].std(), 1, atol=1e-5)
    np.testing.assert_allclose(samples.features[samples.split.train].mean(axis=0), 0, atol=1e-4)

    later_values_differ = np.concatenate([series.values[:end], series.values[end:] * 100])
    other = training.prepare(later_values_differ, window=1000)
    np.testing.assert_array_equal(other.scaled_logs[:end], samples.scaled_logs[:end])
    np.testing.assert_array_equal(other.features[1000 : end + 1], samples.features[1000 : end + 1])


def test_a_window_longer_than_the_past_is_refused_and_not_filled_from_the_future(samples):
    with pytest.raises(ValueError, match="position 1000 has no 1001 values before it: prepare the series with window=1001"):
        samples.inputs(np.array([1002, 1000, 1001]), 1001)
    longer = ModelConfig(nbeats=(NBeatsConfig(window=1500, units=8, n_blocks=1),), fusion=(8,))
    with pytest.raises(ValueError, match="prepare the series with window=1500"):
        training.train(samples, longer, n_epochs=1, micro_batch_size=64)


def targets_of(batches):
    return np.concatenate([batches[i][1]["regression"] for i in range(len(batches))])


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own(samples):
    positions = np.r_[samples.split.train]
    every = np.log(samples.values[samples.split.train]).astype("float32")

    def batches(epoch, cut, start=0):
        data = open_samples(samples, positions, 50, cut.batch_size)
        return MicroBatches(data, cut, np.random.default_rng([5, epoch]), start)

    epochs = [targets_of(batches(i, MicroBatching(700, 24, 8))) for i in (0, 1)]
    for seen in epochs:
        np.testing.assert_array_equal(np.sort(seen), np.sort(every))
    assert not np.array_equal(*epochs)
    # The order does not depend on the split, and an epoch can be continued.
    for cut, start in ((MicroBatching(700, 24, 24), 0), (MicroBatching(700, 24, 5), 0), (MicroBatching(700, 24, 8), 9)):
        np.testing.assert_array_equal(targets_of(batches(1, cut, start)), epochs[1][8 * start :])


def test_without_a_seed_all_samples_come_in_time_order(samples):
    batches = MicroBatches(open_samples(samples, np.r_[samples.split.test], 50, 64), MicroBatching(200, 64, 64))
    np.testing.assert_array_equal(targets_of(batches), np.log(samples.values[1800:]).astype("float32"))


# Model ----------------------------------------------------------------------------------------------------------------


def dense(n_in, n_out):
    return (n_in + 1) * n_out


@pytest.fixture(scope="module")
def models():
    return {name: training.build_model(config) for name, config in training.PRESETS.items()}


def parameters_by_part(model):
    """The number of parameters of each part; a layer's part is its name up to the hyphen."""
    counts = Counter()
    for layer in model.layers:
        counts[layer.name.partition("-")[0]] += layer.count_params()
    return +counts


@pytest.mark.parametrize("preset", training.PRESETS)
def test_every_preset_takes_the_same_past_and_answers_three_questions(preset, models):
    model, window = models[preset], 500 if preset == "option1" else 1000
    assert {tensor.name: tensor.shape for tensor in model.inputs} == {"window": (None, window), "features": (None, 121)}
    answers = model({name: np.zeros((2, size), "float32") for name, size in (("window", window), ("features", 121))})
    shapes = {head: tuple(answer.shape) for head, answer in answers.items()}
    assert shapes == {"regression": (2, 1), "classification": (2, 3), "threshold": (2, 1)}


def test_the_reference_has_the_parameters_that_its_sizes_imply(models):
    """Counted by hand from the plan's sizes; the plan itself says "about 9.8M"."""
    parts = parameters_by_part(models["reference"])
    for window, units, n_blocks in ((50, 128, 5), (200, 192, 6), (500, 256, 7), (1000, 384, 9)):
        # an entry, then blocks of a dense layer and batch normalisation's 4 vectors
        assert parts[f"nbeats_{window}"] == dense(window, units) + n_blocks * (dense(units, units) + 4 * units)
    tcn = 0
    for n_in, n_out in ((1, 128), (128, 256)):
        first, other = (dense(3 * n, n_out) + 2 * n_out for n in (n_in, n_out))  # kernel 3, and layer normalisation
        tcn += dense(n_in, n_out) + first + 11 * other  # the shortcut where the width changes; 12 convolutions per width
    assert parts["tcn"] == tcn
    layer = 4 * dense(256, 256) + dense(256, 1024) + dense(1024, 256) + 2 * 2 * 256
    assert parts["transformer"] == dense(1, 256) + 4 * layer + 2 * 256
    fused = 128 + 192 + 256 + 384 + 256 + 256 + 121
    assert parts["fusion"] == dense(fused, 512) + dense(512, 256)
    assert parts["heads"] == dense(256, 5)
    assert models["reference"].count_params() == parts.total() == 9_639_877
    assert parts.total() == pytest.approx(9.8e6, rel=0.02)
    stacks = {"nbeats_50", "nbeats_200", "nbeats_500", "nbeats_1000"}
    assert set(parts) == {*stacks, "tcn", "transformer", "fusion", "heads"}


def test_the_plans_remedies_make_the_model_lighter(models):
    parts = {name: parameters_by_part(model) for name, model in models.items()}
    assert not {"nbeats_1000", "transformer"} & set(parts["option1"])
    assert parts["option2"]["transformer"] < parts["reference"]["transformer"] / 7
    assert set(parts["quick"]) == set(parts["reference"])
    assert parts["quick"].total() < 100_000 < parts["option1"].total() < parts["option2"].total()


def test_a_saved_model_answers_the_same(tmp_path, models):
    rng = np.random.default_rng(0)
    inputs = {"window": rng.normal(size=(3, 1000)).astype("float32"), "features": rng.normal(size=(3, 121)).astype("float32")}
    models["quick"].save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    before, after = models["quick"](inputs), loaded(inputs)
    for head in before:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(before[head]), keras.ops.convert_to_numpy(after[head]))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(before["classification"]).sum(axis=1), 1, rtol=1e-6)


def answer(model, window):
    return keras.ops.convert_to_numpy(model({"window": window, "features": np.zeros((1, 121), "float32")})["regression"])


def test_the_tcn_sees_exactly_its_receptive_field():
    keras.utils.set_random_seed(0)  # ReLUs of unlucky weights could block the only path
    config = TcnConfig(window=30, filters=(16, 16), dilations=(1, 2))
    reach = 1 + 2 * 2 * 2 * (1 + 2)  # 2 widths x 2 convolutions x (3 - 1) values further back per dilation
    model = training.build_model(ModelConfig(tcn=config, fusion=(8,)))
    past = np.random.default_rng(0).normal(size=(1, 30)).astype("float32")
    for distance in (reach, reach + 1):
        other = past.copy()
        other[0, -distance] += 5
        assert (answer(model, other) != answer(model, past)) == (distance <= reach)


def test_the_transformer_knows_the_order_of_values():
    transformer = TransformerConfig(window=12, d_model=8, n_layers=1, n_heads=2, feed_forward=16)
    model = training.build_model(ModelConfig(transformer=transformer, fusion=(8,)))
    past = np.random.default_rng(0).normal(size=(1, 12)).astype("float32")
    assert abs(answer(model, past) - answer(model, past[:, ::-1].copy())) > 1e-5


def test_mixed_precision_ends_with_the_model_and_answers_in_float32():
    model = training.build_model(TINY, dtype_policy="mixed_float16")
    assert model.get_layer("fusion-dense1").compute_dtype == "float16"
    assert {output.dtype for output in model.outputs} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


# Losses and training --------------------------------------------------------------------------------------------------


PROBABILITIES = st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.99)), min_size=1, max_size=20)


@given(PROBABILITIES, st.floats(0.1, 5), st.floats(0.1, 5))
@settings(max_examples=25, deadline=None)
def test_the_threshold_loss_is_scikit_learns_weighted_log_loss(pairs, below_weight, above_weight):
    above, probability = (np.array(column, dtype="float32") for column in zip(*pairs, strict=True))
    loss = losses.WeightedBinaryCrossentropy(below_weight, above_weight)(above, probability[:, None])
    weights = np.where(above, above_weight, below_weight)
    expected = sk.log_loss(above, probability.astype("float64"), sample_weight=weights, labels=[0, 1]) * weights.mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_class_weights_are_balanced_and_their_effect_on_the_probability_is_undone():
    above = np.arange(1000) < 647
    below_weight, above_weight = losses.balanced_weights(above)
    assert [below_weight, above_weight] == pytest.approx(
        compute_class_weight("balanced", classes=np.array([False, True]), y=above)
    )
    p = np.array([0.1, 0.5, 0.647, 0.9])
    learned = above_weight * p / (above_weight * p + below_weight * (1 - p))  # what makes the weighted loss smallest
    np.testing.assert_allclose(losses.unweighted_probability(learned, below_weight, above_weight), p)


@given(PROBABILITIES, st.sampled_from([1.0, 2.0, 3.5]))
@settings(max_examples=25, deadline=None)
def test_the_focal_loss_is_keras_own(pairs, gamma):
    above, probability = (np.array(column, dtype="float32")[:, None] for column in zip(*pairs, strict=True))
    loss = losses.WeightedBinaryCrossentropy(0.5, 1.5, gamma)(above, probability)
    keras_own = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, alpha=0.75, gamma=gamma)
    assert float(loss) == pytest.approx(2 * float(keras_own(above, probability)), rel=1e-4)  # of 0.25 and 0.75


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("true", [0.03, 0.4, 0.647, 0.99])
def test_the_effect_of_focus_on_the_probability_is_undone(true, gamma):
    p = np.linspace(1e-5, 1 - 1e-5, 200_001)
    risk = -true * 0.8 * (1 - p) ** gamma * np.log(p) - (1 - true) * 1.4 * p**gamma * np.log(1 - p)
    assert losses.unweighted_probability(p[risk.argmin()], 1.4, 0.8, gamma) == pytest.approx(true, abs=1e-3)


@pytest.mark.parametrize("gamma", [-1.0, 0.5, float("nan"), float("inf")])
def test_a_focus_without_a_slope_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}"):
        losses.WeightedBinaryCrossentropy(1.0, 1.0, gamma)


def test_training_learns_what_can_be_learned_and_writes_it_down(series, samples):
    run = training.train(samples, TINY, n_epochs=6, micro_batch_size=32, learning_rate=3e-3, seed=1)
    losses_seen = [epoch.metrics["loss"] for epoch in run.history]
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3, 4, 5, 6]
    assert losses_seen[-1] < losses_seen[0]
    assert {"val_loss", "regression_loss", "classification_loss", "threshold_loss"} <= run.history[0].metrics.keys()
    assert run.step_time.n_runs == 6 * (700 // 32 - 1)  # whole updates, but for the first of an epoch
    assert run.step_time.device == backend.device_name()
    assert (run.peak_memory is None) == (backend.gpu_name() is None)

    accuracy = training.evaluate(training.predict(run.model, samples, samples.split.test), samples, series)[0]
    assert accuracy.n_samples == 200
    assert accuracy.gain_low > 0  # the regime is strong enough for 200 values to show it
    assert "the model predicts, by" in training.verdict(accuracy)


def test_another_seed_gives_another_model(samples):
    """That the same seed gives the same is what killed trainings show."""
    one, other = (training.train(samples, TINY, n_epochs=1, micro_batch_size=350, seed=seed) for seed in (1, 2))
    assert training.weights_hash(one.model) != training.weights_hash(other.model)


def test_of_two_heads_the_one_with_the_weight_is_learned(samples):
    def last_loss(head):
        weights = dict.fromkeys(training.LOSS_WEIGHTS, 0.0) | {head: 1.0}
        run = training.train(samples, TINY, loss_weights=weights, n_epochs=3, micro_batch_size=16, learning_rate=1e-3)
        return {name: run.history[-1].metrics[f"{name}_loss"] for name in ("regression", "classification")}

    one, other = last_loss("regression"), last_loss("classification")
    assert one["regression"] < other["regression"]
    assert other["classification"] < one["classification"]


def test_focus_reaches_the_loss_and_the_forecast(samples):
    run = training.train(samples, TINY, gamma=2.0, n_epochs=1, micro_batch_size=350)
    loss = run.model.loss["threshold"]
    assert loss.gamma == 2
    heads = run.model.predict(samples.inputs(np.r_[samples.split.test], 20), verbose=0)
    expected = losses.unweighted_probability(heads["threshold"][:, 0], loss.below_weight, loss.above_weight, 2.0) >= 0.5
    np.testing.assert_array_equal(training.predict(run.model, samples, samples.split.test).above, expected)


# Scores ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(MULTIPLIERS, st.booleans(), st.integers(0, 2), MULTIPLIERS), min_size=1, max_size=50), st.booleans())
@settings(deadline=None)
def test_scores_are_scikit_learns(rows, base_above):
    actual, above, classes, predicted = (np.array(column) for column in zip(*rows, strict=True))
    n = len(rows)
    base = Predictions(np.full(n, base_above), np.full(n, 1), np.full(n, 0.7))
    scores = {m.name: m for m in training.compare(Predictions(above, classes, np.log(predicted)), base, actual)}
    is_above = actual >= 1.5
    recall = {side: sk.recall_score(is_above, above, pos_label=side, zero_division=0) for side in (False, True)}
    precision = sk.precision_score(is_above, above, zero_division=1)  # no signal: none was false
    expected = {
        "accuracy at 1.5": sk.accuracy_score(is_above, above),
        "accuracy below 1.5": recall[False],
        "accuracy from 1.5": recall[True],
        "accuracy of 3 classes": sk.accuracy_score(np.digitize(actual, [1.5, 10]), classes),
        'false "above" signals': 1 - precision,
        "error of log value": sk.mean_absolute_error(np.log(actual), np.log(predicted)),
    }
    assert {name: metric.model for name, metric in scores.items()} == pytest.approx(expected)
    assert scores["accuracy at 1.5"].base_rate == pytest.approx(np.mean(is_above == base_above))
    assert scores["error of log value"].base_rate == pytest.approx(np.mean(np.abs(np.log(actual) - 0.7)))
    assert {name: metric.n_samples for name, metric in scores.items()} == {
        "accuracy at 1.5": n,
        "accuracy below 1.5": (~is_above).sum(),
        "accuracy from 1.5": is_above.sum(),
        "accuracy of 3 classes": n,
        'false "above" signals': above.sum(),
        "error of log value": n,
    }
    assert scores["error of log value"].unit == "log"
    assert scores["accuracy at 1.5"].best_possible is None


def test_the_base_rate_is_the_training_parts(series):
    values = series.values.copy()
    values[1700:] = 1.2  # later parts must not matter
    base = training.base_rate_predictions(training.prepare(values, window=1000))
    train = series.values[1000:1700]
    assert len(base.above) == 200
    assert base.above.all()
    assert np.unique(base.classes) == np.bincount(np.digitize(train, [1.5, 10])).argmax()
    np.testing.assert_allclose(base.logs, np.median(np.log(train)), rtol=1e-6)


def claims_a_gain(seeds, base, actual):
    """Whether the interval of the accuracy's gain leaves out 0, as `compare` makes it; of one score instead of six."""
    groups = [[metrics.scores(each, actual)[metrics.ACCURACY] for each in group] for group in (seeds, [base])]
    of_model, of_base = metrics.resampled(*groups)
    low, high = metrics.interval(of_model - of_base)
    return low > 0 or high < 0


def test_a_gain_is_seldom_claimed_where_there_is_none():
    """Two forecasts of a fair coin that know nothing: the 95 % interval may leave out 0 in about one case of twenty."""
    rng, n, claims = np.random.default_rng(0), 400, 0
    for _ in range(500):
        actual = rng.choice([1.2, 2.0], size=n)
        model, base = (Predictions(rng.random(n) < share, np.zeros(n, int), np.zeros(n)) for share in (0.1, 0.12))
        claims += claims_a_gain([model], base, actual)
    assert claims <= 40


def test_the_interval_is_that_of_an_ordinary_bootstrap_over_values_after_an_imagined_win_and_loss():
    """SciPy's percentile bootstrap; 40 values are 40 blocks of one."""
    rng = np.random.default_rng(1)
    actual = rng.choice([1.2, 2.0], size=40)
    model, base = (Predictions(rng.random(40) < 0.6, np.zeros(40, int), rng.random(40)) for _ in range(2))
    for metric in (m for m in training.compare(model, base, actual) if m.name in ("accuracy at 1.5", "error of log value")):
        if metric.unit == "log":
            gains = np.abs(base.logs - np.log(actual)) - np.abs(model.logs - np.log(actual))
        else:
            gains = (model.above == (actual >= 1.5)).astype(float) - (base.above == (actual >= 1.5))
        gains = np.append(gains, (1, -1))
        expected = stats.bootstrap((gains,), np.mean, n_resamples=20_000, method="percentile", rng=rng).confidence_interval
        assert (metric.gain_low, metric.gain_high) == pytest.approx(tuple(expected), abs=0.03)


def test_neighbours_that_are_wrong_together_widen_the_interval():
    """Runs of 50 values that are all right or all wrong are worth 40 values, not 2,000."""
    actual = np.full(2000, 2.0)
    right = np.random.default_rng(0).random(40) < 0.5
    base = Predictions(np.zeros(2000, bool), np.zeros(2000, int), np.zeros(2000))
    runs, mixed = (
        Predictions(above, np.zeros(2000, int), np.zeros(2000)) for above in (np.repeat(right, 50), np.tile(right, 50))
    )
    widths = [m.gain_high - m.gain_low for m in (training.compare(model, base, actual)[0] for model in (runs, mixed))]
    assert widths[0] > 0.2
    assert widths[1] < 0.05


@given(st.integers(1, 4), st.integers(1, 120), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_the_score_of_several_seeds_is_their_mean(n_seeds, n, seed):
    rng = np.random.default_rng(seed)
    actual = rng.choice([1.2, 2.0, 20.0], size=n)

    def forecast():
        return Predictions(rng.random(n) < 0.5, rng.integers(0, 3, n), rng.random(n))

    seeds, base = [forecast() for _ in range(n_seeds)], forecast()
    together = training.compare(seeds, base, actual)
    alone = [training.compare(each, base, actual) for each in seeds]
    for i, metric in enumerate(together):
        assert metric.model == pytest.approx(np.mean([each[i].model for each in alone]))
        assert metric.gain_low <= metric.gain_high
    assert training.compare(seeds, base, actual) == together  # the same every time


def test_seeds_that_disagree_widen_the_interval():
    actual = np.tile([1.2, 2.0], 500)
    good, bad = (Predictions(above, np.zeros(1000, int), np.zeros(1000)) for above in (actual > 1.5, actual < 1.5))
    base = Predictions(np.ones(1000, bool), np.zeros(1000, int), np.zeros(1000))
    sure, unsure = (training.compare(seeds, base, actual)[0] for seeds in ([good] * 3, [good, good, bad]))
    assert sure.gain_low > 0.4
    assert unsure.gain_low < 0 < unsure.gain_high


def test_seeds_of_differing_skill_seldom_claim_a_gain_that_is_none():
    """Three trainings whose skill scatters around none: all on one side by chance is no evidence."""
    rng, n, claims = np.random.default_rng(0), 500, 0
    base = Predictions(np.ones(n, bool), np.zeros(n, int), np.zeros(n))
    for _ in range(100):
        actual = rng.choice([1.2, 2.0], size=n)
        seeds = []
        for skill in rng.normal(0.5, 0.1, size=3):
            above = np.where(rng.random(n) < skill, actual >= 1.5, actual < 1.5)
            seeds.append(Predictions(above, np.zeros(n, int), np.zeros(n)))
        claims += claims_a_gain(seeds, base, actual)
    assert claims <= 11  # of 5 expected


def test_blocks_are_as_long_as_the_data_depends_on_itself():
    """Politis and White's rule: 1 for what is independent, longer the longer the dependence; never too few blocks."""
    base = Predictions(np.zeros(4000, bool), np.zeros(4000, int), np.zeros(4000))
    actual = np.full(4000, 2.0)

    def block_length(run: int, seed: int) -> int:
        above = np.repeat(np.random.default_rng(seed).random(-(-4000 // run)) < 0.5, run)[:4000]
        model = Predictions(above, np.zeros(4000, int), np.zeros(4000))
        return training.compare(model, base, actual)[0].block_length

    independent = [block_length(1, seed) for seed in range(9)]
    assert np.median(independent) <= 3
    assert max(independent) <= 5  # by the rule where no lag is significant: (6 c^2 n)^(1/3), c = 2 (log10 n / n)^(1/2)
    lengths = {run: block_length(run, 0) for run in (10, 50, 4000)}
    assert 10 < lengths[10] < lengths[50] <= 100
    assert lengths[4000] == 2  # nothing varies: only no more than 2,000 blocks


def test_a_model_that_says_one_thing_of_every_value_is_found_out():
    always, never = (Predictions(np.full(9, said), np.zeros(9, int), np.zeros(9)) for said in (True, False))
    assert training.constant_answer([always, always]) == "1.5 or more"
    assert training.constant_answer([never]) == "below 1.5"
    assert training.constant_answer([always, never]) is None


def test_the_finding_says_what_is_worse_and_what_never_changes():
    actual = np.tile([1.2, 2.0], 500)
    base = Predictions(np.ones(1000, bool), np.ones(1000, int), np.log(actual))
    model = Predictions(np.ones(1000, bool), np.ones(1000, int), np.log(actual) + 1)
    metrics = training.compare(model, base, actual)
    assert {metric.name: metric.standing for metric in metrics}["error of log value"] == "worse"
    said = training.finding(
        metrics,
        model="quick",
        source_name="my.csv",
        step_time=Quantity.measured([0.1], "s", "a CPU"),
        constant_answer=training.constant_answer([model]),
    )
    assert "gains less than the +1.0 points that would matter" in said
    assert "it says '1.5 or more' of every value" in said
    assert "worse than no model in: error of log value." in said


PROTOTYPE = """
import keras, numpy as np
layers = keras.layers

def build(classes=3):
    window, features = keras.Input((30,), name="window"), keras.Input((121,), name="features")
    x = layers.Dense(16, activation="relu")(layers.Concatenate()([window, features]))
    outputs = {"regression": 1, "classification": classes, "threshold": 1}
    activations = {"regression": None, "classification": "softmax", "threshold": "sigmoid"}
    return keras.Model({"window": window, "features": features},
        {name: layers.Dense(n, activation=activations[name], name=name)(x) for name, n in outputs.items()})

def wrong():
    return build(classes=4)

def with_data():
    model = keras.Sequential([keras.Input((5,)), layers.Dropout(0.2), layers.Dense(1)])
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    return model, (rng.normal(size=(40, 5)), rng.normal(size=(40, 1)))

def nothing():
    return 7

def fails():
    raise KeyError("weights")
"""


def test_a_prototype_of_ones_own_takes_the_models_place(series, samples, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prototype_of_mine.py").write_text(PROTOTYPE)

    def build(name):
        model, data, validation = training.load_own(f"prototype_of_mine:{name}", seed=1)
        assert validation is None
        return model, data

    run = training.train(samples, lambda: build("build")[0], n_epochs=1, micro_batch_size=64, gradient_accumulation_steps=2)
    metrics = training.evaluate(training.predict(run.model, samples, samples.split.test), samples, series)
    assert metrics[0].n_samples == 200
    with pytest.raises(ValueError, match=r"the prototype takes .* and gives .*'classification': \(None, 4\).*: expected"):
        training.train(samples, lambda: build("wrong")[0], n_epochs=1)
    source = training.describe_data("prototype_of_mine:with_data", build("with_data")[1])
    assert (source.n_rows, source.name) == (40, "data of prototype_of_mine:with_data")
    hashes = [training.weights_hash(training.fit(*build("with_data"), n_epochs=1).model) for _ in range(2)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prototype_of_mine:nothing", r"returned a int and 0 data sets: expected a keras\.Model"),
        ("prototype_of_mine:gone", "AttributeError: module 'prototype_of_mine' has no attribute 'gone'"),
        ("prototype_of_mine:fails", r"failed \(KeyError: 'weights'\): give a function"),
        ("no_such_module_of_mine:build", "No module named"),
    ],
)
def test_what_builds_no_model_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "prototype_of_mine.py").write_text(PROTOTYPE)
    with pytest.raises(ValueError, match=message):
        training.load_own(name)


def test_a_reference_whose_few_wins_are_luck_has_no_gain_to_keep():
    series = data.crash_series(4000, seed=1)
    samples = training.prepare(series.values, window=1000)
    base = training.base_rate_predictions(samples)
    wrong = np.flatnonzero(base.above != (samples.values[samples.split.test] >= 1.5))[:5]
    above = base.above.copy()
    above[wrong] = ~above[wrong]
    lucky = Predictions(above, base.classes, base.logs)
    assert training.evaluate(lucky, samples, series)[0].gain_low <= 0
    assert metrics.kept([base], [lucky], samples)[1] is None


def test_what_an_option_keeps_is_judged_by_its_interval():
    series = data.crash_series(40_000, regime_strength=0.9)
    samples = training.prepare(series.values, window=1000)
    test = samples.split.test
    best, base = training.best_possible_predictions(series, test), training.base_rate_predictions(samples)
    n = len(base.above)

    def mixed(share):  # knows that share of the values
        return Predictions(np.where(np.arange(n) % 100 < 100 * share, best.above, base.above), best.classes, best.logs)

    for share in (0.5, 0.93, 1.0):
        score, gain = metrics.kept([mixed(share)], [best], samples)
        assert gain.value <= score.value <= 1
        assert share - 0.05 <= gain.high
        assert gain.low <= share + 0.05
        assert gain.low <= gain.value <= gain.high
        assert gain.high - gain.low < 0.2  # narrow enough to tell a claim of 95 % from a half
    score, gain = metrics.kept([best], [base], samples)  # a reference that knows nothing
    assert gain is None
    assert score.value > 1


def test_the_options_are_trained_with_every_seed_on_the_same_values(series):
    transformer = TransformerConfig(window=20, d_model=4, n_layers=1, n_heads=2, feed_forward=8)
    stacks = tuple(NBeatsConfig(window=window, units=8, n_blocks=1) for window in (10, 20))
    config = ModelConfig(nbeats=stacks, transformer=transformer, fusion=(8,))
    prepared = training.prepare(series.values, window=20)
    reference = [training.base_rate_predictions(prepared)] * 2  # of two seeds, which need not be trained again
    how = {"seeds": (0, 1), "n_epochs": 1, "micro_batch_size": 350}
    qualities = training.compare_options("planted", series, config, reference, **how)
    assert [(q.option, q.series, q.n_seeds) for q in qualities] == [("option1", "planted", 2), ("option2", "planted", 2)]
    assert qualities[0].n_parameters < qualities[1].n_parameters < training.build_model(config).count_params()
    assert {q.metrics[0].n_samples for q in qualities} == {prepared.split.test.stop - prepared.split.test.start}
    assert [q.claimed for q in qualities] == [(0.95, 0.98), (0.90, 0.95)]
    assert {q.gain_kept for q in qualities} == {None}  # the reference is the base rate
    with pytest.raises(ValueError, match="cut from a model with a Transformer"):
        training.compare_options("planted", series, TINY, reference, **how)


def test_the_options_of_the_plan_are_the_presets():
    sizes = {name: training.build_model(training.find_preset(name)).count_params() for name in ("option1", "option2")}
    assert sizes == {"option1": 4_423_365, "option2": 6_811_333}


def test_the_best_possible_forecast_scores_what_the_generator_says():
    series = data.crash_series(60_000, regime_strength=0.7)
    part = slice(10_000, 60_000)
    best = training.best_possible_predictions(series, part)
    scores = {m.name: m.best_possible for m in training.compare(best, best, series.values[part], best)}
    expected = series.best_possible(part)
    assert scores["accuracy at 1.5"] == pytest.approx(expected["threshold_accuracy"], abs=0.01)  # five standard errors
    assert scores["accuracy of 3 classes"] == pytest.approx(expected["class_accuracy"], abs=0.01)
    assert scores["error of log value"] == pytest.approx(expected["log_mean_absolute_error"], abs=0.02)
    assert scores["accuracy below 1.5"] is None


def test_the_verdict_follows_the_numbers():
    fair, regime = data.crash_series(2000), data.crash_series(2000, regime_strength=0.9)
    prepared = {series: training.prepare(series.values, window=1000) for series in (fair, regime)}
    test = prepared[regime].split.test
    best = training.best_possible_predictions(regime, test)
    wrong = Predictions(~best.above, best.classes, best.logs)

    def verdict(model, series):
        return training.verdict(training.evaluate(model, prepared[series], series)[0])

    base = training.base_rate_predictions(prepared[fair])
    assert verdict(base, fair).startswith("on these values nothing can be predicted")
    assert verdict(wrong, fair).startswith("on these values nothing can be predicted")
    assert verdict(best, regime).startswith("the model predicts, by +")
    assert verdict(wrong, regime).startswith("the model does worse than no model, by -")
    unknown = data.Series(fair.values, fair.source)
    prepared[unknown] = prepared[fair]
    assert verdict(base, unknown).startswith("no sign that the model predicts anything, +0.0 points")


# Hostile input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(1099, 2.0), "has 1099 values.*give at least 1100"),
        (np.array([]), "has 0 values"),
        (np.r_[np.full(1200, 2.0), np.nan], "1 of 1201 values.*nan at 1200"),
        (np.r_[np.inf, np.full(1200, 2.0)], "inf at 0"),
        (np.r_[np.full(1200, 0.99), 1.0], r"1200 of 1201.*0.99 at 0, 0.99 at 1, 0.99 at 2, \.\.\."),
        (np.full((1200, 2), 2.0), r"shape \(1200, 2\)"),
    ],
)
def test_a_series_that_cannot_be_used_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        training.prepare(values, window=1000)


def test_a_series_without_variation_has_finite_inputs_and_nothing_to_train():
    samples = training.prepare(np.full(1300, 2.0), window=1000)
    assert np.isfinite(samples.scaled_logs).all()
    assert np.isfinite(samples.features[1000:]).all()
    with pytest.raises(ValueError, match="210 of 210 training targets"):
        training.train(samples, TINY, n_epochs=1, micro_batch_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"micro_batch_size": "8"}, r"micro_batch_size is '8' \(a str\): expected a whole number"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"micro_batch_size": 64, "gradient_accumulation_steps": 11}, "700 samples, one update takes 704"),
        ({"n_epochs": 0}, "n_epochs is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"resume": True}, "resume is True without a checkpoint_folder"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"dtype_policy": "float17"}, "float17"),
    ],
)
def test_training_numbers_that_cannot_be_meant_are_refused(samples, arguments, message):
    with pytest.raises(ValueError, match=message):
        training.train(samples, TINY, **{"n_epochs": 1, "micro_batch_size": 8, **arguments})
    assert keras.config.dtype_policy().name == "float32"


def test_a_loss_that_is_no_number_stops_the_training(samples):
    with pytest.raises(FloatingPointError, match=r"'loss': nan.* in epoch 1: lower the learning rate"):
        training.train(samples, TINY, n_epochs=3, micro_batch_size=64, learning_rate=float("inf"))


@pytest.mark.parametrize(("name", "hint"), [("qick", "mean 'quick'"), ("", "known: 'reference'"), ("Option1", "'option1'")])
def test_an_unknown_preset_names_the_nearest(name, hint):
    with pytest.raises(ValueError, match=hint):
        training.find_preset(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: ModelConfig(), "looks at nothing"),
        (lambda: NBeatsConfig(window=0, units=8, n_blocks=1), "greater than 0"),
        (lambda: TransformerConfig(window=9, d_model=10, n_layers=1, n_heads=4, feed_forward=8), "multiple of n_heads"),
        (lambda: ModelConfig(nbeats=TINY.nbeats, dropout=1.0), "less than 1"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config()


# Result, start-up, GPU ------------------------------------------------------------------------------------------------


def test_the_result_survives_the_file(run, series, samples):
    trained = training.train(samples, TINY, n_epochs=1, micro_batch_size=64)
    metrics = training.evaluate(training.predict(trained.model, samples, samples.split.test), samples, series)
    result = TrainingResult(
        provenance=Provenance.now(parameters={"seed": 0}),
        finding=training.finding(metrics, model="tiny", source_name="a series", step_time=trained.step_time),
        source=series.source,
        preset="tiny",
        n_parameters=trained.model.count_params(),
        micro_batch_size=64,
        gradient_accumulation_steps=1,
        history=trained.history,
        metrics=metrics,
        step_time=trained.step_time,
        peak_memory=trained.peak_memory,
    )
    result.save(run)
    assert TrainingResult.load(run) == result
    assert trained.step_time.device in result.finding
    assert "measured" in result.finding


def test_the_figures_say_what_the_numbers_say(series):
    history = [{"loss": 1.0, "val_loss": value} for value in (0.9, 0.7, 0.8)]
    with figures.figure() as (_, ax):
        title = plots.training_curves(ax, history).get_title("left")
    assert title == "Validation loss 0.900 after the first epoch, at best 0.700 (epoch 2)"
    with figures.figure() as (_, ax):  # of a model without validation data
        title = plots.training_curves(ax, [{"loss": 1.0}, {"loss": 0.5}]).get_title("left")
    assert title == "Training loss 1.000 after the first epoch, at best 0.500 (epoch 2)"

    part = slice(1000, 2000)
    best = training.best_possible_predictions(series, part)
    constant = Predictions(np.ones(1000, bool), np.ones(1000, int), np.zeros(1000))
    for known in (best, None):
        metrics = training.compare(best, constant, series.values[part], known)
        with figures.figure() as (fig, ax):
            plots.scores_beside_base_rate(ax, metrics)
            assert f"model {metrics[0].model:.1%}, base rate {metrics[0].base_rate:.1%}" in ax.get_title("left")
            assert len(ax.get_yticks()) == 5  # the error of log values is no share
            labels = [text.get_text() for text in fig.legends[0].get_texts()]
            assert ("best possible" in labels) == (known is not None)


def test_importing_training_loads_nothing_and_changes_nothing_of_the_process():
    """No framework before it is needed; then no file descriptor, and no log level."""
    code = """
import logging, os, sys
def state():
    files = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)}
    return files, os.environ.get("TF_CPP_MIN_LOG_LEVEL"), logging.root.level, logging.getLogger("tensorflow").level
before = state()
from altlas_lib import training
training.find_preset("quick"), training.mitigation_table
assert not {"tensorflow", "keras", "jax", "cupy"} & set(sys.modules)
training.build_model
assert "keras" in sys.modules and "cupy" not in sys.modules
files, level, root, _ = state()  # TensorFlow sets its own logger's
assert (files, level, root) == before[:3]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("name", ["fitt", "Model", "_FACE_"])
def test_an_unknown_name_of_the_package_is_named(name):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; it has .*build_model"):
        getattr(training, name)


def fake_framework(name, peaks):
    """A stand-in for a backend that sees as many T4s, whose peaks are read and, where it can be done, begin anew."""
    names, reset = [f"GPU:{i}" for i in range(len(peaks))], []
    if name == "tensorflow":
        experimental = types.SimpleNamespace(
            get_device_details=lambda gpu: {"device_name": "Tesla T4"},
            get_memory_info=lambda gpu: {"current": 2**20, "peak": peaks[names.index(gpu)]},
            reset_memory_stats=reset.append,
        )
        config = types.SimpleNamespace(get_visible_devices=lambda kind: names, experimental=experimental)
        return types.SimpleNamespace(config=config), reset
    if name == "jax":
        devices = [
            types.SimpleNamespace(platform="gpu", device_kind="Tesla T4", memory_stats=functools.partial(dict, stats))
            for stats in ({"bytes_in_use": 2**20, "peak_bytes_in_use": peak} for peak in peaks)
        ]
        return types.SimpleNamespace(local_devices=lambda: devices), reset
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        get_device_name=lambda: "Tesla T4",
        memory_allocated=lambda: 2**20,
        max_memory_allocated=lambda: max(peaks),
        reset_peak_memory_stats=lambda: reset.append("GPU:0"),
    )
    return types.SimpleNamespace(cuda=cuda), reset


@pytest.mark.parametrize(("name", "peaks"), [("tensorflow", [2**30, 2**31]), ("jax", [2**31, 2**30]), ("torch", [2**31])])
def test_the_gpus_are_those_that_the_backend_computes_on(monkeypatch, name, peaks):
    """The fullest is the one that a training fits into or not."""
    framework, reset = fake_framework(name, peaks)
    monkeypatch.setattr(keras.backend, "backend", lambda: name)
    monkeypatch.setitem(sys.modules, name, framework)
    assert backend.device_name() == "Tesla T4"
    assert not reset
    assert backend.memory_use(reset=True) == backend.MemoryUse("Tesla T4", 2**20, 2**31, peaks)
    assert reset == ([] if name == "jax" else [f"GPU:{i}" for i in range(len(peaks))])


def test_out_of_memory_is_told_from_other_errors():
    class ResourceExhaustedError(Exception):
        pass

    assert backend.is_out_of_memory(ResourceExhaustedError("OOM"))
    assert backend.is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes"))
    assert not backend.is_out_of_memory(ValueError("out of memory of mine"))


@pytest.mark.gpu
def test_a_gpu_is_named_and_its_peak_memory_measured(samples):
    if backend.gpu_name() is None:
        pytest.skip(f"the {keras.backend.backend()} backend sees no GPU")
    run = training.train(samples, TINY, n_epochs=1, micro_batch_size=32, gradient_accumulation_steps=2)
    assert run.peak_memory.device == run.step_time.device == devices.describe_gpus()[0].name
    assert run.peak_memory.value >= 4 * run.model.count_params()
    half = training.train(samples, TINY, n_epochs=1, micro_batch_size=32, dtype_policy="mixed_float16")
    assert np.isfinite(half.history[0].metrics["loss"])
