"""What chapters write is said in Turkish, numbers included; what nobody knows stays as it is, and no text takes long."""

import json
import re
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import CPU, of, planned, results
from test_report_decisions import ON_CPU, ON_GPU, busy, checked

from altlas_lib import environment, inference, profiling, serving, similarity, training
from altlas_lib.devices import find_gpu
from altlas_lib.environment import plots as environment_plots
from altlas_lib.figures import figure
from altlas_lib.inference import plots as inference_plots
from altlas_lib.paths import notebooks_dir
from altlas_lib.profiling.show import plots as profiling_plots
from altlas_lib.report.bands import Band
from altlas_lib.report.language import Language
from altlas_lib.results import Candidate, Finding, Metric, Projection, Quantity, Route
from altlas_lib.serving import plots as serving_plots
from altlas_lib.similarity import plots as similarity_plots
from altlas_lib.training import plots as training_plots

TURKISH = Language.load("tr")
ENGLISH_WORDS = re.compile(r"\b(the|of|and|is|are|was|with|per|for|than|this|each|does|values)\b", re.I)
T4 = find_gpu("T4")


def turkish(text):
    said = TURKISH.say(text)
    assert said != text
    assert not ENGLISH_WORDS.findall(said), said
    return said


def title(draw, *arguments):
    with figure() as (_, ax):
        return draw(ax, *arguments).get_title("left")


def candidate(advice, gain, *, measured=None):
    band = Quantity.projected(*gain, "x", "T4", "launches")
    times = {name: Quantity.projected(0.0296, 0.0951, "s", "T4", "launches") for name in ("on_gpu", "on_gpu_resident")}
    now = Quantity.measured([0.134], "s", CPU)
    projection = Projection(gpu="T4", basis="data sheet", now=now, by_cause={"launches": 0.03}, coverage=0.9, **times)
    fields = {"workload": "service", "function": "f", "share": 0.63, "largest_gain": 2.7, "reason": "r", "advice": advice}
    way = {"kind": "algorithm", "name": "g", "standing": "measured", "same_answer": True, "why": "w"}
    routes = [Route(gain=Quantity.measured([measured], "x", CPU), **way)] if measured else []
    return Candidate(projection=projection, gain=band, workload_gain=band, routes=routes, **fields)


def test_the_finding_and_the_figures_of_chapter_00():
    ceilings = of(results(), "environment").ceilings
    findings = [Finding(check="GPU", status="warning", found="none", fix="x"), Finding(check="CPU", status="ok", found="y")]
    assert turkish(environment.summarize(findings, ceilings, T4)) == (
        f"Bu makine hazır (1 uyarı): {CPU} float32 matrisleri 240 GFLOP/s hızla çarpıyor, belleği 38 GB/s hızla kopyalıyor "
        "(ölçüldü). T4 veri sayfasında 8.100 GFLOP/s ve 320 GB/s yazıyor."
    )
    on_gpu = Quantity.measured([7000.0], "GFLOP/s", "Tesla T4")
    with_gpu = ceilings.model_copy(update={"gpu_matmul_float32": on_gpu, "gpu_copy_bandwidth": on_gpu})
    assert "Tesla T4: 7.000 GFLOP/s ve 7.000 GFLOP/s (ölçüldü)" in turkish(environment.summarize(findings, with_gpu, T4))
    for draw in (environment_plots.matrix_rates, environment_plots.copy_bandwidths, environment_plots.roofline):
        turkish(title(draw, ceilings, T4))


def test_the_finding_and_the_figures_of_chapter_10():
    (profile,) = of(results("service"), "hotspots").workloads
    found = [candidate("change the call", (1.4, 4.5), measured=3.2), candidate("leave it", (0.9, 1.1))]
    assert turkish(profiling.finding([profile], found)) == (
        "service (çalıştırma başına 300 ms): %63 f (çağrıyı değiştir, bütünü 3,2 kat hızlanıyor, ölçüldü) ve %63 f (olduğu "
        f"gibi bırak). Ölçüldüğü yer: {CPU}. Kazançlar T4 için öngörüldü; orada hiçbir şey çalışmadı."
    )
    turkish(profiling.finding([profile, profile], []))
    assert "%100" in turkish(title(profiling_plots.function_shares, profile))
    assert turkish(title(profiling_plots.projected_gains, found, T4)) == "f: T4 üzerinde 1,4 – 4,5 kat hızlı (öngörü)"
    turkish(title(profiling_plots.projected_gains, found[1:], T4))
    turkish(title(profiling_plots.candidate_roofline, [profile], T4))


def test_the_finding_and_the_figures_of_chapter_20():
    checks = [checked("GPU tiles", 10_000, gpu=True), checked("CPU tiles", 10_000)]
    for timings, valid, expected in (
        (
            [ON_CPU, ON_GPU],
            checks,
            "110 ms: Tesla T4 (GPU tiles, ölçüldü), 10.000 metinden itibaren kazandırıyor; bütün",
        ),
        ([busy(ON_CPU), ON_GPU], [], "işlemcilerin %50 kadarını kullandı: fazla yavaş); aktarımlarla 110 ms: Tesla T4"),
        ([ON_CPU, ON_GPU], [checked("x", 10_000, error=1.0)], "1 yöntemden 1 tanesi float64 ile UYUŞMUYOR"),
    ):
        assert expected in turkish(similarity.summarize(timings, valid, 10))
    assert turkish(title(similarity_plots.similarity_times, [ON_CPU, ON_GPU])) == (
        "10.000 metin: ortanca 1,1 sn (CPU tiles), 110 ms (GPU tiles)"
    )
    with figure() as (_, ax):
        drawn = similarity_plots.similarity_memory(ax, [ON_CPU], memory_bytes=2**34).get_title("left")
    assert turkish(drawn) == "100.000 metin: yalnız matris 37,3 GiB tutar"


@pytest.mark.parametrize(
    ("low", "high", "best", "constant", "expected"),
    [
        (0.02, 0.08, None, None, "model öngörüyor: +5,0 puan (%95 aralık +2,0 – +8,0)"),
        (-0.002, 0.002, None, "1.5 or more", "model, önemli olacak +1,0 puandan azını kazanıyor"),
        (-0.002, 0.002, 0.65, None, "gürültü (%95 aralık -0,2 – +0,2; en çok +0,0)"),
        (-0.08, -0.02, None, None, "model, modelsizden +5,0 puan kötü"),
        (-0.01, 0.03, None, None, "modelin bir şey öngördüğüne işaret yok"),
    ],
)
@pytest.mark.parametrize("kind", ["a planted, learnable regime", "fair odds, in which there is nothing to learn"])
def test_the_finding_and_the_figures_of_chapter_30(low, high, best, constant, expected, kind):
    scored = {"base_rate": 0.65, "model": 0.7, "n_samples": 2200, "gain_low": low, "gain_high": high, "best_possible": best}
    accuracy = Metric(name="accuracy at 1.5", unit="share", higher_is_better=True, **scored)
    worse = accuracy.model_copy(update={"name": "accuracy from 1.5", "gain_high": -0.01})
    remedies = [planned("reference", "out of memory"), planned("mixed_float16", "fits"), planned("b", "fits")]
    how = {"model": "quick", "source_name": f"crash_series(n=12), a generated game with {kind}", "constant_answer": constant}
    how["step_time"] = Quantity.measured([0.0184], "s", CPU)
    said = turkish(training.finding([accuracy, worse], remedies=remedies, **how))
    assert expected in said
    assert "17 GiB istiyor (derleyici) ve T4 belleğine sığmıyor; mixed_float16 ile 17 GiB istiyor ve sığıyor" in said
    assert "mikro yığın başına 18,4 ms ile (ölçüldü)" in said
    assert "2.200 değerin %70,0 kadarında 1,5 altı" in said
    turkish(training.finding([], remedies=remedies[1:], **how | {"constant_answer": None}))
    turkish(title(training_plots.memory_by_part, remedies))
    assert turkish(title(training_plots.scores_beside_base_rate, [accuracy])).startswith("1,5 eşiğinde doğruluk: model %70")
    assert turkish("Validation loss 0.583 after the first epoch, at best 0.560 (epoch 3)") == (
        "Doğrulama kaybı ilk dönemden sonra 0,583, en iyi 0,560 (3. dönem)"
    )


def test_the_finding_and_the_figure_of_chapter_40():
    result = of(results("float16"), "inference")
    about = result.variants, result.latencies, result.forwards, result.engines
    said = turkish(inference.finding(*about, result.variants[1]))
    assert "float16 buna göre 2,5 kat ve puanın %99,5 – %100,5 kadarı korunuyor" in said
    assert "float16 üzerinde 1 örneklik bir çağrının 10 – 20 ms süreceği öngörülüyor" in said
    assert "2 TensorRT motorundan 1 tanesi" in said
    assert "float32 kalıyor" in turkish(inference.finding(*about, None))
    turkish(title(inference_plots.latency_by_batch, result.latencies, result.forwards))


def test_every_reason_that_the_rules_of_the_advice_give():
    """Filled in with values of the kinds that the rules write, whatever their names are; names of ways stay as they are."""
    rules = tomllib.loads((Path(profiling.__file__).parent / "project" / "advice.toml").read_text())["rule"]
    found = [re.sub(r"{%.*?%}.*?{%.*?%}", "", rule["reason"]).rstrip(".") for rule in rules]
    reasons = [each for each in found if each and "route" not in each]
    assert len(reasons) >= 12
    for reason in reasons:
        filled = re.sub(r"{{?[^}]*(?:share|coverage|load)\b[^}]*}}?", "63%", reason)
        filled = re.sub(r"{{?[^}]*\b(?:python_classes|bound_by|gpu)\b[^}]*}}?", "regex", filled)
        turkish(re.sub(r"{{?[^}]*}}?", "1.5 ms", filled))


def test_every_alternative_text_of_the_notebooks():
    texts = []
    for notebook in sorted(notebooks_dir().glob("[0-9]*.ipynb")):
        for cell in json.loads(Path(notebook).read_text())["cells"]:
            texts += re.findall(r'alt = f?"([^"\n]*)"', "".join(cell["source"]))
    assert len(texts) >= 12
    for text in texts:
        turkish(text.replace("{target.name}", "T4"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.5 ms", "1.234,5 ms"),
        ("14%", "%14"),
        ("1.4x to 4.5x", "1,4 – 4,5 kat"),
        ("2024", "2024"),
        ("rows to columns", "rows to columns"),
        ("salt and pepper, 3 kinds", "salt and pepper, 3 kinds"),
        ("the user's own; text", "the user's own; text"),
        ("of its own time own lines 90%, numpy 10%", "kendi süresinin payları: kendi satırları %90, numpy %10"),
        ("regex: 63% of 1.5 ms is spent in arrays", "regex: 1,5 ms sürenin %63 kadarı arrays içinde geçiyor"),
        ("regex: 63% of 1.5 ms (median) is spent in arrays", "regex: ortanca 1,5 ms sürenin %63 kadarı arrays içinde geçiyor"),
    ],
)
def test_numbers_are_rewritten_and_the_users_words_are_not(text, expected):
    assert TURKISH.say(text) == expected


def test_what_is_in_turkish_is_not_rewritten_once_more():
    assert TURKISH.band(Band(1200, 2300, "x")) == "1.200 – 2.300 kat"
    assert TURKISH.text("{low} to {high}", low="1.200", high="1.234 GFLOP/s") == "1.200 – 1.234 GFLOP/s"


@given(st.lists(st.sampled_from(["; ", " and ", ", ", " to ", "63% in f (", ")", "a spends b", "(1% of its own time)", "."])))
def test_no_text_takes_long_or_is_lost(parts):
    text = "".join(parts)
    started = time.process_time()
    assert TURKISH.say(text) or not text
    assert time.process_time() - started < 5  # a thousand times what is usual: a text on which it explodes takes hours


def test_what_chapter_50_writes_is_said_in_turkish():
    saved = of(results(), "serving")
    sentences = [
        serving.summarize(saved.loads, saved.kill.model_copy(update={"same_answer": same}), limit_s, 50)
        for same in (True, False)
        for limit_s in (0.1, 0.001)
    ]
    with figure() as (_, ax):
        sentences.append(serving_plots.latency_by_load(ax, saved.loads, 0.1).get_title(loc="left"))
    bucket = 'altlas_batch_requests_bucket{model="m",le="1.0"} 3\n'
    with figure() as (_, ax):
        sentences.append(
            serving_plots.batch_sizes(ax, f"# TYPE altlas_batch_requests histogram\n{bucket}").get_title(loc="left")
        )
    for sentence in sentences:
        assert TURKISH.say(sentence) != sentence
        assert not ENGLISH_WORDS.search(TURKISH.say(sentence)), sentence


@pytest.mark.parametrize(
    "note",
    [
        "unset OPENBLAS_CORETYPE   # before Python or Jupyter starts",
        "other programs took 51% of the processors while it was measured: times and shares are rough; "
        "profile again when it is quiet",
        "cProfile gave no times: there was no time for a run under it",
        "3 calls on arrays could not be described and are left out",
        "out of memory in epoch 2, with micro-batches of 64 (XYZ): went on with 32, from update 7",
        "no TensorRT builder is installed: pip install tensorrt-rtx, or use the printed trtexec command",
    ],
)
def test_notes_of_the_chapters_are_said_in_turkish(note):
    turkish(note)
