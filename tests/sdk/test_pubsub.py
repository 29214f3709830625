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
from google.cloud import pubsub_v1
from google.protobuf.duration_pb2 import Duration
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import RetryPolicy

ROOT = pathlib.Path(__file__).resolve().parents[2]

# In seconds. Longer than every call here, and shorter than the ack deadline of ten seconds.
SOON = 8


@pytest.fixture(scope="session")
def emulator():
    """Starts an emulator for all tests, and yields its address."""
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
    """Waits for the first call that succeeds."""
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
def pubsub(publisher, subscriber):
    return PubSub(publisher, subscriber)


class PubSub:
    """A new topic, and the name of a subscription to it."""

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
        publish = self.publisher.publish
        futures = [publish(self.topic, text.encode(), **attributes) for text in texts]
        return [future.result(timeout=SOON) for future in futures]

    def pull(self, timeout=SOON, **request):
        request = {"subscription": self.subscription, "max_messages": 100, **request}
        return self.subscriber.pull(request=request, timeout=timeout).received_messages

    def pull_now(self):
        return self.pull(return_immediately=True)

    def ack(self, messages):
        ack_ids = [message.ack_id for message in messages]
        request = {"subscription": self.subscription, "ack_ids": ack_ids}
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
    """A streaming pull that returns its messages one by one."""

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
def test_a_filter_selects_messages(pubsub, filter, wanted):
    assert pubsub.subscribe(filter=filter).filter == filter
    for text, attributes in MESSAGES.items():
        pubsub.publish(text, **attributes)
    assert texts(pubsub.pull_now()) == wanted


def test_a_stream_receives_only_messages_that_pass_the_filter(pubsub):
    pubsub.subscribe(filter='attributes.to = "me"')
    with pubsub.stream() as stream:
        for number in range(20):
            pubsub.publish(str(number), to="me" if number % 2 else "you")
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
def test_a_bad_filter_is_refused(pubsub, filter):
    with pytest.raises(exceptions.InvalidArgument, match="filter"):
        pubsub.subscribe(filter=filter)


def test_messages_of_an_ordering_key_arrive_in_order(pubsub):
    pubsub.subscribe(enable_message_ordering=True)
    for number in range(100):
        for key in "ab":
            pubsub.publisher.publish(pubsub.topic, str(number).encode(), ordering_key=key)
    seen = {"a": [], "b": []}
    with pubsub.stream() as stream:
        for _ in range(200):
            message = stream.next()
            seen[message.ordering_key].append(int(message.data))
            message.ack()
    assert seen == {"a": list(range(100)), "b": list(range(100))}


def test_a_nack_redelivers_all_later_messages_of_its_key(pubsub):
    pubsub.subscribe(enable_message_ordering=True)
    pubsub.publish("1", "2", "3", ordering_key="key")
    first = pubsub.pull()
    assert texts(first) == ["1", "2", "3"]
    pubsub.publish("4", ordering_key="key")
    assert pubsub.pull_now() == [], "messages of the key are outstanding"

    pubsub.ack(first[:1])
    pubsub.extend(first[1:2], 0)

    assert texts(pubsub.pull()) == ["2", "3", "4"]


def test_an_expired_deadline_redelivers_all_later_messages_of_its_key(pubsub):
    pubsub.subscribe(enable_message_ordering=True)
    pubsub.publish("1", "2", "3", ordering_key="key")
    first = pubsub.pull()
    pubsub.extend(first[1:], 600)

    again = pubsub.pull(timeout=20)

    assert texts(again) == ["1", "2", "3"]
    assert {message.ack_id for message in first}.isdisjoint(message.ack_id for message in again)


def test_a_nack_on_a_stream_redelivers_in_order(pubsub):
    pubsub.subscribe(enable_message_ordering=True)
    pubsub.publish("1", "2", "3", ordering_key="key")
    seen = []
    with pubsub.stream() as stream:
        while len(seen) < 5:
            message = stream.next()
            seen.append(message.data.decode())
            message.nack() if seen == ["1", "2"] else message.ack()
    assert seen == ["1", "2", "3", "2", "3"]


def test_a_message_that_is_not_acked_is_redelivered_after_its_deadline(pubsub):
    pubsub.subscribe(ack_deadline_seconds=10)
    ids = pubsub.publish("acked", "expired", "extended")
    first = pubsub.pull()
    pubsub.ack(first[:1])
    pubsub.extend(first[2:], 60)
    start = time.monotonic()

    again = pubsub.pull(timeout=20)

    assert time.monotonic() - start >= 9
    assert texts(again) == ["expired"]
    assert again[0].message.message_id == ids[1]


def test_a_nack_waits_for_the_back_off_of_the_retry_policy(pubsub):
    backoff = Duration(seconds=2)
    pubsub.subscribe(retry_policy=RetryPolicy(minimum_backoff=backoff, maximum_backoff=backoff))
    pubsub.publish("a")
    start = time.monotonic()
    pubsub.extend(pubsub.pull(), 0)
    assert pubsub.pull_now() == []
    assert texts(pubsub.pull()) == ["a"]
    assert time.monotonic() - start >= 1.9


def test_a_stream_extends_the_deadline_of_messages_in_progress(pubsub):
    """The client extends the deadline, so a slow message is not redelivered."""
    pubsub.subscribe(ack_deadline_seconds=10)
    pubsub.publish("slow")
    with pubsub.stream() as stream:
        message = stream.next()
        with pytest.raises(queue.Empty):
            stream.messages.get(timeout=12)
        assert pubsub.pull_now() == []
        message.ack_with_response().result(timeout=SOON)


def test_a_pull_waits_for_the_first_message(pubsub):
    pubsub.subscribe()
    publish = threading.Timer(0.5, pubsub.publish, ["late"])
    publish.start()
    assert texts(pubsub.pull()) == ["late"]
    publish.join()


def test_an_empty_pull_answers_before_the_deadline_of_the_client(pubsub):
    pubsub.subscribe()
    start = time.monotonic()
    assert pubsub.pull(timeout=2) == []
    assert 1.5 <= time.monotonic() - start < 2


def test_a_pull_returns_at_most_max_messages(pubsub):
    pubsub.subscribe()
    pubsub.publish("a", "b", "c")
    assert len(pubsub.pull(max_messages=2)) == 2
    assert len(pubsub.pull_now()) == 1


def test_a_pull_that_its_client_cancelled_takes_no_message(emulator, pubsub):
    pubsub.subscribe()
    for _ in range(10):
        channel = grpc.insecure_channel(emulator)
        request = pubsub_v1.types.PullRequest(subscription=pubsub.subscription, max_messages=1)
        waiting = SubscriberGrpcTransport(channel=channel).pull.future(request)
        assert not waiting.done()
        waiting.cancel()
        channel.close()
    # This empty pull takes long enough for the emulator to notice the cancellations.
    assert pubsub.pull(timeout=1) == []
    pubsub.publish("a")
    assert texts(pubsub.pull()) == ["a"]


def test_flow_control_limits_the_outstanding_messages_of_a_stream(pubsub):
    pubsub.subscribe()
    pubsub.publish("a", "b", "c", "d")
    flow = pubsub_v1.types.FlowControl(max_messages=2)
    with pubsub.stream(flow_control=flow) as stream:
        outstanding = [stream.next(), stream.next()]
        rest = pubsub.pull_now()
        assert len(rest) == 2, "the emulator itself enforces the limit"
        pubsub.ack(rest)
        for message in outstanding:
            message.ack()
    assert pubsub.pull_now() == []


def test_a_thousand_messages_arrive_once_each(pubsub):
    pubsub.subscribe()
    ids = set(pubsub.publish(*("x" * 500 for _ in range(1000))))
    assert len(ids) == 1000
    with pubsub.stream() as stream:
        seen = []
        for _ in range(1000):
            message = stream.next()
            seen.append(message.message_id)
            message.ack()
    assert set(seen) == ids


def test_a_stream_ends_when_its_subscription_is_deleted(pubsub):
    pubsub.subscribe()
    with pubsub.stream() as stream:
        pubsub.publish("a")
        stream.next().ack()
        pubsub.subscriber.delete_subscription(subscription=pubsub.subscription)
        with pytest.raises(exceptions.NotFound, match=pubsub.subscription):
            stream.future.result(timeout=SOON)


def test_a_topic_lists_its_subscriptions(pubsub):
    names = [f"{pubsub.subscription}-{number}" for number in range(5)]
    for name in names:
        pubsub.subscribe(name=name)
    request = {"topic": pubsub.topic, "page_size": 2}
    listed = list(pubsub.publisher.list_topic_subscriptions(request=request))
    assert listed == names
    every = pubsub.subscriber.list_subscriptions(project="projects/test")
    assert [found.topic for found in every if found.name in names] == [pubsub.topic] * 5


def test_the_subscriptions_of_a_deleted_topic_remain(pubsub):
    pubsub.subscribe()
    pubsub.publish("a")
    pubsub.publisher.delete_topic(topic=pubsub.topic)
    found = pubsub.subscriber.get_subscription(subscription=pubsub.subscription)
    assert found.topic == "_deleted-topic_"
    assert texts(pubsub.pull_now()) == ["a"]


def test_errors_have_googles_codes(pubsub):
    missing = pubsub.subscription + "-missing"
    with pytest.raises(exceptions.NotFound, match="Subscription does not exist"):
        pubsub.subscriber.get_subscription(subscription=missing)
    with pytest.raises(exceptions.NotFound, match="Topic does not exist"):
        pubsub.publisher.get_topic(topic=pubsub.topic + "-missing")
    with pytest.raises(exceptions.AlreadyExists, match=pubsub.topic):
        pubsub.publisher.create_topic(name=pubsub.topic)
    with pytest.raises(exceptions.InvalidArgument, match="10 to 600"):
        pubsub.subscribe(ack_deadline_seconds=5)
    with pytest.raises(exceptions.InvalidArgument, match="goog"):
        pubsub.publisher.create_topic(name="projects/test/topics/google")
    with pytest.raises(exceptions.InvalidArgument, match="ordering key"):
        messages = [{"data": b"a", "ordering_key": "x"}, {"data": b"b", "ordering_key": "y"}]
        client = PublisherClient(transport=pubsub.publisher.transport)
        client.publish(topic=pubsub.topic, messages=messages)
    with pytest.raises(exceptions.MethodNotImplemented, match="push_config"):
        pubsub.subscribe(push_config={"push_endpoint": "http://localhost"})
