"""A serving node: what lies between an announcement and an adapter that answers.

agent               the loop beside an engine, which does these again and again:
  wishes              which versions the node wants, and which of them its engine is to hold
  judging             what the node is, and what its engine is not to be given
  same_base           whether the engine serves the base model that it should
  plan                what to do next, from what is wanted and what is; no I/O
  fetches             what is on its way into the cache, in threads of its own
  cache               fetch: artifacts on the node's disk, by digest, verified
  drivers/            load, list, probe, unload: one file for each engine
  acknowledgements    what was said to the registry, and what is still to say while it is out of reach
failures            why a version is not served
options             what an operator tells a node

Inside vLLM's own processes, without an agent or beside one:

vllm_plugin         a LoRAResolver: unknown served names are looked up in the registry
lookup              how they are looked up
middleware          aliases in requests become served names
aliases             which served name an alias stands for on this server
json_model          the `model` field of a request's JSON, rewritten in place
inner_requests      requests of the middleware's own to vLLM
"""
