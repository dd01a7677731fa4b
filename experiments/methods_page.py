"""docs/methods.md: every method of the package, from its own records, docstrings, tests and results.

python -m experiments.methods_page

A test holds the page against the records, so that a new method cannot be missing from it.
"""

import contextlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import CodeType, ModuleType
from typing import Any, NamedTuple, get_args

from experiments.covering_tests import ROOT, covering
from experiments.measured import measured
from medvfm_jax import adapters, compress, crosstask, distill, losses, metrics, systems, theory
from medvfm_jax.adapters.serialise import KINDS
from medvfm_jax.catalog import description_of, differences_of, fidelity_of
from medvfm_jax.federated import algorithms, codecs, privacy
from medvfm_jax.federated import systems as federated_systems
from medvfm_jax.federated.algorithms.catalog import ALGORITHMS
from medvfm_jax.federated.codecs import feedback
from medvfm_jax.federated.codecs.catalog import CODECS
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.transforms import KINDS as TRANSFORMS
from medvfm_jax.models.transforms import kinds_of
from medvfm_jax.settings.federate import MemoryName
from medvfm_jax.types import MedvfmError

PAGE, SOURCES = ROOT / "docs" / "methods.md", ROOT / "medvfm_jax"
RESULTS = PAGE.with_name("results.md")
PYTHON = "Python only"
COLUMNS = ("name", "what it is", "paper", "as published", "reachable by", "test", "measured")
_HEAD = """---
hide:
  - navigation
  - toc
---

# Methods

Made by `python -m experiments.methods_page` from the package's records, docstrings, tests and results; do not edit.

* *As published*: "exact" where no difference is known to us, else what differs; an *interpretation* where the
  publication leaves open, or we have not seen, what the method does; "-" where there is no publication.
* *Test*: the file that names the method, in the folder of tests that mirrors that of the code.
* *Measured*: from `experiments/results/`, with 95 % intervals; all other metrics and settings: [Results](results.md).
  Empty: tested, but not measured on medical images.

What adapters cost and which merge: [What adapters cost](adapter-costs.md); speed: [Performance](performance.md). How to
add one: [Contributing](../CONTRIBUTING.md), [a system](own-system.md), [an algorithm](own-algorithm.md),
[a codec](own-codec.md).
"""


class Method(NamedTuple):
    """A row. sources: links. by: command line, or ``PYTHON``. test: path. measured: a cell, "" for nothing."""

    name: str
    text: str
    sources: Sequence[str]
    published: str
    by: str
    test: str
    measured: str = ""

    def cells(self) -> tuple[str, ...]:
        """As cells of the table."""
        links = ", ".join(map(_link, self.sources)) or "-"
        by = self.by if self.by == PYTHON else f"`{self.by}`"
        return f"`{self.name}`", self.text, links, self.published, by, f"`{self.test}`", self.measured


def sections() -> dict[str, list[Method]]:
    """All methods of the package: title -> rows."""
    return {
        "Systems": [
            _method(name, s, f"medvfm adapt --adapter {name}", ["systems"], kind="system")
            for name, s in systems.SYSTEMS.items()
        ],
        "Federated systems": [
            _method(
                name, s, f"medvfm federate --preset {name}", ["federated/systems"], kind="federated system"
            )
            for name, s in federated_systems.SYSTEMS.items()
        ],
        "Federated algorithms": [
            *(
                _method(n, e, _with_options("algorithm", n, e.options), _ALGORITHMS, kind="algorithm")
                for n, e in ALGORITHMS.items()
            ),
            *_others(algorithms, "Algorithm", ALGORITHMS, _ALGORITHMS),
        ],
        "Codecs": [
            *(
                _method(n, e, _with_options("codec", n, e.options), ["federated/codecs"], kind="codec")
                for n, e in CODECS.items()
            ),
            *(
                _method(n, getattr(feedback, n), f"medvfm federate --memory {n}", ["federated/codecs"])
                for n in get_args(MemoryName)
                if n != "none"
            ),
            *_others(codecs, "Codec", CODECS, ["federated/codecs"]),
        ],
        "Privacy": _package(
            privacy, "medvfm federate --dp-epsilon E", "federated/privacy", "federated", "cli"
        ),
        "Adapters": [
            *(_method(n, make, _by_system(n), ["adapters", "systems"]) for n, make in KINDS.items()),
            *_others(adapters, "Adapter", KINDS, ["adapters"]),
        ],
        "Models": [_model(name, entry) for name, entry in MODELS.items() if not name.endswith("-test")],
        "Transforms of a model": [
            _method(n, f, _by_transform(n), ["models", "systems", "train"]) for n, f in TRANSFORMS.items()
        ],
        "Losses": _losses(),
        "Tasks that differ": [
            _method(n, f, PYTHON if n == "exclusion_cross_entropy" else _FOR_TASKS[_module(f)], ["crosstask"])
            for n, f in functions_of(crosstask)
        ],
        "Theory": [
            _method(n, f, f"medvfm analyze {_ANALYSES[_module(f)]}", ["theory"])
            for n, f in functions_of(theory)
            if not n.startswith("analyze_")
        ],
        "Distillation": [
            _method(n, r, f"medvfm distill --recipe {n}", ["distill"], kind="recipe")
            for n, r in distill.RECIPES.items()
        ],
        "Compression": [
            _method(n, t, f"medvfm compress --method {n}", ["compress", "cli"], kind="method of compression")
            for n, t in compress.METHODS.items()
        ],
        "Metrics": _package(metrics, "medvfm evaluate", "metrics", "cli", "predict", "report"),
    }


def page() -> str:
    """The whole page."""
    found = sections()
    anchors = {title: re.sub(r"[^\w]+", "-", title.lower()).strip("-") for title in found}
    lines = [_HEAD, " · ".join(f"[{title}](#{anchor})" for title, anchor in anchors.items()), ""]
    for title, rows in found.items():
        lines += [f"## {title}", "", *_table(rows), ""]
    return "\n".join(lines)


_FOR_TASKS = {
    "partial_labels": "medvfm federate --annotated SITE=LABEL --objective NAME",
    "gradient_surgery": "medvfm federate --algorithm NAME",
    "loss_weighting": "medvfm federate --algorithm NAME",
    "client_clusters": "medvfm federate --algorithm clustered",
    "task_vectors": "medvfm federate --algorithm matu",
    "task_relations": "medvfm federate --algorithm mocha",
    "task_affinity": "medvfm analyze conflict",
}
_ANALYSES = {
    "spectrum": "placement",
    "placement": "placement",
    "tangent_kernel": "kernel",
    "curvature": "curvature",
    "interpolation": "barrier",
    "landscape": "landscape",
    "pac_bayes": "bound",
    "similarity": "similarity",
    "evidence": "transferability",
    "h_score": "transferability",
    "empirical_predictor": "transferability",
    "domain_bound": "divergence --points 32",
    "frechet": "divergence",
    "maximum_mean_discrepancy": "divergence",
    "permutation": "divergence",
    "proxy_distance": "divergence",
    "sliced_wasserstein": "divergence",
    "receptive_field": "receptive-field",
    "attention_distance": "attention-distance",
    "client_drift": "drift",
    "scaling_law": "scaling",
    "rank_agreement": "ablate",
}
_ALGORITHMS = ["federated/algorithms", "federated/core", "federated/run"]
_TRIED = ("sam-b", "lite-medsam", "vit-b", "unet")  # models whose systems are asked for their parts


def _method(name: str, record: Any, by: str, folders: Sequence[str], kind: str = "") -> Method:
    sources = _sources(record)
    return Method(
        name,
        description_of(record),
        sources,
        _published(record) if sources else "-",
        by,
        covering((name,), folders, _module(record)),
        measured(kind, name) or (_in_words(name) if kind else ""),
    )


def _model(name: str, entry: ModelEntry) -> Method:
    spec = entry.spec
    text = f"{entry.family}, {spec.size} px, {spec.task}, prompts: {', '.join(spec.prompts)}, {spec.licence}"
    family = [other for other, e in MODELS.items() if e.family == entry.family]
    return Method(
        name,
        text,
        _sources(entry),
        _published(entry),
        f"medvfm adapt --model {name}",
        covering((name, *family), ["models", "parity"]),
        measured("model", name),
    )


def _others(package: ModuleType, made: str, known: Iterable[str], folders: Sequence[str]) -> list[Method]:
    """Functions of an ``__all__`` that make a record of this kind and are not in its catalog."""
    return [
        _method(name, function, PYTHON, folders)
        for name, function in functions_of(package)
        if name not in known
        and getattr(inspect.signature(function).return_annotation, "__name__", "") == made
    ]


_LOOK_UPS = ("make_codec", "from_config")  # they give what the catalogs have


def functions_of(package: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions of an ``__all__``, in alphabetical order."""
    for name in sorted(package.__all__):
        if inspect.isfunction(function := getattr(package, name)):
            yield name, function


def _module(record: Any) -> str:
    made = getattr(record, "make", getattr(record, "algorithm", record))
    return getattr(made, "__module__", "").rpartition(".")[2]


def _with_options(part: str, name: str, options: Mapping[str, Any]) -> str:
    assigned = " ".join(f"{part}.{option}={_text(value)}" for option, value in options.items())
    return f"medvfm federate --{part} {name}" + (f" --set {assigned}" if assigned else "")


def _text(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[\w.+-]+", text) else "..."  # a pattern, or ranks of clients


def _by_system(kind: str) -> str:
    """The command whose system has an adapter of this kind."""
    for command, catalog in (("adapt --adapter", systems.SYSTEMS), ("federate --preset", _FEDERATED)):
        for name, system in catalog.items():
            if kind in _kinds(system):
                return f"medvfm {command} {name}"
    for name in _compressing(kind):
        return f"medvfm compress --method {name}"
    return "medvfm weights import" if _used(kind, "adapters", "weights", "train") else PYTHON


def _compressing(kind: str) -> list[str]:
    """Methods of compression that make an adapter of this kind."""
    return [
        n for n, t in compress.METHODS.items() if kind in _names(inspect.getmodule(t.init)._init.__code__)
    ]


def _kinds(system: systems.System) -> set[str]:
    """Kinds of the adapters of a system, on all models that it is asked for."""
    found = set()
    for model in _TRIED:
        with contextlib.suppress(MedvfmError):  # a system for other models
            found |= {part["kind"] for part in system.adapter(MODELS[model].spec).values()}
    return found


# Transforms that an option asks for, with any system.
_BY_OPTION = {"tile": "--prompt none --tile 256", "linear_head": "--model dinov2-s --adapter linear"}
_FEDERATED = {name: entry.system for name, entry in federated_systems.SYSTEMS.items()}


def _by_transform(kind: str) -> str:
    if kind in _BY_OPTION:
        return f"medvfm adapt {_BY_OPTION[kind]}"
    for name, system in systems.SYSTEMS.items():
        if kind in _transforms(system):
            return f"medvfm adapt --adapter {name} --prompt {_transforms(system)[kind]}"
    return "medvfm weights import" if _used(kind, "models", "weights", "train") else PYTHON


def _transforms(system: systems.System) -> dict[str, str]:
    """Kind of every transform of a system -> a prompt with which it has it."""
    return {
        kind: prompt
        for prompt in ("none", system.prompts)
        for kind in kinds_of(system.transform(MODELS["sam-b"].spec, prompt, 2))
    }


def _reached(package: ModuleType, folder: str, *users: str) -> set[str]:
    """Names of functions of a package that something in the folders ``users`` names, and of what these call in turn."""
    functions: dict[str, list[Any]] = {}  # of the same name, of several modules
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__:
                functions.setdefault(name, []).append(thing)
    reached, todo = set(), [name for name in functions if _used(name, folder, *users)]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            called = [other for function in functions[name] for other in _names(function.__code__)]
            todo += [other for other in called if other in functions]
    return reached


def _names(code: CodeType) -> Iterator[str]:
    """Global names and attributes in a function and in those within it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _used(name: str, package: str, *folders: str) -> bool:
    word = re.compile(rf"\b{re.escape(name)}\b")
    return any(word.search(text) for folder in folders for text in _code(folder, package))


@cache
def _code(folder: str, without: str) -> tuple[str, ...]:
    paths = (SOURCES / folder).rglob("*.py")
    return tuple(p.read_text(encoding="utf-8") for p in paths if SOURCES / without not in p.parents)


def _package(package: ModuleType, command: str, folder: str, *users: str) -> list[Method]:
    """Rows of the functions of an ``__all__``; ``command`` reaches those that the folders ``users`` call."""
    reached = dict.fromkeys(_reached(package, folder, *users), command)
    return [_method(n, f, reached.get(n, PYTHON), [folder]) for n, f in functions_of(package)]


def _losses() -> list[Method]:
    """Rows of the losses; those of distillation are reached through the terms that compute them."""
    reached = dict.fromkeys(_reached(losses, "losses", "train"), "medvfm adapt --objective NAME")
    reached["embedding_cosine"] = "medvfm distill"  # told in its metrics
    for name, term in distill.TERMS.items():
        for loss in term.losses:
            by = f"medvfm distill --recipe {_OWN_RECIPE.get(name, f'task --set {name}={term.weight:g}')}"
            reached.setdefault(loss, by)
    return [_method(n, f, reached.get(n, PYTHON), ["losses"]) for n, f in functions_of(losses)]


# Terms that compare with what one recipe alone has.
_OWN_RECIPE = {"reconstruction": "sami", "consistency": "mean_teacher", "peer": "mutual", "layers": "dear_kd"}


def _published(record: Any) -> str:
    fidelity, text = fidelity_of(record), differences_of(record).removeprefix("Interpretation: ")
    if fidelity == "exact":
        return _by_its_system(record) or "exact"
    return f"{_SHOWN[fidelity]}: {text}"


_SHOWN = {"differs": "differs", "interpretation": "*interpretation*"}


def _by_its_system(part: Any) -> str:
    """A part (adapter, transform) says nothing itself: the system of the same source does, if that differs."""
    made = {id(make): name for name, make in [*KINDS.items(), *TRANSFORMS.items()]}
    if id(part) not in made:
        return ""
    told = [
        name
        for name, system in systems.SYSTEMS.items()
        if system.source in _sources(part)
        and system.differences
        and made[id(part)] in _kinds(system) | set(_transforms(system))
    ]
    if told:
        return f"see system `{told[0]}`"
    methods = [n for n in _compressing(made[id(part)]) if compress.METHODS[n].differences]
    return f"see method `{methods[0]}`" if methods else ""


def _sources(record: Any) -> tuple[str, ...]:
    """Links of a record, or those of a docstring."""
    if given := getattr(getattr(record, "system", record), "source", ""):
        return (given,)
    text = (
        inspect.getdoc(getattr(record, "make", record)) if callable(getattr(record, "make", record)) else ""
    )
    return tuple(dict.fromkeys(link.rstrip(".,;)") for link in re.findall(r"https://\S+", text or "")))


def _in_words(name: str) -> str:
    """A link where the page of results has a word about a method that no file of results has a figure of."""
    words = {_bare(word).removesuffix("style") for word in RESULTS.read_text(encoding="utf-8").split()}
    return f"[in words]({RESULTS.name})" if _bare(name) in words else ""


def _bare(word: str) -> str:
    """FFA-LoRA, `ffa_lora` -> ffalora."""
    return re.sub(r"[\W_]", "", word).lower()


def _link(source: str) -> str:
    return f"[{source.removeprefix('https://').removeprefix('arxiv.org/abs/')}]({source})"


def _table(rows: Iterable[Method]) -> list[str]:
    cells = [COLUMNS, ["---"] * len(COLUMNS), *([c.replace("|", "\\|") for c in row.cells()] for row in rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
