"""Similarities follow their formulas and do not mind strands; the Gaussian process agrees with closed forms and with BoTorch."""
import math

import numpy as np
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement
from scipy.stats import multivariate_normal, norm

from designloop.core.errors import ParameterError, StateError
from designloop.core.spaces import Sequences
from designloop.models.gp import JITTER, SequenceGP, SequenceKernel, lattice_samples, to_botorch
from designloop.models.similarity import (
    AMINO_ACIDS,
    BLOSUM62,
    HammingSimilarity,
    KmerSimilarity,
    LetterSimilarity,
    SubstitutionSimilarity,
    all_words,
    default_similarities,
    distinct_words,
    reverse_complement,
)
from designloop.optimizers.acquisition import believer_batch, joint_draws, log_expected_improvement, plausible, thompson_batch

DNA = Sequences("ACGT", length=8)
RNG = np.random.default_rng(7)
X, Y, T = DNA.sample(25, RNG), torch.as_tensor(RNG.normal(2, 3, 25)), DNA.sample(40, RNG)
KERNELS = {"kmer": (default_similarities("ACGT", 8, "kmer", True, (4, 6, 8)), False),
           "hamming": (default_similarities("ACGT", 8, "hamming"), True),
           "curved kmer": (default_similarities("ACGT", 8, "kmer", False), True)}


@pytest.mark.parametrize("similarity", [KmerSimilarity(4, double_stranded=True), KmerSimilarity(6), KmerSimilarity(8, 0.1, True),
                                        HammingSimilarity()])
def test_similarities_are_positive_semidefinite_with_a_diagonal_of_ones(similarity):
    words = DNA.sample(80, np.random.default_rng(1))
    s = similarity(words, words)
    assert np.allclose(s, s.T) and np.allclose(s.diagonal(), 1) and np.linalg.eigvalsh(s).min() > -1e-9
    assert np.allclose(similarity.diagonal(similarity.features(words)), 1)


def test_protein_similarity_is_positive_semidefinite_and_follows_blosum():
    space = Sequences("ACDEFGHIKLMNPQRSTVWY", length=5)           # another order of letters than the matrix's own
    words = space.sample(60, np.random.default_rng(2))
    s = SubstitutionSimilarity(space.alphabet)(words, words)
    assert np.allclose(s.diagonal(), 1) and np.linalg.eigvalsh(s).min() > -1e-9
    a, b, c = (space.from_strings([w]) for w in ("IIIII", "VVVVV", "DDDDD"))
    sim = SubstitutionSimilarity(space.alphabet)
    assert sim(a, b)[0, 0] > 0.5 > 0 > sim(a, c)[0, 0]
    assert BLOSUM62.shape == (20, 20) and np.array_equal(BLOSUM62, BLOSUM62.T)
    at = AMINO_ACIDS.index
    assert (BLOSUM62[at("W"), at("W")], BLOSUM62[at("I"), at("V")], BLOSUM62[at("D"), at("L")], BLOSUM62.trace()) == (11, 3, -4, 116)
    with pytest.raises(ParameterError, match="amino"): SubstitutionSimilarity("01")
    with pytest.raises(ParameterError, match="square"): LetterSimilarity(np.ones((2, 3)))


def test_kmers_do_not_mind_strands_or_shifts():
    both, one = KmerSimilarity(5, double_stranded=True), KmerSimilarity(5)
    assert np.allclose(both(X, T), both(reverse_complement(X), T))
    assert not np.allclose(one(X, T), one(reverse_complement(X), T))
    a, b = DNA.from_strings(["GGATTACC"]), DNA.from_strings(["TTGGATTA"])
    assert one(a, b)[0, 0] > 0.5 > HammingSimilarity()(a, b)[0, 0]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_kmer_similarity_is_the_double_sum_over_windows(k):
    def windows(w): return [v for s in (w, (3 - w).flip(0)) for v in s.unfold(0, k, 1)]
    def s_k(x, y): return sum(0.4 ** int((u != v).sum()) for u in windows(x) for v in windows(y))
    got = KmerSimilarity(k, 0.4, True)(X[:5], T[:4])
    want = [[s_k(x, y) / math.sqrt(s_k(x, x) * s_k(y, y)) for y in T[:4]] for x in X[:5]]
    assert np.allclose(got, want)


def test_no_tolerance_is_the_plain_spectrum_kernel():
    def counts(w): return [tuple(v.tolist()) for v in w.unfold(0, 4, 1)]
    got = KmerSimilarity(4, 0.0)(X[:6], X[:6])
    for i in range(6):
        for j in range(6):
            a, b = counts(X[i]), counts(X[j])
            dot = sum(a.count(u) * b.count(u) for u in set(a))
            size = math.sqrt(sum(a.count(u) ** 2 for u in set(a)) * sum(b.count(u) ** 2 for u in set(b)))
            assert got[i, j] == pytest.approx(dot / size)


@pytest.mark.parametrize("name", KERNELS)
def test_posterior_is_the_closed_form(name):
    similarities, curved = KERNELS[name]
    gp = SequenceGP(similarities, curved).fit(X, Y)
    b = len(similarities)
    w = np.exp(gp.theta[:b]) / np.exp(gp.theta[:b]).sum()
    def k(p, q):
        mixed = sum(wi * s(p, q) for wi, s in zip(w, similarities, strict=True))
        return np.exp((mixed - 1) / math.exp(gp.theta[b])) if curved else mixed
    y, noise = Y.numpy(), math.exp(gp.theta[-1]) + JITTER
    z = (y - y.mean()) / y.std()
    inverse = np.linalg.inv(k(X, X) + noise * np.eye(25))
    scale = z @ inverse @ z / 25
    mean, variance = gp.posterior(T)
    assert np.allclose(mean, y.mean() + y.std() * k(T, X) @ inverse @ z, atol=1e-7)
    assert np.allclose(variance, y.var() * scale * (k(T, T) - k(T, X) @ inverse @ k(X, T)).diagonal(), atol=1e-7)


@pytest.mark.parametrize("name", KERNELS)
def test_posterior_agrees_with_botorch(name):
    gp = SequenceGP(*KERNELS[name]).fit(X, Y)
    mean, variance = gp.posterior(T)
    with torch.no_grad(): peer = to_botorch(gp, Y).posterior(T.double())
    assert torch.allclose(mean, peer.mean[:, 0], atol=1e-5) and torch.allclose(variance, peer.variance[:, 0], atol=1e-5)
    with torch.no_grad(): joint = peer.mvn.covariance_matrix[:6, :6]
    assert torch.allclose(gp.pool(T).covariance(np.arange(6)), joint, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_the_fit_is_a_maximum_of_the_penalised_likelihood(name):
    similarities, curved = KERNELS[name]
    gp = SequenceGP(similarities, curved).fit(X, Y)
    z = ((Y - Y.mean()) / Y.std(correction=0)).numpy()
    def loss(theta):
        w = np.exp(theta[:len(similarities)]) / np.exp(theta[:len(similarities)]).sum()
        c = sum(wi * s(X, X) for wi, s in zip(w, similarities, strict=True))
        if curved: c = np.exp((c - 1) / np.exp(theta[-2]))
        c = c + (np.exp(theta[-1]) + JITTER) * np.eye(25)
        scale = z @ np.linalg.solve(c, z) / 25
        prior = np.concatenate([theta[:len(similarities)], [theta[-2] - math.log(0.3)] * curved, [theta[-1] - math.log(0.1)]])
        return -multivariate_normal(np.zeros(25), scale * c, allow_singular=True).logpdf(z) + 0.5 * prior @ prior
    best = loss(gp.theta)
    for i in range(len(gp.theta)):
        for step in (-0.05, 0.05):
            moved = gp.theta.copy(); moved[i] += step
            inside = (abs(moved[:len(similarities)]) < 5).all() and -12 < moved[-1] < 3
            if inside: assert loss(moved) > best - 1e-6


@pytest.mark.parametrize("name", KERNELS)
def test_believing_equals_conditioning_from_scratch(name):
    gp, scratch = (SequenceGP(*KERNELS[name]).fit(X, Y) for _ in range(2))
    values = torch.tensor([4.0, -1.0, 2.5])
    view = gp.pool(T)
    for j, v in zip((3, 11, 20), values, strict=True): view.believe(j, float(v))
    gp.believe(T[[3, 11, 20]], values)
    words, z = torch.cat([X, T[[3, 11, 20]]]), (torch.cat([Y, values.double()]).numpy() - scratch.centre) / scratch.unit
    f = scratch.features(words)
    c = scratch._objective.correlation(scratch.theta, scratch.similarity(f, f)) + scratch._noise * np.eye(28)
    cross = scratch._objective.correlation(scratch.theta, scratch.similarity(scratch.features(T), f))
    mean = scratch.centre + scratch.unit * cross @ np.linalg.solve(c, z)
    drop = (cross * np.linalg.solve(c, cross.T).T).sum(1)
    variance = scratch.unit**2 * scratch.scale * (scratch._own(scratch.features(T)) - drop)
    assert np.allclose(view.mean, mean, atol=1e-7) and np.allclose(gp.posterior(T)[0], mean, atol=1e-7)
    assert np.allclose(view.variance, variance, atol=1e-6) and np.allclose(gp.posterior(T)[1], variance, atol=1e-6)


def test_believing_the_prediction_moves_no_mean_and_shrinks_variance():
    view = SequenceGP(*KERNELS["kmer"]).fit(X, Y).pool(T)
    before, spread = view.mean.clone(), view.variance.clone()
    view.believe(5)
    assert torch.allclose(view.mean, before) and (view.variance <= spread + 1e-12).all() and view.variance[5] < 0.5 * spread[5]


def test_strands_get_the_same_prediction():
    gp = SequenceGP(*KERNELS["kmer"]).fit(X, Y)
    for a, b in zip(gp.posterior(T), gp.posterior(reverse_complement(T)), strict=True): assert torch.allclose(a, b)


def test_lattice_draws_have_the_posterior_mean_and_covariance():
    words = all_words(4, 4)
    x = words[np.random.default_rng(0).choice(256, 15, replace=False)]
    gp = SequenceGP([HammingSimilarity()], curved=True).fit(x, (x == 1).double().sum(1))
    draws = lattice_samples(gp, 4, 4, 4000, np.random.default_rng(1))
    some = np.arange(0, 256, 37)
    mean, cov = gp.posterior(words)[0][some], gp.pool(words).covariance(some)
    z = (draws[:, some].mean(0) - mean) / (cov.diagonal() / 4000).sqrt()
    assert z.abs().max() < 4.5                                      # 7 standard normals: false alarm below 5 in 100,000
    sample = torch.cov(draws[:, some].T)
    assert (sample - cov).abs().max() < 0.12 * cov.diagonal().max()  # five standard errors of a covariance from 4,000 draws
    with pytest.raises(ParameterError, match="Hamming"):
        lattice_samples(SequenceGP(*KERNELS["kmer"]).fit(X, Y), 4, 8, 1, np.random.default_rng(0))


def test_kernel_trains_inside_gpytorch():
    kernel = SequenceKernel(default_similarities("ACGT", 8, "kmer", True), curved=True)
    value = kernel(X.double(), X.double()).to_dense()
    assert torch.allclose(kernel(X.double(), X.double(), diag=True), value.diagonal())
    batched = kernel(torch.stack([X, X]).double(), T.double()).to_dense()
    assert batched.shape == (2, 25, 40) and torch.allclose(batched[0], batched[1])
    value.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in kernel.parameters())


@pytest.mark.parametrize("call, part", [
    (lambda: SequenceGP([]), "empty"),
    (lambda: SequenceGP([HammingSimilarity()]).posterior(X), "fit"),
    (lambda: SequenceGP([HammingSimilarity()]).fit(X, Y[:3]), "one value a word"),
    (lambda: SequenceGP([HammingSimilarity()]).fit(X, torch.ones(25)), "different"),
    (lambda: SequenceGP([HammingSimilarity()]).fit(X, torch.full((25,), math.nan)), "not finite"),
    (lambda: KmerSimilarity(4, 1.0), "tolerance"),
    (lambda: KmerSimilarity(0), "k="),
    (lambda: default_similarities("ACGT", 8, "kmers"), "kmers"),
    (lambda: all_words(20, 12), "ten million"),
    (lambda: SequenceKernel([HammingSimilarity()], weights=[-1.0]), "weights")])
def test_bad_input_is_named(call, part):
    with pytest.raises((ParameterError, StateError), match=part): call()


def test_half_of_the_words_are_canonical():
    words = distinct_words(DNA, double_stranded=True)
    assert len(words) == 32_896
    assert len({*map(bytes, words.numpy().astype(np.int8)), *map(bytes, reverse_complement(words).numpy().astype(np.int8))}) == 65_536


# ---- acquisition

class _Stated:
    "The part of a BoTorch model that analytic acquisitions use: unit variance, the input as its mean."
    num_outputs = 1
    def posterior(self, X, posterior_transform=None, **kw):
        from botorch.posteriors import GPyTorchPosterior
        from gpytorch.distributions import MultivariateNormal
        return GPyTorchPosterior(MultivariateNormal(X[..., 0], torch.eye(X.shape[-2], dtype=X.dtype).expand(*X.shape[:-2], -1, -1)))


def test_log_ei_agrees_with_botorch_everywhere():
    u = torch.cat([-torch.logspace(0, 4, 200), torch.linspace(-1.2, 30, 300)]).double()
    peer = LogExpectedImprovement(_Stated(), best_f=0.0)(u[:, None, None])
    assert torch.allclose(log_expected_improvement(u, torch.ones_like(u), 0.0), peer, rtol=1e-9, atol=1e-9)


def test_log_ei_is_the_integral_and_scales():
    mean, sd, best = torch.tensor([0.3, -1.0]).double(), torch.tensor([0.5, 2.0]).double(), 0.6
    u = ((mean - best) / sd).numpy()
    exact = sd.numpy() * (norm.pdf(u) + u * norm.cdf(u))
    assert np.allclose(log_expected_improvement(mean, sd, best).exp(), exact)
    with pytest.raises(ParameterError, match="positive"): log_expected_improvement(mean, sd * 0, best)


def test_a_batch_has_no_repeats_and_skips_what_is_blocked_with_its_twin():
    gp = SequenceGP(*KERNELS["kmer"]).fit(X, Y)
    blocked = np.zeros(40, bool); blocked[:5] = True
    twin = np.arange(40); twin[[10, 11]] = [11, 10]
    for batch in (believer_batch(gp.pool(T), 30, 9.0, blocked.copy(), twin),
                  thompson_batch(joint_draws(gp.pool(T), np.arange(40), 34, np.random.default_rng(0)), blocked.copy(), twin)):
        assert len(set(batch)) == len(batch) and min(batch) >= 5 and not {10, 11} <= set(batch)
    assert len(believer_batch(gp.pool(T), 99, 9.0, blocked.copy())) == 35


def test_joint_draws_and_plausible_candidates():
    view = SequenceGP(*KERNELS["hamming"]).fit(X, Y).pool(T)
    draws = joint_draws(view, np.arange(40), 20_000, np.random.default_rng(0))
    z = (draws.mean(0) - view.mean) / (view.variance / 20_000).sqrt()
    assert z.abs().max() < 5                                         # 40 standard normals: false alarm below 3 in 100,000
    blocked = np.zeros(40, bool); blocked[0] = True
    some = plausible(view, 10, blocked, np.random.default_rng(0))
    top = (view.mean + 2 * view.variance.sqrt()).numpy()[1:].argmax() + 1
    assert len(some) == 10 and 0 not in some and top in some
