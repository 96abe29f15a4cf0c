"""The processes around `lora_registry`, and the heavy libraries.

entry, cli/          the command line `lora-registry`; extras: which optional parts are installed
celery_app, tasks    Celery: wake-ups in, one stage's work done
time_limit             … within a time, whatever it waits for
dispatcher, worker   takes events into the ledger, sweeps, admits servers; consumes the stages' queues
installation         `lora-registry up`: a server and all processes on one machine, out of
supervisor, embedded   … processes that are restarted when they die or stall, and a Valkey server
gateway/             the HTTP gateway
hooks/               webhooks: what their senders say, and what is made of it
resync                 … what no webhook told; watched_places: what lies at the places that hooks watch
sources/             one file per scheme; mlflow_registry: what an alias of an MLflow registry means now
node/                beside a serving engine, and inside vLLM
artifact_store       artifacts, written whole or not at all: what a store does, and how one is opened
local_artifacts        … in a directory
object_artifacts       … on an object store, or whatever else fsspec knows; store_options: its credentials
staging, garbage     local directories to judge adapters in; garbage collection of the store
numeric/             the numbers of weights, measured as they are copied; numeric_needs: whether that can run here
canary_engines       the engines that candidates are tried on
linear_patterns      regular expressions that adapters bring, in linear time
training             register_adapter, for training jobs; remote_copies: an inbox on an object store
local_paths            … what a source that a person typed is on this machine
trainer_callback       … a callback for transformers' Trainer
base_models          a base model's profile from its files (base_files), or as transformers builds it (meta_model)
logs                 logging of every process
dry_run              a validation without a registry
demo, demo_data/     the tour: real adapters through the real pipeline
"""
