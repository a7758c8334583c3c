"""Repeated samples, variants and rank correlations: closed forms, peers, coverage with stated seeds, bad input."""
import math
import warnings
from math import comb

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from designloop.core.errors import ParameterError
from designloop.stats import (
    beta_binomial_fit,
    expected_range,
    format_spread_ci,
    heterogeneity_test,
    pass_at_k,
    pass_hat_k,
    rank_correlation,
    sampled_mean_ci,
    standard_error_with,
)
from designloop.stats.rates import draws_share
from designloop.stats.spread import null_ranges, split_range


@pytest.mark.parametrize("n", [1, 5, 20, 200])
def test_pass_at_k_is_the_ratio_of_binomials(n):
    for c in {0, 1, n // 2, n - 1, n}:
        for k in {1, 2, n // 2, n} - {0}:
            if k > n: continue
            got = draws_share(np.array([c]), np.array([n]), k)[0], draws_share(np.array([c]), np.array([n]), k, "all")[0]
            assert np.allclose(got, (1 - comb(n - c, k) / comb(n, k), comb(c, k) / comb(n, k)), atol=1e-11)

@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_pass_at_k_is_unbiased_and_the_plug_in_is_not(p):
    # exact expectations over the binomial, no simulation
    c, n, k = np.arange(11), 10, 5
    weight = stats.binom.pmf(c, n, p)
    assert math.isclose(weight @ draws_share(c, np.full(11, n), k), 1 - (1 - p) ** k, rel_tol=1e-10)
    assert math.isclose(weight @ draws_share(c, np.full(11, n), k, "all"), p**k, rel_tol=1e-9)
    assert weight @ (1 - (1 - c / n) ** k) < 1 - (1 - p) ** k

def test_pass_at_k_over_tasks():
    c = np.array([0, 3, 10, 7])
    score = pass_at_k(c, 10, 4, item_ids="abcd")
    assert np.allclose(score.per_item, [1 - comb(10 - i, 4) / comb(10, 4) for i in c]) and score.n == 4 and score.replicate == "task" and score.item_ids == tuple("abcd")
    matrix = np.arange(10) < c[:, None]
    assert pass_at_k(matrix, k=4).value == score.value == pass_at_k(matrix.astype(float), k=4).value
    mixed = pass_at_k([1, 2], [4, 8], 2)
    assert np.allclose(mixed.per_item, [1 - comb(3, 2) / comb(4, 2), 1 - comb(6, 2) / comb(8, 2)]) and mixed.meta["samples"] == [4, 8]
    grouped = pass_at_k(np.tile(c, 10), 10, 4, clusters=np.random.default_rng(0).permutation(np.repeat(np.arange(10), 4)))
    assert grouped.n_clusters == 10 and "clustered" in grouped.method
    assert (pass_at_k(c, 10, 2) - pass_at_k(c[::-1], 10, 2)).diff == 0
    assert pass_hat_k(c, 10, 10).value == 0.25 and pass_at_k(c, 10, 10).value == 0.75

def test_one_task_has_the_interval_of_its_rate():
    single = pass_at_k(3, 10, 5)
    low, high = stats.binomtest(3, 10).proportion_ci(method="wilson")
    assert np.allclose(single.ci, (1 - (1 - low) ** 5, 1 - (1 - high) ** 5)) and single.n == 10 and single.replicate == "sample"
    assert pass_at_k(0, 10, 5).value == 0 and pass_at_k(0, 10, 5).ci[0] == 0 and pass_hat_k(10, 10, 5).ci[1] == 1

@pytest.mark.parametrize("call, words", [
    (lambda: pass_at_k([2, 1], 3, 5), "draw more samples, or ask for a smaller k"),
    (lambda: pass_at_k([2.5], 5, 1), "not a whole number"),
    (lambda: pass_at_k([6], 5, 1), "counts lie between 0 and n"),
    (lambda: pass_at_k([-1], 5, 1), "counts lie between 0 and n"),
    (lambda: pass_at_k([1, np.nan], 5, 1), "1 NaN among 2"),
    (lambda: pass_at_k([1], 5, 0), "k=0"),
    (lambda: pass_at_k([1], 5, 1.5), "whole number"),
    (lambda: pass_at_k([1, 2], [5, 5, 5], 1), "3 entries for 2"),
    (lambda: pass_at_k([1, 2]), "n is missing"),
    (lambda: pass_at_k([[0.3, 1]]), "right (1) or wrong (0)"),
    (lambda: pass_at_k([1, 2], 5, 1, level=95), "Write 0.95"),
    (lambda: sampled_mean_ci([1, 0, 1]), "matrix [items, K]"),
    (lambda: sampled_mean_ci([[1, np.nan]]), "NaN"),
    (lambda: sampled_mean_ci([[1, 2]]), "outside the allowed range"),
    (lambda: beta_binomial_fit([3], 5), "2 or more variants"),
    (lambda: beta_binomial_fit([1, 0], 1), "scatter shows only"),
    (lambda: beta_binomial_fit([7, 1], 5), "counts lie"),
    (lambda: heterogeneity_test([7, 1], 9, "chi"), "not known"),
    (lambda: heterogeneity_test([7], 9, "permutation"), "2 or more"),
    (lambda: beta_binomial_fit([3, 4], 9).predictive(0), "n=0"),
    (lambda: format_spread_ci(np.ones((9, 1))), "2 variants"),
    (lambda: format_spread_ci([[1, np.nan]] * 5), "NaN"),
    (lambda: format_spread_ci(np.full((5, 2), 3.0)), "outside the allowed range"),
    (lambda: format_spread_ci(np.ones((5, 2)), names=["a", "a"]), "one for each"),
    (lambda: format_spread_ci(np.ones((6, 2)), clusters=[0, 0, 0, 1, 1, 1]), "at least 4"),
    (lambda: format_spread_ci(np.ones((6, 2)), clusters=[0, 1]), "2 labels for 6"),
    (lambda: expected_range(0), "n=0"),
    (lambda: rank_correlation([1, 1, 1], [1, 2, 3]), "constant"),
    (lambda: rank_correlation([1, 2, 3], [4, 4, 4]), "y is constant"),
    (lambda: rank_correlation([1, 2], [1, 2]), "fewer than 3"),
    (lambda: rank_correlation([1, 2, 3], [1, 2]), "same items"),
    (lambda: rank_correlation([1, 2, np.nan], [1, 2, 3], item_ids=["a", "b", "c"]), "items c"),
    (lambda: rank_correlation([1, 2, 3], [1, 3, 2], kind="pearson"), "not known"),
    (lambda: rank_correlation(range(9), range(9), clusters=[1] * 9), "1 distinct label"),
    (lambda: rank_correlation(range(9), range(9), clusters=[1, 2]), "2 labels for 9"),
    (lambda: rank_correlation([0] * 8 + [1], range(9), clusters=range(9)), "hangs on it"),
    (lambda: format_spread_ci([["a", "b"]] * 5), "not a number"),
    (lambda: sampled_mean_ci([1, 0, 1], items=["a", "b"]), "2 labels for 3 samples"),
])
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ParameterError) as caught: call()
    assert words in str(caught.value)

def test_samples_of_an_item_are_not_items():
    x = np.random.default_rng(0).random((30, 6)) < 0.6
    score = sampled_mean_ci(x)
    assert score.n == 30 and math.isclose(score.value, x.mean()) and score.item_ids[0] == "0"
    flat = sampled_mean_ci(x.ravel().astype(float), items=np.repeat([f"q{i:02d}" for i in range(30)], 6))
    assert np.allclose(flat.per_item, score.per_item) and flat.item_ids[3] == "q03"
    assert math.isclose(standard_error_with(score, 30, 6) ** 2 * 30, x.mean(1).var(ddof=1), rel_tol=1e-9) or score.meta["between"] == 0
    with pytest.raises(ParameterError, match="both variances"): standard_error_with(sampled_mean_ci([[1], [0]]), 10, 2)
    grouped = sampled_mean_ci(x, clusters=np.repeat(np.arange(10), 3))
    assert grouped.n_clusters == 10

def test_beta_binomial_is_scipys_likelihood_and_statsmodels_size():
    k, n = np.array([1, 9, 4, 6, 0, 10, 3]), np.array([10, 10, 8, 9, 10, 12, 7])
    fit = beta_binomial_fit(k, n)
    assert math.isclose(fit.log_likelihood, stats.betabinom.logpmf(k, n, *fit.alpha_beta).sum(), rel_tol=1e-8)
    from scipy.optimize import minimize
    peer = minimize(lambda v: -stats.betabinom.logpmf(k, n, *np.exp(v)).sum(), [0, 0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    assert fit.log_likelihood >= -peer.fun - 1e-6 and np.allclose(np.log(fit.alpha_beta), peer.x, atol=2e-3)
    assert fit.p_value < 0.001 and fit.mean.ci[0] < fit.mean.value < fit.mean.ci[1] and fit.rho.ci[0] > 0 and math.isclose(fit.p_value, heterogeneity_test(k, n).p_value)
    low, high = fit.predictive()
    assert low < fit.mean.ci[0] and high > fit.mean.ci[1] and all(0 <= e <= 1 for e in fit.predictive(4))

@pytest.mark.parametrize("k, n, rate", [([0, 0, 0], 20, 0), ([20, 20, 20], 20, 1), ([10, 10, 10, 10], 20, 0.5), ([10, 10], [10, 20], 2 / 3)])
def test_beta_binomial_at_the_boundary(k, n, rate):
    fit = beta_binomial_fit(k, n)
    assert math.isclose(fit.mean.value, rate, abs_tol=0.15) and fit.mean.ci[0] <= rate <= fit.mean.ci[1] and 0 <= fit.rho.ci[0] <= fit.rho.value <= fit.rho.ci[1] <= 1
    if rate != 2 / 3: assert fit.rho.value == 0 and fit.p_value == 1

def test_heterogeneity_false_alarms():
    # 200 data sets of 6 equal variants, seed 1. With a true rate of 5 % more than 21 alarms have probability 5e-4; the likelihood ratio is conservative.
    draw = np.random.default_rng(1)
    data = draw.binomial(30, 0.4, (200, 6))
    assert sum(heterogeneity_test(k, 30).p_value < 0.05 for k in data) <= 21
    assert sum(heterogeneity_test(k, 30, "permutation", draw).p_value < 0.05 for k in data[:100]) <= 13
    rare = heterogeneity_test([0, 0, 1, 0], 40, "permutation")
    assert rare.p_value == 1 and rare.variants == 4 and rare.trials == 160

@pytest.mark.parametrize("size, known", [(2, 1.128), (5, 2.326), (10, 3.078), (20, 3.735), (50, 4.498), (100, 5.015)])
def test_expected_range(size, known): assert abs(expected_range(size) - known) < 6e-4

def test_spread_of_identical_and_different_variants():
    draw = np.random.default_rng(3)
    x = (draw.random((120, 8)) < 0.7).astype(float)
    spread = format_spread_ci(pd.DataFrame(x, columns=list("abcdefgh")))
    means = x.mean(0)
    assert spread.raw == np.ptp(means) and spread.best == "abcdefgh"[means.argmax()] and list(spread.variants["variant"]) == list("abcdefgh")
    assert format_spread_ci(x, names="abcdefgh").split == spread.split                       # a seed repeats
    x[:, 3] = (draw.random(120) < 0.2)
    broken = format_spread_ci(x)
    assert broken.worst == "variant 3" and broken.p_value <= 0.001 + 1e-9 and broken.split.ci[0] > 0.2 and broken.sd.ci[0] > 0
    two = np.repeat(x, 3, axis=0)                                                            # every item three times is no more evidence
    grouped = format_spread_ci(two, clusters=np.repeat(np.arange(120), 3))
    assert grouped.n_clusters == 120 and math.isclose(grouped.raw, broken.raw) and math.isclose(grouped.sd.value, broken.sd.value, rel_tol=1e-6)
    assert np.allclose(grouped.null_ci, broken.null_ci, atol=0.02)

def test_spread_of_graded_scores_and_two_variants():
    draw = np.random.default_rng(4)
    graded = 50 + draw.normal(0, 10, (40, 1)) + draw.normal(0, 3, (40, 2))
    spread = format_spread_ci(graded, score_range=None, unit="points")
    assert spread.split.unit == "points" and spread.correlation > 0.6 and len(spread.to_dict()["variants"]["mean"]) == 2
    total, noise = graded.mean(0).var(ddof=1), (graded[:, 0] - graded[:, 1]).var(ddof=1) / 2 / 40      # two-way layout by hand
    assert math.isclose(spread.sd.value, math.sqrt(max(0, total - noise)), abs_tol=1e-9)

def test_split_range_has_mean_zero_and_the_null_range_the_formula():
    # 300 data sets, seed 5: the mean split range has a standard error of 0.25 points, the null range of 0.1.
    draw = np.random.default_rng(5)
    found = []
    for _ in range(300):
        x = (draw.random((100, 10)) < 0.7).astype(float)
        split, se = split_range(x, np.ones(100), draw, 20)
        found.append((split, null_ranges(x, 100, draw, 30).mean(), abs(split) <= 1.98 * se))
    split, null, holds = np.mean(found, axis=0)
    assert abs(split) < 0.01 and abs(null - 3.078 * math.sqrt(0.21 / 100)) < 0.006 and holds > 0.93

@pytest.mark.parametrize("n", [4, 6, 8, 12, 40, 200])
@pytest.mark.parametrize("kind", ["kendall", "spearman"])
def test_rank_correlation_is_scipys(n, kind):
    draw = np.random.default_rng(n)
    x, y = draw.integers(0, 5, n).astype(float), draw.normal(size=n)
    x[:2] = 0, 1
    peer = (stats.kendalltau if kind == "kendall" else stats.spearmanr)(x, y)
    score = rank_correlation(x, y, kind)
    assert math.isclose(score.value, peer.statistic, abs_tol=1e-12) and score.ci[0] <= score.value <= score.ci[1] and score.n == n
    if n < 8: assert score.ci == (-1, 1) and "no interval" in score.method and "orders" in score.meta["test"]
    if n >= 40: assert abs(score.meta["p_value"] - peer.pvalue) < 0.03

def test_rank_correlation_intervals():
    draw = np.random.default_rng(9)
    x = draw.normal(size=30)
    y = x + draw.normal(size=30)
    tau, rho = rank_correlation(x, y), rank_correlation(x, y, "spearman")
    z = stats.norm.ppf(0.975)
    assert np.allclose(tau.ci, np.tanh(np.arctanh(tau.value) + np.array([-z, z]) * math.sqrt(0.437 / 26)))
    assert np.allclose(rho.ci, np.tanh(np.arctanh(rho.value) + np.array([-z, z]) * math.sqrt((1 + rho.value**2 / 2) / 27)))
    for kind, peer in (("kendall", stats.kendalltau), ("spearman", stats.spearmanr)):
        ours = rank_correlation(x, y, kind, interval="bca")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = stats.bootstrap((x, y), lambda a, b, peer=peer: peer(a, b).statistic, paired=True, vectorized=False, n_resamples=999, random_state=1).confidence_interval
        assert ours.method.endswith("BCa bootstrap") and np.allclose(ours.ci, theirs, atol=0.06)      # 999 against 9,999 resamples
    reverse = rank_correlation(np.arange(9), -np.arange(9), interval="bca")
    assert reverse.value == -1 and reverse.ci[0] == -1 and reverse.ci[1] < -0.5 and "undefined" in reverse.method


def test_rank_correlation_over_clusters():
    "Two benchmarks that share families but nothing else: the shuffle of items alarms too often, the jackknife over families does not."
    draw, labels = np.random.default_rng(11), np.repeat(np.arange(12), 4)
    def pair(r=0.0):
        mix = np.linalg.cholesky([[1, r], [r, 1]])
        return (np.repeat(draw.normal(size=(12, 2)) @ mix.T, 4, 0) + 0.7 * draw.normal(size=(48, 2)) @ mix.T).T
    p = np.array([[rank_correlation(*v, clusters=labels).meta["p_value"], stats.kendalltau(*v).pvalue] for v in (pair() for _ in range(200))])
    assert (p[:, 1] < 0.05).mean() > 0.12 and (p[:, 0] < 0.05).mean() < 0.1      # 200 worlds: a share of 5 % has a standard error of 1.5 points
    x, y = pair(0.8)
    plain, grouped = rank_correlation(x, y), rank_correlation(x, y, clusters=[f"family {c}" for c in labels])
    assert grouped.value == plain.value and grouped.n_clusters == 12 and grouped.ci[0] < grouped.value < grouped.ci[1]
    few = rank_correlation(x[:12], y[:12], clusters=labels[:12])
    assert few.ci == (-1, 1) and math.isnan(few.meta["p_value"]) and "below 8 clusters" in few.method
    perfect = rank_correlation(np.arange(24), np.arange(24), clusters=labels[:24] * 0 + np.repeat(np.arange(12), 2))
    assert perfect.ci[1] == 1 and 0 < perfect.ci[0] < 1 and "analytic" in perfect.method


def test_variants_that_never_differ_keep_an_interval():
    spread = format_spread_ci(np.repeat(np.random.default_rng(0).random((60, 1)) < 0.5, 4, 1))
    assert spread.split.value == 0 and math.isclose(spread.split.ci[1], 1 - 0.05 ** (1 / 60)) and "degenerate" in spread.split.method
    assert 0 < spread.sd.ci[1] < spread.split.ci[1]
