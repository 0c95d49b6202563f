/* libcuda.so.1 for machines without a GPU: hands out the functions that fake_driver.py gives it.
   cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 fake_driver.c */
#include <stddef.h>
#include <string.h>

enum { SUCCESS = 0, NOT_FOUND = 500, MOST = 256 };

static struct { const char *name; void *function; } given[MOST];
static int n_given;

/* The name has to stay. */
int fake_driver_give(const char *name, void *function)
{
    if (n_given == MOST)
        return -1;
    given[n_given].name = name;
    given[n_given++].function = function;
    return 0;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status)
{
    *function = NULL;
    if (!strcmp(name, "cuGetProcAddress"))
        *function = (void *)cuGetProcAddress_v2;
    for (int i = 0; i < n_given && !*function; i++)
        if (!strcmp(name, given[i].name))
            *function = given[i].function;
    if (status)
        *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}

int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
