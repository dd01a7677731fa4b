"""A mixture of low-rank updates: experts that all tasks share behind a gate, and one expert of each task."""

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.compose import FrozenCall
from medvfm_jax.adapters.core import Adapter, not_mergeable
from medvfm_jax.adapters.core import at as at_sites
from medvfm_jax.adapters.errors import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.expert_balance import load_balance, note_balance
from medvfm_jax.adapters.lora import lora_factors, lora_scale
from medvfm_jax.adapters.lora_kernels import kernel_widths
from medvfm_jax.adapters.parameter_paths import SiteDelta
from medvfm_jax.adapters.sites import Site
from medvfm_jax.adapters.task_tables import count_tasks, row, same_rows


def task_lora_experts(
    rank: int,
    alpha: float | None,
    at: str,
    experts: int = 2,
    active: int | None = None,
    balance: float = 0.01,
    tasks: dict[str, int] | None = None,
) -> Adapter:
    """Add ``scale * (sum_e p_e (x @ a_e) @ b_e + (x @ A_t) @ B_t)`` for a token x of an image of task t.

    p = softmax(x @ gate + task_gate[t]) over the shared experts, with ``active`` over that many largest logits and 0
    for the others.  For Dense modules x (..., in) -> (..., out).  Delta of a site: a (experts, in, rank), b (experts,
    rank, out), gate (in, experts), task_gate (tasks, experts), and the experts of the tasks, task_a (tasks, in * rank)
    and task_b (tasks, rank * out).  First factors start as in ``lora``, all others at zero.  Not mergeable.

    A training loss adds ``balance`` times the mean over sites of ``expert_balance.load_balance``.

    Args:
        rank: of each expert.
        alpha: the scale is ``alpha / rank``; None: 1.
        at: regular expression of module paths, full match.
        experts: that tasks share.
        active: of these, how many a token is given to, at least 2; None: all.
        balance: weight of the loss that keeps shared experts in use.
        tasks: {site: number of its task}; a run fills it in. None: one task.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: options that do not fit each other.
        WrongSite: at init, for modules that are no Dense.

    References:
        Dou et al. 2024 (LoRAMoE), https://arxiv.org/abs/2312.09979; shared beside private experts: Dai et al.
        2024 (DeepSeekMoE), section 3.2, https://arxiv.org/abs/2401.06066; balance: Fedus et al. 2022, eq. 4,
        https://arxiv.org/abs/2101.03961.  Differs: there private experts are chosen by a gate, here by the task; the
        balance is of the tokens of one image and not of a batch.
    """
    scale, count = lora_scale(rank, alpha), count_tasks("task_lora_experts", tasks)
    if experts < 2:
        raise BadAdapterConfig(f"task_lora_experts: experts must be at least 2, not {experts}.")
    if active is not None and not 2 <= active <= experts:
        raise BadAdapterConfig(
            f"task_lora_experts: active must be 2 to {experts}, the number of experts, not {active}; the share of a "
            "single one is constant, and its gate would not learn."
        )
    if not balance >= 0:
        raise BadAdapterConfig(f"task_lora_experts: balance must be at least 0, not {balance}.")

    def init_site(key: Array, site: Site) -> SiteDelta:
        width_in, width_out = kernel_widths(site)
        if len(site.params["kernel"].shape) != 2:
            raise WrongSite(
                f"task_lora_experts at '{site.path}': it is no Dense, and tokens (..., in) are gated."
            )
        *keys, own = jax.random.split(key, experts + 1)
        pairs = [lora_factors(one, width_in, width_out, rank) for one in keys]
        first = lora_factors(own, width_in, width_out, rank)["a"].reshape(-1)
        return {
            "a": jnp.stack([pair["a"] for pair in pairs]),
            "b": jnp.stack([pair["b"] for pair in pairs]),
            "gate": jnp.zeros((width_in, experts)),
            "task_gate": jnp.zeros((count, experts)),
            "task_a": same_rows(first, count),
            "task_b": jnp.zeros((count, rank * width_out)),
        }

    def apply_site(delta: SiteDelta, call: FrozenCall, x: Array) -> Array:
        y = call(x)
        delta = {name: array.astype(y.dtype) for name, array in delta.items()}
        x = x.astype(y.dtype)
        logits = x @ delta["gate"] + row(delta["task_gate"])
        shares = jax.nn.softmax(logits, axis=-1)
        if balance:
            note_balance(call.module, balance * load_balance(shares.astype(jnp.float32)))
        if active is not None:
            least = jax.lax.top_k(logits, active)[0][..., -1:]
            shares = jax.nn.softmax(jnp.where(logits >= least, logits, -jnp.inf), axis=-1)
        low = jnp.einsum("...i,eir->...er", x, delta["a"]) * shares[..., None]
        shared = jnp.einsum("...er,ero->...o", low, delta["b"])
        own = (x @ row(delta["task_a"]).reshape(-1, rank)) @ row(delta["task_b"]).reshape(rank, -1)
        return y + scale * (shared + own)

    config = {"kind": "task_lora_experts", "rank": rank, "alpha": alpha, "at": at, "experts": experts}
    config |= {"active": active, "balance": balance, "tasks": tasks}
    refuse = not_mergeable("its gate weighs every token by itself")
    return at_sites(at, "around", init_site, apply_site, refuse, config)
