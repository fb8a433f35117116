"""Where image sets are kept, and fetching the public ones. Nothing is fetched unless `data.download=true` says so."""

import http.client
import os
import tarfile
from pathlib import Path

from roadmap.catalog import DataSet
from roadmap.config.images import DataConfig
from roadmap.errors import ConfigError, DataError, DiskError
from roadmap.files import expand, is_unwritable, nearby, temporary
from roadmap.net.library_weights import TIMEOUT_S, socket_timeout
from roadmap.text import reason


def data_root(data: DataConfig) -> Path:
    """Return the folder that `data.root` names. Raises DataError if there is none, saying what can be done."""
    if not data.root:
        raise DataError(f"data={data.name} needs a folder: set data.root or ROADMAP_DATA{hint(data)}")
    try:
        root = expand(data.root)
    except ConfigError as error:
        raise DataError(f"data.root={error}") from None
    if not root.is_dir() and not (data.download and data.known.can_be_fetched):
        where = f"it comes from data.root or ROADMAP_DATA{nearby(root)}"
        raise DataError(f"data.root={data.root}: no such folder ({where}){hint(data)}")
    return root


def hint(data: DataConfig) -> str:
    """Return a hint about fetching: that a set can be fetched if not asked for, or that it cannot if asked for."""
    if data.known.can_be_fetched:
        return "" if data.download else "; data.download=true fetches this set into it"
    return f"; data.download=true cannot fetch {data.name}" if data.download else ""


def fetch(data: DataConfig, root: Path, missing: str) -> Path:
    """Fetch a public set and return its folder.

    Raises DataError, with what is `missing`, if it was not asked for or fails; DiskError for a disk that is full.
    """
    if not data.download or not data.known.can_be_fetched:
        raise DataError(f"{root}: {missing}{hint(data)}")
    try:
        with socket_timeout(TIMEOUT_S):
            return fetch_set(data.known, root)
    # torchvision raises RuntimeError for a wrong sum; URLError, timeouts and a full or read-only disk are OSError.
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        why, kind = reason(error), DiskError if is_unwritable(error) else DataError
        raise kind(f"data.download=true: {data.name} could not be fetched into {root} ({why})") from error


def fetch_set(row: DataSet, root: Path) -> Path:
    """Fetch a set to where it is looked for: single files left packed, an archive unpacked."""
    from torchvision import datasets

    if row.archive:
        return fetch_archive(root, row.archive.url, row.archive.md5, row.archive.folder)
    published = getattr(datasets, row.torchvision)
    if not hasattr(published, "resources"):
        return fetch_archive(root, published.url, published.tgz_md5, published.base_folder)
    folder = root / row.torchvision / "raw"
    for name, md5 in reversed(published.resources):  # last those by which a set is taken to be there
        fetch_file(published.mirrors[0] + name, folder / name, md5)
    return folder


def fetch_file(url: str, path: Path, md5: str) -> None:
    """Fetch a file, unless it is there and whole; it has its name once its sum was compared."""
    from torchvision.datasets.utils import check_integrity, download_url

    if not check_integrity(path, md5):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as made:
            download_url(url, path.parent, made.name, md5)
            os.replace(made, path)


def fetch_archive(root: Path, url: str, md5: str, folder: str) -> Path:
    """Fetch an archive, compare its sum, and unpack it so that `root/folder` is either whole or not there."""
    archive = root / Path(url).name
    fetch_file(url, archive, md5)
    unpack(archive, root, folder)
    return root / folder


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack one folder of a tar archive into `root`; members that lead outside it raise tarfile.FilterError."""
    with temporary(root / folder) as made:
        with tarfile.open(archive) as tar:
            tar.extractall(made, filter="data")
        try:
            (made / folder).rename(root / folder)
        except OSError:
            if not (root / folder).is_dir():  # else another process was first
                raise
