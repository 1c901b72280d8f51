"""In-tree PEP 517 backend: setuptools.build_meta, run against the torch of the environment being installed into.

Build isolation hides that environment from the build with PYTHONPATH and PYTHONNOUSERSITE only, so a child interpreter
started without them still reports its real sys.path (venv, conda, --user, system-site-packages).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys


def _expose_target_environment() -> None:
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONSTARTUP")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    code = "import json, sys; sys.path.pop(0); print(json.dumps(sys.path))"
    out = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True, text=True).stdout
    # after the isolated overlay: an overlay's setuptools wins
    sys.path += [path for path in json.loads(out.splitlines()[-1]) if path not in sys.path]


_expose_target_environment()


def _missing() -> list[str]:
    """Asks for setuptools only where the environment has none that knows SPDX licence names; never for torch."""
    try:
        import setuptools
    except ImportError:
        return ["setuptools>=77"]
    return [] if int(setuptools.__version__.split(".")[0]) >= 77 else ["setuptools>=77"]


def get_requires_for_build_wheel(config_settings=None):
    return _missing()


def get_requires_for_build_editable(config_settings=None):
    return _missing()


def get_requires_for_build_sdist(config_settings=None):
    return _missing()


def _meta():
    from setuptools import build_meta  # only now: what _missing asked for is installed after this file is first read

    return build_meta


def prepare_metadata_for_build_wheel(directory, config_settings=None):
    return _meta().prepare_metadata_for_build_wheel(directory, config_settings)


def prepare_metadata_for_build_editable(directory, config_settings=None):
    return _meta().prepare_metadata_for_build_editable(directory, config_settings)


def build_wheel(directory, config_settings=None, metadata_directory=None):
    return _meta().build_wheel(directory, config_settings, metadata_directory)


def build_editable(directory, config_settings=None, metadata_directory=None):
    return _meta().build_editable(directory, config_settings, metadata_directory)


def build_sdist(directory, config_settings=None):
    return _meta().build_sdist(directory, config_settings)
