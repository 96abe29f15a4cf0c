"""The HTTP gateway: publishers and readers that speak HTTP instead of Redis.

app               the application, put together
serving           the process: where it listens, and when it refuses to
services          what the requests share: connections, round trips, the bells, who may do what
authentication    who asks, and what they may
registrations     POST and GET of registrations
  admission       taking one in; following: the long poll and the stream of events
webhooks          POST of deliveries; intake.py has lora_workers.hooks prove and read them
aliases           moving and removing aliases, compare-and-swap
adapters, bases, health   what is published, and whether all is well
round_trips       what many requests ask of Redis goes there together
delivery_fetches  certificates that deliveries need, in threads
bells             one connection tells all who wait
plain_route       routes of which FastAPI solves nothing
bodies            a request's body, up to its cap
problems          every error as RFC 9457 has it
documentation     OpenAPI
access_log        one line for each request, without secrets
"""
