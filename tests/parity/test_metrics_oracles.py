"""Our scores against surface-distance (DeepMind), MedPy and MONAI, on blobs and on noise."""

import numpy as np
import pytest
from scipy import ndimage

from medvfm_jax.metrics import (
    brier,
    expected_calibration_error,
    instance_scores,
    reliability,
    score_masks,
    surface_distances,
)
from medvfm_jax.metrics.overlap import count, dice, iou
from medvfm_jax.metrics.surface import (
    average_distance,
    hausdorff,
    hausdorff_percentile,
    normalised_surface_distance,
)
from medvfm_jax.metrics.surface_elements import element_sizes

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

SHAPES = [((41, 53), (0.6, 1.7)), ((23, 31, 17), (0.9, 0.7, 2.5))]


def smooth_mask(seed, shape, share=0.3):
    """A few connected blobs, some of them touching the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    return noise > np.quantile(noise, 1 - share)


def pairs():
    for shape, spacing in SHAPES:
        for seed in range(4):
            reference = smooth_mask(seed, shape)
            yield reference, np.roll(reference, 2, axis=seed % len(shape)), spacing
            yield reference, smooth_mask(seed + 50, shape, 0.05 + 0.1 * seed), spacing
            rng = np.random.default_rng(seed)
            yield rng.random(shape) > 0.5, rng.random(shape) > 0.9, spacing


def test_element_sizes_match_deepmind_code_for_code():
    tables = pytest.importorskip("surface_distance.lookup_tables")
    for spacing in ((1.0, 1.0, 1.0), (0.7, 1.3, 2.9)):
        peer = tables.create_table_neighbour_code_to_surface_area(spacing)
        reversed_bits = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
        np.testing.assert_allclose(element_sizes(spacing), peer[reversed_bits], rtol=1e-12)
    peer = tables.create_table_neighbour_code_to_contour_length((0.7, 1.3))
    reversed_bits = [int(f"{code:04b}"[::-1], 2) for code in range(16)]
    np.testing.assert_allclose(element_sizes((0.7, 1.3)), peer[reversed_bits], rtol=1e-12)


def test_element_definition_matches_surface_distance():
    peer = pytest.importorskip("surface_distance")
    for reference, prediction, spacing in pairs():
        theirs = peer.compute_surface_distances(reference, prediction, spacing)
        ours = surface_distances(reference, prediction, spacing, "element")
        for tolerance in (0.5, 1.0, 2.0):
            expected = peer.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert normalised_surface_distance(ours, tolerance) == pytest.approx(expected, rel=1e-9)
        for percent in (50, 95, 100):
            expected = peer.compute_robust_hausdorff(theirs, percent)
            assert hausdorff_percentile(ours, percent) == pytest.approx(expected, rel=1e-9)
        forth, back = peer.compute_average_surface_distance(theirs)
        weights = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
        assert average_distance(ours) == pytest.approx(np.average([forth, back], weights=weights), rel=1e-9)


def test_voxel_definition_matches_medpy():
    peer = pytest.importorskip("medpy.metric.binary")
    for reference, prediction, spacing in pairs():
        ours = surface_distances(reference, prediction, spacing, "voxel")
        assert hausdorff(ours) == pytest.approx(peer.hd(prediction, reference, spacing))
        assert hausdorff_percentile(ours, pooled=True) == pytest.approx(
            peer.hd95(prediction, reference, spacing)
        )
        assert average_distance(ours) == pytest.approx(peer.assd(prediction, reference, spacing))
        counts = count(reference, prediction)
        assert dice(counts) == pytest.approx(peer.dc(prediction, reference))
        assert iou(counts) == pytest.approx(peer.jc(prediction, reference))


def test_voxel_definition_matches_monai():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    for reference, prediction, spacing in pairs():
        # MONAI looks for edges inside the masks' bounding box and does not treat the array's border as
        # background, so the oracle gets a background margin.
        reference, prediction = np.pad(reference, 2), np.pad(prediction, 2)
        y, y_pred = (torch.as_tensor(mask[None, None].astype(np.float32)) for mask in (reference, prediction))
        ours = surface_distances(reference, prediction, spacing, "voxel")
        options = {"include_background": True, "spacing": list(spacing)}
        expected = monai.compute_hausdorff_distance(y_pred, y, **options)
        assert hausdorff(ours) == pytest.approx(expected.item(), rel=1e-5)
        expected = monai.compute_hausdorff_distance(y_pred, y, percentile=95, **options)
        assert hausdorff_percentile(ours) == pytest.approx(expected.item(), rel=1e-5)
        expected = monai.compute_average_surface_distance(y_pred, y, symmetric=True, **options)
        assert average_distance(ours) == pytest.approx(expected.item(), rel=1e-5)
        element = surface_distances(reference, prediction, spacing, "element")
        expected = monai.compute_surface_dice(y_pred, y, [1.0], use_subvoxels=True, **options)
        assert normalised_surface_distance(element, 1.0) == pytest.approx(expected.item(), rel=1e-5)


def test_strict_and_nnunet_profiles_are_the_oracles_they_name():
    medpy = pytest.importorskip("medpy.metric.binary")
    deepmind = pytest.importorskip("surface_distance")
    reference, prediction, spacing = next(iter(pairs()))
    theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
    strict = score_masks(reference, prediction, spacing, "strict")
    assert strict["hd95"] == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 95))
    assert strict["nsd"] == pytest.approx(deepmind.compute_surface_dice_at_tolerance(theirs, 2.0))
    nnunet = score_masks(reference, prediction, spacing, "nnunet")
    assert nnunet["hd95"] == pytest.approx(medpy.hd95(prediction, reference, spacing))
    assert nnunet["assd"] == pytest.approx(medpy.assd(prediction, reference, spacing))
    compat = score_masks(reference, prediction, spacing, "transunet_compat")
    assert compat["hd95"] == pytest.approx(medpy.hd95(prediction, reference))
    # A mask cut in half: the two directions have other percentiles than both together.
    half = reference.copy()
    half[int(np.nonzero(reference)[0].mean()) :] = False
    for profile, steps in (("transunet_compat", (1.0, 1.0)), ("nnunet", spacing)):
        theirs = medpy.hd95(half, reference, steps)
        assert score_masks(reference, half, spacing, profile)["hd95"] == pytest.approx(theirs)
        apart = surface_distances(reference, half, steps, "voxel")
        assert hausdorff_percentile(apart) != pytest.approx(theirs, rel=0.01)
    slab = [mask[..., None] for mask in (reference, prediction)]
    theirs = deepmind.compute_surface_distances(*slab, (1.0, 1.0, 1.0))
    medsam = score_masks(reference, prediction, spacing, "medsam_compat")
    assert medsam["nsd"] == pytest.approx(deepmind.compute_surface_dice_at_tolerance(theirs, 2.0))


def test_panoptic_quality_matches_monai():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    for seed in range(5):
        reference = ndimage.label(smooth_mask(seed, (80, 90)))[0]
        moved = ndimage.label(np.roll(reference, seed, 1) * (smooth_mask(seed + 9, (80, 90), 0.9)) > 0)[0]
        ours = instance_scores(reference, moved)
        for name, theirs in (("pq", "pq"), ("sq", "sq"), ("dq", "rq")):
            expected = monai.compute_panoptic_quality(
                torch.as_tensor(moved), torch.as_tensor(reference), metric_name=theirs
            )
            assert ours[name] == pytest.approx(expected.item(), abs=1e-5)


def test_calibration_matches_monai():
    torch = pytest.importorskip("torch")
    binning = pytest.importorskip("monai.metrics.calibration").calibration_binning
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=(50, 60)) ** 3  # some bins hold few pixels
    target = (rng.uniform(size=probability.shape) < 0.8 * probability).astype(int)
    mean, frequency, counted = (
        x[0, 0].numpy()
        for x in binning(torch.as_tensor(probability)[None, None], torch.as_tensor(target)[None, None], 15)
    )
    ours = reliability(probability, target, bins=15)
    np.testing.assert_array_equal(ours.count, counted)
    np.testing.assert_allclose(ours.probability, mean, rtol=1e-5)
    np.testing.assert_allclose(ours.frequency, frequency, rtol=1e-5)
    expected = np.average(np.abs(mean - frequency), weights=counted)
    assert expected_calibration_error(probability, target) == pytest.approx(expected, rel=1e-5)
    squared = torch.nn.functional.mse_loss(torch.as_tensor(probability), torch.as_tensor(target).double())
    assert brier(probability, target) == pytest.approx(squared.item(), rel=1e-12)
