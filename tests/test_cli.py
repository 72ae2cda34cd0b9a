"""The `workbench` command as people meet it: real processes, and what they say and return."""

import os
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

HEAVY = ("torch", "mlflow", "pandas", "numpy", "rich", "transformers", "matplotlib", "analysis")
START = """
from workbench import Data, Evaluation, Recipe, Resources, Sampling, Study, grid, upge
from workbench.problems import *
base = Recipe("arithmetic-1m", Data("arithmetic"), steps=2)
"""


def workbench(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "COLUMNS": "200"}
    command = [sys.executable, "-m", "workbench", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


def imported(profile: str) -> set[str]:
    """The packages in the profile that Python prints of a process's imports."""
    return set(re.findall(r"\| +(\w+)$", profile, re.MULTILINE))


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from workbench.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f" {name} " in done.stdout for name in ("plan", "run", "status", "report", "doctor"))
    assert "worker" not in done.stdout


def test_a_worker_starts_without_what_nothing_uses() -> None:
    """And asked for again, as for each probe of a process, it keeps no garbage for ever."""
    code = """
import gc, importlib.util, sys
from workbench.worker import load_torch
load_torch(1)
kept, more = gc.get_freeze_count(), [[] for _ in range(999)]
load_torch(1)
print(importlib.util.find_spec("sklearn") is not None, "sklearn" in sys.modules)
print(kept > 100_000, gc.get_freeze_count() - kept)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False", "True", "0"], done.stderr


def _custom(kind: str, value: str, module: str = "json") -> str:
    """An estimator with a mask of its own, which has one field, as Python."""
    body = f'{{"__annotations__": {{"f": {kind!r}}}, "__module__": {module!r}}}'
    return f'upge.Estimator(type("Mine", (upge.Mask,), {body})({value}))'


def mistakes() -> dict[str, tuple[str, str]]:
    """Study files that are wrong, by what is wrong: the file, and what must be said of it."""
    return {
        "unknown component": (
            'Study("x", [base.using(upge.grop())])', "line 5: .*did you mean grpo"),
        "unknown field": (
            'Study("x", [base.using(upge.sft(), step=3)])', "line 5: .*did you mean steps"),
        "wrong type": (
            'Study("x", [base.using(upge.sft(), steps="3")])', "line 5: .*without quotes"),
        "a method's name": ('Study("x", [base.using("grpo")])', "line 5: .*upge.grpo()"),
        "gate outside 0 to 1": (
            'Study("x", [base.using(upge.hpt(gate=upge.Switch(at_most=1.5)))])',
            "line 5: .*Switch.at_most.* got 1.5"),
        "unknown component, once": (
            'Study("x", [base.using(upge.Estimator(upge.RatoClip(0.2)))])',
            r"line 5: workbench.upge has no 'RatoClip'; did you mean RatioClip\?$"),
        "unknown argument of a study": (
            'Study("x", [base], seed=[1])', r"line 5: Study.*'seed'; did you mean seeds\?$"),
        "unknown argument of resources": (
            'Study("x", [base], resources=Resources(thread=2))', "line 5: .*did you mean threads"),
        "unknown argument of a method": (
            'Study("x", [base.using(upge.grpo(clip=0.2))])',
            r"line 5: grpo\(\) got .* 'clip'; choose one of: mask, "),
        "unknown argument on an axis": (
            'Study("x", [base.using(m) for m in grid(upge.hpt, gamma=[0, 1])])',
            "line 5: hpt.* 'gamma'; choose one of: gate, "),
        "unknown argument of a table": (
            '(analysis := __import__("analysis")).Table("x", Study("x", [base]), valu="tokens")',
            "line 5: .*did you mean value"),
        "unknown field of a start": (
            'Study("x", [base.start_from(base, stp=2)])', r"line 5: .*did you mean step\?"),
        "empty grid": ('Study("x", [])', "line 5: .*grid is empty"),
        "duplicate labels": (
            'Study("x", [("a", base), ("a", base.using(upge.sft()))])', "line 5: .*'a'"),
        "not a recipe": ('Study("x", [upge.sft()])', r"line 5: .*base.using\(method\)"),
        "bad name": ('Study("My study", [base])', "line 5: .*my-study"),
        "missing model": (
            'Study("x", [Recipe("arithmetic-2m", Data("arithmetic"))])',
            "line 5: no model 'arithmetic-2m'.*did you mean arithmetic-1m"),
        "missing data": (
            'Study("x", [Recipe("arithmetic-1m", Data("math"))])', "line 5: no data set 'math'"),
        "unknown suite": (
            'Study("x", [base], evaluation=Evaluation(suites=("chian",)))',
            "line 5: .*did you mean chain"),
        "no study": ("1", "defines no Study"),
        "no python": ("Study(", "line 5: "),
        "an import": ("import nothing_of_this_name", "line 5: No module named"),
        "a step too few": (
            'Study("x", [base.using(upge.sft(), steps=-1)])',
            "line 5: Recipe.steps must be at least 1, got -1; the nearest is 1$"),
        "half a step": (
            'Study("x", [base.using(upge.sft(), steps=-0.4)])',
            r"line 5: Recipe.steps takes int, got -0.4 \(float\); the nearest is 1$"),
        "a word for a number": (
            'Study("x", [base.using(upge.sft(), steps="many")])',
            r"line 5: Recipe.steps takes int, got 'many' \(str\); such as 40$"),
        "no number": (
            'Study("x", [base], evaluation=Evaluation(temperature=float("nan")))',
            r"line 5: Evaluation.temperature takes float, got nan \(float\); such as 0.6$"),
        "an infinite number": (
            'Study("x", [base], resources=Resources(patience=float("inf")))',
            r"line 5: Resources.patience takes float, got inf \(float\); such as 1800.0$"),
        "a number beyond all records": (
            'Study("x", [base.using(upge.sft(), rollouts=10**30)])',
            r"line 5: Recipe.rollouts takes int, got 10{30} \(int\); such as 8$"),
        "a number beyond all floats": (
            'Study("x", [base.using(upge.grpo(), sampling=Sampling(10**400))])',
            r"line 5: Sampling.temperature takes float, got 10{400} \(int\); such as 1.0$"),
        "too much mass": (
            'Study("x", [base], evaluation=Evaluation(top_p=1.7))',
            "top_p must be a share above 0 and at most 1, got 1.7; the nearest is 1.0$"),
        "no mass": (
            'Study("x", [base], evaluation=Evaluation(top_p=0))',
            "top_p must be a share above 0 and at most 1, got 0.0; such as 0.95$"),
        "more samples as a dictionary": (
            'Study("x", [base], evaluation=Evaluation(more={"chain": 64}))',
            r"line 5: Evaluation.more takes .* got {'chain': 64} \(dict\); such as \(\)$"),
        "no more samples": (
            'Study("x", [base], evaluation=Evaluation(more=(("chain", 0),)))',
            r"more must be at least 1, got 0 in \(\('chain', 0\),\); the nearest is 1$"),
        "a suite twice": (
            'Study("x", [base], evaluation=Evaluation(suites=("chain", "chain")))',
            r"line 5: Evaluation.suites must be .* twice, .* name each of \['chain'\] once$"),
        "answers longer than the model": (
            'Study("x", [base.using(upge.grpo(), sampling=Sampling(max_tokens=500))])',
            "line 5: Sampling.max_tokens is 500, .* reads 512 tokens, .* 25 .*use at most 487$"),
        "a device": (
            'Study("x", [base], resources=Resources(device="gpu"))',
            r"device must be one of auto, cpu, cuda, got 'gpu'; did you mean cpu\?$"),
        "the best by a metric that there is none of": (
            'Study("x", [base], resources=Resources(best_by="validation/pass_at_2"))',
            r"Resources.best_by must be .*level_<n>.*; did you mean validation/pass_at_1\?$"),
        "the best by training": (
            'Study("x", [base], resources=Resources(best_by="reward/mean"))',
            "line 5: Resources.best_by must be .*'reward/mean'; such as 'validation/pass_at_1'$"),
        "the best by a level that there is none of": (
            'Study("x", [base.using(upge.sft())], '
            'resources=Resources(best_by="validation/level_9"))',
            r"'validation/level_9', which arm 'sft' .*; did you mean validation/level_5\?$"),
        "a long model": (
            'Study("x", [Recipe("x" * 300, Data("arithmetic"))])',
            "line 5: no model 'x{300}'.*choose one of: arithmetic-1m, .*-llama-1m$"),
        "a long model of the hub": (
            'Study("x", [Recipe("a/" + "x" * 300, Data("arithmetic"))])',
            "line 5: no model 'a/x{300}'.*choose one of: arithmetic-1m, .*-llama-1m$"),
        "a model by number": (
            'Study("x", [Recipe(3, Data("arithmetic"))])',
            r"line 5: Recipe.model takes str \| Model, got 3 \(int\); write '3'$"),
        "a long file": (
            'Study("x", [Recipe("arithmetic-1m", Corpus("x", Rows("x" * 300), prompt=Text()))])',
            "line 5: Rows.source 'x{300}' is neither a file.* such as 'openai/gsm8k'$"),
        "a long name": ('Study("x" * 300, [base])', "Study.name must be .* such as 'x{100}'$"),
        "a long seed": ('Study("x", [base], seeds=[10**30])', "a seed of .*; the nearest is 9"),
        "a seed twice": (
            'Study("x", [base], seeds=[1, 1])', r"a seed twice: \[1, 1\]; write \[1\]$"),
        "a label by number": (
            'Study("x", {"a": base, 3: base.using(upge.sft())})',
            "line 5: an arm's label is a text, got 3; such as '3'$"),
        "a label that is a list": (
            'Study("x", [(["a"], base)])',
            r"line 5: an arm's label is a text, got \['a'\]; such as 'base'$"),
        "no label": ('Study("x", {"": base})', "line 5: an arm's label is .* ''; such as 'base'$"),
        "three for an arm": (
            'Study("x", [("a", base, 1)])', r"line 5: an arm is .*; write \(label, recipe\)$"),
        "a phase from a method": (
            'Study("x", [base.start_from(upge.sft())])',
            r"line 5: Start.recipe takes Recipe, got Method.*; choose one of: Recipe$"),
        "a phase too late": (
            'Study("x", [base.start_from(base.using(upge.sft()), step=3)])',
            "line 5: Start.step must be from 1 to 2, got 3; the nearest is 2$"),
        "a grid of a name": (
            'Study("x", grid("Estimator", mask=[1]))',
            "line 5: grid.* got 'Estimator'; write upge.Estimator$"),
        "no probe": (
            'Study("x", [base], probes=[3])', r"line 5: .* got 3; write Probe\(\[method\]\)$"),
        "one decay": (
            'Study("x", [base.using(upge.sft(), optimizer='
            '__import__("workbench").Optimizer(betas=0.9))])',
            r"line 5: Optimizer.betas takes .* got 0.9 \(float\); such as \(0.9, 0.999\)$"),
        "an error of the file's own": ("1 / 0", "line 5: ZeroDivisionError: division by zero$"),
        "a key that is not there": ("{}['x']", "line 5: KeyError: 'x'$"),
        "no gpu": (
            'Study("x", [base], resources=Resources(device="cuda"))',
            "line 5: .*choose auto or cpu"),
        "unhashable value": (
            'Study("x", [base.using(upge.sft(), sampling=lambda: 1)])', "line 5: .*Sampling"),
        "a function in a component": (
            f'Study("x", [base.using({_custom("object", "print")})])',
            r"line 5: Mine.f is .*no stable form.*numbers, strings, tuples"),
        "a list in a component": (
            f'Study("x", [base.using({_custom("list", "[1, 2]")})])',
            r"line 5: Mine.f is \[1, 2\] \(list\), which can change; write a tuple"),
        "two components of one name": (
            f'Study("x", {{"a": base.using({_custom("object", "1", "json")}), '
            f'"b": base.using({_custom("object", "2", "re")})}})',
            "line 5: arm 'b': two classes are named Mine, in json and in re.*such as Mine2"),
    }  # fmt: skip


@pytest.mark.parametrize("name", mistakes())
def test_a_mistake_is_one_line_with_its_place_before_any_training(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.cli import main
    from workbench.launch import room

    monkeypatch.setattr(room, "gpus", lambda: ())
    text, message = mistakes()[name]
    file = tmp_path / "study.py"
    file.write_text(f"{START}study = {text}\n" if text[0] != "i" else f"{START}{text}\n")
    assert main(["run", str(file), "--root", str(tmp_path / "mlruns")]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert captured.out == ""
    assert not (tmp_path / "mlruns").exists()


def test_a_mistake_ends_the_process_with_2(tmp_path: Path) -> None:
    (tmp_path / "study.py").write_text(f'{START}study = Study("x", [])\n')
    done = workbench("run", "study.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: study.py, line 5: ")
    done = workbench("plan", "nowhere.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: no study file nowhere.py\n"


def test_only_this_machine_is_served(tmp_path: Path) -> None:
    done = workbench("ui", "--host", "0.0.0.0", cwd=tmp_path)
    assert done.returncode == 2
    assert "ssh -L" in done.stderr


STUDY = (
    '"""Does the whole chain work?"""'
    + START
    + """
small = base.using(upge.sft(), questions=2, rollouts=2, steps=2)
arms = {"SFT": small, "same": small, "broken": small.start_from(small, step=1)}
one = Study("one", arms, evaluation=Evaluation(samples=2, suites=("chain",)))
other = Study("other", {"base": base}, evaluation=Evaluation(samples=2, suites=("words",)))
"""
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "studies.py").write_text(STUDY)
    return tmp_path


def test_a_plan_lists_runs_and_starts_nothing(project: Path) -> None:
    done = workbench("plan", "studies.py", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "the same estimator as SFT" in done.stdout
    assert "starts from SFT at step 1" in done.stdout
    assert "one: 3 cells, 2 runs, 2 to train or measure" in done.stdout
    assert "other: 1 cells" in done.stdout
    assert [path.name for path in project.iterdir()] == ["studies.py"]
    done = workbench("plan", "studies.py", "--study", "othr", cwd=project)
    assert done.returncode == 2
    assert "did you mean other" in done.stderr


def test_a_study_runs_reports_and_runs_no_more(project: Path) -> None:
    done = workbench("run", "studies.py", "--study", "one", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SFT · seed 0  finished" in done.stdout
    assert (project / "mlflow.db").exists()
    reports = project / "mlruns" / "reports" / "one"
    drawn = {path: path.stat().st_mtime_ns for path in reports.iterdir()}
    assert reports / "results.md" in drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPROFILEIMPORTTIME", "1")
        again = workbench("run", "studies.py", "--study", "one", cwd=project)
    assert again.returncode == 0
    assert set(HEAVY) & imported(again.stderr) == {"rich"}
    assert "one: 2 runs, 0 to train or measure" in again.stdout
    assert "started" not in again.stdout
    shown = done.stdout[done.stdout.index("Method") :]
    assert shown == again.stdout[again.stdout.index("Method") :]
    assert {path: path.stat().st_mtime_ns for path in reports.iterdir()} == drawn
    for lost in (reports / "results.csv", project / "mlflow.db"):
        lost.unlink()
        workbench("run", "studies.py", "--study", "one", cwd=project)
        assert lost.exists()
    status = workbench("status", "studies.py", "--study", "one", cwd=project)
    assert status.stdout.count("finished") == 2
    report = workbench("report", "studies.py", "--study", "one", "--only", "results", cwd=project)
    assert report.returncode == 0, report.stderr
    page = (project / "mlruns" / "reports" / "one" / "report.html").read_text()
    assert "http://127.0.0.1:5000/#/experiments/" in page
    exported = workbench("export", "studies.py", "--study", "one", "--to", "kept", cwd=project)
    assert exported.stdout == f"2 runs under {Path('kept') / 'cells'}\n"
    shared = [path.read_text() for path in (project / "kept").rglob("provenance.json")]
    assert shared and not any(str(project) in text for text in shared)
    table = (project / "mlruns" / "reports" / "one" / "results.md").read_text()
    for source in ("kept", f"sqlite:///{project / 'mlflow.db'}"):
        elsewhere = ["--root", "elsewhere", "--from", source, "--only", "results"]
        done = workbench("report", "studies.py", "--study", "one", *elsewhere, cwd=project)
        assert done.returncode == 0, done.stderr
        found = project / "elsewhere" / "reports" / "one" / "results.md"
        assert found.read_text() == table
        found.unlink()
    missing = workbench("report", "studies.py", "--study", "one", "--from", "non", cwd=project)
    assert missing.returncode == 2
    assert "--from takes a folder or a tracking URI" in missing.stderr


def test_a_report_is_drawn_again_where_anything_that_it_follows_from_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench import Data, Recipe, Study, cli_report
    from workbench.studyfile import StudyFile

    drawn = ["analysis/figure.py", "analysis/page.css", "analysis/style.mplstyle"]
    drawn += ["analysis/paper_numbers/table.csv", "workbench/passk.py", "workbench/upge/masks.py"]
    kept = ["analysis/__pycache__/figure.pyc", "workbench/models/model.safetensors"]
    for name in [*drawn, *kept]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    origins = {name: str(tmp_path / name / "__init__.py") for name in ("analysis", "workbench")}
    monkeypatch.setattr(
        cli_report, "find_spec", lambda name: ModuleSpec(name, None, origin=origins[name])
    )
    file = StudyFile(tmp_path / "study.py", ModuleType("study"), {})
    study = Study("one", [Recipe("arithmetic-1m", Data("arithmetic"))])

    def changes(name: str) -> bool:
        before = cli_report._mark(file, study, ())
        (tmp_path / name).write_text("and after")
        return cli_report._mark(file, study, ()) != before

    assert [name for name in [*drawn, *kept] if changes(name)] == drawn


def test_a_failed_cell_makes_the_status_1_and_is_told(project: Path) -> None:
    from workbench.identity import load_module
    from workbench.plan import jobs

    study = load_module(str(project / "studies.py")).other
    (job,) = jobs(study, project / "mlruns")
    evaluations = job.run.path / "evaluations"
    evaluations.parent.mkdir(parents=True)
    evaluations.write_text("a file where a folder must be")
    done = workbench("run", "studies.py", "--study", "other", cwd=project)
    assert done.returncode == 1
    assert "base · seed 0" in done.stderr
    status = workbench("status", "studies.py", "--study", "other", cwd=project)
    assert "failed" in status.stdout


def test_the_doctor_names_what_is_missing(project: Path) -> None:
    done = workbench("doctor", "studies.py", cwd=project)
    assert done.returncode == 0, done.stdout
    assert "torch 2." in done.stdout
    broken = STUDY.replace("arithmetic-1m", "arithmetic-2m")
    (project / "studies.py").write_text(broken)
    done = workbench("doctor", "studies.py", cwd=project)
    assert done.returncode == 1
    assert "MISSING  one: studies.py" in done.stdout


SEARCH = """
def propose(trial):
    at_most = trial.suggest_float("at_most", 0.0, 1.0, step=0.5)
    return small.using(upge.hpt(gate=upge.Switch(at_most)), steps=1)

gate = Search("gate", propose, maximize="validation/pass_at_1", trials=1, seeds=[0], confirm=[1],
              evaluation=Evaluation(samples=1, suites=("chain",), problems=2))
"""


def test_a_search_runs_confirms_reports_and_runs_no_more(project: Path) -> None:
    quick = "Validation(every=1, samples=1, problems=2)"
    text = STUDY.replace("Evaluation,", "Evaluation, Search, Validation,")
    text = text.replace("rollouts=2,", f"rollouts=2, validation={quick},")
    (project / "studies.py").write_text(text + SEARCH)
    done = workbench("plan", "studies.py", "--study", "gate", cwd=project)
    assert "gate: a search of 1 trials with 1 seeds" in done.stdout, done.stderr
    done = workbench("search", "studies.py", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best so far" in done.stdout
    assert "gate-winner: 1 runs, 1 to train or measure" in done.stdout
    folder = project / "mlruns" / "reports"
    assert {"trials.md", "response.svg"} < {path.name for path in (folder / "gate").iterdir()}
    assert (folder / "gate-winner" / "results.md").exists()
    cells = list((project / "mlruns" / "cells").glob("*/seed-*"))
    assert sorted(path.name for path in cells) == ["seed-0", "seed-1"]
    exported = workbench("export", "studies.py", "--study", "gate", "--to", "kept", cwd=project)
    assert exported.stdout == f"2 runs under {Path('kept') / 'cells'}\n", exported.stderr
    elsewhere = ["--root", "elsewhere", "--from", "kept"]
    drawn = workbench("report", "studies.py", "--study", "gate", *elsewhere, cwd=project)
    assert drawn.returncode == 0, drawn.stderr
    for name in ("gate/trials.csv", "gate/response.csv", "gate-winner/results.csv"):
        there = project / "elsewhere" / "reports" / name
        assert there.read_text() == (folder / name).read_text()
    tracked = workbench(
        "report", "studies.py", "--study", "gate", "--from", "sqlite:///mlflow.db", cwd=project
    )
    assert (tracked.returncode, "is a search" in tracked.stderr) == (2, True)
    again = workbench("search", "studies.py", cwd=project)
    assert again.returncode == 0
    assert "started" not in again.stdout
    status = workbench("status", "studies.py", "--study", "gate", cwd=project)
    assert "complete" in status.stdout and "best" in status.stdout
    run = workbench("run", "studies.py", "--study", "gate", cwd=project)
    assert "gate is a search: workbench search studies.py" in run.stdout
    none = workbench("search", "studies.py", "--study", "one", cwd=project)
    assert (none.returncode, "has no search" in none.stderr) == (2, True)
