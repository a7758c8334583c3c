"""The laboratory's form and the trade-off explorer in a real browser: what is typed is kept, and a slider changes the table."""

import json

import nbformat
import pytest
from lab import needs_chromium, run_all, serving

pytestmark = needs_chromium

FORM = """from designloop import Box, Constraint, Laboratory, Objective, Problem
from designloop.optimizers.composite import CCBO
problem = Problem('spray', Box({'flow': (0.1, 5.0)}, units={'flow': 'ml/h'}), Objective('size', 3.0, unit='µm'), [Constraint('works', '>=', 0.5)])
laboratory = Laboratory(CCBO(problem, seed=0), 'campaign')
laboratory.ask(2)
laboratory.form()"""

EXPLORER = """from designloop.optimizers.counterfactual_views import TradeOffExplorer
from designloop.optimizers.counterfactuals import ClassTarget, DesignQuery, MultiObjectiveCounterfactuals
from designloop.tasks.counterfactual_cases import plane_case
case = plane_case(400)
query = DesignQuery(case.query, [ClassTarget('valid', 'yes')])
TradeOffExplorer(MultiObjectiveCounterfactuals(case.space, case.X, case.Y, case.predict, query, pop_size=40).search(10, seed=0))"""


@pytest.fixture(scope="module")
def work(tmp_path_factory): return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(work, tmp_path_factory):
    "JupyterLab with one notebook for each widget; gives its address."
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3"}}
    for name, cell in (("form", FORM), ("explorer", EXPLORER)):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel), work / f"{name}.ipynb")
    with serving(work, tmp_path_factory.mktemp("home")) as url: yield url


def test_results_typed_into_the_form_are_kept(page, lab, work):
    run_all(page, lab, "form.ipynb")
    sizes = page.get_by_placeholder("size [µm]")
    sizes.first.wait_for(timeout=60_000)
    sizes.first.fill("2.7x")
    page.get_by_role("button", name="Save results").click()
    page.get_by_text("'2.7x' is not a number").wait_for()                 # said, and nothing is lost
    sizes.first.fill("2.7")
    page.get_by_role("button", name="Save results").click()
    page.get_by_text("1 result(s) entered, 1 recipe(s) open.").wait_for()
    page.get_by_role("checkbox").check()                                  # the other run failed: it has no size
    page.get_by_role("button", name="Save results").click()
    page.get_by_text("1 result(s) entered, 0 recipe(s) open.").wait_for()
    told = [json.loads(line) for p in sorted((work / "campaign").glob("*.jsonl")) for line in p.read_text().splitlines()]
    assert sum(e.get("event") == "tell" for e in told) == 2


def test_a_weight_changes_the_suggestions(page, lab):
    run_all(page, lab, "explorer.ipynb")
    view = page.locator(".designloop-tradeoffs")
    view.locator("table").wait_for(timeout=60_000)
    def table(how: str, text: str) -> None:
        page.wait_for_function(f"([view, old]) => (view.querySelector('table')?.innerText {how} old)", arg=[view.element_handle(), text])
    before = view.locator("table").inner_text()
    handle = view.locator(".widget-slider", has_text="proximity").get_by_role("slider")
    handle.focus()
    for _ in range(8): handle.press("PageUp")
    table("!=", before)
    reset = view.get_by_role("button", name="Reset")
    for press in (reset.click, lambda: reset.press("Enter")):             # at once: keys are still on their way
        for _ in range(30): handle.press("PageUp" if _ % 2 else "PageDown")
        press()
        table("==", before)                                               # the same weights choose the same designs
        assert reset.evaluate("b => b === document.activeElement"), "the focus stays on the button"
        page.wait_for_timeout(3000)
        assert view.locator("table").inner_text() == before, "no key came after the reset"
    view.get_by_role("checkbox").uncheck()
    view.get_by_role("combobox").select_option("k-DPP")
    table("!=", before)
    reset.click()
    table("==", before)
    assert view.get_by_role("checkbox").is_checked() and view.locator(".widget-slider").count() == 5
