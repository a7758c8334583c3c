"""The catalogue: rows by hand, verdicts from committed outputs, and the package's lazy top."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import designloop as dl
from designloop.catalogue import (
    ROOMS,
    SYSTEMS,
    catalogue,
    catalogue_markdown,
    claims,
    committed_claims,
    front_matter,
    library_notebooks,
    notebooks_folder,
)
from designloop.core.errors import ParameterError, StudyError

NBS = notebooks_folder()


def execute(cells, path):
    "Run cells in a real kernel and save the notebook, as a person would before committing."
    import nbformat
    from nbclient import NotebookClient

    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# X\n> y\n\n- system: ppgvae"), *map(nbformat.v4.new_code_cell, cells)]
    )
    NotebookClient(nb, timeout=60, kernel_name="python3").execute()
    nbformat.write(nb, path)


@pytest.fixture(scope="module")
def nbs(tmp_path_factory):
    nbs = tmp_path_factory.mktemp("project") / "nbs"
    for room in ("core", "experiments"):
        (nbs / room).mkdir(parents=True)
    execute(
        [
            "from designloop.core.records import claim, record",
            "record('gain', 0.5, unit='1')\nclaim('It finds more', True, 'gain 0.5')\nclaim('It is quick', None)",
        ],
        nbs / "experiments/ppgvae.ipynb",
    )
    execute(
        ["from designloop.core.records import claim", "claim('It finds more', False, 'over all seeds: 0.1 [-0.1, 0.3]')"],
        nbs / "experiments/ppgvae_summary.ipynb",
    )
    return nbs


def test_claims_survive_the_way_through_a_kernel_a_file_and_cleaning(nbs):
    assert [c["holds"] for c in committed_claims(nbs / "experiments/ppgvae.ipynb")] == [True, None]
    nbdev_clean = pytest.importorskip("nbdev.clean")
    nb = json.loads((nbs / "experiments/ppgvae.ipynb").read_text())
    from execnb.nbio import dict2nb

    cleaned = dict2nb(nb)
    nbdev_clean.clean_nb(cleaned, allowed_cell_metadata_keys=["tags"])
    mimes = {m for c in cleaned.cells for o in c.get("outputs", []) for m in o.get("data", {})}
    assert "application/vnd.designloop.claim+json" in mimes


def test_the_summary_has_the_last_word(nbs):
    found = claims("ppgvae", nbs)
    assert dict(zip(found.claim, found.verdict, strict=True)) == {"It finds more": "not reproduced"}
    assert found.evidence[0].startswith("over all seeds") and found.notebook[0] == "experiments/ppgvae_summary.ipynb"
    row = catalogue(nbs).loc["ppgvae"]
    assert (row["claims"], row["reproduced"], row["not reproduced"], row["undecided"]) == (1, 0, 1, 0)
    assert "1 not reproduced" in catalogue_markdown(nbs)


def test_unknown_systems_and_broken_notebooks_are_named(nbs, tmp_path):
    with pytest.raises(ParameterError, match="did you mean 'binding_league'"):
        claims("bindng_league", nbs)
    (tmp_path / "x.ipynb").write_text("[1, 2")
    with pytest.raises(StudyError, match="not a notebook"):
        committed_claims(tmp_path / "x.ipynb")


def test_every_row_is_complete():
    for slug, row in SYSTEMS.items():
        assert set(row) == {"title", "role", "paper"} and all(row.values()), slug


@pytest.mark.skipif(NBS is None, reason="no checkout: the notebooks are not here")
def test_rows_and_notebooks_of_this_checkout_agree():
    table = catalogue()
    assert list(table.index) == list(SYSTEMS)
    for slug, row in table.iterrows():
        assert row["experiment"], f"{slug} has no experiment"
        assert row["library"], f"no library notebook says `- system: {slug}`"
        for path in (row["experiment"], *row["library"].split(", ")):
            assert (NBS / path).exists()
        assert row["claims"] == row["reproduced"] + row["not reproduced"] + row["undecided"] > 0, f"{slug} has no committed claims"
    assert {p.parent.name for p in NBS.glob("*/*.ipynb")} - {"tutorials", "experiments"} <= set(ROOMS)
    for path in NBS.glob("*/*.ipynb"):
        assert front_matter(path)["title"], path
    assert library_notebooks(NBS)


def test_import_is_quick_and_loads_nothing_heavy():
    code = (
        "import time; t = time.perf_counter(); import designloop, sys; s = time.perf_counter() - t; dir(designloop);"
        "print(s, *[m for m in ('torch', 'pandas', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    assert min(float(r[0]) for r in runs) < 0.3 and all(r[1:] == [] for r in runs)


def test_every_lazy_name_resolves_and_is_listed():
    missing = []
    for name in dir(dl):
        if name.startswith("_"):
            continue
        try:
            getattr(dl, name)
        except (AttributeError, ImportError) as error:
            missing.append(f"{name}: {error}")
    assert missing == []
    assert {"optimize", "Study", "Problem", "catalogue", "record", "claim", "core"} <= set(dir(dl))


def test_wrong_names_get_the_closest():
    with pytest.raises(AttributeError, match="did you mean 'optimize'"):
        dl.optimise  # noqa: B018
    with pytest.raises(ImportError):
        from designloop import optimise  # noqa: F401
    assert not hasattr(dl, "_private_thing")


def test_the_catalogue_is_a_function_and_a_module():
    import designloop.catalogue as module

    assert dl.catalogue().equals(module.catalogue()) and dl.catalogue.SYSTEMS is SYSTEMS
    assert Path(module.__file__).name == "catalogue.py"
