"""Eight fake CPU devices, set before jax is imported; fast compilation; the optional reference data."""

import importlib.metadata
import os
from pathlib import Path

# XLA ends the process on a flag it does not know, so the second one, which shortens compilation by a quarter, goes
# only to the version it was tried with.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10.")
)

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
