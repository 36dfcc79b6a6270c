"""The models of the zoo: real architectures of six packages, as small as their classes allow, with random weights.

Nothing is downloaded. `catalogue()` maps `package/name` to a function that makes a `Case`: the model and what it is
called with. Models of transformers are made from a configuration with two layers of 32 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Case:
    """A model, what it is called with, and whether it generates text."""

    model: nn.Module
    inputs: Any
    generates: bool = False


Make = Callable[[], Case]

TEXT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
FOUR = {"intermediate_size": 128}
"""The usual ratio of feed-forward to hidden width, for classes whose hidden width has to stay."""
EXPERTS = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
PICTURE: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_channels": 3, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5,
}  # fmt: skip
STAGES = {
    "image_size": 64, "num_channels": 3, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4],
    "hidden_sizes": [16, 16, 32, 32], "window_size": 2, "num_labels": 5,
}  # fmt: skip
ACOUSTIC: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": [16, 16, 16], "conv_stride": [4, 2, 2], "conv_kernel": [8, 3, 3], "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "pad_token_id": 0, "mask_time_prob": 0.0,
}  # fmt: skip
PAIRED: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
XLM = {"vocab_size": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64, "pad_index": 0}

ENCODERS: dict[str, dict[str, Any]] = {
    "AlbertModel": {"embedding_size": 16},
    "BertForSequenceClassification": {},
    "BertForMaskedLM": {},
    "BertGenerationEncoder": {},
    "BigBirdModel": {"attention_type": "original_full"},
    "CamembertModel": {},
    "CanineModel": {"local_transformer_stride": 4, "downsampling_rate": 4, "num_hash_buckets": 64},
    "ConvBertForSequenceClassification": {"embedding_size": 32, "conv_kernel_size": 3, "head_ratio": 2, **FOUR},
    "Data2VecTextModel": {},
    "DebertaModel": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DebertaV2ForSequenceClassification": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DistilBertForSequenceClassification": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "ElectraForSequenceClassification": {"embedding_size": 16},
    "ErnieModel": {},
    "EsmModel": {"position_embedding_type": "rotary", "mask_token_id": 3},
    "FNetModel": {},
    "IBertModel": {},
    "LayoutLMModel": {},
    "LongformerForSequenceClassification": {"attention_window": 4, **FOUR},
    "MarkupLMModel": {},
    "MegatronBertModel": {},
    "MobileBertModel": {"intra_bottleneck_size": 16, "embedding_size": 16, "true_hidden_size": 16},
    "ModernBertForSequenceClassification": {"local_attention": 8, "reference_compile": False},
    "MPNetModel": {},
    "MraForSequenceClassification": {"block_per_row": 1, **FOUR},
    "NystromformerForSequenceClassification": {"num_landmarks": 4, "segment_means_seq_len": 8},
    "RemBertModel": {"input_embedding_size": 16, "output_embedding_size": 16},
    "RoCBertModel": {"pronunciation_vocab_size": 32, "shape_vocab_size": 32},
    "RoFormerModel": {"embedding_size": 32},
    "RobertaForTokenClassification": {},
    "RobertaPreLayerNormModel": {},
    "SplinterModel": {},
    "SqueezeBertForSequenceClassification": {"embedding_size": 32, **FOUR},
    "XLMRobertaModel": {},
    "XLMRobertaXLModel": {},
    "XmodModel": {"languages": ["en"], "default_language": "en"},
    "YosoModel": {"use_expectation": True},
    "FlaubertModel": XLM,
    "XLMModel": XLM,
}
DECODERS: dict[str, dict[str, Any]] = {
    "ApertusForCausalLM": GROUPED,
    "ArceeForCausalLM": GROUPED,
    "BartForCausalLM": PAIRED,
    "BioGptForCausalLM": {},
    "BitNetForCausalLM": GROUPED,
    "BloomForCausalLM": {"n_layer": 2, "n_head": 4},
    "CodeGenForCausalLM": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "CohereForCausalLM": GROUPED,
    "Cohere2ForCausalLM": {**GROUPED, "sliding_window": 8},
    "DiffLlamaForCausalLM": GROUPED,
    "Ernie4_5ForCausalLM": {**GROUPED, "head_dim": 8},
    "Exaone4ForCausalLM": {**GROUPED, "sliding_window": 8},
    "FalconForCausalLM": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "GemmaForCausalLM": {**GROUPED, "head_dim": 8},
    "Gemma2ForCausalLM": {**GROUPED, "head_dim": 8, "sliding_window": 8},
    "Gemma3ForCausalLM": {**GROUPED, "head_dim": 8, "sliding_window": 8},
    "GlmForCausalLM": {**GROUPED, "head_dim": 8},
    "Glm4ForCausalLM": {**GROUPED, "head_dim": 8},
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTBigCodeForCausalLM": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTNeoForCausalLM": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "GPTNeoXForCausalLM": {},
    "GPTJForCausalLM": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "GraniteForCausalLM": GROUPED,
    "HeliumForCausalLM": {**GROUPED, "head_dim": 8},
    "LlamaForCausalLM": GROUPED,
    "MistralForCausalLM": GROUPED,
    "MptForCausalLM": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "NemotronForCausalLM": GROUPED,
    "OlmoForCausalLM": GROUPED,
    "Olmo2ForCausalLM": GROUPED,
    "OpenAIGPTLMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "OPTForCausalLM": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "PersimmonForCausalLM": {},
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": GROUPED,
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 8},
    "SeedOssForCausalLM": {**GROUPED, "head_dim": 8},
    "SmolLM3ForCausalLM": GROUPED,
    "StableLmForCausalLM": GROUPED,
    "Starcoder2ForCausalLM": GROUPED,
    "XGLMForCausalLM": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    "CTRLLMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 64},
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "DeepseekV2ForCausalLM": {
        **EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1,
    },
    "DeepseekV3ForCausalLM": {
        **EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1,
    },
    "Dots1ForCausalLM": {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "Ernie4_5_MoeForCausalLM": {**EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0},
    "FlexOlmoForCausalLM": {**EXPERTS, "num_experts": 4},
    "Glm4MoeForCausalLM": {**EXPERTS, "n_routed_experts": 4, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "GptOssForCausalLM": {**EXPERTS, "num_local_experts": 4, "head_dim": 8, "sliding_window": 8},
    "GraniteMoeForCausalLM": {**EXPERTS, "num_local_experts": 4},
    "JetMoeForCausalLM": {"num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "MixtralForCausalLM": {**EXPERTS, "num_local_experts": 4},
    "OlmoeForCausalLM": {**EXPERTS, "num_experts": 4},
    "PhimoeForCausalLM": {**EXPERTS, "num_local_experts": 4},
    "Qwen2MoeForCausalLM": {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
    "Qwen3MoeForCausalLM": {**EXPERTS, "num_experts": 4, "head_dim": 8},
}  # fmt: skip
STATE_SPACE: dict[str, dict[str, Any]] = {
    "MambaForCausalLM": {"state_size": 8, "time_step_rank": 4},
    "Mamba2ForCausalLM": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "FalconMambaForCausalLM": {"state_size": 8, "time_step_rank": 4},
    "RwkvForCausalLM": {"attention_hidden_size": 32, "context_length": 64},
    "RecurrentGemmaForCausalLM": {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16,
                                  "block_types": ["recurrent", "attention"]},
    "JambaForCausalLM": {"num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8,
                         "mamba_dt_rank": 4, "num_experts": 2, "expert_layer_period": 2, "use_mamba_kernels": False},
    "BambaForCausalLM": {"num_key_value_heads": 2, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8,
                         "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4},
    "Zamba2ForCausalLM": {"num_key_value_heads": 4, "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 8,
                          "num_mem_blocks": 1, "chunk_size": 4, "layers_block_type": ["mamba", "hybrid"],
                          "attention_hidden_size": 64, "attention_head_dim": 16},
    "Lfm2ForCausalLM": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "FalconH1ForCausalLM": {"num_key_value_heads": 2, **FOUR, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4,
                            "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4},
}  # fmt: skip
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "BartForConditionalGeneration": PAIRED,
    "BigBirdPegasusForConditionalGeneration": {**PAIRED, "attention_type": "original_full"},
    "BlenderbotForConditionalGeneration": PAIRED,
    "BlenderbotSmallForConditionalGeneration": PAIRED,
    "FSMTForConditionalGeneration": {**PAIRED, "src_vocab_size": 99, "tgt_vocab_size": 99, "langs": ["en", "de"]},
    "LEDForConditionalGeneration": {**PAIRED, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "attention_window": 4,
                                    "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "LongT5ForConditionalGeneration": {**T5, "local_radius": 3},
    "M2M100ForConditionalGeneration": PAIRED,
    "MarianMTModel": PAIRED,
    "MBartForConditionalGeneration": PAIRED,
    "MT5ForConditionalGeneration": T5,
    "MvpForConditionalGeneration": PAIRED,
    "NllbMoeForConditionalGeneration": {**PAIRED, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "PegasusForConditionalGeneration": PAIRED,
    "PegasusXForConditionalGeneration": {**PAIRED, "block_size": 4, "num_global_tokens": 4},
    "PLBartForConditionalGeneration": PAIRED,
    "ProphetNetForConditionalGeneration": {
        "vocab_size": 99, "hidden_size": 32, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "ngram": 2,
        "decoder_start_token_id": 1,
    },
    "SwitchTransformersForConditionalGeneration": {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1,
                                                   "num_sparse_decoder_layers": 1},
    "T5ForConditionalGeneration": T5,
    "UMT5ForConditionalGeneration": T5,
}  # fmt: skip
PICTURES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": PICTURE,
    "DeiTForImageClassification": PICTURE,
    "BeitForImageClassification": PICTURE,
    "BeitModel": {**PICTURE, "use_relative_position_bias": True},
    "Data2VecVisionForImageClassification": PICTURE,
    "Dinov2ForImageClassification": PICTURE,
    "Dinov2WithRegistersModel": PICTURE,
    "DINOv3ViTModel": PICTURE,
    "IJepaForImageClassification": PICTURE,
    "ViTMAEModel": {**PICTURE, "mask_ratio": 0.0},
    "ViTMSNForImageClassification": PICTURE,
    "SiglipVisionModel": PICTURE,
    "CLIPVisionModel": PICTURE,
    "Aimv2VisionModel": PICTURE,
    "YolosForObjectDetection": {**PICTURE, "image_size": [32, 32], "num_detection_tokens": 5},
    "DPTForSemanticSegmentation": {
        **PICTURE, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16, "reassemble_factors": [4, 2, 1, 0.5],
    },
    "HieraForImageClassification": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1], "num_labels": 5,
                                    "num_heads": [1, 2, 4], "patch_stride": [4, 4], "patch_size": [7, 7],
                                    "patch_padding": [3, 3], "masked_unit_size": [8, 8], "num_query_pool": 2,
                                    "query_stride": [2, 2]},
    "SwinForImageClassification": STAGES,
    "Swinv2ForImageClassification": STAGES,
    "Swin2SRForImageSuperResolution": {"image_size": 16, "patch_size": 1, "embed_dim": 16, "depths": [1, 1],
                                       "num_heads": [2, 2], "window_size": 4, "upscale": 2},
    "ConvNextForImageClassification": STAGES,
    "ConvNextV2ForImageClassification": STAGES,
    "DINOv3ConvNextModel": STAGES,
    "ResNetForImageClassification": {**STAGES, "embedding_size": 16},
    "RegNetForImageClassification": {**STAGES, "embedding_size": 16, "groups_width": 8},
    "BitForImageClassification": {**STAGES, "embedding_size": 16, "num_groups": 4, "hidden_sizes": [16, 32, 32, 64]},
    "SegformerForSemanticSegmentation": {**STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16},
    "GLPNForDepthEstimation": {**STAGES, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16},
    "PvtForImageClassification": {**STAGES, "num_attention_heads": [1, 2, 2, 2]},
    "PvtV2ForImageClassification": {**STAGES, "num_attention_heads": [1, 2, 2, 2]},
    "PoolFormerForImageClassification": STAGES,
    "FocalNetForImageClassification": STAGES,
    "CvtForImageClassification": {"num_labels": 5},
    "LevitForImageClassification": {"image_size": 64, "hidden_sizes": [16, 32, 32], "depths": [1, 1, 1],
                                    "num_attention_heads": [2, 2, 2], "key_dim": [8, 8, 8], "num_labels": 5},
    "MobileNetV1ForImageClassification": {"image_size": 32, "depth_multiplier": 0.25, "num_labels": 5},
    "MobileNetV2ForImageClassification": {"image_size": 32, "depth_multiplier": 0.35, "num_labels": 5},
    "MobileViTForImageClassification": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": 4,
                                        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_labels": 5},
    "MobileViTV2ForImageClassification": {"image_size": 64, "width_multiplier": 0.25, "num_labels": 5},
    "EfficientNetForImageClassification": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25,
                                           "hidden_dim": 320, "num_labels": 5},
    "SwiftFormerForImageClassification": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 32, 32],
                                          "num_labels": 5},
    "TextNetForImageClassification": {"image_size": 64, "stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 32],
                                       "num_labels": 5},
    "VitDetModel": {**PICTURE, "window_size": 2, "window_block_indices": [0]},
    "SuperPointForKeypointDetection": {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
                                       "descriptor_decoder_dim": 16, "keypoint_decoder_dim": 65},
    "RTDetrResNetBackbone": {**STAGES, "embedding_size": 16},
}  # fmt: skip
VIDEOS: dict[str, dict[str, Any]] = {
    "VideoMAEForVideoClassification": {**PICTURE, "num_frames": 4, "tubelet_size": 2},
    "VivitForVideoClassification": {**PICTURE, "num_frames": 4, "tubelet_size": [2, 8, 8]},
    "TimesformerForVideoClassification": {**PICTURE, "num_frames": 4},
}
WAVES: dict[str, dict[str, Any]] = {
    "Wav2Vec2ForCTC": ACOUSTIC,
    "HubertForCTC": ACOUSTIC,
    "WavLMForCTC": {**ACOUSTIC, **FOUR, "num_buckets": 16, "max_bucket_distance": 32},
    "Data2VecAudioForCTC": {**ACOUSTIC, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2},
    "SEWForCTC": {**ACOUSTIC, "squeeze_factor": 2},
    "SEWDForCTC": {**ACOUSTIC, "squeeze_factor": 2, "max_position_embeddings": 64, "position_buckets": 16},
    "UniSpeechForCTC": {**ACOUSTIC, "num_ctc_classes": 10},
    "UniSpeechSatForCTC": {**ACOUSTIC, "num_clusters": 10},
    "Wav2Vec2ConformerForCTC": {**ACOUSTIC, "position_embeddings_type": "relative"},
    "EncodecModel": {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16,
                     "upsampling_ratios": [4, 2], "num_lstm_layers": 1, "target_bandwidths": [24.0]},
    "DacModel": {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "downsampling_ratios": [2, 4],
                 "upsampling_ratios": [4, 2], "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4},
}  # fmt: skip


def _tokens(length: int = 8, most: int = 99, seed: int = 0) -> Tensor:
    return torch.randint(3, most, (2, length), generator=torch.Generator().manual_seed(seed))


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _transformer(name: str, **changes: Any) -> nn.Module:
    """A model of transformers by its class, from a configuration with these values."""
    import transformers

    kind = getattr(transformers, name)
    return kind(kind.config_class(**changes))


def _text(name: str, changes: Mapping[str, Any]) -> Case:
    return Case(_transformer(name, **{**TEXT, **changes}), {"input_ids": _tokens()})


def _decoder(name: str, changes: Mapping[str, Any]) -> Case:
    cache = {} if name == "OpenAIGPTLMHeadModel" else {"use_cache": False}
    model = _transformer(name, **{**TEXT, **changes})
    return Case(model, {"input_ids": _tokens(), **cache}, generates=bool(cache))


def _encoder_decoder(name: str, changes: Mapping[str, Any]) -> Case:
    inputs = {"input_ids": _tokens(), "decoder_input_ids": _tokens(6, seed=1), "use_cache": False}
    return Case(_transformer(name, **changes), inputs, generates=True)


def _picture(name: str, changes: Mapping[str, Any]) -> Case:
    side = changes.get("image_size", 64)
    side = side if isinstance(side, int) else side[0]
    return Case(_transformer(name, **changes), {"pixel_values": _noise(2, 3, side, side)})


def _video(name: str, changes: Mapping[str, Any]) -> Case:
    return Case(_transformer(name, **changes), {"pixel_values": _noise(2, 4, 3, 32, 32)})


def _wave(name: str, changes: Mapping[str, Any]) -> Case:
    shape = (2, 1, 512) if name in ("EncodecModel", "DacModel") else (2, 1600)
    return Case(_transformer(name, **changes), {"input_values": _noise(*shape)})


def _clip_like(name: str, **more: Any) -> Case:
    model = _transformer(
        name, text_config={**TEXT, **more.pop("text", {})}, vision_config=PICTURE, projection_dim=16, **more
    )
    return Case(model, {"input_ids": _tokens(), "pixel_values": _noise(2, 3, 32, 32)})


def _language_and_picture(name: str, text: str, vision: str, tokens: int, **more: Any) -> Case:
    """A language model with a vision tower; the text has a place for every token of the picture."""
    text_config = {**TEXT, **GROUPED, "head_dim": 8, "model_type": text}
    vision_config = {**PICTURE, "model_type": vision, "projection_dim": 32}
    model = _transformer(
        name, text_config=text_config, vision_config=vision_config, image_token_index=98, image_token_id=98, **more
    )  # both names of the token are in use
    ids = _tokens(8 + tokens, most=97)
    ids[:, 2 : 2 + tokens] = 98
    inputs = {"input_ids": ids, "pixel_values": _noise(2, 3, 32, 32), "use_cache": False}
    return Case(model, inputs)


def _whisper() -> Case:
    model = _transformer(
        "WhisperForConditionalGeneration",
        **PAIRED, num_mel_bins=16, max_source_positions=16, max_target_positions=16, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    inputs = {"input_features": _noise(2, 16, 32), "decoder_input_ids": _tokens(6), "use_cache": False}
    return Case(model, inputs)


def _speech_to_text() -> Case:
    model = _transformer(
        "Speech2TextForConditionalGeneration",
        **PAIRED, input_feat_per_channel=16, max_source_positions=64, max_target_positions=16, conv_channels=16,
    )  # fmt: skip
    inputs = {"input_features": _noise(2, 32, 16), "decoder_input_ids": _tokens(6), "use_cache": False}
    return Case(model, inputs)


def _spectrogram() -> Case:
    changes = {**PICTURE, "num_mel_bins": 16, "max_length": 32, "patch_size": 8, "frequency_stride": 8,
               "time_stride": 8}  # fmt: skip
    return Case(_transformer("ASTForAudioClassification", **changes), {"input_values": _noise(2, 32, 16)})


def _bert_of_speech() -> Case:
    changes = {**ACOUSTIC, "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3}
    return Case(_transformer("Wav2Vec2BertForCTC", **changes), {"input_features": _noise(2, 20, 16)})


def _moonshine() -> Case:
    model = _transformer(
        "MoonshineForConditionalGeneration",
        **{**TEXT, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4,
           "decoder_num_attention_heads": 4, "decoder_start_token_id": 1},
    )  # fmt: skip
    return Case(model, {"input_values": _noise(2, 3000), "decoder_input_ids": _tokens(6), "use_cache": False})


def _funnel() -> Case:
    model = _transformer(
        "FunnelForSequenceClassification",
        vocab_size=99,
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=128,
        block_sizes=[1, 1],
    )
    return Case(model, {"input_ids": _tokens()})


def _xlnet() -> Case:
    model = _transformer("XLNetLMHeadModel", vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=64, mem_len=None)
    return Case(model, {"input_ids": _tokens(), "use_mems": False})


def _vits() -> Case:
    model = _transformer(
        "VitsModel", **{**TEXT, "vocab_size": 38, "ffn_dim": 64, "flow_size": 16, "spectrogram_bins": 9,
                        "upsample_initial_channel": 16, "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4],
                        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]], "num_hidden_layers": 2,
                        "use_stochastic_duration_prediction": False, "duration_predictor_filter_channels": 16,
                        "posterior_encoder_num_wavenet_layers": 1, "prior_encoder_num_flows": 2,
                        "prior_encoder_num_wavenet_layers": 1, "noise_scale": 0.0, "window_size": 4},
    )  # fmt: skip
    return Case(model, {"input_ids": _tokens(most=38)[:1]})


def _vilt() -> Case:
    model = _transformer("ViltModel", **{**TEXT, **PICTURE})
    return Case(model, {"input_ids": _tokens(), "pixel_values": _noise(2, 3, 32, 32)})


def _layout() -> Case:
    model = _transformer(
        "LayoutLMv3Model",
        **{**TEXT, "input_size": 32, "patch_size": 8, "coordinate_size": 6, "shape_size": 4,
           "max_2d_position_embeddings": 32},
    )  # fmt: skip
    return Case(
        model,
        {"input_ids": _tokens(), "bbox": torch.ones(2, 8, 4, dtype=torch.long), "pixel_values": _noise(2, 3, 32, 32)},
    )


def _lxmert() -> Case:
    model = _transformer("LxmertModel", **{**TEXT, "l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 16})
    return Case(
        model, {"input_ids": _tokens(), "visual_feats": _noise(2, 5, 16), "visual_pos": _noise(2, 5, 4).sigmoid()}
    )


def _visual_bert() -> Case:
    model = _transformer("VisualBertModel", **{**TEXT, "visual_embedding_dim": 16})
    return Case(model, {"input_ids": _tokens(), "visual_embeds": _noise(2, 5, 16)})


def _blip() -> Case:
    model = _transformer("BlipForConditionalGeneration", text_config={**TEXT, "encoder_hidden_size": 32},
                         vision_config=PICTURE, projection_dim=16)  # fmt: skip
    return Case(model, {"input_ids": _tokens(), "pixel_values": _noise(2, 3, 32, 32)})


def _blip2() -> Case:
    model = _transformer(
        "Blip2ForConditionalGeneration",
        vision_config=PICTURE, qformer_config={**TEXT, "encoder_hidden_size": 32}, num_query_tokens=4,
        text_config={**TEXT, "model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32}, image_token_index=98,
    )  # fmt: skip
    ids = _tokens(12, most=97)
    ids[:, :4] = 98
    return Case(model, {"input_ids": ids, "pixel_values": _noise(2, 3, 32, 32)})


def _git() -> Case:
    model = _transformer("GitForCausalLM", **TEXT, vision_config=PICTURE)
    inputs = {"input_ids": _tokens(), "pixel_values": _noise(2, 3, 32, 32), "use_cache": False}
    return Case(model, inputs)


def _owl() -> Case:
    model = _transformer("OwlViTModel", text_config=TEXT, vision_config=PICTURE, projection_dim=16)
    return Case(model, {"input_ids": _tokens(), "pixel_values": _noise(2, 3, 32, 32)})


def _perceiver() -> Case:
    model = _transformer(
        "PerceiverForMaskedLM",
        **{**TEXT, "num_latents": 8, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 2,
           "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    )  # fmt: skip
    return Case(model, {"inputs": _tokens(64)})


def _detr(name: str) -> Case:
    from transformers import ResNetConfig

    backbone = ResNetConfig(**{**STAGES, "embedding_size": 16, "out_features": ["stage1", "stage2", "stage3"]})
    model = _transformer(
        name,
        **{**PAIRED, "backbone_config": backbone, "use_timm_backbone": False, "use_pretrained_backbone": False,
           "backbone": None, "num_queries": 5, "num_feature_levels": 3, "num_labels": 5},
    )  # fmt: skip
    return Case(model, {"pixel_values": _noise(2, 3, 64, 64)})


def _maskformer() -> Case:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, SwinConfig

    backbone = SwinConfig(**{**STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]})
    decoder = DetrConfig(**PAIRED, num_queries=5, backbone_config=backbone, use_timm_backbone=False)
    config = MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32,
                              mask_feature_size=32, num_labels=5)  # fmt: skip
    return Case(MaskFormerForInstanceSegmentation(config), {"pixel_values": _noise(2, 3, 64, 64)})


def _mask2former() -> Case:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(**{**STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]})
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64,
        encoder_layers=1, decoder_layers=2, num_attention_heads=4, dim_feedforward=64, num_queries=5, num_labels=5,
    )  # fmt: skip
    return Case(Mask2FormerForUniversalSegmentation(config), {"pixel_values": _noise(2, 3, 64, 64)})


def _upernet() -> Case:
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ConvNextConfig(**{**STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]})
    config = UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_in_channels=32, auxiliary_channels=16,
                           pool_scales=[1, 2], num_labels=5)  # fmt: skip
    return Case(UperNetForSemanticSegmentation(config), {"pixel_values": _noise(2, 3, 64, 64)})


def _depth_anything() -> Case:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(**{**PICTURE, "out_features": ["stage1", "stage2"], "reshape_hidden_states": False})
    config = DepthAnythingConfig(backbone_config=backbone, patch_size=8, reassemble_hidden_size=32,
                                 reassemble_factors=[2, 1], neck_hidden_sizes=[16, 16], fusion_hidden_size=16,
                                 head_hidden_size=8)  # fmt: skip
    return Case(DepthAnythingForDepthEstimation(config), {"pixel_values": _noise(2, 3, 32, 32)})


def _time_series(name: str) -> Case:
    shared = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 32,
              "num_hidden_layers": 2, "num_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
              "prediction_length": 8}  # fmt: skip
    return Case(_transformer(name, **shared), {"past_values": _noise(2, 32, 3)})


def _decision() -> Case:
    model = _transformer("DecisionTransformerModel", state_dim=4, act_dim=2, hidden_size=32, n_layer=2, n_head=4,
                         n_positions=64, max_ep_len=20)  # fmt: skip
    return Case(
        model,
        {
            "states": _noise(2, 5, 4), "actions": _noise(2, 5, 2), "rewards": _noise(2, 5, 1),
            "returns_to_go": _noise(2, 5, 1), "timesteps": torch.arange(5).repeat(2, 1),
            "attention_mask": torch.ones(2, 5),
        },
    )  # fmt: skip


def _transformers() -> Iterator[tuple[str, Make]]:
    tables = (
        (ENCODERS, _text), (DECODERS, _decoder), (MIXTURES, _decoder), (STATE_SPACE, _decoder),
        (ENCODER_DECODERS, _encoder_decoder), (PICTURES, _picture), (VIDEOS, _video), (WAVES, _wave),
    )  # fmt: skip
    for table, make in tables:
        for name, changes in table.items():
            yield name, partial(make, name, changes)
    more: dict[str, Make] = {
        "WhisperForConditionalGeneration": _whisper,
        "Speech2TextForConditionalGeneration": _speech_to_text,
        "ASTForAudioClassification": _spectrogram,
        "Wav2Vec2BertForCTC": _bert_of_speech,
        "MoonshineForConditionalGeneration": _moonshine,
        "VitsModel": _vits,
        "CLIPModel": partial(_clip_like, "CLIPModel"),
        "SiglipModel": partial(_clip_like, "SiglipModel"),
        "ChineseCLIPModel": partial(_clip_like, "ChineseCLIPModel"),
        "AltCLIPModel": partial(_clip_like, "AltCLIPModel", text={"project_dim": 16}),
        "BlipForConditionalGeneration": _blip,
        "Blip2ForConditionalGeneration": _blip2,
        "GitForCausalLM": _git,
        "OwlViTModel": _owl,
        "LlavaForConditionalGeneration": partial(
            _language_and_picture, "LlavaForConditionalGeneration", "llama", "clip_vision_model", 16
        ),
        "PaliGemmaForConditionalGeneration": partial(
            _language_and_picture,
            "PaliGemmaForConditionalGeneration",
            "gemma",
            "siglip_vision_model",
            16,
            projection_dim=32,
        ),
        "ViltModel": _vilt,
        "LayoutLMv3Model": _layout,
        "LxmertModel": _lxmert,
        "VisualBertModel": _visual_bert,
        "PerceiverForMaskedLM": _perceiver,
        "DetrForObjectDetection": partial(_detr, "DetrForObjectDetection"),
        "ConditionalDetrForObjectDetection": partial(_detr, "ConditionalDetrForObjectDetection"),
        "DeformableDetrForObjectDetection": partial(_detr, "DeformableDetrForObjectDetection"),
        "MaskFormerForInstanceSegmentation": _maskformer,
        "Mask2FormerForUniversalSegmentation": _mask2former,
        "UperNetForSemanticSegmentation": _upernet,
        "FunnelForSequenceClassification": _funnel,
        "XLNetLMHeadModel": _xlnet,
        "DepthAnythingForDepthEstimation": _depth_anything,
        "PatchTSTForPrediction": partial(_time_series, "PatchTSTForPrediction"),
        "PatchTSMixerForPrediction": partial(_time_series, "PatchTSMixerForPrediction"),
        "DecisionTransformerModel": _decision,
    }
    yield from more.items()


CLASSIFIERS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16",
)  # fmt: skip


def _torchvision(name: str) -> Case:
    import torchvision

    sizes = {"alexnet": 64, "inception_v3": 96, "maxvit_t": 224, "vit_b_16": 224}
    more: dict[str, Any] = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}.get(name, {})
    side = sizes.get(name, 64)
    return Case(torchvision.models.get_model(name, weights=None, num_classes=10, **more), _noise(2, 3, side, side))


def _segmentation(name: str) -> Case:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    return Case(model, _noise(2, 3, 64, 64))


def _detection(name: str) -> Case:
    import torchvision

    sizes: dict[str, Any] = {"ssd300_vgg16": {}, "ssdlite320_mobilenet_v3_large": {}}
    more = sizes.get(name, {"min_size": 64, "max_size": 64})
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **more)
    return Case(model, ([*_noise(2, 3, 64, 64).sigmoid()],))


def _flow(name: str) -> Case:
    import torchvision

    model = torchvision.models.get_model(name, weights=None)
    return Case(model, (_noise(1, 3, 128, 128), _noise(1, 3, 128, 128, seed=1), 2))


def _clip(name: str) -> Case:
    import torchvision

    frames, side = (16, 224) if name in ("mvit_v1_b", "swin3d_t", "s3d") else (4, 32)
    if name == "swin3d_t":
        frames, side = 4, 64
    return Case(torchvision.models.get_model(name, weights=None, num_classes=5), _noise(1, 3, frames, side, side))


def _vision() -> Iterator[tuple[str, Make]]:
    yield from ((name, partial(_torchvision, name)) for name in CLASSIFIERS)
    for name in ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large", "deeplabv3_resnet50"):
        yield name, partial(_segmentation, name)
    for name in (
        "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn",
        "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ):  # fmt: skip
        yield name, partial(_detection, name)
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "mvit_v1_b"):
        yield name, partial(_clip, name)
    for name in ("raft_small", "raft_large"):
        yield name, partial(_flow, name)


TIMM = (
    "beit_base_patch16_224", "cait_xxs24_224", "coat_lite_tiny", "convmixer_768_32", "cspresnet50", "davit_tiny",
    "deit_tiny_patch16_224", "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientvit_b0", "fastvit_t8",
    "ghostnet_050", "hrnet_w18_small", "inception_next_atto", "lcnet_035", "levit_128s", "mixer_s32_224",
    "mobilenetv3_small_050", "mobilevit_xxs", "nfnet_f0", "pit_ti_224", "poolformer_s12", "repvgg_a0",
    "res2net50_14w_8s", "resmlp_12_224", "rexnet_100", "sequencer2d_s", "tf_efficientnet_b0", "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224", "twins_svt_small", "vit_tiny_patch16_224", "vovnet39a", "xcit_nano_12_p16_224",
)  # fmt: skip


def _timm(name: str) -> Case:
    import timm

    model = timm.create_model(name, num_classes=10)
    fixed = model.pretrained_cfg.get("fixed_input_size")
    side = model.pretrained_cfg["input_size"][-1] if fixed else 64
    return Case(model, _noise(2, 3, side, side))


def _ultralytics(name: str) -> Case:
    from ultralytics import YOLO

    return Case(YOLO(f"{name}.yaml", verbose=False).model, _noise(2, 3, 64, 64))


STEPS, TIMES = torch.tensor([1, 5]), torch.tensor([0.1, 0.5])
IMAGE, LATENT, CONTEXT = (2, 3, 16, 16), (2, 4, 8, 8), (2, 6, 16)
STEP_OF_LATENT = {"hidden_states": LATENT, "timestep": STEPS}
STEP_IN_CONTEXT = {**STEP_OF_LATENT, "encoder_hidden_states": CONTEXT}
BLOCKS: dict[str, Any] = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
}  # fmt: skip
CODER = {
    **BLOCKS, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
}  # fmt: skip
HEADS = {"attention_head_dim": 8, "num_attention_heads": 4}
TOKENS = {"sample_size": 8, "in_channels": 4, "num_layers": 2, **HEADS}
DIFFUSION: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet2DModel": (
        {**BLOCKS, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8},
        {"sample": IMAGE, "timestep": STEPS},
    ),
    "UNet2DConditionModel": (
        {**BLOCKS, "sample_size": 8, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4},
        {"sample": LATENT, "timestep": STEPS, "encoder_hidden_states": CONTEXT},
    ),
    "UNet1DModel": (
        {"sample_size": 32, "block_out_channels": (32, 32), "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
         "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"), "extra_in_channels": 64, "in_channels": 2,
         "out_channels": 2},
        {"sample": (2, 2, 32), "timestep": STEPS},
    ),
    "AutoencoderKL": (CODER, {"sample": IMAGE}),
    "AutoencoderTiny": (
        {"latent_channels": 4, "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
         "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
        {"sample": IMAGE},
    ),
    "AutoencoderDC": (
        {"latent_channels": 4, "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
         "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (16, 32),
         "decoder_block_out_channels": (16, 32), "attention_head_dim": 8, "encoder_layers_per_block": (1, 1),
         "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), (3,)),
         "decoder_qkv_multiscales": ((), (3,)), "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"},
        {"sample": IMAGE},
    ),
    "VQModel": ({**CODER, "num_vq_embeddings": 16}, {"sample": IMAGE}),
    "DiTTransformer2DModel": (
        {**TOKENS, "patch_size": 2, "num_embeds_ada_norm": 10},
        {**STEP_OF_LATENT, "class_labels": torch.tensor([0, 3])},
    ),
    "Transformer2DModel": (
        {**TOKENS, "cross_attention_dim": 16, "norm_num_groups": 4},
        {"hidden_states": LATENT, "encoder_hidden_states": CONTEXT},
    ),
    "PixArtTransformer2DModel": (
        {**TOKENS, "patch_size": 2, "cross_attention_dim": 32, "caption_channels": 16, "out_channels": 8,
         "use_additional_conditions": False},
        {**STEP_IN_CONTEXT, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "SD3Transformer2DModel": (
        {**TOKENS, "patch_size": 2, "joint_attention_dim": 16, "caption_projection_dim": 32,
         "pooled_projection_dim": 16, "out_channels": 4},
        {**STEP_IN_CONTEXT, "pooled_projections": (2, 16)},
    ),
    "FluxTransformer2DModel": (
        {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, **HEADS, "joint_attention_dim": 16,
         "pooled_projection_dim": 16, "axes_dims_rope": (2, 2, 4)},
        {"hidden_states": (2, 16, 4), "timestep": TIMES, "encoder_hidden_states": CONTEXT,
         "pooled_projections": (2, 16), "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)},
    ),
    "SanaTransformer2DModel": (
        {**TOKENS, "out_channels": 4, "num_cross_attention_heads": 4, "cross_attention_head_dim": 8,
         "cross_attention_dim": 32, "caption_channels": 16},
        STEP_IN_CONTEXT,
    ),
    "AuraFlowTransformer2DModel": (
        {"sample_size": 8, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1, **HEADS,
         "joint_attention_dim": 16, "caption_projection_dim": 32, "out_channels": 4, "pos_embed_max_size": 64},
        {**STEP_IN_CONTEXT, "timestep": TIMES},
    ),
}  # fmt: skip
"""Class of diffusers -> what it is made with, and what it is called with: a shape stands for noise of this shape."""


def _diffusion(name: str) -> Case:
    import diffusers

    settings, inputs = DIFFUSION[name]
    given = {key: _noise(*value) if isinstance(value, tuple) else value for key, value in inputs.items()}
    return Case(getattr(diffusers, name)(**settings), {**given, "return_dict": False})


def _masks(name: str) -> Case:
    import segmentation_models_pytorch

    encoder = "mit_b0" if name == "Segformer" else "resnet18"
    kind = getattr(segmentation_models_pytorch, name)
    side = 128 if name == "PAN" else 64
    return Case(kind(encoder, encoder_weights=None, classes=3), _noise(2, 3, side, side))


def catalogue() -> dict[str, Make]:
    """`package/name` to a function that makes the model and its inputs."""
    yolo = ("yolov8n", "yolov8n-seg", "yolov8n-pose", "yolov8n-cls", "yolo11n", "yolo11n-seg", "yolo11n-obb",
            "yolov5n", "yolov9t", "yolov10n", "yolo12n")  # fmt: skip
    masks = ("Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "PAN",
             "UPerNet", "Segformer")  # fmt: skip
    packages: dict[str, Iterator[tuple[str, Make]]] = {
        "transformers": _transformers(),
        "torchvision": _vision(),
        "timm": ((name, partial(_timm, name)) for name in TIMM),
        "ultralytics": ((name, partial(_ultralytics, name)) for name in yolo),
        "diffusers": ((name, partial(_diffusion, name)) for name in DIFFUSION),
        "segmentation-models-pytorch": ((name, partial(_masks, name)) for name in masks),
    }
    return {f"{package}/{name}": make for package, made in packages.items() for name, make in made}
