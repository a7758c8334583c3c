"""The Alice-in-Wonderland puzzles: formulas, parsing, resumption, statistics, and what is refused."""
import os

import numpy as np
import pytest
from scipy import stats

from designloop.core.data import found_in, known_file
from designloop.core.errors import ParameterError
from designloop.core.seeds import cap_threads
from designloop.evaluators.aiw import (
    AIW,
    FAMILIES,
    MARKER,
    PROMPT_TYPES,
    PUBLISHED,
    AIWProblem,
    AIWReport,
    benchmark_mismatch,
    generate_problems,
    irrelevant_twin,
    is_right,
    load_published,
    majority_vote,
    moment_beta,
    order_twin,
    overconfidence,
    parse_answer,
    robustness_score,
    run_trials,
    split_spread,
    standard_problems,
)
from designloop.lm.protocol import FunctionLM
from designloop.lm.wrappers import Cached, Metered
from designloop.stats.scores import Report

cap_threads(1)


def coin(p):
    "A model that is right with probability p: the prompts must have the answer M + 1 of the published four."
    right = {q.prompt: q.right_answer for t in PROMPT_TYPES for q in standard_problems("aiw", t)}
    return FunctionLM(lambda prompt, rng: f"{MARKER} {right[prompt] if rng.random() < p else 0}", name=f"coin-{p}")


def brute_force_cousins(a, b, d, e):
    "Count the cousins of one of the girls in a family that is written out person by person."
    girls = {f"girl{i}" for i in range(a + 1)}
    mothers_side = girls | {f"m{i}" for i in range(b - len(girls))}        # all nephews and nieces of the mother's sister
    fathers_side = girls | {f"f{i}" for i in range(d - len(girls))}        # all of the father's brother
    sons = {f"son{i}" for i in range(e)}
    return len((mothers_side | fathers_side | sons) - girls)


@pytest.mark.parametrize("a, b, d, e", [(3, 7, 5, 1), (1, 2, 2, 0), (2, 6, 3, 4)])
def test_cousins(a, b, d, e):
    p = AIWProblem("aiw_plus", m_sisters=a, cousins=(b, d, e))
    assert p.right_answer == brute_force_cousins(a, b, d, e) and f"{b} nephews" in p.prompt and f"{e} son" in p.prompt


def test_families_and_prompt_types():
    answers = {f: AIWProblem(f, 4, 1).right_answer for f in FAMILIES if f != "aiw_plus"}
    assert answers == {"aiw": 2, "female_boost": 2, "friends": 2, "colleagues": 2, "light_family": 4, "light_arithmetic": 5, "aiw_ext": 5}
    prompts = {AIWProblem(f, 4, 1, t).prompt for f in answers for t in PROMPT_TYPES}
    assert len(prompts) == len(answers) * len(PROMPT_TYPES) and all(MARKER in p and "{" not in p for p in prompts)
    p = AIWProblem("aiw", 4, 1)
    assert p.prompt.index("4 brothers") < p.prompt.index("1 sister.") and order_twin(p).prompt.index("1 sister") < order_twin(p).prompt.index("4 brothers")
    assert all("Bob" in AIWProblem("aiw_ext", 3, 2, first=f).prompt for f in ("brothers", "sisters"))


def test_generated_problems():
    drawn = generate_problems(40, seed=1)
    assert len({p.prompt for p in drawn}) == 40 and all(p.clear and p.n_brothers != p.m_sisters and p.name != "Alice" for p in drawn)
    assert drawn == generate_problems(40, seed=1) != generate_problems(40, seed=2)
    twin = irrelevant_twin(drawn[0], seed=3)
    assert twin.m_sisters == drawn[0].m_sisters and twin.n_brothers != drawn[0].n_brothers
    assert len(generate_problems(10, "aiw_plus")) == 10 and all(p.right_answer >= 0 for p in generate_problems(10, "aiw_plus"))


@pytest.mark.parametrize("text, found", [
    ("### Answer: 7", 7), ("I first say ### Answer: 7 and then ### Answer: 7", 7), ("### ANSWER: seven", 7), ("### Answer: 6 and ### Answer: 7", None),
    ("7", None), ("", None), ("### Answer:", None), ("### Answer: none of them", None), ("Sure! ### Answer: **7** I am sure.", 7), ("### Answer: 6+1 = 7", 7)])
def test_answers(text, found): assert parse_answer(text) == found


@pytest.mark.parametrize("text, right", [("M + 1", True), ("1+M", True), ("(M+1)", True), ("$M+1$", True), ("M", False), ("N + 1", False), ("2M - M + 1", True),
                                         ("__import__('os')", False), ("", False)])
def test_symbols(text, right): assert is_right(AIWProblem(symbolic=True), f"{MARKER} {text}")[1] is right


def test_an_interrupted_run_asks_only_for_what_is_missing(tmp_path):
    problems = standard_problems()
    first = Metered(coin(0.6), calls=130)
    with pytest.raises(Exception, match="(?i)budget|calls"): run_trials(Cached(first, tmp_path), problems, 60)
    done = first.calls
    second = Metered(coin(0.6))
    trials = run_trials(Cached(second, tmp_path), problems, 60)
    assert 0 < done <= 130 and second.calls == 240 - done and len(trials) == 240
    assert trials.correct.tolist() == run_trials(coin(0.6), problems, 60).correct.tolist()


def test_published_counts():
    p = {key: AIWReport.from_counts(*value).p_value for key, value in PUBLISHED.items()}
    assert p["o1-mini", "AIW"] < 1e-6 and p["GPT-4o", "AIW+"] < 1e-6 and p["o1-preview", "AIW"] > 0.05 and p["Claude 3.5 Sonnet", "AIW+"] > 0.05


@pytest.mark.skipif(any(found_in(known_file(f"aiw/{name}.csv")) is None for name in ("response_counts", "prompts")), reason="the published tables are not on this machine")
def test_published_tables():
    table = load_published()
    assert table.n_trials.sum() == 12_918 and table.model.nunique() == 34 and (table.n_correct <= table.n_trials).all()
    mini = table[(table.model == "o1-mini") & table.prompt_id.isin([205, 206, 187, 188])]
    assert sorted(mini.n_correct) == [35, 54, 58, 60] and (mini.n_trials == 60).all()


def test_split_spread_is_unbiased_where_nothing_differs():
    rng = np.random.default_rng(0)         # 300 repetitions; 4 standard errors: false alarms below 1e-4
    found = [split_spread(rng.binomial(40, 0.7, 6), np.full(6, 40), rng, 50)[0] for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 300**0.5
    gap, se = split_spread(np.array([10, 50, 30]), np.full(3, 60), rng)
    assert abs(gap - 40 / 60) < 0.03 and 0.04 < se < 0.12


def test_report_keeps_variations_apart(tmp_path):
    even = AIW(30).evaluate(coin(0.5))
    assert even.p_value > 0.01 and even.scores["unread"].value == 0 and even.provenance.n_model_calls == 120
    assert all(s.ci[0] <= s.value <= s.ci[1] for s in even.scores.values())
    even.save(tmp_path / "r")
    assert Report.load(tmp_path / "r").scores["split range"] == even.scores["split range"]
    one, two = AIWReport.from_counts([60, 0, 60, 0], 60), AIWReport.from_counts([30] * 4, 60)
    assert np.ptp(one.scores["mean over variations"].ci) > 3 * np.ptp(one.scores["all trials as one"].ci)
    assert one.scores["robustness"].value == 0 and two.scores["robustness"].value == 0.5 and two.scores["overdispersion"].value == 0
    several = AIW(20, stratify=True).evaluate(coin(0.5), [p for t in PROMPT_TYPES for p in standard_problems("aiw", t)])
    assert len(several.comparisons) == 2 and {k.split(":")[0] for k in several.scores} == set(PROMPT_TYPES)


def test_small_parts():
    a, b = moment_beta(0.3, 60)
    assert np.isclose(stats.beta(a, b).mean(), 0.3) and np.isclose(stats.beta(a, b).var(), 0.3 * 0.7 / 60)
    assert majority_vote([30], [60], 1)[0] == 0.5 and majority_vote([36], [60], 601)[0] > 0.999
    s = overconfidence([1.0] * 8, [1, 0] * 4, [1, 1, 2, 2, 3, 3, 4, 4])
    assert s.value == 0.5 and s.n == 4


@pytest.mark.parametrize("call, words", [
    (lambda: AIWProblem("aiw", -1, 3), ["n_brothers", "-1"]), (lambda: AIWProblem("aiw", 2.5, 3), ["n_brothers", "2.5"]), (lambda: AIWProblem("aiws"), ["aiws", "aiw"]),
    (lambda: AIWProblem("aiw_plus"), ["cousins", "(b, d, e)"]), (lambda: AIWProblem("aiw_plus", m_sisters=3, cousins=(3, 5, 1)), ["b", "3", "4"]),
    (lambda: AIWProblem(prompt_type="LOUD"), ["LOUD", "STANDARD"]), (lambda: order_twin(AIWProblem("aiw", 3, 3)), ["n_brothers=3", "N ≠ M"]),
    (lambda: irrelevant_twin(AIWProblem("light_arithmetic")), ["light_arithmetic", "M + 1"]), (lambda: generate_problems(10_000), ["10000", "largest"]),
    (lambda: run_trials(coin(1), standard_problems(), 4), ["n_trials=4", "spans most of [0, 1]"]), (lambda: AIW(3), ["n_trials=3"]),
    (lambda: AIW(5, temperature=-1), ["temperature=-1"]), (lambda: AIW(5, max_tokens=0), ["max_tokens=0"]),
    (lambda: run_trials(coin(1), standard_problems() * 2, 5), ["twice"]), (lambda: run_trials(coin(1), [], 5), ["at least one"]),
    (lambda: AIW(5).evaluate(coin(1), standard_problems() + standard_problems(prompt_type="RESTRICTED")), ["STANDARD, RESTRICTED", "stratify=True"]),
    (lambda: AIW(5).evaluate(coin(1), standard_problems()[:2]), ["2 variations", "3 or more"]), (lambda: AIWReport.from_counts([1, 2, 3], 4), ["4 trials"]),
    (lambda: moment_beta(1.0, 60), ["rate=1"]), (lambda: robustness_score([2, 3]), ["between 0 and 1"]), (lambda: AIW().evaluate("gpt"), ["str", "LM"]),
    (lambda: overconfidence([0.5], [1], ["a"]), ["1 variation"]), (lambda: overconfidence([80, 20], [1, 1], ["a", "b"]), ["outside [0, 1]"]),
])
def test_bad_input_is_refused(call, words):
    with pytest.raises(ParameterError) as e: call()
    assert all(w in str(e.value) for w in words), e.value


def test_replies_without_marker_are_listed():
    report = AIW(10).evaluate(FunctionLM(lambda prompt, rng: "seven" if rng.random() < 0.5 else f"{MARKER} 7", name="shy"))
    assert 0.2 < report.scores["unread"].value < 0.8 and os.linesep not in report.title


def test_beside_a_benchmark():
    able = {m: 0.9 for m in "abcd"}
    even = benchmark_mismatch({m: AIWReport.from_counts([27] * 4, 30) for m in "abcd"}, able)
    assert abs(even.scores["benchmark minus rate"].value) < 1e-3 and even.scores["high there, low here"].value == 0 and "rank correlation" not in even.scores
    weak = benchmark_mismatch({m: i / 20 for i, m in enumerate("abcdx")}, {m: 0.5 + 0.1 * i for i, m in enumerate("abcd")})
    assert len(weak.items) == 4 and weak.scores["rank correlation"].value == 1 and weak.scores["high there, low here"].value == 1 and weak.scores["benchmark minus rate"].ci[0] > 0
    with pytest.raises(ParameterError, match="2 models in common"): benchmark_mismatch({"a": 0.1, "b": 0.2}, able)
