"""Where prepared models lie: a folder that only its user can write in, and one writer at a time."""

import os
import stat
import threading
from pathlib import Path

import pytest

from mae_export.errors import InputError, SecurityError
from mae_export.runtime import private_folder
from mae_export.runtime.prepared import find
from mae_export.runtime.private_folder import location, locked, require_private


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
    with locked() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with locked() as again:
        assert again == folder


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_folders_that_others_may_write_in_are_refused(monkeypatch, tmp_path, mode):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(mode)
    with (
        pytest.raises(SecurityError, match=rf"others may write in .*own \(mode {mode:o}\); .* run: chmod 700"),
        locked(),
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
        with pytest.raises(InputError, match=r"cannot be used to keep what is prepared: .*; name another in"), locked():
            pass


def test_one_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "own"))
    order, entered = [], threading.Event()

    def second():
        entered.set()
        with private_folder.locked():
            order.append("second")

    thread = threading.Thread(target=second)
    with locked():
        thread.start()
        assert entered.wait(10)
        thread.join(0.1)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
