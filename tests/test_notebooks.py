"""Every library notebook runs from top to bottom, by nbdev's own runner, each in a process of its own.

`nbdev_test` runs several notebooks in one process, where the second sees what the first left in matplotlib's settings, in the
environment or in a registry. Here each starts from the same fresh process, forked from one that has done the slow imports.
"""
import multiprocessing
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# tutorials and experiments have parameters and run as studies in test_experiments.py
ELSEWHERE = re.compile(r"(^|/)[._]|^(experiments|tutorials|runs)/")
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if not ELSEWHERE.search(p.relative_to(ROOT / "nbs").as_posix())]
MOST_CPU = 40     # seconds of processor time: 20 seconds on two cores, whoever else is using them
HANGS = 300       # seconds until it is stopped

pytest.importorskip("nbdev.test", reason="nbdev is not installed")


def execute(notebook: Path, log: Path) -> None:
    "In the child: run the cells that are not marked slow or gpu; what it says goes to the log, the processor time it took beside it."
    with open(log, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        from nbdev.test import test_nb
        passed, _ = test_nb(notebook, skip_flags=["slow", "gpu"], basepath=ROOT)
        sys.stdout.flush()
        sys.stderr.flush()
        log.with_suffix(".cpu").write_text(str(sum(os.times()[:4])))
        os._exit(0 if passed else 1)


@pytest.fixture(scope="module")
def fresh():
    "Processes that start with the slow imports done."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "botorch", "pandas", "scipy.stats", "matplotlib.pyplot", "nbdev.test"])
    return context


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").with_suffix("").as_posix())
def test_notebook(notebook, fresh, tmp_path):
    log = tmp_path / "notebook.log"
    child = fresh.Process(target=execute, args=(notebook, log))
    child.start()
    child.join(HANGS)
    hangs = child.is_alive()
    if hangs: child.kill()
    child.join()
    said = log.read_text(errors="replace") if log.exists() else ""
    assert not hangs, f"still running after {HANGS} s\n{said}"
    assert child.exitcode == 0, said or f"the process ended with {child.exitcode}"
    cpu = float(log.with_suffix(".cpu").read_text())
    assert cpu < MOST_CPU, f"took {cpu:.0f} s of processor time; a library notebook takes at most {MOST_CPU}"
    print(f"{cpu:.1f} s of processor time")
