"""`medvfm adapt`: train a delta on a folder of labelled images."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TextIO

import jax

from medvfm_jax.cli import console
from medvfm_jax.cli.options.adapt import AdaptArgs
from medvfm_jax.parallel import (
    RULES,
    BadMesh,
    BadProcesses,
    Placement,
    make_mesh,
    start_processes,
    with_others,
)
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.train import adapt


def run(args: AdaptArgs) -> int:
    """Train; prints what trains, the progress, and where things are."""
    config = AdaptConfig(**{field.name: getattr(args, field.name) for field in fields(AdaptConfig)})
    placement = _placement(args)
    with with_others(), _stream(placement) as stream, ProgressDisplay(stream, "adapt") as display:
        result = adapt(config, display, placement)
    if placement is None or placement.process == 0:
        console.result(result._asdict(), f"next: medvfm evaluate --run {result.folder}")
    return 0


def _placement(args: AdaptArgs) -> Placement | None:
    """The devices that were asked for; None for one.  Raises BadMesh, BadProcesses."""
    if not args.distributed:
        if any(value is not None for value in (args.coordinator, args.processes, args.process)):
            raise BadProcesses("A coordinator joins several processes: add --distributed.")
        if args.mesh is None and args.rules != "replicated":
            raise BadMesh(
                f"Rules {args.rules} divide weights over devices: say which with --mesh, for example --mesh all."
            )
        if args.mesh is None and args.sums != "float32":
            raise BadMesh(
                f"Sums in {args.sums} are of gradients over devices: say which with --mesh, for example --mesh all."
            )
    if args.distributed:
        start_processes(args.coordinator, args.processes, args.process)
    elif args.mesh is None:
        if jax.default_backend() != "cpu" and jax.device_count() > 1:
            console.say(f"{jax.device_count()} devices are here and one is used; --mesh all takes them all")
        return None
    mesh = make_mesh(None if args.mesh in (None, "all") else args.mesh)
    return Placement(mesh, RULES[args.rules](), args.rules, args.sums)


@contextmanager
def _stream(placement: Placement | None) -> Iterator[TextIO]:
    """Where progress goes: of several processes the first one tells."""
    if placement is not None and placement.process > 0:
        with open(os.devnull, "w") as nowhere:
            yield nowhere
    else:
        yield sys.stderr if console.json_mode() else sys.stdout
