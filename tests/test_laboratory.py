"""The laboratory mode: nothing is lost, nothing is overwritten, and a typing error can be taken back."""
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from designloop.core.errors import DataCorrupt, DataMissing, DesignError, OutcomeError, ParameterError, StateError
from designloop.core.laboratory import Laboratory, read_log
from designloop.core.problems import Constraint, Objective, Outcomes, Problem
from designloop.core.seeds import cap_threads
from designloop.core.spaces import Box, Choice, Inequality, Mixed, Real
from designloop.optimizers.bayesian import BayesianOptimizer
from designloop.optimizers.composite import CCBO
from designloop.optimizers.evolution import GeneticAlgorithm, RandomSearch

cap_threads(1)
SPRAY = Problem("spray", Mixed({"flow": Real(0.1, 50, "µL/min", log=True), "solvent": Choice(("A", "B"))}), Objective("size", goal=3.0, unit="µm"),
                [Constraint("usable", ">=", 0.5)])
BOX = Problem("box", Box({"x": (0, 1), "y": (0, 2)}, units={"x": "bar"}), Objective("loss", "minimize"))


@pytest.fixture
def lab(tmp_path): return Laboratory(RandomSearch(SPRAY, seed=3), tmp_path / "campaign")


def fill(lab, sizes, failed=None):
    "Results for the open recipes, in order."
    return lab.tell({"run": lab.open_runs, "size": sizes, "failed": failed or [0] * len(sizes)})


def test_a_recipe_shows_units_and_rounded_dials_and_stays_until_it_is_measured(lab):
    sheet = lab.ask(2)
    assert list(sheet.frame.columns)[:3] == ["run", "flow [µL/min]", "solvent"] and "µL/min" in str(sheet) and "<table" in sheet._repr_html_()
    assert all(float(f"{v:.4g}") == v for v in sheet.frame["flow [µL/min]"])
    assert lab.ask(5).frame.equals(sheet.frame) and lab.open_runs == [1, 2]
    fill(lab, [2.0, 5.0])
    assert lab.open_runs == [] and lab.ask(1).frame["run"].tolist() == [3]


@pytest.mark.parametrize("make", [lambda: RandomSearch(SPRAY, 1), lambda: GeneticAlgorithm(SPRAY, 1), lambda: CCBO(SPRAY, 1, candidates=64)])
def test_going_on_tomorrow_is_going_on(tmp_path, make):
    "A campaign that is closed and opened after every step proposes what one that stayed open proposes."
    a, b = Laboratory(make(), tmp_path / "a"), Laboratory(make(), tmp_path / "b")
    for sizes in ([2.0, 9.0], [4.0, 3.5], [3.2, 2.9]):
        one = a.ask(2).frame
        b = Laboratory.open(tmp_path / "b")
        assert one.equals(b.ask(2).frame)
        fill(a, sizes)
        b = Laboratory.open(tmp_path / "b")
        fill(b, sizes)
    assert a.runs.frame.equals(b.runs.frame) and len(a.optimizer) == 6


def test_a_new_process_goes_on(lab):
    first = lab.ask(2).frame
    code = f"from designloop.core.laboratory import Laboratory; lab = Laboratory.open({str(lab.folder)!r}); print(lab.ask(2).frame.to_json())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(first.to_json())


def test_a_campaign_is_not_overwritten_and_two_sessions_do_not_both_write(lab):
    with pytest.raises(StateError, match="Laboratory.open"): Laboratory(RandomSearch(SPRAY), lab.folder)
    other = Laboratory.open(lab.folder)
    lab.ask(1)
    with pytest.raises(StateError, match="another session"): other.ask(1)
    assert len(read_log(lab.folder)) == 2


def test_the_sheet_can_be_filled_in_and_is_never_overwritten(lab):
    lab.ask(2)
    path = lab.folder / "sheet-1.csv"
    frame = pd.read_csv(path)
    assert list(frame) == ["run", "flow [µL/min]", "solvent", "size [µm]", "failed"]
    frame["size [µm]"], frame["failed"] = [2.5, np.nan], [0, 1]
    frame.to_csv(path, index=False)
    assert "2 result(s)" in lab.tell(path).note and lab.runs.frame["state"].tolist() == ["measured", "failed"]
    (lab.folder / "sheet-2.csv").write_text("my notes")
    lab.ask(1)
    assert (lab.folder / "sheet-2.csv").read_text() == "my notes"


def test_part_of_a_batch_what_was_really_set_and_runs_of_ones_own(lab):
    lab.ask(2)
    lab.tell(pd.DataFrame({"run": [2, 1], "size": [2.0, np.nan], "failed": [0, np.nan]}))
    assert lab.open_runs == [1]
    lab.tell({"run": [1], "flow": [7.5], "solvent": ["B"], "size": [4.0], "usable": [1]})
    assert lab.runs.frame.set_index("run").loc[1, "flow"] == 7.5
    lab.tell({"flow": [1.0, 2.0], "solvent": ["A", "B"], "size": [1.5, 2.5], "usable": [1, 1]})
    assert lab.runs.frame["round"].tolist() == [1, 1, "own", "own"] and len(lab.optimizer) == 4
    assert (lab.trials.rounds == [0, 0, 0, 0]).all()


def test_one_run_may_be_told_as_plain_values(lab):
    lab.ask(2)
    assert "1 result(s)" in lab.tell({"run": 2, "size": 2.5, "failed": 0}).note and lab.open_runs == [1]
    lab.tell({"size": None, "failed": 1})                        # the only recipe that is open
    lab.tell({"flow": 1.0, "solvent": "A", "size": 1.5, "usable": 1})
    assert lab.runs.frame["state"].tolist() == ["failed", "measured", "measured"]


@pytest.mark.parametrize("make", [lambda: RandomSearch(SPRAY, 1), lambda: CCBO(SPRAY, 1, candidates=64)])
def test_it_says_which_recipe_to_use_and_enters_nothing(tmp_path, make):
    lab = Laboratory(make(), tmp_path / "campaign")
    with pytest.raises(StateError, match="told nothing"): lab.recommend()
    lab.ask(2)
    if lab.optimizer.takes_failures:
        fill(lab, [None, None], [1, 1])
        assert "No run has kept the constraints" in lab.recommend().note
        lab.ask(2)
    fill(lab, [9.0, 3.3])
    before, said = (lab.folder / "log.jsonl").read_bytes(), lab.recommend()
    assert said.frame["run"].tolist() == [max(lab._runs())] and said.frame["size: measured [µm]"].tolist() == [3.3] and "was this recipe" in said.note
    assert ("chance of failure" in said.frame) == (lab.optimizer.name == "ccbo") and lab.recommend().frame.equals(said.frame)
    assert (lab.folder / "log.jsonl").read_bytes() == before and lab.ask(2).frame.equals(Laboratory.open(lab.folder).ask(2).frame)


def test_what_an_optimizer_refuses_is_said_with_the_number_of_the_run(tmp_path):
    lab = Laboratory(CCBO(SPRAY, 1, candidates=64), tmp_path / "campaign")
    lab.ask(3)
    with pytest.raises(OutcomeError, match="run 3, 'size' is -2"): lab.tell({"run": [1, 3], "size": [2.0, -2.0], "failed": [0, 0]})
    assert lab.open_runs == [1, 2, 3]


def test_a_failed_run_needs_no_size_and_reaches_an_optimizer_that_can_take_it(tmp_path):
    for cls, told in ((RandomSearch, 1), (CCBO, 2)):
        lab = Laboratory(cls(SPRAY), tmp_path / cls.__name__)
        lab.ask(2)
        fill(lab, [None, 4.0], [1, 0])
        assert len(lab.optimizer) == told and lab.trials.outcomes["size"].isnan().tolist() == [True, False] and lab.trials.outcomes["usable"].tolist() == [0, 1]


def test_what_may_be_missing_is_the_same_for_the_laboratory_and_its_optimizer(tmp_path):
    "A run that was measured to violate any constraint may lack anything else, also a label."
    hot = Problem("hot", BOX.space, Objective("loss", "minimize"), [Constraint("heat", "<=", 2.0)])
    two = Problem("two", BOX.space, Objective("loss", "minimize"), [Constraint("works", ">=", 0.5), Constraint("sticks", ">=", 0.5), Constraint("heat", "<=", 2.0)])
    for cls in (CCBO, BayesianOptimizer):
        lab = Laboratory(cls(hot, candidates=64), tmp_path / f"{cls.__name__}-hot")
        lab.ask(2)
        with pytest.raises(OutcomeError, match="'loss' is missing"): lab.tell({"loss": [None, 1.0], "heat": [1.0, 1.0]})
        lab.tell({"loss": [None, 1.0], "heat": [3.0, 1.0]})
        assert len(lab.optimizer) == 2 and lab.runs.frame["state"].tolist() == ["failed", "measured"] and lab.trials.outcomes["loss"].isnan().tolist() == [True, False]
        with pytest.raises(OutcomeError, match="'loss' is missing"): lab.correct(1, heat=1.0)
        lab = Laboratory(cls(two, candidates=64), tmp_path / f"{cls.__name__}-two")
        lab.ask(3)
        with pytest.raises(OutcomeError, match="run 1: nothing says"): lab.tell({"run": 1, "loss": 1.0, "works": 1, "heat": 1.0})
        lab.tell({"loss": [None, None, 1.0], "works": [0, None, 1], "sticks": [None, None, 1], "heat": [None, 3.0, 1.0]})
        assert len(lab.optimizer) == 3 and lab.optimizer.history_outcomes.values.isnan().sum(1).tolist() == [3, 3, 0]
        assert len(Laboratory.open(lab.folder).ask(1)) == 1


def test_a_correction_is_appended_and_the_optimizer_knows_only_the_truth(tmp_path):
    a, b = (Laboratory(CCBO(SPRAY, 2, candidates=64), tmp_path / n) for n in "ab")
    for lab in (a, b): lab.ask(2)
    fill(a, [40.0, 2.0]); fill(b, [4.0, 2.0])
    before = (a.folder / "log.jsonl").read_bytes()
    a.correct(1, size=4.0)
    assert (a.folder / "log.jsonl").read_bytes().startswith(before) and a.log[-1]["was"]["values"]["size"] == 40.0
    assert torch.equal(a.optimizer.history_outcomes.values, b.optimizer.history_outcomes.values)
    assert a.ask(2).frame.equals(b.ask(2).frame)                 # as if nothing had been mistyped
    a.correct(2, failed=1)
    assert a.runs.frame["state"].tolist()[:2] == ["measured", "failed"]
    a.undo(2)
    assert a.open_runs == [2, 3, 4] and len(a.optimizer) == 1
    a.correct(1, flow=5.0)
    assert float(a.optimizer.history_designs["flow"].iloc[0]) == 5.0


def test_a_campaign_begun_with_an_earlier_version_goes_on(tmp_path):
    "Its search lacks attributes that came later, and its log has no drops."
    search = CCBO(SPRAY, 1, candidates=64)
    del search.labels, search._warned
    lab = Laboratory(search, tmp_path / "c")
    lab.ask(2)
    lab = Laboratory.open(lab.folder)
    fill(lab, [2.0, None], [0, 1])
    assert len(lab.optimizer) == 2 and lab.optimizer.labels == ["usable"]


def test_a_crash_between_log_and_state_and_a_torn_line_are_repaired(lab):
    lab.ask(2)
    old = (lab.folder / "state.pkl").read_bytes()
    fill(lab, [2.0, 3.0])
    (lab.folder / "state.pkl").write_bytes(old)
    with open(lab.folder / "log.jsonl", "ab") as f: f.write(b'{"event": "te')
    again = Laboratory.open(lab.folder)
    assert len(again.optimizer) == 2 and again.open_runs == []
    shutil.copytree(lab.folder, lab.folder.with_name("copy"))
    (lab.folder / "state.pkl").write_bytes(b"garbage")           # then the log alone is enough
    assert Laboratory.open(lab.folder).ask(1).frame.equals(Laboratory.open(lab.folder.with_name("copy")).ask(1).frame)
    assert [e["event"] for e in read_log(lab.folder)] == ["begin", "ask", "tell", "ask"]
    text = (lab.folder / "log.jsonl").read_text().splitlines()
    (lab.folder / "log.jsonl").write_text("\n".join([text[0], "{broken", *text[2:]]) + "\n")
    with pytest.raises(DataCorrupt, match="line 2"): Laboratory.open(lab.folder)
    with pytest.raises(DataMissing, match="no campaign"): Laboratory.open(lab.folder / "nowhere")


REFUSED = [
    ({"run": [1], "size": [None], "failed": [0]}, OutcomeError, "mark the run as failed"),
    ({"run": [1], "size": ["big"], "failed": [0]}, OutcomeError, "not a number"),
    ({"run": [1], "size": [2.0], "failed": [2]}, OutcomeError, "0 or 1"),
    ({"run": [1], "size": [2.0], "usable": [-1]}, OutcomeError, "0 or 1"),
    ({"run": [1], "size": [2.0], "usable": [1], "failed": [1]}, OutcomeError, "contradict"),
    ({"run": [1], "size": [2.0]}, OutcomeError, "worked"),
    ({"run": [9], "size": [2.0], "failed": [0]}, ParameterError, "never proposed"),
    ({"size": [2.0], "failed": [0]}, ParameterError, "neither the column 'run'"),
    ({"run": [None], "size": [2.0], "failed": [0]}, DesignError, "row 0: 'run' is empty, and so is 'flow', 'solvent'"),
    ({"run": [1, 2], "sise": [2.0, 3.0]}, ParameterError, "'sise'.*mean 'size'.*columns={'sise': 'size'}"),
    ({"run": [1], "size": [2.0], "size [µm]": [None], "failed": [0]}, ParameterError, "are both 'size'"),
    ({"run": [1], "size [nm]": [2.0], "failed": [0]}, ParameterError, "in nm and 'size' in µm"),
    ({"run": [1], "flow": [2.0], "solvent": ["A"]}, ParameterError, "none of which is a result"),
    ({"run": [1], "flow": ["wide"], "size": [2.0], "failed": [0]}, DesignError, "run 1, 'flow': 'wide' is not a number"),
    ({"run": [1], "size": [2.0], "failed": ["maybe"]}, OutcomeError, "'maybe' is not a label"),
    ({"flow": [99.0], "solvent": ["A"], "size": [2.0], "failed": [0]}, DesignError, "^row 0, field 'flow'"),
    ({"flow": [9.0], "solvent": ["C"], "size": [2.0], "failed": [0]}, DesignError, "solvent"),
    ("nowhere.csv", DataMissing, "not a file"),
    (3, ParameterError, "CSV"),
]


@pytest.mark.parametrize("results, error, words", REFUSED, ids=range(len(REFUSED)))
def test_bad_results_are_refused_in_a_sentence_and_change_nothing(lab, results, error, words):
    lab.ask(2)
    before, state = (lab.folder / "log.jsonl").read_bytes(), (lab.folder / "state.pkl").read_bytes()
    with pytest.raises(error, match=words): lab.tell(results)
    assert (lab.folder / "log.jsonl").read_bytes() == before and (lab.folder / "state.pkl").read_bytes() == state and lab.open_runs == [1, 2]


def test_bad_calls_are_refused(lab, tmp_path):
    lab.ask(1)
    fill(lab, [2.0])
    for n in (0, 1.5, "two"):
        with pytest.raises(ParameterError): lab.ask(n)
    with pytest.raises(StateError, match="correct"): lab.tell({"run": [1], "size": [2.0], "failed": [0]})
    with pytest.raises(StateError, match="no result"): lab.correct(7, size=1.0)
    with pytest.raises(StateError, match="no result"): lab.undo(7)
    with pytest.raises(ParameterError, match="size"): lab.correct(1, sise=1.0)
    with pytest.raises(ParameterError): lab.correct(1)
    with pytest.raises(OutcomeError): lab.correct(1, size=float("inf"))
    with pytest.raises(ParameterError, match="Optimizer"): Laboratory("ga", tmp_path / "x")
    with pytest.raises(ParameterError, match="labels"): Laboratory(RandomSearch(SPRAY), tmp_path / "x", labels=["colour"])


def test_an_optimizer_that_refuses_leaves_the_campaign_as_it_was(tmp_path):
    lab = Laboratory(CCBO(SPRAY, candidates=64), tmp_path / "c")
    lab.ask(1)
    with pytest.raises(OutcomeError, match="transform"): fill(lab, [-2.0])
    assert lab.open_runs == [1] and len(lab.log) == 2
    fill(lab, [2.0])
    with pytest.raises(OutcomeError, match="transform"): lab.correct(1, size=-2.0)
    assert len(lab.log) == 3 and len(Laboratory.open(lab.folder).optimizer) == 1


def test_the_form_saves_what_is_typed_and_keeps_what_it_cannot_accept(lab):
    pytest.importorskip("ipywidgets")
    lab.ask(3)
    form = lab.form()
    form.save.click()
    assert "Nothing" in form.message.value and len(lab.log) == 2
    form.fields[1]["size"].value, form.fields[2]["size"].value, form.failed[3]["usable"].value = "2,5", "x", True
    form.save.click()
    assert "not a number" in form.message.value and form.fields[1]["size"].value == "2,5" and lab.open_runs == [1, 2, 3]
    form.fields[2]["size"].value = ""
    form.save.click()
    assert lab.open_runs == [2] and list(form.fields) == [2] and "2 result(s)" in form.message.value
    assert lab.runs.frame["state"].tolist() == ["measured", "open", "failed"]


def test_boxes_without_labels_work_too(tmp_path):
    lab = Laboratory(RandomSearch(BOX), tmp_path / "b")
    sheet = lab.ask(2)
    assert list(sheet.frame) == ["run", "x [bar]", "y"]
    lab.tell({"loss": [1.0, 2.0]})                               # in the order of the sheet
    with pytest.raises(OutcomeError, match="loss"): lab.tell({"x": [0.1], "y": [0.2], "loss": ["?"]})
    assert len(lab.trials) == 2 and lab.trials.best_curve().iloc[-1] == 1.0


def test_predictions_are_shown_and_logged(tmp_path):
    search = CCBO(SPRAY, candidates=64)
    x = SPRAY.space.sample(4, np.random.default_rng(0))
    search.tell(x, Outcomes([[2.0, 1], [8.0, 1], [1.0, 1], [20.0, 0]], ("size", "usable")))
    lab = Laboratory(search, tmp_path / "p")
    sheet = lab.ask(2)
    assert "size: expected [µm]" in sheet.frame and "chance of failure" in sheet.frame and "–" in sheet.frame["size: expected [µm]"][0]
    assert {"size", "size low", "size high", "chance of failure"} <= set(lab.log[-1]["runs"][0]["predicted"])


class Corner(RandomSearch):
    def ask(self, n=1): return pd.DataFrame({"a": np.linspace(0.1, 0.9, n), "b": np.linspace(0.1, 0.9, n) + 1.5e-6})

class Few(RandomSearch):
    def ask(self, n=1): return pd.DataFrame({"flow": self.streams["proposer"].choice([1.0, 2.0], n), "solvent": ["A"] * n})

class Line(RandomSearch):
    "Proposes 1, then 1 and 2, then 2 (next to what is kept), then 3."
    def ask(self, n=1):
        at = self.__dict__.setdefault("at", 0)
        self.at += n
        return pd.DataFrame({"flow": [1.0, 1.001, 2.0, 2.001, 3.0, 4.0][at:at + n], "solvent": ["A"] * n})

class One(RandomSearch):
    def ask(self, n=1): return pd.DataFrame({"flow": [1.0] * n, "solvent": ["A"] * n})


def told(lab): return [(r["design"], r["values"]) for r in lab._runs().values() if r["values"]]


@pytest.mark.parametrize("space, step", [
    (Box({"x": (1549.5, 1550.5)}, units={"x": "nm"}), 1e-4), (Box({"x": (1549.5, 1550.5)}, log=["x"]), 1e-4), (Mixed({"x": Real(1549.5, 1550.5)}), 1e-4),
    (Mixed({"x": Real(20, 90)}), 1e-2), (Mixed({"x": Real(-1e-3, 1e-3)}), 1e-7), (Box({"x": (1 / 3, 2 / 3)}), 1e-4), (Box({"x": (-5e5, 5e5)}), 100)])
def test_a_dial_has_about_ten_thousand_positions_wherever_it_is(tmp_path, space, step):
    sheet = Laboratory(RandomSearch(Problem("narrow", space, Objective("loss"))), tmp_path / "c").ask(20)
    x = sheet.frame.iloc[:, 1].to_numpy(float)
    assert len(set(x)) == 20 and np.allclose(np.round(x / step) * step, x, rtol=0, atol=step / 1e3)
    assert not np.allclose(np.round(x / step / 10) * step * 10, x, rtol=0, atol=step / 1e3)
    assert [float(v) for v in sheet._shown().iloc[:, 1]] == x.tolist() and space.validate(space.from_frame(pd.DataFrame({"x": x}))) is not None     # printed is set


def test_a_log_dial_is_rounded_to_significant_digits_and_limits_survive(tmp_path):
    sheet = Laboratory(RandomSearch(SPRAY), tmp_path / "c").ask(30)
    assert all(float(f"{v:.4g}") == v for v in sheet.frame["flow [µL/min]"])
    tight = Mixed({"a": Real(0, 1), "b": Real(0, 1)}, limits=[Inequality({"a": 1, "b": -1}, "<=", -1e-6), Inequality({"a": 1, "b": -1}, ">=", -2e-6)])
    frame = Laboratory(Corner(Problem("tight", tight, Objective("loss"))), tmp_path / "d").ask(5).frame
    assert tight.within(frame).all()


def test_a_measurement_is_shown_as_it_was_typed(tmp_path):
    lab = Laboratory(RandomSearch(BOX), tmp_path / "b")
    lab.ask(2)
    assert "123456 " in str(lab.tell({"loss": ["123456", "98765.25"]})) and "98765.25" in str(lab.runs)


@pytest.mark.parametrize("separator, decimal, encoding", [(";", ",", "utf-8"), (";", ",", "cp1252"), ("\t", ",", "utf-16"), (",", ",", "utf-8-sig"), (",", ".", "cp1252")])
def test_a_sheet_comes_back_from_any_spreadsheet(tmp_path, separator, decimal, encoding):
    lab = Laboratory(CCBO(SPRAY, 1, candidates=64), tmp_path / "c")
    lab.ask(3)
    frame = pd.read_csv(lab.folder / "sheet-1.csv")
    designs = frame.iloc[:, 1:3].to_numpy().tolist()
    frame["size [µm]"], frame["failed"] = [1.234, None, 140.25], ["", "yes", "FALSE"]
    frame.to_csv(tmp_path / "back.csv", sep=separator, decimal=decimal, encoding=encoding, index=False)
    if (separator, decimal) == (",", ","):                       # quoted, but 1,234 may be a thousand
        with pytest.raises(OutcomeError, match="1234 or 1.234"): lab.tell(tmp_path / "back.csv")
        return
    lab.tell(tmp_path / "back.csv")
    values = [{"size": 1.234, "usable": 1.0}, {"size": None, "usable": 0.0}, {"size": 140.25, "usable": 1.0}]
    assert told(lab) == [({"flow": f, "solvent": s}, v) for (f, s), v in zip(designs, values, strict=True)]


@pytest.mark.parametrize("text, error, words", [
    ("run,size,failed\n1,2,5,0\n", DataCorrupt, "line 2: 4 cells for 3 headings"), ("", DataCorrupt, "is empty"), ("\0\1", DataCorrupt, "not a text file"),
    ("run;size;failed\n1;2,5;0\n\n2;2o;0\n", OutcomeError, "run 2, 'size': '2o'"),
    ("run;flow;solvent;size;failed\n;;;;\n;;B;2;0\n", DesignError, "line 3: 'run' is empty, and so is 'flow'")])
def test_what_is_wrong_in_a_file_is_said_with_its_line(lab, text, error, words):
    lab.ask(2)
    (lab.folder / "typed.csv").write_text(text)
    with pytest.raises(error, match=words): lab.tell(lab.folder / "typed.csv")
    assert lab.open_runs == [1, 2]


def test_options_are_read_as_they_are_written_and_dials_take_a_comma(tmp_path):
    space = Mixed({"t": Real(20, 90), "batch": Choice(("1", "2")), "size": Choice((1, 2.5)), "additive": Choice(("None", "NA", "1,5"))})
    lab = Laboratory(RandomSearch(Problem("options", space, Objective("loss"))), tmp_path / "c")
    lab.ask(12)
    before = [r["design"] for r in lab._runs().values()]
    for separator in ",;":
        frame = pd.read_csv(lab.folder / f"sheet-{len(lab.log) // 2}.csv", dtype=str, keep_default_na=False)
        frame["loss"] = "2,5"
        frame.to_csv(tmp_path / "back.csv", sep=separator, index=False)
        lab.tell(tmp_path / "back.csv")
        assert [d for d, _ in told(lab)] == [r["design"] for r in lab._runs().values()] and [d for d, _ in told(lab)][:12] == before
        lab.ask(12)
    lab.tell({"t": "35,14", "batch": 2, "size": "2.5", "additive": "1,5", "loss": "1,5"})
    assert told(lab)[-1] == ({"t": 35.14, "batch": "2", "size": 2.5, "additive": "1,5"}, {"loss": 1.5})
    lab.correct(max(lab._runs()), t="36,5")
    assert told(lab)[-1][0]["t"] == 36.5


def test_rows_in_the_order_of_the_sheet_keep_their_place_when_one_is_left_out(lab):
    lab.ask(3)
    lab.tell({"size": [None, 2.0, None], "failed": [None, 0, None]})
    assert lab.open_runs == [1, 3]
    lab.tell({"run": [1], "flow": [None], "solvent": ["B"], "size": [4.0], "failed": ["no"]})      # an empty cell: as in the recipe
    assert lab._runs()[1]["design"]["solvent"] == "B" and lab.open_runs == [3]


def test_a_table_with_headings_of_its_own(lab):
    table = pd.DataFrame({"Q": [1.0, 2.0], "s": ["A", "B"], "d50 [nm]": [1.5, 2.5], "usable": [1, 1], "who": ["me", "you"]})
    with pytest.raises(ParameterError, match="'who' are not known"): lab.tell(table)
    with pytest.raises(ParameterError, match="columns='q'"): lab.tell(table, columns={"q": "flow"})
    with pytest.raises(ParameterError, match="columns\\['Q'\\]='flaw'.*'flow'"): lab.tell(table, columns={"Q": "flaw"})
    lab.tell(table, columns={"Q": "flow", "s": "solvent", "d50 [nm]": "size", "who": None})
    assert [d["flow"] for d, _ in told(lab)] == [1.0, 2.0]


def test_a_recipe_that_cannot_be_run_is_dropped_and_a_run_of_ones_own_can_be_taken_back(tmp_path):
    lab = Laboratory(CCBO(SPRAY, 1, candidates=64), tmp_path / "c")
    lab.ask(2)
    with pytest.raises(ParameterError, match="reason"): lab.drop(1, " ")
    with pytest.raises(StateError, match="open are \\[1, 2\\]"): lab.drop(7, "lost")
    assert "dropped: no solvent A left" in str(lab.drop(1, "no solvent A left")) and lab.open_runs == [2] and len(lab.optimizer) == 0
    with pytest.raises(StateError, match="undo"): lab.tell({"run": 1, "size": 2.0, "failed": 0})
    fill(lab, [2.0])
    with pytest.raises(StateError, match="not open"): lab.drop(2, "lost")
    lab.tell({"flow": 1.0, "solvent": "A", "size": 1.5, "usable": 1})
    lab.undo(3)
    assert lab.open_runs == [] and list(lab._runs()) == [1, 2] and len(lab.optimizer) == 1
    assert lab.ask(1).frame["run"].tolist() == [4]               # no number is used twice
    lab = Laboratory.open(lab.folder)
    assert lab.runs.frame["state"].tolist() == ["dropped: no solvent A left", "measured", "open"] and "1 dropped" in repr(lab)
    lab.undo(1)
    assert lab.open_runs == [1, 4]


def test_a_dropped_recipe_is_not_proposed_again_at_once(tmp_path):
    a, b = (Laboratory(Few(SPRAY, seed=1), tmp_path / n) for n in "ab")
    for _ in range(6):
        for lab in (a, b):
            if lab.ask(1).frame.iloc[0, 1] == 1.0: lab.drop(lab.open_runs[0], "the pump does not hold it")
            else: fill(lab, [2.0])
        (b.folder / "state.pkl").unlink()                        # the log alone knows how often was asked
        b = Laboratory.open(b.folder)
    runs = [r for r in a._runs().values()]
    dropped = [i for i, r in enumerate(runs) if r["why"]]
    assert a.runs.frame.equals(b.runs.frame) and any("asks" in e for e in a.log) and len(dropped) == 1     # of six
    lab = Laboratory(One(SPRAY), tmp_path / "one")
    lab.ask(1); lab.drop(1, "the pump does not hold it")
    assert "Run 2 is next to run 1, which was dropped (the pump does not hold it)." in lab.ask(1).note
    lab = Laboratory(Line(SPRAY), tmp_path / "line")
    lab.ask(1); lab.drop(1, "the pump does not hold it")
    sheet = lab.ask(2)
    assert sheet.frame.iloc[:, 1].tolist() == [3.0, 2.0] and "is next to" not in sheet.note      # the recipe beside it stays, and is not proposed twice
    assert lab.log[-1]["asks"] == [{"n": 2}, {"n": 1}, {"n": 1}]
    (lab.folder / "state.pkl").unlink()
    assert Laboratory.open(lab.folder).optimizer.at == 5


@pytest.mark.parametrize("batch", ["believer", "joint"])
def test_a_search_that_takes_pending_designs_is_told_what_was_dropped(tmp_path, batch):
    "The next proposal lies elsewhere, and a campaign that is replayed from its log goes on in the same way."
    smooth = Problem("smooth", Box([(0, 1)] * 2), Objective("y"))
    def run(lab):
        for k in lab.open_runs: d = lab._runs()[k]["design"]; lab.tell({"run": k, "y": -(d["x0"] - 0.3)**2 - (d["x1"] - 0.6)**2})
    lab = Laboratory(BayesianOptimizer(smooth, seed=0, initial=4, candidates=64, batch=batch), tmp_path / "c")
    lab.ask(4); run(lab)
    first = lab.ask(1).frame[["x0", "x1"]].to_numpy()
    lab.drop(5, "the pump stalls")
    second = lab.ask(2).frame[["x0", "x1"]].to_numpy()
    assert lab.log[-1]["asks"][0] == {"n": 2, "pending": [lab._runs()[5]["design"]]} and np.abs(second - first).max(1).min() > 0.01
    run(lab)
    shutil.copytree(lab.folder, tmp_path / "d")
    (tmp_path / "d/state.pkl").unlink()
    assert Laboratory.open(tmp_path / "d").ask(1).frame.equals(lab.ask(1).frame)
    lab.undo(5)                                                  # it is open again, and no longer to be kept away from
    run(lab); lab.ask(1)
    assert "asks" not in lab.log[-1]


def test_what_is_not_the_number_of_a_run_is_refused(tmp_path):
    frozen = Problem("f", Mixed({"a": Real(0, 1), "b": Real(0, 1)}, frozen={"a": 0.5, "b": 0.5}), Objective("y"))
    lab = Laboratory(RandomSearch(frozen), tmp_path / "c")
    lab.ask(1)
    for run in ([1], True, "one", 1.5, None):
        for call in (lambda run=run: lab.drop(run, "lost"), lambda run=run: lab.undo(run), lambda run=run: lab.correct(run, y=1.0)):
            with pytest.raises(ParameterError, match="run=.* whole number"): call()
    lab.drop(np.int64(1), "lost")
    assert "next to run 1" in lab.ask(1).note                    # there is one recipe only


def test_a_run_of_ones_own_belongs_to_the_round_that_it_followed(tmp_path):
    lab = Laboratory(RandomSearch(BOX), tmp_path / "c")
    lab.tell({"x": 0.1, "y": 0.1, "loss": 3.0})
    for loss in (2.0, 1.0):
        lab.ask(1)
        lab.tell({"run": lab.open_runs, "loss": [loss]})
        lab.tell({"x": 0.2, "y": loss, "loss": loss - 0.5})
    for again in (lab, Laboratory.open(lab.folder)):
        assert again.trials.rounds.tolist() == [-1, 0, 0, 1, 1] and again.runs.frame["round"].tolist() == ["own", 1, "own", 2, "own"]
        assert again.trials.best_curve("round").tolist() == [3.0, 1.5, 0.5]


def test_a_sheet_that_a_crash_left_out_is_written_on_opening(tmp_path, monkeypatch):
    lab = Laboratory(RandomSearch(SPRAY), tmp_path / "c")
    monkeypatch.setattr(Laboratory, "_save", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): lab.ask(2)
    monkeypatch.undo()
    assert not (lab.folder / "sheet-1.csv").exists()
    again = Laboratory.open(lab.folder)
    assert pd.read_csv(lab.folder / "sheet-1.csv")["run"].tolist() == [1, 2]
    (lab.folder / "sheet-1.csv").unlink()
    again.ask(2)
    assert (lab.folder / "sheet-1.csv").exists()
    fill(again, [1.0, 2.0])
    (lab.folder / "sheet-1.csv").unlink()
    Laboratory.open(lab.folder)
    assert not (lab.folder / "sheet-1.csv").exists()             # nothing is open in it


def test_a_session_that_is_behind_says_so_before_it_shows_recipes(lab):
    lab.ask(1)
    other = Laboratory.open(lab.folder)
    fill(lab, [2.0])
    for stale in (lambda: other.ask(1), other.form, other.recommend):
        with pytest.raises(StateError, match="another session"): stale()


def test_what_is_a_label_and_several_of_them(tmp_path):
    measured = Problem("m", BOX.space, Objective("purity"), [Constraint("yield", ">=", 0.5)])
    lab = Laboratory(RandomSearch(measured), tmp_path / "m")
    lab.ask(1)
    with pytest.raises(OutcomeError, match=r"labels=\[\]"): lab.tell({"run": 1, "purity": 0.9, "yield": 0.73})
    lab = Laboratory(RandomSearch(measured), tmp_path / "n", labels=[])
    lab.ask(1)
    lab.tell({"run": 1, "purity": 0.9, "yield": 0.73})
    lab = Laboratory(CCBO(measured, candidates=64, labels=[]), tmp_path / "o")       # the search says what is a label
    assert lab.labels == []
    lab = Laboratory(RandomSearch(Problem("two", BOX.space, Objective("loss"), [Constraint("works", ">=", 0.5), Constraint("clogged", "<=", 0.5)])), tmp_path / "two")
    lab.ask(3)
    assert list(pd.read_csv(lab.folder / "sheet-1.csv"))[-3:] == ["loss", "works", "clogged"]
    with pytest.raises(OutcomeError, match="does not say which of 'works', 'clogged'"): lab.tell({"run": 1, "failed": 1})
    lab.tell({"run": 1, "loss": 2.0, "failed": 0})
    form = lab.form()
    assert [t.description for t in form.failed[2].values()] == ["failed: works", "failed: clogged"]
    form.failed[2]["clogged"].value = True
    form.fields[3]["loss"].value = "3"
    form.save.click()
    assert [v for _, v in told(lab)] == [{"loss": 2.0, "works": 1, "clogged": 0}, {"loss": None, "works": 1, "clogged": 1}, {"loss": 3.0, "works": 1, "clogged": 0}]


@pytest.mark.parametrize("fields, outcome, constraint", [(("run",), "y", "ok"), (("failed",), "y", "ok"), (("y",), "y", "ok"), (("x",), "state", "ok"), (("x",), "y", "failed")])
def test_names_that_no_table_can_hold_are_refused_at_the_start(tmp_path, fields, outcome, constraint):
    problem = Problem("n", Box(dict.fromkeys(fields, (0, 1))), Objective(outcome), [Constraint(constraint, ">=", 0.5)])
    with pytest.raises(ParameterError, match="name"): Laboratory(RandomSearch(problem), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_published_campaign_is_replayed(tmp_path):
    from designloop.core.data import locate
    from designloop.tasks.electrospray import COLUMNS, PLGA, ElectrosprayTask, read_campaign
    try: path = locate(PLGA)
    except DataMissing as absent: pytest.skip(str(absent))
    whole, rounds = (Laboratory(CCBO(ElectrosprayTask(3.0), candidates=64), tmp_path / n) for n in ("whole", "rounds"))
    whole.tell(path, columns={**COLUMNS, "round": None})
    for _, rows in pd.read_csv(path).groupby("round"): rounds.tell(rows, columns={**COLUMNS, "round": None})
    published = read_campaign()
    for lab in (whole, rounds):
        assert torch.equal(lab.trials.outcomes.values, published.outcomes.values) and lab.trials.designs.equals(published.designs) and len(lab.optimizer) == 16
    assert [bool(r["predicted"]) for r in rounds._runs().values()] == [False] * 8 + [True] * 8      # said before they were told
    assert not any(r["predicted"] for r in whole._runs().values())


def test_bayesian_optimization_hears_of_failures_and_does_not_repeat_them(tmp_path):
    "Beyond a = 0.6 a run clogs and has neither a yield nor a temperature. Every run is told, no recipe comes twice, and a reopened campaign goes on."
    clogs = Problem("bench", Box({"a": (0, 1), "b": (0, 1)}), Objective("y"), [Constraint("worked", ">=", 0.5), Constraint("heat", "<=", 3.0)])
    lab = Laboratory(BayesianOptimizer(clogs, seed=0, initial=4, candidates=64), tmp_path / "c", labels=["worked"])
    for _ in range(8):
        lab.ask(1)
        (run,) = lab.open_runs
        x = lab._runs()[run]["design"]
        failed = x["a"] > 0.6
        lab.tell({"run": [run], "y": [None if failed else x["a"]], "heat": [None if failed else x["b"]], "failed": [int(failed)]})
    designs = lab.optimizer.history_designs
    assert len(lab.optimizer) == 8 and 0 < int(lab.optimizer.history_outcomes["y"].isnan().sum()) < 8
    assert torch.cdist(designs, designs)[~torch.eye(8, dtype=torch.bool)].min() > 0.01
    assert lab.recommend().frame["a"][0] <= 0.6 and len(Laboratory.open(tmp_path / "c").optimizer) == 8
