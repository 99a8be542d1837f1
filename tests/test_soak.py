"""The soak script in its short form: 20 runs killed at random moments and resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "soak.py"
COLUMNS = ("kills", "in a save", "before a checkpoint", "before the config", "identical", "different", "unreadable")


def test_twenty_kills(tmp_path: Path) -> None:
    """All runs end bit-identical to their twins over all 16 configurations, and no checkpoint is unreadable."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "20", "--jobs", "2", "--seed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {words[0]: words[1:] for words in map(str.split, done.stdout.splitlines()) if len(words) == 1 + len(COLUMNS)}
    total = dict(zip(COLUMNS, map(int, rows.pop("total")), strict=True))
    assert len(rows) == 16
    assert all(int(words[0]) >= 1 for words in rows.values()), "a configuration was never killed"
    assert (total["identical"], total["different"], total["unreadable"]) == (20, 0, 0)
    assert total["kills"] >= 20
