"""STAX and its relatives: contracts, bad input, invariants, peers. Nothing here is a statistical test; every run is repeatable."""
import pickle

import numpy as np
import pytest
import torch

from designloop.core.errors import DataCorrupt, DesignError, OutcomeError, ParameterError, StateError
from designloop.core.novelty import Archive, Rollouts, coverage, coverage_curve, novelty, uniformity
from designloop.models.behavior_encoder import BehaviorAutoencoder
from designloop.optimizers.novelty import CMAME, NSGA2, TAXONS, MAPElites, NoveltySearch, RandomPolicies, RewardCMAES, pareto_fronts, pareto_survivors
from designloop.optimizers.stax import SCREENING, SERENE, STAX, ChunkScheduler, Emitter, has_stagnated
from designloop.tasks.sparse_control import WORLDS, FeedForwardPolicy, Point2D, RedundantArm

ENV = Point2D(image_size=16)
POLICY = ENV.policy()
SMALL = dict(pop_size=10, chunk_size=100)
SEARCHES = {
    "random": (RandomPolicies, dict(pop_size=10)), "novelty": (NoveltySearch, SMALL), "taxons": (TAXONS, dict(**SMALL, epochs=1)), "nsga2": (NSGA2, SMALL),
    "map-elites": (MAPElites, dict(pop_size=10, batch=20)), "cma-me": (CMAME, dict(pop_size=10, batch=20)), "cma-es": (RewardCMAES, dict(pop_size=10)),
    "serene": (SERENE, SMALL), "stax": (STAX, dict(**SMALL, epochs=1)), "stax-p": (STAX, dict(**SMALL, epochs=1, criterion="pareto")),
    "stax-nt": (STAX, dict(**SMALL, descriptor="untrained", criterion="novelty")), "stax-ucb-cma": (SERENE, dict(**SMALL, emitter="cma", scheduler="ucb")),
    "serene-novelty-time": (SERENE, dict(**SMALL, emitter="novelty", scheduler="time")), "stax-frames": (STAX, dict(**SMALL, epochs=1, frames=2))}


def make(name, budget=330, seed=0, **more):
    cls, options = SEARCHES[name]
    return cls(ENV, POLICY, budget, seed=seed, **{**options, **more})


@pytest.mark.parametrize("name", SEARCHES)
def test_budget_seed_pickle_and_slices(name):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole = make(name).run(progress=False)
    assert len(whole.seen) == 330                                                  # the budget exactly, also where a generation does not divide it
    search = make(name)
    while search.spent < 200:                                                      # slices of any size, then a pickle in the middle
        genomes = search.ask(17)
        assert 1 <= len(genomes) <= 17 and (np.abs(genomes) <= 5).all()
        search.tell(genomes, ENV.rollout(POLICY, genomes, frames=search.frames))
    again = pickle.loads(pickle.dumps(search)).run(progress=False)
    assert np.array_equal(again.seen["ground_truth"], whole.seen["ground_truth"]) and np.array_equal(again.seen["reward"], whole.seen["reward"])
    assert len(again.reward_archive) == len(whole.reward_archive)
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    other = make(name, seed=1).run(progress=False)
    assert not np.array_equal(other.seen["ground_truth"], whole.seen["ground_truth"])


def test_checkpoint_resumes_and_refuses_strangers(tmp_path):
    whole = make("serene", 2600).run(progress=False)
    first = make("serene", 1300)
    first.run(checkpoint=tmp_path, progress=False)
    went_on = make("serene", 2600).run(checkpoint=tmp_path, progress=False)
    assert len(went_on.seen) == 2600
    assert np.array_equal(went_on.seen["ground_truth"][:1300], whole.seen["ground_truth"][:1300])
    with pytest.raises(StateError, match="another search: seed was 0, now 5"): make("serene", 2600, seed=5).run(checkpoint=tmp_path, progress=False)
    identity, search = pickle.loads((tmp_path / "search.pkl").read_bytes())
    old = {k: identity[k] for k in ("method", "env", "genes", "seed", "pop_size")}                # as earlier versions wrote it
    (tmp_path / "search.pkl").write_bytes(pickle.dumps((old, search)))
    with pytest.raises(StateError, match="earlier version that did not keep policy, limit, chunk_size"): make("serene", 2600).run(checkpoint=tmp_path, progress=False)
    (tmp_path / "search.pkl").write_bytes(b"half a file")
    with pytest.raises(DataCorrupt, match="cannot be read"): make("serene", 2600).run(checkpoint=tmp_path, progress=False)


@pytest.mark.parametrize("name, was, now", [
    ("random", {}, {"limit": 1.0}), ("novelty", {}, {"criterion": "reward"}), ("novelty", {}, {"chunk_size": 77}), ("novelty", {}, {"bd_size": 3}),
    ("taxons", {"epochs": 1}, {"epochs": 2}), ("taxons", {}, {"frames": 2}), ("taxons", {}, {"train_frames": 50}), ("serene", {}, {"emitter": "cma"}),
    ("serene", {}, {"scheduler": "ucb"}), ("map-elites", {"batch": 20}, {"batch": 25}), ("cma-me", {}, {"limit": 2.0})])
def test_a_checkpoint_is_resumed_under_its_own_options_only(name, was, now, tmp_path):
    make(name, 60, **was).run(checkpoint=tmp_path, progress=False)
    (option, value), = now.items()
    with pytest.raises(StateError, match=f"{option}.* was .*, now {value!r}"): make(name, 90, **{**was, **now}).run(checkpoint=tmp_path, progress=False)
    assert len(make(name, 90, **was).run(checkpoint=tmp_path, progress=False).seen) == 90


class _Plain:
    "An environment without a repr of its own."
    bounds, reward_areas = ((-1, 1), (-1, 1)), ("a",)
    def __init__(self, slope=0.1): self.slope = slope
    def rollout(self, policy, genomes, images=True, frames=1):
        return Rollouts(np.zeros(len(genomes)), np.full(len(genomes), -1), np.tanh(self.slope * genomes[:, :2]))


def test_an_environment_is_known_by_its_class_and_attributes_not_by_its_address(tmp_path):
    NoveltySearch(_Plain(), POLICY, 60, pop_size=10).run(checkpoint=tmp_path, progress=False)
    assert len(NoveltySearch(_Plain(), POLICY, 90, pop_size=10).run(checkpoint=tmp_path, progress=False).seen) == 90
    with pytest.raises(StateError, match=r"env was '_Plain\(slope=0.1\)', now '_Plain\(slope=0.2\)'"):
        NoveltySearch(_Plain(0.2), POLICY, 90, pop_size=10).run(checkpoint=tmp_path, progress=False)


@pytest.mark.parametrize("name", ["cma-me", "map-elites"])
def test_the_grid_keeps_the_genomes_that_were_rolled_out(name):
    "With a narrow limit nearly every Gaussian of CMA-ME leaves it; what the archive holds must lead where the archive says."
    kept = make(name, 600, limit=1.0).run(progress=False).novelty_archive
    assert np.abs(kept["genome"]).max() <= 1
    np.testing.assert_allclose(ENV.rollout(POLICY, kept["genome"], images=False).ground_truth, kept["ground_truth"], atol=1e-4)


def test_a_reward_needs_an_area():
    search = make("random", budget=20)
    genomes = search.ask(3)
    lost = Rollouts([0.0, 0.4, 0.0], [-1, -1, -1], np.zeros((3, 2)))
    with pytest.raises(OutcomeError, match="row 1 has the reward 0.4 and reward_area -1; .* 0 to 3 .north-east"): search.tell(genomes, lost)
    assert search.spent == 0


def test_interruption_keeps_what_is_done(tmp_path):
    class Stubborn(Point2D):
        calls = 0
        def rollout(self, *a, **k):
            Stubborn.calls += 1
            if Stubborn.calls == 8: raise KeyboardInterrupt
            return super().rollout(*a, **k)
    search = SERENE(Stubborn(16), POLICY, 400, **SMALL)
    half = search.run(progress=False)
    assert half.interrupted and 0 < len(half.seen) < 400
    rest = search.run(progress=False)
    straight = SERENE(Point2D(16), POLICY, 400, **SMALL).run(progress=False)
    assert not rest.interrupted and np.array_equal(rest.seen["ground_truth"], straight.seen["ground_truth"])


@pytest.mark.parametrize("call, error, words", [
    (lambda: STAX(ENV, POLICY, 99), ParameterError, "budget=99 is smaller than pop_size=100"),
    (lambda: STAX(ENV, POLICY, 1000, chunk_size=65), ParameterError, "chunk_size=65 is not allowed; it must be a whole number >= 66"),
    (lambda: STAX(ENV, POLICY, 1000, bd_size=0), ParameterError, "bd_size=0"),
    (lambda: STAX(ENV, POLICY, 1000, emitter="fitnes"), ParameterError, "Did you mean 'fitness'"),
    (lambda: STAX(ENV, POLICY, 1000, scheduler="alternate"), ParameterError, "scheduler='alternate' is not known"),
    (lambda: STAX(ENV, POLICY, 1000, criterion="curiosity"), ParameterError, "criterion='curiosity'"),
    (lambda: SERENE(ENV, POLICY, 1000, criterion="alternate"), ParameterError, "needs surprise"),
    (lambda: STAX(type("NoAreas", (), {"rollout": 0, "bounds": ENV.bounds})(), POLICY, 1000), ParameterError, "NoAreas has no 'reward_areas'"),
    (lambda: STAX(ENV, object(), 1000), ParameterError, "no 'n_genes'"),
    (lambda: STAX(ENV, POLICY, 1000, chunk=100), ParameterError, "STAX has no option 'chunk'; .*Did you mean 'chunk_size'"),
    (lambda: CMAME(ENV, POLICY, 1000, sigma=1.0), ParameterError, "CMAME has no option 'sigma'; its options are batch, seed"),
    (lambda: NoveltySearch(type("Blind", (), {"rollout": lambda self, policy, genomes: 0, "bounds": ENV.bounds, "reward_areas": ()})(), POLICY, 1000), ParameterError,
     r"Blind: rollout\(policy, genomes\) does not take images and frames"),
    (lambda: NoveltySearch(type("Fallen", (Point2D,), {"bounds": ((1, -1), (0, 1))})(16), POLICY, 1000), ParameterError, "low < high"),
    (lambda: ENV.rollout(POLICY, np.zeros((3, 48)), frames=0), ParameterError, "frames=0 .* >= 1"),
    (lambda: Rollouts([0.0], [-1], [[0, 0]], np.zeros((1, 1, 4, 4, 3), np.uint8)), OutcomeError, "16, 32 or 64 for the autoencoder"),
    (lambda: Point2D(image_size=48), ParameterError, "power of two"),
    (lambda: BehaviorAutoencoder(10, 128), ParameterError, "16, 32, 64"),
    (lambda: BehaviorAutoencoder(10, 16).encode(np.zeros((2, 1, 16, 16, 4), np.uint8)), OutcomeError, "a power of two"),
    (lambda: BehaviorAutoencoder(10, 16).encode(np.zeros((2, 1, 16, 12, 3), np.uint8)), OutcomeError, "a power of two"),
    (lambda: BehaviorAutoencoder(10, 16).encode(np.zeros((2, 1, 16, 16, 3))), OutcomeError, "float64; render to uint8"),
    (lambda: BehaviorAutoencoder(10, 16).fit(np.zeros((4, 1, 16, 16, 3), np.uint8)), ParameterError, "at least 5"),
    (lambda: ENV.rollout(POLICY, np.zeros((3, 47))), DesignError, r"needs \[n, 48\]"),
    (lambda: ENV.rollout(POLICY, np.full((3, 48), np.nan)), DesignError, "not finite"),
    (lambda: Rollouts([np.nan], [-1], [[0, 0]]), OutcomeError, "not finite"),
    (lambda: Rollouts([0.0], None, [[0, 0]]), OutcomeError, "reward_area is None"),
    (lambda: Rollouts([0.0], [-1, 0], [[0, 0]]), OutcomeError, "do not fit"),
    (lambda: novelty(np.zeros((3, 2)), np.zeros((3, 3))), ParameterError, "one width"),
    (lambda: coverage([[0, 0]], ((1, -1), (0, 1))), ParameterError, "low < high"),
    (lambda: Archive({"a": [1], "b": [1, 2]}), DesignError, "one row per individual"),
    (lambda: FeedForwardPolicy([2]), ParameterError, "at least"),
])
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words): call()


def test_tell_refuses_and_forgets_nothing():
    search = make("stax")
    genomes = search.ask(5)
    good = ENV.rollout(POLICY, genomes)
    for bad, error in (((genomes, good[:4]), OutcomeError), ((genomes[:, :5], good), DesignError), ((genomes[::-1], good), StateError), ((genomes, None), OutcomeError),
                       ((genomes, ENV.rollout(POLICY, genomes, images=False)), OutcomeError),
                       ((genomes, Point2D(32).rollout(POLICY, genomes)), OutcomeError)):
        with pytest.raises(error): search.tell(*bad)
    search.tell(genomes, good)
    assert search.spent == 5
    search.ask()
    with pytest.raises(StateError, match="tell their roll-outs first"): search.ask()
    done = make("random", budget=10); done.run(progress=False)
    with pytest.raises(StateError, match="budget of 10"): done.ask()


def test_negative_rewards_count_as_none():
    class Harsh(Point2D):
        def earned(self, state, reward, area, last): return reward - 1, area
    run = SERENE(Harsh(16), POLICY, 500, **SMALL).run(progress=False)
    assert len(run.seen) == 500 and not len(run.reward_archive) and run.areas_found == 0 and set(run.history.phase) <= {"explore", "cut short"}


def test_descriptors_are_the_current_encoders_after_training():
    search = make("stax", 1500, epochs=2)
    search.run(progress=False)
    assert search.encoder.fits >= 2 and len(search.active) + len(search.candidates) > 0
    for table in search._tables():
        if len(table): np.testing.assert_allclose(search.encoder.encode(table["frame"]), table["descriptor"], atol=1e-5)


def test_chunks_screening_and_archives():
    run = SERENE(ENV, POLICY, 3000, pop_size=50, chunk_size=500, seed=0).run(progress=False)
    h = run.history
    assert h.phase.iloc[0] == "explore" and {"screen", "emit"} <= set(h.phase)
    cost = h.spent.diff().fillna(h.spent.iloc[0])
    screened = h.phase == "screen"
    blocks = (screened != screened.shift()).cumsum()[screened]
    most = int(np.ceil((500 - 500 / 3) / SCREENING)) * SCREENING
    assert all(c % SCREENING == 0 and c <= most for c in cost[screened].groupby(blocks).sum()[:-1])
    assert (run.reward_archive["reward"] > 0).all() and set(run.best_per_area()) <= set(ENV.reward_areas)


@pytest.mark.parametrize("chunk_size", [66, 100, 104, 108, 109])
def test_every_screening_is_finished_and_no_candidate_is_lost(chunk_size):
    "In a chunk of 100 to 108 two candidates are screened, 132 evaluations: the chunk must not be closed before their sixth generation."
    search = SERENE(ENV, POLICY, 3000, pop_size=50, chunk_size=chunk_size, seed=0)
    h = search.run(progress=False).history
    kept = []                                                                      # screened generations in a row
    for phase in h.phase: kept.append((kept[-1] if kept else 0) + 1 if phase == "screen" else 0)
    ends = [a for a, b, phase in zip(kept, kept[1:], h.phase[1:], strict=False) if a and not b and phase != "cut short"]
    assert ends and all(n % 6 == 0 for n in ends)
    assert search._made > 0 and (len(search.active) or "emit" in set(h.phase))
    stored = len(search.reward_archive)
    assert stored >= search._made + len(search.candidates)                         # whoever became a candidate is in R, and was screened or still waits


def test_training_schedule_has_growing_intervals():
    search = make("taxons", 1100)
    search.run(progress=False)
    trained = search.result().history.dropna(subset=["training_error"])
    assert search.chunks_explored in (10, 11)
    assert len(trained) == 4                                                       # after chunks 1, 3, 6 and 10


def test_emitter_costs_and_stops():
    one = Archive({"genome": np.zeros((1, 6)), "reward": [0.1], "descriptor": np.zeros((1, 2)), "ground_truth": np.zeros((1, 2))})
    for kind in ("fitness", "novelty", "cma"):
        e, cost = Emitter(one, 0.1, kind, seed=0), 0
        for _ in range(6):
            x = e.ask(); cost += len(x)
            e.tell(Archive({"genome": x, "reward": -((x - 0.3)**2).sum(1) + 1, "descriptor": x[:, :2], "ground_truth": x[:, :2]}), np.zeros((1, 2)))
        assert cost == SCREENING and not e.stopped
    flat = [1.0] * 160
    assert has_stagnated(flat, flat, 6) and not has_stagnated(flat[:140], flat[:140], 6) and not has_stagnated(list(range(160)), list(range(160)), 6)


def test_scheduler_explores_first_and_whenever_nothing_can_be_exploited():
    rng = np.random.default_rng(0)
    for kind in ("alternating", "fixed", "time", "ucb"):
        s = ChunkScheduler(kind)
        assert s.choose(True, 1.0, rng) == "explore"
        assert all(s.choose(False, 1.0, rng) == "explore" for _ in range(5))


def test_world_peers():
    rng = np.random.default_rng(0)
    genomes = rng.uniform(-5, 5, (20, 48))
    batch = ENV.rollout(POLICY, genomes)
    for i in range(20):                                                            # a policy alone does what it does in company
        alone = ENV.rollout(POLICY, genomes[i:i + 1])
        np.testing.assert_allclose(alone.ground_truth[0], batch.ground_truth[i], atol=1e-4)
    for world in WORLDS.values():
        env = world(image_size=16)
        out = env.rollout(env.policy(), rng.uniform(-5, 5, (4, env.policy().n_genes)), frames=3)
        assert out.images.shape == (4, 3, 16, 16, 3) and out.images.dtype == np.uint8
        low, high = np.array(env.bounds).T
        assert ((out.ground_truth >= low - 1e-6) & (out.ground_truth <= high + 1e-6)).all() and (out.reward >= 0).all()
        assert ((out.reward_area >= 0) >= (out.reward > 0)).all()
    assert POLICY.n_genes == 2 * 5 + 1 + 5 * 5 + 1 + 5 * 2 + 1 and RedundantArm(16).policy().n_genes == 228


def test_first_entered_square_pays_only():
    env = Point2D(16)
    reward, area = np.zeros(1), np.full(1, -1)
    for place in ([0.77, 0.77], [0.77, 0.77], [-0.95, 0.92], [0.77, 0.77]):
        reward, area = env.earned(np.array([place], np.float32), reward, area, False)
    assert reward[0] == 3 and area[0] == 0


def test_goals_hidden_changes_only_the_frames():
    genomes = np.random.default_rng(0).uniform(-5, 5, (5, 48))
    shown, hidden = ENV.rollout(POLICY, genomes), Point2D(16, show_goals=False).rollout(POLICY, genomes)
    assert np.array_equal(shown.reward, hidden.reward) and shown.images[..., 0].any() and not hidden.images[..., 0].any()


def test_novelty_measures_against_peers():
    from scipy.spatial.distance import cdist, jensenshannon
    rng = np.random.default_rng(0)
    x, refs = rng.normal(size=(40, 3)), rng.normal(size=(70, 3))
    np.testing.assert_allclose(novelty(x, refs), np.sort(cdist(x, refs), 1)[:, :15].mean(1))
    np.testing.assert_allclose(novelty(refs, refs, among=True), np.sort(cdist(refs, refs), 1)[:, 1:16].mean(1))
    square, points = ((-1, 1), (-1, 1)), np.clip(rng.normal(size=(500, 2)) / 3, -1, 1)
    counts = np.histogram2d(*points.T, bins=10, range=square)[0].ravel()
    assert coverage(points, square, 10) == (counts > 0).mean() == coverage_curve(points, square, 10)[-1]
    assert np.isclose(uniformity(points, square, 10), 1 - jensenshannon(counts, np.ones(100), base=2)**2)
    assert uniformity(np.full((3, 2), 9.0), square) == 0


def test_pareto_survival_against_pymoo():
    from pymoo.util.nds.non_dominated_sorting import find_non_dominated
    gains = np.random.default_rng(0).normal(size=(50, 2))
    assert set(pareto_fronts(gains)[0]) == set(find_non_dominated(-gains))
    for n in (1, 7, 50): assert len(set(pareto_survivors(gains, n))) == n


def test_autoencoder_repeats_and_leaves_global_generators_alone():
    frames = np.random.default_rng(0).integers(0, 256, (40, 2, 16, 16, 3), dtype=np.uint8)
    before = torch.get_rng_state()
    a, b = (BehaviorAutoencoder(4, 16, seed=3, epochs=2).fit(frames) for _ in range(2))
    assert a.encode(frames).shape == (40, 8) and np.array_equal(a.encode(frames), b.encode(frames)) and torch.equal(before, torch.get_rng_state())
    assert np.allclose(a.surprise(frames), a.surprise(frames[:, :1]) + a.surprise(frames[:, 1:]), rtol=1e-5)
    assert a.reconstruct(frames).shape == frames.shape
