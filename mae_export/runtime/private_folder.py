"""The folder in which a machine keeps what it prepared for itself: where it is, who may write in it, and its lock.

What lies there is opened without being asked for, engines among it, which are native code. So the folder must belong to
the user who opens it, and nobody else may write in it; on Windows the user's profile sees to that.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mae_export.errors import InputError, SecurityError

VARIABLE = "MAE_EXPORT_CACHE"
LOCK = ".lock"


def location() -> Path:
    """$MAE_EXPORT_CACHE, or `mae-export` in $XDG_CACHE_HOME or ~/.cache; nothing is created.

    Raises:
        InputError: when none of them is set and the user has no home.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(caches) if caches else Path.home() / ".cache") / "mae-export"
    except RuntimeError as error:
        raise InputError(f"this user has no home to keep what is prepared in; name a folder in {VARIABLE}") from error


def require_private(folder: Path) -> None:
    """Refuse a folder in which others may have put something.

    Raises:
        SecurityError: when it, or a link of its name, belongs to somebody else, or others may write in it.
    """
    if sys.platform == "win32":
        return
    found = folder.stat()
    owners = {found.st_uid, folder.lstat().st_uid}
    if owners != {os.getuid()}:
        raise SecurityError(
            f"{folder} belongs to user {max(owners - {os.getuid()})}, not to you ({os.getuid()}); prepared engines are "
            f"native code. Name a folder of your own in {VARIABLE}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SecurityError(
            f"others may write in {folder} (mode {stat.S_IMODE(found.st_mode):o}); prepared engines are native code. "
            f"Empty it and run: chmod 700 {folder}"
        )


@contextmanager
def locked() -> Iterator[Path]:
    """The folder, created when missing, while no other process adds to it or removes from it.

    Raises:
        SecurityError: when others may write in it.
        InputError: when it cannot be made or written.
    """
    folder = location()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        require_private(folder)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be used to keep what is prepared: {error.strerror}; name another in {VARIABLE}"
        ) from error
    try:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)  # given back when the file is closed, however this process ends
        yield folder
    finally:
        os.close(handle)
