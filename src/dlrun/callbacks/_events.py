"""Writing TensorBoard event files. TensorBoard is imported when a file is opened."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.callbacks._files import GrowingFile, continued

if TYPE_CHECKING:
    from PIL import Image

    from dlrun.callbacks._histograms import Histogram

FOLDER = "tensorboard"
PREFIX = "events.out.tfevents."
FLUSH_EVERY_S = 5.0
CHECKED = 1 << 20  # bytes at the end of a continued file whose checksums are compared


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
        from tensorboard.summary.writer.record_writer import RecordWriter

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
        self._records = RecordWriter(self._file)
        self._flushed = time.monotonic()
        if not length:
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


def whole_records(content: bytes) -> int:
    """Length of the beginning of an event file in which every record is whole: TensorBoard reads no further. The checksums of
    the content are slow to compute and looked at near the end only, where a power failure does its damage."""
    from tensorboard.summary.writer.record_writer import masked_crc32c

    end = 0
    while len(header := content[end : end + 12]) == 12:
        size = int.from_bytes(header[:8], "little")
        following = end + 16 + size
        data, check = content[end + 12 : following - 4], content[following - 4 : following]
        if masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little") or following > len(content):
            break
        if following > len(content) - CHECKED and masked_crc32c(data) != int.from_bytes(check, "little"):
            break
        end = following
    return end
