"""The pool's topics and client ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROOT = "edgewise/v1/pool"


@dataclass(frozen=True, slots=True)
class Names:
    """The names in one pool."""

    group: str

    def client_id(self, agent: str) -> str:
        """Give the id by which an agent's session for the pool is known to the broker."""
        return f"edgewise-pool-{self.group}-{agent}"

    def notice(self, agent: str) -> str:
        """Give the topic of what an agent says of itself; `+` stands for all agents."""
        return f"{ROOT}/agents/{self.group}/{agent}"

    def shares(self, models: Iterable[str]) -> list[str]:
        """Give the subscriptions to jobs for these models."""
        return [f"$share/{self.group}/{ROOT}/jobs/{model}" for model in sorted(models)]

    def parse(self, topic: str) -> tuple[str, str]:
        """Tell what a message is, by its topic: jobs and which model, or agents and which one.

        Anything else comes with an empty name.
        """
        kind, _, name = topic.removeprefix(f"{ROOT}/").partition("/")
        if kind == "agents":
            return kind, name.removeprefix(f"{self.group}/")
        return kind, name if kind == "jobs" else ""
