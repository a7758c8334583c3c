"""The live view and the study browser without a browser: buttons are pressed by program."""

import json
import pickle
import threading
import time

import numpy as np
import pytest

from designloop.core.errors import DataMissing, ParameterError, StateError
from designloop.core.loop import Optimizer, optimize
from designloop.core.problems import Constraint, Objective, Problem
from designloop.core.spaces import Box, Sequences
from designloop.core.trials import Trials
from designloop.core.widgets import LiveView, StudyBrowser, find_studies, live, read_run_records, read_runs


class Uniform(Optimizer):
    name = "uniform"
    def ask(self, n=1): return self.space.sample(n, self.streams["proposer"])


def slope(seconds: float = 0.0, fail_at: int | None = None) -> Problem:
    calls = []

    def function(designs, fidelity, rng):
        calls.append(len(designs))
        time.sleep(seconds)
        if len(calls) == fail_at: raise OSError("no answer")
        return designs[:, 0] + designs[:, 1]
    return Problem("slope", Box({"x": (0, 1), "y": (0, 1)}), Objective("height", unit="m"), function=function, optimum=2.0)


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def press(button) -> None: button.click()


def test_background_search_gives_the_trials_of_optimize():
    problem = slope()
    run = live(problem, Uniform(problem, seed=3), rounds=7, batch=4, initial=5, seed=2, show=False)
    expected = optimize(problem, Uniform(problem, seed=3), rounds=7, batch=4, initial=5, seed=2, progress=False)
    got = run.wait(30)
    columns = [c for c in expected.frame if c != "seconds"]
    assert got.frame[columns].equals(expected.frame[columns]) and not got.interrupted and run.view.state == "finished"
    assert run.view.bar.value == 7 and "Round 7:" in run.view.table.value


def test_stop_button_keeps_what_was_measured():
    problem = slope(0.02)
    run = live(problem, Uniform(problem), rounds=1000, batch=3, show=False)
    until(lambda: run.trials.rounds.max(initial=-1) >= 2)
    press(run.view.stop_button)
    trials = run.wait(20)
    assert trials.interrupted and 3 <= len(trials) / 3 < 1000 and run.view.state == "stopped"
    assert run.view.stop_button.disabled and run.view.pause_button.disabled
    assert f"Round {len(trials) // 3}:" in run.view.table.value, "the last round must be the one that is shown"


def test_pause_holds_and_resume_goes_on():
    problem = slope(0.01)
    run = live(problem, Uniform(problem), rounds=12, batch=2, show=False)
    press(run.view.pause_button)
    until(lambda: run.view.state == "paused" or not run.running)
    held = len(run.trials)
    time.sleep(0.3)
    assert run.running and len(run.trials) == held < 24 and run.view.pause_button.description == "Resume"
    press(run.view.pause_button)
    assert len(run.wait(20)) == 24 and run.view.state == "finished"


def test_stop_ends_a_paused_search():
    problem = slope(0.01)
    run = live(problem, Uniform(problem), rounds=500, batch=2, show=False)
    run.pause()
    until(lambda: run.view.state == "paused")
    run.stop()
    assert run.wait(20).interrupted and run.view.state == "stopped"


def test_an_error_reaches_the_one_who_waits_with_the_trials():
    problem = slope(fail_at=4)
    run = live(problem, Uniform(problem), rounds=9, batch=2, show=False)
    with pytest.raises(OSError, match="no answer"): run.wait(20)
    assert len(run.trials) == 6 and run.view.state == "failed" and "no answer" in run.view.status.value
    assert run.view.stop_button.disabled


def test_refusals_before_the_search_starts():
    problem, before = slope(), threading.active_count()
    for wrong in (dict(rounds=-1), dict(batch=0), dict(seed="x")):
        with pytest.raises(ParameterError): live(problem, Uniform(problem), show=False, **wrong)
    for wrong in (dict(top=0), dict(pace=-1.0)):
        with pytest.raises(ParameterError): LiveView(**wrong)
    assert threading.active_count() == before
    view = LiveView()
    live(problem, Uniform(problem), rounds=1, view=view, show=False).wait(20)
    with pytest.raises(StateError, match="its own LiveView"): live(problem, Uniform(problem), rounds=1, view=view, show=False)
    with pytest.raises(StateError): pickle.dumps(view)


def test_wait_with_a_limit_says_that_it_still_runs():
    problem = slope(0.05)
    run = live(problem, Uniform(problem), rounds=200, batch=2, show=False)
    with pytest.raises(StateError, match="still runs"): run.wait(0.2)
    run.stop()
    assert run.wait(20).interrupted


def test_a_checkpoint_is_written_and_resumed(tmp_path):
    problem = slope(0.01)
    run = live(problem, Uniform(problem), rounds=60, batch=2, checkpoint=tmp_path / "search", show=False)
    until(lambda: run.trials.rounds.max(initial=-1) >= 1)
    run.stop()
    first = run.wait(20)
    assert len(Trials.load(tmp_path / "search" / "trials")) == len(first)
    whole = live(problem, Uniform(problem), rounds=60, batch=2, checkpoint=tmp_path / "search", show=False).wait(30)
    assert np.array_equal(whole.utilities[:len(first)], first.utilities) and len(whole) == 120


def test_nothing_feasible_and_letters_that_look_like_html_are_shown():
    space = Sequences("AB<", length=3)
    problem = Problem("words", space, Objective("score"), [Constraint("score", ">=", 5)], function=lambda d, f, r: (d == 2).sum(1).double())
    run = live(problem, Uniform(problem), rounds=2, batch=6, show=False)
    run.wait(20)
    assert "nothing feasible yet" in run.view.table.value and "<<" not in run.view.table.value


def test_as_a_plain_callback_it_shows_itself_and_greys_its_buttons_out():
    problem, view = slope(), LiveView()
    optimize(problem, Uniform(problem), rounds=3, batch=2, callbacks=[view], progress=False)
    assert view.state == "finished" and view.displayed and view.stop_button.disabled
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle and "<img alt='6 trials after round 3 of 3" in bundle["text/html"]


@pytest.fixture
def runs(tmp_path):
    "Six runs: one failed, one never started, one with half a line at the end of its records."
    for k in range(6):
        run = tmp_path / "runs" / "hill" / f"r{k}"
        run.mkdir(parents=True)
        (run / "params.json").write_text(json.dumps({"method": "ga" if k < 3 else "bo", "seed": k % 3, "sizes": [1, 2]}))
        error = {"ename": "ValueError", "evalue": "bad <b>"} if k == 1 else None
        state = {"state": "failed" if error else "done", "wall_s": k + 0.5, "error": error}
        if k != 5: (run / "status.json").write_text(json.dumps(state))
        rows = [{"round": r, "best": float(r + k)} for r in range(3)] + [{"round": 3, "best": None}]
        lines = [{"kind": "table", "name": "curve", "rows": rows, "tags": {}},
                 {"kind": "record", "name": "final", "value": k / 10, "unit": "m", "score": None, "tags": {"phase": "test"}},
                 {"kind": "claim", "text": "it climbs", "holds": True, "evidence": ""}]
        text = "".join(json.dumps(e) + "\n" for e in lines)
        if k not in (1, 5): (run / "records.jsonl").write_text(text + ('{"kind": "rec' if k == 0 else ""))
    (tmp_path / "runs" / "hill" / "study.json").write_text("{}")
    return tmp_path / "runs"


def test_runs_and_records_are_read_from_disk(runs):
    table = read_runs(runs / "hill")
    assert table["state"].tolist() == ["done", "failed", "done", "done", "done", "pending"] and table["sizes"].tolist() == ["[1, 2]"] * 6
    records = read_run_records(runs / "hill", table["run_id"])
    assert (records["name"] == "curve").sum() == 16 and records.loc[records["name"] == "final", "value"].tolist() == [0.0, 0.2, 0.3, 0.4]
    assert list(find_studies(runs)) == list(find_studies(runs / "hill")) == ["hill"]


def test_browser_filters_and_draws(runs):
    browser = StudyBrowser(runs)
    shown = browser.runs_view.outputs[0]["data"]["text/html"]
    assert "6 of 6 runs" in shown and "bad &lt;b&gt;" in shown and "sizes" not in browser._parameters
    assert browser.picture.value.startswith("<img alt='curve: best against round by method, 4 runs.'")
    browser.where(method="bo")
    assert browser.runs["run_id"].tolist() == ["r3", "r4", "r5"] and "by method, 2 runs" in browser.picture.value
    browser.where(state="pending")
    assert browser.runs["run_id"].tolist() == ["r5"] and "Nothing recorded" in browser.picture.value
    browser.where(state="any", method="any").what.value = "final"
    assert "final by method, 4 runs" in browser.picture.value
    (runs / "hill" / "r5" / "status.json").write_text(json.dumps({"state": "running"}))
    press(browser.refresh_button)
    assert browser.runs["state"].tolist()[-1] == "running" and browser.what.value == "final"


def test_browser_means_are_means_over_runs(runs):
    from matplotlib.figure import Figure
    browser = StudyBrowser(runs)
    rows = browser.records[browser.records["name"] == "curve"]
    ax = Figure().subplots()
    browser._curves(ax, rows.assign(_x=rows["round"], _y=rows["best"], _by=rows["method"]), ["ga", "bo"])
    lines = {line.get_label(): line.get_ydata() for line in ax.lines if "runs)" in str(line.get_label())}
    assert np.allclose(lines["ga (2 runs)"], [1, 2, 3]) and np.allclose(lines["bo (2 runs)"], [3.5, 4.5, 5.5])


def test_browser_refuses_unknown_names(runs, tmp_path):
    with pytest.raises(ParameterError, match="Did you mean 'method'"): StudyBrowser(runs).where(metod="ga")
    with pytest.raises(DataMissing, match="no studies"): StudyBrowser(tmp_path / "nothing")
