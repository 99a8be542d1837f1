"""Mean curves for TensorBoard: `mean`, `lower` and `upper` of each row as runs of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from dlrun.callbacks._records import record
from dlrun.files import cannot_write
from dlrun.registry import ConfigError
from dlrun.sweeps.curves import Curve

NAME = "events.out.tfevents.0000000000.dlrun"  # one name, so that a later comparison replaces it


def write_events(folder: Path, curves: Iterable[tuple[str, Curve]]) -> None:
    """Writes curves, each with its metric (`val/loss`), under the tags that runs give it (`epoch/val/loss`), so that they share
    a chart. Raises ConfigError if they cannot be written."""
    from tensorboard.compat.proto import event_pb2, summary_pb2

    files: dict[Path, list[bytes]] = {}
    for metric, curve in curves:
        for part, values in (("mean", curve.mean), ("lower", curve.low), ("upper", curve.high)):
            path = folder / run_name(curve.label) / part / NAME
            begin = [event_pb2.Event(wall_time=0, file_version="brain.Event:2").SerializeToString()]
            events = files.setdefault(path, begin)
            for step, value in zip(curve.steps, values, strict=True):
                summary = summary_pb2.Summary(
                    value=[summary_pb2.Summary.Value(tag=f"epoch/{metric}", simple_value=value)]
                )
                events.append(event_pb2.Event(wall_time=step, step=step, summary=summary).SerializeToString())
    try:
        for old in folder.glob(f"*/*/{NAME}"):
            old.unlink()
        for path, events in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(map(record, events)))
    except OSError as error:
        raise ConfigError(cannot_write(folder, error)) from error


def run_name(label: str) -> str:
    """The label of a row as the name of a folder: 100 characters at most, those of long labels ending in a checksum."""
    plain = label.replace(", ", "_")
    name = re.sub(r"[^\w=.,+\[\]-]+", "_", plain).strip("._") or "all"
    if len(name.encode()) <= 100 and name == plain:
        return name
    from zlib import crc32

    return f"{name.encode()[:80].decode(errors='ignore')}_{crc32(label.encode()):08x}"
