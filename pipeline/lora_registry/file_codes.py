"""Codes of an adapter's files, the header of its weights, and its adapter_config.json."""

from __future__ import annotations

from lora_registry.code import error, warning

# The files of the adapter
FILE_MISSING = error(
    "FILE_MISSING",
    "A file that every PEFT adapter has is missing.",
    "Save the adapter with save_pretrained: adapter_config.json and adapter_model.safetensors.",
)
FILE_NOT_REGULAR = error(
    "FILE_NOT_REGULAR",
    "It is not a regular file.",
    "Put a plain file in its place; no pipe, device or directory.",
)
FILES_IN_SUBFOLDER = error(
    "FILES_IN_SUBFOLDER",
    "The adapter lies in a folder below the one that was named.",
    "Register the folder that directly holds adapter_config.json and adapter_model.safetensors.",
)
FORMAT_PICKLE = error(
    "FORMAT_PICKLE",
    "The weights are a pickle, which can run code when it is read.",
    "Save them again with save_pretrained(..., safe_serialization=True).",
)
FORMAT_SHARDED = error(
    "FORMAT_SHARDED",
    "The weights are split over several files, and engines read one adapter_model.safetensors only.",
    "Merge the shards into one adapter_model.safetensors.",
)
FORMAT_FULL_MODEL = error(
    "FORMAT_FULL_MODEL",
    "These are the files of a whole model, not of an adapter.",
    "Register the adapter's own directory; add a base model with `lora-registry base add`.",
)
FORMAT_DIFFUSERS = error(
    "FORMAT_DIFFUSERS",
    "This is a LoRA for an image model in the diffusers format.",
    "Register adapters of language models that PEFT saved.",
)
FORMAT_KOHYA = error(
    "FORMAT_KOHYA",
    "This is a single-file LoRA for an image model, as kohya's scripts write it.",
    "Register adapters of language models that PEFT saved.",
)
FORMAT_MLX = error(
    "FORMAT_MLX",
    "These are the adapter files of mlx-lm, whose tensors have other names and are transposed.",
    "Convert the adapter to the PEFT format first.",
)
FORMAT_GGUF = error(
    "FORMAT_GGUF",
    "The adapter is in the GGUF format of llama.cpp.",
    "Register the PEFT adapter that it was converted from.",
)
FORMAT_TRAINING_STATE = error(
    "FORMAT_TRAINING_STATE",
    "This is the state of a distributed training run, not an adapter.",
    "Load it in the training framework and save the adapter with save_pretrained.",
)
PEFT_TYPE_UNSUPPORTED = error(
    "PEFT_TYPE_UNSUPPORTED",
    "The adapter is not a LoRA: its peft_type is not exactly LORA.",
    "Register LoRA adapters; engines would apply another kind wrongly or not at all.",
)

# The header of adapter_model.safetensors
WEIGHTS_NOT_SAFETENSORS = error(
    "WEIGHTS_NOT_SAFETENSORS",
    "The file does not begin as a safetensors file does.",
    "Write it with safetensors or with save_pretrained; renaming another format is not enough.",
)
WEIGHTS_LFS_POINTER = error(
    "WEIGHTS_LFS_POINTER",
    "The file is a Git LFS pointer; the weights themselves were never downloaded.",
    "Run `git lfs pull`, or download the file from the hub, and register again.",
)
WEIGHTS_TRUNCATED = error(
    "WEIGHTS_TRUNCATED",
    "The file ends before the bytes that its header announces.",
    "Copy or save the file again, whole.",
)
WEIGHTS_TRAILING_BYTES = error(
    "WEIGHTS_TRAILING_BYTES",
    "The file goes on after the last tensor that its header announces.",
    "Save the file again with safetensors.",
)
WEIGHTS_HEADER_TOO_LARGE = error(
    "WEIGHTS_HEADER_TOO_LARGE",
    "The header is larger than any adapter needs.",
    "Save the adapter's tensors only, with short metadata.",
)
WEIGHTS_TOO_MANY_TENSORS = error(
    "WEIGHTS_TOO_MANY_TENSORS",
    "The header lists more tensors than any adapter needs.",
    "Save the adapter's tensors only.",
)
WEIGHTS_HEADER_MALFORMED = error(
    "WEIGHTS_HEADER_MALFORMED",
    "The header is not what the safetensors format prescribes.",
    "Save the file again with safetensors.",
)
WEIGHTS_OFFSETS_INVALID = error(
    "WEIGHTS_OFFSETS_INVALID",
    "The tensors' byte ranges overlap, leave gaps or do not fit their shapes.",
    "Save the file again with safetensors.",
)
TENSOR_NAME_INVALID = error(
    "TENSOR_NAME_INVALID",
    "A tensor's name is not made of ASCII letters, digits, '_', '-' and single dots.",
    "Save the adapter with save_pretrained, which names the tensors after the modules.",
)
TENSOR_DTYPE_UNKNOWN = error(
    "TENSOR_DTYPE_UNKNOWN",
    "The tensor's dtype is not one of the whole-byte dtypes of safetensors.",
    "Save the tensor as float32, float16 or bfloat16.",
)
TENSOR_EMPTY = error(
    "TENSOR_EMPTY",
    "The tensor has no elements.",
    "Gather the weights before saving (DeepSpeed ZeRO-3 and FSDP leave empty shards behind).",
)

# adapter_config.json
CONFIG_TOO_LARGE = error(
    "CONFIG_TOO_LARGE",
    "The configuration is larger than any adapter needs.",
    "Save the adapter again with save_pretrained.",
)
CONFIG_NOT_JSON = error(
    "CONFIG_NOT_JSON",
    "The configuration is not one JSON object in UTF-8.",
    "Save the adapter again with save_pretrained.",
)
CONFIG_FIELD_MISSING = error(
    "CONFIG_FIELD_MISSING",
    "A field that engines need is missing.",
    "Save the adapter again with save_pretrained, which writes every field.",
)
CONFIG_FIELD_INVALID = error(
    "CONFIG_FIELD_INVALID",
    "The field's value is not one that PEFT understands.",
    "Correct the field and save the adapter again.",
)
CONFIG_FIELD_UNKNOWN = warning(
    "CONFIG_FIELD_UNKNOWN",
    "The field is not one of PEFT's LoRA fields that are known here; it was not judged.",
    "Check that the engines know it; remove it if it means nothing.",
)
CONFIG_FOREIGN_IMPORT = error(
    "CONFIG_FOREIGN_IMPORT",
    "The field makes PEFT import a module that the adapter names.",
    "Set the field to null; give task_type instead of auto_mapping when saving.",
)
PATTERN_NOT_LITERAL = error(
    "PATTERN_NOT_LITERAL",
    "The pattern is a regular expression that cannot be matched in linear time here.",
    "List module names or their last parts, such as layers.1.self_attn.v_proj; leave some out with exclude_modules.",
)
PATTERN_HAZARDOUS = error(
    "PATTERN_HAZARDOUS",
    "The regular expression repeats a group or repeats too often, which can take an engine for ever to match.",
    "List the module names instead.",
)
VARIANT_UNSUPPORTED = error(
    "VARIANT_UNSUPPORTED",
    "The field asks for a variant of LoRA that is not judged yet.",
    "Train a plain, rank-stabilised or weight-decomposed (DoRA) LoRA.",
)
EXPERTS_UNSUPPORTED = error(
    "EXPERTS_UNSUPPORTED",
    "The adapter changes experts in a way that the base model's profile does not tell.",
    "Register the base model again where transformers is installed (extra `profiles`).",
)
EXPERTS_NOT_CONVERTED = error(
    "EXPERTS_NOT_CONVERTED",
    "The tensor is for a single expert; the running model stacks them, and PEFT converts no adapters of this family.",
    "Train again with transformers 5 or newer and the stacked experts in target_parameters.",
)
EXPERTS_HALF_FUSED = error(
    "EXPERTS_HALF_FUSED",
    "The base model has two of the experts' projections as one, and only one of them is targeted; PEFT refuses that.",
    "Target both halves (w1 and w3, or gate_proj and up_proj), or none.",
)
TARGET_PARAMETER_INVALID = error(
    "TARGET_PARAMETER_INVALID",
    "target_parameters names a parameter on which PEFT cannot put a LoRA.",
    "Name matrices and stacks of matrices whose modules are not in target_modules.",
)
TARGET_NOT_A_PROJECTION = error(
    "TARGET_NOT_A_PROJECTION",
    "target_modules selects a module that is neither a projection nor an embedding, and PEFT then loads nothing.",
    "List the projections by name.",
)
LAYER_REPLICATION_INVALID = error(
    "LAYER_REPLICATION_INVALID",
    "layer_replication does not describe a model made of the base model's layers.",
    "Correct layer_replication, or train on the base model's own layers.",
)
ALPHA_NOT_POSITIVE = warning(
    "ALPHA_NOT_POSITIVE",
    "With a lora_alpha of zero the adapter does nothing, and a negative one turns it around.",
    "Check lora_alpha and alpha_pattern.",
)
NEEDS_CHANGED_BASE = warning(
    "NEEDS_CHANGED_BASE",
    "This way of initialising also changed the base model's weights, and engines serve the unchanged ones.",
    "Convert the adapter when saving: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
)
