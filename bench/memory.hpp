// SPDX-License-Identifier: Apache-2.0
// What memory the system says this process has. Zeros where it has no /proc.
#pragma once

#include <fstream>
#include <string>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace bench {

/// Bytes of a line of /proc/self/status: VmRSS, of these RssFile, and the highest VmRSS so far, VmHWM.
inline double process_bytes(std::string const& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(key + ":")) return 1024 * std::stod(line.substr(key.size() + 1));
  return 0;
}
/// Gives what was freed back to the system, and lets VmHWM start anew.
inline void forget_freed_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
  std::ofstream("/proc/self/clear_refs") << 5;
}

}  // namespace bench
