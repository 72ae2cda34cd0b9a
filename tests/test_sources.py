"""Rules that hold of the source text itself: where files are written, and what is never trusted."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import workbench

LIBRARY = Path(workbench.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py"))

# Calls that change the file system, by the last part of their name.
WRITES = {
    "mkdir", "makedirs", "rename", "replace", "renames", "unlink", "rmdir", "rmtree", "remove",
    "removedirs", "truncate", "symlink", "link", "touch", "copy", "copy2", "copyfile", "copytree",
    "move", "write_text", "write_bytes", "write_table", "to_parquet", "to_csv", "to_json",
    "save_file", "save_pretrained", "tofile", "savez", "savefig",
}  # fmt: skip
OWNERS = {"os", "shutil"}  # of `remove`, `replace`, ...: strings and dataclasses have some too

# What may write beside `durable`, and why a crash there loses nothing.
ALLOWED = {
    ("training/checkpoint.py", "save_pretrained"): "into the folder that durable.new_folder gives",
    ("training/checkpoint.py", "save_file"): "into the folder that durable.new_folder gives",
    ("training/evaluation.py", "write_table"): "into the file that durable.new_file gives",
    ("training/record.py", "write_table"): "into the file that durable.new_file gives",
    ("compact.py", "write_table"): "into the file that durable.new_file gives",
    ("training/probe.py", "write_table"): "into the file that durable.new_file gives",
    ("training/pretrain.py", "mkdir"): "a model that one command makes from nothing",
    ("training/pretrain.py", "save_pretrained"): "a model that one command makes from nothing",
    ("training/pretrain.py", "write_text"): "a model that one command makes from nothing",
    ("training/model_card.py", "write_text"): "a model that one command makes from nothing",
    ("records.py", "open"): "the lock",
    ("trials.py", "mkdir"): "the folder of the lock",
    ("trials.py", "open"): "the lock",
    ("trials.py", "truncate"): "the lock",
    ("launch/lease.py", "unlink"): "a lease that is given back; one that stays runs out",
    ("launch/ray.py", "open"): "the output of a process, for people",
    ("records.py", "truncate"): "the lock",
    ("records.py", "write_text"): "what a process is at, for people; no record",
    ("launch/attempt.py", "open"): "the output of a process, for people",
    ("launch/room.py", "os.open"): "a lock",
    ("tracking/mirror.py", "open"): "a lock",
    ("tracking/store.py", "open"): "a lock",
    ("tracking/points.py", "write_text"): "a temporary folder, to be sent to MLflow",
    ("tracking/points.py", "mkdir"): "a temporary folder, to be sent to MLflow",
    ("tracking/points.py", "copy"): "a temporary folder, to be sent to MLflow",
    ("tracking/points.py", "to_json"): "a text",
    ("problems/isolation.py", "open"): "a pipe",
    ("cli.py", "os.open"): "the null device",
    ("cli.py", "mkdir"): "the folder that an export is written into, whole copies of records",
}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, by its dotted name as far as it has one."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def writes(file: Path) -> set[str]:
    """The calls of a file that may change the file system."""
    found = set()
    for name, call in calls(file):
        owner, _, last = name.rpartition(".")
        if name == "open" and _mode(call) != "rb" and set(_mode(call)) & set("wax+"):
            found.add("open")
        elif name == "os.open":
            found.add(name)
        elif last in WRITES and (
            owner in OWNERS or last not in {"remove", "replace", "copy", "move", "link", "rename"}
        ):
            found.add(last)
    return found


def _mode(call: ast.Call) -> str:
    given = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return given[0].value if given and isinstance(given[0], ast.Constant) else "w" if given else "r"


def test_every_durable_write_goes_through_the_module_that_has_the_fault_points() -> None:
    found = {
        (str(file.relative_to(LIBRARY)), call)
        for file in FILES
        if file.name != "durable.py"
        for call in writes(file)
    }
    assert found == ALLOWED.keys()


NEVER = ("pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
FORBIDDEN_CALLS = ("eval", "exec", "compile", "os.system", "os.popen", "torch.load", "torch.save",
                   "yaml.load", "subprocess.getoutput", "subprocess.getstatusoutput")  # fmt: skip
FORBIDDEN_ARGUMENTS = ("trust_remote_code", "shell", "allow_pickle")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LIBRARY)))
def test_nothing_that_was_downloaded_or_written_by_a_model_is_run(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(a.name for a in node.names)]
    }
    assert not imported & set(NEVER)
    for name, call in calls(file):
        assert name not in FORBIDDEN_CALLS
        assert not [k.arg for k in call.keywords if k.arg in FORBIDDEN_ARGUMENTS]
