"""JupyterLab in a real browser: the live view appears, its buttons work, the study browser filters."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from lab import look, needs_chromium, notebook_until, playwright, run_all, serving

pytestmark = needs_chromium


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
    with serving(work, home) as url: yield url


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
