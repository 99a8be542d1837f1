"""The commands and links in README and docs are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dlrun.arguments import sort_arguments
from dlrun.repeats import expand
from dlrun.settings import config_dir

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, match[1])
    for page in PAGES
    if page.name != "catalogue.md"  # tests/test_options.py composes those
    for match in re.finditer(r"^(?:    )?(dlrun .*)$", page.read_text(), re.MULTILINE)
]


def first_value(word: str) -> str:
    """An override; of one that is swept, with its first value."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    discrete = override.is_discrete_sweep()
    value = next(override.sweep_string_iterator()) if discrete else override.value().start  # type: ignore[union-attr]
    return f"{override.get_key_element()}={value}"


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_compose(page: str, command: str) -> None:
    """Every command line in the pages composes and is accepted by the check that a run makes first."""
    from hydra import compose, initialize_config_dir

    from dlrun.build import check

    words = sort_arguments(expand(shlex.split(command, comments=True)[1:]))
    if any(word.startswith(("run=", "resume=", "--config-dir")) for word in words):
        return  # composes on top of a saved run, or of the reader's own files
    if "--cfg" in words:
        words = words[2:]
    overrides = [first_value(word) for word in words if not word.startswith(("-", "hydra"))]
    OmegaConf.register_new_resolver("dlrun.run_dir", lambda action, wanted: wanted, replace=True)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        check(OmegaConf.to_container(compose("config", overrides), throw_on_missing=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_readme_opens_with_the_two_commands() -> None:
    """`make demo` and `make test` stand in the first code block."""
    first = (ROOT / "README.md").read_text().split("```")[1]
    assert [line.split("#")[0].strip() for line in first.splitlines()[1:]] == ["make demo", "make test"]


def test_extending_example_runs(dlrun, tmp_path: Path) -> None:
    """The module and the YAML of docs/extending.md, copied from the page, train."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "my_models.py").write_text(text.split("```python\n")[1].split("```")[0])
    (tmp_path / "mine" / "model" / "two_layers.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    words = ("--config-dir", "mine", "model=two_layers", "model.width=8", "trainer.fast_dev_run=true", "device=cpu")
    done = dlrun(*words, env={"PYTHONPATH": str(tmp_path)})
    assert done.rc == 0, done.stderr
    done = dlrun(*words, "model.width=abc", env={"PYTHONPATH": str(tmp_path)})
    assert done.rc == 1
    assert "model.width: got 'abc'; expected int" in done.stderr
