"""Interactive coding: rewards, environments in SQL, shell, Python and flags, four strategies, recorded and programmed writers."""
import itertools

import gymnasium
import numpy as np
import pytest

from designloop.agents.code_sketches import BashSketch, SketchSQL, command_candidates, discovered, query_candidates
from designloop.agents.coders import PlanSolve, ReAct, RecordedLM, SingleTurn, TryAgain, clean_code, cut_output, requested
from designloop.core.episodes import Agent, Episode, rollout
from designloop.core.errors import DataMissing, ParameterError
from designloop.core.sandbox import Sandbox, SandboxError, available_backends
from designloop.lm.protocol import FunctionLM
from designloop.tasks.intercode import SOLVED, CodingTask, PythonEnv, SQLEnv, mysql_answer, schema_text, score_episodes, sql_reward
from designloop.tasks.intercode_bash import PRELOAD, ROOTS, BashEnv, CTFEnv, bash_reward, check_tree, text_similarity, tree_changes
from designloop.tasks.intercode_worlds import BASH_TEMPLATES, SQL_TEMPLATES, make_bash_world, make_ctf_world, make_sql_world, mbpp, nl2bash, python_tasks, recorded_episodes, spider

ZOO = {"zoo": {"animals": {"columns": [["id", "INTEGER"], ["name", "TEXT"], ["legs", "INTEGER"], ["born", "TEXT"]], "primary_key": ["id"],
                           "rows": [[1, "ant", 6, "2020-01-05"], [2, "Bat", 2, "2021-03-05"], [3, "cat", 4, None]]}}}
ASK = CodingTask("z1", "Which animals have more than two legs, most legs first?", "SELECT name FROM animals WHERE legs > 2 ORDER BY legs DESC", "zoo")
BACKENDS = [b for b, reason in available_backends().items() if not reason]
contained = pytest.mark.skipif(set(BACKENDS) == {"restricted"}, reason=f"no sandbox here contains untrusted code: {available_backends()}")


class Typist(Agent):
    "Types what it was given."
    name = "typist"
    def __init__(self, *actions): self.actions = actions
    def reset(self, seed=0): super().reset(seed); self.left = list(self.actions)
    def act(self, observation): return self.left.pop(0)


# --- rewards ---------------------------------------------------------------------------------------------------------------

def reference_reward(agent, gold):
    "The reward written a second time, from its definition: pairs that agree in order minus pairs that do not, over the geometric mean of untied pairs."
    a, g = [str(tuple(r)) for r in agent], [str(tuple(r)) for r in gold]
    keys = set(a) | set(g)
    if not keys: return 1.0
    shared = {k: min(a.count(k), g.count(k)) for k in keys}
    r = sum(shared.values()) / sum(max(a.count(k), g.count(k)) for k in keys)
    def keep(rows):
        left, out = dict(shared), []
        for row in rows:
            if left[row]: left[row] -= 1; out.append(row)
        return out
    x, y = keep(a), keep(g)
    sign = lambda p, q: (p > q) - (p < q)
    pairs = list(itertools.combinations(range(len(x)), 2))
    s = sum(sign(x[i], x[j]) * sign(y[i], y[j]) for i, j in pairs)
    untied = np.sqrt(float(sum(x[i] != x[j] for i, j in pairs)) * sum(y[i] != y[j] for i, j in pairs))
    return round(s / untied * r, 2) if untied else r


def test_sql_reward_is_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, g = ([(int(v),) for v in rng.integers(0, 4, rng.integers(0, 6))] for _ in range(2))
        assert sql_reward(a, g) == pytest.approx(reference_reward(a, g), abs=0.011), (a, g)
        assert sql_reward(g, g) in (1.0, pytest.approx(1.0)) and -1 <= sql_reward(a, g) <= 1
        assert sql_reward(a, g, ignore_order=True) == pytest.approx(sql_reward(g, a, ignore_order=True)) and sql_reward(a, g) <= sql_reward(a, g, ignore_order=True) + 0.006


def test_sql_reward_at_the_edges():
    assert sql_reward([], []) == 1 and sql_reward(None, []) == 0 and sql_reward([], [(1,)]) == 0
    assert sql_reward([(2,), (1,)], [(1,), (2,)]) == -1 and sql_reward([(1,), (1,)], [(1,), (1,)]) == 1 and sql_reward([("1",)], [(1,)]) == 0


def test_bash_reward_parts():
    before = {f"/testbed/{n}": ["0o644", n] for n in "abc"}
    without_a = {k: v for k, v in before.items() if k != "/testbed/a"}
    assert bash_reward(before, before, before, "", "")[0] == 1
    assert bash_reward(before, without_a, without_a, "x y", "x y") == (1.0, {"changes": 0.33, "contents": 0.33, "output": 0.33})
    assert bash_reward(before, before, without_a, "", "")[1]["changes"] == 0.05      # one wrong file: 0.33 (1 - erf(1))
    changed = {**before, "/testbed/a": ["0o644", "new"]}
    other = {**before, "/testbed/a": ["0o644", "different"]}
    assert bash_reward(before, other, changed, "", "")[1] == {"changes": 0.33, "contents": 0.0, "output": 0.33}
    assert tree_changes(before, {**without_a, "/testbed/d": ["0o644", "d"]}) == {"/testbed/a": "D", "/testbed/d": "A"}
    assert text_similarity("a b", "a b") == 1 and text_similarity("one two", "three four") == 0 and 0 < text_similarity("one two",
        "two three") < 1 and text_similarity("!", "?") == 0


# --- SQL --------------------------------------------------------------------------------------------------------------------

def test_sql_episode_under_both_protocols():
    actions = ["SELECT name FROM beasts", "SHOW TABLES", "DESCRIBE animals;", ASK.gold, "submit"]
    quiet = rollout(Typist(*actions), SQLEnv(ZOO, [ASK]))
    assert [s.reward for s in quiet] == [0, 0, 0, 0, 1] and quiet.ended == "terminated" and "Reward" not in str(quiet.frame)
    told = rollout(Typist(*actions), SQLEnv(ZOO, [ASK], "oracle"))
    assert [s.reward for s in told] == [0, 0, 0, 1] and told.steps[0].outcome.endswith("Reward: 0") and not told.steps[0].info["action_executed"]
    row = score_episodes([told]).iloc[0]
    assert row.success and row.turns == 4 and row.errors == 0.25 and row.task == "z1"
    late = rollout(Typist(*["SHOW TABLES"] * 2, ASK.gold), SQLEnv(ZOO, [ASK], max_turns=3))
    assert late.ended == "truncated" and late.steps[-1].reward == 1, "what stands when the turns are over is submitted"
    gone = rollout(Typist(ASK.gold, "skip"), SQLEnv(ZOO, [ASK]))
    assert gone.total_reward == 0 and gone.ended == "terminated"


def test_mysql_words():
    env = SQLEnv(ZOO, [ASK])
    env.reset(options={"task": "z1"})
    asked = lambda q: mysql_answer(env.connection("zoo"), q)
    assert asked("SHOW TABLES;").rows == [("animals",)] and asked("USE zoo").ok and asked("DESC `animals`").rows[0] == ("id", "integer", "YES", "PRI")
    assert asked("SHOW COLUMNS FROM animals").rows == asked("describe ANIMALS").rows and "does not exist" in asked("DESCRIBE cows").error
    assert asked("SELECT name FROM animals WHERE name = 'bat'").rows == [("Bat",)]
    assert asked("SELECT CONCAT(name, '-', legs), YEAR(born), IF(legs > 2, 'many', 'few') FROM animals WHERE id < 3").rows == [("ant-6", 2020, "many"), ("Bat-2", 2021, "few")]
    assert asked("SELECT id FROM animals WHERE name REGEXP '^.a'").rows == [(2,), (3,)] and asked("SELECT CURDATE(), RAND()").ok
    for query in ("DROP TABLE animals", "INSERT INTO animals VALUES (9, 'x', 1, '')", "SELECT 1; SELECT 2",
        "ATTACH 'x' AS y"): assert asked(query).error.startswith("Refused"), query
    assert len(asked("SELECT * FROM animals").rows) == 3


def test_sql_time_out_is_an_error_not_a_hang():
    from designloop.core.sandbox import Limits
    env = SQLEnv(ZOO, [ASK], limits=Limits(seconds=0.2))
    env.reset(options="z1")
    text, reward, *_, info = env.step("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
    assert "TimeLimit" in text and info["killed"] == "time" and not info["action_executed"] and info["graded"] == 0


def test_corrupt_and_empty_gold_are_marked():
    env = SQLEnv(ZOO, [CodingTask("bad", "?", "SELECT legs FROM nowhere", "zoo"), CodingTask("none", "??", "SELECT id FROM animals WHERE legs > 99", "zoo")])
    assert "nowhere" in env.reset(options="bad")[1]["corrupt_gold"] and env.step("SELECT 1")[4]["graded"] == 0
    assert env.reset(options="none")[1]["empty_gold"] and env.step("SELECT id FROM animals WHERE 0")[4]["graded"] == 1


@pytest.mark.parametrize("call, says", [
    (lambda: SQLEnv(ZOO, []), "one or more tasks"), (lambda: SQLEnv(ZOO, [ASK, ASK]), "different ids"), (lambda: SQLEnv({}, [ASK]), "database 'zoo' is not known"),
    (lambda: SQLEnv(ZOO, [ASK], "orakel"), "Did you mean 'oracle'"), (lambda: SQLEnv(ZOO, [ASK], max_turns=0), "max_turns=0"), (lambda: SQLEnv(ZOO,
        [ASK]).reset(options="z2"), "Did you mean 'z1'"),
    (lambda: SQLEnv(ZOO, [ASK]).step("SELECT 1"), "before reset"), (lambda: _started().step(3), "must be a text"), (lambda: _started().step("x" * 10_001), "at most 10000"),
    (lambda: check_tree([{"path": "/etc/passwd", "type": "file"}]), "outside the roots"), (lambda: check_tree([{"path": "/testbed/../etc/x", "type": "file"}]),
        "outside the roots"),
    (lambda: check_tree([{"path": "relative", "type": "dir"}]), "outside the roots"), (lambda: check_tree([{"path": "/testbed/x", "type": "socket"}]), "type='socket'"),
    (lambda: make_sql_world(-1), "seed=-1"), (lambda: make_sql_world(0, 0), "n_tasks=0"), (lambda: make_bash_world(0, -3), "n_tasks=-3"), (lambda: SingleTurn("gpt"),
        "lm is a str"),
    (lambda: PlanSolve(SketchSQL(), refine=-1), "refine=-1"), (lambda: ReAct(SketchSQL(), most_chars=0), "most_chars=0"), (lambda: RecordedLM({}, style="xml"), "style='xml'"),
    (lambda: requested([{"role": "user", "content": "hello"}]), "no request"), (lambda: PythonEnv([ASK], Sandbox(trusted=True)), "needs meta"),
])
def test_bad_input_gets_its_sentence(call, says):
    with pytest.raises(ParameterError, match=says): call()


def _started():
    env = SQLEnv(ZOO, [ASK])
    env.reset(options="z1")
    return env


def test_environments_keep_the_contract():
    env = _started()
    assert isinstance(env, gymnasium.Env) and isinstance(env.observation_space, gymnasium.spaces.Text)
    a, b = SQLEnv(ZOO, make_named(5)), SQLEnv(ZOO, make_named(5))
    assert [a.reset(seed=s)[1]["task"] for s in range(8)] == [b.reset(seed=s)[1]["task"] for s in range(8)] and len({a.reset(seed=s)[1]["task"] for s in range(20)}) > 1
    assert "animals(id, name, legs, born)" in SQLEnv(ZOO, [ASK], schema_given=True).reset(options="z1")[0] == f"{ASK.query}\n\nTables:\n{schema_text(ZOO['zoo'])}"


def make_named(n): return [CodingTask(f"t{i}", f"q{i}", "SELECT 1", "zoo") for i in range(n)]


# --- worlds -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(4))
def test_made_databases(seed):
    world = make_sql_world(seed, 24)
    assert world.tasks == make_sql_world(seed, 24).tasks and 3 <= len(world.spec) <= 5 and {t.template for t in world.tasks} == set(SQL_TEMPLATES)
    assert all(20 <= len(about["rows"]) <= 200 for about in world.spec.values())
    env = SQLEnv({world.name: world.spec}, world.tasks)
    for t in world.tasks:
        gold = rollout(Typist(t.gold, "submit"), env, options=t.id)
        assert gold.total_reward >= SOLVED and not gold.info["corrupt_gold"], t


def test_made_trees_and_flags():
    world = make_bash_world(1, 15)
    files = [e for e in world.tree if e["type"] == "file"]
    assert world.tasks == make_bash_world(1, 15).tasks and [t.template for t in world.tasks] == list(BASH_TEMPLATES) and 10 <= len(files) <= 40
    assert make_bash_world(2).tree != world.tree and all(1 <= t.template.count("+") + 1 <= 3 for t in make_ctf_world(0).tasks)


# --- shell, Python, flags: in every sandbox that is here -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def boxes():
    made = {}
    def box(backend):
        if backend not in made: made[backend] = Sandbox(backend, roots=ROOTS, preload=PRELOAD, trusted=True)
        return made[backend]
    yield box
    for one in made.values(): one.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gold_commands_get_one_and_leave_no_trace(boxes, backend):
    world = make_bash_world(0)
    env = BashEnv({world.name: world.tree}, world.tasks, boxes(backend))
    for t in world.tasks[::2]:
        episode = rollout(Typist(t.gold, "submit"), env, options=t.id)
        if any(s.info.get("refused") for s in episode): continue       # the weakest backend reads before it runs
        assert episode.steps[-1].reward >= SOLVED and not episode.info["corrupt_gold"], (t, episode.transcript)
    env.step("echo left > ~/left; mkdir -p /elsewhere/more")
    env.reset(options=world.tasks[0].id)
    assert env.step("cat ~/left")[4]["action_executed"] is False
    assert env.manifest() == env.before, "every episode begins with the same tree"


@contained
def test_shell_episode(boxes):
    backend = BACKENDS[0]
    tree = {"small": [{"path": "/testbed", "type": "dir"}, {"path": "/testbed/a.txt", "type": "file", "text": "b\na\n"}, {"path": "/testbed/sub/e.tmp", "type": "file",
        "zeros": 0},
                      {"path": "/testbed/pack.tgz", "type": "targz", "members": ["d", "d/x.txt"]}, {"path": "/testbed/old", "type": "file", "text": "o",
                          "mtime": "2020-05-01T00:00:00", "mode": "600"}]}
    tasks = [CodingTask("t1", "Delete the empty files.", "find /testbed -type f -empty -delete", "small"), CodingTask("bad", "?", "false", "small"),
             CodingTask("two", "Two steps.", ["touch /testbed/new", "ls /testbed"], "small")]
    env = BashEnv(tree, tasks, boxes(backend), "oracle")
    env.reset(options="t1")
    assert env.step("cd /testbed/sub")[0].startswith("\nReward") and env.step("pwd; ls ..")[0].startswith("/testbed/sub\na.txt\nold\npack.tgz\nsub")
    assert not env.step("cd /nowhere")[4]["action_executed"] and env.cwd == "/testbed/sub"
    assert env.step("stat -c '%a %Y' /testbed/old; tar tzf ../pack.tgz")[0].startswith("600 1588291200\nd/\nd/x.txt")
    assert "\ufffd" in env.step("printf '\\xff'")[0]
    text, reward, terminated, *_ = env.step("rm e.tmp")
    assert terminated and reward == 1
    assert env.reset(options="bad")[1]["corrupt_gold"] is not None and env.reset(options="two")[1]["corrupt_gold"] == ""
    env.step("touch /testbed/new")
    assert env.step("ls /testbed")[1] == 1
    with pytest.raises(ParameterError, match="is not known"): BashEnv({}, tasks, boxes(backend))
    with Sandbox(trusted=True) as bare, pytest.raises(ParameterError, match="roots"): BashEnv(tree, tasks, bare)


@contained
def test_commands_cannot_break_out_of_the_quotes(boxes, tmp_path):
    env = BashEnv({"t": [{"path": "/testbed", "type": "dir"}]}, [CodingTask("t", "?", "true", "t")], boxes(BACKENDS[0]))
    env.reset(options="t")
    for action in (f'"; touch {tmp_path}/x; echo "', f"'; touch {tmp_path}/x #", f"$(touch {tmp_path}/x)", f"cd `touch {tmp_path}/x`"): env.step(action)
    assert not list(tmp_path.iterdir())


@contained
def test_flags(boxes):
    world = make_ctf_world(0)
    env = CTFEnv({world.name: world.tree}, world.tasks, boxes(BACKENDS[0]))
    undo = {"base64": "base64 -d", "rot13": "tr A-Za-z N-ZA-Mn-za-m", "gzip": "gzip -dc", "hex": "tr -d '\\n' | sed 's/../\\\\x&/g' | xargs -0 printf '%b'",
        "reverse": "rev", "strings": "strings -n 8"}
    for i, t in enumerate(world.tasks):
        command = f"cat /ctf/secret{i} | " + " | ".join(undo[s] for s in reversed(t.template.split("+")))
        env.reset(options=t.id)
        assert t.gold in env.step(command)[0], (t, command)
        assert env.step(f"submit {t.gold}")[1] == 1
        env.reset(options=t.id)
        assert env.step("submit flag{no}")[1] == 0


@contained
def test_python_functions():
    with Sandbox(preload=[]) as box:
        env = PythonEnv(python_tasks(), box)
        for t in python_tasks(): assert rollout(Typist(t.gold, "submit"), env, options=t.id).total_reward == 1, t
        env.reset(options="python-3")
        assert "Error: ZeroDivisionError" in env.step("print(1); 1 / 0")[0] and env.step("x = 5")[0] == "(no output)" and env.step("print(x)")[0] == "5"
        env.step("def digits(n): return 6")
        assert env.step("submit")[1] == pytest.approx(1 / 3)
        env.reset(options="python-3")
        env.step("class Any:\n    def __eq__(self, other): return True\ndef digits(n): return Any()")
        assert env.step("submit")[1] == 0, "values are compared outside"


# --- strategies -----------------------------------------------------------------------------------------------------------------

def test_reading_code_and_cutting_output():
    assert clean_code("Sure:\n```sql\nSELECT 1\n```\nor\n```\nSELECT 2\n```") == "SELECT 2" and clean_code("Query: SELECT 1") == "SELECT 1" and clean_code("ls -l") == "ls -l"
    assert cut_output("a\nb", 10, 10) == "a\nb" and cut_output("a\nb\nc", None, 2).startswith("a\nb\n… (cut: 3 lines") and cut_output("abcdef", 3, None).startswith("abc\n")


SAID = {ASK.query: ["SELECT name FROM beasts", "SHOW TABLES", f"```sql\n{ASK.gold}\n```"]}


def test_strategies_over_a_recording():
    oracle, quiet = SQLEnv(ZOO, [ASK], "oracle"), SQLEnv(ZOO, [ASK])
    single, again = rollout(SingleTurn(RecordedLM(SAID)), quiet), rollout(TryAgain(RecordedLM(SAID)), oracle)
    planned = rollout(PlanSolve(RecordedLM(SAID)), quiet)
    reacted = rollout(ReAct(RecordedLM({ASK.query: [f"execute[{ASK.gold}]", "submit"]}, style="react")), quiet)
    assert [e.best_reward for e in (single, again, planned, reacted)] == [0, 1, 1, 1] and [len(e) for e in (single, again, planned, reacted)] == [2, 3, 4, 2]
    assert again.cost["calls"] == 3 and planned.cost["calls"] == 4 and planned.steps[1].thought == "recorded action 2"
    assert rollout(SingleTurn(RecordedLM({ASK.query: []})), quiet).steps[0].action == "skip"
    with pytest.raises(ParameterError, match="no recording"): rollout(SingleTurn(RecordedLM({"another": []})), quiet)


def test_what_a_model_is_shown():
    seen = []
    def model(prompt, rng): seen.append(prompt); return "SELECT * FROM animals" if len(seen) < 4 else "Action: submit"
    rollout(ReAct(FunctionLM(model), most_chars=20), SQLEnv(ZOO, [ASK]))
    shown = seen[2][-1]["content"]
    assert "cut" in shown and len(shown) < 100 and "Reward" not in str(seen), "ReAct never sees a reward"
    seen.clear()
    rollout(TryAgain(FunctionLM(lambda p, rng: seen.append(p) or "SELECT * FROM animals"), most_rows=1), SQLEnv(ZOO, [ASK], "oracle", max_turns=3))
    assert seen[1][-1]["content"].endswith("Reward: 0"), "cutting never takes the reward away"
    seen.clear()
    rollout(TryAgain(FunctionLM(lambda p, rng: seen.append(p) or "SELECT 1"), history=2), SQLEnv(ZOO, [ASK], "oracle", max_turns=8))
    assert max(len(p) for p in seen) <= 1 + 2 + 4 + 1 and all(ASK.query in str(p) for p in seen)
    unreadable = rollout(PlanSolve(FunctionLM(lambda p, rng: "I would rather not.")), SQLEnv(ZOO, [ASK]))
    assert unreadable.steps[0].action == "skip" and "could not be read" in unreadable.steps[0].thought
    assert rollout(ReAct(FunctionLM(lambda p, rng: "Action: dance[now]")), SQLEnv(ZOO, [ASK])).steps[0].action == "skip"


def test_refinement_stops_when_the_model_is_content():
    model = FunctionLM(lambda p, rng: "1. look" if "numbered plan" in p[-1]["content"] else "submit" if "reply submit" in p[-1]["content"] else ASK.gold)
    episode = rollout(PlanSolve(model, refine=3), SQLEnv(ZOO, [ASK]))
    assert [s.action for s in episode] == [ASK.gold, "submit"] and episode.total_reward == 1


def test_sketches_discover_and_try():
    world = make_sql_world(0, 24)
    env = SQLEnv({world.name: world.spec}, world.tasks, "oracle")
    episode = rollout(TryAgain(SketchSQL()), env, options=world.tasks[0].id)
    tables = [s.action for s in episode if s.action.startswith("DESCRIBE")]
    assert episode.steps[0].action == "SHOW TABLES" and len(tables) == len(world.spec) and len({s.action for s in episode}) == len(episode), "it never tries the same twice"
    assert all(len(query_candidates(t.query, {k: [c for c, _ in v["columns"]] for k, v in world.spec.items()})) in range(1, 201) for t in world.tasks)
    assert query_candidates("Sing!", {}) == [] and command_candidates("Sing!") == []
    assert discovered([{"role": "user", "content": "Task: x\n\nTables:\na(b, c)"}]) == ({"a": ["b", "c"]}, [])


@pytest.mark.parametrize("seed", [0, 1])
def test_single_turn_is_not_better_than_try_again(seed):
    world = make_sql_world(seed)
    score = lambda agent, protocol: sum(rollout(agent, SQLEnv({world.name: world.spec}, world.tasks, protocol), options=t.id).best_reward >= SOLVED for t in world.tasks)
    assert score(SingleTurn(SketchSQL()), "submit") <= score(ReAct(SketchSQL()), "submit") <= score(TryAgain(SketchSQL()), "oracle")
    assert all(command_candidates(t.query) for t in make_bash_world(seed).tasks)


@contained
def test_bash_sketch_tries_again(boxes):
    world = make_bash_world(0)
    env = BashEnv({world.name: world.tree}, world.tasks, boxes(BACKENDS[0]), "oracle")
    episode = rollout(TryAgain(BashSketch(), "bash"), env, options=world.tasks[0].id)
    assert episode.best_reward == 1 and len(episode) > 1


def test_an_episode_can_be_kept_and_read(tmp_path):
    episode = rollout(TryAgain(RecordedLM(SAID)), SQLEnv(ZOO, [ASK], "oracle"), path=tmp_path / "e.jsonl")
    back = Episode.load(tmp_path / "e.jsonl")
    assert back.transcript == episode.transcript and ASK.gold in back.transcript and score_episodes([back]).iloc[0].success


def test_without_a_container_nothing_untrusted_runs(monkeypatch):
    from designloop.core import sandbox_backends
    monkeypatch.setattr("designloop.core.sandbox.plan_for", lambda name: (None, "not here") if name != "restricted" else sandbox_backends.plan_for(name))
    world = make_bash_world(0)
    with pytest.raises(SandboxError, match="bubblewrap"): BashEnv({world.name: world.tree}, world.tasks)
    with pytest.raises(SandboxError, match="bubblewrap"): PythonEnv(python_tasks())


@contained
def test_tests_may_be_expressions():
    gold = "def pair(a): return {a, a + 1}, (a, None)"
    task = CodingTask("pair", "Write pair(a).", gold, meta={"entry": "pair", "tests": ["pair(1)", "math.isclose(pair(2)[1][0], 2)", "pair(*(3,))"]})
    with Sandbox(preload=[]) as box:
        env = PythonEnv([task], box)
        for code, reward in ((gold, 1), ("def pair(a): return [a + 1, a], [a, None]", 1 / 3),
                             ("class Any:\n    def __eq__(self, other): return True\ndef pair(a): return Any()", 0)):
            env.reset(options="pair")
            env.step(code)
            assert env.step("submit")[1] == pytest.approx(reward), code


# --- the published tasks ----------------------------------------------------------------------------------------------------------

@contained
def test_published_functions_pass_their_own_tests():
    try: tasks = mbpp()
    except DataMissing as missing: pytest.skip(str(missing)[:120])
    assert len(tasks) == 946 and all(t.meta["entry"] in test for t in tasks for test in t.meta["tests"])
    with Sandbox() as box:
        env = PythonEnv(tasks, box)
        for t in tasks[::60]: assert rollout(Typist(t.gold, "submit"), env, options=t.id).total_reward == 1, t


def test_published_questions_and_recordings():
    try: databases, tasks = spider()
    except DataMissing as missing: pytest.skip(str(missing)[:120])
    env = SQLEnv(databases, tasks)
    for t in tasks[::40]:
        gold = rollout(Typist(t.gold, "submit"), env, options=t.id)
        assert gold.total_reward >= SOLVED and not gold.info["corrupt_gold"], t
    rows = [e for e in recorded_episodes() if e["env"] == "sql" and e["strategy"] == "single_turn_schema_given"][::50]
    lm = RecordedLM({tasks[e["task"]].query: e["actions"] for e in rows})
    same = [(rollout(SingleTurn(lm), env, options=tasks[e["task"]].id).best_reward >= SOLVED) == (max(e["rewards"]) >= SOLVED) for e in rows]
    assert np.mean(same) >= 0.85
    assert len(nl2bash()[1]) == 200 and any(t.note for t in nl2bash()[1]) and not check_tree([])
