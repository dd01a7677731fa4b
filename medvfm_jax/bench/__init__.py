"""How fast this machine is with these models: rows timed in turns, beside the machine's own ceilings.

``measure.bench`` is what `medvfm bench` runs.  ``turns`` and ``machine`` import nothing of JAX, so that programs which
choose their threads first can use them.
"""
