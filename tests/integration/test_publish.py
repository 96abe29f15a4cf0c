"""Identity, the publish script's rule and aliases, on a real server."""

from __future__ import annotations

import itertools
import json
import threading
from datetime import UTC, datetime

import pytest

from lora_registry import codes
from lora_registry.announcements import CatalogView
from lora_registry.catalog_records import AliasMode
from lora_registry.errors import Conflict, LeaseLost, NotFound, Rejected, ServerNotAdmitted
from lora_registry.inbox import admit
from lora_registry.names import AdapterName
from lora_registry.registrations import Outcome
from lora_registry.stages import ALWAYS, Stage
from tests.helpers.registry import BASE, Registry, digest_of
from tests.helpers.waiting import wait_until

BOT = AdapterName("default", "support-bot")
LAST_ID = 2**31 - 1


def types_of(log: list[str]) -> list[str]:
    """The announcements' types, without what all have in common."""
    return [json.loads(each)["type"].removeprefix("io.lora-registry.").removesuffix(".v1") for each in log]


# Ids and numbers


def test_allocating_again_gives_the_same_id(registry: Registry) -> None:
    """Get-or-allocate: a stage that is repeated takes no second id."""
    registry.submit("a")
    registry.submit("b")
    one, other = registry.advance(Stage.ALLOCATE).values()
    assert [registry.ledger.allocate(one) for _ in range(3)] == [(1, 1)] * 3
    assert registry.ledger.allocate(other) == (2, 1)


def test_last_id_is_issued_and_then_exhaustion_is_a_clear_rejection(registry: Registry) -> None:
    """2**31 - 1 is given out; after it the finding says that all ids are issued, each time."""
    registry.client.set(registry.keys.next_id, LAST_ID - 1)
    ids = [registry.submit(name) for name in ("a", "b", "c")]
    leases = registry.advance(Stage.ALLOCATE)
    assert registry.ledger.allocate(leases[ids[0]])[0] == LAST_ID
    for each in ids[1:]:
        with pytest.raises(Rejected) as rejected:
            registry.ledger.allocate(leases[each])
        assert [finding.code for finding in rejected.value.findings] == [codes.IDS_EXHAUSTED.code]


def test_ids_of_rejected_registrations_stay_unused(registry: Registry) -> None:
    """An id is issued to one registration for ever, even if nothing is published under it."""
    rejected, published = registry.submit("a"), registry.submit("b")
    leases = registry.advance(Stage.PUBLISH)
    registry.ledger.finish(leases[rejected], Outcome.REJECTED)
    assert registry.publish(leases[published]).lora_int_id == 2
    assert registry.register("c").lora_int_id == 3


def test_ids_are_unique_among_workers_that_allocate_at_once(registry: Registry) -> None:
    """Four workers allocate for 200 registrations: 200 ids, none twice, none skipped."""
    ids = [registry.submit(f"adapter-{number}") for number in range(200)]
    registry.dispatch()

    def allocate(owner: str) -> None:
        while leases := registry.claim(Stage.ALLOCATE, owner=owner, limit=5):
            for lease in leases:
                registry.complete(lease)

    threads = [threading.Thread(target=allocate, args=(f"worker-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    allocated = [registry.ledger.get(each).lora_int_id for each in ids]
    assert sorted(each or 0 for each in allocated) == list(range(1, 201))


# The rule of an adapter's own alias


@pytest.mark.parametrize(
    ("contents", "finished", "outcomes", "alias"),
    [
        ("XY", (1, 2), "PP", 2),
        ("XY", (2, 1), "PP", 2),
        ("XX", (1, 2), "PU", 1),
        ("XX", (2, 1), "PU", 2),
        ("XYX", (1, 2, 3), "PPP", 3),
        ("XYX", (1, 3, 2), "PUP", 1),
        ("XYX", (3, 2, 1), "PPU", 3),
        ("XYX", (3, 1, 2), "PUP", 3),
        ("XYX", (2, 1, 3), "PPP", 3),
        ("XYX", (2, 3, 1), "PPU", 3),
        ("XYY", (1, 3, 2), "PPU", 3),
        ("XYZ", (3, 1, 2), "PPP", 3),
    ],
)
def test_alias_serves_the_newest_accepted_bytes(
    registry: Registry, contents: str, finished: tuple[int, ...], outcomes: str, alias: int
) -> None:
    """Whatever the order in which stages finish, the alias ends at the bytes of the event accepted last."""
    ids = [registry.submit(content=content) for content in contents]
    ended = registry.publish_in_order(ids[number - 1] for number in finished)
    named = {"P": Outcome.PUBLISHED, "U": Outcome.UNCHANGED}
    assert [each.outcome for each in ended] == [named[letter] for letter in outcomes]
    assert registry.version().version == alias
    assert registry.version().digest == digest_of(contents[-1])


def test_every_order_of_four_ends_at_the_newest_bytes(registry: Registry) -> None:
    """All 24 orders of finishing X, Y, X, Z-like events: the alias serves the last accepted one's bytes."""
    for number, (contents, order) in enumerate(itertools.product(("XYXY", "XXYX"), itertools.permutations(range(4)))):
        name = f"adapter-{number}"
        ids = [registry.submit(name, content=content) for content in contents]
        registry.publish_in_order(ids[place] for place in order)
        assert registry.version(name).digest == digest_of(contents[-1]), (contents, order)


def test_unchanged_reports_the_version_that_holds_the_bytes(registry: Registry) -> None:
    """The same bytes again: outcome unchanged, with the id, number and served name that are there."""
    first, again = registry.register(), registry.register()
    assert again.outcome is Outcome.UNCHANGED
    assert (again.version, again.lora_int_id, again.served_name) == (1, first.lora_int_id, "support-bot.v1")
    assert types_of(registry.log()) == ["version.published", "alias.moved"]


def test_changed_labels_on_unchanged_bytes_are_updated_and_announced(registry: Registry) -> None:
    """The version's labels and metadata follow the newest event; nodes are told, and the bytes stay."""
    registry.register(labels={"tier": "canary", "team": "support"})
    registry.register(labels={"tier": "gold"}, metadata={"context": "8192"})
    record = registry.version()
    assert (record.version, record.labels, record.metadata) == (1, {"tier": "gold"}, {"context": "8192"})
    assert types_of(registry.log())[2:] == ["version.labels-changed"]
    assert registry.view().versions == {record.field: record}
    registry.register(labels={}, metadata={})
    assert (registry.version().labels, registry.version().metadata) == ({}, {})


def test_late_event_does_not_bring_back_old_labels(registry: Registry) -> None:
    """Labels of an event that was overtaken are not applied."""
    old, new = registry.submit(labels={"tier": "old"}), registry.submit(labels={"tier": "new"})
    registry.publish_in_order([new, old])
    assert registry.version().labels == {"tier": "new"}


def test_served_name_and_id_never_mean_other_bytes(registry: Registry) -> None:
    """A number that is taken stays what it is: a second record under it is refused."""
    registry.register(content="one")
    each = registry.submit(content="two")
    lease = registry.advance(Stage.PUBLISH)[each]
    registry.client.hset(registry.keys.registration(each), "version", 1)
    lease = type(lease)(registry.ledger.get(each), lease.stage, lease.epoch, lease.owner)
    with pytest.raises(Rejected) as rejected:
        registry.publish(lease)
    assert [finding.code for finding in rejected.value.findings] == [codes.VERSION_TAKEN.code]
    assert registry.version().digest == digest_of("one")


def test_adapter_keeps_its_base_for_ever(registry: Registry) -> None:
    """A version for another base is rejected at publish too, where two first versions may race."""
    ours, theirs = registry.submit(), registry.submit(base_model="wide-llama", content="two")
    leases = registry.advance(Stage.PUBLISH)
    registry.publish(leases[ours])
    with pytest.raises(Rejected) as rejected:
        registry.publish(leases[theirs])
    (finding,) = rejected.value.findings
    assert (finding.code, finding.expected, finding.actual) == ("ADAPTER_BASE_CONFLICT", BASE, "wide-llama")
    assert [record.base_model for record in registry.catalog.versions(BOT)] == [BASE]


def test_publishing_twice_is_lease_lost_and_announces_once(registry: Registry) -> None:
    """A publish stage that runs again after its script was done changes nothing."""
    each = registry.submit()
    lease = registry.advance(Stage.PUBLISH)[each]
    registry.publish(lease)
    with pytest.raises(LeaseLost):
        registry.publish(lease)
    assert types_of(registry.log()) == ["version.published", "alias.moved"]


# Aliases moved by people


def test_manual_move_pins_the_alias_against_everything_that_comes_late(registry: Registry) -> None:
    """After a rollback neither a newer version nor a late older one moves the alias."""
    registry.register(content="one")
    late = registry.submit(content="late")
    leases = registry.advance(Stage.PUBLISH)
    registry.register(content="three")
    registry.catalog.move_alias(BOT, "support-bot", 1, expect=3)
    registry.publish(leases[late])
    registry.register(content="five")
    assert registry.version().version == 1
    assert registry.catalog.aliases(BOT)["support-bot"].mode is AliasMode.PINNED


def test_alias_told_to_follow_goes_to_the_newest_version(registry: Registry) -> None:
    """`follow` ends the pin: the alias goes to the head, and further versions move it again."""
    registry.register(content="one")
    registry.register(content="two")
    registry.catalog.move_alias(BOT, "support-bot", 1)
    registry.register(content="three")
    assert registry.catalog.move_alias(BOT, "support-bot", None).version == 3
    registry.register(content="four")
    assert registry.version().version == 4


def test_manual_adapter_moves_only_by_promotion(registry: Registry) -> None:
    """With follow=manual no version moves the alias; a promotion does; a repeat of the head is unchanged."""
    registry.register(content="one", follow="manual")
    with pytest.raises(NotFound):
        registry.version()
    registry.catalog.move_alias(BOT, "support-bot", 1, expect=0)
    registry.register(content="two", follow="manual")
    assert registry.register(content="two", follow="manual").outcome is Outcome.UNCHANGED
    assert registry.version().version == 1


def test_other_aliases_move_only_when_told(registry: Registry) -> None:
    """`stable` stays where it was put while the adapter's own alias follows."""
    registry.register(content="one")
    registry.catalog.move_alias(BOT, "stable", 1, expect=0)
    registry.register(content="two")
    assert registry.version(alias="stable").version == 1
    assert registry.version().version == 2


def test_move_to_an_unknown_version_is_not_found(registry: Registry) -> None:
    """An alias never points at nothing."""
    registry.register()
    with pytest.raises(NotFound):
        registry.catalog.move_alias(BOT, "stable", 7)
    with pytest.raises(NotFound):
        registry.catalog.move_alias(AdapterName("default", "nobody"), "stable", 1)


def test_of_many_movers_with_one_expectation_one_wins(registry: Registry) -> None:
    """Compare-and-swap: eight concurrent movers from version 1, each to its own; exactly one succeeds."""
    for number in range(9):
        registry.register(content=str(number))
    registry.catalog.move_alias(BOT, "stable", 1)
    won, lost, gate = [], [], threading.Barrier(8)

    def move(version: int) -> None:
        gate.wait()
        try:
            won.append(registry.catalog.move_alias(BOT, "stable", version, expect=1).version)
        except Conflict:
            lost.append(version)

    threads = [threading.Thread(target=move, args=(version,)) for version in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 7
    assert registry.version(alias="stable").version == won[0]
    moves = [json.loads(each)["data"] for each in registry.log() if "@stable" in each]
    assert [(move["previous"], move["version"]) for move in moves] == [(None, 1), (1, won[0])]


# Superseding


def test_superseded_only_once_the_newer_one_is_validated(registry: Registry) -> None:
    """An older pending registration lives until the newer one with --supersede is validated, and then ends so."""
    old, new = registry.submit(content="old"), registry.submit(content="new", supersede=True)
    other = registry.submit("other")
    registry.dispatch()
    for stage in (Stage.ALLOCATE, Stage.RESOLVE):
        while leases := registry.claim(stage):
            for lease in leases:
                registry.complete(lease)
    validating = {lease.registration.id: lease for _ in range(3) for lease in registry.claim(Stage.VALIDATE)}
    assert registry.outcome(old) is None
    registry.complete(validating[new])
    registry.complete(validating[old])
    registry.complete(validating[other])
    assert registry.outcome(old) is Outcome.SUPERSEDED
    published = registry.advance(Stage.PUBLISH)
    assert set(published) == {new, other}
    assert registry.publish(published[new]).outcome is Outcome.PUBLISHED


def test_superseded_where_it_waits_for_a_claim(registry: Registry) -> None:
    """An older one that is only due is ended by the claim that would have brought it, and not worked on."""
    registry = registry.with_settings(backoff_first_s=0.001)
    old, newer = registry.submit(content="old"), registry.submit(content="new", supersede=True)
    leases = registry.advance(Stage.RESOLVE)
    registry.ledger.fail(leases[old], RuntimeError("the disk is away"))
    registry.complete(leases[newer])
    registry.complete(registry.claim(Stage.VALIDATE)[0])

    def ended() -> bool:
        assert registry.claim(Stage.RESOLVE) == ()
        return registry.outcome(old) is Outcome.SUPERSEDED

    wait_until(ended, what="the older one to end", every_s=0.005)


def test_failed_newer_one_supersedes_nothing(registry: Registry) -> None:
    """A bad adapter registered with --supersede does not take the older good one with it."""
    old, bad = registry.submit(content="old"), registry.submit(content="bad", supersede=True)
    registry.dispatch()
    for stage in (Stage.ALLOCATE, Stage.RESOLVE):
        while leases := registry.claim(stage):
            for lease in leases:
                registry.complete(lease)
    for _ in range(2):
        for lease in registry.claim(Stage.VALIDATE):
            if lease.registration.id == bad:
                registry.ledger.finish(lease, Outcome.REJECTED)
            else:
                registry.complete(lease)
    assert registry.publish(registry.advance(Stage.PUBLISH)[old]).outcome is Outcome.PUBLISHED


# Admission of servers


def test_no_script_issues_anything_on_a_server_that_is_not_admitted(registry: Registry) -> None:
    """Ids, versions and alias moves wait until a dispatcher has admitted the server."""
    registry.register(content="one")
    allocating, publishing = registry.submit("other"), registry.submit(content="two")
    leases = registry.advance(Stage.ALLOCATE)
    registry.complete(leases.pop(publishing))
    published = registry.advance(Stage.PUBLISH)[publishing]
    log = registry.log()
    registry.forget_server()
    with pytest.raises(ServerNotAdmitted):
        registry.ledger.allocate(leases[allocating])
    with pytest.raises(ServerNotAdmitted):
        registry.publish(published)
    with pytest.raises(ServerNotAdmitted):
        registry.catalog.move_alias(BOT, "stable", 1)
    assert registry.log() == log


def test_new_server_raises_ids_and_numbers(registry: Registry) -> None:
    """After an admission ids go on past the gap and each adapter's numbers past theirs."""
    before = registry.register(content="one")
    registry.forget_server()
    registry.admit()
    after = registry.register(content="two")
    assert before.lora_int_id == 1
    assert after.lora_int_id == 1 + registry.settings.id_gap + 1
    assert after.order == 1 + registry.settings.number_gap + 1
    assert registry.version().version == after.version


def test_adapter_that_a_restored_server_forgot_gets_no_number_twice(registry: Registry) -> None:
    """An adapter whose very first events were lost starts past the gap: its v1 may have been announced."""
    registry.register(content="one")
    registry.client.delete(registry.keys.numbers(BOT), registry.keys.versions(BASE), registry.keys.adapter(BOT))
    registry.client.delete(registry.keys.aliases(BASE))
    registry.forget_server()
    registry.admit()
    assert registry.register(content="two").version == registry.settings.number_gap + 1


def test_admitting_the_same_server_again_changes_nothing(registry: Registry) -> None:
    """Several dispatchers admit one server once."""
    registry.register(content="one")
    generation = registry.client.hget(registry.keys.server, "generation")
    registry.admit()
    registry.admit()
    assert registry.client.hget(registry.keys.server, "generation") == generation
    assert registry.register(content="two").lora_int_id == 2


@pytest.mark.parametrize("reached", ALWAYS)
def test_registration_in_flight_is_numbered_anew_under_a_new_server(registry: Registry, reached: Stage) -> None:
    """What was numbered before the restart gets a fresh id and number, in whichever stage it was."""
    each = registry.submit(content="one")
    lease = registry.advance(reached)[each]
    registry.forget_server()
    registry.admit()
    if reached is not Stage.PUBLISH:
        registry.complete(lease)
        lease = registry.advance(Stage.PUBLISH)[each]
    published = registry.publish(lease)
    assert published.outcome is Outcome.PUBLISHED
    assert published.lora_int_id is not None
    assert published.lora_int_id > registry.settings.id_gap
    assert published.version == 1 + registry.settings.number_gap
    assert registry.version().served_name == published.served_name
    later = registry.register(content="two")
    assert later.version is not None
    assert later.version > published.version


def test_ids_and_numbers_stay_in_range_after_many_restarts(registry: Registry) -> None:
    """Gaps add up, but never past the last id; then exhaustion is what the publisher is told."""
    registry.client.set(registry.keys.next_id, LAST_ID - 5)
    registry.forget_server()
    registry.admit()
    assert registry.client.get(registry.keys.next_id) == str(LAST_ID)
    each = registry.submit()
    with pytest.raises(Rejected):
        registry.ledger.allocate(registry.advance(Stage.ALLOCATE)[each])


def test_operators_floors_hold_on_a_server_that_is_known(registry: Registry) -> None:
    """After a restore of an old backup the operator says what nodes have seen; ids and numbers go on past that."""
    registry.register(content="one")
    generation = registry.view().cursor.generation
    admit(registry.client, registry.settings, id_floor=70_000, number_floor=5_000)
    after = registry.register(content="two")
    assert after.lora_int_id is not None
    assert after.version is not None
    assert (after.lora_int_id > 70_000, after.version > 5_000) == (True, True)
    assert registry.view().cursor.generation != generation


# What is announced


def test_announcements_are_cloudevents(registry: Registry) -> None:
    """Every message has CloudEvents' required attributes, a time that parses, and a strictly rising sequence."""
    start = datetime.now(UTC)
    registry.register(content="one", labels={"emoji": 'ü"\\ %d \u2028'}, metadata={})
    registry.register(content="one", labels={"emoji": "other"})
    registry.register(content="two")
    registry.catalog.move_alias(BOT, "stable", 1)
    events = [json.loads(message) for message in registry.log()]
    assert len(events) == 6
    for number, event in enumerate(events, start=1):
        assert event["specversion"] == "1.0"
        assert event["type"].startswith("io.lora-registry.")
        assert event["source"] == "/lora-registry"
        assert event["datacontenttype"] == "application/json"
        assert event["subject"]
        assert event["basemodel"] == BASE
        assert event["sequence"] == str(number)
        assert abs((datetime.fromisoformat(event["time"]) - start).total_seconds()) < 300
        assert all(name.isascii() and name.islower() and name.isalnum() for name in event)
    assert len({(event["source"], event["id"]) for event in events}) == len(events)
    assert events[0]["data"]["labels"] == {"emoji": 'ü"\\ %d \u2028'}


def test_channel_carries_the_same_messages_as_the_log(registry: Registry) -> None:
    """Whoever listens on the channel of the base model hears exactly what the log keeps."""
    with registry.client.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(registry.keys.channel(BASE))
        registry.register(content="one")
        registry.register(content="two")
        heard = []
        while len(heard) < 4:
            message = channel.get_message(timeout=5)
            if message:
                heard.append(message["data"])
    assert heard == registry.log()


def test_sequences_of_base_models_are_their_own(registry: Registry) -> None:
    """Another base model's announcements leave no gap in this one's."""
    registry.register("a", content="one")
    registry.register("b", content="two", base_model="wide-llama")
    registry.register("a", content="three")
    assert [json.loads(message)["sequence"] for message in registry.log()] == ["1", "2", "3", "4"]


def test_catalog_view_survives_its_text_form(registry: Registry) -> None:
    """What a node keeps across a restart is what it had."""
    registry.register(content="one", labels={"tier": "gold"})
    registry.catalog.move_alias(BOT, "stable", 1)
    view = registry.view()
    assert CatalogView.from_json(view.to_json()) == view
    assert view.resolve("default.support-bot@stable").labels == {"tier": "gold"}
