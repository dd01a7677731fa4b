"""EfficientSAM, EdgeSAM's encoder and SAM-Med2D's adapter against PyTorch, written out here over their state dicts.

Their weights are not in reach; numbers are random, and every array of the state dict is asked for by its name.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from medvfm_jax.models import catalog  # noqa: E402
from medvfm_jax.models.sam.channel_spatial import ChannelSpatialAdapter  # noqa: E402
from medvfm_jax.types import Prompts  # noqa: E402
from medvfm_jax.weights.port import to_torch  # noqa: E402

F = torch.nn.functional
pytestmark = pytest.mark.parity


class State(dict):
    """Tensors by key that remembers which were asked for."""

    def __init__(self, arrays):
        super().__init__({key: torch.tensor(np.asarray(value)) for key, value in arrays.items()})
        self.used = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)

    def linear(self, x, key):
        return F.linear(x, self[f"{key}.weight"], self[f"{key}.bias"])

    def norm(self, x, key, eps):
        return F.layer_norm(x, x.shape[-1:], self[f"{key}.weight"], self[f"{key}.bias"], eps)

    def conv_bn(self, x, key, **options):
        x = F.conv2d(x, self[f"{key}.c.weight"], **options)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self[f"{key}.bn.{name}"] for name in names), eps=1e-5)

    def neck(self, x):
        for conv, norm, pad in ((0, 1, 0), (2, 3, 1)):
            x = F.conv2d(x, self[f"image_encoder.neck.{conv}.weight"], padding=pad)
            x = self.norm(x.permute(0, 2, 3, 1), f"image_encoder.neck.{norm}", 1e-6).permute(0, 3, 1, 2)
        return x


def model_of(name):
    model = catalog.build(name)
    rng = np.random.default_rng(0)

    def drawn(path, shape):
        leaf = path[-1].key
        if leaf in ("scale", "var"):
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        deviation = (
            0.3 if leaf in ("bias", "mean", "embedding", "pos_embed") else np.prod(shape.shape[:-1]) ** -0.5
        )
        return (rng.normal(size=shape.shape) * deviation).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(drawn, jax.eval_shape(model.init, jax.random.key(0)))
    params["params"]["prompt_encoder"]["pe_layer"]["positional_encoding_gaussian_matrix"] *= 3
    return model, params, State(to_torch(catalog.MODELS[name].tables[0], params))


def picture(side):
    return np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)


def channels_first(image):
    return torch.tensor(image).permute(2, 0, 1)[None]


def channels_last(x):
    return x[0].permute(1, 2, 0).numpy()


def efficient_encoder(state, image, depth=2, heads=2, grid=2):
    x = F.conv2d(
        image,
        state["image_encoder.patch_embed.proj.weight"],
        state["image_encoder.patch_embed.proj.bias"],
        16,
    )
    dim, h, w = x.shape[1:]
    positions = state["image_encoder.pos_embed"][:, 1:].reshape(1, grid, grid, dim).permute(0, 3, 1, 2)
    x = (x + F.interpolate(positions, (h, w), mode="bicubic")).flatten(2).transpose(1, 2)
    for i in range(depth):
        key = f"image_encoder.blocks.{i}"
        qkv = state.linear(state.norm(x, f"{key}.norm1", 1e-6), f"{key}.attn.qkv")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + state.linear(seen, f"{key}.attn.proj")
        hidden = F.gelu(state.linear(state.norm(x, f"{key}.norm2", 1e-6), f"{key}.mlp.fc1"))
        x = x + state.linear(hidden, f"{key}.mlp.fc2")
    return state.neck(x.transpose(1, 2).unflatten(-1, (h, w)))


def positions_of(state, xy):
    matrix = state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    angle = 2 * np.pi * ((2 * xy - 1) @ matrix)
    return torch.cat([angle.sin(), angle.cos()], -1)


def efficient_tokens(state, points, labels, side):
    missing = 6 - points.shape[1]
    points = F.pad(points, (0, 0, 0, missing), value=-1.0)
    labels = F.pad(labels, (0, missing), value=-1)
    tokens = positions_of(state, (points + 0.5) / side)
    names = {-1: "invalid_points", 1: "point_embeddings", 2: "bbox_top_left_embeddings"}
    for label, name in (names | {3: "bbox_bottom_right_embeddings"}).items():
        tokens = tokens + (labels == label)[..., None] * state[f"prompt_encoder.{name}.weight"]
    return tokens


def attention(state, key, q, k, v, heads=8):
    q, k, v = (
        state.linear(x, f"{key}.{name}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, name in ((q, "q"), (k, "k"), (v, "v"))
    )
    return state.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), f"{key}.out_proj")


def three_layers(state, key, x):
    for i in range(2):
        x = F.gelu(state.linear(x, f"{key}.layers.{i}.0"))
    return state.linear(x, f"{key}.fc")


def efficient_decoder(state, embedding, sparse):
    queries, (dim, h, w) = len(sparse), embedding.shape[1:]
    own = torch.cat([state["mask_decoder.iou_token.weight"], state["mask_decoder.mask_tokens.weight"]])
    place = tokens = torch.cat([own.expand(queries, -1, -1), sparse], 1)
    image = embedding.flatten(2).transpose(1, 2).expand(queries, -1, -1)
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    image_place = positions_of(state, torch.stack([x, y], -1)).reshape(1, h * w, dim)
    root = "mask_decoder.transformer"
    for i in range(2):
        key = f"{root}.layers.{i}"
        tokens = tokens if i == 0 else tokens + place
        tokens = state.norm(
            tokens + attention(state, f"{key}.self_attn", tokens, tokens, tokens), f"{key}.norm1", 1e-5
        )
        seen = attention(
            state, f"{key}.cross_attn_token_to_image", tokens + place, image + image_place, image
        )
        tokens = state.norm(tokens + seen, f"{key}.norm2", 1e-5)
        hidden = F.gelu(state.linear(tokens, f"{key}.mlp.layers.0.0"))
        tokens = state.norm(tokens + state.linear(hidden, f"{key}.mlp.fc"), f"{key}.norm3", 1e-5)
        seen = attention(
            state, f"{key}.cross_attn_image_to_token", image + image_place, tokens + place, tokens
        )
        image = state.norm(image + seen, f"{key}.norm4", 1e-5)
    seen = attention(state, f"{root}.final_attn_token_to_image", tokens + place, image + image_place, image)
    tokens = state.norm(tokens + seen, f"{root}.norm_final_attn", 1e-5)
    up, pixels = "mask_decoder.final_output_upscaling_layers", image.transpose(1, 2).unflatten(-1, (h, w))
    pixels = F.conv_transpose2d(pixels, state[f"{up}.0.0.weight"], state[f"{up}.0.0.bias"], 2)
    pixels = F.gelu(F.group_norm(pixels, 1, state[f"{up}.0.1.weight"], state[f"{up}.0.1.bias"]))
    pixels = F.gelu(F.conv_transpose2d(pixels, state[f"{up}.1.0.weight"], state[f"{up}.1.0.bias"], 2))
    weights = [
        three_layers(state, f"mask_decoder.output_hypernetworks_mlps.{i}", tokens[:, 1 + i]) for i in range(4)
    ]
    masks = torch.einsum("qmc,qchw->qmhw", torch.stack(weights, 1), pixels)
    return masks, three_layers(state, "mask_decoder.iou_prediction_head", tokens[:, 0])


def test_efficient_sam():
    model, params, state = model_of("efficient-tiny-test")
    image = picture(64)
    with torch.no_grad():
        embedding = efficient_encoder(state, channels_first(image))
    assert embedding.std() > 0.3
    np.testing.assert_allclose(jax.jit(model.encode)(params, image), channels_last(embedding), atol=2e-5)
    points = np.array([[[9.0, 12.0], [40.0, 50.0]], [[5.0, 30.0], [20.0, 21.0]]], np.float32)
    labels = np.array([[2, 3], [1, 0]], np.int32)
    with torch.no_grad():
        sparse = efficient_tokens(state, torch.tensor(points), torch.tensor(labels), 64)
        masks, iou = efficient_decoder(state, embedding, sparse)
    asked = Prompts(jnp.asarray(points), jnp.asarray(labels))
    decode = jax.jit(model.decode, static_argnames="multimask")
    for many, kept in ((False, slice(0, 1)), (True, slice(1, None))):
        ours = decode(params, channels_last(embedding), asked, multimask=many)
        np.testing.assert_allclose(ours.logits, masks[:, kept].numpy(), atol=1e-4)
        np.testing.assert_allclose(ours.iou, iou[:, kept].numpy(), atol=1e-4)
    assert masks.std((-1, -2)).min() > 0.03
    assert state.used == set(state)


def rep_vit(state, image):
    x = F.gelu(state.conv_bn(image, "image_encoder.features.0.0", stride=2, padding=1))
    x = state.conv_bn(x, "image_encoder.features.0.2", stride=2, padding=1)
    stages = {}
    for i in range(1, 11):
        key, dim = f"image_encoder.features.{i}", x.shape[1]
        token = f"{key}.token_mixer"
        if f"{token}.2.c.weight" in state:
            stages[i] = x
            x = state.conv_bn(x, f"{token}.0", stride=2, padding=1, groups=dim)
            x = state.conv_bn(x, f"{token}.2")
        else:
            x = (
                x
                + state.conv_bn(x, f"{token}.0.conv", padding=1, groups=dim)
                + state.conv_bn(x, f"{token}.0.conv1", groups=dim)
            )
            if f"{token}.1.fc1.weight" in state:
                gate = F.relu(
                    F.conv2d(
                        x.mean((2, 3), keepdim=True),
                        state[f"{token}.1.fc1.weight"],
                        state[f"{token}.1.fc1.bias"],
                    )
                )
                x = x * torch.sigmoid(
                    F.conv2d(gate, state[f"{token}.1.fc2.weight"], state[f"{token}.1.fc2.bias"])
                )
        hidden = F.gelu(state.conv_bn(x, f"{key}.channel_mixer.m.0"))
        x = x + state.conv_bn(hidden, f"{key}.channel_mixer.m.2")
    fine = F.conv2d(stages[max(stages)], state["image_encoder.fuse_stage2.weight"])
    coarse = F.conv2d(x, state["image_encoder.fuse_stage3.op_list.0.weight"])
    return state.neck(fine + F.interpolate(coarse, scale_factor=2, mode="bicubic"))


def test_edge_sam_encoder():
    model, params, state = model_of("edge-tiny-test")
    image = picture(64)
    with torch.no_grad():
        embedding = rep_vit(state, channels_first(image))
    assert embedding.std() > 0.3
    np.testing.assert_allclose(jax.jit(model.encode)(params, image), channels_last(embedding), atol=1e-4)
    assert state.used == {key for key in state if key.startswith("image_encoder")}


def test_adapter_of_sam_med2d():
    _, params, state = model_of("med2d-tiny-test")
    x = np.random.default_rng(2).normal(size=(4, 6, 16)).astype(np.float32)
    key, map_ = "image_encoder.blocks.1.Adapter", channels_first(x)
    hidden = F.relu(F.linear(map_.mean((2, 3)), state[f"{key}.channel.0.weight"]))
    gate = torch.sigmoid(F.linear(hidden, state[f"{key}.channel.2.weight"]))
    half = F.relu(
        F.conv2d(gate[..., None, None] * map_, state[f"{key}.spatial.0.weight"], stride=2, padding=1)
    )
    full = F.relu(F.conv_transpose2d(half, state[f"{key}.spatial.2.weight"], stride=2, padding=1))
    expected = state.norm((map_ + full).permute(0, 2, 3, 1), f"{key}.norm", 1e-5)[0]
    ours = ChannelSpatialAdapter().apply(
        {"params": params["params"]["image_encoder"]["blocks_1"]["Adapter"]}, x
    )
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)
