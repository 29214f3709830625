"""Google's own Python client against `twined emulator`: filters, ordering, redelivery and pull.

`TWINED_BIN` names the binary (else: `target/debug/twined`).
"""

import os
import pathlib
import queue
import socket
import subprocess
import threading
import time
import uuid

import grpc
import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import pubsub_v1
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import RetryPolicy

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Longer than anything takes here but an ack deadline of ten seconds.
SOON = 8


@pytest.fixture(scope="session")
def emulator():
    """Start an emulator for all tests, and give its address."""
    binary = os.environ.get("TWINED_BIN", str(ROOT / "target" / "debug" / "twined"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    command = [binary, "emulator", "--pubsub-port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(address, process)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def wait_until_ready(address, process):
    """Wait for the first RPC that works."""
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        client = pubsub_v1.PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        assert list(client.list_topics(project="projects/test")) == []
    assert process.poll() is None


@pytest.fixture
def publisher(emulator):
    transport = PublisherGrpcTransport(channel=grpc.insecure_channel(emulator))
    options = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    client = pubsub_v1.PublisherClient(publisher_options=options, transport=transport)
    yield client
    client.stop()


@pytest.fixture
def subscriber(emulator):
    transport = SubscriberGrpcTransport(channel=grpc.insecure_channel(emulator))
    with pubsub_v1.SubscriberClient(transport=transport) as client:
        yield client


@pytest.fixture
def world(publisher, subscriber):
    return World(publisher, subscriber)


class World:
    """A topic and a subscription of a name of their own."""

    def __init__(self, publisher, subscriber):
        name = f"test-{uuid.uuid4()}"
        self.publisher = publisher
        self.subscriber = subscriber
        self.topic = publisher.topic_path("test", name)
        self.subscription = subscriber.subscription_path("test", name)
        publisher.create_topic(name=self.topic)

    def subscribe(self, **settings):
        request = {"name": self.subscription, "topic": self.topic, **settings}
        return self.subscriber.create_subscription(request=request)

    def publish(self, *texts, **attributes):
        futures = [self.publisher.publish(self.topic, text.encode(), **attributes) for text in texts]
        return [future.result(timeout=SOON) for future in futures]

    def pull(self, timeout=SOON, **request):
        request = {"subscription": self.subscription, "max_messages": 100, **request}
        return self.subscriber.pull(request=request, timeout=timeout).received_messages

    def pull_now(self):
        return self.pull(return_immediately=True)

    def ack(self, messages):
        request = {"subscription": self.subscription, "ack_ids": [message.ack_id for message in messages]}
        self.subscriber.acknowledge(request=request)

    def extend(self, messages, seconds):
        request = {
            "subscription": self.subscription,
            "ack_ids": [message.ack_id for message in messages],
            "ack_deadline_seconds": seconds,
        }
        self.subscriber.modify_ack_deadline(request=request)

    def stream(self, **options):
        return Stream(self.subscriber, self.subscription, **options)


class Stream:
    """A streaming pull whose messages are taken one by one."""

    def __init__(self, subscriber, subscription, **options):
        self.messages = queue.Queue()
        self.future = subscriber.subscribe(subscription, callback=self.messages.put, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.future.cancel()
        try:
            self.future.result(timeout=SOON)
        except exceptions.GoogleAPICallError:
            pass

    def next(self):
        return self.messages.get(timeout=SOON)


def texts(messages):
    return [message.message.data.decode() for message in messages]


MESSAGES = {
    "none": {},
    "com": {"domain": "com", "iana.org/language_tag": "en"},
    "co": {"domain": "co", "region": "eu"},
    "org": {"domain": "org", "region": "us"},
}


@pytest.mark.parametrize(
    "filter, wanted",
    [
        ("", ["none", "com", "co", "org"]),
        ("attributes:domain", ["com", "co", "org"]),
        ("NOT attributes:domain", ["none"]),
        ("-attributes:domain", ["none"]),
        ('attributes.domain = "com"', ["com"]),
        ('attributes.domain != "com"', ["none", "co", "org"]),
        ('hasPrefix(attributes.domain, "co")', ["com", "co"]),
        ('attributes:domain AND NOT hasPrefix(attributes.domain, "co")', ["org"]),
        ('attributes.domain = "com" OR attributes.region = "us"', ["com", "org"]),
        ('attributes:region AND (attributes.domain = "com" OR attributes.domain = "co")', ["co"]),
        ('attributes."iana.org/language_tag" = "\\u0065n"', ["com"]),
    ],
)
def test_a_filter_chooses(world, filter, wanted):
    assert world.subscribe(filter=filter).filter == filter
    for text, attributes in MESSAGES.items():
        world.publish(text, **attributes)
    assert texts(world.pull_now()) == wanted


def test_a_stream_gets_only_what_its_filter_wants(world):
    world.subscribe(filter='attributes.to = "me"')
    with world.stream() as stream:
        for number in range(20):
            world.publish(str(number), to="me" if number % 2 else "you")
        seen = []
        for _ in range(10):
            message = stream.next()
            seen.append(int(message.data))
            message.ack()
    assert sorted(seen) == list(range(1, 20, 2))


@pytest.mark.parametrize(
    "filter",
    [
        "attributes",
        "attributes.a = b",
        "attributes:a and attributes:b",
        "attributes:a AND attributes:b OR attributes:c",
        "attributes:" + "a" * 256,
    ],
)
def test_a_bad_filter_is_refused(world, filter):
    with pytest.raises(exceptions.InvalidArgument, match="filter"):
        world.subscribe(filter=filter)


def test_a_key_keeps_its_order(world):
    world.subscribe(enable_message_ordering=True)
    for number in range(100):
        for key in "ab":
            world.publisher.publish(world.topic, str(number).encode(), ordering_key=key)
    seen = {"a": [], "b": []}
    with world.stream() as stream:
        for _ in range(200):
            message = stream.next()
            seen[message.ordering_key].append(int(message.data))
            message.ack()
    assert seen == {"a": list(range(100)), "b": list(range(100))}


def test_a_nack_brings_back_all_later_ones_of_its_key(world):
    world.subscribe(enable_message_ordering=True)
    world.publish("1", "2", "3", ordering_key="key")
    first = world.pull()
    assert texts(first) == ["1", "2", "3"]
    world.publish("4", ordering_key="key")
    assert world.pull_now() == [], "the key is out with somebody"

    world.ack(first[:1])
    world.extend(first[1:2], 0)

    assert texts(world.pull()) == ["2", "3", "4"]


def test_an_expiry_brings_back_all_later_ones_of_its_key(world):
    world.subscribe(enable_message_ordering=True)
    world.publish("1", "2", "3", ordering_key="key")
    first = world.pull()
    world.extend(first[1:], 600)

    again = world.pull(timeout=20)

    assert texts(again) == ["1", "2", "3"]
    assert {message.ack_id for message in first}.isdisjoint(message.ack_id for message in again)


def test_a_nack_on_a_stream_comes_again_in_order(world):
    world.subscribe(enable_message_ordering=True)
    world.publish("1", "2", "3", ordering_key="key")
    seen = []
    with world.stream() as stream:
        while len(seen) < 5:
            message = stream.next()
            seen.append(message.data.decode())
            message.nack() if seen == ["1", "2"] else message.ack()
    assert seen == ["1", "2", "3", "2", "3"]


def test_what_is_not_acked_comes_again_after_its_deadline(world):
    world.subscribe(ack_deadline_seconds=10)
    ids = world.publish("acked", "left", "extended")
    first = world.pull()
    world.ack(first[:1])
    world.extend(first[2:], 60)
    start = time.monotonic()

    again = world.pull(timeout=20)

    assert time.monotonic() - start >= 9
    assert texts(again) == ["left"]
    assert again[0].message.message_id == ids[1]


def test_a_nack_waits_for_the_back_off_of_the_retry_policy(world):
    backoff = Duration(seconds=2)
    world.subscribe(retry_policy=RetryPolicy(minimum_backoff=backoff, maximum_backoff=backoff))
    world.publish("a")
    start = time.monotonic()
    world.extend(world.pull(), 0)
    assert world.pull_now() == []
    assert texts(world.pull()) == ["a"]
    assert time.monotonic() - start >= 1.9


def test_a_stream_keeps_what_it_works_on(world):
    """The client extends its leases: nothing comes twice, though it takes longer than the deadline."""
    world.subscribe(ack_deadline_seconds=10)
    world.publish("slow")
    with world.stream() as stream:
        message = stream.next()
        with pytest.raises(queue.Empty):
            stream.messages.get(timeout=12)
        assert world.pull_now() == []
        message.ack_with_response().result(timeout=SOON)


def test_a_pull_waits_for_the_first_message(world):
    world.subscribe()
    publish = threading.Timer(0.5, world.publish, ["late"])
    publish.start()
    assert texts(world.pull()) == ["late"]
    publish.join()


def test_an_empty_pull_answers_before_the_deadline_of_the_client(world):
    world.subscribe()
    start = time.monotonic()
    assert world.pull(timeout=2) == []
    assert 1.5 <= time.monotonic() - start < 2


def test_a_pull_takes_no_more_than_it_asked_for(world):
    world.subscribe()
    world.publish("a", "b", "c")
    assert len(world.pull(max_messages=2)) == 2
    assert len(world.pull_now()) == 1


def test_a_pull_whose_client_is_gone_takes_nothing_along(emulator, world):
    world.subscribe()
    for _ in range(10):
        channel = grpc.insecure_channel(emulator)
        request = pubsub_v1.types.PullRequest(subscription=world.subscription, max_messages=1)
        waiting = SubscriberGrpcTransport(channel=channel).pull.future(request)
        assert not waiting.done()
        waiting.cancel()
        channel.close()
    # By then the emulator knows that they are gone: an empty pull takes its while.
    assert world.pull(timeout=1) == []
    world.publish("a")
    assert texts(world.pull()) == ["a"]


def test_flow_control_limits_what_a_stream_has(world):
    world.subscribe()
    world.publish("a", "b", "c", "d")
    flow = pubsub_v1.types.FlowControl(max_messages=2)
    with world.stream(flow_control=flow) as stream:
        held = [stream.next(), stream.next()]
        rest = world.pull_now()
        assert len(rest) == 2, "the emulator itself holds the rest back"
        world.ack(rest)
        for message in held:
            message.ack()
    assert world.pull_now() == []


def test_a_thousand_messages_come_once_each(world):
    world.subscribe()
    ids = set(world.publish(*("x" * 500 for _ in range(1000))))
    assert len(ids) == 1000
    with world.stream() as stream:
        seen = []
        for _ in range(1000):
            message = stream.next()
            seen.append(message.message_id)
            message.ack()
    assert set(seen) == ids


def test_a_stream_ends_when_its_subscription_is_deleted(world):
    world.subscribe()
    with world.stream() as stream:
        world.publish("a")
        stream.next().ack()
        world.subscriber.delete_subscription(subscription=world.subscription)
        with pytest.raises(exceptions.NotFound, match=world.subscription):
            stream.future.result(timeout=SOON)


def test_a_topic_lists_its_subscriptions(world):
    names = [f"{world.subscription}-{number}" for number in range(5)]
    for name in names:
        world.subscribe(name=name)
    request = {"topic": world.topic, "page_size": 2}
    listed = list(world.publisher.list_topic_subscriptions(request=request))
    assert listed == names
    mine = [found for found in world.subscriber.list_subscriptions(project="projects/test") if found.name in names]
    assert [found.topic for found in mine] == [world.topic] * 5


def test_a_deleted_topic_leaves_its_subscriptions(world):
    world.subscribe()
    world.publish("a")
    world.publisher.delete_topic(topic=world.topic)
    assert world.subscriber.get_subscription(subscription=world.subscription).topic == "_deleted-topic_"
    assert texts(world.pull_now()) == ["a"]


def test_refusals_have_googles_codes(world):
    nowhere = world.subscription + "-nowhere"
    with pytest.raises(exceptions.NotFound, match="Subscription does not exist"):
        world.subscriber.get_subscription(subscription=nowhere)
    with pytest.raises(exceptions.NotFound, match="Topic does not exist"):
        world.publisher.get_topic(topic=world.topic + "-nowhere")
    with pytest.raises(exceptions.AlreadyExists, match=world.topic):
        world.publisher.create_topic(name=world.topic)
    with pytest.raises(exceptions.InvalidArgument, match="10 to 600"):
        world.subscribe(ack_deadline_seconds=5)
    with pytest.raises(exceptions.InvalidArgument, match="goog"):
        world.publisher.create_topic(name="projects/test/topics/google")
    with pytest.raises(exceptions.InvalidArgument, match="ordering key"):
        messages = [{"data": b"a", "ordering_key": "x"}, {"data": b"b", "ordering_key": "y"}]
        PublisherClient(transport=world.publisher.transport).publish(topic=world.topic, messages=messages)
    with pytest.raises(exceptions.MethodNotImplemented, match="push_config"):
        world.subscribe(push_config={"push_endpoint": "http://localhost"})
