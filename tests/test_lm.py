"""Language models: the protocol and its refusals, caches that survive kill -9, budgets under threads, servers that misbehave, and keys that stay secret."""
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_server import chat_reply, fake, saying, serving

from designloop.core.errors import DesignLoopError, ParameterError
from designloop.lm.endpoint import EndpointLM
from designloop.lm.parsers import ChoiceParser, JSONParser, NumberParser, TagParser
from designloop.lm.protocol import LM, BudgetExceeded, Completion, FunctionLM, LMError, Sampling, chat_text, is_watched, open_lm
from designloop.lm.server import Faults, Server
from designloop.lm.wrappers import Cached, Metered, Retried, Transcript

TESTS = Path(__file__).resolve().parent
PACKAGE = str(TESTS.parents[0] / "pkg")
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGE, str(TESTS), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "DESIGNLOOP_LM"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DESIGNLOOP_CACHE", str(tmp_path / "cache"))


def echo(prompt, rng): return f"{chat_text(prompt)} {rng.integers(1000)}"


def texts(replies): return [[c.text for c in row] for row in replies]


# --- the protocol ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make, words", [
    (lambda lm: lm.generate("one text"), "give a list of prompts: [text]"),
    (lambda lm: lm.generate([{"role": "user", "content": "x"}]), "give a list of chats: [chat]"),
    (lambda lm: lm.generate([3]), "prompts[0]=3"),
    (lambda lm: lm.generate(None), "prompts=None"),
    (lambda lm: lm.generate([[]]), "non-empty list of messages"),
    (lambda lm: lm.generate([[{"role": "user"}]]), "'role' and 'content'"),
    (lambda lm: lm.generate([[{"role": "tool", "content": "x"}]]), "the role 'tool'"),
    (lambda lm: lm.generate([[{"role": "user", "content": 3}]]), "content of type int"),
    (lambda lm: lm.generate(["x"], n=0), "n=0"),
    (lambda lm: lm.generate(["x"], max_tokens=0), "max_tokens=0"),
    (lambda lm: lm.generate(["x"], max_tokens=1.5), "max_tokens=1.5"),
    (lambda lm: lm.generate(["x"], temperature=-1), "temperature=-1"),
    (lambda lm: lm.generate(["x"], temperature=float("nan")), "temperature=nan"),
    (lambda lm: lm.generate(["x"], top_p=0), "top_p=0"),
    (lambda lm: lm.generate(["x"], top_p=1.1), "top_p=1.1"),
    (lambda lm: lm.generate(["x"], stop=[""]), "stop=['']"),
    (lambda lm: lm.generate(["x"], seed=-1), "seed=-1"),
    (lambda lm: lm.answer("x", n=2), "n=2"),
    (lambda lm: lm.answer(5), "prompt=5"),
    (lambda lm: lm.logprobs(["a"], ["b", "c"]), "1 prompts and 2 continuations"),
    (lambda lm: lm.logprobs(["a"], [""]), "continuations[0]=''"),
    (lambda lm: lm.logprobs(["a"], "b"), "continuations='b'"),
    (lambda lm: FunctionLM(3), "function=3"),
    (lambda lm: FunctionLM(echo, ""), "name=''"),
    (lambda lm: Cached(echo), "lm is a function"),
    (lambda lm: Cached(FunctionLM(echo)), "name='…'"),
    (lambda lm: Metered(lm, calls=-1), "calls=-1"),
    (lambda lm: Metered(lm, cost=1), "without a price"),
    (lambda lm: Metered(lm, price=(1,)), "two numbers"),
    (lambda lm: Metered(lm, price=3), "two numbers"),
    (lambda lm: Retried(lm, attempts=0), "attempts=0"),
    (lambda lm: open_lm("opanai:x"), "Did you mean 'openai:…'?"),
    (lambda lm: open_lm("tiny"), "'tiny:FAMILY'"),
    (lambda lm: open_lm("openai:@http://x/v1"), "names no model"),
    (lambda lm: open_lm("hf:/no/such/folder"), "holds no config.json"),
    (lambda lm: open_lm("openai:org/m:free@localhost:8000/v1"), "write 'openai:org/m:free@http://localhost:8000/v1'"),
    (lambda lm: open_lm("openai:m@10.0.0.7/v1"), "the address '10.0.0.7/v1' without its beginning"),
    (lambda lm: open_lm("openai:m@api.example.org"), "the address 'api.example.org' without its beginning"),
    (lambda lm: EndpointLM("m", "https://example.org/v1"), "OPENAI_API_KEY is not set"),
    (lambda lm: EndpointLM("m"), "api.openai.com wants a key"),
    (lambda lm: EndpointLM("m", "http://127.0.0.1:1/v1", key_env="NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
    (lambda lm: EndpointLM("", "http://127.0.0.1:1/v1"), "model=''"),
    (lambda lm: EndpointLM("m", "ftp://x"), "url='ftp://x'"),
    (lambda lm: EndpointLM("m", "http://me:pw@x/v1"), "key_env"),
    (lambda lm: EndpointLM("m", "http://127.0.0.1:1/v1?key=k"), "holds a query"),
    (lambda lm: EndpointLM("m", "http://127.0.0.1:1/v1", api="talk"), "api='talk'"),
    (lambda lm: EndpointLM("m", "http://127.0.0.1:1/v1", timeout=0), "timeout=0"),
    (lambda lm: EndpointLM("m", "http://127.0.0.1:1/v1", concurrency=0), "concurrency=0"),
    (lambda lm: Faults(fail=2), "fail=2"),
    (lambda lm: Server(echo), "lm is a function"),
    (lambda lm: Server(lm, port=-1), "port=-1"),
    (lambda lm: NumberParser(""), "marker=''"),
    (lambda lm: ChoiceParser("A"), "at least two"),
    (lambda lm: TagParser("<a>"), "tag='<a>'"),
    (lambda lm: JSONParser("key"), "keys='key'"),
    (lambda lm: NumberParser()(3), "reply is a int"),
])
def test_bad_input_is_refused_in_one_sentence(make, words):
    with pytest.raises(ParameterError) as caught: make(fake())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_samples_depend_on_seed_prompt_and_index_only():
    lm = FunctionLM(echo, "echo")
    whole = lm.generate(["a", "b", "c"], n=4, seed=3)
    assert lm.generate(["c", "a"], n=4, seed=3) == [whole[2], whole[0]]
    assert [row[:2] for row in whole] == lm.generate(["a", "b", "c"], n=2, seed=3)
    assert texts(whole) != texts(lm.generate(["a", "b", "c"], n=4, seed=4)) and len(set(texts(whole)[0])) > 1
    assert texts(lm.generate(["a"], n=8)) != texts(lm.generate(["a"], n=8))                # no seed: new each time
    chat = [{"role": "user", "content": "a"}]
    assert texts(lm.generate([chat], n=4, seed=3))[0] == texts(whole)[0]                  # a text is a chat of one message


def test_a_model_that_overrides_generate_wears_every_wrapper(tmp_path):
    class Plain(LM):
        name, asked = "plain", 0
        def generate(self, prompts, n=1, max_tokens=256, temperature=1.0, stop=None, seed=None, top_p=1.0):
            Plain.asked += len(prompts)
            return [[Completion(f"{p}{i}") for i in range(n)] for p in prompts]
    lm = Transcript(tmp_path / "t.jsonl").watch(Cached(Metered(Retried(Plain())), tmp_path))
    prompts = [f"p{k}" for k in range(40)]
    assert texts(lm.generate(prompts, n=2)) == [[f"{p}0", f"{p}1"] for p in prompts] and Plain.asked == 80
    lm.generate(prompts, n=2)
    assert Plain.asked == 80 and len(lm.transcript) == 160
    with pytest.raises(LMError, match="no log-probabilities"): lm.logprobs(["a"], ["b"])
    with pytest.raises(LMError, match="neither complete nor generate"): LM().generate(["x"])


def test_from_env_opens_what_is_named_and_nothing_else(monkeypatch):
    named = []
    module = types.ModuleType("designloop.models.tiny_lm")
    module.TinyLM = types.SimpleNamespace(named=lambda family: named.append(family) or fake())
    monkeypatch.setitem(sys.modules, "designloop.models.tiny_lm", module)
    assert LM.from_env().name == "words" and named == ["chain"]
    monkeypatch.setenv("DESIGNLOOP_LM", "tiny:string_ops")
    assert LM.from_env() and named == ["chain", "string_ops"]
    monkeypatch.setenv("DESIGNLOOP_LM", "openai:tiny:chain@http://localhost:8000/v1/")
    lm = LM.from_env()
    assert (lm.name, lm.url, lm.chat) == ("tiny:chain", "http://localhost:8000/v1", True)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("DESIGNLOOP_LM", "openai:org/model:free")
    assert (LM.from_env().name, LM.from_env().url) == ("org/model:free", "https://api.openai.com/v1")
    for name in ("@cf/meta/llama", "m@20240620", "m@q4:latest", "m@1.2"): assert open_lm(f"openai:{name}").name == name      # an @ may belong to the model's id
    code = ("import sys, designloop.lm.protocol as p; p.FunctionLM(lambda a, b: a).answer('x')\n"
            "print({'torch', 'openai', 'transformers', 'fastapi', 'tqdm'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV).stdout.strip() == "set()"


def test_no_progress_bar_where_nobody_watches(capfd):
    lm = FunctionLM(echo, "echo")
    lm.progress = None
    lm.generate(["a"] * 50)
    assert not is_watched() and capfd.readouterr().err == ""
    lm.progress = True
    lm.generate(["a"] * 3)
    assert "echo" in capfd.readouterr().err


def test_an_error_keeps_what_was_done():
    def third(prompt, rng):
        if prompt == "2": raise LMError("gone")
        return prompt
    with pytest.raises(LMError) as caught: FunctionLM(third, "third").generate(list("0123"))
    assert [row[0] and row[0].text for row in caught.value.done] == ["0", "1", None, None]
    with pytest.raises(LMError, match="must return a text"): FunctionLM(lambda p, rng: 3, "three").generate(["x"])


# --- the cache -------------------------------------------------------------------------------------------------------

EVALUATION = """
import os, sys, time
from designloop.lm.protocol import FunctionLM
from designloop.lm.wrappers import Cached
log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def slow(prompt, rng):
    os.write(log, b".")
    time.sleep(0.0003)
    return f"{prompt} {rng.integers(1000)}"
replies = Cached(FunctionLM(slow, "slow"), sys.argv[1]).generate([f"question {k}" for k in range(5000)], seed=1, max_tokens=8)
print(sum(int(c.text.split()[-1]) for row in replies for c in row))
"""


def test_kill_minus_nine_half_way_through_5000_calls_and_only_the_missing_ones_are_made(tmp_path):
    log = tmp_path / "calls"
    arguments = [sys.executable, "-c", EVALUATION, str(tmp_path / "cache"), str(log)]
    process = subprocess.Popen(arguments, env=ENV, stdout=subprocess.DEVNULL)
    while process.poll() is None and (not log.exists() or log.stat().st_size < 2500): time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    made, stored = log.stat().st_size, len(Cached(fake(), tmp_path / "cache").store)
    assert 2500 <= made < 5000 and made - 1 <= stored <= made           # at most the call that was under way is lost
    log.unlink()
    done = subprocess.run(arguments, env=ENV, capture_output=True, text=True, timeout=180)
    assert log.stat().st_size == 5000 - stored
    truth = FunctionLM(lambda prompt, rng: f"{prompt} {rng.integers(1000)}", "slow").generate([f"question {k}" for k in range(5000)], seed=1)
    assert int(done.stdout) == sum(int(c.text.split()[-1]) for row in truth for c in row)


def test_1000_replies_are_read_from_disk_in_no_time(tmp_path):
    prompts = [f"question {k}" for k in range(1000)]
    first = Cached(fake(), tmp_path).generate(prompts, seed=0)
    lm = Cached(fake(), tmp_path)
    begun = time.process_time()
    again = lm.generate(prompts, seed=0)
    assert time.process_time() - begun < 1 and (lm.hits, lm.misses) == (1000, 0)
    assert texts(again) == texts(first) and all((a[0].token_logprobs == b[0].token_logprobs).all() for a, b in zip(again, first, strict=True))


def test_every_argument_is_part_of_the_address_and_samples_grow(tmp_path):
    asked = []
    def note(prompt, rng): asked.append(prompt); return f"{prompt}{rng.integers(10**6)}"
    def lm(name="note"): return Cached(FunctionLM(note, name), tmp_path)
    base = lm().generate(["a"], n=2, seed=0)
    assert lm().generate(["a"], n=5, seed=0)[0][:2] == base[0] and len(asked) == 5
    assert texts(lm().generate(["a"], n=5, seed=0)) == texts(FunctionLM(note, "note").generate(["a"], n=5, seed=0))
    asked.clear()
    for options in (dict(seed=1), dict(seed=0, temperature=0.5), dict(seed=0, max_tokens=9), dict(seed=0, top_p=0.9), dict(seed=0, stop="x"), dict()):
        lm().generate(["a"], **options)
    lm("other").generate(["a"], seed=0)
    lm().generate([[{"role": "user", "content": "a"}]], seed=0)
    assert len(asked) == 8
    lm().generate(["b"] * 7, seed=0)                      # equal jobs are asked for once
    assert asked.count("b") == 1


SHARING = """
import sys
from designloop.lm.protocol import FunctionLM
from designloop.lm.wrappers import Cached
lm = Cached(FunctionLM(lambda p, rng: f"{p} {rng.integers(1000)} " + "x" * 3000, "shared"), sys.argv[1])
k = int(sys.argv[2])
replies = lm.generate([f"q{i}" for i in range(k * 100, k * 100 + 300)], seed=0)
assert all(row[0].text.startswith(f"q{i + k * 100} ") for i, row in enumerate(replies))
"""


def test_processes_share_a_folder(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", SHARING, str(tmp_path), str(k)], env=ENV) for k in range(4)]
    assert [p.wait(timeout=180) for p in running] == [0] * 4
    lm = Cached(FunctionLM(lambda p, rng: 1 / 0, "shared"), tmp_path)
    assert len(lm.generate([f"q{i}" for i in range(600)], seed=0)) == 600 and lm.misses == 0
    late = Cached(FunctionLM(lambda p, rng: "new", "shared"), tmp_path)
    late.generate(["fresh"])
    assert lm.generate(["fresh"])[0][0].text == "new"     # what another one has added since is seen


def test_torn_and_damaged_lines_cost_one_call_each(tmp_path):
    Cached(fake(), tmp_path).generate(["a", "b", "c"], seed=0)
    path, = tmp_path.glob("*.jsonl")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:90] + b"?" * 5 + lines[1][91:100], lines[2][:-7]]))
    lm = Cached(fake(), tmp_path)
    with pytest.warns(UserWarning, match="damaged"): replies = lm.generate(["a", "b", "c"], seed=0)
    assert lm.misses == 2 and texts(replies) == texts(fake().generate(["a", "b", "c"], seed=0))
    again = Cached(fake(), tmp_path)
    again.generate(["a", "b", "c"], seed=0)
    assert again.misses <= 1


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path, monkeypatch):
    lm = Cached(FunctionLM(echo, "echo"), tmp_path)
    lm.generate(["a"], seed=0)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(LMError, match="disk full"): lm.generate(["b"], seed=0)
    monkeypatch.undo()
    lm.generate(["c"], seed=0)
    fresh = Cached(FunctionLM(echo, "echo"), tmp_path)
    fresh.generate(["a", "c"], seed=0)
    assert fresh.misses == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(ParameterError, match="cannot be used"): Cached(fake(), tmp_path / "file")


def test_log_probabilities_are_kept_bit_by_bit_and_errors_not_at_all(tmp_path):
    pairs = ["the ", "a "], ["cat", "dog"]
    first, lm = Cached(fake(), tmp_path).logprobs(*pairs), Cached(fake(), tmp_path)
    assert all((a == b).all() for a, b in zip(first, lm.logprobs(*pairs), strict=True)) and lm.misses == 0
    asked = []
    def broken(prompt, rng): asked.append(prompt); return Completion("", finish="error")
    for _ in range(2): Cached(FunctionLM(broken, "broken"), tmp_path).generate(["x"])
    assert len(asked) == 2


# --- the meter -------------------------------------------------------------------------------------------------------

@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(budget=st.integers(0, 60), each=st.integers(1, 4), n=st.integers(1, 3))
def test_a_budget_of_calls_is_exact_with_16_threads_on_a_real_server(budget, each, n):
    with serving() as server:
        lm = Metered(EndpointLM("words", server.url, concurrency=16), calls=budget)
        got, refused = [], []
        def work(k):
            try: rows = lm.generate([f"{k}/{i}" for i in range(each)], n=n, seed=0)
            except BudgetExceeded as error: rows = error.done; refused.append(k)
            got.extend(c for row in rows for c in row if c is not None)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert server.counts.get("requests", 0) == lm.calls == len(got) == min(budget, 16 * each * n)
        assert bool(refused) == (budget < 16 * each * n)


def test_tokens_and_cost_stay_below_their_budgets_and_nothing_is_lost():
    def reply(prompt, rng): return Completion("x", n_tokens=int(rng.integers(1, 11)), n_prompt_tokens=len(prompt))
    for limits in (dict(tokens=200), dict(cost=3e-4, price=(1.0, 3.0))):
        lm = Metered(FunctionLM(reply, "reply"), **limits)
        with pytest.raises(BudgetExceeded) as caught: lm.generate(["four"] * 200, max_tokens=10, seed=None)
        done = [c for row in caught.value.done for c in row if c is not None]
        assert len(done) == lm.calls > 5 and lm.completion_tokens == sum(c.n_tokens for c in done)
        if "tokens" in limits: assert 200 - 14 < lm.tokens <= 200
        else: assert 3e-4 * 0.8 < lm.cost <= 3e-4
        assert isinstance(caught.value, LMError) and "no room for a call" in str(caught.value)
    with pytest.raises(BudgetExceeded, match="0 are spent"): Metered(FunctionLM(reply, "reply"), tokens=5).generate(["four"])
    lm = Metered(fake(), calls=3)
    with pytest.raises(BudgetExceeded) as caught: lm.logprobs(["a"] * 5, ["bc"] * 5)
    assert [t is not None for t in caught.value.done] == [True] * 3 + [False] * 2 and lm.left == {"calls": 0, "tokens": None, "cost": None}


def test_a_reservation_is_given_back_when_the_model_fails():
    def broken(prompt, rng): raise LMError("gone")
    lm = Metered(FunctionLM(broken, "broken"), tokens=100)
    for _ in range(5):
        with pytest.raises(LMError, match="gone"): lm.generate(["x"], max_tokens=50)
    assert lm.tokens == 0 and lm.calls == 5 and lm.wall >= 0


def test_wrappers_can_be_pickled(tmp_path):
    with serving() as server:
        lm = Transcript(tmp_path / "t.jsonl").watch(Cached(Metered(Retried(EndpointLM("words", server.url)), calls=3), tmp_path / "c"))
        first = lm.generate(["a"], seed=0)
        other = pickle.loads(pickle.dumps(lm))
        assert other.generate(["a"], seed=0) == first and other.inner.inner.calls == 1 and other.generate(["b"])


def test_retried_asks_for_what_is_missing_and_gives_up_in_the_end():
    asked = []
    def shaky(prompt, rng):
        asked.append(prompt)
        if asked.count(prompt) < 3 and prompt in "bd": raise TimeoutError
        return prompt if asked.count(prompt) > 1 or prompt != "c" else Completion("", finish="error")
    lm = Retried(FunctionLM(shaky, "shaky"), attempts=4, wait=0)
    assert texts(lm.generate(list("abcde"))) == [["a"], ["b"], ["c"], ["d"], ["e"]] and asked.count("a") == 1
    def never(prompt, rng): raise LMError("never")
    lm = Retried(FunctionLM(never, "never"), attempts=3, wait=0)
    with pytest.raises(LMError, match="never"): lm.generate(["x"])
    assert lm.retries == 2
    spent = Retried(Metered(FunctionLM(echo, "echo"), calls=0), attempts=5, wait=100)
    with pytest.raises(BudgetExceeded): spent.generate(["x"])             # at once: waiting mends no budget


def test_a_transcript_is_a_page_that_survives_a_kill(tmp_path):
    transcript = Transcript(tmp_path / "deep" / "t.jsonl")
    assert len(transcript) == 0 and "0 calls" in transcript._repr_html_()
    lm = transcript.watch(FunctionLM(lambda p, rng: "<script>alert(1)</script>", "rude"))
    lm.generate([[{"role": "system", "content": "s&s"}, {"role": "user", "content": "hello"}], "plain"], n=2, seed=4)
    with open(transcript.path, "a") as file: file.write('{"prompt": "torn", "re')
    lm.answer("after")
    page = transcript._repr_html_()
    assert len(transcript) == 5 and page.count("<details") == 5 and "<script>" not in page and "s&amp;s" in page and "seed=4" in page
    assert list(transcript.frame()["index"]) == [0, 1, 0, 1, 0]
    for k in range(200): transcript.add("p", Completion(str(k)))
    assert transcript._repr_html_().count("<details") == 100 and "105 calls are not shown" in transcript._repr_html_()
    with pytest.raises(ParameterError, match="is a folder"): Transcript(tmp_path)


# --- servers that misbehave --------------------------------------------------------------------------------------------

PROMPTS = [f"prompt {k}" for k in range(60)]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_server_changes_nothing(api):
    with serving() as server:
        served = EndpointLM("words", server.url, api=api).generate(PROMPTS[:20], n=2, seed=5)
    local = fake().generate(PROMPTS[:20], n=2, seed=5)
    assert served == local
    assert all((a.token_logprobs == b.token_logprobs).all() for x, y in zip(served, local, strict=True) for a, b in zip(x, y, strict=True))


def test_failing_and_garbling_servers_change_no_score():
    truth = fake().generate(PROMPTS, seed=5)
    for faults in (dict(fail=0.3), dict(fail=0.3, garble=0.3)):
        with serving(**faults) as server:
            lm = EndpointLM("words", server.url, wait=0.001)
            assert lm.generate(PROMPTS, seed=5) == truth
            assert lm.counts["retries"] == lm.counts["requests"] - 60 == server.counts.get("failed", 0) + server.counts.get("garbled", 0) > 8
            assert lm.counts["garbled"] == server.counts.get("garbled", 0)


def test_truncated_replies_are_counted_and_not_scored():
    with serving(truncate=0.5) as server:
        lm, read = EndpointLM("words", server.url), NumberParser()
        values = read.many(lm.generate(PROMPTS, seed=5))
        truth = NumberParser().many(fake().generate(PROMPTS, seed=5))
        assert server.counts["truncated"] == lm.counts["truncated"] == read.reasons["cut at max_tokens"] == read.unread > 10
        assert all(v in ([None], t) for v, t in zip(values, truth, strict=True))


@pytest.mark.parametrize("faults, words", [(dict(garble=1.0), "no valid reply in 3 attempts"), (dict(fail=1.0), "failed 3 attempts in a row"),
                                           (dict(slow=5.0), "no reply within 0.2 s")])
def test_a_server_that_never_recovers_is_an_error_and_not_a_score(faults, words):
    with serving(**faults) as server:
        lm = EndpointLM("words", server.url, wait=0.001, attempts=3, timeout=0.2 if "slow" in faults else 60)
        with pytest.raises(LMError, match=words) as caught: lm.generate(PROMPTS[:3])
        assert caught.value.done == [[None]] * 3 and "\n" not in str(caught.value)


BODIES = ['{"choices": [', "[]", "{}", {"choices": []}, {"choices": [{}]}, chat_reply(None), chat_reply(["x"]), chat_reply(finish=None), "<html>", '"text"',
          {"choices": None}, {"error": "odd"}]


def test_every_odd_body_is_garbled():
    for body in BODIES:
        with saying(lambda path, sent, headers, body=body: (200, body, {})) as (url, seen):
            lm = EndpointLM("m", url, attempts=2, wait=0)
            with pytest.raises(LMError, match="no valid reply"): lm.answer("x")
            assert lm.counts["garbled"] == len(seen) == 2, body


def test_a_refused_reply_is_raised_or_kept_but_never_read():
    with saying(lambda path, body, headers: (200, chat_reply(None if "bad" in str(body) else "4", "content_filter" if "bad" in str(body) else "stop"), {})) as (url, _):
        with pytest.raises(LMError, match="content_filter") as caught: EndpointLM("m", url, concurrency=1).generate(["good", "bad", "good too"])
        assert caught.value.done[0][0].text == "4"
        read = NumberParser()
        assert read.many(EndpointLM("m", url, errors="keep").generate(["good", "bad", "x"])) == [[4], [None], [4]] and read.reasons == {"an error, not a reply": 1}


def test_options_that_a_server_does_not_know_are_left_out():
    def fussy(path, body, headers):
        for name, words in (("seed", "Unknown parameter"), ("logprobs", "logprobs is not supported"), ("max_tokens", "use 'max_completion_tokens' instead")):
            if name in body: return 400, {"error": {"message": words, "param": name}}, {}
        assert body["max_completion_tokens"] == 7 and "stream" in body and body["stream"] is False
        return 200, chat_reply(), {}
    with saying(fussy) as (url, seen):
        lm = EndpointLM("m", url, attempts=1)
        assert lm.answer("x", seed=1, max_tokens=7) == "ok" and lm.unsupported == {"seed", "logprobs", "max_tokens"} and len(seen) == 4
        assert lm.generate(["y"] * 5, seed=1, max_tokens=7) and len(seen) == 9
    with saying(lambda path, body, headers: (400, {"error": {"message": "seed is cursed"}}, {})) as (url, seen):
        with pytest.raises(LMError, match="refuses the request"): EndpointLM("m", url).answer("x", seed=1)
        assert len(seen) == 2


def test_retry_after_is_obeyed_and_hopeless_errors_are_raised_at_once():
    when = []
    def busy(path, body, headers):
        when.append(time.monotonic())
        return (429, {"error": {"message": "slow down"}}, {"retry-after": "0.4"}) if len(when) == 1 else (200, chat_reply(), {})
    with saying(busy) as (url, _):
        assert EndpointLM("m", url, wait=0).answer("x") == "ok" and when[1] - when[0] >= 0.4
    for status, code, words in ((429, "insufficient_quota", "refuses the request"), (404, "", "does not know the model 'm'"), (400, "", "refuses the request"),
                                (403, "", "wants a key")):
        with saying(lambda *a, status=status, code=code: (status, {"error": {"message": "no", "code": code}}, {})) as (url, seen):
            with pytest.raises(LMError, match=words) as caught: EndpointLM("m", url, wait=100).answer("x")
            assert len(seen) == 1 and caught.value.final


def test_nobody_at_the_address():
    begun = time.monotonic()
    with pytest.raises(LMError, match=r"no server answers at http://127.0.0.1:9/v1 .*designloop serve-tiny"): EndpointLM("m", "http://127.0.0.1:9/v1", wait=0.01).generate(PROMPTS)
    assert time.monotonic() - begun < 40         # twelve attempts would take longer


def test_no_more_than_concurrency_requests_at_once_in_all_threads():
    lock, now, most = threading.Lock(), [0], [0]
    def slow(path, body, headers):
        with lock: now[0] += 1; most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock: now[0] -= 1
        return 200, chat_reply(), {}
    with saying(slow) as (url, seen):
        lm = EndpointLM("m", url, concurrency=4)
        threads = [threading.Thread(target=lm.generate, args=([f"{k}{i}" for i in range(5)],)) for k in range(6)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert len(seen) == 30 and 2 <= most[0] <= 4


SECRET = "sk-very-secret-0123456789"


def failing(lm):
    "The error of a call, with the frames below this one."
    try: lm.answer("x")
    except LMError as error: return error


def test_the_key_is_sent_and_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(key=SECRET) as server:
        lm = EndpointLM("words", server.url)
        transcript = Transcript(tmp_path / "t.jsonl")
        Cached(transcript.watch(lm), tmp_path / "c").generate(["a"], seed=0)
        assert pickle.loads(pickle.dumps(lm)).answer("b")
        shown = [repr(lm), str(vars(lm)), transcript._repr_html_(), *(p.read_text() for p in tmp_path.rglob("*.jsonl")), pickle.dumps(lm).decode("latin1")]
    def rude(path, body, headers): return 401, {"error": {"message": f"Incorrect API key: {headers['authorization']} ({SECRET[:11]}***)"}}, {}
    with saying(rude) as (url, seen):
        for wrapped in (EndpointLM("m", url), Retried(EndpointLM("m", url), wait=0)):
            error = failing(wrapped)
            assert "refuses the key in the variable OPENAI_API_KEY" in str(error)
            shown += ["".join(traceback.TracebackException.from_exception(error, capture_locals=True).format()), pickle.dumps(error).decode("latin1")]
            assert error.__context__ is None and error.__cause__ is None
        assert SECRET in seen[0][2]["authorization"]
    assert not [text for text in shown if SECRET in text or "sk-very" in text]
    with saying(lambda *a: (200, chat_reply(), {})) as (url, seen):          # not in the clear to a machine elsewhere, unless it is named
        lm = EndpointLM("m", url)
        monkeypatch.setattr(lm, "url", "http://gpu.example:8000/v1")
        assert lm._variable() is None
        lm.key_env = "OPENAI_API_KEY"
        assert lm._variable() == "OPENAI_API_KEY"


def test_reading_through_a_server_is_reading():
    prompts, continuations = ["the ", "a longer beginning of ", "x"], ["cat", "something", "y"]
    with serving() as server:
        lm = EndpointLM("words", server.url)
        served = lm.logprobs(prompts, continuations)
        with pytest.raises(LMError, match="only for texts"): lm.logprobs([[{"role": "user", "content": "x"}]], ["y"])
        with pytest.raises(LMError, match="prompt that is not empty"): lm.logprobs([""], ["y"])
    for a, b in zip(served, fake().logprobs(prompts, continuations), strict=True): assert (a - b).abs().max() < 1e-6
    with serving(FunctionLM(echo, "mute")) as server:
        with pytest.raises(LMError, match="gives no log-probabilities"): EndpointLM("mute", server.url).score(["x"], ["y"])
    with saying(lambda *a: (404, {"detail": "Not Found"}, {})) as (url, _):
        with pytest.raises(LMError, match="gives no log-probabilities of given texts"): EndpointLM("m", url).score(["x"], ["y"])


HTTP_EVALUATION = """
import sys
from designloop.lm.endpoint import EndpointLM
from designloop.lm.wrappers import Cached
lm = Cached(EndpointLM("words", sys.argv[2], wait=0.001), sys.argv[1])
print("\\n".join(c.text for row in lm.generate([f"q{k}" for k in range(240)], seed=2) for c in row))
"""


def test_kill_minus_nine_over_http_with_a_server_that_fails_three_in_ten(tmp_path):
    arguments = [sys.executable, "-c", HTTP_EVALUATION, str(tmp_path)]
    with serving(fail=0.3) as server:
        process = subprocess.Popen([*arguments, server.url], env=ENV, stdout=subprocess.DEVNULL)
        while process.poll() is None and server.counts.get("answered", 0) < 90: time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    stored = len(Cached(fake(), tmp_path).store)
    assert 90 - 16 - 1 <= stored < 240
    with serving(fail=0.3, seed=1) as server:            # another port: a cache knows models, not addresses
        done = subprocess.run([*arguments, server.url], env=ENV, capture_output=True, text=True, timeout=180)
        assert server.counts["answered"] == 240 - stored
    assert done.stdout.splitlines() == [c.text for row in fake().generate([f"q{k}" for k in range(240)], seed=2) for c in row]


# --- the server -----------------------------------------------------------------------------------------------------------

def test_a_tiny_model_behind_http_is_the_tiny_model():
    tiny = pytest.importorskip("designloop.models.tiny_lm")
    import torch
    tokenizer = tiny.TinyTokenizer()
    model = tiny.TinyTransformer(tiny.TinyConfig(width=32, layers=1, heads=2, context=64, vocab=tokenizer.size))
    model.head.data.normal_(generator=torch.Generator().manual_seed(0))
    lm = tiny.TinyLM(model, tokenizer, name="random")
    prompts = ["3+4?", "a much longer prompt: ", "?"]
    with serving(lm) as server:
        client = EndpointLM("random", server.url)
        served, local = client.generate(prompts, n=4, max_tokens=12, seed=3), lm.generate(prompts, n=4, max_tokens=12, seed=3)
        assert texts(served) == texts(local) and [c.n_tokens for c in served[0]] == [c.n_tokens for c in local[0]]
        for a, b in zip(sum(served, []), sum(local, []), strict=True): torch.testing.assert_close(a.token_logprobs, b.token_logprobs, atol=1e-4, rtol=0)
        for a, b in zip(client.logprobs(prompts, ["7>7", "x", "yes"]), lm.logprobs(prompts, ["7>7", "x", "yes"]), strict=True): torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        with pytest.raises(LMError, match="context"): client.generate(["x" * 70, "fine"])
        failed, fine = [], []
        def ask(prompt, kept):
            try: kept.append(client.answer(prompt, max_tokens=4))
            except LMError as error: kept.append(error)
        threads = [threading.Thread(target=ask, args=("x" * 70, failed)) for _ in range(3)] + [threading.Thread(target=ask, args=("ok?", fine)) for _ in range(6)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert all(isinstance(f, LMError) for f in failed) and all(isinstance(f, str) for f in fine)     # a bad prompt spoils nobody's batch


def test_a_taken_port_and_a_missing_extra_are_said_in_a_sentence(monkeypatch, capfd):
    from designloop.studies.cli import main
    with serving() as server:
        with pytest.raises(LMError, match=f"port {server.port} on 127.0.0.1 is taken"): Server(fake(), port=server.port)
        assert main(["serve-tiny", "--port", str(server.port)]) == 2
        assert "is taken by another program; choose another" in capfd.readouterr().err
    with pytest.raises(LMError, match="not an address of this machine"): Server(fake(), host="no.such.host.invalid")
    for name in ("fastapi", "uvicorn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            assert main(["serve-tiny", "--port", "0"]) == 2
            assert f"{name} is not installed" in (said := capfd.readouterr().err) and "designloop[lm]" in said
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openai", None)
        with pytest.raises(LMError, match=r"openai client is not installed.*designloop\[lm\]"): EndpointLM("m", "http://127.0.0.1:9/v1").answer("x")
    assert main(["serve-tiny", "--port", "70000"]) == 2


SERVE_TINY = """
import sys, types
import designloop.models as models
module = types.ModuleType("designloop.models.tiny_lm")
from lm_server import fake
module.TinyLM = types.SimpleNamespace(named=lambda family: fake())
sys.modules["designloop.models.tiny_lm"] = module
from designloop.studies.cli import main
sys.exit(main(["serve-tiny", "--family", "chain", "--port", "0"]))
"""


def test_serve_tiny_answers_until_ctrl_c():
    process = subprocess.Popen([sys.executable, "-c", SERVE_TINY], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("words answers at http://127.0.0.1:")
        spec = process.stdout.readline().strip().removeprefix("export DESIGNLOOP_LM=")
        assert texts(open_lm(spec).generate(["hello"], seed=1)) == texts(fake().generate(["hello"], seed=1))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "") and "ended" in out
    finally: process.kill()


def test_the_wire_refuses_what_a_local_model_refuses():
    import httpx
    with serving(key="k") as server, httpx.Client(headers={"authorization": "Bearer k"}, trust_env=False) as client:
        assert client.get(server.url + "/models").json()["data"][0]["id"] == "words"
        for path, body, status, words in (("chat/completions", {"messages": []}, 400, "non-empty"),
                                          ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 0}, 400, "n=0"),
                                          ("completions", {"prompt": 3}, 400, "prompt is missing"), ("completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens=0"),
                                          ("completions", {"prompt": "x", "stream": True}, 400, "stream"), ("completions", {"prompt": "x", "model": "other"}, 404, "'words'")):
            reply = client.post(f"{server.url}/{path}", json={"model": "words", **body})
            assert reply.status_code == status and words in reply.json()["error"]["message"]
        assert client.post(server.url + "/completions", content="{").status_code == 400
        assert client.post(server.url + "/completions", json={}, headers={"authorization": "Bearer no"}).status_code == 401
        reply = client.post(server.url + "/completions", json={"model": "words", "prompt": ["a", "b"], "n": 2, "seed": 1, "logprobs": 1, "echo": True}).json()
        assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3] and all(c["text"].startswith("aabb"[k]) for k, c in enumerate(reply["choices"]))
        assert all("".join(c["logprobs"]["tokens"]) == c["text"] and len(c["logprobs"]["token_logprobs"]) == len(c["logprobs"]["text_offset"]) for c in reply["choices"])


# --- the parsers ------------------------------------------------------------------------------------------------------------

JSONS = st.recursive(st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.text(max_size=8),
                     lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=120))
def test_parsers_never_raise_and_always_count(text):
    for parser in (NumberParser(), NumberParser("answer:"), ChoiceParser("ABCD"), ChoiceParser(["yes", "no"]), TagParser(), JSONParser()):
        value = parser(text)
        assert parser.seen == 1 and (value is not None or parser.unread == 1 or isinstance(parser, JSONParser))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSONS, min_size=1, max_size=3), st.integers(1, 99))
def test_json_is_read_whole_or_not_at_all(value, share):
    text = json.dumps(value, ensure_ascii=False)
    assert JSONParser()(f"Here it is: {text} Done.") == value
    assert JSONParser()(repr(value)) == value
    half = text[:max(1, len(text) * share // 100)]
    if half != text: assert JSONParser()(half) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(-10**9, 10**9), st.sampled_from(["{}", "{:,}", "So the answer is {}.", "({})", "**{}**", "${}", "= {} apples", "{} %"]))
def test_numbers_are_read_as_written(number, form):
    assert NumberParser()("From 3 things: " + form.format(number)) == number


def test_choices_and_tags():
    letter = ChoiceParser("ABCD")
    for text, value in {"The answer is: (B)": "B", "B) because A is wrong": "B", "A or B": None, "I think A.": None, "Answer: A or B": None,
                        "answer: C\nAnswer: D": None, "": None}.items():
        assert letter(text) == value, text
    assert TagParser("a", ChoiceParser(["Yes", "No"]))("<a> yes </a>") == "Yes"
    parser = pickle.loads(pickle.dumps(letter))
    assert parser.counts == letter.counts and parser("B") == "B"
    letter.reset()
    assert letter.counts == {"seen": 0, "unread": 0} and letter.rate == 0


# --- weights in a folder ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A Llama of random weights with one token a byte-like character and a chat template."
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    path = tmp_path_factory.mktemp("weights") / "small"
    table = {w: i for i, w in enumerate(["<pad>", "</s>", "<s>", "<unk>", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(table), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                      max_position_embeddings=64, initializer_range=0.5, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    fast.save_pretrained(path)
    return path


def test_weights_in_a_folder(folder, tmp_path):
    import torch
    lm = open_lm(f"hf:{folder}")
    prompts = ["a", "bcd efg", [{"role": "user", "content": "hi"}]]
    whole = lm.generate(prompts, n=3, max_tokens=10, seed=2, temperature=0.7)
    lm.batch = 2
    assert lm.generate(prompts[::-1], n=3, max_tokens=10, seed=2, temperature=0.7) == whole[::-1]
    assert all(len(c.token_logprobs) == c.n_tokens <= 10 for row in whole for c in row) and lm.name == "small" and lm.chat
    warm = [(prompt, reply) for prompt, row in zip(prompts, lm.generate(prompts, n=4, max_tokens=10, seed=2), strict=True) for reply in row]
    plain = [(prompt, reply) for prompt, reply in warm if 0 < len(reply.text) == reply.n_tokens]       # random weights also write special tokens, which no text shows
    assert len(plain) >= 3
    for prompt, reply in plain: torch.testing.assert_close(reply.token_logprobs, lm.logprobs([prompt], [reply.text])[0], atol=1e-4, rtol=0)
    assert texts(lm.generate(["a"], n=2, temperature=0, max_tokens=5))[0] == texts(lm.generate(["a"], temperature=0, max_tokens=5))[0] * 2
    with pytest.raises(LMError, match=r"2 tokens and max_tokens=80 exceed the 64|1 tokens and max_tokens=80 exceed the 64"): lm.generate(["a"], max_tokens=80)
    with serving(lm) as server:
        client = EndpointLM("small", server.url, api="completions")
        assert texts(client.generate(["a", "bcd"], n=2, seed=2, max_tokens=6)) == texts(lm.generate(["a", "bcd"], n=2, seed=2, max_tokens=6))
        torch.testing.assert_close(client.logprobs(["ab"], ["cd"])[0], lm.logprobs(["ab"], ["cd"])[0], atol=1e-4, rtol=0)
        assert texts(EndpointLM("small", server.url).generate([prompts[2]], seed=2, max_tokens=6)) == texts(lm.generate([prompts[2]], seed=2, max_tokens=6))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DesignLoopError, match="cannot be loaded"): open_lm(f"hf:{tmp_path}")


def test_a_token_across_the_seam_belongs_to_the_continuation():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    from designloop.lm.local import TransformersLM
    table = {w: i for i, w in enumerate(["<unk>", "the", " c", " cat", "!", " sat"])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[a-z]+|!"), "isolated")
    lm = object.__new__(TransformersLM)
    lm.name, lm.chat, lm.tokenizer = "words", False, transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert lm._pair("the c", "at") == ([1, 3], 1)                 # " cat" is one token; reading nothing would make "at" certain
    assert lm._pair("the", " cat!") == ([1, 3, 4], 1) and lm._pair("the ", "cat sat") == ([1, 3, 5], 1)
    lm.tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert lm._pair("", "the") == ([6, 1], 1)


def test_sampling_is_told_to_a_server_as_seeds_below_two_to_the_31():
    how = Sampling(seed=5)
    assert how.seed_for(0) == 5 and len({how.seed_for(i) for i in range(500)}) == 500 and all(0 <= how.seed_for(i) < 2**31 for i in range(500))
