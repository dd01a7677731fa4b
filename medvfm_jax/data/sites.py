"""``sites.csv``: which site, and which patient, each case belongs to."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medvfm_jax.data.records import BadDataset, Dataset
from medvfm_jax.images.reading import SUFFIXES, stem_of, suffix_of

ONE_SITE = "all"


class SiteTable(NamedTuple):
    """Case name -> (patient or "", site); a patient of its own at one site where nothing is known."""

    rows: Mapping[str, tuple[str, str]]

    def of(self, case: str) -> tuple[str, str]:
        """(patient, site) of a case."""
        patient, site = self.rows.get(self.name_of(case), ("", ONE_SITE))
        return patient or case, site

    def name_of(self, case: str) -> str:
        """What the table calls a case: its name, or that of its first channel in nnU-Net's folders."""
        first = f"{case}_0000"
        return first if case not in self.rows and first in self.rows else case


NO_SITES = SiteTable({})


def read_sites(folder: Path) -> SiteTable:
    """Read ``sites.csv`` if the folder has one: columns file and site, and patient if cases share one.

    ``file`` is the name of the image, with or without its suffix; names without an image are ignored, so that
    a part of a dataset keeps the table of the whole. Raises BadDataset.
    """
    path = folder / "sites.csv"
    return read_table(path) if path.is_file() else NO_SITES


def read_table(path: Path) -> SiteTable:
    """Read such a table, whatever its name. Raises BadDataset."""
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
                named = Path((row["file"] or "").strip())
                if not named.name:
                    raise BadDataset(f"{path} has a row without a file name in line {reader.line_num}.")
                case = stem_of(named) if suffix_of(named) in SUFFIXES else named.name
                patient, site = (row.get("patient") or "").strip(), (row["site"] or "").strip()
                if rows.setdefault(case, (patient, site or ONE_SITE)) != (patient, site or ONE_SITE):
                    raise BadDataset(f"{path} has two different rows for '{case}'; keep one.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadDataset(f"{path} cannot be read ({error}); expected a table with commas.") from error
    return SiteTable(rows)


def check_sites(table: SiteTable, cases: set[str], path: Path) -> None:
    """Raise BadDataset if the table of this file leaves some cases out, which would split them blindly."""
    missing = sorted(c for c in cases if table.name_of(c) not in table.rows) if table is not NO_SITES else []
    if missing:
        raise BadDataset(
            f"{path} does not mention {len(missing)} of the images, such as '{missing[0]}'; "
            "add them, or remove the file."
        )


def with_sites(dataset: Dataset, path: Path) -> Dataset:
    """The dataset with sites and patients of another table than its own. Raises BadDataset."""
    table = read_table(path)
    check_sites(table, set(dataset.by_id), path)
    cases = []
    for case in dataset.cases:
        patient, site = table.of(case.id)
        cases.append(dataclasses.replace(case, patient=patient, site=site))
    return dataclasses.replace(dataset, cases=tuple(cases))
