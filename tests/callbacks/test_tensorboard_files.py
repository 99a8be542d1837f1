"""TensorBoard event files, read back by TensorBoard itself."""

from __future__ import annotations

import re

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.util import tensor_util

from dlrun.callbacks._build import build_callbacks
from dlrun.callbacks.tensorboard import TensorBoard
from dlrun.registry import ConfigError

STEP_TAGS = {"train/loss", "train/objective", "train/penalty", "lr", "gradient_norm", "samples_per_s"}


def files(run):
    return list((run.folder / "tensorboard").rglob("*tfevents*"))


def events(run):
    """All events; TensorBoard's own reader checks the checksums."""
    (file,) = files(run)
    return list(EventFileLoader(str(file)).Load())


def values(run):
    """(tag, step) of every summary in the order written."""
    return [(v.tag, e.step) for e in events(run) for v in e.summary.value]


def read(run):
    accumulator = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"tensors": 0})
    return accumulator.Reload()


def scalars(run):
    """Tag -> {step: value}."""
    found = read(run)
    tags = [t for t in found.Tags()["tensors"] if found.SummaryMetadata(t).plugin_data.plugin_name == "scalars"]
    return {tag: {e.step: float(tensor_util.make_ndarray(e.tensor_proto)) for e in found.Tensors(tag)} for tag in tags}


@pytest.mark.curriculum("L19", "P35")
def test_curves_hold_the_values_of_the_loop(new_run, fit):
    """Steps, epochs, the generalisation gap and the final metrics are what the loop gave, in one file."""
    run = new_run()
    fit(run, [TensorBoard()])
    found = scalars(run)
    assert set(found) >= STEP_TAGS
    assert all(list(found[tag]) == [1, 2, 3, 4, 5, 6] for tag in STEP_TAGS)
    for split in ("train", "val"):
        for name in ("loss", "accuracy"):
            assert list(found[f"epoch/{split}/{name}"]) == [3, 6]
            assert found[f"epoch/{split}/{name}"][6] == pytest.approx(run.history[split][name], rel=1e-6)
    assert found["epoch/gap"][6] == pytest.approx(run.history["val"]["loss"] - run.history["train"]["loss"], rel=1e-5)
    assert found["final/test/accuracy"] == {6: pytest.approx(run.history["test"]["accuracy"], rel=1e-6)}


@pytest.mark.curriculum("P04")
def test_training_and_validation_share_a_chart(new_run, fit):
    """Every metric has one Custom Scalars chart, whose expressions match exactly its two curves."""
    run = new_run()
    fit(run, [TensorBoard()])
    (event,) = read(run).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    tags = scalars(run)
    for name in ("loss", "accuracy"):
        matched = {tag for tag in tags for expression in charts[name] if re.match(expression, tag)}
        assert matched == {f"epoch/train/{name}", f"epoch/val/{name}"}
    assert len(charts["objective = loss + penalty"]) == 3


def test_hyperparameters_and_final_metrics_are_in_the_run_itself(new_run, fit):
    """HParams finds settings, metrics and status in the one event file, without a run of its own."""
    run = new_run()
    fit(run, [TensorBoard()])
    assert len(files(run)) == 1
    content = {
        v.tag: plugin_data_pb2.HParamsPluginData.FromString(v.metadata.plugin_data.content)
        for e in events(run)
        for v in e.summary.value
        if v.tag.startswith("_hparams_")
    }
    start = content["_hparams_/session_start_info"].session_start_info.hparams
    assert (start["optimizer.lr"].number_value, start["model.name"].string_value) == (0.1, "small")
    assert (start["seed"].number_value, start["model.tied"].string_value) == (0, "true")
    metrics = {m.name.tag for m in content["_hparams_/experiment"].experiment.metric_infos}
    assert metrics >= {"final/val/loss", "final/test/accuracy"}
    assert metrics <= set(scalars(run))
    assert content["_hparams_/session_end_info"].session_end_info.status == api_pb2.STATUS_SUCCESS


def test_a_diverged_run_is_marked_as_failed(new_run):
    """HParams tells a diverged run from a finished one; a value that is null is left out."""
    run = new_run()
    callback = TensorBoard(graph=False, images_every_epochs=0)
    callback.on_fit_start(run)
    callback.on_run_end(run, {"status": "diverged", "metrics": {"train": {"loss": None}}})
    (end,) = [v for e in events(run) for v in e.summary.value if v.tag == "_hparams_/session_end_info"]
    ended = plugin_data_pb2.HParamsPluginData.FromString(end.metadata.plugin_data.content)
    assert ended.session_end_info.status == api_pb2.STATUS_FAILURE


@pytest.mark.parametrize("save_at", [2, 3, 5, 6, 9])
def test_a_killed_and_resumed_run_is_the_same_file_as_one_never_killed(save_at, new_run, fit, resumed, tmp_path):
    """Same tags at the same steps in the same order in one file: nothing doubled, nothing missing."""
    settings = {"tensorboard": {"name": "tensorboard", "images_every_epochs": 2}}
    whole = new_run(epochs=3)
    fit(whole, build_callbacks(settings))
    expected = values(whole)

    (name,) = [f.name for f in files(whole)]
    killed = new_run(epochs=3)
    (state,) = fit(killed, build_callbacks(settings), until=8 if save_at < 8 else None, save_at=save_at)
    again = resumed(killed, save_at)
    (callback,) = build_callbacks(settings)
    callback.load_state_dict(state)
    fit(again, [callback])
    assert values(again) == expected
    assert len(set(values(again))) == len(values(again))
    assert [f.name for f in files(again)] == [state["file"]]
    assert name.startswith("events.out.tfevents.")


def test_a_resumed_run_whose_event_file_is_gone_starts_a_new_one(new_run, fit, resumed):
    """A deleted event file is no reason to fail."""
    run = new_run()
    (state,) = fit(run, [TensorBoard()], until=4, save_at=3)
    for file in files(run):
        file.unlink()
    again = resumed(run, 3)
    callback = TensorBoard()
    callback.load_state_dict(state)
    fit(again, [callback])
    assert list(scalars(again)["lr"]) == [4, 5, 6]


class Clock:
    """Seconds since 1970 as a test sets them."""

    def __init__(self, monkeypatch):
        self.now = 1e9
        monkeypatch.setattr("dlrun.callbacks._late.time.time", lambda: self.now)


def test_curves_appear_within_seconds(new_run, monkeypatch):
    """What is logged is in the file after a second at first, then every 5 s, also if the clock is set back."""
    run, clock = new_run(), Clock(monkeypatch)
    callback = TensorBoard(graph=False)
    callback.on_fit_start(run)
    callback.on_epoch_start(run)
    seen = []
    for later in (0, 0.5, 1, 1, 3, 1, -1000, 1):
        clock.now, run.step = clock.now + later, run.step + 1
        callback.on_log(run, {"lr": 0.1 * run.step})
        seen.append([step for tag, step in values(run) if tag == "lr"] if files(run) else None)
    assert seen == [None, None, [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5, 6], [*range(1, 8)], [*range(1, 8)]]
    assert [e.wall_time - 1e9 for e in events(run) if e.step][:6] == [0, 0.5, 1.5, 2.5, 5.5, 6.5]


@pytest.mark.parametrize("every", [0.0, 3600.0])
def test_the_order_in_the_file_does_not_depend_on_when_it_is_written(every, new_run, fit, monkeypatch):
    """The beginning comes first, and what was logged before it is, even if it is written with the rest."""
    monkeypatch.setattr("dlrun.callbacks._late.FLUSH_EVERY_S", every)
    monkeypatch.setattr("dlrun.callbacks._late.FIRST_FLUSH_S", every)
    run = new_run(epochs=1)
    fit(run, [TensorBoard(images_every_epochs=1)])
    found = list(dict.fromkeys(tag.split("/")[0] + f" {step}" for tag, step in values(run)))
    steps = [f"{tag} {step}" for step in (1, 2) for tag in ("train", "lr", "gradient_norm", "samples_per_s")]
    assert found[:11] == ["images 0", "__run_graph__ 0", *steps, "gradients 3"]


def test_a_checkpoint_has_all_that_was_logged(new_run):
    """The remembered length is that of the file on the disk, with everything in it."""
    run = new_run()
    callback = TensorBoard(graph=False)
    callback.on_fit_start(run)
    for run.step in range(1, 4):
        callback.on_log(run, {"lr": 0.5})
    (state, (file,)) = callback.state_dict(), files(run)
    assert (file.name, file.stat().st_size) == (state["file"], state["length"])
    assert [step for tag, step in values(run) if tag == "lr"] == [1, 2, 3]


def test_what_was_logged_before_a_failure_is_written(new_run):
    """A run that fails between two flushes loses nothing."""
    run = new_run()
    callback = TensorBoard()
    callback.on_fit_start(run)
    for run.step in range(1, 4):
        callback.on_log(run, {"lr": 0.5})
    callback.on_run_end(run, {"status": "failed"})
    assert [step for tag, step in values(run) if tag == "lr"] == [1, 2, 3]


def test_an_event_file_that_cannot_be_made_is_one_error(new_run, caplog):
    """The first flush says which file and why; the end of the run adds nothing."""
    run = new_run()
    run.folder.mkdir()
    (run.folder / "tensorboard").write_text("in the way")
    callback = TensorBoard()
    callback.on_fit_start(run)
    callback.on_log(run, {"lr": 0.5})
    with pytest.raises(ConfigError, match=r"cannot write .*tensorboard/events\S* \(File exists\)"):
        callback.on_evaluation(run, "train", {"loss": 1.0})
    callback.on_run_end(run, {"status": "failed"})
    assert not caplog.records


def test_how_long_an_epoch_waited_for_data_is_a_curve(new_run, fit):
    """What the data count up, epoch by epoch; data in memory have no such curve."""
    run = new_run()
    run.data.wait_s = 0.0
    read_epoch = run.data.epoch

    def slow(epoch, start=0):
        run.data.wait_s += 2.0 + epoch
        yield from read_epoch(epoch, start)

    run.data.epoch = slow
    fit(run, [TensorBoard(images_every_epochs=0)])
    assert scalars(run)["epoch/data_wait_s"] == {3: 2.0, 6: 3.0}
    other = new_run()
    fit(other, [TensorBoard(images_every_epochs=0)])
    assert "epoch/data_wait_s" not in scalars(other)


@pytest.mark.curriculum("P32")
def test_the_graph_shows_the_layers(new_run, fit):
    """The operations of the model are in the graph under their layers' names."""
    run = new_run()
    fit(run, [TensorBoard()])
    found = read(run)
    nodes = {node.name: node.op for node in found.Graph().node}
    assert "aten::_convolution" in nodes.values()
    assert any("Linear[8]" in name for name in nodes)


def test_a_model_that_cannot_be_traced_costs_one_warning(new_run, fit, caplog):
    """No graph is a pity, not an error."""

    class Untraceable(torch.nn.Linear):
        def forward(self, x):
            if torch.jit.is_tracing():
                raise RuntimeError("no tracing today\nand more lines")
            return super().forward(x.flatten(1))

    run = new_run(Untraceable(64, 3))
    fit(run, [TensorBoard()])
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["no graph in TensorBoard: this model cannot be traced (no tracing today)"]
    assert not read(run).Tags()["graph"]


def test_an_end_without_a_start_writes_nothing(new_run):
    """A run that fails before its first step still calls on_run_end."""
    run = new_run()
    callback = TensorBoard()
    callback.on_run_end(run, {"status": "failed", "metrics": {}})
    assert callback.state_dict() == {}
    assert not run.folder.exists()
