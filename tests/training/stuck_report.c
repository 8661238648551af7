// A library that a program loads before its own: what renames a file to one whose name ends in
// STUCK_REPORT waits for ever, as on a disk that hangs.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int rename(const char* from, const char* to) {
  static int (*next)(const char*, const char*);
  if (next == NULL) next = (int (*)(const char*, const char*))dlsym(RTLD_NEXT, "rename");
  const char* const stuck = getenv("STUCK_REPORT");
  const size_t length = strlen(to);
  if (stuck != NULL && length >= strlen(stuck) && strcmp(to + length - strlen(stuck), stuck) == 0) {
    while (1) pause();
  }
  return next(from, to);
}
