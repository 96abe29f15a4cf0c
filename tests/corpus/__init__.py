"""Adapters that real PEFT saved on tiny models of real architectures, and broken ones made from them.

`python -m tests.corpus.make DIRECTORY` writes all of them; the tests make them for themselves.
"""
