"""Every code that a reason of an engine's verdict can carry, in the manner of those of findings.

None of them rejects a registration: a node whose engine refuses an adapter, or would serve it wrongly, leaves it out.
"""

from __future__ import annotations

from lora_registry.code import info, warning

ENGINE_ADAPTER_INVALID = warning(
    "ENGINE_ADAPTER_INVALID",
    "The adapter is not valid, so it is given to no engine, whatever that engine would do with it.",
    "Mend what the findings name.",
)
ENGINE_RANK_TOO_LARGE = warning(
    "ENGINE_RANK_TOO_LARGE",
    "The adapter's rank is larger than the one that the node was started for.",
    "Start the node with a larger --max-lora-rank, or train with a smaller rank.",
)
ENGINE_MODULES_NOT_SERVED = warning(
    "ENGINE_MODULES_NOT_SERVED",
    "The adapter changes modules that the node was not started for.",
    "Start the node for these modules, or train on those that it serves.",
)
ENGINE_DORA = warning(
    "ENGINE_DORA",
    "The engine does not apply weight-decomposed adapters (DoRA).",
    "Train a plain LoRA, or merge the adapter into the base model.",
)
ENGINE_BIAS = warning(
    "ENGINE_BIAS",
    "The engine does not apply biases that were trained with an adapter.",
    'Train with bias="none" and without lora_bias.',
)
ENGINE_SAVED_MODULES = warning(
    "ENGINE_SAVED_MODULES",
    "The engine does not replace whole modules of the base model (modules_to_save).",
    "Train without modules_to_save, or target these modules with a LoRA.",
)
ENGINE_INITIALISATION = warning(
    "ENGINE_INITIALISATION",
    "The adapter was initialised in a way that also changed the base model, or that the engine does not know.",
    "Convert the adapter when saving: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
)
ENGINE_RSLORA = warning(
    "ENGINE_RSLORA",
    "The engine scales by alpha/rank where a rank-stabilised adapter needs alpha/√rank.",
    "Serve it on an engine that knows rsLoRA, or save it with lora_alpha·√rank as lora_alpha and use_rslora=false.",
)
ENGINE_RANKS_DIFFER = warning(
    "ENGINE_RANKS_DIFFER",
    "The engine knows one rank for an adapter, and this one has several (rank_pattern).",
    "Train with one rank for all modules.",
)
ENGINE_ALPHAS_DIFFER = warning(
    "ENGINE_ALPHAS_DIFFER",
    "The engine knows one alpha for an adapter, and this one has several (alpha_pattern).",
    "Train with one lora_alpha for all modules, or scale lora_B by the difference and drop alpha_pattern.",
)
ENGINE_RANK_PADDED = warning(
    "ENGINE_RANK_PADDED",
    "The engine pads this rank and then divides by the padded one, so most modules get too small a scale.",
    "Train with rank 8 times the tensor-parallel size, or with a multiple of 16 above that.",
)
ENGINE_TARGET_PARAMETERS = warning(
    "ENGINE_TARGET_PARAMETERS",
    "The adapter changes parameters that are no modules, such as fused experts (target_parameters).",
    "Train on modules, or check that the node's engine serves this model's fused experts and says so in its profile.",
)
ENGINE_LAYERS_REPLICATED = warning(
    "ENGINE_LAYERS_REPLICATED",
    "The adapter stacks layers of the base model to a deeper one, which engines do not build.",
    "Train on the base model's own layers.",
)
ENGINE_ACTIVATED_LORA = warning(
    "ENGINE_ACTIVATED_LORA",
    "The adapter works only after its invocation tokens (activated LoRA), and the engine does not wait for them.",
    "Train a plain LoRA.",
)
ENGINE_TRAINED_TOKENS = warning(
    "ENGINE_TRAINED_TOKENS",
    "The engine does not apply rows of an embedding that were trained one by one.",
    "Train without trainable_token_indices.",
)
ENGINE_EMBEDDING_LORA = warning(
    "ENGINE_EMBEDDING_LORA",
    "The engine leaves out a LoRA on the embedding or on the output head.",
    "Train on the projections of the layers only.",
)
ENGINE_VOCABULARY_TOO_LARGE = warning(
    "ENGINE_VOCABULARY_TOO_LARGE",
    "The engine's kernel for a LoRA on the output head does not reach over a vocabulary of this size.",
    "Train without a LoRA on lm_head.",
)
ENGINE_LAYERS_PARTIAL = warning(
    "ENGINE_LAYERS_PARTIAL",
    "The engine drops a kind of module altogether when one layer has no LoRA for it.",
    "Train on all layers.",
)
ENGINE_ATTENTION_PARTIAL = warning(
    "ENGINE_ATTENTION_PARTIAL",
    "The engine stacks q_proj, k_proj and v_proj and needs q_proj and v_proj in every layer that has one of them.",
    "Target q_proj, k_proj and v_proj together.",
)
ENGINE_MLP_PARTIAL = warning(
    "ENGINE_MLP_PARTIAL",
    "The engine stacks gate_proj and up_proj and needs gate_proj wherever there is up_proj.",
    "Target gate_proj and up_proj together.",
)
ENGINE_TARGETS_PATTERN = warning(
    "ENGINE_TARGETS_PATTERN",
    "The engine takes target_modules as a list of names only, and this one is a regular expression.",
    "List the names of the modules in target_modules.",
)
ENGINE_OVERFLOW = warning(
    "ENGINE_OVERFLOW",
    "Numbers of the adapter are too large for the dtype that the node serves in.",
    "Serve in bfloat16.",
)
ENGINE_EMBEDDING_COPY = info(
    "ENGINE_EMBEDDING_COPY",
    "The engine leaves out the copy of the embedding that the file holds; answers differ if it was trained.",
    "Save with save_embedding_layers=False if the embedding was not changed.",
)
ENGINE_OTHER_WEIGHTS = info(
    "ENGINE_OTHER_WEIGHTS",
    "The engine would also load other weight files of the directory; the registry's artifact does not hold them.",
    "Point engines at the artifact, never at the source.",
)
ENGINE_OWN_TOKENIZER = info(
    "ENGINE_OWN_TOKENIZER",
    "The source holds tokenizer files; the artifact does not, and requests are read by the base's tokenizer.",
    "Check that the adapter was trained with the base model's tokenizer.",
)
ENGINE_VERSION_UNKNOWN = info(
    "ENGINE_VERSION_UNKNOWN",
    "The rules were made for other versions of the engine; this one may differ.",
    "Try an adapter on the node, and put what differs into the profile's own rules.",
)
