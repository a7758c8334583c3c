"""Bayesian optimization: identities, peers, bad input, and the contract's finer points. Seeds are fixed; sampled checks allow five standard errors."""
import copy
import math
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from designloop.core.errors import DesignError, OutcomeError, ParameterError, StateError
from designloop.core.loop import optimize
from designloop.core.problems import Constraint, Objective, Outcomes, Problem
from designloop.core.seeds import cap_threads
from designloop.core.spaces import Box, Choice, Inequality, Integer, Mixed, Real, Sequences, Space, unit_points
from designloop.models.gradient_gp import GradientGP
from designloop.models.surrogates import GaussianProcess, ProcessStack, categorical_groups, mixed_kernel
from designloop.optimizers.bayes_acquisition import (
    ExpectedImprovement,
    LogExpectedImprovement,
    LogNoisyImprovement,
    TargetImprovement,
    ThompsonSampling,
)
from designloop.optimizers.bayesian import ACQUISITIONS, BayesianOptimizer, Belief, Bend, fit_bent, score_of
from designloop.optimizers.bayesian_exotic import Environments, TaskGP, integrated_knowledge_gradient, integrated_moments
from designloop.optimizers.inner_search import SpaceMoves, climb, maximize
from designloop.optimizers.knowledge_gradient import (
    KnowledgeGradient,
    NoisyExpectedImprovement,
    gain_by_scanning,
    log_expected_gain,
    simulated_knowledge_gradient,
)

cap_threads(1)
BIKE = Mixed({"tube": Real(20, 60), "spokes": Integer(16, 36), "material": Choice(("steel", "carbon", "bamboo"))})


def data(n=20, d=2, seed=0, space=None):
    rng = np.random.default_rng(seed)
    X = torch.as_tensor(rng.random((n, d))) if space is None else space.encode(space.sample(n, rng))
    return X, torch.sin(5 * X[:, 0]) + X[:, 1] ** 2 + 0.1 * torch.as_tensor(rng.normal(size=n))


def true_process(noise, seed, d=2, n=8):
    rng = np.random.default_rng(seed)
    model = GaussianProcess(fixed=dict(lengthscale=rng.uniform(0.1, 0.5, d), outputscale=1.3, noise=noise, mean=0.1))
    return model.fit(torch.as_tensor(rng.random((n, d))), torch.as_tensor(rng.normal(size=n))), rng


# ---------------------------------------------------------------- surrogates

@pytest.mark.parametrize("options", [{}, dict(kernel="rbf"), dict(warp=True), dict(noise=0.02), dict(noise="none"), dict(hyperparameters="mle")], ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_posterior_and_evidence_are_botorchs(options, mixed):
    from gpytorch.mlls import ExactMarginalLogLikelihood
    space = BIKE if mixed else None
    X, y = data(space=space)
    gp = GaussianProcess(categorical_groups(BIKE) if mixed else (), **options).fit(X, y)
    Q = data(12, seed=1, space=space)[0].reshape(4, 3, -1)
    model = gp.botorch
    peer, (mean, covariance) = model.posterior(Q), gp.joint(Q)
    assert torch.allclose(peer.mean[..., 0], mean, atol=1e-5) and torch.allclose(peer.distribution.covariance_matrix, covariance, atol=1e-5)
    assert torch.allclose(gp.posterior(Q)[1], covariance.diagonal(dim1=-2, dim2=-1), atol=1e-8)
    model.train()
    evidence = float(ExactMarginalLogLikelihood(model.likelihood, model)(model(*model.train_inputs), model.train_targets).detach()) * len(y)
    assert abs(evidence - gp.log_likelihood) < 1e-3


def test_the_fit_is_a_maximum_of_botorchs_evidence_for_mle():
    X, y = data(30)
    gp = GaussianProcess(hyperparameters="mle").fit(X, y)
    for shift in (0.05, -0.05):
        for j in range(gp._theta.shape[1]):
            other = GaussianProcess(hyperparameters="mle")
            other.__dict__.update(gp.__dict__)
            other._theta = gp._theta.clone(); other._theta[0, j] += shift
            inside = gp._form.low[j] <= float(other._theta[0, j]) <= gp._form.high[j]
            if not inside: continue
            other._condition(gp.X, gp.y, gp._known)
            assert other.log_likelihood <= gp.log_likelihood + 1e-3


def test_gradients_of_the_posterior_and_the_averaged_process():
    X, y = data()
    gp = GaussianProcess(hyperparameters="bayes", draws=6).fit(X, y)
    assert gp._theta.shape[0] == 6 and gp.posteriors(X[:3])[0].shape == (6, 3)
    q = torch.tensor([[0.4, 0.6]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gp.posterior(q)[0].sum(), q)
    step = [float(gp.posterior(q.detach() + torch.tensor([[h, 0.0]]))[0]) for h in (1e-6, -1e-6)]
    assert abs(float(slope[0, 0]) - (step[0] - step[1]) / 2e-6) < 1e-4
    again = GaussianProcess(hyperparameters="bayes", draws=6).fit(X, y)
    assert torch.equal(gp._theta, again._theta)
    mean, covariance = gp.joint(X[:4])
    assert torch.allclose(covariance.diagonal(), gp.posterior(X[:4])[1], atol=1e-8)
    assert torch.allclose(gp.covariance(X[:4], X[:4]), covariance, atol=1e-8)


def test_believing_keeps_the_mean_and_shrinks_the_spread():
    X, y = data()
    gp, Q = GaussianProcess().fit(X, y), data(9, seed=3)[0]
    after = gp.believe(Q[:2])
    assert torch.allclose(after.posterior(Q)[0], gp.posterior(Q)[0], atol=1e-6) and (after.posterior(Q)[1] <= gp.posterior(Q)[1] + 1e-9).all() and len(gp.y) == 20
    sampled = gp.samples(Q, 20_000, np.random.default_rng(0))
    assert (abs(sampled.mean(0) - gp.posterior(Q)[0]) < 5 * gp.posterior(Q)[1].sqrt() / 20_000**0.5 + 1e-9).all()
    clone = pickle.loads(pickle.dumps(gp))
    assert torch.equal(clone.posterior(Q)[0], gp.posterior(Q)[0])


def test_gradient_process_without_gradients_is_the_ordinary_one_and_with_them_better():
    X, y = data(8, d=2)
    f = lambda x: torch.sin(5 * x[:, 0]) + x[:, 1] ** 2
    slope = torch.stack([5 * torch.cos(5 * X[:, 0]), 2 * X[:, 1]], 1)
    Q = data(100, seed=4)[0]
    fixed = dict(lengthscale=0.4, outputscale=1.0, noise=1e-6, mean=0.0)
    plain, empty = GaussianProcess(kernel="rbf", fixed=fixed).fit(X, f(X)), GradientGP(fixed=fixed).fit(X, f(X))
    assert torch.allclose(plain.posterior(Q)[0], empty.posterior(Q)[0], atol=1e-6)
    rich = GradientGP(fixed=fixed, gradient_noise="none").fit(X, f(X), gradients=slope)
    assert float((rich.posterior(Q)[0] - f(Q)).abs().mean()) < 0.5 * float((plain.posterior(Q)[0] - f(Q)).abs().mean())
    with pytest.raises(ParameterError, match="one derivative per design"): GradientGP().fit(X, y, gradients=slope[:, :1])
    slope[2, 0] = torch.nan
    with pytest.raises(ParameterError, match="row 2"): GradientGP().fit(X, y, gradients=slope)


@pytest.mark.parametrize("call, says", [
    (lambda: GaussianProcess().fit(torch.rand(1, 2), torch.rand(1)), "at least 2"),
    (lambda: GaussianProcess().fit(torch.rand(3, 2), torch.tensor([1.0, float("nan"), 2.0])), "not finite"),
    (lambda: GaussianProcess().fit(torch.rand(3, 2), torch.rand(3), yvar=torch.tensor([0.1, -0.2, 0.1])), "row 1"),
    (lambda: GaussianProcess(noise="none").fit(torch.tensor([[0.1], [0.5], [0.1]]), torch.tensor([1.0, 2.0, 3.0])), "rows 0 and 2"),
    (lambda: GaussianProcess(kernel="matern"), "Did you mean 'matern52'"),
    (lambda: GaussianProcess(noise=-1), "noise=-1"),
    (lambda: GaussianProcess(groups=[(0, 1), (1, 2)]).fit(torch.rand(3, 3), torch.rand(3)), "disjoint"),
    (lambda: GaussianProcess(fixed=dict(outputscale=1)), "lengthscale"),
    (lambda: mixed_kernel(3, [(0, 5)]), "columns among"),
])
def test_bad_data_is_named(call, says):
    with pytest.raises(ParameterError, match=None) as e: call()
    assert says in str(e.value)
    with pytest.raises(StateError): GaussianProcess().posterior(torch.rand(2, 2))


def test_constant_values_are_fitted():
    gp = GaussianProcess().fit(torch.rand(5, 2, generator=torch.Generator().manual_seed(0)), torch.full((5,), 3.0))
    assert torch.allclose(gp.posterior(torch.rand(4, 2))[0], torch.tensor(3.0, dtype=torch.float64), atol=1e-3)


# ---------------------------------------------------------------- acquisitions

def test_the_expected_gain_is_exact():
    rng = np.random.default_rng(0)
    for m in (2, 3, 17):
        a, b = rng.normal(size=m), rng.normal(size=m)
        b[0] = b[-1]                                                               # an equal slope
        assert abs(float(log_expected_gain(a, b).exp()) - gain_by_scanning(a, b)) < 1e-12
    assert torch.isneginf(log_expected_gain([1.0, 1.0], [0.5, 0.5]))


def test_noisy_ei_without_noise_is_ei():
    for seed in range(50):
        model, rng = true_process(0.0, seed)
        Q = torch.as_tensor(rng.random((4, 1, 2)))
        assert torch.allclose(NoisyExpectedImprovement(model).evaluate(Q).exp(), ExpectedImprovement(model).evaluate(Q), atol=1e-6)


def test_improvement_over_the_unknown_best_is_its_definition_and_ei_without_noise():
    "Five beliefs, 40 000 joint draws each: all 30 values within five standard errors and the quadrature's own error."
    for seed in range(5):
        model, rng = true_process(0.2, seed)
        Q = torch.as_tensor(rng.random((6, 1, 2)))
        value = LogNoisyImprovement(model, rng=rng, draws=2048).evaluate(Q).exp()
        f = model.samples(torch.cat([model.X, Q[:, 0]]), 40_000, rng)
        gains = (f[:, 8:] - f[:, :8].amax(1, keepdim=True)).clamp_min(0)
        assert (abs(value - gains.mean(0)) < 5 * gains.std(0) / 200 + 2e-3 * model.scale).all()
        some = torch.arange(8) < 5                                              # only some of the data may be the best: infeasible ones are no rivals
        fewer = LogNoisyImprovement(model, rng=np.random.default_rng(0), among=some, draws=512).evaluate(Q).exp()
        assert (fewer > LogNoisyImprovement(model, rng=np.random.default_rng(0), draws=512).evaluate(Q).exp() - 2e-3 * model.scale).all()
        exact, rng = true_process(0.0, seed)
        assert torch.allclose(LogNoisyImprovement(exact).evaluate(Q).exp(), ExpectedImprovement(exact).evaluate(Q), atol=2e-3 * exact.scale)


def test_stacked_processes_answer_as_each_alone():
    X, y = data(space=BIKE)
    groups = categorical_groups(BIKE)
    gps = [GaussianProcess(groups).fit(X, y * k + k) for k in (1.0, 100.0, -0.01)]
    Q = data(12, seed=1, space=BIKE)[0].reshape(4, 3, -1)
    for several in (gps, [gps[0], GaussianProcess(groups, noise="none").fit(X, y), gps[2]]):          # one form, and two
        stack = ProcessStack(several)
        for k, v in enumerate(stack.posterior(Q)): assert torch.allclose(v, torch.stack([gp.posterior(Q)[k] for gp in several]), rtol=1e-9)


def test_a_refit_starts_where_the_last_one_ended():
    X, y = data(30)
    first = GaussianProcess().fit(X[:28], y[:28])
    warm = GaussianProcess().start_from(first.warmth, 30).fit(X, y)
    cold = GaussianProcess().fit(X, y)
    assert warm._sure and not first._sure and warm.log_posterior > cold.log_posterior - 0.1
    assert warm.warmth[1] == 28 and not GaussianProcess().start_from(first.warmth, 40)._sure, "after a quarter more data it looks around again"


def test_knowledge_gradient_equals_its_simulation_and_is_not_negative():
    "Six beliefs, 250 draws each: all within 4 standard errors (false alarm below 1 in 1000)."
    for seed in range(6):
        model, rng = true_process(0.2, seed)
        designs, pool = torch.as_tensor(rng.random((15, 2))), torch.as_tensor(rng.random((20, 2)))
        values = KnowledgeGradient(model, designs=designs).evaluate(pool[:, None]).exp()
        mean, se = simulated_knowledge_gradient(model, designs, pool[values.argmax()], 250, rng)      # where it is large: no rare event
        assert (values >= 0).all() and abs(float(values.max()) - mean) < 4 * se


def test_acquisitions_score_batches_and_refuse_pairs():
    model, rng = true_process(0.05, 1)
    Q = torch.as_tensor(rng.random((5, 1, 2)))
    for name, (cls, options) in ACQUISITIONS.items():
        if name in ("pes", "jes"): continue
        value = cls(model, None, np.random.default_rng(0), **options).evaluate(Q)
        assert value.shape == (5,) and torch.isfinite(value).all(), name
        assert torch.equal(value, cls(model, None, np.random.default_rng(0), **options).evaluate(Q)), f"{name} is a fixed function of its generator"
    with pytest.raises(ParameterError, match="q=2"): LogExpectedImprovement(model).evaluate(Q.reshape(1, 5, 2)[:, :2])
    aim = TargetImprovement(model, 0.2, -0.5).evaluate(Q).exp()
    draws = model.samples(Q[:, 0], 50_000, rng)
    gains = (0.5 - (draws - 0.2).abs()).clamp_min(0)
    assert (abs(aim - gains.mean(0)) < 5 * gains.std(0) / 50_000**0.5 + 1e-6).all()
    path = ThompsonSampling(model, None, np.random.default_rng(2))
    assert torch.equal(path.evaluate(Q), path.evaluate(Q))


# ---------------------------------------------------------------- inner search

def test_climbers_find_a_known_top_and_walls():
    def f(X): return -(X[..., 0, :] - torch.tensor([0.2, 1.5])).square().sum(-1)
    found, value = climb(f, torch.full((3, 2), 0.5, dtype=torch.float64))
    assert torch.allclose(found, torch.tensor([0.2, 1.0], dtype=torch.float64).expand(3, 2), atol=1e-4)
    held, _ = climb(f, torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([True, False]))
    assert float(held[0, 1]) == 0.5


def test_proposals_are_designs_of_the_space():
    limited = Mixed({**BIKE.fields, "wall": Real(0, 30)}, limits=[Inequality({"wall": 1, "tube": -0.5}, "<=", 0)])
    for space in (BIKE, limited):
        moves, rng = SpaceMoves(space), np.random.default_rng(0)
        sample = torch.cat([moves.sample(64, rng), moves.around(moves.sample(3, rng), 64, rng)])
        assert torch.allclose(space.encode(space.decode(sample)), sample, atol=1e-7)
        x, _ = maximize(lambda X: X[..., 0, :].sum(-1), moves, rng)
        space.validate(space.decode(x[None]))
    with pytest.raises(ParameterError, match="Box or a Mixed"): SpaceMoves(Sequences("ACGT", length=3))


def test_spaces_spread_and_limit():
    assert all((np.histogram(unit_points(32, 2, np.random.default_rng(0), m)[:, 1], 32, (0, 1))[0] == 1).all() for m in ("sobol", "lhs"))
    with pytest.raises(ParameterError): Box([(0, 1)]).sample(3, np.random.default_rng(0), "halton")
    space = Mixed({"a": Real(0, 1), "n": Integer(0, 5), "c": Choice(("x", "y"))}, limits=[Inequality({"a": 5, "n": 1}, "<=", 5)])
    frame = space.sample(200, np.random.default_rng(0), "lhs")
    assert (5 * frame["a"] + frame["n"] <= 5 + 1e-9).all() and Space.from_json(space.to_json()) == space
    moved = space.decode(torch.as_tensor(np.random.default_rng(1).random((100, 4))))
    space.validate(moved)
    with pytest.raises(DesignError, match="breaks the limit"): space.validate(pd.DataFrame({"a": [1.0], "n": [5], "c": ["x"]}))
    with pytest.raises(ParameterError, match="choice"): Mixed(space.fields, limits=[Inequality({"c": 1}, "<=", 0)])
    with pytest.raises(ParameterError, match="leave 0 of"): Mixed({"a": Real(0, 1)}, limits=[Inequality({"a": 1}, ">=", 2)]).sample(2, np.random.default_rng(0))


# ---------------------------------------------------------------- the optimizer

LINE = Problem("line", Box([(0, 1)] * 2), Objective("y"), function=lambda x, fidelity, rng: torch.sin(3 * x[:, 0]) * x[:, 1])
LIMITED = Problem("limited", Box([(0, 1)] * 2), Objective("y"), [Constraint("c", "<=", 0.2)],
                  function=lambda x, fidelity, rng: {"y": x.sum(1), "c": (x[:, 0] - 0.9).abs() + (x[:, 1] - 0.1).abs()})


def test_it_finds_the_top_and_recommends_it():
    search = BayesianOptimizer(LINE)
    trials = optimize(LINE, search, 14, 1, progress=False)
    assert trials.utilities.max() > 0.99
    x = search.recommend()
    LINE.space.validate(x)
    said = search.predict(x)
    assert said["y"][0] > 0.97 and said["y high"][0] - said["y low"][0] < 0.3
    assert search.acquisition_value(x).shape == (1,)


def test_what_is_maximized_follows_the_curve():
    rng = np.random.default_rng(0)
    rows = BayesianOptimizer(LINE)
    x = LINE.space.sample(20, rng)
    rows.tell(x, LINE.evaluate(x))
    steep = Problem("steep", LINE.space, Objective("y"), function=lambda x, fidelity, rng: -torch.exp(12 * (x - 0.3).square().sum(1)))
    bent = BayesianOptimizer(steep)
    bent.tell(x, steep.evaluate(x))
    assert np.isinf(rows.belief.bend.scale) and rows.belief.utility.kernel == "rbf"
    assert np.isfinite(bent.belief.bend.scale) and bent.belief.utility.kernel == "matern52"
    same = BayesianOptimizer(steep, "logei")
    same.tell(x, steep.evaluate(x))
    assert torch.equal(bent.acquisition_value(x), same.acquisition_value(x))
    assert BayesianOptimizer(LINE, surrogate=dict(kernel="matern52")).surrogate["kernel"] == "matern52"


def test_constraints_are_searched_for_and_kept():
    search = BayesianOptimizer(LIMITED, seed=2)
    trials = optimize(LIMITED, search, 16, 1, progress=False)
    assert trials.utilities.max() > 1.1                                         # the best feasible value is 1.2, feasible is 4 % of the square
    x = search.recommend()
    assert bool(LIMITED.feasible(LIMITED.evaluate(x))) and 0 <= float(search.feasibility(x)) <= 1


CLIFF = Problem("cliff", Box([(0, 1)] * 2), Objective("y"), [Constraint("g", "<=", 0.5)],
                function=lambda x, fidelity, rng: {"y": 10 * x[:, 0] ** 2 + x[:, 1], "g": x[:, 0]})      # the best values are forbidden; the best allowed one is 3.5


@pytest.mark.parametrize("acquisition", ["plugin", "aei", "ei_noisy", "kg"])
def test_forbidden_designs_are_no_incumbent(acquisition):
    "Eight shared measurements, of which the best is forbidden; one seed, six proposals. A search that takes it for the incumbent stays above a regret of 1."
    x = CLIFF.space.sample(8, np.random.default_rng(3), "sobol")
    search = BayesianOptimizer(CLIFF, acquisition, bend=False, candidates=128, initial=2)
    search.tell(x, CLIFF.evaluate(x))
    optimize(CLIFF, search, 6, 1, progress=False)
    assert search.utilities.max() > 3.4


def test_only_feasible_data_and_likely_designs_may_be_the_best():
    search = BayesianOptimizer(CLIFF, bend=False, noise="none", initial=2)
    x = CLIFF.space.sample(8, np.random.default_rng(3), "sobol")
    search.tell(x, CLIFF.evaluate(x))
    b, rng = search.belief, np.random.default_rng(0)
    for name in ("plugin", "aei", "lognei", "logei"):
        cls, options = ACQUISITIONS[name]
        assert cls(b.utility, None, rng, among=b.among, **options).best <= float(b.utility.y[b.among].max()) + 1e-3 < float(b.utility.y.max()) - 1, name
    assert torch.equal(NoisyExpectedImprovement(b.utility, among=b.among).designs, b.utility.X[b.among])
    kg = KnowledgeGradient(b.utility, among=b.among, likely=b.log_feasibility)
    kept = (torch.cdist(kg.designs, b.utility.X[b.among]) < 1e-9).any(1)
    assert ((b.log_feasibility(kg.designs) >= np.log(0.5)) | kept).all() and kg.designs[:, 0].max() < 0.7
    alone = KnowledgeGradient(b.utility, among=b.among, designs=b.utility.X[b.among], likely=b.log_feasibility)
    Q = torch.as_tensor(rng.random((20, 1, 2)))
    assert torch.allclose(alone.evaluate(Q), NoisyExpectedImprovement(b.utility, among=b.among).evaluate(Q)), "with the measured designs alone it is noisy EI"


def test_targets_minima_mixed_fields_and_batches():
    aim = Problem("aim", Box([(0, 1)] * 2), Objective("y", 0.4), function=LINE._function)
    assert optimize(aim, BayesianOptimizer(aim), 12, 1, progress=False).utilities.max() > -0.02
    bike = Problem("bike", BIKE, Objective("loss", "minimize"), function=lambda f, fidelity, rng: ((f["tube"] - 41) / 20) ** 2 + ((f["spokes"] - 27) / 10) ** 2
                   + 0.3 * (f["material"] != "carbon").to_numpy(float, copy=True))
    for batch, rounds in (("believer", 5), ("joint", 3)):
        search = BayesianOptimizer(bike, batch=batch, candidates=128)
        trials = optimize(bike, search, rounds, 4, progress=False)
        assert trials.utilities.max() > -0.2 and len(set(BIKE.keys(trials.designs))) == 4 * rounds
    coins = Problem("coins", Mixed({"a": Choice((0, 1)), "b": Choice((0, 1, 2))}), Objective("y"), function=lambda f, fidelity, rng: (f["a"] + f["b"]).to_numpy(float, copy=True))
    tiny = optimize(coins, BayesianOptimizer(coins, initial=2), 6, 1, progress=False)
    assert len(set(coins.space.keys(tiny.designs))) == 6, "in a space of six designs no design is proposed twice"


def test_noise_variances_and_gradients_are_used():
    search = BayesianOptimizer(LINE, seed=1)
    x = search.ask(6)
    y = LINE.evaluate(x)
    search.tell(x, y, yvar=torch.full((6,), 0.01))
    assert search.belief.utility.noise_variance == pytest.approx(0.01)
    with pytest.raises(OutcomeError, match="all or for none"): search.tell(x, y)
    slope = torch.stack([3 * torch.cos(3 * x[:, 0]) * x[:, 1], torch.sin(3 * x[:, 0])], 1)
    other = BayesianOptimizer(LINE, seed=1)
    other.tell(x, y, gradients=slope)
    assert isinstance(other.belief.utility, GradientGP)
    assert len(other.ask(2)) == 2
    with pytest.raises(OutcomeError, match="one derivative"): other.tell(x, y, gradients=slope[:3])


@pytest.mark.parametrize("make, says", [
    (lambda: BayesianOptimizer(Problem("w", Sequences("ACGT", length=3), Objective("y"))), "Box or a Mixed"),
    (lambda: BayesianOptimizer(LINE, "log_ei"), "Did you mean 'logei'"),
    (lambda: BayesianOptimizer(LINE, noise=-1.0), "noise"),
    (lambda: BayesianOptimizer(LINE, batch="greedy"), "batch"),
    (lambda: BayesianOptimizer(LIMITED, "ucb"), "constraints"),
    (lambda: BayesianOptimizer(Problem("t", Box([(0, 1)]), Objective("y", 1.0)), "kg"), "target"),
    (lambda: BayesianOptimizer(LINE, initial=1), "initial"),
    (lambda: BayesianOptimizer(LINE, budget=3).ask(4), "budget of 3"),
    (lambda: BayesianOptimizer(LINE).recommend(), "at least 2"),
    (lambda: BayesianOptimizer(Problem("b", Box({"a": (1, float("inf"))}), Objective("y"))), "finite"),
    (lambda: BayesianOptimizer(Problem("b", Box({"a": (2, 1)}), Objective("y"))), "first must be below"),
    (lambda: Environments(torch.zeros(2, 1), [0.7, 0.7]), "sum"),
    (lambda: TaskGP(torch.ones(2)).fit(torch.rand(3, 1), torch.tensor([0, 1, 2]), torch.rand(3)), "below 2"),
])
def test_bad_arguments_are_named(make, says):
    with pytest.raises((ParameterError, StateError)) as e: make()
    assert says in str(e.value)


def test_bad_outcomes_are_named_and_change_nothing():
    search, x = BayesianOptimizer(LIMITED, noise="none"), torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    bad = [(Outcomes([[1.0, float("inf")], [1.0, 0.0]], ("y", "c")), "row 0"), (Outcomes([1.0, 2.0], ("y",)), "lack ['c']")]
    for outcomes, says in bad:
        with pytest.raises(OutcomeError) as e: search.tell(x, outcomes)
        assert says in str(e.value)
    search.tell(x, Outcomes([[1.0, 0.0], [2.0, 0.0]], ("y", "c")))
    with pytest.raises(OutcomeError, match="same design"): search.tell(x[:1], Outcomes([[1.5, 0.0]], ("y", "c")))
    with pytest.raises(OutcomeError, match="variances"): BayesianOptimizer(LINE).tell(x, Outcomes([1.0, 2.0], ("y",)), yvar=[0.1, -0.1])
    assert len(search) == 2


def test_runs_that_failed_are_learnt_from():
    "Runs beyond x0 = 0.6 fail without a value, also without one of the second constraint: they are told, not repeated, and the top of the allowed part is found."
    works = Problem("works", Box([(0, 1)] * 2), Objective("y"), [Constraint("worked", ">=", 0.5), Constraint("heat", "<=", 2.0)])
    def run(x):
        fails, y, heat = x[:, 0] > 0.6, -(x - torch.tensor([0.5, 0.3])).square().sum(1), x.sum(1)
        return Outcomes(torch.stack([y, (~fails).double(), heat], 1).masked_fill(fails[:, None] & torch.tensor([True, False, True]), torch.nan), works.outcome_names)
    search = BayesianOptimizer(works, seed=1, candidates=128)
    for _ in range(12):
        x = search.ask(1)
        search.tell(x, run(x))
    outcomes = search.history_outcomes
    assert len(search) == 12 and 2 <= int(outcomes["y"].isnan().sum()) <= 8 and torch.equal(outcomes["y"].isnan(), search.history_designs[:, 0] > 0.6)
    assert torch.cdist(search.history_designs, search.history_designs)[~torch.eye(12, dtype=torch.bool)].min() > 1e-3, "no design comes twice"
    assert search.utilities.max() > -0.05 and bool((search.recommend()[:, 0] <= 0.6).all())
    assert len(search.belief.utility.y) == int(outcomes["y"].isfinite().sum()) and len(search.belief.slacks[0].y) == 12
    assert search.predict(search.history_designs)["y"].notna().all()
    twin = pickle.loads(pickle.dumps(search))
    assert torch.equal(twin.ask(2), search.ask(2))


def test_failures_alone_are_a_search_for_feasible_designs():
    works = Problem("works", Box([(0, 1)] * 2), Objective("y"), [Constraint("worked", ">=", 0.5)])
    search, x = BayesianOptimizer(works, initial=2, candidates=128), torch.tensor([[0.5, 0.5], [0.6, 0.5], [0.5, 0.4]])
    search.tell(x, Outcomes([[float("nan"), 0.0]] * 3, ("y", "worked")))
    assert search.belief.utility is None and search.recommend().shape == (1, 2)
    assert torch.cdist(search.ask(2).double(), x.double()).min() > 0.2, "it looks away from where all failed"
    with pytest.raises(StateError, match="0 of 3 runs"): search.predict(x)
    search.tell(torch.tensor([[0.1, 0.1]]), Outcomes([[1.0, 1.0]], ("y", "worked")))
    assert torch.equal(search.recommend().float(), torch.tensor([[0.1, 0.1]])) and search.ask(1).shape == (1, 2)
    search.tell(torch.tensor([[0.2, 0.1]]), Outcomes([[1.5, 1.0]], ("y", "worked")))
    assert search.belief.utility is not None and search.ask(1).shape == (1, 2)
    with pytest.raises(OutcomeError, match="row 1 has the value nan for 'y'.*takes NaN only"): search.tell(x[:2], Outcomes([[1.0, 1.0], [float("nan"), 1.0]], ("y", "worked")))
    assert len(search) == 5
    with pytest.raises(OutcomeError, match=r"Constraint\('worked'"): BayesianOptimizer(LINE).tell(x, Outcomes([1.0, float("nan"), 2.0], ("y",)))


def test_runs_under_way_are_not_proposed_again():
    search = BayesianOptimizer(LINE, seed=1, noise="none", candidates=128)
    x = search.ask(6)
    search.tell(x, LINE.evaluate(x))
    before = pickle.dumps(search)
    first = search.ask(1)
    second = search.ask(1, pending=first)
    third = search.ask(1, pending=torch.cat([first, second]))
    assert torch.cdist(third, torch.cat([first, second])).min() > 0.02 and float((second - first).norm()) > 0.02
    twin = pickle.loads(before)
    assert torch.equal(twin.ask(1, pending=None), first)
    with pytest.raises(DesignError): twin.ask(1, pending=torch.tensor([[0.5, 2.0]]))


@pytest.mark.parametrize("make, says", [
    (lambda: BayesianOptimizer(Box([(0, 1)])), "problem is a Box"),
    (lambda: BayesianOptimizer(Problem("two", Box([(0, 1)]), [Objective("y"), Objective("z")])), "MultiFidelityParetoBO"),
    (lambda: BayesianOptimizer(Problem("bike", BIKE, Objective("y")), "pes"), "choices"),
    (lambda: BayesianOptimizer(LINE, "kg", batch="joint"), "batch='believer'"),
    (lambda: BayesianOptimizer(Problem("t", Box([(0, 1)]), Objective("y", 1.0)), batch="joint"), "target 1"),
    (lambda: BayesianOptimizer(LINE, "qlogei", batch="joint", options=dict(draws=3)), "draws"),
    (lambda: BayesianOptimizer(LINE).tell(torch.tensor([[0.1, 0.2], [0.1, 0.2]]), Outcomes([1.0, 5.0], ("y",)), yvar=[0.0, 0.0]), "both are exact"),
    *[(lambda options=options: BayesianOptimizer(LINE, **options).tell(torch.rand(2, 2), Outcomes([1.0, 5.0], ("y",)), gradients=torch.ones(2, 2)), says) for options, says in
      ((dict(acquisition="jes"), "acquisition='jes'"), (dict(batch="joint"), "batch='joint'"), (dict(surrogate=dict(hyperparameters="bayes")), "hyperparameters='bayes'"),
       (dict(surrogate=dict(kernel="matern52")), "kernel='matern52'"))],
])
def test_what_is_not_honoured_is_refused(make, says):
    with pytest.raises((ParameterError, OutcomeError)) as e: make()
    assert says in str(e.value)


def test_values_that_are_not_exact_may_differ_at_one_design():
    search = BayesianOptimizer(LINE)
    search.tell(torch.tensor([[0.1, 0.2], [0.1, 0.2]]), Outcomes([1.0, 5.0], ("y",)), yvar=[0.0, 1.0])
    with pytest.raises(OutcomeError, match="rows 0 and 2"): search.tell(torch.tensor([[0.1, 0.2]]), Outcomes([2.0], ("y",)), yvar=[0.0])


@pytest.mark.parametrize("acquisition", ["kg", "ts"])
def test_sets_of_designs_are_designs_of_a_mixed_space(acquisition):
    limited = Mixed({**BIKE.fields, "wall": Real(0, 30)}, limits=[Inequality({"wall": 1, "tube": -0.5}, "<=", 0)])
    X, y = data(space=limited)
    every = torch.ones(len(y), dtype=torch.bool)
    belief = Belief(GaussianProcess(categorical_groups(limited)).fit(X, y), Bend(), [], X, every, every)
    scored = score_of(belief, acquisition, np.random.default_rng(0), moves=SpaceMoves(limited)).__self__
    designs = scored.designs if acquisition == "kg" else scored.path.X
    assert len(designs) >= 64 and torch.allclose(limited.encode(limited.decode(designs)), designs, atol=1e-6)


def test_warnings_for_many_fields_and_constant_values():
    with pytest.warns(UserWarning, match="21 fields"): BayesianOptimizer(Problem("wide", Box([(0, 1)] * 21), Objective("y")))
    flat = Problem("flat", Box([(0, 1)]), Objective("y"), function=lambda x, fidelity, rng: torch.zeros(len(x)))
    with pytest.warns(UserWarning, match="cannot be told apart"): optimize(flat, BayesianOptimizer(flat), 7, 1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        BayesianOptimizer(LINE)


def test_bending_is_undone():
    u = torch.tensor([-100.0, -3.0, -1.0], dtype=torch.float64)
    bend = Bend(-1.0, 2.0)
    assert torch.allclose(bend.inverse(bend(u)), u) and (bend(u).diff() > 0).all()
    h = 1e-6
    assert torch.allclose(bend.log_slope(u[:2]), ((bend(u[:2] + h) - bend(u[:2] - h)) / (2 * h)).log(), atol=1e-6)


def test_averages_over_environments():
    X, y = data(15)
    gp, sky = GaussianProcess().fit(X, y), Environments(torch.tensor([[0.1], [0.9]]), [0.25, 0.75])
    x = torch.tensor([[0.3], [0.6]], dtype=torch.float64)
    mean, variance = integrated_moments(gp, sky, x)
    draws = gp.samples(sky.pairs(x).reshape(-1, 2), 40_000, np.random.default_rng(0)).reshape(-1, 2, 2) @ sky.weights
    assert (abs(draws.mean(0) - mean) < 5 * variance.sqrt() / 200).all() and torch.allclose(draws.var(0), variance, rtol=0.05)
    gain = integrated_knowledge_gradient(gp, sky, x, sky.pairs(x).reshape(-1, 2))
    assert gain.shape == (4,) and torch.isfinite(gain).all()


def test_the_laboratory_speaks_with_it(tmp_path):
    from designloop.core.laboratory import Laboratory
    lab = Laboratory(BayesianOptimizer(LIMITED, seed=0), tmp_path / "lab")
    for k in range(4):                                                          # the first sheets know nothing yet, the last predicts
        lab.ask(2)
        table = lab.runs.frame
        designs = [table.loc[table["run"] == r, LIMITED.space.names].to_numpy(float)[0] for r in (2 * k + 1, 2 * k + 2)]
        out = LIMITED.evaluate(torch.tensor(np.array(designs)))
        lab.tell(pd.DataFrame({"run": [2 * k + 1, 2 * k + 2], "y": out["y"].numpy(), "c": out["c"].numpy()}))
    recipe = lab.ask(1).frame
    assert "chance of failure" in recipe and any("expected" in c for c in recipe)
    said = lab.optimizer.predict(LIMITED.space.sample(5, np.random.default_rng(0)))
    assert (said["y low"] <= said["y"]).all() and (said["y"] <= said["y high"]).all() and said["chance of failure"].between(0, 1).all()


def test_the_data_choose_a_curve_for_slacks():
    X = torch.as_tensor(np.random.default_rng(0).random((30, 2)))
    wall = torch.exp(12 * X[:, 0]) - 400 * X[:, 1]                                       # spans decades on one side
    def make(scale): return GaussianProcess(kernel="rbf" if math.isinf(scale) else "matern52")
    assert not math.isinf(fit_bent(X, wall, make, about="bound")[1].scale)
    assert math.isinf(fit_bent(X, X.sum(1) - 1, make, about="bound")[1].scale)           # a plane is left alone
    with pytest.raises(ParameterError, match="about"): fit_bent(X, wall, make, about="edge")
    problem = Problem("p", Box([(0, 1)] * 2), Objective("y"), [Constraint("g", ">=", 0.0), Constraint("worked", ">=", 0.5)])
    opt = BayesianOptimizer(problem, seed=0)
    opt.tell(X, Outcomes(torch.stack([X[:, 0], wall, (X[:, 1] > 0.4).double()], 1), ("y", "g", "worked")))
    assert [gp._form.kernel for gp in opt.belief.slacks] == ["matern52", "matern52"] and float(opt.belief.slacks[0].y.max()) < 0.5 * float(wall.max())
    assert torch.equal(opt.belief.slacks[1].y, (X[:, 1] > 0.4).double() - 0.5), "a label is a step, which no curve changes"


def test_a_constraint_that_contradicts_itself_is_refused_before_it_is_remembered():
    works = Problem("works", Box([(0, 1)] * 2), Objective("y"), [Constraint("worked", ">=", 0.5)])
    search, x = BayesianOptimizer(works, noise="none"), torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    search.tell(x, Outcomes([[1.0, 1.0], [2.0, 1.0]], ("y", "worked")))
    with pytest.raises(OutcomeError, match="worked of the same design was measured as 1 and as 0"): search.tell(x[:1], Outcomes([[float("nan"), 0.0]], ("y", "worked")))
    assert len(search) == 2 and search.ask(1).shape == (1, 2)


@pytest.mark.parametrize("option, acquisition", [({"noisy": True}, "nei"), ({"about": "pes"}, "mes")])
def test_what_names_an_acquisition_is_no_option_of_it(option, acquisition):
    with pytest.raises(ParameterError, match="options"): BayesianOptimizer(LINE, acquisition, options=option)


def test_a_search_saved_before_slacks_had_curves_goes_on():
    bounded = Problem("bounded", Box([(0, 1)] * 2), Objective("y"), [Constraint("g", ">=", 0.2)], function=lambda x, f, r: {"y": x[:, 0], "g": x[:, 1]})
    search = BayesianOptimizer(bounded, candidates=64)
    for _ in range(2):
        x = search.ask(6)
        search.tell(x, bounded.evaluate(x))
    state, belief = dict(vars(search)), copy.copy(search.belief)
    del belief.measured, belief.X
    gp = search.belief.slacks[0]
    old = BayesianOptimizer.__new__(BayesianOptimizer)
    old.__setstate__({**state, "_warm": {bounded.constraints[0]: gp.warmth}, "_fitted": (len(search), belief)})
    assert old.ask(1).shape == (1, 2) and torch.equal(old.recommend(), search.recommend())
