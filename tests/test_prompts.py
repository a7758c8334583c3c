"""Searches for prompts: equal budgets that are enforced, masking, the proposers, and every refusal. The models are simulated, so everything is exact or seeded."""
import json
import pickle
import re

import numpy as np
import pytest

from designloop.core.errors import DataMissing, OutcomeError, ParameterError, StateError
from designloop.core.loop import optimize
from designloop.lm.protocol import BudgetExceeded, FunctionLM
from designloop.lm.retrieval import tfidf_embedder
from designloop.optimizers.prompt_exemplars import (
    AllES,
    BootstrapFewShot,
    DiversityES,
    HalvingES,
    Interleaved,
    MutationES,
    NearestDemos,
    NearestES,
    NoES,
    RandomES,
    RandomSearchES,
    TwoStage,
)
from designloop.optimizers.prompt_instructions import (
    APE,
    OPRO,
    EvoPrompt,
    HalvingIO,
    LMProposer,
    NoIO,
    PromptAgent,
    Proposer,
    ProTeGi,
    RandomEdits,
    SlotProposer,
    TextEvolution,
    WordProposer,
    fresh,
    instruction_problem,
    quotes_item,
)
from designloop.optimizers.prompts import Budget, Demo, Example, Prompt, PromptOptimizer, PromptRun, PromptTask, Template, ask_all, race, race_plan, task_from_jsonl, test_prompt
from designloop.tasks.prompt_tasks import RULES, SLOTS, answer_of, draw_hints, draw_records, fitting_words, rule_rows, rule_task, rule_tokenizer

WORDS = [["add", "count", "guess"], ["digits", "birds", "roads"], ["carefully", "quickly", "twice"]]
IOS = [RandomEdits(), APE(), HalvingIO(), OPRO(), ProTeGi(), PromptAgent(), EvoPrompt()]
ESS = [RandomES(), NearestES(), DiversityES(), AllES(), RandomSearchES(), MutationES(), HalvingES(), BootstrapFewShot()]


def adder(prompt, rng):
    "Adds digits; helpful words and exemplars make it slip less."
    body = prompt.split("Q: ")
    slip = 0.6 - 0.2 * ("add" in prompt) - 0.1 * ("digits" in prompt) - 0.05 * min(len(body) - 2, 4)
    a, b = int(body[-1][0]), int(body[-1][4])
    return f"so > {a + b + (rng.random() < slip)}"


def sums(n_val=20, n_test=40, **options):
    rows = [Example(f"{a} + {b}", str(a + b)) for a in range(10) for b in range(10)]
    order = np.random.default_rng(0).permutation(100)
    return PromptTask("sums", [rows[i] for i in order[:n_val]], [rows[i] for i in order[n_val:n_val + n_test]],
                      **{"seed_instruction": "guess birds twice", "marker": "> ", **options})


TASK, LM_ = sums(), FunctionLM(adder, name="adder")


class Counting(FunctionLM):
    "Counts what really reaches the model, behind every meter."
    def __init__(self):
        self.asked = []
        super().__init__(lambda p, rng: (self.asked.append(p), adder(p, rng))[1], name="adder")


# --- budgets ---------------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [*IOS, *ESS, NoIO(), NoES(), TwoStage(APE(), MutationES(), 8), TwoStage(OPRO(), RandomSearchES(), 8, 5),
                                    Interleaved(ProTeGi(), RandomSearchES())], ids=lambda m: f"{type(m).__name__}: {m.name}")
@pytest.mark.parametrize("budget", [13, 20])
def test_no_search_asks_the_model_more_often_than_its_budget_allows(method, budget):
    lm = Counting()
    trace = method.optimize(TASK, lm, SlotProposer(WORDS), budget=budget, seed=3)
    assert len(lm.asked) == trace.spent["calls"] <= budget * len(TASK.val)
    paid = len(trace.evaluations) * len(TASK.val)
    assert (paid < trace.spent["calls"] if isinstance(method, (HalvingES, HalvingIO)) else paid == trace.spent["calls"]) and not trace.stopped
    assert trace.evaluations[0].prompt == TASK.seed_prompt()                  # the seed prompt is paid for like any other
    searches = [RandomEdits, APE, OPRO, ProTeGi, PromptAgent, EvoPrompt, RandomSearchES, MutationES, BootstrapFewShot, Interleaved]
    # 27 instructions are all there are, so a search may end early only when nothing new is left to propose
    if type(method) in searches and not isinstance(method, tuple(type(i) for i in IOS)): assert trace.spent["evaluations"] == budget


def test_the_meter_and_not_good_will_enforces_the_budget():
    class Greedy(PromptOptimizer):
        def steps(self, run):
            for k in range(1000): run.evaluate([run.prompt(f"say {k}")]); yield
    lm = Counting()
    trace = Greedy().optimize(TASK, lm, budget=5)
    assert len(lm.asked) == 5 * len(TASK.val) and len(trace.evaluations) == 5 and "budget of calls=100 is spent" in trace.stopped
    run = PromptRun(TASK, LM_, 2)
    with pytest.raises(BudgetExceeded): run.evaluate([run.prompt(w) for w in "abc"])
    assert [e.prompt.instruction for e in run.evaluations] == ["a", "b"]      # what was paid for is kept


def test_a_prompt_that_was_scored_costs_nothing_again():
    run = PromptRun(TASK, LM_, 3)
    first, again, other = run.evaluate([run.prompt("a"), run.prompt("a"), run.prompt("b")])
    assert first is again and run.spent == 2 and run.evaluate([run.prompt("b")])[0] is other and run.left == 1


def test_two_stages_split_the_budget():
    trace = TwoStage(OPRO(), RandomSearchES(), 9).optimize(TASK, LM_, SlotProposer(WORDS), budget=24)
    assert [bool(e.prompt.exemplars) for e in trace.evaluations] == [False] * 9 + [True] * 15
    stage = max(trace.evaluations[:9], key=lambda e: e.value)
    assert {e.prompt.instruction for e in trace.evaluations[9:]} == {stage.prompt.instruction}
    solved = {d.id for d in stage.right(TASK)}                                # the pool is that of the new instruction
    assert {d.id for e in trace.evaluations[9:] for d in e.prompt.exemplars} <= solved


@pytest.mark.parametrize("replies, items, halvings", [(1240, 40, 3), (100, 20, 2), (20, 20, 3), (77, 7, 3), (60, 20, 0), (33, 3, 5)])
def test_a_race_is_the_largest_that_the_budget_allows(replies, items, halvings):
    plan = race_plan(replies, items, halvings)
    price = lambda counts, seen: sum(c * (v - before) for c, v, before in zip(counts, seen, [0, *seen], strict=False))
    counts, seen = zip(*plan, strict=True)
    assert price(counts, seen) <= replies and seen[-1] == items and list(seen) == sorted(seen) and counts == tuple(-(-counts[0] // 2**r) for r in range(halvings + 1))
    assert price([-(-(counts[0] + 1) // 2**r) for r in range(halvings + 1)], seen) > replies
    with pytest.raises(ParameterError, match=f"replies={items - 1} are fewer than the {items} of one finalist"): race_plan(items - 1, items, halvings)


def test_a_race_asks_no_item_twice_and_ends_with_whole_evaluations():
    lm = Counting()
    run = PromptRun(TASK, lm, 12)
    run.start()
    texts = [f"do {i}" for i in range(60)]
    found = race(run, lambda n: [run.prompt(t) for t in texts[:n]], halvings=2)
    assert len(lm.asked) == len(set(lm.asked)) == run.meter.calls <= 12 * len(TASK.val)
    assert [e.value for e in found] == sorted((e.value for e in found), reverse=True) and all(len(e.scores) == len(e.replies) == len(TASK.val) for e in found)
    first = run.prompt("do 0")
    alone = PromptRun(TASK, LM_, 2).evaluate([first])[0]
    whole = PromptRun(TASK, LM_, 2)
    part = whole.score_some([first], 7)[0]
    assert whole.meter.calls == 7 and not whole.evaluations and part == pytest.approx(whole.score_some([first], 7)[0]) and whole.meter.calls == 7
    again = whole.evaluate([first])[0]                                            # begun in parts, finished at once: the rest is paid for, the replies are the same
    assert whole.meter.calls == len(TASK.val) and again.replies == alone.replies and (again.scores == alone.scores).all() and again.tokens == alone.tokens
    assert whole.score_some([first], len(TASK.val))[0] == alone.value and whole.meter.calls == len(TASK.val)
    assert race(PromptRun(TASK, LM_, 2), lambda n: []) == []
    with pytest.raises(ParameterError, match="n=21 is not allowed"): whole.score_some([first], 21)


def test_halving_tries_more_handfuls_than_the_budget_has_evaluations():
    lm = Counting()
    trace = HalvingES(halvings=2).optimize(TASK, lm, budget=16, seed=2)
    tried = {p.rpartition("Q: ")[0] for p in lm.asked}
    assert len(tried) > 20 > len(trace.evaluations) and trace.spent["calls"] <= 16 * 20 and len(trace.best.prompt.exemplars) == 3
    assert trace.spent["prompts"] == 1 + race_plan(15 * 20, 20, 2)[0][0] and RandomSearchES().optimize(TASK, LM_, budget=16, seed=2).spent["prompts"] == 16


def test_tokens_can_be_limited_too():
    trace = RandomSearchES().optimize(TASK, LM_, budget=Budget(30, tokens=4000))
    assert trace.spent["tokens"] <= 4000 and "tokens=4,000" in trace.stopped and trace.evaluations


@pytest.mark.parametrize("method", [APE(), PromptAgent(), MutationES(), TwoStage(EvoPrompt(), BootstrapFewShot(), 8)], ids=lambda m: m.name)
def test_a_seed_repeats_and_the_same_prompt_gets_the_same_replies_in_every_method(method):
    one, two, other = (method.optimize(TASK, LM_, SlotProposer(WORDS), budget=14, seed=s) for s in (5, 5, 6))
    assert [(e.prompt, e.value) for e in one.evaluations] == [(e.prompt, e.value) for e in two.evaluations]
    assert [e.prompt for e in one.evaluations] != [e.prompt for e in other.evaluations]
    assert one.evaluations[0].replies == RandomES().optimize(TASK, LM_, budget=2, seed=5).evaluations[0].replies


# --- prompts, masking, tasks -----------------------------------------------------------------------------------------------------------------------------------

def test_an_item_never_sees_its_own_exemplar():
    lm = Counting()
    demos = PromptRun(TASK, LM_, 1).start().right(TASK)
    ask_all(TASK, lm, [Prompt("x", tuple(demos), TASK.template)], TASK.val)
    for text in lm.asked:
        *shown, question = re.findall(r"Q: (\d \+ \d)", text)
        assert question not in shown and len(shown) == len(demos) - (question in {d.input for d in demos})
    near = NearestDemos(demos, 2, tfidf_embedder([d.input for d in demos]))
    prompt = Prompt("x", tuple(demos), TASK.template, near)
    assert all(demos[0].input not in d.input for d in prompt.demos(demos[0].input, without=demos[0].id))
    assert demos[0].id in {d.id for d in prompt.demos(demos[0].input)}          # without masking, the item is among its own neighbours


def test_replies_are_split_so_that_rationale_and_answer_give_the_reply_back():
    for reply in ("so > 4", "a > b > 17", "no marker", "> ", ">  5"):
        rationale, answer = TASK.split(reply)
        assert (rationale + answer).strip() == reply.strip() or answer == ""
    assert sums(marker="").split(" 4 \n") == ("", "4")
    assert all(d.reply == r for d, r in [(TASKED.right(TASK)[0], next(r for r, s in zip(TASKED.replies, TASKED.scores, strict=True) if s >= 1))])


TASKED = PromptRun(TASK, LM_, 1).start()


@pytest.mark.parametrize("metric, answer, right, value", [("exact", " Yes ", "yes", 1), ("exact", "yes!", "yes", 0), ("contains", "it is (B).", "(B)", 1), ("contains", "x", "", 0),
                                                          ("number", "about 1,200 or 7.0", "7", 1), ("number", "none", "7", 0), ("f1", "the red car", "a red car", 2 / 3)])
def test_metrics(metric, answer, right, value):
    task = PromptTask("m", [Example("a", "1"), Example("b", "1")], [Example("c", "1")], metric=metric)
    assert task.score(answer, Example("q", right)) == pytest.approx(value)
    assert task.score(answer, Example("q", ("never", right))) == pytest.approx(value)


def test_what_a_task_refuses(tmp_path):
    a, b = Example("a", "1"), Example("b", "2")
    with pytest.raises(ParameterError, match="val and test share 1 item.*'a'"): PromptTask("t", [a, b], [Example("a", "1", id="other")])
    with pytest.raises(ParameterError, match="train and test share"): PromptTask("t", [a, b], [Example("c", "1")], train=[Example("c", "1")])
    with pytest.raises(ParameterError, match="more than once"): PromptTask("t", [a, a], [b])
    with pytest.raises(ParameterError, match="metric='exakt' is not known.*'exact'"): PromptTask("t", [a, b], [Example("c", "1")], metric="exakt")
    with pytest.raises(OutcomeError, match=r"metric returned 2.0 for item 'a'.*\[0, 1\]"): PromptTask("t", [a, b], [Example("c", "1")], metric=lambda x, y: 2).score("x", a)
    with pytest.raises(OutcomeError, match="must lie in"): PromptTask("t", [a, b], [Example("c", "1")], metric=lambda x, y: float("nan")).score("x", a)
    with pytest.raises(ParameterError, match="no slot {input}"): Template("{instruction}")
    with pytest.raises(ParameterError, match="no slot {reply}"): Template(demo="{input}")
    with pytest.raises(ParameterError, match="no slot {exemplars}, but the prompt has exemplars"): Prompt("x", (Demo("a", "b"),), Template("{instruction} {input}"))
    with pytest.raises(ParameterError, match="is not a question"): Example(" ", "1")
    with pytest.raises(ParameterError, match="has no output"): Example("a", ())
    with pytest.raises(ParameterError, match="context=20 fit"): ask_all(sums(context=20), LM_, [sums().seed_prompt()], TASK.val)
    with pytest.raises(DataMissing, match="cannot be read"): task_from_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"input": "a", "output": "b"}\n{"input": "c"}\n')
    with pytest.raises(ParameterError, match="line 2 of bad.jsonl"): task_from_jsonl(tmp_path / "bad.jsonl")


def test_a_file_becomes_a_task(tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({"input": f"q{i}", "output": ["x", i]}) for i in range(20)))
    task = task_from_jsonl(tmp_path / "mine.jsonl", marker=":")
    assert (len(task.val), len(task.test), task.name, task.majority()) == (4, 16, "mine", 1.0)
    assert {e.id for e in task.val}.isdisjoint({e.id for e in task.test})


def test_a_prompt_travels_as_plain_data():
    p = Prompt("do {this}", (Demo("a {input}", "b", "c: ", "1"),), Template("{instruction}|{exemplars}|{input}", "{input}={reply};"))
    assert Prompt.from_dict(json.loads(json.dumps(p.to_dict()))) == p and p.render("{exemplars}") == "do {this}|a {input}=c: b;|{exemplars}"


# --- exemplars -------------------------------------------------------------------------------------------------------------------------------------------------

def test_an_empty_pool_and_one_that_is_too_small_are_refused():
    hopeless = FunctionLM(lambda p, rng: "> no", name="hopeless")
    with pytest.raises(StateError, match="solved 0 of 20 validation items.*gold exemplars"): RandomES().optimize(TASK, hopeless, budget=4)
    assert len(RandomES(source="gold").optimize(TASK, hopeless, budget=4).evaluations[1].prompt.exemplars) == 3
    with pytest.raises(ParameterError, match=r"k=21 is larger than the pool: \d+ of 20"): RandomES(k=21).optimize(TASK, LM_, budget=4)
    with pytest.raises(ParameterError, match="source='golden' is not known.*'gold'"): RandomES(source="golden")
    with pytest.raises(OutcomeError, match="finite numbers are needed"): NearestES(embed=lambda t: np.full((len(t), 2), np.nan)).optimize(TASK, LM_, budget=4)
    with pytest.raises(OutcomeError, match=r"returned shape \(1, 2\)"): DiversityES(embed=lambda t: np.ones((1, 2))).optimize(TASK, LM_, budget=4)


def test_gold_exemplars_and_those_without_rationale_show_the_bare_answer():
    for es in (RandomES(source="gold"), RandomES(rationale=False)):
        demo = es.optimize(TASK, LM_, budget=2).evaluations[1].prompt.exemplars[0]
        assert demo.rationale == "> " and demo.reply == f"> {sum(map(int, demo.input.split(' + ')))}"


def test_diversity_takes_one_of_each_cluster():
    groups = ["red apple", "green apple", "fast car", "slow car", "old house", "new house"]
    task = PromptTask("g", [Example(t, "1") for t in groups], [Example("x", "1")], marker="")
    trace = DiversityES(k=3).optimize(task, FunctionLM(lambda p, rng: "1", name="one"), budget=2)
    assert {d.input.split()[1] for d in trace.evaluations[1].prompt.exemplars} == {"apple", "car", "house"}


def test_all_stops_at_the_context():
    room = len(TASK.seed_prompt().render("1 + 1")) + 45
    trace = AllES().optimize(sums(context=room), LM_, budget=2)
    shown = trace.evaluations[1].prompt.exemplars
    assert 0 < len(shown) < len(trace.evaluations[0].right(TASK)) and len(trace.evaluations[1].prompt.render("1 + 1")) <= room
    assert len(AllES(most=2).optimize(TASK, LM_, budget=2).evaluations[1].prompt.exemplars) == 2


def test_mutation_exchanges_one_exemplar_and_keeps_the_order():
    trace = MutationES(population=1).optimize(TASK, LM_, budget=20, seed=1)
    parents = [e for e in trace.evaluations[1:6]]
    for child in trace.evaluations[6:]:
        near = min(sum(a != b for a, b in zip(child.prompt.exemplars, p.prompt.exemplars, strict=True)) for p in parents)
        assert near == 1
        parents.append(child)


def test_random_search_beats_one_random_handful():
    # paired over 8 seeds; a false alarm needs the mean of 8 best-of-15 to fall below the mean of 8 single draws: < 1e-4
    def mixed(prompt, rng):       # follows the sign that most exemplars show
        votes = re.findall(r"by (\w)", prompt)
        a = prompt.rpartition("Q: ")[2]
        rule = max(sorted("wxyz"), key=lambda f: (votes.count(f), rng.random()))
        return f"by {rule}: {a[2 * 'wxyz'.index(rule) + 1]}"
    gains = []
    for s in range(8):
        rng = np.random.default_rng(s)
        rows = [Example("".join(f + "ab"[b] for f, b in zip("wxyz", bits, strict=True)) + f"#{i}", "ab"[bits[1]]) for i, bits in enumerate(rng.integers(2, size=(140, 4)))]
        task = PromptTask("r", rows[:30], rows[30:], marker=": ")
        lm = FunctionLM(mixed, name="mixed")
        gains.append(RandomSearchES().optimize(task, lm, budget=16, seed=s).test(task, lm).value - RandomES().optimize(task, lm, budget=16, seed=s).test(task, lm).value)
    assert np.mean(gains) > 0


# --- instructions and proposers --------------------------------------------------------------------------------------------------------------------------------

def test_a_search_needs_a_proposer_and_room_for_one_generation():
    with pytest.raises(ParameterError, match="has no proposer; give proposer=lm"): APE().optimize(TASK, LM_, budget=32)
    with pytest.raises(ParameterError, match="proposer is a str; give an LM"): APE().optimize(TASK, LM_, "gpt", budget=32)
    with pytest.raises(ParameterError, match="task is a list; it must be a PromptTask"): RandomES().optimize(list(TASK.val), LM_, budget=32)
    with pytest.raises(ParameterError, match="n_prompt_evals=7 is smaller than one generation of APE, which takes 8"): APE().optimize(TASK, LM_, SlotProposer(WORDS), budget=7)
    with pytest.raises(ParameterError, match="one generation of OPRO, which takes 5"): TwoStage(OPRO(), RandomES(), 4)
    with pytest.raises(ParameterError, match="n_prompt_evals=9 is smaller"): TwoStage(OPRO(), RandomSearchES(), 8, 4).optimize(TASK, LM_, SlotProposer(WORDS), budget=9)
    for value in (0, -1, 1.5, "many"):
        with pytest.raises(ParameterError, match="n_prompt_evals"): Budget(value)
    with pytest.raises(ParameterError, match="'add' twice"): SlotProposer([["add"], ["add"]])
    with pytest.raises(ParameterError, match="empty list"): SlotProposer([["add"], []])
    with pytest.raises(ParameterError, match="no words"): WordProposer([" "])


def test_empty_and_known_proposals_are_asked_for_again_and_then_counted_as_wasted():
    class Stubborn(Proposer):
        asked = 0
        def paraphrase(self, instruction, n, rng): self.asked += 1; return ["", instruction][:n]
        def draw(self, n, rng): return ["good"]
        crossover = None
    stubborn = Stubborn()
    trace = RandomEdits().optimize(TASK, LM_, stubborn, budget=9)
    assert trace.wasted == 4 and len(trace.evaluations) == 1 and stubborn.asked == 12      # three tries for four texts, then the search ends
    run = PromptRun(TASK, LM_, 4)
    run.start()
    assert fresh(run, lambda n: stubborn.draw(n, run.rng), 2) == ["good"] and run.wasted == 1


def test_an_instruction_that_quotes_a_validation_item_is_refused():
    item = TASK.val[0].input
    assert quotes_item(f"For example {item} gives a sum", TASK) and not quotes_item("Add the digits.", TASK)
    class Leaking(SlotProposer):
        def paraphrase(self, instruction, n, rng): return [f"like {item} = x"] * n
    trace = RandomEdits().optimize(TASK, LM_, Leaking(WORDS), budget=5)
    assert trace.refused == 12 and len(trace.evaluations) == 1


def test_the_language_model_proposer_reads_tags_and_pays_apart():
    seen = []
    def writer(prompt, rng):
        seen.append(prompt)
        return f"<reason>too vague {rng.integers(99)}</reason>" if "different reasons" in prompt else f"Sure!\n<instruction>add digits {rng.integers(10**6)}</instruction>"
    writing = FunctionLM(writer, name="writer")
    for method in (APE(), OPRO(), ProTeGi(), PromptAgent(), EvoPrompt()):
        seen.clear()
        trace = method.optimize(TASK, LM_, proposer=writing, budget=12, seed=1)
        assert trace.spent["calls"] <= 12 * len(TASK.val) and trace.proposer["calls"] == len(seen) > 0 and trace.proposer["tokens"] > 0
        assert any("add digits" in e.prompt.instruction for e in trace.evaluations)
        assert not any(re.search(r"\{\w+\}", p) for p in seen)                      # every slot of a request was filled
    assert LMProposer(FunctionLM(lambda p, r: "no\ntags")).paraphrase("x", 2, np.random.default_rng(0)) == []


def test_searches_see_wrong_replies_and_rising_scores():
    class Curious(SlotProposer):
        mistakes, histories = [], []
        def critique(self, instruction, mistakes, n, rng): self.mistakes.append(mistakes); return super().critique(instruction, mistakes, n, rng)
        def propose_from_history(self, history, demos, n, rng): self.histories.append(history); return super().propose_from_history(history, demos, n, rng)
    curious = Curious(WORDS)
    ProTeGi().optimize(TASK, LM_, curious, budget=10)
    OPRO(shown=6).optimize(TASK, LM_, curious, budget=20)
    assert curious.mistakes and all(TASK.score(r, e) == 0 for m in curious.mistakes for e, r in m) and all(len(m) <= 4 for m in curious.mistakes)
    assert all(len(h) <= 6 and [s for _, s in h] == sorted(s for _, s in h) for h in curious.histories)


def test_slots_change_one_word_and_crossing_invents_none():
    rng, p = np.random.default_rng(0), SlotProposer(WORDS)
    for t in p.paraphrase("add birds twice", 30, rng): assert sum(a != b for a, b in zip(t.split(), "add birds twice".split(), strict=True)) == 1
    pairs = list(zip("add birds twice".split(), "count roads quickly".split(), strict=True))
    for t in p.crossover("add birds twice", "count roads quickly", 30, rng): assert all(w in pair for w, pair in zip(t.split(), pairs, strict=True))
    assert all(w in "add birds twice one".split() for t in WordProposer(["add birds", "twice one"]).paraphrase("add birds", 30, rng) for w in t.split())
    told = SlotProposer(WORDS, reader=lambda demos: [["add"], [], []])
    assert all(t.startswith("add ") for t in told.propose_from_demos([Demo("a", "b")], 10, rng)) and not all(t.startswith("add ") for t in told.draw(20, rng))


def test_text_evolution_works_in_the_loop_of_all_optimizers():
    problem = instruction_problem(TASK, LM_)
    trials = optimize(problem, TextEvolution(problem, seed=1, proposer=SlotProposer(WORDS)), rounds=4, batch=4, progress=False)
    assert len(set(trials.designs)) > 8 and "Right answer" in trials.outcomes.feedback[0] and trials.best(1).accuracy.iloc[0] >= trials.outcomes["accuracy"][0]
    twin = pickle.loads(pickle.dumps(TextEvolution(problem, proposer=SlotProposer(WORDS))))
    assert twin.ask(3) == TextEvolution(problem, proposer=SlotProposer(WORDS)).ask(3)
    from designloop.core.problems import Objective, Problem
    from designloop.core.spaces import Box
    with pytest.raises(ParameterError, match="breeds texts"): TextEvolution(Problem("b", Box([(0, 1)]), Objective("y"), function=lambda x, f, r: x[:, 0]))


def test_the_winner_flatters_itself_on_validation_and_not_on_test():
    # 60 prompts of the same skill 0.5 on 20 items: the best of 24 exceeds 0.5 by about 2 standard errors; over 6 seeds a false alarm has probability < 1e-6
    coin = FunctionLM(lambda p, rng: f"> {sum(map(int, p.rpartition('Q: ')[2][:5].split(' + '))) + (rng.random() < 0.5)}", name="coin")
    traces = [RandomEdits().optimize(TASK, coin, SlotProposer(SLOTS), budget=24, seed=s) for s in range(6)]
    assert np.mean([t.best.value for t in traces]) > np.mean([t.test(TASK, coin, t.seed).value for t in traces]) + 0.05
    score = test_prompt(TASK, coin, TASK.seed_prompt())
    assert score.n == 40 and score.item_ids == tuple(e.id for e in TASK.test)


# --- the world of rules ----------------------------------------------------------------------------------------------------------------------------------------

def test_rules_records_and_hints():
    rng = np.random.default_rng(0)
    for rule in RULES:
        task = rule_task(rule, seed=1, val=10, test=20)
        assert len({q for part in task.values() for q, _ in part}) == 30 and task == rule_task(rule, seed=1, val=10, test=20)
        for q, a in task["val"]:
            field = "abcde".index(q[3 + 2 * rule[0]])
            assert q[2::2] == "wxyz" and a == "abcde"[(field + (0, 1, -1)[rule[1]]) % 5]
    with pytest.raises(ParameterError, match="is not known; a rule is"): rule_task((4, 0))
    rules = np.tile([2, 1], (6000, 1))
    hints = draw_hints(rng, rules)       # standard errors 0.006; a false alarm at 4 of them: 1e-4
    assert abs((hints[:, 0] == 2).mean() - 0.475) < 0.026 and abs((hints[:, 1] == 1).mean() - (0.3 + 0.7 / 3)) < 0.026
    assert answer_of(np.array([[0, 1, 2, 3]]), np.array([[0, 2]]))[0] == 4 and draw_records(rng, 5).shape == (5, 4)


def test_the_corpus_is_what_the_model_will_be_asked():
    told, asked, replies, own = rule_rows(np.random.default_rng(0), 40)
    tok = rule_tokenizer()
    lengths = {len(tok.encode(f"{i}\n" + "".join(f"{q}~{r}\n" for q, r in zip(qs, rs, strict=True)))) for i, qs, rs in zip(told, asked, replies, strict=True)}
    assert lengths == {10 + 6 * 16} and 0.6 < own.mean() < 0.9
    for qs, rs, mine in zip(asked, replies, own, strict=True):           # the replies that count follow one rule
        rules = {(r[0], (ord(r[3]) - ord(r[1])) % 5) for r, m in zip(rs, mine, strict=True) if m}
        assert len(rules) <= 1
        assert all(q[q.index(r[0], 2) + 1] == r[1] for q, r in zip(qs, rs, strict=True))


def test_words_that_fit():
    for rule in RULES:
        fits = fitting_words([Example(q, a) for q, a in rule_task(rule, val=30)["val"]])
        assert rule[1] == {"copy": 0, "take": 0, "advance": 1, "raise": 1, "retreat": 2, "lower": 2}[fits[0][0]]
        assert set(fits[1]) == {0: {"head"}, 3: {"tail"}, 1: {"front", "inner"}, 2: {"back", "inner"}}[rule[0]]
    assert [len(s) for s in SLOTS] == [8] * 5
