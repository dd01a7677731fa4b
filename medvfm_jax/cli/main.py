"""`medvfm COMMAND ...`: finds the command, parses its arguments, turns every failure into one sentence.

A command is two modules: one of `options/` with a dataclass `<Command>Args` that tyro can parse, which imports
nothing heavy, so that help and a wrong option are answered at once, and one of this folder with `run(args) -> int`.
Only those of the command asked for are imported.
"""

import sys

if (
    __name__ == "__main__"
):  # python -m medvfm_jax.cli.main: the program answers signals while this is imported
    from medvfm_jax.__main__ import main as program

    sys.exit(program())

import contextlib
import gc
import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence

from medvfm_jax import __version__, compilation_cache, cpu, termination
from medvfm_jax.catalog import nearest
from medvfm_jax.cli import console
from medvfm_jax.cli.arguments import parse
from medvfm_jax.cli.errors import BAD_USAGE, BadUsage, describe

COMMANDS = {
    "quickstart": "from nothing to a report in a few minutes: real weights, real images",
    "weights": "list, fetch, verify, convert and export model weights",
    "check": "whether a data folder is in order, before anything is trained on it",
    "systems": "published ways to adapt a model, and which fit it",
    "adapt": "adapt a model to a folder of labelled images, training a fraction of its parameters",
    "distill": "teach a small network what a large or an adapted one knows",
    "generate": "pictures made from a model alone, to distil it where its data cannot be had",
    "compress": "a trained model with fewer bits, layers of lower rank, or fewer heads and neurons",
    "federate": "one model from the images of several hospitals, which share updates instead of images",
    "evaluate": "score a run, or a pretrained model zero-shot, with patient-level intervals",
    "fewshot": "masks and scores of a frozen model that was shown a few labelled cases",
    "segment": "masks of pictures and volumes, from boxes, clicks or a delta that needs none",
    "export": "files of ONNX, LiteRT or StableHLO, checked, with a runner that needs no JAX",
    "fetch": "the copy of a run that training kept on storage, to this machine",
    "audit": "what a run gives away: a canary against its noise, an attack by losses on its patients",
    "report": "one HTML page for one run, or several side by side",
    "analyze": "what theory predicts before training, and whether it was right",
    "plan": "whether a training step fits a TPU slice or this machine, and how fast it would be",
    "bench": "how fast this machine is with these models, beside its own matrix product",
}
GLOBAL_FLAGS = ("--debug", "--json", "--version")

OVERVIEW = """usage: medvfm COMMAND [OPTIONS]

Adapt vision foundation models to medical images.

commands:
{commands}

options for every command:
  --json      machine-readable result on stdout
  --debug     show the traceback of an error
  --version   show the version and leave
  -h, --help  show this message, or the options of a command with an example

examples:
  medvfm quickstart
  medvfm adapt --data data/dsb2018 --model lite-medsam --adapter samed --out runs/a
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (failed), 2 (bad usage), 130 (Ctrl-C), 143 (SIGTERM)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = {flag for flag in GLOBAL_FLAGS if flag in arguments}
    arguments = [a for a in arguments if a not in GLOBAL_FLAGS]
    if "--version" in flags:
        print(f"medvfm {__version__}")
        return 0
    with console.output_mode(json_mode="--json" in flags):
        try:
            with _nothing_collected():
                work = _prepared(arguments)  # a signal ends the program at once: nothing is done yet
            with termination.raised():
                return work()
        except (Exception, KeyboardInterrupt) as error:
            sentence, code = describe(error)
            if "--debug" in flags:
                traceback.print_exc()
            print(f"medvfm: {sentence}", file=sys.stderr, flush=True)
            return code


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Modules stay: looking for garbage among them takes a tenth of the time that importing JAX takes."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()


def _prepared(arguments: list[str]) -> Callable[[], int]:
    """What is to be done, with all that it needs imported."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listing = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
        print(OVERVIEW.format(commands=listing), end="")
        return lambda: 0 if arguments else BAD_USAGE
    name, *rest = arguments
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f"did you mean {near}" if near else "the commands are " + ", ".join(COMMANDS)
        raise BadUsage(f"there is no command {name!r}; {hint}; see `medvfm --help`")
    options = importlib.import_module(f"medvfm_jax.cli.options.{name}")
    parsed = parse(getattr(options, f"{name.capitalize()}Args"), rest, f"medvfm {name}")
    if parsed is None:
        return lambda: 0
    cpu.tune()
    compilation_cache.enable()
    module = importlib.import_module(f"medvfm_jax.cli.{name}")
    if name != "plan" and getattr(parsed, "dtype", None) == "bfloat16":  # a plan is for other devices
        _warn_of_bfloat16()
    return lambda: int(module.run(parsed) or 0)


def _warn_of_bfloat16() -> None:
    import jax

    if jax.default_backend() == "cpu":
        console.warn(
            "bfloat16 is slower than float32 on a CPU, where JAX converts around every product; leave out --dtype"
        )
