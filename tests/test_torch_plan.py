"""PyTorch's memory plans: the allocator's rules, bytes counted by hand, published counts, what CUDA does otherwise."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from altlas_lib import PACKAGES, cli, training
from altlas_lib.training.plan import planner
from altlas_lib.training.pytorch.allocator import CachingAllocator, round_up

MIB, GIB = 2**20, 2**30


def test_nothing_needs_pytorch():
    """Each package's door opens where PyTorch cannot be imported."""
    code = "import sys, importlib\n"
    code += "class Refuse:\n  def find_spec(self, name, path=None, target=None):\n"
    code += "    if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name)\nsys.meta_path.insert(0, Refuse())\n"
    code += "".join(f"importlib.import_module('altlas_lib.{name}')\n" for name in (*PACKAGES, "cli"))
    code += "from altlas_lib import training\nassert all(getattr(training, name) for name in training.__all__)"
    inherited = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}  # `fit` may have said torch
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=inherited)


# The allocator ----------------------------------------------------------------------------------------------------------


_LARGE = [(MIB + 1, 20 * MIB), (10 * MIB - 512, 20 * MIB), (10 * MIB, 10 * MIB), (10 * MIB + 1, 12 * MIB), (31 * MIB, 32 * MIB)]


@pytest.mark.parametrize(("n_bytes", "reserved"), [(0, 2 * MIB), (1, 2 * MIB), (MIB, 2 * MIB), *_LARGE])
def test_a_request_gets_a_segment_of_the_allocators_sizes(n_bytes, reserved):
    allocator = CachingAllocator()
    allocator.allocate(n_bytes)
    assert allocator.reserved_bytes == reserved


def test_what_is_free_is_taken_again_and_split():
    allocator = CachingAllocator()
    first = allocator.allocate(32 * MIB)
    allocator.free(first)
    parts = [allocator.allocate(8 * MIB) for _ in range(4)]
    assert allocator.reserved_bytes == 32 * MIB
    assert [part.size for part in parts] == [8 * MIB] * 4
    allocator.free(parts[1])
    allocator.free(parts[3])
    allocator.allocate(12 * MIB)  # 16 MiB are free, in two pieces
    assert allocator.reserved_bytes == 44 * MIB
    allocator.free(parts[2])  # now three neighbours are one block
    assert allocator.allocate(24 * MIB).size == 24 * MIB
    assert allocator.reserved_bytes == 44 * MIB


def test_the_smallest_block_that_is_enough_is_taken():
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(20 * MIB)
    allocator.free(large)
    allocator.free(small)
    assert allocator.allocate(19.5 * MIB) is small
    assert small.size == 20 * MIB, "less than 1 MiB is not cut off"


@pytest.mark.parametrize("seed", range(3))
def test_blocks_never_overlap_and_fill_their_segments(seed):
    import random

    choose, allocator, held = random.Random(seed), CachingAllocator(), []
    for _ in range(500):
        if held and choose.random() < 0.5:
            allocator.free(held.pop(choose.randrange(len(held))))
        else:
            held.append(allocator.allocate(int(2 ** choose.uniform(0, 25))))
    firsts = set()
    for block in [*held, *allocator._small, *allocator._large]:
        while block.before:
            assert block.before.after is block
            block = block.before
        firsts.add(block)
    blocks = [b for first in firsts for b in itertools.takewhile(bool, _after(first))]
    assert sum(block.size for block in blocks) == allocator.reserved_bytes
    assert set(held) | {*allocator._small, *allocator._large} == set(blocks)
    pairs = [(block, block.after) for block in blocks if block.after]
    assert not any(block.after in block.free and block in block.free for block, _ in pairs), "neighbours that are free are one"


def _after(block):
    while block:
        yield block
        block = block.after


def test_sizes_are_rounded_to_blocks():
    assert [round_up(n) for n in (0, 1, 512, 513)] == [512, 512, 512, 1024]


# Plans ------------------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend("tests")


def plan(name, batch_size, gpu="H200", **how):
    return training.plan_memory(f"torch_helpers:{name}", gpu, batch_size=batch_size, **how)


def test_a_layers_bytes_as_counted_by_hand():
    """Weights of 4 MiB; the most lives when the gradient of the weights is made."""
    found, n = plan("one_layer", 1024), 4 * MIB
    assert found.n_parameters == 1024 * 1024
    parts = dict(found.bytes_by_part)
    temporaries = parts.pop("temporaries")
    assert parts == {"weights": n, "optimizer": 0, "inputs": 2 * n}
    # The output and its gradient, then that one and the weights'; beside them the loss and its gradient, a block each.
    assert 2 * n <= temporaries <= 2 * n + 4 * 512
    assert found.peak.basis == "projected"
    assert found.peak.low == sum(found.bytes_by_part.values())
    assert found.verdict == "fits"


def test_dropout_keeps_a_mask_of_booleans():
    """Its float output takes the place of the layer's; a mask of floats would need 4 bytes for each value."""
    plain, dropped = (plan(name, 4096).peak.low for name in ("one_layer", "one_layer_with_dropout"))
    n = 4096 * 1024
    assert n <= dropped - plain <= 5 * n


def test_what_cannot_be_built_without_values_is_built_with_them():
    assert plan("one_layer_that_looks_at_values", 64).peak == plan("one_layer", 64).peak


def test_a_module_in_memory_is_planned_as_its_builder():
    import torch_helpers

    found = training.plan_memory(torch_helpers.one_layer(), "H200", batch_size=64)
    assert found.peak == plan("one_layer", 64).peak
    assert found.configuration["model"] == "Linear"


@pytest.mark.frameworks("plan", "PyTorch")
def test_bert_holds_what_is_known_of_its_activations():
    """Korthikanti et al. 2022 (https://arxiv.org/abs/2205.05198, equation 2): 34 s b h + 5 a s^2 b bytes a layer in half
    precision, of which 2 s b h + a s^2 b are masks of bytes and the rest doubles in float32."""
    s, b, h, a = 512, 32, 768, 12
    activations = 12 * (66 * s * b * h + 9 * a * s * s * b)
    found = plan("bert_base_512", b)
    fixed = found.bytes_by_part["weights"] + found.bytes_by_part["optimizer"]
    assert fixed == pytest.approx(3 * 4 * found.n_parameters, rel=0.01)
    assert found.peak.low - fixed == pytest.approx(activations, rel=0.05)
    assert found.peak.low < found.peak.high < 1.15 * found.peak.low
    halves = plan("bert_base_512", b, dtype_policy="mixed_float16")
    # Under CUDA's autocast: softmax in float32 (4 bytes), its mask and the copy for the product (2); of s b h three copies of
    # the layer's input, query, key and value, the inputs of three linear layers and of the activation (26 + 8), two masks and
    # the float32 inputs of two normalisations. Weights have copies, too.
    expected = 12 * (42 * s * b * h + 7 * a * s * s * b) + 2 * found.n_parameters
    assert halves.peak.low - fixed == pytest.approx(expected, rel=0.05)
    kept = plan("bert_base_512", b, recompute=("*",))
    assert kept.peak.low - fixed < activations / 12 + 12 * 4 * s * b * h + 2**30  # a layer, inputs of all, gradients


def test_fused_attention_holds_no_scores():
    batch, scores = 4, 4 * 8 * 1024 * 1024 * 4
    plain, fused = (plan(name, batch).peak.low for name in ("plain_attention", "fused_attention"))
    assert plain - fused > scores


def test_more_samples_need_more_and_accumulation_needs_less_than_the_batch():
    whole, half = plan("resnet50", 32), plan("resnet50", 16, gradient_accumulation_steps=2)
    assert half.peak.low < whole.peak.low
    assert half.peak.low > plan("resnet50", 16).peak.low - MIB, "its gradients stay"


def test_a_small_u_net_with_its_loss():
    found = plan("small_unet", 4)
    assert found.configuration["optimizer"] == "adamw"
    assert found.bytes_by_part["optimizer"] >= 2 * 4 * found.n_parameters


def test_a_band_over_the_limit_is_undecided():
    low, high = 10 * GIB, 12 * GIB
    verdicts = [planner.verdict(low, GIB, usable * GIB, high) for usable in (10, 11, 12, 13)]
    assert verdicts == ["out of memory", "undecided", "undecided", "fits"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("without_data", "input_shapes"), ("fails", "no such thing as a step"), ("missing", "has no attribute")],
)
def test_what_cannot_be_planned_says_why(name, said):
    with pytest.raises(training.PlanError, match=said):
        plan(name, 2)


def test_shapes_by_name_are_enough():
    assert plan("without_data", 2, input_shapes={"x": (10,)}).n_parameters == 33
    with pytest.raises(training.PlanError, match="no part 'nothing'"):
        plan("without_data", 2, input_shapes={"x": (10,)}, recompute=("nothing",))


def test_a_builder_may_load_pytorch_itself(tmp_path, monkeypatch):
    (tmp_path / "loads_late.py").write_text("def build():\n    import torch\n    return torch.nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = training.plan_memory("loads_late:build", batch_size=2, input_shapes={"x": (3,)})
    assert found.n_parameters == 8


def test_the_command_prints_what_helps(capsys):
    arguments = ["plan", "torch_helpers:bert_base", "--gpu", "T4", "--batch-size", "128"]
    with pytest.raises(SystemExit) as ended:
        cli.app(arguments)
    assert not ended.value.code
    said = capsys.readouterr().out
    for row in ("as it is", "accumulation", "64 x 2", "autocast in float16", "checkpointing of repeated blocks", "undecided"):
        assert row in said
    assert "not modelled" in " ".join(said.split())


def test_the_command_takes_precision_and_checkpointing(capsys):
    arguments = ["plan", "torch_helpers:bert_base", "--batch-size", "8", "--amp", "bf16", "--checkpoint", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.app(arguments)
    assert not ended.value.code
    first = json.loads(capsys.readouterr().out)[0]["plan"]
    assert first["configuration"]["dtype_policy"] == "mixed_bfloat16"
    assert first["configuration"]["recompute"] == ["*"]
