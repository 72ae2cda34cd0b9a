"""What the `workbench` commands do with a study's outputs: draw them, show them, keep them."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.durable import new_file
from workbench.provenance import versions
from workbench.study import Study
from workbench.studyfile import Mistake, StudyFile
from workbench.terminal import console, grid
from workbench.tracking import forget_connections, log_report, page_of, state_of, store_uri

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


def show_again(file: StudyFile, study: Study, root: Path, jobs: "Sequence[Job]") -> bool:
    """Prints the report, if neither records nor store have changed since both were made to agree.

    So a finished study is looked through in the time that it takes to import, without MLflow.
    """
    note = _read_note(study, root)
    state = state_of(store_uri(root))
    if state is None or note.get("store") != state or note["mark"] != _mark(file, study, jobs):
        return False
    _print(note, _folder(study, root))
    return True


def update(
    file: StudyFile, study: Study, root: Path, jobs: "Sequence[Job]", mirrored: bool
) -> None:
    """What `write` does, but where nothing has changed since the last time it only prints.

    `mirrored` says whether MLflow has all of the jobs' records.
    """
    links, mark, note = _links(study, root), _mark(file, study, jobs), _read_note(study, root)
    if (note.get("mark"), note.get("links")) == (mark, repr(links)):
        _print(note, _folder(study, root))
    else:
        written, kept = _draw(file, study, root, links)
        if not kept:
            return
        note = {"mark": mark, "links": repr(links), **_summary(written)}
    uri = store_uri(root)
    forget_connections(uri)
    with new_file(_note_path(study, root), "w", point="drawn") as handle:
        json.dump({**note, "store": state_of(uri) if mirrored else None}, handle)


def _folder(study: Study, root: Path) -> Path:
    return root / "reports" / study.name


def _note_path(study: Study, root: Path) -> Path:
    """Where it stands what a report was drawn from, and what of it is printed."""
    return root / "reports" / f".{study.name}.json"


def _read_note(study: Study, root: Path) -> dict[str, Any]:
    """The note on a report every file of which is there; else nothing."""
    path = _note_path(study, root)
    try:
        note = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return {}
    whole = all((_folder(study, root) / name).exists() for name in note.get("files", ()))
    return note if whole else {}


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
    _print(_summary(written), written.folder, page=only is None)
    logged = None
    if only is None:
        logged = _mlflow(lambda: log_report(study, written.folder, store_uri(root)))
    return written, logged is not None


def _summary(written: "Report") -> dict[str, Any]:
    """What is printed of a report."""
    shown = {"columns": written.columns, "rows": written.rows, "notes": written.notes}
    return {"files": [path.name for path in written.paths], **shown}


def _print(shown: dict[str, Any], folder: Path, page: bool = True) -> None:
    terminal = console()
    if shown["rows"]:
        table = grid(*shown["columns"])
        for row in shown["rows"]:
            table.add_row(*row)
        terminal.print(table)
    for note in shown["notes"]:
        terminal.print(note)
    terminal.print(f"report    {folder} ({len(shown['files'])} files)")
    if page:
        terminal.print(f"page      {folder / 'report.html'}")


def _mark(file: StudyFile, study: Study, jobs: "Sequence[Job]") -> str:
    """A hash of all that a report follows from but its links: outputs, records, code, packages."""
    read = [*_files_of("analysis"), *(p for p in _files_of("workbench") if p.suffix == ".py")]
    for job in jobs:
        kinds = (".json", ".jsonl", ".parquet")
        read += sorted(path for path in job.run.path.rglob("*") if path.suffix in kinds)
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in read]
    parts = (study, outputs(file, study), stamps, sorted(versions().items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _files_of(package: str) -> list[Path]:
    """The code and data of a package, which is found and not imported."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    found = (path for path in Path(spec.origin).parent.rglob("*") if path.is_file())
    return sorted(path for path in found if path.suffix != ".pyc")


def _source(study: Study, root: Path, given: str | None) -> Path | None:
    """The folder that a report is read from: the tracking folder, another, or a copy of MLflow."""
    if given is None:
        return None
    if is_uri(given):
        from analysis.tracked import fetch

        return fetch(study, given, root / "tracked")
    return folder_of(given)


def is_uri(given: str) -> bool:
    """Whether what `--from` says is a tracking URI and not a folder."""
    return "://" in given or given == "databricks"


def folder_of(given: str) -> Path:
    """The folder that `--from` says.

    Raises:
        Mistake: there is none.
    """
    path = Path(given).resolve()
    if not path.is_dir():
        raise Mistake(f"no folder {given}; --from takes a folder or a tracking URI")
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
