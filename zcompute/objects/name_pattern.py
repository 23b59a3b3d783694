"""Names as clients filter by them: Nova takes regular expressions, we the part of them that costs a bounded time.

A pattern matches anywhere in the name, as in Nova. ``^`` at its begin and ``$`` at its end hold it fast, ``.`` is any
one character, ``.*`` any number of them, ``.+`` at least one, and a backslash takes what follows it as it is. Every
other operator is refused: a list that quietly had other servers than the expression means would be worse than none.
"""

ESCAPE = "|"
RUNS_MAX = 8  # of any number of characters, in one expression
_OPERATORS = frozenset("*+?()[]{}|^$")
_LIKE_SPECIAL = frozenset("%_" + ESCAPE)
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def like_of(expression: str) -> str:
    """The SQL LIKE pattern, with ESCAPE as its escape character. Raises ValueError saying what is not taken."""
    body = expression
    held_at_begin = body.startswith("^")
    if held_at_begin:
        body = body[1:]
    held_at_end = body.endswith("$") and not _is_escaped(body, len(body) - 1)
    if held_at_end:
        body = body[:-1]
    parts = [] if held_at_begin else ["%"]
    at = 0
    while at < len(body):
        part, at = _part(body, at)
        parts.append(part)
    if not held_at_end:
        parts.append("%")
    if sum(part.endswith("%") and part[0] != ESCAPE for part in parts) > RUNS_MAX + 2:
        raise ValueError(f"it has more than {RUNS_MAX} of .* and .+")
    return _without_doubles(parts)


def _part(body: str, at: int) -> tuple[str, int]:
    """The LIKE of what begins at ``at``, and where the next begins."""
    character = body[at]
    if character == "\\":
        if at + 1 == len(body):
            raise ValueError("it ends with a backslash")
        following = body[at + 1]
        if following in _LETTERS:
            raise ValueError(f"\\{following} is not taken")
        return _literal(following), at + 2
    if character == ".":
        following = body[at + 1 : at + 2]
        if following == "*":
            return "%", at + 2
        if following == "+":
            return "_%", at + 2
        return "_", at + 1
    if character in _OPERATORS:
        raise ValueError(f"{character} is not taken, write \\{character} for the character itself")
    return _literal(character), at + 1


def _literal(character: str) -> str:
    return ESCAPE + character if character in _LIKE_SPECIAL else character


def _without_doubles(parts: list[str]) -> str:
    kept: list[str] = []
    for part in parts:
        if not (part == "%" and kept and kept[-1] in ("%", "_%")):
            kept.append(part)
    return "".join(kept)


def _is_escaped(text: str, at: int) -> bool:
    backslashes = 0
    while at - backslashes > 0 and text[at - backslashes - 1] == "\\":
        backslashes += 1
    return backslashes % 2 == 1


def plain_part(like: str) -> str | None:
    """The text that a pattern looks for anywhere in a name, when it says nothing else."""
    if len(like) > 2 and like[0] == like[-1] == "%" and not _LIKE_SPECIAL.intersection(like[1:-1]):
        return like[1:-1]
    return None


def matches(like: str, name: str) -> bool:
    """Whether a name is like this. At most length times length steps, whatever the pattern."""
    return _walk(_tokens(like), name)


def _tokens(like: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(like):
        character = like[at]
        if character == ESCAPE and at + 1 < len(like):
            tokens.append(("is", like[at + 1]))
            at += 2
            continue
        tokens.append(("any", "") if character == "%" else ("one", "") if character == "_" else ("is", character))
        at += 1
    return tokens


def _walk(tokens: list[tuple[str, str]], name: str) -> bool:
    token = at = 0
    back: tuple[int, int] | None = None  # the last "any", and how far it reaches
    while at < len(name):
        if token < len(tokens) and tokens[token][0] == "any":
            back = (token, at)
            token += 1
        elif token < len(tokens) and tokens[token] in (("one", ""), ("is", name[at])):
            token, at = token + 1, at + 1
        elif back is not None:
            back = (back[0], back[1] + 1)
            token, at = back[0] + 1, back[1]
        else:
            return False
    return all(kind == "any" for kind, _ in tokens[token:])
