#ifndef MG_PORTABLE_H
#define MG_PORTABLE_H
#include "scrypt.h"
extern const mg_kernel mg_portable;
#endif
