"""JupyterLab for browser tests: a server with an empty home directory, and what a person does first. Skips where it is not to be had."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "only-for-this-test"

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; install the package 'chromium' to run the browser tests")


def notebook_until(name: str, marker: str) -> nbformat.NotebookNode:
    "A notebook up to and including the first cell that contains the marker, without outputs."
    notebook = nbformat.read(ROOT / "nbs" / name, as_version=4)
    last = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and marker in c.source and "#| export" not in c.source)
    notebook.cells = notebook.cells[:last + 1]
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    return notebook


@contextlib.contextmanager
def serving(work: Path, home: Path):
    "JupyterLab with an empty home directory, serving the notebooks of a folder; gives its address."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "XDG_"))}
    env = {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "pkg"), os.environ.get("PYTHONPATH", "")]))}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={work}", "--allow-root",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
               "--ServerApp.jpserver_extensions={'jupyterlab_jupytext': False, 'jupyter_lsp': False}"]
    with open(home / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=env, cwd=work, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 40
        while True:
            if server.poll() is not None: pytest.fail(f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-3000:]}")
            try: urllib.request.urlopen(f"{url}/api?token={TOKEN}", timeout=2).close(); break
            except OSError:
                if time.monotonic() > deadline: pytest.fail(f"JupyterLab did not answer:\n{(home / 'lab.log').read_text()[-3000:]}")
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: server.kill(); server.wait()


def run_all(page, lab: str, notebook: str) -> None:
    "Open a notebook in JupyterLab and run all its cells."
    page.goto(f"{lab}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?reset&token={TOKEN}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", state="visible")
    page.get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for()         # the kernel is connected
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def look(page, name: str) -> None:
    "Keep a picture for people, when they ask for it."
    if folder := os.environ.get("DESIGNLOOP_SCREENSHOTS"): page.screenshot(path=str(Path(folder) / f"{name}.png"))
