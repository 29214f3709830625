"""What the unmodified Octue SDK needs where there is no network.

Python imports `sitecustomize` when it starts. This one, put first on PYTHONPATH, only leaves an
import hook behind (`twined_hook`) and runs the `sitecustomize` that it shadows. The hook waits for
modules of the SDK and, once each is loaded:

* answers with schemas of our own where the SDK would download them (they refuse what the real
  ones refuse);
* hands `octue twined question ask-local` the question of a file (`twined_question`);
* where TWINED_LOCAL_REGISTRY names a service registry: makes services ask that one, look for
  their secrets in the environment alone, and keep no diagnostics where there is no storage;
* lets Google's client take messages of over 4 MiB from an emulator, as it does from Pub/Sub.

Python 3.8 or newer, standard library only; no file of the SDK is changed.
"""

import os

import twined_hook
import twined_question

LOCAL_REGISTRY_VARIABLE = "TWINED_LOCAL_REGISTRY"
EMULATOR_VARIABLE = "PUBSUB_EMULATOR_HOST"
STORAGE_VARIABLE = "STORAGE_EMULATOR_HOST"


# === The schemas ===

_REGISTRY = "https://jsonschema.registry.octue.com/octue/"
_EVENTS_URI = _REGISTRY + "service-communication/0.16.0.json"
_CHILDREN_URI = _REGISTRY + "children/0.2.0.json"
_MANIFEST_URI = _REGISTRY + "manifest/0.1.0.json"

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}


def _schemas():
    """Our stand-ins, by the address that the SDK would download each from."""
    return {
        _EVENTS_URI: _events_schema(),
        _CHILDREN_URI: _children_schema(),
        _MANIFEST_URI: _manifest_schema(),
    }


def _events_schema():
    """An event with its attributes: who may say what, and the fields of each kind."""
    questions = {"properties": {"kind": {"const": "question"}}}
    responses = {"properties": {"kind": {"not": {"const": "question"}}}}

    return {
        "$schema": _DIALECT,
        "$id": _EVENTS_URI,
        "type": "object",
        "properties": {"event": _event_schema(), "attributes": _attributes_schema()},
        "required": ["event", "attributes"],
        "additionalProperties": False,
        "if": {"properties": {"attributes": {"properties": {"sender_type": {"const": "PARENT"}}}}},
        "then": {"properties": {"event": questions}},
        "else": {"properties": {"event": responses}},
    }


def _event_schema():
    # A cancellation is left out on purpose: the SDK would run it as a question without inputs.
    fields = {
        "question": {
            "input_manifest": {"$ref": _MANIFEST_URI},
            "children": {"$ref": _CHILDREN_URI},
        },
        "delivery_acknowledgement": {},
        "heartbeat": {},
        "log_record": {"log_record": {"type": "object"}},
        "monitor_message": {"data": True},
        "exception": {
            "exception_type": _TEXT,
            "exception_message": _TEXT,
            "exception_traceback": {"type": "array", "items": _TEXT},
        },
        "result": {"output_manifest": {"$ref": _MANIFEST_URI}},
    }
    optional = {"input_manifest", "children", "output_manifest"}

    return {
        "type": "object",
        "properties": {"kind": {"enum": sorted(fields)}},
        "required": ["kind"],
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}},
                "then": {"properties": own, "required": sorted(set(own) - optional)},
            }
            for kind, own in fields.items()
            if own
        ],
    }


def _attributes_schema():
    everyones = (
        "uuid",
        "datetime",
        "question_uuid",
        "originator_question_uuid",
        "parent",
        "originator",
        "sender",
        "sender_sdk_version",
        "recipient",
    )
    modes = ["SAVE_DIAGNOSTICS_OFF", "SAVE_DIAGNOSTICS_ON_CRASH", "SAVE_DIAGNOSTICS_ON"]

    of_all = {name: _TEXT for name in everyones}
    of_all["parent_question_uuid"] = _TEXT
    of_all["sender_type"] = {"enum": ["PARENT", "CHILD"]}
    of_all["retry_count"] = {"type": "integer", "minimum": 0}

    of_questions = {
        "forward_logs": {"type": "boolean"},
        "save_diagnostics": {"enum": modes},
        "cpus": {"type": "integer", "minimum": 1},
        "memory": _TEXT,
        "ephemeral_storage": _TEXT,
    }

    return {
        "type": "object",
        "properties": of_all,
        "required": [*everyones, "sender_type", "retry_count"],
        "if": {"properties": {"sender_type": {"const": "PARENT"}}},
        "then": {"properties": of_questions, "required": ["forward_logs", "save_diagnostics"]},
    }


def _children_schema():
    backend = {
        "type": "object",
        "properties": {"name": {"enum": ["GCPPubSubBackend"]}, "project_id": _TEXT},
        "required": ["name", "project_id"],
    }

    return {
        "$schema": _DIALECT,
        "$id": _CHILDREN_URI,
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"key": _TEXT, "id": _TEXT, "backend": backend},
            "required": ["key", "id", "backend"],
        },
    }


def _manifest_schema():
    labels = {"type": "array", "items": _TEXT}
    tags = {"type": ["object", "null"]}

    datafile = {
        "type": "object",
        "properties": {"id": _TEXT, "path": _TEXT, "tags": tags, "labels": labels},
        "required": ["path"],
    }
    dataset = {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "name": _TEXT_OR_NULL,
            "path": _TEXT,
            "tags": tags,
            "labels": labels,
            "files": {"type": "array", "items": {"anyOf": [_TEXT, datafile]}},
        },
    }

    return {
        "$schema": _DIALECT,
        "$id": _MANIFEST_URI,
        "type": "object",
        "properties": {
            "id": _TEXT_OR_NULL,
            "name": _TEXT_OR_NULL,
            "datasets": {"type": "object", "additionalProperties": {"anyOf": [_TEXT, dataset]}},
        },
        "required": ["datasets"],
    }


_registry = None


def _with_schemas(schema):
    """The keyword arguments that make a validator of `schema` find our stand-ins.

    Other remote schemas are looked up as they would be without us.
    """
    from jsonschema import validators

    if not _has_registries():
        resolver = validators.RefResolver(
            base_uri=schema.get("$id", "") if isinstance(schema, dict) else "",
            referrer=schema,
            store=_schemas(),
        )
        return {"resolver": resolver}

    global _registry

    if _registry is None:
        from referencing import Registry
        from referencing.jsonschema import DRAFT202012

        usual = getattr(validators, "_REMOTE_WARNING_REGISTRY", None)
        base = Registry() if usual is None else usual
        stand_ins = [(uri, DRAFT202012.create_resource(own)) for uri, own in _schemas().items()]
        _registry = base.with_resources(stand_ins).crawl()

    return {"registry": _registry}


def _has_registries():
    """Is this a jsonschema (4.18 or newer) that resolves references with `referencing`?"""
    from importlib.metadata import version

    major, minor = version("jsonschema").split(".")[:2]
    return (int(major), int(minor)) >= (4, 18)


def _check_known(uri):
    if uri not in _schemas():
        raise LookupError("no stand-in for the schema " + uri + ", so it has to be downloaded")


# === The patches, each given the module that was just loaded ===


def _validate_events_here(module):
    """octue.twined.cloud.events.validation: its cached validator, with our schemas behind it."""
    from jsonschema import Draft202012Validator

    schema = module.SERVICE_COMMUNICATION_SCHEMA
    _check_known(schema["$ref"])
    module.jsonschema_validator = Draft202012Validator(schema, **_with_schemas(schema))


def _validate_strands_here(module):
    """octue.twined.twine: the same, for children and manifests."""
    _check_known(module.CHILDREN_SCHEMA)
    _check_known(module.MANIFEST_SCHEMA)
    original = module.jsonschema_validate

    def jsonschema_validate(instance, schema, *args, **kwargs):
        return original(instance, schema, *args, **dict(_with_schemas(schema), **kwargs))

    module.jsonschema_validate = jsonschema_validate


def _use_local_registry(module):
    """octue.twined.configuration: the registries and the storage that octue.yaml names are far."""
    import functools

    endpoint = os.environ.get(LOCAL_REGISTRY_VARIABLE)

    if not endpoint:
        return

    original = module.ServiceConfiguration.__init__

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.service_registries = [{"name": "twined", "endpoint": endpoint}]

        # The SDK would try for a minute and a half to upload, before it tells of a crash.
        if self.diagnostics_cloud_path and not os.environ.get(STORAGE_VARIABLE):
            module.logger.warning(
                "Diagnostics are not kept at %r: there is no storage here (%s is not set).",
                self.diagnostics_cloud_path,
                STORAGE_VARIABLE,
            )
            self.diagnostics_cloud_path = None

    module.ServiceConfiguration.__init__ = __init__


def _keep_secrets_local(module):
    """octue.twined.runner: what the environment lacks is missing; no asking Secret Manager.

    The SDK then says so in its own words, at once instead of after a minute of retries.
    """
    if not os.environ.get(LOCAL_REGISTRY_VARIABLE):
        return

    def _populate_environment_with_google_cloud_secrets(self):
        return None

    name = _populate_environment_with_google_cloud_secrets.__name__

    if not hasattr(module.Runner, name):
        raise AttributeError("this SDK looks for secrets in a way that is not known here")

    setattr(module.Runner, name, _populate_environment_with_google_cloud_secrets)


def _take_large_messages(grpc):
    """Take answers as large as Pub/Sub carries. To an emulator Google's client opens a channel
    with gRPC's limit of 4 MiB; to the real Pub/Sub, one without."""
    open_channel = grpc.insecure_channel

    def insecure_channel(target, options=None, compression=None):
        limit = "grpc.max_receive_message_length"
        options = list(options or ())
        if target == os.environ.get(EMULATOR_VARIABLE) and limit not in dict(options):
            options.append((limit, -1))
        return open_channel(target, options, compression)

    grpc.insecure_channel = insecure_channel


def _break_import_circle():
    """Before octue.twined.resources: imported first, 0.69.1 fails on a circular import."""
    import octue.resources  # noqa: F401


_BEFORE = {"octue.twined.resources": _break_import_circle}

_AFTER = {
    **twined_question.AFTER,
    "grpc": _take_large_messages,
    "octue.twined.cloud.events.validation": _validate_events_here,
    "octue.twined.configuration": _use_local_registry,
    "octue.twined.runner": _keep_secrets_local,
    "octue.twined.twine": _validate_strands_here,
}

twined_hook.install(_AFTER, _BEFORE)
twined_hook.run_next(__name__, __file__)
