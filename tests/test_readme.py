"""README's code examples are a study file that loads, and its studies are valid."""

import re
from pathlib import Path

import pytest

from workbench.studyfile import load
from workbench.validate import validate

README = Path(__file__).parents[1] / "README.md"


def test_the_code_examples_run_as_one_study_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    path = tmp_path / "readme.py"
    path.write_text("\n".join(blocks))
    file = load(path)
    assert len(blocks) == 4
    assert [study.name for study in file.studies.values()] == ["mine"]
    for study in file.studies.values():
        validate(study)
        assert len(study.recipes) == 18 + 3
    bias, variance, error = map(float, capsys.readouterr().out.split())
    assert 0 < bias < 1 and variance > 0 and 0 < error < 1
    for output in (file.module.results, file.module.curves, file.module.gains):
        output.check()


def test_every_folder_and_file_that_is_named_is_there() -> None:
    tree = README.read_text().split("## Where things are")[1]
    for line in re.findall(r"^    (  )?(\S+?)(/?) {2,}", tree, re.MULTILINE):
        inside, name, _ = line
        where = README.parent / ("workbench" if inside else "") / name
        assert where.exists(), where
