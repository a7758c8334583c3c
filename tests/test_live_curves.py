"""The tutorial that trains a tiny model: in a real browser its curves and answers move while it trains; under papermill the same cells print lines."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]
STEPS, REWARDED = 240, 12


def training(until: str) -> nbformat.NotebookNode:
    "The tutorial up to a cell, with fewer steps."
    notebook = nbformat.read(ROOT / "nbs/tutorials/train_a_tiny_language_model.ipynb", as_version=4)
    last = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and until in c.source)
    notebook.cells = notebook.cells[:last + 1]
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.outputs, cell.execution_count = [], None
        cell.source = cell.source.replace("smoke = False", "smoke = True").replace("steps, reward_steps = 20, 2", f"steps, reward_steps = {STEPS}, {REWARDED}")
    assert any(f"= {STEPS}, {REWARDED}" in c.source for c in notebook.cells), "the tutorial sets its steps otherwise now"
    return notebook


def printed(path: Path) -> str: return "".join(o.text for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream")


def test_under_papermill_the_same_cells_print_lines(tmp_path):
    nbformat.write(training("grpo(model"), tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False)
    lines = printed(tmp_path / "out.ipynb")
    assert re.findall(r"^imitation: step +(\d+) of 240   loss \d\.\d{3}   score \d\.\d\d$", lines, re.M) == ["100", "200", "240"]
    assert re.findall(r"^rewards: step +(\d+) of 12   loss -?\d\.\d{3}   reward \d\.\d\d   score \d\.\d\d   length [\d.]+$", lines, re.M) == ["10", "12"]
    kinds = {kind for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if c.cell_type == "code" for o in c.outputs for kind in o.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with the tutorial up to its rewards; gives its address."
    jupyter = pytest.importorskip("lab", reason="no JupyterLab or playwright here")
    if jupyter.CHROMIUM is None: pytest.skip("no Chromium here; install the package 'chromium' to run the browser tests")
    work, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    nbformat.write(training("grpo(model"), work / "tutorial.ipynb")
    with jupyter.serving(work, home) as url: yield url


def test_in_a_browser_loss_score_and_answers_move_while_it_trains(lab, page):
    from lab import look, playwright, run_all
    run_all(page, lab, "tutorial.ipynb")
    view = page.locator(".designloop-training").first
    status, picture = view.get_by_role("status"), view.locator("img")
    status.wait_for(timeout=120_000)
    seen, pictures, answers, losses = [], set(), set(), []
    while not seen or seen[-1] < STEPS:                         # as a person would: look now and then
        said = status.inner_text()
        m = re.fullmatch(r"imitation: step +(\d+) of 240\s+loss (\d+\.\d+)(\s+score (\d\.\d\d))?", said)
        assert m, said
        if not seen or int(m[1]) > seen[-1]:
            seen.append(int(m[1])); losses.append(float(m[2]))
            pictures.add(picture.get_attribute("src")); answers.add(tuple(view.locator("td:nth-child(2)").all_inner_texts()))
        page.wait_for_timeout(150)
    assert len(seen) > 3 and seen[0] < STEPS / 2 and len(pictures) > 3, seen      # it moved while the cell was running
    assert losses[-1] < losses[0] and len(answers) > 1 and all(len(a) == 4 for a in answers)
    assert "score" in status.inner_text() and view.locator("td:nth-child(1)").first.inner_text().endswith("?")
    playwright.expect(picture).to_have_attribute("alt", re.compile(r"^imitation: step +240 of 240"))
    view.scroll_into_view_if_needed()
    look(page, "training_imitation")
    second = page.locator(".designloop-training").nth(1)
    playwright.expect(second.get_by_role("status")).to_have_text(re.compile(r"^rewards: step +12 of 12\s+loss .*reward \d\.\d\d\s+score \d\.\d\d\s+length"), timeout=120_000)
    assert second.locator("tr").count() > 2                     # answers that were rewarded, with what they earned
    second.scroll_into_view_if_needed()
    look(page, "training_rewards")
