"""Step models: labels by going on, scores, the trained reward in self-training, bad input."""
import numpy as np
import pytest
import torch

from designloop.core.errors import ParameterError
from designloop.models.text_families import text_family
from designloop.models.tiny_lm import EOS, TinyConfig, TinyLM, TinyTokenizer, TinyTransformer
from designloop.models.tiny_lm_bases import sft
from designloop.optimizers.lm_training import RewardModel
from designloop.optimizers.process_reward import ProcessReward, continued, fit_process_reward, ranked_rightly
from designloop.optimizers.self_training import OnlineRFT, StepReward

FAMILY, TOKENIZER = text_family("chain", mod=2), TinyTokenizer()
SMALL = TinyConfig(width=32, layers=1, heads=2)


@pytest.fixture(scope="module")
def half_right():
    "A model that has read half-right solutions for 60 steps."
    lm = TinyLM(TinyTransformer(SMALL, 0), TOKENIZER, name="half-right")
    sft(lm.model, TOKENIZER, lambda rng, n: FAMILY.corpus(rng, n, 2, "train", {"clean": 0.3, "short": 0.35, "guess": 0.35}), 60, seed=0)
    return lm


def parrot(text: str) -> TinyTransformer:
    "A model that always goes on with these characters, whatever was before, one after the other, and then ends."
    model = TinyTransformer(SMALL, 0)
    sft(model, TOKENIZER, [(p, text) for p in ("1+1?", "1+1?1+1=0", "0+1?", "0+1?0+1=1")], 150, batch=8, warmup=10)
    return model


def test_labels_are_what_going_on_says():
    asked, answers = ["1+1?", "1+1?", "1+1?"], ["1+1=0>0", "1+1=1>1", "1+1=0"]
    ending, = {TOKENIZER.decode([*TOKENIZER.encode(">0"), EOS])}
    right, wrong = parrot(ending), parrot(">1")
    assert [[ok for _, ok in own] for _, _, own in continued(right, TOKENIZER, FAMILY, asked, answers, 4, 8, temperature=0.3)] == [[True, True], [True, False], [True]]
    assert [[ok for _, ok in own] for _, _, own in continued(wrong, TOKENIZER, FAMILY, asked, answers, 4, 8, temperature=0.3)] == [[False, True], [False, False], [False]]


def test_labels_repeat_by_seed_and_answers_without_a_step_are_left_out(half_right):
    asked, answers = ["1+1-1?"] * 3, ["1+1=0;0-1=1>1", "", "1+1=1;1-1=0>0"]
    runs = [continued(half_right.model, TOKENIZER, FAMILY, asked, answers, 3, 24, generator=4) for _ in range(2)]
    assert runs[0] == runs[1] and [a for _, a, _ in runs[0]] == [answers[0], answers[2]]
    assert all([text for text, _ in own] == [text for text, _ in FAMILY.steps(a, p)] for p, a, own in runs[0])


def test_more_continuations_never_unlabel_a_good_step_on_average(half_right):
    "With the same policy the share of good steps grows with the continuations: 1 against 16, 60 answers; they would tie or turn by chance less than once in a thousand."
    asked = [p for p, _ in FAMILY.corpus(np.random.default_rng(0), 60, 2)]
    answers = [FAMILY.corrupt(np.random.default_rng(i), FAMILY.solution(p), "wrong") for i, p in enumerate(asked)]
    share = [np.mean([ok for *_, own in continued(half_right.model, TOKENIZER, FAMILY, asked, answers, r, 24, generator=1) for _, ok in own[:-1]]) for r in (1, 16)]
    assert share[0] < share[1]


def test_scores_are_probabilities_between_minus_one_and_one(half_right):
    model = RewardModel(half_right.model, TOKENIZER)
    with torch.no_grad(): model.head.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
    scorer = ProcessReward(model, FAMILY)
    asked, answers = ["1+1-1?", "1+1?", "0+1?"], ["1+1=0;0-1=1>1", "", "0+1=1>1"]
    scores = scorer(asked, answers)
    assert [len(s) for s in scores] == [3, 0, 2] and all(-1 <= v <= 1 for s in scores for v in s) and np.ptp(scores[0]) > 0
    assert [scorer([p], [a])[0] for p, a in zip(asked, answers, strict=True)] == [pytest.approx(s, abs=1e-5) for s in scores]      # who else is scored does not matter


def test_it_serves_as_the_step_model_of_self_training(half_right):
    always = TinyLM(parrot(">0"), TOKENIZER)                       # right where the result is 0, and only there
    before = [w.clone() for w in always.model.parameters()]
    trained, marked, history = fit_process_reward(always, FAMILY, ["1+1?", "0+1?"] * 8, samples=2, rollouts=4, steps=10, max_tokens=24, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, always.model.parameters(), strict=True)) and len(history) == 10 and len(marked) <= 32
    rewards, right = StepReward(FAMILY, trained)(["1+1?", "1+1?"], ["1+1=0>0", ""])
    assert right.tolist() == [True, False] and rewards[0] == pytest.approx(1 + 0.2 * min(trained(["1+1?"], ["1+1=0>0"])[0])) and rewards[1] == pytest.approx(-0.2)
    loop = OnlineRFT(half_right.copy(), FAMILY, StepReward(FAMILY, trained), samples_per_query=4, train_queries=12, dev_queries=2, n_star=2, s=2, sft_steps=2, level=(4, 5),
                     max_tokens=24)
    assert list(loop.run(1)["round"]) == [0, 1]


def test_wrong_verdicts_on_the_result_are_in_the_reward_and_nowhere_else():
    asked, answers = ["1+1?"] * 400, [f"{'1+1=0;' * (k % 2)}{k}>0" for k in range(400)]
    clean, fooled = StepReward(FAMILY, weight=0.0), StepReward(FAMILY, weight=0.0, outcome_noise=0.3, seed=1)
    (a, right), (b, also) = clean(asked, answers), fooled(asked, answers)
    assert (right == also).all() and a.tolist() == right.astype(float).tolist()
    assert 0.2 < (a != b).mean() < 0.4                            # 120 of 400 expected, standard error 9
    assert (fooled(asked, answers)[0] == b).all() and (StepReward(FAMILY, weight=0.0, outcome_noise=0.3, seed=2)(asked, answers)[0] != b).any()


def test_ranking_by_hand():
    assert ranked_rightly([1, 2, 3, 4], [0, 0, 1, 1]) == 1 and ranked_rightly([4, 3, 2, 1], [0, 0, 1, 1]) == 0 and ranked_rightly([1, 1], [0, 1]) == 0.5
    assert np.isnan(ranked_rightly([1, 2], [1, 1]))


@pytest.mark.parametrize("call, words", [
    (lambda lm: continued(lm.model, TOKENIZER, FAMILY, ["1+1?"], []), ["1 prompts", "0 answers"]),
    (lambda lm: continued(lm.model, TOKENIZER, FAMILY, ["1+1?"], ["1+1=0"], rollouts=0), ["rollouts=0"]),
    (lambda lm: fit_process_reward(TinyLM(TinyTransformer(SMALL, 0), TOKENIZER), FAMILY, ["1+1?"], max_tokens=4), ["all", "good and bad ones"]),
    (lambda lm: StepReward(FAMILY, lambda p, a: [])(["1+1?"], [">0"]), ["0 lists", "1 answers"]),
    (lambda lm: StepReward(FAMILY, outcome_noise=1.5), ["outcome_noise=1.5"]),
])
def test_bad_input_is_refused(call, words, half_right):
    with pytest.raises(ParameterError) as e: call(half_right)
    assert all(w in str(e.value) for w in words), e.value
