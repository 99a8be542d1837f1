"""The `dlrun` command: one place turns every error and every signal into one line and an exit code.

| exit code | meaning                                                                                             |
| 0         | finished                                                                                            |
| 1         | the configuration, the data or the environment is wrong                                             |
| 3         | training diverged                                                                                   |
| 4         | a sweep with failed runs                                                                            |
| 130, 143  | interrupted by Ctrl-C, or by SIGTERM or SIGUSR1; a run that was being trained has a checkpoint      |

A signal is answered from the first line of `main` on, so everything else is imported inside functions. Before an action
begins it ends the process at once; while a run is trained, the trainer answers it (see `dlrun.signals`); in between it is
raised as KeyboardInterrupt, so that temporary files go. The second one always ends the process at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # `typing` takes milliseconds, in which no signal is answered
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_in_command = 0  # the number of the process that is the command `dlrun`; 0 for a caller of `run`
_working = False  # an action has begun: a signal is raised rather than ending the process
_arrived: int | None = None  # the exit code of the first signal
_final: int | None = None  # the exit code once all is done


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    global _final
    _answer_signals()
    _final = run(list(sys.argv[1:] if argv is None else argv))
    if "torch" in sys.modules and sys.getprofile() is None and sys.gettrace() is None and not sys.flags.inspect:
        _exit_at_once(_final)
    sys.exit(_final)


def _exit_at_once(code: int) -> None:
    """Ends the process as Python does, but without taking PyTorch's modules and libraries apart, which takes 0.6 s."""
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # closed: Python has its own words and exit code for it
        return
    os._exit(code)


def _answer_signals() -> None:
    global _in_command
    _in_command = os.getpid()
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a job in the background of a script
            signal.signal(number, _signalled)
    atexit.register(_ignore_signals)  # called last: from there on Python would let a signal change the exit code


def _signalled(number: int, frame: Any) -> None:
    global _arrived
    code = 130 if number == signal.SIGINT else 143
    if os.getpid() != _in_command:  # a forked worker that has just begun: its parent decides
        os._exit(code)
    if _working and _arrived is None and _final is None:
        _arrived = code
        sys.unraisablehook = _say_nothing  # where the exception cannot be raised, Python would print it
        raise KeyboardInterrupt
    first, _arrived = _arrived is None and not _final, code
    try:
        if first and _final is None:
            _tidy_up()
        if first:  # past Python's buffers: the signal may have come while they were being written
            os.write(2, f"dlrun: interrupted (exit code {code})\n".encode())
    finally:
        os._exit(_final or code)


def _tidy_up() -> None:
    """Removes the folder of a run that never began."""
    for module, function in (("dlrun.sweeps.sweep", "release"), ("dlrun.rundir", "remove_created")):
        if act := getattr(sys.modules.get(module), function, None):  # None: its import was interrupted
            act()


def _say_nothing(unraisable: Any) -> None:
    pass


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _work_begins() -> None:
    """From now on a signal is raised. Raises the one that came at a point where nothing can be raised."""
    global _working
    _working = bool(_in_command)
    if _arrived is not None:
        raise KeyboardInterrupt


def run(argv: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    from dlrun.arguments import as_resume, help_text, quote_paths, sort_arguments, wants_workers

    if "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    if "--version" in argv:
        from importlib import metadata

        print(f"dlrun {metadata.version('dlrun')}")
        return 0
    from dlrun import rundir
    from dlrun.completion import complete_flag, is_query
    from dlrun.repeats import expand

    users_choice = os.environ.get("HYDRA_FULL_ERROR")
    asked_for_traceback = users_choice == "1" or "debug=true" in [a.lower() for a in argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # inside this call Hydra shall raise, not print
    rundir.disarm()
    try:
        if is_query(argv) and complete_flag():
            return 0
        words = quote_paths(sort_arguments(as_resume(expand(argv))))
        if wants_workers(words):
            from dlrun.sweeps.workers import warm_up

            warm_up()
        from dlrun.command import execute

        return execute(words, _work_begins)
    except BaseException as error:
        if is_query(argv) and isinstance(error, Exception):
            return 1
        return _answer(error, argv, asked_for_traceback)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if users_choice is not None:
            os.environ["HYDRA_FULL_ERROR"] = users_choice


def _answer(error: BaseException, argv: list[str], asked_for_traceback: bool) -> int:
    """Says in one line what ended the command and returns the exit code; errors that are not the user's show their
    traceback."""
    from dlrun import rundir
    from dlrun.suggest import explain, is_users

    if code := _signal_code(error):
        return _interrupted(code, error)
    if not isinstance(error, Exception):  # SystemExit; argparse's 2 is a wrong flag
        left = getattr(error, "code", 1)
        return left if isinstance(left, int) and left != 2 else 1
    code = 3 if type(error).__name__ == "Diverged" else 1
    if asked_for_traceback or (code == 1 and not is_users(error)):
        import traceback

        traceback.print_exception(error)
    line = explain(error, argv).replace("\n", "\\n")  # of a value that the message quotes
    print(f"dlrun: {line}", file=sys.stderr)
    if code == 1 and is_users(error):
        rundir.remove_created()
    return code


def _signal_code(error: BaseException) -> int | None:
    """130 or 143 if a signal ended the command, also where it surfaced as another error (an import cut short, say)."""
    if type(error).__name__ == "Interrupted":  # imported by what raises it
        return int(getattr(error, "code", 130))
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "code", _arrived or 130))
    if isinstance(error, SystemExit) and error.code in (130, 143):
        return int(error.code)
    return _arrived


def _interrupted(code: int, error: BaseException) -> int:
    """Says how to go on; removes what has not begun."""
    from dlrun import command, rundir
    from dlrun.sweeps import sweep

    if _in_command:
        _end_workers()
    line = str(error) if type(error).__name__ == "Interrupted" else f"interrupted (exit code {code})"
    go_on = sweep.how_to_go_on()
    folder = command.run_folder
    if not go_on and folder and any((folder / rundir.LAST).parent.glob("*.pt")):
        finished = (rundir.read_results(folder) or {}).get("status") == "finished"
        go_on = "" if finished else sweep.command_line("resume", folder, [])
    elif not go_on:
        rundir.remove_created()
    print(f"dlrun: {line}{f'; go on: {go_on}' if go_on else ''}", file=sys.stderr)
    return code


def _end_workers() -> None:
    """Ends the worker processes of a loader that nobody closed: Python would wait 5 s for each of them."""
    loaders: Any = sys.modules.get(
        "torch.utils.data._utils"
    )  # not imported here: its own import may have been cut short
    if loaders is None or "multiprocessing" not in sys.modules:
        return
    import multiprocessing

    loaders.python_exit_status = True  # as at the end of the process: no loader waits for its workers any more
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error for a worker that was killed
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
