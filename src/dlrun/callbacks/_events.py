"""Writing TensorBoard event files. TensorBoard is imported when a file is opened."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.callbacks._files import GrowingFile

if TYPE_CHECKING:
    from PIL import Image

    from dlrun.callbacks._histograms import Histogram

FLUSH_EVERY_S = 5.0


class EventWriter:
    """One event file for a whole run, however often the run was interrupted.

    Differs from `SummaryWriter`, which starts a second file when it is reopened, so that the steps between the last
    checkpoint and the interruption would be shown twice.

    Args:
        folder: where the event file is or will be.
        state: `state()` of the writer to continue; without it, or if its file is gone, event files of an earlier start
            in the folder are removed and a new one begun.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any] | None = None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        continued = bool(state) and GrowingFile.holds(folder / state["file"], state["length"])  # type: ignore[index]
        if continued:
            assert state is not None
            self._file = GrowingFile(folder / state["file"], state["length"])
        else:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._file = GrowingFile(folder / f"events.out.tfevents.{int(time.time()):010d}.dlrun")
        self._records = RecordWriter(self._file)
        self._flushed = time.monotonic()
        if not continued:
            self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """All values as one event."""
        self.values((self._summary.Value(tag=tag, simple_value=float(v)) for tag, v in values.items()), step)

    def histograms(self, found: Mapping[str, Histogram], step: int) -> None:
        """All histograms as one event."""
        self.values((self._summary.Value(tag=tag, histo=h._asdict()) for tag, h in found.items()), step)

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """A picture as PNG."""
        buffer = io.BytesIO()
        picture.save(buffer, "png", compress_level=3)  # a third of the time of the default, a few percent larger
        channels = len(picture.getbands())
        content = self._summary.Image(
            height=picture.height, width=picture.width, colorspace=channels, encoded_image_string=buffer.getvalue()
        )
        self.values([self._summary.Value(tag=tag, image=content)], step)

    def values(self, values: Iterable[Any], step: int) -> None:
        """Ready `Summary.Value` protocol buffers as one event."""
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def graph(self, graph: bytes) -> None:
        """A serialised `GraphDef`."""
        self._write(self._event(wall_time=time.time(), graph_def=graph))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def state(self) -> dict[str, Any]:
        """Name and length of the file as it is safe on the disk now."""
        return {"file": self._file.path.name, "length": self._file.saved_length()}
