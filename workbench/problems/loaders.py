"""Data sets by value: the embedded world made on the spot, a corpus read from files or the hub.

The only file that imports `datasets`. Files are read as they are, without its cache of copies.
"""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from workbench.identity import nearest
from workbench.problems import published
from workbench.problems.arithmetic import KINDS, arithmetic
from workbench.problems.corpus import Corpus, Rows
from workbench.problems.problem import Dataset, Origin, Problem, Suite
from workbench.problems.reading import Row, demonstrations, key_of, read
from workbench.recipe import Data
from workbench.resources import Lacking

NAMES = ("arithmetic",)
TRAIN = 600  # questions of the small world unless Data.train says otherwise
HELD_OUT, REPEATED, UNUSED = "held out for validation", "also in validation", "beyond Corpus.train"
UNMATCHED = "no question like it in training"


@lru_cache(maxsize=8)
def load(data: Data | Corpus) -> Dataset:
    """The data set, made once a process.

    Raises:
        Lacking: the hub and its cache do not give one of its tables.
        ValueError: no data set of that name; for a corpus a file, a column, a split or a
            configuration that is not there, or other contents than its revision.
    """
    if isinstance(data, Corpus):
        return _corpus(data)
    if data.name not in NAMES:
        raise ValueError(
            f"no data set {data.name!r}; {nearest(data.name, NAMES)} "
            "(data from the hub or from files is a Corpus)"
        )
    return arithmetic(TRAIN if data.train is None else data.train, data.seed)


def lacking(data: Data | Corpus) -> list[str]:
    """What of the data this machine cannot get, a sentence for each of its tables.

    Raises:
        ValueError: as `load`.
    """
    found = []
    for rows in tables_of(data) if isinstance(data, Corpus) else ():
        try:
            _table(rows)
        except Lacking as error:
            found.append(str(error))
    return found


def tables_of(corpus: Corpus) -> list[Rows]:
    """Every table of a corpus: of training, of what has tables of their own, and of its suites."""
    optional = (corpus.demonstrations, corpus.validation)
    own = [rows for rows in optional if isinstance(rows, Rows)]
    return [corpus.rows, *own, *(suite.rows for suite in corpus.suites)]


def outside(data: Data | Corpus) -> dict[str, bool]:
    """The names of the test suites, in order, and which of them are out of distribution.

    Reads no table: a report needs the names where the data may not be.
    """
    suites = data.suites if isinstance(data, Corpus) else load(data).suites
    return {suite.name: suite.out_of_distribution for suite in suites}


def size_of(data: Data | Corpus, suite: str) -> int | None:
    """Problems of a test suite, as published or else as in its table; None if that is not here."""
    if not isinstance(data, Corpus):
        return next(len(each.problems) for each in load(data).suites if each.name == suite)
    rows = next(each.rows for each in data.suites if each.name == suite)
    if rows.source in published.PROBLEMS:
        return published.PROBLEMS[rows.source]
    try:
        return len(_problems(rows, data, suite)[0])
    except Lacking:
        return None


def kinds(data: Data | Corpus) -> dict[int, str]:
    """What kind of problem each level is, where the data names it; a corpus has levels alone."""
    return {} if isinstance(data, Corpus) else KINDS


# --- a corpus -------------------------------------------------------------------------------------


def _corpus(corpus: Corpus) -> Dataset:
    training, origin = _problems(corpus.rows, corpus, "train")
    validation, training, held_out = _split(corpus, training)
    training, used = _chosen(corpus, training, validation)
    joined: tuple[Origin, ...] = ()
    if corpus.demonstrations is not None:
        training, unmatched = _joined(corpus.demonstrations, training)
        joined = (unmatched,)
    suites = [(_problems(suite.rows, corpus, suite.name), suite) for suite in corpus.suites]
    left_out = {**origin.left_out, **used}
    return Dataset(
        name=corpus.name,
        train=training,
        validation=validation,
        suites=tuple(Suite(s.name, found, s.out_of_distribution) for (found, _), s in suites),
        prompt=corpus.prompt,
        verifier=corpus.verifier,
        origins=(
            replace(origin, left_out={k: n for k, n in left_out.items() if n}),
            *held_out,
            *joined,
            *(origin for (_, origin), _ in suites),
        ),
    )


def _problems(rows: Rows, corpus: Corpus, part: str) -> tuple[tuple[Problem, ...], Origin]:
    table = _table(rows)
    found = read(table.rows, rows, f"{corpus.name}/{part}")
    if not found.problems:
        raise ValueError(
            f"{rows.source} ({rows.split}) has {len(table.rows)} rows and no problem among them: "
            f"{found.left_out}; check Rows.question={rows.question!r} and answer={rows.answer!r}"
        )
    pinned = rows.revision is not None
    origin = Origin(part, rows.source, table.revision, pinned, len(table.rows), found.left_out)
    return found.problems, origin


def _split(
    corpus: Corpus, training: tuple[Problem, ...]
) -> tuple[tuple[Problem, ...], tuple[Problem, ...], tuple[Origin, ...]]:
    """Validation, what is left for training, and where the validation came from if elsewhere.

    Which problems are held out follows from their texts alone: neither the order of the table nor
    `train` and `seed` have a part in it.
    """
    if isinstance(corpus.validation, Rows):
        validation, origin = _problems(corpus.validation, corpus, "validation")
        return validation, training, (origin,)
    if corpus.validation >= len(training):
        raise ValueError(
            f"Corpus.validation holds out {corpus.validation} of {len(training)} training problems "
            f"of {corpus.name!r}, which leaves none; use at most {len(training) - 1}"
        )
    ordered = sorted(training, key=lambda p: hashlib.sha256(key_of(p.question).encode()).digest())
    held_out = ordered[: corpus.validation]
    taken = {problem.id for problem in held_out}
    return tuple(held_out), tuple(p for p in training if p.id not in taken), ()


def _chosen(
    corpus: Corpus, training: tuple[Problem, ...], validation: tuple[Problem, ...]
) -> tuple[tuple[Problem, ...], dict[str, int]]:
    """The seed's choice of what does not occur in validation, and how many are not in it."""
    seen = {key_of(problem.question) for problem in validation}
    kept = [problem for problem in training if key_of(problem.question) not in seen]
    Random(f"train/{corpus.seed}").shuffle(kept)
    wanted = len(kept) if corpus.train is None else corpus.train
    if wanted > len(kept):
        raise ValueError(
            f"Corpus.train is {wanted}, but {corpus.name!r} has {len(kept)} training problems; "
            "use at most that, or None for all"
        )
    split = corpus.validation if isinstance(corpus.validation, int) else 0
    left = {HELD_OUT: split, REPEATED: len(training) - len(kept), UNUSED: len(kept) - wanted}
    return tuple(kept[:wanted]), left


def _joined(rows: Rows, training: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], Origin]:
    """Training problems with the demonstrations of another table, joined by question."""
    table = _table(rows)
    found = demonstrations(table.rows, rows)
    known = {key_of(problem.question) for problem in training}
    unmatched = sum(key_of(question) not in known for question in found)
    if unmatched == len(found):
        raise ValueError(
            f"none of the {len(found)} demonstrations in {rows.source} has the question of a "
            f"training problem; check Rows.question={rows.question!r}"
        )
    by_key = {key_of(question): text for question, text in found.items()}
    joined = tuple(
        replace(p, demonstration=by_key.get(key_of(p.question), p.demonstration)) for p in training
    )
    left_out = {UNMATCHED: unmatched} if unmatched else {}
    pinned = rows.revision is not None
    return joined, Origin(
        "demonstrations", rows.source, table.revision, pinned, len(table.rows), left_out
    )


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    rows: list[Row]
    revision: str | None


def _table(rows: Rows) -> _Table:
    """The rows of a file, a folder or a hub data set, and what their revision is."""
    path = Path(rows.source).expanduser()
    if os.path.isfile(path):  # Path.is_file raises on a name that is too long
        return _file(rows, path)
    if path.suffix in _READERS:
        raise ValueError(f"no file {rows.source}; {_nearest_file(path)}")
    if os.path.isdir(path) or rows.source.count("/") == 1:
        return _hub(rows, path)
    raise ValueError(
        f"Rows.source {rows.source!r} is neither a file ({', '.join(_READERS)}), nor a folder, "
        "nor a hub name such as 'openai/gsm8k'"
    )


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} in {os.getcwd()} either"
    names = sorted(each.name for each in path.parent.iterdir() if each.suffix in _READERS)
    if not names:
        return f"{path.parent} has no table at all"
    return f"in {path.parent}: {nearest(path.name, names)}"


def _file(rows: Rows, path: Path) -> _Table:
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is no table; give a file of one of: {', '.join(_READERS)}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    pin = rows.revision
    if pin is not None and (len(pin) < 8 or not found.startswith(pin)):
        raise ValueError(
            f"{path} has SHA-256 {found[:16]}..., but Rows.revision is {pin!r}: the file is not "
            f"the one that was meant, or write revision={found[:16]!r}"
        )
    return _Table(_READERS[path.suffix](path), found)


def _json(path: Path) -> list[Row]:
    found = json.loads(path.read_text())
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise ValueError(f"{path} is not a list of objects; one object a line is a .jsonl file")
    return found


def _jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text().split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {line[:80]!r}") from error
    return rows


def _csv(path: Path) -> list[Row]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def _parquet(path: Path) -> list[Row]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _hub(rows: Rows, path: Path) -> _Table:
    """A data set of the hub, or of a folder laid out as one; several configs one after another."""
    source = str(path.resolve()) if path.is_dir() else rows.source
    configs = rows.config if isinstance(rows.config, tuple) else (rows.config,)
    tables = [_builder(rows, source, config) for config in configs]
    found = [row for each in tables for row in _split_of(rows, each)]
    commit = None if path.is_dir() else tables[0].hash
    return _Table(found, commit)


def _builder(rows: Rows, source: str, config: str | None) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(source, config, revision=rows.revision)
        builder.download_and_prepare()
    except ValueError as error:  # it lists the configurations that there are
        raise ValueError(f"{rows.source}: {error}") from error
    except Exception as error:  # no network, no such name, no access: each its own exception
        reason = " ".join(str(error).split())
        raise Lacking(
            f"{rows.source} is no local file or folder, and the hub does not give it: {reason}"
        ) from error
    return builder


def _split_of(rows: Rows, builder: Any) -> list[Row]:
    splits = list(builder.info.splits)
    if rows.split not in splits:
        raise ValueError(
            f"{rows.source} has no split {rows.split!r}; {nearest(rows.split, splits)}"
        )
    return builder.as_dataset(split=rows.split).to_list()
