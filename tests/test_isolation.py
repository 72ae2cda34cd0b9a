"""A verifier that hangs, crashes or prints a gigabyte costs its own time and one verdict."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest
from system import wait_for_end

from workbench.identity import load_module
from workbench.problems import ExactMatch, MathMatch, Verdict, Verifier, isolation, verify
from workbench.problems.isolation import Graders, Isolated, graders

GIGABYTE = 2**30


def hang() -> None:
    while True:
        pass


def shout() -> None:
    for _ in range(1024):
        sys.stdout.write("x" * 2**20)
        sys.stderr.write("x" * 2**20)


def descend() -> None:
    descend()


DEEDS: dict[str, Callable[[], object]] = {
    "hang": hang,
    "sleep": lambda: time.sleep(600),
    r"a nap, then \boxed{7}": lambda: time.sleep(4.5),
    "raise": lambda: 1 / 0,
    "recurse": descend,
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(0),
    "interrupt": lambda: os.kill(os.getppid(), signal.SIGUSR1),
    "allocate": lambda: bytearray(64 * GIGABYTE),
    "print": shout,
}


class Fragile(Verifier):
    """Does what the response says."""

    def __call__(self, response: str, gold: str) -> Verdict:
        if response in DEEDS:
            DEEDS[response]()
        return verify(response, gold) if response != "a value" else "correct"  # type: ignore


def processes_of(several: Graders) -> list[subprocess.Popen[bytes] | None]:
    return [each._process for each in several._waiting]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process imports the verifier by the module that defines it: this one."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def isolated() -> Iterator[Isolated]:
    found = Isolated(Fragile(), seconds=300)  # of a busy machine
    yield found
    found.close()


VERDICTS = {
    r"\boxed{7}": Verdict.CORRECT,
    r"\boxed{8}": Verdict.WRONG,
    "nothing": Verdict.UNPARSABLE_ANSWER,
    "raise": Verdict.ERROR,
    "recurse": Verdict.ERROR,
    "allocate": Verdict.ERROR,
    "die": Verdict.ERROR,
    "exit": Verdict.ERROR,
    "a value": Verdict.ERROR,
    "x" * 10**7 + r"\boxed{7}": Verdict.CORRECT,  # more than any pipe holds
}


def test_every_response_has_a_verdict_and_spoils_no_other(isolated: Isolated) -> None:
    given = [*VERDICTS, next(iter(VERDICTS))]
    assert [isolated(each, "7") for each in given] == [VERDICTS[each] for each in given]


@pytest.mark.parametrize("response", ["hang", "sleep"])
def test_one_that_hangs_is_a_timeout_at_its_own_limit(response: str) -> None:
    isolated = Isolated(Fragile(), seconds=1)
    assert isolated(response, "7") is Verdict.TIMEOUT
    isolated.seconds = 300
    assert isolated(r"\boxed{7}", "7") is Verdict.CORRECT
    isolated.close()


def test_one_that_takes_too_long_is_ended_by_its_own_time_and_not_by_the_clock(
    isolated: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, ask = [], Isolated._ask

    def asked(*given: Any) -> tuple[bytes, bool]:
        late.append(ask(*given))
        return late[-1]

    monkeypatch.setattr(isolation, "PATIENCE", 60)
    monkeypatch.setattr(Isolated, "_ask", asked)
    isolated.seconds = 1
    assert isolated("hang", "7") is Verdict.TIMEOUT
    assert late[-1] == (b"", False)


def test_time_that_it_does_not_spend_on_a_processor_is_not_counted(isolated: Isolated) -> None:
    isolated.seconds = 4
    assert isolated(r"a nap, then \boxed{7}", "7") is Verdict.CORRECT


def test_a_gigabyte_of_output_goes_nowhere(isolated: Isolated) -> None:
    assert isolated("print", "7") in (Verdict.UNPARSABLE_ANSWER, Verdict.TIMEOUT)
    assert isolated(r"\boxed{7}", "7") is Verdict.CORRECT


def test_only_what_interprets_answers_has_processes_of_its_own() -> None:
    exact, several = graders(ExactMatch()), graders(MathMatch())
    assert several is graders(MathMatch())
    assert exact([(r"\boxed{7}", "7")]) == [Verdict.CORRECT]
    assert several([(r"so \boxed{\frac{1}{2}}", "0.5")]) == [Verdict.CORRECT]
    assert [len(processes_of(each)) for each in (exact, several)] == [0, 1]
    several.close()


def test_several_processes_give_the_verdicts_of_one_in_order() -> None:
    answers = [(rf"\boxed{{{n % 7}}}", str(n % 5)) for n in range(70)] + [("hang", "7")]
    several = Graders(Fragile(), processes=3, seconds=1)
    expected = [Fragile()(*each) for each in answers[:-1]]
    assert several(answers) == [*expected, Verdict.TIMEOUT]
    assert several(answers[:-1]) == expected  # the one that was killed is there again
    assert len(processes_of(several)) == 3
    several.close()


def test_answers_are_graded_while_whoever_asks_does_other_things() -> None:
    several = Graders(Fragile(), processes=2, seconds=300)
    asked = [several.ask(rf"\boxed{{{n}}}", "7") for n in range(20)]
    assert not wait(asked, timeout=300).not_done  # nobody asks again
    asked.append(several.ask("hang", "7"))
    assert several.ask(r"\boxed{7}", "7").result(300) is Verdict.CORRECT  # of the other process
    assert not asked.pop().done()
    assert [each.result().value for each in asked].count("correct") == 1
    several.close()


def test_a_call_that_is_left_in_the_middle_leaves_no_answer_for_the_next(
    interrupted: type[Exception],
) -> None:
    several = Graders(Fragile(), processes=2, seconds=300)
    assert several([(r"\boxed{7}", "7")]) == [Verdict.CORRECT]
    (process,) = processes_of(several)
    with pytest.raises(interrupted):
        several([("interrupt", "7"), ("sleep", "7")])
    assert process is not None
    assert process.poll() is not None
    assert several([(r"\boxed{7}", "7")]) == [Verdict.CORRECT]
    several.close()


def test_whoever_waits_is_told_that_it_goes_on_and_may_leave() -> None:
    class Enough(Exception):
        pass

    def get_on() -> None:
        told.append(len(told))
        if len(told) > before + 3:
            raise Enough

    several, told, before = Graders(Fragile(), processes=2, seconds=600), [], 0
    asked = several.ask(r"\boxed{7}", "7")
    assert several.said([asked], lambda: told.append(0)) == [Verdict.CORRECT]
    before = len(told)
    asked = [several.ask("hang", "7") for _ in range(40)]
    with pytest.raises(Enough):
        several.said(asked, get_on)
    assert processes_of(several) == []
    with pytest.raises(CancelledError):
        several.said(asked)  # what was let go is not waited for


@pytest.mark.parametrize(("allowed", "found"), [(1, 1), (3, 3), (100, 8)])
def test_a_verifier_has_no_more_processes_than_its_cell_may_use(
    allowed: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "cores", lambda: 64)
    graders.cache_clear()
    isolation.allow(allowed)
    assert graders(MathMatch()).processes == found
    isolation.allow(isolation.MOST)
    graders.cache_clear()


@pytest.fixture
def interrupted() -> Iterator[type[Exception]]:
    """An error that the response `interrupt` makes in the process that asks."""

    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield Interrupted
    signal.signal(signal.SIGUSR1, before)


def test_no_answers_need_no_process() -> None:
    several = Graders(MathMatch(), processes=3)
    assert several([]) == []
    assert processes_of(several) == []


THEIRS = """
import os
from workbench.problems.verifier import Verifier
if "BROKEN" in os.environ:
    raise ImportError("no such parser")
class Theirs(Verifier):
    pass
"""


def test_a_verifier_that_cannot_be_started_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "theirs.py"
    source.write_text(THEIRS)
    theirs = load_module(str(source)).Theirs()
    monkeypatch.setenv("BROKEN", "yes")
    said = r"Theirs\(\) cannot be started .* no such parser"
    with pytest.raises(RuntimeError, match=said):
        Isolated(theirs)("x", "7")
    several = Graders(theirs, processes=2)
    asked = [several.ask("x", "7")]
    with pytest.raises(RuntimeError, match=said):
        asked[0].result(300)
    with pytest.raises(RuntimeError, match=said):  # at once: it is not tried for every answer
        several.ask("y", "7")
    with pytest.raises(RuntimeError, match=said):
        several.said(asked)


TRAINER = """
from test_isolation import Fragile
from workbench.problems.isolation import Isolated
isolated = Isolated(Fragile(), seconds=600)
isolated("x", "7")
print(isolated._process.pid, flush=True)
isolated("hang", "7")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_it_does_not_outlive_a_trainer_that_is_killed() -> None:
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    child = int(trainer.stdout.readline())
    trainer.kill()
    trainer.communicate()
    wait_for_end(child)
