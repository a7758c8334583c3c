"""Self-training: balance score, rewards, pools, selection, the five loops, bad input."""
import numpy as np
import pytest
import torch

from designloop.core.errors import ParameterError
from designloop.models.text_families import text_family
from designloop.models.tiny_lm import TinyConfig, TinyLM, TinyTokenizer, TinyTransformer
from designloop.models.tiny_lm_bases import sft
from designloop.optimizers.self_training import (
    BSTaR,
    IterativeRFT,
    OnlineRFT,
    Pool,
    RestEM,
    SelfTrainingLoop,
    STaR,
    StepReward,
    balance_score,
    balance_table,
    canonical,
    draw_pool,
    monitors,
    selected,
)

FAMILY = text_family("chain", mod=2)


@pytest.fixture(scope="module")
def base():
    "A model that has read half-right solutions for 60 steps."
    lm = TinyLM(TinyTransformer(TinyConfig(width=32, layers=1, heads=2), 0), TinyTokenizer(), name="half-right")
    sft(lm.model, lm.tokenizer, lambda rng, n: FAMILY.corpus(rng, n, 2, "train", {"clean": 0.5, "guess": 0.5}), 60, seed=0)
    return lm


def loop(kind, base, **options):
    return kind(base.copy(), FAMILY, StepReward(FAMILY, noise=0.3), **{"samples_per_query": 4, "train_queries": 12, "dev_queries": 2, "n_star": 2, "s": 2, "sft_steps": 2,
                                                             "level": (4, 5), "max_tokens": 24, **options})


def random_pool(seed, q=20, k=10):
    rng = np.random.default_rng(seed)
    answers = [[f"{rng.integers(6)}" for _ in range(k)] for _ in range(q)]
    quality = {str(a): (a, a >= 3) for a in range(6)}              # the same answer has the same reward and verdict
    rewards = np.array([[quality[a][0] / 5 for a in row] for row in answers])
    return Pool([f"q{i}" for i in range(q)], answers, rewards, np.array([[quality[a][1] for a in row] for row in answers]), 1.0)


def test_balance_score_by_hand_and_its_bounds():
    assert balance_score([8, 4, 8, 0], [8, 4, 16, 0], 8).tolist() == [1.0, 0.5, 0.5, 0.0]
    rng = np.random.default_rng(0)
    n = rng.integers(0, 20, 500)
    c = (rng.random(500) * (n + 1)).astype(int)
    b = balance_score(c, n, 4)
    assert ((b >= 0) & (b <= 1)).all() and (b[c == 0] == 0).all() and (b[(c == n) & (n >= 4)] == 1).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [None, 5, 40, 10_000])
def test_the_table_of_thresholds_equals_selecting_by_hand(seed, target):
    pool = random_pool(seed)
    table = balance_table(pool, [-0.5, 0.2, 0.5, 1.0], n_star=3, target=target)
    for _, row in table.iterrows():
        chosen = selected(pool, row.threshold, target)
        by_question = {p: [a for q, a in chosen if q == p] for p in pool.prompts}
        scores = [balance_score(sum(int(a) >= 3 for a in own), len(own), 3) for own in by_question.values()]
        assert row.selected == len(chosen) and row.balance == pytest.approx(np.mean(scores))
        assert all(float(a) / 5 > row.threshold for _, a in chosen)                      # strictly above
        if target is not None and len(chosen) < target:                                  # then nothing above the threshold was left out
            assert all(len(own) == len({a for a in row_ if float(a) / 5 > row.threshold}) for own, row_ in zip(by_question.values(), pool.answers, strict=True))


def test_a_reference_that_was_sampled_is_not_counted_twice():
    pool = random_pool(2, q=6, k=3)
    refs = {p: row[0] if i % 2 else "new" for i, (p, row) in enumerate(zip(pool.prompts, pool.answers, strict=True))}
    for tau in (-1.0, 0.3, 0.9):
        chosen = selected(pool, tau, references=refs)
        assert int(balance_table(pool, [tau], references=refs).selected[0]) == len(chosen) == len(set(chosen))


def test_references_enter_with_reward_one_and_strict_inequality():
    pool = random_pool(1, q=3, k=4)
    refs = {p: "reference" for p in pool.prompts}
    assert sum(a == "reference" for _, a in selected(pool, 0.99, references=refs)) == 3
    assert not selected(pool, 1.0, references=refs)                   # a reward of exactly 1 is not above 1


def test_duplicates_and_white_space_do_not_count_twice():
    pool = Pool(["q"], [["a b", "ab", "a  b", "c"]], np.array([[1.0, 1.0, 1.0, 0.2]]), np.array([[True, True, True, False]]), 1.0)
    seen = {k: v.value for k, v in monitors(pool, 2).items()}
    assert canonical(" a b\n") == "ab" and pool.fresh.tolist() == [[True, False, False, True]]
    assert seen["pass@1"] == 0.75 and seen["pass@4-2"] == 0 and seen["reward@4-2"] == 1 and seen["diversity"] == pytest.approx(1 / 3)


def test_step_rewards_take_the_worst_step():
    reward = StepReward(FAMILY, steps=lambda p, a: [[0.5, -0.25, 1.0]])
    values, right = reward(["1+1?"], ["1+1=0>0"])
    assert values.tolist() == [1 - 0.05] and right.tolist() == [True]
    noisy = StepReward(FAMILY, noise=1.0)(["1+1?"], ["1+1=0>0"])[0]
    assert noisy.tolist() == [1 - 0.2]
    with pytest.raises(ParameterError, match=r"\[-1, 1\]"): StepReward(FAMILY, steps=lambda p, a: [[2.0]])(["1+1?"], [">0"])


@pytest.mark.parametrize("kind", [OnlineRFT, IterativeRFT, RestEM, STaR, BSTaR])
def test_every_loop_runs_repeats_and_leaves_global_randomness_alone(kind, base):
    state = torch.random.get_rng_state()
    options = {"temperatures": (0.7, 1.3), "thresholds": (0.0, 0.9)} if kind is BSTaR else {}
    first, second = (loop(kind, base, **options) for _ in range(2))
    a, b = first.run(2), second.run(2)
    assert a.equals(b) and list(a["round"]) == [0, 1, 2] and torch.equal(state, torch.random.get_rng_state())
    if kind is STaR: assert set(a.temperature.dropna()) == {0.5}
    if kind is BSTaR:
        for k, table in enumerate(first.tables):
            chosen = table[(table.temperature == a.temperature[k + 1]) & (table.threshold == a.threshold[k + 1])]
            assert chosen.balance.iloc[0] == table.balance.max()       # by construction


def test_restarting_forgets_and_going_on_does_not(base):
    online, fresh = loop(OnlineRFT, base), loop(RestEM, base)
    same = [torch.equal(a, b) for a, b in zip(fresh.base.model.parameters(), base.model.parameters(), strict=True)]
    assert all(same)
    optimizer = online.optimizer
    online.run(2); fresh.run(2)
    assert online.optimizer is optimizer and fresh.optimizer is not None
    assert max(int(s["step"]) for s in online.optimizer.state.values()) == 4 and max(int(s["step"]) for s in fresh.optimizer.state.values()) == 2


def test_a_round_with_nothing_selected_changes_nothing(base):
    stuck = loop(OnlineRFT, base, thresholds=(5.0,))
    before = [w.clone() for w in stuck.policy.model.parameters()]
    assert stuck.round()["selected"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, stuck.policy.model.parameters(), strict=True))


@pytest.mark.parametrize("call, words", [
    (lambda b: balance_score([3], [2], 4), ["n_correct=3", "n_selected=2"]),
    (lambda b: balance_score([1], [2], 0), ["n_star=0"]),
    (lambda b: loop(BSTaR, b, temperatures=()), ["temperatures is empty"]),
    (lambda b: loop(BSTaR, b, temperatures=(0.0, 1.0)), ["temperatures=0"]),
    (lambda b: loop(BSTaR, b, temperatures=(1.0,), thresholds=(0.5,)), ["nothing is searched"]),
    (lambda b: balance_table(Pool(["q"], [["a", "b"]], np.ones((1, 2)), np.ones((1, 2), bool), 1.0), [0.0, 0.5]), ["the reward 1", "no threshold"]),
    (lambda b: SelfTrainingLoop.check_apart({"a": "x", "b": "y"}, {"a": "x"}), ["1 questions", "'a'"]),
    (lambda b: monitors(random_pool(0), 11), ["s=11", "10 samples"]),
    (lambda b: draw_pool(b, ["1+1?"], StepReward(FAMILY), temperature=0), ["temperature=0"]),
    (lambda b: StepReward(FAMILY, noise=2), ["noise=2"]),
    (lambda b: OnlineRFT(b, "chian"), ["'chian'", "'chain'"]),
    (lambda b: OnlineRFT(b.model, FAMILY), ["policy is a TinyTransformer", "TinyLM"]),
])
def test_bad_input_is_refused(call, words, base):
    with pytest.raises(ParameterError) as e: call(base)
    assert all(w in str(e.value) for w in words), e.value


def test_too_few_samples_for_n_star_are_warned_about(base):
    with pytest.warns(UserWarning, match="can never reach 1"): loop(OnlineRFT, base, n_star=9)
