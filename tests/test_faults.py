"""Kill -9 of everything a study consists of, at random moments: afterwards one run completes it and nothing was lost or done twice."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from designloop.studies.study import Study
from designloop.studies.warm import package_environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its victims in /proc, which is Linux only")
RUNS, KILLS, SEED = 40, 30, 20260

NOTEBOOK = ['number = 0', '''
import json, os, time
from designloop.core.records import record
side = os.environ["SIDE_LOG"]
def note(what):
    with open(side, "ab", buffering=0) as log: log.write(json.dumps([what, number, time.monotonic()]).encode() + b"\\n")
note("start")
record("square", number ** 2)
time.sleep(float(os.environ["NAP"]))
record("cube", number ** 3)''', 'note("end")']

PARENT = '''
import sys
from designloop.studies.study import Study
study = Study(sys.argv[1], grid=dict(number=range(int(sys.argv[3]))), out=sys.argv[2])
study.run(workers=2, progress=False)
sys.exit(0 if study.ok else 1)
'''


def processes(mark: str) -> dict[int, str]:
    "Processes that carry our mark in their environment: pid -> parent, worker, zygote or kernel."
    found = {}
    for place in Path("/proc").iterdir():
        if not place.name.isdigit(): continue
        try:
            if mark.encode() not in (place / "environ").read_bytes(): continue
            command, stat = (place / "cmdline").read_bytes().decode(), (place / "stat").read_text()
        except OSError: continue
        if stat.rsplit(")", 1)[1].split()[0] == "Z": continue
        found[int(place.name)] = "worker" if "studies.worker" in command else "zygote" if "studies.zygote" in command else \
            "kernel" if "ipykernel" in command else "parent"
    for pid in [p for p, kind in found.items() if kind == "zygote"]:     # a forked kernel still has its zygote's command line
        try: parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError: continue
        if found.get(parent) in ("zygote", "kernel"): found[pid] = "kernel"
    return found


def finished(folder: Path) -> dict[str, tuple]:
    "What is there of each run that is done."
    done = {}
    for place in folder.glob("*/status.json"):
        status = json.loads(place.read_text())       # a half-written file would not parse
        if status["state"] == "done":
            done[place.parent.name] = tuple((place.parent / n).read_bytes() for n in ("status.json", "records.jsonl", "params.json"))
    return done


@pytest.fixture
def study(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "cheap.ipynb")
    return tmp_path


def start(folder: Path, nap: float, mark: str, runs: int = RUNS) -> subprocess.Popen:
    env = package_environment() | {"SIDE_LOG": str(folder / "side.log"), "NAP": str(nap), "TEST_MARK": mark}
    with open(folder / "parent.log", "ab") as log:
        return subprocess.Popen([sys.executable, "-c", PARENT, str(folder / "cheap.ipynb"), str(folder / "runs"), str(runs)],
                                env=env, stdout=log, stderr=log)


def gone(mark: str, patience: float = 10.) -> bool:
    "Whether all processes of the study end within some seconds."
    deadline = time.monotonic() + patience
    while processes(mark) and time.monotonic() < deadline: time.sleep(.05)
    return not processes(mark)


def test_thirty_kills(study):
    rng, mark = random.Random(SEED), f"mark-{os.getpid()}-{time.monotonic_ns()}"
    folder, kills, seen, killed = study / "runs" / "cheap", [], {}, []
    plan = ["parent"] * 8 + ["worker"] * 8 + ["kernel"] * 10 + ["zygote"] * 4
    rng.shuffle(plan)
    parent = start(study, .5, mark)
    try:
        for kind in plan:
            while True:
                if parent.poll() is not None: parent = start(study, .5, mark)
                victims = [pid for pid, what in processes(mark).items() if what == kind]
                if victims and "kernel" in processes(mark).values(): break      # the study is at work
                time.sleep(.02)
            time.sleep(rng.uniform(0, .5))
            victims = [pid for pid, what in processes(mark).items() if what == kind] or victims
            kills.append(time.monotonic())
            try: os.kill(rng.choice(victims), signal.SIGKILL)
            except ProcessLookupError: continue
            killed.append(kind)
            for name, files in finished(folder).items(): assert seen.setdefault(name, files) == files, "a finished run was changed"
            if kind == "parent": parent.wait()
        if parent.poll() is None:
            parent.kill()
            parent.wait()
        assert gone(mark), f"left over: {processes(mark)}"
        before = finished(folder)
        last = start(study, .05, mark)
        assert last.wait(timeout=60) == 0, (study / "parent.log").read_text()[-3000:]
        assert gone(mark), f"left over: {processes(mark)}"
    finally:
        for pid in processes(mark): os.kill(pid, signal.SIGKILL)
    assert len(killed) >= KILLS - 3 and set(killed) == set(plan)

    final = finished(folder)
    assert len(final) == RUNS and before.keys() <= final.keys()
    for name, files in {**seen, **before}.items(): assert final[name] == files, "a finished run was made again"
    results = Study(study / "cheap.ipynb", grid=dict(number=range(RUNS)), out=study / "runs").results()
    assert len(results) == 2 * RUNS and not results.duplicated(["run_id", "name"]).any()
    assert (results.value == results.number ** results.name.map({"square": 2, "cube": 3})).all()
    for name, (_, records, _) in final.items(): assert records.endswith(b"\n") and records.count(b"\n") == 2, name

    ends: dict[int, list[float]] = {}
    for what, number, when in map(json.loads, (study / "side.log").read_text().splitlines()):
        if what == "end": ends.setdefault(number, []).append(when)
    assert len(ends) == RUNS
    for number, times in ends.items():     # only a kill within milliseconds of the last line's end can make a run end twice
        for when in times[:-1]: assert any(when - .02 <= kill <= when + .05 for kill in kills), (number, times)


def test_interrupt_is_clean(study):
    "Ctrl-C: what is done is kept, the rest is pending, nobody is left, and the next run goes on."
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    folder = study / "runs" / "cheap"
    parent = start(study, .3, mark, 12)
    try:
        while len(finished(folder) if folder.exists() else ()) < 3 and parent.poll() is None: time.sleep(.05)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=20) == 1 and "Stopped" in (study / "parent.log").read_text()
        assert gone(mark), f"left over: {processes(mark)}"
        states = Study(study / "cheap.ipynb", grid=dict(number=range(12)), out=study / "runs").status().state.value_counts()
        assert set(states.index) == {"done", "pending"} and states["done"] >= 3
        before = finished(folder)
        assert start(study, 0, mark, 12).wait(timeout=60) == 0
    finally:
        for pid in processes(mark): os.kill(pid, signal.SIGKILL)
    final = finished(folder)
    assert len(final) == 12 and all(final[name] == files for name, files in before.items())
