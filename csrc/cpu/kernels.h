#pragma once
// The header that the build precompiles for each SIMD level and includes before every kernel
// (setup.py): its text is most of what a small kernel's compilation reads. No file needs to
// include it.

#include <algorithm>
#include <array>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/simd/simd.h"
