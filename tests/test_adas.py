"""Meta Agent Search: agent programs in the sandbox, meters, puzzles and other domains, the composer, the search, and everything that goes wrong."""
import json
import pickle
from itertools import pairwise

import numpy as np
import pytest

from designloop.agents.hand_designed import AGENTS, designed_agents
from designloop.core.data import found_in, known_file
from designloop.core.errors import DataCorrupt, DataMissing, ParameterError, StateError
from designloop.core.loop import optimize
from designloop.core.programs import Program, ProgramArchive, ProgramError
from designloop.core.sandbox import Sandbox
from designloop.core.spaces import Texts
from designloop.lm.agent_programs import CHAIN_OF_THOUGHT, AgentTask, TaskSet, read_agent, read_reply, read_request, request_prompt, run_agent
from designloop.lm.parsers import JSONParser
from designloop.lm.protocol import BudgetExceeded, FunctionLM
from designloop.lm.wrappers import Metered
from designloop.optimizers.adas import AgentProblem, MetaAgentSearch, agent_page, bootstrap_fitness, run_score, search_agents, transfer
from designloop.optimizers.program_composer import (
    EDITS,
    Anatomy,
    ProgramComposer,
    composer_lm,
    cross_agents,
    debug_prompt,
    edit_agent,
    propose_prompt,
    reflect_prompt,
    repair_agent,
    undefined,
)
from designloop.tasks.grid_puzzles import GridPuzzle, arc_puzzles, explained_by_one, grid_split, grid_tasks, make_arc, run_grid_code
from designloop.tasks.stochastic_solver import StochasticSolver
from designloop.tasks.transfer_domains import make_string_task, make_word_problem, string_tasks, tasks_from_file, word_problems

SOLVER = StochasticSolver()
VAL, TEST = grid_split(0, 6, 6)


@pytest.fixture(scope="module")
def box():
    with Sandbox() as sandbox: yield sandbox


def agent(body: str) -> str:
    "A program with a model called ask_model."
    lines = "\n".join("    " + line for line in body.strip().split("\n"))
    return f'def forward(self, taskInfo):\n    ask_model = LLMAgentBase(["thinking", "code"], "x")\n{lines}'


# --- grid puzzles ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("grid, words", [
    ([], "not a grid"), ([[]], "not a grid"), ("12", "not a grid"), ([[1, 2], [3]], "rows of 1 and of 2"), ([[10]], "holds 10"), ([[-1]], "holds -1"), ([[0.5]], "holds 0.5"),
    ([[True]], "holds True"), ([["1"]], "holds '1'"), ([[0] * 31], "at most 30")])
def test_what_is_no_grid_is_refused_with_its_place(grid, words):
    with pytest.raises(ParameterError, match=words): GridPuzzle("p", (([[1]], grid),), [[1]], [[1]])
    with pytest.raises(ParameterError, match="question"): GridPuzzle("p", (([[1]], [[1]]),), grid, [[1]])


def test_puzzles_without_pairs_and_empty_sets_are_refused():
    with pytest.raises(ParameterError, match="no pairs"): GridPuzzle("p", (), [[1]], [[1]])
    with pytest.raises(ParameterError, match="is empty"): grid_tasks([])
    with pytest.raises(ParameterError, match="validation=0"): grid_split(0, 0, 5)
    with pytest.raises(ParameterError, match="data='arx'"): grid_split(0, 2, 2, "arx")
    with pytest.raises(ParameterError, match="depths"): make_arc(0, depths=(0, 0))
    with pytest.raises(ParameterError, match="depths"): make_string_task(0, depths=(0, -1))


def test_made_puzzles_are_solved_by_their_program_and_by_no_shorter_one():
    for s in range(40):
        p = make_arc(s)
        pairs = [*p.pairs, (p.question, p.solution)]
        assert all(run_grid_code(p.code, a) == b != a for a, b in pairs) and len(p.pairs) == 3 and p.right(p.code)
        assert all(2 <= len(a) <= 5 and 2 <= len(a[0]) <= 5 for a, _ in pairs)
        if "|" in p.code: assert explained_by_one(pairs, range(10)) == "" or any("(" in step for step in explained_by_one(pairs, range(10)).split("|"))
    depths = np.array([make_arc(s).code.count("|") for s in range(300)])
    assert np.allclose(np.bincount(depths, minlength=3) / 300, (0.4, 0.4, 0.2), atol=0.09)        # three standard errors


@pytest.mark.parametrize("code, words", [("spin", "no operation"), ("recolour(1)", "takes 2"), ("recolour(1, 10)", "takes 2"), ("", "no operation"), ("crop", "nothing to crop"),
                                         (" | ".join(["scale2"] * 6), "too large"), ("def transform(grid): return grid", "sandbox only")])
def test_codes_that_cannot_run_say_why(code, words):
    with pytest.raises(ValueError, match=words): run_grid_code(code, [[0, 0]])


def test_operations_have_their_symmetries():
    rng = np.random.default_rng(0)
    for _ in range(30):
        g = rng.integers(0, 4, rng.integers(2, 6, 2))
        grid = g.tolist()
        assert run_grid_code("rot90", grid) == np.rot90(g, -1).tolist() and run_grid_code("transpose", grid) == g.T.tolist()
        assert run_grid_code("tile", grid) == np.tile(g, (2, 2)).tolist()
        assert run_grid_code("scale2", grid) == g.repeat(2, 0).repeat(2, 1).tolist() and run_grid_code("flip_v | flip_h", grid) == run_grid_code("rot180", grid)
        down = np.array(run_grid_code("gravity_down", grid))
        assert all(sorted(a) == sorted(b) and (np.diff((b != 0).astype(int)) >= 0).all() for a, b in zip(g.T, down.T, strict=True))
        for code in ("gravity_down", "sort_rows", "keep_largest", "fill_majority"): assert run_grid_code(f"{code} | {code}", grid) == run_grid_code(code, grid)


def test_the_published_puzzles():
    if found_in(known_file("adas/arc_small.jsonl")) is None: pytest.skip("adas/arc_small.jsonl is not on this machine")
    puzzles = arc_puzzles()
    assert len(puzzles) == 80 and all(len(g) <= 5 for p in puzzles for g in p.pairs[0])
    val, test = grid_split(1, 20, 60, "arc")
    assert len({t.id for t in val.tasks} | {t.id for t in test.tasks}) == 80 and val.domain == "arc"
    with pytest.raises(ParameterError, match="there are 80"): grid_split(0, 30, 60, "arc")


def test_files_of_puzzles_that_cannot_be_read(tmp_path):
    good = {"task_id": "a", "train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1]], "output": [[2]]}]}
    for bad, words in (({**good, "train": []}, "no pairs"), ({**good, "test": []}, "line 2"), ("{", "line 2")):
        (tmp_path / "p.jsonl").write_text(json.dumps(good) + "\n" + (bad if isinstance(bad, str) else json.dumps(bad)))
        with pytest.raises(DataCorrupt, match=words): arc_puzzles(tmp_path / "p.jsonl")


# --- other domains ---------------------------------------------------------------------------------------------------------

def test_strings_and_word_problems_have_right_answers_and_tools_that_know_less():
    for s in range(25):
        words, strings = make_word_problem(s), make_string_task(s)
        assert words.answer >= 0 and words.info == {} and words == make_word_problem(s)
        assert set(strings.info) == {"pairs", "question"} and len(strings.info["pairs"]) == 3 and strings == make_string_task(s)
    space: dict = {}
    exec(word_problems(1).tools, space)
    assert space["answer"]({}, "3 + 4 = 8\n8 * 2 = 16") == 16 and space["check"]({}, "3 + 4 = 8")[2] == [0] and space["check"]({}, "3 + 4 = 9")[2] == []
    assert space["check"]({}, "3 + 4 = 7\n8 * 2 = 16")[2] == [1] and space["check"]({}, "")[2] == [0] and space["answer"]({}, "seven") == ""


def test_own_files_of_questions(tmp_path, box):
    (tmp_path / "q.tsv").write_text("2 and 2?\t4\nA thousand?\t1,000\n")
    (tmp_path / "q.jsonl").write_text('{"question": "Who?", "answer": "Ada"}\n')
    numbers, names = tasks_from_file(tmp_path / "q.tsv"), tasks_from_file(tmp_path / "q.jsonl", "people")
    assert [t.answer for t in numbers.tasks] == [4, 1000] and names.domain == "people"
    parrot = FunctionLM(lambda prompt, rng: json.dumps({"code": " ada " if "Who" in prompt else "4"}), name="parrot")
    assert run_agent(CHAIN_OF_THOUGHT, numbers, parrot, sandbox=box).scores.ravel().tolist() == [1, 0] and run_agent(CHAIN_OF_THOUGHT, names, parrot, sandbox=box).accuracy == 1
    with pytest.raises(DataMissing): tasks_from_file(tmp_path / "none.tsv")
    with pytest.raises(ParameterError, match=r"\.csv"): (tmp_path / "q.csv").write_text(""), tasks_from_file(tmp_path / "q.csv")
    (tmp_path / "bad.tsv").write_text("no tab\n")
    with pytest.raises(DataCorrupt, match="line 1"): tasks_from_file(tmp_path / "bad.tsv")


# --- agent programs --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("code, words", [
    ("x = 1", "no function"), (CHAIN_OF_THOUGHT + "\n\ndef other():\n    pass", "'forward', 'other'"), ("def forward(self, taskInfo)\n    pass", "SyntaxError in line 1"),
    ("def forward(self, taskInfo):\n    import os\n    return 1", "imports 'os'.*allowed: math"), ("def solve(self, taskInfo): pass", "called 'forward'"),
    ("def forward(self): pass", "must take 2")])
def test_programs_that_are_no_agents(code, words, box):
    with pytest.raises(ProgramError, match=words): run_agent(code, VAL, SOLVER, sandbox=box)


def test_task_sets_are_checked():
    tools = "def check(task, code): pass\ndef answer(task, code): pass"
    with pytest.raises(ParameterError, match="is empty"): TaskSet("x", [], tools, "")
    with pytest.raises(ParameterError, match="more than once"): TaskSet("x", [AgentTask("a", "t", 1), AgentTask("a", "u", 2)], tools, "")
    with pytest.raises(ParameterError, match="do not define check"): TaskSet("x", [AgentTask("a", "t", 1)], "def answer(task, code): pass", "")
    with pytest.raises(ParameterError, match="n_repeat=0"): run_agent(CHAIN_OF_THOUGHT, VAL, SOLVER, repeats=0)
    with pytest.raises(ParameterError, match="cap=0"): run_agent(CHAIN_OF_THOUGHT, VAL, SOLVER, cap=0)


def test_requests_go_to_prompts_and_back():
    request = {"fields": ["thinking", "code"], "role": "an expert", "instruction": "Do it.\nWell.",
               "inputs": [["task", "User", "a\n\nb", -1], ["code", "Agent 1", "x | y", 0], ["code", "B", "z", 2]]}
    back = read_request(request_prompt(request))
    assert (back.role, back.instruction, back.fields) == ("an expert", "Do it.\nWell.", ("thinking", "code"))
    assert back.inputs == (("task", "User", "a\n\nb"), ("code", "Agent 1", "x | y"), ("code", "B", "z")) and back.last("code") == "z" and back.last("none") == ""
    with pytest.raises(ParameterError, match="does not say"): read_request("hello")
    parser = JSONParser()
    assert read_reply("```json\n{'code': [1, 2], 'extra': 1}\n```", ["thinking", "code"], parser) == {"thinking": "", "code": "[1, 2]"}
    assert read_reply("I do not know", ["code"], parser) == {"code": ""} and parser.unread == 1


def test_calls_are_counted_here_and_a_call_beyond_the_cap_is_worth_nothing(box):
    many = agent('codes = [ask_model([taskInfo], "go", i)[1] for i in range(6)]\nreturn self.answer(codes[0])')
    fine, over = run_agent(many, VAL, SOLVER, cap=6, sandbox=box), run_agent(many, VAL, SOLVER, cap=5, sandbox=box)
    assert (fine.calls == 6).all() and not fine.capped.any() and not fine.errors
    assert over.accuracy == 0 and over.capped.any() and over.calls.max() == 5 and "CallCap" in over.error and over.broken
    hiding = agent('code = ""\nfor i in range(9):\n    try:\n        code = ask_model([taskInfo], "go", i)[1]\n    except Exception:\n        pass\nreturn [[1]]')
    assert run_agent(hiding, VAL, SOLVER, cap=5, sandbox=box, probe=0).capped.all()
    counting = run_agent(agent('n = 0\nwhile self.calls_left:\n    n += 1\n    ask_model([taskInfo], "go", n)\nreturn n'), VAL, SOLVER, cap=4, sandbox=box)
    assert set(counting.answers.values()) == {4} and not counting.capped.any()


def test_errors_of_some_tasks_cost_these_tasks_and_errors_of_the_first_ones_end_the_run(box):
    fourth = f'if "{VAL.tasks[4].info["question"]}" in taskInfo.content:\n    return undefined_name\nreturn self.answer(ask_model([taskInfo], "go")[1])'
    some = run_agent(agent(fourth), VAL, SOLVER, sandbox=box)
    assert list(some.errors) == [(4, 0)] and "NameError" in some.error and "line 4 of forward" in some.error and not some.broken
    bad = run_agent(agent('ask_model([taskInfo], "go")\nreturn 1 / 0'), VAL, SOLVER, repeats=3, sandbox=box)
    assert bad.broken and bad.calls.sum() == 3 and "ZeroDivisionError" in bad.error
    assert run_agent(agent('a, b, c = ask_model([taskInfo], "go")'), VAL, SOLVER, sandbox=box).error.startswith("ValueError: not enough values")


def test_programs_cannot_reach_files_answers_or_other_processes(box, tmp_path):
    (tmp_path / "secret").write_text("x")
    for body in (f'return open("{tmp_path / "secret"}").read()', 'return __import__("socket").create_connection(("1.1.1.1", 53), 1)', "return exchange.__globals__['desk']"):
        assert run_agent(agent(body), VAL, SOLVER, sandbox=box).errors
    assert all(set(t.info) == {"pairs", "question"} for t in VAL.tasks)
    endless = run_agent("def forward(self, taskInfo):\n    while True:\n        pass", VAL.take([0, 1]), SOLVER, sandbox=box, seconds=0.1, probe=0)
    assert len(endless.errors) == 2 and "TimeIsUp" in endless.error
    assert run_agent(CHAIN_OF_THOUGHT, VAL, SOLVER, sandbox=box).errors == {}            # and the sandbox still works


@pytest.mark.parametrize("returned, right", [("content(taskInfo)", 0), ("json_text", 1), ("Info('answer', 'x', solution, 0)", 1), ("solution", 1), ("None", 0), ("{1: 2}", 0),
                                             ("float('nan')", 0), ("''", 0), ("'[[2 + 2, 3]]'", 0)])
def test_answers_may_be_infos_texts_or_lists_and_are_never_evaluated(returned, right, box):
    puzzle = GridPuzzle("p", (([[1, 2]], [[2, 1]]),), [[3, 4]], [[4, 3]])
    body = f'import json\nsolution = [[4, 3]]\njson_text = json.dumps(solution)\nreturn {returned}'
    assert run_agent(agent(body), grid_tasks([puzzle]), SOLVER, sandbox=box).accuracy == right


def test_python_functions_run_in_the_sandbox_and_are_checked(box):
    puzzle = GridPuzzle("p", (([[1, 2]], [[2, 1]]), ([[5, 6]], [[6, 5]])), [[3, 4]], [[4, 3]])
    writer = FunctionLM(lambda prompt, rng: json.dumps({"code": "def transform(grid):\n    return [row[::-1] for row in grid]"}), name="writer")
    run = run_agent(agent('code = ask_model([taskInfo], "go")[1]\nassert self.check(code)[1] == [0, 1]\nreturn self.answer(code)'), grid_tasks([puzzle]), writer, sandbox=box)
    assert run.accuracy == 1 and not run.errors


def test_runs_repeat_and_repeats_differ(box):
    a, b = (run_agent(AGENTS["Self-Consistency"], VAL, SOLVER, repeats=3, sandbox=box, transcripts=True) for _ in range(2))
    assert np.array_equal(a.scores, b.scores) and a.transcripts == b.transcripts and all(len(t) == 5 for t in a.transcripts.values())
    replies = {tuple(r for _, r in t) for (task, _), t in a.transcripts.items() if task == 0}
    assert len(replies) == 3 and len({r for _, r in a.transcripts[0, 0]}) > 1
    assert run_agent(AGENTS["Self-Consistency"], VAL, SOLVER, repeats=3, sandbox=box, seed=1, transcripts=True).transcripts != a.transcripts
    drifting = agent('LLMAgentBase.n = getattr(LLMAgentBase, "n", 0) + 1\nfor i in range(3): ask_model([taskInfo], f"go {LLMAgentBase.n}", i)\nreturn 1')
    assert "the same each time" in run_agent(drifting, VAL, SOLVER, sandbox=box).error
    lucky = agent('import random\nfor i in range(3): ask_model([taskInfo], f"go {random.random()}", i)\nreturn 1')
    assert not run_agent(lucky, VAL, SOLVER, sandbox=box).errors


def test_a_budget_that_ends_in_the_middle_keeps_what_was_done(box):
    meter = Metered(SOLVER, calls=8)
    with pytest.raises(BudgetExceeded) as caught: run_agent(AGENTS["Self-Consistency"], VAL, meter, sandbox=box)
    assert meter.calls == 8 and caught.value.run.calls.sum() >= 8 and len(caught.value.run.scores) == len(VAL)
    meter = Metered(SOLVER, calls=120)
    with pytest.raises(BudgetExceeded) as caught: search_agents(VAL, meter, evaluations=30, sandbox=box, progress=False)
    assert len(caught.value.trials) >= 1 and len(caught.value.search.archive) >= 1


# --- the solver ------------------------------------------------------------------------------------------------------------

def test_the_solver_is_right_sometimes_and_more_often_when_it_is_asked_well(box):
    val, _ = grid_split(5, 30, 1)
    once = run_agent(CHAIN_OF_THOUGHT, val, SOLVER, repeats=6, sandbox=box)
    better = run_agent(CHAIN_OF_THOUGHT, val, StochasticSolver(drafts=30), repeats=6, sandbox=box)
    mending = run_agent(AGENTS["Self-Refine"], val, SOLVER, repeats=6, sandbox=box)
    assert 0.03 < once.accuracy < 0.4 and better.accuracy > once.accuracy + 0.1 and mending.accuracy > once.accuracy
    slips = run_agent(CHAIN_OF_THOUGHT, word_problems(40), StochasticSolver(slip=0), sandbox=box)
    assert slips.accuracy == 1 and run_agent(CHAIN_OF_THOUGHT, word_problems(40), SOLVER, sandbox=box).accuracy < 1


# --- designed by hand, and edited ------------------------------------------------------------------------------------------

def test_the_seven_run_everywhere_within_the_cap(box):
    for tasks in (VAL, string_tasks(3), word_problems(3)):
        for p in designed_agents():
            run = run_agent(p.code, tasks, SOLVER, cap=7, sandbox=box)
            assert not run.errors and read_agent(p.code)[0] == p.name and run.calls.max() <= 7
    with pytest.raises(ParameterError, match="Did you mean 'LLM Debate'"): designed_agents("LLM debat")


@pytest.mark.parametrize("name", AGENTS)
def test_edits_and_crossings_give_agents_that_run(name, box):
    rng = np.random.default_rng(len(name))
    made = []
    for kind in EDITS:
        try: made.append(edit_agent(AGENTS[name], rng, [kind])[0])
        except ProgramError: continue
    for other in AGENTS.values():
        try: made.append(cross_agents(AGENTS[name], other))
        except ProgramError: continue
    assert len(made) >= 8
    for code in made:
        assert not undefined(code)
        run = run_agent(code, VAL.take([0, 1]), SOLVER, cap=80, sandbox=box)
        assert not run.errors, (code, run.error)
    with pytest.raises(ParameterError, match="kind='vot'"): edit_agent(AGENTS[name], rng, ["vot"])


def test_programs_that_cannot_be_taken_apart_say_so():
    with pytest.raises(ProgramError, match="taken apart"): Anatomy("def forward(self, taskInfo):\n    return 1")


@pytest.mark.parametrize("damage, error", [
    (lambda c: c.replace("[taskInfo], instruction", "[taskInfos], instruction"), "NameError: name 'taskInfos' is not defined (line 5 of forward)"),
    (lambda c: c.replace("return majority", "majority"), "all answers are wrong, the mean accuracy is 0.000"),
    (lambda c: c.replace("range(5)", "range(90)"), "CallCap: more than 20 calls for one task"),
    (lambda c: c.replace("thinking, code = agent", "code, thinking = agent"), "all answers are wrong, the mean accuracy is 0.000")])
def test_usual_mistakes_are_repaired_from_their_errors(damage, error, box):
    broken = damage(AGENTS["Self-Consistency"])
    assert broken != AGENTS["Self-Consistency"]
    code = broken
    for _ in range(2): code = repair_agent(code, error, np.random.default_rng(0))[0] if run_agent(code, VAL, SOLVER, sandbox=box).broken or code is broken else code
    run = run_agent(code, VAL, SOLVER, sandbox=box)
    assert not run.errors and any(a not in ("", None) for a in run.answers.values())


def test_the_composer_speaks_the_protocol_of_a_model():
    entries = [{"thought": "", "name": p.name, "code": p.code, "fitness": f"95% Bootstrap Confidence Interval: (1%, 9%), Median: {10 * i}.0%", "generation": 0}
               for i, p in enumerate(designed_agents())]
    lm = composer_lm()
    for s in range(12):
        made = json.loads(lm.answer(propose_prompt("Puzzles.", entries), seed=s))
        assert set(made["parents"]) <= {e["name"] for e in entries} and made["parents"] and read_agent(made["code"])[0]
        for turn in (1, 2): assert read_agent(json.loads(lm.answer(reflect_prompt("Puzzles.", entries, made, turn), seed=s))["code"])
        assert read_agent(json.loads(lm.answer(debug_prompt("Puzzles.", made, "NameError: name 'x' is not defined"), seed=s))["code"])
    copy = {"thought": "", "name": "copy", "code": entries[0]["code"]}
    assert json.loads(lm.answer(reflect_prompt("", entries, copy, 1), seed=0))["code"] != copy["code"]                   # a copy is not new
    assert json.loads(composer_lm(novelty=0).answer(reflect_prompt("", entries, copy, 1), seed=0))["code"] == copy["code"]
    blind = [json.loads(composer_lm(random=True).answer(propose_prompt("", entries), seed=s)) for s in range(5)]
    assert all(not b["parents"] for b in blind)
    rng = np.random.default_rng(0)
    drawn = [ProgramComposer().parent(entries, rng)["name"] for _ in range(600)]
    assert drawn.count(entries[-1]["name"]) > 600 / 7                                                                    # the fittest is drawn more often than by chance
    with pytest.raises(ParameterError, match="no step"): lm.answer("hello")
    with pytest.raises(ParameterError, match="mistakes=2"): composer_lm(mistakes=2)


# --- fitness and search ----------------------------------------------------------------------------------------------------

def test_the_fitness_sentence_is_the_percentile_bootstrap():
    rng = np.random.default_rng(1)
    scores = (rng.random((20, 5)) < 0.4).astype(float)
    f = bootstrap_fitness(scores)
    means = scores.ravel()[rng.integers(0, 100, (20_000, 100))].mean(1)
    assert np.allclose((f.low, f.median, f.high), np.quantile(means, (0.025, 0.5, 0.975)), atol=0.011)
    assert str(f).startswith("95% Bootstrap Confidence Interval: (") and str(f).endswith("%")
    same = np.repeat(rng.random(20) < 0.5, 5).reshape(20, 5)
    assert np.ptp(bootstrap_fitness(same, clusters=True)[:2]) > 1.8 * np.ptp(bootstrap_fitness(same)[:2])                # five equal repeats are one observation
    for wrong in ([], [2.0], [float("nan")]):
        with pytest.raises(ParameterError, match="scores"): bootstrap_fitness(wrong)


def test_a_search_keeps_what_works_repairs_what_does_not_and_never_gets_worse(box):
    found = search_agents(VAL, SOLVER, composer_lm(mistakes=0.6), designed_agents(), evaluations=12, n_repeat=2, sandbox=box, progress=False)
    assert len(found.trials) == 19 and (np.diff(found.curve) >= 0).all() and len(found.curve) == 13
    assert all(p.fitness >= 0.01 for p in found.archive) and all(q < i for i, p in enumerate(found.archive) for q in p.parents)
    made = [p for p in found.archive if p.generation > 0]
    assert made and all(a.generation < b.generation for a, b in pairwise(made)) and all("Median" in p.info["fitness"] for p in found.archive)
    assert any(p.info["attempts"] > 1 for p in made) or found.search.rejected
    assert all(r["attempts"] <= 3 for r in found.search.rejected)
    page = agent_page(found.best, TEST.take([0]), SOLVER, sandbox=box)
    assert found.best.name in page._repr_html_() and "call 1" in page.text()
    judged = found.judge(TEST, 3)
    assert len(judged) == 3 and (judged.low <= judged.test).all() and (judged.test <= judged.high).all()
    with pytest.raises(ParameterError, match="shares 6"): found.judge(VAL)


def test_a_search_resumes_and_its_archive_belongs_to_its_domain(tmp_path, box):
    kw = dict(initial=designed_agents("Chain-of-Thought", "Self-Refine"), n_repeat=2, sandbox=box, progress=False, seed=3)
    whole = search_agents(VAL, SOLVER, evaluations=6, **kw)
    search_agents(VAL, SOLVER, evaluations=3, checkpoint=tmp_path / "c", **kw)
    again = search_agents(VAL, SOLVER, evaluations=6, checkpoint=tmp_path / "c", **kw)
    assert [p.code for p in again.archive] == [p.code for p in whole.archive] and [p.fitness for p in again.archive] == [p.fitness for p in whole.archive]
    file = again.archive.save(tmp_path / "archive.json")
    assert [p.name for p in ProgramArchive.load(file, "grids")] == [p.name for p in again.archive]
    with pytest.raises(StateError, match="'grids', not 'strings'"): ProgramArchive.load(file, "strings")


def scripted(*replies):
    "A meta agent that says these things in turn, then repeats the last one."
    left = list(replies)
    return FunctionLM(lambda prompt, rng: left.pop(0) if len(left) > 1 else left[0], name="scripted")


def proposal(code, name="new"): return json.dumps({"thought": "because", "name": name, "code": code})


def test_replies_that_are_no_json_are_asked_for_three_times(box):
    problem = AgentProblem(VAL, SOLVER, sandbox=box)
    good = proposal(AGENTS["Self-Refine"])
    search = MetaAgentSearch(problem, meta_lm=scripted("what?", '{"name": "x"}', good), reflect=0)
    assert search.ask(1) == [AGENTS["Self-Refine"]] and search.parser.unread == 2
    for bad in ("what?", '{"thought": 1, "name": 2, "code": 3}', '{"thought": "", "name": "", "code": " "}'):
        with pytest.raises(StateError, match="3 attempts"): MetaAgentSearch(problem, meta_lm=scripted(bad)).ask(1)


def test_failures_go_back_with_their_error_and_are_given_up_after_three_attempts(box):
    seen = []
    def meta(prompt, rng):
        seen.append(prompt)
        return proposal("def forward(self, taskInfo):\n    return nothing_here")
    problem = AgentProblem(VAL, SOLVER, sandbox=box)
    search = MetaAgentSearch(problem, meta_lm=FunctionLM(meta, name="stubborn"), reflect=2)
    optimize(problem, search, 3, 1, progress=False)
    assert len(search.archive) == 0 and len(search.rejected) == 1 and search.rejected[0]["attempts"] == 3 and "NameError" in search.rejected[0]["error"]
    assert ["<step>" + s + "</step>" in p for s, p in zip(("propose", "reflect 1", "reflect 2", "debug", "debug"), seen, strict=True)] == [True] * 5 and "nothing_here" in seen[3]
    zero = agent('return "always wrong"')
    search = MetaAgentSearch(problem, meta_lm=scripted(proposal(zero), proposal("no code at all"), proposal(AGENTS["Self-Refine"])), reflect=0)
    optimize(problem, search, 3, 1, progress=False)
    assert len(search.archive) == 1 and search.archive[0].info["attempts"] == 3 and not search.rejected
    once = MetaAgentSearch(problem, meta_lm=scripted(proposal(zero)), reflect=0, debug_max=1)
    optimize(problem, once, 2, 1, progress=False)
    assert len(once.rejected) == 2 and "all answers are wrong" in once.rejected[0]["error"]


def test_what_is_no_model_and_no_task_set_is_refused(box):
    with pytest.raises(ParameterError, match="lm is a str"): run_agent(CHAIN_OF_THOUGHT, VAL, "a model", sandbox=box)
    with pytest.raises(ParameterError, match="task_set is a list"): run_agent(CHAIN_OF_THOUGHT, list(VAL.tasks), SOLVER, sandbox=box)


def test_a_search_in_which_nothing_worked_says_so(box):
    found = search_agents(VAL, SOLVER, scripted(proposal(agent('return "always wrong"'))), [Program(agent('return "never"'), "never")], 2, sandbox=box, progress=False)
    with pytest.raises(StateError, match="none of the 3 agents"): _ = found.best


def test_what_the_meta_agent_is_shown(box):
    problem = AgentProblem(VAL, SOLVER, sandbox=box)
    for shown, count in (("all", 7), ("best", 1), ("none", 0)):
        search = MetaAgentSearch(problem, shown=shown)
        codes = list(AGENTS.values())
        search.tell(codes, problem.evaluate(codes))
        assert len(search.entries()) == min(count, len(search.archive)) and [p.generation for p in search.archive] == [0] * len(search.archive)
        assert pickle.loads(pickle.dumps(search)).ask(2) == search.ask(2)
    with pytest.raises(ParameterError, match="shown='some'"): MetaAgentSearch(problem, shown="some")
    with pytest.raises(ParameterError, match="reflect=3"): MetaAgentSearch(problem, reflect=3)
    with pytest.raises(ParameterError, match="debug_max=0"): MetaAgentSearch(problem, debug_max=0)
    with pytest.raises(ParameterError, match="must be an LM"): MetaAgentSearch(problem, meta_lm="gpt")
    with pytest.raises(ParameterError, match="n_repeat=0"): AgentProblem(VAL, SOLVER, n_repeat=0)
    problem.space = Texts(examples=["hello"])
    with pytest.raises(ParameterError, match="no agent programs"): MetaAgentSearch(problem)


def test_transfer_runs_agents_unchanged(box):
    moved = transfer(designed_agents("Chain-of-Thought", "Self-Refine"), {"words": (word_problems(5), SOLVER), "weak": (VAL, StochasticSolver(drafts=1))}, n_repeat=2, sandbox=box)
    assert len(moved) == 4 and (moved.low <= moved.accuracy).all() and moved.run.iloc[0].scores.shape == (5, 2) and run_score(moved.run.iloc[0]).n == 10
    with pytest.raises(ParameterError, match="programs is empty"): transfer([], {"words": (word_problems(5), SOLVER)})
    with pytest.raises(ParameterError, match="places is empty"): transfer(designed_agents(), {})
