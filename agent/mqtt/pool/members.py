"""Who is in the pool, as each agent sees it. No I/O.

Each agent keeps a retained message about itself, and the broker replaces it by the agent's last
will. So all know who is there and who has room; and of those who have gone, one agent is to take
up what the broker still holds for them: the next by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

# An agent that is back by then finds its jobs untouched.
GRACE_S = 3.0
# Each says this often that it is there: one that dies while the broker is away has no last will.
AGAIN_S = 15.0
SILENT_S = 60.0


class Notice(msgspec.Struct):
    """What an agent says of itself."""

    status: str  # online or offline
    models: tuple[str, ...] = ()  # that it serves
    full: bool = False  # it can begin with no more jobs


@dataclass(slots=True)
class _Member:
    notice: Notice
    since: float  # it is online or offline
    heard: float  # when it last said so


class Members:
    """The agents of one pool."""

    def __init__(self, own_name: str, clock: Callable[[], float]) -> None:
        """Set up an empty pool; `clock` gives monotonic seconds."""
        self._own_name = own_name
        self._clock = clock
        self._members: dict[str, _Member] = {}

    def hear(self, name: str, payload: bytes) -> None:
        """Take in what an agent says of itself; nothing: it has been forgotten.

        Raises:
            ValueError: That makes no sense.
        """
        if not payload:
            self._members.pop(name, None)
            return
        try:
            notice = msgspec.json.decode(payload, type=Notice)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from None
        now = self._clock()
        before = self._members.get(name)
        same = before is not None and before.notice.status == notice.status
        since = before.since if before is not None and same else now
        self._members[name] = _Member(notice, since, now)

    def has_room(self, model: str) -> bool:
        """Tell whether another agent would take a job for this model now."""
        return any(
            name != self._own_name
            and self._is_online(member)
            and not member.notice.full
            and model in member.notice.models
            for name, member in self._members.items()
        )

    def models_of(self, name: str) -> Iterable[str]:
        """Give the models that an agent serves, or served."""
        member = self._members.get(name)
        return () if member is None else member.notice.models

    def orphaned(self) -> list[str]:
        """Give those whose jobs are ours to take up."""
        now = self._clock()
        return [
            name
            for name, member in self._members.items()
            if name != self._own_name
            and not self._is_online(member)
            and now - member.since >= GRACE_S  # for one that is silent, it is long past
            and self._successor(name) == self._own_name
        ]

    def _successor(self, gone: str) -> str:
        present = {name for name, member in self._members.items() if self._is_online(member)}
        names = sorted(present | {self._own_name})
        return next((name for name in names if name > gone), names[0])

    def _is_online(self, member: _Member) -> bool:
        return member.notice.status == "online" and self._clock() - member.heard < SILENT_S
