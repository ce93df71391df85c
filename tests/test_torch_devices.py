"""`altlas plan --devices`: each device's share, its buffers, and what all bring."""

import json

import pytest

from altlas_lib import cli, devices, training
from altlas_lib.results import MemoryPlan, Quantity
from altlas_lib.training.plan import devices as several

GIB = 2**30


@pytest.fixture
def plans(monkeypatch):
    """Plans whose step takes 10 to 30 ms a sample, with 0.5 GiB of weights."""
    asked = []

    def plan(model, gpu, *, batch_size, gradient_accumulation_steps=1, **how):
        asked.append(batch_size)
        parts = {"weights": GIB // 2, "temporaries": batch_size * GIB}
        return MemoryPlan(
            gpu=gpu.name, configuration={"batch_size": batch_size, "gradient_accumulation_steps": gradient_accumulation_steps},
            peak=Quantity.compiled(sum(parts.values()), "bytes", gpu.name), bytes_by_part=parts, overhead_bytes=GIB,
            usable_bytes=int(gpu.usable_memory_gib * GIB), verdict="fits", n_parameters=GIB // 8,
            step_time=Quantity.projected(0.01 * batch_size, 0.03 * batch_size, "s", gpu.name, "arithmetic"),
        )  # fmt: skip

    monkeypatch.setattr(several, "plan_memory", plan)
    return asked


def test_each_device_has_its_share_and_buffers_for_gradients(plans):
    found = training.plan_devices("any", "T4", 4, batch_size=30)
    assert plans == [30, 8]
    assert found.configuration["devices"] == 4
    assert found.peak.value == sum(found.bytes_by_part.values()) == 9 * GIB
    assert found.verdict == "fits"
    assert training.plan_devices("any", "T4", 2, batch_size=24).verdict == "tight"  # 13 GiB and 1 beside them, of 14.56


def test_the_exchange_hides_behind_the_step_or_not(plans):
    """Ring: 1.5 x 0.5 GiB at .25 to .85 of 15.75 GB/s is 205 to 60 ms, a step of 8 samples 80 to 240 ms; of 32, 320 to 960."""
    (note,) = training.plan_devices("any", "T4", 4, batch_size=32).notes
    assert "8 samples each: 512 MiB of gradients over PCIe" in note
    assert "1.1 to 4 times as fast" in note  # 320 / (80 + 205), 960 / 240
    (note,) = training.plan_devices("any", "T4", 4, batch_size=32, gradient_accumulation_steps=10).notes
    assert "3.2 to 4 times" in note  # 3200 / (800 + 205)
    (note,) = training.plan_devices("any", "A100 80GB SXM", 4, batch_size=32).notes
    assert "over NVLink" in note
    assert "3.5 to 4 times" in note  # 11 ms of 300 GB/s in one direction: 320 / (80 + 10.7)


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (4, 3)])
def test_as_many_samples_as_devices_are_needed(plans, n, batch_size):
    with pytest.raises(ValueError, match="expected 2 or more, and a sample for each"):
        training.plan_devices("any", "T4", n, batch_size=batch_size)


def test_the_catalogue_has_nvlink_of_sxm_boards_only():
    linked = {gpu.name for gpu in devices.load_catalogue() if gpu.nvlink_gb_per_s}
    assert linked == {gpu.name for gpu in devices.load_catalogue() if "SXM" in gpu.name or gpu.name == "H200"}


def test_the_command_shares_the_batch(plans, capsys):
    with pytest.raises(SystemExit):
        cli.app(["plan", "quick", "--devices", "2", "--batch-size", "8", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["plan"]["configuration"]["batch_size"] == 4
    with pytest.raises(SystemExit) as ended:
        cli.app(["plan", "quick", "--devices", "2"])
    assert ended.value.code == 1
    assert "2 devices for a batch of 0" in capsys.readouterr().err
