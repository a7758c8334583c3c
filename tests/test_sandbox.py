"""The sandbox under attack: every backend that promises to contain something is attacked with it; the one that does not promise refuses."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from designloop.core import sandbox_backends, sandbox_worker
from designloop.core.errors import ParameterError
from designloop.core.sandbox import Limits, Sandbox, SandboxError, available_backends, database, run_sql
from designloop.core.sandbox_backends import CONTAINS, check_command

AVAILABLE = [name for name, reason in available_backends().items() if not reason]
SMALL = Limits(seconds=5, memory_mb=128, output_kb=64, processes=8, file_mb=4)
LINUX = sys.platform.startswith("linux")


def promising(what: str) -> list:
    "The backends that are here and promise to contain something; a skip that says so where there is none."
    found = [name for name in AVAILABLE if what in CONTAINS[name]]
    return found or [pytest.param("none", marks=pytest.mark.skip(reason=f"no backend here contains {what}: {available_backends()}"))]


@pytest.fixture(scope="module")
def boxes():
    "One warm sandbox per backend; attacks follow each other in it, so each one also shows that the last one left nothing behind."
    made = {}
    def box(name: str) -> Sandbox:
        if name not in made: made[name] = Sandbox(name, limits=SMALL, trusted=True)
        return made[name]
    yield box
    for one in made.values(): one.close()


def intact(box: Sandbox) -> bool:
    "Whether the sandbox still answers, with nothing but the keeper and the new run in it."
    code = "import os\ndef f(): return sum(p.isdigit() for p in os.listdir('/proc'))"
    return box.python(code, call="f").value == 2 if box.backend != "restricted" else box.python("def f(): return 2", call="f").value == 2


# --- time, output, memory, processes, files -------------------------------------------------------------------------------

@pytest.mark.parametrize("backend", promising("time"))
@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(99)",
    "import signal\nfor s in range(1, 32):\n    if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
                                  "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "3 ** 100_000_000"], ids=["loop", "sleep", "ignores-signals",
                                      "stops-itself", "big-number"])
def test_endless_code_ends(boxes, backend, code):
    box, begin = boxes(backend), time.monotonic()
    done = box.python(code, limits=Limits(seconds=0.4, memory_mb=128))
    assert done.killed in ("time", "memory") and not done.ok and done.error and done.exit_code is None or done.killed == "memory"
    assert time.monotonic() - begin < 20 and intact(box)


@pytest.mark.parametrize("backend", promising("output"))
@pytest.mark.parametrize("code", ["while True: print('x' * 1000)", "import os\nwhile True: os.write(2, b'y' * 4096)", "import os\nos.system('yes')"], ids=["stdout",
    "stderr", "yes"])
def test_endless_output_is_cut(boxes, backend, code):
    done = boxes(backend).python(code)
    assert done.killed == "output" and len(done.stdout) + len(done.stderr) <= 2 * 64 * 1024 and intact(boxes(backend))


@pytest.mark.parametrize("backend", promising("output"))
@pytest.mark.parametrize("value", ["'x' * 10_000_000", "list(range(1_000_000))",
    "eval('[' * 5000 + ']' * 5000) if False else __import__('json').loads('[' * 900 + ']' * 900)", "10 ** 5000", "object()", "{1: float('nan')}"])
def test_strange_values_do_no_harm(boxes, backend, value):
    done = boxes(backend).python(f"def f(): return {value}", call="f")
    assert done.ok or done.error and "\n" not in done.error
    assert intact(boxes(backend))


@pytest.mark.parametrize("backend", promising("memory"))
@pytest.mark.parametrize("code", [
    "x = bytearray(10 ** 9)", "x = []\nwhile True: x.append(' ' * 1_000_000)",
    "import os, time\nfor _ in range(6):\n    if os.fork() == 0: x = bytearray(40_000_000); x[:] = b'1' * len(x); time.sleep(9)\ntime.sleep(9)",
    "import mmap, os, time\nfor _ in range(6):\n    m = mmap.mmap(-1, 60_000_000)\n    if os.fork() == 0: m.write(b'1' * 60_000_000); time.sleep(9)\n    m.close()\ntime.sleep(9)",
], ids=["at-once", "growing", "over-processes", "shared"])
def test_memory_bombs(boxes, backend, code):
    done = boxes(backend).python(code)
    assert done.killed == "memory" and "Memory" in done.error and intact(boxes(backend))


@pytest.mark.parametrize("backend", promising("memory"))
def test_memory_that_no_limit_counts_is_refused(boxes, backend):
    if not boxes(backend).about["filter over system calls"]: pytest.skip("no filter over system calls on this machine")
    code = """
    import os, ctypes
    def f():
        said = []
        try: os.memfd_create("x")
        except PermissionError: said.append("memfd")
        if ctypes.CDLL(None, use_errno=True).shmget(0, 10_000_000, 0o1600) == -1: said.append("shm")
        return said
    """
    assert boxes(backend).python(textwrap.dedent(code), call="f").value == ["memfd", "shm"]


@pytest.mark.parametrize("backend", promising("processes"))
@pytest.mark.parametrize("how", ["python", "shell", "threads"])
def test_fork_bombs(boxes, backend, how):
    box = boxes(backend)
    if how == "shell": done = box.shell(":(){ :|:& };:; sleep 3", limits=Limits(seconds=2, processes=8))
    elif how == "python": done = box.python("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", limits=Limits(seconds=1, processes=8))
    else: done = box.python("import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(9,)).start()", limits=Limits(seconds=2, processes=8))
    assert not done.ok or how == "shell"
    assert intact(box)


@pytest.mark.parametrize("backend", promising("files"))
@pytest.mark.parametrize("code", [
    "with open('big', 'wb') as f:\n    while True: f.write(b'x' * 1_000_000)",
    "import itertools\nfor i in itertools.count():\n    with open(f'f{i}', 'wb') as f: f.write(b'x' * 500_000)",
    "import itertools\nfor i in itertools.count(): open(f'f{i}', 'w').close()",
    "import os, time\nkept = []\nfor i in range(40):\n    f = open('gone', 'wb'); f.write(b'x' * 1_000_000); f.flush(); os.unlink('gone'); kept.append(f)\ntime.sleep(9)",
    "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')",
    "open('/dev/shm/a', 'wb').write(b'x' * 3_900_000); open('/tmp/a', 'wb').write(b'x' * 3_900_000)",
], ids=["one-file", "many-files", "no-bytes", "deleted-but-open", "deep", "elsewhere"])
def test_disk_filling(backend, code):
    with Sandbox(backend, limits=SMALL) as box:
        folder = box._run
        done = box.python(code, limits=Limits(seconds=30, memory_mb=128, file_mb=4))
        assert not done.ok and (done.killed == "files" or "File too large" in done.error), done
        if done.killed == "files" and "gone" not in code: assert box.python("1").killed in ("files", None)
    assert not folder.exists()


# --- secrets, files outside, network -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("backend", promising("environment"))
def test_the_environment_has_no_secrets(boxes, backend, monkeypatch):
    monkeypatch.setenv("DESIGNLOOP_TEST_TOKEN", "do-not-tell")
    with Sandbox(backend, trusted=True) as box:
        assert "do-not-tell" not in box.shell("env").stdout + box.python("import os\nprint(dict(os.environ))").stdout
        assert "HOME" in box.shell("env").stdout


@pytest.mark.parametrize("backend", promising("filesystem"))
def test_the_home_directory_and_other_files_are_not_there(boxes, backend, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("do-not-tell")
    code = """
    import os, glob
    def f(secret, home, checkout):
        seen = []
        for path in (secret, home + "/.ssh", home + "/.bashrc", checkout, "/etc/shadow", "/run", "/var", "/sys", "/proc/1/root" + secret, "/proc/1/cwd/.."):
            try: seen.append((path, str(os.listdir(path) if os.path.isdir(path) else open(path).read())[:50]))
            except OSError: pass
        return seen
    """
    done = boxes(backend).python(textwrap.dedent(code), call="f", args=[str(secret), str(Path.home()), str(Path(sandbox_worker.__file__).parents[2])])
    assert done.value == [], done
    shell = boxes(backend).shell(f"cat {secret} ../../..{secret} ~root/.ssh/id_rsa; cat /proc/1/environ; ls /home")
    assert "do-not-tell" not in shell.stdout and not shell.stdout.strip()


@pytest.mark.parametrize("backend", promising("filesystem"))
def test_nothing_outside_can_be_written(boxes, backend, tmp_path):
    done = boxes(backend).shell(f"for d in / /usr /usr/bin /etc /dev /proc /proc/sys/kernel {tmp_path} {Path.home()} {sys.prefix}; do "
                                "touch $d/broken 2>/dev/null && echo wrote $d; done; "
                                "echo 1 > /proc/sys/kernel/core_pattern && echo wrote kernel; mount -t tmpfs x /box && echo mounted; ln -sf /usr/bin/true /bin/ls && echo linked")
    assert "wrote" not in done.stdout and "mounted" not in done.stdout and "linked" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", promising("filesystem"))
def test_links_do_not_lead_the_owner_outside(backend, tmp_path):
    (tmp_path / "secret.txt").write_text("do-not-tell")
    with Sandbox(backend) as box:
        box.shell(f"ln -s {tmp_path}/secret.txt link; ln -s {tmp_path} folder; ln -s / root; mkfifo pipe; mkdir real")
        for path in ("link", "folder/secret.txt", f"root{tmp_path}/secret.txt", "pipe", "real"):
            with pytest.raises(SandboxError): box.get(path)
        for path in ("folder/new.txt", f"root{tmp_path}/new.txt"):
            with pytest.raises(SandboxError): box.put(path, "x")
        box.put("link", "mine")          # takes the place of the link, does not follow it
        assert (tmp_path / "secret.txt").read_text() == "do-not-tell" and box.get("link") == b"mine" and len(list(tmp_path.iterdir())) == 1
        for path in ("../x", "/etc/passwd", "a/../../x", "", "a\0b"):
            with pytest.raises(ParameterError): box.put(path, "x")
            with pytest.raises(ParameterError): box.get(path)
    assert (tmp_path / "secret.txt").exists()       # cleaning up followed no link either


@pytest.mark.parametrize("backend", promising("network"))
def test_no_network(boxes, backend):
    import socket
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = """
        import socket
        def f(port):
            reached = []
            inet = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET, ("1.1.1.1", 53)), (socket.AF_INET6, ("::1", port))]
            for family, where in (*inet, (40, (2, 1024)), (38, ("hash", "sha256"))):
                try:
                    with socket.socket(family, socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_STREAM) as s:
                        s.settimeout(1)
                        if family != 38: s.connect(where)
                        reached.append(family)
                except (OSError, TypeError): pass
            return reached
        """
        assert boxes(backend).python(textwrap.dedent(code), call="f", args=[port]).value == []
        assert boxes(backend).shell(f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo open").stdout == ""


# --- signals, other processes, tricks with the interpreter ---------------------------------------------------------------------

@pytest.mark.parametrize("backend", promising("signals"))
@pytest.mark.parametrize("code", [
    "import os, signal\nfor p in (1, os.getppid()):\n    for s in (9, 15, 19, 6, 2):\n        try: os.kill(p, s)\n        except OSError: pass",
    "import os, signal\nos.kill(-1, 9)", "import os\nos.abort()", "import ctypes\nctypes.string_at(0)",
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.ptrace(16, 1, 0, 0) == -1\nopen('/proc/1/mem', 'r+b')",
    "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.unshare(0x10000000) == -1 and libc.prctl(4, 0, 0, 0, 0) == -1\n"
    "assert libc.setuid(0) == -1 or __import__('os').getuid() == 0\nraise SystemExit(7)",
    "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'\\x00' * 7 + b'\\x05{]]]]')\n    except OSError: pass",
    "import os, struct\nfor fd in range(3, 60):\n    try: os.write(fd, struct.pack('!Q', 1 << 60))\n    except OSError: pass",
], ids=["kills-the-keeper", "kills-all", "abort", "crash", "debugs-the-keeper", "new-namespace", "nonsense-message", "huge-message"])
def test_the_keeper_survives(boxes, backend, code):
    box = boxes(backend)
    done = box.python(code)
    keeper = box._container.process.pid
    assert not done.ok or "kill(p" in code
    assert intact(box) and box._container.process.pid == keeper, "the container had to be started again"


@pytest.mark.parametrize("backend", promising("signals"))
def test_classes_lead_around_a_rule_but_not_out(boxes, backend):
    "An import rule is no wall: the classic walk over all subclasses finds `os`. It then stands in the container."
    code = """
    def f():
        loader = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "BuiltinImporter"][0]
        posix = loader.load_module("posix")
        return [posix.getpid() == 1, sorted(p for p in posix.listdir("/proc") if p.isdigit())[:1], "root" in posix.listdir("/") and "designloop" in str(posix.listdir("/tmp"))]
    """
    done = boxes(backend).python(textwrap.dedent(code), call="f", allow_imports=["math"])
    assert done.value == [False, ["1"], False]


@pytest.mark.parametrize("backend", AVAILABLE)
def test_import_rule(boxes, backend):
    box = boxes(backend)
    assert box.python("import math, statistics\ndef f(): return math.floor(statistics.mean([1, 2]))", call="f", allow_imports=["math", "statistics"]).value == 1
    for code in ("import os", "from os import path", "import importlib", "__import__('os')"):
        assert "is not allowed" in box.python(code, allow_imports=["math"]).error
    assert box.python("import builtins\nbuiltins.open = None\nbuiltins.print = None").ok and box.python("print(open)").ok          # the next run has its own builtins


@pytest.mark.parametrize("backend", promising("orphans"))
def test_children_do_not_stay(boxes, backend):
    box = boxes(backend)
    done = box.python("import os, signal, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        for s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n"
                      "        while True: time.sleep(1)\n    os._exit(0)\nprint('gone')")
    assert done.stdout == "gone\n" and done.seconds < 5 and intact(box)
    done = box.shell("nohup setsid sleep 77 >/dev/null 2>&1 & disown; echo gone")
    assert done.stdout == "gone\n" and intact(box)
    assert box.shell("sleep 60 & echo gone").seconds < 10, "an open pipe in the background must not hold the run"


PARENT = """
import os, sys, threading, time
from designloop.core.sandbox import Sandbox
box = Sandbox({backend!r}, trusted=True)
def keep(): box.shell({command!r})
threading.Thread(target=keep, daemon=True).start()
time.sleep(0.2)
print(box._ready().process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not LINUX, reason="looks at /proc")
@pytest.mark.parametrize("backend", AVAILABLE)
def test_everything_dies_with_a_killed_parent(backend):
    mark = f"{50_000_000 + os.getpid()}"
    command = f"sleep {mark} & sleep {mark}" if backend == "restricted" else f"setsid sleep {mark} & sleep {mark}"
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(backend=backend, command=command)], stdout=subprocess.PIPE, text=True)
    def sleepers() -> list[str]: return [p for p in os.listdir("/proc") if p.isdigit() and mark in _cmdline(p) and "sleep" in _cmdline(p)[:8]]
    try:
        keeper = int(parent.stdout.readline())
        patience = time.monotonic() + 30
        while not sleepers() and time.monotonic() < patience: time.sleep(0.05)
        assert sleepers()
    finally: parent.kill(); parent.wait(); parent.stdout.close()
    patience = time.monotonic() + 30
    while (sleepers() or _cmdline(str(keeper))) and time.monotonic() < patience: time.sleep(0.05)
    assert not sleepers() and not _cmdline(str(keeper))


def _cmdline(pid: str) -> str:
    try: return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError: return ""


# --- functions of the owner -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backend", AVAILABLE)
def test_functions_of_the_owner(boxes, backend):
    box, heard = boxes(backend), []
    def ask(text, n=1): heard.append(text); return text.upper() * n
    done = box.python("def f(x):\n    return [ask(x), ask(x, n=2)]", call="f", args=["a"], host={"ask": ask})
    assert done.value == ["A", "AA"] and heard == ["a", "a"] and done.calls == {"ask": 2}
    def fails(): raise LookupError("nobody knows")
    done = box.python("def f():\n    try: return fails()\n    except RuntimeError as error: return str(error)", call="f", host={"fails": fails})
    assert done.value == "LookupError: nobody knows"
    assert "HostError: LookupError" in box.python("fails()", host={"fails": fails}).error
    assert "JSON" in box.python("give()", host={"give": lambda: object()}).error
    def slow(): time.sleep(0.7)
    done = box.python("slow(); slow()", host={"slow": slow}, limits=Limits(seconds=0.5))
    assert done.ok and done.seconds < 0.5, "time in functions of the owner does not count"


@pytest.mark.parametrize("backend", promising("time"))
def test_functions_of_the_owner_are_not_abused(boxes, backend):
    box, heard = boxes(backend), []
    done = box.python("while True: ask()", host={"ask": lambda: heard.append(1)}, limits=Limits(calls=20, seconds=5))
    assert done.killed == "calls" and len(heard) == 20 and done.calls == {"ask": 20} and intact(box)
    raw = ("import os, json, struct\ndef send(m):\n    d = json.dumps(m).encode()\n    for fd in range(3, 60):\n"
           "        try: os.write(fd, struct.pack('!Q', len(d)) + d)\n        except OSError: pass\n")
    for message, why in (({"ask": "system", "args": ["id"], "kwargs": {}}, None), ({"ask": "ask", "args": "x", "kwargs": 3}, None), ({"ask": 3}, "protocol"), ([1],
        "protocol"), ({"other": 1}, "protocol")):
        done = box.python(raw + f"send({message!r})\nimport time; time.sleep(.1)", host={"ask": lambda: heard.append(2)})
        assert done.killed == why and 2 not in heard, (message, done)
    forged = box.python(raw + "send({'result': {'value': '42', 'exit_code': 0}})\nos._exit(0)", host={"ask": ask_nothing})
    assert forged.value == 42      # a program may say what it likes about itself; who scores it scores outside
    done = box.python("ask('x' * 3_000_000)", host={"ask": ask_nothing})
    assert done.killed == "output" and intact(box)


def ask_nothing(*_, **__): return None


@pytest.mark.parametrize("backend", AVAILABLE)
def test_an_interrupt_in_the_owner_ends_the_run(backend):
    def stop(): raise KeyboardInterrupt
    with Sandbox(backend, trusted=True) as box:
        with pytest.raises(KeyboardInterrupt): box.python("stop()\nwhile True: pass", host={"stop": stop})
        assert box.python("def f(): return 1", call="f").value == 1


# --- the ordinary ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backend", AVAILABLE)
def test_results(boxes, backend):
    box = boxes(backend)
    done = box.python("import sys\nprint('out'); print('err', file=sys.stderr)\ndef f(a, *, b): return {'sum': a + b}", call="f", args=[1], kwargs={"b": 2})
    assert done.ok and done.value == {"sum": 3} and done.stdout == "out\n" and done.stderr == "err\n" and done.backend == backend and done.exit_code == 0
    done = box.python("def g():\n    return 1 / 0\ng()")
    assert done.error == "ZeroDivisionError: division by zero" and "line 2, in g" in done.traceback and "keeper" not in done.traceback and not done.ok
    assert "SyntaxError" in box.python("def").error and box.python("raise SystemExit(3)").exit_code == 3 and box.python("raise SystemExit").ok
    assert "no function 'h'" in box.python("", call="h").error
    assert box.python("x = 1\nimport os\nos._exit(5)").exit_code == 5
    assert box.python("print('\\udc80')").ok
    with pytest.raises(ParameterError, match="JSON"): box.python("", call="f", args=[object()])
    with pytest.raises(ParameterError, match="text of a program"): box.python(b"1")
    with pytest.raises(ParameterError, match="host"): box.python("", host={"a b": print})


@pytest.mark.parametrize("backend", AVAILABLE)
def test_shell(boxes, backend):
    box = boxes(backend)
    box.put("notes/a.txt", "b\na\n")
    assert box.shell("sort a.txt | head -1", cwd="notes").stdout == "a\n" and box.get("notes/a.txt") == b"b\na\n" and "notes/a.txt" in box.files()
    assert box.shell("cat", stdin="ü" * 200_000, limits=Limits(output_kb=1000)).stdout == "ü" * 200_000
    assert box.python("print('a' * 400)", limits=Limits(output_kb=0.5, seconds="9")).ok and box.python("print('a' * 600)", limits=Limits(output_kb=0.5)).killed == "output"
    assert box.shell("true", stdin="x" * 500_000).ok, "who does not read its input does not hang the run"
    done = box.shell("echo no >&2; exit 3")
    assert done.exit_code == 3 and done.stderr == "no\n" and "code 3" in done.error
    assert box.shell("printf '\\xff\\xfe'").stdout == "\ufffd\ufffd", "what is no UTF-8 is replaced"
    with pytest.raises(ParameterError): box.shell(None)
    with pytest.raises(ParameterError): box.shell("a\0b")


@pytest.mark.parametrize("backend", AVAILABLE)
def test_extra_roots(backend):
    with Sandbox(backend, trusted=True, roots=["/testbed"]) as box:
        box.put("testbed/dir/a.txt", "hello")
        done = box.shell("cat /testbed/dir/a.txt; echo new > /testbed/b.txt; find /testbed -type f | sort", cwd="/testbed/dir")
        assert done.stdout == "hello/testbed/b.txt\n/testbed/dir/a.txt\n" and box.get("testbed/b.txt") == b"new\n"
    for wrong in ("testbed", "/usr", "/a/b", "/../x", "/"):
        with pytest.raises(ParameterError, match="roots"): Sandbox(backend, trusted=True, roots=[wrong])


@pytest.mark.parametrize("backend", AVAILABLE)
def test_folder_of_the_caller_stays_and_is_still_his(backend, tmp_path):
    with Sandbox(backend, trusted=True, folder=tmp_path / "work") as box:
        assert box.shell("echo kept > file.txt").ok
        assert [r.value for r in box.map([{"code": "def f(x):\n    open(f'{x}.txt', 'w').write('x')\n    return x", "call": "f", "args": [i]} for i in range(6)],
            workers=2)] == list(range(6))
    assert (tmp_path / "work" / "file.txt").read_text() == "kept\n" and (tmp_path / "work" / "5.txt").stat().st_uid == os.getuid()
    with pytest.raises(SandboxError, match="closed"): box.python("1")


def test_a_container_that_died_is_started_again():
    with Sandbox(AVAILABLE[0], trusted=True) as box:
        box.put("kept.txt", "x")
        box._container.process.kill(); box._container.process.wait()
        assert box.shell("cat kept.txt").stdout == "x"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_makes_its_own():
    with Sandbox(AVAILABLE[0], trusted=True) as box:
        box.put("kept.txt", "x")
        child = os.fork()
        if child == 0:
            try: box.python("1")
            except SandboxError as error: os._exit("forked" in str(error))
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1 and box.get("kept.txt") == b"x" and box.python("1").ok


def test_preload():
    with Sandbox(AVAILABLE[0], trusted=True, preload=["fractions", "no_such_module"]) as box:
        assert box.python("import sys\ndef f(): return 'fractions' in sys.modules", call="f").value and "no_such_module" in box._container.failed


def test_the_weakest_backend_refuses_what_nobody_trusts(monkeypatch):
    with pytest.raises(SandboxError, match=r"trusted=True.*bubblewrap.*unshare.*restricted"): Sandbox("restricted")
    monkeypatch.setattr("designloop.core.sandbox.plan_for", lambda name: (None, "not here") if name != "restricted" else sandbox_backends.plan_for(name))
    with pytest.raises(SandboxError, match="bubblewrap: not here"): Sandbox()
    with Sandbox(trusted=True) as box: assert box.backend == "restricted" and box.python("def f(): return 1", call="f").value == 1
    monkeypatch.setattr(sandbox_backends.sys, "platform", "darwin")
    assert "Only Linux" in sandbox_backends.advice()
    with pytest.raises(ParameterError, match="did you mean|Did you mean"): Sandbox("bubblewrab")


@pytest.mark.parametrize("command", ["cat /etc/passwd", "cat ../x", "cat ~/.ssh/id_rsa", "curl x.org", "ls; rm -rf /", "echo `cat /etc/passwd`", "echo $(python3 -c 1)",
    "find . -exec sh {} +", "eval ls",
                                     "ls | xargs python3", "awk 'BEGIN { system(\"id\") }'", "sed 's/a/b/e' x; sed '1e id' x", "cat $HOME/x", "bash -c id",
                                         "env perl -e 1", "cat <<EOF\nx\nEOF", "tar xf a --to-command=sh /b",
                                     "A=1 nc -l 1", "( ssh host )", "ls > /tmp/../etc/x", "echo 'unfinished"])
def test_without_a_container_a_command_that_may_leave_is_refused(command, boxes):
    assert check_command(command, "/private")
    with pytest.raises(SandboxError, match="refused"): boxes("restricted").shell(command)


@pytest.mark.parametrize("command", ["ls", "find . -name '*.txt' -size +1k", "grep -rn 'a b' . | sort | uniq -c", "for f in *.txt; do wc -l $f; done",
    "sed 's/a/b/g' x > y", "awk '{ print $1 }' x",
                                     "find /private -type f -exec md5sum {} + 2>/dev/null", "if [ -f x ]; then cat x; fi", "echo $(ls | wc -l)", "cat x && rm x"])
def test_without_a_container_honest_commands_pass(command): assert check_command(command, "/private") is None


def test_limits_are_checked():
    for field, value in (("seconds", 0), ("memory_mb", -1), ("output_kb", "x"), ("processes", 0), ("processes", 1.5), ("file_mb", float("nan")), ("calls", -1),
        ("output_kb", 10 ** 6)):
        with pytest.raises(ParameterError, match=field): Limits(**{field: value})


# --- SQL -----------------------------------------------------------------------------------------------------------------------------

ZOO = {"animals": {"columns": [["id", "INTEGER"], ["name", "TEXT"]], "primary_key": ["id"], "rows": [[i, f"n{i}"] for i in range(300)]}}


@pytest.mark.parametrize("query", ["DELETE FROM animals", "DROP TABLE animals", "INSERT INTO animals VALUES (999, 'x')", "CREATE TABLE x (y)", "ATTACH '/tmp/x.db' AS x",
    "VACUUM INTO '/tmp/x.db'",
                                   "PRAGMA journal_mode=WAL", "SELECT load_extension('/tmp/x.so')", "SELECT 1; DROP TABLE animals", "SELECT writefile('/tmp/x', 'y')",
                                       "UPDATE animals SET id = 1", "nonsense", "",
                                   "SELECT * FROM animals WHERE", "CREATE VIRTUAL TABLE x USING fts5(y)"])
def test_sql_only_reads(query):
    connection = database(ZOO)
    done = run_sql(connection, query)
    assert query == "" or not done.ok and done.error and "\n" not in done.error
    assert connection.execute("SELECT count(*), max(id) FROM animals").fetchone() == (300, 299)


@pytest.mark.parametrize("query, why", [
    ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n", "time"), ("SELECT count(*) FROM animals a, animals b, animals c, animals d",
        "time"),
    ("SELECT a.id FROM animals a, animals b", "rows"), ("SELECT zeroblob(2000000000)", None), ("SELECT printf('%.*c', 1000000000, 'x')", None),
        ("SELECT group_concat(a.name || b.name || c.name) FROM animals a, animals b, animals c", "time")])
def test_sql_bombs(query, why):
    class Short: seconds, memory_mb = 0.5, 256
    done = run_sql(ZOO, query, Short)
    assert not done.ok and done.killed == why and done.seconds < 10, done


def test_sql_writes_where_allowed_and_descriptions_are_checked():
    connection = database(ZOO)
    assert run_sql(connection, "UPDATE animals SET name = 'x'", read_only=False).ok and run_sql(connection, "SELECT DISTINCT name FROM animals").rows == [("x",)]
    assert not run_sql(connection, "ATTACH ':memory:' AS y", read_only=False).ok and not run_sql(connection, "DELETE FROM animals").ok
    for wrong in ({"t": {"columns": []}}, {"t": {"columns": [["a", "TEXT"]], "rows": [[1, 2]]}}):
        with pytest.raises(ParameterError, match="'t'"): database(wrong)
    with pytest.raises(ParameterError, match="query"): run_sql(ZOO, 3)
    assert run_sql(database({"t": {"columns": [["a", "TEXT"]], "rows": [["Ab"]]}}, nocase=True), "SELECT 1 FROM t WHERE a = 'aB'").rows == [(1,)]


def test_the_filter_is_the_same_program_for_both_machines():
    "The numbers differ, the length only by the check for x32; a program is eight bytes an instruction."
    x86, arm = (sandbox_worker.seccomp_program(m, True) for m in ("x86_64", "aarch64"))
    assert len(x86) - len(arm) == 16 and len(x86) % 8 == 0 and sandbox_worker.seccomp_program("mips", True) is None
    assert json.dumps(sorted(sandbox_worker.REFUSED)) and signal.SIGKILL == 9


def test_what_is_mounted_below_a_private_directory_is_not_counted(tmp_path):
    from designloop.core.sandbox_worker import size_of
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "large").write_bytes(b"x" * 2 ** 20)
    (tmp_path / "own").write_bytes(b"x" * 2 ** 14)
    (whole, many), (own, few) = size_of([str(tmp_path)]), size_of([str(tmp_path)], (str(tmp_path / "lib"),))
    assert many == 3 and few == 1 and 2 ** 14 <= own < 2 ** 20 < whole
