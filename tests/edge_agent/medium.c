/* A medium that keeps only what was synchronised: at fsync and fdatasync a file of $MEDIUM_LIVE is copied to
 * $MEDIUM_DURABLE. After a power cut the copies are what is there; all other writes are gone. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A name that was changed is the durable one when its folder is synchronised. */
static char renamed[16][2][4096];
static int renames;

static void durable_path(char *to, const char *path) {
    const char *name = strrchr(path, '/');
    snprintf(to, 4096, "%s/%.1000s", getenv("MEDIUM_DURABLE"), name ? name + 1 : path);
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    int result = real(from, to);
    const char *live = getenv("MEDIUM_LIVE");
    if (!result && live && getenv("MEDIUM_DURABLE") && !strncmp(from, live, strlen(live)) && renames < 16) {
        durable_path(renamed[renames][0], from);
        durable_path(renamed[renames++][1], to);
    }
    return result;
}

/* A folder that is synchronised keeps its names (of files that are empty as yet), and forgets those that are gone. */
static void keep_names(const char *live, const char *durable) {
    char to[4096];
    int (*real)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    for (int k = 0; k < renames; k++) real(renamed[k][0], renamed[k][1]);
    renames = 0;
    DIR *folder = opendir(live);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (entry->d_type != DT_REG) continue;
        snprintf(to, sizeof to, "%s/%s", durable, entry->d_name);
        close(open(to, O_WRONLY | O_CREAT, 0600));
    }
    closedir(folder);
    folder = opendir(durable);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char from[4096];
        snprintf(from, sizeof from, "%s/%s", live, entry->d_name);
        snprintf(to, sizeof to, "%s/%s", durable, entry->d_name);
        if (entry->d_type == DT_REG && access(from, F_OK)) unlink(to);
    }
    closedir(folder);
}

static void keep(int fd) {
    const char *live = getenv("MEDIUM_LIVE"), *durable = getenv("MEDIUM_DURABLE");
    char link[64], path[4096], fresh[4096], to[4096];
    static char data[1 << 16];
    struct stat s;
    if (!live || !durable || fstat(fd, &s)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return;
    path[n] = 0;
    size_t l = strlen(live);
    if (S_ISDIR(s.st_mode) && strcmp(path, live) == 0) keep_names(live, durable);
    if (!S_ISREG(s.st_mode)) return;
    if (strncmp(path, live, l) || path[l] != '/' || strchr(path + l + 1, '/')) return;
    snprintf(to, sizeof to, "%s/%.1000s", durable, path + l + 1);
    snprintf(fresh, sizeof fresh, "%s/.fresh", durable);
    int out = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0600), in = open(path, O_RDONLY);
    while (in >= 0 && out >= 0 && (n = read(in, data, sizeof data)) > 0) {
        if (write(out, data, (size_t)n) != n) abort();
    }
    close(in), close(out);
    rename(fresh, to);
}

int fsync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = real(fd);
    if (!result) keep(fd);
    return result;
}

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = real(fd);
    if (!result) keep(fd);
    return result;
}
