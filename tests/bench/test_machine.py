"""What is said about the machine is there, and ceilings count what they do."""

import subprocess
import sys

import numpy as np
import pytest

from medvfm_jax.bench import machine


def test_the_environment_names_versions_and_what_is_not_installed():
    found = machine.environment(("numpy", "no-such-package"))
    assert found["versions"] == {"numpy": np.__version__, "no-such-package": None}
    assert 1 <= found["cores_of_this_process"] <= found["cores_of_the_machine"]


@pytest.mark.skipif(not machine._STATUS.exists(), reason="Linux only")
def test_memory_is_resident_and_its_peak_stays():
    # In a process of its own: here, others' threads give memory back meanwhile.
    code = """
import numpy as np
from medvfm_jax.bench.machine import memory_mib
before = memory_mib("RssAnon")
block = np.ones(64 << 20, np.uint8)
held = memory_mib("RssAnon")
del block
print(before, held, memory_mib("RssAnon"), memory_mib("VmHWM"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, held, after, peak = map(float, done.stdout.split())
    assert held > before + 60
    assert after < before + 4
    assert peak >= held


def test_ceilings_count_what_they_do():
    product, copy = machine.product("float32", side=64), machine.copy(elements=1000)
    assert product.amount == 2 * 64**3
    assert product.call().shape == (64, 64)
    assert copy.amount == 2 * 4 * 1000
    assert (np.asarray(copy.call()) == 1).all()


def test_programs_that_choose_their_threads_first_do_not_get_jax():
    names = ", ".join(f"medvfm_jax.bench.{name}" for name in ("machine", "turns", "peer"))
    code = f"import sys, {names}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
