from typing import NamedTuple

import pytest

from medvfm_jax.catalog import Catalog
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
