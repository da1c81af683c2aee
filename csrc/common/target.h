// One source, several instruction sets: SPECFAST_BEGIN_TARGET(...) ... SPECFAST_END_TARGET compile what stands between
// them for a set that the rest of the binary does not ask for. Standard headers must be included before.
#pragma once

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define SPECFAST_X86_TARGETS 1
#else
#define SPECFAST_X86_TARGETS 0
#endif

#define SPECFAST_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define SPECFAST_BEGIN_TARGET(set) \
  SPECFAST_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define SPECFAST_END_TARGET SPECFAST_PRAGMA(clang attribute pop)
#else
#define SPECFAST_BEGIN_TARGET(set) SPECFAST_PRAGMA(GCC push_options) SPECFAST_PRAGMA(GCC target(set))
#define SPECFAST_END_TARGET SPECFAST_PRAGMA(GCC pop_options)
#endif

#if defined(__GNUC__) || defined(__clang__)
#define SPECFAST_PREFETCH(address) __builtin_prefetch(address)
#else
#define SPECFAST_PREFETCH(address) ((void)0)
#endif
