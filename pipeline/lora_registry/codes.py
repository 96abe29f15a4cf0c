"""Codes of what goes wrong with a request, wherever its bytes are."""

from __future__ import annotations

from lora_registry.code import error, obstacle

# Names and the request
BASE_UNKNOWN = obstacle(
    "BASE_UNKNOWN",
    "No base model of that name is registered.",
    "Register it with `lora-registry base add NAME SOURCE`.",
)
NAME_CONFLICT = error(
    "NAME_CONFLICT",
    "The adapter's name is also the name of a base model, and engines serve both under one namespace.",
    "Choose another adapter name.",
)
ADAPTER_BASE_CONFLICT = error(
    "ADAPTER_BASE_CONFLICT",
    "The adapter of this name belongs to another base model, and an adapter keeps its base for ever.",
    "Choose another adapter name, or register for the base model it belongs to.",
)
EVENT_MALFORMED = error(
    "EVENT_MALFORMED",
    "The queued event cannot be read.",
    "Publish events with RegistrationClient or the HTTP gateway.",
)
VERSION_TAKEN = obstacle(
    "VERSION_TAKEN",
    "The version number of this registration is taken by another one.",
    "Submit the event again; it gets a new number.",
)

# Ids
IDS_EXHAUSTED = error(
    "IDS_EXHAUSTED",
    "All 2,147,483,647 integer ids have been issued.",
    "Start a registry of its own (another key prefix) and move new adapters there.",
)

# Failures of the world, in a dead letter's history
WORKER_LOST = error(
    "WORKER_LOST",
    "The worker died or hung while it worked on the registration, and its lease ran out.",
    "Look at the worker's log for that time; if the adapter is the cause, it dies again.",
)
UNEXPECTED = error(
    "UNEXPECTED", "A stage failed in a way that was not foreseen.", "Report it, with the error that the history gives."
)
