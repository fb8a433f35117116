"""Where image sets are kept, and fetching the public ones. Nothing is fetched unless `data.download=true` says so."""

import http.client
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from roadmap.config.choices import DataName
from roadmap.config.schema import DataConfig
from roadmap.errors import DataError

TIMEOUT_S = 30.0  # a server that says nothing for so long is not there
# fast.ai's Imagenette, short side 320; torchvision keeps its address and sum in a private table.
IMAGENETTE = ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3")


def data_root(data: DataConfig) -> Path:
    """Return the folder that `data.root` names. Raises DataError if there is none, saying what can be done."""
    if not data.root:
        raise DataError(f"data={data.name} needs a folder: set data.root or ROADMAP_DATA{hint(data)}")
    root = Path(data.root).expanduser()
    if not root.is_dir() and not (data.download and data.name in FETCHERS):
        raise DataError(f"data.root={data.root}: no such folder (it comes from data.root or ROADMAP_DATA){hint(data)}")
    return root


def hint(data: DataConfig) -> str:
    """Say whether the set can be fetched: where it can and was not asked for, and where it cannot and was."""
    if data.name in FETCHERS:
        return "" if data.download else "; data.download=true fetches this set into it"
    return f"; data.download=true cannot fetch {data.name}" if data.download else ""


def fetch(data: DataConfig, root: Path, missing: str) -> Path:
    """Fetch a public set and return its folder. Raises DataError, with what is `missing`, if it was not asked for or fails."""
    if not data.download or data.name not in FETCHERS:
        raise DataError(f"{root}: {missing}{hint(data)}")
    try:
        with socket_timeout(TIMEOUT_S):
            return FETCHERS[data.name](root)
    # torchvision raises RuntimeError for a wrong sum; URLError, timeouts and a full or read-only disk are OSError.
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"data.download=true: {data.name} could not be fetched into {root} ({why})") from error


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on a silent server; torchvision's download has no setting for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch_fashion_mnist(root: Path) -> Path:
    """Fetch the four files, left packed, to where torchvision would put them."""
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    folder = root / "FashionMNIST" / "raw"
    for name, md5 in FashionMNIST.resources:
        download_url(FashionMNIST.mirrors[0] + name, folder, name, md5)
    return folder


def fetch_cifar10(root: Path) -> Path:
    """Fetch and unpack CIFAR-10."""
    from torchvision.datasets import CIFAR10

    return fetch_archive(root, CIFAR10.url, CIFAR10.tgz_md5, CIFAR10.base_folder)


def fetch_cifar100(root: Path) -> Path:
    """Fetch and unpack CIFAR-100."""
    from torchvision.datasets import CIFAR100

    return fetch_archive(root, CIFAR100.url, CIFAR100.tgz_md5, CIFAR100.base_folder)


def fetch_imagenette(root: Path) -> Path:
    """Fetch and unpack Imagenette, short side 320."""
    return fetch_archive(root, *IMAGENETTE, "imagenette2-320")


def fetch_archive(root: Path, url: str, md5: str, folder: str) -> Path:
    """Fetch an archive, compare its sum, and unpack it so that `root/folder` is either whole or not there."""
    from torchvision.datasets.utils import download_url

    archive = Path(url).name
    download_url(url, root, archive, md5)
    unpack(root / archive, root, folder)
    return root / folder


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack one folder of a tar archive into `root`; members that lead outside it raise tarfile.FilterError."""
    scratch = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder}-"))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (scratch / folder).rename(root / folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


FETCHERS: dict[DataName, Callable[[Path], Path]] = {
    DataName.fashion_mnist: fetch_fashion_mnist,
    DataName.cifar10: fetch_cifar10,
    DataName.cifar100: fetch_cifar100,
    DataName.imagenette: fetch_imagenette,
}
