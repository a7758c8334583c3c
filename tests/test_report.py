"""The report page: what it says, and how it behaves in a real browser."""

import base64
import io
import json
import os
import shutil

import numpy as np
import pytest

from designloop.core.errors import StudyError
from designloop.studies.report import (
    MOST_BYTES,
    html_table,
    merge_claims,
    overall_state,
    read_study,
    render,
    terminal_summary,
    tidy,
    write_report,
)


def png(seed=0, size=(320, 200)):
    from PIL import Image

    ramp = np.linspace(40, 220, size[0]) + 10 * np.random.default_rng(seed).standard_normal((size[1], size[0]))
    buffer = io.BytesIO()
    Image.fromarray(ramp.clip(0, 255).astype("uint8")).save(buffer, "PNG")
    return buffer.getvalue()


def notebook(pictures, alt="A grey ramp from dark to light"):
    cells = [dict(cell_type="markdown", metadata={}, source="# A run")]
    cells += [
        dict(
            cell_type="code",
            metadata={},
            source=f"#| fig-alt: {alt}\nplt.show()",
            execution_count=None,
            outputs=[dict(output_type="display_data", metadata={}, data={"image/png": base64.b64encode(p).decode()})],
        )
        for p in pictures
    ]
    return dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)


def write_run(folder, state="done", params=None, records=(), pictures=(), error=None, wall=12.0, git=None):
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params or {}))
    git = git or dict(commit="a1b2c3d4e5", branch="main", dirty=False)
    status = dict(
        run_id=folder.name,
        state=state,
        params=params or {},
        started="2026-03-01T01:00:00.000+00:00",
        ended="2026-03-01T01:00:12.000+00:00",
        wall_s=wall,
        attempt=1,
        error=error,
        engine="local",
        kernel="designloop-warm",
        worker="0",
        provenance=dict(python="3.11.9", platform="Linux", host="node", versions=dict(torch="2.13.0", botorch="0.14.0"), git=git),
    )
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if pictures:
        (folder / "notebook.ipynb").write_text(json.dumps(notebook(pictures)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "Three entrants on two proteins, five seeds; one run raised, one hung, one never started."
    root = tmp_path_factory.mktemp("runs") / "binding_league"
    rng = np.random.default_rng(1)
    level = dict(random=0.70, ga=0.88, sequence_bo=0.96)
    planned = []
    for entrant in level:
        for rounds in (5, 10):
            for protein in ("PAX6", "VSX1"):
                for seed in range(5):
                    planned.append(dict(entrant=entrant, rounds=rounds, protein=protein, seed=seed, smoke=False))
    for i, params in enumerate(planned):
        folder = root / f"{i:02d}{'abcdef'[i % 6]}7c19"
        best = level[params["entrant"]] - 0.3 / params["rounds"] + 0.02 * rng.standard_normal()
        curve = [dict(round=r, best=best * (1 - 0.4 * 0.6**r), seconds=0.1 * r) for r in range(params["rounds"])]
        records = [
            dict(kind="record", name="best found", value=best, unit="", score=None, tags={}),
            dict(kind="record", name="time per ask", value=0.1 + 0.01 * i, unit="s", score=None, tags={}),
            dict(kind="table", name="curve", rows=curve, unit="", tags={}),
            dict(
                kind="claim", text="The best word is within 0.1 of the optimum", holds=bool(best > 0.88), evidence=f"regret {1 - best:.3f}"
            ),
        ]
        if i == 59:
            continue
        if i == 17:
            error = dict(
                ename="ValueError",
                evalue="Expected parameter loc <b>to be finite</b>",
                cell=6,
                traceback=[
                    "\x1b[0;31m---------------------------------------------------------------------------\x1b[0m",
                    "\x1b[0;31mValueError\x1b[0m                                Traceback (most recent call last)",
                    "Cell In[6], line 3\n      1 optimizer = make(entrant)\n----> 3 trials = optimize(problem, optimizer)",
                    "\x1b[0;31mValueError\x1b[0m: Expected parameter loc <b>to be finite</b>",
                ],
            )
            write_run(folder, "failed", params, records[:1], [png(i)], error, wall=3.1)
        elif i == 31:
            write_run(
                folder, "timeout", params, [], (), dict(ename="TimeoutError", evalue="no end after 60 s", cell=7, traceback=[]), wall=60.0
            )
        else:
            git = dict(commit="ffff000011", branch="main", dirty=True) if i < 3 else None
            write_run(folder, "done", params, records, [png(i)] if i < 4 else (), wall=8.0 + i / 7, git=git)
    runs = [dict(run_id=f"{i:02d}{'abcdef'[i % 6]}7c19", params=p) for i, p in enumerate(planned)]
    (root / "study.json").write_text(
        json.dumps(
            dict(
                study="binding_league", title="A league of sequence optimizers", notebook="nbs/experiments/binding_league.ipynb", runs=runs
            )
        )
    )
    summary = [
        dict(
            kind="claim",
            text="SequenceBO's mean regret is at most half of the GA's",
            holds=True,
            evidence="ratio 0.31 [0.24, 0.40], 20 pairs",
        ),
        dict(kind="claim", text="PPGVAE finds better words than plain mutation", holds=False, evidence="gain 0.09 against 0.15"),
        dict(kind="claim", text="The order of entrants is the same for every protein", holds=None, evidence="two proteins are too few"),
        dict(
            kind="record",
            name="regret ratio",
            value=0.31,
            unit="",
            tags=dict(against="ga"),
            score=dict(value=0.31, low=0.24, high=0.40, level=0.95, n=20, method="BCa"),
        ),
        dict(kind="table", name="league", tags={}, rows=[dict(entrant=k, best=v) for k, v in level.items()]),
    ]
    write_run(root / "summary", "done", dict(results="results.parquet"), summary, [png(90, (640, 300))])
    return root


def test_it_reads_a_study(study):
    files = read_study(study)
    assert len(files.runs) == 60 and overall_state(files) == "failed"
    assert [r.state for r in files.runs].count("done") == 57 and files.runs[59].state == "pending"
    claim = merge_claims(files.runs)[0]
    assert claim.holds + claim.fails == 57 and claim.verdict == "mixed"
    frame, tables = tidy(files)
    assert not frame.duplicated(["run_id", "name", "round", "seed"]).any() and tables == {"curve": ["round", "best", "seconds"]}
    assert (frame.name == "best found").sum() == 57  # a failed run gives no results


def test_the_page_says_everything_and_nothing_unescaped(study):
    page = write_report(study).read_text()
    for words in (
        "SequenceBO&#x27;s mean regret",
        "57 of 60 runs done, 1 failed, 1 timed out, 1 not yet run",
        "not reproduced",
        "undecided",
        "ratio 0.31 [0.24, 0.40]",
        "Traceback (most recent call last)",
        "no end after 60 s",
        "2.13.0",
        "ffff000011",
        "best found",
    ):
        assert words in page, words
    assert "\x1b" not in page and "<b>to be finite" not in page
    assert page.index("mean regret is at most half") < page.index('id="figures"') < page.index('id="runs"') < page.index('id="provenance"')
    assert "time per ask [s]" in page


def test_the_page_is_the_same_twice_and_leaves_no_half_files(study, tmp_path):
    first, second = write_report(study, tmp_path / "a.html").read_bytes(), write_report(study, tmp_path / "b.html").read_bytes()
    assert first == second and sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_torn_study_is_still_shown(tmp_path):
    root = tmp_path / "torn"
    write_run(root / "aa", records=[dict(kind="record", name="x", value=1.0, unit="", tags={})])
    with open(root / "aa" / "records.jsonl", "a") as f:
        f.write('{"kind": "record", "name": "half')
    write_run(root / "bb")
    (root / "bb" / "status.json").write_text('{"state": "do')
    (root / "aa" / "notebook.ipynb").write_text('{"cells": [')
    page = write_report(root).read_text()
    assert "1 of 2 runs done, 1 not yet run" in page and overall_state(read_study(root)) == "incomplete"


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="study.json"):
        write_report(tmp_path)
    with pytest.raises(StudyError, match="no study at"):
        write_report(tmp_path / "gone")


def test_a_study_without_any_run_still_has_a_page(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.json").write_text(json.dumps(dict(study="s", runs=[dict(run_id="a", params=dict(x=1))])))
    assert "0 of 1 runs done, 1 not yet run" in write_report(tmp_path / "s").read_text()


def test_a_failed_summary_is_the_first_thing_one_sees(tmp_path):
    write_run(tmp_path / "s" / "aa", records=[dict(kind="record", name="x", value=1.0, unit="", tags={})])
    write_run(tmp_path / "s" / "summary", "failed", {}, error=dict(ename="KeyError", evalue="'regret'", traceback=["KeyError: 'regret'"]))
    page = write_report(tmp_path / "s").read_text()
    assert overall_state(read_study(tmp_path / "s")) == "failed" and page.index("KeyError") < page.index('id="runs"')


def test_figures_are_bounded(tmp_path, monkeypatch):
    import designloop.studies.report as report

    noise = base64.b64encode(np.random.default_rng(0).bytes(60_000)).decode()
    for i in range(6):
        write_run(tmp_path / "s" / f"r{i}", params=dict(i=i))
        cell = dict(cell_type="code", source="", outputs=[dict(data={"image/png": noise})] * 3)
        (tmp_path / "s" / f"r{i}" / "notebook.ipynb").write_text(json.dumps(dict(cells=[cell])))
    monkeypatch.setattr(report, "MOST_BYTES", 400_000)
    page = render(read_study(tmp_path / "s"))
    assert len(page) < 700_000 and "Figures of 4 more runs are in their notebooks" in page and MOST_BYTES == 12_000_000


def test_the_terminal_summary_starts_with_the_claims(study):
    lines = terminal_summary(study)
    assert (
        lines[0].startswith("✓ reproduced: SequenceBO") and lines[1].startswith("✗ not reproduced") and lines[2].startswith("? undecided")
    )
    assert lines[3] == "binding_league: 57 of 60 runs done, 1 failed, 1 timed out, 1 not yet run" and "ValueError" in lines[4]


def test_intervals_are_those_of_scipy(study):
    from scipy import stats

    from designloop.studies.figures import summarise

    frame, _ = tidy(read_study(study))
    rows = frame[(frame.name == "best found") & (frame.entrant == "ga") & (frame.rounds == 10) & (frame.protein == "PAX6")]
    cell = summarise(rows, ["entrant"]).iloc[0]
    low, high = stats.t.interval(0.95, len(rows) - 1, rows.value.mean(), stats.sem(rows.value.astype(float)))
    assert cell.low == pytest.approx(low, rel=1e-6) and cell.high == pytest.approx(high, rel=1e-6)


def chromium():
    found = next(
        (
            p
            for p in (shutil.which("chromium"), shutil.which("chromium-browser"), shutil.which("google-chrome"), "/usr/bin/chromium")
            if p and os.path.exists(p)
        ),
        None,
    )
    if found is None:
        pytest.skip("no Chromium on this machine (apt install chromium)")
    return found


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser
        browser.close()


def test_in_a_browser(study, browser, tmp_path):
    page = browser.new_page(viewport=dict(width=1200, height=900))
    requests, complaints = [], []
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    path = write_report(study)
    page.goto(path.as_uri())

    assert page.locator("#summary .claim").count() == 3 and page.locator("#summary .claim").first.is_visible()
    assert page.locator("#summary .claim.reproduced .verdict").inner_text() == "✓ reproduced"
    for details in page.locator("details").all():
        details.evaluate("d => d.open = true")
    decoded = page.evaluate("""async () => { const all = [...document.images]; all.forEach(i => i.loading = 'eager');
        await Promise.all(all.map(i => i.decode())); return all.map(i => [i.naturalWidth, i.alt]); }""")
    assert len(decoded) == 6 and all(width > 100 and alt for width, alt in decoded)
    drawn = page.locator("#figures figure svg")
    assert drawn.count() == 4 and all(f.bounding_box()["width"] > 200 and f.get_attribute("aria-label") for f in drawn.all())

    table = page.locator("#tables table").first
    head = table.locator("th", has_text="best found")

    def column():
        return table.evaluate("(t, i) => [...t.tBodies[0].rows].map(r => Number(r.cells[i].dataset.v))", head.evaluate("h => h.cellIndex"))

    before = column()
    head.locator("button").click()
    assert column() == sorted(before) != before and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert column() == sorted(before, reverse=True) and head.get_attribute("aria-sort") == "descending"

    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    if shots := os.environ.get("DESIGNLOOP_SCREENSHOTS"):
        page.screenshot(path=f"{shots}/report-light.png", full_page=True)
    page.locator("#theme").click()
    assert background() != light
    if shots:
        page.screenshot(path=f"{shots}/report-dark.png", full_page=True)
    page.set_viewport_size(dict(width=390, height=800))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # no sideways scrolling on a phone
    if shots:
        page.screenshot(path=f"{shots}/report-phone.png")
    assert [r for r in requests if not r.startswith(("file://", "data:"))] == [] and complaints == []


def test_missing_values_sort_last_both_ways(browser, tmp_path):
    from designloop.studies.report import SCRIPT

    page = browser.new_page()
    rows = [["a", 2.0], ["b", None], ["c", -1.5], ["d", 10.0]]
    page.set_content(f'<button id="theme"></button>{html_table(["who", "value"], rows)}<script>{SCRIPT}</script>')

    def order():
        return page.locator("tbody tr td:first-child").all_inner_texts()

    page.locator("th button", has_text="value").click()
    assert order() == ["c", "a", "d", "b"]
    page.locator("th button", has_text="value").click()
    assert order() == ["d", "a", "c", "b"]
    page.locator("th button", has_text="who").click()
    assert order() == ["a", "b", "c", "d"]


def test_smoke_runs_are_called_what_they_are(tmp_path):
    claim = dict(kind="claim", text="It works", holds=False, evidence="n = 1")
    for smoke in (True, False):
        write_run(tmp_path / str(smoke) / "aa", params=dict(smoke=smoke), records=[claim])
        root = tmp_path / str(smoke)
        assert ("verdicts mean nothing" in write_report(root).read_text()) is smoke
        assert any("verdicts mean nothing" in line for line in terminal_summary(root)) is smoke


def test_records_made_many_times_have_no_single_value_in_the_table_of_runs(tmp_path):
    from designloop.studies.report import runs_section

    many = [dict(kind="record", name="regret", value=0.1 * i, unit="", tags=dict(entrant=e)) for i, e in enumerate("ab")]
    write_run(tmp_path / "s" / "aa", params=dict(seed=0), records=[*many, dict(kind="record", name="hours", value=2.0, unit="h", tags={})])
    table = runs_section(read_study(tmp_path / "s"))
    assert ">hours<" in table and ">regret<" not in table
