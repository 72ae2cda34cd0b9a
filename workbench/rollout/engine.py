"""The interface of rollout engines: prompts in, sampled tokens with their log-probabilities out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from workbench.processes import Killed


@dataclass(frozen=True)
class Request:
    """One prompt, to be answered `samples` times from random numbers of its own.

    Attributes:
        prompt: token ids.
        samples: how many responses.
        seed: of this prompt's random numbers; results do not depend on what else is in the call.
    """

    prompt: tuple[int, ...]
    samples: int
    seed: int


@dataclass(frozen=True)
class Response:
    """One sampled response.

    Attributes:
        tokens: ids, with the end token where there is one.
        logprobs: the engine's own log-probability of each token, at the sampling temperature and
            over the whole vocabulary; the trainer computes its own and logs the difference. Empty
            where an engine has them over a part of the vocabulary only, as vLLM below top-p 1.
        finished: whether it ended by itself; False means truncated at `max_tokens`.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: temperature above 0, nucleus mass, and where a response is cut."""

    temperature: float
    top_p: float
    max_tokens: int


Hear = Callable[[int, list[Response]], object]


def unheard(place: int, responses: list[Response]) -> None:
    """Nothing: whoever asks waits for all."""


class Engine(Protocol):
    """Draws responses from the policy as it is at the time of the call.

    Attributes:
        get_on: called whenever the engine got further; what it raises ends the call.
    """

    get_on: Callable[[], object]

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, hear: Hear = unheard
    ) -> list[list[Response]]:
        """For each request its responses, in order.

        `hear` is called with the place of a request and its responses once all of them are there,
        in any order of requests and maybe from other threads, by one at a time, while more are
        drawn; what it raises ends the call.
        """
        ...

    def close(self) -> None:
        """Ends what it started and gives its memory back."""
        ...


class EngineKilled(Killed):
    """A process of the engine was ended from outside."""
