"""Codes of the place where the bytes are."""

from __future__ import annotations

from lora_registry.code import error, obstacle

# Where the bytes are
SOURCE_UNSUPPORTED = obstacle(
    "SOURCE_UNSUPPORTED",
    "No source of this scheme is configured.",
    "Use a scheme that the finding lists, or have the operator add it to LORA_REGISTRY_ALLOWED_SCHEMES.",
)
SOURCE_URL_INVALID = error(
    "SOURCE_URL_INVALID",
    "The source is not written as its scheme has it.",
    "Write /absolute/path, hf://org/repo@revision/folder, s3://bucket/prefix or scheme://place without '..' or '::'.",
)
SOURCE_OUTSIDE_ROOTS = obstacle(
    "SOURCE_OUTSIDE_ROOTS",
    "The path is not inside a directory that the operator allows.",
    "Put the adapter under one of LORA_REGISTRY_SOURCE_ROOTS, or have the operator add its directory.",
)
SOURCE_NOT_FOUND = obstacle(
    "SOURCE_NOT_FOUND", "There is no such directory or prefix.", "Check the path and that workers see it."
)
SOURCE_NOT_A_DIRECTORY = error(
    "SOURCE_NOT_A_DIRECTORY",
    "The source is not a directory.",
    "Name the directory that PEFT's save_pretrained wrote.",
)
SOURCE_PERMISSION = obstacle(
    "SOURCE_PERMISSION",
    "The worker may not read it.",
    "Make it readable for the workers' user (safetensors writes files with mode 0600: chmod a+r).",
)
SOURCE_CHANGED = obstacle(
    "SOURCE_CHANGED",
    "The file changed after it was resolved.",
    "Register again once writing is finished; write a new directory instead of changing an old one.",
)
ADAPTER_TOO_LARGE = error(
    "ADAPTER_TOO_LARGE",
    "The weights are larger than any adapter may be here; nothing of them was copied.",
    "Check that this is no whole model; train with a smaller rank, or raise LORA_REGISTRY_MAX_ADAPTER_BYTES.",
)

# Uploads that are not finished
SOURCE_INCOMPLETE = obstacle(
    "SOURCE_INCOMPLETE",
    "The files were not all there, or not whole, when the time for the upload was up.",
    "Register again once the upload is done; write the marker file last so that nobody has to guess.",
)
MARKER_MISSING = obstacle(
    "MARKER_MISSING",
    "The marker file, which this source must have, is not there.",
    "Write _ADAPTER_READY.json with `lora_registry.ready_marker.mark_ready`, and upload it last.",
)
MARKER_INVALID = error(
    "MARKER_INVALID",
    "The marker file is not legal.",
    "Write _ADAPTER_READY.json with `lora_registry.ready_marker.mark_ready`.",
)
MARKER_MISMATCH = error(
    "MARKER_MISMATCH",
    "A file is not the one that the marker file describes.",
    "Upload the files again and the marker file last; do not change files that are marked as ready.",
)

# Credentials
CREDENTIAL_UNKNOWN = obstacle(
    "CREDENTIAL_UNKNOWN",
    "The workers have no credential of this name for this kind of source.",
    "Have the operator add it to the workers' LORA_REGISTRY_CREDENTIALS_FILE, or name another one.",
)

# Hugging Face Hub
HUB_OFFLINE = obstacle(
    "HUB_OFFLINE",
    "The workers are set to stay off the Hub.",
    "Register a copy on a path or bucket that they can read, or have the operator switch offline mode off.",
)
HUB_REPO_HIDDEN = obstacle(
    "HUB_REPO_HIDDEN",
    "The repository is private or does not exist: without a token the Hub does not say which.",
    "Check the name, and give a credential whose token may read it.",
)
HUB_REPO_MISSING = obstacle(
    "HUB_REPO_MISSING",
    "There is no such repository, or none that the credential's token may see.",
    "Check the name, and that the token's owner has access to the repository.",
)
HUB_GATED = obstacle(
    "HUB_GATED",
    "The repository is gated, and access to it was not granted.",
    "Accept its terms on the Hub with the account whose token the credential has, and register again.",
)
HUB_FORBIDDEN = obstacle(
    "HUB_FORBIDDEN",
    "The Hub refuses access to the repository.",
    "Check on the Hub whether it was disabled, and that the token's permissions cover it.",
)
HUB_TOKEN_REFUSED = obstacle(
    "HUB_TOKEN_REFUSED",
    "The Hub does not know the credential's token (any more).",
    "Have the operator put a valid token into the credentials file.",
)
HUB_REVISION_MISSING = obstacle(
    "HUB_REVISION_MISSING",
    "The repository has no such branch, tag or commit.",
    "Check the revision; a commit is named by all its 40 digits.",
)

# Places that an MLflow registry knows
MLFLOW_UNCONFIGURED = obstacle(
    "MLFLOW_UNCONFIGURED",
    "The source is an alias or a version of an MLflow registry, and no registry is configured.",
    "Have the operator set LORA_REGISTRY_MLFLOW_URL where the workers run.",
)
MLFLOW_VERSION_MISSING = obstacle(
    "MLFLOW_VERSION_MISSING",
    "The MLflow registry has no such model, alias or version (any more).",
    "Set the alias in MLflow again; its webhook registers what it then means.",
)
MLFLOW_SOURCE_UNREADABLE = error(
    "MLFLOW_SOURCE_UNREADABLE",
    "The source of the version can be read through MLflow only.",
    "Set the tag `lora.path` of the version to where the adapter is, such as s3://bucket/prefix.",
)

# Object stores and the web
BUCKET_MISSING = obstacle(
    "BUCKET_MISSING", "There is no such bucket.", "Check its name, and the credential's endpoint."
)
STORE_ACCESS_DENIED = obstacle(
    "STORE_ACCESS_DENIED",
    "The store does not let the workers read this place.",
    "Grant the credential's identity the right to list and read it, or name another credential.",
)
STORE_CREDENTIALS_REFUSED = obstacle(
    "STORE_CREDENTIALS_REFUSED",
    "The store does not accept the credential itself: it is unknown, wrong or expired.",
    "Have the operator put valid keys into the credentials file.",
)
CERTIFICATE_REFUSED = obstacle(
    "CERTIFICATE_REFUSED",
    "The server's certificate is of no authority that the workers trust, has expired, or is for another host.",
    "Mend the certificate, or have the operator name its authority in the workers' SSL_CERT_FILE; then register again.",
)
ADDRESS_FORBIDDEN = obstacle(
    "ADDRESS_FORBIDDEN",
    "The URL, or a redirect from it, leads to an address that workers must not call.",
    "Use a public address, or have the operator add its network to LORA_REGISTRY_ALLOWED_NETWORKS.",
)
REDIRECTS_ENDLESS = error(
    "REDIRECTS_ENDLESS",
    "The URL redirects too often, or to another scheme.",
    "Register the URL at which the files really are.",
)
RANGES_UNSUPPORTED = obstacle(
    "RANGES_UNSUPPORTED",
    "The server does not say how long the file is or does not send ranges of it.",
    "Serve the files from a server that answers range requests with 206.",
)
