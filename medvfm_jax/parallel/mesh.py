"""One mesh for everything: axes "clients", "replica", "data" and "model", from a text such as "data=4,model=2".

All four axes always exist, of size 1 where nothing is said, so that one set of rules serves every mesh.  Images are
divided over the first three; weights are whole along "replica", which sets it apart from "data".  The axes are
automatic (``AxisType.Auto``): the compiler propagates shardings.  Under explicit axes the partition into windows
of SAM's encoder is refused, because the sharding of a merged axis is ambiguous.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from medvfm_jax.mesh_axes import CLIENTS, DATA, MODEL, REPLICA
from medvfm_jax.parallel.errors import BadMesh

AXES = (CLIENTS, REPLICA, DATA, MODEL)  # the last varies fastest: tensor parallelism between neighbours


def parse_mesh(text: str) -> dict[str, int]:
    """ "data=4,model=2" -> {"clients": 1, "replica": 1, "data": 4, "model": 2}.

    Args:
        text: comma-separated axis=size; axes left out have size 1.

    Returns:
        Size of every axis of ``AXES``, in that order.

    Raises:
        BadMesh: an axis does not exist or is given twice, or a size is no whole number of at least 1.
    """
    sizes = dict.fromkeys(AXES, 1)
    seen: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES or name in seen:
            what = "is given twice" if name in seen else "does not exist"
            raise BadMesh(f"Mesh '{text}': the axis '{name}' {what}; write for example data=4,model=2.")
        if not size.isdecimal() or int(size) < 1:
            raise BadMesh(f"Mesh '{text}': {name}={size} is no number of devices; expected at least 1.")
        sizes[name] = int(size)
        seen.add(name)
    return sizes


def make_mesh(sizes: str | Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh ("clients", "replica", "data", "model") over all devices, or over those given.

    On a TPU the order of the devices follows the physical topology (``jax.make_mesh``).

    Args:
        sizes: text as ``parse_mesh`` takes it, or sizes by axis; axes left out have size 1. None: all devices on
            "data".
        devices: default ``jax.devices()``, of all processes.

    Returns:
        Mesh with automatic axes.

    Raises:
        BadMesh: an axis is unknown, the sizes do not multiply to the number of devices, or an axis is no product of
            sides of the physical torus.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {DATA: len(devices)} if sizes is None else sizes
    sizes = parse_mesh(sizes) if isinstance(sizes, str) else sizes
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if set(sizes) - set(AXES) or math.prod(shape) != len(devices):
        said = ",".join(f"{name}={size}" for name, size in sizes.items())
        raise BadMesh(
            f"The mesh {said} needs {math.prod(shape)} devices and there are {len(devices)}; the axes are "
            f"{', '.join(AXES)} and their sizes must multiply to the number of devices."
        )
    try:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    except NotImplementedError as error:  # of a TPU slice: an axis would take a part of a side
        said = ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        sides = "x".join(str(1 + max(side)) for side in zip(*(d.coords for d in devices)))
        raise BadMesh(
            f"The mesh {said} does not fit the slice's torus of {sides} chips; every axis must be a product of whole "
            "sides of it."
        ) from error
