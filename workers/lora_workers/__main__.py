"""`python -m lora_workers` is `lora-registry`."""

from lora_workers.entry import main

if __name__ == "__main__":  # a spawned child imports this module too
    main()
