"""The processes of `action=verify_resume`: one trains the whole run, several the one that is stopped and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlrun import rundir
from dlrun.actions._traces import Trace, read_trace
from dlrun.divergence import Diverged
from dlrun.registry import ConfigError

# the import path of this process, so that a user's modules are found, and none of the current folder comes before dlrun's
CODE = "import sys; sys.path[:] = {path!r}; from dlrun.actions._stopped import main; sys.exit(main(sys.argv[1]))"
LEAVING_S = 20  # for a checkpoint, before a process that was asked to leave is killed


@dataclass(frozen=True)
class Stop:
    """A process shall be stopped by `signal` after `step`."""

    step: int
    signal: signal.Signals

    @property
    def name(self) -> str:
        return self.signal.name


class Processes:
    """Starts processes one after the other; what they say goes into files of `processes/`.

    Args:
        config: plain and checked; each process reads it from a file.
        folder: of the action; `whole/` and `resumed/` below it become the two runs.
    """

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.folder = folder / "processes"
        self.whole, self.resumed = folder / "whole", folder / "resumed"
        for path in (self.folder, self.whole, self.resumed):
            path.mkdir()
        self.config = {**config, "action": {"name": "train"}}

    def train_whole(self) -> Trace:
        """The run that is never stopped."""
        start = time.perf_counter()
        self._write_config()
        code, trace = self._run("whole", self.whole)
        self._require(code == 0, "whole", code)
        print(f"whole run: {trace.steps} steps in {time.perf_counter() - start:.1f} s", flush=True)
        # both runs with the number of threads that `null` stood for in the first: another changes the last bits
        saved = rundir.read_config(self.whole, "run")["trainer"]["threads"]
        self.config = {**self.config, "trainer": {**self.config["trainer"], "threads": saved}}
        self._write_config()
        return trace

    def train_stopped(self, stops: list[Stop]) -> list[Trace]:
        """The other run: a process for each stop and one that ends it. Gives their traces in order."""
        traces: list[Trace] = []
        for number, stop in enumerate([*stops, None]):
            start, name = time.perf_counter(), f"resumed_{number}"
            code, trace = self._run(name, self.resumed, stop, resume=number > 0)
            traces.append(trace)
            begin = f"resumed after step {trace.start}" if number else "started"
            seconds = f"({time.perf_counter() - start:.1f} s)"
            if code == 0:  # also before its stop, if it differs so much that it stops early
                print(f"resumed run: {begin}, finished {seconds}", flush=True)
                break
            wanted = {signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[stop.signal] if stop else 0
            self._require(stop is not None and code == wanted and trace.steps == stop.step, name, code)
            assert stop is not None
            print(f"resumed run: {begin}, stopped after step {stop.step} by {stop.name} {seconds}", flush=True)
        return traces

    def _write_config(self) -> None:
        text = yaml.safe_dump(self.config, sort_keys=False)
        rundir.write_text(self.folder / "config.yaml", text)

    def _run(self, name: str, folder: Path, stop: Stop | None = None, resume: bool = False) -> tuple[int, Trace]:
        """Trains in a new process until it ends. Returns its exit code (-9: SIGKILL) and its trace."""
        files = {kind: str(self.folder / f"{name}.{kind}") for kind in ("job", "trace", "error", "log")}
        job = {"config": str(self.folder / "config.yaml"), "folder": str(folder), "resume": resume}
        job |= {"trace": files["trace"], "error": files["error"]}
        job |= {"stop": stop and stop.step, "signal": int(stop.signal) if stop else None}
        rundir.write_json(Path(files["job"]), job)
        command = [sys.executable, "-c", CODE.format(path=sys.path), files["job"]]
        with open(files["log"], "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            try:
                process.wait()
            finally:  # Ctrl-C, SIGTERM
                _end(process)
        return process.returncode, read_trace(Path(files["trace"]))

    def _require(self, expected: bool, name: str, code: int) -> None:
        """Passes on what went wrong in a process that did not end as it should."""
        if expected:
            return
        error, log = self.folder / f"{name}.error", self.folder / f"{name}.log"
        what = f"its process ended with exit code {code}"
        if error.exists():
            found = json.loads(error.read_text(encoding="utf-8"))
            if found["expected"]:
                raise Diverged(found["message"]) if code == 3 else ConfigError(found["message"])
            what = found["message"]
        elif code < 0:
            what = f"its process was killed by signal {-code}"
        print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
        raise ConfigError(f"verify_resume: the {name.partition('_')[0]} run failed ({what})")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leaves no process behind, not even if this one is asked once more to leave."""
    if process.poll() is not None:
        return
    try:
        process.terminate()
        process.wait(LEAVING_S)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
