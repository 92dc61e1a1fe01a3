"""The C extension and its stable ABI; everything else is declared in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["native/build_scrypt.py:ffibuilder"], options={"bdist_wheel": {"py_limited_api": "cp311"}})
