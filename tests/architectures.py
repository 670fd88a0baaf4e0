"""Tiny models of many architectures of transformers, by the options of their configs."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 40,
}  # fmt: skip
SHORT = {"d_model": 16, "vocab_size": 40, "encoder_layers": 2, "decoder_layers": 1,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
         "decoder_ffn_dim": 16}  # fmt: skip
KEPT = {"num_key_value_heads": 1, "head_dim": 8}
TOWER = {**SMALL, "image_size": 8, "patch_size": 4}
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("LlamaForCausalLM", {**SMALL, **KEPT}),
    ("Qwen2ForCausalLM", {**SMALL, **KEPT, "tie_word_embeddings": True}),
    ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40}),
    ("BertModel", SMALL),
    ("BertForSequenceClassification", {**SMALL, "num_labels": 5}),
    ("T5ForConditionalGeneration", {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2,
                                    "num_heads": 2, "vocab_size": 40}),
    ("AlbertForMaskedLM", {**SMALL, "embedding_size": 8}),
    ("MixtralForCausalLM", {**SMALL, **KEPT, "num_local_experts": 2}),
    ("ViTForImageClassification", {**TOWER, "num_labels": 3}),
    ("WhisperForConditionalGeneration", {**SHORT, "num_mel_bins": 8, "max_source_positions": 8,
                                         "max_target_positions": 8, "pad_token_id": 0}),
    ("MambaForCausalLM", {**SMALL, "state_size": 4}),
    ("CLIPModel", {"text_config": {**SMALL, "max_position_embeddings": 8},
                   "vision_config": TOWER, "projection_dim": 8}),
]  # fmt: skip
MORE: list[tuple[str, dict[str, Any]]] = [
    ("DistilBertForTokenClassification", {"dim": 16, "hidden_dim": 16, "n_layers": 2, "n_heads": 2,
                                          "vocab_size": 40, "num_labels": 2}),
    ("RobertaForMaskedLM", {**SMALL, "tie_word_embeddings": False}),
    ("DebertaV2Model", SMALL),
    ("OPTForCausalLM", {**SMALL, "ffn_dim": 16, "word_embed_proj_dim": 12}),
    ("BloomForCausalLM", {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40}),
    ("GPTNeoXForCausalLM", {**SMALL, "tie_word_embeddings": False}),
    ("FalconForCausalLM", SMALL),
    ("Gemma2ForCausalLM", {**SMALL, **KEPT}),
    ("DeepseekV3ForCausalLM", {**SMALL, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
                               "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                               "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
                               "qk_nope_head_dim": 4, "v_head_dim": 8}),
    ("BartForConditionalGeneration", SHORT),
    ("MarianMTModel", {**SHORT, "decoder_vocab_size": 50, "pad_token_id": 0,
                       "share_encoder_decoder_embeddings": False}),
    ("SwinForImageClassification", {"image_size": 16, "patch_size": 2, "embed_dim": 8,
                                    "depths": [1, 1], "num_heads": [1, 1], "window_size": 2}),
    ("Wav2Vec2ForCTC", {**SMALL, "conv_dim": [8], "conv_stride": [4], "conv_kernel": [4],
                        "num_feat_extract_layers": 1, "num_conv_pos_embeddings": 4,
                        "num_conv_pos_embedding_groups": 2}),
]  # fmt: skip
