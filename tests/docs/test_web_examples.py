"""The parts of a web app in docs/examples/web compile strictly against the installed module."""

import pytest
from kit.npm_apps import install_web_examples, run


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_react_and_trpc_examples_compile_strictly(tmp_path):
    app = install_web_examples(tmp_path)
    run(app, "npx", "tsc", "--noEmit")
