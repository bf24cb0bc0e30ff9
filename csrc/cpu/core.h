#pragma once
// The header that the build precompiles and includes before every source that is neither a binding
// nor a kernel (setup.py). No file needs to include it.

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>
