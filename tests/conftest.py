"""What all tests share: slots of their own, so that no test waits for a study that trains here."""

import pytest

from workbench.launch.room import FOLDER


@pytest.fixture(autouse=True)
def _own_slots(tmp_path_factory, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path_factory.getbasetemp() / "slots"))
