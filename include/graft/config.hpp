// SPDX-License-Identifier: Apache-2.0
// The only header that asks which compiler this is. It includes nothing.
#pragma once

#if !defined(__cplusplus) || __cplusplus < 202002L
#error "graft: C++20 is required (pass -std=c++20)"
#endif

// Functions that run on the host and, when nvcc compiles them, on the device too.
#if defined(__CUDACC__)
#define GRAFT_HOST_DEVICE __host__ __device__
#else
#define GRAFT_HOST_DEVICE
#endif

// With -fno-exceptions every error goes to graft::set_error_handler's function instead.
#if defined(__cpp_exceptions) || defined(__EXCEPTIONS)
#define GRAFT_EXCEPTIONS 1
#else
#define GRAFT_EXCEPTIONS 0
#endif

// Before a loop of few, constant turns whose values live in registers. Host code only: nvcc hands neither spelling on
// to the host's compiler, which unrolls such loops at -O3 on its own.
#if defined(__CUDACC__)
#define GRAFT_UNROLL
#elif defined(__clang__)
#define GRAFT_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define GRAFT_UNROLL _Pragma("GCC unroll 16")
#else
#define GRAFT_UNROLL
#endif

// Functions between these two marks may use the instructions named, whatever the compiler's flags say: their caller
// asks the processor first. nvcc does not hand such marks on to the host's compiler.
#define GRAFT_PRAGMA(text) _Pragma(#text)
#if defined(__CUDACC__) || !defined(__x86_64__) || !(defined(__clang__) || defined(__GNUC__))
#define GRAFT_CAN_TARGET 0
#elif defined(__clang__)
#define GRAFT_CAN_TARGET 1
#define GRAFT_TARGET_BEGIN(features) \
  GRAFT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define GRAFT_TARGET_END GRAFT_PRAGMA(clang attribute pop)
#else
#define GRAFT_CAN_TARGET 1
#define GRAFT_TARGET_BEGIN(features) GRAFT_PRAGMA(GCC push_options) GRAFT_PRAGMA(GCC target(features))
#define GRAFT_TARGET_END GRAFT_PRAGMA(GCC pop_options)
#endif
