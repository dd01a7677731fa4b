"""Eight fake CPU devices, set before jax is imported; fast compilation; the optional reference data."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def reference_data() -> Path:
    """Folder of reference outputs and real images (MEDVFM_TEST_DATA); the test is skipped without it."""
    folder = os.environ.get("MEDVFM_TEST_DATA")
    if not folder:
        pytest.skip("set MEDVFM_TEST_DATA to the reference data folder to run this test")
    return Path(folder)
