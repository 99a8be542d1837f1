"""Proving that a stopped and resumed run ends like one never stopped, and finding where it does not."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun.actions._contents import _flat, read_run
from dlrun.actions._identical import compare, same
from dlrun.actions._traces import Trace, first_difference
from dlrun.actions.verify_resume import draw_stops

QUICK = ("model=linear", "data=poly1d", "data.limit_train=320", "device=cpu", "trainer.epochs=2", "trainer.threads=1")


# ---- comparing two finished runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    from dlrun.cli import run

    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run([*QUICK, "data=digits", "model=mlp", "model.hidden=[4]", f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def differences(finished: Path, copy: Path) -> list[str]:
    return [str(difference) for difference in compare(read_run(finished), read_run(copy))]


def change_state(copy: Path, change: Callable[[dict], None], name: str = "last.pt") -> None:
    path = copy / "checkpoints" / name
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_a_run_is_identical_to_its_copy(finished: Path, copy: Path) -> None:
    """Nothing differs, and all five files were looked at."""
    assert differences(finished, copy) == []
    contents = read_run(copy)
    assert {file: len(entries) > 5 for file, entries in contents.items()} == dict.fromkeys(
        ("checkpoints/last.pt", "checkpoints/best.pt", "metrics.jsonl", "tensorboard", "results.json"), True
    ) | {"metrics.jsonl": False}
    keys = [key for key, _ in contents["checkpoints/last.pt"]]
    for key in ("model.dense.0.weight", "optimizer.state.0.exp_avg", "counters.step", "best.best", "sums", "data"):
        assert any(found.startswith(key) for found in keys) or key.startswith("model."), key
    assert sum(key.startswith("model.") for key in keys) == 4


def test_what_is_time_may_differ(finished: Path, copy: Path) -> None:
    """Other seconds, file names of TensorBoard and samples per second are no difference."""

    def later(state: dict) -> None:
        state["epoch_seconds"] = [9.0, 9.0]
        state["fit_seconds"] = 9.0
        state["callbacks"]["TensorBoard"] |= {"file": "events.out.tfevents.9.dlrun", "length": 9}

    change_state(copy, later)
    results = json.loads((copy / "results.json").read_text())
    results["timing"]["wall_s"], results["memory"]["peak_rss_mib"] = 9.0, 9.0
    (copy / "results.json").write_text(json.dumps(results))
    rewrite_events(copy, lambda tag, value: setattr(value, "simple_value", 9.0) if tag == "samples_per_s" else None)
    assert differences(finished, copy) == []


def flip(tensor: torch.Tensor, index: int = 5) -> None:
    """Flips the last bit of an element."""
    tensor.view(torch.int32).flatten()[index] ^= 1


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (
            lambda s: flip(s["optimizer"]["state"][0]["exp_avg"], 65),
            "optimizer.state.0.exp_avg [1, 1] (first of 1 of 256)",
        ),
        (lambda s: flip(next(iter(s["model"].values()))), "[0, 5] (first of 1 of 256)"),
        (lambda s: s["counters"].update(samples=1), "counters.samples: 640 in the whole run, 1 in the resumed one"),
        (lambda s: s["best"].update(without_progress=7), "best.without_progress: 0 in the whole run, 7"),
        (lambda s: s["run"]["history"]["val"].pop("accuracy"), "run.history.val.accuracy: "),
        (lambda s: s["sums"].update(new=1), "sums.new: missing in the whole run, 1 in the resumed one"),
    ],
    ids=["optimizer", "weights", "counters", "early stopping", "history", "sums"],
)
def test_every_part_of_a_checkpoint_is_compared(finished: Path, copy: Path, change: Any, key: str) -> None:
    """One bit or value changed anywhere is one difference, named with its key and index."""
    change_state(copy, change)
    found = differences(finished, copy)
    assert len(found) == 1, found
    assert found[0].startswith("checkpoints/last.pt: ")
    assert key in found[0]


def test_a_checkpoint_that_is_missing(finished: Path, copy: Path) -> None:
    """A file that only one run has is a difference."""
    (copy / "checkpoints" / "best.pt").unlink()
    assert differences(finished, copy) == [
        "checkpoints/best.pt: the file: is there in the whole run, missing in the resumed one"
    ]


def test_metric_lines_are_compared_byte_for_byte(finished: Path, copy: Path) -> None:
    """A changed digit is named by line and metric, a line too many or a byte of white space by its line."""
    path = copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines(True)
    values = json.loads(lines[1])
    values["loss"] += 1e-12
    path.write_bytes(b"".join([lines[0], json.dumps(values).encode() + b"\n", *lines[2:]]))
    assert [found.partition(" in the whole")[0] for found in differences(finished, copy)] == [
        f"metrics.jsonl: line 2 'loss': {json.loads(lines[1])['loss']!r}"
    ]
    path.write_bytes(b"".join([*lines, lines[-1]]))
    assert differences(finished, copy) == [
        "metrics.jsonl: entry 6: missing in the whole run, line 6 in the resumed one"
    ]
    path.write_bytes(lines[0].replace(b": ", b":  ", 1) + b"".join(lines[1:]))
    assert next(found.partition(": {")[0] for found in differences(finished, copy)).startswith("metrics.jsonl: line 1")


def test_results_are_compared(finished: Path, copy: Path) -> None:
    """A test metric that differs by the last bit is found."""
    results = json.loads((copy / "results.json").read_text())
    loss = results["metrics"]["test"]["loss"]
    results["metrics"]["test"]["loss"] = loss + 2**-52 * loss
    (copy / "results.json").write_text(json.dumps(results))
    assert [found.partition(": ")[2].partition(":")[0] for found in differences(finished, copy)] == [
        "metrics.test.loss"
    ]


# ---- TensorBoard ------------------------------------------------------------------------------------------------------


def event_file(folder: Path) -> Path:
    (path,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    return path


def rewrite_events(folder: Path, change: Callable[[str, Any], None], keep: Callable[[int], int] = lambda n: 1) -> None:
    """Writes the event file anew: each value changed by `change(tag, value)`, record n written `keep(n)` times."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    path = event_file(folder)
    events = [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for number, event in enumerate(events):
            for value in event.summary.value:
                change(value.tag, value)
            for _ in range(keep(number)):
                writer.write(event.SerializeToString())


def test_a_curve_that_differs(finished: Path, copy: Path) -> None:
    """Scalars, histograms and pictures are compared by content."""

    def change(tag: str, value: Any) -> None:
        if tag == "epoch/val/loss":
            value.simple_value *= 1.0000002
        if value.HasField("histo"):
            value.histo.bucket[0] += 1
        if value.HasField("image"):
            value.image.encoded_image_string += b"x"

    rewrite_events(copy, change)
    found = [line.partition(": ")[2].partition(" at step")[0] for line in differences(finished, copy)]
    assert found.count("epoch/val/loss") == 2
    assert any(tag.startswith("weights/") for tag in found)
    assert any(tag.startswith("images/") for tag in found)


@pytest.mark.parametrize(("number", "times"), [(4, 2), (4, 0)], ids=["doubled", "missing"])
def test_an_event_doubled_or_missing(finished: Path, copy: Path, number: int, times: int) -> None:
    """The first place where the sequences part is named."""
    rewrite_events(copy, lambda tag, value: None, lambda n: times if n == number else 1)
    (found,) = (line for line in differences(finished, copy) if "entry" in line)
    assert found.startswith("tensorboard: entry ")


def test_a_second_event_file(finished: Path, copy: Path) -> None:
    """One run has one event file."""
    (copy / "tensorboard" / "events.out.tfevents.9.dlrun").write_bytes(event_file(copy).read_bytes()[:0])
    assert differences(finished, copy) == ["tensorboard: event files: 1 in the whole run, 2 in the resumed one"]


@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_event_file(finished: Path, copy: Path, tmp_path: Path, both: bool) -> None:
    """A truncated or garbled record is found where TensorBoard's reader would stop in silence, even if both runs have it."""
    path = event_file(copy)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    whole = shutil.copytree(copy, tmp_path / "other") if both else finished
    (found,) = differences(whole, copy)
    assert found.startswith("tensorboard: unreadable bytes: ")
    shutil.copy(event_file(finished), path)
    path.write_bytes(path.read_bytes()[:-3])
    assert differences(finished, copy)[0].startswith("tensorboard: unreadable bytes: 0 in the whole run, ")


def test_values_are_the_same_bit_for_bit() -> None:
    """NaN equals the same NaN, 0.0 is not -0.0, 1 is not 1.0, and tensors have a type and a shape."""
    (other_nan,) = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))
    nan = float("nan")
    assert same(nan, float("nan"))
    assert not same(nan, other_nan)
    assert not same(0.0, -0.0)
    assert not same(1, 1.0)
    assert not same(1, True)
    assert same(torch.tensor([nan, 0.0]), torch.tensor([nan, 0.0]))
    assert not same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same(torch.zeros(2), torch.zeros(2, 1))
    assert not same(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert same(torch.zeros(0), torch.zeros(0))
    assert same(torch.tensor(True), torch.tensor(True))
    assert same(torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16))


def test_nests_are_compared_value_by_value() -> None:
    """Empty containers count: a list that became empty, or a mapping that became a list, is seen."""
    nest = {"a": {"b": [1, {"c": None}]}, "d": [], "e": {}, "fit_seconds": 3.0}
    assert list(_flat(nest)) == [("a.b.0", 1), ("a.b.1.c", None), ("d", "[]"), ("e", {})]


# ---- stops and traces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "steps", "per_epoch"), [(3, 40, 10), (2, 25, 10), (5, 5, 2), (9, 4, 4), (1, 30, 7)])
def test_stops_are_spread_over_the_run(count: int, steps: int, per_epoch: int) -> None:
    """Distinct steps of the run in order, the first and last epoch among them, SIGTERM and SIGKILL in turn."""
    for seed in range(50):
        stops = draw_stops(seed, count, steps, per_epoch)
        drawn = [stop.step for stop in stops]
        assert drawn == sorted(set(drawn))
        assert len(drawn) == min(count, steps)
        assert 1 <= drawn[0] <= drawn[-1] <= steps
        if count > 1:
            assert drawn[0] <= per_epoch
            assert drawn[-1] > (steps - 1) // per_epoch * per_epoch
        names = [stop.name for stop in stops]
        assert names == ["SIGTERM", "SIGKILL"] * (len(stops) // 2) + ["SIGTERM"] * (len(stops) % 2)


def test_stops_are_drawn_from_the_seed() -> None:
    """The same seed gives the same steps, other seeds others."""
    drawn = [tuple(stop.step for stop in draw_stops(seed, 3, 1000, 100)) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def trace(start: int, steps: range, every: int = 1, **changed: Any) -> Trace:
    """Losses 1 / step and checksums step + 100; `changed`: `loss_7=...` or `weights_7=...`."""
    made = Trace(start, every, 5)
    for step in steps:
        line = {"step": step, "loss": float(changed.get(f"loss_{step}", 1 / step)).hex()}
        if step % every == 0:
            line["weights"] = {"a": step + 100, "b": changed.get(f"weights_{step}", step)}
        made.lines[step, 0] = line
        if step % 5 == 0:
            made.lines[step, 2] = {"step": step, "split": "val", "loss": float(changed.get(f"val_{step}", 1)).hex()}
    return made


WHOLE = trace(0, range(1, 11))


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        ([trace(0, range(1, 8)), trace(5, range(6, 11))], None),
        (
            [trace(0, range(1, 8)), trace(5, range(6, 11), loss_7=2.0)],
            "step 7 (epoch 2), loss 0.142857143 in the whole run, 2 in the resumed one; the process had gone on from step 5",
        ),
        (
            [trace(0, range(1, 8)), trace(5, range(6, 11), weights_7=0, loss_9=2.0)],
            "step 7 (epoch 2), weights 'b' (loss equal until step 9); the process had gone on from step 5",
        ),
        (
            [trace(0, range(1, 8)), trace(5, range(6, 8), weights_6=0), trace(5, range(6, 11))],
            "step 6 (epoch 2), weights 'b' (loss equal in all steps that follow); the process had gone on from step 5",
        ),
        (
            [trace(0, range(1, 8), val_5=2.0), trace(5, range(6, 11), loss_7=2.0)],
            "validation of epoch 1 after step 5, loss 1 in the whole run, 2 in the resumed one; before any stop: the "
            "configuration does not repeat itself (see trainer.deterministic, trainer.threads)",
        ),
        ([trace(0, range(1, 8)), trace(7, range(8, 10))], "step 10 (epoch 2): missing in the resumed run"),
        (
            [trace(0, range(1, 11)), trace(10, range(11, 12))],
            "step 11 (epoch 3): not in the whole run; the process had gone on from step 10",
        ),
    ],
    ids=["identical", "loss", "weights", "repaired later", "before any stop", "too short", "too long"],
)
def test_the_first_difference_of_traces(processes: list[Trace], said: str | None) -> None:
    """The earliest step of any process at which anything differs is named with what differs."""
    assert first_difference(WHOLE, processes) == said


# ---- the action -------------------------------------------------------------------------------------------------------


def test_an_exact_configuration_is_proven(cli, tmp_path: Path) -> None:
    """Stopped twice, in three processes: identical, exit code 0, and the report says what was compared."""
    done = cli(
        "action=verify_resume", "action.stops=2", *QUICK, "model=mlp", "model.hidden=[8]", "model.dropout=0.3",
        "trainer.ema_decay=0.9", "trainer.threads=null", "trainer.checkpoint_every_steps=3", "hydra.run.dir=proof",
    )  # fmt: skip
    assert done.rc == 0, done.stderr + done.stdout
    assert "\nidentical; stops after steps " in done.stdout
    report = json.loads((tmp_path / "proof" / "verify_resume.json").read_text())
    assert (report["identical"], report["first_difference"], report["differences"]) == (True, None, [])
    assert set(report["compared"]) == {
        "checkpoints/last.pt", "checkpoints/best.pt", "metrics.jsonl", "tensorboard", "results.json",
    }  # fmt: skip
    stops = report["stops"]
    assert [stop["signal"] for stop in stops] == ["SIGTERM", "SIGKILL"]
    assert stops[0]["went_on_from"] == stops[0]["step"] <= 10 < stops[1]["step"]
    saved = [step for step in range(stops[1]["step"]) if step % 3 == 0 or step == 10]
    assert stops[1]["went_on_from"] in saved[-3:]  # two may be being written when the process is killed
    again = cli("action=verify_resume", *QUICK, "hydra.run.dir=proof")
    assert (again.rc, "already holds 'whole'" in again.stderr) == (1, True)


HIDDEN_STATE = """
from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer


@REGULARIZATION.register("counting")
class Counting(Regularizer):
    '''Moves the weights by how often it was called, which no checkpoint knows.'''

    def __init__(self):
        self.calls = 0

    def project(self, model):
        self.calls += 1
        next(model.parameters())[0, 0] += 1e-3 * self.calls
"""


def test_hidden_state_of_a_users_component_is_found(dlrun, tmp_path: Path) -> None:
    """A regularizer that counts its calls: the first step after the stop is named, with the weights it moved; exit code 1."""
    (tmp_path / "own.py").write_text(HIDDEN_STATE)
    (stop,) = draw_stops(0, 1, 20, 10)
    assert stop.step < 19
    own = "+regularization.counting={name: counting, import: own}"
    done = dlrun("action=verify_resume", "action.stops=1", *QUICK, "callbacks=none", own, "hydra.run.dir=proof")
    assert done.rc == 1, done.stderr + done.stdout
    line = done.stderr.splitlines()[-1]
    after = stop.step + 1
    assert f"first difference: step {after} (epoch {(after - 1) // 10 + 1}), weights '" in line
    assert f"loss equal until step {after + 1}" in line
    assert f"gone on from step {stop.step}" in line
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "proof" / "verify_resume.json").read_text())
    assert report["identical"] is False
    assert report["differences"][0]["file"] == "checkpoints/last.pt"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("data=csv", "data.path=nowhere.csv", "data.target=a", "model=mlp"), 1, "nowhere.csv"),
        ((*QUICK, "model=mlp", "optimizer=sgd", "optimizer.lr=1e30", "callbacks=none"), 3, "not finite at step"),
    ],
    ids=["bad data", "diverged"],
)
def test_the_message_of_a_process_is_passed_on(cli, words: tuple[str, ...], code: int, said: str) -> None:
    """What is wrong in the whole run is said in one line with its own exit code."""
    done = cli("action=verify_resume", *words, "hydra.run.dir=proof")
    assert done.rc == code
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("action.stops=0",), "action.stops"),
        (("optimizer.lr=-1",), "optimizer.lr"),
        (("run=finished",), "run: not together with action=verify_resume"),
        (("-m", "seed=0,1"), "leave -m away"),
    ],
)
def test_what_it_refuses(cli, finished: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """Before any process is started, in one line; nothing stays behind."""
    shutil.copytree(finished, tmp_path / "finished")
    done = cli("action=verify_resume", *words)
    assert done.rc != 0
    assert said in done.stderr
    assert not list(tmp_path.glob("outputs/**/whole"))


def living(group: int) -> list[str]:
    """The living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        found += [path.parent.name] if int(own) == group and state not in "ZX" else []
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_its_processes_end_with_it(tmp_path: Path) -> None:
    """Ctrl-C ends the process that trains too, although the signal reaches the action alone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dlrun", "action=verify_resume", *QUICK, "trainer.epochs=100000", "hydra.run.dir=proof"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # pytest's own parent may ignore it
    )
    end = time.monotonic() + 120
    while not (tmp_path / "proof/whole/checkpoints/last.pt").exists() and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.05)
    assert len(living(process.pid)) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert living(process.pid) == []
