"""JupyterLab in a real browser: the live view appears, its buttons work, the study browser filters."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "only-for-this-test"

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install the package 'chromium' to run the browser tests")


def notebook_until(name: str, marker: str) -> nbformat.NotebookNode:
    "A notebook up to and including the first cell that contains the marker, without outputs."
    notebook = nbformat.read(ROOT / "nbs" / name, as_version=4)
    last = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and marker in c.source and "#| export" not in c.source)
    notebook.cells = notebook.cells[:last + 1]
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    return notebook


def a_study(folder: Path) -> None:
    "Four finished runs in the layout of a study."
    for k, (method, seed) in enumerate([("near", 0), ("near", 1), ("far", 0), ("far", 1)]):
        run = folder / "hills" / f"run{k}"
        run.mkdir(parents=True)
        (run / "params.json").write_text(json.dumps({"method": method, "seed": seed}))
        (run / "status.json").write_text(json.dumps({"state": "done", "wall_s": 1.0}))
        rows = [{"round": r, "best": r * (1 + k)} for r in range(4)]
        (run / "records.jsonl").write_text(json.dumps({"kind": "table", "name": "curve", "rows": rows, "tags": {}}) + "\n")
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"executed notebook of run {k}")])
        nbformat.write(page, run / "notebook.ipynb")
    (folder / "hills" / "study.json").write_text("{}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with an empty home directory, serving three notebooks; gives its address."
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("lab")
    nbformat.write(notebook_until("core/widgets.ipynb", "live(hill"), work / "live.ipynb")
    nbformat.write(notebook_until("tutorials/design_a_binding_site.ipynb", "game = ByHand"), work / "tutorial.ipynb")
    a_study(work / "runs")
    cell = "from designloop.core.widgets import StudyBrowser\nStudyBrowser('runs')"
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel), work / "studies.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "XDG_"))}
    env = {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "pkg"), os.environ.get("PYTHONPATH", "")]))}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={work}", "--allow-root",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
               "--ServerApp.jpserver_extensions={'jupyterlab_jupytext': False, 'jupyter_lsp': False}"]
    with open(home / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=env, cwd=work, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 40
        while True:
            if server.poll() is not None: pytest.fail(f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-3000:]}")
            try: urllib.request.urlopen(f"{url}/api?token={TOKEN}", timeout=2).close(); break
            except OSError:
                if time.monotonic() > deadline: pytest.fail(f"JupyterLab did not answer:\n{(home / 'lab.log').read_text()[-3000:]}")
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: server.kill(); server.wait()


@pytest.fixture(scope="module")
def browser():
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking",
                                                                       "--disable-component-update"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, lab, request):
    page = browser.new_page(viewport={"width": 1300, "height": 1100})
    page.set_default_timeout(30_000)
    yield page
    look(page, request.node.name)
    page.close()


def run_all(page, lab: str, notebook: str) -> None:
    "Open a notebook in JupyterLab and run all its cells."
    page.goto(f"{lab}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?reset&token={TOKEN}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", state="visible")
    page.get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for()         # the kernel is connected
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def look(page, name: str) -> None:
    "Keep a picture for people, when they ask for it."
    if folder := os.environ.get("DESIGNLOOP_SCREENSHOTS"): page.screenshot(path=str(Path(folder) / f"{name}.png"))


def rounds_shown(view) -> int: return int(re.search(r"round (\d+) of", view.get_by_role("status").inner_text()).group(1))


def test_live_view_appears_pauses_and_stops(page, lab):
    run_all(page, lab, "live.ipynb")
    view = page.locator(".designloop-live")
    view.locator("img").wait_for(state="visible")
    assert "trials after round" in view.locator("img").get_attribute("alt")
    playwright.expect(view.get_by_role("status")).to_have_text(re.compile(r"^round \d+ of 200$"))

    view.get_by_role("button", name="Pause").click()
    playwright.expect(view.get_by_role("status")).to_have_text(re.compile("^paused after round"))
    held = rounds_shown(view)
    page.wait_for_timeout(800)                                  # some ten rounds would fit in here
    assert rounds_shown(view) == held
    view.get_by_role("button", name="Resume").click()
    playwright.expect(view.get_by_role("status")).to_have_text(re.compile(r"^round \d+ of 200$"))
    page.wait_for_timeout(500)

    view.get_by_role("button", name="Stop").click()
    playwright.expect(view.get_by_role("status")).to_have_text(re.compile("^stopped after round"))
    last = rounds_shown(view)
    assert held < last < 200
    playwright.expect(view.get_by_role("button", name="Stop")).to_be_disabled()
    page.wait_for_timeout(500)
    assert rounds_shown(view) == last and f"Round {last}:" in view.inner_text()


def test_study_browser_filters_and_opens_a_notebook(page, lab):
    run_all(page, lab, "studies.ipynb")
    studies = page.locator(".designloop-studies")
    studies.get_by_text("4 of 4 runs").wait_for()
    assert "curve: best against round by method, 4 runs." == studies.locator("img").get_attribute("alt")
    studies.get_by_label("method").select_option("far")
    studies.get_by_text("2 of 4 runs").wait_for()
    playwright.expect(studies.locator("img")).to_have_attribute("alt", "curve: best against round by method, 2 runs.")
    look(page, "study_browser")
    studies.get_by_role("link", name="open").last.click()
    page.get_by_role("paragraph").get_by_text("executed notebook of run 3").wait_for()


def test_the_tutorial_runs_in_one_go_and_its_game_can_be_played(page, lab):
    run_all(page, lab, "tutorial.ipynb")
    words = page.get_by_placeholder("words, separated by spaces")
    words.scroll_into_view_if_needed(timeout=120_000)                    # after the live search of the cells before it
    game = page.locator(".jp-OutputArea-output").filter(has=words)
    game.get_by_text("Your turn.").wait_for()
    words.fill("TAATTAGX")
    game.get_by_role("button", name="Measure").click()
    game.get_by_text(re.compile("'X'")).wait_for()                       # named, and it cost nothing
    words.fill("TAATTAGC, TAATTGGC")
    game.get_by_role("button", name="Measure").click()
    game.get_by_text("Measured 2; 78 left.").wait_for()
    game.get_by_role("cell", name="TAATTAGC").wait_for()
