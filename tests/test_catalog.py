from typing import NamedTuple

import pytest

from medvfm_jax.catalog import Catalog, did_you_mean
from medvfm_jax.types import MedvfmError


class Record(NamedTuple):
    description: str


CATALOG = Catalog("spoon", {"tea": Record("small"), "soup": Record("large")}, MedvfmError)


def test_a_catalog_is_a_mapping_in_order():
    assert CATALOG["soup"] == Record("large")
    assert list(CATALOG) == ["tea", "soup"]
    assert CATALOG.names() == ("tea", "soup")
    assert CATALOG.describe() == {"tea": "small", "soup": "large"}
    assert "tea" in CATALOG
    assert ["tea"] not in CATALOG
    assert len(CATALOG) == 2
    assert (CATALOG.get("tea"), CATALOG.get("x"), CATALOG.get(["tea"], 3)) == (Record("small"), None, 3)


def stir(speed):
    """Move a spoon
    in circles.

    Not described.
    """


class Making(NamedTuple):
    make: object
    speed: float = 1.0


def test_records_without_a_description_are_described_by_what_they_make():
    catalog = Catalog("work", {"stir": stir, "again": Making(stir), "nothing": Making(None)}, MedvfmError)
    says = "Move a spoon in circles"
    assert catalog.describe() == {"stir": says, "again": says, "nothing": ""}


def test_where_there_is_nothing_to_choose_from():
    assert did_you_mean("x", ()) == ", there are none"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("soupe", "There is no spoon 'soupe', the nearest is 'soup'."),
        ("x", "There is no spoon 'x', known are tea, soup."),
        ([1], r"There is no spoon '\[1\]', known are"),
    ],
)
def test_a_name_that_is_not_there(name, message):
    with pytest.raises(MedvfmError, match=message):
        CATALOG[name]
