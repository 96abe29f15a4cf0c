"""`python -m lora_workers` is `lora-registry`."""

from lora_workers.entry import main

main()
