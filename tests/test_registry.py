"""Registries: what is refused, in which words, and what the constructor gets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Lt, MinLen

from dlrun import registry as registry_module
from dlrun.registry import ConfigError, Registry, Setting, argument_help, settings_of, type_name, validate

Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class Common:
    """Settings of every toy.

    Args:
        colour: paint of the toy.
        parts: further parts.
    """

    colour: Literal["red", "green"] = "red"
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Car:
    """A toy car.

    Args:
        road: where it drives; given by dlrun.
        wheels: how many.
        sizes: of the wheels, in
            centimetres.
    """

    def __init__(
        self, road: str, *, wheels: Annotated[int, Gt(0)] = 4, sizes: tuple[int, ...] = (3, 3), speed: Positive = 1.0
    ) -> None:
        self.road, self.wheels, self.sizes, self.speed = road, wheels, sizes, speed


def make_kite(*, length: Positive, tail: bool = True) -> tuple[str, float, bool]:
    """A kite."""
    return "kite", length, tail


@pytest.fixture
def toys() -> Registry:
    """A registry filled by hand."""
    found = Registry("toy", None, common=Common)
    found.register("car")(Car)
    found.register("kite")(make_kite)
    return found


def refusal(toys: Registry, node: Mapping[str, Any], key: str | None = None) -> str:
    """The one line with which `node` is refused."""
    with pytest.raises(ConfigError) as caught:
        toys.check(node, key)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_check_returns_all_settings(toys: Registry) -> None:
    """Checked settings are complete: own and common, given and default."""
    assert toys.check({"name": "car", "wheels": 3}) == {
        "colour": "red",
        "parts": {},
        "wheels": 3,
        "sizes": (3, 3),
        "speed": 1.0,
    }


def test_build_passes_named_context_only(toys: Registry) -> None:
    """The constructor gets its settings and of the context only what its signature names."""
    car = toys.build({"name": "car", "sizes": [1, 2], "colour": "green"}, road="A1", weather="rain")
    assert (car.road, car.wheels, car.sizes) == ("A1", 4, (1, 2))
    assert toys.build({"name": "kite", "length": 2}, road="A1") == ("kite", 2.0, True)


def test_build_common(toys: Registry) -> None:
    """The group's common settings build an object of their own."""
    assert toys.build_common({"name": "car", "colour": "green"}) == Common(colour="green")


def test_default_factories_are_not_shared(toys: Registry) -> None:
    """A mutable default is a fresh value each time."""
    first = toys.check({"name": "car"})
    first["parts"]["horn"] = {}
    assert toys.check({"name": "car"})["parts"] == {}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"name": "cra"}, "toy.name: unknown 'cra'; allowed: car, kite; did you mean 'car'?"),
        ({"name": "zeppelin"}, "toy.name: unknown 'zeppelin'; allowed: car, kite"),
        ({}, "toy.name: no name given; allowed: car, kite"),
        ({"name": "???"}, "toy.name: no name given; allowed: car, kite"),
        ({"name": 3}, "toy.name: no name given; allowed: car, kite"),
        (
            {"name": "car", "weels": 3},
            "toy.weels: unknown setting of car; allowed: colour, parts, wheels, sizes, speed; did you mean 'wheels'?",
        ),
        ({"name": "car", "tail": True}, "toy.tail: car has no such setting; these have: kite"),
        (
            {"name": "kite", "length": 1, "xyz": 0},
            "toy.xyz: unknown setting of kite; allowed: colour, parts, length, tail",
        ),
        ({"name": "car", "road": "A1"}, "toy.road: is set by dlrun itself; remove it"),
        ({"name": "kite"}, "toy.length: no value given; kite needs one (required)"),
        ({"name": "kite", "length": "???"}, "toy.length: no value given; kite needs one (required)"),
        ({"name": "car", "wheels": 0}, "toy.wheels: got 0; expected int > 0"),
        ({"name": "car", "wheels": 2.0}, "toy.wheels: got 2.0; expected int > 0"),
        ({"name": "car", "wheels": "3"}, "toy.wheels: got '3'; expected int > 0"),
        ({"name": "car", "wheels": True}, "toy.wheels: got True; expected int > 0"),
        ({"name": "car", "wheels": None}, "toy.wheels: got None; expected int > 0"),
        ({"name": "car", "speed": True}, "toy.speed: got True; expected float > 0"),
        ({"name": "car", "speed": float("nan")}, "toy.speed: got nan; expected float > 0, finite"),
        ({"name": "car", "speed": float("inf")}, "toy.speed: got inf; expected float > 0, finite"),
        ({"name": "car", "sizes": [1, 2.5]}, "toy.sizes.1: got 2.5; expected a valid integer"),
        ({"name": "car", "sizes": 3}, "toy.sizes: got 3; expected list of int"),
        ({"name": "car", "colour": "gren"}, "toy.colour: got 'gren'; expected 'red' or 'green'; did you mean 'green'?"),
        ({"name": "car", "parts": {"horn": 1}}, "toy.parts.horn: got 1; expected an object"),
        ({"name": "car", "parts": [1]}, "toy.parts: got [1]; expected mapping"),
        ({"name": "car", "wheels": object}, "toy.wheels: got <class 'object'>; expected int > 0"),
        ({"name": "kite", "length": 1, "tail": 1}, "toy.tail: got 1; expected bool"),
        ({"name": "kite", "length": 1, "tail": "yes"}, "toy.tail: got 'yes'; expected bool"),
    ],
)
def test_refused_with(toys: Registry, node: Mapping[str, Any], expected: str) -> None:
    """Every wrong node is refused in one line with the dotted key, the value and what is allowed."""
    assert refusal(toys, node) == expected


def test_key_to_blame(toys: Registry) -> None:
    """Nested nodes are blamed by the key they are given."""
    assert refusal(toys, {"name": "car", "wheels": 0}, "shop.toy").startswith("shop.toy.wheels:")
    assert refusal(toys, {"name": "zeppelin"}, "shop.toy").startswith("shop.toy.name:")


def test_long_values_are_shortened() -> None:
    """An error shows the beginning and the end of a long value."""
    with pytest.raises(ConfigError) as caught:
        validate("x" * 10_000, int, "toy.wheels")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        (None, int | None, None),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2], tuple[int, int], (1, 2)),
        ([[1, 2], [3]], tuple[tuple[int, ...], ...], ((1, 2), (3,))),
        (5, int | tuple[int, ...], 5),
        ([5], int | tuple[int, ...], (5,)),
        ("auto", Literal["auto"] | Annotated[int, Gt(0)], "auto"),
        ({"a": {"b": [1]}}, Mapping[str, Mapping[str, Any]], {"a": {"b": [1]}}),
        ([{"kind": "conv"}], tuple[Mapping[str, Any], ...], ({"kind": "conv"},)),
        (1e-30, Annotated[float, Gt(0)] | None, 1e-30),
    ],
)
def test_accepted_values(value: Any, annotation: Any, expected: Any) -> None:
    """What fits comes back as plain Python, lists as tuples where a tuple is meant, integers as floats for floats."""
    checked = validate(value, annotation, "k")
    assert checked == expected
    assert type(checked) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ([1, 2, 3], tuple[int, int], "k: got [1, 2, 3]; expected list of 2 int"),
        ([], Annotated[tuple[int, ...], MinLen(1)], "k: got []; expected list of int of length >= 1"),
        (0.5, Annotated[float, Ge(0), Lt(0.5)], "k: got 0.5; expected float >= 0 and < 0.5"),
        (-1, Annotated[float, Gt(0)] | None, "k: got -1; expected float > 0 or null"),
        ([1.0, float("inf")], tuple[float, ...], "k: got [1.0, inf]; expected list of float, finite"),
        (True, Literal[1, 2], "k: got True; expected 1 or 2"),
        (1, Literal[True], "k: got 1; expected True"),
        ("aut", Literal["auto"] | int, "k: got 'aut'; expected 'auto' or int; did you mean 'auto'?"),
        ([1, "x"], int | tuple[int, ...], "k: got [1, 'x']; expected int or list of int"),
    ],
)
def test_refused_values(value: Any, annotation: Any, expected: str) -> None:
    """What does not fit is refused with the annotation in a user's words."""
    with pytest.raises(ConfigError) as caught:
        validate(value, annotation, "k")
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, "text"),
        (Any, "anything"),
        (dict[str, int], "mapping"),
        (Mapping[str, Mapping[str, Any]], "mapping"),
        (tuple[int, ...] | None, "list of int or null"),
        (tuple[Annotated[int, Gt(0)], ...], "list of int > 0"),
        (Literal["a"] | None, "'a' or null"),
    ],
)
def test_type_names(annotation: Any, expected: str) -> None:
    """Annotations are shown as a user reads them."""
    assert type_name(annotation) == expected


def test_settings_carry_default_and_help(toys: Registry) -> None:
    """A setting knows its annotation, default and docstring line; continued lines are joined."""
    settings = toys.settings("car")
    assert list(settings) == ["colour", "parts", "wheels", "sizes", "speed"]  # the group's own first
    assert settings["sizes"] == Setting("sizes", tuple[int, ...], (3, 3), "of the wheels, in centimetres.")
    assert settings_of(make_kite)["length"].required


def test_argument_help_reads_shared_entries_and_stops() -> None:
    """`a, b: text` documents both, and the section ends where the indentation does."""
    text = argument_help(
        "Title.\n\nArgs:\n    a, b: both of\n        them.\n    c: third: with colon.\n\nShapes: d: no."
    )
    assert text == {"a": "both of them.", "b": "both of them.", "c": "third: with colon."}


def test_duplicates_are_refused(toys: Registry) -> None:
    """A taken name is refused, and registering the very same thing again is not."""
    toys.register("car")(Car)
    with pytest.raises(ConfigError, match="toy 'car' is already registered by"):
        toys.register("car")(make_kite)
    with pytest.raises(ValueError, match="already registered"):  # ConfigError is of the ValueError family
        toys.register("kite")(Car)


def package_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **files: str) -> Registry:
    """A registry over a package that lies where dlrun's own rooms lie, as far as the registry can tell."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(f"from dlrun.registry import Registry\nROOM = Registry('room', '{name}')\n")
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__(name)
    room = sys.modules[name].ROOM
    monkeypatch.setattr(room, "_files", lambda: {file.rstrip("_"): file for file in files})
    return room


def entry(package: str, name: str) -> str:
    """Source text of an entry."""
    return f"from {package} import ROOM\n\n@ROOM.register('{name}')\ndef build(): return '{name}'\n"


def test_lookup_imports_that_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from files alone, a look-up imports one file, and a trailing underscore is no part of a name."""
    room = package_of(tmp_path, monkeypatch, "room_a", one=entry("room_a", "one"), json_=entry("room_a", "json"))
    assert room.names() == ["json", "one"]
    assert not {"room_a.one", "room_a.json_"} & set(sys.modules)
    assert room.build({"name": "json"}) == "json"
    assert "room_a.json_" in sys.modules
    assert "room_a.one" not in sys.modules


def test_shipped_names_cannot_be_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shipped name is refused to others whether or not its file was imported before."""
    room = package_of(tmp_path, monkeypatch, "room_b", one=entry("room_b", "one"))
    with pytest.raises(ConfigError, match="room 'one' is shipped with dlrun and cannot be shadowed"):
        room.register("one")(Car)
    assert room.build({"name": "one"}) == "one"
    with pytest.raises(ConfigError, match="room 'one' is shipped with dlrun and cannot be shadowed"):
        room.register("one")(Car)


def test_import_setting_loads_a_users_module(toys: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`import: module` beside `name:` runs the user's module before the name is looked up."""
    monkeypatch.setitem(sys.modules, "toy_shop", type(sys)("toy_shop"))
    sys.modules["toy_shop"].TOYS = toys  # type: ignore[attr-defined]
    (tmp_path / "my_toys.py").write_text(
        "from toy_shop import TOYS\n\n@TOYS.register('boat')\ndef boat(*, sails: int = 1): return sails\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert toys.build({"name": "boat", "import": "my_toys", "sails": 2}) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "toy.import: no module 'my_module' in the current folder ("),
        (
            "import not_there",
            "toy.import: importing 'my_module' failed: ModuleNotFoundError: No module named 'not_there'",
        ),
        ("def (", "toy.import: importing 'my_module' failed: SyntaxError: "),
        ("1 / 0", "toy.import: importing 'my_module' failed: ZeroDivisionError: division by zero"),
        (
            "from dlrun.models import MODELS\nMODELS.register('lenet')(dict)",
            "toy.import: importing 'my_module' failed: ConfigError: model 'lenet' is",
        ),
    ],
)
def test_users_module_that_fails(
    toys: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: str
) -> None:
    """A user's module that is missing, broken or greedy is refused in one line."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    if text is not None:
        (tmp_path / "my_module.py").write_text(text)
    assert refusal(toys, {"name": "car", "import": "my_module"}).startswith(expected)


def test_entry_points_of_installed_packages(toys: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not shipped is looked for in the packages that declare `dlrun.components`."""
    monkeypatch.setitem(sys.modules, "toy_shop", type(sys)("toy_shop"))
    sys.modules["toy_shop"].TOYS = toys  # type: ignore[attr-defined]
    (tmp_path / "kiosk.py").write_text(
        "from toy_shop import TOYS\n\n@TOYS.register('drum')\ndef drum(*, loud: bool = True): return loud\n"
    )
    meta = tmp_path / "kiosk-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: kiosk\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[dlrun.components]\nkiosk = kiosk\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry_module._import_entry_points.cache_clear()
    assert toys.build({"name": "drum"}) is True
    registry_module._import_entry_points.cache_clear()


def test_with_setting_names_all_owners(toys: Registry) -> None:
    """The entries that have a setting, for errors of regularization."""
    assert toys.with_setting("tail") == ["kite"]
    assert toys.with_setting("colour") == ["car", "kite"]
    assert toys.with_setting("nothing") == []
