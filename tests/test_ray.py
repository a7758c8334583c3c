"""The ray engine on a real cluster of two nodes, started on this machine; one of them is lost in the middle of a study."""
import json
import os
import threading
import time
from pathlib import Path

import nbformat
import pytest

from designloop.core.errors import StudyError
from designloop.studies.runs import RunDirectory
from designloop.studies.study import Study

os.environ["RAY_raylet_start_wait_time_s"] = "120"     # read when ray is imported; a busy machine needs more than its 30
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'designloop[ray]'")

CELL = '''
import os, time
from designloop.core.records import record
log = os.open(os.environ["SIDE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, f"start {number} {time.time()}\\n".encode())
time.sleep(2)
record("square", number ** 2)
if number == 3 and fail: raise ValueError("on purpose")
os.write(log, f"end {number} {time.time()}\\n".encode())
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    "Two nodes with one CPU each, the second with a resource `perch`."
    from ray.cluster_utils import Cluster
    # Each of Ray's many processes would compile a grammar of web addresses that jsonschema likes to have: an empty module spares them that.
    quick, before = tmp_path_factory.mktemp("quick"), os.environ.get("PYTHONPATH", "")
    (quick / "rfc3987_syntax.py").touch()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(quick), before]))
    started = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000))
    try:
        started.second = started.add_node(num_cpus=1, resources={"perch": 1}, object_store_memory=100_000_000)
        started.wait_for_nodes()
        yield started
    finally:
        ray.shutdown()
        started.shutdown()
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def notebook(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("number = 0\nfail = False", metadata={"tags": ["parameters"]}),
                                         nbformat.v4.new_code_cell(CELL)])
    nbformat.write(nb, tmp_path / "a.ipynb")
    return tmp_path / "a.ipynb"


def test_no_cluster(notebook, tmp_path):      # before the cluster below is started
    study = Study(notebook, out=tmp_path / "runs")
    if Path("/tmp/ray/ray_current_cluster").exists(): pytest.skip("a Ray cluster of somebody else runs on this machine")
    with pytest.raises(StudyError, match="ray start --head"): study.run(engine="ray", progress=False)


def test_resources_failures_and_resuming(cluster, notebook, tmp_path):
    study = Study(notebook, grid=dict(number=[2, 3], fail=[True]), out=tmp_path / "runs")
    side = tmp_path / "side.log"
    status = study.run(engine="ray", address=cluster.address, resources={"perch": 1}, env=dict(SIDE_LOG=side), retries=1, progress=False)
    assert status.set_index("number").state.to_dict() == {2: "done", 3: "failed"} and status.set_index("number").attempt.to_dict() == {2: 1, 3: 2}
    assert "on purpose" in study.failures().traceback[0]
    study.run(engine="local", env=dict(SIDE_LOG=side), progress=False)       # another engine goes on where this one stopped
    assert study.status().set_index("number").attempt.to_dict() == {2: 1, 3: 3}
    assert not ray.is_initialized()      # we connected, so we disconnected


def parent_of(pid: str) -> int:
    "The process that started a process; 0 when there is none."
    try: return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError: return 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells the nodes' processes apart in /proc")
def test_a_node_is_lost(cluster, notebook, tmp_path):
    side, stop = tmp_path / "side.log", threading.Event()
    study = Study(notebook, grid=dict(number=range(8)), out=tmp_path / "runs")

    def read() -> list[list[str]]: return [line.split() for line in side.read_text().splitlines()] if side.exists() else []

    def lose_the_second_node() -> None:
        raylet = cluster.second.all_processes["raylet"][0].process.pid
        while not stop.wait(.05):
            ends, begun = {number for what, number, _ in read() if what == "end"}, {number: float(when) for what, number, when in read() if what == "start"}
            for run in study.runs:
                status, number = RunDirectory(study.directory / run["run_id"]).status, str(run["params"]["number"])
                if len(ends) < 2 or number in ends or time.time() - begun.get(number, 0) > 1: continue
                if parent_of(status["worker"].split("/")[1]) == raylet:      # a run on the second node has just begun
                    cluster.remove_node(cluster.second, allow_graceful=False)
                    return
    thread = threading.Thread(target=lose_the_second_node)
    thread.start()
    try: study.run(engine="ray", address=cluster.address, env=dict(SIDE_LOG=side), progress=False)
    finally:
        stop.set()
        thread.join()
    assert study.ok and len(study.results()) == 8 and len(cluster.list_all_nodes()) == 1
    assert sorted(int(number) for what, number, _ in read() if what == "end") == list(range(8))      # each run ended once
    assert sum(what == "start" for what, *_ in read()) == 9 and sorted(study.status().attempt) == [1] * 7 + [2]
    statuses = [json.loads((study.directory / run["run_id"] / "status.json").read_text()) for run in study.runs]
    assert {s["engine"] for s in statuses} == {"ray"} and len({s["worker"] for s in statuses}) >= 2
