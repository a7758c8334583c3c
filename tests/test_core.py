"""Spaces, problems, trials and the loop: round trips, refusals, resuming."""
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from designloop.core.errors import DesignError, DesignLoopError, OutcomeError, ParameterError, StateError, check_choice, check_number
from designloop.core.loop import Optimizer, inference_regret, optimize
from designloop.core.problems import Constraint, Objective, Outcomes, Problem
from designloop.core.seeds import derive_seed, seed_streams
from designloop.core.spaces import Box, Choice, Inequality, Integer, Mixed, Real, Sequences, Space, Texts, concat, n_designs, take, unique
from designloop.core.trials import Trials

SPACES = [
    Box({"a": (0, 1), "b": (1e-3, 10)}, log=["b"]),
    Mixed({"r": Real(-2, 3), "i": Integer(1, 4), "c": Choice(("x", "y", "z")), "g": Real(0.1, 100, log=True)}),
    Mixed({"r": Real(-2, 3), "c": Choice(("x", "y"))}, frozen={"c": "y"}),
    Sequences("ACGT", length=8),
    Sequences("AB", max_length=5),
]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_space_round_trips(space):
    x = space.sample(64, np.random.default_rng(0))
    assert n_designs(x) == 64
    space.validate(x)
    code = space.encode(x)
    assert code.shape == (64, space.dim) and code.dtype == torch.float64 and (code >= -1e-12).all() and (code <= 1 + 1e-12).all()
    back = space.decode(code)
    if isinstance(x, pd.DataFrame):
        pd.testing.assert_frame_equal(back, x, check_dtype=False)
    else:
        assert torch.allclose(back, x)
    again = space.from_frame(space.to_frame(x))
    assert space.keys(again) == space.keys(x)
    assert Space.from_json(space.to_json()) == space and pickle.loads(pickle.dumps(space)) == space
    assert space.keys(concat([take(x, [0, 1]), take(x, [2])])) == space.keys(take(x, [0, 1, 2]))
    assert list(unique(space, concat([x, x]))) == list(unique(space, x))


@pytest.mark.parametrize("space, bad, says", [
    (SPACES[0], [[0.5, 20.0]], "row 0, field 'b'"),
    (SPACES[0], [[0.5]], "fields a, b"),
    (SPACES[0], [[float("nan"), 1.0]], "field 'a'"),
    (SPACES[1], pd.DataFrame({"r": [0.0], "i": [2.5], "c": ["x"], "g": [1.0]}), "field 'i'"),
    (SPACES[1], pd.DataFrame({"r": [0.0], "i": [2], "c": ["w"], "g": [1.0]}), "one of ['x', 'y', 'z']"),
    (SPACES[1], pd.DataFrame({"r": [0.0]}), "lack the field"),
    (SPACES[2], pd.DataFrame({"r": [0.0], "c": ["x"]}), "frozen"),
    (SPACES[3], ["ACGTACGN"], "position 7: letter 'N'"),
    (SPACES[3], ["ACG"], "3 letters"),
    (SPACES[3], torch.full((1, 8), 4), "row 0, position 0"),
    (SPACES[4], torch.tensor([[0, -1, 1, -1, -1]]), "position 2"),
    (Texts(max_length=3), ["long text"], "at most 3"),
    (SPACES[0], pd.DataFrame({"a": [0.5], "c": [1.0]}), "Missing: 'b'; unknown: 'c'"),
    (SPACES[0], pd.DataFrame([[0.5, 1.0]]), "unknown: 0, 1"),
    (SPACES[0], pd.DataFrame({"a": [0.5], "b": ["much"]}), "not numbers"),
    (SPACES[0], "abc", "designs='abc' are not numbers; this box takes [n, 2] with fields a, b"),
    (SPACES[0], [[0.5, 1.0], [0.5]], "not numbers"),
    (SPACES[1], "abc", "designs='abc' are no table"),
    (SPACES[1], {"r": 0.0, "i": 2, "c": "x", "g": 1.0}, "no table"),
    (SPACES[3], "ACGTACGT", "one string"),
], ids=str)
def test_bad_designs_are_named(space, bad, says):
    with pytest.raises(DesignError) as e:
        space.validate(bad)
    assert says in str(e.value)


@pytest.mark.parametrize("make, says", [
    (lambda: Box({"a": (1, 1)}), "first must be below"),
    (lambda: Box({"a": (0, 1)}, log=["a"]), "log scale"),
    (lambda: Box({"a": (0, 1)}, log=["b"]), "log='b'"),
    (lambda: Sequences("A", length=3), "different letters"),
    (lambda: Sequences("ACGT"), "either length or max_length"),
    (lambda: Mixed({"a": Choice(("x", "x"))}), "different values"),
    (lambda: Objective("y", "maximise"), "Did you mean 'maximize'"),
    (lambda: Constraint("y", ">", 1), "op='>'"),
    (lambda: Box({"a": (0, 1, 2)}), "bounds of 'a' are (0, 1, 2); give two numbers, (low, high)."),
    (lambda: Box({"a": 3}), "bounds of 'a' are 3; give two"),
    (lambda: Mixed({"a": Integer(0.5, 3)}), "a low=0.5 is not allowed; it must be a whole number"),
    (lambda: Mixed({"a": Real(0, 1)}, limits=["a<=1"]), "limits hold 'a<=1'; write each as an Inequality"),
    (lambda: Mixed({"a": Real(0, 1)}, limits="a<=1"), "limits hold 'a<=1'"),
    (lambda: Mixed({"a": Real(0, 1)}, limits=3), "limits hold 3; write each as an Inequality"),
    (lambda: Mixed({"a": Real(0, 1)}, limits=[Inequality({"z": 1}, "<=", 1)]), "uses the field 'z', which the space lacks; its fields are 'a'."),
    (lambda: Mixed({"a": Real(0, 1)}, frozen={"a": 3}), "field 'a' cannot be frozen at 3, which it does not have; its values are within [0, 1]."),
    (lambda: Mixed({"c": Choice(("x", "y"))}, frozen={"c": "z"}), "its values are one of ['x', 'y']"),
])
def test_bad_arguments_are_named(make, says):
    with pytest.raises(ParameterError) as e:
        make()
    assert says in str(e.value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-9999, 9999), st.integers(1, 9999)), min_size=1, max_size=4), st.integers(0, 4), st.data())
def test_corners_of_a_mixed_space_are_designs(bounds, digits, data):
    """Bounds of a few decimals: low + 1.0 * (high - low) may exceed high by rounding, and a search that proposes its upper bound must not die of that."""
    fields = {f"f{i}": Real(low / 10**digits, (low + width) / 10**digits, log=low > 0 and i % 2 == 1) for i, (low, width) in enumerate(bounds)}
    space = Mixed({**fields, "n": Integer(1, 5)})
    corners = torch.as_tensor(data.draw(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=space.dim, max_size=space.dim), min_size=1, max_size=4)), dtype=torch.float64)
    for designs in (space.decode(corners), space._from_unit(dict(zip(space.free, corners.numpy().T, strict=True)), len(corners))):
        code = space.encode(designs)                                     # validates
        assert code.min() >= 0 and code.max() <= 1 and torch.allclose(code, corners, atol=1e-9)


def test_limits_move_designs_to_a_bound_and_not_over_it():
    rng, tried = np.random.default_rng(0), 0
    for low, width in np.round(rng.uniform(0.01, 2, (60, 2)), 2):
        high = round(low + width, 2)
        space = Mixed({"a": Real(low, high), "b": Real(low, high)}, limits=Inequality({"a": 1, "b": -1}, ">=", 0))      # one limit needs no list
        moved = space.decode([[0.4, 1.0], [1.0, 1.0], [0.0, 0.0]])
        tried += len(space.validate(moved))
        assert (moved["a"] >= moved["b"] - 1e-8).all()
        pushed = Mixed({"a": Real(low, high), "b": Real(low, high)}, limits=[Inequality({"a": 1, "b": 1}, ">=", 2 * high)])
        assert np.allclose(pushed.validate(pushed.decode([[0.5, 0.2]])), high)                                         # the only design that is left
    assert tried == 180


def test_tables_are_read_by_name():
    box = Box({"a": (0, 1), "b": (0, 1)})
    assert box.validate(pd.DataFrame({"b": [0.9], "a": [0.1]})).tolist() == [[0.1, 0.9]]
    seen = Climber(Problem("p", box, Objective("y")))
    seen.tell(pd.DataFrame({"b": [0.9], "a": [0.1]}), Outcomes([1.0], ("y",)))
    assert seen.recommend().tolist() == [[0.1, 0.9]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ACGT", min_size=8, max_size=8), min_size=1, max_size=20))
def test_words_survive(words):
    dna = Sequences("ACGT", length=8)
    assert dna.to_strings(dna.from_strings(words)) == words
    assert dna.to_strings(dna.decode(dna.encode(dna.from_strings(words)))) == words
    assert len(unique(dna, dna.from_strings(words))) == len(set(words))


def test_log_sampling_is_log_uniform():
    x = SPACES[0].sample(4000, np.random.default_rng(0))[:, 1].log10()
    assert abs(float(x.mean()) + 1) < 5 * (4 / np.sqrt(12)) / np.sqrt(4000)      # five standard errors


def test_streams_are_named_and_independent():
    a, b = seed_streams(3), seed_streams(3)
    b["proposer"].random(100)
    assert (a["data"].random(5) == b["data"].random(5)).all()
    assert derive_seed(1, "x") != derive_seed(1, "y") != derive_seed(2, "y")
    c = pickle.loads(pickle.dumps(b))
    assert c["proposer"].random() == b["proposer"].random()
    with pytest.raises(ParameterError):
        seed_streams(-1)


class Climber(Optimizer):
    name = "climber"

    def ask(self, n=1):
        if not len(self):
            return self.space.sample(n, self.streams["proposer"])
        best = self.space.encode(self.history_designs[self.utilities.argmax()][None])
        return self.space.decode(best + 0.1 * torch.as_tensor(self.streams["proposer"].normal(size=(n, self.space.dim))))


def hill(fail_after=None):
    calls = []

    def height(x, fidelity, rng):
        calls.append(len(x))
        if fail_after is not None and len(calls) > fail_after:
            raise RuntimeError("the machine broke")
        return 1 - (x ** 2).sum(1) + 0.01 * torch.as_tensor(rng.normal(size=len(x)))

    return Problem("hill", Box([(-1, 1)] * 2), Objective("y"), function=height, optimum=1.0)


def test_resumed_search_equals_unbroken_search(tmp_path):
    p = hill()
    whole = optimize(p, Climber(p, seed=2), 8, 3, initial=5, seed=4, progress=False)
    optimize(p, Climber(p, seed=2), 8, 3, initial=5, seed=4, checkpoint=tmp_path, callbacks=[lambda e: e.round == 2], progress=False)
    resumed = optimize(p, Climber(p, seed=2), 8, 3, initial=5, seed=4, checkpoint=tmp_path, progress=False)
    assert np.array_equal(whole.utilities, resumed.utilities) and len(resumed) == 5 + 24
    longer = optimize(p, Climber(p, seed=2), 10, 3, initial=5, seed=4, checkpoint=tmp_path, progress=False)
    assert np.array_equal(longer.utilities[:29], whole.utilities) and len(longer) == 5 + 30
    stored = Trials.load(tmp_path / "trials")
    assert np.array_equal(stored.utilities, longer.utilities)
    with pytest.raises(StateError, match="batch was 3, now 4"):
        optimize(p, Climber(p, seed=2), 10, 4, initial=5, seed=4, checkpoint=tmp_path, progress=False)


def test_an_error_carries_the_trials_and_the_search_goes_on(tmp_path):
    p = hill(fail_after=4)
    with pytest.raises(RuntimeError, match="broke") as e:
        optimize(p, Climber(p), 8, 3, initial=5, checkpoint=tmp_path, progress=False)
    assert len(e.value.trials) == 5 + 3 * 3
    q = hill()
    assert len(optimize(q, Climber(q), 8, 3, initial=5, checkpoint=tmp_path, progress=False)) == 5 + 24


def test_ctrl_c_keeps_what_is_done():
    p = hill()

    def interrupt(event):
        if event.round == 2:
            raise KeyboardInterrupt

    trials = optimize(p, Climber(p), 8, 3, initial=5, callbacks=[interrupt], progress=False)
    assert trials.interrupted and len(trials) == 5 + 9


def test_trials_answer(tmp_path):
    space = Sequences("ACGT", length=2, name="word")
    p = Problem("p", space, Objective("y", "minimize", "V"), [Constraint("z", "<=", 1)], function=lambda d, f, r: None, optimum=0.5)
    t = Trials.of(p).append(space.from_strings(["AA", "AC", "AG"]), Outcomes(torch.tensor([[3.0, 0], [1.0, 2], [2.0, 1]]), ("y", "z")))
    t.append(space.from_strings(["TT"]), Outcomes(torch.tensor([[1.5, 0]]), ("y", "z"), cost=torch.tensor([4.0])), round=0, source="me", seconds=0.5)
    assert t.best_curve().tolist() == [3, 3, 2, 1.5] and t.regret().tolist() == [2.5, 2.5, 1.5, 1.0]
    assert t.best(9)["word"].tolist() == ["TT", "AG", "AA"]
    assert t.best_curve("cost").index.tolist() == [1, 2, 3, 7] and t.best_curve("round").tolist() == [2, 1.5]
    again = Trials.load(t.save(tmp_path))
    pd.testing.assert_frame_equal(again.frame, t.frame)
    assert again.objectives == t.objectives and again.constraints == t.constraints and again.optimum == 0.5
    pd.testing.assert_frame_equal(t.take([3, 0]).frame.drop(columns="trial"), t.frame.iloc[[3, 0]].reset_index(drop=True).drop(columns="trial"))
    with pytest.raises(ParameterError):
        t.append(space.from_strings(["AA"]), Outcomes(torch.zeros(2, 2), ("y", "z")))
    with pytest.raises(DesignLoopError, match="trials.json"):
        Trials.load(tmp_path / "nowhere")


@pytest.mark.parametrize("raw, says", [
    (lambda n: torch.zeros(n + 1), "returned shape"),
    (lambda n: torch.full((n,), float("inf")), "finite number"),
    (lambda n: ["a"] * n, "expected floats"),
    (lambda n: {"other": torch.zeros(n)}, "not ['y']"),
    (lambda n: torch.full((n,), float("nan")), "the worst value that makes sense"),
    (lambda n: torch.full((n,), float("nan")), "Constraint('worked', '>=', 0.5)"),
])
def test_bad_outcomes_are_named(raw, says):
    p = Problem("p", Box([(0, 1)]), Objective("y"), function=lambda d, f, r: raw(len(d)))
    with pytest.raises(OutcomeError) as e:
        p.evaluate([[0.5], [0.6]])
    assert says in str(e.value)


def test_errors_show_values_as_people_write_them():
    for value, options, says in ((0.3, (0.0, 1.0), "fidelity=0.3 is not known; allowed: 0.0, 1.0."), (np.float64("nan"), ["a"], "fidelity=nan is not known; allowed: 'a'."),
                                 ("metod", ["method"], "Did you mean 'method'?"), (700, range(200), "10, 11 and 188 more."), ("x", [], "allowed: nothing.")):
        with pytest.raises(ParameterError) as e: check_choice("fidelity", value, options)
        assert str(e.value).endswith(says)
    with pytest.raises(ParameterError, match="n=nan is"): check_number("n", np.float64("nan"), 1)


def test_a_recommendation_is_the_best_that_keeps_the_constraints_or_the_nearest_to_it():
    class Fixed(Optimizer):
        def ask(self, n=1): return self.space.sample(n, self.streams["x"])
    problem = Problem("p", Box({"x": (0, 1)}), Objective("y"), [Constraint("c", "<=", 1.0), Constraint("d", ">=", 0.0)])
    s = Fixed(problem)
    with pytest.raises(StateError, match="told nothing"): s.recommend()
    s.tell(torch.tensor([[0.1], [0.2], [0.3]]), Outcomes([[9.0, 3.0, 0.0], [1.0, 1.5, 0.0], [5.0, 0.0, -2.0]], ("y", "c", "d")))
    assert float(s.recommend()) == pytest.approx(0.2)            # nothing keeps both; this misses by 0.5, the others by 2
    s.tell(torch.tensor([[0.4], [0.5]]), Outcomes([[2.0, 0.0, 0.0], [3.0, 1.0, 0.0]], ("y", "c", "d")))
    assert float(s.recommend()) == pytest.approx(0.5)
    with pytest.raises(StateError, match="no model"): s.predict(torch.tensor([[0.4]]))


def test_optimizer_refuses_bad_data():
    p = hill()
    o = Climber(p)
    with pytest.raises(OutcomeError):
        o.tell([[0.0, 0.0]], Outcomes(torch.zeros(2, 1), ("y",)))
    with pytest.raises(OutcomeError):
        o.tell([[0.0, 0.0]], Outcomes(torch.full((1, 1), float("nan")), ("y",)))
    with pytest.raises(DesignError):
        o.tell([[0.0, 9.0]], Outcomes(torch.zeros(1, 1), ("y",)))
    assert len(o) == 0


def cliff(x, fidelity, rng):
    worked = x[:, 0] < 0.3
    return {"y": (1 - (x - 0.4).square().sum(1)).where(worked, torch.nan), "worked": worked.double()}


CLIFF = Problem("cliff", Box([(-1, 1)] * 2), Objective("y"), [Constraint("worked", ">=", 0.5)], function=cliff)


class Undaunted(Climber):
    takes_failures = True


def test_a_missing_objective_is_an_outcome_only_where_a_constraint_says_that_the_run_failed():
    nan = float("nan")
    assert CLIFF.evaluate([[0.9, 0.0], [0.0, 0.0]])["y"].isnan().tolist() == [True, False]
    for row, says in (([nan, 1.0], "nan for 'y'"), ([nan, nan], "nan for 'y'"), ([1.0, nan], "nan for 'worked'"), ([float("inf"), 0.0], "inf for 'y'")):
        wrong = Problem("wrong", CLIFF.space, CLIFF.objectives, CLIFF.constraints, function=lambda d, f, r, row=row: torch.tensor([row]))
        with pytest.raises(OutcomeError, match=says): wrong.evaluate([[0.0, 0.0]])
        with pytest.raises(OutcomeError, match=f"row 0 has the value {says}.*takes NaN only"): Undaunted(CLIFF).tell([[0.0, 0.0]], Outcomes([row], ("y", "worked")))
    both = Problem("both", CLIFF.space, CLIFF.objectives, [*CLIFF.constraints, Constraint("c", ">=", 0.0)], function=lambda d, f, r: torch.tensor([[nan, 0.0, nan]] * len(d)))
    search = Undaunted(both)
    search.tell([[0.0, 0.0]], both.evaluate([[0.0, 0.0]]))                 # what else was not measured may be missing too
    search.tell([[0.1, 0.0]], Outcomes([[1.0, 0.0, -0.2]], both.outcome_names))
    assert search.recommend().tolist() == [[0.1, 0.0]]
    itself = Problem("bounded", CLIFF.space, Objective("y"), [Constraint("y", ">=", 0.0)], function=lambda d, f, r: torch.full((len(d),), nan))
    with pytest.raises(OutcomeError, match="nan for 'y'"): itself.evaluate([[0.0, 0.0]])


def test_a_search_goes_on_after_failed_runs_and_remembers_them(tmp_path):
    whole = optimize(CLIFF, Undaunted(CLIFF, seed=1), 8, 3, initial=6, progress=False)
    lost = whole.outcomes["y"].isnan().numpy()
    assert len(whole) == 30 and 1 < lost.sum() < 30 and (whole.utilities[lost] == -np.inf).all() and np.isfinite(whole.best_curve().iloc[-1])
    optimize(CLIFF, Undaunted(CLIFF, seed=1), 8, 3, initial=6, checkpoint=tmp_path, callbacks=[lambda e: e.round == 3], progress=False)
    resumed = optimize(CLIFF, Undaunted(CLIFF, seed=1), 8, 3, initial=6, checkpoint=tmp_path, progress=False)
    assert np.array_equal(resumed.utilities, whole.utilities)
    assert torch.equal(Trials.load(tmp_path / "trials").outcomes.values.nan_to_num(7), whole.outcomes.values.nan_to_num(7))
    with pytest.raises(OutcomeError, match="climber takes no failures; leave that trial out"):
        optimize(CLIFF, Climber(CLIFF, seed=1), 8, 3, initial=6, progress=False)


def test_measurements_by_hand_are_told_as_outcomes():
    with pytest.raises(OutcomeError, match=r"is a Tensor; .* or Outcomes\(values, names\) for what was measured by hand, with names such as \('y',\)"):
        Climber(hill()).tell([[0.0, 0.0]], torch.zeros(1))


def height(x): return 1 - (x ** 2).sum(1)


def test_regret_by_the_truth():
    p = Problem("p", Box({"x": (-1, 1)}), Objective("y"), optimum=1.0)
    t = Trials.of(p).append(torch.tensor([[0.5], [0.9], [0.1], [0.3]]), Outcomes([0.8, 0.1, 0.7, 1.2], ("y",)))
    assert np.allclose(t.regret(), [0.2, 0.2, 0.2, -0.2]) and np.allclose(t.regret(truth=height), [0.25, 0.25, 0.25, 0.09])
    assert np.allclose(t.best_curve(truth=height), [0.75, 0.75, 0.75, 0.91])
    with pytest.raises(ParameterError, match=r"truth gave shape \(4, 1\) for 4 designs"): t.regret(truth=lambda x: x)
    late = Trials.of(CLIFF).append(torch.tensor([[0.9, 0.0], [0.0, 0.0]]), CLIFF.evaluate([[0.9, 0.0], [0.0, 0.0]]))
    assert np.array_equal(late.best_curve(truth=height), [np.nan, 1.0], equal_nan=True)


def test_equal_measurements_keep_the_first_design():
    p = Problem("p", Box({"x": (-1, 1)}), Objective("y"), optimum=1.0)
    t = Trials.of(p).append(torch.tensor([[0.1], [0.9], [0.2]]), Outcomes([0.5, 0.5, 0.5], ("y",)), 0)
    assert np.allclose(t.regret(truth=height), 0.01) and np.allclose(t.best(1)["x"], 0.1)
    assert np.allclose(inference_regret(t, Climber(p), height), t.regret("round", height))


def test_a_round_ends_where_its_last_trial_ends():
    p = Problem("p", Box({"x": (-1, 1)}), Objective("y"), optimum=1.0)
    t = Trials.of(p).append(torch.tensor([[0.1], [0.2]]), Outcomes([0.5, 0.6], ("y",)), 0)
    def truth(x): return np.where(np.asarray(x)[:, 0] > 0.15, np.nan, 0.5)
    assert np.array_equal(t.best_curve(truth=truth), [0.5, np.nan], equal_nan=True) and np.isnan(t.best_curve("round", truth).iloc[0])


def test_own_runs_told_later_and_rounds_that_cost_nothing():
    p = Problem("p", Box({"x": (0, 1)}), Objective("y"), optimum=1.0)
    t = Trials.of(p)
    for value, r in [(0.1, -1), (0.2, 0), (0.9, -1), (0.3, 1)]: t.append(torch.tensor([[value]]), Outcomes([value], ("y",), torch.zeros(1)), r)
    def own(x): return x[:, 0]
    for by, index, regret in [("trial", [1, 2, 3, 4], [0.9, 0.8, 0.1, 0.1]), ("round", [-1, 0, 1], [0.9, 0.1, 0.1]), ("cost", [0] * 4, [0.9, 0.8, 0.1, 0.1])]:
        found = inference_regret(t, Climber(p), own, by)
        assert found.index.tolist() == index and np.allclose(found, regret) and found.index.name == by
        assert np.allclose(t.regret(by, own), regret) and t.regret(by, own).index.tolist() == index
    assert len(inference_regret(Trials.of(p), Climber(p), own)) == 0


def test_a_value_to_hit_is_its_own_optimum():
    p = Problem("p", Box({"x": (-1, 1)}), Objective("y", 0.4))
    t = Trials.of(p).append(torch.tensor([[0.1], [0.5]]), Outcomes([0.1, 0.5], ("y",)))
    assert np.allclose(t.regret(), [0.3, 0.1])


@pytest.mark.parametrize("truth, says", [
    (3, "truth=3 is not allowed; it must be a function"), (lambda x: ["a"] * len(x), "truth gave what are no plain numbers"),
    (lambda x: (1 * x[:, 0]).requires_grad_(), "detach"), (lambda x: np.full(len(x), -np.inf), "an infinite number"), (lambda x: None, r"shape ()"),
])
def test_bad_truths_are_named(truth, says):
    p = Problem("p", Box({"x": (-1, 1)}), Objective("y"), optimum=1.0)
    t = Trials.of(p).append(torch.tensor([[0.1], [0.5]]), Outcomes([0.1, 0.5], ("y",)))
    for ask in (lambda: t.regret(truth=truth), lambda: inference_regret(t, Climber(p), truth)):
        with pytest.raises(ParameterError) as e: ask()
        assert says in str(e.value)


class Drawn(Optimizer):
    def ask(self, n=1): return self.space.sample(n, self.streams["proposer"])


def test_numbers_of_numpy_become_plain(tmp_path):
    space = Mixed({"a": Real(np.float64(0), np.float32(1)), "i": Integer(np.int64(1), np.int64(5)), "c": Choice((np.int64(1), np.int64(2)))}, {"c": np.int64(2)},
                  Inequality({"a": np.float32(1)}, "<=", np.int64(1)))
    plain = Mixed({"a": Real(0.0, 1.0), "i": Integer(1, 5), "c": Choice((1, 2))}, {"c": 2}, Inequality({"a": 1}, "<=", 1))
    assert json.dumps(space.to_json()) == json.dumps(plain.to_json()) and space == plain and repr(space) == repr(plain) and Space.from_json(space.to_json()) == space
    p = Problem("p", space, Objective("y", np.int64(1)), function=lambda d, f, rng: torch.tensor(d["a"].to_numpy()), optimum=np.int64(1))
    trials = optimize(p, Drawn(p), 2, 2, initial=2, checkpoint=tmp_path, progress=False)
    assert Trials.load(tmp_path / "trials").frame.drop(columns="seconds").equals(trials.frame.drop(columns="seconds"))


def test_inference_regret_replays_what_a_search_would_have_recommended():
    bayesian = pytest.importorskip("designloop.optimizers.bayesian").BayesianOptimizer
    p = Problem("noisy", Box([(-1, 1)] * 2), Objective("y"), optimum=1.0,
                function=lambda x, f, rng: height(x) + 0.2 * torch.as_tensor(rng.normal(size=len(x))))
    live = []
    trials = optimize(p, bayesian(p, seed=3, candidates=64), 2, 2, initial=5, progress=False, callbacks=[lambda e: live.append(1 - float(height(e.optimizer.recommend())))])
    replayed = inference_regret(trials, bayesian(p, seed=3, candidates=64), height)
    assert replayed.index.tolist() == [-1, 0, 1] and np.allclose(replayed.iloc[1:], live, atol=1e-9)
    assert inference_regret(trials, Climber(p), height, "trial").index.tolist() == [5, 7, 9]
    assert np.allclose(inference_regret(trials, Climber(p), height), trials.regret("round", height))      # without a model, the best measurement
    told = Climber(p)
    told.tell(trials.designs, trials.outcomes)
    with pytest.raises(StateError, match="was told data before"): inference_regret(trials, told, height)
    with pytest.raises(ParameterError, match="optimum"): inference_regret(Trials(p.space, p.objectives).append(trials.designs, trials.outcomes), Climber(p), height)


def test_inference_regret_starts_when_something_can_be_recommended():
    class Patient(Climber):
        def recommend(self):
            if len(self) < 9: raise StateError("too little.")
            return super().recommend()
    p = hill()
    trials = optimize(p, Patient(p), 3, 2, initial=5, progress=False)
    assert inference_regret(trials, Patient(p), height, "cost").isna().tolist() == [True, True, False, False]
