"""The `sitecustomize` of a container whose question is mounted as a file.

It installs a hook that passes the question to the SDK, and runs the `sitecustomize` that it hides.
A cluster has a network, so nothing else of the SDK is patched.
"""

import twined_hook
import twined_question

twined_hook.install(after=twined_question.AFTER)
twined_hook.run_next(__name__, __file__)
