"""The stages of a registration, in the order in which it passes them. This is the only place that says it."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """One stage; its value is also the name of its Celery queue."""

    ALLOCATE = "allocate"
    RESOLVE = "resolve"
    VALIDATE = "validate"
    CANARY = "canary"
    PUBLISH = "publish"


ORDER: tuple[Stage, ...] = (Stage.ALLOCATE, Stage.RESOLVE, Stage.VALIDATE, Stage.CANARY, Stage.PUBLISH)

ALWAYS: tuple[Stage, ...] = tuple(stage for stage in ORDER if stage is not Stage.CANARY)
"""The stages of every registration; the canary stage is for those whose base model has a canary engine."""

STATE_AFTER: dict[Stage, str] = {
    Stage.ALLOCATE: "allocated",
    Stage.RESOLVE: "resolved",
    Stage.VALIDATE: "validated",
    Stage.CANARY: "tried",
    Stage.PUBLISH: "published",
}

BATCH: dict[Stage, int] = {
    Stage.ALLOCATE: 50,  # one round trip each: batches save messages
    Stage.RESOLVE: 1,  # a place may take its time to answer, and nothing else waits for it
    Stage.VALIDATE: 1,  # long, and it reads what others wrote: nothing else shares its fate
    Stage.CANARY: 1,  # it has an engine to itself
    Stage.PUBLISH: 50,  # one script each
}
"""Registrations that one claim of a stage takes at most."""


def passed(*, canary: bool) -> tuple[Stage, ...]:
    """The stages that a registration passes, with or without the canary check."""
    return ORDER if canary else ALWAYS


def after(stage: Stage, *, canary: bool = False) -> Stage | None:
    """The stage that follows `stage` on that path, or None after the last."""
    later = ORDER[ORDER.index(stage) + 1 :]
    return next((each for each in later if canary or each in ALWAYS), None)
