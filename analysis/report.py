"""Everything that a study shows, written beside its runs from their records alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.declared import Declared
from analysis.figure import Drawing, Dynamics, LearningCurves, PassAtK
from analysis.forest import forest
from analysis.load import Runs, suites_of
from analysis.load import runs as load_runs
from analysis.output import Output, Tabular
from analysis.page import Links, Shown, page
from analysis.panel import draw, save, styled
from analysis.sheet import Sheet
from analysis.style import looks
from analysis.table import Table
from workbench.durable import make_folder, new_file, sweep
from workbench.identity import nearest
from workbench.study import Study

PAGE = "report.html"


class NoRuns(ValueError):
    """A study none of whose runs is finished, so that there is nothing to report."""


@dataclass(frozen=True)
class Report:
    """What was written, and the main table for the terminal.

    Attributes:
        folder: where it lies.
        paths: of every file, in the order of the outputs.
        columns: titles of the first table.
        rows: its cells, without emphasis; empty if no table is among the outputs.
        notes: on the first table, and on whatever could not be drawn.
    """

    folder: Path
    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def defaults(study: Study) -> tuple[Output, ...]:
    """What a study shows that declares nothing: results, learning curves, dynamics, Pass@k."""
    shown: list[Output] = [
        Table("results", study),
        LearningCurves("learning-curves", study),
        Dynamics("dynamics", study),
    ]
    pass_at_k = PassAtK("pass-at-k", study)
    if any(len(pass_at_k.ks(suite)) > 1 for suite in suites_of(study).names):
        shown.append(pass_at_k)  # one k would be the table again
    return tuple(shown)


def report(
    study: Study,
    outputs: Iterable[Output],
    root: Path,
    only: str | Sequence[str] | None = None,
    *,
    source: Path | None = None,
    links: Links = Links(),
) -> Report:
    """Writes a study's tables and figures, and the page of them all, into `<root>/reports/<study>`.

    Every output is checked before the first is drawn, also those that `only` leaves out.

    Args:
        study: whose runs are reported.
        outputs: those of the study file; ones of other studies are left to their own reports.
        root: the tracking folder.
        only: names of the outputs to write, without the page; None writes all.
        source: the folder that the runs are read from, if it is not the tracking folder.
        links: to the runs in MLflow.

    Raises:
        NoRuns: no run is finished.
        ValueError: a wrong declaration, or an unknown name in `only`.
    """
    declared = [each for each in outputs if each.study == study] or list(defaults(study))
    wanted = _chosen(declared, only)
    for each in declared:
        each.check()
    runs = load_runs(study, source or root)
    if not runs.kept:
        raise NoRuns(
            f"study {study.name!r} has no finished run under {source or root} "
            f"({len(runs.missing)} to train); run it first"
        )
    folder = root / "reports" / study.name
    make_folder(folder)
    sweep(folder.parent)
    shown = [write(each, runs, folder) for each in wanted]
    tests = [each for each in wanted if isinstance(each, Declared)]
    shown += [write_forest(each, runs.of(each.needed), folder) for each in tests]
    paths = [path for each in shown for path in each.paths]
    if only is None:
        paths.append(folder / PAGE)
        _write_text(paths[-1], page(runs, shown, links))
    return _summary(shown, runs, folder, paths)


def write(output: Output, runs: Runs, folder: Path) -> Shown:
    """Writes one output, and gives what the page shows of it."""
    runs = runs.of(output.needed)
    if isinstance(output, Tabular):
        sheet = output.sheet(runs)
        return Shown(output, tuple(write_table(output.name, sheet, folder)), sheet)
    assert isinstance(output, Drawing)
    return write_figure(output, runs, folder)


def write_table(name: str, sheet: Sheet, folder: Path) -> list[Path]:
    """Writes a table as Markdown, LaTeX and CSV."""
    texts = {"md": sheet.markdown(), "tex": sheet.latex(), "csv": sheet.csv()}
    paths = [folder / f"{name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        _write_text(path, text, "tables")
    return paths


def write_forest(declared: Declared, runs: Runs, folder: Path) -> Shown:
    """Writes declared differences as a figure too; no file where none has common runs."""
    with styled():
        drawn = forest(declared, runs)
        paths = [] if drawn is None else save(drawn, folder, declared.name)
    return Shown(declared, tuple(paths))


def write_figure(figure: Drawing, runs: Runs, folder: Path) -> Shown:
    """Writes a figure as PDF, SVG and PNG, with a note on each panel that is left out."""
    found = figure.panels(runs)
    if not found.panels:
        return Shown(figure, note=f"{figure.name} is not drawn: {'; '.join(found.left_out)}.")
    # Looks are of all the study's arms, so that an arm keeps its colour in every figure.
    keys = dict.fromkeys(figure.keys(tuple(figure.study.recipes)).values())
    with styled():
        drawn = draw(found.panels, looks(keys), found.note, found.columns)
        paths = save(drawn, folder, figure.name)
    note = f"{figure.name}: {'; '.join(found.left_out)}." if found.left_out else ""
    return Shown(figure, tuple(paths), note=note)


def _write_text(path: Path, text: str, point: str = "") -> None:
    with new_file(path, point=point) as handle:
        handle.write(text.encode())


def _chosen(declared: Sequence[Output], only: str | Sequence[str] | None) -> list[Output]:
    """The outputs of those names, in their own order; two of one name are refused."""
    names = [each.name for each in declared]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two outputs are named {name!r}; a name is that of their files")
    wanted = names if only is None else [only] if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in names:
            raise ValueError(f"no output {name!r}; {nearest(name, names)}")
    return [each for each in declared if each.name in wanted]


def _summary(shown: Sequence[Shown], runs: Runs, folder: Path, paths: Sequence[Path]) -> Report:
    notes = [each.note for each in shown if each.note]
    sheet = next((each.sheet for each in shown if isinstance(each.output, Table)), None)
    if sheet is None:
        return Report(folder, tuple(paths), (), (), (*runs.notes, *notes))
    columns = tuple(head.title for head in sheet.heads)
    rows = tuple(tuple(entry.plain for entry in row) for row in sheet.rows)
    return Report(folder, tuple(paths), columns, rows, (*sheet.notes, *notes))
