/* A disk with troubles: while the file $DISK_TROUBLE says "full", nothing more is written in $DISK_FOLDER; while it says
 * "slow", every write waits until it is on the disk, and 50 ms more. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* What troubles a file, 0 for nothing. */
static char trouble(int fd) {
    const char *said = getenv("DISK_TROUBLE"), *folder = getenv("DISK_FOLDER");
    char first = 0, link[64], path[4096];
    ssize_t (*real_read)(int, void *, size_t) = (ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    if (!said || !folder) return 0;
    int in = open(said, O_RDONLY | O_CLOEXEC);
    if (in < 0) return 0;
    if (real_read(in, &first, 1) != 1) first = 0;
    close(in);
    if (!first) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return strncmp(path, folder, strlen(folder)) ? 0 : first;
}

static int refuses(int fd) {
    int before = errno;
    char what = trouble(fd);
    if (what == 's') {
        struct timespec pause = {0, 50000000};
        nanosleep(&pause, NULL);
    }
    errno = what == 'f' ? ENOSPC : before;
    return what == 'f';
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void *data, size_t size) {
    return refuses(fd) ? -1 : REAL("write", ssize_t (*)(int, const void *, size_t))(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return refuses(fd) ? -1 : REAL("pwrite", ssize_t (*)(int, const void *, size_t, off_t))(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return refuses(fd) ? -1 : REAL("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t))(fd, data, size, at);
}

int ftruncate(int fd, off_t size) { return refuses(fd) ? -1 : REAL("ftruncate", int (*)(int, off_t))(fd, size); }

int posix_fallocate(int fd, off_t at, off_t size) {
    return refuses(fd) ? ENOSPC : REAL("posix_fallocate", int (*)(int, off_t, off_t))(fd, at, size);
}
