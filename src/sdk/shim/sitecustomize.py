"""Makes the unmodified Octue SDK work without the internet.

Python imports `sitecustomize` when it starts. This one, first in PYTHONPATH, installs an import hook
(`twined_hook`) and runs the `sitecustomize` that it hides. The hook patches modules of the SDK when
they are loaded:

* JSON schemas that the SDK would download are replaced by schemas of this file, which refuse what
  the real ones refuse;
* `octue twined question ask-local` gets the question of a file (`twined_question`);
* if TWINED_LOCAL_REGISTRY names a service registry, services ask that one, read secrets from the
  environment only, and save no diagnostics if there is no storage;
* Google's client accepts messages of over 4 MiB from an emulator, as it does from Pub/Sub.

Python 3.8 or newer, standard library only. No file of the SDK is changed.
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
    """The schemas, by the address from which the SDK would download each."""
    return {
        _EVENTS_URI: _events_schema(),
        _CHILDREN_URI: _children_schema(),
        _MANIFEST_URI: _manifest_schema(),
    }


def _events_schema():
    """An event with its attributes: which sender may send which kind, with which fields."""
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
    # Without cancellations: the SDK would run one as a question without inputs.
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
    common = (
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

    all_events = {name: _TEXT for name in common}
    all_events["parent_question_uuid"] = _TEXT
    all_events["sender_type"] = {"enum": ["PARENT", "CHILD"]}
    all_events["retry_count"] = {"type": "integer", "minimum": 0}

    questions = {
        "forward_logs": {"type": "boolean"},
        "save_diagnostics": {"enum": modes},
        "cpus": {"type": "integer", "minimum": 1},
        "memory": _TEXT,
        "ephemeral_storage": _TEXT,
    }

    return {
        "type": "object",
        "properties": all_events,
        "required": [*common, "sender_type", "retry_count"],
        "if": {"properties": {"sender_type": {"const": "PARENT"}}},
        "then": {"properties": questions, "required": ["forward_logs", "save_diagnostics"]},
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
    """Keyword arguments with which a validator of `schema` finds the schemas of this file.

    Other remote schemas are looked up as usual.
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
        own = [(uri, DRAFT202012.create_resource(schema)) for uri, schema in _schemas().items()]
        _registry = base.with_resources(own).crawl()

    return {"registry": _registry}


def _has_registries():
    """Whether jsonschema resolves references with `referencing` (4.18 or newer)."""
    from importlib.metadata import version

    major, minor = version("jsonschema").split(".")[:2]
    return (int(major), int(minor)) >= (4, 18)


def _check_known(uri):
    if uri not in _schemas():
        raise LookupError("the schema " + uri + " is not known here, and has to be downloaded")


# === The patches; each gets the module that was just loaded ===


def _use_own_event_schemas(module):
    """octue.twined.cloud.events.validation: replaces its cached validator."""
    from jsonschema import Draft202012Validator

    schema = module.SERVICE_COMMUNICATION_SCHEMA
    _check_known(schema["$ref"])
    module.jsonschema_validator = Draft202012Validator(schema, **_with_schemas(schema))


def _use_own_strand_schemas(module):
    """octue.twined.twine: validates children and manifests with the schemas of this file."""
    _check_known(module.CHILDREN_SCHEMA)
    _check_known(module.MANIFEST_SCHEMA)
    original = module.jsonschema_validate

    def jsonschema_validate(instance, schema, *args, **kwargs):
        return original(instance, schema, *args, **dict(_with_schemas(schema), **kwargs))

    module.jsonschema_validate = jsonschema_validate


def _use_local_registry(module):
    """octue.twined.configuration: registries and storage of an octue.yaml are in the cloud."""
    import functools

    endpoint = os.environ.get(LOCAL_REGISTRY_VARIABLE)

    if not endpoint:
        return

    original = module.ServiceConfiguration.__init__

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.service_registries = [{"name": "twined", "endpoint": endpoint}]

        # The SDK would retry the upload for 90 s before it reports a crash.
        if self.diagnostics_cloud_path and not os.environ.get(STORAGE_VARIABLE):
            module.logger.warning(
                "Diagnostics are not kept at %r: there is no storage here (%s is not set).",
                self.diagnostics_cloud_path,
                STORAGE_VARIABLE,
            )
            self.diagnostics_cloud_path = None

    module.ServiceConfiguration.__init__ = __init__


def _skip_secret_manager(module):
    """octue.twined.runner: reads secrets from the environment only.

    The SDK then reports a missing secret immediately, not after a minute of retries.
    """
    if not os.environ.get(LOCAL_REGISTRY_VARIABLE):
        return

    def _populate_environment_with_google_cloud_secrets(self):
        return None

    name = _populate_environment_with_google_cloud_secrets.__name__

    if not hasattr(module.Runner, name):
        raise AttributeError("this version of the SDK reads secrets in an unknown way")

    setattr(module.Runner, name, _populate_environment_with_google_cloud_secrets)


def _allow_large_messages(grpc):
    """grpc: removes the limit of 4 MiB from channels to the emulator.

    Google's client sets no limit on its channels to Pub/Sub.
    """
    open_channel = grpc.insecure_channel

    def insecure_channel(target, options=None, compression=None):
        limit = "grpc.max_receive_message_length"
        options = list(options or ())
        if target == os.environ.get(EMULATOR_VARIABLE) and limit not in dict(options):
            options.append((limit, -1))
        return open_channel(target, options, compression)

    grpc.insecure_channel = insecure_channel


def _break_import_circle():
    """Before octue.twined.resources: SDK 0.69.1 fails on a circular import if it comes first."""
    import octue.resources  # noqa: F401


_BEFORE = {"octue.twined.resources": _break_import_circle}

_AFTER = {
    **twined_question.AFTER,
    "grpc": _allow_large_messages,
    "octue.twined.cloud.events.validation": _use_own_event_schemas,
    "octue.twined.configuration": _use_local_registry,
    "octue.twined.runner": _skip_secret_manager,
    "octue.twined.twine": _use_own_strand_schemas,
}

twined_hook.install(_AFTER, _BEFORE)
twined_hook.run_next(__name__, __file__)
