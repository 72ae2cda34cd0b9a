"""Questions asked of the policy: responses, their texts and, graded meanwhile, their verdicts."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from workbench.problems import Dataset, Problem, Verdict
from workbench.problems.isolation import graders
from workbench.rollout import Engine, Request, Response
from workbench.rollout.engine import Decoding
from workbench.training.policy import Policy


@dataclass(frozen=True)
class Answer:
    """A response to a question.

    Attributes:
        response: as the engine drew it.
        text: decoded.
        verdict: on its way; `verdicts` waits for those of many.
    """

    response: Response
    text: str
    verdict: Future[Verdict]


def ask(
    policy: Policy,
    engine: Engine,
    data: Dataset,
    problems: Sequence[Problem],
    requests: Sequence[Request],
    decoding: Decoding,
) -> list[list[Answer]]:
    """Answers to each request, graded as those of the problem in its place, while others come."""
    judges, found = graders(data.verifier), {}

    def hear(place: int, responses: list[Response]) -> None:
        gold, texts = problems[place].answer, [policy.decode(r.tokens) for r in responses]
        found[place] = [
            Answer(response, text, judges.ask(text, gold))
            for response, text in zip(responses, texts, strict=True)
        ]

    try:
        engine.generate(requests, decoding, hear)
    except BaseException:
        judges.close()  # nobody waits any more for what they were asked
        raise
    return [found[place] for place in range(len(requests))]


def verdicts(engine: Engine, data: Dataset, answers: Sequence[Sequence[Answer]]) -> list[Verdict]:
    """What was said of all answers, once it is; meanwhile the engine is said to get on."""
    asked = [answer.verdict for each in answers for answer in each]
    return graders(data.verifier).said(asked, engine.get_on)
