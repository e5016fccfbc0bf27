"""`mas agent infer` on a device that has only what an agent installs."""

from __future__ import annotations

import subprocess
import sys


def test_inference_needs_nothing_of_the_demo() -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'jinja2', 'markupsafe', 'sqlalchemy', 'onnx'):\n"
        "            raise ImportError(f'{name} is absent')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import tools.infer, tools.cli.main\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
