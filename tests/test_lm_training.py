"""Training with rewards: ratios, masks, repeatability, bad rewards, and the same losses as TRL's on the same numbers."""

from collections import defaultdict
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from designloop.core.errors import OutcomeError, ParameterError, StateError
from designloop.models.text_families import Chain
from designloop.models.tiny_lm import EOS, TinyLM, TinyTokenizer, TinyTransformer, token_logprobs
from designloop.models.tiny_lm_bases import sft, sft_loss, update
from designloop.optimizers.lm_curves import LiveCurves
from designloop.optimizers.lm_losses import aggregated, gae, group_advantages, grpo_loss, kl_k3, preference_loss, process_advantages, step_loss
from designloop.optimizers.lm_training import (
    RewardModel,
    fit_reward,
    grpo,
    grpo_update,
    new_optimizer,
    ppo,
    rejection_sft,
    reward_for,
    rollout,
    select,
    step_positions,
    step_rewards,
)

TOKENIZER = TinyTokenizer()
LETTERS = "abcdefgh"


def words(rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    "A task that is learned in a second: write some letters."
    return [(":", "".join(LETTERS[i] for i in rng.integers(8, size=rng.integers(2, 6)))) for _ in range(n)]


def many_a(prompts: list[str], answers: list[str]) -> list[float]: return [a.count("a") / max(len(a), 1) for a in answers]


def prompts(rng: np.random.Generator, n: int) -> list[str]: return [":"] * n


@pytest.fixture(scope="module")
def base() -> TinyTransformer:
    model = TinyTransformer("nano", 0)
    sft(model, TOKENIZER, words, steps=80, warmup=10, seed=0)
    return model


# --- rollouts and GRPO -----------------------------------------------------------------------------------------------

def test_the_end_is_part_of_the_answer(base):
    batch = rollout(base, TOKENIZER, [":", ":"], many_a, n=8, max_tokens=12, generator=0)
    ended = [i for i in range(16) if batch.stopped[i]]
    assert ended and all(batch.tokens[i][batch.mask[i]][-1] == EOS for i in ended)
    assert (batch.mask.sum(1) == torch.tensor([len(t) for t in batch.texts]) + batch.stopped).all()
    held = deepcopy(base); held.never[EOS] = -1e4
    cut = rollout(held, TOKENIZER, [":"], many_a, n=2, max_tokens=6, generator=0)
    assert not cut.stopped.any() and not (cut.tokens[cut.mask] == EOS).any()                     # truncated answers have no end to learn


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("minibatches", [1, 3])
def test_the_first_ratio_is_exactly_one(base, temperature, minibatches):
    model = deepcopy(base)
    batch = rollout(model, TOKENIZER, [":"] * 4, many_a, n=4, max_tokens=10, temperature=temperature, generator=0)
    found = grpo_update(model, new_optimizer(model, 1e-3), batch, batch.advantages(), epochs=2, minibatches=minibatches, generator=np.random.default_rng(0))
    assert found["first_ratio"] == 1.0 and found["ratio"] != 1.0


def test_grpo_learns_what_is_rewarded_and_repeats(base):
    runs = []
    before = torch.random.get_rng_state()
    for _ in range(2):
        model = deepcopy(base)
        runs.append((grpo(model, TOKENIZER, prompts, many_a, steps=12, prompts_per_step=4, max_tokens=10, lr=2e-3, seed=3), TinyLM(model).variant))
    assert runs[0][0].equals(runs[1][0]) and runs[0][1] == runs[1][1] and torch.equal(before, torch.random.get_rng_state())
    rewards = runs[0][0].reward
    assert rewards.iloc[-2:].mean() > rewards.iloc[:2].mean() + 0.15


@pytest.mark.parametrize("options", [dict(normalize="none"), dict(aggregate="sequence"), dict(aggregate="constant"), dict(kl_coef=0.1), dict(entropy_coef=0.01),
                                     dict(epochs=2, minibatches=2)], ids=str)
def test_every_option_trains(base, options):
    model = deepcopy(base)
    history = grpo(model, TOKENIZER, prompts, many_a, steps=2, prompts_per_step=2, n_rollouts=4, max_tokens=8, **options)
    assert np.isfinite(history.loss).all() and history.first_ratio.eq(1).all() and TinyLM(model).variant != TinyLM(base).variant
    if "kl_coef" in options: assert history.kl.iloc[0] == 0 and history.kl.iloc[1] > 0


def test_a_group_that_agrees_teaches_nothing(base):
    model = deepcopy(base)
    history = grpo(model, TOKENIZER, prompts, lambda p, a: [1.0] * len(a), steps=2, prompts_per_step=2, max_tokens=8)
    assert history.degenerate.eq(1).all() and history.gradient.eq(0).all()


def test_rewards_of_steps_reach_their_tokens(base):
    assert step_positions("3+4=7;7-2=5>5", [("3+4=7", 1), ("7-2=5", 1), (">5", 1)]) == [5, 11, 13]
    row = step_rewards(TinyTokenizer(["4=7"]), "3+4=7;1", [("3+4=7", 1.0)])
    assert len(row) == 5 and [i for i, v in enumerate(row) if v == v] == [2]
    with pytest.raises(ParameterError, match="is not in the answer"): step_positions("3+4=7", [("7-2=5", 1)])
    def every_a(p, answers): return [[1.0 if c == "a" else np.nan for c in a] for a in answers]
    batch = rollout(base, TOKENIZER, [":"] * 2, every_a, n=4, max_tokens=8, generator=0)
    assert batch.step_rewards.shape == batch.tokens.shape and batch.advantages().shape == batch.tokens.shape
    assert batch.rewards.tolist() == [t.count("a") for t in batch.texts]


def test_bad_rewards_are_named(base):
    def short(p, a): return [1.0]
    def broken(p, a): return [float("nan")] * len(a)
    def long(p, a): return [[1.0] * 50 for _ in a]
    go = dict(steps=1, prompts_per_step=2, n_rollouts=2, max_tokens=6)
    with pytest.raises(OutcomeError, match="the reward short gave 1 values for 4 answers"): grpo(deepcopy(base), TOKENIZER, prompts, short, **go)
    with pytest.raises(OutcomeError, match="the reward broken is nan .* 4 of 4"): grpo(deepcopy(base), TOKENIZER, prompts, broken, **go)
    with pytest.raises(OutcomeError, match="50 token rewards for an answer of"): grpo(deepcopy(base), TOKENIZER, prompts, long, **go)
    with pytest.raises(ParameterError, match="n_rollouts=1 leaves nothing"): grpo(base, TOKENIZER, prompts, many_a, n_rollouts=1)
    with pytest.raises(ParameterError, match="reward=None needs a family"): grpo(base, TOKENIZER, prompts)
    with pytest.raises(ParameterError, match="prompts is empty"): grpo(base, TOKENIZER, [], many_a)
    with pytest.raises(ParameterError, match="temperature=0 is not allowed"): grpo(base, TOKENIZER, prompts, many_a, temperature=0)
    with pytest.raises(ParameterError, match="group of one"): group_advantages(torch.ones(3, 1))
    with pytest.raises(ParameterError, match="kl_coef=0.1 needs ref_logp"): grpo_loss(torch.zeros(1, 1), torch.zeros(1, 1), None, torch.ones(1), torch.ones(1, 1), kl_coef=0.1)


def test_a_loss_that_is_not_finite_leaves_the_weights(base):
    model, optimizer = deepcopy(base), new_optimizer(base)
    with pytest.raises(StateError, match="the loss is nan"): update(model, optimizer, model.head.sum() * float("nan"))
    assert TinyLM(model).variant == TinyLM(base).variant


# --- the other loops -------------------------------------------------------------------------------------------------

def test_a_reward_model_orders_new_pairs(base):
    "200 new pairs; chance stays below 0.65 with probability 0.99999."
    def pairs(rng, n):
        out = []
        for p, w in words(rng, n):
            i = int(rng.integers(len(w)))
            out.append((p, w[:i] + "a" + w[i + 1:], w[:i] + "h" + w[i + 1:]))
        return out
    rm, history = fit_reward(base, TOKENIZER, pairs, steps=60, seed=0)
    test = pairs(np.random.default_rng(9), 200)
    right = rm.score([t[0] for t in test], [t[1] for t in test]) > rm.score([t[0] for t in test], [t[2] for t in test])
    assert right.float().mean() > 0.65 and history.loss.iloc[0] == pytest.approx(np.log(2), abs=1e-4)
    untouched = TinyLM(base).variant
    _, repeated = fit_reward(base, TOKENIZER, pairs, steps=5, seed=0)
    assert repeated.equals(fit_reward(base, TOKENIZER, pairs, steps=5, seed=0)[1])
    assert TinyLM(base).variant == untouched                                                   # a copy was trained
    alone = torch.stack([rm.score([p], [a])[0] for p, a, _ in test[:8]])
    assert torch.allclose(alone, rm.score([t[0] for t in test[:8]], [t[1] for t in test[:8]]), atol=1e-4)      # lengths of others do not matter


def test_step_labels_are_read_at_the_ends_of_steps(base):
    chain = Chain()
    def marked(rng, n): return [(p, s, chain.steps(s, p)) for p, s in chain.corpus(rng, n, level=2)]
    rm, history = fit_reward(base, TOKENIZER, marked, steps=15, kind="steps")
    assert history.loss.iloc[-1] < history.loss.iloc[0]
    [p] = rm.step_scores(["3+4-2?"], ["3+4=7;7-2=5>5"], [[5, 11, 13]])
    tokens, mask = rm._packed(["3+4-2?"], ["3+4=7;7-2=5>5"])
    assert torch.allclose(p, torch.sigmoid(rm(tokens))[0, [1 + 6 + 4, 1 + 6 + 10, 1 + 6 + 12]].detach(), atol=1e-5) and (p > 0.5).all()
    with pytest.raises(ParameterError, match="must hold triples"): fit_reward(base, TOKENIZER, [(":", "a")])


def test_selection_keeps_different_answers_above_the_threshold():
    kept = select(["p", "p", "p", "p", "q"], ["x", "y", "x", "z", "x"], [0.6, 0.9, 0.7, 0.5, 0.1], threshold=0.5, per_prompt=2)
    assert kept == [("p", "y"), ("p", "x")]


def test_rejection_sampling_and_ppo_learn(base):
    student = deepcopy(base)
    history = rejection_sft(student, TOKENIZER, prompts, many_a, rounds=3, prompts_per_round=8, n=16, threshold=0.3, per_prompt=8, sft_steps=12, max_tokens=10, seed=0)
    assert history.reward.iloc[-1] > history.reward.iloc[0] + 0.1
    nothing = rejection_sft(deepcopy(base), TOKENIZER, prompts, many_a, rounds=1, prompts_per_round=2, n=2, threshold=2.0, max_tokens=10)
    assert nothing.kept.iloc[0] == 0
    policy = deepcopy(base)
    history = ppo(policy, TOKENIZER, prompts, many_a, steps=14, answers_per_step=48, max_tokens=10, lr=2e-3, kl_coef=0.001, seed=0)
    assert history.reward.iloc[-3:].mean() > history.reward.iloc[:3].mean() + 0.15


def test_curves_print_where_nobody_watches(capsys):
    curves = LiveCurves(steps=4, every=2)
    for step in range(1, 5): curves({"step": step, "loss": 1.0 / step, "score": 0.5 if step == 4 else np.nan, "samples": [("a", "b", True)]})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["training: step     2 of 4   loss 0.500", "training: step     4 of 4   loss 0.250   score 0.50"]
    assert len(curves.frame) == 4 and curves.widget is None
    with pytest.raises(ParameterError, match="needs 'step'"): curves({"loss": 1.0})
    live = LiveCurves(steps=2, live=True, seconds=0)
    for step in (1, 2): live({"step": step, "loss": 1.0, "samples": [("3+4?", "<b>", False)]})
    assert "step     2 of 2" in live._status.value and "data:image/png" in live._picture.value and "&lt;b&gt;" in live._texts.value


# --- closed forms and TRL --------------------------------------------------------------------------------------------

class Alone:
    "An accelerator of one process: whatever is gathered or reduced comes back as it is."
    num_processes, process_index, is_main_process = 1, 0, True
    def __getattr__(self, name): return lambda value, *_, **__: value


def numbers(seed: int = 0, n: int = 6, length: int = 9, vocab: int = 11) -> SimpleNamespace:
    g = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, vocab, (n, length), generator=g)
    def logp(logits): return logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
    logits = torch.randn(n, length, vocab, generator=g, requires_grad=True)
    mask = torch.arange(length) < torch.tensor([9, 3, 5, 7, 2, 9])[:n, None]
    old, ref = (logp(logits.detach() + s * torch.randn(n, length, vocab, generator=g)) for s in (0.3, 0.6))
    return SimpleNamespace(logits=logits, tokens=chosen, logp=logp, old=old, ref=ref, mask=mask, advantages=torch.randn(n, generator=g))


def test_advantages_and_estimates():
    r = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    assert torch.allclose(group_advantages(r)[0, 0], torch.tensor(0.75 / 0.5), atol=1e-4) and torch.allclose(group_advantages(r, "none")[1], torch.tensor([0.5, 0.5, -0.5, -0.5]))
    at_end = torch.full((2, 4, 3), torch.nan); at_end[..., 2] = r
    assert torch.allclose(process_advantages(at_end), group_advantages(r)[..., None].expand(2, 4, 3), atol=1e-4)      # a reward at the end is an outcome
    assert (kl_k3(torch.randn(50), torch.randn(50)) >= 0).all() and (kl_k3(torch.ones(3), torch.ones(3)) == 0).all()
    v, rewards, mask = torch.rand(2, 6), torch.rand(2, 6), torch.arange(6) < torch.tensor([[6], [4]])
    advantages, returns = gae(rewards, v, mask, gamma=0.9, lam=1.0)
    for i, n in enumerate((6, 4)):
        expected = torch.stack([sum(0.9 ** (k - t) * rewards[i, k] for k in range(t, n)) for t in range(n)])
        assert torch.allclose(returns[i, :n], expected, atol=1e-5) and not returns[i, n:].any()
    x = numbers()
    assert torch.isclose(aggregated(x.old, x.mask, "constant", 9), (x.old * x.mask).sum() / 54)


@pytest.mark.parametrize("aggregate, loss_type", [("token", "bnpo"), ("sequence", "grpo"), ("constant", "dr_grpo")])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("per_token", [False, True])
def test_grpo_loss_equals_trl(aggregate, loss_type, beta, per_token):
    pytest.importorskip("trl", reason="trl is not installed (extra hf)")
    from trl import GRPOTrainer
    x = numbers()
    a = x.advantages[:, None] * torch.linspace(0.5, 1.5, 9) if per_token else x.advantages
    ours = grpo_loss(x.logp(x.logits), x.old, x.ref, a, x.mask, 0.2, beta, aggregate, 9)
    trainer = object.__new__(GRPOTrainer)                                      # the loss alone, without a model, data or accelerator around it
    trainer.__dict__.update(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=beta, epsilon_low=0.2, epsilon_high=0.2,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False), loss_type=loss_type, use_vllm=False, vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=9, _entropy_bonus_enabled=False,
        accelerator=Alone(), _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (x.logp(x.logits), torch.zeros(6, 9), None))
    theirs = trainer._compute_loss(None, {"prompt_ids": torch.zeros(6, 2, dtype=torch.long), "prompt_mask": torch.ones(6, 2), "completion_ids": x.tokens,
                                          "completion_mask": x.mask.float(), "advantages": a, "old_per_token_logps": x.old, "ref_per_token_logps": x.ref})
    assert torch.isclose(ours, theirs, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(loss, x.logits)[0] for loss in (ours, theirs)), atol=1e-6)


def test_preference_loss_equals_trl():
    pytest.importorskip("trl", reason="trl is not installed (extra hf)")
    from trl import RewardTrainer
    rewards = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
    trainer = object.__new__(RewardTrainer)
    trainer.__dict__.update(model=SimpleNamespace(training=True), args=SimpleNamespace(center_rewards_coefficient=0.05), aux_loss_enabled=False, _total_train_tokens=0, _tp_size=1,
                            accelerator=Alone(), _metrics={"train": defaultdict(list), "eval": defaultdict(list)})
    theirs = trainer.compute_loss(lambda **kw: SimpleNamespace(logits=rewards), {"input_ids": torch.zeros(8, 3, dtype=torch.long), "attention_mask": torch.ones(8, 3)})
    assert torch.isclose(preference_loss(rewards[:4, 0], rewards[4:, 0], centre=0.05), theirs, atol=1e-6)


def test_supervised_and_step_losses_equal_those_behind_trl():
    "TRL hands supervised loss and step labels to the cross-entropies of transformers and torch, with -100 where nothing counts."
    pytest.importorskip("transformers", reason="transformers is not installed (extra lm)")
    from transformers.loss.loss_utils import ForCausalLMLoss
    x = numbers()
    first = torch.zeros(6, 1, dtype=torch.long)
    labels = torch.cat([first - 100, torch.where(x.mask, x.tokens, -100)], 1)
    logits = torch.cat([x.logits, torch.zeros(6, 1, 11)], 1)                    # the prediction of a token stands one place before it
    assert torch.isclose(sft_loss(x.logp(x.logits), x.mask), ForCausalLMLoss(logits, labels, 11), atol=1e-6)
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    marks = torch.where(x.mask, (x.tokens % 2).float(), torch.nan)
    two = torch.stack([torch.zeros(6, 9), scores], -1)
    theirs = torch.nn.functional.cross_entropy(two.flatten(0, 1), torch.where(x.mask, x.tokens % 2, -100).flatten())
    assert torch.isclose(step_loss(scores, marks), theirs, atol=1e-6)


def test_the_loss_of_a_model_is_the_loss_of_its_logits(base):
    tokens = torch.randint(3, 99, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(4, 12, dtype=torch.bool); mask[:, 5:] = True
    by_logits = base(tokens)[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    assert torch.isclose(sft_loss(token_logprobs(base, tokens, mask), mask), sft_loss(by_logits, mask[:, 1:]), atol=1e-5)
    assert isinstance(RewardModel(base, TOKENIZER)(tokens), torch.Tensor)


def test_what_newcomers_hand_over_by_mistake_is_named():
    model = TinyTransformer("nano", 0)
    for loop in (grpo, rejection_sft, ppo):
        with pytest.raises(ParameterError, match=r"model is a TinyLM.*lm\.model"): loop(TinyLM(model), TOKENIZER, Chain())
        with pytest.raises(ParameterError, match="'chian' is not known"): loop(model, TOKENIZER, "chian")
        with pytest.raises(ParameterError, match="lr=-1"): loop(model, TOKENIZER, Chain(), lr=-1)
    small = {"steps": 1, "prompts_per_step": 2, "n_rollouts": 2, "max_tokens": 4}
    for reward, words in ((lambda p, a: 1.0, "gave 1.0 for 4 answers.*a list"), (lambda p, a: None, "gave None"), (lambda p, a: ["x"] * len(a), "gave 'x' for an answer"),
                          (lambda p, a: "good", "gave 'good'")):
        with pytest.raises(OutcomeError, match=words): grpo(model, TOKENIZER, [":"], reward, **small)
    with pytest.raises(ParameterError, match="answers_per_step=1"): ppo(model, TOKENIZER, Chain(), answers_per_step=1)
    with pytest.raises(ParameterError, match="epochs=0"): ppo(model, TOKENIZER, Chain(), epochs=0)
    with pytest.raises(ParameterError, match="clip=-1"): grpo(model, TOKENIZER, Chain(), clip=-1)
    with pytest.raises(ParameterError, match="sft_steps=0"): rejection_sft(model, TOKENIZER, Chain(), sft_steps=0)
    with pytest.raises(ParameterError, match="'c' in place of the steps"): fit_reward(model, TOKENIZER, [("a", "b", "c")], kind="steps")
    named, plain = (grpo(TinyTransformer("nano", 0), TOKENIZER, family, **small) for family in ("chain", Chain()))
    assert named.equals(plain)                                                                                # a family by its name


# --- through TRL -----------------------------------------------------------------------------------------------------

def test_every_loop_works_out_the_default_reward_alike():
    chain = Chain()
    assert reward_for(chain)(["1+1?", "1+1?"], [">2", ">3"]) == [1.0, 0.0] and reward_for(chain, many_a) is many_a and reward_for([":"], many_a) is many_a
    for loop in (grpo, rejection_sft, ppo):
        with pytest.raises(ParameterError, match="reward=None needs a family as prompts"): loop(TinyTransformer("nano", 0), TOKENIZER, [":"])


def test_the_loops_of_trl_leave_our_history_behind():
    pytest.importorskip("trl", reason="trl is not installed (extra hf)")
    from designloop.optimizers.lm_trl import grpo_trl, sft_trl
    lm, seen = TinyLM.hf("lfm2"), []
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    h = sft_trl(lm, words, steps=12, batch=8, evaluate=lambda m: 0.5, every=6, watch=seen.append)
    assert list(h.step) == list(range(1, 13)) and h.loss.iloc[-1] < h.loss.iloc[0] and h.score.notna().sum() == 2 and len(seen) == 12
    start = lm.variant
    g = grpo_trl(lm, prompts, many_a, steps=3, n_rollouts=4, prompts_per_step=4, max_tokens=6)
    assert list(g.step) == [1, 2, 3] and {"reward", "length", "degenerate", "entropy"} <= set(g) and g.reward.between(0, 1).all() and lm.variant != start
    assert torch.equal(before, torch.random.get_rng_state()) and (numpy_before == np.random.get_state()[1]).all()
    with pytest.raises(ParameterError, match="n_rollouts=1"): grpo_trl(lm, prompts, many_a, n_rollouts=1)
    with pytest.raises(ParameterError, match="reward=None"): grpo_trl(lm, [":"])
    with pytest.raises(ParameterError, match="data is empty"): sft_trl(lm, [], steps=2)
    with pytest.raises(OutcomeError, match="reward broken"):
        def broken(asked, answers): return [float("nan")] * len(answers)
        grpo_trl(lm, prompts, broken, steps=1, n_rollouts=4, prompts_per_step=2, max_tokens=4)
