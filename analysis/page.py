"""The one page of a study: question, results, figures, what was run and with what, as HTML.

It needs no network: style is in the page and figures are in it as SVG. Whatever comes from a
study or a record is escaped.
"""

from base64 import b64encode
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any

from analysis.load import Runs, untrained
from analysis.output import Output
from analysis.records import attempts, data
from analysis.sheet import Sheet
from workbench.plan import Planned, steps_of
from workbench.problems.contamination import WORDS
from workbench.study import Study, differences

STYLE = Path(__file__).with_name("page.css")

_ABSENT = "(absent)"


@dataclass(frozen=True)
class Links:
    """Where MLflow shows the study and its runs.

    Attributes:
        experiment: address of the study's experiment; empty if there is none.
        runs: address of each run, by label and seed.
    """

    experiment: str = ""
    runs: Mapping[tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """One output as it was written.

    Attributes:
        output: what was declared.
        paths: its files, of which an SVG is shown.
        sheet: its table, if it is one.
        note: what it left out, in a sentence.
    """

    output: Output
    paths: tuple[Path, ...] = ()
    sheet: Sheet | None = None
    note: str = ""

    @property
    def title(self) -> str:
        """What it is called on the page."""
        named = self.output.name.replace("-", " ").replace("_", " ")
        return self.output.title or named[:1].upper() + named[1:]


def page(runs: Runs, shown: Sequence[Shown], links: Links = Links()) -> str:
    """The whole page as HTML; the same runs and outputs give the same text."""
    study = runs.study
    tables = [each for each in shown if each.sheet is not None]
    figures = [each for each in shown if each.sheet is None and each.paths]
    notes = [each.note for each in shown if each.note]
    sections = [
        ("results", "Results", "".join(map(_table, tables[:1]))),
        ("tables", "Tables", "".join(map(_table, tables[1:]))),
        ("figures", "Figures", "".join(map(_figure, figures))),
        ("left-out", "Left out", _list(notes)),
        ("runs", "What was run", _plan(runs) + _arms(runs, links)),
        ("provenance", "Provenance", _provenance(runs) + _data(runs)),
    ]
    sections = [section for section in sections if section[2]]
    menu = " ".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "\n".join(
        f'<section id="{key}"><h2>{title}</h2>\n{text}</section>' for key, title, text in sections
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(study.name)}</title>
<style>
{STYLE.read_text()}</style></head>
<body>
<header><h1>{escape(study.name)}</h1>
{_question(study)}
<p class="summary">{escape(_summary(runs))}{_experiment(links)}</p>
<nav>{menu}</nav></header>
<main>
{body}
</main>
</body></html>
"""


# --- the top --------------------------------------------------------------------------------------


def _question(study: Study) -> str:
    """The study's question: its first paragraph large, indented ones as they are typed."""
    blocks = [block for block in study.question.split("\n\n") if block.strip()]
    found = []
    for number, block in enumerate(blocks):
        if block.startswith(("    ", "\t")):
            found.append(f"<pre>{escape(dedent(block))}</pre>")
        else:
            kind = ' class="question"' if number == 0 else ""
            found.append(f"<p{kind}>{escape(' '.join(block.split()))}</p>")
    return "\n".join(found)


def _summary(runs: Runs) -> str:
    study, total = runs.study, len(runs.kept) + len(runs.missing)
    seeds = tuple(study.seeds)
    arms, each = _count(len(study.recipes), "arm"), _count(len(seeds), "seed")
    return f"{arms}, {each}: {len(runs.kept)} of {_count(total, 'run')} finished."


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _experiment(links: Links) -> str:
    return f' <a href="{escape(links.experiment)}">In MLflow</a>' if links.experiment else ""


# --- outputs --------------------------------------------------------------------------------------


def _table(shown: Shown) -> str:
    assert shown.sheet is not None
    return f"<h3>{escape(shown.title)}</h3>\n{shown.sheet.html()}{_files(shown)}"


def _figure(shown: Shown) -> str:
    (svg,) = (path for path in shown.paths if path.suffix == ".svg")
    encoded = b64encode(svg.read_bytes()).decode()
    title = escape(shown.title)
    return (
        f'<figure><figcaption>{title}</figcaption>\n<img alt="{title}" loading="lazy" '
        f'src="data:image/svg+xml;base64,{encoded}">\n{_files(shown)}</figure>\n'
    )


def _files(shown: Shown) -> str:
    """Links to the files beside the page."""
    links = (
        f'<a href="{escape(path.name)}">{path.suffix.removeprefix(".").upper()}</a>'
        for path in shown.paths
    )
    return f'<p class="files">{" ".join(links)}</p>\n'


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


# --- what was run ---------------------------------------------------------------------------------


def _plan(runs: Runs) -> str:
    """Seeds, evaluation and the recipe that arms are told by."""
    study = runs.study
    label = _reference(study)
    recipe = study.recipes[label]
    rows = {
        "Seeds": ", ".join(map(str, study.seeds)),
        "Evaluation": str(study.evaluation),
        "Suites": ", ".join(runs.suites.inside)
        + (
            f"; out of distribution: {', '.join(runs.suites.outside)}"
            if runs.suites.outside
            else ""
        ),
        f"Recipe of {label}": str(recipe),
    }
    body = "".join(
        f'<tr><th class="text" scope="row">{escape(key)}</th>'
        f'<td class="text"><code>{escape(value)}</code></td></tr>'
        for key, value in rows.items()
    )
    return f'<div class="wide"><table class="facts">{body}</table></div>\n'


def _reference(study: Study) -> str:
    """The arm that others are told by: the untrained one, or else the first."""
    labels = list(study.recipes)
    return next((each for each in labels if untrained(study.recipes[each])), labels[0])


def _arms(runs: Runs, links: Links) -> str:
    """A row for each arm: its runs, its steps, and how its recipe differs."""
    study = runs.study
    base = _reference(study)
    rows = []
    for label, recipe in study.recipes.items():
        changed = _differences(study, base, label)
        lines = "<br>".join(f"<code>{escape(line)}</code>" for line in changed)
        cells = (escape(label), _seeds(runs, label, links), str(steps_of(recipe)), lines)
        sides = ("text", "text", "number", "text")
        row = "".join(
            f'<td class="{side}">{cell}</td>' for side, cell in zip(sides, cells, strict=True)
        )
        rows.append(f"<tr>{row}</tr>")
    titles = ("Arm", "Seeds", "Steps", f"Differs from {base} in")
    heads = "".join(f'<th class="text" scope="col">{escape(title)}</th>' for title in titles)
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table class="arms"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _differences(study: Study, base: str, label: str) -> list[str]:
    """Fields that differ, each as deep as both recipes have it."""
    found = differences(study.recipes[base], study.recipes[label])
    both = {key: pair[1] for key, pair in found.items() if _ABSENT not in pair}
    deepest = [key for key in both if not any(other.startswith(f"{key}.") for other in both)]
    return [f"{key} = {both[key]}" for key in deepest]


def _seeds(runs: Runs, label: str, links: Links) -> str:
    """The seeds of an arm, linked where MLflow has the run, struck out where it is not finished."""
    finished = [_seed(each, links) for each in runs.kept if each.cell.label == label]
    missing = [f"<del>{each.cell.seed}</del>" for each in runs.missing if each.cell.label == label]
    return " ".join([*finished, *missing])


def _seed(planned: Planned, links: Links) -> str:
    address = links.runs.get((planned.same_as or planned.cell.label, planned.cell.seed), "")
    seed = str(planned.cell.seed)
    return f'<a href="{escape(address)}">{seed}</a>' if address else seed


# --- provenance -----------------------------------------------------------------------------------


def _provenance(runs: Runs) -> str:
    """Each state of code, packages and machine, with the number of attempts under it."""
    counts: dict[tuple[str, ...], int] = {}
    for each in runs.kept:
        for attempt in attempts(each.run):
            counts[_state(attempt)] = counts.get(_state(attempt), 0) + 1
    titles = ("Attempts", "Commit", "Devices", "Python", "Packages")
    return _facts(titles, [(str(number), *state) for state, number in counts.items()], {0})


def _facts(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int]) -> str:
    """Rows of plain text under titles, none without rows; `numbers` are columns.

    A column that has no value in any row is left out.
    """
    if not rows:
        return ""
    filled = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    sides = ["number" if at in numbers else "text" for at in filled]
    heads = _cells("th", [titles[at] for at in filled], sides, ' scope="col"')
    body = "\n".join(f"<tr>{_cells('td', [row[at] for at in filled], sides)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="facts"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _cells(tag: str, texts: Sequence[str], sides: Sequence[str], more: str = "") -> str:
    each = zip(texts, sides, strict=True)
    return "".join(f'<{tag} class="{side}"{more}>{escape(text)}</{tag}>' for text, side in each)


def _state(attempt: Mapping[str, object]) -> tuple[str, ...]:
    """What can change a result, in words."""
    commit = str(attempt.get("commit") or "no checkout")[:12]
    dirty = f" and changes ({attempt.get('diff')})" if attempt.get("dirty") else ""
    devices, packages = attempt.get("devices"), attempt.get("packages")
    named = ", ".join(map(str, devices)) if isinstance(devices, list) else ""
    versions = packages.items() if isinstance(packages, dict) else ()
    listed = ", ".join(f"{name} {version}" for name, version in versions)
    return commit + dirty, named, str(attempt.get("python", "")), listed


def _data(runs: Runs) -> str:
    """What every part of the data is and was read from, once however many runs had the same."""
    found = [datum for each in runs.kept if (datum := data(each.run)) is not None]
    titles = ("Data", "Part", "Problems", "SHA-256", "Source", "Revision", "Rows", "Left out")
    overlap = f"Share {WORDS} words in a row with training"
    rows = dict.fromkeys(row for datum in found for row in _parts(datum))
    return _facts((*titles, overlap), list(rows), {2, 6, 8})


def _parts(datum: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each part, training first, and for tables that only demonstrations are from."""
    parts, name = datum["parts"], str(datum["name"])
    origins = {origin["part"]: origin for origin in datum["origins"]}
    shared = {each["suite"]: str(len(each["shared"])) for each in datum["overlap"]}
    first = [part for part in ("train", "validation", *origins) if part in parts or part in origins]
    return [
        (name, part, *_content(parts.get(part)), *_origin(origins.get(part)), shared.get(part, ""))
        for part in dict.fromkeys([*first, *parts])
    ]


def _content(part: Mapping[str, Any] | None) -> tuple[str, str]:
    return ("", "") if part is None else (str(part["problems"]), part["sha256"][:12])


def _origin(origin: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """Source, revision, rows and those that were left out; nothing of what no table has."""
    if origin is None:
        return "", "", "", ""
    revision = str(origin["revision"] or "")[:12]
    pinned = "" if origin["pinned"] or not revision else " (not pinned)"
    left_out = ", ".join(f"{count} {reason}" for reason, count in origin["left_out"].items())
    return origin["source"], revision + pinned, str(origin["rows"]), left_out
