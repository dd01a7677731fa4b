"""The program `medvfm`, also as `python -m medvfm_jax`: answers signals from its first moment on."""

import sys

from medvfm_jax import termination


def main() -> int:
    """Run the command line; returns its exit code."""
    termination.answered()
    from medvfm_jax.cli.main import main as run  # imports take a while

    return run()


if __name__ == "__main__":
    sys.exit(main())
