"""What is noted of the host's files: each answer that would be another one now is noticed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmemu.loader import seen
from vmemu.loader.seen import ByFile, Seen


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written are taken for old ones."""
    monkeypatch.setattr(seen, "RACY_NS", -(10**9))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in a directory of a directory."""
    path = tmp_path / "a" / "b" / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"text")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "act",
    [
        lambda path: path.write_bytes(b"longer text"),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: path.chmod(0o700),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("other")),
        lambda path: path.parent.rename(path.parent.with_name("other")),
        lambda path: os.link(path, path.with_name("other")),
        lambda path: (path.unlink(), path.symlink_to("/bin/sh")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_file_that_changes(file: Path, act: Callable[[Path], object]) -> None:
    notes = Seen()
    notes.stat(bytes(file))
    assert notes.unchanged()
    assert notes.lasting
    act(file)
    assert not notes.unchanged()


def test_a_file_that_appears(tmp_path: Path) -> None:
    notes = Seen()
    with pytest.raises(FileNotFoundError):
        notes.stat(str(tmp_path / "file"))
    assert notes.unchanged()
    (tmp_path / "file").touch()
    assert not notes.unchanged()


def test_a_link_that_leads_elsewhere(file: Path, tmp_path: Path) -> None:
    """To another file it is noticed at once, to another name of the same one when names are asked for or shown."""
    other, link = file.with_name("other"), tmp_path / "link"
    os.link(file, other)
    link.symlink_to(file)
    for shown in (False, True):
        notes = Seen()
        st = notes.stat(str(link))
        assert notes.realpath(str(link)) == str(file)
        if shown:
            notes.show(str(file), st)
        link.unlink()
        link.symlink_to(other)
        assert notes.unchanged() != shown
        assert not notes.names_unchanged()
        link.unlink()
        link.symlink_to(file)
        assert notes.unchanged()
        assert notes.names_unchanged()
    link.unlink()
    link.symlink_to("/bin/sh")
    assert not notes.unchanged()


def test_directories_above_a_name_that_is_shown(file: Path) -> None:
    for depth in (0, 1):
        notes = Seen()
        st = notes.stat(str(file))
        notes.show(notes.realpath(str(file)), st)
        assert notes.unchanged()
        above = file.parents[depth]
        above.rename(above.with_name("moved"))
        above.symlink_to("moved")
        assert not notes.unchanged()
        above.unlink()
        above.with_name("moved").rename(above)
        assert notes.unchanged()


def test_a_mount_that_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """noexec counts for all files, nosuid for those with set-ID bits."""
    real = os.statvfs(file).f_flag
    for mode, flag in ((0o755, os.ST_NOEXEC), (0o644, os.ST_NOEXEC), (0o4755, os.ST_NOEXEC), (0o4755, os.ST_NOSUID)):
        file.chmod(mode)
        notes = Seen()
        assert notes.mount_flags(str(file), notes.stat(str(file))) == real
        assert notes.unchanged()
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _, flag=flag: SimpleNamespace(f_flag=real ^ flag))
            patch.setattr(os, "access", lambda _path, _mode, flag=flag: flag != os.ST_NOEXEC)
            assert not notes.unchanged()


def test_what_is_not_lasting(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from the working directory on, a file just changed."""
    monkeypatch.chdir(file.parent)
    notes = Seen()
    notes.stat("file")
    assert not notes.lasting
    monkeypatch.setattr(seen, "RACY_NS", 10**10)
    notes = Seen()
    notes.stat(str(file))
    assert not notes.lasting
    assert Seen().lasting


def test_what_is_made_of_a_file_is_kept(file: Path) -> None:
    kept: ByFile[bytes] = ByFile()
    made = []

    def make(size: int) -> bytes:
        made.append(size)
        return file.read_bytes()

    for content in (b"text", b"text", b"other"):
        if content != file.read_bytes():
            file.write_bytes(content)
        with open(file, "rb") as opened:
            assert kept.get(opened.fileno(), make) == content
    assert made == [4, 5]
