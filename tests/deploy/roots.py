"""Fresh Debian roots to try things in, from the archives that `make services` made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, need
from tests.services import CACHE

NAMES = os.environ.get("MAXGREEN_INSTALL_ROOTS", "debian12 debian13").split()  # `make pi`: an emulated Pi's


class Root:
    """A root folder; commands run inside, each with a /proc that is mounted for it alone and goes with it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("resolv.conf", "hosts", "ssl/certs/ca-certificates.crt"):
            shutil.copy(Path("/etc") / name, folder / "etc" / name)
        for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
            if not (folder / "dev" / name).exists():  # never the machine's own /dev: the folder is removed later
                os.mknod(folder / "dev" / name, 0o020666, os.makedev(1, minor))
                (folder / "dev" / name).chmod(0o666)

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def mounted(self, *command):
        """Return a command line that runs with the root's /proc mounted, in a mount namespace of its own."""
        script = 'mount -t proc proc "$1"/proc && shift && exec "$@"'
        return ["unshare", "--mount", "--", "sh", "-c", script, "sh", self.folder, *command]

    def run(self, *command, user=None, status=0, timeout=1_200, **environment):
        chosen = [f"--userspec={user}:{user}"] if user else []
        done = subprocess.run(
            self.mounted("chroot", *chosen, self.folder, *command),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                **environment,
            },
        )
        assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    def copy_project(self, to="root/project"):
        """Copy what a clone would hold."""
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
        for name in filter(None, names):
            source = ROOT / os.fsdecode(name)
            if source.exists():
                target = self.folder / to / os.fsdecode(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)


def unpacked(name, folder):
    """Return a fresh root, or skip with the reason."""
    if os.getuid() != 0:
        pytest.skip("roots need root: chroot, unshare")
    archive = CACHE / "roots" / f"{name}.tar"
    need(archive, f"there is no root {name} (make services, as root, with mmdebstrap)")
    root = folder / name
    root.mkdir()
    subprocess.run(["tar", "-C", root, "-xf", archive], check=True)
    return Root(root)
