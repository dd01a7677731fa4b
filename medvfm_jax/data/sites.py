"""``sites.csv``: which site, and which patient, each case belongs to."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medvfm_jax.data.records import BadDataset
from medvfm_jax.images.reading import stem_of

ONE_SITE = "all"


class SiteTable(NamedTuple):
    """Case name -> (patient, site); every case a patient of its own at one site if nothing is known."""

    rows: Mapping[str, tuple[str, str]]

    def of(self, case: str) -> tuple[str, str]:
        """(patient, site) of a case."""
        return self.rows.get(case, (case, ONE_SITE))


NO_SITES = SiteTable({})


def read_sites(folder: Path) -> SiteTable:
    """Read ``sites.csv`` if the folder has one: columns file and site, and patient if cases share one.

    ``file`` is the name of the image, with or without its suffix. Raises BadDataset.
    """
    path = folder / "sites.csv"
    if not path.is_file():
        return NO_SITES
    rows: dict[str, tuple[str, str]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            if not {"file", "site"} <= columns:
                raise BadDataset(
                    f"{path} has the columns {sorted(columns)}; expected file, site and maybe patient."
                )
            for row in reader:
                case = stem_of(Path(row["file"]))
                rows[case] = ((row.get("patient") or case).strip(), (row["site"] or ONE_SITE).strip())
    except (OSError, UnicodeDecodeError, csv.Error, TypeError) as error:
        raise BadDataset(f"{path} cannot be read ({error}); expected a table with commas.") from error
    return SiteTable(rows)


def check_sites(table: SiteTable, cases: set[str], folder: Path) -> None:
    """Raise BadDataset if a table exists and leaves some cases out, which would split them blindly."""
    missing = sorted(cases - set(table.rows)) if table.rows else []
    if missing:
        raise BadDataset(
            f"{folder / 'sites.csv'} does not mention {len(missing)} of the images, such as '{missing[0]}'; "
            "add them, or remove the file."
        )
