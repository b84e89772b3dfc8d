"""The episodes of a store with the rewards of members of a family, computed from stored features as they are read."""

import zlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from ringrl.envs import RewardFamily, with_different_cues
from ringrl.episode import StepSpan
from ringrl.errors import UserError
from ringrl.store.episode_store import Store

Span = tuple[int, int, int]
"""(episode, start, stop): environment steps `start:stop` of an episode."""


_STATES = 8  # of an episode, looked at for one in which a member pays
PAID = 0.01
"""The least reward that counts as paid: below it are the tails of a narrow goal, which pays a little everywhere."""


class RelabelledEpisodes:
    """A `ringrl.sampling.chains.EpisodeReader` of reward-free episodes, each paid by whichever member is asked for.

    Where none is asked for, as where scales are measured or a card is written, each episode is paid by a member drawn
    for it once (`draw`).

    Attributes:
        store: the episodes; it has the features of `family`.
        family: whose members pay.
        visible: whether observations end with the member's parameter, as in the family's visible task; they always
            end with its cue, where members have one.
        hindsight_share: how many of the drawn members pay at a state of the data; the rest are drawn as tasks are.
        library: how many members a context has: one of these numbers, drawn for it, each as likely as any.
    """

    def __init__(
        self,
        store: Store,
        family: RewardFamily,
        *,
        visible: bool = False,
        hindsight_share: float = 0.5,
        library: Sequence[int] = (1,),
    ):
        """Raises UserError where the store is of another domain, or has no features of the family."""
        self.store, self.family, self.visible, self.hindsight_share = store, family, visible, hindsight_share
        self.library = tuple(library)
        if store.domain != family.domain:
            raise UserError(f"{store.path} is of {store.domain}, and {family.name} of {family.domain}")
        self._features = store.features(family.name)

    @property
    def sizes(self) -> dict[str, int]:
        """Widths of `observation`, with what is shown of the parameter, and of `action`."""
        wider = self.family.shown(self.visible)
        return self.store.sizes | {"observation": self.store.sizes["observation"] + wider}

    @property
    def lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Environment steps of every episode."""
        return self.store.lengths

    @property
    def source(self) -> Int32[np.ndarray, " episodes"]:
        """Index of the source of every episode."""
        return self.store.source

    def checksum(self) -> int:
        """CRC-32 of the features, to tell data apart; the members that pay are drawn, and are no data."""
        return zlib.crc32(np.ascontiguousarray(self._features).data)

    @cached_property
    def drawn(self) -> Float32[np.ndarray, "episodes parameters"]:
        """The member that was drawn for each episode, half of them by hindsight.

        So what a run measures of its data does not depend on `hindsight_share`, which may change when it continues.
        """
        return self._draw(np.random.default_rng(0), np.arange(self.store.episodes), share=0.5)

    def draw(self, rng: np.random.Generator, episodes: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n parameters"]:
        """A member for each episode: a share of them pay at one of its states, the rest are drawn as tasks are."""
        return self._draw(rng, episodes, self.hindsight_share)

    def draw_context(
        self, rng: np.random.Generator, episodes: Int64[np.ndarray, " pieces"]
    ) -> Float32[np.ndarray, "pieces parameters"]:
        """The members that pay the pieces of a context, of the episodes that those are of.

        All are paid by one. Where members have cues, a library of them is drawn, and one of it for every piece, each as
        likely as any. By hindsight a member pays at a state of an episode that it pays, drawn uniformly from these.
        """
        if not self.family.cue:
            some = episodes[rng.integers(len(episodes), size=1)]
            return np.repeat(self.draw(rng, some), len(episodes), axis=0)
        members = self.library[rng.integers(len(self.library))]
        active = rng.integers(members, size=len(episodes))
        there, of_piece = np.unique(active, return_inverse=True)
        some = np.array([rng.choice(episodes[active == each]) for each in there])
        # Members of no piece pay nothing, and their cues are never seen, so that they need not be drawn.
        return with_different_cues(rng, self.draw(rng, some))[of_piece]

    def _draw(
        self, rng: np.random.Generator, episodes: Int64[np.ndarray, " n"], share: float
    ) -> Float32[np.ndarray, "n parameters"]:
        drawn = self.family.members(rng, len(episodes))
        some = rng.random(len(episodes)) < share
        drawn[some] = self.hindsight(rng, episodes[some])
        return drawn

    def hindsight(
        self, rng: np.random.Generator, episodes: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n parameters"]:
        """For each episode a member that pays at one of its states, those after a step (`hindsight_between`)."""
        first = self.store.first_rows[episodes]
        return self.hindsight_between(rng, first + 1, first + self.lengths[episodes])

    def hindsight_between(
        self, rng: np.random.Generator, first: Int64[np.ndarray, " n"], last: Int64[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n parameters"]:
        """For each stretch of rows of the features, `last` included, a member that pays in one drawn uniformly from it.

        Where no member pays in that state, as beyond all goals, another row is drawn, some times; then any member is.
        """
        members = np.empty((len(first), len(self.family.parameters)), np.float32)
        left = np.arange(len(first))
        for _ in range(_STATES):
            seen = self._features[first[left] + rng.integers(last[left] - first[left] + 1)]
            members[left] = self.family.hindsight(rng, seen)
            left = left[self.family.reward(seen, members[left]) < PAID]
            if not len(left):
                break
        return members

    def returns(self, task: str) -> Float64[np.ndarray, " episodes"]:
        """Undiscounted return of every episode under the member drawn for it; `task` is the family's."""
        return self.returns_under(np.arange(self.store.episodes), self.drawn)

    def returns_under(
        self, episodes: Int64[np.ndarray, " n"], parameters: Float32[np.ndarray, "n parameters"]
    ) -> Float64[np.ndarray, " n"]:
        """Undiscounted return of each episode under a member each."""
        spans = [(episode, 0, int(self.lengths[episode])) for episode in episodes.tolist()]
        return np.array([paid.sum(dtype=np.float64) for paid in self.rewards(spans, parameters)])

    def rewards(
        self, spans: Sequence[Span], parameters: Float32[np.ndarray, "spans parameters"]
    ) -> list[Float32[np.ndarray, " _steps"]]:
        """The rewards of each span's steps under a member each."""
        # A span at a time: a parameter that is repeated for every row takes several times as long, and much memory.
        return [self.family.reward(seen, one) for seen, one in zip(self.features(spans), parameters, strict=True)]

    def features(self, spans: Sequence[Span]) -> list[Float32[np.ndarray, "_steps features"]]:
        """What the rewards of each span's steps read: of the state after each."""
        first = self.store.first_rows[[episode for episode, _, _ in spans]].tolist()
        rows = [slice(row + start + 1, row + stop + 1) for row, (_, start, stop) in zip(first, spans, strict=True)]
        return [self._features[each] for each in rows]

    def read_many(self, spans: Sequence[Span], task: str) -> list[StepSpan]:
        """Environment steps of each span, paid by the member drawn for its episode."""
        return self.read_members(spans, self.drawn[[episode for episode, _, _ in spans]])

    def read_members(
        self, spans: Sequence[Span], parameters: Float32[np.ndarray, "spans parameters"]
    ) -> list[StepSpan]:
        """Environment steps of each span, paid by a member each. Raises as `Store.read_many`."""
        found = self.store.read_steps(spans)
        paid = self.rewards([(episode, 0, stop) for episode, _, stop in spans], parameters)
        return [
            StepSpan(self._seen(observation, member), action, reward[start:], discount, reward[:start])
            for (observation, action, discount), reward, member, (_, start, _) in zip(
                found, paid, parameters, spans, strict=True
            )
        ]

    def _seen(self, observation: np.ndarray, member: np.ndarray) -> np.ndarray:
        shown = member[: self.family.shown(self.visible)]
        if not len(shown):
            return observation
        return np.concatenate([observation, np.broadcast_to(shown, (len(observation), len(shown)))], axis=1)


Episodes = Store | RelabelledEpisodes
"""What contexts are drawn from: the episodes of a store, of tasks of a family with the rewards of its members."""
