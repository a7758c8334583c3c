"""Stacked VAEs and the searches built on them: closed forms, independence of chains, proposal rules, refusals."""
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from designloop.core.errors import DesignLoopError, ParameterError
from designloop.core.loop import optimize
from designloop.core.problems import Objective, Problem
from designloop.core.spaces import Box, Choice, Mixed, Real, Sequences, Texts
from designloop.core.trials import Trials
from designloop.models.stacked import Deck, StackedMLP, join_chains, pad_rows, take_chains
from designloop.models.vae import StackedVAE, kl_terms, reconstruction_loss, relationship_loss, train_vaes
from designloop.optimizers.ppgvae import PPGVAE, search_centres, search_margin, spread_draws
from designloop.optimizers.vae_search import CEMPI, RWR, CbAS, DbAS, VAESearch, ask_together, run_chains, run_together

SEARCHES = [PPGVAE, VAESearch, RWR, CEMPI, DbAS, CbAS]
QUICK = dict(steps=15, hidden=(8,), latent_dim=2)


def generators(*seeds: int) -> list[torch.Generator]: return [torch.Generator().manual_seed(s) for s in seeds]


def word_problem(goal: str = "maximize") -> Problem:
    "Count of the letter G, plus a little for its place; never constant."
    def count(x: Tensor, fidelity, rng): return (x == 2).double() @ torch.linspace(1, 1.5, x.shape[1], dtype=torch.float64)
    return Problem("count G", Sequences("ACGT", length=5), Objective("g", goal), function=count)


def noisy_line() -> Problem:
    def hill(x, fidelity, rng): return -(x[:, 0] - 0.7).square() + torch.as_tensor(rng.normal(0, 0.01, len(x)))
    return Problem("noisy line", Box({"x": (0, 1), "y": (-1, 1)}), Objective("height"), function=hill)


# ---------------------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("n, temperature", [(1, 5.0), (2, 1.0), (17, 5.0), (64, 0.3)])
def test_relationship_loss_equals_the_double_loop(n, temperature):
    g = torch.Generator().manual_seed(n)
    mu, y = torch.randn(3, n, 4, generator=g, dtype=torch.float64), torch.randn(3, n, generator=g, dtype=torch.float64)
    for c, value in enumerate(relationship_loss(mu, y, temperature)):
        density = [float(-0.5 * m @ m) for m in mu[c]]
        total = sum(((density[i] - density[j]) - temperature * float(y[c, i] - y[c, j])) ** 2 for i in range(n) for j in range(n))
        assert float(value) == pytest.approx(total / (n * n + n), rel=1e-9, abs=1e-12)


def test_relationship_loss_ignores_padding_and_survives_float32_offsets():
    g = torch.Generator().manual_seed(0)
    mu, y = torch.randn(1, 9, 3, generator=g), torch.rand(1, 9, generator=g)
    padded_mu, padded_y = torch.cat([mu, 99 * torch.ones(1, 4, 3)], 1), torch.cat([y, -50 * torch.ones(1, 4)], 1)
    mask = torch.arange(13)[None] < 9
    assert torch.allclose(relationship_loss(padded_mu, padded_y, 5.0, mask), relationship_loss(mu, y, 5.0), rtol=1e-5)
    exact = relationship_loss(mu.double(), y.double(), 5.0)
    far = (y.double() + 4096).float()                      # an offset that float32 can add without rounding y much
    shifted = relationship_loss(mu.double(), far.double(), 5.0)
    assert torch.allclose(relationship_loss(mu, far, 5.0).double(), shifted, rtol=1e-2) and torch.allclose(shifted, exact, rtol=1e-2)


def test_relationship_gradient_matches_finite_differences():
    mu = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    y = torch.rand(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    assert torch.autograd.gradcheck(lambda m: relationship_loss(m, y, torch.tensor([5.0, 1.0], dtype=torch.float64), mask), (mu,))


def test_kl_terms_agree_with_torch_distributions():
    g = torch.Generator().manual_seed(3)
    mu, logvar = torch.randn(4, 7, 5, generator=g), torch.randn(4, 7, 5, generator=g)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), normal(0.0, 1.0)).mean(-1)
    assert torch.allclose(sum(kl_terms(mu, logvar)), theirs, atol=1e-5)


def test_reconstruction_losses_by_hand():
    logits, target = torch.tensor([[[2.0, 0.0, 1.0, 1.0]]]), torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    by_hand = (-torch.log_softmax(torch.tensor([2.0, 0.0]), 0)[0] - torch.log_softmax(torch.tensor([1.0, 1.0]), 0)[1]) / 2
    assert torch.allclose(reconstruction_loss(logits, target, "ce", 2), by_hand)
    assert reconstruction_loss(torch.zeros(1, 1, 2), torch.tensor([[[3.0, 1.0]]]), "mse").item() == 5.0


@pytest.mark.parametrize("length, letters", [(8, 4), (3, 20), (1, 2)])
def test_letter_entropy_and_its_gradient_agree_with_torch(length, letters):
    g = torch.Generator().manual_seed(length)
    logits = (30 * torch.randn(2, 9, length * letters, generator=g)).requires_grad_()            # wide logits: no overflow
    truth, weight = torch.randint(letters, (2, 9, length), generator=g), torch.rand(2, 9, generator=g)
    ours = reconstruction_loss(logits, torch.nn.functional.one_hot(truth, letters).flatten(2).float(), "ce", length)
    flat = torch.nn.functional.cross_entropy(logits.view(-1, letters), truth.view(-1), reduction="none")
    theirs = flat.view(truth.shape).mean(-1)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    a, b = (torch.autograd.grad((v * weight).sum(), logits, retain_graph=True)[0] for v in (ours, theirs))
    assert torch.allclose(a, b, atol=1e-5)


def test_stacked_layers_equal_torch_linear():
    net = StackedMLP([4, 6, 3], generators(0, 1))
    x = torch.randn(2, 5, 4)
    for c in range(2):
        first, second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)
        for layer, w, b in zip((first, second), net.weights, net.biases, strict=True):
            layer.weight.data, layer.bias.data = w[c].T.detach(), b[c, 0].detach()
        assert torch.allclose(net(x)[c], second(torch.nn.functional.leaky_relu(first(x[c]))), atol=1e-6)


def test_chains_can_be_taken_out_and_joined():
    stack = StackedVAE(6, 2, generators(0, 1, 2), hidden=(5,))
    again = join_chains([take_chains(stack, [2]), take_chains(stack, [0, 1])])
    for p, q in zip(again.parameters(), stack.parameters(), strict=True): assert torch.equal(p, q[[2, 0, 1]])
    assert again.n_chains == 3 and all(p.requires_grad for p in again.parameters())
    with pytest.raises(ParameterError, match="only equal ones"): join_chains([stack, StackedVAE(6, 3, generators(0), hidden=(5,))])


def test_deck_shows_every_row_equally_often():
    counts = Deck(10, 4, generators(0)[0]).deal(25).flatten().bincount(minlength=10)
    assert (counts == 10).all()
    padded, real = pad_rows([torch.ones(1, 2), torch.ones(3, 2)])
    assert real.tolist() == [[True, False, False], [True, True, True]] and padded[0, 1:].abs().sum() == 0


@pytest.mark.parametrize("likelihood", ["mse", "ce"])
def test_stacked_training_equals_separate_training(likelihood):
    sizes, length = [12, 40, 25], 3 if likelihood == "ce" else None
    g = torch.Generator().manual_seed(0)
    if likelihood == "ce": x = [torch.nn.functional.one_hot(torch.randint(4, (n, 3), generator=g), 4).flatten(1).double() for n in sizes]
    else: x = [torch.randn(n, 12, generator=g, dtype=torch.float64) for n in sizes]
    y = [torch.rand(n, generator=g, dtype=torch.float64) for n in sizes]
    w = [torch.rand(n, generator=g, dtype=torch.float64) for n in sizes]
    betas, rhos, heats = [0.01, 0.1, 0.5], [1.0, 0.0, 2.0], [5.0, 1.0, 2.0]
    def fresh(seeds): return StackedVAE(12, 3, generators(*seeds), hidden=(7,), likelihood=likelihood, length=length, dtype=torch.float64)
    together = fresh([0, 1, 2])
    losses = train_vaes(together, x, generators(10, 11, 12), 70, y, w, betas, rhos, heats, batch=16)
    for c in range(3):
        alone = fresh([c])
        own = train_vaes(alone, [x[c]], generators(10 + c), 70, [y[c]], [w[c]], betas[c], rhos[c], heats[c], batch=16)
        assert torch.allclose(own[:, 0], losses[:, c], atol=1e-8)
        for p, q in zip(alone.parameters(), together.parameters(), strict=True): assert torch.allclose(p[0], q[c], atol=1e-7)


def test_a_chain_without_weight_does_not_move():
    vae = StackedVAE(4, 2, generators(0, 1), hidden=(5,))
    before = [p.clone() for p in vae.parameters()]
    train_vaes(vae, [torch.randn(6, 4)] * 2, generators(2, 3), 10, weights=[torch.zeros(6), torch.ones(6)])
    for p, q in zip(vae.parameters(), before, strict=True):
        assert torch.equal(p[0], q[0]) and not torch.equal(p[1], q[1])


def test_relationship_loss_orders_the_latent_space():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=g), torch.zeros(60)
    x[:4], y[:4] = x[:4] + 3.0, 1.0                        # four good ones, off to one side
    vae = StackedVAE(5, 2, generators(5, 5), hidden=(16,))
    train_vaes(vae, [x, x], generators(6, 6), 600, [y, y], rel_weight=[0.0, 1.0])
    norm = vae.encode(x.expand(2, -1, -1))[0].norm(dim=-1)
    good, poor = norm[:, :4].mean(1), norm[:, 4:].mean(1)
    assert good[1] < 0.8 * poor[1] and good[0] > 1.2 * poor[0]             # few good ones: outside without R, inside with it


# ------------------------------------------------------------------------------------------------------ proposal and weights
def test_threshold_follows_the_published_form():
    y = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for d, temperature in ((2, 5.0), (20, 1.0)):
        c = chi2.ppf(0.99, d)
        inner = 0.5 * c / ((y.max() - torch.quantile(y, 0.99)) + 0.01 * y.max())
        threshold = -0.5 * c * temperature / inner
        assert float(threshold) == pytest.approx(-temperature * search_margin(y))
        mu = torch.randn(200, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) * 0.1
        score = -0.5 * mu.square().sum(1)
        wanted = {i for i in range(200) if score[i] - score.max() > threshold}
        found = search_centres(mu, y, temperature, 10_000)
        assert set(found.tolist()) == wanted | {int(score.argmax())}
        assert (score[found].diff() <= 0).all() and len(search_centres(mu, y, temperature, 3)) == min(3, len(found))


def test_margin_stays_positive_below_zero():
    y = torch.linspace(-9, -3, 50, dtype=torch.float64)
    assert search_margin(y) > float(y.max() - torch.quantile(y, 0.99)) > 0


@pytest.mark.parametrize("centres, n", [(1, 5), (3, 8), (8, 3), (7, 7)])
def test_draws_are_spread_evenly(centres, n):
    for seed in range(20):
        at = spread_draws(centres, n, generators(seed)[0])
        counts = at.bincount(minlength=centres)
        assert len(at) == n and counts.max() - counts.min() <= 1 and (at.diff() >= 0).all()


def weighted(cls, **settings):
    search = cls(noisy_line(), rescale=False, **QUICK, **settings)
    search.start_best = 1.0
    return search


def test_weights_follow_their_definitions():
    y = torch.linspace(0, 2, 41, dtype=torch.float64)
    assert torch.allclose(weighted(RWR).weights(None, y), y.exp() / y.exp().sum())
    p = torch.distributions.Normal(0.0, 1.0).cdf((y - 1.0) / 0.01)
    assert torch.equal(weighted(CEMPI).weights(None, 0.5 * y).bool(), 0.5 * y > torch.quantile(0.5 * y, 0.95))
    assert torch.equal(weighted(CEMPI).weights(None, y).bool(), p == 1)             # many certain improvements: all of them count
    assert weighted(CEMPI).weights(None, y - 5).sum() == 0                          # no improvement in sight: nothing counts
    dbas = weighted(DbAS)
    assert torch.allclose(dbas.weights(None, y), torch.distributions.Normal(0.0, 1.0).cdf((y - torch.quantile(y, 0.95)) / 0.01))
    high = dbas.threshold
    dbas.weights(None, y - 1)
    assert dbas.threshold == high == pytest.approx(1.9)


def test_cbas_ratio_is_one_for_the_first_model_and_clipped_afterwards():
    problem = noisy_line()
    search, plain = CbAS(problem, seed=0, **QUICK), DbAS(problem, seed=0, **QUICK)
    start = torch.rand(30, 2, generator=generators(0)[0], dtype=torch.float64)
    outcomes = problem.evaluate(start, rng=np.random.default_rng(0))
    for s in (search, plain): s.tell(start, outcomes); s.ask(3)
    x, y = search.coder.encode(start), search.utilities
    assert torch.allclose(search.weights(x, y), plain.weights(x, y))
    with torch.no_grad(): search.vae.decoder.biases[-1] += 1e4                      # the present model finds everything impossible
    assert torch.allclose(search.weights(x, y), plain.weights(x, y) * np.exp(10.0))


def test_first_training_is_uniform_unless_asked():
    problem, seen = noisy_line(), {}
    start = torch.rand(30, 2, generator=generators(0)[0], dtype=torch.float64)
    for weighted_start in (False, True):
        search = DbAS(problem, seed=0, weighted_start=weighted_start, **QUICK)
        search.tell(start, problem.evaluate(start, rng=np.random.default_rng(0)))
        seen[weighted_start] = search._training_job().weights
    assert (seen[False] == 1).all() and 0 < (seen[True] > 0).sum() < 30
    assert ((seen[True] == 0) | (seen[True] >= 1e-6)).all()                          # negligible weights are zero
    with pytest.raises(ParameterError, match="weighted_start"): CbAS(problem, weighted_start=True)


# ------------------------------------------------------------------------------------------------------------- searches
@pytest.mark.parametrize("cls", SEARCHES)
@pytest.mark.parametrize("make", [word_problem, noisy_line])
def test_run_chains_equals_optimize(cls, make):
    problem, settings = make(), dict(**QUICK, dtype=torch.float64)
    stacked = run_chains(cls, problem, 16, rounds=3, batch=6, seeds=[3, 4, 5], **settings)
    for seed, trials in zip([3, 4, 5], stacked, strict=True):
        single = optimize(problem, cls(problem, seed=seed, **settings), 3, 6, initial=16, seed=seed, progress=False)
        assert torch.allclose(single.designs.double(), trials.designs.double(), atol=1e-6)
        assert np.array_equal(single.rounds, trials.rounds) and np.allclose(single.utilities, trials.utilities, atol=1e-6)


def test_unlike_searches_share_one_run():
    problem = word_problem()
    start = Trials.of(problem).append(d := problem.space.sample(20, np.random.default_rng(0)), problem.evaluate(d))
    other = PPGVAE(problem, seed=1, steps=20, hidden=(6,), latent_dim=3)
    searches = [PPGVAE(problem, seed=1, **QUICK), CbAS(problem, seed=1, **QUICK), other]
    runs = run_together(searches, problem, start, rounds=2, batch=5)
    assert [len(t) for t in runs] == [30] * 3 and {t.frame["source"].iloc[-1] for t in runs} == {"ppgvae", "cbas"}
    assert (np.concatenate([t.seconds for t in runs]) > 0).all()
    with pytest.raises(ParameterError, match="2 entries for 3 chains"): run_together(searches, [problem] * 2, start)


@pytest.mark.parametrize("cls", SEARCHES)
def test_ask_before_tell_minimize_and_pickle(cls):
    problem = word_problem("minimize")
    search = cls(problem, seed=0, **QUICK)
    assert search.ask(4).shape == (4, 5)
    designs = problem.space.sample(12, np.random.default_rng(1))
    search.tell(designs, problem.evaluate(designs))
    search.ask(2)
    twin = pickle.loads(pickle.dumps(search))
    assert torch.equal(search.ask(7), twin.ask(7)) and search.rounds_trained == 1        # no news, no further training


@pytest.mark.parametrize("space", [Sequences("ACGT", max_length=4), Box({"a": (1, 100)}, log=["a"]),
                                   Mixed({"r": Real(0, 2), "c": Choice(("u", "v", "w"))})])
@pytest.mark.parametrize("cls", [PPGVAE, DbAS])
def test_proposals_lie_in_every_kind_of_space(cls, space):
    slope = torch.linspace(0, 1, space.dim + 1, dtype=torch.float64)[1:]
    def arbitrary(designs, fidelity, rng): return space.encode(designs).double() @ slope
    problem = Problem("any", space, Objective("f"), function=arbitrary)
    trials = optimize(problem, cls(problem, seed=0, steps=10), rounds=2, batch=4, initial=10, progress=False)
    assert len(trials) == 18


def test_switches_change_what_they_name():
    problem = word_problem()
    designs = problem.space.sample(30, np.random.default_rng(0))
    def searched(**switch):
        search = PPGVAE(problem, seed=0, **QUICK, **switch)
        for part in (slice(0, 20), slice(20, 30)): search.tell(designs[part], problem.evaluate(designs[part])); proposals = search.ask(12)
        return search, proposals
    base, proposals = searched()
    assert torch.equal(proposals, searched()[1])
    for switch in ({"rel_weight": 0.0}, {"warm_start": True}, {"memory": "last"}, {"temperature": 1.0}):
        other = searched(**switch)[0]
        assert any(not torch.equal(p, q) for p, q in zip(base.vae.parameters(), other.vae.parameters(), strict=True)), switch
    prior = searched(sampling="prior")
    assert all(torch.equal(p, q) for p, q in zip(base.vae.parameters(), prior[0].vae.parameters(), strict=True))
    assert not torch.equal(proposals, prior[1])


def test_repeats_count_once_and_infeasible_trials_do_not_count():
    problem = word_problem()
    search = PPGVAE(problem, seed=0, **QUICK)
    designs = problem.space.sample(10, np.random.default_rng(0))
    search.tell(torch.cat([designs, designs, designs[:3]]), problem.evaluate(torch.cat([designs, designs, designs[:3]])))
    assert len(search._training_job().x) == len({tuple(d.tolist()) for d in designs})


def test_ppgvae_finds_the_far_hill():
    "Two hills 4 apart, 10 of 210 starting points near the high one; 5 chains. The unweighted control stays where it is."
    def hills(x, fidelity, rng): return (torch.exp(-0.5 * (x / 0.25) ** 2) + 2.5 * torch.exp(-0.5 * (x - 4) ** 2))[:, 0]
    problem = Problem("hills", Box({"x": (-10, 20)}), Objective("height"), function=hills, optimum=2.5)
    rng = np.random.default_rng(0)
    x = torch.as_tensor(np.concatenate([rng.normal(0, 0.6, 200), 4 + rng.uniform(0.5, 1, 10)]))[:, None]
    start = Trials.of(problem).append(x, problem.evaluate(x))
    settings = dict(hidden=(64, 64), latent_dim=2, features="native", rescale=False, steps=300)
    runs = {cls: run_chains(cls, problem, start, 3, 50, range(3), **settings) for cls in (PPGVAE, VAESearch)}
    gains = {cls: np.array([t.utilities.max() - start.utilities.max() for t in chains]) for cls, chains in runs.items()}
    assert gains[PPGVAE].mean() > 0.15 and gains[PPGVAE].mean() > gains[VAESearch].mean() + 0.1


# ------------------------------------------------------------------------------------------------------------- refusals
def trained(x: Tensor, likelihood: str = "mse", length: int | None = None, steps: int = 1, **more):
    return train_vaes(StackedVAE(4, 2, generators(0), likelihood=likelihood, length=length), [x], generators(0), steps, **more)


@pytest.mark.parametrize("call, message", [
    (lambda: PPGVAE(word_problem(), temperature=0), "temperature=0"),
    (lambda: PPGVAE(word_problem(), rel_weight=-1), "rel_weight=-1"),
    (lambda: PPGVAE(word_problem(), sampling="conditionned"), "Did you mean 'conditioned'"),
    (lambda: VAESearch(word_problem(), memory="first"), "allowed: 'last', 'all'"),
    (lambda: VAESearch(word_problem(), latent_dim=0), "latent_dim=0"),
    (lambda: VAESearch(word_problem(), steps=0), "steps=0"),
    (lambda: VAESearch(Problem("t", Texts(), Objective("f"))), "no vector encoding"),
    (lambda: VAESearch(Problem("m", Mixed({"r": Real(0, 1)}), Objective("f")), features="native"), "features='native' needs a Box"),
    (lambda: ask_together([VAESearch(word_problem())], 0), "n=0"),
    (lambda: run_chains(RWR, word_problem(), 5, batch=0), "batch=0"),
    (lambda: run_chains(RWR, [word_problem()], 5, seeds=[1, 2]), "1 entries for 2 seeds"),
    (lambda: StackedVAE(10, 2, generators(0), likelihood="ce", length=3), "length=3 does not divide width=10"),
    (lambda: StackedVAE(10, 2, generators(0), likelihood="gauss"), "allowed: 'ce', 'mse'"),
    (lambda: trained(torch.zeros(3, 5)), "x[0] has 5 columns"),
    (lambda: trained(torch.zeros(3, 4), y=[torch.zeros(2)]), "one property per design"),
    (lambda: trained(torch.zeros(3, 4), y=[torch.tensor([0, np.nan, 1])]), "at index 1"),
    (lambda: trained(torch.zeros(3, 4), rel_weight=1.0), "needs the property y"),
    (lambda: trained(torch.full((3, 4), 0.5), likelihood="ce", length=2), "space.encode"),
    (lambda: trained(torch.zeros(3, 4), steps=0), "steps=0"),
    (lambda: StackedMLP([3], generators(0)), "at least input and output"),
    (lambda: StackedMLP([3, 2], []), "generators is empty"),
])
def test_bad_arguments_are_refused_with_the_way_out(call, message):
    with pytest.raises(ParameterError) as error: call()
    assert message in str(error.value)


@pytest.mark.parametrize("cls", [PPGVAE, RWR, CEMPI, DbAS, CbAS])
def test_a_constant_property_is_refused_and_nothing_is_lost(cls):
    flat = Problem("flat", Sequences("AC", length=3), Objective("f"), function=lambda x, fidelity, rng: torch.zeros(len(x)))
    with pytest.raises(DesignLoopError, match="constant property: nothing to prioritise") as error:
        run_chains(cls, flat, 6, rounds=2, batch=2, seeds=[0, 1], **QUICK)
    assert [len(t) for t in error.value.trials] == [6, 6]
