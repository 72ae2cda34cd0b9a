"""Everything that a study shows, written beside its runs from their records alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.figure import Drawing, Dynamics, LearningCurves, PassAtK
from analysis.load import Runs, suites_of
from analysis.load import runs as load_runs
from analysis.panel import draw, save, styled
from analysis.style import looks
from analysis.table import Table
from workbench.durable import new_file
from workbench.identity import nearest
from workbench.study import Study

Output = Table | Drawing


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
) -> Report:
    """Writes a study's tables and figures into `<root>/reports/<study>`.

    Every output is checked before the first is drawn, also those that `only` leaves out.

    Args:
        study: whose runs are reported.
        outputs: those of the study file; ones of other studies are left to their own reports.
        root: the tracking folder.
        only: names of the outputs to write; None writes all.

    Raises:
        ValueError: a wrong declaration, an unknown name in `only`, or no finished run.
    """
    declared = [each for each in outputs if each.study == study] or list(defaults(study))
    wanted = _chosen(declared, only)
    for each in declared:
        each.check()
    runs = load_runs(study, root)
    if not runs.kept:
        raise ValueError(
            f"study {study.name!r} has no finished run under {root} "
            f"({len(runs.missing)} to train); run it first"
        )
    folder = root / "reports" / study.name
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    notes: list[str] = []
    for each in wanted:
        if isinstance(each, Table):
            paths += write_table(each, runs, folder)
        else:
            drawn, left_out = write_figure(each, runs, folder)
            paths += drawn
            notes += left_out
    return _summary(wanted, runs, folder, paths, notes)


def write_table(table: Table, runs: Runs, folder: Path) -> list[Path]:
    """Writes a table as Markdown, LaTeX and CSV."""
    sheet = table.sheet(runs)
    texts = {"md": sheet.markdown(), "tex": sheet.latex(), "csv": sheet.csv()}
    paths = [folder / f"{table.name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with new_file(path) as handle:
            handle.write(text.encode())
    return paths


def write_figure(figure: Drawing, runs: Runs, folder: Path) -> tuple[list[Path], list[str]]:
    """Writes a figure as PDF, SVG and PNG; returns the files, and a note on each panel left out."""
    found = figure.panels(runs)
    if not found.panels:
        return [], [f"{figure.name} is not drawn: {'; '.join(found.left_out)}."]
    # Looks are of all the study's arms, so that an arm keeps its colour in every figure.
    keys = dict.fromkeys(figure.keys(tuple(figure.study.recipes)).values())
    with styled():
        paths = save(draw(found.panels, looks(keys), found.note), folder, figure.name)
    return paths, [f"{figure.name}: {'; '.join(found.left_out)}."] if found.left_out else []


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


def _summary(
    wanted: Sequence[Output], runs: Runs, folder: Path, paths: list[Path], notes: list[str]
) -> Report:
    table = next((each for each in wanted if isinstance(each, Table)), None)
    if table is None:
        return Report(folder, tuple(paths), (), (), (*runs.notes, *notes))
    sheet = table.sheet(runs)
    columns = tuple(head.title for head in sheet.heads)
    rows = tuple(tuple(entry.plain for entry in row) for row in sheet.rows)
    return Report(folder, tuple(paths), columns, rows, (*sheet.notes, *notes))
