"""The stages of a registration, in the order in which it passes them. This is the only place that says it."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """One stage; its value is also the name of its Celery queue."""

    ALLOCATE = "allocate"
    RESOLVE = "resolve"
    VALIDATE = "validate"
    PUBLISH = "publish"


ORDER: tuple[Stage, ...] = (Stage.ALLOCATE, Stage.RESOLVE, Stage.VALIDATE, Stage.PUBLISH)

STATE_AFTER: dict[Stage, str] = {
    Stage.ALLOCATE: "allocated",
    Stage.RESOLVE: "resolved",
    Stage.VALIDATE: "validated",
    Stage.PUBLISH: "published",
}

BATCH: dict[Stage, int] = {
    Stage.ALLOCATE: 50,  # one round trip each: batches save messages
    Stage.RESOLVE: 8,  # file or network metadata: some batching, little to lose
    Stage.VALIDATE: 1,  # long, and it reads what others wrote: nothing else shares its fate
    Stage.PUBLISH: 50,  # one script each
}
"""Registrations that one claim of a stage takes at most."""


def after(stage: Stage) -> Stage | None:
    """The stage that follows `stage`, or None after the last."""
    place = ORDER.index(stage) + 1
    return ORDER[place] if place < len(ORDER) else None
