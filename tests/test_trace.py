"""Workflows as graphs: what is recorded, what travels back, what a prompt holds, what becomes of a reply, and every refusal. Models are functions, so all is exact."""
import copy
import gc
import json
import math
import operator
import pickle
import warnings
import weakref

import networkx as nx
import numpy as np
import pytest

from designloop.core.errors import BudgetExceeded, DataCorrupt, ParameterError, StateError
from designloop.core.sandbox import Limits, Sandbox
from designloop.lm.protocol import FunctionLM, chat_text
from designloop.lm.wrappers import Metered
from designloop.optimizers.trace_bundle import CodeParameter, Module, bundle, function_source, model, run_code, signature_line, starts_with
from designloop.optimizers.trace_graph import (
    BINARY,
    GRAPH,
    ExceptionNode,
    ExecutionError,
    GraphPropagator,
    MessageNode,
    Node,
    ParameterNode,
    SumPropagator,
    TraceError,
    TraceGraph,
    between,
    minimal_subgraph,
    node,
    one_of,
    stop_tracing,
)
from designloop.optimizers.trace_optimizers import OPRO, OptoPrime, TraceTextGrad, cast, describe, published, read_reply, trace_optimizer, value_text
from designloop.optimizers.trace_repairs import bodies, closeness, edits
from designloop.optimizers.trace_symbolic import SymbolicOptimizer, plain_program, program_text, read_feedback, read_prompt, weigh
from designloop.tasks import trace_battleship as battleship
from designloop.tasks import trace_programs as programs
from designloop.tasks import trace_traffic as traffic
from designloop.tasks.trace_numerical import OPS, numerical_problem

silent = FunctionLM(lambda prompt, rng: "TERMINATE", name="silent")
BUNDLED = {name: bundle(f, name=name, show_source=False) for name, f in OPS.items()}


def says(*replies):
    "A model that gives these replies in turn."
    left = iter(replies)
    return FunctionLM(lambda prompt, rng: next(left), name="scripted")


def step(optimizer, out, feedback="not yet"):
    optimizer.zero_feedback()
    optimizer.backward(out, feedback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optimizer.step()


# --- the graph ---------------------------------------------------------------------------------------------------------------------------------------------------

def random_program(rng, make=node, distinct=False):
    "Roots and every value of a random program, in order; `distinct`: no operator takes one value twice."
    values = [make(float(v), trainable=i < 4) for i, v in enumerate(rng.uniform(-5, 5, 8))]
    unused = list(rng.permutation(8))
    for _ in range(rng.integers(5, 21)):
        i = unused.pop(0)
        j = unused.pop(0) if unused and rng.random() < 0.7 else rng.integers(len(values))
        if i == j and distinct: j = (i + 1) % len(values)
        values.append([lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b, lambda a, b: -a][rng.integers(4)](values[i], values[j]))
        unused.append(len(values) - 1)
    return values


def by_networkx(parameter, out):
    g, todo, seen = nx.DiGraph(), [out], set()
    while todo:
        n = todo.pop()
        if id(n) in seen: continue
        seen.add(id(n)); g.add_node(id(n)); todo += n.parents
        g.add_edges_from((id(p), id(n)) for p in n.parents)
    if id(parameter) not in g: return set()
    on_path = (nx.descendants(g, id(parameter)) | {id(parameter)}) & (nx.ancestors(g, id(out)) | {id(out)})
    return on_path | {p for n in on_path for p in g.predecessors(n)}


def test_the_minimal_subgraph_is_what_a_graph_library_finds_in_200_random_programs():
    rng, reached = np.random.default_rng(3), 0
    for _ in range(200):
        values = random_program(rng)
        values[-1].backward("feedback")
        for p in values[:4]:
            found = minimal_subgraph(p)
            assert {id(n) for n in found} == by_networkx(p, values[-1])
            assert [n.level for n in found] == sorted(n.level for n in found)
            reached += len(found) > 0
    assert reached > 300


def test_the_published_package_hands_on_the_same_nodes():
    opto = pytest.importorskip("opto.trace", reason="trace-opt is not installed")
    for seed in range(100):
        ours = random_program(np.random.default_rng(seed), distinct=True)      # the package itself stops at x * x
        theirs = random_program(np.random.default_rng(seed), lambda v, trainable: opto.node(v, trainable=trainable), True)
        assert [n.data for n in ours] == [n.data for n in theirs]
        ours[-1].backward("x")
        theirs[-1].backward("x", propagator=opto.propagators.GraphPropagator())
        for p, q in zip(ours[:4], theirs[:4], strict=True):
            known = {id(n) for fs in q.feedback.values() for f in fs for _, n in f.graph}
            assert {i for i, n in enumerate(ours) if n in minimal_subgraph(p)} == {i for i, n in enumerate(theirs) if id(n) in known}


@pytest.mark.parametrize("name", sorted(set(BINARY) - {"matmul"}))
def test_operators_compute_what_python_computes_forward_and_reflected(name):
    f = BINARY[name][1]
    for a, b in ((7, 3), (2, 5)):
        x, y = node(a), node(b)
        for out in (f(x, y), f(x, b), f(a, y)):
            assert isinstance(out, MessageNode) and out.data == f(a, b)
            assert f"[{name}]" in out.description or name in ("lt", "le", "gt", "ge", "eq", "ne")      # Python may mirror a comparison
    assert f(node(7), node(3)).level == 1


def test_indexing_methods_and_containers_stay_in_the_graph():
    word, xs, d = node("abc", "word"), node([3, 1, 2], "xs"), node({"k": 5}, "d")
    assert word.upper().data == "ABC" and word[0].data == "a" and xs[-1].data == 2 and d["k"].data == 5 and xs.len().data == 3 and xs.contains(1).data is True
    assert xs.append(9).data == [3, 1, 2, 9] and xs.set(0, 7).data == [7, 1, 2] and xs.data == [3, 1, 2]      # nothing changes in place
    assert [v.data for v in xs] == [3, 1, 2] and [k.data for k in d] == ["k"] and node(max)(xs).data == 3 and node("-").join(node(["a", "b"])).data == "a-b"
    both = node({"a": word, "b": 1})
    assert both.data == {"a": "abc", "b": 1} and both.level == 1 and word in TraceGraph({id(p): p for p in both.parents})
    with pytest.raises(TraceError, match=r"xs\.set\(0, value\)"): xs[0] = 5


def test_an_operator_that_changes_its_argument_does_not_change_the_past():
    @bundle()
    def spoil(xs):
        "Sort in place."
        xs.sort()
        return xs
    xs = node([3, 1, 2])
    assert spoil(xs).data == [1, 2, 3] and xs.data == [3, 1, 2]
    array = node(np.array([1.0, 2.0]))
    @bundle()
    def zero(a):
        "Zero in place."
        a[:] = 0
        return a
    zero(array)
    assert array.data.tolist() == [1.0, 2.0]


def test_equality_builds_a_node_and_membership_goes_by_identity():
    a, b = node(1), node(1)
    assert isinstance(a == b, MessageNode) and (a == b).data is True and len({a, b}) == 2
    (a + 1).backward("x")
    found = GraphPropagator().aggregate(a.feedback)
    assert a in found and b not in found and "x" not in found


def test_a_graph_is_gone_as_soon_as_its_result_is():
    a = node(1.0, trainable=True)
    out = a + 1
    inner, ref = weakref.ref(out), weakref.ref(out * 2)
    gc.disable()
    try:
        assert ref() is None                    # nobody held it
        del out
        assert inner() is None and a.children == []
    finally: gc.enable()


def test_names_repeat_after_a_reset_and_are_unique_where_they_are_printed():
    a = node(1.0, "a", trainable=True)
    GRAPH.reset(); first = a + 1
    GRAPH.reset(); second = first + 1           # both are called add0
    assert first.name == second.name == "add0"
    same = node(2.0, "a")
    (second * same).backward("x")
    names = minimal_subgraph(a).names
    assert len(set(names.values())) == len(names) and names[a] == "a" and names[same] == "a_2"


def test_feedback_goes_back_once_and_must_be_one():
    a = node(1.0, trainable=True)
    out = a + 1
    out.backward("x", retain_graph=True); out.backward("x")
    with pytest.raises(TraceError, match="retain_graph=True"): out.backward("x")
    with pytest.raises(ParameterError, match="feedback=None"): (a + 1).backward(None)
    shared = a * 2
    one, two = shared + 1, shared + 2
    one.backward("x")
    with pytest.raises(TraceError, match="stack several outputs"): two.backward("x")
    b = node(1.0, trainable=True)
    (b + 1).backward("x"); (b + 2).backward("y")
    with pytest.raises(TraceError, match="two different feedbacks"): minimal_subgraph(b)
    b.zero_feedback()
    node([b + 1, b + 2]).backward("z")
    assert minimal_subgraph(b).feedback == "z"
    with pytest.raises(ParameterError, match="must be a Propagator"): (b + 1).backward("x", propagator="graph")


def test_no_feedback_stays_on_the_way():
    a = node(1.0, trainable=True)
    mid = a + 1
    (mid * mid).backward("x")
    assert mid.feedback == {} and list(a.feedback) == [mid]


def test_sums_add_numbers_join_texts_and_refuse_both():
    a = node(1.0, trainable=True)
    ((a + 1) * (a + 2)).backward(1.0, SumPropagator())
    assert SumPropagator().aggregate(a.feedback) == 2.0
    a.zero_feedback(); (a + 1).backward("one", SumPropagator()); (a + 2).backward("two", SumPropagator())
    assert SumPropagator().aggregate(a.feedback) == "onetwo"
    (a + 3).backward(1.0, SumPropagator())
    with pytest.raises(TraceError, match="one kind"): SumPropagator().aggregate(a.feedback)
    with pytest.raises(TraceError, match="zero_feedback"): minimal_subgraph(a)


def test_an_operator_can_have_a_rule_of_its_own_and_must_tell_every_parent():
    a, b = node(1.0, trainable=True), node(2.0, trainable=True)
    p = SumPropagator()
    p.register("multiply", lambda child: {child.parents[0]: 1.0, child.parents[1]: 10.0})
    (a * b).backward(5.0, p)
    assert p.aggregate(a.feedback) == 1.0 and p.aggregate(b.feedback) == 10.0
    p.register("multiply", lambda child: {child.parents[0]: 1.0})
    with pytest.raises(TraceError, match="every parent"): (a * b).backward(5.0, p)


def test_failures_are_nodes_from_which_feedback_goes_back():
    a = node(0.0, "a", trainable=True)
    with pytest.raises(ExecutionError, match="ZeroDivisionError") as caught: 1 / a
    failed = caught.value.node
    assert isinstance(failed, ExceptionNode) and failed.kind == "exception" and isinstance(caught.value.__cause__, ZeroDivisionError)
    failed.backward("do not divide by zero")
    assert failed in minimal_subgraph(a)
    sections = describe(minimal_subgraph(a), [a])
    assert "ZeroDivisionError" in sections["Outputs"] and "divide" in sections["Code"]


def test_nothing_is_recorded_while_tracing_is_stopped():
    a = node(2.0, trainable=True)
    with stop_tracing(): out = a * 3
    assert type(out) is Node and out.data == 6.0 and (a * 3).level == 1


def test_copies_and_pickles_are_detached():
    a = node([1], "a", trainable=True, constraint="short")
    out = a + [2]
    for twin in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert type(twin) is ParameterNode and twin.name == "a" and twin.data == [1] and twin.data is not a.data
    for twin in (copy.deepcopy(out), pickle.loads(pickle.dumps(out)), out.detach()): assert twin.is_root and twin.data == [1, 2]


@pytest.mark.parametrize("make, said", [
    (lambda: node(1, "two words"), "usable in Python code"), (lambda: node(1, ""), "usable in Python code"), (lambda: Node(1, description=None), "is not a text"),
    (lambda: node(1, constraint=3), "neither a text nor"), (lambda: between(2, 1), "swap"), (lambda: one_of(), "allows nothing"), (lambda: TraceGraph().draw(), "nothing to draw")])
def test_what_cannot_be_a_node_is_refused(make, said):
    with pytest.raises(ParameterError, match=said): make()


def test_a_picture_needs_nothing_but_matplotlib():
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    a, b = node(1.5, "a", trainable=True), node("x" * 100, "b")
    out = node([a + 1, b.upper()])[0] * a
    out.backward("x")
    ax = minimal_subgraph(a).draw()
    assert {t.get_text().split("\n")[0] for t in ax.texts if t.get_text()} == set(minimal_subgraph(a).names.values())
    assert minimal_subgraph(a).dot.startswith("digraph") and 'a" -> ' in minimal_subgraph(a).dot
    plt.close("all")


# --- bundles -----------------------------------------------------------------------------------------------------------------------------------------------------

def test_arguments_become_inputs_by_name_with_their_defaults():
    @bundle()
    def f(a, /, b, *rest, c=3, **more):
        "Everything."
        return [a, b, list(rest), c, more]
    out = f(1, 2, 4, 5, d=6)
    assert out.data == [1, 2, [4, 5], 3, {"d": 6}] and list(out.inputs) == ["a", "b", "rest_0", "rest_1", "c", "d"]
    with pytest.raises(TypeError): f()
    @bundle()
    def g(x, k=3):
        "Times k."
        return x * k
    assert list(g(node(2)).inputs) == ["x", "k"] and g(node(2)).description == "[g] Times k." and "return x * k" in g(2).source


def test_a_node_that_was_not_passed_is_refused_or_becomes_an_input():
    w = node(3.0, "w", trainable=True)
    with pytest.raises(TraceError, match="'w'"): bundle(description="adds w")(lambda x: x + w.data)(1.0)
    out = bundle(description="adds w", allow_external_dependencies=True)(lambda x: x + w.data)(1.0)
    assert out.data == 4.0 and out.inputs["w"] is w
    made_inside = bundle(description="own nodes")(lambda x: (node(x) * 2 + 1))(2.0)
    assert made_inside.data == 5.0 and len(made_inside.parents) == 1
    inner = bundle(description="reads w", name="inner", allow_external_dependencies=True)(lambda x: x * w.data)
    with pytest.raises(TraceError, match="'w'"): bundle(description="hides it")(lambda x: inner(x).data)(2.0)


def gen():
    "Yields."
    yield 1


async def later():
    "Later."


@pytest.mark.parametrize("make, said", [
    (lambda: bundle(lambda x: x), "no source"), (lambda: bundle(len), "no source"), (lambda: bundle(lambda x: x, trainable=True), "no source that could be changed"),
    (lambda: bundle(len, trainable=True, description="length"), "no source that could be changed"), (lambda: bundle(gen), "generator"), (lambda: bundle(later), "coroutine"),
    (lambda: bundle(3, description="x"), "operator of a function"), (lambda: starts_with("x = 1"), "no line such as"), (lambda: model(3), "decorates a class")])
def test_what_cannot_be_bundled_is_refused(make, said):
    with pytest.raises(ParameterError, match=said): make()


def test_a_generator_that_comes_back_is_refused():
    with pytest.raises(TraceError, match="return a list"): bundle(description="lazy")(lambda n: (i for i in range(n)))(3)


@bundle(trainable=True)
def inverse(x):
    "One over x."
    return 1 / x


@bundle(trainable=True, trusted=True)
def trusted_inverse(x):
    "One over x."
    return 1 / x


@pytest.mark.parametrize("f", [inverse, trusted_inverse])
def test_proposed_code_runs_and_fails_alike_in_the_sandbox_and_here(f):
    f.parameter.data = f.source
    assert f(4.0).data == 0.25 and next(iter(f(4.0).inputs.values())) is f.parameter
    with pytest.raises(ExecutionError) as caught: f(0.0)
    assert caught.value.node.data.startswith("ZeroDivisionError") and caught.value.node.line == "return 1 / x"
    f.parameter.data = f.source.replace("1 / x", "1 / (x")
    with pytest.raises(ExecutionError, match="SyntaxError"): f(1.0)
    f.parameter.data = f.source.replace("1 / x", "2 / x")
    assert f(4.0).data == 0.5
    f.parameter.data = f.source


def test_untrusted_code_is_kept_away_from_this_process_and_its_files(tmp_path):
    target = tmp_path / "x"
    code = f"def f():\n    import os\n    open({str(target)!r}, 'w').write('here')\n    return os.getpid()"
    with Sandbox() as box:
        try: found = run_code(code, "f", [], {}, sandbox=box)
        except Exception as error: found = str(error)
    import os
    assert not target.exists() and found != os.getpid()
    with Sandbox(limits=Limits(seconds=1)) as box, pytest.raises(Exception, match="TimeLimit"): run_code("def f():\n    while True: pass", "f", [], {}, sandbox=box)
    with pytest.raises(TraceError, match="cannot enter the sandbox"): inverse({1, 2})


def test_errors_can_come_as_they_are_and_spent_budgets_always_do():
    @bundle(catch_execution_error=False)
    def f(x):
        "Fails."
        raise KeyError(x)
    with pytest.raises(KeyError): f("a")
    meter = Metered(FunctionLM(lambda p, r: "hi"), calls=1)
    ask = bundle(description="asks")(lambda p: meter.answer(p))
    ask("one")
    with pytest.raises(BudgetExceeded): ask("two")


def test_the_source_is_taken_without_decorators_and_compared_by_its_def_line():
    assert function_source(inverse.function).startswith("def inverse(x):") and signature_line("def  f( x:int,y = 2 )->float :\n  pass") == "def f(x, y=2):"
    rule = starts_with("def f(x):")
    assert rule.allows("def f(x):\n    return (") and not any(map(rule.allows, ("def f(x, y): pass", "import os\ndef f(x): pass", "def g(x): pass", "", 3)))


@model
class Shop:
    "Two parameters and a part."
    def __init__(self): self.rate, self.parts = node(0.1, "rate", trainable=True), [{"deep": node("a", "deep", trainable=True)}]

    @bundle(trainable=True, trusted=True)
    def label(self, x):
        "Label."
        return f"{x + len(self.parts)}"

    def forward(self, x): return self.label(x)


def test_modules_find_their_parameters_keep_them_apart_and_save_them(tmp_path):
    one, two = Shop(), Shop()
    assert isinstance(one, Module) and sorted(one.named_parameters()) == ["label", "parts[0]['deep']", "rate"]
    one.label.parameter.data = "def label(self, x):\n    return 'new'"
    assert one(1).data == "new" and two(1).data == "2"
    one.save(tmp_path / "s.json"); two.load(tmp_path / "s.json")
    assert two(1).data == "new" and two.state() == one.state()
    with pytest.raises(ParameterError, match="differ in 'rate'"): two.load_state({"label": "x", "parts[0]['deep']": "b"})
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(DataCorrupt): two.load(tmp_path / "s.json")
    one.rate.data = {1}
    with pytest.raises(ParameterError, match="JSON"): one.save(tmp_path / "t.json")
    with pytest.raises(NotImplementedError): Module()()


# --- prompts and replies -----------------------------------------------------------------------------------------------------------------------------------------

def test_a_prompt_holds_the_minimal_subgraph_and_nothing_else():
    a, b, c = node(1.0, "a", trainable=True, constraint=between(0, 3)), node(2.0, "b", trainable=True), node(3.0, "c")
    GRAPH.reset()
    blanket = b * c
    out = (a + blanket) - 1
    out.backward("too small")
    s = describe(minimal_subgraph(a), [a])
    assert s["Code"].splitlines() == ["add0 = add(x=a, y=multiply0)", "subtract0 = subtract(x=add0, y=int0)"]
    assert s["Variables"] == "(float) a=1.0" and s["Constraints"] == "a must lie in [0, 3]" and "multiply0=6.0" in s["Inputs"] and "b=" not in s["Inputs"]
    assert s["Others"] == "(float) add0=7.0" and s["Outputs"] == "(float) subtract0=6.0" and s["Feedback"] == "too small"
    both = describe(minimal_subgraph(a) + minimal_subgraph(b), [a])          # another trainable root counts as an input
    assert "(float) b=2.0" in both["Inputs"] and "b=" not in both["Variables"] and "multiply0 = multiply(x=b, y=c)" in both["Code"]


def test_masked_sections_are_not_in_the_prompt_and_memory_is_first_in_first_out():
    a = node(1.0, "a", trainable=True)
    seen = []
    lm = FunctionLM(lambda p, rng: (seen.append(chat_text(p)), json.dumps({"suggestion": {"a": len(seen)}}))[1])
    optimizer = OptoPrime([a], lm, memory_size=2, mask=["#Code", "Others"])
    for k in range(4): step(optimizer, a + 1, f"feedback {k}")
    user = seen[-1].split("#Instruction\n")[1]
    assert "#Code" not in user and "#Others" not in user and "#Variables" in user
    assert user.count("trial ") == 2 and "feedback 0" not in user and "feedback 1" in user and "feedback 2" in user and user.index("feedback 1") < user.index("feedback 2")
    free = OptoPrime([a], lm)
    step(free, a + 1); step(free, a + 1)
    assert "#Past\n" not in seen[-1].split("#Instruction\n")[1]


def test_opro_shows_all_trials_and_no_graph():
    a, seen = node(1.0, "a", trainable=True), []
    optimizer = OPRO([a], FunctionLM(lambda p, rng: (seen.append(chat_text(p)), '{"suggestion": {"a": 2}}')[1]))
    for k in range(12): step(optimizer, a + 1, f"f{k}")
    user = seen[-1].split("#Instruction\n")[1]
    assert user.count("trial ") == 11 and not any(f"#{s}\n" in user for s in ("Code", "Inputs", "Others", "Outputs", "Documentation"))


@pytest.mark.parametrize("value, like, wanted", [
    ("14", 3, 14), ("14", 2.0, 14.0), (14.0, 3, 14), ("1,000", 1, 1000), ("False", True, False), ("true", False, True), ("no", True, False), (0, True, False),
    ("[1, 2]", [0], [1, 2]), ("(1, 2)", (0,), (1, 2)), ([1, 2], (0,), (1, 2)), ({"k": 1}, {}, {"k": 1}), (5, "text", "5"), (["a"], "text", '["a"]'), ("anything", None, "anything"),
    ("-2.5e-3", 0.1, -0.0025)])
def test_suggestions_are_cast_to_the_type_they_replace(value, like, wanted):
    found = cast(value, like)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize("value, like", [("high", 1.0), (True, 1.0), ("nan", 1.0), ("inf", 1.0), (2.5, 3), ("maybe", True), ("x", [1]), (3, [1]), ("", "", ), (3, "c")])
def test_what_cannot_be_cast_is_a_reason_and_not_a_value(value, like):
    with pytest.raises(ValueError): cast(value, like, code=isinstance(like, str))


def test_arrays_keep_their_shape():
    assert cast([1, 2], np.zeros(2)).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="shape"): cast([1, 2, 3], np.zeros(2))
    assert "array" in value_text(np.zeros(2))


@pytest.mark.parametrize("text, wanted", [
    ('{"suggestion": {"a": 1}}', {"a": 1}), ('Here:\n```json\n{"reasoning": "x", "suggestion": {"a": "1"}}\n``` done', {"a": "1"}), ("{'suggestion': {'a': 1,}}", {"a": 1}),
    ('{"a": 3}', {"a": 3}), ('"a": 7 and "b": "x y"', {"a": 7, "b": "x y"}), ('{"suggestion": {"a": "def f():\n    return {1: 2}"}}', {"a": "def f():\n    return {1: 2}"}),
    ('{"suggestion": "{\\"a\\": 2}"}', {"a": 2}), ("TERMINATE", {}), ('{"suggestion": {}}', {}), ("nothing", None), ("", None), ('{"reasoning": "hm"}', None), ("[1, 2]", None)])
def test_replies_are_read_in_every_usual_form(text, wanted):
    from designloop.lm.parsers import JSONParser
    assert read_reply(text, ["a", "b"], JSONParser()).suggestion == wanted


def test_a_violated_constraint_is_rejected_and_logged_and_the_old_value_stays():
    a, b = node(1.0, "a", trainable=True, constraint=between(0, 10)), node("red", "b", trainable=True, constraint=one_of("red", "blue"))
    optimizer = OptoPrime([a, b], says('{"suggestion": {"a": 11, "b": "blue", "z": 1}}'))
    log = step(optimizer, node([a, b]))
    assert (a.data, b.data) == (1.0, "blue") and log.accepted == {"b": "blue"} and "must lie in [0, 10]" in log.rejected["a"] and log.rejected["z"] == "no variable of this name"
    assert "must lie" in optimizer.frame["rejected"].iloc[0]
    broken = node(1.0, "c", trainable=True, constraint=type(between(0, 1))("odd", lambda v: 1 / 0))
    assert "ZeroDivisionError" in step(OptoPrime([broken], says('{"suggestion": {"c": 2}}')), broken + 1).rejected["c"] and broken.data == 1.0


def test_code_must_keep_its_signature_and_may_be_unreadable():
    f = bundle(trainable=True, trusted=True)(inverse.function)
    optimizer = OptoPrime([f.parameter], says('{"suggestion": {"__code_inverse": ""}}', '{"suggestion": {"__code_inverse": "def other(x): return 1"}}',
                                              '{"suggestion": {"__code_inverse": "```python\\ndef inverse(x):\\n    return (1\\n```"}}'))
    assert "empty" in step(optimizer, f(2.0)).rejected["__code_inverse"]
    assert "def inverse(x):" in step(optimizer, f(2.0)).rejected["__code_inverse"]
    step(optimizer, f(2.0))
    with pytest.raises(ExecutionError, match="SyntaxError"): f(2.0)


def test_a_reply_without_a_suggestion_is_asked_for_twice_more_and_then_nothing_changes():
    a, calls = node(1.0, "a", trainable=True), []
    optimizer = OptoPrime([a], FunctionLM(lambda p, rng: (calls.append(p), "well")[1]))
    optimizer.backward(a + 1, "no")
    with pytest.warns(UserWarning, match="nothing was changed"): log = optimizer.step()
    assert len(calls) == 3 and log.unread == 3 and a.data == 1.0 and len(optimizer.memory) == 1 and "no JSON object" in calls[-1][-1]["content"]
    optimizer = OptoPrime([a], says("hm", '{"suggestion": {"a": 5}}'))
    assert step(optimizer, a + 1).unread == 1 and a.data == 5.0


def test_terminate_stops_without_a_change():
    a = node(1.0, "a", trainable=True)
    optimizer = OptoPrime([a], silent)
    assert step(optimizer, a + 1).terminated and optimizer.terminated and a.data == 1.0


def test_a_parameter_out_of_reach_is_named_and_left_alone():
    a, far = node(1.0, "a", trainable=True), node(1.0, "far", trainable=True)
    optimizer = OptoPrime([a, far], says('{"suggestion": {"a": 2, "far": 9}}'))
    optimizer.backward(a + 1, "no")
    with pytest.warns(UserWarning, match="no feedback has reached far"): log = optimizer.step()
    assert far.data == 1.0 and a.data == 2.0 and log.rejected["far"] == "no feedback has reached it"
    optimizer.zero_feedback()
    with pytest.warns(UserWarning, match="no feedback has reached a, far"): assert optimizer.step().replies == []
    with pytest.raises(TraceError, match="call backward first"): optimizer.prompt()


@pytest.mark.parametrize("make, said", [
    (lambda a: OptoPrime([node(1.0)], silent), "not trainable"), (lambda a: OptoPrime([a, 3], silent), "not trainable"), (lambda a: OptoPrime([], silent), "empty"),
    (lambda a: OptoPrime([a, node(2.0, "a", trainable=True)], silent), "two parameters are called 'a'"), (lambda a: OptoPrime([a], print), "must be an LM"),
    (lambda a: OptoPrime([a], silent, memory_size=-1), "memory_size"), (lambda a: OptoPrime([a], silent, mask=["Cod"]), "Did you mean 'Code'"),
    (lambda a: OptoPrime([a], silent, max_tokens=0), "max_tokens"), (lambda a: OptoPrime([a], silent, retries=1.5), "retries"),
    (lambda a: OptoPrime([a], silent, seed=-1), "seed"),
    (lambda a: trace_optimizer([a], silent, "optoprim"), "Did you mean 'optoprime'"),
    (lambda a: trace_optimizer([a], silent, "opro", backend="trace-opt"), "no published counterpart"),
    (lambda a: SymbolicOptimizer(step=0), "step"), (lambda a: SymbolicOptimizer(candidates=0), "candidates")])
def test_what_an_optimizer_cannot_work_with_is_refused(make, said):
    with pytest.raises(ParameterError, match=said): make(node(1.0, "a", trainable=True))


def test_a_spent_budget_loses_nothing():
    a = node(1.0, "a", trainable=True)
    optimizer = OptoPrime([a], Metered(says('{"suggestion": {"a": 2}}', "x"), calls=1))
    step(optimizer, a + 1)
    with pytest.raises(BudgetExceeded): step(optimizer, a + 1)
    assert a.data == 2.0 and len(optimizer.log) == 2 and optimizer.log[0].accepted == {"a": 2.0}


def test_textgrad_asks_once_an_edge_that_leads_to_a_parameter_and_once_a_parameter():
    a, b, c = node(1.0, "a", trainable=True), node(2.0, "b", trainable=True), node(3.0, "c")
    chats = []
    def critic(chat, rng):
        chats.append(chat)
        return "it should be larger by 1" if "#Criticise" in chat[-1]["content"] else json.dumps({"suggestion": {n: 7.0 for n in "ab" if f"(float) {n}=" in chat[-1]["content"]}})
    optimizer = TraceTextGrad([a, b], FunctionLM(critic))
    step(optimizer, (a + b) * (a + c), "too small")
    assert optimizer.calls == len(chats) == 2 + 2 + 1 + 2 and (a.data, b.data) == (7.0, 7.0)
    assert not any("#Criticise\nc" in c[-1]["content"] for c in chats)


def test_the_published_backend_steps_or_says_what_is_missing():
    a = node(1.0, "a", trainable=True)
    try: opto = published("trace"); published("optimizers.optoprime")
    except ParameterError as error:
        assert "trace-opt" in str(error) and "install" in str(error)
        with pytest.raises(ParameterError, match="trace-opt"): trace_optimizer([a], silent, backend="trace-opt")
        pytest.skip("trace-opt is not installed")
    x = opto.node(1.0, name="x", trainable=True)
    optimizer = trace_optimizer([x], FunctionLM(lambda chat, rng: '{"reasoning": "r", "answer": "", "suggestion": {"x0": 5.0}}'), backend="trace-opt")
    optimizer.zero_feedback(); optimizer.backward(x + 1, "too small"); optimizer.step()
    assert x.data == 5.0 and optimizer.calls == 1


# --- the symbolic reader -----------------------------------------------------------------------------------------------------------------------------------------

def test_the_program_is_rebuilt_from_the_text_alone():
    for k in range(40):
        p = numerical_problem(k)
        xs = [node(v, f"x{i}", trainable=True) for i, v in enumerate(p.start)]
        out = p.run(xs, BUNDLED, [node(v, f"c{i}") for i, v in enumerate(p.given)])
        optimizer = OptoPrime(xs, silent)
        optimizer.backward(out, p.feedback(out.data))
        seen = read_prompt(chat_text(optimizer.prompt()))
        f = plain_program(seen)
        assert f({}) == out.data
        moved = {n: v + 0.25 for n, v in seen.variables.items()}
        values = [moved.get(f"x{i}", v) for i, v in enumerate(p.start)]
        assert math.isclose(f(moved), p.run(values), rel_tol=1e-12, abs_tol=1e-12)


def test_what_is_masked_does_not_exist_for_the_reader():
    a = node(1.0, "a", trainable=True)
    optimizer = OptoPrime([a], silent, mask=["Code", "Others", "Inputs"])
    optimizer.backward(a * 3 + 1, "too small by 2")
    seen = read_prompt(chat_text(optimizer.prompt()))
    assert seen.code == [] and plain_program(seen) is None and program_text(seen) is None and seen.variables == {"a": 1.0} and read_feedback(seen.feedback).by == 2.0


def test_a_newton_step_solves_a_line_and_a_worse_trial_is_halved():
    a = node(1.0, "a", trainable=True)
    optimizer = OptoPrime([a], SymbolicOptimizer(), memory_size=3)
    step(optimizer, a * 3 + 1, "too small by 6")
    assert math.isclose(a.data, 3.0, rel_tol=1e-6)
    step(optimizer, a * 3 + 1, "too large by 9")                    # worse than before, so half of the step
    assert math.isclose(a.data, 2.0, rel_tol=1e-6)


def test_bounds_whole_numbers_and_directions_are_kept():
    n, x = node(5, "n", trainable=True, constraint=between(0, 6)), node(1.0, "x", trainable=True, constraint=between(0, 2))
    optimizer = OptoPrime([n, x], SymbolicOptimizer(), memory_size=10)
    for _ in range(6): log = step(optimizer, n * x, "The number should be larger.")
    assert not log.rejected and isinstance(n.data, int) and 0 <= n.data <= 6 and 0 <= x.data <= 2 and n.data * x.data > 5


def test_coordinate_search_finds_a_minimum_from_scores_alone():
    x, y = node(3.0, "x", trainable=True), node(-2.0, "y", trainable=True)
    optimizer = OptoPrime([x, y], SymbolicOptimizer(), memory_size=20, mask=["Code", "Others"])
    best = []
    for _ in range(60):
        out = (x - 1) * (x - 1) + (y - 2) * (y - 2)
        best.append(out.data)
        step(optimizer, out, f"loss {out.data:.9f}; lower is better")
    assert min(best) < 1e-2 < best[0]


def test_replies_of_the_reader_are_json_a_function_of_the_prompt_and_the_seed():
    a = node(1.0, "a", trainable=True)
    optimizer = OptoPrime([a], silent)
    optimizer.backward(a + 1, "loss 3; lower is better")
    reader, chat = SymbolicOptimizer(), optimizer.prompt()
    one, two, other = (reader.generate([chat], seed=s)[0][0].text for s in (1, 1, 2))
    assert one == two and set(json.loads(one)) == {"reasoning", "answer", "suggestion"} and set(json.loads(other)["suggestion"]) == {"a"}
    assert "no variable" in reader.answer("Hello") and reader.answer(chat_text(chat).replace("loss 3; lower is better", "All tests passed.")) == "TERMINATE"


def test_edits_differ_parse_and_keep_the_def_line():
    code = 'def f(language, name):\n    "Doc."\n    return "Hello, " + nam'
    found = edits(code, ["Hola"], {"language": ["en", "es"]})
    assert len(found) == len(set(found)) >= 8 and all(signature_line(t) == "def f(language, name):" for t in found) and any(t.endswith("+ name") for t in found)
    assert all('"""Doc."""' in t for t in found) and edits("x = 1") == [] and edits("def f(x)\n    return x") == ["def f(x):\n    return x"]
    assert bodies("def f(n):\n    return n", ["a"], [{"n": 3}]) == []
    assert closeness({"error": "x"}, []) < closeness(None, []) and closeness(["a"], ["a"]) == (1, 1.0, 1.0)


def test_candidates_run_in_the_sandbox_and_not_here(tmp_path):
    target = tmp_path / "x"
    code = CodeParameter(f"def f(x):\n    open({str(target)!r}, 'w').write('1')\n    return x + y", "__code_f", "", starts_with("def f(x):"))
    call = bundle(lambda __code, x: 0, name="f", description="f")         # noqa: E731 — its name for the prompt is what matters
    out = MessageNode("NameError: name 'y' is not defined", {"__code": code, "x": node(1, "x")}, "f", "f")
    optimizer = OptoPrime([code], SymbolicOptimizer())
    step(optimizer, out, 'expected 2')
    assert not target.exists() and call.name == "f"


def test_the_reader_mends_two_mistakes_and_not_without_the_trace():
    solved = {}
    for name, mask in (("trace", ()), ("masked", ("Code", "Documentation", "Inputs", "Others", "Outputs"))):
        solved[name] = 0
        for k in range(2):
            task = programs.greeting_task(k)
            parts = {f: CodeParameter(c, f"__code_{f}", "", starts_with(c.splitlines()[0])) for f, c in task.codes.items()}
            optimizer = OptoPrime(list(parts.values()), SymbolicOptimizer(), memory_size=10, mask=mask)
            def call(f, parts=parts, **inputs):
                from designloop.optimizers.trace_graph import operate
                return operate(f, f, lambda **v: run_code(v.pop("__code"), f, [], v, trusted=True), {"__code": parts[f], **inputs})
            for _ in range(4):
                replies = None
                try: out = node([call("greet", language=call("language_of", message=m), **{"name": task.name_of(m)}) for m, _ in task.tests])
                except ExecutionError as error: out = error.node
                else: replies = out.data
                if task.feedback(replies) == "All tests passed.": solved[name] += 1; break
                step(optimizer, out, task.feedback(replies))
    assert solved["trace"] == 2 and solved["masked"] == 0


def test_weights_in_code_are_raised_and_lowered():
    assert weigh("def f(a, b):\n    return 0 * a + 4 * b", {"a": 1}) == "def f(a, b):\n    return 1 * a + 4 * b"
    assert weigh("def f(a, b):\n    return 2 * a + 4 * b", {"a": 1, "b": -1}).endswith("4 * a + 2.0 * b")
    assert weigh("def f(a):\n    return a", {"a": 1}) is None and weigh("def f(a:", {"a": 1}) is None


# --- tasks -------------------------------------------------------------------------------------------------------------------------------------------------------

def test_numerical_problems_are_what_they_say():
    for k in range(20):
        p = numerical_problem(k, smooth=k % 2 == 0)
        assert 5 <= len(p.lines) <= 20 and p.run(p.hidden) == p.target and p == numerical_problem(k, smooth=k % 2 == 0) and (k % 2 or p.smooth)
        gap = p.run(p.start) - p.target
        w = read_feedback(p.feedback(p.run(p.start)))
        assert w.sign == -math.copysign(1, gap) and math.isclose(w.by, abs(gap), rel_tol=1e-6)
        assert read_feedback(p.feedback(p.run(p.start), "direction")).sign == w.sign
        assert math.isclose(read_feedback(p.feedback(p.run(p.start), "score")).score, abs(gap), rel_tol=1e-6)
    with pytest.raises(ParameterError, match="kind"): p.feedback(1.0, "loud")
    with pytest.raises(ParameterError, match="operators"): numerical_problem(0, operators=4)


def test_the_crossing_is_what_a_queue_counted_second_by_second_gives():
    green, seconds = (30.0, 40.0), 1800
    arrivals = np.random.default_rng([3, 15]).poisson(traffic.RATES, (seconds, 2))
    waited, queue, cycle = np.zeros(2), np.zeros(2), sum(green) + 8
    for t in range(seconds):
        at = (t + 0.5) % cycle
        for i, is_open in enumerate((at < 30, 34 <= at < cycle - 4)): queue[i] = max(queue[i] + arrivals[t, i] - 0.5 * is_open, 0)
        waited += queue
    found = traffic.simulate(*green, seed=3)
    assert math.isclose(found["delay"], waited.sum() / arrivals.sum()) and math.isclose(found["delay_ns"], waited[0] / arrivals[:, 0].sum())
    with pytest.raises(ParameterError, match="green_ns"): traffic.simulate(10, 20)
    with pytest.raises(ParameterError, match="kind"): traffic.advice(found, green, "loud")
    hints = [read_feedback(traffic.advice({"delay": 1, "delay_ns": a, "delay_ew": b, "queue": 1}, green)).hints for a, b in ((9, 1), (1, 9), (1, 1))]
    assert [next(iter(h.items())) for h in hints] == [("green_ns", (1, None)), ("green_ew", (1, None)), ("green_ew", (-1, None))]


def test_battleship_counts_shots_and_says_what_was_seen():
    boards = [battleship.place_ships(np.random.default_rng(k)) for k in range(3)]
    assert all(sum(map(sum, b)) == sum(battleship.SHIPS) for b in boards)
    with Sandbox() as box:
        plain, hand = (battleship.play(**p, boards=boards, sandbox=box) for p in (battleship.START, battleship.HAND))
        assert sum(g["shots"] for g in hand) < sum(g["shots"] for g in plain) and battleship.play(**battleship.HAND, boards=boards, sandbox=box) == hand
        assert {k for k in read_feedback(battleship.report(plain)).weights} >= {"hits_near"} and read_feedback(battleship.report(hand)).weights == {}
        stuck = battleship.play(battleship.START["reason"], "def act(cells):\n    return [0, 0, 0, 0]", boards[:1], sandbox=box)
        assert stuck[0]["shots"] == 200 and stuck[0]["left"] > 0
        with pytest.raises(RuntimeError, match="NameError"): battleship.play(battleship.START["reason"], "def act(cells):\n    return x", boards, sandbox=box)


def test_the_network_and_the_cart_take_what_they_should():
    with pytest.raises(ParameterError, match="width"): programs.train_digits(-2.0, 100, -3.0)
    with pytest.raises(ParameterError, match="width"): programs.train_digits(-2.0, 8.5, -3.0)
    with Sandbox() as box:
        good = programs.CART_START.replace("0 * error - 0", "2 * error - 3")
        assert read_feedback(programs.cart_feedback(programs.drive(good, [1.0, -2.0], box))).done
        assert read_feedback(programs.cart_feedback(programs.drive(programs.CART_START, [1.0], box))).weights == {"error": 1}
        with pytest.raises(RuntimeError, match="NameError"): programs.drive("def push(error, speed): return x", [1.0], box)
    for f in (programs.cart_feedback, programs.hp_feedback):
        with pytest.raises(ParameterError, match="kind"): f([[1, 1, 1]] if f is programs.cart_feedback else {}, "loud")


def test_graph_errors_are_errors_of_this_package():
    assert issubclass(TraceError, StateError) and operator.add(node(1), 1).data == 2
