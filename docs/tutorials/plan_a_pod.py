# %% [markdown]
# # A plan for a pod
#
# Before renting: does the training step fit, where does its time go, which mesh is best? A plan compiles the real
# step for devices that need not be here and reads the compiler's own accounting; no weights are loaded and no array
# is allocated.

# %%
import importlib.util

import jax

from medvfm_jax.plan import plan
from medvfm_jax.settings import PlanConfig

# %% [markdown]
# ## This machine
#
# `medvfm plan --model sam-tiny-test --adapter linear --topology cpu --global-batch 4`

# %%
batch = 4 * jax.device_count()  # a batch is sharded over the devices
config = PlanConfig(
    model="sam-tiny-test", adapter="linear", image_size=32, global_batch=batch, topology="cpu"
)
found = plan(config)
print(f"trains {found.trained:,} of {found.total:,} numbers")
print(f"peak memory {found.memory.peak / 2**20:.1f} MiB, fits: {found.memory.fits}")
print(f"{found.flops.executed / 1e6:.0f} MFLOP a step")

# %% [markdown]
# ## A slice of TPUs
#
# `medvfm plan --model sam-h --adapter samed --topology v5e:16x16 --global-batch 1024 --dtype bfloat16 --keep products`
#
# The extra `[tpu]` brings the compiler; TPUs are not needed. For them there is an estimate of the time too: the
# larger of arithmetic and memory traffic, and collectives on top.

# %%
if importlib.util.find_spec("libtpu"):
    pod = plan(
        PlanConfig(
            model="sam-tiny-test", adapter="linear", image_size=64, global_batch=16, topology="v5e:4x4"
        )
    )
    print(
        f"{pod.devices} devices, {pod.memory.peak / 2**20:.1f} MiB each, {1e3 * pod.speed.step:.2f} ms a step"
    )
else:
    print("pip install 'medvfm-jax[tpu]' to compile for TPUs")

# %% [markdown]
# `--sweep` tries the sensible meshes and sharding rules and ranks them. Plans of SAM ViT-H for whole slices, with
# what they say, are in [Plans for TPUs](../tpu.md); [many devices](../many-devices.md) says how to run what was
# planned.
