"""Which pictures a job reads: folders, files, lists and tars become one ordered list of items with unique ids.

- A folder is walked in full, in natural order ("2.jpg" before "10.jpg"). Links to folders are followed, and each
  folder is listed once, so loops end. Everything with a suffix of `IMAGE_SUFFIXES` that is not a folder is an item,
  even a link to nothing or a FIFO: reading it gives an error with a reason. Other files and hidden names (starting
  with a dot) are skipped.
- A `.txt` file is a list: UTF-8, one path per line, relative to the list's folder; blank lines and lines starting
  with `#` are skipped. Every other line is an item.
- A `.tar` (not compressed) is read in place and never extracted, so its names are only labels. Members are chosen as
  in a folder, in the tar's order; links to earlier members share their bytes; folders, symbolic links, devices and
  sparse files are skipped.
- Any other file is one picture, whatever its suffix, unless it is a known archive or table.

Nothing is fetched from the network, and patterns are left to the shell.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mae_export.errors import ImageError, InputError
from mae_export.runtime.tar import list_members

UNREAD_SUFFIXES = (".avif", ".heic", ".heif", ".jp2", ".jxl")  # listed, so that such photographs are reported
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
).union(UNREAD_SUFFIXES)
MAX_BYTES = 1 << 28  # of one picture; the largest one allowed, uncompressed, fits
_ARCHIVES = frozenset((".7z", ".bz2", ".gz", ".rar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst"))
_TABLES = frozenset((".csv", ".json", ".jsonl", ".lst", ".parquet", ".tsv"))
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture to read.

    Attributes:
        id: key of the row: the path relative to the given folder (with `/`), the path as written in a list or given,
            or the name in a tar. When several inputs are given, ids from a folder or a tar start with its name.
            Bytes that are not UTF-8 are written as `\\xNN`.
        source: file to read.
        offset: first byte of the picture in `source`.
        size: bytes from there; None is the whole file.

    Raises:
        InputError: when offset or size is negative.
    """

    id: str
    source: Path
    offset: int = 0
    size: int | None = None

    def __post_init__(self) -> None:
        if self.offset < 0 or (self.size is not None and self.size < 0):
            raise InputError(f"item {self.id!r} has offset {self.offset} and size {self.size}; expected 0 or more")

    def read(self) -> bytes:
        """The bytes of the picture.

        Raises:
            ImageError: `missing`, `not-a-file`, `unreadable`, `too-large` or `truncated`.
        """
        name = label(str(self.source))
        try:
            status = self.source.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not-a-file", f"{name} is a folder, FIFO, socket or device; expected a file")
            wanted = status.st_size if self.size is None else self.size
            if wanted > MAX_BYTES:
                raise ImageError(
                    "too-large", f"{name} holds {wanted} bytes for a picture; expected at most {MAX_BYTES}"
                )
            # Should a FIFO have taken the file's place by now, opening it must not wait for a writer.
            flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
            with os.fdopen(os.open(self.source, flags), "rb") as file:
                file.seek(self.offset)
                data = file.read(wanted)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageError("missing", f"{name} does not exist, or is a link to nothing") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise ImageError("unreadable", f"{name} cannot be read ({error}); check its permissions") from error
        if len(data) < wanted:
            raise ImageError("truncated", f"{name} ended after {len(data)} of {wanted} bytes; copy it again")
        return data


def list_items(inputs: Sequence[str | Path]) -> list[Item]:
    """List the pictures of folders, files, lists and tars, by the rules at the top of this file.

    Raises:
        InputError: when an input is missing, a URL, damaged or holds no picture, or when an id occurs twice.
    """
    if isinstance(inputs, str) or not inputs:
        raise InputError(f"inputs are {inputs!r}; expected a list of folders, picture files, .txt lists or .tar files")
    items = [item for given in inputs for item in _expand(os.fspath(given), len(inputs) > 1)]
    seen: dict[str, Item] = {}
    for item in items:
        other = seen.setdefault(item.id, item)
        if other is not item:
            raise InputError(
                f"the id {item.id!r} occurs twice, for {other.source} and {item.source}; expected unique ids. "
                "Give each picture once, or run folders of equal name separately"
            )
    return items


def is_image_name(name: str) -> bool:
    """Whether a file of this name in a folder or a tar is taken for a picture."""
    path = PurePosixPath(name)
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES


def label(name: str) -> str:
    """A name as valid Unicode: bytes that are not UTF-8 become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _expand(given: str, several: bool) -> list[Item]:
    if _URL.match(given):
        raise InputError(f"{given!r} is a URL; nothing is fetched from the network. Download it and give the file")
    path = Path(given)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        hint = "the shell found nothing that matches" if re.search(r"[*?\[]", given) else "check the path"
        raise InputError(f"there is no file or folder {given!r}; {hint}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{given!r} cannot be read ({error}); check the path and its permissions") from error
    name = path.resolve().name if path.name in ("", "..") else path.name
    prefix = f"{label(name)}/" if several else ""
    if stat.S_ISDIR(mode):
        return _from_folder(path, prefix)
    if not stat.S_ISREG(mode):
        raise InputError(f"{given!r} is a FIFO, socket or device; expected a folder or a file")
    suffix = path.suffix.lower()
    if suffix in _ARCHIVES:
        raise InputError(f"{given!r} is a compressed archive; expected an uncompressed .tar. Unpack it, or repack it")
    if suffix in _TABLES:
        raise InputError(f"{given!r} is a table; expected a .txt list with one path per line")
    if suffix == ".txt":
        return _from_list(path)
    if suffix == ".tar":
        return _from_tar(path, prefix)
    return [Item(id=label(path.as_posix()), source=path)]


def _from_list(path: Path) -> list[Item]:
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise InputError(f"the list {path} cannot be read ({error}); check its permissions") from error
    if "\0" in text:
        raise InputError(f"{path} holds NUL bytes, so it is no list; expected text with one path per line")
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    for line in lines:
        if _URL.match(line):
            raise InputError(
                f"the list {path} holds the URL {line!r}; nothing is fetched. Download it and list the file"
            )
    if not lines:
        raise InputError(f"the list {path} names no picture; expected one path per line")
    return [Item(id=label(line), source=path.parent / line) for line in lines]


def _from_tar(path: Path, prefix: str) -> list[Item]:
    members = list_members(path)
    items = [
        Item(id=prefix + label(member.name), source=path, offset=member.offset, size=member.size)
        for member in members
        if is_image_name(member.name)
    ]
    return _some(items, len(members) - len(items), path)


def _from_folder(root: Path, prefix: str) -> list[Item]:
    found: list[str] = []
    skipped = 0
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:  # links last, so that a folder inside the root keeps its own name
        folder = folders.pop() if folders else links.pop(0)
        for entry in _entries(root, folder, seen):
            name = folder + entry.name
            if entry.name.startswith("."):
                skipped += 1
            elif _is_folder(entry):
                (links if entry.is_symlink() else folders).append(f"{name}/")
            elif is_image_name(entry.name):
                found.append(name)
            else:
                skipped += 1
    found.sort(key=_natural)
    return _some([Item(id=prefix + label(name), source=root / name) for name in found], skipped, root)


def _entries(root: Path, folder: str, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted; nothing if it was seen before."""
    path = root / folder
    try:
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key in seen:
            return []
        seen.add(key)
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"the folder {path} cannot be listed ({error}); check its permissions or leave it out"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: reading the item will say so
        return False


def _natural(name: str) -> tuple[list[list[tuple[int, str]]], str]:
    """Sort key: folder by folder, digits by value."""
    parts = [re.split(r"([0-9]+)", part) for part in PurePosixPath(name).parts]
    keys = [
        [(len(text.lstrip("0")), text.lstrip("0")) if i % 2 else (0, text) for i, text in enumerate(p)] for p in parts
    ]
    return keys, name


def _some(items: list[Item], skipped: int, path: Path) -> list[Item]:
    if not items:
        raise InputError(
            f"{path} holds no picture among {skipped} files; expected names that end in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    _log.info("%s: %d pictures, %d other files skipped", path, len(items), skipped)
    return items
