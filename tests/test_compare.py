"""compare: common starts and noise, pairs, profiles, failures, interruption, resumption, and independence of who else plays and of how many processes."""
import json
import multiprocessing
import os
import re
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

import designloop
from designloop.core.errors import DataCorrupt, DataMissing, ParameterError, StateError
from designloop.core.loop import Optimizer, optimize
from designloop.core.problems import Constraint, Objective, Problem
from designloop.core.seeds import cap_threads
from designloop.core.spaces import Box, Choice, Integer, Mixed, Real, Sequences
from designloop.core.trials import Trials
from designloop.evaluators.optimizer_comparison import COLUMNS, FLOOR, OptimizerComparison, common_start, compare
from designloop.optimizers.evolution import GeneticAlgorithm, MutationSearch, RandomSearch
from designloop.tasks.multi_fidelity import forrester

cap_threads(1)
BOWL = Problem("bowl", Box([(-1, 1)] * 2), Objective("y", "minimize", "mm"), function=lambda x, f, rng: (x**2).sum(1), optimum=0.0)
UNKNOWN = Problem("no optimum", Box([(-1, 1)] * 2), Objective("y", "maximize", "V"), function=lambda x, f, rng: -(x**2).sum(1))
PLAIN = {"random": RandomSearch, "genetic": GeneticAlgorithm}


class Noisy(Problem):
    "A bowl seen through noise; what it was asked is written down."
    def __init__(self, sd=0.3, constraints=()):
        self.sd, self.heard = sd, []
        super().__init__("noisy bowl", Box([(-1, 1)] * 2), Objective("y", "minimize"), constraints, optimum=0.0)

    def true_value(self, designs): return (designs**2).sum(1)

    def _evaluate(self, designs, fidelity, rng):
        noise = self.sd * rng.standard_normal(len(designs))
        self.heard.append(noise)
        y = self.true_value(designs) + torch.as_tensor(noise)
        return torch.stack([y, designs[:, 0]], 1) if self.constraints else y


class Corner(RandomSearch):
    "Always measures beside the worst corner of the bowl."
    name = "corner"
    def ask(self, n=1): return torch.full((n, 2), 1.0, dtype=torch.float64) - 1e-3 * torch.as_tensor(self.streams["proposer"].random((n, 2)))


class Brittle(RandomSearch):
    name = "brittle"
    def ask(self, n=1):
        if len(self) >= 9: raise ValueError("gave up")
        return super().ask(n)


class Cheap(RandomSearch):
    "Buys nine cheap measurements for every true one."
    def __init__(self, problem, seed=0):
        super().__init__(problem, seed)
        self.fidelities, self.levels = tuple(problem.fidelities), []
    def tell(self, designs, outcomes, fidelity=None): super().tell(designs, outcomes); self.levels += [fidelity] * len(outcomes)
    def ask(self, n=1):
        self.fidelity = None if len(self.levels) % 10 == 9 else self.fidelities[0]
        return super().ask(n)


def play(optimizers=PLAIN, problems=BOWL, seeds=4, rounds=6, **kw): return compare(optimizers, problems, seeds, rounds, progress=False, **kw)
def quiet(result): return result.games.drop(columns="seconds per ask"), result.curves
def same(a, b):
    for x, y in zip(quiet(a), quiet(b), strict=True): pd.testing.assert_frame_equal(x.reset_index(drop=True), y.reset_index(drop=True), check_exact=True)
def only(result, **keep):
    parts = [t[np.logical_and.reduce([t[k].isin(v) for k, v in keep.items()])] for t in quiet(result)]
    return OptimizerComparison(parts[0].assign(**{"seconds per ask": 0.0}), parts[1], result.problems, result.optimizers, result.seeds, result.settings)


def test_it_is_a_name_of_the_package(): assert designloop.compare is compare and "compare" in dir(designloop)


# --- starts and noise ----------------------------------------------------------------------------------------------------

def test_everybody_is_told_the_same_start_and_hears_the_same_noise():
    told = {}
    class Listener(RandomSearch):
        def tell(self, designs, outcomes):
            told.setdefault((self.name, self.seed), []).append((designs, outcomes.values.clone()))
            super().tell(designs, outcomes)
    other = type("Other", (Listener,), {"name": "other", "ask": lambda self, n=1: Corner.ask(self, n)})
    problem = Noisy()
    play({"a": Listener, "b": other}, problem, seeds=3, rounds=5)
    for seed in range(3):
        (xa, ya), (xb, yb) = told["random", seed][0], told["other", seed][0]
        assert torch.equal(xa, xb) and torch.equal(ya, yb) and len(xa) == 6           # 2 (d + 1)
        noise = [[float(y - problem.true_value(x)) for x, y in told[name, seed][1:]] for name in ("random", "other")]
        np.testing.assert_allclose(noise[0], noise[1], atol=1e-12)
        assert len(set(np.round(noise[0], 9))) == 5
    assert not torch.equal(told["random", 0][0][0], told["random", 1][0][0])
    flat = np.concatenate(problem.heard)
    starts = flat[:18]                                              # the noise of the start is not used again afterwards
    assert len(set(np.round(starts, 12))) == 18 and not set(np.round(starts, 9)) & set(np.round(noise[0], 9))


def test_a_game_can_be_repeated_by_hand():
    result = play(seeds=[7])
    trials = optimize(BOWL, GeneticAlgorithm(BOWL, seed=7), 6, 1, common_start(BOWL, 7), seed=7, progress=False)
    assert trials.regret().iloc[-1] == result.games.set_index("optimizer").loc["genetic", "regret"]
    np.testing.assert_array_equal(result.curves.query("optimizer == 'genetic'")["regret"], trials.regret().iloc[5:])


@pytest.mark.parametrize("space, n", [(Mixed({"a": Real(0, 1), "b": Choice(["u", "v"])}), 6), (Sequences("ACGT", 3), 8), (Box([(0, 1)] * 3), 8)])
def test_starts_of_other_spaces(space, n):
    problem = Problem("p", space, Objective("y"), function=lambda x, f, rng: np.arange(len(x), dtype=float))
    assert len(common_start(problem)) == n and len(common_start(problem, 0, 3)) == 3
    assert (play({"random": RandomSearch}, problem, seeds=1, rounds=2).games["state"] == "done").all()


def test_a_start_may_be_a_function():
    def start(problem, seed):
        x = torch.full((2, 2), 0.5, dtype=torch.float64)
        return Trials.of(problem).append(x, problem.evaluate(x))
    assert (play(seeds=2, initial=start).games["start loss"] == 0.5).all()
    with pytest.raises(ParameterError, match="initial=0"): play(initial=0)
    broken = play(seeds=2, initial=lambda problem, seed: None)
    assert (broken.games["state"] == "failed").all() and broken.games["error"].str.contains("initial gave a NoneType").all()


# --- figures ---------------------------------------------------------------------------------------------------------------

def test_definitions_in_closed_form():
    "A scripted search: regrets, logarithm, area and profile are those of the formulas."
    def scripted(values):
        class Script(Optimizer):
            name = f"script {values[0]}"
            def ask(self, n=1): return torch.tensor([[values[len(self) - 1]]], dtype=torch.float64)
        return Script
    problem = Problem("line", Box([(0, 10)]), Objective("y", "minimize"), function=lambda x, f, rng: x[:, 0], optimum=0.0)
    def start(problem, seed): x = torch.tensor([[8.0]], dtype=torch.float64); return Trials.of(problem).append(x, problem.evaluate(x))
    result = play({"a": scripted([4.0, 6.0, 0.8]), "b": scripted([9.0, 2.0, 0.0])}, problem, seeds=2, rounds=3, initial=start)
    games = result.games[result.games["seed"] == 0].set_index("optimizer")
    assert games["regret"].tolist() == [0.8, 0.0] and games["best"].tolist() == [0.8, 0.0] and (games["cost"] == 4).all() and (games["measurements"] == 3).all()
    np.testing.assert_allclose(games["relative"], [-1, np.log10(FLOOR)])
    np.testing.assert_allclose(games["auc"], [(0 + 2 * np.log10(0.5) - 1) / 4, (0 + 0 + np.log10(0.25) - 4) / 4])
    assert result.curves.query("optimizer == 'b' and seed == 0")["regret"].tolist() == [8, 8, 2, 0]
    gap = result.gaps("a").iloc[0]
    np.testing.assert_allclose([gap["gap"], gap["low"], gap["high"], gap["pairs"]], [-3, -3, -3, 2])
    profile = result.profile()
    assert profile["b"].iloc[0] == 1 and profile["a"].iloc[0] == 0 and np.isclose(profile.index[-1], 1000) and profile["a"].iloc[-1] == 1


def test_an_optimizer_against_itself_differs_by_exactly_nothing():
    result = play({"a": GeneticAlgorithm, "b": lambda problem, seed: GeneticAlgorithm(problem, seed)}, [BOWL, Noisy(), UNKNOWN], seeds=3)
    for measure in ("regret", "auc"):
        gaps = result.gaps(measure=measure)
        assert (gaps[["gap", "low", "high"]] == 0).all(axis=None) and (gaps["pairs"] == 3).all() and (gaps["better"] == "").all() and (gaps["p"] == 1).all()


def test_a_bad_optimizer_is_found_behind():
    "Seeds 0 to 9; the corner's regret stays that of the start, random search improves on it."
    result = play({"random": RandomSearch, "corner": Corner}, BOWL, seeds=10, rounds=25)
    gap = result.gaps("random").iloc[0]
    assert gap["low"] > 0.1 and gap["better"] == "random" and gap["pairs"] == 10 and gap["p (Holm)"] < 0.05
    assert result.gaps("random", "auc").iloc[0]["low"] > 0
    assert (result.gaps("random", "seconds per ask")["unit"] == "log10 seconds").all()


def test_no_optimum_means_losses():
    result = play(problems=[BOWL, UNKNOWN], seeds=3)
    assert result.games.query("problem == 'no optimum'")["regret"].isna().all()
    gaps = result.gaps().set_index("problem")
    assert gaps["unit"].to_dict() == {"bowl": "log10 regret", "no optimum": "loss in y [V]"}
    part = result.games[result.games["problem"] == "no optimum"].pivot(index="seed", columns="optimizer", values="best")
    np.testing.assert_allclose(gaps.loc["no optimum", "gap"], -(part["genetic"] - part["random"]).mean())
    profile = result.profile()
    assert ((profile >= 0) & (profile <= 1)).all(axis=None) and (profile.iloc[-1] == 1).all()
    assert "loss in y [V]" in result._repr_html_()


def test_targets_and_starts_that_hold_the_optimum():
    target = Problem("target", Box([(0, 1)]), Objective("y", 0.5), function=lambda x, f, rng: (x[:, 0] * 4).round() / 4)
    result = play(problems=target, seeds=4)
    assert (result.games["start loss"] == 0).any() and (result.games["regret"] >= 0).all()
    held = result.games[result.games["start loss"] == 0]
    assert (held["relative"] == np.log10(FLOOR)).all()


# --- noise, constraints, costs ----------------------------------------------------------------------------------------------

def test_a_noisy_problem_is_judged_by_truth_and_recommendation():
    class Sure(RandomSearch):
        "Measures at random, and recommends the centre."
        def recommend(self): return torch.zeros(1, 2, dtype=torch.float64)
    result = play({"sure": Sure, "random": RandomSearch}, Noisy(), seeds=5)
    games = result.games.set_index("optimizer")
    assert (games["judged by"] == "recommended design, true value").all() and (games["regret"] >= 0).all()
    assert (games.loc["sure", "inference regret"] == 0).all() and (games.loc["sure", "relative"] == -4).all() and (games.loc["sure", "regret"] > 0).all()
    np.testing.assert_array_equal(games.loc["sure", "regret"], games.loc["random", "regret"])
    measured = play({"sure": Sure}, Noisy(), seeds=5, truth=False).games
    assert (measured["judged by"] == "best design, measured value").all() and measured["inference regret"].isna().all()
    assert (measured["regret"] < 0).any() and np.isfinite(measured["relative"]).all()         # lucky measurements fall below the optimum; the floor holds
    given = play({"sure": Sure}, Noisy(), seeds=2, truth=lambda problem, designs: problem.true_value(designs) + 1)
    assert (given.games["inference regret"] == 1).all()
    assert (play(problems=Noisy(sd=0.0), seeds=2).games["judged by"] == "best design, true value").all()


def test_the_recommendation_keeps_to_the_budget():
    told = []
    class Listening(RandomSearch):
        def recommend(self): told.append(len(self)); return super().recommend()
    result = play({"listening": Listening}, Noisy(), seeds=3, rounds=None, budget=7, batch=5)
    assert told == [7] * 3 and (result.games["measurements"] == 5).all() and (result.curves.groupby("seed")["measurement"].max() == 1).all()
    by_hand = common_start(Noisy(), 1)
    optimizer = RandomSearch(Noisy(), seed=1)
    trials = optimize(Noisy(), optimizer, 1, 5, by_hand, 1, progress=False).take(np.arange(7))
    best = trials.designs[[int(trials.utilities.argmax())]]
    assert result.games["inference regret"].iloc[1] == float(Noisy().true_value(best))
    play({"listening": Listening}, Noisy(), seeds=1, rounds=None, budget=11, batch=5)
    assert told[-1] == 11


def test_rounding_and_designs_that_are_not_allowed_are_no_noise():
    class Rounded(Problem):
        def true_value(self, x): return np.where(x[:, 0] >= 0, np.nextafter((x**2).sum(1).numpy(), 9.0), np.nan)
    rounded = Rounded("rounded", Box([(-1, 1)] * 2), Objective("y", "minimize"), [Constraint("x", "<=", 0.0)], optimum=0.0,
                      function=lambda x, f, rng: {"y": (x**2).sum(1), "x": -x[:, 0]})
    result = play({"random": RandomSearch}, rounded, seeds=3)
    assert (result.games["judged by"] == "best design, true value").all() and result.games["feasible"].all()


def test_nothing_feasible_is_charged():
    where = Problem("strip", Box([(0, 1)]), [Objective("y", "minimize")], [Constraint("x", ">=", 0.8)], function=lambda x, f, rng: {"y": x[:, 0], "x": x[:, 0]}, optimum=0.8)
    class Low(RandomSearch):
        def ask(self, n=1): return torch.full((n, 1), 0.1, dtype=torch.float64)
    class Late(Low):
        def ask(self, n=1): return torch.full((n, 1), 0.9 if len(self) > 4 else 0.1, dtype=torch.float64)
    def start(problem, seed): x = torch.tensor([[0.2]], dtype=torch.float64); return Trials.of(problem).append(x, problem.evaluate(x))
    result = play({"low": Low, "late": Late}, where, seeds=2, initial=start)
    games, curve = result.games.set_index("optimizer"), result.curves.query("optimizer == 'late' and seed == 0")
    assert not games.loc["low", "feasible"].any() and games.loc["low", "best"].isna().all() and (games.loc["low", "relative"] == 0).all()
    assert 0.199 < games.loc["low", "regret"].iloc[0] <= 0.2 and result.problems.loc["strip", "charge"] > 0.999      # the worst feasible one of 4096
    np.testing.assert_allclose(curve["regret"].iloc[-1], 0.1)
    assert curve["value"].isna().sum() == 5
    assert (play({"low": Low}, where, seeds=1, initial=start, charge=3.0).games["loss"] == 3).all()
    wrong = Noisy(0.1, [Constraint("c", ">=", 0.5)])
    wrong.outcome_names = ("y", "c")
    class Outside(RandomSearch):
        def recommend(self): return torch.full((1, 2), -0.5, dtype=torch.float64)
    assert not play({"outside": Outside}, wrong, seeds=1).games["feasible"].any()
    never = Problem("never", Box([(0, 1)]), Objective("y"), [Constraint("y", ">=", 9)], function=lambda x, f, rng: x[:, 0], optimum=1.0)
    with pytest.raises(StateError, match="pass charge="): play(problems=never, seeds=1)


def test_fidelities_share_a_budget():
    problem = forrester()
    result = play({"cheap": Cheap, "random": RandomSearch}, problem, seeds=3, rounds=None, budget=8.0)
    games = result.games.set_index("optimizer")
    assert (games["state"] == "done").all() and (games.loc["cheap", "measurements"] > 10).all() and (games.loc["random", "measurements"] == 4).all()
    assert (result.curves["cost"] <= 8 + 1e-9).all() and (games["cost"] < 9).all() and (result.curves.query("measurement == 0")["cost"] == 4).all()
    one = result.curves.query("optimizer == 'random' and seed == 1")
    share = np.log10(np.maximum(one["regret"] / one["regret"].iloc[0], FLOOR))
    np.testing.assert_allclose(games.loc["random", "auc"].iloc[1], share.iloc[:-1].mean())       # stairs of equal width over cost, the last measurement at the very end
    assert result.plot() is not None
    spent = play({"random": RandomSearch}, problem, seeds=1, rounds=None, budget=2.0)
    assert "is spent by the start" in spent.games["error"].iloc[0]


def test_a_start_with_cheap_trials_is_told_to_those_who_learn_from_them():
    def start(problem, seed):
        x = problem.space.sample(5, np.random.default_rng(seed))
        trials = Trials.of(problem).append(x, problem.evaluate(x, 0.0), fidelity=0.0)
        return trials.append(x[:2], problem.evaluate(x[:2]))
    result = play({"cheap": Cheap, "random": RandomSearch}, forrester(), seeds=2, rounds=None, budget=5.0, initial=start)
    first = result.curves.query("measurement == 0").groupby("optimizer")["cost"].first()
    np.testing.assert_allclose([first["cheap"], first["random"]], [2.5, 2.0])
    assert result.curves.query("measurement == 0").groupby("seed")["regret"].nunique().eq(1).all()


# --- nothing is lost, and nobody disturbs anybody ----------------------------------------------------------------------------

def test_workers_order_and_company_do_not_matter():
    full = play({"genetic": GeneticAlgorithm, "random": RandomSearch, "mutation": MutationSearch}, [BOWL, Noisy()], seeds=3)
    same(full, play({"genetic": GeneticAlgorithm, "random": RandomSearch, "mutation": MutationSearch}, [BOWL, Noisy()], seeds=3, workers=2))
    alone = play({"mutation": MutationSearch}, [Noisy()], seeds=[2])
    same(alone, only(full, optimizer=["mutation"], problem=["noisy bowl"], seed=[2]))
    other = play({"mutation": MutationSearch, "random": RandomSearch, "genetic": GeneticAlgorithm}, [Noisy(), BOWL], seeds=[2, 0, 1])
    key = ["problem", "optimizer", "seed"]
    pd.testing.assert_frame_equal(*(r.games.drop(columns="seconds per ask").sort_values(key).reset_index(drop=True) for r in (full, other)))


def test_a_failed_game_is_a_row_and_keeps_its_curve(tmp_path):
    result = play({"brittle": Brittle, **PLAIN}, seeds=3, checkpoint=tmp_path)
    failed = result.games[result.games["state"] == "failed"]
    assert set(failed["optimizer"]) == {"brittle"} and len(failed) == len(result.failed) == 3 and (result.games["state"] == "done").sum() == 6
    assert failed["error"].str.fullmatch(r"ValueError: gave up \(test_compare.py, line \d+\)").all() and (failed["measurements"] == 3).all()
    assert failed["relative"].isna().all() and len(result.curves.query("optimizer == 'brittle' and seed == 0")) == 4
    gaps = result.gaps("random").set_index("optimizer")
    assert gaps.loc["brittle", "pairs"] == 0 and np.isnan(gaps.loc["brittle", "gap"]) and gaps.loc["genetic", "pairs"] == 3
    assert (result.profile()["brittle"] == 0).all() and "gave up" in result._repr_html_() and "3 failed" in str(result)
    for figure in (result.plot(), result.plot_gaps("random")): assert figure.axes
    no_such = play({"random": RandomSearch, "fails": lambda problem, seed: 3, "raises": lambda problem, seed: 1 / 0}, seeds=1)
    assert "no Optimizer" in no_such.games["error"].iloc[1] and "ZeroDivisionError" in no_such.games["error"].iloc[2]


def test_a_process_that_dies_takes_one_game_with_it():
    class Deadly(RandomSearch):
        def ask(self, n=1): return super().ask(n) if self.seed != 1 else os._exit(9)
    result = play({"deadly": Deadly, "random": RandomSearch}, seeds=3, workers=2)
    bad = result.games[result.games["state"] == "failed"]
    assert bad[["optimizer", "seed"]].values.tolist() == [["deadly", 1]] and "exit code 9" in bad["error"].iloc[0] and len(result.games) == 6


class Stops(RandomSearch):
    "Presses Ctrl-C once, in its fourth round with seed 1."
    pressed: list = []
    def ask(self, n=1):
        if self.seed == 1 and len(self) == 9 and not Stops.pressed: Stops.pressed.append(1); os.kill(os.getpid(), signal.SIGINT)
        return super().ask(n)


def test_an_interrupted_comparison_is_resumed(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Stops.pressed = [1]
    whole = play({"random": RandomSearch, "stops": Stops}, [BOWL, Noisy()], seeds=3)
    Stops.pressed = []
    part = play({"random": RandomSearch, "stops": Stops}, [BOWL, Noisy()], seeds=3, checkpoint=tmp_path)
    assert part.interrupted and "not played to the end" in str(part) and 4 < len(part.games) < 12
    last = part.games[part.games["state"] == "interrupted"].iloc[0]
    assert last["error"] == "interrupted after 3 of 6 rounds" and len(part.curves.query("optimizer == 'stops' and seed == 1")) >= 3
    assert OptimizerComparison.load(tmp_path).interrupted and np.isfinite(part.gaps()["gap"]).all()
    asked = []
    class Counted(RandomSearch):
        def ask(self, n=1): asked.append(self.seed); return super().ask(n)
    Counted.__qualname__ = "RandomSearch"
    again = play({"random": Counted, "stops": Stops}, [BOWL, Noisy()], seeds=3, checkpoint=tmp_path)
    same(whole, again)
    assert len(asked) == 6 * (6 - part.games.query("optimizer == 'random' and state == 'done'").shape[0]) and not list((tmp_path / "searches").glob("*"))
    same(again, OptimizerComparison.load(tmp_path))


def test_ctrl_c_stops_the_processes_and_keeps_what_they_did(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    class Signals(RandomSearch):
        "Presses Ctrl-C for its parent, once."
        def ask(self, n=1):
            if self.seed == 3 and not (tmp_path / "pressed").exists(): (tmp_path / "pressed").touch(); os.kill(os.getppid(), signal.SIGINT); time.sleep(5)
            return super().ask(n)
    part = play({"signals": Signals}, seeds=6, workers=2, checkpoint=tmp_path / "c")
    assert part.interrupted and len(part.games) < 6 and not multiprocessing.active_children()
    same(play({"signals": Signals}, seeds=6, workers=2, checkpoint=tmp_path / "c"), play({"signals": Signals}, seeds=6))


def test_runs_that_failed_without_a_number():
    "An objective that is NaN where a constraint is violated is neither noise nor a value."
    def measure(x, f, rng): return {"y": torch.where(x[:, 0] > 0, x[:, 0], torch.nan), "worked": (x[:, 0] > 0).double()}
    problem = Problem("fails", Box([(-1, 1)]), Objective("y", "minimize"), [Constraint("worked", ">=", 0.5)], function=measure, optimum=0.0)
    class Takes(RandomSearch): takes_failures = True
    result = play({"takes": Takes, "random": RandomSearch}, problem, seeds=2)
    games = result.games.set_index("optimizer")
    assert (games.loc["takes", "state"] == "done").all() and np.isfinite(games.loc["takes", "relative"]).all()
    assert (result.games["judged by"] == "best design, measured value").all()
    assert (games.loc["random", "state"] == "failed").all() and games.loc["random", "error"].str.contains("OutcomeError").all()


def test_failed_games_are_played_again_and_games_may_be_added(tmp_path):
    play({"fix": Brittle}, seeds=2, checkpoint=tmp_path)
    Repaired = type("Brittle", (RandomSearch,), {"__qualname__": "Brittle", "name": "brittle"})
    mended = play({"fix": Repaired, "genetic": GeneticAlgorithm}, [BOWL, UNKNOWN], seeds=3, checkpoint=tmp_path)
    assert (mended.games["state"] == "done").all() and len(mended.games) == 12
    same(mended, play({"fix": Repaired, "genetic": GeneticAlgorithm}, [BOWL, UNKNOWN], seeds=3))


def test_a_checkpoint_of_another_comparison_is_refused(tmp_path):
    play(seeds=1, checkpoint=tmp_path)
    with pytest.raises(StateError, match="rounds was 6, now 7"): play(seeds=1, rounds=7, checkpoint=tmp_path)
    with pytest.raises(StateError, match="optimizer random was RandomSearch, now GeneticAlgorithm"): play({"random": GeneticAlgorithm}, seeds=1, checkpoint=tmp_path)
    moved = Problem("bowl", Box([(-2, 1)] * 2), Objective("y", "minimize", "mm"), function=lambda x, f, rng: (x**2).sum(1), optimum=0.0)
    with pytest.raises(StateError, match="problem bowl was"): play(problems=moved, seeds=1, checkpoint=tmp_path)
    next((tmp_path / "games").glob("*.json")).write_text("{")
    with pytest.raises(DataCorrupt, match="played again"): play(seeds=1, checkpoint=tmp_path)


def test_saves_and_loads(tmp_path):
    result = play({"brittle": Brittle, **PLAIN}, [BOWL, UNKNOWN], seeds=2)
    for _ in range(2): back = OptimizerComparison.load(result.save(tmp_path / "c"))
    for name in ("games", "curves", "problems"): pd.testing.assert_frame_equal(getattr(back, name), getattr(result, name))
    assert str(back) == str(result) and len(list((tmp_path / "c").iterdir())) == 4 and list(result.games) == list(COLUMNS)
    with pytest.raises(DataMissing): OptimizerComparison.load(tmp_path / "nowhere")
    about = json.loads((tmp_path / "c" / "comparison.json").read_text()); about.pop("tables")
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(about))
    with pytest.raises(DataCorrupt): OptimizerComparison.load(tmp_path / "c")


def test_damaged_checkpoints_are_named(tmp_path):
    play(seeds=1, rounds=2, checkpoint=tmp_path)
    game = next((tmp_path / "games").glob("*.json"))
    kept = game.read_text()
    for text in ("{}", "[]", "{", '{"row": {"state": "done"}}'):
        game.write_text(text)
        with pytest.raises(DataCorrupt, match="played again"): play(seeds=1, rounds=2, checkpoint=tmp_path)
    game.write_text(kept)
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(DataCorrupt, match="compare.json holds"): play(seeds=1, rounds=2, checkpoint=tmp_path)


def test_numbers_of_numpy_can_be_kept(tmp_path):
    space = Mixed({"a": Real(np.float64(0), np.float32(1)), "i": Integer(np.int64(1), np.int64(5)), "c": Choice((np.int64(1), np.int64(2)))}, frozen={"i": np.int64(2)})
    mixed = Problem("mixed", space, Objective("y", np.float32(0.5)), function=lambda d, f, rng: torch.tensor(d["a"].to_numpy()))
    first = play({"random": RandomSearch}, mixed, seeds=1, rounds=2, checkpoint=tmp_path)
    assert (first.games["state"] == "done").all()
    pd.testing.assert_frame_equal(play({"random": RandomSearch}, mixed, seeds=1, rounds=2, checkpoint=tmp_path).games, first.games)


# --- bad input ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("given, words", [
    (dict(optimizers={}), "optimizers is empty"), (dict(optimizers=[RandomSearch, RandomSearch]), "the name 'random' twice"),
    (dict(optimizers=[lambda p, s: None]), "a function without a name"), (dict(optimizers={"x": 3}), "optimizers['x'] is 3 (int)"),
    (dict(optimizers={"x": RandomSearch(BOWL)}), "every game needs a fresh one"), (dict(optimizers={1: RandomSearch}), "the name 1"),
    (dict(problems=[]), "problems is empty"), (dict(problems=[BOWL, BOWL]), "'bowl' twice"), (dict(problems=[3]), "problems holds 3 (int); give a Problem"),
    (dict(seeds=0), "seeds=0"), (dict(seeds=[1, 1]), "all different"), (dict(seeds=[]), "at least one"), (dict(seeds=-1), "seeds=-1"), (dict(rounds=0), "rounds=0"),
    (dict(batch=0), "batch=0"), (dict(budget=0), "budget=0"), (dict(workers=0), "workers=0"), (dict(truth=3), "truth=3"), (dict(charge={"owl": 1.0}), "Did you mean 'bowl'"),
])
def test_bad_input_is_refused_before_anything_is_run(given, words):
    with pytest.raises(ParameterError, match=re.escape(words)): play(**given)


def test_bad_questions_are_refused():
    result = play(seeds=1)
    with pytest.raises(ParameterError, match="Did you mean 'random'"): result.gaps("randm")
    with pytest.raises(ParameterError, match="measure='regrets'"): result.gaps(measure="regrets")
    with pytest.raises(ParameterError, match="only optimizer"): play({"random": RandomSearch}, seeds=1).gaps()
    with pytest.raises(ParameterError, match="level"): result.gaps(level=95)
    lone = result.gaps().iloc[0]
    assert lone["pairs"] == 1 and np.isfinite(lone["gap"]) and np.isnan(lone["low"]) and lone["better"] == ""
    half = OptimizerComparison(result.games.iloc[:1], result.curves, result.problems, result.optimizers, result.seeds, result.settings)
    with pytest.raises(StateError, match="no profile"): half.profile()
