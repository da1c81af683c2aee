// Argument checks: the message names the operator and the argument; Python sees a ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace specfast {

template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace specfast
