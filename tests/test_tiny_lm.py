"""TinyLM and its texts: padding, caching, sampling, bad input, families, bases."""

import pickle
import zlib

import numpy as np
import pytest
import torch

from designloop.core.errors import DataCorrupt, DataMissing, ParameterError, StateError
from designloop.models import tiny_lm_bases
from designloop.models.text_families import FAMILIES, STYLES, Chain, Countdown, arithmetic, text_family
from designloop.models.tiny_lm import BOS, EOS, PAD, PRESETS, TinyConfig, TinyLM, TinyTokenizer, TinyTransformer, pack, sample, token_logprobs
from designloop.models.tiny_lm_bases import RECIPES, cached_base, named_base, sft, sft_loss, solved, train_base

TOKENIZER = TinyTokenizer()
PROMPTS = ["3?", "3+4-2+9-1?", "a prompt of some length?", "x"]


@pytest.fixture(scope="module", params=[True, False], ids=["shift", "plain"])
def model(request):
    "A network whose logits are far from even, so that no mistake is hidden."
    g = torch.Generator().manual_seed(1)
    model = TinyTransformer(TinyConfig(token_shift=request.param), g)
    with torch.no_grad(): model.head.normal_(std=0.3, generator=g)
    return model


# --- tokenizer -------------------------------------------------------------------------------------------------------

def test_every_character_and_word_round_trips():
    tokenizer = TinyTokenizer(["<user>", "<use", "answer"])
    text = "".join(chr(i) for i in range(32, 127)) + "\n<user><use>answers"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.table[i] for i in tokenizer.encode("<user>")] == ["<user>"]               # the longest word first
    assert tokenizer.size < 400 and tokenizer.hash != TOKENIZER.hash and tokenizer == pickle.loads(pickle.dumps(tokenizer))


def test_characters_without_a_token_are_listed():
    with pytest.raises(ParameterError, match="2 character.*'é', '√'"): TOKENIZER.encode("√2 é √")
    with pytest.raises(ParameterError, match="takes strings"): TOKENIZER.encode(3)
    with pytest.raises(ParameterError, match="'ab'"): TinyTokenizer(["ab", "ab"])
    with pytest.raises(ParameterError, match="'a'"): TinyTokenizer(["a"])


def test_the_table_in_transformers_says_the_same():
    pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = TinyTokenizer(["<user>", "answer"])
    hf = tokenizer.to_hf()
    for text in ("3+4-2?", "<user>an answer\nof two lines  ~", "(a|b)*[c]", "answering <use"):
        assert hf.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert hf.decode(hf.encode(text, add_special_tokens=False)) == text
    assert (hf.pad_token_id, hf.eos_token_id, hf.bos_token_id, len(hf)) == (PAD, EOS, BOS, tokenizer.size)


# --- the network -----------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_pads_never_matter(model):
    g = torch.Generator().manual_seed(2)
    text = torch.randint(3, 99, (3, 14), generator=g)
    whole = model(text)
    left = torch.cat([torch.full((3, 6), PAD), text], 1)
    assert torch.allclose(model(left, left != PAD)[:, 6:], whole, atol=1e-4)
    other = left.clone(); other[:, :6] = torch.randint(3, 99, (3, 6), generator=g)              # whatever stands at the pads
    assert torch.allclose(model(other, left != PAD)[:, 6:], model(left, left != PAD)[:, 6:], atol=1e-5)
    right = torch.cat([text, torch.full((3, 5), PAD)], 1)
    assert torch.allclose(model(right)[:, :14], whole, atol=1e-4)


@torch.no_grad()
def test_the_future_is_invisible_and_shift_sees_one_token_back(model):
    text = torch.randint(3, 99, (1, 12), generator=torch.Generator().manual_seed(3))
    changed = text.clone(); changed[0, 7] = (text[0, 7] + 1) % 90 + 3
    before, after = model(text), model(changed)
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.allclose(before[:, 7], after[:, 7])


@torch.no_grad()
def test_a_cache_gives_what_the_whole_sequence_gives(model):
    from designloop.models.tiny_lm import KVCache
    text = torch.randint(3, 99, (2, 15), generator=torch.Generator().manual_seed(4))
    text[0, :3] = PAD
    real = text != PAD
    whole, cache = model.hidden(text, real), KVCache(model.config, 2, 15, text.device)
    parts = [model.hidden(text[:, :6], real[:, :6], cache)] + [model.hidden(text[:, t:t + 1], None, cache) for t in range(6, 15)]
    assert torch.allclose(torch.cat(parts, 1)[real], whole[real], atol=1e-4)


def test_logits_leave_out_what_is_no_answer(model):
    p = model(torch.tensor([[BOS, 10, 20]])).softmax(-1)
    assert (p[..., [PAD, BOS]] == 0).all() and torch.allclose(p.sum(-1), torch.ones(1, 3))


def test_weights_come_from_the_generator_alone():
    before = torch.random.get_rng_state()
    one, two, other = TinyTransformer("nano", 5), TinyTransformer("nano", 5), TinyTransformer("nano", 6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)) and not torch.equal(one.embed, other.embed)
    assert torch.equal(before, torch.random.get_rng_state())
    assert {k: round(TinyTransformer(c).n_weights / 1e6, 2) for k, c in PRESETS.items()} == {"nano": 0.11, "micro": 0.35, "mini": 0.81}


# --- sampling --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6])
def test_sampled_and_teacher_forced_log_probabilities_agree(model, temperature):
    drawn = sample(model, TOKENIZER, PROMPTS, n=16, max_tokens=40, temperature=temperature, generator=7)
    tokens, mask = drawn.packed()
    with torch.no_grad(): forced = token_logprobs(model, tokens, mask, temperature)
    there = torch.arange(drawn.tokens.shape[1]) < drawn.lengths[:, None]
    assert there.sum() == mask.sum() and (tokens[mask] == drawn.tokens[there]).all()
    assert (forced[mask] - drawn.logprobs[there]).abs().max() < 1e-4
    assert not drawn.logprobs[~there].any() and (drawn.tokens[~there] == PAD).all()
    assert ((drawn.tokens == EOS).any(1) == drawn.stopped).all()


@torch.no_grad()
def test_greedy_is_the_largest_logit_of_a_plain_pass(model):
    drawn = sample(model, TOKENIZER, PROMPTS, max_tokens=25, temperature=0)
    tokens, mask = drawn.packed()
    best = model(tokens)[:, :-1].argmax(-1)
    assert (best[mask[:, 1:]] == tokens[mask]).all()


def test_a_row_depends_on_its_own_numbers_only(model):
    lm = TinyLM(model)
    together = lm.generate(PROMPTS, n=3, max_tokens=20, seed=11)
    for prompt, texts in zip(PROMPTS, together, strict=True):
        assert [c.text for c in lm.generate([prompt], n=3, max_tokens=20, seed=11)[0]] == [c.text for c in texts]
        assert lm.generate([prompt], n=1, max_tokens=20, seed=11)[0][0].text == texts[0].text
    assert [c.text for t in lm.generate(PROMPTS, n=3, max_tokens=20, seed=12) for c in t] != [c.text for t in together for c in t]


def test_seeds_repeat_and_the_global_generator_stays():
    model, before = TinyTransformer("nano", 0), torch.random.get_rng_state()
    one, two = (sample(model, TOKENIZER, PROMPTS, n=2, max_tokens=12, generator=3) for _ in range(2))
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.logprobs, two.logprobs)
    assert torch.equal(before, torch.random.get_rng_state())


def test_tokens_are_drawn_with_their_probabilities(model):
    "Share of each first token over 20,000 draws within five standard errors for the ten most probable: a false alarm about once in 100,000 runs."
    drawn = sample(model, TOKENIZER, ["3+4?"], n=20_000, max_tokens=1, temperature=0.8, generator=0)
    with torch.no_grad(): p = (model(torch.tensor([[BOS, *TOKENIZER.encode("3+4?")]]))[0, -1] / 0.8).softmax(-1)
    share = torch.bincount(drawn.tokens[:, 0], minlength=99) / 20_000
    top = p.topk(10).indices
    assert ((share - p)[top].abs() < 5 * (p * (1 - p) / 20_000).sqrt()[top]).all()


def test_nucleus_keeps_the_smallest_set(model):
    with torch.no_grad(): p = model(torch.tensor([[BOS, *TOKENIZER.encode("3+4?")]]))[0, -1].softmax(-1)
    order = p.argsort(descending=True)
    kept = set(order[:int((p[order].cumsum(0) < 0.4).sum()) + 1].tolist())
    drawn = sample(model, TOKENIZER, ["3+4?"], n=3000, max_tokens=1, top_p=0.4, generator=1)
    assert set(drawn.tokens[:, 0].tolist()) <= kept and len(kept) < 99


def test_stop_texts_end_a_completion(model):
    lm = TinyLM(model)
    free = lm.generate(PROMPTS, n=8, max_tokens=30, seed=1)
    cut = lm.generate(PROMPTS, n=8, max_tokens=30, seed=1, stop=["e", "17"])
    for a, b in zip(sum(free, []), sum(cut, []), strict=True):
        ends = [i for i in (a.text.find("e"), a.text.find("17")) if i >= 0]
        assert b.text == (a.text[:min(ends)] if ends else a.text) and b.n_tokens == len(b.text) == len(b.token_logprobs)
        if ends: assert b.finish == "stop"


def test_bad_sampling_is_refused(model):
    with pytest.raises(ParameterError, match=r"11 tokens \(bos included\) and max_tokens=120: 131 do not fit into the context of 128.*<= 117"):
        sample(model, TOKENIZER, ["3+4-2+9-1?"], max_tokens=120, temperature=0)
    with pytest.raises(ParameterError, match="temperature=-0.5"): sample(model, TOKENIZER, ["3?"], temperature=-0.5, generator=0)
    with pytest.raises(ParameterError, match="top_p"): sample(model, TOKENIZER, ["3?"], top_p=0, generator=0)
    with pytest.raises(ParameterError, match="generator=None"): sample(model, TOKENIZER, ["3?"])
    with pytest.raises(ParameterError, match="one text"): sample(model, TOKENIZER, "3?", temperature=0)
    with pytest.raises(ParameterError, match="empty"): sample(model, TOKENIZER, [], temperature=0)
    with pytest.raises(ParameterError, match="has 100 tokens and the model 99"): sample(model, TinyTokenizer(["ab"]), ["3?"], temperature=0)
    with pytest.raises(ParameterError, match="multiple of 8"): TinyConfig(width=66)


# --- the protocol ----------------------------------------------------------------------------------------------------

def test_completion_and_score_agree(model):
    lm = TinyLM(model)
    done = lm.generate(PROMPTS, n=2, max_tokens=15, seed=5)
    pairs = [(p, c) for p, texts in zip(PROMPTS, done, strict=True) for c in texts if c.text]
    scores = lm.score([p for p, _ in pairs], [c.text for _, c in pairs])
    assert torch.allclose(scores, torch.stack([c.logprob for _, c in pairs]), atol=1e-4)
    assert lm.generate([[{"role": "user", "content": "3+4?"}]], max_tokens=5, seed=0)[0][0].text == lm.generate(["3+4?"], max_tokens=5, seed=0)[0][0].text


def test_the_context_ends_a_completion_and_says_so(model):
    with torch.no_grad(): held = TinyTransformer(model.config, 0); held.never[EOS] = -1e4
    lm = TinyLM(held)
    short, long = (c[0] for c in lm.generate(["3?", "x" * 120], max_tokens=10_000, seed=0))
    assert (short.n_tokens, long.n_tokens) == (125, 7) and short.finish == long.finish == "length"
    with pytest.raises(ParameterError, match="a prompt has 129 tokens.*context of tiny is 128.*126"): lm.generate(["x" * 128])
    with pytest.raises(ParameterError, match="with its continuation has 142 tokens"): lm.logprobs(["x" * 100], ["y" * 41])


def test_hidden_states_are_those_of_the_last_token(model):
    lm = TinyLM(model)
    h = lm.hidden_states(PROMPTS)
    alone = torch.cat([lm.hidden_states([p]) for p in PROMPTS])
    assert h.shape == (4, 64) and torch.allclose(h, alone, atol=1e-4)


def test_saved_and_loaded_is_the_same(model, tmp_path):
    lm = TinyLM(model, name="mine")
    again = TinyLM.load(lm.save(tmp_path / "deep" / "lm.pt"))
    assert again.variant == lm.variant and again.name == "mine" and not list(tmp_path.rglob("*.part"))
    other = lm.copy()
    with torch.no_grad(): other.model.head += 1e-3
    assert other.variant != lm.variant                                                         # training changes the name of the weights
    with pytest.raises(StateError, match="trained with the tokenizer"): TinyLM.load(tmp_path / "deep" / "lm.pt", TinyTokenizer(["ab"]))
    with pytest.raises(DataMissing): TinyLM.load(tmp_path / "nothing.pt")
    (tmp_path / "bad.pt").write_bytes(b"no model")
    with pytest.raises(DataCorrupt): TinyLM.load(tmp_path / "bad.pt")


# --- families --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_their_promises(name):
    family, rng = text_family(name), np.random.default_rng(zlib.crc32(name.encode()))
    for level in sorted({family.low, *family.levels, min(family.high, 8)}):
        for _ in range(60):
            p, s = family.sample(rng, level)
            TOKENIZER.encode(p + s)
            assert family.verify(p, s) and all(ok for _, ok in family.steps(s, p)) and len(p) + len(s) <= family.longest(level)
            assert family.split(p) in ("train", "test")
            for kind in family.styles:
                text = family.corrupt(rng, s, kind)
                assert len(p) + len(text) <= family.longest(level)
                assert family.verify(p, text) == (kind in ("clean", "short", "backtrack")), (kind, p, text)
            assert not family.verify(p, "") and not family.verify(p, "\n~>")
    one, two = (family.corpus(np.random.default_rng(3), 20) for _ in range(2))
    assert one == two


def test_train_and_test_are_disjoint():
    chain = Chain()
    train = {p for p, _ in chain.corpus(np.random.default_rng(0), 3000, level=2, split="train")}
    test = {p for p, _ in chain.corpus(np.random.default_rng(0), 200, level=2, split="test", distinct=True)}
    assert len(test) == 200 and not train & test


def test_mixtures_have_their_shares():
    "6,000 draws, each share within five standard errors: a false alarm about once in 500,000 runs."
    chain, mix = Chain(), {"clean": 0.5, "short": 0.25, "broken": 0.15, "backtrack": 0.1}
    texts = [s for _, s in chain.corpus(np.random.default_rng(1), 6000, mix=mix)]
    seen = {"short": np.mean([t.startswith(">") for t in texts]), "broken": np.mean([">" not in t for t in texts]), "backtrack": np.mean(["!" in t for t in texts])}
    for kind, share in seen.items(): assert abs(share - mix[kind]) < 5 * (mix[kind] * (1 - mix[kind]) / 6000) ** 0.5, kind


def test_steps_of_a_chain():
    chain = Chain()
    assert [ok for _, ok in chain.steps("3+4=8!3+4=7;7-2=5>5", "3+4-2?")] == [False, True, True, True]
    assert [ok for _, ok in chain.steps("3+4=7;7-2=5>5", "3+4-3?")] == [True, False, False]
    assert [ok for _, ok in chain.steps("3+4=7>7", "3+4-2?")] == [True, False]                  # stopped half-way
    assert chain.steps("nonsense") == [("nonsense", False)] and chain.steps("") == []
    assert chain.verify("3+4-2?", "3+4=9;9-2=7>5") and not chain.verify("3+4-2?", ">5 ")


def test_only_arithmetic_is_evaluated():
    assert arithmetic("(3*5)-2") == (13, [3, 5, 2])
    for text in ("2**9", "__import__('os')", "3/1", "1 if 1 else 2", "", "(" * 70, "9" * 80, "-3+5", "1e5"):
        with pytest.raises(ParameterError): arithmetic(text)
    assert not Countdown().verify("3,5,2:13?", ">3*5-2-2+2") and Countdown().verify("3,5,2:13?", ">(5*3)-2")


def test_every_solution_of_a_countdown_is_found_and_an_attempt_that_fails_is_taken_back():
    family, rng = Countdown(), np.random.default_rng(0)
    ways = ["3*5=15;15-2=13>(3*5)-2", "5*3=15;15-2=13>(5*3)-2", "5*2=10;10+3=13>(5*2)+3", "2*5=10;10+3=13>(2*5)+3"]
    assert family.solutions("3,5,2:13?") == ways and family.solution("3,5,2:13?") == ways[0]
    for p, s in family.corpus(rng, 50, (2, 3, 4)):
        found = family.solutions(p)
        assert s in found and len(set(found)) == len(found) and all(family.verify(p, t) and all(ok for _, ok in family.steps(t, p)) for t in found)
        tried, _, again = family.corrupt(rng, s, "backtrack").rpartition("!")
        assert again == s and (not tried or all(ok for _, ok in family.steps(tried, p)) and not tried.endswith(f"={family.parse(p)[1]}"))
    with pytest.raises(ParameterError, match="no solution from left to right"): family.solution("1,1:99?")


def test_bad_problems_are_refused():
    chain, rng = Chain(), np.random.default_rng(0)
    with pytest.raises(ParameterError, match="level=0"): chain.sample(rng, 0)
    with pytest.raises(ParameterError, match="'clena' is not known.*'clean'"): chain.sample(rng, mix={"clena": 1})
    with pytest.raises(ParameterError, match="no share above zero"): chain.sample(rng, mix={"clean": 0})
    with pytest.raises(ParameterError, match="split"): chain.sample(rng, split="dev")
    with pytest.raises(ParameterError, match="not to be had"): chain.corpus(rng, 250, level=1, distinct=True)
    with pytest.raises(ParameterError, match="not a chain"): chain.verify("2+2=", "4")
    with pytest.raises(ParameterError, match="'string_op' is not known"): text_family("string_op")
    with pytest.raises(ParameterError, match="mod=11"): Chain(mod=11)
    with pytest.raises(ParameterError, match="not enough for string_ops"): text_family("string_ops").steps("abc")
    assert set(STYLES) >= {"clean", "wrong"}


# --- supervised training and bases -----------------------------------------------------------------------------------

def test_loss_counts_the_answer_and_its_end_only():
    model = TinyTransformer("nano", 0)
    with torch.no_grad(): model.head.normal_(generator=torch.Generator().manual_seed(0))
    prompt, answer = TOKENIZER.encode("3+4?"), [*TOKENIZER.encode(">7"), EOS]
    tokens, mask = pack([prompt, prompt + prompt], [answer, answer])
    assert mask.sum() == 6 and (tokens[mask] == EOS).sum() == 2
    loss = sft_loss(token_logprobs(model, tokens, mask), mask)
    logits = model(tokens)
    by_hand = -torch.stack([logits[i, j - 1].log_softmax(-1)[tokens[i, j]] for i, j in mask.nonzero().tolist()]).mean()
    assert torch.isclose(loss, by_hand, atol=1e-5)


def test_training_repeats_and_leaves_global_randomness_alone():
    torch.manual_seed(0)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    runs = []
    for _ in range(2):
        model = TinyTransformer("nano", 0)
        runs.append((sft(model, TOKENIZER, Chain(), steps=6, batch=8, seed=1), TinyLM(model).variant))
    assert runs[0][0].equals(runs[1][0]) and runs[0][1] == runs[1][1]
    assert torch.equal(before, torch.random.get_rng_state()) and (numpy_before == np.random.get_state()[1]).all()


def test_a_list_is_learned_by_heart_and_the_answer_ends():
    model, pairs = TinyTransformer("nano", 0), [("a?", "one"), ("b?", "two"), ("c?", "three")]
    sft(model, TOKENIZER, pairs, steps=60, batch=6, warmup=5)
    answers = [texts[0] for texts in TinyLM(model).generate(["a?", "b?", "c?"], temperature=0)]
    assert [c.text for c in answers] == ["one", "two", "three"] and all(c.finish == "stop" for c in answers)


def test_missing_the_target_is_loud():
    model = TinyTransformer("nano", 0)
    with pytest.raises(StateError, match=r"after 4 steps the score is 0.250 \(best 0.250\) and not 0.9"):
        sft(model, TOKENIZER, Chain(), steps=4, until=0.9, evaluate=lambda m: 0.25, every=2)
    assert len(sft(model, TOKENIZER, Chain(), steps=50, until=0.9, evaluate=lambda m: 0.95, every=2)) == 2
    with pytest.raises(ParameterError, match="until=0.9 needs evaluate"): sft(model, TOKENIZER, Chain(), steps=4, until=0.9)


def test_texts_that_do_not_fit_are_refused():
    small = TinyTransformer(TinyConfig(context=24), 0)
    with pytest.raises(ParameterError, match="a text has 45 tokens .* and the context is 24: '3\\?'"): sft(small, TOKENIZER, [("3?", "x" * 41)], steps=1)
    with pytest.raises(ParameterError, match="longest text of chain .* has 59 tokens .* the context is 24"): train_base(RECIPES["chain"], config=small.config)
    with pytest.raises(ParameterError, match="data is empty"): sft(small, TOKENIZER, [], steps=1)


def test_a_base_is_trained_once_and_damage_is_repaired(tmp_path, monkeypatch):
    made = []
    def train(): made.append(1); return TinyLM(TinyTransformer("nano", len(made)))
    first = cached_base("x", {"seed": 0}, train, tmp_path)
    assert cached_base("x", {"seed": 0}, train, tmp_path).variant == first.variant and len(made) == 1
    cached_base("x", {"seed": 1}, train, tmp_path)
    monkeypatch.setattr(tiny_lm_bases, "_code", lambda: "another version")
    cached_base("x", {"seed": 0}, train, tmp_path)
    assert len(made) == 3
    for file in tmp_path.glob("*.pt"): file.write_bytes(file.read_bytes()[:1000])
    cached_base("x", {"seed": 0}, train, tmp_path)
    assert len(made) == 4


def test_the_key_of_a_base_is_blind_to_words_and_not_to_code():
    import ast
    def essence(source): return ast.unparse(tiny_lm_bases._Essence().visit(ast.parse(source)))
    one = essence("def f(x):\n    'Says.'\n    if x < 0: raise ValueError('x')\n    return x + 1     # why")
    assert one == essence("def f(x):\n    'Says more.'\n    if x < 1:\n        raise KeyError('other words')\n    return x + 1")
    assert one != essence("def f(x):\n    if x < 0: raise ValueError('x')\n    return x + 2")
    assert essence("if a: f()\nelse: raise E") != essence("if b: f()\nelse: raise E") and essence("f(1)") != essence("f(2)")


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be kept"):
        lm = cached_base("x", {"seed": 0}, lambda: TinyLM(TinyTransformer("nano", 0)), tmp_path / "file" / "below")
    assert isinstance(lm, TinyLM)


def test_named_bases_know_their_recipes(tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="'chian' is not known.*'chain'"): TinyLM.named("chian")
    trained = []
    def fake(recipe, seed, config, start=None): trained.append((recipe["steps"], seed)); return start or TinyLM(TinyTransformer(config, seed)), None
    monkeypatch.setattr(tiny_lm_bases, "train_base", fake)
    one, two = named_base("chain", 1, folder=tmp_path), named_base("chain", 2, folder=tmp_path)
    assert one.name == "tiny:chain" and one.variant != two.variant and trained == [(RECIPES["chain"]["steps"], 1), (RECIPES["chain"]["steps"], 2)]
    assert named_base("chain", 1, folder=tmp_path).variant == one.variant and len(trained) == 2
    assert named_base("chain-mixed", 1, folder=tmp_path).variant == one.variant and len(trained) == 3        # the parent comes from the same folder


def test_what_newcomers_hand_over_by_mistake_is_named():
    model, lm = TinyTransformer("nano", 0), TinyLM(TinyTransformer("nano", 0))
    with pytest.raises(ParameterError, match=r"model is a TinyLM.*lm\.model, lm\.tokenizer"): sft(lm, TOKENIZER, Chain(), 2)
    with pytest.raises(ParameterError, match="a TinyTransformer is needed"): sft(TOKENIZER, model, Chain(), 2)
    with pytest.raises(ParameterError, match="tokenizer is a str"): sft(model, "abc", Chain(), 2)
    with pytest.raises(ParameterError, match="data holds 'a'.*pair of texts"): sft(model, TOKENIZER, ["a", "b"], 2)
    with pytest.raises(ParameterError, match="must be a pair of texts"): sft(model, TOKENIZER, [("a", "b", "c")], 2)
    with pytest.raises(ParameterError, match="'chian' is not known"): sft(model, TOKENIZER, "chian", 2)
    with pytest.raises(ParameterError, match="prompts is empty"): solved(model, TOKENIZER, "chain", [])
    with pytest.raises(ParameterError, match="config=None"): TinyTransformer(None)
    twin = TinyTransformer("nano", 0)
    assert sft(model, TOKENIZER, "chain", 2, batch=4).equals(sft(twin, TOKENIZER, Chain(), 2, batch=4))          # a family by its name


def test_share_solved_is_that_of_the_verifier():
    model = TinyTransformer("nano", 0)
    sft(model, TOKENIZER, [("1+1?", ">2"), ("2+2?", ">5")], steps=60, warmup=5)
    assert solved(model, TOKENIZER, "chain", ["1+1?", "2+2?"], max_tokens=6).tolist() == [[True], [False]]


# --- in transformers -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["lfm2", "llama"])
def test_a_model_of_transformers_writes_what_it_reads(kind):
    pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
    before = torch.random.get_rng_state()
    lm, twin, other = TinyLM.hf(kind), TinyLM.hf(kind), TinyLM.hf(kind, seed=1)
    assert torch.equal(before, torch.random.get_rng_state()) and lm.variant == twin.variant != other.variant
    with torch.no_grad(): lm.model.lm_head.weight.mul_(4)
    assert lm.variant != twin.variant                                  # training changes the name of the weights
    drawn = [(p, c) for p, texts in zip(PROMPTS, lm.generate(PROMPTS, n=6, max_tokens=20, seed=1), strict=True) for c in texts if c.text and c.n_tokens == len(c.text)]
    read = lm.logprobs([p for p, _ in drawn], [c.text for _, c in drawn])
    assert len(drawn) > 6 and max(float((c.token_logprobs - r).abs().max()) for (_, c), r in zip(drawn, read, strict=True)) < 1e-3
    assert lm.tokenizer.encode("3+4?", add_special_tokens=False) == TOKENIZER.encode("3+4?") and lm.context == 128


def test_a_model_of_transformers_is_asked_for_rightly():
    with pytest.raises(ParameterError, match="'gpt' is not known.*'lfm2'"): TinyLM.hf("gpt")
    with pytest.raises(ParameterError, match="'huge' is not known.*'nano'"): TinyLM.hf("llama", "huge")
