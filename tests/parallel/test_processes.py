"""Two processes train together: the losses of one, a signal that ends both, and a lost one that is not waited for."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.runs.run_directory import read_json, read_metrics

STEPS = 4
PATIENCE = 300.0  # seconds; only machines that hang come near


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 16, size=32)


def words(cells, out, **settings):
    options = {
        "data": cells, "model": "sam-tiny-test", "adapter": "linear", "prompt": "none", "out": out, "batch-size": 4,
        "val-fraction": 0.25, "validate-every": 2, "steps": STEPS,
    } | settings  # fmt: skip
    return ["adapt", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def start(arguments, log, devices, cache):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu", "MEDVFM_CACHE": str(cache),
    }  # fmt: skip
    with open(log, "w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "medvfm_jax.cli.main", *arguments],
            stdout=output, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip


def start_processes(arguments, folder, count, devices):
    """The same command as so many processes of one run, with so many devices each."""
    if count == 1:
        return [start(arguments, folder / "log0", devices, folder / "cache0")], [folder / "log0"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--distributed", "--coordinator", f"localhost:{port}", "--processes", str(count)]
    logs = [folder / f"log{i}" for i in range(count)]
    started = [
        start([*arguments, *together, "--process", str(i)], logs[i], devices, folder / f"cache{i}")
        for i in range(count)
    ]
    return started, logs


def start_two(arguments, folder):
    return start_processes(arguments, folder, 2, 2)


def losses(folder):
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def ended(processes, logs):
    try:
        return [process.wait(PATIENCE) for process in processes]
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            print(log.read_text())


def test_two_processes_have_the_losses_of_one_and_the_first_one_writes(cells, tmp_path):
    alone = start(words(cells, tmp_path / "one"), tmp_path / "log", 1, tmp_path / "cache")
    both, logs = start_two([*words(cells, tmp_path / "two"), "--rules", "fsdp"], tmp_path)
    assert ended([alone, *both], [tmp_path / "log", *logs]) == [0, 0, 0]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    placement = read_json(tmp_path / "two" / "config.json")["placement"]
    assert (placement["processes"], placement["mesh"]["data"]) == (2, 4)
    assert (tmp_path / "two" / "delta.safetensors").stat().st_size > 0
    assert "adapt 1/4" in logs[0].read_text()
    assert "adapt" not in logs[1].read_text()


def wait_for_steps(folder, processes, logs, count):
    until = time.monotonic() + PATIENCE
    while not (folder / "metrics.jsonl").exists() or len(losses(folder)) < count:
        assert time.monotonic() < until, [log.read_text() for log in logs]
        assert all(process.poll() is None for process in processes), [log.read_text() for log in logs]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_both(cells, tmp_path):
    both, logs = start_two(words(cells, tmp_path / "run", steps=100_000), tmp_path)
    wait_for_steps(tmp_path / "run", both, logs, 3)
    both[1].send_signal(signal.SIGTERM)
    assert ended(both, logs) == [130, 143]  # the first one was told by the second
    steps = len(losses(tmp_path / "run"))
    newest = max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert newest == f"step_{steps:08d}"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_lost_process_ends_the_other_which_says_so(cells, tmp_path, devices):
    both, logs = start_processes(words(cells, tmp_path / "run", steps=100_000), tmp_path, 2, devices)
    wait_for_steps(tmp_path / "run", both, logs, 3)
    both[1].kill()
    start_of_wait = time.monotonic()
    codes, waited = ended(both, logs), time.monotonic() - start_of_wait
    said = logs[0].read_text()
    if devices == 1:
        assert codes == [1, -signal.SIGKILL]
        assert waited < 30
        assert said.splitlines()[-1].startswith("medvfm: Another process of this run was lost (")
    else:  # one device notices and the other waits, so it may be JAX that ends the process
        assert codes[0] not in (0, -signal.SIGKILL)
        assert waited < 150
        assert "Another process of this run was lost" in said or "another task died" in said


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 3])
def test_parts_written_by_two_processes_go_on_with_the_same_batches_elsewhere(cells, tmp_path, devices):
    """Two processes write shards; one process with one device, or three with one each, takes the later steps."""
    settings = {"batch-size": 6, "checkpoints": "sharded", "checkpoint-every": 2, "validate-every": 0}
    whole = start(words(cells, tmp_path / "one", **settings), tmp_path / "log", 1, tmp_path / "cache")
    command = words(cells, tmp_path / "two", **settings)
    both, logs = start_processes([*command, "--rules", "fsdp"], tmp_path, 2, 1)
    assert ended([whole, *both], [tmp_path / "log", *logs]) == [0, 0, 0]
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "4")
    (tmp_path / "two" / "delta.safetensors").unlink()
    others, logs = start_processes([*command, "--resume"], tmp_path, devices, 1)
    assert ended(others, logs) == [0] * devices
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)
    assert "resuming at step 2" in logs[0].read_text()


@pytest.mark.slow
def test_a_kill_during_a_checkpoint_in_the_background_leaves_the_one_before(cells, tmp_path):
    settings = {"checkpoints": "sharded", "checkpoint-every": 1, "validate-every": 0, "steps": 30}
    command = words(cells, tmp_path / "run", **settings)
    run = start(command, tmp_path / "log", 1, tmp_path / "cache")
    wait_for_steps(tmp_path / "run", [run], [tmp_path / "log"], 4)
    run.kill()
    run.wait()
    again = start([*command, "--resume"], tmp_path / "log", 1, tmp_path / "cache")
    assert ended([again], [tmp_path / "log"]) == [0]
    assert "resuming at step" in (tmp_path / "log").read_text()
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, 31))


@pytest.mark.slow
def test_hosts_without_a_common_disk_go_on_from_a_copy(cells, tmp_path):
    """Each process has an --out of its own; both are lost, and both are brought from the mirror."""

    def both_with(steps, *more):
        command = words(
            cells, "OUT", mirror=f"file://{tmp_path}/storage", steps=steps, **{"checkpoint-every": 2}
        )
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        logs = [tmp_path / f"log{i}" for i in range(2)]
        started = []
        for i in range(2):
            own = [str(tmp_path / f"host{i}") if word == "OUT" else word for word in command]
            joined = [
                "--distributed",
                "--coordinator",
                f"localhost:{port}",
                "--processes",
                "2",
                "--process",
                str(i),
            ]
            started.append(start([*own, *joined, *more], logs[i], 1, tmp_path / f"cache{i}"))
        return started, logs

    both, logs = both_with(100_000)
    wait_for_steps(tmp_path / "host0", both, logs, 3)
    both[1].send_signal(signal.SIGTERM)
    assert ended(both, logs) == [130, 143]
    taken = len(losses(tmp_path / "host0"))
    assert not (tmp_path / "host1").exists()
    shutil.rmtree(tmp_path / "host0")
    again, logs = both_with(100_000, "--resume")
    wait_for_steps(tmp_path / "host0", again, logs, taken + 1)
    assert (tmp_path / "host1" / "checkpoints" / f"step_{taken:08d}").is_dir()
    again[0].send_signal(signal.SIGTERM)
    assert 130 in ended(again, logs) or 143 in [process.returncode for process in again]
    assert f"resuming at step {taken} of" in logs[0].read_text()
