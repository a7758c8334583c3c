"""Gower distance against a loop, k-DPP against enumeration, the greedy subset against the whole matrix, and what is refused."""
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import chisquare

from designloop.core.diversity import (
    Gower,
    coverage,
    farthest_points,
    kdpp_probability,
    kdpp_sample,
    knn_distance,
    log_elementary,
    mean_pairwise,
    nearest_gap,
    similarity_kernel,
    vendi_score,
)
from designloop.core.errors import DesignError, ParameterError


def mixed(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"a": rng.normal(size=n), "b": rng.integers(0, 9, n), "c": rng.choice(list("pqr"), n), "d": 3.0})


def test_gower_is_the_sum_over_fields():
    left, right = mixed(15, 0), mixed(11, 1)
    gower = Gower(left)
    by_hand = np.array([[(abs(p.a - q.a) / np.ptp(left.a) + abs(p.b - q.b) / np.ptp(left.b) + (p.c != q.c)) / 4 for q in right.itertuples()] for p in left.itertuples()])
    assert np.allclose(gower(left, right), by_hand)
    assert np.allclose(gower(left, right), gower(right, left).T) and np.allclose(np.diag(gower(left)), 0)


def test_gower_of_a_matrix_is_a_scaled_city_block():
    x = np.random.default_rng(0).random((20, 3)) * [1, 10, 100]
    assert np.allclose(Gower(x)(x), cdist(x / np.ptp(x, axis=0), x / np.ptp(x, axis=0), "cityblock") / 3)


def test_gower_columns_may_come_in_any_order_and_unseen_categories_differ():
    left = mixed(8, 0)
    gower = Gower(left)
    assert np.allclose(gower(left[["d", "c", "b", "a"]]), gower(left))
    assert np.allclose(np.diag(gower(left, left.assign(c="new"))), 1 / 4)
    assert np.allclose(gower(left, left.assign(d=99.0)), gower(left)), "a field without range counts nothing"
    assert np.allclose(Gower(left, ranges={"a": 2 * np.ptp(left.a)})(left[["a", "b", "c", "d"]])[0, 1] * 4,
                       abs(left.a[0] - left.a[1]) / 2 / np.ptp(left.a) + abs(left.b[0] - left.b[1]) / np.ptp(left.b) + (left.c[0] != left.c[1]))


@pytest.mark.parametrize("wrong", [lambda: Gower(mixed(0, 0)), lambda: Gower(mixed(5, 0), ["z"]), lambda: Gower(mixed(5, 0))(mixed(5, 0).drop(columns="a")),
                                   lambda: Gower(mixed(5, 0))(mixed(5, 0).assign(a=np.nan)), lambda: similarity_kernel(np.zeros((2, 2)), 0),
                                   lambda: knn_distance(np.zeros((3, 0))), lambda: knn_distance(np.zeros((3, 2)), 0), lambda: kdpp_sample(np.eye(3), 4, None),
                                   lambda: kdpp_sample(np.ones((3, 3)), 2, None), lambda: kdpp_sample(np.array([[1, 2], [2, 1.0]]), 1, None),
                                   lambda: kdpp_sample(np.array([[1, 0.5], [0.1, 1.0]]), 1, None), lambda: farthest_points(lambda r: np.zeros((len(r), 3)), 3, 0),
                                   lambda: farthest_points(lambda r: np.zeros((len(r), 3)), 3, 2, np.zeros(2))])
def test_bad_input_is_refused(wrong):
    with pytest.raises((ParameterError, DesignError)) as error: wrong()
    assert len(str(error.value)) > 20


def test_exponential_kernel_of_gower_is_positive_and_the_gaussian_is_not():
    lowest = np.inf
    for seed in range(20):
        d = Gower(mixed(60, seed))(mixed(60, seed))
        for scale in (0.02, 0.1, 0.5, 3.0): assert np.linalg.eigvalsh(similarity_kernel(d, scale)).min() > -1e-9
        lowest = min(lowest, np.linalg.eigvalsh(np.exp(-d**2 / (2 * 0.5**2))).min())
    assert lowest < -1e-3


def test_measures_have_their_closed_forms():
    line = cdist(np.array([[0.0], [1], [3]]), np.array([[0.0], [1], [3]]), "cityblock")
    assert np.isclose(mean_pairwise(line), 2) and np.isclose(nearest_gap(line), 4 / 3)
    assert mean_pairwise(np.zeros((1, 1))) == nearest_gap(np.zeros((1, 1))) == 0
    blocks = np.kron(np.eye(3), np.ones((4, 4)))
    assert np.isclose(vendi_score(blocks), 3)
    assert coverage(line, 1.0) == 1 and coverage(line[:, :1], 1.0) == pytest.approx(2 / 3) and coverage(line[:, :0], 1.0) == 0
    assert np.allclose(knn_distance(line, 99), line.mean(1))


@pytest.mark.parametrize("seed", range(6))
def test_farthest_points_equal_the_rule_on_the_whole_matrix(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 200))
    x, q = rng.random((n, 3)), rng.random(n) ** rng.integers(1, 8)
    d = cdist(x, x, "cityblock")
    m = d * q[:, None] * q
    chosen = [int(i) for i in np.unravel_index(np.argmax(m), m.shape)]
    while len(chosen) < min(7, n): chosen.append(max(set(range(n)) - set(chosen), key=lambda j: m[chosen, j].min()))
    got = farthest_points(lambda rows: d[rows], n, 7, np.log(q), block=8)
    assert sorted(got.tolist()) == sorted(chosen)


def test_farthest_points_survive_tiny_qualities_and_twins():
    x = np.random.default_rng(0).random((50, 2))
    d = cdist(x, x, "cityblock")
    got = farthest_points(lambda rows: d[rows], 50, 5, np.linspace(0, -5000, 50))
    assert len(set(got.tolist())) == 5 and 0 in got, "qualities of e^-5000 must still be told apart"
    same = farthest_points(lambda rows: np.zeros((len(rows), 9)), 9, 4)
    assert len(set(same.tolist())) == 4
    assert farthest_points(lambda rows: d[rows], 50, 1, -np.arange(50.0)[::-1]).tolist() == [49]
    assert len(farthest_points(lambda rows: d[rows], 50, 99)) == 50


@pytest.mark.parametrize("k", [1, 2, 4])
def test_kdpp_has_the_probabilities_of_the_determinants(k):
    "2,000 draws for each of three sizes, chi-square at 0.0005: a right sampler fails in 1 of 700 choices of the seed; this one is fixed."
    rng = np.random.default_rng(11)
    x, q = rng.random((6, 2)), rng.uniform(0.3, 1, 6)
    L = similarity_kernel(cdist(x, x, "cityblock"), 0.7) * q[:, None] * q
    sets = list(itertools.combinations(range(6), k))
    dets = np.array([np.linalg.det(L[np.ix_(s, s)]) for s in sets])
    p = np.array([kdpp_probability(L, s) for s in sets])
    assert np.allclose(p, dets / dets.sum())
    counts = dict.fromkeys(sets, 0)
    for _ in range(2000): counts[tuple(kdpp_sample(L, k, rng).tolist())] += 1
    assert chisquare(list(counts.values()), 2000 * p).pvalue > 0.0005


def test_kdpp_of_a_large_badly_scaled_kernel():
    rng = np.random.default_rng(0)
    x, q = rng.random((400, 3)), np.exp(-12 * rng.random(400))
    chosen = kdpp_sample(similarity_kernel(cdist(x, x, "cityblock"), 0.3) * q[:, None] * q, 10, rng)
    assert len(set(chosen.tolist())) == 10 and np.log(q[chosen]).mean() > np.log(q).mean() + 3


def test_log_elementary_against_the_definition():
    values = np.array([0.5, 2.0, 0.0, 3.0, 1e-3])
    table = np.exp(log_elementary(values, 5)[:, -1])
    assert np.allclose(table, [sum(np.prod(s) for s in itertools.combinations(values, m)) for m in range(6)])
    assert np.isfinite(log_elementary(np.full(3000, 1e-8), 20)[-1, -1]) and np.isfinite(log_elementary(np.full(3000, 1e8), 20)[-1, -1])
