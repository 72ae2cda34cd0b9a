"""Where the runs of a study are trained: processes of this machine."""

from workbench.launch.local import Event, Launcher
from workbench.launch.room import Slot, slots

__all__ = ["Event", "Launcher", "Slot", "slots"]
