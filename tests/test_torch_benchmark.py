"""`python -m benchmarks.torch_memory`: which published peaks are judged, of what, and what is said of the others."""

import json
import subprocess
import sys

import pytest

from benchmarks import torch_memory

GIB = 2**30
HEADER = "id,model,batch,seq_or_image,dtype_amp,optimizer,checkpointing,peak_gib,measure,note\n"


def test_published_rows_become_plans_of_what_was_measured():
    points, left_out = torch_memory.read_points()
    found = {point.row["id"]: point for point in points}
    assert found["M002"].how == {"batch_size": 1, "gradient_accumulation_steps": 4}
    assert found["M004"].how == {"batch_size": 4, "gradient_accumulation_steps": 1, "dtype_policy": "mixed_float16"}
    assert found["M005"].how["recompute"] == ("*",)
    assert found["M001"].peak_bytes == pytest.approx(14.6 * GIB - 1343 * 2**20)  # the context, as its note says it
    assert found["M097"].peak_bytes == pytest.approx(2.47 * GIB)  # of the allocator
    assert sum(left_out.values()) + len(points) == 20
    assert all(point.row["source"] and point.row["quote"] for point in points)


def test_what_is_not_judged_says_why(tmp_path):
    file = tmp_path / "own.csv"
    rows = [
        "A,ResNet-50 + LoRA,8,224,fp32,SGD,no,3,,",
        "B,ResNet-51,8,224,fp32,SGD,no,3,,",
        "C,ResNet-50,8,224,fp32,LAMB,no,3,,",
    ]
    rows += [
        "D,ResNet-50,8,224,fp32,SGD,no,much,,",
        "E,resnet101,8,,fp32,SGD,no,3,,",
        "F,BERT base,8,128,bf16 AMP,AdamW,no,3,NVML,",
    ]
    file.write_text(HEADER + "\n".join(rows))
    points, left_out = torch_memory.read_points(file)
    assert [point.row["id"] for point in points] == ["F"]
    assert points[0].peak_bytes == 2.5 * GIB  # half a GiB of context, where no note says it
    assert points[0].how == {"batch_size": 8, "dtype_policy": "mixed_bfloat16"}
    assert left_out == {
        "adapters are not built": 1, "this model is not built": 1, "an optimizer of another library": 1,
        "peak_gib is no number": 1, "no batch, length or image size": 1,
    }  # fmt: skip


@pytest.mark.parametrize("text", [None, b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_what_is_no_such_file_is_refused(tmp_path, text):
    if text:
        (tmp_path / "own.csv").write_bytes(text)
    with pytest.raises(ValueError, match=r"own\.csv"):
        torch_memory.read_points(tmp_path / "own.csv")


def test_the_command_judges_a_file(tmp_path):
    pytest.importorskip("torch")
    rows = ["A,ResNet-50,1,64x64,fp32,SGD momentum,no,0.35,max_memory_allocated,", "B,ResNet-50,1,64x64,fp32,SGD,no,9,,"]
    (tmp_path / "own.csv").write_text(HEADER + "\n".join(rows))
    command = [sys.executable, "-m", "benchmarks.torch_memory", tmp_path / "own.csv", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["all"]["n"] == 2
    assert found["all"]["inside"] == 0.5
    assert [row["inside"] for row in found["rows"]] == [True, False]
