"""Many processes that run one program: one per host, each driving its own devices (``jax.distributed``)."""

import jax

from medvfm_jax.parallel.errors import BadProcesses

_HEARTBEAT = 60  # seconds without a sign of life after which a process counts as lost
_WAIT = 300  # seconds to wait for all processes at the start


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
