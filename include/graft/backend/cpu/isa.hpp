// SPDX-License-Identifier: Apache-2.0
// Instruction-set levels: every kernel exists once per level, and the processor's best is chosen at run time.
#pragma once

#include <graft/config.hpp>
#include <graft/core/error.hpp>

#include <cstdint>
#include <cstdlib>
#include <string_view>

#if GRAFT_CAN_TARGET && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace graft {

/// Each level includes those before it. `baseline` is what the compiler's flags allow: SSE2 or NEON by default.
enum class Isa : std::uint8_t {
  baseline,
  avx2,    ///< AVX2, FMA, F16C
  avx512,  ///< AVX-512 F, BW, DQ, VL
  vnni,    ///< AVX512-VNNI and AVX512-BF16
  amx,     ///< AMX-TILE and AMX-BF16, on Linux: products of bf16 in native precision; all others are those of vnni
};
inline constexpr int isa_count = 5;

constexpr const char* isa_name(Isa isa) {
  constexpr const char* names[isa_count] = {"baseline", "avx2", "avx512", "vnni", "amx"};
  return names[static_cast<int>(isa)];
}

namespace detail {
/// Whether the processor multiplies tiles of bf16 and Linux lets this process do so, which each has to ask for (Linux
/// 5.16, Documentation/x86/xstate.rst).
inline bool has_amx() {
#if GRAFT_CAN_TARGET && defined(__linux__)
  unsigned a = 7, b = 0, c = 0, d = 0;  // __builtin_cpu_supports of clang 14 does not know AMX
  asm("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  constexpr int request_permission = 0x1023, tile_data = 18;
  return (d & bf16) != 0 && (d & tile) != 0 && syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
}  // namespace detail

/// The best level this processor has.
inline Isa detected_isa() {
#if GRAFT_CAN_TARGET
  static Isa const best = [] {
    __builtin_cpu_init();
    auto isa = Isa::baseline;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return isa;
    isa = Isa::avx2;  // no processor has these two without F16C
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
      return isa;
    isa = Isa::avx512;
    if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512bf16")) return isa;
    return detail::has_amx() ? Isa::amx : Isa::vnni;
  }();
  return best;
#else
  return Isa::baseline;
#endif
}

/// Whether a processor of level vnni can also move bytes apart and together (AVX512-VBMI2), as all but the first do.
inline bool has_vbmi2() {
#if GRAFT_CAN_TARGET
  static bool const has = (__builtin_cpu_init(), __builtin_cpu_supports("avx512vbmi2"));
  return has;
#else
  return false;
#endif
}

/// What a backend starts with: the processor's best, or what the environment variable GRAFT_ISA names, which must not
/// be more than the processor has.
inline Isa default_isa() {
  static Isa const chosen = [] {
    const char* const name = std::getenv("GRAFT_ISA");
    if (name == nullptr || *name == '\0') return detected_isa();
    for (int k = 0; k < isa_count; ++k) {
      auto const isa = static_cast<Isa>(k);
      if (std::string_view(name) != isa_name(isa)) continue;
      expects(isa <= detected_isa(), "graft: GRAFT_ISA is ", name, ", but this processor's best is ",
              isa_name(detected_isa()));
      return isa;
    }
    raise<ContractError>("graft: GRAFT_ISA is \"", name, "\"; it may be baseline, avx2, avx512, vnni or amx");
  }();
  return chosen;
}

/// How products treat activations.
enum class Precision : std::uint8_t {
  exact,   ///< as f32
  native,  ///< rounded to what the dot product instructions take: bf16 or 8-bit integers, see docs/performance.md
};

}  // namespace graft
