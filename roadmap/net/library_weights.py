"""Published weights as torchvision and timm have them, fetched by these libraries' own code into their own caches."""

import logging
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from roadmap.errors import ConfigError, DataError, DiskError
from roadmap.files import is_unwritable
from roadmap.text import clean, nearest

TIMEOUT_S = 30.0  # a server that says nothing for so long is not there
PROBE_S = 10.0  # until one that is asked whether it is there must have answered
NEAREST = 8  # names that a wrong one is answered with
# timm's nets that are built here. Others have the same keys and shapes and compute something else: resnetblur50,
# resnetaa50, or convnext_xxlarge with another eps.
TIMM = re.compile(r"resnet\d+|convnext(v2)?_(?!xxlarge)[a-z]+")


def default_tag(library: str, net: str) -> str:
    """Return the tag of the weights that a library would take for a net. Raises ConfigError."""
    if library == "torchvision":
        return str(_torchvision_weights(net).DEFAULT.name)
    import timm

    if net not in timm.list_models():
        raise ConfigError(f"weights=timm:{net}: {_not_there('net', net, timm.list_models(pretrained=True))}")
    found = timm.models.get_pretrained_cfg(net)
    if found is None or not found.tag:
        raise ConfigError(f"weights=timm:{net}: timm has no weights for it")
    return str(found.tag)


def published_evaluation(library: str, net: str, tag: str) -> dict[str, Any]:
    """Return how a library evaluates its weights, by our keys; nothing for weights that it does not know."""
    if library == "torchvision":
        weights = _torchvision_weights(net).__members__.get(tag)
        if weights is None:
            return {}
        published = weights.transforms()
        size, resize, interpolation = published.crop_size[0], published.resize_size[0], published.interpolation.value
    else:
        import timm

        published = timm.models.get_pretrained_cfg(f"{net}.{tag}")
        if published is None:
            return {}
        size, interpolation = published.input_size[-1], published.interpolation
        resize = None if published.crop_mode == "squash" else int(size / published.crop_pct)
    sizes = {"data.image_size": size, "data.resize_size": resize, "recipe.interpolation": interpolation}
    return sizes | {"data.mean": list(published.mean), "data.std": list(published.std)}


def fetch_weights(library: str, net: str, tag: str) -> Mapping[str, Any]:
    """Return the tensors of a library's weights by key, on the CPU. Raises ConfigError, and DataError without them."""
    load = (_torchvision_loader if library == "torchvision" else _timm_loader)(net, tag)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries
    try:
        with socket_timeout(TIMEOUT_S):
            return load()
    except Exception as error:  # no network, a server's answer, a damaged cache: each library has errors of its own
        kind = DiskError if is_unwritable(error) else DataError
        raise kind(f"cannot be fetched ({clean(error) or type(error).__name__})") from None


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on a silent server; torch's and torchvision's downloads have no setting for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision_weights(net: str) -> Any:
    from torchvision import models

    try:
        return models.get_model_weights(net)
    except ValueError:
        raise ConfigError(f"weights=torchvision:{net}: {_not_there('net', net, models.list_models())}") from None


def _torchvision_loader(net: str, tag: str) -> Any:
    weights = _torchvision_weights(net)
    if tag not in weights.__members__:
        raise ConfigError(f"weights=torchvision:{net}.{tag}: {_not_there('tag', tag, weights.__members__)}")
    return lambda: weights[tag].get_state_dict(progress=False, check_hash=True, map_location="cpu")


def _timm_loader(net: str, tag: str) -> Any:
    import timm

    known = timm.list_pretrained()
    if f"{net}.{tag}" not in known:
        raise ConfigError(f"weights=timm:{net}.{tag}: {_not_there('weights', f'{net}.{tag}', known)}")
    if not TIMM.fullmatch(net):
        nets = sorted({name.partition(".")[0] for name in known if TIMM.fullmatch(name.partition(".")[0])})
        raise ConfigError(f"weights=timm:{net}.{tag}: is not a net of the roadmap; {nearest(net, nets, NEAREST)}")

    def load() -> Mapping[str, Any]:
        with _cache_without_server():
            return timm.create_model(f"{net}.{tag}", pretrained=True).state_dict()

    return load


@contextmanager
def _cache_without_server() -> Iterator[None]:
    """Let timm use its cache alone if its server does not answer, which it would ask again and again for a minute.

    Raises ConnectionError if the weights are not in the cache.
    """
    from huggingface_hub import constants, utils

    offline, why = constants.HF_HUB_OFFLINE, ""
    try:
        utils.get_session().head(constants.ENDPOINT, timeout=PROBE_S)
    except Exception as error:
        constants.HF_HUB_OFFLINE, why = True, f"{constants.ENDPOINT}: {clean(error, 120)}"
    try:
        yield
    except Exception as error:
        if why:
            raise ConnectionError(why) from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = offline


def _not_there(what: str, name: str, known: Any) -> str:
    return f"there is no such {what}; {nearest(name, known, NEAREST)}"
