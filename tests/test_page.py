"""The page of a study: whole, self-contained, escaped, and the same twice."""

import re
from dataclasses import asdict, replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small import SUITES, make_study, record, record_run

from analysis import Figure, Table, report
from analysis import load as loading
from analysis.page import Links, page
from analysis.report import PAGE
from analysis.sheet import Entry, Head, Sheet
from workbench import upge
from workbench.problems import Dataset, Problem, Suite, Text
from workbench.problems.contamination import overlaps
from workbench.problems.problem import Origin, digest
from workbench.recipe import Data, Evaluation, Optimizer, Recipe
from workbench.records import run_of, write_json
from workbench.schema import File
from workbench.study import Cell, Study
from workbench.training.data import description

QUESTION = """Is 1 < 2 & "so on"?

    workbench run study.py    # <train>

<script>alert(1)</script>
"""
EVIL = "<img src=x onerror=alert(1)>"


class Outline(HTMLParser):
    """What elements there are, and whether each is closed."""

    VOID = ("meta", "img", "br", "wbr", "!doctype")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def study() -> Study:
    return replace(make_study(arms=("base", "SFT", "HPT"), seeds=(0, 1)), question=QUESTION)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, study: Study) -> Path:
    folder = tmp_path_factory.mktemp("mlruns")
    record(study, folder, skip=(("HPT", 1),))
    attempt = {"commit": "abc" * 10, "dirty": True, "diff": EVIL, "devices": [EVIL]}
    for path in folder.glob("cells/*/seed-*"):
        write_json(path / File.PROVENANCE, {"attempts": [attempt]})
    return folder


@pytest.fixture(scope="module")
def text(root: Path, study: Study) -> str:
    outputs = (Table("results", study, title="A & B"), Figure("reward", study))
    runs = {("SFT", 0): "http://127.0.0.1:5000/#/experiments/1/runs/a"}
    written = report(study, outputs, root, links=Links("http://127.0.0.1:5000/#/e/1/runs", runs))
    assert written.paths[-1].name == PAGE
    return written.paths[-1].read_text()


def test_the_page_is_well_formed_and_reaches_no_network(text: str) -> None:
    outline = Outline(text)
    assert "script" not in outline.tags
    loaded = [a for a in outline.addresses if not a.startswith(("#", "data:image/svg+xml;base64,"))]
    assert {a for a in loaded if "://" in a} == {
        "http://127.0.0.1:5000/#/e/1/runs",
        "http://127.0.0.1:5000/#/experiments/1/runs/a",
    }
    assert "default-src 'none'" in text
    assert "url(" not in text and "@import" not in text


def test_the_results_come_first_and_everything_has_a_place(text: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == ["Results", "Figures", "What was run", "Provenance"]
    assert text.index("Is 1 &lt; 2") < text.index("<h2>Results")
    assert "3 arms, 2 seeds: 4 of 5 runs finished." in text
    assert "<del>1</del>" in text  # the seed that is missing


def test_what_comes_from_a_study_or_a_record_is_escaped(text: str) -> None:
    assert "Is 1 &lt; 2 &amp; &quot;so on&quot;?" in text
    assert "# &lt;train&gt;" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert EVIL not in text
    assert "A &amp; B" in text


def test_labels_and_notes_are_escaped_in_every_format(tmp_path: Path) -> None:
    recipe = make_study(arms=("GRPO",)).recipes["GRPO"]
    study = Study("evil", {EVIL: recipe}, evaluation=Evaluation(suites=SUITES), question="?")
    run = run_of(tmp_path, recipe, 0)
    record_run(study, Cell("GRPO", recipe, 0), run)
    table = Table("t", study, title=EVIL)
    found = report(study, (table, Figure("f", study)), tmp_path)
    html = found.paths[-1].read_text()
    assert EVIL not in html and "&lt;img src=x" in html
    sheet = table.sheet(loading.runs(study, tmp_path))
    assert r"\<img src=x onerror=alert(1)\>" in sheet.markdown()
    assert r"\textless{}img src=x" in sheet.latex()


def test_latex_escapes_what_would_end_it() -> None:
    nasty = "100% of $x_1^2 & #{~}\\ γ ≤ 1"
    sheet = Sheet("s", (Head(nasty, "key"),), ((Entry(nasty),),), (nasty,))
    title = (
        r"100\% of \$x\_1\textasciicircum{}2 \& \#\{\textasciitilde{}\}\textbackslash{} "
        r"$\gamma$ $\le$ 1"
    )
    assert title in sheet.latex()
    assert sheet.latex().splitlines()[1] == f"% {nasty}"


def test_a_table_in_html_has_groups_sides_and_the_best_in_bold() -> None:
    heads = (Head("Method", "m"), Head("a", "a", "Suites"), Head("b", "b", "Suites"))
    row = (Entry("one"), Entry("1.0", 1.0, "0.1", best=True), Entry("2(3)"))
    text = Sheet("s", heads, (row,), ("note",)).html()
    Outline(text)
    assert '<th class="group" colspan="2" scope="colgroup">Suites</th>' in text
    assert '<td class="number"><strong>1.0</strong><span class="spread"> ± 0.1</span></td>' in text
    assert "2(<wbr>3)" in text


def test_arms_are_told_by_what_differs_from_the_untrained_one(tmp_path: Path) -> None:
    base = Recipe("arithmetic-1m", Data("arithmetic"))
    faster = base.using(upge.sft(), optimizer=Optimizer(learning_rate=0.25))
    study = Study("told", {"SFT": faster, "base": base}, evaluation=Evaluation(suites=SUITES))
    run_of(tmp_path, base, 0).create(base, 0)
    run_of(tmp_path, base, 0).finish({})
    text = page(loading.runs(study, tmp_path), ())
    assert "Differs from base in" in text
    assert "<code>optimizer.learning_rate = 0.25</code>" in text
    assert "<code>method = Method(demonstrations=Estimator(" in text
    assert "<code>optimizer = " not in text  # its field says it


def test_provenance_says_what_the_data_was(tmp_path: Path) -> None:
    """As a run records it: one row a part, what was left out of it, and what training shares."""
    study = make_study(arms=("base", "SFT"), seeds=(0,))
    record(study, tmp_path)
    table = Origin("train", EVIL, "c0ffee" * 7, pinned=True, rows=9, left_out={"twice & more": 2})
    suite = Origin("test", "test.jsonl", "beef" * 16, pinned=False, rows=1)
    problems = tuple(Problem(str(n), f"{n}+{n}?", "") for n in range(5))
    tests = (Suite("test", problems[3:]),)
    found = Dataset("sums", problems[:4], problems[4:], tests, Text("{question}"))
    described = description(replace(found, origins=(table, suite)))
    for each in study.cells:
        overlap = [asdict(each) for each in overlaps(found)]
        path = run_of(tmp_path, each.recipe, each.seed).path / File.DATA
        write_json(path, {**described, "overlap": overlap})
    rows = re.findall("<tr>(.*?)</tr>", page(loading.runs(study, tmp_path), ()))
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in rows]
    assert [row for row in cells if row and row[0] == "sums"] == [
        ["sums", "train", "4", digest(found.train)[:12], escape(EVIL), "c0ffeec0ffee", "9",
         "2 twice &amp; more", ""],
        ["sums", "validation", "1", digest(found.validation)[:12], "", "", "", "", "0"],
        ["sums", "test", "2", digest(problems[3:])[:12], "test.jsonl", "beefbeefbeef (not pinned)",
         "1", "", "1"],
    ]  # fmt: skip


def test_data_that_is_made_and_not_read_has_no_empty_columns(tmp_path: Path) -> None:
    study = make_study(arms=("SFT",), seeds=(0,))
    record(study, tmp_path)
    problems = tuple(Problem(str(n), f"{n}+{n}?", "") for n in range(5))
    found = Dataset("sums", problems[:3], problems[3:], (), Text("{question}"))
    (each,) = study.cells
    path = run_of(tmp_path, each.recipe, each.seed).path / File.DATA
    write_json(path, {**description(found), "overlap": []})
    (heads,) = re.findall("(<th[^>]*>Data<.*?)</tr>", page(loading.runs(study, tmp_path), ()))
    assert re.findall(">([^<]+)<", heads) == ["Data", "Part", "Problems", "SHA-256"]


def test_the_page_is_the_same_twice(root: Path, study: Study) -> None:
    runs = loading.runs(study, root)
    assert page(runs, ()) == page(runs, ())


def test_one_output_alone_leaves_the_page_as_it_is(root: Path, study: Study, text: str) -> None:
    found = report(study, (Table("results", study),), root, only="results")
    assert PAGE not in [path.name for path in found.paths]
    assert (found.folder / PAGE).read_text() == text
