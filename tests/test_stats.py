"""Statistics: closed forms, peers, coverage with stated seeds, and bad input."""
import json
import math
import subprocess
import sys
import warnings
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from designloop.core.errors import DataCorrupt, DataMissing, ParameterError
from designloop.stats import (
    Comparison,
    Provenance,
    Report,
    Score,
    adjust_p,
    bootstrap_ci,
    clustered_mean_ci,
    iqm,
    mann_whitney,
    mcnemar,
    mean_ci,
    paired_difference,
    proportion_ci,
    sign_flip_test,
    unpaired_difference,
)
from designloop.stats.comparisons import _shift_rank, superiority_ci
from designloop.stats.intervals import cluster_sums, clustered_se, effective_wilson, size_correction

Z = float(stats.norm.ppf(0.975))

def items(n=30, seed=0, **options):
    x = np.random.default_rng(seed).beta(4, 2, n)
    return mean_ci(x, f"system {seed}", item_ids=range(n), score_range=(0, 1), **options)


# ---- closed forms and peers -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("k, n", [(0, 7), (3, 7), (7, 7), (18, 20), (180, 200)])
def test_wilson_is_the_written_formula_and_scipys(k, n):
    centre, half = (k + Z**2 / 2) / (n + Z**2), Z / (n + Z**2) * math.sqrt(k * (n - k) / n + Z**2 / 4)
    score = proportion_ci(k, n)
    assert np.allclose(score.ci, (centre - half, centre + half), atol=1e-12)
    peer = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert np.allclose(score.ci, (peer.low, peer.high)) and score.n == n and score.value == k / n

@pytest.mark.parametrize("k, n", [(0, 7), (3, 7), (20, 20)])
def test_clopper_pearson_and_jeffreys_are_beta_quantiles(k, n):
    peer = stats.binomtest(k, n).proportion_ci(method="exact")
    assert np.allclose(proportion_ci(k, n, method="clopper-pearson").ci, (peer.low, peer.high))
    low, high = stats.beta.ppf([0.025, 0.975], k + 0.5, n - k + 0.5)
    assert np.allclose(proportion_ci(k, n, method="jeffreys").ci, (0 if k == 0 else low, 1 if k == n else high))

def test_wald_warns_and_the_default_does_not():
    with pytest.warns(UserWarning, match="covers too little"): proportion_ci(19, 20, method="wald")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proportion_ci(19, 20)

def test_mean_follows_the_number_of_items():
    draw = np.random.default_rng(1)
    assert mean_ci(draw.random(9)).method == "t" and mean_ci(draw.random(10)).method == "BCa bootstrap"
    assert mean_ci(draw.random(199)).method == "BCa bootstrap" and mean_ci(draw.random(200)).method == "t"
    assert mean_ci(draw.random(50) > 0.5).method == "Wilson"
    assert mean_ci([0, 1, 1] * 20, score_range=(0, 10)).method == "BCa bootstrap"       # 0/1 by accident is not a proportion

def test_t_and_bca_are_scipys():
    x = np.random.default_rng(2).lognormal(size=60)
    assert np.allclose(mean_ci(x, method="t").ci, stats.ttest_1samp(x, 0).confidence_interval(0.95))
    peer = stats.bootstrap((x,), np.mean, n_resamples=9999, method="BCa", random_state=np.random.default_rng(5)).confidence_interval
    ours = mean_ci(x, rng=np.random.default_rng(5)).ci
    assert ours == (float(peer.low), float(peer.high))

@pytest.mark.parametrize("n", [1, 5, 40])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_scores_get_the_degenerate_interval(n, value):
    score = mean_ci([value] * n, score_range=(0, 2))
    share = 1 - 0.05 ** (1 / n)
    assert score.method.startswith("degenerate") and np.allclose(score.ci, (value - share * value, value + share * (2 - value)))
    assert mean_ci([value + 0.1] * n).ci == (-math.inf, math.inf)

def test_degenerate_interval_keeps_its_promise_in_the_worst_case():
    # Items score 0, but a share q scores 1. The interval is used only when all n agree; it fails when q exceeds its bound, at most 5 % of the time.
    for n in (5, 20, 60):
        bound = mean_ci([0.0] * n, score_range=(-1, 1)).ci[1]
        assert math.isclose((1 - bound) ** n, 0.05, rel_tol=1e-9)

@pytest.mark.parametrize("sizes", [[5] * 25, [1, 2, 3, 9, 4, 4, 7], [1] * 30])
def test_clustered_error_is_the_formula_and_statsmodels(sizes):
    import statsmodels.api as sm
    draw, codes = np.random.default_rng(3), np.repeat(np.arange(len(sizes)), sizes)
    x = draw.normal(size=len(sizes))[codes] + draw.normal(size=len(codes))
    shuffle = draw.permutation(len(x))
    score = clustered_mean_ci(x[shuffle], np.array([f"c{c}" for c in codes])[shuffle], method="t")
    fit = sm.OLS(x, np.ones(len(x))).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    assert math.isclose(score.meta["se"], float(fit.bse[0]), rel_tol=1e-9) and np.allclose(score.ci, fit.conf_int()[0])
    G, n = len(sizes), len(x)
    residual = [(x[codes == g] - x.mean()).sum() for g in range(G)]
    assert math.isclose(score.meta["se"], math.sqrt(G / (G - 1) * np.square(residual).sum()) / n, rel_tol=1e-9)
    assert math.isclose(score.meta["design_effect"], (score.meta["se"] / (x.std(ddof=1) / math.sqrt(n))) ** 2, rel_tol=1e-9)
    assert math.isclose(score.meta["effective_n"] * score.meta["design_effect"], n) and score.n_clusters == G

def test_size_correction_matches_simulated_moments():
    # 40,000 draws, seed 4: relative standard error of the mean 1 %, of the variance about 3 %; tolerances are more than 4 of them.
    sizes = np.array([1, 2, 4, 8, 15])
    sums = np.random.default_rng(4).normal(size=(40_000, 5)) * sizes
    mean, se = clustered_se(sums, sizes)
    kappa, df = size_correction(sizes)
    assert math.isclose(kappa, mean.var() / (se**2).mean(), rel_tol=0.05)
    assert math.isclose(df, 2 * (se**2).mean() ** 2 / (se**2).var(), rel_tol=0.15)
    assert np.allclose(size_correction(np.full(9, 3)), (1, 8))

def test_clusters_of_equal_size_are_their_means():
    x = np.random.default_rng(5).random((24, 4))
    assert np.allclose(clustered_mean_ci(x.ravel(), np.repeat(np.arange(24), 4)).ci, mean_ci(x.mean(1), method="t").ci)

def test_sign_flip_is_scipys_permutation_test_and_mcnemar():
    draw = np.random.default_rng(6)
    d = draw.normal(0.4, 1, 10)
    peer = stats.permutation_test((d, np.zeros(10)), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=2**10 + 1)
    ours = sign_flip_test(d)
    assert ours.exact and ours.patterns == 1024 and math.isclose(ours.p_value, peer.pvalue)
    a, b = draw.random(40) < 0.6, draw.random(40) < 0.5
    from statsmodels.stats.contingency_tables import mcnemar as peer_mcnemar
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    assert math.isclose(mcnemar(a, b).p_value, peer_mcnemar(table, exact=True).pvalue)
    small = (np.array([1, 1, 1, 1, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 0]))
    assert math.isclose(sign_flip_test(small[0] - small[1]).p_value, mcnemar(*small).p_value)

def test_sampled_sign_flips_agree_with_the_exact_p():
    d = np.random.default_rng(7).normal(0.5, 1, 14)
    exact = sign_flip_test(d)
    many = sign_flip_test(np.r_[d, np.full(2, 1e-9)])                  # two tiny extras make 2^16 patterns: sampled
    assert exact.exact and not many.exact
    assert abs(exact.p_value - many.p_value) < 4 * math.sqrt(exact.p_value / 9999) + 2e-4

def test_mann_whitney_is_scipys_and_the_shift_interval_inverts_it():
    draw = np.random.default_rng(8)
    x, y = draw.normal(1, 1, 9), draw.normal(0, 1, 8)
    ours, peer = mann_whitney(x, y), stats.mannwhitneyu(x, y, method="exact")
    assert math.isclose(ours.p_value, peer.pvalue) and math.isclose(ours.effect, peer.statistic / 72)
    for end, inward in zip(ours.ci, (1e-7, -1e-7), strict=True):       # shifts inside are not rejected at 5 %, those outside are
        assert stats.mannwhitneyu(x - end - inward, y, method="exact").pvalue > 0.05
        assert stats.mannwhitneyu(x - end + inward, y, method="exact").pvalue <= 0.05

@pytest.mark.parametrize("m, n", [(3, 3), (4, 4), (5, 3), (6, 5)])
def test_shift_rank_by_enumeration(m, n):
    u = np.array([sum(c) - m * (m - 1) // 2 for c in combinations(range(m + n), m)])
    expected = sum((u <= v).mean() <= 0.025 for v in range(m * n))
    assert _shift_rank(m, n, 0.95) == expected

def test_shift_rank_large_groups_match_scipy():
    c = _shift_rank(40, 35, 0.95)
    def p(u): return float(stats.mannwhitneyu(*_groups(40, 35, u), method="exact", alternative="less").pvalue)
    assert p(c - 1) <= 0.025 < p(c)

def _groups(m, n, u):
    "Two groups without ties whose Mann–Whitney statistic is u."
    beaten = np.full(m, u // m) + (np.arange(m) < u % m)
    return np.array([b - 0.5 + 0.001 * i for i, b in enumerate(np.sort(beaten))]), np.arange(n) + 0.0

@pytest.mark.parametrize("theta", [0.0, 0.2, 0.5, 0.93, 1.0])
def test_superiority_ends_solve_the_equation(theta):
    m, n = 7, 12
    low, high = superiority_ci(theta, m, n, 0.95)
    assert 0 <= low <= theta <= high <= 1 and low < high
    for end in {low, high} - {0.0, 1.0}:
        mid = (m + n) / 2
        se = math.sqrt(end * (1 - end) / (m * n) * (1 + (mid - 1) * ((1 - end) / (2 - end) + end / (1 + end))))
        assert math.isclose(abs(theta - end), Z * se, rel_tol=1e-6)
    assert np.allclose(superiority_ci(1 - theta, n, m, 0.95), (1 - high, 1 - low), atol=1e-9)

@pytest.mark.parametrize("method, peer", [("holm", "holm"), ("bh", "fdr_bh")])
def test_adjusted_p_is_statsmodels(method, peer):
    from statsmodels.stats.multitest import multipletests
    p = np.r_[np.random.default_rng(9).random(12) ** 3, 0.0, 1.0, 0.03, 0.03]
    assert np.allclose(adjust_p(p, method), multipletests(p, method=peer)[1])

def test_unpaired_wilson_difference_is_newcombes():
    from statsmodels.stats.proportion import confint_proportions_2indep
    comparison = proportion_ci(56, 70) - proportion_ci(48, 80)
    assert np.allclose(comparison.ci, confint_proportions_2indep(56, 70, 48, 80, method="newcomb"), atol=1e-9)
    assert (proportion_ci(5, 5) - proportion_ci(5, 5)).p_value == 1

def test_iqm_is_the_trimmed_mean():
    x = np.random.default_rng(10).normal(size=(5, 8))
    score = iqm(x)
    assert math.isclose(score.value, stats.trim_mean(x.ravel(), 0.25)) and score.ci[0] < score.value < score.ci[1] and score.n == 5

def test_bootstrap_of_clusters_equals_bootstrap_of_their_means():
    means = np.random.default_rng(11).normal(size=15)
    whole = bootstrap_ci(np.repeat(means, 3), clusters=np.repeat(np.arange(15), 3), resamples=999)
    assert np.allclose(whole.ci, bootstrap_ci(means, resamples=999).ci, atol=0.12) and whole.n_clusters == 15


# ---- coverage and false alarms -----------------------------------------------------------------------------------------------------

def test_coverage_wald_falls_short_and_wilson_holds():
    # 4,000 experiments, n = 20, p = 0.9, seed 20; a true coverage of 0.957 leaves [0.945, 0.97] once in 5,000 seeds.
    k = np.random.default_rng(20).binomial(20, 0.9, 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = {m: np.array([proportion_ci(j, 20, method=m).ci for j in range(21)])[k] for m in ("wald", "wilson")}
    covered = {m: np.mean((e[:, 0] <= 0.9) & (0.9 <= e[:, 1])) for m, e in ends.items()}
    assert covered["wald"] < 0.90 and 0.945 < covered["wilson"] < 0.97

def test_coverage_naive_fails_and_clustered_holds():
    # 4,000 experiments, 40 clusters of 5, intra-cluster correlation 0.5, seed 21; standard error of the coverage 0.0035.
    draw, codes = np.random.default_rng(21), np.repeat(np.arange(40), 5)
    x = math.sqrt(0.5) * draw.normal(size=(4000, 40))[:, codes] + math.sqrt(0.5) * draw.normal(size=(4000, 200))
    mean, se = clustered_se(*cluster_sums(x, codes))
    naive = np.mean(np.abs(mean) <= stats.t.ppf(0.975, 199) * stats.sem(x, axis=1))
    clustered = np.mean(np.abs(mean) <= stats.t.ppf(0.975, 39) * se)
    assert naive < 0.80 and 0.93 < clustered < 0.97
    for i in range(5): assert np.allclose(clustered_mean_ci(x[i], codes).ci, mean[i] + np.array([-1, 1]) * stats.t.ppf(0.975, 39) * se[i])

@pytest.mark.parametrize("p", [0.6, 0.9])
def test_coverage_of_few_unequal_clusters_of_right_and_wrong(p):
    # 3,000 experiments, 12 clusters of 1 to 30, seed 22; true coverage above 0.97, so 0.95 is 5 standard errors away.
    sizes, draw = np.geomspace(1, 30, 12).round().astype(int), np.random.default_rng(22)
    codes = np.repeat(np.arange(12), sizes)
    x = (draw.random((3000, len(codes))) < draw.beta(3 * p, 3 * (1 - p), (3000, 12))[:, codes]).astype(float)
    (mean, se), (kappa, df), naive = clustered_se(*cluster_sums(x, codes)), size_correction(sizes), stats.sem(x, axis=1)
    inflation = np.divide(kappa * se**2, naive**2, out=np.full(3000, len(codes) / 12), where=naive > 0)
    low, high = effective_wilson(mean, len(codes) / np.maximum(1, inflation), stats.t.ppf(0.975, df))
    assert np.mean((low <= p) & (p <= high)) > 0.95 > np.mean(np.abs(mean - p) <= stats.t.ppf(0.975, 11) * se) + 0.03
    for i in range(5): assert np.allclose((low[i], high[i]), clustered_mean_ci(x[i], codes).ci)

def test_false_alarms_of_the_paired_test_on_clusters():
    # 400 experiments without a difference, 9 clusters of 4, seed 23. An exact 5 % test alarms more than 35 times in fewer than 1 in 500 seeds.
    draw, codes, alarms = np.random.default_rng(23), np.repeat(np.arange(9), 4), 0
    for _ in range(400):
        d = draw.standard_t(3, 9)[codes] + draw.normal(size=36)
        alarms += sign_flip_test(d, codes).p_value <= 0.05
    assert 5 <= alarms <= 35

def test_paired_interval_covers_and_is_narrower_than_unpaired():
    # 200 experiments of 60 items with shared difficulty, seed 24; BCa covers about 0.93 here: fewer than 174 of 200 has probability below 0.001.
    draw, inside, widths = np.random.default_rng(24), 0, []
    for _ in range(200):
        shared = draw.normal(0, 1, 60)
        a, b = (mean_ci(shared + draw.normal(m, 0.3, 60), n, item_ids=range(60), method="t") for m, n in ((0.2, "a"), (0.0, "b")))
        paired = paired_difference(a.per_item, b.per_item)
        inside += paired.ci[0] <= 0.2 <= paired.ci[1]
        widths.append(np.ptp(paired.ci) / np.ptp(unpaired_difference(a, b).ci))
    assert inside >= 174 and np.mean(widths) < 0.4

def test_holm_controls_the_family():
    # 3,000 families of 10 true nulls, seed 25: any false alarm in 5 % ± 1.6 points (4 standard errors).
    p = np.random.default_rng(25).random((3000, 10))
    assert np.mean([(adjust_p(row) <= 0.05).any() for row in p]) < 0.066 < np.mean((p <= 0.05).any(1))


# ---- scores, subtraction, reports ---------------------------------------------------------------------------------------------------

def test_subtraction_pairs_by_item_id_in_any_order():
    a, b = items(seed=0), items(seed=1)
    order = np.random.default_rng(0).permutation(30)
    shuffled = Score(b.name, b.value, b.ci, method=b.method, per_item=b.per_item[order], item_ids=[b.item_ids[i] for i in order])
    assert (a - shuffled).n_pairs == 30 and (a - shuffled).ci == (a - b).ci and (a - b).diff == pytest.approx(float(a) - float(b))
    elsewhere = mean_ci(b.per_item, "other items", item_ids=range(100, 130))
    assert (a - elsewhere).n_pairs is None and np.ptp((a - elsewhere).ci) > 0
    with pytest.raises(TypeError): a - 0.5

def test_clusters_travel_with_the_scores():
    codes = np.repeat(np.arange(6), 5)
    a, b = (clustered_mean_ci(items(seed=s).per_item, codes, f"s{s}", item_ids=range(30)) for s in (0, 1))
    comparison = a - b
    assert comparison.n_clusters == 6 and comparison.meta["df"] == pytest.approx(5) and "sign-flip" in comparison.method
    other = clustered_mean_ci(b.per_item, np.arange(30) % 6, "s1", item_ids=range(30))
    with pytest.raises(ParameterError, match="group their items differently"): a - other

def test_identical_systems_differ_by_nothing():
    a = items(seed=0)
    same = paired_difference(a, a)
    assert same.diff == 0 and same.p_value == 1 and same.effect is None and same.better is None
    assert paired_difference([1, 0, 1], [1, 0, 1]).ci[0] < 0 < paired_difference([1, 0, 1], [1, 0, 1]).ci[1]

def test_better_respects_the_direction():
    slow, fast = ([9.0, 9.5, 9.2, 9.9, 9.1, 9.3, 9.4], [1.0, 1.1, 1.3, 1.2, 1.6, 1.4, 1.5])
    a, b = (mean_ci(x, n, unit="s", higher_is_better=False, item_ids=range(7)) for x, n in ((slow, "slow"), (fast, "fast")))
    assert (a - b).better == "fast" and (b - a).better == "fast" and (a - b).unit == "s"

def test_report_round_trip_and_torn_files(tmp_path):
    a, b = items(seed=0), clustered_mean_ci(items(seed=1).per_item, np.arange(30) // 5, "clustered", item_ids=range(30))
    summary = proportion_ci(3, 9, name="no items")
    tests = adjust_p([a - b, a - summary], family="pairs")
    table = pd.DataFrame({"item_id": range(30), "system": "x", "score": a.per_item})
    report = Report("all kinds", [a, b, summary, mean_ci([0.5] * 4, "unbounded")], tests, Provenance.collect(3, ["data", "bootstrap"]), table)
    back = Report.load(report.save(tmp_path / "r"))
    assert back == report and back.items.equals(table) and np.array_equal(back.scores["clustered"].clusters, b.clusters)
    assert back.scores["unbounded"].ci == (-math.inf, math.inf) and back.comparisons[0].family == "2 pairs (Holm)"
    assert (back.scores[a.name] - back.scores["clustered"]).ci == (a - b).ci
    json.loads((tmp_path / "r" / "report.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    report.save(tmp_path / "r")                                                     # saving again over it
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["items.parquet", "report.json", "table.parquet"]
    (tmp_path / "r" / "table.parquet").unlink()
    with pytest.raises(DataCorrupt, match="table.parquet"): Report.load(tmp_path / "r")
    (tmp_path / "r" / "report.json").write_text("{")
    with pytest.raises(DataCorrupt, match="not JSON"): Report.load(tmp_path / "r")
    with pytest.raises(DataMissing, match="no report"): Report.load(tmp_path / "nothing")

def test_unsavable_report_leaves_the_old_one(tmp_path):
    good = Report("r", [proportion_ci(3, 9)])
    good.save(tmp_path / "r")
    with pytest.raises(ParameterError, match="cannot be saved"):
        Report("r", [proportion_ci(4, 9, meta={"f": object()})]).save(tmp_path / "r")
    assert Report.load(tmp_path / "r") == good

def test_report_shows_itself_escaped():
    import matplotlib
    matplotlib.use("agg")
    report = Report("<b>title</b>", [proportion_ci(3, 9, name="a|b")], [proportion_ci(3, 9, name="<x>") - proportion_ci(5, 9)])
    assert "<b>" not in report._repr_html_() and "&lt;x&gt;" in report._repr_html_() and "a\\|b" in report.to_markdown()
    ax = report.plot()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a|b"] and "95 %" in ax.get_xlabel()
    assert list(report.to_frame().columns)[:4] == ["score", "value", "low", "high"] and len(report.comparisons_frame()) == 1

def test_a_score_can_be_recorded(tmp_path, monkeypatch):
    from designloop.core.records import read_records, record
    monkeypatch.setenv("DESIGNLOOP_RECORDS", str(tmp_path / "records.jsonl"))
    record("accuracy", proportion_ci(18, 20))
    record("flat", mean_ci([0.5, 0.5], name="flat"))
    first, second = read_records(tmp_path / "records.jsonl")
    assert first["score"]["n"] == 20 and first["score"]["low"] == pytest.approx(proportion_ci(18, 20).ci[0]) and first["value"] == 0.9
    assert second["value"] == 0.5

def test_the_room_is_lazy():
    code = ("import sys, designloop; assert not any(m.startswith('designloop.stats') for m in sys.modules); from designloop.stats import Score; "
            "assert 'scipy' not in sys.modules and 'pandas' not in sys.modules and 'torch' not in sys.modules; "
            "from designloop.stats import mean_ci; assert 'torch' not in sys.modules; from designloop import Report; print('ok')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "ok", done.stderr


# ---- bad input ------------------------------------------------------------------------------------------------------------------------

NAN = float("nan")
BAD = {
    "NaN names items": (lambda: mean_ci([1, NAN, 0.5, NAN], item_ids=["q1", "q2", "q3", "q4"]), r"2 NaN among 4 .*q2, q4.*missing=\"zero\""),
    "out of range": (lambda: mean_ci([0.1, 1.4], score_range=(0, 1)), r"1 score.*\[0, 1\].*1\.4 \(item 1\)"),
    "infinite": (lambda: mean_ci([0.1, math.inf]), r"inf \(item 1\)"),
    "empty": (lambda: mean_ci([]), "at least one item"),
    "not flat": (lambda: mean_ci([[1, 2], [3, 4]]), r"\(2, 2\)"),
    "text": (lambda: mean_ci(["a", "b"]), "not a number"),
    "k above n": (lambda: proportion_ci(9, 8), "successes=9.*<= 8"),
    "fractional k": (lambda: proportion_ci(2.5, 8), "successes=2.5.*whole number"),
    "no n": (lambda: proportion_ci(3), "n is missing"),
    "graded successes": (lambda: proportion_ci([0.2, 1]), "neither 0 nor 1"),
    "level": (lambda: mean_ci([1, 2], level=95), "level=95.*0.95"),
    "level 1": (lambda: proportion_ci(1, 2, level=1), "level=1"),
    "method": (lambda: mean_ci([1, 2, 3], method="bcs"), "bca"),
    "wilson of graded": (lambda: mean_ci([0.5, 1], method="wilson"), "all 0 or 1"),
    "range": (lambda: mean_ci([1, 2], score_range=(2, 1)), "low < high"),
    "one cluster": (lambda: clustered_mean_ci([1, 2], ["a", "a"]), "at least 2"),
    "cluster labels": (lambda: clustered_mean_ci([1, 2], ["a"]), "1 labels for 2"),
    "empty label": (lambda: clustered_mean_ci([1, 2, 3], ["a", None, "b"]), "index 1"),
    "item_ids": (lambda: mean_ci([1, 2], item_ids=["a"]), "1 labels for 2"),
    "repeated ids": (lambda: mean_ci([1, 2], item_ids=["a", "a"]), "repeat"),
    "lengths": (lambda: paired_difference([1, 2], [1, 2, 3]), "2 items and b has 3"),
    "some ids": (lambda: items(seed=0) - mean_ci([0.1] * 30, "b", item_ids=range(10, 40)), "share 20 of 30"),
    "no ids": (lambda: paired_difference(items(seed=0), mean_ci(np.arange(30.0), "b")), "same item_ids"),
    "no per_item": (lambda: paired_difference(proportion_ci(1, 3), proportion_ci(2, 3)), "no per_item"),
    "one kind": (lambda: paired_difference(items(), [1, 2]), "one kind"),
    "hashes": (lambda: items(meta={"data_sha256": "aa"}) - items(seed=1, meta={"data_sha256": "bb"}), "different data.*aa and bb"),
    "units": (lambda: items(unit="nm") - items(seed=1), "unit='nm'"),
    "levels": (lambda: items(level=0.9) - items(seed=1), "level=0.9"),
    "shared seed": (lambda: Provenance(streams={"search": 5, "test": 5}), "'search' and 'test' share the seed 5"),
    "p above 1": (lambda: adjust_p([0.1, 1.1]), r"tests\[1\]=1.1"),
    "no tests": (lambda: adjust_p([]), "empty"),
    "adjustment": (lambda: adjust_p([0.1], "holmes"), "'holm'"),
    "one run": (lambda: iqm([[1, 2, 3]]), "at least 2 runs"),
    "runs NaN": (lambda: iqm([[1, NAN], [2, 3]]), "not finite"),
    "vector statistic": (lambda: bootstrap_ci([1, 2, 3], lambda x: x), "one finite number"),
    "score without n": (lambda: Score("s", 0.5, (0, 1), method="t"), "lacks n"),
    "score upside down": (lambda: Score("s", 0.5, (1, 0), n=3, method="t"), "low <= high"),
    "score NaN": (lambda: Score("s", NAN, (0, 1), n=3, method="t"), "value=nan"),
    "report of numbers": (lambda: Report("r", {"a": 0.5}), "must hold Scores"),
    "report of nothing": (lambda: Report("r", None), "a list of Scores"),
    "one test is no family": (lambda: adjust_p(0.03), "for a family"),
    "words in a table": (lambda: iqm([["a", "b"], ["c", "d"]]), "not a number"),
    "a statistic that gives words": (lambda: bootstrap_ci([1.0, 2.0, 3.0], lambda x: "many", name="many"), "one finite number"),
    "report twice": (lambda: Report("r", [proportion_ci(1, 2), proportion_ci(1, 2)]), "same name"),
    "mixed tests": (lambda: adjust_p([proportion_ci(1, 2) - proportion_ci(1, 3), 0.2]), "mixes"),
}

@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_its_sentence(name):
    call, sentence = BAD[name]
    with pytest.raises(ParameterError, match=sentence): call()

def test_missing_can_count_as_zero():
    assert mean_ci([1, NAN, 1, 1], missing="zero").ci == proportion_ci(3, 4).ci
    with pytest.raises(ParameterError, match="'zero'"): mean_ci([1, NAN], missing="zeros")

def test_comparison_refuses_impossible_p():
    with pytest.raises(ParameterError, match="p_value=1.5"): Comparison("a", "b", 0.1, (0, 1), 1.5, method="x")


def test_reports_say_what_they_could_have_found():
    a, b = (proportion_ci((np.arange(200) % m > 0).astype(float), name=n, item_ids=range(200)) for m, n in ((4, "a"), (5, "b")))
    difference = a - b
    assert difference.detectable == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.ptp(difference.ci) / 2 / stats.norm.ppf(0.975))
    assert a.detectable > difference.detectable / 2 and Report("r", [a, b], [difference]).comparisons_frame()["detectable"][0] == difference.detectable
    compared, alone = Report("r", [a, b], [difference]), Report("r", [a, b])
    for text in (str(compared), compared.to_markdown(), compared._repr_html_()): assert "found with 80 % power: a − b" in text
    assert "to an equal rival on other items: a 0." in str(alone) and "detectable" not in str(alone.to_dict())
    unknown = Report("r", [mean_ci([0.5, 0.5, 0.5], "flat")])
    assert unknown.scores["flat"].detectable is None and unknown.notes == []
