"""Codes of what a hook refuses; the gateway's answer to the sender carries one."""

from __future__ import annotations

from lora_registry.code import error

HOOK_UNKNOWN = error(
    "HOOK_UNKNOWN",
    "There is no hook of that name.",
    "Check the URL; `lora-registry hooks list` names the hooks.",
)
HOOK_UNAUTHENTICATED = error(
    "HOOK_UNAUTHENTICATED",
    "The delivery brings no secret and no signature.",
    "Give the sender the hook's secret.",
)
HOOK_FORGED = error(
    "HOOK_FORGED",
    "The secret or the signature of the delivery is not the hook's.",
    "Give sender and hook the same secret, and let no proxy change the body.",
)
HOOK_STALE = error(
    "HOOK_STALE",
    "The delivery was signed too long ago, or in the future.",
    "Set the clocks of both machines; an old delivery has to be sent anew by its sender.",
)
HOOK_TOO_LARGE = error(
    "HOOK_TOO_LARGE",
    "The body of the delivery is longer than the hook takes.",
    "Have the sender send less, or raise LORA_REGISTRY_HOOK_MAX_BODY_BYTES.",
)
HOOK_MALFORMED = error(
    "HOOK_MALFORMED",
    "The body of the delivery is not what this kind of hook takes at all.",
    "Compare the kind of the hook in the hooks file with the sender.",
)
HOOK_SENDER_AWAY = error(
    "HOOK_SENDER_AWAY",
    "What is needed to check the delivery could not be fetched from its sender.",
    "Nothing if it passes, since senders try again; check that the gateway may reach it.",
)
HOOK_NAME_TAKEN = error(
    "HOOK_NAME_TAKEN",
    "The adapter's name was made of another repository, model or directory, and two of them are never one adapter.",
    "Give it a name of its own with a rule, or hand the name over with `lora-registry hooks redeliver`.",
)
WATCH_EMPTY = error(
    "WATCH_EMPTY",
    "The Hub shows no repository at the watched place that a rule of the hook is about.",
    "Check the name, the rules, and whether the credential of the hook may see private repositories.",
)
WATCH_TOO_LARGE = error(
    "WATCH_TOO_LARGE",
    "There is more at the watched place than is looked at.",
    "Watch narrower prefixes, or name the repositories.",
)
WATCH_UNCLEAR = error(
    "WATCH_UNCLEAR",
    "Several branches, tags or directories with new content lead to one adapter, and nothing says which is newest.",
    "Have the rule take one ref only, or put `{ref_name}` or `{directory}` into its name.",
)
WATCH_GIVEN_UP = error(
    "WATCH_GIVEN_UP",
    "The registration of what is there was dead-lettered again and again.",
    "Read its history with `lora-registry dead-letters list`; then retry it there.",
)
