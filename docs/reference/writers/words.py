"""docs/reference/words.md: the closed sets of words in answers, metrics and topics."""

from __future__ import annotations

import enum

from agent.job import ErrorCode, Placement
from agent.life import State
from agent.web.v2 import STATUSES
from policies.api import Why
from writers.source import comments, docstring, sentence, table

HEAD = """\
# Words

<!-- Written by `make docs` from the enumerations in agent/ and policies/; edit those. -->

Answers, metrics, topics and logs use these words, and no others.
"""


def write() -> str:
    """Give the page's text."""
    return "\n".join(
        [
            HEAD,
            _errors(),
            _words("Reasons", Why, "`reason` of an answer and of a decision."),
            _words("Placements", Placement, "`placement` of a job."),
            _words("States", State, "`state` of `edgewise_store_jobs`."),
        ]
    )


def _errors() -> str:
    said = comments(ErrorCode)
    rows = [
        (f"`{code}`", str(int(STATUSES[code])), sentence(said[code.name])) for code in ErrorCode
    ]
    words = table(("code", "HTTP status", "meaning"), rows)
    where = "`parameters.code` of an error; a job over HTTP gets the status."
    return f"## Error codes\n\n{docstring(ErrorCode)} {where}\n\n{words}\n"


def _words(title: str, kind: type[enum.StrEnum], where: str) -> str:
    said = comments(kind)
    rows = [(f"`{word}`", sentence(said[word.name])) for word in kind]
    return f"## {title}\n\n{docstring(kind)} {where}\n\n{table(('word', 'meaning'), rows)}\n"
