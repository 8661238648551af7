// Gives each new thread a head start: what it does in its first moments is done when the one that
// started it goes on.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

typedef int (*Create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  const Create create = (Create)dlsym(RTLD_NEXT, "pthread_create");
  const int status = create(thread, attributes, run, argument);
  usleep(50000);
  return status;
}
