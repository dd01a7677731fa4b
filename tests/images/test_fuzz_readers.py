"""Whatever the damage: a picture or the project's own error, soon, and within the budget."""

import json
import subprocess
import sys

import pytest

from tests.images.fuzz import BUDGET

READERS = ("PNG", "16-bit PNG", "JPEG", "BMP", "TIFF", "NIfTI", "NIfTI gz", "npy", "DICOM")
MOST_SECONDS = 3.0  # of the processor, for one file
MOST_MIB = 6 * BUDGET >> 20  # bytes of the file, decoder's picture, array, copy, masks of the checks


def run(count: int, seed: int) -> dict[str, dict]:
    command = [sys.executable, "-m", "tests.images.fuzz", str(count), str(seed)]
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(found: dict, count: int) -> None:
    assert found["foreign"] == []
    assert found["read"] + found["refused"] == found["tried"] == count
    assert found["refused"] > count / 10  # the damage is damage
    assert found["read"] > count / 50  # and not all of it stops at the first byte
    assert found["slowest_s"] < MOST_SECONDS
    assert found["peak_mib"] < MOST_MIB


@pytest.fixture(scope="module")
def found():
    return run(300, 0)


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(found, reader):
    if reader == "DICOM":
        pytest.importorskip("pydicom")
    check(found[reader], 300)


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused():
    for found in run(10_000, 1).values():
        check(found, 10_000)
