"""`medvfm export`: a model for other runtimes."""

from dataclasses import fields

from medvfm_jax.cli import console
from medvfm_jax.cli.options.export import ExportArgs
from medvfm_jax.export import export
from medvfm_jax.settings.export import ExportConfig


def run(args: ExportArgs) -> int:
    """Write, check, print the errors."""
    config = ExportConfig(**{field.name: getattr(args, field.name) for field in fields(ExportConfig)})
    record = export(config, console.say)
    for warning in record["warnings"]:
        console.warn(warning)
    rows = [
        (
            row["file"],
            name,
            f"{output['largest_difference']:.1e}",
            f"{output['error']:.1e}",
            f"{row['bound']:g}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{1e3 * row['seconds_one_thread']:.0f}",
        )
        for row in record["files"]
        for name, output in row["outputs"].items()
    ]
    if not console.json_mode():
        columns = ("file", "output", "largest difference", "error", "bound", "MB", "ms, one thread")
        console.say(console.table(columns, rows))
    console.result(record, f"exported: {config.out}; next: see {config.out}/README.md")
    return 0
