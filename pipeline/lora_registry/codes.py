"""Every code a finding can carry: severity, cause and remedy in one place.

The codes are grouped by the step that gives them: the request, the place of the bytes, the files, the
header of the weights, adapter_config.json, the base model's profile, the comparison of the three, and the numbers of
the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_registry.findings import Finding, Severity


@dataclass(frozen=True)
class Code:
    """What a finding's code stands for.

    Attributes:
        code: the stable identifier.
        severity: weight of every finding with this code.
        cause: one sentence; the message of a finding that brings no closer one.
        remedy: one sentence: what the publisher does about it.
    """

    code: str
    severity: Severity
    cause: str
    remedy: str

    def finding(
        self,
        subject: str = "",
        message: str = "",
        *,
        expected: object = "",
        actual: object = "",
        remedy: str = "",
    ) -> Finding:
        """A finding of this code about `subject`; `message` and `remedy` replace the general ones."""
        return Finding(
            code=self.code,
            severity=self.severity,
            subject=subject,
            message=message or self.cause,
            expected=str(expected),
            actual=str(actual),
            remedy=remedy or self.remedy,
        )


CODES: dict[str, Code] = {}


def _code(code: str, severity: Severity, cause: str, remedy: str) -> Code:
    CODES[code] = Code(code, severity, cause, remedy)
    return CODES[code]


def _error(code: str, cause: str, remedy: str) -> Code:
    return _code(code, Severity.ERROR, cause, remedy)


def _warning(code: str, cause: str, remedy: str) -> Code:
    return _code(code, Severity.WARNING, cause, remedy)


# Names and the request
BASE_UNKNOWN = _error(
    "BASE_UNKNOWN",
    "No base model of that name is registered.",
    "Register it with `lora-registry base add NAME SOURCE`.",
)
NAME_CONFLICT = _error(
    "NAME_CONFLICT",
    "The adapter's name is also the name of a base model, and engines serve both under one namespace.",
    "Choose another adapter name.",
)
ADAPTER_BASE_CONFLICT = _error(
    "ADAPTER_BASE_CONFLICT",
    "The adapter of this name belongs to another base model, and an adapter keeps its base for ever.",
    "Choose another adapter name, or register for the base model it belongs to.",
)
EVENT_MALFORMED = _error(
    "EVENT_MALFORMED",
    "The queued event cannot be read.",
    "Publish events with RegistrationClient or the HTTP gateway.",
)
VERSION_TAKEN = _error(
    "VERSION_TAKEN",
    "The version number of this registration is taken by another one.",
    "Submit the event again; it gets a new number.",
)

# Where the bytes are
SOURCE_UNSUPPORTED = _error(
    "SOURCE_UNSUPPORTED",
    "No source of this scheme is configured.",
    "Use an absolute path of a local directory.",
)
SOURCE_OUTSIDE_ROOTS = _error(
    "SOURCE_OUTSIDE_ROOTS",
    "The path is not inside a directory that the operator allows.",
    "Put the adapter under one of LORA_REGISTRY_SOURCE_ROOTS, or have the operator add its directory.",
)
SOURCE_NOT_FOUND = _error("SOURCE_NOT_FOUND", "There is no such directory.", "Check the path and that workers see it.")
SOURCE_NOT_A_DIRECTORY = _error(
    "SOURCE_NOT_A_DIRECTORY",
    "The source is not a directory.",
    "Name the directory that PEFT's save_pretrained wrote.",
)
SOURCE_PERMISSION = _error(
    "SOURCE_PERMISSION",
    "The worker may not read it.",
    "Make it readable for the workers' user (safetensors writes files with mode 0600: chmod a+r).",
)
SOURCE_CHANGED = _error(
    "SOURCE_CHANGED",
    "The file changed after it was resolved.",
    "Register again once writing is finished; write a new directory instead of changing an old one.",
)

# The files of the adapter
FILE_MISSING = _error(
    "FILE_MISSING",
    "A file that every PEFT adapter has is missing.",
    "Save the adapter with save_pretrained: adapter_config.json and adapter_model.safetensors.",
)
FILE_NOT_REGULAR = _error(
    "FILE_NOT_REGULAR",
    "It is not a regular file.",
    "Put a plain file in its place; no pipe, device or directory.",
)
FILES_IN_SUBFOLDER = _error(
    "FILES_IN_SUBFOLDER",
    "The adapter lies in a folder below the one that was named.",
    "Register the folder that directly holds adapter_config.json and adapter_model.safetensors.",
)
FORMAT_PICKLE = _error(
    "FORMAT_PICKLE",
    "The weights are a pickle, which can run code when it is read.",
    "Save them again with save_pretrained(..., safe_serialization=True).",
)
FORMAT_SHARDED = _error(
    "FORMAT_SHARDED",
    "The weights are split over several files, and engines read one adapter_model.safetensors only.",
    "Merge the shards into one adapter_model.safetensors.",
)
FORMAT_FULL_MODEL = _error(
    "FORMAT_FULL_MODEL",
    "These are the files of a whole model, not of an adapter.",
    "Register the adapter's own directory; add a base model with `lora-registry base add`.",
)
FORMAT_DIFFUSERS = _error(
    "FORMAT_DIFFUSERS",
    "This is a LoRA for an image model in the diffusers format.",
    "Register adapters of language models that PEFT saved.",
)
FORMAT_KOHYA = _error(
    "FORMAT_KOHYA",
    "This is a single-file LoRA for an image model, as kohya's scripts write it.",
    "Register adapters of language models that PEFT saved.",
)
FORMAT_MLX = _error(
    "FORMAT_MLX",
    "These are the adapter files of mlx-lm, whose tensors have other names and are transposed.",
    "Convert the adapter to the PEFT format first.",
)
FORMAT_GGUF = _error(
    "FORMAT_GGUF",
    "The adapter is in the GGUF format of llama.cpp.",
    "Register the PEFT adapter that it was converted from.",
)
FORMAT_TRAINING_STATE = _error(
    "FORMAT_TRAINING_STATE",
    "This is the state of a distributed training run, not an adapter.",
    "Load it in the training framework and save the adapter with save_pretrained.",
)
PEFT_TYPE_UNSUPPORTED = _error(
    "PEFT_TYPE_UNSUPPORTED",
    "The adapter is not a LoRA: its peft_type is not exactly LORA.",
    "Register LoRA adapters; engines would apply another kind wrongly or not at all.",
)

# The header of adapter_model.safetensors
WEIGHTS_NOT_SAFETENSORS = _error(
    "WEIGHTS_NOT_SAFETENSORS",
    "The file does not begin as a safetensors file does.",
    "Write it with safetensors or with save_pretrained; renaming another format is not enough.",
)
WEIGHTS_LFS_POINTER = _error(
    "WEIGHTS_LFS_POINTER",
    "The file is a Git LFS pointer; the weights themselves were never downloaded.",
    "Run `git lfs pull`, or download the file from the hub, and register again.",
)
WEIGHTS_TRUNCATED = _error(
    "WEIGHTS_TRUNCATED",
    "The file ends before the bytes that its header announces.",
    "Copy or save the file again, whole.",
)
WEIGHTS_TRAILING_BYTES = _error(
    "WEIGHTS_TRAILING_BYTES",
    "The file goes on after the last tensor that its header announces.",
    "Save the file again with safetensors.",
)
WEIGHTS_HEADER_TOO_LARGE = _error(
    "WEIGHTS_HEADER_TOO_LARGE",
    "The header is larger than any adapter needs.",
    "Save the adapter's tensors only, with short metadata.",
)
WEIGHTS_TOO_MANY_TENSORS = _error(
    "WEIGHTS_TOO_MANY_TENSORS",
    "The header lists more tensors than any adapter needs.",
    "Save the adapter's tensors only.",
)
WEIGHTS_HEADER_MALFORMED = _error(
    "WEIGHTS_HEADER_MALFORMED",
    "The header is not what the safetensors format prescribes.",
    "Save the file again with safetensors.",
)
WEIGHTS_OFFSETS_INVALID = _error(
    "WEIGHTS_OFFSETS_INVALID",
    "The tensors' byte ranges overlap, leave gaps or do not fit their shapes.",
    "Save the file again with safetensors.",
)
TENSOR_NAME_INVALID = _error(
    "TENSOR_NAME_INVALID",
    "A tensor's name is not made of ASCII letters, digits, '_', '-' and single dots.",
    "Save the adapter with save_pretrained, which names the tensors after the modules.",
)
TENSOR_DTYPE_UNKNOWN = _error(
    "TENSOR_DTYPE_UNKNOWN",
    "The tensor's dtype is not one of the whole-byte dtypes of safetensors.",
    "Save the tensor as float32, float16 or bfloat16.",
)
TENSOR_EMPTY = _error(
    "TENSOR_EMPTY",
    "The tensor has no elements.",
    "Gather the weights before saving (DeepSpeed ZeRO-3 and FSDP leave empty shards behind).",
)

# adapter_config.json
CONFIG_TOO_LARGE = _error(
    "CONFIG_TOO_LARGE",
    "The configuration is larger than any adapter needs.",
    "Save the adapter again with save_pretrained.",
)
CONFIG_NOT_JSON = _error(
    "CONFIG_NOT_JSON",
    "The configuration is not one JSON object in UTF-8.",
    "Save the adapter again with save_pretrained.",
)
CONFIG_FIELD_MISSING = _error(
    "CONFIG_FIELD_MISSING",
    "A field that engines need is missing.",
    "Save the adapter again with save_pretrained, which writes every field.",
)
CONFIG_FIELD_INVALID = _error(
    "CONFIG_FIELD_INVALID",
    "The field's value is not one that PEFT understands.",
    "Correct the field and save the adapter again.",
)
CONFIG_FIELD_UNKNOWN = _warning(
    "CONFIG_FIELD_UNKNOWN",
    "The field is not one of PEFT's LoRA fields that are known here; it was not judged.",
    "Check that the engines know it; remove it if it means nothing.",
)
CONFIG_FOREIGN_IMPORT = _error(
    "CONFIG_FOREIGN_IMPORT",
    "The field makes PEFT import a module that the adapter names.",
    "Set the field to null; give task_type instead of auto_mapping when saving.",
)
PATTERN_NOT_LITERAL = _error(
    "PATTERN_NOT_LITERAL",
    "The pattern is a regular expression that cannot be matched in linear time here.",
    "Write module names or their last parts, such as layers.1.self_attn.v_proj.",
)
PATTERN_HAZARDOUS = _error(
    "PATTERN_HAZARDOUS",
    "The regular expression repeats a group or repeats too often, which can take an engine for ever to match.",
    "List the module names instead.",
)
VARIANT_UNSUPPORTED = _error(
    "VARIANT_UNSUPPORTED",
    "The field asks for a variant of LoRA that is not judged yet.",
    "Train a plain, rank-stabilised or weight-decomposed (DoRA) LoRA.",
)
EXPERTS_UNSUPPORTED = _error(
    "EXPERTS_UNSUPPORTED",
    "The adapter changes experts in a way that the base model's profile does not tell.",
    "Register the base model again where transformers is installed (extra `profiles`).",
)
EXPERTS_HALF_FUSED = _error(
    "EXPERTS_HALF_FUSED",
    "The base model has two of the experts' projections as one, and only one of them is targeted; PEFT refuses that.",
    "Target both halves (w1 and w3, or gate_proj and up_proj), or none.",
)
TARGET_PARAMETER_INVALID = _error(
    "TARGET_PARAMETER_INVALID",
    "target_parameters names a parameter on which PEFT cannot put a LoRA.",
    "Name matrices and stacks of matrices whose modules are not in target_modules.",
)
TARGET_NOT_A_PROJECTION = _error(
    "TARGET_NOT_A_PROJECTION",
    "target_modules selects a module that is neither a projection nor an embedding, and PEFT then loads nothing.",
    "List the projections by name.",
)
LAYER_REPLICATION_INVALID = _error(
    "LAYER_REPLICATION_INVALID",
    "layer_replication does not describe a model made of the base model's layers.",
    "Correct layer_replication, or train on the base model's own layers.",
)
ALPHA_NOT_POSITIVE = _warning(
    "ALPHA_NOT_POSITIVE",
    "With a lora_alpha of zero the adapter does nothing, and a negative one turns it around.",
    "Check lora_alpha and alpha_pattern.",
)
NEEDS_CHANGED_BASE = _warning(
    "NEEDS_CHANGED_BASE",
    "This way of initialising also changed the base model's weights, and engines serve the unchanged ones.",
    "Convert the adapter when saving: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
)

# The base model's profile
BASE_PROFILE_INVALID = _error(
    "BASE_PROFILE_INVALID",
    "The base model's configuration and weights do not make one whole model.",
    "Give the directory with config.json and all the weights' files.",
)
BASE_QUANTIZED_UNSUPPORTED = _error(
    "BASE_QUANTIZED_UNSUPPORTED",
    "The base model's weights are quantised in a way from which their shapes cannot be told.",
    "Register the unquantised model; quantised variants have the same shapes.",
)
BASE_ARCHITECTURE_UNSUPPORTED = _error(
    "BASE_ARCHITECTURE_UNSUPPORTED",
    "The base model's files name its parts differently from the running model.",
    "Register it where transformers is installed (extra `profiles`), or register a text-only model.",
)

# The adapter beside its base model
BASE_NAME_DIFFERS = _warning(
    "BASE_NAME_DIFFERS",
    "The adapter says that it was trained on another base model; equal shapes do not prove the opposite.",
    "Register it for the model it was trained on, or record that name as one of the base model's.",
)
BASE_NAME_ABSENT = _warning(
    "BASE_NAME_ABSENT",
    "The adapter does not say which base model it was trained on; only the shapes could be compared.",
    "Set base_model_name_or_path.",
)
TENSOR_PREFIX_MISSING = _error(
    "TENSOR_PREFIX_MISSING",
    "The tensor's name does not begin with base_model.model., so PEFT would leave it out without a word.",
    "Save the adapter with save_pretrained of the PEFT model, not of the inner model.",
)
TENSOR_PREFIX_DOUBLED = _error(
    "TENSOR_PREFIX_DOUBLED",
    "The tensor's name begins with base_model.model. twice: a PEFT model was wrapped in another one.",
    "Save the inner PEFT model.",
)
TENSOR_PREFIX_WRAPPER = _error(
    "TENSOR_PREFIX_WRAPPER",
    "The tensor's name has the segment of a training wrapper, so engines would serve the base model.",
    "Unwrap the model before saving (accelerator.unwrap_model) or rename the tensors.",
)
TENSOR_ADAPTER_NAME = _error(
    "TENSOR_ADAPTER_NAME",
    "The tensor's name still holds the adapter's name, which PEFT leaves out when it saves.",
    "Save with save_pretrained or get_peft_model_state_dict, or drop that segment from every name.",
)
TENSOR_UNRECOGNIZED = _error(
    "TENSOR_UNRECOGNIZED",
    "The tensor has no role that is known in a LoRA adapter.",
    "Save the adapter with save_pretrained; remove tensors that do not belong to it.",
)
TENSOR_UNANNOUNCED = _error(
    "TENSOR_UNANNOUNCED",
    "adapter_config.json does not announce the tensor, so it could replace weights of the base unseen.",
    "Announce it in adapter_config.json, or remove it.",
)
TENSOR_DTYPE = _error(
    "TENSOR_DTYPE",
    "The tensor's dtype is not a floating-point dtype that engines read as it is.",
    "Save the tensor as float32, float16 or bfloat16.",
)
TENSOR_DIMENSIONS = _error(
    "TENSOR_DIMENSIONS",
    "A LoRA matrix has exactly two dimensions.",
    "Save the adapter with save_pretrained of an unsharded model.",
)
TENSOR_KIND = _error(
    "TENSOR_KIND",
    "Embeddings have lora_embedding_A and _B, other modules lora_A and lora_B; here they are crossed.",
    "Save the adapter with save_pretrained on this base model.",
)
PAIR_INCOMPLETE = _error(
    "PAIR_INCOMPLETE",
    "One half of the module's pair of matrices is missing.",
    "Save the adapter again; both halves belong in one file.",
)
TENSOR_MISSING = _error(
    "TENSOR_MISSING",
    "adapter_config.json announces a tensor that the file does not hold.",
    "Save the adapter again, whole, or correct adapter_config.json.",
)
SHAPE_MISMATCH = _error(
    "SHAPE_MISMATCH",
    "The tensor's shape does not fit the module of the base model.",
    "Register the adapter for the base model it was trained on.",
)
RANK_HALVES_DIFFER = _error(
    "RANK_HALVES_DIFFER",
    "The two halves of the module have different ranks.",
    "Save the adapter again; the halves come from different adapters.",
)
RANK_MISMATCH = _error(
    "RANK_MISMATCH",
    "The rank of the tensors is not the one that adapter_config.json gives, so the scale would be wrong.",
    "Correct r or rank_pattern in adapter_config.json.",
)
MODULE_UNKNOWN = _error(
    "MODULE_UNKNOWN",
    "The base model has no module of that name, so the tensor would change nothing.",
    "Register the adapter for the base model it was trained on.",
)
LAYER_OUT_OF_RANGE = _error(
    "LAYER_OUT_OF_RANGE",
    "The base model has no layer of that number, so the tensor would change nothing.",
    "Register the adapter for the base model it was trained on.",
)
MODULE_NOT_TARGETED = _error(
    "MODULE_NOT_TARGETED",
    "The file holds a LoRA for a module that adapter_config.json does not target.",
    "Correct target_modules, exclude_modules and layers_to_transform, or remove the tensors.",
)
NO_MODULE_APPLIED = _error(
    "NO_MODULE_APPLIED",
    "Not one module of the base model would change: the answers would be the base model's.",
    "Register the adapter for the base model it was trained on.",
)
TARGETS_WITHOUT_TENSORS = _warning(
    "TARGETS_WITHOUT_TENSORS",
    "adapter_config.json targets modules for which the file holds nothing; they stay as in the base model.",
    "Check that the file is whole; narrow target_modules if they were left out on purpose.",
)
SAVED_MODULE_WITHOUT_TENSORS = _error(
    "SAVED_MODULE_WITHOUT_TENSORS",
    "A module of the base model is to be saved whole, but the file does not hold all of it; PEFT refuses that.",
    "Check that the file is whole; remove the name from modules_to_save if the module was not trained.",
)
SAVED_MODULE_INVALID = _error(
    "SAVED_MODULE_INVALID",
    "modules_to_save names a list of modules, or one that has a LoRA too; PEFT refuses both.",
    "Name the modules themselves, and each either here or in target_modules.",
)
TENSOR_WITHOUT_EFFECT = _error(
    "TENSOR_WITHOUT_EFFECT",
    "PEFT looks for the tensor under another name and would leave this one out without a word.",
    "Save the adapter again with save_pretrained.",
)
EMBEDDING_COPY = _warning(
    "EMBEDDING_COPY",
    "The file holds a copy of the base model's embedding: PEFT loads it, engines leave it out.",
    "Save with save_embedding_layers=False if the embedding was not changed.",
)
TOKEN_INDEX_OUT_OF_RANGE = _error(
    "TOKEN_INDEX_OUT_OF_RANGE",
    "A trained token's index is not a row of the base model's embedding.",
    "Register the adapter for the base model it was trained on.",
)
TOKENIZER_UNREADABLE = _warning(
    "TOKENIZER_UNREADABLE",
    "A file of the adapter's tokenizer could not be read, so it was not compared.",
    "Save the tokenizer again, or leave it out: engines use that of the base model.",
)
TOKENIZER_DIFFERS = _warning(
    "TOKENIZER_DIFFERS",
    "The adapter's tokenizer does not extend that of the base model, which engines use all the same.",
    "Check that no token that the adapter was trained on has another id there.",
)
TOKEN_ID_CHANGED = _error(
    "TOKEN_ID_CHANGED",
    "The adapter was trained with other ids for tokens that the base model's tokenizer has too.",
    "Train with the base model's tokenizer, or register for the base model that has this one.",
)
TOKEN_ID_OUT_OF_RANGE = _error(
    "TOKEN_ID_OUT_OF_RANGE",
    "The adapter's tokenizer has ids for which the base model's embedding has no row.",
    "Train without added tokens, or register a base model with a resized embedding.",
)
TOKENS_RENAMED = _warning(
    "TOKENS_RENAMED",
    "The adapter's tokenizer gives other texts to ids of the base model; engines do not know these texts.",
    "Write the base model's own tokens into prompts, or send token ids.",
)
TOKENS_ADDED = _warning(
    "TOKENS_ADDED",
    "The adapter's tokenizer adds tokens; the base model has rows for them, but engines never produce their ids.",
    "Send token ids, or train without added tokens.",
)
SPECIAL_TOKEN_DIFFERS = _warning(
    "SPECIAL_TOKEN_DIFFERS",
    "A special token is not the base model's, which engines use.",
    "Give stop tokens with each request.",
)
CHAT_TEMPLATE_DIFFERS = _warning(
    "CHAT_TEMPLATE_DIFFERS",
    "The adapter brings a chat template that is not the base model's, which engines use.",
    "Start the engines with this template, or render prompts before sending them.",
)
TOO_MANY_FINDINGS = _error(
    "TOO_MANY_FINDINGS",
    "There are more findings than are kept.",
    "Mend the ones that are listed and register again.",
)

# Numbers
IDS_EXHAUSTED = _error(
    "IDS_EXHAUSTED",
    "All 2,147,483,647 integer ids have been issued.",
    "Start a registry of its own (another key prefix) and move new adapters there.",
)
RANK_TOO_LARGE = _error(
    "RANK_TOO_LARGE",
    "The rank is larger than any that the engines are set up to serve.",
    "Train with a smaller rank, or raise LORA_REGISTRY_MAX_LORA_RANK with the engines' --max-lora-rank.",
)

# Failures of the world, in a dead letter's history
WORKER_LOST = _error(
    "WORKER_LOST",
    "The worker died or hung while it worked on the registration, and its lease ran out.",
    "Look at the worker's log for that time; if the adapter is the cause, it dies again.",
)
UNEXPECTED = _error(
    "UNEXPECTED", "A stage failed in a way that was not foreseen.", "Report it, with the error that the history gives."
)

# Numbers of the weights
NUMBERS_NOT_FINITE = _error(
    "NUMBERS_NOT_FINITE",
    "The tensor holds NaN or an infinity, which spreads to every answer.",
    "Go back to the last checkpoint with finite weights; lower the learning rate or clip gradients.",
)
DTYPE_OVERFLOW = _error(
    "DTYPE_OVERFLOW",
    "A value is too large for the dtype that the base model is served in, and becomes an infinity.",
    "Lower lora_alpha or train with a weight decay; or serve the base model in bfloat16.",
)
DTYPE_UNDERFLOW = _warning(
    "DTYPE_UNDERFLOW",
    "All values of one half are too small for the dtype that the base model is served in: the module changes nothing.",
    "Raise lora_alpha or serve the base model in bfloat16.",
)
ZERO_DELTA = _warning(
    "ZERO_DELTA",
    "The change B·A is exactly zero: the module looks untrained and answers as the base model does.",
    "Check that training reached it and that the trained weights were saved.",
)
SCALE_OUTLIER = _warning(
    "SCALE_OUTLIER",
    "The scale of B·A (lora_alpha over the rank, or over its root) is far beyond what training recipes use.",
    "Check lora_alpha, alpha_pattern and use_rslora.",
)
NORM_OUTLIER = _warning(
    "NORM_OUTLIER",
    "The module changes its weight far more than the other modules of its kind do.",
    "Check that training did not diverge there; compare answers with and without the adapter.",
)
MAGNITUDE_INVALID = _warning(
    "MAGNITUDE_INVALID",
    "A DoRA magnitude is the norm of a weight's row, and here one is not positive: its output is off or turned around.",
    "Check that training did not diverge there.",
)
SPECTRUM_NOT_MEASURED = _warning(
    "SPECTRUM_NOT_MEASURED",
    "The two halves of modules lie too far apart in the file, or are too large, to measure their product in passing.",
    "Save the file with safetensors' save_file, which writes the halves side by side.",
)
