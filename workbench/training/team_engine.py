"""The rollout engine of a team: every process draws its share of the responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from workbench.rollout import Engine, Request, Response
from workbench.rollout.engine import Decoding, Hear, unheard
from workbench.training.team import Team


@dataclass(frozen=True)
class Answered:
    """A peer's responses, or None where it was stopped."""

    responses: list[list[Response]] | None


@dataclass(frozen=True)
class GotOn:
    """A peer's sign of progress."""


@dataclass
class TeamEngine:
    """Deals prompts out to the engines of all processes, each with the whole policy.

    Responses do not depend on what else is in a call, so that it changes nothing how many there
    are.
    """

    own: Engine
    team: Team
    get_on: Callable[[], object] = bool

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, hear: Hear = unheard
    ) -> list[list[Response]]:
        """See `Engine.generate`; raises also what `Team.hear` does.

        What other processes answer is heard once each has answered all of its share.
        """
        size = self.team.size
        shares = [list(requests[rank::size]) for rank in range(size)]
        self.team.order_each("generate", [(share, decoding) for share in shares[1:]])
        waiting = list(self.team.peers)
        self.own.get_on = self.get_on
        found: list[list[Response]] = [[] for _ in requests]
        try:
            found[::size] = self.own.generate(
                shares[0], decoding, lambda place, responses: hear(place * size, responses)
            )
            while waiting:
                self._listen(waiting, found, hear)
        except BaseException:
            self._stop(waiting)
            raise
        return found

    def close(self) -> None:
        """Ends its own engine; the peers' end with their processes."""
        self.own.close()

    def _listen(self, waiting: list[Connection], found: list[list[Response]], hear: Hear) -> None:
        ranks = {connection: rank for rank, connection in enumerate(self.team.peers, start=1)}
        for connection in wait(waiting):
            assert isinstance(connection, Connection)
            waiting.remove(connection)  # one that says how it ended has nothing more to say
            said = self.team.hear(connection)
            if isinstance(said, Answered):
                assert said.responses is not None
                places = range(ranks[connection], len(found), self.team.size)
                for place, responses in zip(places, said.responses, strict=True):
                    found[place] = responses
                    hear(place, responses)
            else:
                waiting.append(connection)
                self.get_on()

    def _stop(self, waiting: list[Connection]) -> None:
        """Has the peers leave the call, and hears them out, for what comes next is another.

        Where the leader stops because a peer ended, this is where that is told.
        """
        assert self.team.stop is not None
        self.team.stop.set()
        for connection in waiting:
            while not isinstance(self.team.hear(connection), Answered):
                pass
        self.team.stop.clear()
