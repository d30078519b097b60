"""Detection, segmentation, depth, and images from images."""

from __future__ import annotations

from typing import Any

from kinds import SMALL, Architecture, pixels

_DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 6,
    "use_timm_backbone": False, "use_pretrained_backbone": False, "num_labels": 5, "backbone": None,
}  # fmt: skip


def _resnet(t: Any, *stages: str) -> Any:
    return t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
                          out_features=list(stages))  # fmt: skip


def _swin(t: Any) -> Any:
    return t.SwinConfig(image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
                        out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip


def _convnext(t: Any) -> Any:
    return t.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], layer_scale_init_value=0.5,
                            out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip


def _detector(name: str, build: Any, side: int = 64) -> Architecture:
    return Architecture(name, "detection", build, pixels(side), ("logits", "pred_boxes"))


def _masks(name: str, build: Any, side: int = 64) -> Architecture:
    return Architecture(name, "segmentation", build, pixels(side), ("class_queries_logits", "masks_queries_logits"))


def _dense(name: str, build: Any, side: int = 64, output: str = "logits", family: str = "segmentation") -> Architecture:
    return Architecture(name, family, build, pixels(side), (output,))


ARCHITECTURES = (
    _detector("detr", lambda t: t.DetrForObjectDetection(t.DetrConfig(
        **_DETR, backbone_config=_resnet(t, "stage4")))),
    _detector("deformable-detr", lambda t: t.DeformableDetrForObjectDetection(t.DeformableDetrConfig(
        **{**_DETR, "decoder_layers": 2}, backbone_config=_resnet(t, "stage2", "stage3", "stage4"),
        num_feature_levels=4, encoder_n_points=2, decoder_n_points=2))),
    _detector("rt-detr", lambda t: t.RTDetrForObjectDetection(t.RTDetrConfig(
        backbone_config=t.RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1],
                                             layer_type="basic", out_features=["stage2", "stage3", "stage4"]),
        encoder_hidden_dim=32, encoder_in_channels=[16, 16, 16], feat_strides=[8, 16, 32], encoder_layers=1,
        encoder_ffn_dim=64, encoder_attention_heads=4, d_model=32, num_queries=6, decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64, decoder_layers=1, decoder_attention_heads=4, decoder_n_points=2, num_denoising=0,
        num_labels=5))),
    Architecture("yolos", "detection", lambda t: t.YolosForObjectDetection(t.YolosConfig(
        **SMALL, image_size=[64, 64], patch_size=8, num_detection_tokens=6, num_labels=5)), pixels(64),
        ("logits", "pred_boxes")),
    _dense("segformer", lambda t: t.SegformerForSemanticSegmentation(t.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32,
        num_labels=5))),
    _dense("upernet", lambda t: t.UperNetForSemanticSegmentation(t.UperNetConfig(
        backbone_config=_convnext(t), hidden_size=32, pool_scales=[1, 2], auxiliary_channels=16, num_labels=5))),
    _dense("beit-segmentation", lambda t: t.BeitForSemanticSegmentation(t.BeitConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=16,
        vocab_size=99, out_features=["stage1", "stage2", "stage3", "stage4"], use_auxiliary_head=False,
        pool_scales=[1, 2], use_relative_position_bias=True, reshape_hidden_states=False,
        layer_scale_init_value=0.5, num_labels=5))),
    _dense("mobilevit-segmentation", lambda t: t.MobileViTForSemanticSegmentation(t.MobileViTConfig(
        image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 16, 16, 24, 24, 32, 64], aspp_out_channels=32,
        atrous_rates=[1, 2, 3], num_labels=5))),
    _dense("mobilenet-v2-segmentation", lambda t: t.MobileNetV2ForSemanticSegmentation(t.MobileNetV2Config(
        depth_multiplier=0.25, image_size=64, num_labels=5))),
    _dense("dpt", lambda t: t.DPTForSemanticSegmentation(t.DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 16, 32], fusion_hidden_size=16, num_labels=5,
        use_auxiliary_head=False)), 32),
    _masks("maskformer", lambda t: t.MaskFormerForInstanceSegmentation(t.MaskFormerConfig(
        backbone_config=_swin(t), decoder_config=t.DetrConfig(**_DETR), fpn_feature_size=32, mask_feature_size=32,
        num_labels=5))),
    _masks("mask2former", lambda t: t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(
        backbone_config=_swin(t), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=2, decoder_layers=2, num_attention_heads=4, dim_feedforward=64, num_queries=6, num_labels=5))),
    _dense("glpn", lambda t: t.GLPNForDepthEstimation(t.GLPNConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16)),
        output="predicted_depth", family="depth"),
    _dense("depth-anything", lambda t: t.DepthAnythingForDepthEstimation(t.DepthAnythingConfig(
        backbone_config=t.Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=32,
                                       patch_size=8, out_features=["stage1", "stage2", "stage3", "stage4"],
                                       reshape_hidden_states=False),
        patch_size=8, reassemble_hidden_size=32, neck_hidden_sizes=[8, 16, 16, 16], fusion_hidden_size=16,
        head_hidden_size=8)), 32, "predicted_depth", "depth"),
    _dense("swin2sr", lambda t: t.Swin2SRForImageSuperResolution(t.Swin2SRConfig(
        image_size=32, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, upscale=2)), 32, "reconstruction",
        "restoration"),
    _dense("vitpose", lambda t: t.VitPoseForPoseEstimation(t.VitPoseConfig(
        backbone_config=t.VitPoseBackboneConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2,
                                                image_size=[64, 64], patch_size=[8, 8], out_features=["stage2"]),
        num_labels=5)), 64, "heatmaps", "pose"),
)  # fmt: skip
