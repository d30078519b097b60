"""Text encoders, language models, and encoders with a decoder."""

from __future__ import annotations

from kinds import SMALL, VOCABULARY, Architecture, decoder, encoder, seq2seq

_TEXT = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
_LM = {**_TEXT, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED = {**_LM, "num_key_value_heads": 2, "head_dim": 8}
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False,
    "decoder_start_token_id": 0,
}  # fmt: skip

ARCHITECTURES = (
    encoder("bert", lambda t: t.BertModel(t.BertConfig(**_TEXT))),
    encoder("roberta", lambda t: t.RobertaModel(t.RobertaConfig(**_TEXT))),
    encoder("xlm-roberta", lambda t: t.XLMRobertaForSequenceClassification(t.XLMRobertaConfig(**_TEXT, num_labels=5)),
            output="logits"),
    encoder("distilbert", lambda t: t.DistilBertModel(t.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64))),
    encoder("albert", lambda t: t.AlbertModel(t.AlbertConfig(**_TEXT, embedding_size=16))),
    encoder("electra", lambda t: t.ElectraModel(t.ElectraConfig(**_TEXT, embedding_size=16))),
    encoder("mpnet", lambda t: t.MPNetModel(t.MPNetConfig(**_TEXT))),
    encoder("deberta", lambda t: t.DebertaModel(t.DebertaConfig(
        **_TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"]))),
    encoder("deberta-v2", lambda t: t.DebertaV2Model(t.DebertaV2Config(
        **_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, share_att_key=True,
        norm_rel_ebd="layer_norm", position_biased_input=False))),
    encoder("mobilebert", lambda t: t.MobileBertModel(t.MobileBertConfig(
        **_TEXT, embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16))),
    encoder("modernbert", lambda t: t.ModernBertModel(t.ModernBertConfig(
        **_TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        local_attention=8, attn_implementation="sdpa"))),
    encoder("layoutlm", lambda t: t.LayoutLMModel(t.LayoutLMConfig(**_TEXT))),
    encoder("fnet", lambda t: t.FNetModel(t.FNetConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=64)),
        masked=False),
    encoder("funnel", lambda t: t.FunnelModel(t.FunnelConfig(
        vocab_size=VOCABULARY, block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=4, d_head=8, d_inner=64))),
    Architecture("nystromformer", "text encoder", lambda t: t.NystromformerModel(t.NystromformerConfig(
        **_TEXT, num_landmarks=4, segment_means_seq_len=16)),
        {"input_ids": {"shape": ["batch", 16], "dtype": "int64", "range": [5, VOCABULARY - 1]}},
        ("last_hidden_state",)),
    encoder("canine", lambda t: t.CanineModel(t.CanineConfig(
        **SMALL, max_position_embeddings=64, num_hash_functions=4, num_hash_buckets=64, local_transformer_stride=32))),
    encoder("xlnet", lambda t: t.XLNetModel(t.XLNetConfig(
        vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=64, use_mems_eval=False))),

    decoder("gpt2", lambda t: t.GPT2LMHeadModel(t.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, use_cache=False, bos_token_id=1,
        eos_token_id=2))),
    decoder("gpt-neox", lambda t: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_LM))),
    decoder("llama", lambda t: t.LlamaForCausalLM(t.LlamaConfig(**_GROUPED))),
    decoder("qwen2", lambda t: t.Qwen2ForCausalLM(t.Qwen2Config(**_LM, num_key_value_heads=2))),
    decoder("qwen3", lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**_GROUPED))),
    decoder("gemma", lambda t: t.GemmaForCausalLM(t.GemmaConfig(**_GROUPED))),
    decoder("mistral", lambda t: t.MistralForCausalLM(t.MistralConfig(**_GROUPED, sliding_window=8))),
    decoder("mixtral", lambda t: t.MixtralForCausalLM(t.MixtralConfig(
        **_LM, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2))),
    decoder("phi", lambda t: t.PhiForCausalLM(t.PhiConfig(**_LM))),
    decoder("opt", lambda t: t.OPTForCausalLM(t.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=64, use_cache=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2))),
    decoder("bloom", lambda t: t.BloomForCausalLM(t.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, use_cache=False, bos_token_id=1, eos_token_id=2))),
    decoder("falcon", lambda t: t.FalconForCausalLM(t.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, use_cache=False,
        bos_token_id=1, eos_token_id=2))),
    seq2seq("t5", lambda t: t.T5ForConditionalGeneration(t.T5Config(**_T5))),
    seq2seq("bart", lambda t: t.BartForConditionalGeneration(t.BartConfig(**_BART, forced_eos_token_id=2))),
    seq2seq("marian", lambda t: t.MarianMTModel(t.MarianConfig(**_BART, forced_eos_token_id=2))),
    seq2seq("pegasus", lambda t: t.PegasusForConditionalGeneration(t.PegasusConfig(**_BART, forced_eos_token_id=2))),
)  # fmt: skip
