"""Files that an evaluation writes: where they lie, and what they never replace."""

from pathlib import Path

from medvfm_jax.runs import run_directory, staging


def refuse_foreign(out: Path, folders_too: bool) -> None:
    """Scores replace scores, and predictions those that belong to them; nothing else is ever overwritten."""
    if out.exists():
        if not _holds_scores(out):
            raise run_directory.RunError(f"{out} exists and holds no scores; choose another --out.")
        return
    if staging.is_left_over(out):  # of an evaluation that was killed, and so is what it had published
        return
    taken = [folder for folder in (beside(out, "predictions"), beside(out, "overlays")) if folder.exists()]
    if taken and folders_too:
        raise run_directory.RunError(
            f"{taken[0]} exists, but no {out.name} it belongs to; choose another --out or move it away."
        )


def _holds_scores(path: Path) -> bool:
    try:
        record = run_directory.read_json(path)
    except run_directory.RunError:  # a folder, or other bytes
        return False
    return isinstance(record, dict) and "metric_profile" in record


def beside(out: Path, what: str) -> Path:
    """Folder beside the scores; scores of another name than scores.json have folders of their own."""
    stem = out.stem.removeprefix("scores").strip("_")
    return out.parent / (f"{what}_{stem}" if stem else what)
