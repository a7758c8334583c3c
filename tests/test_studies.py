"""Studies: what is on disk, what is refused, what is kept, and who may run what."""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from designloop.core.errors import ParameterError, StudyError
from designloop.studies.parameters import read_notebook
from designloop.studies.runs import RunDirectory
from designloop.studies.study import Study, open_study
from designloop.studies.warm import package_environment

PARAMETERS = "way = 'well'   # how it ends\nnumber = 1\nseed = 0\nsmoke = False"


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    "A notebook whose first cell is the parameters cell."
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    title = nbformat.v4.new_markdown_cell("# A small experiment")
    nbformat.write(nbformat.v4.new_notebook(cells=[title, first, *map(nbformat.v4.new_code_cell, cells)]), path)
    return path


ENDS = '''
import os, time
import pandas as pd
from designloop.core.records import claim, record
record("half", number / 2, unit="m", kind_of="simple")
record("curve", pd.DataFrame(dict(t=[0, 1, 2], number=[7, 8, 9])))
claim("it ends well", way == "well")
if way == "raises": raise ValueError("on purpose")
if way == "hangs": time.sleep(600)
if way == "dies": os.kill(os.getpid(), 9)
'''


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    "A study whose runs end in every way there is, on two workers."
    folder = tmp_path_factory.mktemp("ends")
    study = Study(write_notebook(folder / "ends.ipynb", ENDS, "'last'"), cases=[dict(way=w) for w in ("well", "raises", "hangs", "dies")],
                  grid=dict(number=[4]), out=folder / "runs")
    study.run(workers=2, timeout=4, progress=False)
    return study


def test_layout(ended):
    names = {p.name for p in ended.directory.iterdir()}
    assert names == {"study.json", "results.parquet", f"source-{ended.source}.ipynb", *(r["run_id"] for r in ended.runs)}
    plan = json.loads((ended.directory / "study.json").read_text())
    assert plan["runs"] == ended.runs and plan["title"] == "A small experiment" and plan["parameters"]["way"]["comment"] == "how it ends"
    for run in ended.runs:
        place = ended.directory / run["run_id"]
        assert {p.name for p in place.iterdir()} == {".lock", "params.json", "status.json", "records.jsonl", "notebook.ipynb", "attempts"}
        assert not list((place / "attempts").iterdir()) and json.loads((place / "params.json").read_text()) == run["params"]
        status = json.loads((place / "status.json").read_text())
        assert status["run_id"] == run["run_id"] and status["attempt"] == 1 and status["wall_s"] > 0 and status["started"] < status["ended"]
        assert status["provenance"]["python"] == sys.version.split()[0] and status["provenance"]["versions"]["papermill"]


def test_every_end_is_told(ended):
    status = ended.status().set_index("way")
    assert status.state.to_dict() == dict(well="done", raises="failed", hangs="timeout", dies="failed")
    failures = ended.failures().set_index("way")
    assert set(failures.index) == {"raises", "hangs", "dies"} and not ended.ok
    assert failures.ename["raises"] == "ValueError" and "on purpose" in failures.traceback["raises"]
    assert "time.sleep(600)" in failures.traceback["hangs"] and "4 s" in failures.evalue["hangs"]
    assert failures.ename["dies"] == "KernelDied" and "SIGKILL" in failures.evalue["dies"]
    assert (failures.cell == 3).all()
    for way in failures.index:      # the notebook is kept up to the cell that failed
        nb = read_notebook(failures.notebook[way])
        assert nb.cells[3].source.strip() == ENDS.strip() and not nb.cells[4].outputs


def test_results_are_tidy(ended):
    results = ended.results()
    assert list(results.columns[:9]) == ["run_id", "way", "number", "name", "value", "low", "high", "n", "unit"]
    assert set(results.way) == {"well"} and len(results) == 4
    half = results[results.name == "half"].iloc[0]
    assert (half.value, half.unit, half.kind_of, half.number) == (2.0, "m", "simple", 4)
    curve = results[results.name == "curve"]
    assert curve.t.tolist() == [0, 1, 2] and curve.number_.tolist() == [7, 8, 9] and set(curve.number) == {4}     # the parameter keeps its name
    assert len(ended.results(partial=True)) == 16       # what the others had recorded before they failed
    stored = pd.read_parquet(ended.directory / "results.parquet")
    assert stored.run_id.tolist() == results.run_id.tolist() and stored.value.dropna().tolist() == results.value.dropna().tolist()


def test_only_what_failed_runs_again(ended):
    before = {run["run_id"]: (ended.directory / run["run_id"] / "status.json").read_bytes() for run in ended.runs}
    again = open_study(ended.directory)
    again.run(workers=2, timeout=2, progress=False)
    attempts = again.status().set_index("way").attempt.to_dict()
    assert attempts == dict(well=1, raises=2, hangs=2, dies=2)
    for run in again.runs:
        place = again.directory / run["run_id"]
        if run["params"]["way"] == "well": assert (place / "status.json").read_bytes() == before[run["run_id"]]
        else: assert (place / "attempts" / "1" / "notebook.ipynb").exists()      # the earlier attempt is kept


def test_prose_is_free_and_code_is_not(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "number")
    study = Study(path, grid=dict(number=[1, 2]), out=tmp_path)
    study.run(progress=False)
    nb = read_notebook(path)
    nb.cells[0].source = "# Another title"
    nbformat.write(nb, path)
    assert set(Study(path, grid=dict(number=[1, 2]), out=tmp_path).status().state) == {"done"}
    nb.cells[-1].source = "number + 1"
    nbformat.write(nb, path)
    edited = Study(path, grid=dict(number=[1, 2]), out=tmp_path)
    assert set(edited.status().state) == {"pending"}
    edited.run(progress=False)
    assert edited.ok and len([p for p in edited.directory.iterdir() if p.is_dir()]) == 4       # the old runs are still there


def test_fresh_keeps_the_old_result(tmp_path):
    study = Study(write_notebook(tmp_path / "a.ipynb", "from designloop.core.records import record\nrecord('x', number)"), out=tmp_path)
    study.run(progress=False)
    study.run(progress=False, fresh=True)
    place = study.directory / study.runs[0]["run_id"]
    assert study.status().attempt.tolist() == [2] and len(study.results()) == 1
    assert json.loads((place / "attempts" / "1" / "status.json").read_text())["state"] == "done"
    assert (place / "attempts" / "1" / "records.jsonl").read_bytes() == (place / "records.jsonl").read_bytes()


def test_retries(tmp_path):
    cell = "import os\nos.makedirs(f'tries{number}', exist_ok=True); k = len(os.listdir(f'tries{number}'))\n" \
           "open(f'tries{number}/{k}', 'w').close()\nassert k >= number"
    study = Study(write_notebook(tmp_path / "a.ipynb", cell), grid=dict(number=[0, 1, 5]), out=tmp_path)
    status = study.run(progress=False, retries=2).set_index("number")
    assert status.state.to_dict() == {0: "done", 1: "done", 5: "failed"} and status.attempt.to_dict() == {0: 1, 1: 2, 5: 3}


@pytest.mark.parametrize("asked, words", [
    (dict(grid=dict(numbr=[1])), "did you mean 'number'"), (dict(grid=dict(number=["one"])), "should be a number"),
    (dict(grid=dict(way=[3])), "should be text"), (dict(cases=[dict(smoke=1)]), "should be true or false"),
    (dict(grid=dict(seed=[1]), seeds=2), "given twice"), (dict(grid=dict(number=[])), "is empty"),
    (dict(grid=dict(way=[object()])), "a notebook's parameter is"), (dict(name="a/b"), "directory's name")])
def test_refused_before_anything_runs(tmp_path, asked, words):
    path = write_notebook(tmp_path / "a.ipynb")
    with pytest.raises(ParameterError, match=words): Study(path, out=tmp_path / "runs", **asked)
    assert not (tmp_path / "runs").exists()


def test_wrong_calls_name_the_way_out(tmp_path):
    study = Study(write_notebook(tmp_path / "a.ipynb"), out=tmp_path)
    with pytest.raises(ParameterError, match="'ray'"): study.run(engine="rya")
    with pytest.raises(ParameterError, match="workers"): study.run(workers=0)
    with pytest.raises(ParameterError, match="no option 'adress'"): study.run(adress="auto")
    with pytest.raises(StudyError, match="gpus_per_run=0"): study.run(gpus_per_run=999)
    with pytest.raises(StudyError, match="no notebook"): Study(tmp_path / "b.ipynb")
    with pytest.raises(StudyError, match="not a study"): open_study(tmp_path / "elsewhere")
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(StudyError, match="not a readable notebook"): Study(tmp_path / "broken.ipynb")


def test_working_directories(tmp_path, monkeypatch):
    "Kernels start in the notebook's directory whatever the caller's is, nobody's directory changes, and cwd='run' separates runs."
    (tmp_path / "elsewhere").mkdir()
    path = write_notebook(tmp_path / "a.ipynb", "import os\nfrom designloop.core.records import record\nrecord('cwd', os.getcwd())\n"
                                                "open('out.txt', 'a').write(str(number)); record('env', os.environ.get('COLOUR', 'none'))")
    monkeypatch.chdir(tmp_path / "elsewhere")
    study = Study(path, grid=dict(number=[1, 2]), out="runs")
    study.run(workers=2, progress=False, env=dict(COLOUR="blue"))
    results = study.results()
    assert set(results[results.name == "cwd"].value) == {str(tmp_path)} and set(results[results.name == "env"].value) == {"blue"}
    assert os.getcwd() == str(tmp_path / "elsewhere") and study.directory == tmp_path / "elsewhere" / "runs" / "a"
    assert sorted((tmp_path / "out.txt").read_text()) == ["1", "2"]
    apart = Study(path, grid=dict(number=[1, 2]), out="runs", name="apart")
    apart.run(workers=2, progress=False, cwd="run")
    assert [(apart.directory / run["run_id"] / "files" / "out.txt").read_text() for run in apart.runs] == ["1", "2"]


def test_two_parents_share_a_study(tmp_path):
    "Two people start the same study: each run is executed once, and both wait until everything is done."
    path = write_notebook(tmp_path / "a.ipynb", "import os, time\nfd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
                                                "os.write(fd, f'{number}\\n'.encode()); time.sleep(.2)")
    code = f"from designloop.studies.study import Study; s = Study({str(path)!r}, grid=dict(number=range(10)), out={str(tmp_path)!r}); " \
           "s.run(workers=2, progress=False); raise SystemExit(0 if s.ok else 1)"
    parents = [subprocess.Popen([sys.executable, "-c", code], env=package_environment()) for _ in range(2)]
    assert [parent.wait(timeout=120) for parent in parents] == [0, 0]
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(10))


def test_an_owner_elsewhere_is_waited_for_and_replaced_when_it_dies(tmp_path):
    study = Study(write_notebook(tmp_path / "a.ipynb"), out=tmp_path)
    place = RunDirectory(study.directory / study.runs[0]["run_id"])
    holder = f"import sys, time; sys.path[:0] = {sys.path!r}\nfrom designloop.studies.runs import RunDirectory\n" \
             f"with RunDirectory({str(place.path)!r}).lock(): print('held', flush=True); time.sleep(2.5)"
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n" and place.owned()
        start = time.monotonic()
        study.run(progress=False)
        assert study.ok and process.poll() is not None and time.monotonic() - start > 1


def test_summary_notebook(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "from designloop.core.records import record\nrecord('x', number)")
    write_notebook(tmp_path / "a_summary.ipynb", "import pandas as pd\nfrom designloop.core.records import record, claim\n"
                   "table = pd.read_parquet(results)\nrecord('mean', float(table.value.mean()))\nclaim('the mean is two', table.value.mean() == 2)",
                   parameters="results = ''\nout = ''")
    study = Study(path, grid=dict(number=[1, 3]), out=tmp_path / "runs")
    study.run(progress=False)
    summary = study.directory / "summary"
    assert study.ok and [json.loads(line)["kind"] for line in (summary / "records.jsonl").read_text().splitlines()] == ["record", "claim"]
    first = (summary / "status.json").read_bytes()
    study.run(progress=False)
    assert (summary / "status.json").read_bytes() == first        # nothing changed, so it is not executed again
    more = Study(path, grid=dict(number=[1, 3, 5]), out=tmp_path / "runs")
    more.run(progress=False)
    assert not json.loads((summary / "records.jsonl").read_text().splitlines()[1])["holds"]


FULL = '''
import sys
from designloop.studies.study import Study
study = Study(sys.argv[1], grid=dict(number=[1, 2, 3]), out=sys.argv[2])
study.run(workers=2, progress=False)
print(study.status().set_index("number")[["state", "error"]].to_json())
sys.exit(0 if study.ok else 1)
'''
LARGE = "from designloop.core.records import record\nrecord('x', number)\nif number == 2: print('long ' * 1_000_000)"


def full_disk(tmp_path: Path, *wrapper: str) -> dict:
    "Status of three runs, the second of which writes more than there is room for."
    path = write_notebook(tmp_path / "a.ipynb", LARGE)
    command = [*wrapper, sys.executable, "-c", FULL, str(path), str(tmp_path / "disk")]
    done = subprocess.run(command, env=package_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout.startswith("{"), done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_file_too_large(tmp_path):
    "A run that cannot save its notebook fails; the others finish."
    status = full_disk(tmp_path, "bash", "-c", 'ulimit -f 2000; exec "$@"', "bash")
    assert status["state"] == {"1": "done", "2": "failed", "3": "done"} and "File too large" in status["error"]["2"]


def test_a_full_disk(tmp_path):
    "The same on a file system that is really full, where not even a status can be written."
    (tmp_path / "disk").mkdir()
    script = f'mount -t tmpfs -o size=3m tmpfs {tmp_path}/disk && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "bash", "-c", script, "bash", "true"], capture_output=True).returncode:
        pytest.skip("needs permission to mount a small file system in a namespace of its own")
    status = full_disk(tmp_path, "unshare", "-rm", "bash", "-c", script, "bash")
    assert status["state"]["1"] == status["state"]["3"] == "done" and status["state"]["2"] in ("failed", "pending")


def test_progress_lines_in_a_log(tmp_path):
    path = write_notebook(tmp_path / "a.ipynb", "assert number < 2")
    code = f"from designloop.studies.study import Study; Study({str(path)!r}, grid=dict(number=[1, 2]), out={str(tmp_path)!r}).run()"
    log = subprocess.run([sys.executable, "-c", code], env=package_environment(), capture_output=True, text=True, timeout=60).stderr
    assert "[1/2] done" in log and "number=1" in log and "[2/2] failed" in log and "AssertionError" in log


def test_other_python_kernel(tmp_path):
    study = Study(write_notebook(tmp_path / "a.ipynb", "number"), out=tmp_path)
    study.run(kernel="python3", progress=False)
    assert study.ok and json.loads((study.directory / study.runs[0]["run_id"] / "status.json").read_text())["kernel"] == "python3"
    missing = study.run(kernel="no-such-kernel", progress=False, fresh=True)
    assert missing.state.tolist() == ["failed"] and "no-such-kernel" in missing.error[0]
