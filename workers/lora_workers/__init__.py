"""The processes around `lora_registry`, and the heavy libraries.

entry, cli/          the command line `lora-registry`; extras: which optional parts are installed
celery_app, tasks    Celery: wake-ups in, one stage's work done
dispatcher, worker   takes events into the ledger, sweeps, admits servers; consumes the stages' queues
installation         `lora-registry up`: a server and all processes on one machine, out of
supervisor, embedded   … processes that are restarted when they die or stall, and a Valkey server
gateway/             the HTTP gateway
sources/             one file per scheme
artifact_store       artifacts, written whole or not at all
base_models          a base model's profile from its files
dry_run              a validation without a registry
demo, demo_data/     the tour: real adapters through the real pipeline
"""
