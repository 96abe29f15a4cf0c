"""lora-registry: the path of an adapter from an event to an announced version, station by station.

    event       events.py           somebody says "here is an adapter"; client.py is how a training job says it
    accept      inbox.py            one script: number, event and queue entry, or the registration that is there already
    dispatch    inbox.py            one script: off the event queue, into the ledger, due in the first stage
    (work)      work.py, ledger.py  a woken worker claims what is due under leases, works, and hands each on
    allocate    stages/allocate.py  the request can be met; it gets its `lora_int_id`
    resolve     stages/resolve.py   the two files are found and pinned
    validate    stages/validate.py  copied once, judged, kept under their digest
    canary      stages/canary.py    where the base model has an engine for it: loaded, asked, unloaded
    publish     stages/publish.py   one script: version, alias, announcements, outcome
    announce    announcements.py    the messages, and the view of the catalog that they add up to
    subscribe   subscriber.py       a serving node hears each change once and in order
    (serve)     lora_workers.node   the node fetches, verifies, loads and asks for one token
    acknowledge nodes.py            the node says how far it is with each version, and that it lives

What becomes of a version then: lifecycle.py (retire, label, roll back), promotion.py (move an alias through a gate) and
open_promotions.py (those that have moved it and that nobody has decided), rollout.py (how far it has come among the
nodes, and waiting for them), selection.py (selectors, and what a node is to hold by its own), named_collections.py,
node_verdicts.py (what a node would make of it) and kept_traits.py (which a record keeps for that).

Who may do what: namespaces.py (prefixes of sources, credentials, quotas) and policies.py, which keeps them; tokens.py
(bearer tokens of the HTTP gateway). What webhooks ask for waits a quiet moment before it is accepted:
hook_deliveries.py and hook_events.py.

Beside the path: registrations.py (an event's run through the stages), leases.py (renewed while work lasts), catalog.py
and catalog_records.py (what is published), bases.py (the base models that it is published for), sources.py (what a
source does for the stages), readiness.py and ready_marker.py (when an upload is done), names.py, findings.py,
errors.py, settings.py, keys.py, connection.py, scripts.py and lua/ (every change of state); what can be wrong is listed
in all_codes.py (code.py, codes.py, source_codes.py, namespace_codes.py, hook_codes.py, file_codes.py, fit_codes.py,
canary_codes.py, node_codes.py, engine_codes.py, gateway_codes.py).

What nothing refers to any more is marked by marks.py for garbage collection; copies.py makes the copies of adapters
that training jobs leave for the workers (durable.py: so that they outlive a power failure); artifacts.py says what a
digest is taken over.

How an adapter is judged is in adapter_files.py, adapter_config.py, strict_json.py, safetensors_header.py and
compatibility.py, with config_fields.py, module_patterns.py, target_selection.py, target_parameters.py,
layer_replication.py, changed_parts.py, tensor_roles.py, stacked_experts.py, renamed_modules.py, saved_tensors.py and
tokenizer_comparison.py; what a base model looks like in base_profile.py, base_headers.py, quantized_bases.py and
tokenizer_maps.py; what becomes of an adapter on an engine in adapter_traits.py, engine_conditions.py,
engine_profiles.py (and engines/*.json) and engine_verdicts.py; what the numbers of its weights say in
numeric_report.py; judgement.py puts these together, and report.py is what is kept of it.

This package imports the standard library, pydantic with pydantic-settings, and redis, and nothing else; the processes
and the heavy libraries are in `lora_workers`.
"""
