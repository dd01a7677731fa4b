"""The program `medvfm`, also as `python -m medvfm_jax`: answers signals from its first moment on.

Imports take a second. What ends the program before has nothing to clear away, only a word to say.
"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line; returns its exit code."""
    asked = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"medvfm: {asked[signal.Signals(number)]} before anything was done\n".encode())
        os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in asked}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    from medvfm_jax.cli.main import main as run

    for number, handler in before.items():
        signal.signal(number, handler)
    return run()


if __name__ == "__main__":
    sys.exit(main())
