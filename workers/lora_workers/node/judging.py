"""What the node is, and which versions its engine is not to be given."""

from __future__ import annotations

from pathlib import Path

from lora_registry.catalog_records import VersionRecord
from lora_registry.engine_profiles import BUILT_IN, EngineProfile, built_in_profile, load_profile
from lora_registry.node_verdicts import verdict_for_node, why_not
from lora_registry.nodes import NodeInfo
from lora_workers.node.drivers import EngineDescription
from lora_workers.node.options import NodeOptions


def describe_node(told: EngineDescription, options: NodeOptions) -> NodeInfo:
    """What the node says of itself: what the engine tells, else what the operator's options and profile say.

    What nobody tells is not known: a limit of the engine's that is not known does not make the node skip a version.

    Raises:
        Configuration: the profile cannot be read.
    """
    profile = _profile(options)
    return NodeInfo(
        node_id=options.node_id,
        base_model=options.base,
        engine=profile.engine if profile else told.engine,
        engine_version=told.version or (profile.version if profile else ""),
        max_lora_rank=told.max_lora_rank or options.max_lora_rank or (profile.max_lora_rank if profile else None),
        target_modules=told.target_modules or (profile.target_modules if profile else None),
        slots=options.slots or told.slots or 0,
        tensor_parallel_size=told.tensor_parallel_size or (profile.tensor_parallel_size if profile else 1),
        dtype=profile.dtype if profile else "auto",
        eager=options.eager,
        flags=profile.flags if profile else (),
        select=options.select,
    )


def _profile(options: NodeOptions) -> EngineProfile | None:
    if options.profile in BUILT_IN:
        return built_in_profile(options.profile)
    return load_profile(Path(options.profile)) if options.profile else None


def refusal(record: VersionRecord, node: NodeInfo) -> tuple[str, str]:
    """Code and reason why the node's engine is not given a version; both empty if it is."""
    return why_not(verdict_for_node(record, node))
