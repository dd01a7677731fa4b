"""Compiled programs kept on disk, so that the second run of a command starts at once.

The command line and the experiments call ``enable``; an import alone does not change the process.
"""

import contextlib
import os


def enable() -> None:
    """Keep programs that took half a second to compile in the cache folder; a cache already chosen stays.

    The folder is ``compiled`` inside MEDVFM_CACHE, or ~/.cache/medvfm without it.  Nothing happens where it
    cannot be written.  Raises BadPath for a MEDVFM_CACHE that is not on this machine.
    """
    import jax  # after the flags that `cpu.tune` sets

    from medvfm_jax.fetch import cache_dir

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.config.jax_compilation_cache_dir:
        return
    root = cache_dir()
    with contextlib.suppress(OSError):  # a read-only home is no reason to refuse work
        (root / "compiled").mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
