"""Makes the environment of the benchmark: `python scripts/benchmark/peers_venv.py .venv-peers`, run by the Python of `.venv`.

It sees everything that is installed there, so that all contestants have the same PyTorch and nothing is installed twice, and
adds the peers and matplotlib. A peer that cannot be installed beside these versions is left out, with one line.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PEERS = ("matplotlib", "lightning", "pytorch-ignite", "keras", "skorch")


def main(folder: Path) -> None:
    """Makes the environment and installs one peer after the other."""
    venv.create(folder, symlinks=True)
    (folder / ".gitignore").write_text("*\n")
    here, python = sysconfig.get_path("purelib"), folder / "bin" / "python"
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = Path(subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip())
    (there / "of_dlrun.pth").write_text(f"import site; site.addsitedir({here!r})\n")  # its own .pth files count too
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    listed = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    frozen = folder / "constraints.txt"
    frozen.write_text("".join(f"{line}\n" for line in listed if "==" in line))
    for name in PEERS:
        done = subprocess.run([*pip, "install", "--quiet", "--constraint", str(frozen), name])
        if done.returncode:
            print(f"{name} is left out: pip could not install it beside what is in .venv", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
