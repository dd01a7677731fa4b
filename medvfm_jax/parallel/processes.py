"""Many processes that run one program: one per host, each driving its own devices (``jax.distributed``)."""

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from medvfm_jax.parallel.errors import BadProcesses

_HEARTBEAT = 60  # seconds without a sign of life after which a process counts as lost
_WAIT = 300  # seconds to wait for all processes at the start
_LINGER = 5  # seconds that process 0, through which the others hear of each other, lets them say why they end
# Words of the errors of collectives that another process left: of Gloo on CPUs, of NCCL on GPUs, of the coordinator.
_LOST = ("gloo", "nccl", "heartbeat", "unavailable", "coordination", "connection reset", "connection closed")


def start_processes(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the other processes; call it before the first use of a device, with the same arguments but ``process``.

    On TPU slices, under Slurm and under Open MPI all three can be left out.

    Args:
        coordinator: "host:port" of process 0.
        processes: how many there are.
        process: number of this one, from 0.

    Raises:
        BadProcesses: only some of the three are given, ``process`` is not in 0..processes - 1, ``coordinator`` has no
            port, or the others do not come within 300 seconds.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise BadProcesses(
            "Of coordinator, processes and process either all or none must be given; none where TPU slices, Slurm or "
            "Open MPI say them."
        )
    if all(given) and not 0 <= process < processes:
        raise BadProcesses(f"Process {process} does not exist among {processes}; they are numbered from 0.")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise BadProcesses(f"The coordinator is '{coordinator}'; expected host:port of process 0.")
    try:
        jax.distributed.initialize(
            coordinator, processes, process,
            initialization_timeout=_WAIT, heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=_HEARTBEAT,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise BadProcesses(
            f"The processes did not find each other: {str(error).splitlines()[0]}; say --coordinator host:port, "
            "--processes and --process, and check that the port can be reached."
        ) from error


@contextmanager
def with_others() -> Iterator[None]:
    """What the processes of a run do together: where one is lost, the others say so and end.

    After an error the program ends with exit code 1 and does not wait for the others, which JAX would do for as long as
    a lost process may be silent, to abort then.  Where a device waits for a lost one instead of failing, JAX ends the
    process after that time.

    Returns:
        A context.

    Raises:
        BadProcesses: an operation of all processes failed because one of them has ended.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        atexit.register(_leave)  # runs before what JAX has registered
        if isinstance(error, jax.errors.JaxRuntimeError) and any(
            word in str(error).lower() for word in _LOST
        ):
            raise BadProcesses(
                f"Another process of this run was lost ({str(error).splitlines()[0]:.200}); start the same command "
                "again with --resume, on the hosts that are left if need be: it goes on from the last checkpoint."
            ) from error
        raise


def _leave() -> None:
    if jax.process_index() == 0:
        time.sleep(_LINGER)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
