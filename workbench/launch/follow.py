"""New lines of a record that another process appends to."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Follow:
    """Reads each whole line once; a record written anew (a resumed run) is read from its start."""

    path: Path
    _offset: int = field(default=0, init=False)
    _file: int = field(default=0, init=False)

    def rows(self) -> list[dict[str, Any]]:
        """The rows since the last call; a line that is still being written waits for the next."""
        try:
            with open(self.path, "rb") as handle:
                state = os.fstat(handle.fileno())
                if state.st_ino != self._file or state.st_size < self._offset:
                    self._file, self._offset = state.st_ino, 0
                handle.seek(self._offset)
                text = handle.read()
        except FileNotFoundError:
            return []
        whole = text.rfind(b"\n") + 1
        self._offset += whole
        return [json.loads(line) for line in text[:whole].splitlines()]
