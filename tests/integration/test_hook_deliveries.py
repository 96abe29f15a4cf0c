from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lora_registry.errors import NotFound, QueueFull
from lora_registry.events import RegistrationRequested
from lora_registry.hook_codes import HOOK_FORGED
from lora_registry.hook_deliveries import DeliveryVerdict, HookDeliveries
from lora_registry.hook_events import HookEvent, PendingEvents
from lora_registry.inbox import Accepted
from lora_registry.keys import Keys
from lora_registry.registrations import Outcome
from lora_registry.stages import Stage
from tests.helpers.registry import Registry, make_event
from tests.helpers.waiting import wait_until

A, B = "a" * 40, "b" * 40


def event(name: str = "support-bot", *, content: str = A, quiet_s: float = 0.0, **fields: Any) -> HookEvent:
    """What a hook asks for."""
    order, named_after = fields.pop("order", ""), fields.pop("named_after", "")
    return HookEvent(make_event(name, **fields), content, order, quiet_s, named_after)


class Hooks:
    """What the gateway and the dispatcher do with deliveries, step by step."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.deliveries = HookDeliveries(registry.client, registry.settings)
        self.pending = PendingEvents(registry.client, registry.settings)

    def hear(self, delivery_id: str, *events: HookEvent, **options: Any) -> DeliveryVerdict:
        """Deliver; the verdict."""
        return self.deliveries.hear("hub", delivery_id, events, **options).verdict

    def release(self) -> int:
        """What the dispatcher's sweep does."""
        return self.pending.release(self.registry.inbox)

    def registrations(self, delivery_id: str) -> tuple[str, ...]:
        """What a delivery led to."""
        return self.deliveries.delivery("hub", delivery_id).registrations

    def settle(self) -> None:
        """Release and publish everything."""
        self.release()
        for lease in self.registry.advance(Stage.PUBLISH).values():
            self.registry.publish(lease)

    def reject(self) -> None:
        """Release everything, and have the first stage reject it."""
        self.release()
        for lease in self.registry.advance(Stage.ALLOCATE).values():
            self.registry.ledger.finish(lease, Outcome.REJECTED)


@pytest.fixture
def hooks(registry: Registry) -> Hooks:
    """Hooks of an empty registry."""
    return Hooks(registry)


def test_a_delivery_becomes_a_registration(hooks: Hooks) -> None:
    """It is queued, the dispatcher accepts what it asks for, and the history names the registration."""
    assert hooks.hear("1", event(), body="{}") is DeliveryVerdict.QUEUED
    assert hooks.registry.inbox.waiting() == 0
    assert hooks.release() == 1
    assert hooks.pending.waiting() == 0
    [registration_id] = hooks.registrations("1")
    assert hooks.registry.ledger.get(registration_id).adapter.name == "support-bot"
    [delivery] = hooks.deliveries.history("hub")
    assert (delivery.id, delivery.verdict, delivery.times, delivery.body) == ("1", DeliveryVerdict.QUEUED, 1, "{}")


def test_a_burst_about_one_origin_is_one_registration(hooks: Hooks) -> None:
    """Nothing is accepted before the quiet moment is over; all deliveries learn what came of it."""
    for number, content in enumerate("abcde"):
        assert hooks.hear(str(number), event(content=content, quiet_s=0.2)) is DeliveryVerdict.QUEUED
        assert hooks.release() == 0
    assert hooks.pending.waiting() == 1
    wait_until(hooks.release, what="the quiet moment")
    assert hooks.registry.inbox.waiting() == 1
    assert len({hooks.registrations(str(number)) for number in range(5)}) == 1
    assert hooks.hear("again", event(content="e")) is DeliveryVerdict.DUPLICATE
    assert hooks.hear("older", event(content="a")) is DeliveryVerdict.QUEUED


def test_a_burst_without_end_is_taken_all_the_same(hooks: Hooks) -> None:
    """After ten quiet periods the event is accepted although more keep coming."""
    number = 0

    def hear_one_more() -> None:
        nonlocal number
        number += 1
        hooks.hear(str(number), event(content=str(number), quiet_s=0.1))

    wait_until(hooks.release, what="the end of patience", timeout_s=10, every_s=0.01, meanwhile=hear_one_more)
    assert number > 10


def test_origins_do_not_wait_for_each_other(hooks: Hooks) -> None:
    """Two repositories, or two adapters of one, are two registrations."""
    hooks.hear("1", event("a", quiet_s=60), event("b"), event("a", content=A, source="/elsewhere"))
    assert hooks.release() == 2
    assert len(hooks.registrations("1")) == 2
    hooks.hear("2", event("a", content=B))
    assert hooks.release() == 1


def test_a_repetition_is_dropped_while_it_runs_and_after_it_went_well(hooks: Hooks) -> None:
    """The same delivery again asks for nothing: pending, accepted, running or published."""
    hooks.hear("1", event())
    assert hooks.hear("1", event()) is DeliveryVerdict.DUPLICATE
    hooks.release()
    assert hooks.hear("1", event()) is DeliveryVerdict.DUPLICATE
    hooks.registry.dispatch()
    assert hooks.hear("1", event()) is DeliveryVerdict.DUPLICATE
    hooks.settle()
    assert hooks.hear("1", event()) is DeliveryVerdict.DUPLICATE
    assert hooks.release() == 0
    [delivery] = hooks.deliveries.history("hub")
    assert (delivery.verdict, delivery.times) == (DeliveryVerdict.QUEUED, 5)


@pytest.mark.parametrize("delivery_id", ["1", "2"], ids=["the same delivery", "another about the same"])
def test_a_repetition_after_a_failure_runs_again(hooks: Hooks, delivery_id: str) -> None:
    """What was rejected is registered anew when the sender, or a person there, sends it again."""
    hooks.hear("1", event())
    hooks.reject()
    [first] = hooks.registrations("1")
    assert hooks.registry.outcome(first) is Outcome.REJECTED
    assert hooks.hear(delivery_id, event()) is DeliveryVerdict.QUEUED
    assert hooks.release() == 1
    [second] = hooks.registrations(delivery_id)
    assert second != first
    hooks.settle()
    assert hooks.hear(delivery_id, event()) is DeliveryVerdict.DUPLICATE


def test_the_same_content_under_another_id_is_dropped(hooks: Hooks) -> None:
    """One commit announced twice is one registration; another commit, or the first one again after it, is a new one."""
    for number, (content, verdict) in enumerate(
        [
            (A, DeliveryVerdict.QUEUED),
            (A, DeliveryVerdict.DUPLICATE),
            (B, DeliveryVerdict.QUEUED),
            (B, DeliveryVerdict.DUPLICATE),
            (A, DeliveryVerdict.QUEUED),
        ]
    ):
        assert hooks.hear(str(number), event(content=content)) is verdict
        hooks.settle()
    # The registry's own test double takes the content from the source, which stays the same.
    assert hooks.registry.version().version == 1


def test_a_late_replay_of_an_older_delivery_is_dropped(hooks: Hooks) -> None:
    """A delivery that went well stays done, whatever came after it."""
    hooks.hear("1", event(content=A))
    hooks.settle()
    hooks.hear("2", event(content=B))
    hooks.settle()
    assert hooks.hear("1", event(content=A)) is DeliveryVerdict.DUPLICATE


def test_an_earlier_change_of_an_object_is_ignored_after_a_later_one(hooks: Hooks) -> None:
    """Orders compare as S3 says: filled up with zeros on the right."""
    assert hooks.hear("1", event(content="x", order="0055AED6DCD90281E5")) is DeliveryVerdict.QUEUED
    hooks.settle()
    assert hooks.hear("2", event(content="y", order="0055AED6DCD90281")) is DeliveryVerdict.IGNORED
    assert hooks.hear("3", event(content="z", order="0055AED6DCD90282")) is DeliveryVerdict.QUEUED
    assert hooks.deliveries.delivery("hub", "2").reason.startswith("A later event")


def test_redelivery_by_hand_asks_in_any_case(hooks: Hooks) -> None:
    """Also after success; the registration is a new one, whose outcome says that nothing changed."""
    hooks.hear("1", event(), body="kept")
    hooks.settle()
    [first] = hooks.registrations("1")
    assert hooks.hear("1", event(), body="kept", again=True) is DeliveryVerdict.QUEUED
    hooks.settle()
    [second] = hooks.registrations("1")
    assert second != first
    assert hooks.registry.outcome(second) is Outcome.UNCHANGED
    [delivery] = hooks.deliveries.history("hub")
    assert (delivery.times, delivery.body) == (2, "kept")


def test_a_delivery_that_asks_for_nothing_is_kept_with_its_reason(hooks: Hooks) -> None:
    """Ignored ones are in the history; when such a delivery comes again under new rules, they count."""
    assert hooks.hear("1", reason="No rule is about it.") is DeliveryVerdict.IGNORED
    assert hooks.hear("1", reason="No rule is about it.") is DeliveryVerdict.IGNORED
    [delivery] = hooks.deliveries.history("hub")
    assert (delivery.reason, delivery.times) == ("No rule is about it.", 2)
    assert hooks.hear("1", event()) is DeliveryVerdict.QUEUED


def test_refusals_do_not_push_deliveries_out(hooks: Hooks) -> None:
    """Whoever knows no secret fills a list of its own, which is bounded."""
    hooks = Hooks(hooks.registry.with_settings(hook_history=3))
    hooks.hear("1", event())
    for number in range(10):
        hooks.deliveries.note_refusal("hub", HOOK_FORGED, f"{number}")
    assert [each.reason for each in hooks.deliveries.refusals("hub")] == [f"HOOK_FORGED: {n}" for n in (9, 8, 7)]
    assert [each.id for each in hooks.deliveries.history("hub")] == ["1"]
    hooks.release()


def test_the_history_is_bounded(hooks: Hooks) -> None:
    """Old deliveries leave the list and lose their bodies; that they went well is still known."""
    hooks = Hooks(hooks.registry.with_settings(hook_history=3))
    for number in range(5):
        hooks.hear(str(number), event(content=str(number)), body="x" * 100)
        hooks.settle()
    assert [each.id for each in hooks.deliveries.history("hub")] == ["4", "3", "2"]
    assert hooks.deliveries.delivery("hub", "0").body == ""
    assert hooks.hear("0", event(content="0")) is DeliveryVerdict.DUPLICATE
    with pytest.raises(NotFound):
        hooks.deliveries.delivery("hub", "9")


def test_a_long_body_is_not_kept(hooks: Hooks) -> None:
    """Half a body could not be read again."""
    hooks.hear("1", event(), body="x" * 100_000)
    assert hooks.deliveries.delivery("hub", "1").body == ""
    hooks.release()


def test_nothing_is_recorded_when_too_much_is_pending(hooks: Hooks) -> None:
    """The sender is told to try again, and then it is as if it had not come before."""
    full = Hooks(hooks.registry.with_settings(max_queued_events=1))
    full.hear("1", event("a", quiet_s=60))
    with pytest.raises(QueueFull):
        full.hear("2", event("b"))
    assert len(full.deliveries.history("hub")) == 1
    assert hooks.hear("2", event("b")) is DeliveryVerdict.QUEUED
    assert hooks.release() == 1


def test_events_wait_while_the_event_queue_is_full(hooks: Hooks) -> None:
    """What cannot be accepted now stays pending."""
    hooks.registry.submit("other")
    full = Hooks(hooks.registry.with_settings(max_queued_events=1))
    hooks.hear("1", event())
    assert full.release() == 0
    assert hooks.pending.waiting() == 1
    hooks.registry.dispatch()
    assert full.release() == 1


def test_events_wait_for_a_server_that_is_not_admitted(hooks: Hooks) -> None:
    """A delivery is taken all the same; it is accepted once a dispatcher has admitted the server."""
    hooks.registry.forget_server()
    assert hooks.hear("1", event()) is DeliveryVerdict.QUEUED
    assert hooks.release() == 0
    hooks.registry.admit()
    assert hooks.release() == 1


class Interrupted:
    """An inbox, and what happens before and after it accepts."""

    def __init__(self, registry: Registry, *, before: Callable[[], object] = int, after: Callable[[], object] = int):
        self._registry = registry
        self._before = before
        self._after = after

    def accept(self, asked: RegistrationRequested, *, idempotency_key: str) -> Accepted:
        """See `Inbox.accept`."""
        self._before()
        accepted = self._registry.inbox.accept(asked, idempotency_key=idempotency_key)
        self._after()
        return accepted


def die() -> None:
    """What a dispatcher does that is killed."""
    raise KeyboardInterrupt


def test_a_dispatcher_that_dies_between_accepting_and_settling_doubles_nothing(hooks: Hooks) -> None:
    """The next one accepts under the same key, which is the same registration."""
    hooks.hear("1", event())
    with pytest.raises(KeyboardInterrupt):
        hooks.pending.release(Interrupted(hooks.registry, after=die))  # type: ignore[arg-type]
    assert hooks.registry.inbox.waiting() == 1
    assert hooks.release() == 1
    assert hooks.registry.inbox.waiting() == 1
    assert len(hooks.registrations("1")) == 1


def test_two_dispatchers_release_one_event_once(hooks: Hooks) -> None:
    """Both may accept it; it is one registration, and the slower one settles nothing."""
    hooks.hear("1", event())

    def be_overtaken() -> None:
        assert hooks.release() == 1
        hooks.hear("2", event(content=B))

    assert hooks.pending.release(Interrupted(hooks.registry, before=be_overtaken)) == 0  # type: ignore[arg-type]
    assert hooks.registry.inbox.waiting() == 1
    assert hooks.release() == 1
    assert hooks.registrations("1") != hooks.registrations("2")


def test_what_comes_while_an_event_is_accepted_stays_pending(hooks: Hooks) -> None:
    """A commit that is announced between reading and settling is registered too."""
    hooks.hear("1", event(content=A))
    slow = Interrupted(hooks.registry, before=lambda: hooks.hear("2", event(content=B)))
    assert hooks.pending.release(slow) == 1  # type: ignore[arg-type]
    assert hooks.pending.waiting() == 1
    assert hooks.release() == 1
    assert hooks.registry.inbox.waiting() == 2


def test_an_event_that_nobody_can_read_is_refused_and_not_retried_for_ever(hooks: Hooks) -> None:
    """The delivery says why, and may be sent again."""
    hooks.hear("1", event())
    hooks.registry.client.hset(hooks.registry.keys.origin(event().origin), "event", "{}")
    assert hooks.release() == 1
    assert hooks.pending.waiting() == 0
    assert "REJECTED" in hooks.deliveries.delivery("hub", "1").reason
    assert hooks.hear("1", event()) is DeliveryVerdict.QUEUED
    assert hooks.deliveries.delivery("hub", "1").reason == ""
    assert hooks.release() == 1


def test_deliveries_without_an_id_get_one(hooks: Hooks) -> None:
    """They are told apart by what they ask for."""
    assert hooks.hear("", event()) is DeliveryVerdict.QUEUED
    hooks.release()
    assert hooks.hear("", event()) is DeliveryVerdict.DUPLICATE
    assert [each.id.startswith("none-") for each in hooks.deliveries.history("hub")] == [True, True]


def test_ids_of_any_form_are_taken(hooks: Hooks) -> None:
    """They are the sender's; hooks do not see each other's."""
    for odd in ("a b:c", "ü{}*", "\n"):
        assert hooks.hear(odd, reason="no") is DeliveryVerdict.IGNORED
        assert hooks.deliveries.delivery("hub", odd).id == odd
    hooks.hear("1", reason="no")
    with pytest.raises(NotFound):
        hooks.deliveries.delivery("other", "1")


def test_long_ids_that_differ_in_their_end_are_two_deliveries(hooks: Hooks) -> None:
    """What is shown of them is short, and finds them again; a CloudEvent's id begins with its sender's URL."""
    for number in range(2):
        assert hooks.hear("x" * 5000 + str(number), event(f"bot-{number}")) is DeliveryVerdict.QUEUED
    shown = [each.id for each in hooks.deliveries.history("hub")]
    assert [len(each) for each in shown] == [200, 200]
    assert [hooks.deliveries.delivery("hub", each).id for each in shown] == shown


def test_a_settled_origin_that_is_asked_for_again_does_not_expire(hooks: Hooks) -> None:
    """What is pending stays until it is accepted, and what is settled goes at its time."""
    keys, client = Keys(hooks.registry.settings.key_prefix), hooks.registry.client
    origin = keys.origin(event().origin)
    hooks.hear("1", event())
    assert client.ttl(origin) == -1
    hooks.settle()
    assert client.ttl(origin) > 0
    hooks.hear("2", event(content=B))
    assert client.ttl(origin) == -1


def test_a_delivery_waits_once_however_often_it_comes(hooks: Hooks) -> None:
    """And of a burst without end the last two hundred deliveries wait."""
    keys, client = Keys(hooks.registry.settings.key_prefix), hooks.registry.client
    waiting = keys.waiting(event().origin)
    for _ in range(3):
        hooks.hear("1", event(), again=True)
    assert client.llen(waiting) == 1
    for number in range(250):
        hooks.hear(f"of a burst {number}", event(quiet_s=9.0))
    assert client.llen(waiting) == 200
    assert hooks.deliveries.delivery("hub", "1").times == 3


DOT, DASH = (
    {"content": content, "source": f"hf://acme/{repo}", "named_after": f"repository acme/{repo} {repo}"}
    for content, repo in ((A, "a.b"), (B, "a-b"))
)
"""What asks for the adapter a-b, from two repositories."""


def test_a_name_is_one_repositorys(hooks: Hooks) -> None:
    """`acme/a-b` is no version of `acme/a.b`, though both would be called a-b: ignored, and the history says why."""
    assert hooks.hear("1", event("a-b", **DOT)) is DeliveryVerdict.QUEUED
    hooks.settle()
    for delivery_id in ("2", "2", "3"):
        assert hooks.hear(delivery_id, event("a-b", **DASH)) is DeliveryVerdict.IGNORED
    reason = hooks.deliveries.history("hub")[0].reason
    assert reason.startswith("HOOK_NAME_TAKEN: ")
    assert "acme/a.b" in reason
    assert hooks.pending.waiting() == 0
    assert hooks.hear("4", event("a-b", **(DOT | {"content": B}))) is DeliveryVerdict.QUEUED
    elsewhere = [
        event("a-b", namespace="team", **DASH),
        event("a-b", content=B, source="s3://bucket/a-b", named_after="directory a-b"),
        event("a-b", content=B, source="s3://bucket/other"),
    ]
    assert hooks.hear("5", *elsewhere) is DeliveryVerdict.QUEUED
    assert hooks.release() == 4


def test_two_repositories_in_one_delivery_are_told_apart_too(hooks: Hooks) -> None:
    """The first has the name; the delivery is queued for it, and says what was left out."""
    heard = hooks.deliveries.hear("hub", "1", [event("a-b", **DOT), event("a-b", **DASH)])
    assert (heard.verdict, heard.reason.partition(":")[0]) == (DeliveryVerdict.QUEUED, "HOOK_NAME_TAKEN")
    assert hooks.release() == 1


def test_a_person_hands_a_name_over(hooks: Hooks) -> None:
    """A repository that was renamed asks for its old name in vain until somebody redelivers what it asked for."""
    assert hooks.hear("1", event("a-b", **DOT)) is DeliveryVerdict.QUEUED
    assert hooks.hear("2", event("a-b", **DASH)) is DeliveryVerdict.IGNORED
    assert hooks.hear("2", event("a-b", **DASH), again=True) is DeliveryVerdict.QUEUED
    assert hooks.hear("3", event("a-b", **(DASH | {"content": A}))) is DeliveryVerdict.QUEUED
    assert hooks.hear("4", event("a-b", **(DOT | {"content": "c" * 40}))) is DeliveryVerdict.IGNORED
