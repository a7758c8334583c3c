"""Calibration, judges, aggregates, power: closed forms, peers, coverage with stated seeds, bad input."""
import math

import numpy as np
import pytest
from scipy import stats

import designloop.stats as st
from designloop.core.errors import ParameterError
from designloop.stats import Comparison, Score
from designloop.stats.aggregate import aggregates_of
from designloop.stats.calibration import mass_bins

draw = np.random.default_rng(0)
CONFIDENCE = draw.beta(2, 1, 300)
CORRECT = (draw.random(300) < CONFIDENCE).astype(float)

# ---- calibration ------------------------------------------------------------------------------------------------------------------

def test_proper_scores_are_sklearns():
    from sklearn.metrics import brier_score_loss
    from sklearn.metrics import log_loss as peer
    assert math.isclose(st.brier_score(CONFIDENCE, CORRECT).value, brier_score_loss(CORRECT, CONFIDENCE))
    assert math.isclose(st.log_loss(CONFIDENCE, CORRECT).value, peer(CORRECT, CONFIDENCE))
    grouped = st.brier_score(CONFIDENCE, CORRECT, clusters=np.arange(300) // 10)
    assert grouped.n_clusters == 30 and not grouped.higher_is_better

def test_bins_have_equal_mass_and_keep_ties_together():
    assert set(np.bincount(mass_bins(CONFIDENCE, 15))) == {20}
    tied = mass_bins(np.repeat([0.2, 0.9], 30), 15)
    assert len(np.unique(tied)) == 2
    curve = st.reliability_curve(CONFIDENCE, CORRECT, 10)
    assert curve["n"].sum() == 300 and math.isclose(curve["n"] @ curve["accuracy"], CORRECT.sum()) and (curve["low"] <= curve["accuracy"]).all()

def test_calibration_error_by_hand_and_under_calibration():
    one = st.expected_calibration_error([0.9] * 10, [1] * 6 + [0] * 4, bins=1)
    assert math.isclose(one.meta["raw"], 0.3) and one.meta["p_value"] < 0.05
    # 150 calibrated data sets, seed 1: the mean has a standard error of 0.0012; of 5 % alarms more than 18 of 150 have probability 4e-4
    rng = np.random.default_rng(1)
    found = [st.expected_calibration_error(c, (rng.random(200) < c).astype(float), rng=rng) for c in rng.beta(2, 1, (150, 200))]
    assert abs(np.mean([s.value for s in found])) < 0.006 and sum(s.meta["p_value"] < 0.05 for s in found) <= 18
    assert np.mean([s.ci[0] <= 0 <= s.ci[1] for s in found]) > 0.9

# ---- judges -----------------------------------------------------------------------------------------------------------------------

def test_agreement_is_sklearns():
    from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 4, 150)
    said = np.where(rng.random(150) < 0.6, truth, rng.integers(0, 4, 150))
    for weights, peer in (("none", None), ("quadratic", "quadratic")):
        scores = st.agreement(said, truth, weights).scores
        assert math.isclose(scores["kappa"].value, cohen_kappa_score(truth, said, weights=peer))
        assert math.isclose(scores["balanced accuracy"].value, balanced_accuracy_score(truth, said)) and scores["accuracy"].value == (said == truth).mean()
        assert all(s.ci[0] < s.value < s.ci[1] for s in scores.values())
    words = st.agreement(["yes", "no", "yes"], ["yes", "no", "no"])
    assert words.items.shape == (2, 3) and words.scores["accuracy"].n == 3
    copied = [st.agreement(np.repeat(said, 4), np.repeat(truth, 4), clusters=c).scores["kappa"] for c in (None, np.repeat(np.arange(150), 4))]
    assert 1.6 < np.ptp(copied[1].ci) / np.ptp(copied[0].ci) < 2.5              # √4

def test_krippendorff_on_the_published_example_and_its_peer():
    _ = np.nan
    table = np.array([[1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
                      [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _]])
    for metric, known in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert abs(st.krippendorff_alpha(table.T, metric).value - known) < 6e-4
    assert st.krippendorff_alpha([[1, 1], [2, 2], [1, 1]]).value == 1
    krippendorff = pytest.importorskip("krippendorff", reason="krippendorff is not installed")
    for metric in ("nominal", "ordinal", "interval"):
        assert math.isclose(st.krippendorff_alpha(table.T, metric).value, krippendorff.alpha(reliability_data=table, level_of_measurement=metric), abs_tol=1e-9)

def test_two_raters_alpha_approaches_scotts_pi():
    rng = np.random.default_rng(3)
    pair = rng.integers(0, 2, (2000, 2)).astype(float)
    p = np.bincount(pair.astype(int).ravel()) / pair.size
    pi = ((pair[:, 0] == pair[:, 1]).mean() - (p**2).sum()) / (1 - (p**2).sum())
    assert abs(st.krippendorff_alpha(pair).value - pi) < 1e-3

def test_position_consistency():
    found = st.position_consistency([1, 1, 0, 1, 0.5], [0, 1, 1, 1, 0.5]).scores
    assert found["consistency"].value == 3 / 5 and found["first place"].value == 1 and found["first place"].n == 2

def test_corrected_rates_by_hand():
    verdicts, judged, labels = np.r_[np.ones(60), np.zeros(40)], np.r_[np.ones(45), np.zeros(5), np.ones(10), np.zeros(40)], np.r_[np.ones(50), np.zeros(50)]
    score = st.judge_corrected_rate(verdicts, judged, labels)
    assert math.isclose(score.value, (0.6 + 0.8 - 1) / (0.9 + 0.8 - 1)) and score.meta["sensitivity"] == 0.9 and score.meta["specificity"] == 0.8
    ppi = st.ppi_mean([0.0, 1.0, 2.0], [0.0, 1.0], [1.0, 1.0])
    assert ppi.value == 1.5 and ppi.meta["correction"] == 0.5
    perfect = st.ppi_mean(np.arange(100.0), np.arange(20.0), np.arange(20.0))
    half = stats.t.ppf(0.975, 99) * np.arange(100).std(ddof=1) / 10
    assert np.allclose(perfect.ci, (49.5 - half, 49.5 + half))

def test_corrected_rates_cover():
    # 400 data sets, seed 4: a coverage of 95 % falls below 92 % with probability 0.005, of 93 % below 90 % with 0.01
    rng, hits = np.random.default_rng(4), []
    for _ in range(400):
        good = rng.random(600) < 0.6
        says = np.where(good, rng.random(600) < 0.9, rng.random(600) < 0.3).astype(float)
        y, f, g = good[:150].astype(float), says[150:], says[:150]
        hits.append([s.ci[0] <= 0.6 <= s.ci[1] for s in (st.judge_corrected_rate(f, g, y), st.ppi_mean(f, g, y), st.proportion_ci(says))])
    rg, ppi, naive = np.mean(hits, axis=0)
    assert rg > 0.9 and ppi > 0.9 and naive < 0.5

# ---- aggregates -------------------------------------------------------------------------------------------------------------------

def test_aggregates_by_hand():
    table = np.random.default_rng(5).gamma(2, 0.5, (6, 10))
    mean, median, middle, gap = aggregates_of(table)
    assert math.isclose(mean, table.mean()) and math.isclose(median, np.median(table.mean(0))) and math.isclose(middle, stats.trim_mean(table, 0.25, axis=None))
    assert math.isclose(gap, 1 - np.minimum(table, 1).mean()) and math.isclose(st.optimality_gap(table).value, gap)
    assert np.allclose(aggregates_of(np.stack([table, 2 * table]))[:, 0], (mean, median, middle, gap))
    report = st.compare_aggregates({"x": table, "y": table + 1}, ["IQM"])
    assert list(report.scores) == ["x: IQM", "y: IQM"] and math.isclose(report.scores["y: IQM"].value - report.scores["x: IQM"].value, 1)
    assert st.compare_aggregates({"x": table}).to_frame().equals(st.compare_aggregates({"x": table}).to_frame())

def test_probability_of_improvement_is_mann_whitney():
    rng = np.random.default_rng(6)
    x, y = rng.integers(0, 5, (7, 9)).astype(float), rng.integers(0, 4, (5, 9)).astype(float)
    score = st.probability_of_improvement(x, y, ("x", "y"))
    assert math.isclose(score.value, np.mean([stats.mannwhitneyu(x[:, t], y[:, t]).statistic / 35 for t in range(9)]))
    assert np.allclose(st.probability_of_improvement(x + 10, y).ci, 1) and st.probability_of_improvement(np.ones((3, 2)), np.ones((3, 2))).value == 0.5

def test_profiles_fall_and_hold_their_shares():
    rng = np.random.default_rng(7)
    table = rng.normal(size=(5, 8))
    profile = st.score_profile({"x": table}, [-9, 0, 9])
    assert list(profile["share"]) == [1, (table > 0).mean(), 0] and (profile["low"] <= profile["share"]).all() and (profile["share"] <= profile["high"]).all()

def test_friedman_and_nemenyi_are_scipy_and_demsar():
    rng = np.random.default_rng(8)
    table = rng.normal([0.6, 0.2, 0.0, -0.4], 1, (30, 4))
    ranks = st.friedman_nemenyi(table, list("abcd"))
    assert math.isclose(ranks.p_value, stats.friedmanchisquare(*table.T).pvalue) and math.isclose(sum(ranks.mean_ranks.values()), 10)
    assert abs(ranks.critical_difference - 2.569 * math.sqrt(20 / 180)) < 1e-3
    assert (ranks.pairs["differ"] == (ranks.pairs["p_value"] < 0.05)).all() and len(ranks.pairs) == 6
    lower = st.friedman_nemenyi(-table, list("abcd"), higher_is_better=False)
    assert lower.mean_ranks == ranks.mean_ranks

# ---- power ------------------------------------------------------------------------------------------------------------------------

def test_sample_sizes_by_hand_and_round_trip():
    za, zb = stats.norm.ppf([0.975, 0.8])
    plan = st.sample_size_paired(0.05, discordance=0.2)
    assert plan.n == math.ceil((za * math.sqrt(0.2) + zb * math.sqrt(0.2 - 0.0025)) ** 2 / 0.0025)
    for n in (200, 1000):
        for p_d in (0.1, 0.4):
            effect = st.minimum_detectable_effect(n, p_d).effect
            assert abs(st.sample_size_paired(effect, p_d).n - n) <= 1
            from designloop.stats.power import power_paired
            assert math.isclose(power_paired(n, effect, p_d).power, 0.8, abs_tol=1e-6)
    assert st.sample_size_paired(0.05, 0.2, design_effect=3).n == math.ceil(3 * (za * math.sqrt(0.2) + zb * math.sqrt(0.2 - 0.0025)) ** 2 / 0.0025)
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize
    assert st.sample_size_unpaired(0.6, 0.7).n == math.ceil(NormalIndPower().solve_power(abs(proportion_effectsize(0.6, 0.7)), alpha=0.05, power=0.8))
    done = Comparison("a", "b", 0.0, (-0.1, 0.1), 1.0, method="t", n_pairs=50)
    assert math.isclose(st.minimum_detectable_effect(done).effect, 0.1 / za * (za + zb)) and st.minimum_detectable_effect(done).n == 50
    one = Score("a", 0.5, (0.4, 0.6), n=96, method="Wilson")
    assert math.isclose(st.minimum_detectable_effect(one).effect, math.sqrt(2) * 0.1 / za * (za + zb))

def test_variance_components_by_hand_and_statistics():
    pure = st.variance_components(np.add.outer([0.0, 1, 2], [0.0, 3]))
    assert np.allclose(pure.table["variance"], [1, 4.5, 0]) and math.isclose(pure.standard_error(3, 2) ** 2, 1 / 3 + 4.5 / 2)
    # 200 tables of 6 × 5, seed 9: a coverage of 95 % falls below 90 % with probability 0.002
    rng, hits = np.random.default_rng(9), []
    for _ in range(200):
        y = rng.normal(0, 2, (6, 1)) + rng.normal(0, 1, 5) + rng.normal(0, 1, (6, 5))
        v = st.variance_components(y, rng=rng)
        hits.append([*(v.table["low"] <= [2, 1, 1]) & (v.table["high"] >= [2, 1, 1]), v.mean.ci[0] <= 0 <= v.mean.ci[1]])
    assert np.mean(hits, axis=0).min() > 0.9
    assert st.variance_components(rng.normal(size=(3, 4, 5))).shape == (3, 4)

# ---- bad input --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, words", [
    (lambda: st.brier_score([80, 50], [1, 0]), "outside the allowed range [0, 1]"),
    (lambda: st.brier_score([0.5], [0.5]), "right (1) or wrong (0)"),
    (lambda: st.brier_score([0.5], [1, 0]), "same items"),
    (lambda: st.log_loss([1.0, 0.5], [0, 1]), "Clip the confidences"),
    (lambda: st.expected_calibration_error([0.5, np.nan], [1, 0]), "1 NaN among 2"),
    (lambda: st.expected_calibration_error([0.5, 0.5], [1, 0], clusters=[1, 1]), "at least 2"),
    (lambda: st.expected_calibration_error([0.5, 0.5], [1, 0], bins=0), "bins=0"),
    (lambda: st.agreement([1, 2], [1]), "same items"),
    (lambda: st.agreement([1, None], [1, 2]), "1 empty label"),
    (lambda: st.agreement([1, 1], [1, 1]), "two labels"),
    (lambda: st.agreement([1, 3], [1, 2], categories=[1, 2]), "not among categories"),
    (lambda: st.agreement([1, 2], [1, 2], weights="linear"), "not known"),
    (lambda: st.agreement([1, 2], [1, 2], clusters=[0, 0]), "at least 2"),
    (lambda: st.krippendorff_alpha([[1], [2]]), "at least 2 raters"),
    (lambda: st.krippendorff_alpha([[1, np.nan], [2, 2]]), "at least 2 are needed"),
    (lambda: st.krippendorff_alpha([[1, 1], [1, 1]]), "there is none"),
    (lambda: st.position_consistency([1, 2], [1, 1]), "second) or 0.5"),
    (lambda: st.position_consistency([1], [1, 1]), "same pairs"),
    (lambda: st.judge_corrected_rate([1, 0], [0, 1], [1, 0]), "no better than chance"),
    (lambda: st.judge_corrected_rate([1, 0], [1, 1], [1, 1]), "both kinds"),
    (lambda: st.judge_corrected_rate([0.5, 0], [1, 0], [1, 0]), "ppi_mean"),
    (lambda: st.ppi_mean([1, 2], [1], [1]), "at least 2"),
    (lambda: st.ppi_mean([1, 2], [1, 1], [1]), "same answers"),
    (lambda: st.compare_aggregates({}), "empty"),
    (lambda: st.compare_aggregates({"a": [[1, 2]]}), "at least 2 runs"),
    (lambda: st.compare_aggregates({"a": np.ones((2, 2)), "b": np.ones((2, 3))}), "same tasks"),
    (lambda: st.compare_aggregates({"a": [[1, np.nan], [1, 2]]}), "not finite"),
    (lambda: st.compare_aggregates({"a": np.ones((2, 2))}, ["mode"]), "not known"),
    (lambda: st.probability_of_improvement(np.ones((2, 2)), np.ones((2, 3))), "same tasks"),
    (lambda: st.score_profile({"a": np.ones((2, 2))}, [np.nan]), "not finite"),
    (lambda: st.friedman_nemenyi(np.ones((5, 2))), "paired_difference"),
    (lambda: st.friedman_nemenyi([[1, 2, np.inf]] * 3), "not finite"),
    (lambda: st.friedman_nemenyi(np.ones((5, 3)), names=["a"]), "one for each"),
    (lambda: st.sample_size_paired(0.3, discordance=0.2), "cannot differ by more"),
    (lambda: st.sample_size_paired(0, discordance=0.2), "smallest difference that matters"),
    (lambda: st.sample_size_paired(0.1), "one of the two"),
    (lambda: st.sample_size_paired(0.1, discordance=0.2, power=80), "Write 0.8"),
    (lambda: st.sample_size_unpaired(0.5, 0.5), "any number of items"),
    (lambda: st.minimum_detectable_effect(10, discordance=0.05), "take more items"),
    (lambda: st.minimum_detectable_effect(Score("a", 1.0, (-math.inf, math.inf), n=3, method="x")), "no usable width"),
    (lambda: st.variance_components([[1, 2]]), "at least 2 of each"),
    (lambda: st.variance_components([[1, np.nan], [1, 2]]), "not finite"),
])
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ParameterError) as caught: call()
    assert words in str(caught.value)

def test_the_room_lists_its_names():
    assert all(hasattr(st, name) for name in st.__all__) and len(set(st.__all__)) == len(st.__all__)
    assert all(getattr(st, name).__doc__ for name in st.__all__)
