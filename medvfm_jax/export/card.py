"""The card of an exported model: what a program and a person must know to use it."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from medvfm_jax.export.checking import part_record
from medvfm_jax.export.formats import FORMATS
from medvfm_jax.export.parts import Part
from medvfm_jax.export.subject import Subject
from medvfm_jax.images.frame import filter_of
from medvfm_jax.runs.provenance import versions

CARD, CHECK, README, BUNDLE, RUNNER = "model.json", "check.json", "README.md", "medvfm_bundle.py", "run.py"
FORMAT = 1  # of model.json
_NORMALISED = {
    "minmax": "after resizing, from the least to the greatest number of the picture to 0..1, 0 if evenly coloured",
    "mean_std_255": "0..255, minus the mean, divided by the standard deviation",
    "mean_std_unit": "0..1, minus the mean, divided by the standard deviation",
    "unit": "0..1",
    "z_scores": "0..1, minus the mean of the numbers above 0 of the picture, divided by their standard deviation",
}


def card(
    found: Subject, to: str, parts: Sequence[Part], files: Mapping[str, str], int8: Mapping[str, str]
) -> dict[str, Any]:
    """What goes into model.json.

    Args:
        found: what is exported.
        to: name of the format.
        parts: what became files.
        files: name of a part -> its file.
        int8: the same of the 8-bit files, {} without.

    Returns:
        A record that JSON can hold.
    """
    spec, metadata = found.spec, found.metadata
    labels = metadata.get("labels") if spec.task == "semantic" else None
    return {
        "format": FORMAT,
        "name": spec.name,
        "task": spec.task,
        "licence": spec.licence,
        "written_as": to,
        "runtime": FORMATS[to].runtime,
        "files": dict(files),
        "files_int8": dict(int8),
        "parts": {part.name: part_record(part) for part in parts},
        "preparation": {
            "input_shape": list(spec.input_shape),
            "resize": spec.resize,
            "filter": filter_of(spec),
            "normalise": spec.normalise,
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "prompts": list(spec.prompts) if spec.task == "promptable" else [],
        "trained_prompt": metadata.get("prompt"),
        "labels": None if labels is None else {str(number): name for name, number in labels.items()},
        "notes": [*((spec.notes,) if spec.notes else ()), *found.notes],
        "scores": found.scores,
        "provenance": {
            **found.provenance,
            "adapter": metadata.get("adapter"),
            "versions": versions(),
            "machine": platform.machine(),
        },
    }


def readme(record: Mapping[str, Any], check: Mapping[str, Any]) -> str:
    """The same for a person, in Markdown.

    Args:
        record: what ``card`` gives.
        check: contents of check.json.

    Returns:
        The text.
    """
    rule, said = record["preparation"], record["provenance"]
    what = f"{said['base']}, adapted" if said["delta_sha256"] else said["base"]
    numbers = (
        f" (mean {rule['mean']}, standard deviation {rule['std']})" if "mean" in rule["normalise"] else ""
    )
    resized = {
        "longest_side": "the longest side is fitted, zeros below and to the right",
        "stretch": "both sides are stretched",
        "none": "pictures keep their size",
    }[rule["resize"]]
    lines = [
        f"# {what}",
        "",
        f"Written by `medvfm export` as {record['written_as']}. Licence of the weights: {record['licence']}.",
        "",
        "```bash",
        f"pip install numpy {record['runtime']}",
        "python run.py picture.npy mask.npy"
        + (" --box X0 Y0 X1 Y1" if record["task"] == "promptable" else ""),
        "```",
        "",
        f"From Python: `{BUNDLE}`, which needs nothing else. Everything below is in `{CARD}` and `{CHECK}` too.",
        "",
        "| file | input or output | shape | type | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, part in record["parts"].items():
        for side in ("inputs", "outputs"):
            for tensor in part[side]:
                shape = " x ".join(map(str, tensor["shape"]))
                where = f"{record['files'][name]}: {side[:-1]}"
                lines.append(
                    f"| {where} | `{tensor['name']}` | {shape} | {tensor['dtype']} | {tensor['meaning']} |"
                )
    lines += [
        "",
        f"**Images.** {rule['input_shape'][0]} x {rule['input_shape'][1]} pixels, channels last; {resized}",
    ]
    lines[-1] += f"; resized by {rule['filter']}; numbers: {_NORMALISED[rule['normalise']]}{numbers}."
    if record["task"] == "promptable":
        lines += ["", f"**Prompts.** Trained with: {', '.join(record['prompts'])}."]
        if record["trained_prompt"]:
            lines[-1] += f" Adapted with: {record['trained_prompt']}."
    if record["labels"]:
        named = ", ".join(f"{number} {name}" for number, name in record["labels"].items())
        lines += ["", f"**Labels.** {named}."]
    lines += ["", "**Checked** against JAX on synthetic pictures:", ""]
    lines += ["| file | output | largest difference | error | bound | MB |", "|---|---|---|---|---|---|"]
    for row in check["files"]:
        for name, output in row["outputs"].items():
            lines.append(
                f"| {row['file']} | {name} | {output['largest_difference']:.2g} | {output['error']:.2g} | "
                f"{row['bound']:g} | {row['bytes'] / 1e6:.1f} |"
            )
    scores = record["scores"]
    if scores and scores.get("summary"):
        lines += [
            "",
            f"**Scores** of the run on {scores.get('data')}, {scores.get('split')} split: see `{CARD}`.",
        ]
        rows = scores["summary"] if isinstance(scores["summary"], list) else []
        lines += ["", *(f"* {row.get('label')}: {row.get('metric')} {row.get('mean')}" for row in rows)]
    lines += ["", *(f"* {note}" for note in record["notes"])]
    lines += [
        "",
        f"**Provenance.** Base weights {said['base_fingerprint']}; delta {said['delta_sha256'] or 'none'}.",
    ]
    return "\n".join(lines).rstrip() + "\n"
