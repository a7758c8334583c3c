"""Random search, mutation and the genetic algorithm: what is proposed is new, valid, and better than chance where it should be."""
import numpy as np
import pytest
import torch

from designloop.core.errors import ParameterError
from designloop.core.loop import optimize
from designloop.core.problems import Constraint, Objective, Outcomes, Problem
from designloop.core.spaces import Box, Choice, Integer, Mixed, Real, Sequences, Texts
from designloop.models.similarity import canonical, reverse_complement
from designloop.optimizers.evolution import GeneticAlgorithm, MutationSearch, RandomSearch

SEARCHES = [RandomSearch, MutationSearch, GeneticAlgorithm]
DNA = Sequences("ACGT", length=6)
TARGET = DNA.from_strings(["GATTAC"])[0]


def words(space=DNA, **kw):
    return Problem("agreement", space, Objective("y"), function=lambda x, fidelity, rng: (x == TARGET).double().sum(1), optimum=6.0, **kw)


@pytest.mark.parametrize("search", SEARCHES)
def test_known_words_are_not_proposed_again_on_either_strand(search):
    problem = words()
    s = search(problem, seed=3, double_stranded=True)
    seen = set()
    for _ in range(8):
        batch = s.ask(12)
        keys = DNA.keys(canonical(batch))
        assert len(set(keys)) == 12 and not seen & set(keys)
        seen |= set(keys)
        s.tell(batch, problem.evaluate(batch))


def test_the_problem_may_say_that_strands_do_not_matter():
    problem = words()
    assert not RandomSearch(problem).double_stranded
    problem.double_stranded = True
    assert RandomSearch(problem).double_stranded and not RandomSearch(problem, double_stranded=False).double_stranded
    with pytest.raises(ParameterError, match="ACGT"):
        RandomSearch(Problem("p", Sequences("XYZ", length=3), Objective("y")), double_stranded=True)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_space_that_is_used_up_gives_known_designs_again(search):
    problem = Problem("tiny", Sequences("AB", length=2), Objective("y"), function=lambda x, fidelity, rng: x.double().sum(1))
    s = search(problem)
    first = s.ask(4)
    assert len(set(problem.space.keys(first))) == 4
    s.tell(first, problem.evaluate(first))
    assert len(problem.space.validate(s.ask(3))) == 3
    assert len(search(problem).ask(7)) == 7                  # more than there are, before anything was told


def test_mutation_changes_at_least_one_letter_and_starts_from_the_best():
    problem = words()
    s = MutationSearch(problem, seed=0, parents=1, rate=0.0)
    start = DNA.from_strings(["GATTAA", "CCCCCC"])
    s.tell(start, problem.evaluate(start))
    children = s.ask(10)
    assert ((children != start[0]).sum(1) == 1).all()        # rate 0 still changes exactly one, and always of the best


def test_crossover_joins_a_head_and_a_tail():
    s = GeneticAlgorithm(words(), seed=0)
    a, b = DNA.from_strings(["AAAAAA"] * 200), DNA.from_strings(["TTTTTT"] * 200)
    child = s._crossed(a, b)
    assert ((child[:, 1:] - child[:, :-1]) >= 0).all()       # one switch from A (0) to T (3), never back
    cuts = (child == 0).sum(1)
    assert set(cuts.tolist()) == {1, 2, 3, 4, 5}             # every cut occurs; an end is never empty


def test_words_of_different_length_stay_valid():
    space = Sequences("ACGT", max_length=6)
    problem = Problem("p", space, Objective("y"), function=lambda x, fidelity, rng: (x == 2).double().sum(1))
    s = GeneticAlgorithm(problem, seed=1)
    for _ in range(5):
        batch = space.validate(s.ask(20))
        s.tell(batch, problem.evaluate(batch))
    assert float(s.utilities.max()) >= 5


def test_infeasible_designs_have_no_children():
    problem = Problem("p", DNA, Objective("y"), [Constraint("ok", ">=", 0.5)])
    s = MutationSearch(problem, parents=1, rate=0.0)
    start = DNA.from_strings(["AAAAAA", "CCCCCC"])
    s.tell(start, Outcomes(torch.tensor([[9.0, 0.0], [1.0, 1.0]]), ("y", "ok")))
    assert ((s.ask(5) == 1).sum(1) == 5).all()               # children of CCCCCC, though AAAAAA measured more


@pytest.mark.parametrize("space, function, best", [
    (Box([(0, 1)] * 3), lambda x, fidelity, rng: -((x - 0.3) ** 2).sum(1), 0.0),
    (Mixed({"a": Real(0, 1), "k": Integer(0, 9), "c": Choice(("x", "y", "z"))}),
     lambda f, fidelity, rng: torch.tensor((-(f.a - 0.3) ** 2 - (f.k - 7) ** 2 / 81 - (f.c != "y")).to_numpy(float)), 0.0)])
def test_other_spaces(space, function, best):
    problem = Problem("p", space, Objective("y"), function=function, optimum=best)
    def regret(s, k): return float(optimize(problem, s(problem, seed=k), 12, 8, 16, seed=k, progress=False).regret().iloc[-1])
    final = {s: np.array([regret(s, k) for k in range(6)]) for s in SEARCHES}
    # paired over 6 seeds, one-sided: the chance that all six favour one side by luck is 1/64
    assert (final[GeneticAlgorithm] < final[RandomSearch]).all()
    assert final[MutationSearch].mean() < final[RandomSearch].mean()


def test_evolution_beats_chance_on_words():
    problem = words()
    def best(s, k): return float(optimize(problem, s(problem, seed=k), 8, 8, 16, seed=k, progress=False).best_curve().iloc[-1])
    ends = {s: [best(s, k) for k in range(10)] for s in SEARCHES}
    assert np.mean(ends[GeneticAlgorithm]) > np.mean(ends[RandomSearch]) + 0.5
    assert np.mean(ends[MutationSearch]) > np.mean(ends[RandomSearch])


@pytest.mark.parametrize("kw, part", [(dict(parents=0), "parents"), (dict(rate=1.5), "rate"), (dict(rate="x"), "rate")])
def test_bad_settings_are_named(kw, part):
    with pytest.raises(ParameterError, match=part): GeneticAlgorithm(words(), **kw)


def test_texts_are_refused_by_name():
    problem = Problem("p", Texts(examples=["a", "b"]), Objective("y"))
    assert RandomSearch(problem).ask(2)
    with pytest.raises(ParameterError, match="Texts"): MutationSearch(problem)


def test_reverse_complement_is_an_involution():
    x = DNA.sample(50, np.random.default_rng(0))
    assert torch.equal(reverse_complement(reverse_complement(x)), x)
    assert torch.equal(canonical(x), canonical(reverse_complement(x)))
    with pytest.raises(ParameterError, match="partner"): reverse_complement(x, "ACGX")
