"""What Python finds first in the container of a question that is mounted.

It leaves a hook behind that hands the question to the SDK, and runs the `sitecustomize` that it
hides. Here there is a network, so nothing else of the SDK is touched.
"""

import twined_hook
import twined_question

twined_hook.install(after=twined_question.AFTER)
twined_hook.run_next(__name__, __file__)
