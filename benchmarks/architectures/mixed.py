"""Images with text, state-space and recurrent models, time series."""

from __future__ import annotations

from kinds import SMALL, VOCABULARY, Architecture, decoder, mask, pixels, tokens

_TEXT = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
_IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
_CHANNELS = {"shape": ["batch", 32, 3], "range": [-2.0, 2.0]}  # (batch, time step, channel)

ARCHITECTURES = (
    Architecture("clip", "multimodal", lambda t: t.CLIPModel(t.CLIPConfig(
        text_config={**_TEXT, "bos_token_id": 1, "eos_token_id": VOCABULARY - 1}, vision_config=_IMAGE,
        projection_dim=16)), tokens() | pixels(32) | mask(), ("text_embeds", "image_embeds")),
    Architecture("siglip", "multimodal", lambda t: t.SiglipModel(t.SiglipConfig(
        text_config=_TEXT, vision_config=_IMAGE)), tokens() | pixels(32), ("text_embeds", "image_embeds")),
    Architecture("blip", "multimodal", lambda t: t.BlipForImageTextRetrieval(t.BlipConfig(
        text_config={**_TEXT, "encoder_hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
                     "sep_token_id": 2},
        vision_config=_IMAGE, projection_dim=16, image_text_hidden_size=16)),
        tokens() | pixels(32) | mask(), ("itm_score",)),
    Architecture("vilt", "multimodal", lambda t: t.ViltForQuestionAnswering(t.ViltConfig(
        **_TEXT, image_size=32, patch_size=8, max_image_length=-1, num_labels=5)),
        tokens() | {"pixel_values": pixels(32)["pixel_values"]} | mask(), ("logits",)),
    Architecture("git", "multimodal", lambda t: t.GitForCausalLM(t.GitConfig(
        vision_config=_IMAGE, **{**_TEXT, "max_position_embeddings": 64}, use_cache=False, bos_token_id=1,
        eos_token_id=2)), tokens() | pixels(32) | mask(), ("logits",)),
    Architecture("owlvit", "detection", lambda t: t.OwlViTForObjectDetection(t.OwlViTConfig(
        text_config={**_TEXT, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": VOCABULARY - 1},
        vision_config=_IMAGE, projection_dim=32)),
        {"input_ids": {"shape": [2, 16], "dtype": "int64", "range": [5, VOCABULARY - 1]},
         "pixel_values": {"shape": [1, 3, 32, 32], "layout": "NCHW", "range": [-2.0, 2.0]}}, ("logits", "pred_boxes")),
    decoder("mamba", lambda t: t.MambaForCausalLM(t.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, use_cache=False, bos_token_id=1,
        eos_token_id=2, pad_token_id=0))),
    decoder("mamba2", lambda t: t.Mamba2ForCausalLM(t.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=1,
        chunk_size=8, use_cache=False, bos_token_id=1, eos_token_id=2, pad_token_id=0))),
    decoder("rwkv", lambda t: t.RwkvForCausalLM(t.RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, intermediate_size=64,
        context_length=64, use_cache=False, bos_token_id=1, eos_token_id=2))),
    Architecture("patchtst", "time series", lambda t: t.PatchTSTForPrediction(t.PatchTSTConfig(
        num_input_channels=3, context_length=32, patch_length=8, patch_stride=8, num_hidden_layers=2, d_model=32,
        num_attention_heads=4, ffn_dim=64, prediction_length=8, loss="mse")), {"past_values": _CHANNELS},
        ("prediction_outputs",)),
)  # fmt: skip
