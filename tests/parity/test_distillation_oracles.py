"""Our distillation losses, values and gradients, against their definitions in PyTorch's and MONAI's functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import losses

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai.losses")

F = torch.nn.functional
pytestmark = pytest.mark.parity

CLASSES = 4


def both(ours, theirs, student, teacher, rtol=1e-5):
    """Value and gradient with respect to the student; ``theirs`` gets tensors of the same shapes."""
    value, gradient = jax.jit(jax.value_and_grad(lambda s: ours(s, jnp.asarray(teacher))))(student)
    tensor = torch.tensor(student, requires_grad=True)
    expected = theirs(tensor, torch.as_tensor(teacher))
    expected.backward()
    expected_gradient = tensor.grad.numpy()
    assert expected.item() != 0
    assert np.abs(expected_gradient).max() > 0
    np.testing.assert_allclose(value, expected.item(), rtol=rtol)
    scale = np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=20 * rtol * scale)


def pair(seed, *shape):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)


@pytest.fixture
def logits():
    return pair(3, CLASSES, 12, 10)


@pytest.fixture
def maps():
    """Features (h, w, c) of student and teacher."""
    return pair(6, 7, 5, 6)


@pytest.fixture
def target():
    return np.random.default_rng(7).integers(0, CLASSES, (7, 5))


def divergence(student, teacher, temperature):
    """T² times the mean over rows of KL(softmax of teacher's row ‖ softmax of student's)."""
    s, t = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    return temperature**2 * F.kl_div(s, t, reduction="batchmean")


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_hinton(logits, temperature):
    both(
        lambda s, t: losses.hinton(s, t, temperature=temperature),
        lambda s, t: divergence(s.flatten(1).T, t.flatten(1).T, temperature),
        *logits,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd(maps, temperature):
    both(
        lambda s, t: losses.cwd(s, t, temperature=temperature),
        lambda s, t: divergence(s.flatten(0, 1).T, t.flatten(0, 1).T, temperature),
        *maps,
    )


def test_dkd(logits):
    """Zhao et al.: the target class against the rest, and the rest among themselves."""
    target = np.random.default_rng(8).integers(0, CLASSES, logits[0].shape[1:])
    hot = F.one_hot(torch.as_tensor(target).flatten(), CLASSES).bool()

    def theirs(student, teacher, temperature=4.0, alpha=1.0, beta=8.0):
        s, t = (x.flatten(1).T / temperature for x in (student, teacher))

        def two(x):
            p = x.softmax(1)[hot]
            return torch.stack([p, 1 - p], 1)

        tckd = F.kl_div(two(s).log(), two(t), reduction="batchmean")
        s, t = (x[~hot].reshape(-1, CLASSES - 1) for x in (s, t))
        nckd = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
        return temperature**2 * (alpha * tckd + beta * nckd)

    both(lambda s, t: losses.dkd(s, t, jnp.asarray(target)), theirs, *logits)


def test_masks():
    student, teacher = pair(4, 24, 20)
    both(losses.mask_bce, lambda s, t: F.binary_cross_entropy_with_logits(s, t.sigmoid()), student, teacher)
    # MONAI's Dice loss for soft labels is the Dice semimetric.
    peer = monai.DiceLoss(sigmoid=True, soft_label=True, smooth_nr=0.0, smooth_dr=1e-6)
    both(losses.dice_semimetric, lambda s, t: peer(s[None, None], t[None, None].sigmoid()), student, teacher)
    both(
        lambda s, t: losses.mask_distillation(s, t, bce_weight=5, dice_weight=5, hard_teacher=True),
        lambda s, t: (
            5 * F.binary_cross_entropy_with_logits(s, (t > 0).float())
            + 5 * peer(s[None, None], (t > 0).float()[None, None])
        ),
        student,
        teacher,
    )


def test_embeddings(maps):
    both(losses.embedding_mse, F.mse_loss, *maps)
    both(losses.embedding_cosine, lambda s, t: F.cosine_similarity(s, t, dim=-1).mean(), *maps)
    both(losses.fitnets, lambda s, t: 0.5 * s.shape[-1] * F.mse_loss(s, t), *maps)


@pytest.mark.parametrize("power", [2, 4])
def test_attention_transfer(maps, power):
    def attention(x):
        return F.normalize(x.abs().pow(power).mean(-1).flatten(), dim=0)

    both(
        lambda s, t: losses.attention_transfer(s, t, power=power),
        lambda s, t: (attention(s) - attention(t)).pow(2).mean(),
        *maps,
    )


def test_pkd(maps):
    def theirs(student, teacher):
        rows = (x.flatten(0, 1).T for x in (student, teacher))
        return torch.stack([1 - torch.corrcoef(torch.stack(two))[0, 1] for two in zip(*rows)]).mean()

    both(losses.pkd, theirs, *maps)


def test_mgd(maps):
    """With nothing hidden: a 1 x 1 and two 3 x 3 convolutions from the student to the teacher."""
    generator = losses.mgd_init(jax.random.key(0), 6, 6)
    kernels = {k: torch.as_tensor(np.asarray(v).transpose(3, 2, 0, 1).copy()) for k, v in generator.items()}

    def theirs(student, teacher):
        x = F.conv2d(student.permute(2, 0, 1)[None], kernels["align"])
        x = F.conv2d(F.conv2d(x, kernels["first"], padding=1).relu(), kernels["second"], padding=1)
        return 2e-5 * F.mse_loss(x[0].permute(1, 2, 0), teacher, reduction="sum")

    both(lambda s, t: losses.mgd(s, t, generator, jax.random.key(1), mask_ratio=0.0), theirs, *maps)


def test_relations_of_samples():
    student, teacher = pair(5, 6, 9)

    def distances(x):
        return torch.pdist(x) / torch.pdist(x).mean()

    def rows(x):
        return F.normalize(x @ x.T, dim=1)

    def angles(x):
        towards = F.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(towards, towards.transpose(1, 2))

    both(losses.rkd_distance, lambda s, t: F.smooth_l1_loss(distances(s), distances(t)), student, teacher)
    both(losses.similarity_preserving, lambda s, t: F.mse_loss(rows(s), rows(t)), student, teacher)
    # Park et al. average over all n³ triplets; those with a repeated point are equal in both and add 0.
    every, distinct = 6**3, 6 * 5 * 4
    both(
        losses.rkd_angle,
        lambda s, t: every / distinct * F.smooth_l1_loss(angles(s), angles(t)),
        student,
        teacher,
    )


def test_relations_of_pixels():
    student, teacher = pair(9, 3, 4, 5, 6)  # three images

    def theirs(s, t, temperature=0.1):
        s, t = (F.normalize(x.flatten(1, 2), dim=-1) for x in (s, t))
        similar = [[(x[i] @ x[j].T) / temperature for i in range(3) for j in range(3)] for x in (s, t)]
        terms = [F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean") for a, b in zip(*similar)]
        return torch.stack(terms).mean()

    both(losses.cirkd, theirs, student, teacher)
    bank = np.random.default_rng(10).normal(size=(11, 6)).astype(np.float32)
    known = F.normalize(torch.as_tensor(bank), dim=1)
    both(
        lambda s, t: losses.cirkd_memory(s, t, jnp.asarray(bank)),
        lambda s, t: divergence(F.normalize(s, dim=1) @ known.T, F.normalize(t, dim=1) @ known.T, 0.1) / 0.01,
        student[0, 0],
        teacher[0, 0],
    )


def test_relations_to_class_means(maps, target):
    labels = torch.as_tensor(target)

    def means(x):
        return torch.stack([x[labels == k].mean(0) for k in range(CLASSES)])

    def variation(x):
        return F.cosine_similarity(x, means(x)[labels], dim=-1)

    def contrast(x):
        return torch.stack(
            [
                F.cosine_similarity(means(x)[i], means(x)[j], dim=0)
                for i in range(CLASSES)
                for j in range(i + 1, CLASSES)
            ]
        )

    both(
        lambda s, t: losses.ifvd(s, t, target, CLASSES),
        lambda s, t: F.mse_loss(variation(s), variation(t)),
        *maps,
    )
    both(
        lambda s, t: losses.region_affinity(s, t, target, CLASSES),
        lambda s, t: F.mse_loss(contrast(s), contrast(t)),
        *maps,
    )
