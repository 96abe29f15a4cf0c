"""Codes of the canary check: what a designated engine did with the adapter."""

from __future__ import annotations

from lora_registry.code import error

CANARY_NOT_LOADED = error(
    "CANARY_NOT_LOADED",
    "The canary engine is healthy and refuses to load the adapter.",
    "Read the engine's words; train for what it takes, or have the operator start it for such adapters.",
)
CANARY_NOT_FINITE = error(
    "CANARY_NOT_FINITE",
    "The adapter's answer on the canary engine has a log-probability that is no finite number.",
    "Train again with a smaller step or in float32, and save an adapter whose answers are numbers.",
)
CANARY_NO_EFFECT = error(
    "CANARY_NO_EFFECT",
    "The canary engine answers every prompt with the adapter exactly as without it: loaded, but not applied.",
    "Check that the adapter is trained (lora_B not all zeros) and names its tensors as the engine does.",
)
