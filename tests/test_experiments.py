"""Every experiment runs with smoke=True and every tutorial as it is, through the engine that people use: a study on warm kernels."""
import json
from pathlib import Path

import pytest

from designloop.core.records import read_records
from designloop.studies.parameters import notebook_parameters, read_notebook
from designloop.studies.study import Study

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = [p for p in sorted((ROOT / "nbs/experiments").glob("*.ipynb")) if not p.stem.endswith("_summary")]
TUTORIALS = sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))
SLOWEST = 90     # seconds a smoke run may take while the machine is busy with others; alone it takes under 15


def run(notebook: Path, out: Path, monkeypatch) -> Study:
    "One run of a notebook with its smallest settings; skips where its data is not to be had."
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(out)
    smoke = "smoke" in notebook_parameters(read_notebook(notebook))
    study = Study(notebook, grid=dict(smoke=[True]) if smoke else None, out=out / "runs")
    study.run(workers=1, timeout=300)
    files = sorted((study.directory).glob("*/status.json"))
    statuses = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in files}
    for name, status in statuses.items():
        error = status.get("error") or {}
        if error.get("ename") == "DataMissing": pytest.skip(f"{notebook.stem}: {error['evalue']}")
        traceback = error.get("traceback") or ""
        assert status["state"] == "done", f"{name}: {error.get('ename')}: {error.get('evalue')}\n{traceback}"
        assert status["wall_s"] < SLOWEST, f"{name} took {status['wall_s']:.0f} s; smoke=True is there to make it seconds"
    assert len(statuses) == len(study.runs) + (study.summary is not None)
    return study


@pytest.mark.parametrize("notebook", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment(notebook, tmp_path, monkeypatch):
    parameters = notebook_parameters(read_notebook(notebook))
    assert {"seed", "smoke"} <= set(parameters), f"{notebook.stem} has no parameter seed or smoke"
    study = run(notebook, tmp_path, monkeypatch)
    kinds = [r["kind"] for p in sorted(study.directory.glob("*/records.jsonl")) for r in read_records(p)]
    assert "record" in kinds or "table" in kinds
    assert "claim" in kinds, f"neither {notebook.stem} nor its summary makes a claim"
    assert len(study.results())
    page = study.report()
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda p: p.stem)
def test_tutorial(notebook, tmp_path, monkeypatch):
    before = {p: p.stat().st_mtime for p in notebook.parent.iterdir()}
    run(notebook, tmp_path, monkeypatch)
    left = {p.name for p in notebook.parent.iterdir()} - {p.name for p in before} - {"__pycache__", ".ipynb_checkpoints"}
    assert not left, f"the tutorial leaves {sorted(left)} beside itself; write to a temporary folder"


def test_there_is_something_to_run():
    assert EXPERIMENTS and TUTORIALS
