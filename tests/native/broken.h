/* Declares the wrong kernel for scrypt.c. */
#include "scrypt.h"
extern const mg_kernel mg_broken;
