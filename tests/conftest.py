"""Eight fake CPU devices, set before jax is imported; fast compilation; the optional reference data."""

import gc
import importlib.metadata
import os
from pathlib import Path

# XLA ends the process on a flag it does not know, so those which shorten compilation, each by a quarter, go only to
# the version they were tried with.  A program in one part instead of 32 is optimised and linked once.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    * importlib.metadata.version("jaxlib").startswith("0.10.")
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # here, and in the commands that tests start as processes

import jax  # noqa: F401, for the freeze below
import pytest

# What the imports have made is there to stay, and need not be looked through again: collecting garbage took 7 % of
# building, tracing and compiling a training step.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def reference_data() -> Path:
    """Folder of reference outputs and real images (MEDVFM_TEST_DATA); the test is skipped without it."""
    folder = os.environ.get("MEDVFM_TEST_DATA")
    if not folder:
        pytest.skip("set MEDVFM_TEST_DATA to the reference data folder to run this test")
    return Path(folder)
