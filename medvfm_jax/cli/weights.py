"""`medvfm weights list | get | verify | convert | export | import`: published weights and adapters in, your own out."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from medvfm_jax import fetch, weights
from medvfm_jax.cli import console
from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.options.weights import Convert, Export, Get, Import, List, Verify
from medvfm_jax.cli.targets import check_target
from medvfm_jax.printable import counted
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import registry


class NoFit(MedvfmError):
    """A file is readable but belongs to no known model."""


def run(args: List | Get | Verify | Convert | Export | Import) -> int:
    """Run one subcommand; returns the exit code."""
    actions = {
        List: _list,
        Get: _get,
        Verify: _verify,
        Convert: _convert,
        Export: _export,
        Import: _import,
    }
    actions[type(args)](args)
    return 0


def _list(args: List) -> None:
    records = []
    for entry in registry.WEIGHTS.values():
        path = registry.cached_path(entry)
        records.append(
            {**asdict(entry), "source": str(entry.source), "cached": str(path) if path.exists() else None}
        )
    rows = [
        (
            r["name"],
            f"{r['size'] / 1e6:.0f} MB" if r["size"] else "?",
            r["licence"],
            ",".join(r["prompts"]),
            "yes" if r["cached"] else "no",
            "known" if r["sha256"] else "on first use",
        )
        for r in records
    ]
    columns = ("name", "size", "licence", "prompts", "cached", "sha256")
    notes = [f"{r['name']}: {r['source']}" + (f" ({r['notes']})" if r["notes"] else "") for r in records]
    console.result({"weights": records}, "\n".join([console.table(columns, rows), "", *notes]))


def _get(args: Get) -> None:
    entry = registry.WEIGHTS[args.name]
    with fetch.bar(args.name) as progress:
        path = registry.fetch(args.name, progress, source=args.from_)
    digest = fetch.sha256_of(path)
    console.result(
        {"name": args.name, "file": path, "sha256": digest, "licence": entry.licence},
        f"{args.name}: {path}\n  sha256 {digest}, licence {entry.licence}",
    )


def _verify(args: Verify) -> None:
    digest = fetch.verify(args.file, None, None)
    known = registry.identify(digest)
    fits, error = weights.fitting_models(args.file)
    record: dict[str, Any] = {
        "file": args.file,
        "bytes": args.file.stat().st_size,
        "sha256": digest,
        "known_as": known.name if known else None,
        "fits": fits,
    }
    if not fits:
        console.say(f"{args.file}: sha256 {digest}, not among the known files")
        raise NoFit(f"{error}")
    record["set_aside"] = rest = weights.set_aside_in(args.file, fits[0])
    console.result(
        record,
        f"{args.file}: {counted(record['bytes'], 'byte')}, sha256 {digest}\n"
        f"  {'the published ' + known.name if known else 'not among the published files with a known digest'}\n"
        f"  fits {_enumerate(fits)}" + (f"\n  {rest}" if rest else ""),
    )


def _convert(args: Convert) -> None:
    out = args.out or args.source.with_suffix(".medvfm.safetensors")
    if out.exists() and args.source.exists() and out.samefile(args.source):
        raise BadUsage(f"{out} is the file to convert; choose another --out")
    check_target(out, args.overwrite)
    _, params = weights.load(args.to, args.source)
    weights.save_own(out, params, args.to)
    console.result(
        {"file": out, "model": args.to, "fingerprint": weights.fingerprint(params)},
        f"{out}: parameters of {args.to}, each from one place of the file",
    )


def _export(args: Export) -> None:
    from medvfm_jax.cli.export_run import export_run  # with the training code, which the others do without

    if args.names != "original" and args.format != "peft":
        raise BadUsage("merged weights have the original names; give --names with --format peft only")
    path, what = export_run(
        args.run, args.format, args.out, args.file, overwrite=args.overwrite, names=args.names
    )
    console.result({"file": path, "format": args.format}, f"{path}: {what}")


def _import(args: Import) -> None:
    from medvfm_jax.train.adopt import adopt  # with the training code, as above

    check_target(args.out, args.overwrite)
    found = adopt(
        args.source,
        args.to,
        system=args.system,
        weights=args.weights,
        image_size=args.image_size,
        labels=args.labels,
        prompt=args.prompt,
        intensity=args.intensity,
        offline=args.offline,
    )
    weights.save_delta(args.out, found.delta, found.metadata)
    system, parts = found.metadata["preset"], ", ".join(found.delta)
    text = f"{args.out}: {system} on {args.to} ({parts}); use it with --delta {args.out}"
    console.result(
        {"file": args.out, "system": system, "base": args.to, "left_out": list(found.left_out)},
        "\n".join([text, *(f"  left out: {what}" for what in found.left_out)]),
    )


def _enumerate(names: Iterable[str]) -> str:
    return ", ".join(names)
