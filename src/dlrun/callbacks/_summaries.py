"""TensorBoard summaries about the whole run: shared charts, hyper-parameters, the graph of the model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.callbacks._observe import undisturbed, unwrapped

log = logging.getLogger(__name__)


def epoch_tag(split: str, metric: str) -> str:
    return f"epoch/{split}/{metric}"


def final_tag(split: str, metric: str) -> str:
    return f"final/{split}/{metric}"


def shared_charts(metrics: Iterable[str]) -> list[Any]:
    """The Custom Scalars layout: training and validation of a metric in one chart, the objective with its parts."""
    from torch.utils.tensorboard.summary import custom_scalars

    def lines(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]  # tags are read as regular expressions

    both = {m: lines(epoch_tag("train", m), epoch_tag("val", m)) for m in metrics}
    gap = {"generalisation gap (val - train loss)": lines("epoch/gap")}
    steps = {"objective = loss + penalty": lines("train/objective", "train/loss", "train/penalty")}
    return list(custom_scalars({"training and validation": both | gap, "training steps": steps}).value)


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | float]:
    """The settings of a resolved configuration by dotted key, as HParams shows them: numbers, and text for all else."""
    flat: dict[str, str | float] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + str(key)] = value
        elif value is not None:
            flat[prefix + str(key)] = str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def hyperparameters(config: Mapping[str, Any], metrics: Iterable[str], finished: bool) -> list[Any]:
    """What HParams reads: the settings, the tags of the final metrics, and how the run ended. It belongs into the run's
    own event file; `SummaryWriter.add_hparams` would open a second run for it. TensorBoard takes its columns from the first
    run that names any, so only a finished run does: one that failed would leave its sweep without columns of metrics."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    groups = {k: v for k, v in config.items() if k not in ("callbacks", "hydra", "action", "debug", "resume", "run")}
    experiment, start, end = hparams(flat_settings(groups), dict.fromkeys(metrics))
    if not finished:
        ended = HParamsPluginData.FromString(end.value[0].metadata.plugin_data.content)
        ended.session_end_info.status = Status.Value("STATUS_FAILURE")
        end.value[0].metadata.plugin_data.content = ended.SerializeToString()
    told = (experiment, start, end) if finished else (start, end)
    return [value for summary in told for value in summary.value]


def model_graph(model: nn.Module, inputs: Tensor, device: torch.device) -> bytes | None:
    """The graph of operations of one forward pass as a serialised `GraphDef`; None, with a warning, if the model cannot be
    traced.

    Traces once; `torch.utils.tensorboard` checks its trace by further ones, at half a second for LeNet-5.
    """
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.versions_pb2 import VersionDef
    from torch.utils.tensorboard._pytorch_graph import parse

    try:
        with undisturbed(model, device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated, but TensorBoard's graph has no other source
            trace = torch.jit.trace(unwrapped(model), (inputs,), check_trace=False)
            torch._C._jit_pass_inline(trace.graph)
            nodes = parse(trace.graph, trace, (inputs,))
    except Exception as error:  # tracing fails on some models in many ways, and nothing depends on it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("no graph in TensorBoard: this model cannot be traced (%s)", reason)
        return None
    return GraphDef(node=nodes, versions=VersionDef(producer=22)).SerializeToString()
