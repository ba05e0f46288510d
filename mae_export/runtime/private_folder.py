"""The folder in which a machine keeps what it prepared for itself: where it is, who may write in it, and its locks.

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
LOCK_SUFFIX = ".lock"


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
def locked(name: str) -> Iterator[Path]:
    """The folder, created when missing, while nobody else, process or thread, holds the lock of that name.

    Raises:
        SecurityError: when others may write in it.
        InputError: when it cannot be made or written.
    """
    folder = _made()
    handle = _acquire(folder, name, wait=True)
    try:
        yield folder
    finally:
        _release(folder, name, handle)


@contextmanager
def locked_if_free(name: str) -> Iterator[bool]:
    """Whether nobody held the lock of that name; it is held until the end then.

    Raises:
        SecurityError: when others may write in the folder.
        InputError: when it cannot be made or written.
    """
    folder = _made()
    handle = _acquire(folder, name, wait=False)
    try:
        yield handle is not None
    finally:
        _release(folder, name, handle)


def _made() -> Path:
    folder = location()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        require_private(folder)
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


def _acquire(folder: Path, name: str, *, wait: bool) -> int | None:
    """An open lock file that is locked, or None when somebody else holds it; on Windows nothing is locked.

    Whoever gives a lock back removes its file, so what was waited for may be no longer the file of that name, and
    somebody else may hold the new one: then everything starts again.
    """
    path = folder / f".{name}{LOCK_SUFFIX}"
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            if _lock(handle, wait=wait) and _is_file_of(handle, path):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:  # Ctrl-C while waiting
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock a file; the system gives it back when the file is closed, however this process ends.

    Raises:
        BlockingIOError: when it is held by somebody else and is not to be waited for.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    return True


def _is_file_of(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _release(folder: Path, name: str, handle: int | None) -> None:
    if handle is None:
        return
    if sys.platform != "win32":
        (folder / f".{name}{LOCK_SUFFIX}").unlink(missing_ok=True)
    os.close(handle)


def _unusable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder} cannot be used to keep what is prepared: {error.strerror}; name another in {VARIABLE}")
