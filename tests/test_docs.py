"""Pages: flaws are found in a project that has them, and none are found in ours."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from designloop.core.errors import StudyError
from designloop.docs import (
    check,
    check_constraints,
    check_environment,
    check_notebook,
    check_page,
    check_sidebar,
    check_versions,
    gallery,
    links,
    main,
    make_readme,
    project_root,
    readme,
    sidebar,
)

ROOT = Path(__file__).resolve().parents[1]
SLASH = "/"
PNG = base64.b64encode(
    base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
).decode()
needs_nbdev = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import nbdev.processors"], capture_output=True).returncode != 0, reason="nbdev is not installed"
)


def cell(source, outputs=(), tags=(), kind="code"):
    made = dict(cell_type=kind, metadata=dict(tags=list(tags)) if tags else {}, source=source, id=f"c{abs(hash(source)) % 10**7}")
    return made | (dict(outputs=list(outputs), execution_count=None) if kind == "code" else {})


def text(source):
    return cell(source, kind="markdown")


def picture():
    return dict(output_type="display_data", metadata={}, data={"image/png": PNG, "text/plain": "<Figure>"})


def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            dict(
                cells=list(cells),
                metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")),
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )


@pytest.fixture
def project(tmp_path):
    "A small project with nothing wrong."
    (tmp_path / "settings.ini").write_text(
        "[DEFAULT]\nlib_name = thing\nversion = 1.2.0\nmin_python = 3.11\nlib_path = pkg/thing\nnbs_path = nbs\ndoc_path = _docs\n"
        "recursive = True\n"
        "title = thing\n"
        "git_url = https://example.org/thing\ndoc_host = https://thing.example.org\n"
        "doc_baseurl = /docs\nbranch = main\nuser = u\nrepo = thing\n"
        "author = a\nauthor_email = a@b\ndescription = d\nkeywords = k\ncopyright = c\nlicense = apache2\nstatus = 3\n"
        "requirements = numpy>=1.26\ndev_requirements = ruff>=0.6\n"
    )
    (tmp_path / "constraints.txt").write_text("# lock\nnumpy==2.1.0\nruff==0.6.3\n")
    (tmp_path / "environment.yml").write_text(
        "name: thing\ndependencies:\n  - python=3.11\n  - pip\n  - quarto\n  - pip:\n    - -e .[dev]\n"
    )
    (tmp_path / "_quarto.yml").write_text(
        "website:\n  title: thing\n  repo-url: https://example.org/thing\n  site-url: https://thing.example.org/docs\n"
        "  sidebar:\n    contents:\n"
        "      - index.ipynb\n      - section: Library\n        contents: [core/a.ipynb, core/b.ipynb]\n"
        "      - section: Experiments\n        contents: [experiments/x.ipynb]\n"
    )
    (tmp_path / "setup.py").write_text("from setuptools import setup\nsetup(name='thing', version='1.2.0', extras_require={\"dev\": []})\n")
    (tmp_path / "pkg/thing").mkdir(parents=True)
    (tmp_path / "pkg/thing/__init__.py").write_text('__version__ = "1.2.0"\n')
    write(
        tmp_path / "nbs/index.ipynb",
        text("# thing\n> does things"),
        cell("#| hide\nimport os"),
        text("Read [a](core/a.html#a-part) and `[not](a-link)`."),
        cell("#| echo: false\n#| fig-alt: A line that rises to the right.\nplt.plot()", [picture()]),
        cell("1 + 1", [dict(output_type="execute_result", execution_count=None, metadata={}, data={"text/plain": "2"})]),
    )
    write(tmp_path / "nbs/core/a.ipynb", text("# A\n> first\n\n## A part"), cell("#| default_exp core.a"), cell("#| export\nx = 1"))
    write(
        tmp_path / "nbs/core/b.ipynb",
        text("# B\n> second"),
        cell("#| default_exp core.b"),
        cell("#| export\nfrom designloop.core.a import x"),
    )
    write(tmp_path / "nbs/experiments/x.ipynb", text("# X\n> tries"), cell("seed = 0\nsmoke = False", tags=["parameters"]))
    return tmp_path


def flaws(project):
    return [str(f) for f in check(project)]


def test_a_clean_project_has_no_flaw(project):
    assert flaws(project) == []


@pytest.mark.parametrize(
    "path, cells, words",
    [
        ("core/a.ipynb", [text("# A\n> b\n\n[x](nowhere.ipynb)")], "leads nowhere"),
        ("core/a.ipynb", [text("# A\n> b\n\n[x](b.ipynb#gone)")], "names a heading that is not there"),
        ("core/a.ipynb", [text("# A\n> b\n\n[x](../../settings.ini)")], "leads out of nbs/"),
        ("core/a.ipynb", [text("# A\n> b\n\n![](../index.ipynb)")], "has no alternative text"),
        ("core/a.ipynb", [text("# A\n> b"), cell("plot()", [picture()])], "a figure has no words"),
        (
            "core/a.ipynb",
            [text("# A\n> b"), cell("f()", [dict(output_type="error", ename="ValueError", evalue="v", traceback=[])])],
            "holds an error: ValueError",
        ),
        (
            "core/a.ipynb",
            [text("# A\n> b"), cell("f()", [dict(output_type="stream", name="stderr", text="x\r50%|#####     | 1/2")])],
            "progress bar",
        ),
        (
            "core/a.ipynb",
            [text("# A\n> b"), cell("f", [dict(output_type="stream", name="stdout", text="<f at 0x7f3a2b9c1d00>")])],
            "memory address",
        ),
        (
            "core/a.ipynb",
            [text("# A\n> b"), cell("f", [dict(output_type="stream", name="stdout", text=f"saved {SLASH}home{SLASH}ann{SLASH}x.csv")])],
            "path of one machine",
        ),
        ("core/a.ipynb", [text("no title here")], "does not start with a title"),
        ("core/a.ipynb", [text("# A title alone")], "no line `> …`"),
        (
            "core/a.ipynb",
            [text("# A\n> b"), cell("#| default_exp core.a"), cell("#| export\nfrom designloop.core.b import y")],
            "comes before what it builds on (core.b)",
        ),
        ("core/new.ipynb", [text("# New\n> page")], "not in the sidebar"),
        ("experiments/x.ipynb", [text("# X\n> tries"), cell("seed = 0")], "exactly one cell tagged `parameters`, has 0"),
        ("experiments/x.ipynb", [text("# X\n> tries"), cell("seed = 0", tags=["parameters"])], "has no parameter `smoke`"),
        ("core/a.ipynb", [text("# A\n> b\n\n" + "x" * 410_000)], "more than 400 KB"),
    ],
)
def test_each_flaw_of_a_notebook_is_found(project, path, cells, words):
    write(project / "nbs" / path, *cells)
    assert any(words in f for f in flaws(project)), flaws(project)


@pytest.mark.parametrize(
    "name, old, new, words",
    [
        ("_quarto.yml", "core/b.ipynb]", "core/b.ipynb, core/c.ipynb]", "lists core/c.ipynb, which does not exist"),
        ("_quarto.yml", "core/b.ipynb]", "core/b.ipynb, core/b.ipynb]", "lists core/b.ipynb twice"),
        ("_quarto.yml", "title: thing", "title: thong", "title is 'thong'"),
        ("_quarto.yml", "      - index.ipynb\n", "", "not with index.ipynb"),
        ("constraints.txt", "numpy==2.1.0", "numpy==1.20.0", "does not satisfy numpy>=1.26"),
        ("constraints.txt", "ruff==0.6.3", "", "ruff (dev) is required"),
        ("environment.yml", "python=3.11", "python=3.9", "python must be at least 3.11"),
        ("environment.yml", "  - quarto\n", "", "quarto is not listed"),
        ("environment.yml", ".[dev]", ".[dev,more]", "no extra 'more'"),
        ("setup.py", "version='1.2.0'", "version='1.3.0'", "settings.ini says thing 1.2.0"),
        ("setup.py", '"dev": []', "", "the extra 'dev'"),
        ("pkg/thing/__init__.py", "1.2.0", "1.1.0", "__version__ is not 1.2.0"),
    ],
)
def test_each_disagreement_between_files_is_found(project, name, old, new, words):
    path = project / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert any(words in f for f in flaws(project)), flaws(project)


def test_missing_files_are_named_not_crashed_upon(project):
    for name in ("constraints.txt", "environment.yml"):
        (project / name).unlink()
    assert [str(f) for f in check_constraints(project) + check_environment(project)] == [
        "constraints.txt: the file is missing",
        "environment.yml: the file is missing",
    ]
    (project / "_quarto.yml").unlink()
    assert "_quarto.yml: the file is missing" in flaws(project)


def test_links_are_read_like_a_browser_would():
    found = list(links('a [b](c.md) `[d](e)`\n```\n[f](g)\n```\n![h](i.png){fig-alt="words"} <a href="j.html">k</a> [![l](m.svg)](n)'))
    assert (False, "c.md", "b") in found and (True, "i.png", "words") in found and (False, "j.html", "") in found
    assert not {"e", "g"} & {target for _, target, _ in found}


@needs_nbdev
def test_the_readme_is_the_index(project, monkeypatch):
    monkeypatch.chdir(project)
    from nbdev.config import get_config

    get_config.cache_clear()
    made, pictures = make_readme(project)
    assert "# thing" in made and "> does things" in made and "import os" not in made and "#|" not in made and "plt.plot()" not in made
    assert "[a](nbs/core/a.ipynb#a-part)" in made and "`[not](a-link)`" in made
    assert "![A line that rises to the right.](nbs/images/readme-1.png)" in made and pictures == {
        "nbs/images/readme-1.png": base64.b64decode(PNG)
    }
    assert "```python\n1 + 1" in made and "    2" in made
    assert [str(f) for f in readme(project, checking=True)] == ["README.md: is missing", "nbs/images/readme-1.png: is missing"]
    assert readme(project) == [] and readme(project, checking=True) == []
    (project / "nbs/images/readme-9.png").write_bytes(b"old")
    (project / "README.md").write_text("edited by hand")
    assert [str(f) for f in readme(project, checking=True)] == ["README.md: is out of date", "nbs/images/readme-9.png: is no longer used"]
    readme(project)
    assert not (project / "nbs/images/readme-9.png").exists() and readme(project, checking=True) == []
    get_config.cache_clear()


def test_the_gallery_shows_the_marked_figure_and_the_verdicts(project):
    claim = dict(
        output_type="display_data",
        metadata={},
        data={"application/vnd.designloop.claim+json": dict(kind="claim", text="it works", holds=False, evidence="0.1")},
    )
    other = dict(output_type="display_data", metadata={}, data={"image/png": base64.b64encode(b"other").decode()})
    write(
        project / "nbs/experiments/ppgvae.ipynb",
        text("# P\n> p"),
        cell("#| label: gallery\n#| fig-alt: Bars of five methods.\nplot()", [picture()]),
        cell("plot2()", [other]),
        cell("claim()", [claim]),
    )
    assert gallery(project, checking=True) and gallery(project) == [] == gallery(project, checking=True)
    page = (project / "nbs/gallery.ipynb").read_text()
    assert "![Bars of five methods.](images/gallery/ppgvae.png)" in page and "not reproduced: it works (0.1)" in page
    assert (project / "nbs/images/gallery/ppgvae.png").read_bytes() == base64.b64decode(PNG)
    assert check_page(project, project / "nbs/gallery.ipynb") == [] == check_notebook(project, project / "nbs/gallery.ipynb")


def test_the_command_outside_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 2 and "settings.ini" in capsys.readouterr().err
    with pytest.raises(StudyError):
        project_root(tmp_path)


def test_the_command_counts_flaws(project, monkeypatch, capsys):
    monkeypatch.chdir(project / "nbs")
    assert main(["check"]) == 0 and "nothing wrong" in capsys.readouterr().out
    (project / "constraints.txt").write_text("")
    assert main(["check"]) == 1
    captured = capsys.readouterr()
    assert "2 flaws" in captured.out and "numpy (base)" in captured.err


in_checkout = pytest.mark.skipif(not (ROOT / "settings.ini").exists(), reason="not in a checkout")


@in_checkout
def test_our_pages_have_no_flaw():
    assert [str(f) for f in check(ROOT)] == []


@in_checkout
@needs_nbdev
def test_our_notebooks_become_pages_that_show_their_code(tmp_path):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", symlinks=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints", "runs"))
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "pkg")}
    done = subprocess.run([sys.executable, "-m", "designloop.docs", "process"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = json.loads((tmp_path / "_proc/core/trials.ipynb").read_text())
    sources = ["".join(c["source"]) for c in page["cells"]]
    assert any(s.startswith("class Trials") for s in sources) and not any("default_exp" in s or s.startswith("#| hide") for s in sources)


@in_checkout
@needs_nbdev
def test_our_readme_and_gallery_are_up_to_date():
    done = [
        subprocess.run([sys.executable, "-m", "designloop.docs", what, "--check"], cwd=ROOT, capture_output=True, text=True)
        for what in ("readme", "gallery")
    ]
    assert [d.returncode for d in done] == [0, 0], "".join(d.stderr for d in done)


@in_checkout
def test_our_sidebar_teaches():
    entries = sidebar(ROOT)
    rooms = [e.split("/")[0] for e in entries if "/" in e]
    assert entries[0] == "index.ipynb" and entries != sorted(entries)
    assert rooms.index("core") < rooms.index("studies") and check_sidebar(ROOT) == [] == check_versions(ROOT)
