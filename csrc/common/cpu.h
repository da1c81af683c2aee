// What this processor can do, found at run time: the binary itself asks for no more than the platform's baseline.
#pragma once

#include <string>

namespace specfast {

enum class Capability { baseline, avx2, avx512 };

// The best of the instruction sets that this processor and its operating system offer and that was compiled in.
Capability best_capability();

// Parses "baseline", "avx2", "avx512"; "" means the best. Asking for more than the machine has is an error.
Capability capability_from_name(const std::string& name);

const char* capability_name(Capability capability);

// Threads an OpenMP loop would use by default; 1 in a build without OpenMP.
int openmp_threads();

bool built_with_openmp();

}  // namespace specfast
