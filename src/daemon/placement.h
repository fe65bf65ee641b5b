#pragma once

#include "base/status.h"
#include "strata/v1/cluster.pb.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace strata::daemon {

// The executors of `count` nodes (-1: all) for a model that is driven from node `here`: those that are ready and of
// that engine build, by name, and the one of `here` last, so that logits stay on its machine.
// kFailedPrecondition: there are not as many; says what the others lack.
absl::StatusOr<std::vector<std::string>> choose_executors(const std::vector<v1::Node> & nodes, std::string_view here,
                                                          std::string_view engine_build, int32_t count);

} // namespace strata::daemon
