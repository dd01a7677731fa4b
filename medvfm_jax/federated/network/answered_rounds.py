"""Which questions a site with noise of its own has answered: no round is answered twice with fresh noise.

A coordinator that may ask one round again and again, each time with another delta, gets as many draws of the noise
as it likes and averages them away. So a site writes down, before it works, the round it answers and the question; the
same question is answered again with the same noise, another one for the same round, or for an earlier one, is not. The
count of questions over all runs stands there too: with a limit, a new run does not buy more answers than were
accounted for.
"""

import json
from pathlib import Path
from typing import Any

from medvfm_jax import json_text
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network.secure_messages import RoundSpent
from medvfm_jax.images.writing import write_atomically

_FILE = "answered.json"


def spend(folder: Path, run: str, round_: int, question: str, limit: int | None = None) -> None:
    """Write down that this question of this round is being answered.

    Args:
        folder: of the site's state.
        run: number of the run.
        round_: number of the round, counted from 0.
        question: digest of all that was asked.
        limit: questions this site answers, over all runs; None: no limit.

    Raises:
        RoundSpent: the round, or a later one, was answered to another question, or the limit is reached.
        BadFederation: the file is damaged.
    """
    path = folder / _FILE
    answered, last = _read(path)
    if run in last:
        before, same = last[run]
        if round_ == before and question == same:
            return
        if round_ <= before:
            raise RoundSpent(
                f"Round {round_} was asked for with other contents after round {before} of this run was answered: a "
                "second answer with fresh noise would undo what the first one hides."
            )
    if limit is not None and answered >= limit:
        raise RoundSpent(
            f"This site has answered {answered} questions, as many as its noise was accounted for; {path} counts them."
        )
    text = json.dumps({"answered": answered + 1, "last": last | {run: [round_, question]}})
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, text.encode(), 0o600)


def _read(path: Path) -> tuple[int, dict[str, list[Any]]]:
    if not path.exists():
        return 0, {}
    try:
        found = json_text.read(path)
        answered, last = found["answered"], found["last"]
        if type(answered) is not int or not all(
            type(round_) is int and isinstance(question, str) for round_, question in last.values()
        ):
            raise json_text.BadJson("it does not hold what a site writes down")
    except (json_text.BadJson, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFederation(
            f"{path} cannot be used ({error}): restore it from a backup; without it nobody knows which rounds this "
            "site has answered."
        ) from error
    return answered, last
