"""`export`: a folder with files for another runtime, their check, a card and a bundle that runs them."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import NDArray

from medvfm_jax import __version__
from medvfm_jax.export import card
from medvfm_jax.export.bundle import card_digest
from medvfm_jax.export.checking import FLOAT_BOUND, image_inputs, measured, prompt_inputs
from medvfm_jax.export.formats import Format, require_installed
from medvfm_jax.export.parts import Part, decoder_part, encoder_part, expected, whole_part
from medvfm_jax.export.subject import Subject, subject
from medvfm_jax.fetch import cache_dir, sha256_of
from medvfm_jax.models.model import Model
from medvfm_jax.runs import run_directory
from medvfm_jax.settings.export import INT8_BOUND, ExportConfig, FormatName
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import ModelSpec, Params
from medvfm_jax.weights.artifacts import fingerprint

SHIPPED = Path(__file__).parent
BOX_SLOTS, CLICK_SLOTS = 2, 8  # points of an object where `slots` does not say


def export(config: ExportConfig, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Write a model for another runtime.

    Args:
        config: what, how and where to.
        say: told what happens.

    Returns:
        The record of check.json, with the folder and what the user should know (``warnings``).

    Raises:
        CannotExport: see ``subject``, ``require_installed``, the formats, and a file whose error is above its bound.
        BadConfig: settings that have no meaning for the model.
        RunError: the folder exists, or cannot be written.
    """
    chosen = require_installed(config.to, int8=config.int8)
    _check_free(config.out)
    found = subject(config)
    parts, references = _parts(config, found)
    run_directory.make_folder(config.out.absolute().parent)
    with tempfile.TemporaryDirectory(
        prefix=f".{config.out.name}.", dir=config.out.absolute().parent
    ) as hidden:
        folder = Path(hidden) / "folder"
        folder.mkdir()
        files, small, rows = _written(config, chosen, found, parts, references, folder, say)
        check = {
            "written_as": config.to,
            "reference": "JAX, with the adapter beside the weights" if found.metadata else "JAX",
            "inputs": "synthetic pictures and prompts, medvfm_jax.export.checking.scene, seed 0",
            "machine": found.provenance | {"device": jax.devices()[0].platform},
            "files": rows,
        }
        record = card.card(found, config.to, parts, files, small)
        names = sorted({*files.values(), *small.values()})
        record["sha256"] = {name: sha256_of(folder / name) for name in names}
        with run_directory.writing(config.out):
            record = json.loads(json.dumps(run_directory.finite(record)))
            record["sha256_of_this"] = card_digest(record)
            run_directory.write_json(folder / card.CARD, record)
            run_directory.write_json(folder / card.CHECK, check)
            (folder / card.README).write_text(card.readme(record, check), "utf-8")
            shutil.copyfile(SHIPPED / "bundle.py", folder / card.BUNDLE)
            shutil.copyfile(SHIPPED / "runner.py", folder / card.RUNNER)
            os.replace(folder, config.out)
    return {"folder": config.out, **check, "warnings": list(found.warnings)}


def export_encoder(
    model: Model,
    params: Params,
    *,
    to: FormatName = "onnx",
    batch: int | None = 1,
    int8: bool = False,
    int8_bound: float = INT8_BOUND,
) -> Path:
    """The image encoder alone as a file, checked, and kept for the next time.

    Examples:
        >>> from medvfm_jax import weights
        >>> from medvfm_jax.export import export_encoder
        >>> path = export_encoder(*weights.load("lite-medsam"), int8=True)  # doctest: +SKIP

    Args:
        model: whose encoder; of an adapted one, that of the merged weights.
        params: its weights.
        to: name of the format.
        batch: images at once; None leaves it open.
        int8: 8-bit weights.
        int8_bound: of their error, see ``ExportConfig``.

    Returns:
        The file in the cache folder; ``bundle.network(file, part_record(encoder_part(...)))`` runs it.

    Raises:
        CannotExport: see ``export``.
        BadConfig: 8 bits of StableHLO, or an open batch of LiteRT.
    """
    chosen = require_installed(to, int8=int8)
    if int8 and chosen.quantise is None:
        raise BadConfig(f"There are no 8-bit files of {to}; take onnx or litert.")
    if batch is None and to == "litert":
        raise BadConfig("LiteRT files have fixed sizes; give a batch.")
    spec = model.spec
    words = (__version__, spec, fingerprint(params), to, batch, _writers(chosen))
    place = cache_dir() / "exported" / sha256(repr(words).encode()).hexdigest()[:32]
    file = place / f"encoder{'.int8' if int8 else ''}{chosen.suffix}"
    bound = int8_bound if int8 else FLOAT_BOUND
    if _holds(place, file, bound):
        return file
    part = encoder_part(lambda image: model.encode(params, image), spec, batch)
    run_directory.make_folder(place)
    with tempfile.TemporaryDirectory(prefix=".", dir=place) as hidden:
        inputs = image_inputs(part, spec)
        wanted = expected(part, inputs)
        plain = Path(hidden) / f"encoder{chosen.suffix}"
        chosen.write(part, plain)
        made = [(plain, FLOAT_BOUND, False)]
        if int8:
            smaller = Path(hidden) / file.name
            chosen.quantise(plain, smaller)
            made.append((smaller, int8_bound, True))
        rows = [
            measured(part, path, inputs, wanted, bound=limit, relative=relative)
            for path, limit, relative in made
        ]
        for (path, _, _), row in zip(made, rows):
            row["sha256"] = sha256_of(path)
            with run_directory.writing(place):
                os.replace(path, place / path.name)
            run_directory.write_json(place / f"{path.name}.json", row)  # last: only what has it is whole
    return file


def _holds(place: Path, file: Path, bound: float) -> bool:
    """Whether a file is, byte for byte, the one that was checked, and its error was within the bound."""
    said = place / f"{file.name}.json"
    if not (file.is_file() and said.is_file()):
        return False
    try:
        row = run_directory.read_record(said)
        errors = [output["error"] for output in row["outputs"].values()]
        rms = [output["relative_rms"] for output in row["outputs"].values()]  # what scores say of it
        return max(errors) <= bound and sha256_of(file) == row["sha256"] and min(rms) >= 0
    except (run_directory.RunError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return False


def _writers(chosen: Format) -> list[str]:
    """What the bytes of a file follow from beside the model: the writers and their sources."""
    from importlib import metadata

    found = [f"jax {jax.__version__}"]
    for module in chosen.modules:
        name = {"ai_edge_litert": "ai-edge-litert", "litert_converter": "litert-converter"}.get(
            module, module
        )
        found.append(f"{name} {metadata.version(name)}")
    return [*found, *(sha256(path.read_bytes()).hexdigest() for path in sorted(SHIPPED.glob("*.py")))]


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise run_directory.RunExists(f"{out} exists; choose another --out, or move it away.")


def _parts(config: ExportConfig, found: Subject) -> tuple[list[Part], list[Part]]:
    """What becomes files, and the same as `segment` computes it."""
    spec, batch = found.spec, None if config.dynamic else config.batch
    if spec.task == "semantic":
        made, reference = (
            [whole_part(lambda image, apply=apply: apply(image).logits, spec, batch)]
            for apply in (found.apply, found.reference[2])
        )
        return made, reference
    asked = None if config.dynamic else config.prompts
    slots = config.slots or (CLICK_SLOTS if _takes_clicks(spec, found.metadata) else BOX_SLOTS)
    masks = _number_of_masks(found, slots)

    def both(encode: Callable[..., Any], decode: Callable[..., Any]) -> list[Part]:
        return [encoder_part(encode, spec, batch), decoder_part(decode, spec, asked, slots, masks)]

    return both(found.encode, found.decode), both(*found.reference[:2])


def _takes_clicks(spec: ModelSpec, metadata: Mapping[str, Any]) -> bool:
    return "point" in spec.prompts or metadata.get("prompt") in ("point", "mixed")


def _number_of_masks(found: Subject, slots: int) -> int:
    from medvfm_jax.types import Prompts

    prompts = Prompts(
        jax.ShapeDtypeStruct((1, slots, 2), jnp.float32), jax.ShapeDtypeStruct((1, slots), jnp.int32)
    )
    embedding = jax.ShapeDtypeStruct(found.spec.embedding, jnp.float32)
    return jax.eval_shape(found.decode, embedding, prompts).logits.shape[1]


def _written(
    config: ExportConfig,
    chosen: Format,
    found: Subject,
    parts: list[Part],
    references: list[Part],
    folder: Path,
    say: Callable[[str], None],
) -> tuple[dict[str, str], dict[str, str], list[dict[str, Any]]]:
    """Write and check every part; gives the files, the 8-bit files, and a record of each check."""
    files, small, rows = {}, {}, []
    spec = found.spec
    # Formats add numbers up in another order: what is rounded half-way between two steps is then off by a whole one.
    bound, relative = (config.int8_bound, True) if found.rounds else (FLOAT_BOUND, False)
    embedding: NDArray | None = None
    for part, reference in zip(parts, references, strict=True):
        say(f"writing the {part.name} as {config.to} ...")
        inputs = image_inputs(part, spec) if embedding is None else prompt_inputs(part, spec, embedding)
        wanted = expected(reference, inputs)
        path = folder / f"{part.name}{chosen.suffix}"
        with run_directory.writing(config.out):
            chosen.write(part, path)
        files[part.name] = path.name
        rows.append(measured(part, path, inputs, wanted, bound=bound, relative=relative))
        if config.int8 and chosen.quantise is not None:
            smaller = folder / f"{part.name}.int8{chosen.suffix}"
            with run_directory.writing(config.out):
                chosen.quantise(path, smaller)
            small[part.name] = smaller.name
            rows.append(measured(part, smaller, inputs, wanted, bound=config.int8_bound, relative=True))
        if part.name == "encoder":
            embedding = wanted[0][0]
    return files, small, rows
