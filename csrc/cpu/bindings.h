#pragma once
// The header that the build precompiles and includes before every binding (setup.py): torch's
// headers take longer to compile than most bindings. No file needs to include it.

#include "common/tensor_checks.h"
