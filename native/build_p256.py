"""Builds the extension `native._p256` (cffi, API mode) where Intel's crypto_mb is at hand; setup.py names it."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from sysconfig import get_platform

from cffi import FFI

HERE = Path(__file__).parent


def library() -> Path | None:
    """Return the static library of the package ipp-crypto-static, or None: also where another machine is built for."""
    if not get_platform().endswith("x86_64"):
        return None
    try:
        found = next((file for file in files("ipp-crypto-static") or () if file.name == "libcrypto_mb.a"), None)
    except PackageNotFoundError:
        return None
    path = Path(str(found.locate())).resolve() if found is not None else None
    return path if path is not None and path.exists() else None


ffibuilder = FFI()
ffibuilder.cdef(
    """
enum { MG_P256_JOB_BYTES = 160 };
int mg_p256_supported(void);
void mg_p256_verify(const uint8_t *jobs, size_t count, uint8_t *ok);
"""
)
ffibuilder.set_source(
    "native._p256",
    '#include "p256.h"',
    sources=["native/p256.c"],
    depends=["native/p256.h"],
    include_dirs=[str(HERE)],
    extra_objects=[str(library())],
    extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra"],
    extra_link_args=["-Wl,--exclude-libs,ALL"],
)
