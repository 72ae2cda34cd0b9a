"""Study files: loaded, and their mistakes told with the file and the line."""

import ast
import difflib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from workbench.identity import load_module, nearest
from workbench.study import Search, Study

R = TypeVar("R")


class Mistake(Exception):
    """Something that the user can put right, as one sentence with its place."""


_UNKNOWN_ARGUMENT = re.compile(
    r"(?P<callee>[\w.]+)\(\) got an unexpected keyword argument '(?P<name>\w+)'"
)
MISTAKES = (TypeError, ValueError, FileNotFoundError, AttributeError, NameError, ImportError)


@dataclass(frozen=True)
class StudyFile:
    """A study file's module, and the studies and searches in it by the names of their variables."""

    path: Path
    module: ModuleType
    studies: dict[str, Study]
    searches: dict[str, Search] = field(default_factory=dict)

    def checked(self, variable: str, check: Callable[[Any], R]) -> R:
        """What `check` says of a study or a search; its errors become mistakes at its line.

        Raises:
            Mistake: the check raised TypeError, ValueError or FileNotFoundError.
        """
        try:
            return check({**self.studies, **self.searches}[variable])
        except MISTAKES as error:
            line = _line_of(self.path, variable)
            raise Mistake(f"{_place(self.path, line)}{_sentence(error)}") from error


def load(path: Path, name: str | None = None) -> StudyFile:
    """The studies and searches of a file, or only the one of that name.

    Raises:
        Mistake: no such file, an error in it, nothing to run in it, or none of that name.
    """
    try:
        if path.suffix != ".py":
            raise FileNotFoundError(f"a study is a Python file, got {path}")
        module = load_module(str(path))
    except SyntaxError as error:
        raise Mistake(f"{_place(path, error.lineno)}{error.msg}") from error
    except Exception as error:  # whatever the file's own code raises is a mistake in it
        raise Mistake(f"{_place(path, _line_in(path, error))}{_sentence(error)}") from error
    question = (module.__doc__ or "").strip()
    found = {k: v for k, v in vars(module).items() if isinstance(v, Study | Search)}
    if not found:
        raise Mistake(f'{path} defines no Study; write study = Study("name", [...]) in it')
    names = [each.name for each in found.values()]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise Mistake(f"{path} has two studies named {twice!r}; names tell studies apart")
    if name is not None and name not in names:
        raise Mistake(f"{path} has no study named {name!r}; {nearest(name, names)}")
    wanted = {k: v for k, v in found.items() if name in (None, v.name)}
    asked = {k: v if v.question else replace(v, question=question) for k, v in wanted.items()}
    studies = {key: value for key, value in asked.items() if isinstance(value, Study)}
    searches = {key: value for key, value in asked.items() if isinstance(value, Search)}
    return StudyFile(path, module, studies, searches)


def _place(path: Path, line: int | None) -> str:
    return f"{path}, line {line}: " if line else ""


def _line_in(path: Path, error: Exception) -> int | None:
    """The innermost line of the file that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno for f in reversed(frames) if f.filename == str(path.resolve())), None)


def _line_of(path: Path, variable: str) -> int | None:
    """The line where a module-level variable gets its value."""
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(each, ast.Name) and each.id == variable for each in targets):
            return node.lineno
    return None


def _sentence(error: Exception) -> str:
    """The error's message, with the nearest name where one was misspelt."""
    message = " ".join(str(error).split())
    if not isinstance(error, MISTAKES):
        return f"{type(error).__name__}: {message}"
    if "did you mean" in message:
        return message
    unknown = _UNKNOWN_ARGUMENT.match(message)
    if unknown is not None:
        known = _parameters(unknown["callee"], error)
        return f"{message}; {nearest(unknown['name'], known)}" if known else message
    if isinstance(error, AttributeError) and error.name:
        names = [each for each in dir(error.obj) if not each.startswith("_")]
        close = difflib.get_close_matches(error.name, names, n=1)
        return f"{message}; did you mean {close[0]}?" if close else message
    return message


def _parameters(callee: str, error: Exception) -> list[str]:
    """The keyword arguments of what was called by that qualified name; none where it is not found.

    An error of a call is raised by the caller, so the callee is among what the caller could see.
    """
    name, *inner = callee.removesuffix(".__init__").split(".")
    for value in _in_sight(error):
        if callable(value) and getattr(value, "__qualname__", None) == name:
            for each in inner:
                value = getattr(value, each)
            known = inspect.signature(value).parameters
            return [each for each in known if each != "self"]
    return []


def _in_sight(error: Exception) -> Iterator[Any]:
    """What has a name in the frames that the error passed through, or in their modules."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        values = [*frame.f_locals.values(), *frame.f_globals.values()]
        yield from values
        for value in values:
            if isinstance(value, ModuleType):
                yield from vars(value).values()
