"""Arguments of a command line as a dataclass; what is wrong with them as one sentence that names the nearest.

tyro parses and prints a framed message of several lines; here the first statement of it becomes the sentence.
"""

import contextlib
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any

from medvfm_jax.cli.console import one_line
from medvfm_jax.cli.errors import BadUsage

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r"[\u2500-\u257f]")
_CORNERS = ("\u256d", "\u250c")  # the title stands in the frame's upper edge
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "int": "a whole number", "float": "a number"}
_EVERYWHERE = ("--json", "--debug", "--version")  # taken out before a command sees its arguments


def parse(args_type: Any, arguments: Sequence[str], program: str) -> Any:
    """The arguments as `args_type`, or None when help was asked for and printed; raises `BadUsage`."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = _tyro(args_type, arguments, program)
    except SystemExit as leave:
        if not leave.code:
            return None
    else:
        _refuse_bad_paths(parsed, program)
        return parsed
    blocks = _statements(complaint.getvalue())
    _, subcommands = _shown(args_type, [])
    chosen = [word for word in arguments[:1] if word in subcommands]
    sentence = _unknown(blocks, args_type, chosen, [] if chosen else subcommands) or _sentence(blocks)
    raise BadUsage(f"{sentence}; see `{' '.join([program, *chosen])} --help`")


def _refuse_bad_paths(parsed: Any, program: str) -> None:
    """Check every command's paths, whatever they are called; raises BadUsage."""
    from medvfm_jax.local_paths import (  # imports JAX, which a misspelled option does not wait for
        BadPath,
        check_all,
    )

    try:
        check_all(parsed)
    except BadPath as error:
        raise BadUsage(f"{error} See `{program} --help`") from error


def _tyro(args_type: Any, arguments: Sequence[str], program: str) -> Any:
    import tyro

    return tyro.cli(args_type, args=list(arguments), prog=program, config=(tyro.conf.FlagCreatePairsOff,))


def _statements(text: str) -> list[list[str]]:
    """tyro's framed message -> its statements, each a list of lines with their indentation."""
    text = _ANSI.sub("", text)
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        body = _FRAME.sub(" ", line).rstrip()
        if line.lstrip()[:1] in _CORNERS or not body.strip() or set(body.strip()) == {"-"}:
            blocks.append([])
        else:
            blocks[-1].append(body)
    blocks = [block for block in blocks if block]
    title_apart = text.lstrip()[:1] not in _CORNERS
    return blocks[1:] if title_apart and len(blocks) > 1 else blocks


def _sentence(blocks: list[list[str]]) -> str:
    """The first statement, in plain words."""
    if not blocks:
        return "the arguments could not be parsed"
    first, *rest = blocks[0]
    if first.strip().startswith("Missing from") and rest:
        depth = min(len(line) - len(line.lstrip()) for line in rest)
        names = [line.strip() for line in rest if len(line) - len(line.lstrip()) == depth]
        return f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} missing"
    text = one_line(" ".join(blocks[0])).rstrip(".")
    return _wrong_value(text) or re.sub(r"^Error parsing \w+Args: ", "", text)


def _wrong_value(text: str) -> str | None:
    """The sentence about a value of the wrong type, or None if that is not what tyro complains about."""
    if found := re.fullmatch(r"Error parsing (\S+): (invalid literal|could not convert).*?: '(.*)'", text):
        expected = "a whole number" if found[2] == "invalid literal" else "a number"
        return f"{found[1]} is '{found[3]}'; expected {expected}"
    if found := re.fullmatch(r"Error parsing (\S+): no type matching (\S+) could .*? from \['(.*)'\]", text):
        expected = _KINDS.get(found[2].split("|")[-1], found[2].split("|")[-1])
        return f"{found[1]} is '{found[3]}'; expected {expected}"
    if found := re.fullmatch(
        r"Error parsing (\S+): Could not parse arguments \[(.*)\] into tuple type tuple\[(.*)\]", text
    ):
        given = " ".join(re.findall(r"'([^']*)'", found[2]))
        expected = ", ".join(_KINDS.get(kind, kind) for kind in found[3].split(", "))
        return f"{found[1]} is '{given}'; expected {expected}"
    return None


def _unknown(
    blocks: list[list[str]], args_type: Any, chosen: list[str], subcommands: list[str]
) -> str | None:
    """The sentence about an option or subcommand that does not exist, or None if that is not what is wrong."""
    marker = "Unrecognized options:"
    text = next((t for t in (one_line(" ".join(b)) for b in blocks) if t.startswith(marker)), None)
    if text is None:
        return None
    words = [word for word in re.split(r",?\s+", text.removeprefix(marker)) if word]
    named = next((word for word in words if word.startswith("-")), words[0] if words else "").split("=")[0]
    if named.startswith("-"):
        options, _ = _shown(args_type, chosen)
        what, known = f"there is no option {named}", [*options, *_EVERYWHERE]
    elif subcommands:
        what, known = f"there is no subcommand '{named}'", subcommands
    else:
        return f"'{named}' belongs to no option; quote names that contain spaces"
    near = difflib.get_close_matches(named, known, n=1)
    return f"{what}; did you mean {near[0]}" if near else what


def _shown(args_type: Any, before: list[str]) -> tuple[list[str], list[str]]:
    """Options, and subcommands if there are any, as the help shows them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        _tyro(args_type, [*before, "--help"], "medvfm")
    text = _ANSI.sub("", text.getvalue())
    options = re.findall(r"(?m)^[\s\u2500-\u257f]*(?:-\w, )?(--[\w-]+)", text)
    subcommands = re.search(r"\{([\w,-]+)\}\s*$", text.splitlines()[0]) if text else None
    return options, subcommands[1].split(",") if subcommands else []
