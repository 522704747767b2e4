// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

namespace block_sparse {

enum class StatusCode { ok, invalid_argument, unsupported, out_of_memory };

/// Outcome of a call into the library, which never throws, prints or aborts
/// across its interface. The message is one sentence that names the argument,
/// what came and what was expected.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status invalid_argument(std::string message) {
    return {StatusCode::invalid_argument, std::move(message)};
  }
  static Status unsupported(std::string message) {
    return {StatusCode::unsupported, std::move(message)};
  }
  static Status out_of_memory(std::string message) {
    return {StatusCode::out_of_memory, std::move(message)};
  }

  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

}  // namespace block_sparse
