"""Webhooks: one file for each kind of sender, which proves that a delivery is its and reads what it is about.

None of them opens a connection: requests, clocks and what must be fetched are handed in. `lora_workers.gateway.intake`
puts them together with the deliveries in Redis, and `lora_workers.gateway.webhooks` with HTTP.
"""
