// SPDX-License-Identifier: Apache-2.0
// Everything that needs nothing but Eigen: core to model. Files and text have headers of their own.
#pragma once

#include <graft/config.hpp>
#include <graft/version.hpp>

#include <graft/core/arena.hpp>
#include <graft/core/error.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/format.hpp>
#include <graft/core/format_blocks.hpp>
#include <graft/core/format_quantize.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>
#include <graft/core/view.hpp>

#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/backend/cpu/lanes.hpp>
#include <graft/backend/cpu/low_rank.hpp>
#include <graft/backend/cpu/product.hpp>
#include <graft/backend/cpu/row_map.hpp>
#include <graft/backend/low_rank.hpp>
#include <graft/backend/row_map.hpp>
#include <graft/backend/weight.hpp>

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/adapter/rational.hpp>
#include <graft/adapter/road.hpp>
#include <graft/adapter/site.hpp>
