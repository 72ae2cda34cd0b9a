import pytest

from workbench.problems import Verdict, extract_boxed, verify

BOXES = {
    r"\boxed{155}": "155",
    r"345+812=157;\boxed{157}": "157",
    r"\boxed{1} no \boxed{2}": "2",
    r"\boxed{\frac{1}{2}} done": r"\frac{1}{2}",
    r"\boxed{}": "",
    r"\boxed{155": None,
    r"\boxed{1} then \boxed{2": None,
    "155": None,
    "": None,
}

VERDICTS = [
    (r"\boxed{155}", "155", Verdict.CORRECT),
    (r"\boxed{ 155 }", "155\n", Verdict.CORRECT),
    (r"\boxed{155} no \boxed{156}", "155", Verdict.WRONG),
    (r"\boxed{15}", "155", Verdict.WRONG),
    (r"\boxed{ }", "155", Verdict.UNPARSABLE_ANSWER),
    ("155", "155", Verdict.UNPARSABLE_ANSWER),
    (r"\boxed{155", "155", Verdict.UNPARSABLE_ANSWER),
    (r"\boxed{155}", " ", Verdict.UNPARSABLE_GOLD),
]


@pytest.mark.parametrize("response", BOXES, ids=repr)
def test_the_last_box_is_read_with_balanced_braces(response: str) -> None:
    assert extract_boxed(response) == BOXES[response]


@pytest.mark.parametrize(("response", "gold", "verdict"), VERDICTS, ids=repr)
def test_a_verdict_follows_from_the_last_box(response: str, gold: str, verdict: Verdict) -> None:
    assert verify(response, gold) is verdict


def test_verdicts_are_written_in_snake_case() -> None:
    for verdict in Verdict:
        assert verdict.value == verdict.name.lower()
