"""Published weights in, deltas and state dicts out; nothing is ever unpickled."""

from medvfm_jax.weights import artifacts, port, registry, tables, torch_zip
from medvfm_jax.weights.artifacts import WrongBaseWeights, check_base, fingerprint, load_delta, save_delta
from medvfm_jax.weights.export import save_own, save_torch, torch_state
from medvfm_jax.weights.fitting import fitting_models, port_file, set_aside_in
from medvfm_jax.weights.load import load
from medvfm_jax.weights.peft import BadPeft, CannotExport, LowRank, PeftAdapter, load_peft, save_peft
from medvfm_jax.weights.port import PortError, PortTable, to_jax, to_torch

__all__ = [
    "BadPeft",
    "CannotExport",
    "LowRank",
    "PeftAdapter",
    "PortError",
    "PortTable",
    "WrongBaseWeights",
    "artifacts",
    "check_base",
    "fingerprint",
    "fitting_models",
    "load",
    "load_delta",
    "load_peft",
    "port",
    "port_file",
    "registry",
    "save_delta",
    "save_own",
    "save_peft",
    "save_torch",
    "set_aside_in",
    "tables",
    "to_jax",
    "to_torch",
    "torch_state",
    "torch_zip",
]
