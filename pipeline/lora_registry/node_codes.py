"""Codes of why a serving node does not serve a version, as its acknowledgement gives them."""

from __future__ import annotations

from lora_registry.code import error, info

# Not for this node
NODE_SLOTS_TAKEN = info(
    "NODE_SLOTS_TAKEN",
    "The node wants more adapters than it has slots, so this one waits in its cache.",
    "Give the node more slots (--slots), narrow what it serves (--select), or add a node.",
)

NODE_OTHER_BASE = error(
    "NODE_OTHER_BASE",
    "The engine serves another base model than the node was started for.",
    "Correct --base or --engine-url; if it is the same, add the engine's name with --also-known-as, or use --any-base.",
)

# The bytes
NODE_FETCH_FAILED = error(
    "NODE_FETCH_FAILED",
    "The node cannot reach the artifact store.",
    "Check LORA_REGISTRY_ARTIFACT_STORE on the node, and its network; it tries again by itself.",
)
NODE_ARTIFACT_MISSING = error(
    "NODE_ARTIFACT_MISSING",
    "The artifact store that the node reads does not hold the version.",
    "Give the node the store that the workers write (LORA_REGISTRY_ARTIFACT_STORE), or restore the artifact.",
)
NODE_BYTES_DIFFER = error(
    "NODE_BYTES_DIFFER",
    "What the node fetched is not what was validated.",
    "Restore the artifact in the store from a backup, or register the adapter again.",
)
NODE_CACHE_FULL = error(
    "NODE_CACHE_FULL",
    "The node's cache has no room for the adapter, and everything in it is in use.",
    "Give the cache more room (--max-cache-gb, or a larger disk), or narrow what the node serves (--select).",
)
NODE_CACHE_UNUSABLE = error(
    "NODE_CACHE_UNUSABLE",
    "The node cannot write its cache directory.",
    "Make --cache a directory that the node's user may write.",
)

# The engine
NODE_ENGINE_UNREACHABLE = error(
    "NODE_ENGINE_UNREACHABLE",
    "The engine does not answer, or is not healthy.",
    "Start it, and check --engine-url; the node loads everything again once it answers.",
)
NODE_ENGINE_CLOSED = error(
    "NODE_ENGINE_CLOSED",
    "The engine takes no adapters at run time.",
    "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, SGLang with --enable-lora.",
)
NODE_ENGINE_REFUSED = error(
    "NODE_ENGINE_REFUSED",
    "The engine is healthy and refuses the adapter.",
    "Read the engine's words in the reason; describe the engine to the registry in a profile (--profile).",
)
NODE_ENGINE_BLIND = error(
    "NODE_ENGINE_BLIND",
    "The engine finds no adapter at the path where the files are.",
    "Let the engine see the cache directory under the same path, and read it.",
)
NODE_NOT_LISTED = error(
    "NODE_NOT_LISTED",
    "The engine said that it loaded the adapter, and does not list it under its name and path.",
    "Look at the engine's log; something else may be unloading adapters.",
)
NODE_PROBE_FAILED = error(
    "NODE_PROBE_FAILED",
    "The engine lists the adapter and answers no request with it.",
    "Look at the engine's log for the served name.",
)
