"""An option that several commands have means the same in all of them: same type, same default."""

import dataclasses

import pytest

from tests.cli.test_path_options import commands

SHARED = (
    "allow_geometry_mismatch", "follow_links", "offline", "skip_bad", "objects", "val_fraction", "test_fraction",
    "seed", "weights", "overwrite", "tensorboard",
)  # fmt: skip


@pytest.mark.parametrize("option", SHARED)
def test_an_option_is_the_same_in_every_command(option):
    found = {
        words: (str(field.type), field.default)
        for words, kind in commands()
        for field in dataclasses.fields(kind)
        if field.name == option
    }
    assert found
    assert len(set(found.values())) == 1, found
