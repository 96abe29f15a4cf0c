"""Benchmarks: every figure is a ratio of two things that are measured in turns, in one run.

    python -m tests.benchmarks [--only NAME] [--quick] [--json FILE]

    pipeline         whole registrations against a bare Celery pipeline of four stages that do nothing
    get_or_allocate  issuing an id against a script that does one INCR
    fan_out          our announcement against a raw PUBLISH, to 100 and to 1,000 subscribers
    catalog_size     memory per version, and lookups in a catalog of 1,000 and of 100,000 versions
    late_joiner      a subscriber that starts from nothing, against reading the same records unparsed
    structure        judging an adapter of real size, against json, PEFT and adaptersentry (where they are installed)

A goal that is not met is reported and fails nothing: how long something takes is no assertion.
"""
