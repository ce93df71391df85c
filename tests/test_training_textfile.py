"""A training's metrics for Prometheus' textfile collector."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from altlas_lib.training import fit, metrics_textfile
from altlas_lib.training.backend import keras


def model():
    built = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    built.compile("sgd", "mse")
    return built


@pytest.mark.parametrize("how", ["this library's fit", "Keras' own"])
def test_steps_and_losses_are_in_the_file(tmp_path, how):
    file, x, y = tmp_path / "night.prom", np.ones((32, 3), np.float32), np.zeros((32, 1), np.float32)
    callback = metrics_textfile(file, "night")
    if how == "Keras' own":
        model().fit(x, y, validation_data=(x, y), batch_size=8, verbose=0, callbacks=[callback])
    else:
        fit(model(), (x, y), (x, y), n_epochs=1, batch_size=8, micro_batch_size=8, callbacks=[callback])
    found = {
        (sample.name, sample.labels.get("part")): sample
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    assert {sample.labels["run"] for sample in found.values()} == {"night"}
    assert found["altlas_training_step_seconds", None].value > 0
    assert found["altlas_training_loss", "training"].value > 0
    assert found["altlas_training_loss", "validation"].value > 0
    assert list(tmp_path.iterdir()) == [file]


def test_a_name_that_the_collector_would_not_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.prom"):
        metrics_textfile(tmp_path / "night.txt", "night")
