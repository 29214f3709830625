"""The servers that Google's clients in a pod need offline, on an address that pods reach.

As `twined local` does on loopback: a service account file with a new key, whose `token_uri` is
served here; a metadata server that reports its universe domain; and a service registry with one
revision of each service. A Secret mounts the file into pods.
"""

import base64
import json
import re
import subprocess
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import images

PROJECT = "tests"
EMAIL = f"twined@{PROJECT}.iam.gserviceaccount.com"
SECRET = "google"
FOLDER = "/var/run/google"
FILE = "account.json"
UNIVERSE = "/computeMetadata/v1/universe/universe-domain"


class Google:
    """Serves on an address of this machine that pods reach, until closed."""

    def __init__(self, folder, host):
        self.path = folder / FILE
        self.key = folder / "google.key"
        google = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                google.answer(self)

            def do_POST(self):
                google.grant(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer((host, 0), Answering)
        self.server.daemon_threads = True
        self.address = f"{host}:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.write_account()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def write_account(self):
        command = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
        subprocess.run([*command, "-out", self.key], check=True, capture_output=True)
        account = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "test",
            "private_key": self.key.read_text(),
            "client_email": EMAIL,
            "client_id": "100000000000000000000",
            "token_uri": f"http://{self.address}/token",
            "universe_domain": "googleapis.com",
        }
        self.path.write_text(json.dumps(account))

    # === For pods ===

    def secret(self, namespace):
        """The Secret with the file, for one namespace."""
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": namespace},
            "stringData": {FILE: self.path.read_text()},
        }

    def volume(self):
        return {"name": SECRET, "secret": {"secretName": SECRET}}

    def mount(self):
        return {"name": SECRET, "mountPath": FOLDER, "readOnly": True}

    def environment(self, pubsub, file=f"{FOLDER}/{FILE}"):
        """The environment of a pod whose Pub/Sub is at `pubsub`."""
        return {
            "PUBSUB_EMULATOR_HOST": pubsub,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "GOOGLE_APPLICATION_CREDENTIALS": file,
            "GCE_METADATA_HOST": self.address,
            "TWINED_LOCAL_REGISTRY": f"http://{self.address}/registry",
        }

    def local_environment(self, pubsub):
        """The environment of a process of this machine."""
        return self.environment(pubsub, file=str(self.path))

    # === Answering ===

    def answer(self, request):
        path, _, query = request.path.partition("?")

        if path == UNIVERSE:
            return respond(request, 200, "googleapis.com", "application/text")
        if path.startswith("/registry/"):
            asked = urllib.parse.parse_qs(query).get("revision_tag", [images.TAG])[0]
            return respond(request, 200, json.dumps({"revision_tag": asked}))
        return respond(request, 404, "{}")

    def grant(self, request):
        body = request.rfile.read(int(request.headers["Content-Length"])).decode()
        assertion = urllib.parse.parse_qs(body).get("assertion", [""])[0]
        claims = re.match(r"[^.]*\.([^.]*)\.", assertion)

        if claims is None:
            return respond(request, 400, json.dumps({"error": "invalid_grant"}))

        audience = json.loads(decoded(claims[1])).get("target_audience")

        if audience:
            return respond(request, 200, json.dumps({"id_token": self.id_token(audience)}))
        token = {"access_token": "a-test's", "expires_in": 3600, "token_type": "Bearer"}
        return respond(request, 200, json.dumps(token))

    def id_token(self, audience):
        now = int(time.time())
        claims = {"aud": audience, "azp": EMAIL, "email": EMAIL, "email_verified": True}
        claims |= {"iss": "https://accounts.google.com", "sub": "1", "iat": now, "exp": now + 3600}
        header = {"alg": "RS256", "typ": "JWT", "kid": "test"}
        signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
        sign = ["openssl", "dgst", "-sha256", "-sign", self.key]
        signature = subprocess.run(sign, input=signed.encode(), capture_output=True, check=True)
        return f"{signed}.{encoded(signature.stdout)}"


def encoded(part):
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def decoded(part):
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def respond(request, status, body, media_type="application/json"):
    request.send_response(status)
    request.send_header("Content-Type", media_type)
    request.send_header("Content-Length", str(len(body.encode())))
    # Clients reject a metadata server without this header.
    request.send_header("Metadata-Flavor", "Google")
    request.end_headers()
    request.wfile.write(body.encode())
