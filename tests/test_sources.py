"""Rules that hold of the source text itself: where files are written, and what is never trusted."""

import ast
from pathlib import Path

import pytest
from written import DURABLE, FILES, LIBRARY, calls, change

# What may change the file system beside `durable`, by why nothing is lost that way.
ALLOWED = {
    "into a file or a folder that durable gives, or one in memory": {
        "analysis/panel.py save: savefig",
        "analysis/tracked.py _copy: download_artifacts",
        "analysis/tracked.py _copy: to_parquet",
        "analysis/tracked.py _copy: write_text",
        "workbench/compact.py write_tables: write_table",
        "workbench/tracking/store.py _make_tables: sqlite3.connect",
        "workbench/training/checkpoint.py save: save_file",
        "workbench/training/checkpoint.py save: save_pretrained",
        "workbench/training/evaluation.py measure: write_table",
        "workbench/training/probe.py probe: write_table",
        "workbench/training/record.py write_rollouts: write_table",
    },
    "a function of that name that writes durably, or a text": {
        "analysis/report.py write: write_table",
        "analysis/search.py report: write_table",
        "workbench/tracking/points.py probes_table: to_json",
        "workbench/tracking/points.py rollouts_table: to_json",
    },
    "a lock, with at most its holder in it, whom the next one overwrites": {
        "workbench/launch/room.py _lock: os.open",
        "workbench/records.py claim: open",
        "workbench/records.py claim: truncate",
        "workbench/tracking/mirror.py _claim: open",
        "workbench/tracking/store.py ensure_store: open",
        "workbench/trials.py claim: open",
        "workbench/trials.py claim: truncate",
    },
    "a lease that is given back or was let go; one that stays runs out": {
        "workbench/launch/lease.py _excluding: unlink",
        "workbench/launch/lease.py hold: unlink",
        "workbench/launch/lease.py refuse_if_held: unlink",
    },
    "what a process says or is at, for people; no record": {
        "workbench/launch/attempt.py start: open",
        "workbench/launch/ray.py _work: open",
        "workbench/records.py tell: write_text",
    },
    "whole copies of records, which the next export or the next mirror makes again": {
        "workbench/tracking/points.py write_artifacts: write_text",
        "workbench/tracking/points.py write_compact: shutil.copy",
        "workbench/tracking/points.py write_compact: mkdir",
    },
    "a base model that one command makes from nothing, checked against its card": {
        "workbench/training/model_card.py write_record: write_text",
        "workbench/training/pretrain.py _save: mkdir",
        "workbench/training/pretrain.py _save: save_pretrained",
        "workbench/training/pretrain.py _save: write_text",
        "workbench/training/pretrain.py rebuild: write_text",
    },
    "a pipe, or the null device": {
        "workbench/cli.py main: os.open",
        "workbench/problems/isolation.py _ask: os.write",
        "workbench/problems/isolation.py : open",
    },
}


def test_every_durable_write_goes_through_the_module_that_has_the_fault_points() -> None:
    found = {
        f"{file.relative_to(LIBRARY)} {function}: {change(call)}"
        for file in FILES
        for function, call in calls(ast.parse(file.read_text()))
        if change(call)
    }
    assert found == set().union(*ALLOWED.values())


def test_what_changes_files_is_called_by_the_name_of_its_module() -> None:
    """Without it a `copy` could be anyone's, so that the test above would not see it."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("os", "shutil"), file
                if node.module == "workbench.durable":
                    assert [each.name for each in node.names if each.asname] == [], file


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("path.open('w')", True),
        ("path.open(mode='ab')", True),
        ("path.open(chosen)", True),
        ("open(path, 'r+')", True),
        ("open(path, mode)", True),
        ("io.open(path, 'x')", True),
        ("gzip.open(path, 'wt')", True),
        ("os.fdopen(number, 'w')", True),
        ("path.replace(other)", True),
        ("path.rename(other)", True),
        ("os.replace(one, other)", True),
        ("frame.to_parquet(path)", True),
        ("path.open()", False),
        ("path.open('rb')", False),
        ("open('data', newline='')", False),
        ("gzip.open(path)", False),
        ("text.replace('a', 'w')", False),
        ("each.replace(hour=0)", False),
        ("frame.rename(columns=names)", False),
        ("lines.remove('w')", False),
    ],
)
def test_what_changes_the_file_system_is_told_from_what_does_not(
    source: str, changes: bool
) -> None:
    ((_, call),) = calls(ast.parse(source))
    assert (change(call) is not None) is changes


NEVER = ("pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
FORBIDDEN_CALLS = ("eval", "exec", "compile", "os.system", "os.popen", "torch.load", "torch.save",
                   "yaml.load", "subprocess.getoutput", "subprocess.getstatusoutput")  # fmt: skip
FORBIDDEN_ARGUMENTS = ("trust_remote_code", "shell", "allow_pickle")
EVERY = [*FILES, DURABLE]


@pytest.mark.parametrize("file", EVERY, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_nothing_that_was_downloaded_or_written_by_a_model_is_run(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(a.name for a in node.names)]
    }
    assert not imported & set(NEVER)
    for _, call in calls(tree):
        assert ast.unparse(call.func) not in FORBIDDEN_CALLS
        assert not [k.arg for k in call.keywords if k.arg in FORBIDDEN_ARGUMENTS]
