// SPDX-License-Identifier: Apache-2.0
// The graft command. Exit status 0: success, 2: bad usage, 1: any other error, in one line on standard error.
#include <examples/cli/command.hpp>

#include <graft/version.hpp>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

/// Results that did not get out, because a disk is full say, are no success.
int done(int status) {
  std::cout.flush();
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0 || !std::cout)
    throw std::runtime_error(std::string("standard output: cannot be written: ") + std::strerror(errno));
  return status;
}

/// The command line; what it prints and returns is its result.
int run(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
    return done(0);
  } catch (CLI::Success const& e) {  // help or the version was asked for
    return done(app.exit(e));
  }
}

/// One line on standard error. Messages of the library already say who speaks, others do not.
int failed(int status, char const* message) {
  bool const named = std::string_view(message).starts_with("graft: ");
  std::fprintf(stderr, "%s%s\n", named ? "" : "graft: ", message);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("graft: adapters on transformer models, many at once", "graft");
  app.set_version_flag("--version", graft::version_string);
  app.require_subcommand(1);
  graft::cli::add_info(app);
  graft::cli::add_logits(app);
  graft::cli::add_generate(app);
  graft::cli::add_train(app);
  graft::cli::add_eval(app);
  graft::cli::add_convert(app);
  graft::cli::add_combine(app);
  graft::cli::add_merge(app);
  graft::cli::add_unmerge(app);
  try {
    return run(app, argc, argv);
  } catch (CLI::ParseError const& e) {
    return failed(2, e.what());
  } catch (graft::cli::UsageError const& e) {
    return failed(2, e.what());
  } catch (std::bad_alloc const&) {
    return failed(1, "out of memory");
  } catch (std::exception const& e) {
    return failed(1, e.what());
  }
}
