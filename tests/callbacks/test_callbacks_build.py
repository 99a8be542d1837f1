"""Building callbacks from the mapping of a configuration, and what they may not do."""

from __future__ import annotations

import pytest
import torch

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._build import build_callbacks, check_callbacks
from dlrun.registry import ConfigError


def test_entries_are_built_in_order_and_null_is_off():
    """The mapping's order is the order of the calls, and an entry set to null does not exist."""
    node = {"metrics_file": {"name": "metrics_file"}, "progress": None, "tensorboard": {"name": "tensorboard"}}
    assert [type(c).__name__ for c in build_callbacks(node)] == ["MetricsFile", "TensorBoard"]


def test_a_wrong_setting_is_named_by_its_dotted_key():
    """Errors give the entry and the setting that a person has to change."""
    with pytest.raises(ConfigError, match=r"^callbacks\.tensorboard\.imagse: .*did you mean 'images'"):
        check_callbacks({"tensorboard": {"name": "tensorboard", "imagse": 3}})
    with pytest.raises(ConfigError, match=r"^callbacks\.mine\.images: got 0; expected int > 0"):
        check_callbacks({"mine": {"name": "tensorboard", "images": 0}})
    with pytest.raises(ConfigError, match=r"^callbacks\.progress: got 3; expected a mapping"):
        build_callbacks({"progress": 3})


@pytest.mark.parametrize("name", CALLBACKS.names())
def test_removing_a_callback_changes_no_number(name, new_run, fit):
    """Weights, batch-norm statistics, layer modes and the global random state end the same with and without it."""
    bare, watched = new_run(), None
    fit(bare, [])
    state_of_bare = torch.get_rng_state()
    settings = {"histograms_every_epochs": 1, "images_every_epochs": 1} if name == "tensorboard" else {}
    watched = new_run()
    fit(watched, build_callbacks({name: {"name": name, **settings}}))
    assert torch.equal(torch.get_rng_state(), state_of_bare)
    for (key, one), other in zip(bare.model.state_dict().items(), watched.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert [m.training for m in bare.model.modules()] == [m.training for m in watched.model.modules()]
    assert not any(m._forward_hooks for m in watched.model.modules())
