"""A folder of nnU-Net with one problem of each kind, and what must be said about it."""

import nibabel
import numpy as np

from tests.data.small_folders import AFFINE, save_volume, write_info

SHAPE = (6, 5, 4)
# (severity, kind, words of the message)
PLANTED = [
    ("error", "unusable image", ("cut_0000.nii.gz", "truncated")),
    ("error", "unusable image", ("nan_0000.nii.gz", "has 1 NaN values")),
    ("error", "unusable label map", ("hollow.nii.gz", "is empty (0 bytes)")),
    ("error", "unusable label map", ("fraction.nii.gz", "not whole numbers")),
    ("error", "geometry", ("shape.nii.gz", "shape (5, 5, 4) against (6, 5, 4)")),
    ("error", "geometry", ("moved.nii.gz", "corners up to 35 mm apart")),
    ("error", "unknown label", ("seven.nii.gz", "the value 7")),
    ("error", "channels", ("'times'", "(6, 5, 4, 5)", "5 channels or time points", "names 1 (MRI)")),
    ("error", "label without image", ("labelsTr", "lonely.nii.gz", "1 such")),
    ("error", "image without label", ("'unlabelled'", "labelsTr/unlabelled.nii.gz")),
    ("error", "two formats", ("imagesTr", "plain_0000.nii", ".nii beside .nii.gz")),
    ("error", "name or path", ("'back\\slash'", "path separator")),
    ("error", "name or path", ("linked_0000.nii.gz leads out of", "--follow-links")),
    ("note", "number of cases", ("numTraining=40", "18 cases")),
    ("note", "constant image", ("in 1 image", "'flat'")),
    ("note", "empty label", ("in 1 of 15", "'nothing'")),
    ("note", "duplicate image", ("the same image 2 times", "'twin_1'", "'twin_2'")),
    ("note", "spacing outlier", ("in 1 case", "'coarse' (8 × 10 × 20 mm)")),
    ("note", "patient at several sites", ("1 patient", "'p'")),
    ("note", "sites", ("3 of 18 rows", "'gone'")),
    ("note", "name", ("'Good'", "'good'")),
    ("note", "label never occurs", ("1 label", "'tumour'")),
]


def plant(folder, outside):
    """Write the folder; ``outside`` is where a link leads."""
    write_info(folder, channel_names={"0": "MRI"}, numTraining=40)
    images, labels, made = folder / "imagesTr", folder / "labelsTr", []

    def case(name, image=None, label=None, affine=AFFINE):
        made.append(name)
        rng = np.random.default_rng(len(made))
        image = rng.integers(0, 1000, SHAPE).astype(np.int16) if image is None else image
        label = np.indices(SHAPE)[0] % 2 if label is None else label
        save_volume(
            labels / f"{name}.nii.gz",
            np.asarray(label, np.float32 if label.dtype.kind == "f" else np.uint8),
            affine,
        )
        return save_volume(images / f"{name}_0000.nii.gz", image, affine)

    ones = np.indices(SHAPE)[0] % 2
    case("good"), case("Good")
    path = case("cut")
    path.write_bytes(path.read_bytes()[:60])
    nan = np.random.default_rng(99).normal(size=SHAPE).astype(np.float32)
    nan[1, 1, 1] = np.nan
    case("nan", nan)
    case("hollow")
    (labels / "hollow.nii.gz").write_bytes(b"")
    case("fraction", label=ones * 0.5)
    case("shape", label=ones)
    save_volume(labels / "shape.nii.gz", ones[:5].astype(np.uint8))
    case("moved")
    far = AFFINE.copy()
    far[0, 3] += 35
    save_volume(labels / "moved.nii.gz", ones.astype(np.uint8), far)
    case("seven", label=ones * 7)
    case("times", np.random.default_rng(1005).integers(0, 9, (*SHAPE, 5)).astype(np.int16))
    case("flat", np.full(SHAPE, 3, np.int16))
    case("nothing", label=ones * 0)
    twin = np.random.default_rng(1007).integers(0, 1000, SHAPE).astype(np.int16)
    case("twin_1", twin), case("twin_2", twin)
    case("coarse", affine=np.diag([8.0, 10, 20, 1]))
    case("back\\slash")
    case("unlabelled")
    (labels / "unlabelled.nii.gz").unlink()
    case("linked").rename(outside)
    (images / "linked_0000.nii.gz").symlink_to(outside)
    save_volume(labels / "lonely.nii.gz", ones.astype(np.uint8))
    nibabel.save(nibabel.Nifti1Image(twin, AFFINE), images / "plain_0000.nii")
    patients = {"twin_1": "p", "twin_2": "p", "gone": "q"}
    rows = [
        f"{n},{'Bern' if n == 'twin_2' else 'Oslo'},{patients.get(n, '')}"
        for n in [*made, "gone"]
        if "\\" not in n
    ]
    (folder / "sites.csv").write_text("file,site,patient\n" + "\n".join(rows) + "\n")
    return folder
