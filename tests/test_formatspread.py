"""Formats and their spread: grammar, scoring, search, reports, analyses, and what is refused."""
import numpy as np
import pytest

from designloop.core.data import found_in, known_file
from designloop.core.errors import ParameterError
from designloop.core.seeds import cap_threads
from designloop.evaluators.format_tasks import made_options, made_pairs, options_lm, options_task, pairs_lm, pairs_task, read_options
from designloop.evaluators.formatspread import (
    SEARCHES,
    FormatSpread,
    FormatTask,
    atomic_perturbations,
    exact_prefix_match,
    format_chains,
    format_identifiability,
    full_evaluation,
    item_agreement,
    model_agreement,
    monotonicity,
    option_ranking,
    outside_share,
    search_formats,
    simulate_formats,
    simulated_lm,
    string_problem,
    string_rules_task,
    string_tokenizer,
)
from designloop.evaluators.prompt_formats import CASINGS, ENTRY, NUMBERINGS, SEPARATORS, FormatGrammar, PromptFormat, sample_formats, valid_formats
from designloop.lm.protocol import FunctionLM, LMError
from designloop.lm.wrappers import Cached, Metered

cap_threads(1)
PLAIN = FormatGrammar.from_fields({"input": "Input", "output": "Output"})
QUIZ = FormatGrammar.from_fields({"question": "Question", "options": "Options", "answer": "Answer"}, options="options")
ITEM = {"question": "Fruit?", "options": ["chair", "plum"], "answer": "plum"}
TASK = string_rules_task(60)
FORMS = sample_formats(TASK.grammar, 12, 0)


def test_every_listed_format_obeys_the_rules():
    every = valid_formats(PLAIN)
    assert len(every) == len(set(every)) and PLAIN.original in every
    for f in every:
        v = f.values
        assert v["separator"] and v["space"] and ("\n" in v["space"] or "\n" not in v["separator"]) and not any(ENTRY in x for x in v.values())
    brute = {(s, c, j) for s in PLAIN.slots["separator"] for c in ("as is", "upper", "lower") for j in PLAIN.slots["space"] if s and j and ("\n" in j or "\n" not in s)}
    assert {f.key for f in every} == brute


def test_numbered_options():
    for f in sample_formats(QUIZ, 150, 3):
        assert f.is_valid() and f.label(ITEM) in f.render([], ITEM) and f.label(ITEM) != f.label(ITEM, "chair")
        if "\n" in f.values["list_separator"] + f.values["option_separator"]: assert "\n" in f.values["joiner"]
    assert [NUMBERINGS[k](1) for k in NUMBERINGS] == ["2", "B", "b", "Ⅱ", "II", "ii"]


def test_textless_fields_allow_the_empty_space():
    g = FormatGrammar.from_fields({"head": "Passage", "answer": "Answer"}, textless=["head"], original={"space": ""})
    assert g.original.render([], {}) == "Passage: Answer: " and {f.values["space"].strip() for f in valid_formats(g)} == {""}


def test_samples():
    assert sample_formats(PLAIN, 30, 1) == sample_formats(PLAIN, 30, 1) != sample_formats(PLAIN, 30, 2)
    assert set(sample_formats(PLAIN, len(valid_formats(PLAIN)), 0)) == set(valid_formats(PLAIN))
    assert PLAIN.slots["casing"] == ("as is", "upper", "lower") and set(CASINGS) - set(PLAIN.slots["casing"]) == {"title"}     # "Input" is in title case already
    count = np.mean([[f.values["casing"] == c for c in PLAIN.slots["casing"]] for f in sample_formats(PLAIN, 301, 0)[1:]], axis=0)
    assert np.abs(count - 1 / 3).max() < 0.11          # four standard errors of 300 draws


def test_a_prompt_with_its_label_is_a_worked_example():
    for f in FORMS:
        p = string_problem(np.random.default_rng(0))
        assert f.render([p], p) == f.render([], p) + p["output"] + ENTRY + f.render([], p)
        assert string_tokenizer().decode(string_tokenizer().encode(f.render([p], p))) == f.render([p], p)
    longest = max(len(string_tokenizer().encode(f.render(TASK.items[0]["demos"], TASK.items[0]))) for f in valid_formats(TASK.grammar))
    assert longest < 124 and string_tokenizer(True).size > string_tokenizer().size


def test_string_rules_have_their_answer_in_the_query():
    assert all(i["output"] in i["labels"] and len(set(i["labels"])) == 3 for i in TASK.items) and len(TASK.with_shots(1).items[0]["demos"]) == 1


def test_metrics():
    assert exact_prefix_match([" B\n", "b", "Bx", "(A) x", ""], ["B", "B", "B", "(a)", "B"]).tolist() == [1, 1, 0, 1, 0]
    lm = FunctionLM(lambda p, r: "", logprobs=lambda p, c: [-1.0 if c == "plum" else -2.0])
    assert option_ranking(lm, ["x", "y"], [["chair", "plum"], ["plum", "cup"]]) == ["plum", "plum"]
    assert outside_share(["yes", "no idea", "maybe"], ["yes", "no"]).value == pytest.approx(1 / 3)


def test_the_simulated_model_is_right_where_it_should_be():
    outcomes = simulate_formats(12, 60, 0.7, np.random.default_rng(0))
    lm = simulated_lm(TASK, FORMS, outcomes)
    for metric in ("prefix", "ranking"): assert (full_evaluation(FORMS, TASK, lm, metric) == outcomes).all()
    found = FormatSpread(n_formats=12, budget=720).run(TASK, lm)
    assert found.spread == pytest.approx(np.ptp(outcomes.mean(1))) and found.sd is not None and found.hi.value - found.lo.value == pytest.approx(found.spread)


@pytest.mark.parametrize("method", SEARCHES)
def test_searches_keep_their_budget_and_repeat(method):
    outcomes = simulate_formats(30, 200, 0.8, np.random.default_rng(1))
    asked = []
    def score(i, items): asked.append((i, tuple(items))); return outcomes[i, items]
    s = search_formats(score, 30, 200, 1555, method=method, rng=3)
    assert s.counts.sum() == sum(len(items) for _, items in asked) <= 1555 and (s.counts <= 200).all()
    assert all(len(set(x)) == len(x) for x in ([j for i, items in asked if i == k for j in items] for k in range(30)))       # no item twice
    assert s.wins.tolist() == search_formats(score, 30, 200, 1555, method=method, rng=3).wins.tolist()
    assert (len(s.trace) % 2 == 0) and s.counts[s.best] > 0 and s.counts[s.worst] > 0


def test_a_perfect_original_does_no_harm():
    s = search_formats(lambda i, items: np.ones(len(items), int) if i == 0 else (items % 2), 5, 40, 200, 10, rng=0)
    assert s.best == 0 and np.isfinite(s.prior[0]) and s.prior[0] == pytest.approx(5 * (1 - 1 / 80) / (1 / 80))


def test_thompson_beats_the_naive_split():
    # 30 paired repetitions (seeds 0 to 29), effects of SD 1 logit: mean difference above 0 by more than two standard errors
    gain = []
    for seed in range(30):
        outcomes = simulate_formats(100, 500, 1.0, np.random.default_rng(seed))
        p = outcomes.mean(1)
        s = {m: search_formats(lambda i, items, o=outcomes: o[i, items], 100, 500, 8000, method=m, rng=seed) for m in ("thompson", "naive")}
        gain.append((p[s["thompson"].best] - p[s["thompson"].worst]) - (p[s["naive"].best] - p[s["naive"].worst]))
    assert np.mean(gain) > 2 * np.std(gain) / 30**0.5


def test_equal_formats_give_no_split_spread():
    # 20 seeds; the mean of 20 differences on 30 items has a standard error near 0.02, so a false alarm needs four of them
    task, found = string_rules_task(60, 5), []
    forms = sample_formats(task.grammar, 20, 0)
    for seed in range(20):
        lm = simulated_lm(task, forms, simulate_formats(20, 60, 0.0, np.random.default_rng(seed)))
        forms_of_seed = sample_formats(task.grammar, 20, 0)
        assert forms_of_seed == forms
        found.append(FormatSpread(n_formats=20, budget=400, batch_size=5, nulls=20).run(task, lm, 0))
    assert abs(np.mean([f.split_spread.value for f in found])) < 0.09 and np.mean([f.spread <= f.null_spread[1] for f in found]) > 0.7


def test_a_second_run_asks_nothing(tmp_path):
    outcomes = simulate_formats(12, 60, 0.7, np.random.default_rng(0))
    meter = Metered(simulated_lm(TASK, FORMS, outcomes))
    first = FormatSpread(n_formats=12, budget=300, batch_size=5, nulls=20).run(TASK, Cached(meter, tmp_path))
    calls = meter.calls
    second = FormatSpread(n_formats=12, budget=300, batch_size=5, nulls=20).run(TASK, Cached(meter, tmp_path))
    assert meter.calls == calls <= 300 + 90 and str(first) == str(second)


def test_analyses():
    for a, b, slot in atomic_perturbations(FORMS, 2): assert [s for s in a.values if a.values[s] != b.values[s]] == [slot] and b.is_valid()
    for a, b, c in format_chains(FORMS): assert a != c and b in [f for _, f in a.neighbors()] and c in [f for _, f in b.neighbors()]
    assert monotonicity([[0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 1, 1]]).value == pytest.approx(2 / 3)
    assert model_agreement([1, 2, 3, 4], [2, 4, 6, 8]).value == 1 and model_agreement([1, 2, 3, 4], [1, 1, 1, 1]).value == 0.5
    rng = np.random.default_rng(0)
    table = format_identifiability(np.repeat(np.eye(4), 10, axis=0) + 0.01 * rng.normal(size=(40, 4)), np.repeat(range(4), 10), (1, 3))
    assert table.accuracy.iloc[-1] == 1


EMPTY = FormatGrammar.from_fields({"head": "Head", "answer": "Answer"}, textless=["head"])
TEN = FormatTask("ten", PLAIN, [{"input": "a", "output": "b", "labels": list("abcdefghij")}] * 4)
TWINS = FormatTask("twins", PLAIN, [{"input": "a", "output": "b", "labels": ["b", "b"]}] * 4)
SILENT = FunctionLM(lambda p, r: "a", name="silent")


@pytest.mark.parametrize("call, words", [
    (lambda: FormatGrammar.from_fields({"a": "In: put", "b": "Out"}), ["'In: put'", "':'"]), (lambda: FormatGrammar.from_fields({"a": "In{x}", "b": "Out"}), ["'{'"]),
    (lambda: FormatGrammar.from_fields({"a": "Input"}), ["two fields"]),
    (lambda: FormatGrammar.from_fields({"a": "In", "b": "Out"}, original={"separator": ""}), ["original", "not valid"]),
    (lambda: FormatGrammar.from_fields({"a": "In", "b": "Out"}, space=["\n\n"]), ["empty line"]),
    (lambda: FormatGrammar.from_fields({"a": "In", "b": "Out"}, casing=["title"]), ["casing='as is'", "['title']", "original={'casing': 'title'}"]),
    (lambda: QUIZ.original.mark(12), ["option 13", "12 options at most"]),
    (lambda: FormatGrammar.from_fields({"a": "In", "b": "Out"}, options="b"), ["'b'"]),
    (lambda: sample_formats(PLAIN, 10_000), ["10000", f"{len(valid_formats(PLAIN))} valid"]), (lambda: PromptFormat(PLAIN, {"separator": "?"}), ["separator", "'?'"]),
    (lambda: PLAIN.original.render([], {"output": "x"}), ["lacks", "'input'"]), (lambda: QUIZ.original.label({**ITEM, "answer": "cup"}), ["'cup'", "not among"]),
    (lambda: FormatTask("t", QUIZ, [{**ITEM, "answer": "cup"}]), ["item 0", "'cup'"]), (lambda: FormatTask("t", PLAIN, []), ["empty"]),
    (lambda: TEN.candidates(PLAIN.original, 0), ["10 options", "2 to 9"]), (lambda: TWINS.candidates(PLAIN.original, 0), ["identical"]),
    (lambda: search_formats(None, 5, 10, 100, 20), ["10 items", "batch_size"]), (lambda: search_formats(None, 5, 100, 110, 20), ["budget=110"]),
    (lambda: search_formats(None, 5, 100, 500, method="greedy"), ["greedy", "thompson"]), (lambda: FormatSpread(metric="bleu"), ["bleu", "prefix"]),
    (lambda: FormatSpread(n_formats=12, budget=100, batch_size=40).run(TASK, SILENT), ["60 items", "batch_size"]), (lambda: FormatSpread(budget=0), ["budget"]),
    (lambda: FormatSpread().run(TASK, "gpt"), ["str", "LM"]), (lambda: FormatSpread().run([1], SILENT), ["list", "FormatTask"]), (lambda: TASK.with_shots(9), ["n=9"]),
    (lambda: monotonicity([1, 2, 3]), ["(3,)"]),
    (lambda: model_agreement([1, 1, 1, 1], [1, 2, 3, 4]), ["no two formats"]), (lambda: model_agreement([1, 2], [1]), ["four or more"]),
    (lambda: format_identifiability(np.zeros((4, 2)), [0, 0, 1, 1]), ["five prompts"]),
])
def test_bad_input_is_refused(call, words):
    with pytest.raises(ParameterError) as e: call()
    assert all(w in str(e.value) for w in words), e.value


def test_ranking_needs_log_probabilities():
    with pytest.raises(LMError, match="log-probabilities"): FormatSpread(n_formats=2, metric="ranking").run(TASK, SILENT)
    assert SEPARATORS[0] == "" and EMPTY.original.is_valid()


def test_what_the_search_cannot_spend_is_counted():
    outcomes = simulate_formats(10, 100, 0.5, np.random.default_rng(0))
    state = search_formats(lambda i, items: outcomes[i, items], 10, 100, 100 + 5 * 20 + 7, 20)
    assert len(state.trace) == 4 and state.left == 27 and state.counts.sum() == 180


def test_agreement_over_items():
    outcomes = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]])
    s = item_agreement(outcomes).scores
    assert [s[k].value for k in ("right in every format", "wrong in every format", "depends on the format")] == [0.25, 0.25, 0.5]
    assert s["two formats agree"].value == pytest.approx((1 + 1 / 3 + 1 + 1 / 3) / 4)
    with pytest.raises(ParameterError, match="two formats or more"): item_agreement([[0.5, 1], [1, 0]])


def test_tasks_from_pairs_keep_examples_apart_from_items():
    pairs = [(f"word {i}", f"answer {i % 4}") for i in range(30)]
    task = pairs_task("t", pairs, n_items=10, n_shots=5, seed=3)
    asked, shown = {i["input"] for i in task.items}, {d["input"] for i in task.items for d in i["demos"]}
    assert len(asked) == 10 and not asked & shown and len(task.labels) == 4 and len(task.shots(task.items[0])) == 5
    assert task.items == pairs_task("t", pairs, n_items=10, n_shots=5, seed=3).items
    with pytest.raises(ParameterError, match="among the examples"): pairs_task("t", pairs, pairs, 5)


def test_lettered_options_are_renumbered():
    question = "Pick one.\nIt is short.\nOptions:\n(A) apple\n(B) pear \n(C) fig"
    assert read_options(question) == ("Pick one.\nIt is short.", ["apple", "pear", "fig"])
    task = options_task("t", [(question, "(B)"), (question.replace("one", "two"), "C")], n_items=1, n_shots=1)
    golds = {task.gold(f, 0): task.candidates(f, 0) for f in sample_formats(task.grammar, 60, 0)}
    place = ["apple", "pear", "fig"].index(task.items[0]["answer"])
    assert len(golds) > 8 and all(options.index(gold) == place for gold, options in golds.items())
    for bad in ("no options at all", "Q\n(B) x\n(A) y"):
        with pytest.raises(ParameterError, match="line of its own"): read_options(bad)


@pytest.mark.skipif(found_in(known_file("big-bench-hard/bbh.jsonl.gz")) is None, reason="BIG-Bench Hard is not here; see `designloop data list`")
def test_published_tasks_with_options():
    from designloop.tasks.prompt_tasks import bbh_tasks
    task = options_task("hyperbaton", bbh_tasks()["hyperbaton"], n_items=40, n_shots=2)
    assert all(i["answer"] in i["options"] and len(i["options"]) == 2 for i in task.items) and "Options" in task.prompt(task.grammar.original, 0)


def test_made_tasks_are_pairs_like_the_published_ones():
    pairs, lettered = made_pairs(40, 5), made_options(40, 5)
    assert len(pairs) == 6 and len(lettered) == 4 and made_options(40, 5) == lettered != made_options(40, 6)
    for name, some in pairs.items():
        task = pairs_task(name, some[20:], some[:20], 20, 2)
        assert len(dict(some)) == 40 and len(task.items) == 20
    for name, some in lettered.items():
        task = options_task(name, some[20:], some[:20], 20, 1)
        assert len(dict(some)) == 40 and all(len(set(i["options"])) == 3 for i in task.items)
        assert {a for _, a in made_options(300)[name]} == {"(A)", "(B)", "(C)"}
    right = {n: [dict(zip("ABC", read_options(q)[1], strict=True))[a[1]] for q, a in some] for n, some in lettered.items()}
    assert all(x.isdigit() for x in right["the digit"]) and all(x.isupper() for x in right["the capital"])
    assert all(x in "aeiou" for x in right["the vowel"])
    with pytest.raises(ParameterError, match="700"): made_options(701)


def test_one_trainer_for_pairs_and_options(monkeypatch, tmp_path):
    monkeypatch.setenv("DESIGNLOOP_CACHE", str(tmp_path))
    lettered, pairs = made_options(12), made_pairs(12)
    quiz = options_task("the digit", lettered["the digit"], n_items=4, n_shots=1, words=("Find", "Among", "Answer"))
    plain = pairs_task("plural", pairs["plural"], n_items=4, n_shots=1)
    reader, writer = options_lm(lettered, [quiz.grammar.original], 1, steps=1), pairs_lm(pairs, [plain.grammar.original], 1, steps=1)
    assert reader.name == "tiny:options-1" and writer.name == "tiny:pairs-1" and len(list(tmp_path.rglob("*.pt"))) == 2
    assert full_evaluation([quiz.grammar.original], quiz, reader, "ranking").shape == full_evaluation([plain.grammar.original], plain, writer).shape == (1, 4)
    with pytest.raises(ParameterError, match="too few pairs"): options_lm({"x": lettered["the digit"][:1]}, [quiz.grammar.original], 1)
    with pytest.raises(ParameterError, match="none of its 3"): options_lm({"x": [(lettered["the digit"][0][0], "(D)")] * 3}, [quiz.grammar.original])
