"""What the commands print with: a console, and tables of one look."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """The terminal; a pipe has no width, and nothing is folded at 80 columns for it."""
    wide = None if sys.stdout.isatty() else 160
    return Console(markup=False, highlight=False, width=wide)


def grid(*titles: str) -> Table:
    """An empty table with these columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
