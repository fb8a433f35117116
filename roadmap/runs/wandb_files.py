"""W&B's own files: its settings, as `wandb login --host` and `wandb init` leave them, and records of offline runs."""

import configparser
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 2**15  # bytes of a record file's head, and of the blocks that its chunks do not cross
FULL, FIRST, LAST = 1, 2, 4  # kinds of a chunk, beside the middle one
SERVER = "https://api.wandb.ai"


def read_settings() -> dict[str, str]:
    """Return W&B's settings from its files, the workspace's before the user's; {} where there are none."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb"))
    workspace = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
    parser = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read([folder / "settings", workspace / "settings"])
    return dict(parser["default"]) if parser.has_section("default") else {}


def recorded_rows(path: Path, rows: Sequence[dict[str, Any]], sent: int) -> int:
    """Return how many rows of a run's ledger are sent: on disk in its offline records, beside those that went online.

    A killed client takes with it what it held in memory, so that what it was given is no measure. `sent` is what was
    counted; it counts only where some of the rows went online, whose records do not say what arrived.
    """
    if not any(path.glob("wandb/run-*")):
        sent = 0
    there = {row for file in path.glob("wandb/offline-run-*/run-*.wandb") for row in read_rows(file)}
    while sent < len(rows) and (rows[sent]["kind"], rows[sent]["global_step"]) in there:
        sent += 1
    return sent


def read_rows(path: Path) -> Iterator[tuple[str, int]]:
    """Yield kind and step of each row in the record of an offline run, up to where its writer died."""
    from wandb.proto import wandb_internal_pb2  # half a second that a run without W&B need not wait

    messages: Any = wandb_internal_pb2
    for data in read_records(path):
        record = messages.Record()
        try:
            record.ParseFromString(data)
        except Exception:  # protobuf's DecodeError, which has no public name
            return
        items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if items.get("global_step", "").isdigit():
            yield "val" if any(key.startswith("val/") for key in items) else "train", int(items["global_step"])


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, which is W&B's, up to a torn one."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    offset, record = HEADER, b""
    while offset + HEADER <= len(data):
        if (left := BLOCK - offset % BLOCK) < HEADER:
            offset += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        offset += HEADER
        if not FULL <= kind <= LAST or offset + length > len(data):
            return
        record = (b"" if kind in (FULL, FIRST) else record) + data[offset : offset + length]
        offset += length
        if kind in (FULL, LAST):
            yield record
