import io

import numpy as np
from PIL import Image

from medvfm_jax.report.overlays import draw
from medvfm_jax.report.picture import Panel, grid


def test_panels_stand_in_rows_with_their_captions():
    mask = np.zeros((20, 30), bool)
    mask[5:12, 6:20] = True
    png = draw(np.full((20, 30, 3), 90, np.uint8), mask, mask)
    picture = np.asarray(
        Image.open(io.BytesIO(grid([[Panel(png, "one"), Panel(png, "two")], [Panel(png, "")]], side=100)))
    )
    assert picture.shape == (2 * (100 + 24 + 12) + 12, 2 * (100 + 12) + 12, 3)
    grey = (picture == 90).all(-1)
    assert grey[12:112, 12:112].any()
    assert grey[12:112, 124:224].any()
    assert grey[148:248, 12:112].any()
    assert not grey[148:248, 124:224].any()  # the second row has one panel
    ink = (picture[112:136] < 128).all(-1)
    assert ink[:, 12:112].any()
    assert not (picture[248:272, 12:112] < 128).all(-1).any()  # its caption is empty
