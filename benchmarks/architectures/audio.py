"""Speech and sound."""

from __future__ import annotations

from typing import Any

from kinds import SMALL, VOCABULARY, Architecture

SAMPLES = 800  # of sound: 50 ms at 16 kHz
_CONV = {
    "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "vocab_size": 32, "apply_spec_augment": False,
}  # fmt: skip

_WHISPER = {
    "vocab_size": VOCABULARY, "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_source_positions": 32, "max_target_positions": 64, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def _wave(name: str, build: Any, output: str = "last_hidden_state") -> Architecture:
    """A model of the wave itself (batch, sample)."""
    wave = {"input_values": {"shape": ["batch", SAMPLES], "range": [-2.0, 2.0]}}
    return Architecture(name, "audio", build, wave, (output,))


ARCHITECTURES = (
    _wave("wav2vec2", lambda t: t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**SMALL, **_CONV)), "logits"),
    _wave("hubert", lambda t: t.HubertModel(t.HubertConfig(**SMALL, **_CONV))),
    _wave("wavlm", lambda t: t.WavLMModel(t.WavLMConfig(**SMALL, **_CONV))),
    _wave("sew", lambda t: t.SEWModel(t.SEWConfig(**SMALL, **_CONV, squeeze_factor=2))),
    _wave("sew-d", lambda t: t.SEWDModel(t.SEWDConfig(**SMALL, **_CONV, squeeze_factor=2, max_position_embeddings=64,
        position_buckets=16))),
    Architecture("ast", "audio", lambda t: t.ASTForAudioClassification(t.ASTConfig(
        **SMALL, patch_size=8, frequency_stride=4, time_stride=4, max_length=32, num_mel_bins=16, num_labels=10)),
        {"input_values": {"shape": ["batch", 32, 16], "range": [-2.0, 2.0]}}, ("logits",)),
    Architecture("whisper-encoder", "audio", lambda t: t.WhisperModel(t.WhisperConfig(**_WHISPER)).encoder,
        {"input_features": {"shape": ["batch", 16, 64], "range": [-2.0, 2.0]}}, ("last_hidden_state",)),
    Architecture("whisper", "audio", lambda t: t.WhisperForConditionalGeneration(t.WhisperConfig(**_WHISPER)),
        {"input_features": {"shape": ["batch", 16, 64], "range": [-2.0, 2.0]},
         "decoder_input_ids": {"shape": ["batch", "sequence"], "dtype": "int64", "range": [5, VOCABULARY - 1]}},
        ("logits",)),
    Architecture("speech-to-text", "audio", lambda t: t.Speech2TextForConditionalGeneration(t.Speech2TextConfig(
        **{k: v for k, v in _WHISPER.items() if k not in ("num_mel_bins", "max_source_positions")},
        input_feat_per_channel=16, max_source_positions=64, conv_channels=16)),
        {"input_features": {"shape": ["batch", 64, 16], "range": [-2.0, 2.0]},
         "decoder_input_ids": {"shape": ["batch", "sequence"], "dtype": "int64", "range": [5, VOCABULARY - 1]}},
        ("logits",)),
    Architecture("encodec", "audio", lambda t: t.EncodecModel(t.EncodecConfig(
        num_filters=4, upsampling_ratios=[4, 2], hidden_size=16, codebook_size=16, codebook_dim=16,
        target_bandwidths=[1.5], num_lstm_layers=1, sampling_rate=16000)).encoder,
        {"hidden_states": {"shape": ["batch", 1, 320], "range": [-1.0, 1.0]}}, ("output",)),
    Architecture("univnet", "audio", lambda t: t.UnivNetModel(t.UnivNetConfig(
        model_in_channels=8, model_hidden_channels=8, num_mel_bins=16, resblock_kernel_sizes=[3],
        resblock_stride_sizes=[4], resblock_dilation_sizes=[[1, 3]], kernel_predictor_hidden_channels=8)),
        {"input_features": {"shape": ["batch", 16, 16], "range": [-2.0, 2.0]},
         "noise_sequence": {"shape": ["batch", 16, 8], "range": [-2.0, 2.0]}}, ("waveforms",)),
)  # fmt: skip
