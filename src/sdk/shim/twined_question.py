"""Hands `octue twined question ask-local` a question that no argument holds.

TWINED_QUESTION_FILE names the file: `{"input_values": ..., "input_manifest": ..., "children":
...}`, each optional. Where TWINED_QUESTION_PARTS says that it is in so many parts, the second is
beside it with `.1` at the end of its name, the third with `.2`. No file of the SDK is changed.
"""

import os
import sys

FILE_VARIABLE = "TWINED_QUESTION_FILE"
PARTS_VARIABLE = "TWINED_QUESTION_PARTS"

_question = {}


def _bring_question(_module):
    """octue: puts the values of the question file into the arguments, before the CLI reads them.

    Arguments that the kernel passes may not be over 128 KiB each; these may be of any size.
    """
    path = os.environ.get(FILE_VARIABLE)

    if not path or "ask-local" not in sys.argv:
        return

    import json

    # A question must not run as if it had no inputs, so here there is no going on.
    try:
        _question.update(json.loads(_read(path, int(os.environ.get(PARTS_VARIABLE) or 1))))
    except Exception as error:
        sys.exit(f"twined: cannot read the question file {path!r}: {error}")

    # What the service itself starts is not to answer this question again.
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
    """The whole of it. A part may end within a character, so they are joined as bytes."""
    whole = bytearray()

    for part in range(parts):
        with open(path if part == 0 else f"{path}.{part}", "rb") as file:
            whole += file.read()

    return whole.decode("utf-8")


def _keep_whole_question(module):
    """octue.twined.cloud.events.question: used by `ask-local` alone, which loses two things."""
    import functools

    original = module.make_question_event

    @functools.wraps(original)
    def make_question_event(*args, **kwargs):
        question = original(*args, **kwargs)
        event = question["event"]

        # It has no option for children.
        if _question.get("children") is not None:
            event["children"] = _question["children"]

        # A text is read as JSON before the app sees it, and "" is no JSON. This is JSON for "".
        if event.get("input_values") == "":
            event["input_values"] = '""'

        return question

    module.make_question_event = make_question_event


def _hash_booleans(module):
    """octue.mixins.hashable: the SDK hashes what it is asked, and fails on a bare true or false."""
    if "ask-local" in sys.argv:
        module._HASH_PREPARATION_FUNCTIONS.setdefault(bool, str)


AFTER = {
    "octue": _bring_question,
    "octue.mixins.hashable": _hash_booleans,
    "octue.twined.cloud.events.question": _keep_whole_question,
}
