"""Codes of the base model's profile, the adapter beside it, and the numbers of the weights."""

from __future__ import annotations

from lora_registry.code import error, warning

# The base model's profile
BASE_PROFILE_INVALID = error(
    "BASE_PROFILE_INVALID",
    "The base model's configuration and weights do not make one whole model.",
    "Give the directory with config.json and all the weights' files.",
)
BASE_QUANTIZED_UNSUPPORTED = error(
    "BASE_QUANTIZED_UNSUPPORTED",
    "The base model's weights are quantised in a way from which their shapes cannot be told.",
    "Register the unquantised model; quantised variants have the same shapes.",
)
BASE_ARCHITECTURE_UNSUPPORTED = error(
    "BASE_ARCHITECTURE_UNSUPPORTED",
    "The base model's files name its parts differently from the running model.",
    "Register it where transformers is installed (extra `profiles`), or register a text-only model.",
)

# The adapter beside its base model
BASE_NAME_DIFFERS = warning(
    "BASE_NAME_DIFFERS",
    "The adapter says that it was trained on another base model; equal shapes do not prove the opposite.",
    "Register it for the model it was trained on, or record that name as one of the base model's.",
)
BASE_NAME_ABSENT = warning(
    "BASE_NAME_ABSENT",
    "The adapter does not say which base model it was trained on; only the shapes could be compared.",
    "Set base_model_name_or_path.",
)
TENSOR_PREFIX_MISSING = error(
    "TENSOR_PREFIX_MISSING",
    "The tensor's name does not begin with base_model.model., so PEFT would leave it out without a word.",
    "Save the adapter with save_pretrained of the PEFT model, not of the inner model.",
)
TENSOR_PREFIX_DOUBLED = error(
    "TENSOR_PREFIX_DOUBLED",
    "The tensor's name begins with base_model.model. twice: a PEFT model was wrapped in another one.",
    "Save the inner PEFT model.",
)
TENSOR_PREFIX_WRAPPER = error(
    "TENSOR_PREFIX_WRAPPER",
    "The tensor's name has the segment of a training wrapper, so engines would serve the base model.",
    "Unwrap the model before saving (accelerator.unwrap_model) or rename the tensors.",
)
TENSOR_ADAPTER_NAME = error(
    "TENSOR_ADAPTER_NAME",
    "The tensor's name still holds the adapter's name, which PEFT leaves out when it saves.",
    "Save with save_pretrained or get_peft_model_state_dict, or drop that segment from every name.",
)
TENSOR_UNRECOGNIZED = error(
    "TENSOR_UNRECOGNIZED",
    "The tensor has no role that is known in a LoRA adapter.",
    "Save the adapter with save_pretrained; remove tensors that do not belong to it.",
)
TENSOR_UNANNOUNCED = error(
    "TENSOR_UNANNOUNCED",
    "adapter_config.json does not announce the tensor, so it could replace weights of the base unseen.",
    "Announce it in adapter_config.json, or remove it.",
)
TENSOR_DTYPE = error(
    "TENSOR_DTYPE",
    "The tensor's dtype is not a floating-point dtype that engines read as it is.",
    "Save the tensor as float32, float16 or bfloat16.",
)
TENSOR_DIMENSIONS = error(
    "TENSOR_DIMENSIONS",
    "A LoRA matrix has exactly two dimensions.",
    "Save the adapter with save_pretrained of an unsharded model.",
)
TENSOR_KIND = error(
    "TENSOR_KIND",
    "Embeddings have lora_embedding_A and _B, other modules lora_A and lora_B; here they are crossed.",
    "Save the adapter with save_pretrained on this base model.",
)
PAIR_INCOMPLETE = error(
    "PAIR_INCOMPLETE",
    "One half of the module's pair of matrices is missing.",
    "Save the adapter again; both halves belong in one file.",
)
TENSOR_MISSING = error(
    "TENSOR_MISSING",
    "adapter_config.json announces a tensor that the file does not hold.",
    "Save the adapter again, whole, or correct adapter_config.json.",
)
SHAPE_MISMATCH = error(
    "SHAPE_MISMATCH",
    "The tensor's shape does not fit the module of the base model.",
    "Register the adapter for the base model it was trained on.",
)
RANK_HALVES_DIFFER = error(
    "RANK_HALVES_DIFFER",
    "The two halves of the module have different ranks.",
    "Save the adapter again; the halves come from different adapters.",
)
RANK_MISMATCH = error(
    "RANK_MISMATCH",
    "The rank of the tensors is not the one that adapter_config.json gives, so the scale would be wrong.",
    "Correct r or rank_pattern in adapter_config.json.",
)
MODULE_UNKNOWN = error(
    "MODULE_UNKNOWN",
    "The base model has no module of that name, so the tensor would change nothing.",
    "Register the adapter for the base model it was trained on.",
)
LAYER_OUT_OF_RANGE = error(
    "LAYER_OUT_OF_RANGE",
    "The base model has no layer of that number, so the tensor would change nothing.",
    "Register the adapter for the base model it was trained on.",
)
MODULE_NOT_TARGETED = error(
    "MODULE_NOT_TARGETED",
    "The file holds a LoRA for a module that adapter_config.json does not target.",
    "Correct target_modules, exclude_modules and layers_to_transform, or remove the tensors.",
)
CONVOLUTION_UNSUPPORTED = error(
    "CONVOLUTION_UNSUPPORTED",
    "The tensor is a LoRA of a convolution, such as the one that cuts images into patches; this is not supported.",
    "Leave the convolution out with exclude_modules and train again; remove its tensors if they are untrained.",
)
NO_MODULE_APPLIED = error(
    "NO_MODULE_APPLIED",
    "Not one module of the base model would change: the answers would be the base model's.",
    "Register the adapter for the base model it was trained on.",
)
TARGETS_WITHOUT_TENSORS = warning(
    "TARGETS_WITHOUT_TENSORS",
    "adapter_config.json targets modules for which the file holds nothing; they stay as in the base model.",
    "Check that the file is whole; narrow target_modules if they were left out on purpose.",
)
SAVED_MODULE_WITHOUT_TENSORS = error(
    "SAVED_MODULE_WITHOUT_TENSORS",
    "A module of the base model is to be saved whole, but the file does not hold all of it; PEFT refuses that.",
    "Check that the file is whole; remove the name from modules_to_save if the module was not trained.",
)
SAVED_MODULE_INVALID = error(
    "SAVED_MODULE_INVALID",
    "modules_to_save names a list of modules, or one that has a LoRA too; PEFT refuses both.",
    "Name the modules themselves, and each either here or in target_modules.",
)
TENSOR_WITHOUT_EFFECT = error(
    "TENSOR_WITHOUT_EFFECT",
    "PEFT looks for the tensor under another name and would leave this one out without a word.",
    "Save the adapter again with save_pretrained.",
)
EMBEDDING_COPY = warning(
    "EMBEDDING_COPY",
    "The file holds a copy of the base model's embedding: PEFT loads it, engines leave it out.",
    "Save with save_embedding_layers=False if the embedding was not changed.",
)
TOKEN_INDEX_OUT_OF_RANGE = error(
    "TOKEN_INDEX_OUT_OF_RANGE",
    "A trained token's index is not a row of the base model's embedding.",
    "Register the adapter for the base model it was trained on.",
)
TOKENIZER_UNREADABLE = warning(
    "TOKENIZER_UNREADABLE",
    "A file of the adapter's tokenizer could not be read, so it was not compared.",
    "Save the tokenizer again, or leave it out: engines use that of the base model.",
)
TOKENIZER_DIFFERS = warning(
    "TOKENIZER_DIFFERS",
    "The adapter's tokenizer does not extend that of the base model, which engines use all the same.",
    "Check that no token that the adapter was trained on has another id there.",
)
TOKEN_ID_CHANGED = error(
    "TOKEN_ID_CHANGED",
    "The adapter was trained with other ids for tokens that the base model's tokenizer has too.",
    "Train with the base model's tokenizer, or register for the base model that has this one.",
)
TOKEN_ID_OUT_OF_RANGE = error(
    "TOKEN_ID_OUT_OF_RANGE",
    "The adapter's tokenizer has ids for which the base model's embedding has no row.",
    "Train without added tokens, or register a base model with a resized embedding.",
)
TOKENS_RENAMED = warning(
    "TOKENS_RENAMED",
    "The adapter's tokenizer gives other texts to ids of the base model; engines do not know these texts.",
    "Write the base model's own tokens into prompts, or send token ids.",
)
TOKENS_ADDED = warning(
    "TOKENS_ADDED",
    "The adapter's tokenizer adds tokens; the base model has rows for them, but engines never produce their ids.",
    "Send token ids, or train without added tokens.",
)
SPECIAL_TOKEN_DIFFERS = warning(
    "SPECIAL_TOKEN_DIFFERS",
    "A special token is not the base model's, which engines use.",
    "Give stop tokens with each request.",
)
CHAT_TEMPLATE_DIFFERS = warning(
    "CHAT_TEMPLATE_DIFFERS",
    "The adapter brings a chat template that is not the base model's, which engines use.",
    "Start the engines with this template, or render prompts before sending them.",
)
TOO_MANY_FINDINGS = error(
    "TOO_MANY_FINDINGS",
    "There are more findings than are kept.",
    "Mend the ones that are listed and register again.",
)

RANK_TOO_LARGE = error(
    "RANK_TOO_LARGE",
    "The rank is larger than any that the engines are set up to serve.",
    "Train with a smaller rank, or raise LORA_REGISTRY_MAX_LORA_RANK with the engines' --max-lora-rank.",
)

# Numbers of the weights
NUMBERS_NOT_FINITE = error(
    "NUMBERS_NOT_FINITE",
    "The tensor holds NaN or an infinity, which spreads to every answer.",
    "Go back to the last checkpoint with finite weights; lower the learning rate or clip gradients.",
)
DTYPE_OVERFLOW = error(
    "DTYPE_OVERFLOW",
    "A value is too large for the dtype that the base model is served in, and becomes an infinity.",
    "Lower lora_alpha or train with a weight decay; or serve the base model in bfloat16.",
)
DTYPE_UNDERFLOW = warning(
    "DTYPE_UNDERFLOW",
    "All values of one half are too small for the dtype that the base model is served in: the module changes nothing.",
    "Raise lora_alpha or serve the base model in bfloat16.",
)
ZERO_DELTA = warning(
    "ZERO_DELTA",
    "The change B·A is exactly zero: the module looks untrained and answers as the base model does.",
    "Check that training reached it and that the trained weights were saved.",
)
SCALE_OUTLIER = warning(
    "SCALE_OUTLIER",
    "The scale of B·A (lora_alpha over the rank, or over its root) is far beyond what training recipes use.",
    "Check lora_alpha, alpha_pattern and use_rslora.",
)
NORM_OUTLIER = warning(
    "NORM_OUTLIER",
    "The module changes its weight far more than the other modules of its kind do.",
    "Check that training did not diverge there; compare answers with and without the adapter.",
)
MAGNITUDE_INVALID = warning(
    "MAGNITUDE_INVALID",
    "A DoRA magnitude is the norm of a weight's row, and here one is not positive: its output is off or turned around.",
    "Check that training did not diverge there.",
)
SPECTRUM_NOT_MEASURED = warning(
    "SPECTRUM_NOT_MEASURED",
    "The two halves of modules lie too far apart in the file, or are too large, to measure their product in passing.",
    "Save the file with safetensors' save_file, which writes the halves side by side.",
)
