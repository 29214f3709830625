"""The files in `/twined` of a container with a mounted question, tested without a container."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from test_shim import ASK_LOCAL, CHILDREN, SERIALISED, SHIM, BASE_ENVIRONMENT

SOURCES = SHIM / "mounted"


@pytest.fixture
def mounted(tmp_path):
    """The folder as Kubernetes mounts it: each file is a link to one in a folder beside it."""
    folder, real = tmp_path / "twined", tmp_path / "twined" / "..2026"
    real.mkdir(parents=True)
    for source in (
        SOURCES / "start.py",
        SOURCES / "sitecustomize.py",
        SHIM / "twined_hook.py",
        SHIM / "twined_question.py",
    ):
        shutil.copy(source, real)
    (folder / "..data").symlink_to("..2026")

    def mount(question=b"{}", parts=1):
        size = len(question) // parts + 1
        names = ["question.json", *(f"question.json.{part}" for part in range(1, parts))]
        for part, name in enumerate(names):
            (real / name).write_bytes(question[part * size : (part + 1) * size])
        for file in real.iterdir():
            (folder / file.name).symlink_to(f"..data/{file.name}")
        return folder

    return mount


def start(folder, *command, parts=1, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-S", str(folder / "start.py"), *command],
        env={
            **BASE_ENVIRONMENT,
            "TWINED_QUESTION_FILE": str(folder / "question.json"),
            "TWINED_QUESTION_PARTS": str(parts),
            **environment,
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_replaces_our_process_with_unchanged_arguments(mounted):
    folder = mounted()
    arguments = ["$(HOME) $HOME", "a  b", "*", "", "'\"\n"]
    code = "import json, os, sys; print(json.dumps([os.getpid(), sys.argv[1:]]))"

    process = subprocess.Popen(
        [sys.executable, str(folder / "start.py"), sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)

    assert json.loads(output) == [process.pid, arguments]


def test_the_images_own_path_and_sitecustomize_follow_ours(mounted, tmp_path):
    folder, own = mounted(), tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys; sys.own_ran = True")
    code = "import os, sys; print(sys.own_ran, os.environ['PYTHONPATH'], sys.meta_path[0])"

    run = start(folder, sys.executable, "-c", code, PYTHONPATH=str(own))

    ran, path, finder = run.stdout.split(maxsplit=2)
    assert (ran, path) == ("True", f"{folder}{os.pathsep}{own}")
    assert "_TwinedFinder" in finder
    assert run.stderr == ""


def test_an_image_with_the_shim_keeps_its_patches(mounted, tmp_path):
    """For example the images of `tests/cluster`. Both shims install hooks."""
    code = "import sys; print(*sorted(sys.meta_path[0]._after))"

    run = start(mounted(), sys.executable, "-c", code, PYTHONPATH=str(SHIM))

    patched = run.stdout.split()
    assert {"octue", "octue.twined.cloud.events.question"} <= set(patched), run.stderr
    assert {"octue.twined.cloud.events.validation", "octue.twined.twine"} <= set(patched)


@pytest.mark.parametrize(("mode", "code"), [(None, 127), (0o600, 126)])
def test_a_command_that_cannot_start_exits_with_the_code_of_a_shell(mounted, tmp_path, mode, code):
    program = tmp_path / "program"
    if mode is not None:
        program.write_text("")
        program.chmod(mode)

    run = start(mounted(), str(program))

    assert run.returncode == code
    assert run.stderr.startswith(f"twined: cannot start '{program}': ")
    assert run.stderr.count("\n") == 1


def test_a_question_in_parts_arrives_complete(mounted, tmp_path):
    service = tmp_path / "service"
    service.mkdir()
    (service / "octue.yaml").write_text("services:\n  - {name: parent, namespace: tests}\n")
    (service / "twine.json").write_text(
        '{"input_values_schema": {}, "output_values_schema": {}, "children": [{"key": "wind"}]}'
    )
    (service / "app.py").write_text(
        "import os\n"
        "def run(analysis):\n"
        "    analysis.output_values = {\n"
        "        'same': analysis.input_values == ['é' * 1_000_000],\n"
        "        'children': {key: child.id for key, child in analysis.children.items()},\n"
        "        'inherited': [n for n in os.environ if n.startswith('TWINED_QUESTION')],\n"
        "    }\n"
    )
    question = {"input_values": ["é" * 1_000_000], "children": CHILDREN}
    # With one more byte at the start, the parts end within a character.
    text = b" " + json.dumps(question, ensure_ascii=False).encode()
    folder = mounted(text, parts=3)
    # The replacement of the schemas is not mounted, so the code below replaces the validation.
    attributes = ["--attributes", json.dumps(SERIALISED)]
    command = [sys.executable, "-c", NO_SCHEMAS + ASK_LOCAL, "twined", "question", "ask-local"]

    run = start(
        folder, *command, *attributes, parts=3, cwd=service, OCTUE_SERVICE_REVISION_TAG="local"
    )

    marked = [line for line in run.stdout.splitlines() if line.startswith("answers ")]
    assert marked, run.stderr
    (answer,) = json.loads(marked[0].partition(" ")[2])
    assert answer["end"][0]["output_values"] == {
        "same": True,
        "children": {"wind": "tests/wind:local"},
        "inherited": [],
    }


# Every value is valid, so that this test needs no network.
NO_SCHEMAS = """
import jsonschema, octue.resources
from octue.twined import twine
twine.jsonschema_validate = lambda *_, **__: None
from octue.twined.cloud.events import validation
validation.jsonschema_validator = jsonschema.Draft202012Validator({})
"""


def test_the_schemas_are_not_replaced_in_a_container(mounted):
    code = (
        "import sys, octue.resources, octue.twined.twine as twine\n"
        "print(*sorted(sys.meta_path[0]._after), twine.jsonschema_validate.__module__)\n"
    )

    run = start(mounted(), sys.executable, "-c", code)

    assert run.stdout.split() == [
        "octue",
        "octue.mixins.hashable",
        "octue.twined.cloud.events.question",
        "jsonschema.validators",
    ]


def test_a_question_with_a_missing_part_does_not_run(mounted):
    folder = mounted(b'{"input_values": 1}')

    run = start(folder, sys.executable, "-c", "import octue", "ask-local", parts=2)

    assert run.returncode == 1
    assert run.stderr.startswith("twined: cannot read the question file")
