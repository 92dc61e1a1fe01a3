"""The C extensions and their stable ABI; everything else is declared in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))
from native.build_p256 import library

modules = ["native/build_scrypt.py:ffibuilder"]
if library() is not None:  # eight signatures at a time; without it they are checked one by one
    modules.append("native/build_p256.py:ffibuilder")
setup(cffi_modules=modules, options={"bdist_wheel": {"py_limited_api": "cp311"}})
