"""``sites.csv``: which site, and which patient, each case belongs to."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medvfm_jax.data.findings import Findings, named
from medvfm_jax.data.names import check_site, check_text, shown
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
                    f"{path} has the columns {', '.join(sorted(columns)) or 'of an empty file'}; expected file, site "
                    "and maybe patient."
                )
            for row in reader:
                file_name = (row["file"] or "").strip()
                if not file_name:
                    raise BadDataset(f"{path} has a row without a file name in line {reader.line_num}.")
                if any(c in "/\\" for c in file_name):
                    raise BadDataset(
                        f"{path} names the file {shown(file_name)} in line {reader.line_num}; expected the name of an "
                        "image without folders."
                    )
                patient, site = (row.get("patient") or "").strip(), (row["site"] or "").strip() or ONE_SITE
                check_site(site, path)
                if patient:
                    check_text(patient, path, "patient")
                as_path = Path(file_name)
                case = stem_of(as_path) if suffix_of(as_path) in SUFFIXES else file_name
                if rows.setdefault(case, (patient, site)) != (patient, site):
                    raise BadDataset(f"{path} has two different rows for {shown(case)}; keep one.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = f"byte {error.start} is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        why = error.strerror or why if isinstance(error, OSError) else why
        raise BadDataset(f"{path} cannot be read ({why}); expected a table with commas.") from error
    return SiteTable(rows)


def check_sites(table: SiteTable, cases: set[str], path: Path, found: Findings | None = None) -> None:
    """Refuse a table that leaves some cases out, which would split them blindly; raises BadDataset.

    Rows without an image are counted.
    """
    if table is NO_SITES:
        return
    found = found or Findings()
    missing = sorted(c for c in cases if table.name_of(c) not in table.rows)
    if missing:
        error = BadDataset(
            f"{path} does not mention {len(missing)} of the images, such as '{missing[0]}'; "
            "add them, or remove the file."
        )
        found.error("sites", error, missing)
    rest = sorted(set(table.rows) - {table.name_of(case) for case in cases})
    if rest:
        found.note(
            "sites", f"{len(rest)} of {len(table.rows)} rows in {path} have no image: {named(rest)}", rest
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
