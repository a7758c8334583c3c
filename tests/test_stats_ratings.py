"""Ratings from pairwise wins: choix as a peer, invariants, existence, order of play, bad input."""
import math
import warnings

import numpy as np
import pandas as pd
import pytest

from designloop.core.errors import ParameterError
from designloop.stats import as_matches, bradley_terry, circular_triads, elo, held_out_log_loss, weng_lin
from designloop.stats.ratings import circular_counts


def league(theta, n, seed, order=0.0, tie=0.0, prompts=60):
    draw = np.random.default_rng(seed)
    names = np.array([f"p{i}" for i in range(len(theta))])
    i, j = np.array([draw.choice(len(theta), 2, replace=False) for _ in range(n)]).T
    d = theta[i] - theta[j] + order
    raw = np.stack([np.exp(d / 2), np.full(n, tie), np.exp(-d / 2)], 1)
    u = draw.random(n) * raw.sum(1)
    outcome = np.where(u < raw[:, 0], 1.0, np.where(u < raw[:, 0] + raw[:, 1], 0.5, 0.0))
    return pd.DataFrame({"first": names[i], "second": names[j], "outcome": outcome, "cluster": draw.integers(0, prompts, n)})

THETA = np.array([0.8, 0.4, 0.1, -0.3, -1.0])

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bradley_terry_is_choix(seed):
    import choix
    games = league(THETA, 200, seed)
    m, fit = as_matches(games), bradley_terry(games, resamples=99)
    wins = [(i, j) if o else (j, i) for i, j, o in zip(m.first, m.second, m.outcome, strict=True)]
    for peer in (choix.ilsr_pairwise(5, wins), choix.opt_pairwise(5, wins, alpha=0, tol=1e-10)):
        assert np.allclose([fit.strengths[p] for p in m.players], peer - peer.mean(), atol=1e-5)
    assert math.isclose(fit.log_likelihood, choix.log_likelihood_pairwise(wins, np.array([fit.strengths[p] for p in m.players])), rel_tol=1e-9)

def test_ties_and_order_effects_are_found_by_another_optimizer():
    from scipy.optimize import minimize
    games = league(THETA, 500, 3, order=0.5, tie=0.6)
    m, fit = as_matches(games), bradley_terry(games, order_effect=True, resamples=199)
    def loss(v):
        theta = np.r_[v[:4], -v[:4].sum()]
        d = theta[m.first] - theta[m.second] + v[4]
        raw = np.stack([np.exp(d / 2), np.full(len(d), np.exp(v[5])), np.exp(-d / 2)], 1)
        return -np.log(raw[np.arange(len(d)), (2 - 2 * m.outcome).astype(int)] / raw.sum(1)).sum()
    peer = minimize(loss, np.zeros(6), method="BFGS")
    assert math.isclose(-peer.fun, fit.log_likelihood, rel_tol=1e-8)
    assert np.allclose([*(fit.strengths[f"p{i}"] for i in range(4)), fit.order_effect.value, math.log(fit.tie.value)], peer.x, atol=1e-3)
    assert fit.order_effect.ci[0] > 0 and fit.tie.ci[0] > 0.3
    chance = fit.probability("p0", "p4")
    assert math.isclose(sum(chance.values()), 1) and chance["win"] > chance["loss"]

def test_names_order_and_duplication_do_not_matter():
    games = league(THETA, 150, 4, tie=0.3)
    fit = bradley_terry(games, resamples=99)
    shuffled = bradley_terry(games.sample(frac=1, random_state=0), resamples=99)
    mirrored = bradley_terry(games.assign(first=games["second"], second=games["first"], outcome=1 - games["outcome"]), resamples=99)
    twice = bradley_terry(pd.concat([games, games.assign(cluster=games["cluster"] + 1000)]), resamples=99)
    for other in (shuffled, mirrored, twice):
        assert all(math.isclose(fit.strengths[p], other.strengths[p], abs_tol=1e-7) for p in fit.strengths)
    assert bradley_terry(games, rng=7, resamples=99).table.equals(bradley_terry(games, rng=7, resamples=99).table)
    assert abs(sum(fit.strengths.values())) < 1e-9 and set(fit.table["rank"]) == {1, 2, 3, 4, 5}
    assert (fit.table["rank_low"] <= fit.table["rank"]).all() and (fit.table["rank"] <= fit.table["rank_high"]).all()

def test_clusters_widen_the_intervals_of_copied_matches():
    games = league(THETA, 120, 5)
    copied = pd.concat([games] * 5, ignore_index=True)
    width = {}
    for how, clusters in (("matches", None), ("clusters", list(np.tile(np.arange(120), 5)))):
        t = bradley_terry(copied["first"], copied["second"], copied["outcome"], clusters=clusters).table
        width[how] = float((t["high"] - t["low"]).mean())
    assert 1.8 < width["clusters"] / width["matches"] < 2.8             # √5 = 2.24

def test_an_unbeaten_player_needs_imagined_matches():
    first, second, won = ["a", "a", "b", "c"], ["b", "c", "c", "b"], [1, 1, 1, 1]
    with pytest.warns(UserWarning, match="no chain of wins leads from 'b' to 'a'"): fit = bradley_terry(first, second, won, resamples=99)
    assert "pseudo-wins" in fit.method and fit.table["player"][0] == "a" and np.isfinite(fit.table["rating"]).all()
    with pytest.raises(ParameterError, match="not strongly connected"): bradley_terry(first, second, won, pseudo_wins=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = bradley_terry(first, second, won, pseudo_wins=0.1, resamples=99)                 # asked for: no warning
        tied = bradley_terry(["a", "b", "c"], ["b", "c", "a"], [0.5, 0.5, 1], pseudo_wins=0, resamples=99)      # a tie connects both ways
    assert np.allclose(asked.table["rating"], fit.table["rating"]) and tied.tie.value > 0
    apart = as_matches(["a", "b", "c", "d"], ["b", "a", "d", "c"], [1, 1, 1, 1])
    with pytest.raises(ParameterError, match="strongly connected"): bradley_terry(apart, pseudo_wins=0)

def test_circles():
    ring = as_matches(["a", "b", "c"] * 3, ["b", "c", "a"] * 3, [1] * 9)
    assert circular_counts(ring) == (1, 1)
    line = as_matches(["a", "b", "a"], ["b", "c", "c"], [1, 1, 1])
    assert circular_counts(line) == (0, 1) and circular_counts(as_matches(["a"], ["b"], [0.5])) == (0, 0)
    fit = bradley_terry(ring, resamples=99)
    found = circular_triads(ring, fit)
    assert found.share == 1 and 0 <= found.expected <= 1
    games = league(np.linspace(2, -2, 7), 2000, 6)
    assert circular_triads(games, bradley_terry(games, resamples=99)).p_value > 0.01

def test_held_out_loss_knows_skill_from_noise():
    model, base = held_out_log_loss(league(3 * THETA, 400, 7))
    assert (model - base).better == model.name and model.unit == "bits"
    model, base = held_out_log_loss(league(0 * THETA, 400, 8))
    assert abs(base.value - 1) < 1e-9 and model.value > 0.99

def test_elo_by_hand_and_its_order():
    up = 1 / (1 + 10 ** (-16 / 400 - 16 / 400))
    two = elo(["a", "a"], ["b", "b"], [1, 0], orders=0)
    assert math.isclose(two.score("a").value, 1016 - 32 * up) and math.isclose(two.table["rating"].sum(), 2000)
    games = league(THETA, 300, 9)
    rated = elo(games, k=16, orders=200)
    assert math.isclose(rated.table["rating"].sum(), 5000, abs_tol=30) and rated.meta["given order"]["p0"] == elo(games, k=16, orders=0).score("p0").value
    width = {k: float((t := elo(games, k=k, orders=200).table).high.sub(t.low).mean()) for k in (4, 32)}
    assert width[4] < width[32] and rated.table["player"][0] in ("p0", "p1")

def test_weng_lin_is_openskill():
    from openskill.models import PlackettLuce
    model = PlackettLuce()
    a, b = model.rating(), model.rating()
    [[a], [b]] = model.rate([[a], [b]], ranks=[1, 2])
    ours = weng_lin([["x", "y"]], [[1, 2]])
    assert math.isclose(ours.score("x").value, a.mu) and math.isclose(ours.score("y").value, b.mu)
    assert math.isclose(ours.score("x").ci[1] - a.mu, 1.959964 * a.sigma, rel_tol=1e-6)
    teams = weng_lin([[["x", "y"], ["u", "v"], "w"]] * 9, [[1, 2, 3]] * 9)
    assert teams.score("x").value > teams.score("u").value > teams.score("w").value and teams.n == 9

@pytest.mark.parametrize("call, words", [
    (lambda: as_matches(["a"], ["b"], [2]), "1 means the first won"),
    (lambda: as_matches(["a"], ["b"], [np.nan]), "0.5 a tie"),
    (lambda: as_matches(["a"], ["a"], [1]), "against itself"),
    (lambda: as_matches(["a"], ["b", "c"], [1]), "one each for every match"),
    (lambda: as_matches([], [], []), "at least one match"),
    (lambda: as_matches(pd.DataFrame({"first": ["a"], "second": ["b"]})), "lacks the column 'outcome'"),
    (lambda: as_matches(["a"], ["b"], [1], players=["a"]), "'b' is not among players"),
    (lambda: as_matches(["a"], ["b"], [1], clusters=[1, 2]), "2 labels for 1"),
    (lambda: bradley_terry(["a", "b"], ["b", "a"], [1, 1], clusters=[1, 1]), "at least 2"),
    (lambda: bradley_terry(["a", "b"], ["b", "a"], [1, 1], pseudo_wins=-1), "pseudo_wins"),
    (lambda: bradley_terry(["a", "b"], ["b", "a"], [1, 1], resamples=99).score("z"), "not rated"),
    (lambda: bradley_terry(["a", "b"], ["b", "a"], [1, 1], resamples=99).probability("a", "z"), "no strength"),
    (lambda: held_out_log_loss(as_matches(["a"], ["b"], [1])), "more than the 1 clusters"),
    (lambda: elo(["a"], ["b"], [1], k=0), "k=0"),
    (lambda: weng_lin([["a"]], [[1]]), "at least 2 sides"),
    (lambda: weng_lin([["a", "b"]], []), "0 entries for 1"),
    (lambda: bradley_terry(["a", "b"], ["b", "a"], [1, 1], level=1), "Write 0.95"),
])
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ParameterError) as caught: call()
    assert words in str(caught.value)
