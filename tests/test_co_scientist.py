"""The co-scientist: worlds and their truth, the log and its pool, agents, budgets, kill and resume, repeatability, people, evaluation, every refusal."""
import json
import math
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from designloop.agents.co_scientist import SCHEDULE, CoScientist, TaskQueue, check_goal, from_folder
from designloop.agents.co_scientist_agents import AGENTS, Lab, LabOptions, Literature, read_winner, word_screen
from designloop.agents.co_scientist_evaluation import anchor_score, compute_scaling_curve, concordance, judged_frame, lm_judge, pool_tastes, rate_again
from designloop.agents.co_scientist_memory import ContextMemory, Pool, Review
from designloop.core.errors import DataMissing, DesignLoopError, OutcomeError, ParameterError, StateError
from designloop.lm.protocol import FunctionLM, LMError
from designloop.tasks.discovery_twins import CRAFTS, prompt_sections, scientist_lm
from designloop.tasks.discovery_worlds import GeneWorld, LawWorld, QuizWorld, discovery_world, law_features, read_law, read_rule, write_law, write_rule

pytestmark = pytest.mark.filterwarnings("ignore:.*not a whole record")
WORLD, LM = LawWorld(3), scientist_lm()


CALLS = 200      # of the run that several tests look at


def science(calls=150, **options): return CoScientist(WORLD.goal, LM, WORLD.papers, {"calls": calls}, settle=None, **options)


@pytest.fixture(scope="module")
def done():
    s = science(CALLS)
    s.run()
    return s


def events(s): return [e["events"] for e in s.memory.entries if e["kind"] in ("task", "human")]


# --- worlds ------------------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["law", "gene", "quiz"])
def test_the_hidden_answer_is_true_and_little_else_is(kind):
    for seed in range(12):
        w = discovery_world(kind, seed)
        assert w.truth(w.answer) == pytest.approx(1) and w.exact(w.answer) and w.truth("I do not know.") == 0 and w.truths([]).shape == (0,)
        other = discovery_world(kind, seed + 300)
        assert w.truth(other.answer) < 0.999 or kind == "quiz" and w.result == other.result


def test_laws_are_read_as_they_are_written():
    rng = np.random.default_rng(0)
    for _ in range(50):
        c = np.where(rng.random(26) < 0.15, rng.normal(size=26).round(2), 0)
        assert np.allclose(read_law(write_law(c)), c)
    x = rng.uniform(-2, 2, (5, 4))
    assert np.allclose(law_features(x) @ read_law("y = -x1^2 + 0.5*sin(x2) - 2*exp(-x3) + |x4| - x1*x4"),
                       -x[:, 0] ** 2 + 0.5 * np.sin(x[:, 1]) - 2 * np.exp(-x[:, 2]) + abs(x[:, 3]) - x[:, 0] * x[:, 3])
    assert read_law("y = x9") is None and read_law("z = x1") is None


def test_the_evidence_supports_the_hidden_law_best():
    from itertools import combinations
    w = LawWorld(5)
    f, y = law_features(w.x), w.y
    true = tuple(np.flatnonzero(w.law))
    left = {t: np.linalg.lstsq(f[:, t], y, rcond=None)[1].sum() for t in map(list, combinations(range(26), len(true))) for t in [tuple(t)]}
    assert min(left, key=left.get) == true                       # so a search that finds the best fit has found the law


def test_rules_are_read_as_they_are_written():
    assert read_rule(write_rule((1, 4), np.array([0, 1, 0, 1])))[0] == (1, 4) and read_rule("on when (G9) is 1") is None and read_rule("on when (G1, G1) is 11") is None
    assert GeneWorld(2).truth(write_rule((0,), np.array([0, 0]))) < 1


@pytest.mark.parametrize("make, text", [
    (lambda: discovery_world("laws"), "Did you mean 'law'"), (lambda: LawWorld(-1), "seed=-1"), (lambda: LawWorld(papers=0), "papers=0"),
    (lambda: GeneWorld(flips=0.7), "flips=0.7"),
    (lambda: QuizWorld(question="riddle"), "question='riddle'"), (lambda: scientist_lm(noise=-1), "noise=-1"), (lambda: LM.answer("hello"), "not of the form"),
    (lambda: LM.answer("TASK: generation/debate\n\nGOAL\nWrite a poem.\n\nWANTED\nx"), "of no world"),
])
def test_worlds_and_twins_refuse(make, text):
    with pytest.raises(ParameterError, match=text): make()


def test_the_twin_sees_nothing_but_the_prompt():
    seen = []
    spy = FunctionLM(lambda prompt, rng: (seen.append(prompt), LM.function(prompt, rng))[1], "spy")
    CoScientist(WORLD.goal, spy, WORLD.papers, {"calls": 60}, settle=None).run()
    assert len(seen) == 60 and not any(WORLD.answer in p and "HYPOTHESES" not in p and "SAID BEFORE" not in p for p in seen)
    sections = prompt_sections(seen[5])
    assert {"TASK", "GOAL", "CRITERIA", "WANTED"} <= set(sections) and sections["GOAL"] == WORLD.goal


@pytest.mark.parametrize("kind", ["law", "gene", "quiz"])
def test_crafts_do_what_their_names_say(kind):
    w, craft, rng = discovery_world(kind, 4), CRAFTS[kind], np.random.default_rng(0)
    e = craft.evidence(w.goal if kind == "quiz" else " ".join(w.papers))
    prior = np.ones(len(craft.names))
    several = [craft.propose(e, rng, prior) for _ in range(6)]
    for h in [*several, craft.add(several[0], e, rng, prior), craft.merge(several[:2], e, rng), craft.drop(several[0], craft.weak(several[0], e, rng), e, rng)]:
        assert craft.read(craft.write(h, e)) is not None and craft.quality(h, e, rng) <= 1
    hidden = craft.read(w.answer)
    assert np.mean([craft.value(hidden, e, rng) for _ in range(20)]) > np.mean([craft.value(h, e, rng) for h in several for _ in range(4)])


# --- memory ------------------------------------------------------------------------------------------------------------------------------------------------------

def test_the_pool_is_the_sum_of_its_events(done):
    again = Pool(done.goal)
    for e in done.memory.events(): again.apply(e)
    assert again.elo.ratings == done.pool.elo.ratings and again.ranked == done.pool.ranked and again.matches == done.pool.matches and again.turned_down == done.pool.turned_down
    assert math.isclose(sum(again.elo.ratings.values()), 1200 * len(again.elo.ratings))
    starts = [e for e in done.memory.events() if e["event"] == "match"]
    assert all(m["score"] in (0, 0.5, 1) and len(m["games"]) == 2 for m in starts)


@pytest.mark.parametrize("event, text", [
    (dict(event="hypothesis", id="H1", title="", summary="", statement="x"), "is taken"),
    (dict(event="hypothesis", id="H9", title="", summary="", statement="x", parents=["Q"]), "names the parent 'Q'"),
    (dict(event="match", a="H1", b="Q", score=1, games=[]), "'Q' has not joined"), (dict(event="match", a="H1", b="H1", score=1, games=[]), "against itself"),
    (dict(event="review", hypothesis="Q", kind="full", verdict="accept", score=5), "no hypothesis 'Q'"),
    (dict(event="review", hypothesis="H1", kind="ful", verdict="accept", score=5), "Did you mean 'full'"),
    (dict(event="review", hypothesis="H1", kind="full", verdict="accept", score=11), "score=11"), (dict(event="party"), "event='party' is not known"),
])
def test_events_that_contradict_are_refused(event, text):
    pool = Pool("goal")
    pool.apply(dict(event="hypothesis", id="H1", title="", summary="", statement="x"))
    pool.apply(dict(event="review", hypothesis="H1", kind="initial", verdict="accept", score=5))
    with pytest.raises(DesignLoopError, match=text): pool.apply(event)
    assert pool.elo.ratings == {"H1": 1200}


def test_a_rejected_hypothesis_does_not_play_and_a_late_one_starts_at_1200():
    pool = Pool("goal")
    for i, verdict in enumerate(("accept", "reject", "unsafe", "revise")):
        pool.apply(dict(event="hypothesis", id=f"H{i}", title="", summary="", statement="x"))
        pool.apply(dict(event="review", hypothesis=f"H{i}", kind="initial", verdict=verdict, score=5))
    assert pool.ranked == ["H0", "H3"] and set(pool.turned_down) == {"H1", "H2"}
    pool.apply(dict(event="match", a="H0", b="H3", score=1, games=[]))
    pool.apply(dict(event="hypothesis", id="H9", title="", summary="", statement="x", parents=["H0"]))
    assert pool.unreviewed == ["H9"] and pool.rating("H9") is None
    pool.apply(dict(event="review", hypothesis="H9", kind="initial", verdict="accept", score=5))
    assert pool.rating("H9") == 1200 and Review("H0", "human", "accept", 8, weight=3).weight == 3


def test_children_compete_and_parents_stay(done):
    children = [h for h in done.pool.hypotheses.values() if h.agent == "evolution"]
    assert children and all(h.parents and set(h.parents) <= set(done.pool.hypotheses) for h in children)
    assert len({h.statement for h in done.pool.hypotheses.values()}) > 0.8 * len(done.pool)


def test_the_page_folds_everything_and_escapes():
    s = science(120)
    s.run()
    s.add_hypothesis("y = 1*x1 <script>", "<b>bold</b>")
    page = s._repr_html_()
    assert "<script>" not in page and "<b>bold" not in page and page.count("<details") > 10 and "better: " in page and s.pool.ranked[0] in page


# --- choosing work -----------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("weights, text", [({"ranking": -0.1}, r"weights\['ranking'\]=-0.1"), (dict.fromkeys(SCHEDULE, 0), "all 0"), ({"rank": 1}, "Did you mean 'ranking'"),
                                           ({"ranking": float("nan")}, "weights")])
def test_bad_weights_are_refused(weights, text):
    with pytest.raises(ParameterError, match=text): TaskQueue(weights)
    with pytest.raises(ParameterError, match=text): science(weights=weights)


def test_work_follows_the_schedule(done):
    tasks = [e for e in done.memory.entries if e["kind"] == "task"]
    assert tasks[0]["agent"] == "configuration" and {t["agent"] for t in tasks[1:9]} == {"generation"}
    for n, t in enumerate(tasks):                                  # nothing else is done while a hypothesis awaits its first review
        if t["agent"] in ("ranking", "evolution", "meta-review"):
            made = {e["id"] for u in tasks[:n] for e in u["events"] if e["event"] == "hypothesis"}
            assert made == {e["hypothesis"] for u in tasks[:n] for e in u["events"] if e["event"] == "review"}
    assert set(AGENTS) == set(SCHEDULE)


def test_an_agent_of_weight_zero_never_works():
    s = science(200, weights={"evolution": 0, "meta-review": 0})
    s.run()
    assert {e["agent"] for e in s.memory.entries if e["kind"] == "task"} <= {"configuration", "generation", "reflection", "ranking", "proximity"}


def test_weight_moves_to_whoever_gains():
    pool, q = Pool("goal"), TaskQueue()
    for i in range(4):
        pool.apply(dict(event="hypothesis", id=f"H{i}", title="", summary="", statement="x", source="evolution/combination" if i % 2 else "generation/debate"))
        pool.apply(dict(event="review", hypothesis=f"H{i}", kind="initial", verdict="accept", score=5))
    assert q.shift(pool) is None
    for _ in range(5): pool.apply(dict(event="match", a="H1", b="H0", score=1, games=[])); pool.apply(dict(event="match", a="H3", b="H2", score=1, games=[]))
    new = q.shift(pool)
    assert new["evolution"] > 0.2 > new["generation"] and new["evolution"] + new["generation"] == pytest.approx(0.35)
    gain = np.mean([pool.rating(i) - 1200 for i in ("H1", "H3")]) / 100
    assert new["evolution"] == pytest.approx(0.35 / (1 + math.exp(-2 * gain)), abs=1e-5)


def test_pairs_are_drawn_as_the_formula_says():
    lab, pool = Lab(Literature()), Pool("goal")
    for i in range(12):
        pool.apply(dict(event="hypothesis", id=f"H{i}", title="", summary="", statement="x"))
        pool.apply(dict(event="review", hypothesis=f"H{i}", kind="initial", verdict="accept", score=5))
    pool.apply(dict(event="proximity", embedded=["H1", "H2"], edges=[["H2", "H1", 0.9]]))
    pool.apply(dict(event="match", a="H3", b="H4", score=1, games=[]))
    ranking = AGENTS["ranking"](lab)
    ids, p = ranking.chances(pool)
    w = {(a, b): (2.8 if {a, b} == {"H1", "H2"} else 1) * (1 + 1 / (1 + min(pool.elo.played[a], pool.elo.played[b]))) * (2 if "H3" in (a,
        b) else 1) for a in ids for b in ids if ids.index(a) < ids.index(b)}
    assert np.allclose([p[ids.index(a), ids.index(b)] for a, b in w], np.array(list(w.values())) / sum(w.values()))
    lab.options.proximity = False
    assert np.allclose(ranking.chances(pool)[1][np.triu_indices(12, 1)], 1 / 66)
    rng = np.random.default_rng(0)
    drawn = [AGENTS["ranking"](Lab(Literature())).plan(pool, rng, {}).targets for _ in range(300)]
    assert all(a != b for a, b in drawn) and len(set(drawn)) > 30


@pytest.mark.parametrize("reply, won", [("fine\nbetter: 1", 1), ("better: 2\n", 0), ("**better: 2**", 0), ("Better: 1.", 1), ("better: 3", None), ("", None),
    ("better: 1\nhm", None), ("1", None)])
def test_the_winner_stands_in_the_last_line(reply, won): assert read_winner(reply) == won


def test_debates_swap_the_order_every_turn_and_count_the_last_line():
    turns = []
    def one(prompt, rng):
        s = prompt_sections(prompt)
        if s["TASK"] == "ranking/compare":
            turns.append(s)
            return "better: 1" if "Statement: strong" in s["HYPOTHESES"].split("[2]")[0] else "better: 2"
        if s["TASK"].startswith("reflection"): return "<score>5</score><verdict>accept</verdict>"
        return "<criteria>c</criteria><verdict>accept</verdict>"
    s = CoScientist("Which?", FunctionLM(one), (), {"calls": 40}, weights={"generation": 0, "evolution": 0, "meta-review": 0}, settle=None, debate_turns=3)
    for text in ("strong", "weak"): s.add_hypothesis(text)
    s.run()
    first = [t["HYPOTHESES"].split("Statement: ")[1].split("\n")[0] for t in turns[:3]]
    assert first[0] == first[2] != first[1] and "SAID BEFORE" not in turns[0] and turns[2]["SAID BEFORE"].count("Turn ") == 2
    assert all(m["score"] == (m["a"] == "human-1") and m["mode"] == "debate" for m in s.pool.matches) and s.pool.ranked[0] == "human-1"


def test_a_comparison_without_winner_is_asked_once_more_and_then_drawn():
    def mute(prompt, rng): return "I cannot say." if "ranking" in prompt.splitlines()[0] else LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(mute), WORLD.papers, {"calls": 150}, settle=None, debate=False)
    s.run()
    assert s.pool.matches and all(m["score"] == 0.5 and all(not g["read"] and g["asked"] == 2 for g in m["games"]) for m in s.pool.matches)
    assert set(s.pool.elo.ratings.values()) == {1200} and pool_tastes(s.pool).scores["readable"].value == 0
    assert sum(e["unread"] for e in s.memory.entries if e["kind"] == "task") >= 4 * len(s.pool.matches)


def test_replies_without_a_hypothesis_are_counted_and_left_out():
    s = CoScientist(WORLD.goal, FunctionLM(lambda prompt, rng: "no tags here"), WORLD.papers, {"calls": 30}, settle=None)
    assert len(s.run()) == 0 and s.pool.counts["unread"] > 5 and s.meter.calls <= 30


def test_duplicates_are_not_entered_again():
    same = "<title>t</title><summary>s</summary><hypothesis>y = 1*x1</hypothesis><category>c</category>"
    def parrot(prompt, rng): return same if prompt.startswith(("TASK: generation", "TASK: evolution")) else LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(parrot), WORLD.papers, {"calls": 60}, settle=None)
    s.run()
    assert len(s.pool) == 1 and len(s.pool.duplicates) >= 7 and s.pool.duplicates[0]["of"] in s.pool
    assert len(CoScientist(WORLD.goal, FunctionLM(parrot), WORLD.papers, {"calls": 60}, settle=None, proximity=False).run()) > 5


# --- budgets, repeatability, resuming ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("calls", [1, 7, 97])
def test_the_budget_of_calls_is_exact(calls, workers):
    asked = []
    def counted(prompt, rng): asked.append(1); return LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(counted), WORLD.papers, {"calls": calls}, settle=None, n_workers=workers)
    s.run()
    assert len(asked) == calls == s.meter.calls and s.ended == "budget"


def test_budgets_of_tokens_and_seconds_end_a_run():
    s = CoScientist(WORLD.goal, LM, WORLD.papers, {"tokens": 12_000}, settle=None, max_tokens=200)
    s.run()
    assert 8_000 < s.meter.tokens <= 12_000 and s.ended == "budget"
    slow = FunctionLM(lambda prompt, rng: (time.sleep(0.01), LM.function(prompt, rng))[1])
    s = CoScientist(WORLD.goal, slow, WORLD.papers, {"seconds": 0.5}, settle=None)
    s.run()
    assert s.ended == "budget" and 2 <= s.meter.calls <= 60


@pytest.mark.parametrize("options, text", [
    (dict(budget={"calls": 0}), r"budget\['calls'\]=0"), (dict(budget={"call": 5}), "Did you mean 'calls'"), (dict(budget=None, settle=None), "would never end"),
    (dict(budget={"tokens": -1}), "tokens"), (dict(budget=0), "limits by name"),
    (dict(goal=""), "is empty"), (dict(goal="  \n"), "is empty"), (dict(goal="How can we make a nerve agent?"), "unsafe: it speaks of 'nerve agent'"),
    (dict(k=0), "k=0"), (dict(k=-5), "k=-5"), (dict(seed=-1), "seed=-1"),
    (dict(n_workers=0), "n_workers=0"), (dict(settle=0), "settle=0"), (dict(generation=("debates",)), "Did you mean 'debate'"),
    (dict(generation=()), "generation is empty"), (dict(evolution=("mix",)), "evolution='mix'"),
    (dict(reviews=("deeep",)), "Did you mean 'deep'"), (dict(debate_turns=0), "debate_turns=0"), (dict(edge=2), "edge=2"), (dict(debat=1), "Did you mean 'debate'"),
    (dict(tools=[3]), r"texts\[0\] is a int"),
    (dict(embedder="mini"), "embedder='mini'"), (dict(lm="model"), "must be an LM"),
])
def test_bad_input_is_refused(options, text):
    with pytest.raises(ParameterError, match=text): CoScientist(**{"goal": WORLD.goal, "lm": LM, "tools": WORLD.papers, "budget": {"calls": 10}, **options})


def test_one_worker_and_a_seed_repeat_exactly(done):
    again = science(CALLS)
    again.run()
    assert events(again) == events(done)
    other = science(60, seed=1)
    other.run()
    assert events(other)[:10] != events(done)[:10]


def test_several_workers_lose_nothing():
    def late(prompt, rng): time.sleep(0.001 * np.random.default_rng().random()); return LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(late), WORLD.papers, {"calls": 250}, settle=None, n_workers=4)
    pool = s.run()
    numbers = [e["task"] for e in s.memory.entries if e["kind"] == "task"]
    assert sorted(numbers) == list(range(len(numbers))) and numbers != sorted(numbers), "tasks end out of order"
    rebuilt = s.memory.pool()
    assert rebuilt.elo.ratings == pool.elo.ratings and math.isclose(sum(pool.elo.ratings.values()), 1200 * len(pool.elo.ratings))
    first = [e["hypothesis"] for e in s.memory.events() if e["event"] == "review" and e["kind"] == "initial"]
    assert len(first) == len(set(first)), "nobody is reviewed twice at once"


KILLED = """
import sys, time
from designloop.agents.co_scientist import CoScientist
from designloop.lm.protocol import FunctionLM
from designloop.tasks.discovery_twins import scientist_lm
from designloop.tasks.discovery_worlds import LawWorld
world, lm = LawWorld(3), scientist_lm()
def slow(prompt, rng): time.sleep(0.01); return lm.function(prompt, rng)
CoScientist(world.goal, FunctionLM(slow), world.papers, {"calls": 200}, settle=None, path=sys.argv[1], n_workers=int(sys.argv[2])).run()
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_kill_minus_nine_and_resume(tmp_path, workers, done):
    path = tmp_path / "run.jsonl"
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(workers)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while time.monotonic() < end and (not path.exists() or path.read_bytes().count(b'"kind": "call"') < 40): time.sleep(0.02)
    running.kill(); running.wait()
    memory = ContextMemory(path)
    paid = memory.spent["calls"]
    assert 40 <= paid < CALLS
    asked = []
    def counted(prompt, rng): asked.append(1); return LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(counted), WORLD.papers, {"calls": CALLS}, settle=None, path=path, n_workers=workers)
    assert s.meter.calls == paid
    s.run()
    assert len(asked) == CALLS - paid and s.meter.calls == CALLS, "nothing is paid twice"
    assert ContextMemory(path).pool().elo.ratings == s.pool.elo.ratings
    if workers == 1: assert events(s) == events(done), "the run is the one that was never killed"
    ended = CoScientist(WORLD.goal, FunctionLM(counted), WORLD.papers, {"calls": CALLS}, settle=None, path=path, n_workers=workers)
    assert ended.pool.elo.ratings == s.pool.elo.ratings and ended.run() is ended.pool and len(asked) == CALLS - paid


def test_a_log_cut_anywhere_resumes(tmp_path, done):
    path = tmp_path / "whole.jsonl"
    science(120, path=path).run()
    whole, reference = path.read_bytes(), science(120)
    reference.run()
    for share in (0.02, 0.31, 0.6, 0.93):
        cut = tmp_path / f"{share}.jsonl"
        cut.write_bytes(whole[:int(share * len(whole))])
        s = science(120, path=cut)
        s.run()
        assert events(s) == events(reference) and s.meter.calls == 120


def test_a_log_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    science(30, path=path).run()
    with pytest.raises(StateError, match="seed=0, not 1"): science(30, path=path, seed=1)
    with pytest.raises(StateError, match="goal="): CoScientist("Another goal", LM, WORLD.papers, {"calls": 30}, settle=None, path=path)
    for options, text in ((dict(k=16), "k=32"), (dict(debate=False), "debate=True"), (dict(weights={"evolution": 0}), "weights=")):
        with pytest.raises(StateError, match=text): science(30, path=path, **options)
    assert science(60, path=path).run() and science(60, path=path).meter.calls == 60, "a larger budget goes on"


def test_failures_keep_what_was_done_and_give_up_in_the_end():
    calls = []
    def failing(prompt, rng):
        calls.append(1)
        if len(calls) > 40: raise LMError("the server is gone")
        return LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(failing), WORLD.papers, {"calls": 500}, settle=None)
    with pytest.raises(LMError, match="tasks in a row failed"): s.run()
    assert len(s.pool) >= 8 and sum(e.get("ended") == "failed" for e in s.memory.entries) == 5
    def broken(prompt, rng):
        if "ranking" in prompt.splitlines()[0]: raise ZeroDivisionError
        return LM.function(prompt, rng)
    for workers in (1, 3):
        s = CoScientist(WORLD.goal, FunctionLM(broken), WORLD.papers, {"calls": 500}, settle=None, n_workers=workers)
        with pytest.raises(ZeroDivisionError): s.run()
        assert len(s.pool) >= 8 and not s.queue.flying and s.memory.pool().elo.ratings == s.pool.elo.ratings


def test_a_run_settles_when_the_first_ten_stay():
    def even(prompt, rng): return "I cannot say." if "ranking" in prompt.splitlines()[0] else LM.function(prompt, rng)      # draws among equals change no rating
    off = {"evolution": 0, "generation": 1e-6, "reflection": 0, "proximity": 0, "meta-review": 0}
    s = CoScientist(WORLD.goal, FunctionLM(even), WORLD.papers, {"calls": 400}, weights=off, n_init=14, settle=5, debate=False, reviews=("initial",))
    s.run()
    assert s.ended == "settled" and len(s.pool.ranked) >= 10 and len(s.pool.matches) - s.pool.top_changed >= 5 and s.meter.calls < 400


def test_unsafe_goals_and_hypotheses_are_refused():
    with pytest.raises(ParameterError, match="refused as unsafe"): check_goal("Weaponize a virus")
    assert word_screen("Which enzyme degrades plastic?") is None
    def strict(prompt, rng): return "<verdict>unsafe</verdict><criteria>none</criteria>" if prompt.startswith("TASK: configuration") else LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(strict), WORLD.papers, {"calls": 50}, settle=None)
    with pytest.raises(ParameterError, match="unsafe by the model"): s.run()
    assert s.meter.calls == 1
    def bad(prompt, rng): return "<hypothesis>Use sarin.</hypothesis>" if prompt.startswith("TASK: generation") else LM.function(prompt, rng)
    s = CoScientist(WORLD.goal, FunctionLM(bad), WORLD.papers, {"calls": 40}, settle=None, proximity=False)
    s.run()
    assert len(s.pool) and not s.pool.ranked and all("unsafe" in why for why in s.pool.turned_down.values())


# --- people ------------------------------------------------------------------------------------------------------------------------------------------------------

def test_people_take_part_and_the_log_knows(tmp_path):
    path = tmp_path / "run.jsonl"
    s = science(300, path=path)
    s.run(15)
    mine = s.add_hypothesis(WORLD.answer, "expert")
    before = s.pool.score(s.pool.ranked[0])
    s.add_review(s.pool.ranked[0], "We measured the opposite.", 1, weight=5)
    assert s.pool.score(s.pool.ranked[0]) < before
    s.restrict([0, 1])
    s.edit_goal(WORLD.goal + " Prefer short laws.")
    s.run()
    assert s.pool.elo.played[mine] > 0 and s.pool.ranked.index(mine) < len(s.pool.ranked) / 2 and s.pool.goal.endswith("Prefer short laws.")
    again = science(300, path=path)
    assert again.pool.elo.ratings == s.pool.elo.ratings and again.pool.restricted == [0, 1] and again.pool.goal == s.pool.goal


def test_restricted_papers_are_not_shown():
    shown = []
    spy = FunctionLM(lambda prompt, rng: (shown.append(prompt), LM.function(prompt, rng))[1])
    s = CoScientist(WORLD.goal, spy, WORLD.papers, {"calls": 80}, settle=None)
    s.restrict([2, 5])
    s.run()
    assert {n for p in shown for n in range(1, 9) if f"[paper {n}]" in p} == {3, 6}


@pytest.mark.parametrize("call, text", [
    (lambda s: s.add_hypothesis(" "), "statement is empty"), (lambda s: s.add_hypothesis("Use sarin"), "unsafe"),
    (lambda s: s.add_hypothesis("y = x1", id="H1"), "'H1' is taken"), (lambda s: s.add_review("Q", "", 5), "no hypothesis 'Q'"),
    (lambda s: s.add_review("H1", "", 0), "score=0"), (lambda s: s.add_review("H1", "", 5, "maybe"), "verdict='maybe'"), (lambda s: s.edit_goal(""), "is empty"),
    (lambda s: s.restrict([99]), "papers=99"), (lambda s: s.run(0), "tasks=0"),
])
def test_people_are_told_what_is_wrong(call, text):
    s = science(30)
    s.run(4)
    before = len(s.memory)
    with pytest.raises(ParameterError, match=text): call(s)
    assert len(s.memory) == before


def test_people_may_speak_while_it_runs():
    slow = FunctionLM(lambda prompt, rng: (time.sleep(0.003), LM.function(prompt, rng))[1])
    s = CoScientist(WORLD.goal, slow, WORLD.papers, {"calls": 200}, settle=None, n_workers=2)
    thread = threading.Thread(target=s.run)
    thread.start()
    while len(s.pool) < 3 and thread.is_alive(): time.sleep(0.01)
    mine = s.add_hypothesis(WORLD.answer)
    thread.join(120)
    assert not thread.is_alive() and mine in s.pool and s.memory.pool().elo.ratings == s.pool.elo.ratings


def test_a_folder_holds_a_goal(tmp_path):
    with pytest.raises(DataMissing, match="neither goal.txt nor goal.yaml"): from_folder(tmp_path, LM, budget={"calls": 5})
    (tmp_path / "papers").mkdir()
    (tmp_path / "goal.yaml").write_text("goal: '" + WORLD.goal.replace("'", "''") + "'\n")
    (tmp_path / "papers" / "a.txt").write_text(WORLD.papers[0])
    (tmp_path / "expert_hypotheses.jsonl").write_text(json.dumps({"statement": "y = 1*x1", "title": "guess"}) + "\n")
    s = from_folder(tmp_path, LM, budget={"calls": 20}, settle=None, path=tmp_path / "run.jsonl")
    assert s.goal == WORLD.goal and len(s.lab.literature) == 1 and s.pool["human-1"].title == "guess"
    s.run()
    assert len(from_folder(tmp_path, LM, budget={"calls": 20}, settle=None, path=tmp_path / "run.jsonl").pool) == len(s.pool), "experts are not added twice"


# --- evaluation --------------------------------------------------------------------------------------------------------------------------------------------------

def made_pool(ratings):
    pool = Pool("goal")
    for i, r in enumerate(ratings):
        pool.apply(dict(event="hypothesis", id=f"H{i}", title="", summary="", statement=f"s{i}"))
        pool.apply(dict(event="review", hypothesis=f"H{i}", kind="initial", verdict="accept", score=5))
        pool.elo.ratings[f"H{i}"], pool.elo.played[f"H{i}"] = float(r), 3
    return pool


def test_concordance_by_hand():
    ratings = np.linspace(1010, 1390, 39)
    pools = [made_pool(ratings) for _ in range(4)]
    truth = {f"H{i}": float(r > 1200) for i, r in enumerate(ratings)}
    c = concordance(pools, [truth] * 4, reference=dict.fromkeys(range(4), 0.5), resamples=200)
    assert list(c.table["low"]) == list(range(1001, 1400, 50)) and c.table["n"].sum() == 156 and c.top.value == 1 and c.reference.value == 0
    assert list(c.table["truth"]) == [0, 0, 0, 0, 1, 1, 1, 1] and c.rho.value > 0.85 and c.rho.ci[0] > 0.8 and c.within.value > 0.8
    flipped = concordance(pools, [{k: 1 - v for k, v in truth.items()}] * 4, resamples=20)
    assert flipped.rho.value == pytest.approx(-c.rho.value) and flipped.reference is None
    assert len(concordance(pools, [truth] * 4, bin_width=100, resamples=20).table) == 4


def test_difficulty_alone_is_no_gain():
    pools = [made_pool(np.linspace(1150, 1250, 12) + 100 * g) for g in range(5)]          # rated by goal, and true by goal only
    truths = [dict.fromkeys(p.hypotheses, g / 5) for g, p in enumerate(pools)]
    c = concordance(pools, truths, reference={g: g / 5 for g in range(5)}, resamples=100)
    assert c.rho.value > 0.8 and c.gain.value == pytest.approx(0) and c.within.value == 0


@pytest.mark.parametrize("call, text", [
    (lambda p: concordance(p, {"Q": 1.0}), "'Q'"), (lambda p: concordance(p, {"H0": 1.0}), "truth lacks"),
    (lambda p: concordance(p, dict.fromkeys(p.hypotheses, 2.0)), "truth=2"),
    (lambda p: concordance(p, dict.fromkeys(p.hypotheses, 0.5), 0), "bin_width=0"),
    (lambda p: concordance(p, dict.fromkeys(p.hypotheses, 0.5), reference={7: 1}), "reference lacks"),
    (lambda p: concordance([p, p], [{}]), "2 pools, 1 truths"), (lambda p: compute_scaling_curve(p, 99), "more than the 12"),
    (lambda p: compute_scaling_curve(p, 1), "n_buckets=1"),
    (lambda p: compute_scaling_curve(p, 3, 0), "top_k=0"), (lambda p: rate_again(p), "no matches"), (lambda p: anchor_score(["x"], [], None), "anchors is empty"),
    (lambda p: pool_tastes(p), "no games"),
])
def test_evaluations_refuse(call, text):
    with pytest.raises(ParameterError, match=text): call(made_pool(np.linspace(1100, 1300, 12)))


def test_the_scaling_curve_by_hand():
    pool = made_pool([1000, 1100, 1200, 1150, 1300, 1250])
    curve = compute_scaling_curve(pool, 3, 2, {f"H{i}": i / 10 for i in range(6)})
    assert list(curve["best_elo"]) == [1100, 1200, 1300] and list(curve["top_elo"]) == [1050, 1175, 1275] and list(curve["best_truth"]) == [0.1, 0.2,
        0.4] and list(curve["most_truth"]) == [0.1, 0.3, 0.5]


def test_anchors_and_ratings_again(done):
    judge = lm_judge(LM, WORLD.goal, Literature(WORLD.papers))
    anchors = [done.pool[i].statement for i in list(done.pool.hypotheses)[:6]]
    good, bad = anchor_score([WORLD.answer, "y = 2*exp(-x1) + 2*exp(-x2)"], anchors, judge)
    assert good > bad and 0 <= bad and good <= 1
    again = rate_again(done.pool)
    assert np.corrcoef(again["elo"], again["weng_lin"])[0, 1] > 0.6 and len(again) == sum(n > 0 for n in done.pool.elo.played.values())
    f = judged_frame(done.pool, WORLD.truths)
    assert set(f["id"]) <= set(done.pool.hypotheses) and f["truth"].between(0, 1).all()


def test_the_tournament_finds_what_is_true():
    found = []
    for s in range(6):
        w = LawWorld(s)
        f = judged_frame(CoScientist(w.goal, LM, w.papers, {"calls": 250}, settle=None, seed=s).run(), w.truths)
        found.append(f.loc[f["rating"].idxmax(), "truth"] - f["truth"].mean())
    assert np.mean(found) / (np.std(found, ddof=1) / 6 ** 0.5) > 2.6          # t with 5 degrees of freedom: passed by chance once in 40


def test_one_text_is_no_list_of_papers():
    with pytest.raises(ParameterError, match="papers is one text"): CoScientist(WORLD.goal, LM, WORLD.papers[0], {"calls": 10})


def test_options_have_no_surprises():
    assert LabOptions().both_orders and Lab(Literature()).literature.random(3, np.random.default_rng(0)) == [] and Literature().search("x", 2, np.random.default_rng(0)) == []
    with pytest.raises(OutcomeError, match="finite numbers"): Lab(Literature(), embedder=lambda t: np.ones(1)).vectors([made_pool([1200])["H0"]])
