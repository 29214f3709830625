"""Passes a question that is too long for an argument to `octue twined question ask-local`.

TWINED_QUESTION_FILE names the file: `{"input_values": ..., "input_manifest": ..., "children":
...}`, each optional. If TWINED_QUESTION_PARTS gives a number of parts, the second part is beside the
file with `.1` at the end of its name, the third with `.2`. No file of the SDK is changed.
"""

import os
import sys

FILE_VARIABLE = "TWINED_QUESTION_FILE"
PARTS_VARIABLE = "TWINED_QUESTION_PARTS"

_question = {}


def _add_question_arguments(_module):
    """octue: adds the inputs of the question file to the arguments, before the CLI reads them.

    The kernel limits an argument to 128 KiB; an argument that Python adds has no limit.
    """
    path = os.environ.get(FILE_VARIABLE)

    if not path or "ask-local" not in sys.argv:
        return

    import json

    # The process ends here: the question must not run as if it had no inputs.
    try:
        _question.update(json.loads(_read(path, int(os.environ.get(PARTS_VARIABLE) or 1))))
    except Exception as error:
        sys.exit(f"twined: cannot read the question file {path!r}: {error}")

    # Processes that the service starts must not answer this question again.
    del os.environ[FILE_VARIABLE]
    os.environ.pop(PARTS_VARIABLE, None)

    for field, short, long in (
        ("input_values", "-i", "--input-values"),
        ("input_manifest", "-m", "--input-manifest"),
    ):
        given = any(a in (short, long) or a.startswith(long + "=") for a in sys.argv)

        if _question.get(field) is not None and not given:
            sys.argv.append(long + "=" + json.dumps(_question[field]))


def _read(path, parts):
    """The text of all parts. A part may end within a character, so they are joined as bytes."""
    content = bytearray()

    for part in range(parts):
        with open(path if part == 0 else f"{path}.{part}", "rb") as file:
            content += file.read()

    return content.decode("utf-8")


def _restore_lost_inputs(module):
    """octue.twined.cloud.events.question: `ask-local` loses children and an empty text."""
    import functools

    original = module.make_question_event

    @functools.wraps(original)
    def make_question_event(*args, **kwargs):
        question = original(*args, **kwargs)
        event = question["event"]

        # `ask-local` has no option for children.
        if _question.get("children") is not None:
            event["children"] = _question["children"]

        # The SDK parses a text as JSON, and "" is not JSON. This is the JSON of "".
        if event.get("input_values") == "":
            event["input_values"] = '""'

        return question

    module.make_question_event = make_question_event


def _hash_booleans(module):
    """octue.mixins.hashable: the SDK hashes input values, and fails on a bare true or false."""
    if "ask-local" in sys.argv:
        module._HASH_PREPARATION_FUNCTIONS.setdefault(bool, str)


AFTER = {
    "octue": _add_question_arguments,
    "octue.mixins.hashable": _hash_booleans,
    "octue.twined.cloud.events.question": _restore_lost_inputs,
}
