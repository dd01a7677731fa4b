"""`medvfm fetch`: the copy of a run from storage."""

from rich.console import Console

from medvfm_jax.cli import console
from medvfm_jax.cli.options.fetch import FetchArgs
from medvfm_jax.runs import retrieve, run_directory
from medvfm_jax.runs.progress import tracked


def run(args: FetchArgs) -> int:
    """Bring it and say where it is."""
    progress = Console(stderr=True, highlight=False)
    files = retrieve.fetch_new(args.url, args.out, lambda items: tracked(items, "fetch", progress))
    whole = (args.out / run_directory.DELTA).exists()
    step = f"next: medvfm evaluate --run {args.out}" if whole else "it has no delta yet, only checkpoints"
    console.result(
        {"run": args.out, "url": args.url, "files": files, "trained": whole},
        f"{args.out}: {files} files of the run, every one as it was copied; {step}",
    )
    return 0
