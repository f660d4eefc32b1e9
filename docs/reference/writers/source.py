"""What the source says of a class's fields, which the running program does not know: comments."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterable


def comments(kind: type) -> dict[str, str]:
    """Give the comment at each field of a class, or at each member of an enumeration.

    A comment stands at the end of the field's line, or in lines of its own right above it.

    Raises:
        LookupError: A field has none.
    """
    lines, first = inspect.getsourcelines(kind)
    source = textwrap.dedent("".join(lines))
    said = {
        token.start[0]: token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement in definition.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case _:
                continue
        above = []
        line = statement.lineno - 1
        while line in said and not said[line].line[: said[line].start[1]].strip():
            above.insert(0, said[line].string)
            line -= 1
        beside = [
            said[line].string
            for line in range(statement.lineno, (statement.end_lineno or 0) + 1)
            if line in said
        ]
        text = " ".join(comment.lstrip("# ") for comment in (*above, *beside))
        if not text:
            where = f"{inspect.getsourcefile(kind)}:{first + statement.lineno - 1}"
            raise LookupError(f"{where}: no comment says what '{name}' means")
        found[name] = text
    return found


def docstring(thing: object) -> str:
    """Give the summary and what follows it as prose, without sections such as `Example:`."""
    text = inspect.getdoc(thing) or ""
    prose = re.split(r"^(?:Args|Example|Raises|Returns|Sources?):", text, flags=re.MULTILINE)[0]
    return prose.strip()


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Give a Markdown table."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def sentence(text: str) -> str:
    """Give a comment as a sentence."""
    return text[:1].upper() + text[1:].removesuffix(".") + "."
