"""Every Redis key and channel that Python names, in one place; a few of the ledger's only scripts do (lua/_due.lua).

    {lora}:inbox:…      written by publishers (accept), emptied by the dispatcher
    {lora}:ledger:…     work in progress, written by dispatcher and workers
    {lora}:catalog:…    what is published, written by the publish script and by operators
    {lora}:hooks:…      what webhooks delivered, written by the gateway, emptied by the dispatcher
    {lora}:access:…     who may do what: policies and tokens, written by operators
    {lora}:log:…        announcements, the same messages as on the channels, bounded
    {lora}:nodes:…      what serving nodes say of themselves and acknowledge, written by them alone
    {lora}:server       which server is admitted; generation; the id counter is beside it

The areas are the unit of access control: see `deploy/redis/users.acl`. All keys carry one hash tag, so a
script may touch any of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lora_registry.names import AdapterName


@dataclass(frozen=True)
class Keys:
    """Key builder for one registry.

    Attributes:
        prefix: hash tag in braces, `{lora}` by default.
    """

    prefix: str = "{lora}"

    @property
    def server(self) -> str:
        """Hash: run_id of the admitted server, generation, offset (what numbers are raised by)."""
        return f"{self.prefix}:server"

    @property
    def next_id(self) -> str:
        """Integer: the last `lora_int_id` issued."""
        return f"{self.prefix}:ids:last"

    # The inbox
    @property
    def events(self) -> str:
        """Stream: ids of accepted registrations, in order of acceptance."""
        return f"{self.prefix}:inbox:events"

    def accepted(self, registration_id: str) -> str:
        """Hash: one accepted event until a dispatcher takes it into the ledger."""
        return f"{self.prefix}:inbox:accepted:{registration_id}"

    def idempotency(self, namespace: str, key: str) -> str:
        """String: `<registration id> <payload digest>`; keys are scoped by namespace."""
        return f"{self.prefix}:inbox:idempotency:{namespace}:{hashlib.sha256(key.encode()).hexdigest()[:32]}"

    def numbers(self, adapter: AdapterName) -> str:
        """String: the last version number taken by an event of this adapter, and the offset it was taken under."""
        return f"{self.prefix}:inbox:number:{adapter.qualified}"

    # Hooks
    @property
    def pending_origins(self) -> str:
        """Sorted set: origins with an event that hooks ask for, by when its quiet moment is over."""
        return f"{self.prefix}:hooks:pending"

    @property
    def named_after(self) -> str:
        """Hash: kind of thing and adapter → the one thing of that kind whose name became the adapter's in a hook."""
        return f"{self.prefix}:hooks:named-after"

    def origin(self, origin: str) -> str:
        """Hash: the pending event of one origin, and what was accepted from it last."""
        return f"{self.prefix}:hooks:origin:{origin}"

    def waiting(self, origin: str) -> str:
        """List: deliveries that wait for the registration of an origin's pending event."""
        return f"{self.prefix}:hooks:waiting:{origin}"

    def delivery(self, reference: str) -> str:
        """Hash: one authentic delivery; `reference` is `<hook>:<hash of its id>`."""
        return f"{self.prefix}:hooks:delivery:{reference}"

    def deliveries(self, hook: str) -> str:
        """List: references of a hook's latest deliveries, newest first."""
        return f"{self.prefix}:hooks:history:{hook}"

    def refusals(self, hook: str) -> str:
        """List: the latest refusals of a hook as JSON, newest first."""
        return f"{self.prefix}:hooks:refused:{hook}"

    # The ledger
    @property
    def ledger(self) -> str:
        """Prefix of all ledger keys; scripts build the key of each registration they claim from it."""
        return f"{self.prefix}:ledger"

    def turns(self, stage: str) -> str:
        """Sorted set: namespaces with work in the stage, by when it is next due."""
        return f"{self.ledger}:turns:{stage}"

    def slots(self, stage: str) -> str:
        """Sorted set: worker slots of the stage, by until when (us) they count as there."""
        return f"{self.ledger}:slots:{stage}"

    def registration(self, registration_id: str) -> str:
        """Hash: one registration, from dispatch to the end of its retention."""
        return f"{self.ledger}:registration:{registration_id}"

    def history(self, registration_id: str) -> str:
        """List: failures of one registration as JSON, newest last."""
        return f"{self.ledger}:history:{registration_id}"

    @property
    def dead_letters(self) -> str:
        """Sorted set: dead-lettered registrations by time."""
        return f"{self.ledger}:dead"

    @property
    def pins(self) -> str:
        """Hash: registration id → digest of the artifact that it keeps or has kept, until it ends."""
        return f"{self.ledger}:pins"

    @property
    def marked(self) -> str:
        """Sorted set: digests that nothing refers to, by the time since when (microseconds)."""
        return f"{self.ledger}:marked"

    @property
    def removing(self) -> str:
        """Sorted set: digests that a garbage collection is removing, by the time of its claim (microseconds)."""
        return f"{self.ledger}:removing"

    def canary_engine(self, engine_id: str) -> str:
        """String: `<registration id> <epoch>` of the candidate that has a canary engine."""
        return f"{self.ledger}:engine:{engine_id}"

    @property
    def promotions(self) -> str:
        """Hash: `namespace.name@alias` → the promotion that moved it and that nobody has decided yet."""
        return f"{self.ledger}:promotions"

    @property
    def promotions_woken(self) -> str:
        """Hash: when a worker was last woken for promotions whose promoter is gone, and how often in a row."""
        return f"{self.ledger}:promotions-woken"

    # The catalog
    @property
    def catalog(self) -> str:
        """Prefix of all catalog keys."""
        return f"{self.prefix}:catalog"

    def adapter(self, adapter: AdapterName) -> str:
        """Hash: an adapter's base, its head (the newest decision about its own alias), and `alias:…` for each alias."""
        return f"{self.catalog}:adapter:{adapter.qualified}"

    def versions(self, base_model: str) -> str:
        """Hash: `namespace.name.vN` → version record (JSON)."""
        return f"{self.catalog}:versions:{base_model}"

    def aliases(self, base_model: str) -> str:
        """Hash: `namespace.name@alias` → `<version> <follow|pinned> <digest>`."""
        return f"{self.catalog}:aliases:{base_model}"

    def numbers_published(self, adapter: AdapterName) -> str:
        """Sorted set: published version numbers of an adapter."""
        return f"{self.catalog}:numbers:{adapter.qualified}"

    def retired(self, base_model: str) -> str:
        """Hash: `namespace.name.vN` → `<lora_int_id> <digest> <when in us>` of what was retired."""
        return f"{self.catalog}:retired:{base_model}"

    def directed(self, base_model: str) -> str:
        """Hash: `namespace.name.vN` → `<until in s> =<token> <node id> …`: what some nodes are to hold for a while."""
        return f"{self.catalog}:directed:{base_model}"

    def moves(self, adapter: AdapterName, alias: str) -> str:
        """List: an alias's last moves as JSON, newest first."""
        return f"{self.catalog}:moves:{adapter.qualified}@{alias}"

    @property
    def keep(self) -> str:
        """Hash: namespace or `namespace.name` → how many versions of each adapter are kept."""
        return f"{self.catalog}:keep"

    @property
    def collections(self) -> str:
        """Hash: name → selector (JSON)."""
        return f"{self.catalog}:collections"

    @property
    def adapters(self) -> str:
        """Hash: `namespace.name` → base model."""
        return f"{self.catalog}:adapters"

    @property
    def sequences(self) -> str:
        """Hash: base model → sequence number of its last announcement."""
        return f"{self.catalog}:sequences"

    @property
    def bases(self) -> str:
        """Hash: base model → profile (JSON)."""
        return f"{self.catalog}:bases"

    @property
    def tokenizers(self) -> str:
        """Hash: base model → its tokenizer's map, compressed; apart from the profile, which is read far more often."""
        return f"{self.catalog}:tokenizers"

    def usage(self, namespace: str) -> str:
        """Hash: what the namespace has published: adapters, bytes, day, versions of that day."""
        return f"{self.catalog}:usage:{namespace}"

    # Who may do what
    @property
    def policies(self) -> str:
        """Hash: namespace → policy (JSON)."""
        return f"{self.prefix}:access:namespaces"

    @property
    def tokens(self) -> str:
        """Hash: token id → token without its secret (JSON)."""
        return f"{self.prefix}:access:tokens"

    # Announcements
    def log(self, base_model: str) -> str:
        """Stream: announcements about one base model; the entry id is `<sequence>-0`."""
        return f"{self.prefix}:log:{base_model}"

    def channel(self, base_model: str) -> str:
        """Pub/sub channel that rings for each announcement about one base model."""
        return f"{self.prefix}:announce:{base_model}"

    # Nodes
    @property
    def nodes(self) -> str:
        """Prefix of all keys of nodes."""
        return f"{self.prefix}:nodes"

    @property
    def nodes_alive(self) -> str:
        """Sorted set: node id → when it counts as dead, in us."""
        return f"{self.nodes}:alive"

    def node(self, node_id: str) -> str:
        """Hash: what a node is, what it holds, and since when it is there."""
        return f"{self.nodes}:node:{node_id}"

    def node_acks(self, node_id: str) -> str:
        """Hash: served name → `<state> <since in us> <code or -> <reason>`."""
        return f"{self.nodes}:acks:{node_id}"

    def node_retired(self, node_id: str) -> str:
        """List: versions that the node retired, newest first."""
        return f"{self.nodes}:retired:{node_id}"

    def ack_bell(self, served_name: str) -> str:
        """Pub/sub channel that rings for each acknowledgement of a version."""
        return f"{self.prefix}:acked:{served_name}"

    def outcome_channel(self, registration_id: str) -> str:
        """Pub/sub channel that rings once, when a registration ends."""
        return f"{self.prefix}:outcome:{registration_id}"

    def state_channel(self, registration_id: str) -> str:
        """Pub/sub channel that rings when a registration is handed on to its next stage."""
        return f"{self.prefix}:state:{registration_id}"
