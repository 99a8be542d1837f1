"""What callbacks import, and when: the first step does not wait for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LATE = ("tensorboard", "google.protobuf", "PIL", "rich", "torch.utils.tensorboard", "matplotlib")

PROGRAM = """
import sys
from pathlib import Path
from conftest import make_run
from dlrun.callbacks._build import build_callbacks
names = ("progress", "metrics_file", "tensorboard")
callbacks = build_callbacks({name: {"name": name} for name in names})
run = make_run(Path(sys.argv[1]) / "run")
for hook in ("on_fit_start", "on_epoch_start"):
    for callback in callbacks:
        getattr(callback, hook)(run)
print([name for name in sys.argv[2:] if name in sys.modules])
run.step = 1
for callback in callbacks:
    callback.on_step(run, None)
    callback.on_evaluation(run, "train", {"loss": 1.0})
print(all(name in sys.modules for name in ("rich", "tensorboard", "PIL")))
"""


def test_nothing_is_imported_for_showing_before_the_first_step(tmp_path: Path) -> None:
    """Until then neither TensorBoard nor rich nor what draws is in memory; afterwards all are."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r})\n{PROGRAM}", str(tmp_path), *LATE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split("\n") == ["[]", "True", ""], ended.stderr
