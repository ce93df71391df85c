"""Large language models: exact weights from small GGUF files and safetensors made here, the cache by hand, hostile headers."""

import json
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from altlas_lib import cli, devices, inference
from altlas_lib.inference import llm
from altlas_lib.inference.llm import LanguageModel, LlmPlan
from benchmarks import llm as benchmark

N_LAYERS, HIDDEN, HEADS, CACHED, VOCABULARY = 4, 64, 8, 2, 320


def write_gguf(path, *, experts=0, keys=True):
    writer = gguf.GGUFWriter(path, "llama")
    if keys:
        writer.add_block_count(N_LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(CACHED)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, HIDDEN), "float16"))
    blocks = np.zeros((HIDDEN, HIDDEN // 32 * 34), "uint8")  # Q8_0: 34 bytes for 32 weights
    for i in range(N_LAYERS):
        writer.add_tensor(f"blk.{i}.attn_q.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", np.zeros(HIDDEN, "float32"))
        if experts:
            writer.add_tensor(f"blk.{i}.ffn_up_exps.weight", np.zeros((experts, HIDDEN, HIDDEN), "float16"))
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(path):
    path.mkdir()
    config = {"num_hidden_layers": N_LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": CACHED}
    (path / "config.json").write_text(json.dumps(config | {"hidden_size": HIDDEN}))
    shapes = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN]}
    shapes |= {f"model.layers.{i}.self_attn.q_proj.weight": [HIDDEN, HIDDEN] for i in range(N_LAYERS)}
    header = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)  # the header is enough
    return path


def test_a_gguf_file_is_read_to_the_byte(tmp_path):
    model = inference.read_model(write_gguf(tmp_path / "small.gguf"))
    of_layer = HIDDEN * HIDDEN // 32 * 34 + 4 * HIDDEN
    assert model.weights_bytes == 2 * VOCABULARY * HIDDEN + N_LAYERS * of_layer
    assert model.n_parameters == VOCABULARY * HIDDEN + N_LAYERS * (HIDDEN * HIDDEN + HIDDEN)
    assert model.n_cached == N_LAYERS * CACHED * 2 * (HIDDEN // HEADS)
    assert (model.quantisation, model.vocabulary, model.active_share) == ("Q8_0", VOCABULARY, 1)


def test_a_mixture_of_experts_reads_the_part_that_it_uses(tmp_path):
    model = inference.read_model(write_gguf(tmp_path / "experts.gguf", experts=8))
    expert_bytes = N_LAYERS * 8 * HIDDEN * HIDDEN * 2
    assert model.active_share == pytest.approx(1 - expert_bytes / model.weights_bytes * 6 / 8)


def test_a_folder_of_safetensors_is_read_by_its_headers(tmp_path):
    model = inference.read_model(write_folder(tmp_path / "small"))
    assert model.n_parameters == VOCABULARY * HIDDEN + N_LAYERS * HIDDEN * HIDDEN
    assert model.weights_bytes == 2 * model.n_parameters
    assert (model.quantisation, model.n_cached) == ("BF16", N_LAYERS * CACHED * 2 * (HIDDEN // HEADS))


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:300])


def damage_counts(path):
    content = bytearray(path.read_bytes())
    content[8:24] = struct.pack("<QQ", 2**60, 2**60)  # tensors and keys
    path.write_bytes(content)


def damage_magic(path):
    path.write_bytes(b"MZ" + path.read_bytes()[2:])


@pytest.mark.parametrize("damage", [damage_truncated, damage_counts, damage_magic])
def test_a_damaged_header_is_refused(tmp_path, damage):
    path = write_gguf(tmp_path / "small.gguf")
    damage(path)
    with pytest.raises(
        inference.InferenceError, match=r"small\.gguf is damaged or lacks what decides \(.*\): download it again"
    ):
        inference.read_model(path)


def test_what_is_missing_or_no_model_is_named(tmp_path):
    with pytest.raises(inference.InferenceError, match=r"small\.gguf is damaged or lacks what decides"):
        inference.read_model(write_gguf(tmp_path / "small.gguf", keys=False))
    with pytest.raises(inference.InferenceError, match=r"is no \.gguf file, and no folder"):
        inference.read_model(tmp_path / "gone.gguf")
    folder = write_folder(tmp_path / "small")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(inference.InferenceError, match=r"says that its header has 4,611,686,018,427,387,904 bytes"):
        inference.read_model(folder)


def make_model(**fields):
    """Llama 3 8B as Q4_K_M, by its published sizes."""
    sizes = {"n_parameters": 8_030_261_248, "weights_bytes": 4_920_734_720, "n_layers": 32, "n_heads": 32, "head_size": 128}
    sizes |= {"n_cached": 32 * 8 * 2 * 128, "hidden_size": 4096, "vocabulary": 128_256}
    return LanguageModel(name="Llama-3 8B", quantisation="Q4_K_M", **(sizes | fields))


def test_the_cache_is_that_of_the_architecture():
    plan = inference.plan_model(make_model(), "T4", context=8192, batch=4)
    assert plan.cache_bytes == 4 * 2**30  # 128 KiB for a token of Llama 3 8B: llama.cpp says 1,024 MiB for 8,192
    assert plan.verdict == "fits"
    assert plan.n_layers_on_gpu == 32
    assert plan.largest_context >= 4 * 8192
    assert LlmPlan.model_validate_json(plan.model_dump_json()) == plan


def test_the_logits_of_a_micro_batch_are_what_llama_cpp_allocates():
    """About 300 MiB for a micro-batch of 512 and a vocabulary of 152,000."""
    plan = inference.plan_model(make_model(vocabulary=152_064, hidden_size=3584), "T4")
    assert (plan.work_bytes - llm.CONTEXT_BYTES) / 2**20 == pytest.approx(300, rel=0.1)


def test_too_large_a_model_says_how_many_layers_fit_and_no_speed():
    model = make_model(weights_bytes=42 * 10**9, n_parameters=70 * 10**9, n_layers=80)
    plan = inference.plan_model(model, "T4")
    assert (plan.verdict, plan.prompt, plan.generation, plan.largest_context) == ("out of memory", None, None, 0)
    assert 20 <= plan.n_layers_on_gpu <= 28
    assert plan.largest_quantisation["RTX 3060"] is None
    assert plan.largest_quantisation["A100 80GB SXM"] == "Q8_0"  # 74 of 85 GB
    assert plan.largest_quantisation["H200"] == "F16"  # 140 of 150 GB


@given(st.sampled_from([gpu.name for gpu in devices.load_catalogue()]), st.integers(1, 10**5), st.integers(1, 64))
def test_what_fits_fits_by_its_own_count(gpu, context, batch):
    plan = inference.plan_model(make_model(), gpu, context=context, batch=batch)
    assert (plan.verdict == "out of memory") == (
        plan.model.weights_bytes + plan.cache_bytes + plan.work_bytes > plan.usable_bytes
    )
    assert (plan.largest_context >= context * batch) == (plan.verdict == "fits")
    if plan.largest_context:
        assert inference.plan_model(make_model(), gpu, context=plan.largest_context).verdict == "fits"
        assert inference.plan_model(make_model(), gpu, context=plan.largest_context + 2).verdict != "fits"


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="context 0, batch 1: expected 1 or more"):
        inference.plan_model(make_model(), "T4", context=0)


def test_speed_falls_with_bytes_context_and_rises_with_the_card():

    def tokens_per_s(model=None, gpu="A10", context=512, phase="generation"):
        return llm.speed(model or make_model(), devices.find_gpu(gpu), context, phase).high

    assert tokens_per_s(make_model(weights_bytes=16 * 10**9)) < tokens_per_s() < tokens_per_s(gpu="H100")
    assert tokens_per_s(context=65536) < tokens_per_s()
    assert tokens_per_s() < tokens_per_s(make_model(active_share=0.2)) < 5 * tokens_per_s()
    assert tokens_per_s() < tokens_per_s(phase="prompt")


def test_the_command_plans_a_file_and_names_a_damaged_one(tmp_path):
    path = write_gguf(tmp_path / "small.gguf")
    said = CliRunner().invoke(cli.app, ["plan", str(path), "--gpu", "T4", "--context", "4096", "--batch", "4", "--json"])
    assert said.exit_code == 0, said.output
    plan = LlmPlan.model_validate_json(said.output)
    assert (plan.gpu, plan.context, plan.batch, plan.verdict) == ("T4", 4096, 4, "fits")
    assert "4 of 4" in CliRunner().invoke(cli.app, ["plan", str(path)]).output
    damage_magic(path)
    said = CliRunner().invoke(cli.app, ["plan", str(path)])
    assert said.exit_code == 1
    assert "download it again" in said.output


# The benchmark ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    points, left_out = benchmark.read_points()
    errors = benchmark.errors_without(points, points)
    return points, left_out, benchmark.summary(benchmark.judge(errors, errors))


def test_projected_speeds_hold_on_cards_that_the_fit_has_not_seen(found):
    points, left_out, scores = found
    assert len(points) >= 190
    assert sum(left_out.values()) <= 2
    for each in (scores["core"], scores["all"], *scores["by_class"].values()):
        assert each["inside"] >= 0.8
        assert each["median_error"] <= 1.3
        assert each["median_width"] <= 3


def test_the_shipped_constants_are_the_fit_of_the_published_speeds(found):
    shipped = llm.shipped_toml("altlas_lib.inference", "llm.toml")["constants"]
    assert benchmark.fit(found[0]) == pytest.approx(shipped, rel=2e-3)


def test_unknown_cards_and_models_are_counted_not_guessed(tmp_path, capsys):
    file = tmp_path / "speeds.csv"
    head = "id,model,params_b,size_gib,quantisation,gpu,test,tokens_per_s,trust"
    rows = ["a,Llama-3 8B,8.03,4.58,Q4_K_M,RTX 9999,tg128,50,1", "b,New 9B,9.1,5.1,Q4_K_M,RTX 4090,tg128,120,1"]
    rows += ["c,Odd 8x3B (MoE),20,11,Q4_0,RTX 4090,tg128,120,1", "d,Llama-3 8B,8.03,,Q4_K_M,RTX 4090,tg128,120,1"]
    file.write_text("\n".join([head, *rows]))
    assert benchmark.main([str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["all"]["n"], said["all"]["inside"]) == (1, 1)
    assert sorted(said["not_priced"]) == [
        "GPU 'RTX 9999' is neither in llm_models.toml nor in the catalogue",
        "model 'Odd 8x3B (MoE)' is a mixture of experts that llm_models.toml does not know",
        "no size_gib",
    ]
    file.write_text("nothing")
    assert benchmark.main([str(tmp_path / "gone.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err
