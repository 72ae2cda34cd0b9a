"""What makes two experiments the same: values with a printed form, a canonical form and a hash.

A `Component` is a frozen dataclass that checks itself, prints as the Python that makes it and
has a fingerprint that is the same in every process. Everything that can change a result is a
component; hardware, paths and trackers are not, by type.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, dataclass_transform

from workbench.rules import Rule, Within, nearest

Canonical = None | bool | int | float | str | list[Any] | dict[str, Any]
C = TypeVar("C", bound="Component")


@dataclass_transform(frozen_default=True)
class Component:
    """A value: compares, hashes, enumerates and prints as the Python that makes it.

    A subclass only declares typed fields, with their bounds in the types (`workbench.rules`), and
    `check` where a rule is of several fields; it becomes a frozen dataclass by itself. `version` is
    part of the identity: raise it when a change of the code changes what the same fields compute.

    Raises:
        TypeError: an unknown field, one of the wrong type, or one whose value has no stable form.
        ValueError: a field outside its rule, with the nearest value inside.
    """

    version: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, repr=False)(cls)

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        known = field_names(cls)
        for name in fields:
            if name not in known:
                hint = nearest(name, known) if known else "it has no fields"
                raise TypeError(f"{cls.__name__} has no field {name!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        conform(self)
        for name in field_names(self):
            if not _is_lasting(getattr(self, name)):
                raise TypeError(_passing(self, name))
        self.check()

    def check(self) -> None:
        """Raises ValueError where the fields break a rule that types cannot say."""

    def __str__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING:  # required fields come first: no name needed
                shown.append(_python(value))
            elif value != field.default:
                shown.append(f"{field.name}={_python(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __repr__ = __str__


def field_names(value: Component | type[Component]) -> tuple[str, ...]:
    """The names of a component's fields, in order."""
    return _field_names(value if isinstance(value, type) else type(value))


@cache
def _field_names(kind: type[Component]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]


def replace(value: C, **changes: Any) -> C:
    """A copy with some fields changed; unknown ones are refused with the nearest name."""
    fields = {name: getattr(value, name) for name in field_names(value)}
    return type(value)(**{**fields, **changes})


def _python(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_python(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_python(v)}" for k, v in value.items()) + "}"
    return repr(value)


# --- types of fields ------------------------------------------------------------------------------

_MISFIT = object()


class _Broken(Exception):
    """A value, or an item of it, breaks a rule of its type."""

    def __init__(self, rule: Rule, value: Any) -> None:
        self.rule, self.value = rule, value


def conform(owner: Any) -> None:
    """Brings each field of a frozen dataclass into its type's one form.

    Raises:
        TypeError: a field of the wrong type, with its value, the type and what would be right.
        ValueError: one that breaks a rule of its type, with its value, the rule and the nearest.
    """
    kinds = _field_types(type(owner))
    for field in dataclasses.fields(owner):
        try:
            value = _conform(getattr(owner, field.name), kinds[field.name])
        except _Broken as broken:
            raise ValueError(_breach(owner, field, broken)) from None
        if value is _MISFIT:
            raise TypeError(_misfit(owner, field, kinds[field.name]))
        object.__setattr__(owner, field.name, value)


def _field_types(cls: type) -> dict[str, Any]:
    if "_types" not in cls.__dict__:
        cls._types = typing.get_type_hints(cls, include_extras=True)  # type: ignore[attr-defined]
    return cls._types  # type: ignore[attr-defined]


def _conform(value: Any, expected: Any) -> Any:
    """The value in its field's one form (1 becomes 1.0, a list a tuple), or _MISFIT."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        return _conform_to_rules(value, *arguments)
    if origin in (typing.Union, types.UnionType):
        fits = (_conform(value, choice) for choice in arguments)
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if expected is Any:
        return value
    if expected is None or expected is type(None):
        return None if value is None else _MISFIT
    if expected is float:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return _number(value) if real else _MISFIT
    if expected is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and abs(value) < 2**63 else _MISFIT  # what records can hold
    if origin is tuple:
        return _conform_tuple(value, arguments)
    kind = origin or expected
    return value if isinstance(kind, type) and isinstance(value, kind) else _MISFIT


def _conform_to_rules(value: Any, expected: Any, *rules: Rule) -> Any:
    fit = _conform(value, expected)
    for rule in rules:
        if fit is not _MISFIT and not rule.admits(fit):
            raise _Broken(rule, fit)
    return fit


def _conform_tuple(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple | range):
        return _MISFIT
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        return _MISFIT
    items = tuple(_conform(item, kind) for item, kind in zip(value, arguments, strict=True))
    return _MISFIT if any(item is _MISFIT for item in items) else items


def _number(value: float) -> Any:
    """One form per number: -0.0 is 0.0; NaN and infinities have no JSON form and are refused."""
    try:
        real = float(value)
    except OverflowError:  # an integer beyond all floats
        return _MISFIT
    return real + 0.0 if math.isfinite(real) else _MISFIT


def _breach(owner: Any, field: Any, broken: _Broken) -> str:
    given, optional = getattr(owner, field.name), type(None) in _alternatives(_plain(owner, field))
    rule = f"{broken.rule} or None" if optional else str(broken.rule)
    where = f" in {given!r}" if isinstance(given, list | tuple | range) else ""
    hint = broken.rule.hint(broken.value, field.default)
    name = f"{type(owner).__name__}.{field.name}"
    return f"{name} must be {rule}, got {broken.value!r}{where}; {hint}"


def _plain(owner: Any, field: Any) -> Any:
    """A field's type without rules."""
    return typing.get_type_hints(type(owner))[field.name]


def _misfit(owner: Any, field: Any, kind: Any) -> str:
    value, expected = getattr(owner, field.name), _plain(owner, field)
    plain = isinstance(expected, type) and not typing.get_args(expected)
    wanted = expected.__name__ if plain else re.sub(r"\b(\w+\.)+", "", str(expected))
    message = f"{type(owner).__name__}.{field.name} takes {wanted}, got {value!r}"
    if isinstance(value, type) and issubclass(value, Component):
        return f"{message}; write {value.__name__}(...) to make a value of it"
    accepted = _alternatives(expected)
    if isinstance(value, str) and {int, float} & {*accepted} and _is_number(value):
        return f"{message} (a string); write the number without quotes"
    message = f"{message} ({type(value).__name__})"
    if str in accepted and isinstance(value, int | float):
        return f"{message}; write {str(value)!r}"
    choices = [name for kind in accepted if isinstance(kind, type) for name in _choices(kind)]
    if choices:
        given = value if isinstance(value, str) else type(value).__name__
        return f"{message}; {nearest(given, choices)}"
    if any(_is_item(value, each) for each in accepted):
        return f"{message}; write several in a list, such as [{value!r}]"
    if int in accepted and isinstance(value, float) and math.isfinite(value):
        return f"{message}; {_whole(value, kind)}"
    return message + _example(field, kind)


def _is_item(value: Any, kind: Any) -> bool:
    """Whether the type is of many such values."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    many = origin in (Iterable, Sequence) or (origin is tuple and arguments[1:] == (Ellipsis,))
    return many and _conform(value, arguments[0]) is not _MISFIT


def _whole(value: float, kind: Any) -> str:
    """The nearest whole number that a type takes."""
    try:
        return f"the nearest is {_conform(round(value), kind)}"
    except _Broken as broken:
        return broken.rule.hint(round(value), None)


def _example(field: Any, kind: Any) -> str:
    """A value that a field takes: its default, or a sensible number within its bounds."""
    rules = typing.get_args(kind)[1:]
    examples = [_conform(each.such_as, kind) for each in rules if isinstance(each, Within)]
    if field.default is not dataclasses.MISSING:
        examples.insert(0, field.default)
    return f"; such as {examples[0]!r}" if examples else ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _alternatives(expected: Any) -> tuple[Any, ...]:
    """The types that a field takes: those of a union, or the one."""
    union = typing.get_origin(expected) in (typing.Union, types.UnionType)
    return typing.get_args(expected) if union else (expected,)


def _choices(kind: type) -> list[str]:
    """The names of what can be written for a type: of components, or of a declaration."""
    if typing.get_args(kind):
        return []
    if issubclass(kind, Component):
        return [each.__name__ for each in subclasses(kind) or [kind]]
    return [kind.__name__] if dataclasses.is_dataclass(kind) else []


def _is_lasting(value: Any) -> bool:
    """Whether a field's value never changes and is the same in every process."""
    if isinstance(value, tuple):
        return all(_is_lasting(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int | str | Component)


def _passing(component: Component, name: str) -> str:
    value = getattr(component, name)
    kind = type(value).__name__
    what = f"{type(component).__name__}.{name} is {value!r} ({kind}), which"
    if isinstance(value, list | set):
        return f"{what} can change; write a tuple, and tuple[...] as the field's type"
    if isinstance(value, Mapping):
        return f"{what} can change; write a tuple of pairs, or a Component class with these fields"
    return f"{what} {_NO_FORM}"


def subclasses(base: type[Component]) -> list[type[Component]]:
    """Every component class below this one, in order of definition."""
    found: list[type[Component]] = []
    for cls in base.__subclasses__():
        found += [cls, *subclasses(cls)]
    return found


# --- canonical form and fingerprint ---------------------------------------------------------------


_NO_FORM = (
    "has no stable form, so it cannot be part of an experiment's identity; use finite numbers, "
    "strings, tuples and Component classes"
)


def canonical(value: Any) -> Canonical:
    """The JSON form that identity is computed from: class names, versions and every field.

    Raises:
        TypeError: a value with no stable form (a function, a default repr); a permissive fallback
            would silently split or merge experiments.
    """
    if isinstance(value, Component):
        name = type(value).__name__
        tag = name if type(value).version == 1 else f"{name}@{type(value).version}"
        return {tag: {n: canonical(getattr(value, n)) for n in field_names(value)}}
    if isinstance(value, float):
        return value + 0.0
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    raise TypeError(f"{value!r} ({type(value).__name__}) {_NO_FORM}")


def fingerprint(value: Any) -> str:
    """A SHA-256 of the canonical form, in hex; equal values agree in every process."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def imports(value: Any) -> dict[str, str]:
    """Where each class of a value is defined, module or file: for `restore`, never hashed.

    Raises:
        TypeError: two classes of one name, which the canonical form could not tell apart.
    """
    if isinstance(value, Component):
        found = {type(value).__name__: _home(type(value))}
        inner = [getattr(value, name) for name in field_names(value)]
    else:
        found, inner = {}, list(value) if isinstance(value, list | tuple) else []
    for item in inner:
        for name, home in imports(item).items():
            join(found, name, home)
    return found


def join(homes: dict[str, str], name: str, home: str) -> None:
    """Adds where a class is defined; raises TypeError where another one has its name."""
    if homes.setdefault(name, home) != home:
        raise TypeError(
            f"two classes are named {name}, in {homes[name]} and in {home}; a record tells "
            f"classes apart by name, so call one of them otherwise, such as {name}2"
        )


def _home(cls: type) -> str:
    """A module's name, or its file's path where the module is a study file."""
    module = sys.modules[cls.__module__]
    is_file = cls.__module__ == "__main__" or cls.__module__.startswith(_FILE_MODULE)
    return str(Path(str(module.__file__)).resolve()) if is_file else cls.__module__


def restore(form: Canonical, homes: Mapping[str, str]) -> Any:
    """The value whose canonical form this is; the inverse of `canonical` given `imports`.

    Raises:
        ValueError: a class that its recorded home no longer defines, or of another version.
    """
    if isinstance(form, list):
        return tuple(restore(item, homes) for item in form)
    if not isinstance(form, dict):
        return form
    ((tag, fields),) = form.items()
    name, _, version = tag.partition("@")
    cls = getattr(load_module(homes[name]), name, None)
    if cls is None:
        raise ValueError(
            f"{homes[name]} no longer defines {name}, which a recorded run was made of"
        )
    if cls.version != int(version or 1):
        raise ValueError(
            f"{name} is now version {cls.version}; the record has version {version or 1}"
        )
    return cls(**{key: restore(item, homes) for key, item in fields.items()})


_FILE_MODULE = "workbench_file_"


def load_module(home: str) -> types.ModuleType:
    """The module of that name, or the one in that file, loaded once a process.

    Raises:
        FileNotFoundError: a path with no file behind it.
    """
    if not home.endswith(".py"):
        return importlib.import_module(home)
    path = Path(home).resolve()
    name = f"{_FILE_MODULE}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        if not path.is_file():
            raise FileNotFoundError(f"no study file {home}")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]  # a half-run file must not answer the next import
            raise
    return sys.modules[name]
