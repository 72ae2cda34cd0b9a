"""What the `workbench` commands do with a study's outputs: draw them, show them, keep them."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from workbench.durable import new_file
from workbench.provenance import versions
from workbench.study import Study
from workbench.studyfile import StudyFile
from workbench.terminal import console, grid
from workbench.tracking import log_report, page_of, store_uri

if TYPE_CHECKING:
    from analysis.output import Output
    from analysis.page import Links
    from analysis.report import Report
    from workbench.plan import Job

R = TypeVar("R")


def outputs(file: StudyFile, study: Study) -> "list[Output]":
    """The file's outputs of a study, alone or in tuples; none where it imports no `analysis`."""
    if "analysis" not in sys.modules:
        return []
    from analysis.output import Output

    named = vars(file.module).values()
    every = [each for value in named for each in (value if isinstance(value, tuple) else (value,))]
    return [each for each in every if isinstance(each, Output) and each.study == study]


def having(file: StudyFile, only: Sequence[str]) -> list[str]:
    """The studies that have one of the named outputs; all of them where nobody has it."""
    names = {
        variable: {output.name for output in outputs(file, study)}
        for variable, study in file.studies.items()
    }
    return [variable for variable, each in names.items() if each & set(only)] or list(names)


def write(
    file: StudyFile,
    study: Study,
    root: Path,
    only: Sequence[str] | None = None,
    source: str | None = None,
) -> None:
    """Writes the study's outputs, prints its first table and puts the page into MLflow."""
    _draw(file, study, root, _links(study, root) if only is None else None, only, source)


def update(file: StudyFile, study: Study, root: Path, jobs: "Sequence[Job]") -> None:
    """What `write` does, but where nothing has changed since the last time it only prints."""
    links = _links(study, root)
    note = root / "reports" / f".{study.name}.json"  # of what the report is drawn from
    mark = _mark(file, study, jobs, links)
    if (found := _unchanged(note, mark, root)) is not None:
        _print(found)
        return
    written, kept = _draw(file, study, root, links)
    if kept:
        shown = {"mark": mark, "files": [path.name for path in written.paths]}
        shown |= {"columns": written.columns, "rows": written.rows, "notes": written.notes}
        with new_file(note, "w", point="drawn") as handle:
            json.dump(shown, handle)


def _draw(
    file: StudyFile,
    study: Study,
    root: Path,
    links: "Links | None",
    only: Sequence[str] | None = None,
    source: str | None = None,
) -> "tuple[Report, bool]":
    """The report, and whether MLflow has it too."""
    from analysis.report import report

    extra = {"links": links} if links is not None else {}
    place = _source(study, root, source)
    written = report(study, outputs(file, study), root, only, source=place, **extra)
    _print(written, page=only is None)
    logged = None
    if only is None:
        logged = _mlflow(lambda: log_report(study, written.folder, store_uri(root)))
    return written, logged is not None


def _print(written: "Report", page: bool = True) -> None:
    terminal = console()
    if written.rows:
        table = grid(*written.columns)
        for row in written.rows:
            table.add_row(*row)
        terminal.print(table)
    for note in written.notes:
        terminal.print(note)
    terminal.print(f"report    {written.folder} ({len(written.paths)} files)")
    if page:
        terminal.print(f"page      {written.folder / 'report.html'}")


def _mark(file: StudyFile, study: Study, jobs: "Sequence[Job]", links: "Links | None") -> str:
    """A hash of all that a report follows from: outputs, records, links, code and packages."""
    import analysis

    code = sorted(Path(analysis.__file__).parent.glob("*.py"))
    records = [path for job in jobs for path in sorted(job.run.path.rglob("*.json*"))]
    records += [path for job in jobs for path in sorted(job.run.path.rglob("*.parquet"))]
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in code + records]
    parts = (study, outputs(file, study), stamps, links, sorted(versions().items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _unchanged(note: Path, mark: str, root: Path) -> "Report | None":
    """The report that lies there, if it is the one of that mark and every file of it is there."""
    from analysis.report import Report

    if not note.exists():
        return None
    try:
        seen = json.loads(note.read_text())
    except ValueError:
        return None
    folder = root / "reports" / note.stem.removeprefix(".")
    paths = tuple(folder / name for name in seen["files"])
    if seen["mark"] != mark or not all(path.exists() for path in paths):
        return None
    rows = tuple(tuple(row) for row in seen["rows"])
    return Report(folder, paths, tuple(seen["columns"]), rows, tuple(seen["notes"]))


def _source(study: Study, root: Path, given: str | None) -> Path | None:
    """The folder that a report is read from: the tracking folder, another, or a copy of MLflow."""
    if given is None:
        return None
    if "://" in given or given == "databricks":
        from analysis.tracked import fetch

        return fetch(study, given, root / "tracked")
    path = Path(given).resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {given}; --from takes a folder or a tracking URI")
    return path


def _links(study: Study, root: Path) -> "Links | None":
    from analysis.tracked import links

    uri = store_uri(root)
    return _mlflow(lambda: links(study, uri, page_of(uri)))


def _mlflow(act: Callable[[], R]) -> R | None:
    """What MLflow gives, or nothing and a line that says why: it never stands in a report's way."""
    try:
        return act()
    except Exception as error:  # whatever a store can raise
        print(f"MLflow has no part in this report: {error}".splitlines()[0], file=sys.stderr)
        return None
