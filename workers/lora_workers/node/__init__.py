"""A serving node: what lies between an announcement and an adapter that answers.

agent               the loop beside an engine, which does these again and again:
  wishes              which versions the node wants, and which of them its engine is to hold
  stand_ins           which old versions it keeps, since the new ones do not answer yet
  engine_fit          what the engine is, and what it is not to be given
  judging             … by which rules
  same_base           whether the engine serves the base model that it should
  plan                what to do next, from what is wanted and what is; no I/O
  retries             when what failed is tried again
  fetches             what is on its way into the cache, in threads of its own
  cache               fetch: artifacts on the node's disk, by digest, verified
  notes               … and what served names and aliases stand for, for who has no Redis or starts anew
  note_files          … as files beside the artifacts; disk: what both write
  engine_calls        what the engine is being asked for, in threads of their own
  daemon_threads      … and the threads of both
  drivers/            load, list, probe, unload: one file for each engine
  acknowledgements    what was said to the registry, and what is still to say while it is out of reach
failures            why a version is not served
options             what an operator tells a node

Inside vLLM's own processes, without an agent or beside one:

vllm_plugin         a LoRAResolver: unknown served names are looked up in the registry
lookup              how they are looked up
middleware          aliases in requests become served names
aliases             which served name an alias stands for on this server
alias_moves           when one moves to another version, and what is unloaded then
leftovers             which adapters are to go: aliases left them, or they were retired
running_requests    requests run on a name, or an unload has it to itself
request_model       where a request names its model, and is rewritten in place
json_model            … in JSON; form_model: in a form with files
inner_vllm          what the middleware itself asks of vLLM; inner_requests: without a network
model_list          what engines answer to GET /v1/models, here and in drivers
asgi                types and moves of ASGI
"""
