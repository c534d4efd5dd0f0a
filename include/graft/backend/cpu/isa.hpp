// SPDX-License-Identifier: Apache-2.0
// Instruction-set levels: every kernel exists once per level, and the processor's best is chosen at run time.
#pragma once

#include <graft/config.hpp>
#include <graft/core/error.hpp>

#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace graft {

/// Each level includes those before it. `baseline` is what the compiler's flags allow: SSE2 or NEON by default.
enum class Isa : std::uint8_t {
  baseline,
  avx2,    ///< AVX2, FMA, F16C
  avx512,  ///< AVX-512 F, BW, DQ, VL
  vnni,    ///< AVX512-VNNI and AVX512-BF16
};
inline constexpr int isa_count = 4;

constexpr const char* isa_name(Isa isa) {
  constexpr const char* names[isa_count] = {"baseline", "avx2", "avx512", "vnni"};
  return names[static_cast<int>(isa)];
}

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
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) isa = Isa::vnni;
    return isa;
  }();
  return best;
#else
  return Isa::baseline;
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
    raise<ContractError>(text("graft: GRAFT_ISA is \"", name, "\"; it may be baseline, avx2, avx512 or vnni"));
  }();
  return chosen;
}

/// How products treat activations.
enum class Precision : std::uint8_t {
  exact,   ///< as f32
  native,  ///< rounded to what the dot product instructions take: bf16 or 8-bit integers, see docs/performance.md
};

}  // namespace graft
