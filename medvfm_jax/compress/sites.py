"""Where in a model a method acts: parameters and modules whose path matches a pattern, and what it leaves as it is."""

from collections.abc import Callable, Mapping
from typing import Any

from medvfm_jax import patterns
from medvfm_jax.adapters.errors import NoSuchSite, WrongSite
from medvfm_jax.adapters.model import example_inputs
from medvfm_jax.adapters.parameter_paths import leaves_by_path, match, parameters_by_path
from medvfm_jax.adapters.sites import Site, find_sites
from medvfm_jax.compress.record import REST, Compressed, Subject
from medvfm_jax.types import Delta

KERNELS = r"(image_encoder|mask_decoder)/(.*/)?kernel"


def kernels(subject: Subject, pattern: str) -> list[str]:
    """Sorted paths of the modules that have a kernel whose path matches.

    Args:
        subject: the model.
        pattern: regular expression of parameter paths, full match.

    Returns:
        Module paths.

    Raises:
        NoSuchSite: nothing matches, or something that is no kernel.
    """
    found = match(pattern, parameters_by_path(subject.params), "parameter")
    if wrong := [path for path in found if not path.endswith("/kernel")]:
        raise NoSuchSite(
            f"'{wrong[0]}' is no kernel, and kernels alone are rounded; let the pattern end with /kernel."
        )
    return [path.removesuffix("/kernel") for path in found]


def modules(subject: Subject, pattern: str, fits: Callable[[Site], Any], what: str) -> dict[str, Site]:
    """Modules whose path matches and that a method can act on.

    Args:
        subject: the model.
        pattern: regular expression of module paths, full match.
        fits: raises WrongSite for a module of another kind.
        what: such modules are called in the message.

    Returns:
        Path -> site.

    Raises:
        NoSuchSite: there is none.
    """
    sites = find_sites(subject.model.apply, subject.params, *example_inputs(subject.model.spec))
    try:
        matched = match(pattern, sites)
    except NoSuchSite:
        matched = []
    found = {path: sites[path] for path in matched if accepts(fits, sites[path])}
    if not found:
        raise NoSuchSite(
            f"{subject.name} has no {what} at '{pattern}'; choose another --method, or --set at=PATTERN."
        )
    return found


def accepts(fits: Callable[[Site], Any], site: Site) -> bool:
    """Whether a method can act on a module; fits raises WrongSite for others."""
    try:
        fits(site)
    except (WrongSite, KeyError):
        return False
    return True


def leaf(subject: Subject, module: str, name: str) -> Any:
    """One parameter."""
    return node(subject, module)[name]


def node(subject: Subject, module: str) -> Any:
    """The parameters of one module."""
    tree: Any = subject.params["params"]
    for key in module.split("/"):
        tree = tree[key]
    return tree


def with_rest(subject: Subject, compressed: Compressed, replaced: str) -> Compressed:
    """The same with a part for all parameters that the others do not take the place of.

    Args:
        subject: the model.
        compressed: without that part.
        replaced: regular expression of the parameter paths that the parts stand for.

    Returns:
        A model that needs none of the subject's parameters.
    """
    pattern = rf"(?!(?:{replaced})$).*"
    leaves = {f"{m}/{n}": (m, n, value) for m, n, value in leaves_by_path(subject.params["params"])}
    longest = max(map(len, leaves))
    fullmatch = patterns.matcher(pattern, longest).fullmatch
    rest: Delta = {}
    for path, (module, name, value) in leaves.items():
        if fullmatch(path):
            rest.setdefault(module, {})[name] = value
    if not rest:
        return compressed
    parts: Mapping[str, Any] = {REST: {"kind": "replace", "at": pattern}, **compressed.parts}
    return compressed._replace(parts=parts, delta={REST: rest, **compressed.delta})
