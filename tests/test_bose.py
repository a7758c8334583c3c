"""Evaluation of base models: texts, values, extraction, Kendall's tau, ladders, bad input."""
import math

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from designloop.core.errors import ParameterError
from designloop.evaluators.bose import (
    BaseModelEvaluation,
    BlankPPL,
    CheckpointLadder,
    Frame,
    GenerateAndMatch,
    ICLiP,
    OptionContentPPL,
    OptionLetterPPL,
    ZeroShotInstruction,
    check_items,
    consistency,
    geometric_steps,
    order_sensitivity,
    stability,
    tau_b,
)
from designloop.lm.protocol import LM, FunctionLM

ITEM = {"question": "What is the color of a cup?", "choices": ["red", "dark blue", "green"], "answer": "dark blue", "blank": "The color of a cup is ____, I think."}
OTHER = {"question": "What is the color of a boat?", "choices": ["white", "black"], "answer": 1, "blank": "A ____ boat."}


class Table(LM):
    "Log-probability of each character from a table of (continuation: value per character)."
    name = "table"

    def __init__(self, values): self.values, self.seen = values, []

    def logprobs(self, prompts, continuations):
        self.seen += list(zip(prompts, continuations, strict=True))
        return [torch.full((len(c),), self.values.get(c.strip(), -1.0)) for c in continuations]


def test_letter_content_and_blank_score_the_texts_they_say():
    lm = Table({})
    OptionLetterPPL().score(lm, [ITEM])
    assert lm.seen[0] == ("Question: What is the color of a cup?\nA. red\nB. dark blue\nC. green\nAnswer:", " A")
    lm = Table({})
    OptionContentPPL().score(lm, [ITEM])
    assert lm.seen[1] == ("Question: What is the color of a cup?\nAnswer:", " dark blue")
    lm = Table({})
    BlankPPL(1).score(lm, [ITEM], [OTHER])
    assert lm.seen[1] == ("A black boat.\nThe color of a cup is", " dark blue, I think.")


@pytest.mark.parametrize("normalize, winner", [("none", 0), ("char", 1), ("token", 1)])
def test_length_normalisation_decides_between_short_and_long(normalize, winner):
    # sums: red 4 x -1 = -4, dark blue 10 x -0.5 = -5: the sum prefers the short one, the mean the long one
    lm = Table({"red": -1.0, "dark blue": -0.5, "green": -3.0})
    result = OptionContentPPL(normalize=normalize).score(lm, [ITEM])
    assert result.predictions.tolist() == [winner] and result.correct.tolist() == [float(winner == 1)]


def test_calibration_takes_away_what_an_option_scores_alone():
    class Frequent(Table):
        def logprobs(self, prompts, continuations):
            own = {"red": -1.0, "dark blue": -2.0, "green": -9.0}
            base = {"red": -0.5, "dark blue": -6.0, "green": -9.0}
            return [torch.tensor([(base if p == "Answer:" else own)[c.strip()]]) for p, c in zip(prompts, continuations, strict=True)]
    plain, pmi = (OptionContentPPL(normalize=k).score(Frequent({}), [ITEM]) for k in ("none", "pmi"))
    assert plain.predictions[0] == 0 and pmi.predictions[0] == 1
    assert np.allclose(pmi.values[0], [0.5, -4.0, 0.0])


def test_the_four_places_of_an_instruction():
    demos = [{"question": "1+1", "answer": "2"}]
    texts = {c.__class__.__name__ + c.where: c.build("2+2", demos) for c in
             (GenerateAndMatch(1), GenerateAndMatch(1, "Add.", "first"), ICLiP(1, "Add."), ZeroShotInstruction("Add."))}
    assert texts["GenerateAndMatchnone"] == "Question: 1+1\nAnswer: 2\n\nQuestion: 2+2\nAnswer:"
    assert texts["GenerateAndMatchfirst"] == "Add.\n" + texts["GenerateAndMatchnone"]
    assert texts["ICLiPeach"] == "Question: 1+1\nAdd.\nAnswer: 2\n\nQuestion: 2+2\nAdd.\nAnswer:"
    assert texts["ZeroShotInstructionfirst"] == "Add.\nQuestion: 2+2\nAnswer:"


def test_replies_are_cut_at_the_frame_and_unparsed_ones_counted():
    replies = {"a": " 4\n\nQuestion: 9", "b": "", "c": " the answer  is\n5"}
    lm = FunctionLM(lambda prompt, rng: replies[prompt.split("Question: ")[-1][0]])
    items = [{"question": "a", "answer": "4"}, {"question": "b", "answer": "4"}, {"question": "c", "answer": "the answer is 5"}]
    result = ICLiP(0, "Add.").score(lm, items)
    assert result.correct.tolist() == [1, 0, 1] and result.unparsed == 1 and result.predictions[0] == "4"
    number = ICLiP(0, "Add.", answer_pattern=r"(\d+)").score(lm, items)
    assert number.predictions == ["4", None, "5"]


def test_tau_equals_scipy_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (40, 9)).astype(float), rng.integers(0, 4, (40, 9)).astype(float)
    assert np.allclose(tau_b(x, y), [np.nan_to_num(kendalltau(a, b).statistic) for a, b in zip(x, y, strict=True)])
    # 60 ladders of 8 checkpoints whose true accuracies rise by 0.08: the true tau is 1. The interval resamples items, so it lies below it
    # by the noise of re-ranking; it must contain the point always and reach 0.7 almost always (seed 0).
    rise = np.linspace(0.2, 0.76, 8)[:, None]
    scores = [stability((rng.random((8, 100)) < rise).astype(float), draws=400) for _ in range(60)]
    assert all(s.ci[0] <= s.value <= s.ci[1] and s.n == 8 for s in scores)
    assert np.mean([s.ci[1] >= 0.7 for s in scores]) > 0.95 and np.mean([s.meta["p_value"] < 0.05 for s in scores]) > 0.9
    flat = [stability((rng.random((8, 100)) < 0.5).astype(float), draws=200, seed=i).meta["p_value"] for i in range(100)]
    assert np.mean(np.array(flat) < 0.05) <= 0.13          # nominal 5 %; P(more than 13 of 100) < 0.001


def test_consistency_of_four_models_and_a_constant_one():
    assert consistency([1, 2, 3, 4], [10, 20, 30, 40]).value == 1 and consistency([1, 2, 3, 4], [4, 3, 2, 1]).value == -1
    assert consistency([1, 1, 1, 1], [1, 2, 3, 4]).value == 0
    assert stability([0.2, 0.4, 0.4, 0.4, 0.5]).meta["tied_pairs"] == 3
    seeded = [stability(np.random.default_rng(3).random((6, 30)), seed=5).ci for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_a_ladder_copies_and_restores():
    layer, ladder = torch.nn.Linear(1, 1), CheckpointLadder(geometric_steps(1, 50, 5))
    for step in range(1, 51):
        with torch.no_grad(): layer.weight.fill_(step)
        ladder.keep(step, layer)
    assert list(ladder.states) == ladder.steps and ladder.steps[0] == 1 and ladder.steps[-1] == 50
    assert ladder.restore(layer, ladder.steps[1]).weight.item() == ladder.steps[1]
    with pytest.raises(ParameterError, match="was not kept"): ladder.restore(layer, 49)
    for first, last, n in [(1, 4, 4), (1, 100, 12), (20, 1200, 12), (5, 16, 12)]:
        steps = geometric_steps(first, last, n)
        assert len(steps) == n == len(set(steps)) and steps == sorted(steps) and (steps[0], steps[-1]) == (first, last)


def test_reports_of_one_model_and_of_a_ladder():
    good, bad = Table({"dark blue": -0.1, "black": -0.1, "dark blue, I think.": -0.1, "black boat.": -0.1}), Table({"red": -0.1, "white": -0.1})
    methods = [OptionContentPPL(), BlankPPL()]
    report = BaseModelEvaluation(methods).evaluate(good, {"choice": [ITEM, OTHER]})
    assert report.scores["content"].value == 1 and report.scores["blank"].value == 1 and report.scores["content"].n == 2
    ladder = BaseModelEvaluation([OptionContentPPL()]).evaluate([bad, bad, good, good], {"choice": [ITEM, OTHER]})
    assert ladder.scores["stability of content"].value == pytest.approx(kendalltau(range(4), [0, 0, 1, 1]).statistic)
    assert len(ladder.items) == 8


@pytest.mark.parametrize("change, words", [
    ({"blank": "No marker."}, ["item 0", "____", "0 times"]), ({"blank": "____ and ____"}, ["2 times"]), ({"choices": ["red", "red "]}, ["duplicate"]),
    ({"answer": "pink"}, ["'pink'", "not among"]), ({"answer": 3}, ["answer=3", "<= 2"]), ({"choices": ["red", "", "x"]}, ["option 1 is empty"]),
    ({"question": ""}, ["lacks 'question'"]),
])
def test_bad_items_are_refused(change, words):
    with pytest.raises(ParameterError) as e: check_items([{**ITEM, **change}])
    assert all(w in str(e.value) for w in words), e.value


@pytest.mark.parametrize("call, words", [
    (lambda: stability([1, 2, 3]), ["(3,)", "at least 4"]),
    (lambda: stability([1, 2, math.nan, 4]), ["not finite"]),
    (lambda: consistency([1, 2, 3, 4], [1, 2, 3, 4, 5]), ["4 models", "5"]),
    (lambda: BlankPPL(2).score(Table({}), [ITEM], [OTHER]), ["1 examples", "n_shots=2"]),
    (lambda: BlankPPL(1).score(Table({}), [ITEM], [ITEM]), ["also test items"]),
    (lambda: BlankPPL(normalize="words"), ["'words'", "'pmi'"]),
    (lambda: GenerateAndMatch(where="each"), ["instruction is empty"]),
    (lambda: GenerateAndMatch(answer_pattern="("), ["not a regular expression"]),
    (lambda: GenerateAndMatch(answer_pattern="x"), ["no group"]),
    (lambda: geometric_steps(1, 5, 12), ["last=5", ">= 12"]),
    (lambda: geometric_steps(1, 50, 3), ["n=3", ">= 4"]),
    (lambda: BaseModelEvaluation().evaluate(Table({}), [ITEM]), ["{'choice': items}"]),
    (lambda: BaseModelEvaluation([BlankPPL(), BlankPPL()]), ["each its own"]),
    (lambda: Frame(letters="AB").ask(ITEM, options=True), ["3 options", "2 letters"]),
    (lambda: check_items([]), ["empty"]),
])
def test_bad_calls_are_refused(call, words):
    with pytest.raises(ParameterError) as e: call()
    assert all(w in str(e.value) for w in words), e.value


def test_the_order_of_options():
    "A reader of content keeps its answer under every order; one that always says the first letter changes it."
    items = [{**ITEM, "question": f"{k}?", "blank": f"{k} ____."} for k in range(30)]
    content = order_sensitivity(OptionContentPPL(), Table({"dark blue": -0.1}), items).scores
    assert content["answer changes"].value == 0 and content["as given"].value == content["over orders"].value == 1
    first = order_sensitivity(OptionLetterPPL(), Table({"A": -0.1}), items, orders=6).scores
    assert first["answer changes"].value > 0.9 and first["as given"].value == 0 and abs(first["over orders"].value - 1 / 3) < 0.15
    with pytest.raises(ParameterError, match="orders=0"): order_sensitivity(BlankPPL(), Table({}), items, orders=0)
