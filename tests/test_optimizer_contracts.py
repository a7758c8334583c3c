"""What every optimizer of the package owes its users, found by looking for the classes."""
import gc
import importlib
import inspect
import pickle
import pkgutil

import numpy as np
import pytest
import torch

import designloop.optimizers
from designloop.core.errors import DesignError, DesignLoopError, OutcomeError, ParameterError, StateError
from designloop.core.loop import Optimizer, optimize
from designloop.core.problems import Objective, Outcomes, Problem
from designloop.core.seeds import cap_threads
from designloop.core.spaces import Box, Sequences, Texts, n_designs
from designloop.lm.agent_programs import CHAIN_OF_THOUGHT

cap_threads(1)


def _found() -> list[type]:
    "Every public, concrete optimizer that a module of designloop.optimizers defines."
    classes = {}
    for module in pkgutil.iter_modules(designloop.optimizers.__path__):
        for cls in vars(importlib.import_module(f"designloop.optimizers.{module.name}")).values():
            if inspect.isclass(cls) and issubclass(cls, Optimizer) and not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
                if cls.__module__.startswith("designloop.optimizers"): classes[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return [classes[k] for k in sorted(classes)]


CLASSES = _found()
WORDS = Problem("words", Sequences("ACGT", length=6), Objective("y"),
                function=lambda x, fidelity, rng: (x == 2).double().sum(1) + 0.1 * (x[:, 0] == 1))
BOX = Problem("box", Box([(0, 1)] * 3), Objective("y", "minimize"), function=lambda x, fidelity, rng: ((x - 0.3) ** 2).sum(1))
TEXTS = Problem("texts", Texts(examples=["one", "two three", "four five six"]), Objective("y"),
                function=lambda x, fidelity, rng: [float(len(t)) for t in x])
PROGRAMS = Problem("programs", Texts(examples=[CHAIN_OF_THOUGHT]), Objective("y"), function=lambda x, fidelity, rng: [float(len(t)) for t in x])
FRONT = Problem("front", Box([(0, 1)] * 3), [Objective("y", "minimize"), Objective("z", "minimize")],
                function=lambda x, fidelity, rng: torch.stack([((x - 0.3) ** 2).sum(1), ((x - 0.6) ** 2).sum(1)], 1))
QUICK = {"steps": 15}        # for those that train networks


def problems_for(cls) -> list[Problem]:
    "The problems whose space an optimizer accepts."
    accepted = []
    for problem in (WORDS, BOX, TEXTS, PROGRAMS):
        try: make(cls, problem)
        except ParameterError: continue
        accepted.append(problem)
    return accepted or [FRONT]        # two objectives are for those that want no fewer


def make(cls, problem, seed=0) -> Optimizer:
    quick = {k: v for k, v in QUICK.items() for base in cls.__mro__ if k in inspect.signature(base.__init__).parameters}
    return cls(problem, seed=seed, **quick)


PAIRS = [pytest.param(cls, problem, id=f"{cls.__name__}-{problem.name}") for cls in CLASSES for problem in problems_for(cls)]


def fewer(cls, n: int) -> int:
    "How many designs to ask for: half as many of other packages, some of which think for a second about each."
    return (n + 1) // 2 if cls.__module__ == "designloop.optimizers.peers" else n


def play(optimizer, problem, rounds=2, n=5) -> list:
    "Ask, evaluate, tell; what was proposed, as keys."
    proposed, n = [], fewer(type(optimizer), n)
    for _ in range(rounds):
        x = optimizer.ask(n)
        optimizer.tell(x, problem.evaluate(x))
        proposed.append(problem.space.keys(x))
    return proposed


def test_there_are_optimizers():
    names = {c.__name__ for c in CLASSES}
    assert {"RandomSearch", "MutationSearch", "GeneticAlgorithm", "SequenceBO", "PPGVAE", "CbAS"} <= names
    assert all(problems_for(c) for c in CLASSES), "every optimizer works on at least one kind of space"


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_proposes_exactly_n_valid_designs_before_and_after_being_told(cls, problem):
    for n in (1, fewer(cls, 7)):
        s = make(cls, problem)
        first = s.ask(n)
        assert n_designs(first) == n == n_designs(problem.space.validate(first))
        play(s, problem)
        assert n_designs(problem.space.validate(s.ask(n))) == n
    assert n_designs(make(cls, problem).ask()) == 1                        # one is the default


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_a_seed_repeats_and_another_differs(cls, problem):
    a, b, c = (play(make(cls, problem, seed), problem, 3) for seed in (4, 4, 5))
    assert a == b
    if not isinstance(problem.space, Texts): assert a != c


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_the_global_generators_neither_matter_nor_move(cls, problem):
    np.random.seed(1); torch.manual_seed(1)
    a = play(make(cls, problem), problem)
    np.random.seed(2); torch.manual_seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    b = play(make(cls, problem), problem)
    assert a == b and torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_a_pickled_search_goes_on_as_if_nothing_had_happened(cls, problem):
    s = make(cls, problem)
    play(s, problem)
    twin = pickle.loads(pickle.dumps(s))
    assert len(twin) == len(s) and play(s, problem) == play(twin, problem)


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_the_problem_is_out_of_reach(cls, problem):
    s = make(cls, problem)
    play(s, problem)
    seen, queue = set(), [s.__dict__]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or inspect.ismodule(thing) or isinstance(thing, type): continue
        seen.add(id(thing))
        assert thing is not problem and thing is not problem._function, f"{cls.__name__} can reach the problem it should only propose to"
        if inspect.isfunction(thing): queue += [c.cell_contents for c in thing.__closure__ or ()]
        else: queue += gc.get_referents(thing)


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_bad_input_is_refused_and_changes_nothing(cls, problem):
    s = make(cls, problem)
    x = s.ask(4)
    y = problem.evaluate(x)
    for n in (0, -1, 1.5, "four"):
        with pytest.raises(ParameterError): s.ask(n)
    with pytest.raises(OutcomeError): s.tell(x, y.take([0, 1]))
    with pytest.raises(OutcomeError): s.tell(x, y.values)
    with pytest.raises(OutcomeError): s.tell(x, Outcomes(torch.full((4, 1), float("nan")), y.names))
    with pytest.raises(DesignLoopError): s.tell(x, Outcomes(y.values, ("something else",)))
    outside = {"words": [[9] * 6] * 4, "box": [[2.0] * 3] * 4, "front": [[2.0] * 3] * 4, "texts": [1, 2, 3, 4], "programs": [1, 2, 3, 4]}[problem.name]
    with pytest.raises(DesignError): s.tell(outside, y)
    assert len(s) == 0
    with pytest.raises(ParameterError): make(cls, problem, -1)


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_the_callers_designs_and_outcomes_are_left_alone(cls, problem):
    s = make(cls, problem)
    x = s.ask(fewer(cls, 6))
    y = problem.evaluate(x)
    keys, values = problem.space.keys(x), y.values.clone()
    s.tell(x, y)
    z = s.ask(fewer(cls, 6))
    s.tell(z, problem.evaluate(z)); s.ask(fewer(cls, 6))
    assert problem.space.keys(x) == keys and torch.equal(y.values, values)


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_recommends_one_design_and_says_what_to_expect_without_moving(cls, problem):
    s, x, name = make(cls, problem), problem.space.sample(3, np.random.default_rng(0)), problem.objectives[0].name
    with pytest.raises(DesignLoopError): s.recommend()
    with pytest.raises(DesignLoopError): s.predict(x)
    play(s, problem)
    twin = pickle.loads(pickle.dumps(s))
    choice = problem.space.validate(s.recommend())
    assert n_designs(choice) == 1 and problem.space.keys(choice) == problem.space.keys(s.recommend())
    try: said = s.predict(x)
    except StateError: pass                                      # no model of the outcomes
    else:
        assert list(said.index) == [0, 1, 2] and np.isfinite(said.to_numpy(float)).all()
        assert (said[f"{name} low"] <= said[name]).all() and (said[name] <= said[f"{name} high"]).all()
        assert said.equals(s.predict(x)) and said.get("chance of failure", said[name] * 0).between(0, 1).all()
    assert len(s) == len(twin) and problem.space.keys(s.ask(fewer(cls, 4))) == problem.space.keys(twin.ask(fewer(cls, 4)))


@pytest.mark.parametrize("cls, problem", PAIRS)
def test_runs_in_the_loop(cls, problem):
    batch = fewer(cls, 4)
    t = optimize(problem, make(cls, problem), rounds=2, batch=batch, initial=6, progress=False)
    assert len(t) == 6 + 2 * batch and cls.name in set(t.frame["source"]) and not t.interrupted
