"""The book in JupyterLab and the report, in a real browser: `make e2e`. Screenshots stay in `outputs/e2e/`."""

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from altlas_lib.paths import notebooks_dir, outputs_dir

playwright = pytest.importorskip("playwright.sync_api", reason="make e2e installs it")

NOTEBOOKS = sorted(path.name for path in notebooks_dir().glob("[0-9][0-9]_*.ipynb"))
SCREEN = {"width": 1440, "height": 900}
LAPTOP = {"width": 1280, "height": 800}
SCREENSHOTS = outputs_dir() / "e2e"
MINUTES = 60_000  # in Playwright's milliseconds


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Where the notebooks write. Plans that were compiled before are at hand, as for a user who opens the book again."""
    folder = tmp_path_factory.mktemp("outputs")
    plans = outputs_dir() / ".cache"
    if plans.is_dir():
        shutil.copytree(plans, folder / ".cache")
    return folder


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.fail("no chromium on the PATH; on Debian: apt install chromium")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=chromium, args=[*options, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, outputs):
    """JupyterLab on a copy of the notebooks, which it saves as they run; its address with the token."""
    folder = tmp_path_factory.mktemp("lab")
    for name in NOTEBOOKS:
        shutil.copy(notebooks_dir() / name, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = [
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--notebook-dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with open(folder / "lab.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *options, *(["--allow-root"] if os.geteuid() == 0 else [])],
            env={**os.environ, "JUPYTER_TOKEN": token, "ALTLAS_OUTPUTS": str(outputs)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end_s = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{address}/api?token={token}", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > end_s:
                    pytest.fail(f"JupyterLab does not answer: {(folder / 'lab.log').read_text()}")
                time.sleep(0.3)
        yield address, token
    finally:
        process.send_signal(signal.SIGTERM)  # ends its kernels, too
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def page(browser, lab):
    context = browser.new_context(viewport=SCREEN)
    page = context.new_page()
    yield page
    context.close()


def headings(cells):
    """(level, text) of every Markdown heading, in order."""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            outside = re.sub(r"```.*?```", "", source, flags=re.S)
            yield from ((len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", outside, re.M))


def run_in_lab(page, lab, name):
    """Open a notebook, run all of it, and return its cells as they are then."""
    address, token = lab
    page.goto(f"{address}/lab/tree/{name}?token={token}&reset")
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=2 * MINUTES
    )
    page.wait_for_function("window.jupyterapp.shell.currentWidget.content.widgets.length > 3", timeout=1 * MINUTES)
    with contextlib.suppress(playwright.TimeoutError):  # JupyterLab asks once whether it may fetch news
        page.get_by_role("button", name="No", exact=True).click(timeout=3000)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    return json.loads(page.evaluate("JSON.stringify(window.jupyterapp.shell.currentWidget.model.toJSON().cells)"))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_jupyterlab_without_error_or_noise(page, lab, name):
    cells = run_in_lab(page, lab, name)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]

    # The table of contents reads as a story: one title, then its parts, no level left out; and the panel shows it.
    levels = [level for level, _ in headings(cells)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    page.evaluate("window.jupyterapp.commands.execute('toc:show-panel')")
    page.wait_for_function("document.querySelectorAll('.jp-TableOfContents .jp-tocItem').length > 1")
    shown = page.eval_on_selector_all(".jp-TableOfContents .jp-tocItem-content", "all => all.map(each => each.textContent)")
    for _, text in headings(cells):
        assert any(re.sub(r"\W", "", text) in re.sub(r"\W", "", each) for each in shown), text

    stem = Path(name).stem
    page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    for at in range(0, len(cells), 4):
        page.evaluate(f"window.jupyterapp.shell.currentWidget.content.scrollToItem({at}, 'start')")
        page.wait_for_timeout(400)
        page.screenshot(path=SCREENSHOTS / f"{stem}_{at:02}.png")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")  # one kernel's memory at a time


def test_the_panel_is_there_to_be_moved(page, lab):
    """The what-if panel of chapter 90, which ran last, follows its sliders."""
    run_in_lab(page, lab, NOTEBOOKS[-1])  # once more: its widgets live in the kernel, which the test above has ended
    last = page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length - 1")
    page.evaluate(f"window.jupyterapp.shell.currentWidget.content.scrollToItem({last})")
    page.wait_for_selector(".widget-interact table")
    assert "10,000 texts, T4" in page.inner_text(".widget-interact")
    page.select_option(".widget-dropdown select >> nth=0", label="H200")
    page.wait_for_function("document.querySelector('.widget-interact').innerText.includes('10,000 texts, H200')")
    page.screenshot(path=SCREENSHOTS / "what_if.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "tr"])
def test_the_report_shows_its_decisions_on_the_first_screen_without_a_network(browser, outputs, monkeypatch, scheme, language):
    from altlas_lib import paths, report

    monkeypatch.setenv("ALTLAS_OUTPUTS", str(outputs))
    run = paths.run_folder("interactive")  # what the notebooks left behind
    file = report.render_report(run, language=language)[0]
    assert file.stat().st_size < 5_000_000
    context = browser.new_context(viewport=LAPTOP, color_scheme=scheme, offline=True)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.screenshot(path=SCREENSHOTS / f"report_{language}_{scheme}.png")
    page.screenshot(path=SCREENSHOTS / f"report_{language}_{scheme}_whole.png", full_page=True)
    verdicts = page.locator(".decision .verdict")
    expected = [report.language.Language.load(language).text(each.verdict) for each in report.Report.read(run).decisions]
    assert verdicts.all_inner_texts() == expected
    assert len(expected) == 7
    answer = page.locator(".overall .verdict")
    assert answer.inner_text() == report.language.Language.load(language).text(report.Report.read(run).overall.verdict)
    listed = page.locator(".verdicts b")
    assert listed.all_inner_texts() == expected
    for verdict in [answer, *listed.all()]:
        box = verdict.bounding_box()
        assert box["y"] + box["height"] <= LAPTOP["height"], f"{verdict.inner_text()} is below the first screen"
    assert answer.bounding_box()["y"] < min(each.bounding_box()["y"] for each in page.locator(".notice, .decision").all())
    assert page.evaluate("document.documentElement.scrollWidth") <= LAPTOP["width"]
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    if language == "tr":  # of what the notebooks wrote, no finding and no caption has stayed English
        written = page.locator(".finding, figcaption").all_inner_texts()
        written += page.eval_on_selector_all("img", "all => all.map(each => each.alt)")
        assert len(written) > 20
        assert [text for text in written if re.search(r"\b(the|of|and|is|with|per|for|each)\b", text, re.I)] == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
    context.close()


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_report_can_be_read_on_a_phone_and_a_tablet(browser, outputs, monkeypatch, width):
    from altlas_lib import paths, report

    monkeypatch.setenv("ALTLAS_OUTPUTS", str(outputs))
    file = report.render_report(paths.run_folder("interactive"))[0]
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = "all => all.filter(each => each.getBoundingClientRect().right > window.innerWidth).length"
    assert page.eval_on_selector_all(".overall, .decision, div.reason, caption, .provenance p", beyond) == 0  # nothing is cut
    page.screenshot(path=SCREENSHOTS / f"report_{width}.png")
    context.close()


# Elements that reach beyond the window, and that no box around them scrolls.
CUT_OFF = """all => all.filter(each => {
    const box = each.getBoundingClientRect();
    if (!box.width || box.right <= window.innerWidth + 1) return false;
    for (let around = each.parentElement; around !== document.body; around = around.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(around).overflowX)) return false;
    return true;
}).map(each => each.tagName + "." + each.className + ": " + each.textContent.slice(0, 60))"""


@pytest.mark.parametrize("language", ["en", "tr"])
@pytest.mark.parametrize("width", [360, 390, 820, 1280])
def test_names_of_any_length_widen_no_page(browser, monkeypatch, tmp_path, language, width):
    from test_report import PIXEL, changed, of, results

    from altlas_lib import paths, report
    from altlas_lib.results import Route, Step, Timing

    monkeypatch.setenv("ALTLAS_OUTPUTS", str(tmp_path))
    run = paths.run_folder("a-run-with-a-name-" + "without-end-" * 6)
    long = "the_longest_of_all_names/" + "without_any_place_to_break_it" * 9
    saved = results(long, gpu=True, break_even=4100)
    hotspots, similarity = of(saved, "hotspots"), of(saved, "similarity")
    route = Route(kind="drop-in library", name=long, standing="offered on conditions", why=long)
    candidate = hotspots.candidates[0].model_copy(update={"routes": [route]})
    expected = Timing(method=long, on_gpu=True, n_texts=1000, time=hotspots.candidates[0].gain)
    step = Step(name=long, time=similarity.timings[0].time, share=0.5)
    saved += [
        changed(hotspots, candidates=[candidate.model_dump()]),
        changed(similarity, expectations=[expected.model_dump()], steps=[step.model_dump()]),
    ]
    for result in saved:
        result.save(run)
    (run.figures / "20_times.png").write_bytes(PIXEL)
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    page.goto(report.render_report(run, language=language)[0].as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
    assert page.eval_on_selector_all("body *", CUT_OFF) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_a_hostile_text_runs_no_script_in_the_browser(browser, outputs, monkeypatch, tmp_path):
    from altlas_lib import paths, report
    from altlas_lib.results import SimilarityResult

    monkeypatch.setenv("ALTLAS_OUTPUTS", str(outputs))
    result = SimilarityResult.load(paths.run_folder("interactive"))
    hostile = "\"'><img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"
    source = result.source.model_copy(update={"name": hostile})
    pairs = [(hostile, hostile, 0.5)]
    changed = result.model_copy(update={"source": source, "most_similar": pairs, "finding": hostile, "embedding": hostile})
    monkeypatch.setenv("ALTLAS_OUTPUTS", str(tmp_path))
    run = paths.run_folder("hostile")
    changed.save(run)
    context = browser.new_context()
    page = context.new_page()
    page.goto(report.render_report(run)[0].as_uri())
    page.wait_for_timeout(300)
    assert "broken in" not in page.title()
    assert hostile in page.inner_text("#similarity ~ .finding")
    context.close()
