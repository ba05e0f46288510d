"""Where prepared models lie: a folder that only its user can write in, and one writer at a time for each entry."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mae_export.errors import InputError, SecurityError
from mae_export.runtime import private_folder
from mae_export.runtime.prepared import find
from mae_export.runtime.private_folder import location, locked, locked_if_free, require_private

ROOT = Path(__file__).parents[2]


def test_the_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MAE_EXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert location() == tmp_path / ".cache" / "mae-export"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert location() == tmp_path / "xdg" / "mae-export"
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    assert location() == tmp_path / "own"
    assert not list(tmp_path.iterdir()), "nothing is created by asking"


def test_users_without_a_home_can_name_a_folder(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("MAE_EXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(InputError, match="has no home to keep what is prepared in; name a folder in MAE_EXPORT_CACHE"):
        location()
    assert find(tmp_path / "vit.onnx") == (None, "")


def test_it_is_made_private(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "deep" / "own"))
    with locked("a") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with locked("a") as again:
        assert again == folder


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_folders_that_others_may_write_in_are_refused(monkeypatch, tmp_path, mode):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(mode)
    with (
        pytest.raises(SecurityError, match=rf"others may write in .*own \(mode {mode:o}\); .* run: chmod 700"),
        locked("a"),
    ):
        pass
    (tmp_path / "own").chmod(0o755)
    require_private(tmp_path / "own")


def test_folders_of_others_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SecurityError, match=r"belongs to user \d+, not to you .* Name a folder of your own in MAE_EXP"):
        require_private(tmp_path)


def test_links_of_others_are_refused(monkeypatch, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    real = Path.lstat

    def lstat(path):
        values = list(real(path))
        values[4] += path == link
        return os.stat_result(values)

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(SecurityError, match="belongs to user"):
        require_private(link)


def test_a_place_that_cannot_be_a_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/deeper"):
        monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / name))
        with (
            pytest.raises(InputError, match=r"cannot be used to keep what is prepared: .*; name another in"),
            locked("a"),
        ):
            pass


@pytest.fixture
def waiting(monkeypatch):
    """An event that is set when somebody has to wait for a lock."""
    found, real = threading.Event(), private_folder._lock

    def lock(handle, *, wait):
        try:
            return real(handle, wait=False)
        except BlockingIOError:
            if not wait:
                raise
            found.set()
        return real(handle, wait=True)

    monkeypatch.setattr(private_folder, "_lock", lock)
    return found


def test_one_at_a_time_holds_a_lock(monkeypatch, tmp_path, waiting):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    order = []

    def second():
        with locked("a"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked("a"):
        thread.start()
        assert waiting.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert not list((tmp_path / "own").iterdir()), "lock files do not pile up"


def test_locks_of_other_names_are_free(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    with locked("a"), locked("b"):
        for name, expected in (("a", False), ("b", False), ("c", True)):
            with locked_if_free(name) as free:
                assert free is expected
    with locked_if_free("a") as free:
        assert free
        with locked_if_free("a") as again:
            assert not again


def test_who_waited_holds_the_lock_that_others_find(monkeypatch, tmp_path, waiting):
    """The file that was waited for is removed by its holder; a lock on it alone would keep nobody out."""
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    inside, leave = threading.Event(), threading.Event()

    def second():
        with locked("a"):
            inside.set()
            assert leave.wait(20)

    thread = threading.Thread(target=second)
    with locked("a"):
        thread.start()
        assert waiting.wait(20)
    assert inside.wait(20)
    with locked_if_free("a") as free:
        assert not free
    leave.set()
    thread.join(20)
    with locked_if_free("a") as free:
        assert free


def test_locks_end_with_their_process(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    script = (
        "import sys\nfrom mae_export.runtime.private_folder import locked\n"
        "with locked('a'):\n    print('in', flush=True)\n    sys.stdin.readline()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert holder.stdout.readline() == "in\n"
        with locked_if_free("a") as free:
            assert not free
    finally:
        holder.kill()
        holder.communicate()
    with locked_if_free("a") as free:
        assert free
