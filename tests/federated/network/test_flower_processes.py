"""Flower's SuperLink and two SuperNodes for real: TLS, keys of nodes, a SuperNode that is killed in a round."""

import json
import shutil
from collections.abc import Iterator

import chex
import numpy as np
import pytest

from medvfm_jax.federated.network.coordinator import make_coordinator
from tests.federated.network.flower_processes import APP, PROGRAMS, Programs
from tests.federated.network.loopback import SITES, scaffold_agreement, simulate

pytest.importorskip("flwr")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(program) is None for program in PROGRAMS),
        reason=f"needs {', '.join(PROGRAMS)} on PATH",
    ),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """A SuperLink that knows the keys of north and east."""
    programs = Programs(tmp_path_factory.mktemp("flower"))
    try:
        programs.make_authority("authority")
        programs.make_authority("other_authority")
        programs.make_certificate("authority")
        for name in ("north_key", "east_key", "unknown_key"):
            programs.make_key(name)
        programs.start_superlink("authority")
        for name in ("north", "east"):
            programs.flwr("supernode", "register", f"{name}_key.pub", "loopback")
        yield programs
    finally:
        programs.stop()


def states(programs: Programs) -> list[str]:
    return [node["status"] for node in programs.flwr("supernode", "list", "loopback")["nodes"]]


@pytest.mark.parametrize(
    ("key", "authority", "words"),
    [
        ("unknown_key", "authority", "Failed to activate SuperNode"),
        (None, "authority", "must be registered"),
        ("north_key", "other_authority", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_refused(key: str | None, authority: str, words: str, programs: Programs) -> None:
    """An unknown key, no key, and a server whose certificate another authority signed."""
    name = f"intruder_{key}_{authority}"
    programs.start_supernode(name, key, authority, "--max-retries", "1")
    assert programs.running[name].wait(120) != 0
    assert words in programs.log(name)
    assert states(programs) == ["registered", "registered"]


def test_a_site_killed_in_a_round_comes_back_and_the_numbers_are_the_simulators(programs: Programs) -> None:
    """Round 0 with both; east is killed at work in round 1 and round 1 ends without it; it is back in round 2."""
    folder, held = programs.folder / "run", programs.folder / "east" / "held"

    def lines() -> list[dict]:
        path = folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    for name in ("north", "east"):
        programs.start_supernode(name, f"{name}_key", "authority")
    settings = f'folder="{folder}" rounds=3 held-site="east" held-round=1'
    programs.flwr("run", str(APP), "loopback", "--run-config", settings)
    programs.wait(held.exists, 600)
    assert len(lines()) == 1
    programs.kill("east")
    programs.wait(lambda: len(lines()) == 2, 600)
    held.with_name("released").touch()
    programs.start_supernode("east", "east_key", "authority")
    programs.wait(lambda: len(lines()) == 3, 600)

    assert [line["arrived"] for line in lines()] == [["north", "east"], ["north"], ["north", "east"]]
    assert [list(line["refused"]) for line in lines()] == [[], ["east"], []]
    assert "it went offline" in lines()[1]["refused"]["east"]
    progress = make_coordinator(scaffold_agreement(), SITES, nodes="first_come").restore(folder)
    server, metrics = simulate(
        scaffold_agreement(), None, [[True, True, False], [True, False, False], [True, True, False]]
    )
    np.testing.assert_array_equal(progress.accepted, [2, 2, -1])
    chex.assert_trees_all_close(progress.server, server, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([line["loss"] for line in lines()], [m.loss for m in metrics], rtol=1e-5)
    for name in ("north", "east"):
        assert "round 2: update sent" in programs.log(name)
