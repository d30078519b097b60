"""Image classifiers."""

from __future__ import annotations

from kinds import SMALL, video, vision

_VIT = {**SMALL, "image_size": 32, "patch_size": 8}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}

ARCHITECTURES = (
    vision("vit", lambda t: t.ViTForImageClassification(t.ViTConfig(**_VIT, num_labels=10))),
    vision("deit", lambda t: t.DeiTForImageClassification(t.DeiTConfig(**_VIT, num_labels=10))),
    vision("beit", lambda t: t.BeitForImageClassification(t.BeitConfig(
        **_VIT, num_labels=10, use_relative_position_bias=True, vocab_size=99, layer_scale_init_value=0.5))),
    vision("dinov2", lambda t: t.Dinov2ForImageClassification(t.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, num_labels=10))),
    vision("hiera", lambda t: t.HieraForImageClassification(t.HieraConfig(
        embed_dim=16, image_size=[32, 32], patch_size=[3, 3], patch_stride=[2, 2], patch_padding=[1, 1],
        mlp_ratio=2.0, depths=[1, 1, 1], num_heads=[1, 2, 4], masked_unit_size=[4, 4], query_stride=[2, 2],
        num_query_pool=2, num_labels=10))),
    vision("swin", lambda t: t.SwinForImageClassification(t.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=10))),
    vision("convnext", lambda t: t.ConvNextForImageClassification(t.ConvNextConfig(
        **_STAGES, num_labels=10, layer_scale_init_value=0.5)), 64),
    vision("convnextv2", lambda t: t.ConvNextV2ForImageClassification(t.ConvNextV2Config(**_STAGES, num_labels=10)),
           64),
    vision("resnet", lambda t: t.ResNetForImageClassification(t.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32], depths=[1, 1, 2], layer_type="basic", num_labels=10)), 64),
    vision("regnet", lambda t: t.RegNetForImageClassification(t.RegNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32], depths=[1, 1, 2], groups_width=8, layer_type="y",
        num_labels=10)), 64),
    vision("mobilenet-v1", lambda t: t.MobileNetV1ForImageClassification(t.MobileNetV1Config(
        depth_multiplier=0.25, min_depth=8, image_size=64, num_labels=10)), 64),
    vision("mobilenet-v2", lambda t: t.MobileNetV2ForImageClassification(t.MobileNetV2Config(
        depth_multiplier=0.25, image_size=64, num_labels=10)), 64),
    vision("mobilevit", lambda t: t.MobileViTForImageClassification(t.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 16, 16, 24, 24, 32, 64], num_labels=10)), 64),
    vision("mobilevitv2", lambda t: t.MobileViTV2ForImageClassification(t.MobileViTV2Config(
        image_size=64, width_multiplier=0.25, num_labels=10)), 64),
    vision("efficientnet", lambda t: t.EfficientNetForImageClassification(t.EfficientNetConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, num_labels=10)), 64),
    vision("poolformer", lambda t: t.PoolFormerForImageClassification(t.PoolFormerConfig(
        **_STAGES, num_labels=10, layer_scale_init_value=0.5)), 64),
    vision("pvt-v2", lambda t: t.PvtV2ForImageClassification(t.PvtV2Config(
        image_size=64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4],
        num_labels=10)), 64),
    vision("cvt", lambda t: t.CvtForImageClassification(t.CvtConfig(
        embed_dim=[16, 24, 32], num_heads=[1, 2, 4], depth=[1, 2, 3], num_labels=10)), 64),
    vision("levit", lambda t: t.LevitForImageClassification(t.LevitConfig(
        image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 4], depths=[1, 1, 1], key_dim=[8, 8, 8],
        num_labels=10)), 64),
    vision("focalnet", lambda t: t.FocalNetForImageClassification(t.FocalNetConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3],
        num_labels=10))),
    video("videomae", lambda t: t.VideoMAEForVideoClassification(t.VideoMAEConfig(
        **SMALL, image_size=32, patch_size=8, num_frames=4, tubelet_size=2, num_labels=10))),
)  # fmt: skip
