"""The boxing gym: inference and information against closed forms, ten worlds, what a session refuses, scientists and what they say."""
import numpy as np
import pytest
from scipy import stats as sp
from scipy.special import logsumexp

from designloop.agents.box_apprentice import BoxApprentice, ProgramError, fit_program
from designloop.agents.scientists import (
    AsAgent,
    BayesExperimenter,
    CurveExperimenter,
    Experimenter,
    LMExperimenter,
    LMNovice,
    LMScientist,
    TemplateNovice,
    answer_text,
    trim,
    written,
)
from designloop.core.episodes import rollout
from designloop.core.errors import BudgetExceeded, DesignError, DesignLoopError, ParameterError, StateError
from designloop.core.sandbox import Sandbox
from designloop.core.seeds import cap_threads
from designloop.evaluators.boxing_gym import Referee, ScientistEvaluation, discovery_score, eig_regret, investigate, standardised_error
from designloop.lm.protocol import FunctionLM
from designloop.lm.wrappers import Metered
from designloop.models.curve_families import Scales, candidates, discover, fit_family
from designloop.models.particles import (
    InferenceRefused,
    ParticlePosterior,
    effective_size,
    eig_entropy,
    eig_enumerated,
    eig_nmc,
    expected_information,
    particle_posterior,
    psis_loo,
    smooth_weights,
    systematic_resample,
)
from designloop.tasks.boxing_gym import GOALS, BoxingText, Goal, Session, boxing_goal, told
from designloop.tasks.boxing_worlds import WORLDS, boxing_world

cap_threads(1)
ALL = [(w, g) for w, goals in GOALS.items() for g in goals]


# --- particles ---------------------------------------------------------------------------------------------------------

class Line:
    "y = theta x + N(0, 0.5²), theta ~ N(0, 1)."
    def prior_sample(self, n, rng): return rng.standard_normal((n, 1))
    def logprior(self, theta): return sp.norm.logpdf(theta[..., 0])
    def loglik(self, theta, x, y): return sp.norm.logpdf(y, theta[..., 0] * x[..., 0], 0.5)
    def sample_obs(self, theta, x, rng):
        mean = theta[..., 0] * x[..., 0]
        return mean + 0.5 * rng.standard_normal(mean.shape)


class Counts:
    "Binomial of 4 with one of three rates: everything can be listed."
    rates = np.array([0.2, 0.5, 0.9])
    def p(self, theta, x): return self.rates[theta[..., 0].astype(int)] * x[..., 0]
    def loglik(self, theta, x, y): return sp.binom.logpmf(y, 4, self.p(theta, x))
    def sample_obs(self, theta, x, rng): return rng.binomial(4, self.p(theta, x)).astype(float)


def test_nested_monte_carlo_against_enumeration_by_hand():
    x, theta = np.array([[0.3], [1.0]]), np.repeat(np.arange(3.0), 400)[:, None]
    by_hand = []
    for d in (0.3, 1.0):                                                       # mutual information from the 3 x 5 table
        p = np.array([sp.binom.pmf(range(5), 4, r * d) for r in Counts.rates]) / 3
        by_hand.append((p * (np.log(p) - np.log(p.sum(0)) - np.log(1 / 3))).sum())
    assert np.allclose(eig_enumerated(Counts(), x, theta, range(5)).value, by_hand)
    found = eig_nmc(Counts(), x, theta, n_outer=6000, n_inner=400, rng=0)
    assert np.all(np.abs(found.value - by_hand) < 4 * found.se + 0.005) and np.all(found.se > 0)


def test_bias_is_positive_and_falls_as_one_over_m():
    prior, exact = Line().prior_sample(20_000, np.random.default_rng(0)), 0.5 * np.log1p(9 / 0.25)
    bias = {m: eig_nmc(Line(), [[3.0]], prior, 5000, m, m).value[0] - exact for m in (5, 20, 80)}
    assert bias[5] > bias[20] > bias[80] > 0 and 2 < bias[20] / bias[80] < 8
    low = {m: eig_nmc(Line(), [[3.0]], prior, 5000, m, m).lower[0] for m in (5, 20, 80)}
    assert low[5] < low[20] < low[80] < exact + 0.03 and all(v <= np.log(m + 1) for m, v in low.items())
    se = eig_nmc(Line(), [[3.0]], prior, 5000, 20, 1).se[0]                     # its own statement about its noise is right
    spread = np.std([eig_nmc(Line(), [[3.0]], prior, 300, 20, s).value[0] for s in range(60)])
    assert 0.7 < spread / (se * np.sqrt(5000 / 300)) < 1.4


def test_posterior_is_the_conjugate_one_by_weights_and_by_moves():
    rng = np.random.default_rng(5)
    X = rng.uniform(0.5, 2, (120, 1))
    Y = Line().sample_obs(np.array([-0.7]), X, rng)
    for n, method in ((2, "importance"), (120, "smc")):
        var = 1 / (1 + (X[:n] ** 2).sum() / 0.25)
        mean = var * (X[:n, 0] @ Y[:n]) / 0.25
        cloud = particle_posterior(Line(), X[:n], Y[:n], 1, n_prior=3000, n_particles=1500)
        draws = cloud.sample(3000)[:, 0]
        assert cloud.method == method and abs(draws.mean() - mean) < 0.2 * var**0.5 and 0.85 < draws.std() / var**0.5 < 1.15
    assert cloud.acceptance > 0.1 and cloud.stages > 0 and "smc" in repr(cloud)


def test_particles_refuse_rather_than_pretend():
    X, Y = np.full((60, 1), 2.0), np.full(60, 1.6)
    with pytest.raises(InferenceRefused, match=r"effective sample size is \d+ of 2000 particles, fewer than min_ess=200"): particle_posterior(Line(), X, Y, 0, n_prior=2000,
        n_particles=500, moves=False)
    class Never(Line):
        def loglik(self, theta, x, y): return np.full(np.broadcast_shapes(theta.shape[:-1], x.shape[:-1]), -np.inf)
    with pytest.raises(InferenceRefused, match="impossible for all"): ParticlePosterior(Never(), 0, n_prior=500, n_particles=300).update([1.0], 1.0)
    with pytest.raises(ParameterError, match="not finite"): ParticlePosterior(Line()).update([np.nan], 1.0)
    with pytest.raises(ParameterError, match="2 designs and Y has 1"): particle_posterior(Line(), [[1.0], [2.0]], [1.0])


@pytest.mark.parametrize("options, name", [({"n_inner": 0}, "n_inner"), ({"n_outer": 1}, "n_outer"), ({"n_inner": 2.5}, "n_inner")])
def test_too_few_draws_are_refused(options, name):
    with pytest.raises(ParameterError, match=name): eig_nmc(Line(), [[1.0]], np.zeros((10, 1)), **options)
    with pytest.raises(ParameterError, match=name): expected_information(Line(), [[1.0]], np.zeros((10, 1)), **options)


@pytest.mark.parametrize("estimate", [eig_nmc, expected_information, lambda m, x, p: eig_enumerated(Counts(), x, p, range(5))])
def test_designs_without_rows_are_refused(estimate):
    with pytest.raises(ParameterError, match=r"x has shape \(3,\); encoded designs are \[D, p\]"): estimate(Line(), [1.0, 2.0, 3.0], np.zeros((10, 1)))


def test_small_things_of_particles():
    with pytest.raises(ParameterError, match="at least 2"): eig_nmc(Line(), [[1.0]], np.zeros((1, 1)))
    with pytest.raises(ParameterError, match="sum to"): eig_enumerated(Counts(), [[1.0]], np.zeros((3, 1)), range(4))
    assert effective_size(np.full(3, -np.inf)) == 0 and np.isclose(eig_entropy(np.zeros((1, 5))).value[0], 0)
    counts = np.bincount(systematic_resample(np.log([0.5, 0.25, 0.25]), 8, np.random.default_rng(0)))
    assert counts.tolist() == [4, 2, 2]
    found = expected_information(Line(), [[1.0], [1.0]], np.random.default_rng(0).standard_normal((50, 1)), 50, 5, 0, settled=np.array([False, True]))
    assert found.value[0] > 0 and found.value[1] == found.se[1] == 0


def test_leave_one_out_agrees_with_refits_and_warns_about_heavy_tails():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, 15)
    Y = 0.5 * X + 0.5 * rng.standard_normal(15)
    def posterior(X, Y):
        v = 1 / (1 + X @ X / 0.25)
        return v * (X @ Y) / 0.25, v
    m, v = posterior(X, Y)
    draws = m + v**0.5 * rng.standard_normal((6000, 1))
    loo = psis_loo(sp.norm.logpdf(Y, draws * X, 0.5))
    exact = np.array([sp.norm.logpdf(Y[i], a * X[i], np.sqrt(0.25 + b * X[i] ** 2)) for i in range(15) for a, b in [posterior(np.delete(X, i), np.delete(Y, i))]])
    assert np.abs(loo.pointwise - exact).max() < 0.03 and loo.khat.max() < 0.5 and np.isclose(loo.elpd, loo.pointwise.sum())
    wrong = m + 0.3 + 2 * v**0.5 * rng.standard_normal((6000, 1))                       # draws from elsewhere, with the ratio that says so
    ratio = sp.norm.logpdf(wrong[:, 0], m, v**0.5) - sp.norm.logpdf(wrong[:, 0], m + 0.3, 2 * v**0.5)
    assert abs(psis_loo(sp.norm.logpdf(Y, wrong * X, 0.5), ratio).elpd - exact.sum()) < 0.1
    assert smooth_weights(np.log(1 / rng.random(4000)))[1] > 0.7 and np.isclose(logsumexp(smooth_weights(rng.standard_normal(500))[0]), 0)
    with pytest.raises(ParameterError, match="25 draws"): psis_loo(np.zeros((10, 3)))


# --- worlds ------------------------------------------------------------------------------------------------------------

def test_priors_have_their_moments():
    rng, n = np.random.default_rng(0), 40_000
    draw = {name: boxing_world(name).prior_sample(n, rng) for name in WORLDS}
    def close(values, mean, sd): return abs(values.mean() - mean) < 5 * sd / n**0.5 and abs(values.std() / sd - 1) < 0.02
    d = draw["hyperbolic_discounting"]
    assert close(d[:, 0], -4.25, 0.5) and close(d[:, 1], 2 * np.sqrt(2 / np.pi), 2 * np.sqrt(1 - 2 / np.pi)) and (d[:, 1] > 0).all()
    t = sp.truncnorm(-1, 1, 1, 1)
    assert close(draw["death_process"][:, 0], t.mean(), t.std())
    s = draw["location_finding"]
    assert close(s.ravel(), 0, 1) and (np.diff(s[:, ::2], axis=1) >= 0).all()
    rate = np.exp(draw["survival"][:, 0])
    assert abs(rate.mean() - 1) < 0.1 and abs(sp.kstest(rate[rate > 0], sp.gamma(0.1, scale=10).cdf).statistic) < 0.02 and close(draw["survival"][:, 1], 10 * np.sqrt(2 / np.pi),
        10 * np.sqrt(1 - 2 / np.pi))
    for name, means, sds in (("dugongs", (2, 1.5, 0.4), (0.2, 0.5, 0.5)), ("peregrines", (4.5, 1.2, 0.07, -0.24), (0.1, 0.1, 0.01, 0.05)),
        ("predator_prey", (0.1, 0.02, 0.4, 0.01), (0.01, 0.01, 0.04, 0.001))):
        assert all(close(draw[name][:, i], m, sd) for i, (m, sd) in enumerate(zip(means, sds, strict=True)))
    m = dict(zip(boxing_world("moral_machines").parameters, draw["moral_machines"].mean(0), strict=True))
    assert abs(m["count"] - 0.7) < 0.01 and abs(m["intervention"] + 0.3) < 0.01 and abs(m["gender"] + 0.3) < 0.01
    e = draw["emotions"]
    assert close(e[:, 0], 4.5, 0.1) and close(e[:, 8], 0.04, 0.01) and close(e[:, 32:].ravel(), np.sqrt(2 / np.pi), np.sqrt(1 - 2 / np.pi))


@pytest.mark.parametrize("name", WORLDS)
def test_prior_densities_are_densities(name):
    "Importance sampling from a widened prior sample gives back the expectation under the prior: E[w] = 1 for w = p/q."
    world, rng = boxing_world(name), np.random.default_rng(1)
    draws = world.prior_sample(4000, rng)
    assert np.isfinite(world.logprior(draws)).all() and world.logprior(draws + 1e4).max() == -np.inf or world.logprior(draws + 1e4).max() < -1e4
    if name in ("emotions", "irt", "location_finding"): return                      # too many dimensions for this check
    mean, sd = draws.mean(0), draws.std(0) * 1.3
    x = mean + sd * rng.standard_t(4, (60_000, len(mean)))
    w = np.exp(world.logprior(x) - sp.t.logpdf((x - mean) / sd, 4).sum(1) + np.log(sd).sum())
    if name != "survival": assert abs(w.mean() - 1) < 0.05
    assert np.isfinite(w).all()


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_repeats_and_facts_stay_facts(name):
    first, again = (boxing_world(name).reset(7) for _ in range(2))
    assert np.array_equal(first.theta, again.theta)
    design = first.sample_design(np.random.default_rng(0))
    once, twice = first.step(design), first.step(design)
    assert np.array_equal(once, again.step(design))
    if first.facts: assert once == twice and first.settled(first.encode(design)[None], first.encode(design)[None])[0]
    with pytest.raises(StateError, match="reset"): boxing_world(name).step(design)
    assert np.array_equal(first.encode(first.parse(written(design))), first.encode(design))


def test_known_values_of_the_models():
    d = boxing_world("hyperbolic_discounting")
    assert np.isclose(d.expected(np.array([np.log(0.01), 2.0]), np.array([50.0, 100, 100])), 0.5)           # 100 / (1 + 0.01 * 100) = 50
    s = boxing_world("location_finding")
    at = np.array([0.0, 0.0, 1.0, 0.0, 2.0, 0.0])
    assert np.isclose(s.expected(at, np.array([0.0, 0.0])), 0.1 + 1e4 + 1 / 1.0001 + 1 / 4.0001)
    assert np.isclose(boxing_world("location_finding", log_signal=True).expected(at, np.zeros(2)), np.log(0.1 + 1e4 + 1 / 1.0001 + 1 / 4.0001))
    death = boxing_world("death_process")
    assert np.allclose(death.loglik(np.array([0.8]), np.array([0.5]), np.arange(51.0)), sp.binom.logpmf(range(51), 50, 1 - np.exp(-0.4)))
    p = boxing_world("peregrines")
    assert np.isclose(p.loglik(np.array([4.5, 1.2, 0.07, -0.24]), np.array([1.0]), 250.0), sp.poisson.logpmf(250, np.exp(4.5 + 1.2 + 0.07 - 0.24)))
    three = boxing_world("irt", model="3PL")
    theta = np.zeros(24); theta[18:] = 0.2
    assert np.isclose(three.expected(theta, np.array([1.0, 1.0])), 0.6) and len(boxing_world("irt", model="1PL").parameters) == 12
    v = boxing_world("survival").reset(0)
    assert (v.expected(v.prior_sample(2000, np.random.default_rng(0))[:, None], np.array([[9.0, 1.0, -1.0]])[None]) >= 0.5).all()
    m = boxing_world("moral_machines")
    x = m.encode((("boy", "dog"), ("large_woman",), "stay"))
    assert x.tolist() == [0, 1, 1, 0, 1, -1, -1]                              # humans, gender, age, status, fitness, species, intervention


def test_the_table_keeps_five_of_each_and_repeats_tell_nothing():
    for seed in range(20):
        w = boxing_world("irt").reset(seed)
        kept = np.array([w.matrix[s - 1, q - 1] for s, q in w.kept])
        assert len(kept) == 10 and (kept.sum() == 5 or min(w.matrix.sum(), 36 - w.matrix.sum()) < 5)
        assert not {w.sample_design(np.random.default_rng(seed)) for _ in range(40)} & w.kept
    session = Session("irt", seed=0)
    cell = session.world.sample_design(np.random.default_rng(0))
    session.run(cell)
    referee = Referee(n_outer=100, n_designs=20).begin(session, 0)
    referee.posterior.update(session.asked[0], session.outcomes[0])
    regret, nested, info = referee.judge(session.world.encode(cell))
    assert info.value[0] == info.lower[0] == 0 and regret == nested > 0 and (info.value[1:] != 0).all()
    assert eig_regret(session, cell, n_outer=100, n_designs=20)[0] > 0


BAD = [("hyperbolic_discounting", (30, 20, 5), "immediate_reward=30 is not below delayed_reward=20"), ("hyperbolic_discounting", (0, 20, 5), "immediate_reward=0 .*>= 1"),
       ("hyperbolic_discounting", (1, 300, 5), "delayed_reward=300 .*<= 299"), ("hyperbolic_discounting", (1, 20, 365), "delay_days=365 .*<= 364"), ("hyperbolic_discounting",
       (1.5, 20, 5), "whole number"),
       ("hyperbolic_discounting", (1, 20), "2 value.*must have 3"), ("hyperbolic_discounting", {"immediate_reward": 1}, "must have immediate_reward, delayed_reward"),
       ("location_finding", (9, 0), "x=9 .*<= 5"), ("location_finding", (0, float("nan")), "y=nan"),
       ("death_process", 0, "time=0 .*> 0 and < 2"), ("death_process", 2, "time=2"), ("death_process", "soon", "holds no number"), ("irt", (7, 1), "student=7 .*<= 6"),
       ("irt", (1, 0), "item=0"), ("survival", 100, "patient=100 .*>= 0 and <= 99"),
       ("survival", -1, "patient=-1"), ("survival", True, "patient=True"), ("dugongs", 5.1, "age=5.1 .*<= 5"), ("peregrines", float("nan"), "time=nan"),
       ("predator_prey", 51, "time=51"), ("moral_machines", (["wizard"], ["boy"], "stay"), "group_1='wizard' is not known"),
       ("moral_machines", (["boy"] * 5, ["boy"], "stay"), "1 to 4 characters"), ("moral_machines", (["boy"], [], "stay"), "group_2"),
       ("moral_machines", (["boy"], ["cat"], "turn"), "intervention='turn'"), ("moral_machines", "boy or cat", "cannot be read"),
       ("emotions", (1, 2, 3, 0.5, 0.4, 0.2, 1), r"p_1 \+ p_2 \+ p_3 = 1.1"), ("emotions", (1, 2, 300, 0.5, 0.4, 0.1, 1), "prize_3=300"),
       ("emotions", (1, 2, 3, 0.5, 0.4, 0.1, 4), "won=4"), ("emotions", (1, 2, 3, 1.5, -0.5, 0, 1), "p_1=1.5")]


@pytest.mark.parametrize("name, design, words", BAD, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BAD)])
def test_a_bad_design_is_named_and_costs_a_try_not_an_experiment(name, design, words):
    session = Session(name, seed=0, budget=3)
    with pytest.raises(DesignError, match=words): session.run(design)
    assert session.left == 3 and len(session.failures) == 1 and not session.history


def test_a_kept_cell_is_forbidden_and_its_neighbours_are_not():
    session = Session("irt", seed=0)
    cell = sorted(session.world.kept)[0]
    with pytest.raises(DesignError, match=f"student={cell[0]}, item={cell[1]} is kept for evaluation"): session.run(cell)
    assert Session("irt", seed=0).run(session.world.sample_design(np.random.default_rng(0))).y in (0, 1)


def test_budget_and_tries_are_enforced():
    session = Session("dugongs", seed=0, budget=2, tries=3)
    for _ in range(3):
        with pytest.raises(DesignError): session.run(9)
    assert session.forfeited == 1 and session.left == 1
    with pytest.raises(DesignError): session.run("")
    session.run(1.0)                                                            # a good design ends the row of bad ones
    with pytest.raises(BudgetExceeded, match="all 2 experiments"): session.run(1.0)
    assert len(session.history) == 1 and len(session.failures) == 4


@pytest.mark.parametrize("make, words", [(lambda: boxing_world("mars"), "environment='mars'"), (lambda: boxing_goal("dugongs", "weight"), "goal='weight'"),
    (lambda: Session("emotions", include_prior=False), "include_prior=False"),
                                         (lambda: Session("moral_machines", include_prior=False), "include_prior=False"), (lambda: Session("dugongs", budget=-1), "budget=-1"),
                                         (lambda: boxing_world("irt", model="4PL"), "model='4PL'"),
                                         (lambda: BoxingText("emotions", include_prior=False), "include_prior"), (lambda: boxing_goal("dugongs").eval_set(0), "n=0"),
                                         (lambda: BayesExperimenter("best"), "design='best'"), (lambda: CurveExperimenter("tree"), "kind='tree'"),
                                         (lambda: Referee(n_outer=1), "n_outer"), (lambda: Referee(n_inner=0), "n_inner"), (lambda: BoxApprentice(proposer="someone"),
                                         "proposer='someone'"), (lambda: LMExperimenter("gpt"), "lm is a str"), (lambda: trim("a b", 0), "word_limit=0"),
                                         (lambda: standardised_error([1], (0, 0)), "sigma0"), (lambda: investigate(3, Session("dugongs")), "without reset"),
                                         (lambda: discovery_score("", Experimenter(), Session("dugongs")), "without read"),
                                         (lambda: ScientistEvaluation().evaluate(Experimenter(), None), "data must be functions")])
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ParameterError, match=words): make()


# --- goals -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("world, name", ALL)
def test_goals_score_norms_and_words(world, name):
    goal = boxing_goal(world, name)
    q = goal.ask(1)
    right = q.truth.argmax(1) + 1.0 if goal.loss == "accepted" else q.truth
    assert np.allclose(goal.score(right, q.truth), 0)
    mu, sigma = goal.norm_factors()
    assert sigma > 0 and mu > 0 and goal.norm_factors() == boxing_goal(world, name).norm_factors()
    for prior in (True, False):
        if prior or not goal.world.needs_prior_words: assert "Answer with" in goal.question(q.designs[0], prior)
    assert np.allclose(goal.read(answer_text(goal, right[0])), right[0], rtol=1e-4, atol=1e-6)
    for text in ("", "no idea", "1, 2, 3, 4, 5, 6, 7, 8, 9"):
        with pytest.raises(DesignError, match="holds"): goal.read(text)
    with pytest.raises(ParameterError, match="shape"): goal.score(right[:0], q.truth)
    with pytest.raises(ParameterError, match="not finite"): goal.score(np.full(np.shape(right), np.nan), q.truth)
    if not goal.world.needs_prior_words:                                          # anonymous words do not name the field
        anonymous = Session(boxing_goal(world, name), 1, include_prior=False).introduction() + goal.question(q.designs[0], False)
        assert not any(w in anonymous.lower() for w in ("dugong", "falcon", "patient", "student", "reward", "infect", "prey", "source"))


def test_a_briefing_holds_no_truth():
    for name in WORLDS:
        session = Session(name, seed=3)
        goal = session.briefing().goal
        assert goal.world.theta is None and session.questions.blind().truth is None and session.world.theta is not None
        for secret in ("matrix", "dead", "streams"): assert getattr(goal.world, secret, None) is None
        with pytest.raises(StateError): goal.world.step(goal.world.sample_design(np.random.default_rng(0)))
        assert goal.constant is not None                                         # what may be known of the prior still works


def test_binary_questions_are_balanced_and_answers_have_their_words():
    assert boxing_goal("hyperbolic_discounting").ask(0).truth.sum() == 5
    goal = boxing_goal("moral_machines")
    assert goal.read("2") == 0 and goal.read("1") == 1
    with pytest.raises(DesignError, match="must be 1 or 2"): goal.read("0")
    with pytest.raises(DesignError, match="1 to 6"): boxing_goal("irt", "best_student").read("7")
    w = boxing_world("emotions").reset(0)
    design = w.sample_design(np.random.default_rng(0))
    poet = FunctionLM(lambda prompt, rng: "A grey afternoon.", name="poet")
    assert told(w, design, w.step(design), observer=poet) == "A grey afternoon." and "They feel" in told(w, design, w.step(design))


# --- scientists --------------------------------------------------------------------------------------------------------

def test_information_beats_chance_and_knowledge_beats_none():
    "Paired over 12 truths of the epidemic, fixed seeds; the mean differences are many standard errors from zero."
    found = {}
    for name, make in (("eig", lambda: BayesExperimenter("eig", n_designs=32, n_outer=80)), ("random", lambda: BayesExperimenter("random")), ("constant", Experimenter)):
        found[name] = [investigate(make(), Session("death_process", seed=s), s, (0, 10), Referee(n_outer=100, n_designs=30) if name != "constant" else None,
            word_limit=50 if name == "eig" else 0) for s in range(12)]
    d = np.array([np.mean(b.regret) - np.mean(a.regret) for a, b in zip(found["eig"], found["random"], strict=True)])
    assert d.mean() > 3 * d.std(ddof=1) / 12**0.5 > 0
    z0, z10, c = ([f.z[k] for f in found[n]] for n, k in (("eig", 0), ("eig", 10), ("constant", 10)))
    assert np.mean(z10) < min(np.mean(z0), np.mean(c), 0) - 0.3
    told = [discovery_score(f.explanation, TemplateNovice(), Session("death_process", seed=s), s) for s, f in enumerate(found["eig"])]
    assert np.mean([t.gain for t in told]) > 0.3 and all(0 < t.words <= 50 for t in told)


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_can_be_investigated_by_everybody(name, monkeypatch):
    monkeypatch.setattr(Goal, "norm_worlds", 20)
    for scientist in (BayesExperimenter("eig", n_designs=6, n_outer=20, n_particles=300), CurveExperimenter("gp"), CurveExperimenter("polynomial"), BoxApprentice(at=(3,))):
        session = Session(name, seed=2, budget=3)
        f = investigate(scientist, session, 0, (0, 3), None, 30)
        assert set(f.z) == {0, 3} and all(map(np.isfinite, f.z.values())) and len(f.explanation.split()) <= 30 and len(session.history) == 3


def test_a_novice_believes_names_and_numbers():
    session, novice = Session("dugongs", seed=0), TemplateNovice()
    novice.reset(session.briefing(), 0)
    novice.read("I think alpha is 2.1. and beta is 1.0. I also like cake.")
    assert (novice.theta[:, 0] == 2.1).all() and (novice.theta[:, 1] == 1).all() and novice.theta[:, 2].std() > 0.3
    novice.read("The outcome follows a linear curve: unit is 2. c0 is 0.5. c1 is 0. ;")
    assert np.allclose(novice.predict(session.questions.blind()), 1.0)
    novice.read("The outcome follows a linear curve: unit is 2. c0 is 0.5. ;")                       # a number is missing: not believed
    assert not novice.curves


def scripted(designs, answer="1"):
    "A model that does the given experiments in turn and answers always the same."
    talks, left = [], list(designs)
    def reply(prompt, rng):
        talks.append([dict(m) for m in prompt])
        last = prompt[-1]["content"]
        if "Explain what you found" in last: return "One two three four five six."
        if "<answer>…" in last or "<answer>..." in last: return f"<thought>hm</thought><answer>{answer}</answer>"
        return f"<thought>next</thought><observe>{left.pop(0)}</observe>" if left else "nothing"
    return FunctionLM(reply, name="scripted"), talks


def test_a_language_model_as_scientist_and_what_it_is_shown():
    lm, talks = scripted(["9", "1.0", "2.0"], "1.5")
    session = Session("dugongs", seed=0, budget=2)
    f = investigate(LMExperimenter(lm), session, 0, (0, 1, 2), None, word_limit=4)
    assert f.failures == 1 and [e.design for e in session.history] == [1.0, 2.0] and f.explanation == "One two three four"
    assert f.cost["calls"] == len(talks) == 3 + 3 * 10 + 1 and set(f.z) == {0, 1, 2}
    for talk in talks:                                                            # no question of the evaluation stays in the history
        assert sum(m["content"].count("How long is a dugong") for m in talk) == (1 if "How long" in talk[-1]["content"] else 0)
    assert any("age=9" in m["content"] for m in talks[11])
    assert any(session.history[0].text in m["content"] for m in talks[-1]) and session.history[1].text in talks[-1][-1]["content"]
    anonymous = Session("dugongs", seed=0, budget=1, include_prior=False)
    lm, talks = scripted(["1.0"], "1.5")
    investigate(LMExperimenter(lm), anonymous, 0, (1,))
    assert not any("dugong" in m["content"].lower() for talk in talks for m in talk)


def test_unreadable_answers_are_asked_for_again_and_then_count_as_the_constant():
    lm, talks = scripted(["1.0"], "many")
    session = Session("dugongs", seed=0, budget=1)
    scientist = LMExperimenter(lm, rereads=2)
    f = investigate(scientist, session, 0, (1,), None, 0)
    assert scientist.unread == 10 and len(talks) == 1 + 10 * 3
    assert np.isclose(f.z[1], standardised_error(session.goal.score(np.full(10, session.goal.constant), session.questions.truth), session.goal.norm_factors()))
    silent = LMExperimenter(FunctionLM(lambda prompt, rng: "", name="silent"))
    session = Session("dugongs", seed=0, budget=2)
    f = investigate(silent, session, 0, (2,), None, 0)
    assert f.forfeited == 2 and f.failures == 6 and not session.history


def test_a_spent_meter_ends_an_investigation_with_what_is_there():
    lm, _ = scripted(["1.0", "2.0", "3.0"])
    f = investigate(LMExperimenter(Metered(lm, calls=14)), Session("dugongs", seed=0, budget=3), 0, (0, 3), None, 50)
    assert "budget of calls=14" in f.note and set(f.z) == {0} and not f.explanation


def test_a_language_model_as_novice():
    seen = []
    def novice(prompt, rng):
        seen.append(prompt[0]["content"])
        return "<answer>2.0</answer>" if "top length is 2" in prompt[0]["content"] else "<answer>0.1</answer>"
    session = Session("dugongs", seed=0)
    d = discovery_score("The top length is 2.", LMNovice(FunctionLM(novice, name="n")), session)
    assert d.words == 5 and d.gain != 0 and "explains" in seen[-1] and "Nobody has told you" in seen[0]
    assert discovery_score("The top length is 2.", LMNovice(FunctionLM(novice, name="n")), session, word_limit=2).gain == 0


# --- the text environment ----------------------------------------------------------------------------------------------

def test_text_environment_pays_minus_z_and_agents_act_in_it():
    env = BoxingText("peregrines", budget=3)
    agent = AsAgent(BayesExperimenter("eig", n_designs=8, n_outer=30), env)
    episode = rollout(agent, env, seed=5)
    mu, sigma = env.goal.norm_factors()
    z = (env.goal.score(np.array(env.given), env.session.questions.truth).mean() - mu) / sigma
    assert episode.ended == "terminated" and len(episode) == 13 and np.isclose(episode.total_reward, -z)
    assert rollout(agent, env, seed=5).total_reward == episode.total_reward
    with pytest.raises(StateError, match="over"): env.step("<answer>1</answer>")
    with pytest.raises(StateError, match="not begun"): BoxingText("peregrines").step("<observe>1</observe>")


def test_text_environment_with_a_model_that_talks():
    lm, talks = scripted(["7", "1.0", "2.0"], "3")
    episode = rollout(LMScientist(lm), BoxingText("dugongs", budget=2), seed=0)
    assert episode.ended == "terminated" and len(episode) == 13 and episode.cost["calls"] == 13 and episode[0].thought == "next"
    assert "problem" in episode[0].info and episode[0].info["left"] == 2
    for talk in talks: assert sum(m["content"].count("How long is a dugong") for m in talk) <= 1
    env = BoxingText("dugongs", budget=1, rereads=2)
    env.reset(seed=0)
    text, _, _, _, info = env.step("<answer>3</answer>")
    assert "do an experiment" in text and info["left"] == 1
    env.step("<observe>1</observe>")
    env.step("what?")
    assert env.step("<answer>x</answer>")[4]["unanswered"] and env.unread == 1


# --- the apprentice ----------------------------------------------------------------------------------------------------

def test_families_find_the_curve_that_made_the_data():
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 5, (25, 1))
    s = Scales.of(np.linspace(0, 5, 300)[:, None], 10.0)
    assert "quadratic" in discover(x, 10 - 2 * (x[:, 0] - 2.5) ** 2 + 0.3 * rng.standard_normal(25), "real", s, 0)[0].family.name
    counts = rng.poisson(np.exp(1 + 0.9 * x[:, 0])).astype(float)
    ranked = discover(x, counts, "count", s, 0)
    assert ranked[0].family.link == "poisson" and next(f for f in ranked if f.family.name == "linear").loo.elpd < ranked[0].loo.elpd - 10
    assert {f.link for f in candidates("binary", 2)} == {"bernoulli"} and not any(f.curve for f in candidates("real", 2))
    with pytest.raises(ParameterError, match="at least 2"): fit_family("linear", x[:1], counts[:1], s)
    with pytest.raises(ParameterError, match="kind='angle'"): candidates("angle", 1)


def test_written_programs_run_in_the_sandbox_only():
    x, y = np.linspace(0, 4, 8)[:, None], 1 + 2 * np.linspace(0, 4, 8) + np.array([.1, -.1, .05, 0, -.1, .1, 0, -.05])
    good = 'PARAMETERS = {"a": [0, 2], "b": [0, 2], "log_sigma": [-2, 1]}\nFAMILY = "normal"\ndef mean(x, p): return p["a"] + p["b"] * x[0]\n'
    with Sandbox() as box:
        model = fit_program(good, x, y, box, 0)
        assert abs(model.estimates["a"] - 1) < 0.2 and abs(model.estimates["b"] - 2) < 0.1 and np.allclose(model.predict(np.array([[2.0]]), box), 5, atol=0.2)
        for bad, words in ((good.replace("normal", "gamma"), "FAMILY='gamma'"), (good.replace('"log_sigma": [-2, 1]', '"c": [0, 1]'), "log_sigma"),
            (good.replace("[0, 2]", "[0, -2]"), "positive"), ("1/0", "ZeroDivisionError"),
                           ("import os; os.kill(os.getppid(), 9)\n" + good, ""), ("while True: pass", "time")):
            try: fit_program(bad, x, y, box, 0, seconds=2)
            except ProgramError as error: assert words in str(error) or words == "time"
            else: assert not words
    told = []
    def statistician(prompt, rng):
        told.append(prompt[0]["content"])
        return "I do not know." if len(told) == 1 else f"<program>\n{good}</program>"
    lm, _ = scripted(["0.5", "1.0", "2.0", "4.0"], "1.5")
    helper = BoxApprentice(LMExperimenter(lm), FunctionLM(statistician, name="statistician"), at=(4,), rounds=2)
    f = investigate(helper, Session("dugongs", seed=0, budget=4), 0, (0, 4), None, 100)
    assert len(helper.problems) == 1 and "could not be used" in told[1] and "4" in told[0] and helper.ranking[0][0] == "program 1" and np.isfinite(f.z[4])
    assert "best statistical model" in helper.scientist.dialogue.messages[0]["content"]


def test_an_apprentice_helps_a_scientist_without_knowledge():
    "Counts of falcons, five truths: a regression of ten points against the same ten points with a discovered family."
    z = {}
    for name, make in (("alone", lambda: CurveExperimenter("polynomial")), ("helped", lambda: BoxApprentice(CurveExperimenter("polynomial"), at=(10,)))):
        z[name] = [investigate(make(), Session("peregrines", seed=s), s, (10,), None, 0).z[10] for s in range(5)]
    assert np.mean(z["helped"]) < np.mean(z["alone"])


@pytest.mark.parametrize("who, where, text", [(BayesExperimenter, Session("dugongs", seed=0), "is the class BayesExperimenter"),
                                              (CurveExperimenter("gp"), "dugongs", "session is a str")])
def test_what_is_no_scientist_or_no_session_is_refused(who, where, text):
    with pytest.raises(ParameterError, match=text): investigate(who, where, 0)


def test_errors_are_of_this_package():
    assert issubclass(ProgramError, DesignLoopError) and issubclass(InferenceRefused, DesignLoopError)
