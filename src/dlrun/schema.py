"""A signature as a schema: what its keyword-only parameters are, and whether a value fits an annotation.

ValueError
  ConfigError        the configuration or the data is wrong: one line for the user, exit code 1
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """The configuration or the data is wrong. The message is one line: what, where, what is allowed, nearest match."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """'; did you mean 'lenet'?' for the nearest of `choices`, or an empty string if none is near."""
    near = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


@dataclass(frozen=True)
class Setting:
    """One keyword-only parameter of a registered constructor."""

    name: str
    annotation: Any
    default: Any  # inspect.Parameter.empty when the user must give a value
    help: str = ""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def settings_of(constructor: Callable[..., Any]) -> dict[str, Setting]:
    """The keyword-only parameters of a class or function, with annotation, default and the line of its docstring."""
    hints = typing.get_type_hints(_callable(constructor), include_extras=True)
    helps = argument_help(constructor.__doc__ or "")
    fresh = {
        field.name: field.default_factory()
        for field in (dataclasses.fields(constructor) if dataclasses.is_dataclass(constructor) else ())
        if field.default_factory is not dataclasses.MISSING
    }
    return {
        p.name: Setting(p.name, hints.get(p.name, Any), fresh.get(p.name, p.default), helps.get(p.name, ""))
        for p in inspect.signature(constructor).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }


def argument_help(docstring: str) -> dict[str, str]:
    """The `Args:` section of a docstring as {name: text}, lines joined."""
    lines = inspect.cleandoc(docstring).splitlines()
    found: dict[str, str] = {}
    inside, name = False, None
    for line in lines:
        if line.strip() in ("Args:", "Attributes:"):
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and line.startswith("    ") and not line.startswith("     ") and ":" in line:
            names, text = line.strip().split(":", 1)
            name = names.strip()
            found[name] = text.strip()
        elif inside and name and line.strip():
            found[name] += " " + line.strip()
    return {n.strip(): text for names, text in found.items() for n in names.split(",")}


def validate(value: Any, annotation: Any, key: str) -> Any:
    """Checks a plain value strictly against an annotation (lists become tuples where a tuple is meant; NaN and infinity
    are never numbers) and returns it. Raises ConfigError naming `key`."""
    import pydantic  # 50 ms: only when something is checked

    try:
        text = json.dumps(value, allow_nan=False)
    except TypeError:
        raise ConfigError(f"{key}: got {_show(value)}; expected {type_name(annotation)}") from None
    except ValueError:
        raise ConfigError(f"{key}: got {_show(value)}; expected {type_name(annotation)}, finite") from None
    if _too_large(value):
        raise ConfigError(
            f"{key}: got {_show(value)}; expected {type_name(annotation)}, within 64 bits, or 3e38 as a float"
        )
    try:
        checked = _adapter(annotation).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, value, annotation, key)) from None
    if isinstance(value, bool) != isinstance(checked, bool):  # Literal[1] takes true
        raise ConfigError(f"{key}: got {_show(value)}; expected {type_name(annotation)}")
    return checked


def _too_large(value: Any) -> bool:
    """Whether an integer in `value` does not fit into 64 bits, or a float into 32: PyTorch and NumPy would stumble over it."""
    if isinstance(value, (list, tuple, Mapping)):
        return any(map(_too_large, value.values() if isinstance(value, Mapping) else value))
    return abs(value) >= (1 << 63 if isinstance(value, int) else 3.4e38) if isinstance(value, (int, float)) else False


def type_name(annotation: Any) -> str:
    """An annotation as a user reads it: `int > 0`, `'tanh' or 'relu'`, `list of int`, `float or null`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in args)
    if origin is typing.Annotated:
        return f"{type_name(args[0])} {' and '.join(filter(None, map(_bound, args[1:])))}".strip()
    if annotation is type(None):
        return "null"
    if origin in (list, tuple, set):
        inner = " and ".join(dict.fromkeys(type_name(a) for a in args if a is not Ellipsis))
        count = f"{len(args)} " if origin is tuple and Ellipsis not in args else ""
        return f"list of {count}{inner}" if inner else "list"
    if inspect.isclass(origin or annotation) and issubclass(origin or annotation, Mapping):
        return "mapping"
    if args:  # unions
        return " or ".join(dict.fromkeys(type_name(a) for a in args))
    return {str: "text", Any: "anything"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bound(constraint: Any) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "of length >=", "max_length": "of length <="}
    found = [
        f"{sign} {getattr(constraint, a)}" for a, sign in signs.items() if getattr(constraint, a, None) is not None
    ]
    nested = getattr(constraint, "metadata", None) or []
    return " and ".join(found + [b for b in map(_bound, nested) if b])


_ADAPTERS: dict[Any, Any] = {}


def _adapter(annotation: Any) -> Any:
    import pydantic

    try:
        return _ADAPTERS[annotation]
    except (KeyError, TypeError):
        pass
    config = pydantic.ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
    try:
        adapter = pydantic.TypeAdapter(annotation, config=config)
    except pydantic.PydanticUserError:  # dataclasses and typed dictionaries bring their own configuration
        adapter = pydantic.TypeAdapter(annotation)
    _ADAPTERS[annotation] = adapter
    return adapter


def _explain(error: Any, value: Any, annotation: Any, key: str) -> str:
    """One line from a pydantic error: the innermost dotted key, the value, what is expected, the nearest match."""
    first = error.errors()[0]
    inner = [str(part) for part in first["loc"] if not _is_union_branch(part)]
    where, got = key, value
    for part in inner:
        try:
            got = got[int(part)] if isinstance(got, list) else got[part]
        except (KeyError, IndexError, TypeError, ValueError):
            break
        where += f".{part}"
    if first["type"] == "extra_forbidden" or (first["type"] == "missing" and inner):
        verb = "unknown setting" if first["type"] == "extra_forbidden" else "is missing"
        return f"{key}.{'.'.join(inner)}: {verb}"
    choices = [str(c) for c in _literals(annotation)]
    expected = type_name(annotation) if where == key else str(first["msg"]).removeprefix("Input should be ")
    return f"{where}: got {_show(got)}; expected {expected}{did_you_mean(got, choices) if isinstance(got, str) else ''}"


def _show(value: Any) -> str:
    """A value on one line, long ones shortened."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    short.maxlist = short.maxdict = 8
    return short.repr(value)


def _is_union_branch(part: Any) -> bool:
    return isinstance(part, str) and (
        part.split("[")[0]
        in ("int", "float", "str", "bool", "list", "tuple", "dict", "none", "literal", "constrained-int")
        or part.startswith(("constrained", "function", "json-or-python", "lax-or-strict"))
    )


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [x for a in typing.get_args(annotation) for x in _literals(a)]


def _callable(constructor: Callable[..., Any]) -> Callable[..., Any]:
    return constructor.__init__ if inspect.isclass(constructor) else constructor
