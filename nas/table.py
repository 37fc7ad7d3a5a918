"""Tables name -> class: how a name and its options from a file become a class, or a clear error."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from search_spaces.space import nearest

# the type of an option's default: what a value may be instead, and how an error calls it
KINDS = (
    (bool, (bool,), "true or false"),
    (int, (int,), "a whole number"),
    (float, (int, float), "a number"),
    (str, (str,), "a string"),
    (Sequence, (list, tuple), "a list"),
    (Mapping, (Mapping,), "a table of names and values"),
)


def options(cls: type) -> dict[str, Any]:
    """What a class of a table can be given by name: its keyword-only arguments with a default."""
    parameters = inspect.signature(cls).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }


def look_up(
    kind: str,
    table: Mapping[str, type],
    name: str,
    given: Mapping[str, Any],
    besides: Collection[str] = (),
) -> type:
    """The class called `name`, once the options `given` are known to fit it.

    kind: what the table holds, for the errors ("controller"). besides: arguments that the caller
    sets itself and that are no options.
    Raises ValueError for a name that is not in the table, an option that the class does not have,
    or a value of another type than the option's default.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {kind} '{name}'; {nearest(str(name), table)}")
    known = {k: v for k, v in options(table[name]).items() if k not in besides}
    for option, value in given.items():
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise ValueError(f"{kind} '{name}' has no option '{option}'; {hint}")
        default = known[option]
        default = dict(default) if isinstance(default, Mapping) else default
        types, words = next((t, w) for base, t, w in KINDS if isinstance(default, base))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(
                f"{kind} '{name}', option '{option}': expected {words} such as "
                f"{default!r}, got {value!r}"
            )
    return table[name]
