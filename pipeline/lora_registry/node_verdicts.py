"""What becomes of a version on a node: asked before anything is fetched, so that no engine meets what it would refuse,
serve wrongly or die of."""

from __future__ import annotations

import re

from lora_registry.catalog_records import VersionRecord
from lora_registry.engine_profiles import BUILT_IN, EngineProfile, EngineRule, Ruling
from lora_registry.engine_verdicts import EngineVerdict, judge_engine
from lora_registry.kept_traits import parse_traits
from lora_registry.nodes import NodeInfo

_OF_ANY_ENGINE = (
    EngineRule(
        condition="rank_over_maximum",
        verdict=Ruling.REFUSE,
        reason="The node serves ranks up to {expected}, and this adapter has {actual}.",
        source="what the node says of itself",
    ),
    EngineRule(
        condition="modules_not_served",
        verdict=Ruling.REFUSE,
        reason="The node serves {expected}, and this adapter changes {actual}.",
        source="what the node says of itself",
    ),
)
"""What counts on an engine that there is no table of: the node's own limits."""
_RANK_ONLY = '{{"largest_rank":{rank},"config":{{"rank":{rank}}}}}'


def profile_of(node: NodeInfo) -> EngineProfile:
    """The engine profile that a node describes of itself."""
    return EngineProfile(
        name=re.sub(r"[^a-z0-9._-]", "-", node.node_id.lower())[:64],
        engine=node.engine,
        version=node.engine_version[:64],
        max_lora_rank=node.max_lora_rank,
        target_modules=node.target_modules,
        dtype=node.dtype,
        tensor_parallel_size=node.tensor_parallel_size,
        flags=node.flags,
        rules=() if node.engine in BUILT_IN else _OF_ANY_ENGINE,
    )


def verdict_for_node(record: VersionRecord, node: NodeInfo) -> EngineVerdict:
    """What becomes of a version on a node; anything but `accept` is skipped there.

    A version that was published before traits were kept is judged by its rank alone.
    """
    return judge_engine(parse_traits(record.traits or _RANK_ONLY.format(rank=record.rank)), profile_of(node))


def why_not(verdict: EngineVerdict) -> tuple[str, str]:
    """Code and reason with which a node says that it skips a version; both empty if it does not."""
    refusals = [reason for reason in verdict.reasons if reason.verdict is not Ruling.ACCEPT]
    if not refusals:
        return "", ""
    return refusals[0].code, " ".join(reason.message for reason in refusals)
