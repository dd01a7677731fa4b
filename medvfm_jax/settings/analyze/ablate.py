"""Settings of `analyze ablate`: a file with a grid of settings of `adapt`."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from medvfm_jax import json_text
from medvfm_jax.catalog import did_you_mean
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.groups import Settings
from medvfm_jax.settings.records import BadConfig, require

# Settings of `adapt` that the grid sets itself, or that are for one run.
FIXED = {"out", "resume", "seed", "tensorboard", "mirror", "wandb", "mlflow"}


@dataclasses.dataclass(frozen=True)
class AblateConfig(Settings):
    """A grid of runs, what theory predicts of each, and whether the order is the same."""

    _: dataclasses.KW_ONLY
    grid: Path
    """JSON file: {"settings": {...}, "vary": {"adapter": ["lora", "decoder"], ...}, "seeds": [0, 1, 2], "tools":
    ["size", "gradient", "kernel"]}; settings are those of `adapt`, every combination of what varies is a cell."""
    out: Path = Path("runs/ablation")
    """Folder for a run directory of each cell and seed, and the table; what is there already is kept."""
    cases: int = 4
    """Training images that the predictions look at."""
    test_cases: int | None = 24
    """Score the first so many test cases of each run."""
    apart: bool = False
    """Train the seeds of a cell one after the other, also where they could train as one program."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(self.cases >= 2, "cases", self.cases, "at least 2, for a spread")
        require(self.test_cases is None or self.test_cases >= 2, "test_cases", self.test_cases, "at least 2")


class Cell(NamedTuple):
    """One combination of a grid.

    Attributes:
        name: what varies, for tables; also the name of its folder.
        configs: settings of `adapt` of each seed.
    """

    name: str
    configs: tuple[AdaptConfig, ...]


class Grid(NamedTuple):
    """What a grid file says.

    Attributes:
        cells: every combination of what varies.
        seeds: of each cell.
        tools: names of predictors.
    """

    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    tools: tuple[str, ...]


def read_grid(config: AblateConfig) -> Grid:
    """The file as settings of `adapt`, one for each cell and seed.

    Raises:
        BadConfig: a file that cannot be read, names that are no settings, values that `adapt` refuses, an axis without
            values, or two cells that are the same.
    """
    path = config.grid
    try:
        record = json_text.read(path)
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} cannot be read as JSON ({error}).") from error
    known = ("settings", "vary", "seeds", "tools")
    if not isinstance(record, Mapping) or not isinstance(record.get("settings"), Mapping):
        raise BadConfig(
            f'{path} is no grid: it needs {{"settings": {{...}}, "vary": {{...}}, "seeds": [...]}}.'
        )
    if foreign := [name for name in record if name not in known]:
        raise BadConfig(
            f"{path} has {foreign[0]!r}, which a grid does not know{did_you_mean(foreign[0], known)}."
        )
    vary, seeds = record.get("vary", {}), record.get("seeds", [0])
    tools = record.get("tools", ["size", "gradient", "kernel"])
    _check_names(path, record["settings"], vary)
    for name, values in (*vary.items(), ("seeds", seeds), ("tools", tools)):
        if not isinstance(values, list) or not values:
            raise BadConfig(f"{path}: {name} needs a list of one or more values.")
        if len({repr(value) for value in values}) < len(values):
            raise BadConfig(f"{path}: {name} has a value twice.")
    if not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise BadConfig(f"{path}: seeds are whole numbers of at least 0.")
    cells = []
    for chosen in itertools.product(*vary.values()):
        varied = dict(zip(vary, chosen))
        name = ",".join(f"{key}={_word(value)}" for key, value in varied.items()) or "only"
        common = {**record["settings"], **varied}
        configs = (
            _settings(path, common | {"seed": seed, "out": config.out / _folder(name) / f"seed_{seed}"})
            for seed in seeds
        )
        cells.append(Cell(name, tuple(configs)))
    if len({_folder(cell.name) for cell in cells}) < len(cells):
        raise BadConfig(f"{path}: two cells have the same name; let them differ in more than punctuation.")
    return Grid(tuple(cells), tuple(seeds), tuple(tools))


def _check_names(path: Path, settings: Any, vary: Any) -> None:
    if not isinstance(vary, Mapping):
        raise BadConfig(f"{path}: vary needs names of settings with lists of values.")
    names = [field.name for field in dataclasses.fields(AdaptConfig)]
    for name in (*settings, *vary):
        if name in FIXED:
            raise BadConfig(
                f"{path}: {name} is set for every run of the grid; leave it out (seeds has a list)."
            )
        if name not in names:
            raise BadConfig(f"{path}: {name!r} is no setting of adapt{did_you_mean(name, names)}.")
        if name in settings and name in vary:
            raise BadConfig(f"{path}: {name} stands in settings and in vary; leave one out.")


def _settings(path: Path, values: Mapping[str, Any]) -> AdaptConfig:
    usual = {"validate_every": 0, "resume": True}
    kinds = get_type_hints(AdaptConfig)
    for name, value in values.items():
        if name not in FIXED and not _fits(value, kinds[name]):
            raise BadConfig(
                f"{path}: {name} is {value!r:.80}, which is of another kind than adapt takes; expected "
                f"{_kind(kinds[name])}."
            )
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    if "weights" in values and values["weights"] is not None:
        values["weights"] = Path(values["weights"])
    try:
        return AdaptConfig(**{**usual, **values})
    except TypeError as error:
        raise BadConfig(
            f"{path}: a setting has a value of another kind than adapt takes ({error})."
        ) from error


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of the kind that a setting has."""
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(one, get_args(kind)[0]) for one in value)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is Path:
        return isinstance(value, str)
    if kind is float:
        return type(value) in (int, float)
    return not isinstance(kind, type) or type(value) is kind


def _kind(kind: Any) -> str:
    """In words, as `--help` has them."""
    if get_origin(kind) is tuple:
        return f"a list, each {_kind(get_args(kind)[0])}"
    if get_args(kind):
        return " or ".join(one if isinstance(one, str) else _kind(one) for one in get_args(kind))
    words = {str: "a text", Path: "a path", int: "a whole number", float: "a number", bool: "true or false"}
    return "null" if kind is type(None) else words.get(kind, str(kind))


def _word(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "=,.+-_" else "_" for letter in name)


def folder_of(config: AblateConfig, cell: Cell) -> Path:
    """Where the runs of a cell lie."""
    return config.out / _folder(cell.name)
