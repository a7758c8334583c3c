"""Warm kernels: what the zygote owes to its children, its clients and the process that started it."""
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager

from designloop.core.errors import StudyError
from designloop.studies import warm
from designloop.studies.runs import Job, Kernels, execute
from designloop.studies.study import Study
from designloop.studies.warm import WARM_KERNEL, WarmKernelSpecs, WarmProvisioner, ZygoteProcess, install_kernelspec, package_environment
from designloop.studies.zygote import can_fork

needs_fork = pytest.mark.skipif(not can_fork(), reason="kernels are forked on Linux only")


def alive(pid: int) -> bool:
    "Whether a process exists and is not just waiting to be collected."
    try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError: return False


def wait_until(condition, seconds: float = 10.) -> bool:
    "Poll a condition."
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline: time.sleep(.01)
    return condition()


@pytest.fixture
def zygote():
    with ZygoteProcess(preload=()) as started: yield started


def launch(zygote: ZygoteProcess, folder: Path, name: str = "k", **env):
    "A kernel without a client."
    return zygote.launch(["-f", str(folder / f"{name}.json"), "--transport=ipc", f"--ip={folder / name}"], {**package_environment(), **env}, str(folder))


def tell(kernels, code: str) -> str:
    "Execute code in a started KernelManager and return what it printed."
    client = kernels.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        printed = []
        client.execute_interactive(code, output_hook=lambda m: printed.append(m["content"].get("text", "") or str(m["content"].get("evalue", ""))),
                                   timeout=60, allow_stdin=False)
        return "".join(printed).strip()
    finally: client.stop_channels()


@pytest.fixture
def manager(zygote, tmp_path, monkeypatch):
    "A started warm kernel on our zygote."
    monkeypatch.setenv("DESIGNLOOP_ZYGOTE", zygote.address)
    started = KernelManager(kernel_name=WARM_KERNEL, kernel_spec_manager=WarmKernelSpecs())
    started.start_kernel(cwd=str(tmp_path), env={**package_environment(), "COLOUR": "blue"})
    yield started
    if started.has_kernel: started.shutdown_kernel(now=True)


@needs_fork
def test_private_and_single_threaded(zygote, tmp_path):
    kernel = launch(zygote, tmp_path)
    assert Path(zygote.address).parent.stat().st_mode & 0o777 == 0o700
    assert len(os.listdir(f"/proc/{zygote.process.pid}/task")) == 1
    assert wait_until(lambda: os.getpgid(kernel.pid) == kernel.pid == os.getsid(kernel.pid))
    loaded = Path(f"/proc/{zygote.process.pid}/maps").read_text()
    assert "libcuda.so" not in loaded


@needs_fork
def test_a_general_zygote_starts_no_thread(tmp_path):
    with ZygoteProcess() as zygote:
        launch(zygote, tmp_path)
        assert len(os.listdir(f"/proc/{zygote.process.pid}/task")) == 1
        assert "not preloaded" not in (Path(zygote.address).parent / "zygote.log").read_text()


@needs_fork
def test_a_module_that_starts_a_thread_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "threaded.py").write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ZygoteProcess(preload=["broken", "threaded", "json"]) as zygote:
        kernel = launch(zygote, tmp_path)
        log = (Path(zygote.address).parent / "zygote.log").read_text()
        assert alive(kernel.pid) and "not preloaded: threaded (importing it starts a thread)" in log and "broken (ZeroDivisionError" in log


@needs_fork
def test_exit_codes_and_children_are_reaped(zygote, tmp_path):
    kernels = [launch(zygote, tmp_path, str(k)) for k in range(3)]
    for kernel, signum in zip(kernels, (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV), strict=True):
        assert kernel.poll() is None
        if signum == signal.SIGKILL: kernel.kill()
        else: os.kill(kernel.pid, signum)
    assert [kernel.wait(timeout=20) for kernel in kernels] == [-signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV]
    assert wait_until(lambda: not Path(f"/proc/{zygote.process.pid}/task/{zygote.process.pid}/children").read_text())   # no zombies
    assert alive(launch(zygote, tmp_path, "next").pid)


@needs_fork
def test_a_kernel_lives_as_long_as_its_lease(zygote, tmp_path):
    kernel = launch(zygote, tmp_path)
    kernel.connection.close()
    assert wait_until(lambda: not alive(kernel.pid))


@needs_fork
def test_many_clients_at_once(zygote, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(12) as pool: kernels = list(pool.map(lambda k: launch(zygote, tmp_path, str(k)), range(12)))
    assert len({kernel.pid for kernel in kernels}) == 12 and all(kernel.poll() is None for kernel in kernels)


@needs_fork
def test_garbage_and_refusals_do_not_hurt(zygote, tmp_path):
    import socket
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(zygote.address)
        client.sendall(b"{nonsense\n")
        assert client.recv(10) == b""
    kernel = launch(zygote, tmp_path)
    kernel.connection.sendall(json.dumps(dict(launch={})).encode() + b"\n")
    assert b"already has a kernel" in kernel.connection.recv(1000)
    assert alive(kernel.pid)


OWNER = '''
import os, sys, time
from designloop.studies.warm import ZygoteProcess, package_environment
zygote = ZygoteProcess(preload=())
kernel = zygote.launch(["-f", sys.argv[1] + "/k.json"], package_environment(), sys.argv[1])
%s
print(zygote.process.pid, kernel.pid, zygote.address, flush=True)
time.sleep(60)
'''


@needs_fork
@pytest.mark.parametrize("extra", ["", "if os.fork() == 0: time.sleep(30); os._exit(0)   # a child that keeps a copy of the lifeline"])
def test_everything_dies_with_the_owner(tmp_path, extra):
    owner = subprocess.Popen([sys.executable, "-c", OWNER % extra, str(tmp_path)], env=package_environment(), stdout=subprocess.PIPE, text=True,
                             start_new_session=True)
    try:
        zygote, kernel, address = owner.stdout.readline().split()
        assert alive(int(zygote)) and alive(int(kernel))
        owner.kill()
        owner.wait()
        assert wait_until(lambda: not alive(int(zygote)) and not alive(int(kernel)))
        assert not Path(address).parent.exists()
    finally: os.killpg(owner.pid, signal.SIGKILL) if extra else None
    owner.stdout.close()


@needs_fork
def test_kernels_die_with_the_zygote_and_it_can_be_revived(zygote, tmp_path):
    kernel = launch(zygote, tmp_path)
    zygote.process.kill()
    assert kernel.wait(timeout=10) == -signal.SIGKILL and wait_until(lambda: not alive(kernel.pid))
    zygote.process.wait()
    with pytest.raises(StudyError, match="does not answer"): launch(zygote, tmp_path)
    zygote.revive()
    assert alive(launch(zygote, tmp_path).pid)


@needs_fork
def test_the_child_is_like_a_new_process(manager, tmp_path):
    code = "import os, signal, subprocess, sys\nprint(os.getcwd(), os.environ['COLOUR'], signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, " \
           "subprocess.run(['true']).returncode, __name__, sys.stdin.isatty())"
    assert tell(manager, code) == f"{tmp_path} blue True 0 __main__ False"
    assert isinstance(manager.provisioner, WarmProvisioner) and isinstance(manager.provisioner.process, warm.ForkedKernel)


@needs_fork
def test_interrupt_restart_and_shutdown(manager):
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    client.execute("import time\ntime.sleep(60)")
    time.sleep(.5)
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=20)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    client.stop_channels()
    first = manager.provisioner.pid
    manager.restart_kernel(now=True)
    assert tell(manager, "print(1 + 1)") == "2" and manager.provisioner.pid != first and not alive(first)
    second = manager.provisioner.pid
    manager.shutdown_kernel()
    assert wait_until(lambda: not alive(second))


@needs_fork
def test_what_a_kernel_starts_goes_with_it(manager):
    pid = int(tell(manager, "import subprocess; print(subprocess.Popen(['sleep', '300']).pid)"))
    assert alive(pid)
    manager.shutdown_kernel(now=True)
    assert wait_until(lambda: not alive(pid))


@needs_fork
def test_exit_handlers_run(manager, tmp_path):
    tell(manager, f"import atexit; atexit.register(lambda: open({str(tmp_path / 'left')!r}, 'w').close())")
    manager.shutdown_kernel()
    assert (tmp_path / "left").exists()


@needs_fork
def test_any_jupyter_tool_may_use_it(tmp_path, monkeypatch):
    "papermill, a private JUPYTER_PATH and the installed entry point; nothing else."
    from importlib.metadata import entry_points
    if WARM_KERNEL not in entry_points(group="jupyter_client.kernel_provisioners").names: pytest.skip("the package is on the path, not installed")
    install_kernelspec(tmp_path / "jupyter", preload=["json"])
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os.getppid()")]), tmp_path / "in.ipynb")
    code = "import papermill, sys; papermill.execute_notebook('in.ipynb', 'out.ipynb', kernel_name='designloop-warm', progress_bar=False)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=package_environment() | {"JUPYTER_PATH": str(tmp_path / "jupyter")}, check=True,
                   capture_output=True, timeout=120)
    parent = int(nbformat.read(tmp_path / "out.ipynb", 4).cells[0].outputs[0].data["text/plain"])
    assert wait_until(lambda: not alive(parent))      # the tool has ended, so its zygote has


@pytest.mark.parametrize("reason", ["switched off", "no fork", "dead zygote"])
def test_fallback_to_an_ordinary_kernel(tmp_path, monkeypatch, reason):
    if reason == "switched off": monkeypatch.setenv("DESIGNLOOP_WARM", "0")
    if reason == "no fork": monkeypatch.setattr(warm, "can_fork", lambda: False)
    if reason == "dead zygote": monkeypatch.setenv("DESIGNLOOP_ZYGOTE", str(tmp_path / "nobody"))
    monkeypatch.setattr(warm, "_noted", set())
    monkeypatch.setattr(warm, "_own", {})

    async def two() -> list:
        kernels = Kernels(WARM_KERNEL, str(tmp_path), package_environment(), overlap=False)
        try: return [await execute(Job(f"r{k}", str(tmp_path / f"r{k}"), str(tmp_path / "a.ipynb"), {}, str(tmp_path)), kernels) for k in range(2)]
        finally: await kernels.close()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), tmp_path / "a.ipynb")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        states = [status["state"] for status in asyncio.run(two())]
    notices = [str(w.message) for w in caught if "ordinary kernels" in str(w.message)]
    assert states == ["done", "done"] and len(notices) == 1      # said once, not twice
    assert {"switched off": "DESIGNLOOP_WARM=0", "no fork": "cannot be forked", "dead zygote": "does not answer"}[reason] in notices[0]


@needs_fork
def test_runs_draw_different_random_numbers(tmp_path):
    cell = "import numpy, random, torch\nfrom designloop.core.records import record\n" \
           "record('draws', f'{numpy.random.rand()} {random.random()} {torch.rand(1).item()}')"
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("number = 0", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(cell)])
    nbformat.write(nb, tmp_path / "a.ipynb")
    study = Study(tmp_path / "a.ipynb", grid=dict(number=[1, 2]), out=tmp_path)
    study.run(progress=False)
    first, second = (draws.split() for draws in study.results().value)
    assert not set(first) & set(second)


def test_a_foreign_command_is_not_forked():
    assert warm.ipykernel_arguments(["R", "-e", "IRkernel::main()"]) is None
    assert issubclass(AsyncKernelManager, KernelManager)
