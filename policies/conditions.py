"""Conditions in CEL over a situation: compiled and checked once, then evaluated in microseconds.

CEL is the Common Expression Language of Kubernetes and Envoy policies. The library is
`common-expression-language` (Rust, wheels for x86-64, aarch64 and armv7), in the extra `rules`;
`cel-python` is pure Python, at some 400 us for one evaluation. The library does not know which
names there are, nor their types: `Condition` checks both when it is made.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from typing import Any, NamedTuple

from policies.readings import NAMES, presence, variable

_SAMPLES: dict[str, Any] = {}
for _root, _names in NAMES.items():
    for _name, (_sample, _) in _names.items():
        _SAMPLES[variable(_root, _name)] = _sample
        _SAMPLES[presence(_root, _name)] = True
# A reading that is not known is not there, and CEL's error for that is what no match is made of;
# a number that is none (NaN) and a division by zero likewise.
NO_MATCH = (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError)

EXTENSION = "cel.cel"

# How like a known name must be to be suggested: "batery" is as like "battery_charge_ratio".
LIKENESS = 0.4

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<string>[rRbB]{0,2}(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'))
    |(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?u?)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<sign>&&|\|\||[=!<>]=|.)""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"true", "false", "null", "in"}
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class Condition:
    """One condition.

    Example:
        >>> from policies.readings import Reader
        >>> from policies.testing import situation
        >>> low = Condition("device.battery_charge_ratio < 0.3")
        >>> reader = Reader(low.names)
        >>> emptying, unknown = situation(battery_charge_ratio=0.1), situation()
        >>> low.holds(context(reader.variables(reader.read(emptying))))
        True
        >>> low.holds(context(reader.variables(reader.read(unknown))))
        False
        >>> Condition("battery < 0.3")
        Traceback (most recent call last):
            ...
        ValueError: 1:1: unknown name 'battery', known: job, device, local, cloud
    """

    def __init__(self, source: str) -> None:
        """Compile and check it.

        Raises:
            ValueError: It is no CEL, has a name that is not known, or types that don't fit; the
                message begins with line:column.
            ImportError: The extra `rules` is not installed.
        """
        self.source = source
        self._compile(source)
        self._bound = set()
        for match in _MACRO.finditer(source):
            self._bound.add(match[1])
            if match[1] in NAMES:
                raise self._refused(match.start(1), f"the name '{match[1]}' is taken")
        tokens = [
            _Token(match.lastgroup or "", match.group(), match.start())
            for match in _TOKEN.finditer(source)
            if match.lastgroup != "space"
        ]
        self.names = frozenset(self._named(tokens))
        self._check(tokens)
        self._program = self._compile(_flat(tokens))

    def holds(self, context: Any) -> bool:
        """Tell whether it is true in a `context`.

        What hangs on a reading that is not known does not hold, and nor does its negation.
        """
        try:
            return self._program.execute(context) is True
        except NO_MATCH:
            return False

    def _named(self, tokens: Sequence[_Token]) -> Iterator[tuple[str, str]]:
        """Find the readings that are named; ValueError at the first name that is not known."""
        padded = [*tokens, *[_Token("", "", 0)] * 3]
        for i, (kind, text, at) in enumerate(tokens):
            after_dot = i > 0 and tokens[i - 1].text == "."
            if kind != "name" or text in _WORDS or text in self._bound or after_dot:
                continue
            following, field = padded[i + 1 : i + 3]
            if following.text == "(":
                continue
            if text not in NAMES:
                raise self._refused(at, f"unknown name '{text}', known: {', '.join(NAMES)}")
            if following.text != "." or field.kind != "name":
                raise self._refused(at, f"want '{text}.' and the name of a reading")
            if field.text not in NAMES[text]:
                near = difflib.get_close_matches(field.text, NAMES[text], 3, LIKENESS)
                hint = f"known: {', '.join(sorted(NAMES[text]))}"
                if near:
                    hint = f"did you mean {' or '.join(near)}?"
                raise self._refused(at, f"unknown name '{text}.{field.text}', {hint}")
            yield text, field.text

    def _check(self, tokens: Sequence[_Token]) -> None:
        """Check that this part is true or false; each part by itself, as CEL skips what it can."""
        parts = _split(tokens, {"?", ":"}) or _split(tokens, {"||"}) or _split(tokens, {"&&"})
        compared = _split(tokens, {"==", "!=", "<", "<=", ">", ">=", "in"})
        if parts:
            for part in parts:
                self._check(part)
        elif not compared and tokens[0].text == "!":
            self._check(tokens[1:])
        elif not compared and tokens[0].text == "(" and _closing(tokens) == len(tokens) - 1:
            self._check(tokens[1:-1])
        else:
            value = self._value(tokens)
            if not isinstance(value, bool):
                raise self._refused(tokens[0].at, f"want true or false, got {_type(value)}")
            if any(token.text in {"==", "!="} for token in tokens) and compared[1:]:
                left, right = (_type(self._value(side)) for side in compared[:2])
                if left != right:
                    raise self._refused(tokens[0].at, f"{left} is never equal to {right}")

    def _value(self, tokens: Sequence[_Token]) -> Any:
        at = tokens[0].at
        try:
            return self._compile(_flat(tokens)).execute(_SAMPLES)
        except NO_MATCH as error:
            said = str(error).partition(". ")[0].partition("\n")[0]
            if "float" in said and "int" in said:
                said += ": readings are doubles, write 2.0 instead of 2"
            unknown = re.match(r"Undefined variable or function: '(\w+)'", said)
            if unknown:
                at = next((token.at for token in tokens if token.text == unknown[1]), at)
                said = f"unknown function '{unknown[1]}'"
            raise self._refused(at, said) from None

    @staticmethod
    def _compile(source: str) -> Any:
        try:
            return library().compile(source)
        except ValueError as error:
            said = re.search(r"<input>:(\d+):(\d+): (.*)", str(error))
            where = f"1:1: {error}" if said is None else f"{said[1]}:{said[2]}: {said[3]}"
            raise ValueError(where) from None

    def _refused(self, at: int, reason: str) -> ValueError:
        before = self.source[:at]
        line, column = before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1
        return ValueError(f"{line}:{column}: {reason}")


def context(variables: Mapping[str, Any]) -> Any:
    """Make what conditions are evaluated in, of `Reader.variables`."""
    return library().Context(variables)


def library() -> Any:
    """Load the CEL library; ImportError says how to install it."""
    loaded = sys.modules.get(EXTENSION)
    if loaded is not None:
        return loaded
    found = importlib.util.find_spec("cel")
    # Its package imports a command line (rich, prompt_toolkit) besides: 27 MB and 180 ms.
    extension = found and PathFinder.find_spec(EXTENSION, found.submodule_search_locations)
    if extension is None or extension.loader is None:
        raise ImportError("conditions need the extra: pip install 'edgewise[rules]'")
    module = importlib.util.module_from_spec(extension)
    # It must not be loaded twice, by whoever imports `cel` later.
    sys.modules[EXTENSION] = module
    extension.loader.exec_module(module)
    return module


def _flat(tokens: Sequence[_Token]) -> str:
    """Write tokens out again, with each reading as one variable."""
    written = []
    texts = [token.text for token in tokens]
    i = 0
    while i < len(texts):
        if texts[i : i + 2] == ["has", "("] and texts[i + 3 : i + 6 : 2] == [".", ")"]:
            written.append(presence(texts[i + 2], texts[i + 4]))
            i += 6
        elif tokens[i].kind == "name" and texts[i] in NAMES and texts[i - 1 : i] != ["."]:
            written.append(variable(texts[i], texts[i + 2]))
            i += 3
        else:
            written.append(texts[i])
            i += 1
    return " ".join(written)


def _split(tokens: Sequence[_Token], signs: set[str]) -> list[Sequence[_Token]]:
    """Split at these signs outside of all brackets; nothing where there are none."""
    depth, began = 0, 0
    parts = []
    for i, token in enumerate(tokens):
        depth += (token.text in {"(", "[", "{"}) - (token.text in {")", "]", "}"})
        if depth == 0 and token.text in signs and token.kind != "string":
            parts.append(tokens[began:i])
            began = i + 1
    return [*parts, tokens[began:]] if parts else []


def _closing(tokens: Sequence[_Token]) -> int:
    """Find where the bracket closes that the tokens open with."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token.text in {"(", "[", "{"}) - (token.text in {")", "]", "}"})
        if depth == 0:
            return i
    return -1


def _type(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
    return kinds.get(type(value), type(value).__name__)
