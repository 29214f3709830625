"""A page of another origin cannot act on a running network, in a real browser.

`src/request_guard.rs` has the rules; `tests/it/web_page.rs` sends raw requests. Here a browser
decides what it sends, with which headers, and what it lets a page read.

A page makes each attempt twice: on the network, and on a permissive server. The permissive server
shows which attempts arrive and can be read if no server refuses them. Without it, the tests would
also pass if the page were broken.
"""

import base64
import json
import queue
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from network import SUBSCRIPTION, TOPIC, detach_call, publish_call
from waiting import wait_for

# The attacker's name. Their DNS may point it anywhere, also to this machine.
ATTACKER_NAME = "evil.example"
ATTACKER_RULE = f"{ATTACKER_NAME} 127.0.0.1"

# The status of every refusal of a page of another origin.
FORBIDDEN = 403

# The attempts by which a page reads an answer of another origin, if the server permits it.
WAYS_TO_READ = {
    "fetch cors GET",
    "fetch cors HEAD",
    "XMLHttpRequest GET",
    "image",
    "script",
    "module",
    "worker script",
    "stylesheet",
    "EventSource",
    "WebSocket",
}
# The attempts by which a page sends, but never reads.
WAYS_TO_SEND = {
    "fetch no-cors GET",
    "fetch no-cors POST text/plain",
    "beacon text/plain",
    "beacon application/json",
    "iframe",
    "form GET in a frame",
    "form POST in a frame text/plain",
    "form POST in a window",
    "window",
}

PORTS = ("http", "pubsub")

READS = {
    "http": ["/env", "/metrics", "/registry/octue/recording"],
    "pubsub": ["/v1/projects/any/topics", "/v1/projects/any/subscriptions"],
}

# Forms cannot send JSON or gRPC. These need neither.
FORMS = {"http": "/google/token", "pubsub": f"/v1/{SUBSCRIPTION}:detach"}


def writes(question):
    """Requests that change something: method, path and body, by port."""
    subscription = {"topic": TOPIC}
    return {
        "http": [("POST", "/google/token", b"grant_type=x"), ("PUT", "/env", b"{}")],
        "pubsub": [
            ("POST", "/google.pubsub.v1.Publisher/Publish", question),
            ("POST", "/google.pubsub.v1.Publisher/DetachSubscription", detach_call()),
            ("POST", f"/v1/{SUBSCRIPTION}:detach", b"{}"),
            ("PUT", "/v1/projects/any/topics/of-a-page", b"{}"),
            ("PUT", "/v1/projects/any/subscriptions/of-a-page", json.dumps(subscription).encode()),
            ("PATCH", f"/v1/{SUBSCRIPTION}", b"{}"),
            ("DELETE", f"/v1/{SUBSCRIPTION}", b""),
            ("DELETE", f"/v1/{TOPIC}", b""),
        ],
    }


def target(base, port, question):
    """The requests that the page makes at `base`."""
    described = [
        {"method": method, "path": path, "body": base64.b64encode(body).decode()}
        for method, path, body in writes(question)[port]
    ]
    return {"base": base, "reads": READS[port], "writes": described, "form": FORMS[port]}


@dataclass(frozen=True)
class Attempt:
    """An attempt, as the page reports it. `answer` is everything that it could read."""

    id: int
    how: str
    url: str
    answer: str | None
    error: str | None
    settled: bool

    @property
    def key(self):
        """The same for the attempt on the network and on the permissive server."""
        return self.how, self.url.split("/", 3)[3]

    @property
    def is_refusal(self):
        """Whether the answer is a refusal of ours. A refusal of HEAD has no text."""
        return "request refused: " in self.answer or self.answer == "403 "


class Attack:
    """The report of a page, and the requests to the network and to the permissive server."""

    def __init__(self, report, question, relays, permissive_server):
        self.origin = report["origin"]
        attempts = [Attempt(**attempt) for attempt in report["report"]]
        port = f":{permissive_server.port}/"
        self.permitted = [attempt for attempt in attempts if port in attempt.url]
        self.attempts = [attempt for attempt in attempts if port not in attempt.url]
        self.question = question
        self.relays = relays
        self.permissive_server = permissive_server

    def answers(self):
        """The attempts of which the page could read the network's answer."""
        return [attempt for attempt in self.attempts if attempt.answer is not None]

    def exchanges(self):
        """The requests to the network for each attempt, with the status of the answer."""
        found = {attempt: [] for attempt in self.attempts}
        by_id = {attempt.id: attempt for attempt in self.attempts}
        for relay in self.relays:
            for exchange in relay.exchanges():
                # The requests for the icon of a window belong to no attempt.
                if exchange.attempt is not None:
                    found[by_id[exchange.attempt]].append(exchange)
        return found

    def statuses(self, how):
        """The statuses of the network's answers to attempts of a kind."""
        exchanges = self.exchanges().items()
        return {sent.status for attempt, all in exchanges if attempt.how == how for sent in all}

    def permitted_requests(self):
        """The requests to the permissive server, by the keys of attempts."""
        found = {attempt.key: [] for attempt in self.permitted}
        keys = {attempt.id: attempt.key for attempt in self.permitted}
        for request in list(self.permissive_server.requests):
            if request.attempt is not None:
                found[keys[request.attempt]].append(request)
        return found

    def simple(self):
        """The keys of the attempts that a browser sends without a preflight request."""
        requests = self.permitted_requests().items()
        methods = {key: {request.method for request in sent} for key, sent in requests}
        return {key for key, sent in methods.items() if sent and "OPTIONS" not in sent}

    def wait_until_arrived(self):
        """Waits for requests whose answers the page does not read: they may follow the report."""

        def at_permissive_server():
            requests = self.permitted_requests().items()
            arrived = {how for (how, _), sent in requests if {r.method for r in sent} - {"OPTIONS"}}
            return arrived >= WAYS_TO_SEND

        def at_network():
            simple, exchanges = self.simple(), self.exchanges().items()
            return all(sent for attempt, sent in exchanges if attempt.key in simple)

        wait_for(at_permissive_server, "the page's requests reach the permissive server")
        wait_for(at_network, "the page's simple requests reach the network")

    def assert_permitted_attempts_succeed(self):
        """Asserts that only the network's own rules protect the network from this page."""
        assert [attempt for attempt in self.permitted if not attempt.settled] == []
        read = {attempt.how for attempt in self.permitted if attempt.answer is not None}
        assert read >= WAYS_TO_READ
        requests = list(self.permissive_server.requests)
        methods = {request.method for request in requests}
        assert methods == {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
        types = {r.headers.get("content-type") for r in requests if r.body == self.question}
        assert types >= {None, "text/plain", "application/json", "application/grpc"}
        assert len(self.simple()) > 100

    def assert_refused(self):
        """Asserts that the network refused every request, including preflight requests."""
        for attempt, exchanges in self.exchanges().items():
            # A link may be followed.
            if attempt.how != "window":
                assert {sent.status for sent in exchanges} <= {FORBIDDEN}, (attempt, exchanges)
        assert [attempt for attempt in self.attempts if not attempt.settled] == []


@pytest.fixture
def attack(browser, network, page_server, permissive_server, relays):
    """Shows a page that attacks the network under a name, and returns the `Attack`."""

    def attack(page_url, network_host):
        question = publish_call()
        bases = {port: f"http://{network_host}:{network.ports[port]}" for port in PORTS}
        targets = [target(bases[port], port, question) for port in PORTS]
        permissive = f"http://127.0.0.1:{permissive_server.port}"
        targets += [target(permissive, port, question) for port in PORTS]
        plan = {"targets": targets, "report": f"http://127.0.0.1:{page_server.port}/report"}
        rules = [*(relay.rule for relay in relays), ATTACKER_RULE]

        with browser.showing(f"{page_url}#{quote(json.dumps(plan))}", rules) as output:
            try:
                report = page_server.reports.get(timeout=60)
            except queue.Empty:
                pytest.fail(f"no report of the page:\n{output.read_text()[-2000:]}", pytrace=False)
            attack = Attack(report, question, relays, permissive_server)
            attack.wait_until_arrived()
        return attack

    return attack


@pytest.mark.parametrize(
    ("page_host", "page", "network_host", "link_status"),
    [
        ("localhost", "attack.html", "localhost", 200),
        (ATTACKER_NAME, "attack.html", "127.0.0.1", 200),
        # To a name that is not `localhost`, browsers send no `Sec-Fetch-Site` over plain HTTP.
        (ATTACKER_NAME, "attack.html", ATTACKER_NAME, FORBIDDEN),
        (ATTACKER_NAME, "sandbox.html", "127.0.0.1", 200),
    ],
    ids=["another-port", "another-site", "another-name", "sandbox"],
)
def test_a_page_of_another_origin_reads_nothing_and_changes_nothing(
    attack, network, page_server, page_host, page, network_host, link_status
):
    with network.unaffected():
        attacked = attack(f"http://{page_host}:{page_server.port}/{page}", network_host)

    attacked.assert_permitted_attempts_succeed()
    attacked.assert_refused()
    own_origin = f"http://{page_host}:{page_server.port}"
    assert attacked.origin == ("null" if page == "sandbox.html" else own_origin)
    assert attacked.answers() == []
    # A link to a page of ours works, but the page with the link cannot read the target.
    assert attacked.statuses("window") == {link_status}


@pytest.mark.parametrize("port", PORTS)
def test_a_page_reads_only_refusals_after_dns_rebinding(attack, network, port):
    """The page was served by another host, and then its name resolved to this machine. For the
    browser it has the origin of the network, so it may send and read everything.
    """
    origin = f"http://{ATTACKER_NAME}:{network.ports[port]}"

    with network.unaffected():
        attacked = attack(f"{origin}/attack.html", ATTACKER_NAME)

    attacked.assert_permitted_attempts_succeed()
    attacked.assert_refused()
    assert attacked.origin == origin
    answers = attacked.answers()
    # Without frames, because no origin may embed an answer.
    assert len(answers) > 30
    assert [attempt for attempt in answers if not attempt.is_refusal] == []
    assert attacked.statuses("window") == {FORBIDDEN}


def test_a_window_shows_a_refusal_under_the_attackers_name(browser, network):
    url = f"http://{ATTACKER_NAME}:{network.ports['http']}/env"
    assert "request refused: " in browser.document(url, [ATTACKER_RULE])


@pytest.mark.parametrize(
    ("host", "path", "text"),
    [("127.0.0.1", "/metrics", "twined_"), ("localhost", "/ready", "ready")],
)
def test_a_person_opens_the_pages_of_the_network(browser, network, host, path, text):
    assert text in browser.document(f"http://{host}:{network.ports['http']}{path}")
