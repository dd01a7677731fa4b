import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax import weights
from medvfm_jax.adapters import adapt_model, tune
from medvfm_jax.distill import (
    DecoupledBatch,
    EmbeddingMismatch,
    make_decoupled_loss,
    valid_positions,
    write_embeddings,
)
from medvfm_jax.models.catalog import build
from medvfm_jax.train import init_state, make_step

SIZE, POSITIONS, C = 8, 4, 5
KEY = jax.random.key(0)


def encode(params, image):
    """A linear encoder: 2 × 2 patches -> C channels."""
    return changed(params, {"kernel": 0.0}, image)


def changed(params, delta, image):
    """The same with a delta of its parameters."""
    patches = (
        image.reshape(POSITIONS, 2, POSITIONS, 2, 3)
        .transpose(0, 2, 1, 3, 4)
        .reshape(POSITIONS, POSITIONS, 12)
    )
    return patches @ (params["kernel"] + delta["kernel"])


@pytest.fixture
def setting():
    rng = np.random.default_rng(0)
    teacher = {"kernel": jnp.asarray(rng.normal(size=(12, C)), jnp.float32)}
    student = {"kernel": jnp.asarray(rng.normal(size=(12, C)), jnp.float32)}
    return teacher, student, jnp.asarray(rng.normal(size=(3, SIZE, SIZE, 3)), jnp.float32)


def loss_of(encode, teacher=None):
    """(params, batch) -> loss, without a delta."""
    loss = make_decoupled_loss(encode, teacher)
    return lambda params, batch: loss(params, {"kernel": 0.0}, batch, KEY)


def batch_of(images, teacher=None, valid=None):
    return DecoupledBatch(images, teacher, jnp.ones((3, POSITIONS, POSITIONS)) if valid is None else valid)


def test_precomputed_and_computed_teachers_agree(setting):
    teacher, student, images = setting
    loss = loss_of(changed, lambda image: encode(teacher, image))
    embeddings = jax.vmap(encode, in_axes=(None, 0))(teacher, images)
    there, _ = loss(student, batch_of(images))
    stored, terms = loss(student, batch_of(images, embeddings))
    np.testing.assert_allclose(there, stored, rtol=1e-6)
    expected = jnp.mean((jax.vmap(encode, in_axes=(None, 0))(student, images) - embeddings) ** 2)
    np.testing.assert_allclose(terms["mse"], expected, rtol=1e-6)
    perfect, terms = loss(teacher, batch_of(images))
    assert float(perfect) == 0.0
    assert float(terms["cosine"]) == pytest.approx(1.0)


def test_padding_is_not_learned(setting):
    teacher, student, images = setting
    loss = loss_of(changed, lambda image: encode(teacher, image))
    valid = jnp.broadcast_to(valid_positions(4, 8, SIZE, POSITIONS), (3, POSITIONS, POSITIONS))
    value, _ = loss(student, batch_of(images, valid=valid))
    other = images.at[:, 4:].set(99.0)
    np.testing.assert_allclose(loss(student, batch_of(other, valid=valid))[0], value, rtol=1e-6)


def test_a_linear_student_finds_its_linear_teacher(setting):
    teacher, student, images = setting
    loss, optimizer = make_decoupled_loss(changed, lambda image: encode(teacher, image)), optax.adam(0.05)
    step = make_step(loss, optimizer)
    state = init_state(jax.tree.map(jnp.zeros_like, student), optimizer, KEY)
    for _ in range(300):
        state, metrics = step(student, state, batch_of(images))
    assert float(metrics["mse"]) < 1e-4
    assert int(state.step) == 300
    np.testing.assert_allclose(student["kernel"] + state.delta["kernel"], teacher["kernel"], atol=0.05)


def test_one_image_after_the_other_makes_the_same_step(setting):
    teacher, student, images = setting
    loss, optimizer = make_decoupled_loss(changed, lambda image: encode(teacher, image)), optax.sgd(0.1)
    done = []
    for parts in (1, 3):
        state = init_state(jax.tree.map(jnp.zeros_like, student), optimizer, KEY)
        done.append(make_step(loss, optimizer, parts)(student, state, batch_of(images)))
    (whole, of_whole), (parts, of_parts) = done
    np.testing.assert_allclose(whole.delta["kernel"], parts.delta["kernel"], rtol=1e-5, atol=1e-6)
    for name in ("mse", "cosine", "grad_norm", "weight"):
        np.testing.assert_allclose(of_whole[name], of_parts[name], rtol=1e-5)


def test_what_trains_is_the_encoder_of_a_student_without_its_statistics():
    model = build("lite-tiny-test")
    params = jax.eval_shape(model.init, KEY)
    delta = jax.eval_shape(adapt_model(tune(r"image_encoder/.*"), model).init, KEY, params)
    assert all(site.startswith("image_encoder") for site in delta)
    assert not {"mean", "var"} & {name for leaves in delta.values() for name in leaves}


def test_a_student_is_an_adapted_model_whose_encoder_is_its_delta():
    model, params = weights.load("sam-tiny-test")
    student = adapt_model(tune(r"image_encoder/(neck_0|patch_embed)/.*"), model)
    size, cells = model.spec.input_size, model.spec.embedding
    image = jax.random.normal(KEY, (1, size, size, 3))
    batch = DecoupledBatch(image, jnp.ones((1, *cells)), jnp.ones((1, *cells[:2])))
    optimizer = optax.adam(1e-3)
    state = init_state(student.init(KEY, params), optimizer, KEY)
    step, losses = make_step(make_decoupled_loss(student.encode), optimizer), []
    for _ in range(3):
        state, metrics = step(params, state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    whole = student.merge(params, state.delta)
    np.testing.assert_allclose(
        model.encode(whole, image[0]), student.encode(params, state.delta, image[0]), atol=1e-5
    )


def test_valid_positions_count_centres_on_the_image():
    # Centres lie at 1, 3, 5 and 7 pixels; content of 4 columns ends at 4, of 3 columns at 3.
    np.testing.assert_array_equal(valid_positions(8, 4, 8, 4)[0], [1, 1, 0, 0])
    np.testing.assert_array_equal(valid_positions(8, 3, 8, 4)[0], [1, 0, 0, 0])
    assert valid_positions(8, 8, 8, 4).all()


@pytest.mark.parametrize("height", [1, 100, 200, 256])
def test_valid_share_is_the_content_share(height):
    share = valid_positions(height, 256, 256, 64).mean()
    assert share == pytest.approx(height / 256, abs=0.5 / 64)


def test_embeddings_are_stored_once(setting, tmp_path):
    teacher, _, images = setting
    path, seen = tmp_path / "teacher.npy", []
    stored = write_embeddings(
        path, lambda x: encode(teacher, x), images, 3, progress=lambda n, _: seen.append(n)
    )
    expected = jax.vmap(encode, in_axes=(None, 0))(teacher, images)
    np.testing.assert_allclose(np.asarray(stored, np.float32), expected, rtol=1e-3, atol=1e-3)
    assert seen == [1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["teacher.npy"]
    again = write_embeddings(path, lambda x: 1 / 0, [], 3)  # reused: neither encoder nor images are looked at
    np.testing.assert_array_equal(again, stored)
    with pytest.raises(EmbeddingMismatch, match="delete"):
        write_embeddings(path, lambda x: x, [], 4)


def test_too_few_images_leave_no_file(setting, tmp_path):
    teacher, _, images = setting
    with pytest.raises(EmbeddingMismatch, match="announced"):
        write_embeddings(tmp_path / "teacher.npy", lambda x: encode(teacher, x), images[:2], 3)
    assert not (tmp_path / "teacher.npy").exists()


def test_mismatches_are_named(setting):
    teacher, student, images = setting
    with pytest.raises(EmbeddingMismatch, match="without a teacher"):
        loss_of(changed)(student, batch_of(images))
    narrow = loss_of(changed, lambda image: encode(teacher, image)[..., :2])
    with pytest.raises(EmbeddingMismatch, match="neck"):
        narrow(student, batch_of(images))
