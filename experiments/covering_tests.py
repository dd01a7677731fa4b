"""The test file of a method, by convention: in the folder of tests that mirrors its own, the one that names it.

`tests/<folder>/test_<module>.py` or `test_<method>.py` if it names the method, else the file there that names it
most often.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
_ABOUT_ALL = {
    "test_option_ranges.py"
}  # tests of a folder's methods all together, which name some as examples


class Untested(LookupError):
    """No test names a method."""


def covering(names: Sequence[str], folders: Sequence[str], module: str = "") -> str:
    """Find the test of a method.

    Args:
        names: of the method, and those of its kin whose test stands for it if none names it.
        folders: below ``tests``, searched in this order.
        module: name of its file, without the suffix.

    Returns:
        Path of the test from the root of the repository.

    Raises:
        Untested: no test in the folders names it.
    """
    for name in names:
        for folder in folders:
            for own in (f"tests/{folder}/test_{module}.py", f"tests/{folder}/test_{name}.py"):
                if re.search(rf"\b{re.escape(name)}\b", _texts(folder).get(own, "")):
                    return own
            if found := _mentions(name, folder):
                return max(found, key=lambda path: found[path])
    raise Untested(f"no test in {', '.join(f'tests/{f}' for f in folders)} names {names[0]}.")


def _mentions(name: str, folder: str) -> dict[str, int]:
    """How often files name it: as a string where any does, or else as a word."""
    for pattern in (rf"[\"']{re.escape(name)}[\"']", rf"\b{re.escape(name)}\b"):
        found = {path: len(re.findall(pattern, text)) for path, text in _texts(folder).items()}
        if found := {path: n for path, n in found.items() if n}:
            return found
    return {}


@cache
def _texts(folder: str) -> dict[str, str]:
    found = sorted((ROOT / "tests" / folder).glob("test_*.py"))
    paths = [path for path in found if path.name not in _ABOUT_ALL]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
