import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from medvfm_jax.images import BadImage, read, read_labels, slices
from medvfm_jax.images.reading import holds_volume
from tests.images.tiff_files import bare, imagej, ome

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 60000, (5, 6, 7)).astype(np.uint16)  # slice, row, column


@pytest.mark.parametrize("write", [imagej, ome])
def test_slices_make_a_volume_in_the_order_of_the_pages(tmp_path, write):
    image = read(write(tmp_path / "a.tif", STACK, "ZYX"))
    assert image.grid == (7, 6, 5)
    for picture, page in zip(slices(image, 2), STACK, strict=True):
        np.testing.assert_array_equal(picture[..., 0], page)
    assert holds_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("write", [imagej, ome])
def test_channels_make_one_picture(tmp_path, write):
    image = read(write(tmp_path / "a.tif", STACK[:3], "CYX"))
    np.testing.assert_array_equal(image.array, STACK[:3].transpose(1, 2, 0))
    assert image.notes == ()
    assert not holds_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
def test_slices_of_channels(tmp_path, axes):
    array = RNG.integers(0, 255, (4, 2, 6, 7)).astype(np.uint8)  # Z, C, row, column
    stored = array if axes == "ZCYX" else array.swapaxes(0, 1)
    image = read(ome(tmp_path / "a.tif", stored, axes))
    np.testing.assert_array_equal(image.array, array.transpose(3, 2, 0, 1))


def test_pages_compressed_as_tifffile_alone_cannot_read_them(tmp_path):
    """LZW pages come from Pillow; what they are, from the description."""
    first, *others = [Pillow.fromarray(page) for page in STACK]
    text = "ImageJ=1.54f\nimages=5\nslices=5\nunit=mm\nspacing=2.5\nloop=false\n"
    first.save(
        tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_lzw",
        tiffinfo={270: text, 282: 4.0, 283: 4.0},
    )  # fmt: skip
    image = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.array[..., 0], STACK.transpose(2, 1, 0))
    assert image.spacing == pytest.approx((0.25, 0.25, 2.5))


def test_the_spacing_is_that_of_imagej_or_ome_in_mm(tmp_path):
    image = read(imagej(tmp_path / "a.tif", STACK, "ZYX", spacing=3.0, unit="um"))
    assert image.spacing == pytest.approx((0.0005, 0.0005, 0.003))
    sizes = {"PhysicalSizeX": 0.4, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2, "PhysicalSizeZUnit": "mm"}
    image = read(ome(tmp_path / "b.tif", STACK, "ZYX", **sizes))
    assert image.spacing == pytest.approx((0.0004, 0.0005, 2.0))
    assert read(imagej(tmp_path / "c.tif", STACK, "ZYX", spacing=3.0, unit="pixel")).spacing is None
    assert read(ome(tmp_path / "d.tif", STACK, "ZYX")).spacing is None


@pytest.mark.parametrize("pages", [2, 3, 5])
def test_pages_that_nothing_explains_are_refused_with_a_remedy(tmp_path, pages):
    with pytest.raises(BadImage, match=rf"{pages} pages.*slices or channels.*nii\.gz"):
        read(bare(tmp_path / "a.tif", STACK[:pages], photometric="minisblack"))
    first, *others = [Pillow.fromarray(page) for page in STACK[:pages]]
    first.save(tmp_path / "b.tif", save_all=True, append_images=others)
    for reader in (read, read_labels):  # a label map once was its first page
        with pytest.raises(BadImage, match=f"{pages} pages"):
            reader(tmp_path / "b.tif")


def test_times_sizes_and_channels_of_colours_are_refused(tmp_path):
    with pytest.raises(BadImage, match="5 time points"):
        read(imagej(tmp_path / "a.tif", STACK, "TYX"))
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(STACK[0], metadata=None)
        file.write(STACK[0, :4], metadata=None)
    with pytest.raises(BadImage, match="2 images in one file"):
        read(tmp_path / "b.tif")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 4},
        {"compression": "zlib", "tile": (16, 32)},
    ],
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_16_bits_keep_their_low_bytes(tmp_path, planar, options):
    array = RNG.integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    stored = array if planar == "contig" else array.transpose(2, 0, 1)
    bare(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **options)
    image = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.array, array)
    assert image.array.dtype == np.uint16


def test_alpha_goes_and_further_samples_are_channels(tmp_path):
    array = RNG.integers(0, 65536, (6, 7, 4)).astype(np.uint16)
    bare(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read(tmp_path / "a.tif").array, array[..., :3])
    five = RNG.integers(0, 255, (6, 7, 5)).astype(np.uint8)
    bare(tmp_path / "b.tif", five, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read(tmp_path / "b.tif").array, five)


def test_label_stacks_and_palettes(tmp_path):
    labels = RNG.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    image = read_labels(imagej(tmp_path / "a.tif", labels, "ZYX"))
    np.testing.assert_array_equal(image.array[..., 0], labels.transpose(2, 1, 0))
    picture = Pillow.fromarray(labels[0], mode="L")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "p.tif")
    np.testing.assert_array_equal(read_labels(tmp_path / "p.tif").array[..., 0], labels[0])


_XML = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}"><Image ID="Image:0">
<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="7" SizeY="6" SizeZ="2" SizeC="1" SizeT="1">
<Channel ID="Channel:0:0" SamplesPerPixel="1"/>
<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="a.tif">urn:uuid:1</UUID></TiffData>
<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="secret.tif">urn:uuid:2</UUID></TiffData>
</Pixels></Image></OME>"""


def test_an_ome_file_that_points_to_others_is_refused_and_they_are_not_opened(tmp_path):
    for own, name in ((1, "a.tif"), (2, "secret.tif")):
        bare(tmp_path / name, STACK[own], description=_XML.format(own=own))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:  # what tifffile does unless it is told not to
        assert file.series[0].shape == (2, 6, 7)
    with pytest.raises(BadImage, match="one of 2 files"):
        read(tmp_path / "a.tif")
    (tmp_path / "secret.tif").unlink()
    with pytest.raises(BadImage, match="one of 2 files"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("target", range(3))
def test_directories_that_lead_back_to_one_another_are_refused(tmp_path, target):
    """In tifffile some such rings are followed for ever."""
    path = imagej(tmp_path / "a.tif", STACK[:3], "ZYX")
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
        tags, order = len(file.pages[2].tags), file.byteorder
    content = bytearray(path.read_bytes())
    at = offsets[2] + 2 + 12 * tags
    content[at : at + 4] = struct.pack(f"{order}I", offsets[target])
    path.write_bytes(bytes(content))
    with pytest.raises(BadImage, match="form a ring"):
        read(path)


def patched(path, **tags):
    """Other numbers in the tags of the first page."""
    with tifffile.TiffFile(path) as file:
        where = {name: (file.pages[0].tags[name], value) for name, value in tags.items()}
    content = bytearray(path.read_bytes())
    for tag, value in where.values():
        assert tag.count == 1
        struct.pack_into({3: "<H", 4: "<I"}[int(tag.dtype)], content, tag.valueoffset, value)
    path.write_bytes(content)


@pytest.mark.parametrize("options", [{"rowsperstrip": 16}, {"tile": (16, 16)}])
def test_a_part_that_inflates_to_more_than_its_pixels_is_not_inflated(tmp_path, options):
    path = bare(
        tmp_path / "a.tif", np.ones((16, 16, 3), np.uint16), compression="zlib", photometric="rgb", **options
    )
    assert read(path).array.sum() == 16 * 16 * 3
    bomb, start = zlib.compress(bytes(1 << 26)), path.stat().st_size
    path.write_bytes(path.read_bytes() + bomb)
    kind = "Tile" if "tile" in options else "Strip"
    patched(path, **{f"{kind}Offsets": start, f"{kind}ByteCounts": len(bomb)})
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match="inflates to more than its 1,536 bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("type_", "options"),
    [("uint16", {}), ("uint16", {"compression": "zlib"}), ("uint8", {"compression": "zlib"})],
)
def test_a_tile_may_not_take_more_than_an_image(tmp_path, type_, options):
    """4096 × 8192 × 3 bytes are 96 MiB, for a picture of 16 × 16 pixels."""
    path = bare(tmp_path / "a.tif", np.ones((16, 16, 3), type_), photometric="rgb", tile=(16, 16), **options)
    patched(path, TileWidth=8192, TileLength=4096)
    with pytest.raises(BadImage, match=rf"4096 × 8192 × 3, {type_}.*at most 0.0625 GiB"):
        read(path, max_bytes=1 << 26)
