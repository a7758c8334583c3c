"""Zero reinforcement learning: rewards, behaviours, trainer, monitors, the zoo, bad input."""
import warnings

import numpy as np
import pytest
import torch

from designloop.core.errors import OutcomeError, ParameterError
from designloop.lm.protocol import FunctionLM
from designloop.models.text_families import text_family
from designloop.models.tiny_lm import TinyConfig, TinyLM, TinyTokenizer, TinyTransformer
from designloop.optimizers.zero_rl import (
    ZOO,
    CorrectnessFormatReward,
    CorrectnessReward,
    ReasoningBehaviors,
    ZeroRL,
    difficulty_split,
    last_number,
    training_monitor,
    zoo_base,
)

FAMILY = text_family("chain")


def untrained(seed=0): return TinyLM(TinyTransformer(TinyConfig(width=32, layers=1, heads=2), seed), TinyTokenizer(), name="untrained")


def digits(prompts, answers): return [float(sum(c.isdigit() for c in a)) for a in answers]


def small(policy=None, task=None, reward=digits, **options):
    return ZeroRL(policy or untrained(), task or ["a?", "b?"], reward, **{"max_tokens": 5, "prompts_per_step": 2, "n_rollouts": 4, **options})


def test_rewards_of_right_and_marked_answers():
    asked = ["3+4-2?"] * 5
    answers = ["3+4=7;7-2=5>5", "3+4=7;7-2=5", "3+4=7;7-2=6>6", "3+4=7;7-2=6", ""]
    assert CorrectnessReward(FAMILY)(asked, answers) == [1, 0, 0, 0, 0]
    assert CorrectnessFormatReward(FAMILY)(asked, answers) == [1.0, 0.5, -0.5, -1.0, -1.0]
    assert [last_number(t) for t in ("7-2=5", "no", "a 12 b 3")] == ["5", "", "3"]


def test_behaviours_by_grammar_and_by_judge():
    rates = ReasoningBehaviors().rate(["3+4=8!3+4=7>7", "3+4=7>7", ">7", ">7"])
    assert rates["backtracking"].value == 0.25 and rates["subgoal"].value == 0.5 and rates["backtracking"].ci[1] > 0.25
    odd = FunctionLM(lambda prompt, rng: "perhaps" if "verification" in prompt else "Yes.", name="judge")
    table = ReasoningBehaviors(judge=odd).labels([">7"], ["3+4?"])
    assert table["subgoal"].tolist() == [1.0] and np.isnan(table["verification"][0])
    with pytest.raises(ParameterError, match="verification"): ReasoningBehaviors(judge=odd).rate([">7"])


def test_a_step_moves_the_policy_towards_the_reward_and_repeats_by_seed():
    runs = []
    for _ in range(2):
        state = torch.random.get_rng_state()
        trainer = small(seed=3, lr=1e-2, prompts_per_step=8)
        history = trainer.fit(12)
        assert torch.equal(state, torch.random.get_rng_state())
        runs.append(history)
    assert runs[0].equals(runs[1]) and list(runs[0].step) == list(range(1, 13))
    assert runs[0].reward.iloc[-3:].mean() > runs[0].reward.iloc[:3].mean()
    assert runs[0].first_ratio.iloc[0] == pytest.approx(1, abs=1e-5)


def test_groups_without_a_difference_have_no_gradient():
    alike = small(reward=lambda prompts, answers: [1.0] * len(answers), kl_coef=0.0, entropy_coef=0.0)
    before = [w.clone() for w in alike.policy.model.parameters()]
    assert alike.step()["degenerate"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, alike.policy.model.parameters(), strict=True))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        alike.fit(5)
    assert sum("no learning signal" in str(w.message) for w in seen) == 1


def test_batch_baseline_and_dropping_change_the_advantages():
    reward = lambda prompts, answers: [float(p[0] == "a") for p in prompts]        # the answers do not matter: groups are degenerate, the batch is not
    group, batch = small(reward=reward, kl_coef=0.0, entropy_coef=0.0), small(reward=reward, baseline="batch", kl_coef=0.0, entropy_coef=0.0)
    assert group.step()["gradient"] == 0 and batch.step()["gradient"] > 0
    dropped = small(reward=reward, drop_degenerate=True)
    assert "gradient" not in dropped.step()


def test_monitor_gives_every_figure_with_its_interval():
    prompts = [p for p, _ in FAMILY.corpus(np.random.default_rng(0), 12, 2)]
    scores = training_monitor(untrained(), FAMILY, prompts, n=4, k=2, max_tokens=6)
    assert {"greedy", "sampled", "pass@2", "length", "truncated", "marked", "backtracking"} <= set(scores)
    assert all(s.ci[0] <= s.value <= s.ci[1] for s in scores.values()) and scores["length"].unit == "tokens"
    again = training_monitor(untrained(), FAMILY, prompts, n=4, k=2, max_tokens=6)
    assert {k: v.value for k, v in scores.items()} == {k: v.value for k, v in again.items()}


def test_the_zoo_leaves_the_parent_alone_and_mixes():
    parent = untrained()
    before = [w.clone() for w in parent.model.parameters()]
    bases = {name: zoo_base(name, parent, FAMILY, steps=2) for name in ZOO}
    assert all(torch.equal(a, b) for a, b in zip(before, parent.model.parameters(), strict=True)) and len({lm.name for lm in bases.values()}) == len(ZOO)
    split = difficulty_split(FAMILY, 5)
    assert {k: {p.count("+") + p.count("-") for p in v} <= {"easy": {2, 3}, "medium": {3, 4, 5}, "hard": {5, 6}}[k] for k, v in split.items()} == \
        {"easy": True, "medium": True, "hard": True}


@pytest.mark.parametrize("call, error, words", [
    (lambda: small(n_rollouts=1), ParameterError, ["n_rollouts=1", "REINFORCE"]),
    (lambda: ZeroRL(untrained(), ["a?"]), ParameterError, ["reward=None", "family"]),
    (lambda: small(temperature=0), ParameterError, ["temperature=0"]),
    (lambda: small(baseline="none"), ParameterError, ["'none'", "'batch'"]),
    (lambda: small(normalize="std"), ParameterError, ["'std'", "group_std"]),
    (lambda: small(reward=lambda p, a: [1.0]).step(), OutcomeError, ["1 values", "8 answers"]),
    (lambda: small(reward=lambda p, a: [float("nan")] * len(a)).step(), OutcomeError, ["nan"]),
    (lambda: small().fit(0), ParameterError, ["steps=0"]),
    (lambda: training_monitor(untrained(), FAMILY, ["1+1?"], n=4, k=8), ParameterError, ["k=8", "n=4"]),
    (lambda: CorrectnessFormatReward(FAMILY, (1, 0)), ParameterError, ["2 numbers", "four"]),
    (lambda: ReasoningBehaviors({"x": "("}), ParameterError, ["patterns['x']", "not a regular expression"]),
    (lambda: ReasoningBehaviors().rate([]), ParameterError, ["empty"]),
    (lambda: zoo_base("balance", untrained(), FAMILY), ParameterError, ["'balance'", "'balanced'"]),
    (lambda: ZeroRL(FunctionLM(lambda p, r: p), FAMILY), ParameterError, ["policy is a FunctionLM", "TinyLM"]),
    (lambda: ZeroRL(untrained(), "chian"), ParameterError, ["'chian'", "'chain'"]),
    (lambda: ReasoningBehaviors(judge="gpt"), ParameterError, ["judge is a str", "LM"]),
    (lambda: training_monitor(untrained(), "chain", "1+1?"), ParameterError, ["'1+1?' is one text"]),
])
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error) as e: call()
    assert all(w in str(e.value) for w in words), e.value


def test_a_limit_below_every_solution_is_warned_about():
    with pytest.warns(UserWarning, match="shorter than the shortest"): ZeroRL(untrained(), FAMILY, level=4, max_tokens=3)
