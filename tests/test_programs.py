"""Programs as designs: reading, distances, changes, enumeration, archives; agent programs and their tasks."""
import ast
import json

import numpy as np
import pytest

from designloop.core.errors import DataCorrupt, DataMissing, ParameterError, StateError
from designloop.core.programs import (
    MUTATIONS,
    Grammar,
    Program,
    ProgramArchive,
    ProgramError,
    Rule,
    crossover,
    draw_program,
    edit_distance,
    enumerate_programs,
    levenshtein,
    mutate,
    normalise,
    read_function,
    symbols,
)

SUM = "def total(xs):\n    out = 0\n    for x in xs:\n        if x > 3:\n            out += x * x\n    return out"
SHORT = "def total(xs): return sum(x * x for x in xs if x > 3)"
WORDY = '''
def f(a, b=2, *rest, k=1.5, **more):
    "Doc."
    import math
    try:
        y = [math.sqrt(i) for i in rest if i not in (0, None)]
    except ValueError as e:
        y = {"e": str(e)}
    while a and not b:
        a, b = b, -a
    return lambda q: (q, y, k, more)
'''
PROGRAMS = [SUM, SHORT, WORDY]


# --- reading ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("source, words", [
    ("def f(x:\n return", "SyntaxError in line 1"), ("", "no function"), ("x = 1", "no function"), ("async def f(): pass", "exactly one plain function"),
    ("def f(): pass\ndef g(): pass", "'f', 'g'"), ("def f(): pass\nprint(1)", "line 2 stands outside"), ("import os\ndef f(): pass", "'os'"),
    ("def f():\n    from subprocess import run", "line 2 imports 'subprocess'"), ("from . import x\ndef f(): pass", "'.'"), (3, "must be a text"),
    ("def f(): pass\0", "SyntaxError")])
def test_what_is_no_program_is_refused_in_a_sentence(source, words):
    with pytest.raises(ProgramError, match=words.replace(".", r"\.") if words == "'.'" else words): read_function(source)


def test_name_arguments_and_modules_are_looked_at():
    assert read_function("import math\ndef f(x): return math.pi").body[0].names[0].name == "math"
    with pytest.raises(ProgramError, match="must be called 'forward'"): read_function(SUM, "forward")
    with pytest.raises(ProgramError, match="must take 2"): read_function(SUM, arguments=2)
    with pytest.raises(ProgramError, match="allowed: nothing"): read_function("import math\ndef f(x): pass", modules=())
    read_function("import os\ndef f(x): pass", modules=None)


# --- distances -------------------------------------------------------------------------------------------------------------

def plain_levenshtein(a, b):
    "The textbook table."
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1): row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_edit_distance_agrees_with_the_textbook():
    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (rng.integers(0, 4, rng.integers(0, 12)) for _ in range(2))
        assert levenshtein(a, b) == plain_levenshtein(a.tolist(), b.tolist())


def test_distance_is_a_metric_that_ignores_names_docstrings_and_layout():
    renamed = SUM.replace("out", "acc").replace("xs", "values").replace("def total(values):", "def total(values):\n    '''Doc.'''  # note")
    assert edit_distance(SUM, renamed) == 0 and normalise(SUM) == normalise(renamed) and normalise(normalise(WORDY)) == normalise(WORDY)
    d = np.array([[edit_distance(a, b) for b in PROGRAMS] for a in PROGRAMS])
    assert (np.diag(d) == 0).all() and np.allclose(d, d.T) and ((d >= 0) & (d <= 1)).all()
    raw = np.array([[levenshtein(symbols(a), symbols(b)) for b in PROGRAMS] for a in PROGRAMS])
    assert all(raw[i, k] <= raw[i, j] + raw[j, k] for i in range(3) for j in range(3) for k in range(3))
    assert edit_distance(SUM, SUM.replace("> 3", "> 4")) < edit_distance(SUM, SHORT)


def tree_distance(a, b):
    "Edit distance of ordered trees by the plain recursion over forests (Zhang and Shasha's definition), for small trees."
    from functools import lru_cache
    def label(node): return ast.dump(node) if not list(ast.iter_child_nodes(node)) else type(node).__name__
    def tree(node): return (label(node), tuple(tree(c) for c in ast.iter_child_nodes(node)))
    size = lru_cache(None)(lambda f: sum(1 + size(c) for _, c in f))
    @lru_cache(None)
    def forest(f, g):
        if not f or not g: return size(f) + size(g)
        (x, fx), (y, gy) = f[-1], g[-1]
        return min(forest(f[:-1] + fx, g) + 1, forest(f, g[:-1] + gy) + 1, forest(f[:-1], g[:-1]) + forest(fx, gy) + (x != y))
    def preorder(t): return [t[0], *(s for c in t[1] for s in preorder(c))]
    a, b = tree(a), tree(b)
    return forest((a,), (b,)), plain_levenshtein(preorder(a), preorder(b))


@pytest.mark.parametrize("a, b", [("x + 1", "x * (1 + y)"), ("f(g(x), 2)", "g(f(x, 2))"), ("[a, b, c]", "[c, a]"), ("not (a and b)", "a or not b")])
def test_the_preorder_distance_never_exceeds_that_of_the_trees(a, b):
    trees, sequences = tree_distance(ast.parse(a, mode="eval").body, ast.parse(b, mode="eval").body)
    assert sequences <= trees


# --- changes ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("source", PROGRAMS)
def test_changes_keep_a_program_a_program_and_repeat_with_the_seed(source):
    for s in range(40):
        changed, kind = mutate(source, np.random.default_rng(s))
        assert kind in MUTATIONS and read_function(changed, modules=None).name == read_function(source, modules=None).name
        assert 0 < edit_distance(source, changed) <= 0.6 and mutate(source, np.random.default_rng(s)) == (changed, kind)
        child = crossover(source, SUM, np.random.default_rng(s))
        assert read_function(child, modules=None).name == read_function(source, modules=None).name


def test_changes_that_find_no_place_or_are_not_known_say_so():
    with pytest.raises(ParameterError, match="kind='nubmer'.*'number'"): mutate(SUM, np.random.default_rng(0), ["nubmer"])
    with pytest.raises(ProgramError, match="allow more kinds"): mutate("def f(x):\n    return x", np.random.default_rng(0), ["delete"])


# --- enumeration -----------------------------------------------------------------------------------------------------------

BOOL = Grammar([Rule("x", "bool"), Rule("true", "bool", run=lambda: True), Rule("not", "bool", ("bool",), lambda a: not a),
                Rule("and", "bool", ("bool", "bool"), lambda a, b: a and b)], "bool")


def test_enumeration_counts_are_those_of_the_recursion_and_pruning_keeps_every_behaviour():
    total = [2]
    for _ in range(2): total.append(2 + total[-1] + total[-1] ** 2)          # terms of depth at most d
    for d in range(3): assert sum(1 for _ in enumerate_programs(BOOL, d)) == total[d]
    everything = list(enumerate_programs(BOOL, 2))
    behaviours = {tuple(t(v) for v in (False, True)) for t in everything}
    pruned = list(enumerate_programs(BOOL, 2, inputs=[False, True]))
    assert {tuple(t(v) for v in (False, True)) for t in pruned} == behaviours and len(pruned) == len(behaviours)
    assert [t.depth for t in everything] == sorted(t.depth for t in everything) and len(list(enumerate_programs(BOOL, 2, most=5))) == 5


def test_grammars_that_cannot_build_a_program_and_bad_depths_are_refused():
    with pytest.raises(ParameterError, match="cannot be built"): Grammar([Rule("f", "a", ("a",))], "a")
    with pytest.raises(ParameterError, match="two rules"): Grammar([Rule("x", "a"), Rule("x", "a")], "a")
    with pytest.raises(ParameterError, match="depth=-1"): list(enumerate_programs(BOOL, -1))
    pair = Grammar([Rule("x", "a"), Rule("p", "b", ("a", "a"), lambda a, b: (a, b))], "b")
    with pytest.raises(ParameterError, match="at least 1"): draw_program(pair, np.random.default_rng(0), 0)
    assert str(draw_program(pair, np.random.default_rng(0), 3)) == "p(x, x)"


def test_a_rule_that_fails_is_a_behaviour_of_its_own():
    odd = Grammar([Rule("x", "n"), Rule("inv", "n", ("n",), lambda a: 1 / a), Rule("neg", "n", ("n",), lambda a: -a)], "n")
    assert {str(t) for t in enumerate_programs(odd, 1, inputs=[0, 2])} == {"x", "inv(x)", "neg(x)"}


# --- the archive -----------------------------------------------------------------------------------------------------------

def archive_of(fitness):
    archive = ProgramArchive("sums")
    for i, f in enumerate(fitness): archive.add(Program(SUM.replace("3", str(i)), fitness=f, generation=i, parents=(i - 1,) if i else ()))
    return archive


def test_novelty_is_the_mean_distance_to_the_nearest_and_the_first_one_is_new():
    archive = ProgramArchive("sums", k=2)
    for code in (SUM, SHORT, WORDY): archive.add(Program(code))
    assert archive[0].novelty == 1.0 and archive[1].novelty == edit_distance(SUM, SHORT)
    assert np.isclose(archive[2].novelty, np.mean([edit_distance(WORDY, SUM), edit_distance(WORDY, SHORT)]))
    assert np.allclose(archive.distances(SUM), [0, edit_distance(SUM, SHORT), edit_distance(SUM, WORDY)])


def test_parents_are_drawn_by_rank_and_novelty():
    archive = archive_of([0.1, None, 0.9, 0.5])
    w = archive.parent_weights(novelty=0)
    assert np.isclose(w.sum(), 1) and w[1] == 0 and w[2] > w[3] > w[0] and archive.ranking() == [2, 3, 0]
    assert archive.parent_weights(halving=0.2, novelty=0)[2] > 0.95
    archive.add(Program(WORDY, fitness=0.1))
    assert archive.parent_weights(novelty=3)[-1] > archive.parent_weights(novelty=0)[-1]
    with pytest.raises(StateError, match="no program"): archive_of([None]).parent_weights()
    with pytest.raises(ParameterError, match="entry 7"): archive.add(Program(SUM, parents=(7,)))
    with pytest.raises(ParameterError, match="program is a int"): archive.add(3)
    with pytest.raises(ProgramError): archive.add(Program("nothing"))
    with pytest.raises(ParameterError, match="fitness"): Program(SUM, fitness=float("nan"))
    assert len(archive) == 5 and "best 0.900" in repr(archive)


def test_an_archive_comes_back_as_it_was_and_strange_files_are_refused(tmp_path):
    archive = archive_of([0.2, 0.4, None])
    archive[0].info = {"interval": [0.1, 0.3], "error": ""}
    file = archive.save(tmp_path / "deep" / "a.json")
    again = ProgramArchive.load(file, "sums")
    assert [vars(p) for p in again] == [vars(p) for p in archive] and list(again.frame.name) == list(archive.frame.name)
    assert not [p for p in file.parent.iterdir() if p != file]
    with pytest.raises(StateError, match="'sums', not 'grids'"): ProgramArchive.load(file, "grids")
    with pytest.raises(DataMissing, match="no archive"): ProgramArchive.load(tmp_path / "none.json")
    for text in ("{", "[]", '{"a": 1}'):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(DataCorrupt, match="not an archive"): ProgramArchive.load(tmp_path / "b.json")
    state = json.loads(file.read_text())
    state["programs"][1]["code"] = "oops"
    (tmp_path / "b.json").write_text(json.dumps(state))
    with pytest.raises(DataCorrupt, match="entry 1"): ProgramArchive.load(tmp_path / "b.json")
