"""The processes around `lora_registry`, and the heavy libraries.

    entry, cli/          the command line `lora-registry`
    celery_app, tasks    Celery: wake-ups in, one stage's work done
    dispatcher           takes events into the ledger, sweeps, admits servers
    supervisor, embedded `lora-registry up`: a Valkey server and all processes, restarted when they die or stall
    sources/             one file per scheme
    artifact_store       artifacts, written whole or not at all
    base_models          a base model's profile from its files
    demo, demo_data/     the tour: real adapters through the real pipeline
"""
