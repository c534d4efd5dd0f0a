// SPDX-License-Identifier: Apache-2.0
// What reads files and text is compiled in every unit that uses it, or once: where a program's units all define
// GRAFT_EXTERN_FILES, and one of them GRAFT_DEFINE_FILES before it includes the headers it wants to hold, the others
// see declarations alone and need neither nlohmann/json nor PCRE2 nor the time to compile them. CMake: graft::files.
#pragma once

#if !defined(GRAFT_EXTERN_FILES)
#define GRAFT_FILES inline
#define GRAFT_FILES_ARE_HERE 1
#elif defined(GRAFT_DEFINE_FILES)
#define GRAFT_FILES
#define GRAFT_FILES_ARE_HERE 1
#define GRAFT_ONCE_WITH_FILES template
#else
#define GRAFT_FILES
#define GRAFT_FILES_ARE_HERE 0
#define GRAFT_ONCE_WITH_FILES extern template
#endif
