"""Which calls of the source change the file system, and in which functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import workbench

LIBRARY = Path(workbench.__file__).parents[1]
DURABLE = LIBRARY / "workbench/durable.py"
# All but the module that writes what must survive.
FILES = sorted(
    file
    for package in ("workbench", "analysis")
    for file in (LIBRARY / package).rglob("*.py")
    if file != DURABLE
)

# Calls that change it, by the last part of their name.
CHANGES = {
    "mkdir", "makedirs", "mkfifo", "renames", "unlink", "rmdir", "rmtree", "removedirs",
    "truncate", "symlink", "symlink_to", "hardlink_to", "touch", "copy2", "copyfile",
    "copyfileobj", "copytree", "write_text", "write_bytes", "write_table", "write_dataset",
    "to_parquet", "to_csv", "to_json", "to_feather", "to_pickle", "to_excel", "to_hdf",
    "save_file", "save_pretrained", "tofile", "savetxt", "savez", "savez_compressed", "savefig",
    "extractall", "urlretrieve", "download_artifacts",
}  # fmt: skip
# By their whole names what strings, lists and frames have too.
WHOLE = {
    f"{module}.{name}"
    for module in ("os", "shutil")
    for name in ("remove", "replace", "copy", "move", "link", "rename", "write", "open")
} | {"np.save", "numpy.save", "sqlite3.connect"}
OF_PATHS = {"replace", "rename"}  # of a path these take one argument: where it goes
OPENERS = {"open", "fdopen"}
MODULES = {"io", "os", "gzip", "bz2", "lzma", "codecs", "tarfile", "zipfile"}  # open(path, mode)


def calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Every call, with the outermost function that it is in; empty for what a module does."""
    for node in ast.iter_child_nodes(tree):
        defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inside = function or (node.name if defines else "")
        if isinstance(node, ast.Call):
            yield inside, node
        yield from calls(node, inside)


def change(call: ast.Call) -> str | None:
    """The name by which a call may change the file system; None for all others."""
    name = ast.unparse(call.func)
    owner, _, last = name.rpartition(".")
    if name in WHOLE:
        return name
    if last in OPENERS:
        return last if set("wax+") & set(_mode(call, owner)) else None
    if last in OF_PATHS and owner and len(call.args) == 1 and not call.keywords:
        return last
    return last if last in CHANGES else None


def _mode(call: ast.Call, owner: str) -> str:
    """What a file is opened for; one that is known only when it runs may be anything."""
    place = 0 if owner and owner not in MODULES else 1
    given = [*call.args[place : place + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    first = given[0] if given else ast.Constant("r")
    return str(first.value) if isinstance(first, ast.Constant) else "w"
