"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

python .ci/lowest.py > lowest.txt, then in an environment of Python 3.11:
python -m pip install --constraint lowest.txt --editable '.[dev]'
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in (*project["dependencies"], *extras["slurm"], *extras["tensorboard"], *extras["rephrase"]):
    name, lowest = re.match(r"([\w.-]+)>=([\w.]+)", requirement).groups()
    sys.stdout.write(f"{name}=={lowest}\n")
