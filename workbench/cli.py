"""The `workbench` command: what to train and what it costs, train it, look at it.

    workbench plan studies/components.py      list the runs and what they cost, start nothing
    workbench run studies/components.py       train the runs that have no finished record yet
    workbench search studies/gate_search.py   let Optuna look for the best recipe
    workbench report studies/components.py    tables and figures from the records

Exit status: 0 done, 1 a cell failed or something is missing, 2 a mistake in what was asked for,
130 interrupted. Heavy packages are imported by the commands that need them.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from workbench.devices import DEVICES
from workbench.durable import DiskFull
from workbench.records import Held
from workbench.studyfile import Mistake, StudyFile, load

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from workbench.launch import Launcher
    from workbench.plan import Cost, Job, Status
    from workbench.study import Search, Study
    from workbench.training.pretrain import Pretraining

OK, FAILED, MISTAKEN, INTERRUPTED = 0, 1, 2, 130
LAUNCHERS = ("local", "ray")
LAUNCHER_HELP = "processes of this machine, or an existing Ray cluster"
ON_HELP = (
    "plan for a machine with such GPUs: say what memory and time it would take, and what this "
    f"machine lacks, without the network ({', '.join(DEVICES)})"
)
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

R = TypeVar("R")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["worker"]:  # what the launcher starts; not for people
        from workbench.worker import main as worker

        return worker(given[1:])
    options = _parser().parse_args(given)
    try:
        return options.command(options)
    except (Mistake, Held) as mistake:
        _complain(str(mistake))
        return MISTAKEN
    except DiskFull as full:
        _complain(str(full))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `workbench plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _complain(message: str) -> None:
    red, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}error: {message}{plain}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench",
        description="A research workbench for LLM post-training: declare a study, run it, read it.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[..., int], text: str, nargs: str | None = None) -> None:
        each = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        each.set_defaults(command=command)
        each.add_argument("study", nargs=nargs, type=Path, metavar="STUDY.py", help="a study file")
        each.add_argument(
            "--study", dest="name", metavar="NAME", help="only this study of the file"
        )
        each.add_argument(
            "--root", type=Path, default=Path("mlruns"), help="the tracking folder (mlruns)"
        )
        if name == "plan":
            each.add_argument("--on", choices=DEVICES, metavar="DEVICE", help=ON_HELP)
        if name in ("run", "search"):
            each.add_argument("--launcher", choices=LAUNCHERS, default="local", help=LAUNCHER_HELP)
        if name == "search":
            each.add_argument("--trials", type=int, metavar="N", help="how many there shall be")
            each.add_argument("--storage", metavar="URL", help="show it to optuna-dashboard there")
        if name == "report":
            each.add_argument("--only", action="append", metavar="NAME", help="only this output")
            each.add_argument(
                "--from",
                dest="source",
                metavar="WHERE",
                help="a folder of exported records, or an MLflow tracking URI",
            )
        if name == "export":
            each.add_argument("--to", type=Path, required=True, help="a folder for the records")
        if name == "ui":
            each.add_argument("--port", type=int, default=5000, help="of the page (5000)")
            each.add_argument("--host", default=LOCAL_HOSTS[0], help="this machine only")

    add("plan", _plan, "list the runs and what they cost, start nothing")
    add("run", _run, "train the runs that have no finished record yet, then report")
    add("probe", _probe, "measure the gradient at the checkpoints that a study probes")
    add("search", _search, "run the trials of a search, then its winner on fresh seeds")
    add("status", _status, "say which runs are finished, running or failed, and why")
    add("report", _report, "write tables and figures from the records")
    add("export", _export, "copy what reports need of the records, compact, to share or commit")
    add("ui", _ui, "open MLflow on this machine's runs", "?")
    add("doctor", _doctor, "check that everything a study needs is there", "?")
    pretrain = commands.add_parser("pretrain", help="rebuild a shipped base model and compare")
    pretrain.set_defaults(command=_pretrain)
    pretrain.add_argument("study", nargs="?", type=Path, default=Path("studies/base_model.py"))
    pretrain.add_argument("--model", default="arithmetic-1m", help="its name (arithmetic-1m)")
    pretrain.add_argument("--out", type=Path, default=Path("base_model"), help="a folder for it")
    pretrain.add_argument("--check", action="store_true", help="only compare what is in the folder")
    return parser


def _root(options: argparse.Namespace) -> Path:
    return options.root.resolve()


# --- plan and status ------------------------------------------------------------------------------


def _loaded(options: argparse.Namespace, lacking: list[str] | None = None) -> StudyFile:
    """The study file with everything checked that can be before training.

    What this machine lacks is an error, unless there is a list that takes it.
    """
    from workbench.cli_report import outputs
    from workbench.launch import slots
    from workbench.validate import validate

    file = load(options.study, options.name)
    for variable, study in file.studies.items():
        file.checked(variable, lambda each: validate(each, lacking))
        if lacking is None:
            file.checked(variable, lambda each: slots(each.resources))
        for output in outputs(file, study):
            file.checked(variable, lambda _, output=output: output.check())
    if file.searches:
        from workbench import cli_search

        for variable in file.searches:
            cli_search.check(file, variable)
    return file


def _jobs(file: StudyFile, variable: str, options: argparse.Namespace) -> "list[Job]":
    """The runs that a study of the file needs; what is wrong with them is told at its line."""
    from workbench import plan

    return file.checked(variable, lambda study: plan.jobs(study, _root(options)))


def _plan(options: argparse.Namespace) -> int:
    from workbench import cli_estimate, plan
    from workbench.terminal import console

    lacking: list[str] | None = None
    if options.on is not None:
        lacking = []
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    terminal, file = console(), _loaded(options, lacking)
    for variable, study in file.studies.items():
        jobs = _jobs(file, variable, options)
        terminal.print(_plan_table(study, jobs))
        summary = _plan_summary(study, jobs, plan.cost(jobs, _root(options)), options.on is None)
        estimates = cli_estimate.describe(study, jobs, options.on)
        for line in (*summary, *_declared(file, study), *estimates):
            terminal.print(line)
    for line in lacking or ():
        terminal.print(f"not here, so not checked: {line}")
    for search in file.searches.values():
        from workbench import cli_search

        for line in cli_search.describe(search, _root(options)):
            terminal.print(line)
    return OK


def _declared(file: StudyFile, study: "Study") -> list[str]:
    """What the file's comparisons and changes decide while there are no runs to decide it by."""
    from workbench.cli_report import outputs

    found = outputs(file, study)
    if not found:
        return []
    from analysis.declared import Declared

    return [f"{each.name}: {each.declared}" for each in found if isinstance(each, Declared)]


def _plan_table(study: "Study", jobs: Sequence["Job"]) -> "RichTable":
    """One row for each arm, its runs counted by status."""
    from workbench import plan, provenance
    from workbench.terminal import grid

    code = provenance.code()
    table = grid("arm", "runs", "steps", "note")
    arms: dict[str, list[Job]] = {}
    for job in jobs:
        arms.setdefault(job.label, []).append(job)
    for label, runs in arms.items():
        counts = Counter(plan.status(job).kind for job in runs)
        notes, start = [], runs[0].recipe.start
        if start is not None:
            notes.append(f"starts from {_name_of(start.recipe, jobs)} at step {start.step}")
        if any(plan.is_stale(job, code) for job in runs):
            notes.append("stale: code changed since")
        found = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        table.add_row(label, found, str(plan.steps_of(runs[0].recipe)), "; ".join(notes))
        for other in runs[0].also:
            table.add_row(other, "", "", f"the same estimator as {label}: shares its run")
    return table


def _name_of(recipe: object, jobs: Sequence["Job"]) -> str:
    return next(job.label for job in jobs if job.recipe == recipe)


def _plan_summary(study: "Study", jobs: Sequence["Job"], cost: "Cost", here: bool) -> list[str]:
    """What is left; how long it takes if it is trained here and runs like it were timed."""
    from workbench.display import clock
    from workbench.launch import slots

    left = sum(not job.done for job in jobs)
    lines = [
        f"{study.name}: {len(study.cells)} cells, {len(jobs)} runs, {left} to train or measure"
    ]
    if cost.steps:
        lines.append(f"at most {cost.steps:,} steps and {cost.tokens:,} sampled tokens")
    if not here:
        return [*lines, *_probe_lines(jobs)]
    if cost.seconds is not None:
        room = slots(study.resources)
        wall = clock(cost.seconds / min(len(room), max(1, left)))
        lines.append(
            f"about {clock(cost.seconds)} of training, {wall} with {len(room)} at once "
            "(from recorded runs of the same sizes; evaluation not counted)"
        )
    elif cost.steps:
        lines.append("no run of these sizes was timed yet, so the time is not known")
    return [*lines, *_probe_lines(jobs)]


def _probe_lines(jobs: Sequence["Job"]) -> list[str]:
    """What each probe costs that is not recorded yet."""
    counts = Counter(
        probe for job in jobs for probe in job.probes if not job.run.probe_path(probe).exists()
    )
    return [
        f"probe at step {probe.step}, distance {probe.distance}, seed {probe.seed}, of "
        f"{number} run{'s' * (number > 1)}: {probe.cost}"
        for probe, number in counts.items()
    ]


def _status(options: argparse.Namespace) -> int:
    from rich.text import Text

    from workbench import plan, provenance
    from workbench.terminal import console, grid

    terminal, code = console(), provenance.code()
    file = load(options.study, options.name)
    for variable, study in file.studies.items():
        table = grid("run", "status", "step", "detail")
        for job in _jobs(file, variable, options):
            found = plan.status(job)
            steps = f"{_last_step(job, found)}/{plan.steps_of(job.recipe)}"
            stale = "stale: code changed since" if plan.is_stale(job, code) else ""
            style = {"failed": "red", "finished": "green", "running": "cyan"}.get(found.kind, "")
            detail = "; ".join(each for each in (found.detail, stale) if each)
            table.add_row(job.name, Text(found.kind, style=style), steps, detail)
        terminal.print(study.name)
        terminal.print(table)
    for search in file.searches.values():
        from workbench import cli_search

        table = grid("trial", "state", "score", "detail")
        for row in cli_search.rows(search, _root(options)):
            table.add_row(*row)
        terminal.print(search.name)
        terminal.print(table)
    return OK


def _last_step(job: "Job", found: "Status") -> int:
    from workbench.plan import steps_of

    if job.run.finished or found.kind == "waiting":
        return steps_of(job.recipe) if job.run.finished else 0
    rows = job.run.rows()
    return rows[-1]["step"] if rows else 0


# --- run and report -------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    file = _loaded(options)
    code = OK
    for variable, study in file.studies.items():
        code = max(code, _run_study(file, study, _jobs(file, variable, options), options))
        if code == INTERRUPTED:
            break
    for search in file.searches.values():
        print(f"{search.name} is a search: workbench search {file.path}")
    return code


def _probe(options: argparse.Namespace) -> int:
    """Runs what the probes of a file need, and them, but no evaluation and no report."""
    file = _loaded(options)
    probed = {name: study for name, study in file.studies.items() if study.probes}
    if not probed:
        raise Mistake(f"{file.path} has no study with probes; give one: Study(..., probes=[...])")
    code = OK
    for variable, study in probed.items():
        jobs = [replace(j, measurements=()) for j in _jobs(file, variable, options) if j.probes]
        code = max(code, _run_study(file, study, jobs, options, report=False))
        if code == INTERRUPTED:
            break
    return code


def _search(options: argparse.Namespace) -> int:
    from workbench import cli_search, plan
    from workbench.terminal import console
    from workbench.tracking import set_defaults

    set_defaults()
    file, root, code = _loaded(options), _root(options), OK
    if not file.searches:
        raise Mistake(f'{file.path} has no search; write gate = Search("name", propose, ...) in it')
    for variable, declared in file.searches.items():
        search = declared
        if options.trials is not None:
            search = file.checked(variable, lambda each: replace(each, trials=options.trials))
        launch = partial(_launcher, options)
        found = cli_search.run(search, root, console(), launch, options.storage)
        code = max(code, found.status)
        if code == INTERRUPTED:
            break
        if found.confirmation is not None:
            jobs = plan.jobs(found.confirmation, root)
            code = max(code, _run_study(file, found.confirmation, jobs, options))
            if code == INTERRUPTED:
                break
            cli_search.report(search, root, console())
    return code


def _launcher(
    options: argparse.Namespace, jobs: "Sequence[Job]", of: "Study | Search"
) -> "Launcher":
    """What trains jobs where `--launcher` says."""
    from workbench.launch import Launcher
    from workbench.launch.lease import refuse_if_held

    root = _root(options)
    try:
        refuse_if_held(root, alone=options.launcher == "ray")
        if options.launcher == "ray":
            from workbench.launch.ray import RayLauncher

            return RayLauncher(list(jobs), of.resources, root)
        return Launcher(list(jobs), of.resources, root)
    except (Held, ValueError) as error:
        raise Mistake(str(error)) from error
    except ImportError as error:
        raise Mistake(f"{error}; pip install 'post-training-workbench[ray]'") from error


def _run_study(
    file: StudyFile,
    study: "Study",
    jobs: "list[Job]",
    options: argparse.Namespace,
    report: bool = True,
) -> int:
    from workbench import cli_report
    from workbench.terminal import console
    from workbench.tracking import set_defaults, store_uri

    set_defaults()
    terminal, root, code = console(), _root(options), OK
    left = sum(not job.done for job in jobs)
    terminal.print(f"{study.name}: {len(jobs)} runs, {left} to train or measure")
    for line in _probe_lines(jobs):
        terminal.print(line)
    if left or not report or not cli_report.show_again(file, study, root, jobs):
        code, mirrored = _train(study, jobs, options)
        if code != INTERRUPTED and any(job.done for job in jobs) and report:
            cli_report.update(file, study, root, jobs, mirrored)
    terminal.print(f"runs      {root / 'cells'}")
    terminal.print(f"MLflow    workbench ui {file.path}   ({store_uri(root)})")
    return code


def _train(study: "Study", jobs: "list[Job]", options: argparse.Namespace) -> tuple[int, bool]:
    """Trains and mirrors jobs; the exit status, and whether MLflow has all that there is."""
    from workbench.display import Display
    from workbench.terminal import console
    from workbench.tracking import Mirror

    launcher, mirror = _launcher(options, jobs, study), Mirror(study, _root(options), jobs)
    mirror.start()
    try:
        with Display(console(), jobs) as show:
            for event in launcher.run():
                if event is not None:
                    show(event)
    finally:
        behind = mirror.close()
    _print_problems(launcher.failed, behind, mirror.uri)
    code = INTERRUPTED if launcher.stopping else FAILED if launcher.failed else OK
    return code, mirror.complete.issuperset(job.run.path for job in jobs)


def _print_problems(failed: Iterable["Job"], behind: dict[str, str], uri: str) -> None:
    for job in failed:
        reason = (job.run.failure or {}).get("reason", "not trained")
        _complain(f"{job.name}: {reason}")
    if behind:
        _complain(f"{uri} does not show {', '.join(behind)}: {next(iter(behind.values()))}")
        print("the records are whole; the next run shows what is missing", file=sys.stderr)


def _report(options: argparse.Namespace) -> int:
    from workbench import cli_report

    file, root = load(options.study, options.name), _root(options)
    studies = cli_report.having(file, options.only or [])
    waiting: list[str] = []

    def write(study: "Study") -> None:
        from analysis.report import NoRuns

        try:
            cli_report.write(file, study, root, options.only, options.source)
        except NoRuns as error:
            waiting.append(str(error))
            if len(waiting) == len(studies):
                raise

    for variable in studies:
        file.checked(variable, write)
    for text in waiting:
        print(f"not reported: {text}", file=sys.stderr)
    for variable in file.searches if not options.only else ():
        _report_search(file, variable, root, options.source)
    return OK


def _report_search(file: StudyFile, variable: str, root: Path, source: str | None) -> None:
    """Writes the report of a search, and of what it found where that has run on fresh seeds."""
    from analysis.report import NoRuns
    from workbench import cli_report, cli_search, trials
    from workbench.terminal import console

    search = file.searches[variable]
    if source is not None and cli_report.is_uri(source):
        raise Mistake(
            f"{variable} is a search: its trials are in a folder of records, not {source}"
        )
    place = root if source is None else cli_report.folder_of(source)
    file.checked(variable, lambda each: cli_search.report(each, root, console(), place))
    fresh = cli_search.confirmation(search, trials.trials(search, place))
    try:
        if fresh is not None:
            cli_report.write(file, fresh, root, None, source)
    except NoRuns as error:
        print(f"not reported: {error}", file=sys.stderr)


def _export(options: argparse.Namespace) -> int:
    """Copies every finished run that the reports of a file need, and its searches' trials."""
    from workbench import cli_search, provenance
    from workbench.durable import make_folder, sweep
    from workbench.records import cells_root
    from workbench.tracking.points import write_compact

    file, root = load(options.study, options.name), _root(options)
    copied: dict[Path, None] = {}
    jobs = [job for variable in file.studies for job in _jobs(file, variable, options)]
    for search in file.searches.values():
        jobs += cli_search.export(search, root, options.to)
    for job in jobs:
        if job.run.finished:
            folder = options.to / job.run.path.relative_to(root)
            make_folder(folder)
            sweep(folder)
            write_compact(job, folder)
            provenance.share(folder)
            copied[folder] = None
    print(f"{len(copied)} runs under {cells_root(options.to)}")
    return OK if copied else FAILED


# --- the rest -------------------------------------------------------------------------------------


def _ui(options: argparse.Namespace) -> int:
    from workbench.tracking import (
        TRAINING_VIEW,
        experiments,
        is_remote,
        page_of,
        set_defaults,
        store_uri,
    )

    if options.host not in LOCAL_HOSTS:
        raise Mistake(
            f"--host {options.host} would show every run to the network without a password; "
            "only 127.0.0.1 is served. From elsewhere, forward the port: "
            f"ssh -L {options.port}:127.0.0.1:{options.port} HOST"
        )
    set_defaults()
    uri = store_uri(_root(options))
    remote, page = is_remote(uri), page_of(uri, options.port)
    names = [] if options.study is None else [
        study.name for study in load(options.study, options.name).studies.values()
    ]  # fmt: skip
    print(page, flush=True)
    for name, identity in experiments(uri, names).items():
        print(f"{name}: {page}/#/experiments/{identity}/runs{TRAINING_VIEW}", flush=True)
    if remote:
        return OK
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(options.port), "--workers", "1"]
    os.execv(command[0], command)  # this process becomes the server: what ends it, ends that


def _doctor(options: argparse.Namespace) -> int:
    """Prints a line for each thing needed, and fails if one is missing."""
    from workbench.doctor import machine_checks, package_checks, study_checks

    checks = [*machine_checks(_root(options)), *package_checks()]
    if options.study is not None:
        checks += study_checks(load(options.study, options.name), _root(options))
    for fine, text in checks:
        print(f"{'ok     ' if fine else 'MISSING'}  {text}")
    return OK if all(fine for fine, _ in checks) else FAILED


def _pretrain(options: argparse.Namespace) -> int:
    """Rebuilds a base model and says for each suite whether it is as good as the shipped one."""
    from workbench.models import SHIPPED, shipped
    from workbench.training.pretrain import check, rebuild

    recipe = _pretraining(options.study, options.model)
    if not options.check:
        found = rebuild(recipe, options.out, options.model)
        print(f"{found.steps} steps, {found.tokens:,} tokens, {found.seconds:.0f} s: {options.out}")
    if options.model not in shipped():
        print(f"no {options.model} is shipped, so there is nothing to compare it with")
        return OK
    comparisons = check(options.out, SHIPPED / options.model)
    for each in comparisons:
        print(each)
    return OK if all(each.same for each in comparisons) else FAILED


def _pretraining(study: Path, model: str) -> "Pretraining":
    """The recipe of that name among those that a file declares by name."""
    from workbench.identity import load_module, nearest

    if not study.is_file():
        raise Mistake(f"no file {study}; give the study that declares the pretraining")
    recipes = getattr(load_module(str(study)), "models", {})
    if model not in recipes:
        raise Mistake(f"{study} has no models[{model!r}]; {nearest(model, list(recipes))}")
    return recipes[model]
