"""Writing TensorBoard event files. TensorBoard is imported when a file is opened."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.callbacks._files import GrowingFile, continued
from dlrun.callbacks._records import record, whole_records

if TYPE_CHECKING:
    from PIL import Image

    from dlrun.callbacks._histograms import Histogram

FOLDER = "tensorboard"
PREFIX = "events.out.tfevents."


class EventWriter:
    """One event file for a whole run, however often the run was interrupted.

    Differs from `SummaryWriter`, which starts a second file when it is reopened, so that the steps between the last
    checkpoint and the interruption would be shown twice.

    Args:
        folder: of the run; the event file is in `tensorboard` below it.
        state: `state()` of the writer to continue; without it, or, with a warning, if its file is gone, event files of an
            earlier start in the folder are removed and a new one begun.

    Raises ConfigError as `GrowingFile` does, here and in all methods.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any] | None = None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name, length = f"{PREFIX}{int(time.time()):010d}.dlrun", None
        if (
            state and Path(state["file"]).name == state["file"] and state["file"].startswith(PREFIX)
        ):  # no other file is cut
            name = state["file"]
            length = continued(folder / FOLDER / name, state["length"], whole_records)
        if not length:
            for old in (folder / FOLDER).glob(f"{PREFIX}*"):
                old.unlink()
        self._file = GrowingFile(folder, f"{FOLDER}/{name}", length or None)
        if not length:
            self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float | None = None) -> None:
        """All values as one event; `wall_time`: when they were taken, in seconds since 1970 (None: now)."""
        found = (self._summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items())
        self.values(found, step, wall_time)

    def histograms(self, found: Mapping[str, Histogram], step: int) -> None:
        """All histograms as one event."""
        self.values((self._summary.Value(tag=tag, histo=h._asdict()) for tag, h in found.items()), step)

    def images(self, pictures: Mapping[str, Image.Image], step: int) -> None:
        """Each picture, as PNG, as an event of its own."""
        for tag, picture in pictures.items():
            buffer = io.BytesIO()
            picture.save(buffer, "png", compress_level=3)  # a third of the time of the default, a few percent larger
            content = self._summary.Image(
                height=picture.height,
                width=picture.width,
                colorspace=len(picture.getbands()),
                encoded_image_string=buffer.getvalue(),
            )
            self.values([self._summary.Value(tag=tag, image=content)], step)

    def values(self, values: Iterable[Any], step: int, wall_time: float | None = None) -> None:
        """Ready `Summary.Value` protocol buffers as one event."""
        self._write(self._event(wall_time=wall_time or time.time(), step=step, summary=self._summary(value=values)))

    def graph(self, graph: bytes) -> None:
        """A serialised `GraphDef`."""
        self._write(self._event(wall_time=time.time(), graph_def=graph))

    def _write(self, event: Any) -> None:
        self._file.write(record(event.SerializeToString()))

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def state(self) -> dict[str, Any]:
        """Name and length of the file as it is safe on the disk now."""
        return {"file": self._file.path.name, "length": self._file.saved_length()}
