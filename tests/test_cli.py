"""The command line: what it prints, what it runs, and what it exits with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from designloop.core.errors import DataMissing, ParameterError
from designloop.studies.cli import app, exit_code, main, parse_seeds, split_values

runner = CliRunner()
PACKAGE = str(Path(__file__).resolve().parents[1] / "pkg")


def command(*arguments, cwd=None, **environment):
    "The command in a process of its own."
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([PACKAGE, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "designloop.studies.cli", *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def write_notebook(
    path, code, parameters="method = 'cbas'  # which\nseparation = 0  # mutations\nrates = [0.1]  # per stage\nseed = 0\nsmoke = False"
):
    import nbformat

    cells = [
        nbformat.v4.new_markdown_cell("# Tiny experiment\n> nothing much"),
        nbformat.v4.new_code_cell(parameters, metadata=dict(tags=["parameters"])),
        nbformat.v4.new_code_cell(code),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))),
        path,
    )
    return path


GOOD = """from designloop.core.records import claim, record
record("gain", separation + 0.1 * seed + (method == "ppgvae"))
claim("The gain is positive", separation + 0.1 * seed + (method == "ppgvae") > 0, f"method {method}")"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A folder with experiments of its own: one that works and one that fails for one value."
    root = tmp_path_factory.mktemp("project")
    write_notebook(root / "nbs/experiments/tiny.ipynb", GOOD)
    write_notebook(root / "nbs/experiments/shaky.ipynb", "if separation == 2: raise RuntimeError('separation two is too much')\n" + GOOD)
    write_notebook(
        root / "nbs/experiments/hungry.ipynb",
        "from designloop.core.errors import DataMissing\nraise DataMissing('The data file x/y.csv is not here.')",
    )
    write_notebook(root / "nbs/experiments/slow.ipynb", GOOD + "\nimport time; time.sleep(0 if seed == 0 else 60)")
    return root


def inside(project, monkeypatch, capfd, *arguments):
    "The command in this process, started from the project's folder: exit code, standard output, standard error."
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", PACKAGE)
    code = main([str(a) for a in arguments])
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_help_is_quick_and_has_examples():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = command("--help")
        seconds.append(time.perf_counter() - started)
    assert done.returncode == 0 and "designloop run ppgvae" in done.stdout and "130 interrupted" in done.stdout
    assert min(seconds) < 0.6 * float(os.environ.get("DESIGNLOOP_SLOW_MACHINE", "2")), seconds  # 0.35 s when nothing else runs
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import designloop.studies.cli, sys; print({'torch', 'pandas', 'numpy', 'nbformat', 'matplotlib'} & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE},
    )
    assert loaded.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["list", "run", "report", "lab", "data", "data list", "data get"])
def test_every_command_has_help(name):
    result = runner.invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0 and "Usage" in result.output


def test_version():
    import designloop

    assert command("--version").stdout.strip() == f"designloop {designloop.__version__}"


def test_values_and_seeds_are_split_with_care():
    assert split_values("0,2,4") == ["0", "2", "4"] and split_values("[1,2],[3]") == ["[1,2]", "[3]"]
    assert (
        split_values("'a,b',\"c\"") == ["a,b", "c"]
        and split_values("{'a': 1, 'b': 2}") == ["{'a': 1, 'b': 2}"]
        and split_values("it's,x") == ["it's", "x"]
    )
    for broken in ("[1,2", "'a,b"):
        with pytest.raises(ParameterError, match="does not close"):
            split_values(broken)
    assert parse_seeds("3") == [0, 1, 2] and parse_seeds("4-6") == [4, 5, 6] and parse_seeds("1,5-6") == [1, 5, 6]
    for wrong in ("many", "0", "3-1", "1,,2"):
        with pytest.raises(ParameterError):
            parse_seeds(wrong)


def test_a_dry_run_prints_every_run_and_runs_none(project, monkeypatch, capfd, tmp_path):
    code, out, _ = inside(
        project,
        monkeypatch,
        capfd,
        "run",
        "tiny",
        "-p",
        "method=cbas,ppgvae",
        "-p",
        "separation=0,2,4",
        "--seeds",
        "5",
        "--smoke",
        "--out",
        tmp_path,
        "--dry-run",
    )
    assert code == 0 and "30 runs in" in out and "0 done, 30 to do" in out and len(out.strip().splitlines()) == 32
    assert "True" in out and list(tmp_path.iterdir()) == []


def test_values_take_the_type_of_the_notebooks_defaults(project, monkeypatch, capfd, tmp_path):
    code, out, _ = inside(
        project,
        monkeypatch,
        capfd,
        "run",
        "tiny",
        "-p",
        "method=3",
        "-p",
        "separation=3",
        "-p",
        "rates=[0.1,0.2],[0.3]",
        "--out",
        tmp_path,
        "--dry-run",
    )
    assert code == 0 and "[0.1, 0.2]" in out and "[0.3]" in out and "2 runs" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "tny"], "did you mean 'tiny'"),
        (["run", "gone/x.ipynb"], "there is no notebook 'gone/x.ipynb'"),
        (["run", "tiny", "-p", "metod=cbas"], "did you mean 'method'"),
        (["run", "tiny", "-p", "separation=far"], "should be a number"),
        (["run", "tiny", "-p", "smoke=perhaps"], "is not true or false"),
        (["run", "tiny", "-p", "method"], "not of the form name=value"),
        (["run", "tiny", "-p", "method=a", "-p", "method=b"], "given twice"),
        (["run", "tiny", "-p", "seed=1", "--seeds", "3"], "given twice"),
        (["run", "tiny", "--seeds", "lots"], "neither a number"),
        (["run", "tiny", "--engine", "spark"], "allowed: 'local', 'ray'"),
        (["run", "tiny", "--workers", "0"], "workers"),
        (["run", "tiny", "--wrkers", "2"], "No such option"),
        (["run", "tiny", "--name", "a/b"], "cannot be a directory's name"),
        (["rum", "tiny"], "No such command 'rum'"),
        (["run"], "Missing argument"),
        (["report", "tny"], "There is no study 'tny'"),
        (["data", "list", "tf-bindin"], "Did you mean 'tf-binding'"),
        (["data", "get", "nothing-like-it-xyz"], "No data file fits"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(project, monkeypatch, capfd, arguments, words):
    code, out, err = inside(project, monkeypatch, capfd, *arguments)
    assert code == 2 and err.startswith("designloop: ") and words in err and len(err.strip().splitlines()) <= 2, err
    assert out == "" and not (project / "runs").exists()


def test_a_study_from_start_to_page(project, monkeypatch, capfd, tmp_path):
    arguments = ["run", "tiny", "-p", "method=cbas,ppgvae", "--seeds", "2", "--workers", "2", "--out", tmp_path]

    def states():
        return {p.parent.name: p.read_text() for p in tmp_path.glob("tiny/*/status.json")}

    code, out, _ = inside(project, monkeypatch, capfd, *arguments)
    last = out.strip().splitlines()
    assert code == 0 and last[-1] == f"report: {tmp_path / 'tiny' / 'report.html'}" and last[-2] == "tiny: 4 of 4 runs done"
    assert last[-3] == "◐ mixed: The gain is positive (3 of 4 runs)"
    page = (tmp_path / "tiny/report.html").read_text()
    assert "The gain is positive" in page and "Tiny experiment" in page
    before = states()
    code, _, _ = inside(project, monkeypatch, capfd, *arguments)
    assert code == 0 and states() == before and len(before) == 4  # nothing ran twice
    assert "4 done, 0 to do" in inside(project, monkeypatch, capfd, *arguments, "--dry-run")[1]
    for name in (tmp_path / "tiny", "tiny"):
        code, out, _ = inside(project, monkeypatch, capfd, "report", name, "--out", tmp_path)
        assert code == 0 and "tiny: 4 of 4 runs done" in out


def test_a_failing_run_gives_exit_code_1_and_leaves_the_others(project, monkeypatch, capfd, tmp_path):
    code, out, _ = inside(project, monkeypatch, capfd, "run", "shaky", "-p", "separation=0,2,4", "--out", tmp_path)
    assert code == 1 and "shaky: 2 of 3 runs done, 1 failed" in out and "RuntimeError: separation two is too much" in out
    assert out.strip().splitlines()[-1].startswith("report: ")


def test_missing_data_gives_exit_code_3(project, monkeypatch, capfd, tmp_path):
    code, out, err = inside(project, monkeypatch, capfd, "run", "hungry", "--out", tmp_path)
    assert code == 3 and "The data file x/y.csv is not here." in err and "1 failed" in out


def test_ctrl_c_gives_exit_code_130_and_keeps_what_is_done(project, tmp_path):
    env = {**os.environ, "PYTHONPATH": PACKAGE, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "designloop.studies.cli", "run", "slow", "--seeds", "2", "--out", str(tmp_path)],
        cwd=project,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def states():
        return sorted(json.loads(p.read_text())["state"] for p in tmp_path.glob("slow/*/status.json"))

    deadline = time.monotonic() + 60
    while states() != ["done", "running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert states() == ["done", "running"]
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "slow: 1 of 2 runs done" in out, (out, err)
    assert (tmp_path / "slow/report.html").exists()


def test_data_list_says_where_files_are(tmp_path):
    listed = command("data", "list", "ppgvae", DESIGNLOOP_DATA=str(tmp_path), DESIGNLOOP_CACHE=str(tmp_path / "cache"))
    assert listed.returncode == 0 and "gb1_four_site.csv.gz" in listed.stdout and "CC BY 4.0" in listed.stdout and "0/1" in listed.stdout
    rows = [json.loads(line) for line in command("data", "list", "--json", DESIGNLOOP_DATA=str(tmp_path)).stdout.splitlines()]
    assert {"tf-binding", "ppgvae"} <= {r["slug"] for r in rows} and all(r["licence"] and r["origin"] for r in rows)
    missing = command("data", "get", "ppgvae/phoq_four_site.csv", DESIGNLOOP_DATA=str(tmp_path), DESIGNLOOP_CACHE=str(tmp_path / "cache"))
    assert missing.returncode == 3 and "Podgornaia" in missing.stderr and "Put it at" in missing.stderr and missing.stdout == ""


def test_list_shows_the_catalogue_and_the_other_experiments(project, monkeypatch, capfd):
    code, out, _ = inside(project, monkeypatch, capfd, "list")
    assert code == 0 and "ppgvae" in out and "binding_league" in out and "Tiny experiment" in out
    code, out, _ = inside(project, monkeypatch, capfd, "list", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert {"ppgvae", "binding_league"} <= {r["system"] for r in rows} and "tiny" in {r["experiment"] for r in rows}


def test_a_closed_pipe_is_no_fault():
    done = subprocess.run(
        f"{sys.executable} -m designloop.studies.cli data list --each | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE},
    )
    assert done.stdout.startswith("slug") and "Traceback" not in done.stderr and "fault" not in done.stderr


def test_lab_has_the_package_on_its_path(monkeypatch):
    from designloop.catalogue import notebooks_folder
    from designloop.studies.cli import lab_command

    pytest.importorskip("jupyterlab")
    nbs = notebooks_folder()
    if nbs is None:
        pytest.skip("no checkout: the notebooks are not here")
    started = []
    monkeypatch.setattr(os, "execve", lambda *a: started.append(a))
    assert main(["lab", "--no-browser", "--port", "8899"]) == 0
    ((path, arguments, env),) = started
    assert path == sys.executable and arguments[1:3] == ["-m", "jupyterlab"] and arguments[-3:] == ["--no-browser", "--port", "8899"]
    assert (
        f"--ServerApp.root_dir={nbs}" in arguments
        and (Path(env["PYTHONPATH"].split(os.pathsep)[0]) / "designloop" / "__init__.py").exists()
    )
    _, env, remark = lab_command(nbs, [])
    assert remark or (Path(env["JUPYTER_PATH"].split(os.pathsep)[0]) / "kernels/designloop-warm/kernel.json").exists()


def test_exit_codes_of_errors(monkeypatch, capfd):
    assert exit_code(DataMissing("x")) == 3 and exit_code(ParameterError("x")) == 2 and exit_code(KeyboardInterrupt()) == 130
    assert exit_code(ZeroDivisionError("x")) == 70
    import designloop.core.data as data

    def broken(*a, **k):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(data, "data_status", broken)
    assert main(["data", "list"]) == 70 and "DESIGNLOOP_DEBUG=1" in capfd.readouterr().err
    monkeypatch.setenv("DESIGNLOOP_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["data", "list"])
