"""A zip of run directories, read where it lies: nothing of it is unpacked.

Whoever made it may mean harm. What it lists is checked before a byte of its files is read: names that lead elsewhere or
could be taken for one another, links, sizes, and how much more its files are than the archive itself. Only what our own
writer makes is taken for a zip, so that two readers cannot find two lists in it: no ZIP64, no comment.
"""

import errno
import re
import stat
import struct
import unicodedata
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from roadmap.errors import DataError
from roadmap.files import open_regular
from roadmap.text import clean, reason

SUFFIX = ".zip"
END, END_64 = struct.Struct("<4s4H2LH"), 20  # the last record of a zip; bytes of the one that ZIP64 puts before it
MAX_LIST = 2**24  # bytes of the list of members, of which a zip without ZIP64 has 65,535 at most
MAX_NAME, MAX_DEPTH = 500, 16
# How much more a file may be than it is packed, from a size on; a ledger is up to 20 times as large.
MAX_RATIO, SMALL = 100, 2**20
MAX_TOTAL = 2**28  # bytes of all files together, more than which have to be within that ratio too
ENCRYPTED = 0x1
DRIVE = re.compile(r"[A-Za-z]:.*")
UNREADABLE = (BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, struct.error, zlib.error)


@dataclass(frozen=True)
class Archive:
    """An archive as it was when its list was checked."""

    path: Path
    version: tuple[int, int]  # time of its last change in ns, size

    def read(self, member: ZipInfo, limit: int) -> bytes:
        """Return the bytes of a member. Raises OSError where they are damaged, or more than `limit` or its share."""
        if member.file_size > limit:
            raise OSError(errno.EFBIG, f"too large, {member.file_size} bytes, at most {limit}", member.filename)
        if wrong := packed_wrongly(member):
            raise OSError(errno.EINVAL, wrong, member.filename)
        try:
            with open_zip(self.path, self.version).open(member) as file:
                data = file.read(member.file_size + 1)
        except UNREADABLE as error:
            raise OSError(errno.EIO, f"damaged in the archive ({reason(error)})", member.filename) from None
        if len(data) != member.file_size:
            raise OSError(errno.EIO, f"damaged in the archive ({len(data)} bytes of {member.file_size})")
        return data


def find_archive(path: Path) -> tuple[Path, str] | None:
    """Return the archive that a path leads to, or into, and the folder within it; None where there is none."""
    for archive in (path, *path.parents):
        if archive.suffix.lower() == SUFFIX and archive.is_file():
            return archive, "/".join(path.relative_to(archive).parts)
    return None


def list_archive(path: Path) -> tuple[Archive, dict[str, dict[str, ZipInfo]]]:
    """Return an archive and the files in it: folder -> name -> member. Raises DataError, in plain words."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - END.size - END_64))
            count = check_end(file.read(), size)
        about = path.stat()
        archive = Archive(path, (about.st_mtime_ns, about.st_size))
        members = open_zip(archive.path, archive.version).infolist()
        if len(members) != count:
            raise ValueError(f"it claims {count} files but lists {len(members)}")
        check_members(members, size)
    except OSError as error:
        raise DataError(f"cannot be read ({reason(error)})") from None
    except UNREADABLE as error:
        raise DataError(f"is damaged, or not an archive of runs ({clean(error, 120)})") from None
    folders: dict[str, dict[str, ZipInfo]] = {}
    for member in members:
        if not member.is_dir():
            folder, _, name = member.filename.rpartition("/")
            folders.setdefault(folder, {})[name] = member
    return archive, folders


@lru_cache(4)
def open_zip(path: Path, version: tuple[int, int]) -> ZipFile:
    """Open an archive once for all its files. Raises OSError and `UNREADABLE`."""
    return ZipFile(path)


def check_end(data: bytes, size: int) -> int:
    """Check the last bytes of an archive: where its list is, and how long; return of how many. Raises ValueError."""
    if len(data) < END.size or not data[-END.size :].startswith(b"PK\x05\x06"):
        raise ValueError("it does not end like a zip without a comment")
    if data[:4] == b"PK\x06\x07" and len(data) == END.size + END_64:
        raise ValueError("it is a ZIP64, of more than 65,535 files or 4 GiB")
    _, _, _, _, count, length, offset, comment = END.unpack(data[-END.size :])
    if comment or length > MAX_LIST or offset + length + END.size != size:
        raise ValueError(f"its list of {count} files, {length} bytes at {offset}, is not at its end")
    return int(count)


def check_members(members: list[ZipInfo], size: int) -> None:
    """Check the list of an archive of `size` bytes. Raises ValueError for one that no packing of runs could have."""
    seen: set[str] = set()
    total = end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if wrong := wrong_name(member):
            raise ValueError(f"{clean(member.orig_filename, 80)}: {wrong}")
        alike = unicodedata.normalize("NFKC", member.filename.rstrip("/")).casefold()
        if alike in seen:
            raise ValueError(f"{clean(member.filename, 80)}: occurs twice, ignoring case")
        seen.add(alike)
        if member.header_offset < end:
            raise ValueError(f"{clean(member.filename, 80)}: lies within another file")
        end = member.header_offset + member.compress_size
        total += 0 if packed_wrongly(member) else member.file_size
    if total > max(MAX_TOTAL, MAX_RATIO * size):
        raise ValueError(f"its files have {total} bytes, more than {MAX_RATIO} times its own {size}")


def wrong_name(member: ZipInfo) -> str:
    """Return what is wrong with a member's name or kind, or nothing."""
    name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\\" in name or DRIVE.fullmatch(name) or not {"", ".", ".."}.isdisjoint(parts):
        return "leads out of the archive"
    if len(name) > MAX_NAME or len(parts) > MAX_DEPTH or not name.isprintable():
        return "is not a valid name of a file"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > name.endswith("/"):
        return "is a link or a device"
    return "is a folder that holds bytes" if member.is_dir() and member.file_size else ""


def packed_wrongly(member: ZipInfo) -> str:
    """Return why a member cannot be read, or nothing."""
    if member.flag_bits & ENCRYPTED:
        return "encrypted"
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return f"packed in a way that is not read here ({member.compress_type})"
    if member.file_size > max(SMALL, MAX_RATIO * member.compress_size):
        return f"{member.file_size} bytes of {member.compress_size} in the archive, more than {MAX_RATIO} times as many"
    return ""
