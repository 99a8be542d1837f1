"""What two runs are compared by: checkpoints, metric lines, TensorBoard events and results, all but what is time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun import checkpoint, rundir

TIME = (
    "epoch_seconds",
    "fit_seconds",
    "wait_seconds",
    "timing",
    "memory",
    "callbacks.TensorBoard.file",
    "callbacks.TensorBoard.length",
)
METRICS = "metrics.jsonl"
SEQUENCES = (METRICS, "tensorboard")  # compared by position
HEALTHY = [("event files", 1), ("unreadable bytes", 0)]  # what the entries of TensorBoard begin with
RATE = "samples_per_s"  # a curve that is about time
WAITED = "epoch/data_wait_s"  # likewise, and left out where a resumed run has not waited

Entries = list[tuple[str, Any]]
"""What a file holds, in its order: (key, plain value, tensor or bytes)."""


def read_run(folder: Path) -> dict[str, Entries | None]:
    """All that is compared of a finished run; None for a file that it does not have. Raises ConfigError for a damaged one."""
    found: dict[str, Entries | None] = {}
    for file, read in READERS.items():
        found[file] = read(folder / file) if (folder / file).exists() else None
    return found


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """{"a": {"b": [1]}} -> a.b.0: 1, without what is time; empty containers are values."""
    if key in TIME:
        return
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value)) or "[]"
    if not isinstance(value, Mapping) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{key}.{name}" if key else str(name))


def _read_checkpoint(path: Path) -> Entries:
    return list(_flat(checkpoint.load(path, "run")))


def _read_results(path: Path) -> Entries:
    return list(_flat(rundir.read_results(path.parent) or {"results": "unreadable"}))


def _read_lines(path: Path) -> Entries:
    return [(f"line {number}", line) for number, line in enumerate(path.read_bytes().splitlines(True), start=1)]


def _read_events(path: Path) -> Entries:
    """Every value of the event file as (tag at step, content), read by TensorBoard's own reader, which checks every record."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    files = sorted(path.glob("events.out.tfevents.*"))
    events, unread = [], 0
    for file in files:
        records = list(RawEventFileLoader(str(file)).Load())  # stops in silence at the first damaged record
        unread += file.stat().st_size - sum(len(record) + 16 for record in records)
        events += [Event.FromString(record) for record in records]
    found: Entries = [("event files", len(files)), ("unreadable bytes", unread)]  # see HEALTHY
    for event in events:
        kind = event.WhichOneof("what")
        if kind != "summary":
            content: Any = getattr(event, kind) if kind else None
            found.append((str(kind), _ordered(GraphDef, content) if kind == "graph_def" else content))
        for value in event.summary.value:
            if value.tag == WAITED:
                continue
            hparams = value.metadata.plugin_data
            if hparams.plugin_name == "hparams":
                hparams.content = _ordered(HParamsPluginData, hparams.content)
            scalar = value.HasField("simple_value")
            content = value.simple_value if scalar else value.SerializeToString(deterministic=True)
            found.append((f"{value.tag} at step {event.step}", None if value.tag == RATE else content))
    return found


def _ordered(kind: Any, content: bytes) -> bytes:
    """A serialised message with the entries of its mappings in order; as written their order is left to chance."""
    return kind.FromString(content).SerializeToString(deterministic=True)


READERS: dict[str, Callable[[Path], Entries]] = {
    str(rundir.LAST): _read_checkpoint,
    str(rundir.BEST): _read_checkpoint,
    METRICS: _read_lines,
    "tensorboard": _read_events,
    rundir.RESULTS: _read_results,
}
